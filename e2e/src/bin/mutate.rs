//! The fuzzers without libFuzzer: what is kept in `fuzz`, cut, joined and changed at random, by seed.
//! It does not see which code is reached, and is built with the tests in no time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use e2e::lab::Random;

/// Feeds changed inputs to a promise until the time is over or it is broken.
#[derive(Parser)]
#[command(name = "mutate", disable_version_flag = true)]
struct Arguments {
    /// What to feed
    what: What,
    /// The folder of the inputs to begin with
    corpus: PathBuf,
    /// How long to go on
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the first input; each next has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is fed.
#[derive(Clone, Copy, ValueEnum)]
enum What {
    Packets,
    Vrrp,
    Replies,
    Restore,
}

impl What {
    const fn promise(self) -> fn(&[u8]) {
        match self {
            Self::Packets => e2e::fuzz::run,
            Self::Vrrp => e2e::fuzz_vrrp::run,
            Self::Replies => e2e::replies::run,
            Self::Restore => e2e::restore::run,
        }
    }
}

/// Bytes of an input, as under libFuzzer.
const LENGTH_MAX: usize = 1024;
/// Changes of one input.
const CHANGES_MAX: usize = 6;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut corpus = Vec::new();
    let folder = &arguments.corpus;
    for entry in folder.read_dir().with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        corpus.push(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    ensure!(!corpus.is_empty(), "{} is empty", folder.display());
    // By name, so that a seed means the same elsewhere.
    corpus.sort();
    let (start, time) = (Instant::now(), Duration::from_secs(arguments.seconds));
    let mut seed = arguments.seed;
    while start.elapsed() < time {
        let input =
            Maker { random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)), corpus: &corpus };
        let input = input.make();
        let promise = arguments.what.promise();
        if std::panic::catch_unwind(|| promise(&input)).is_err() {
            let path = format!("broken-{seed}");
            std::fs::write(&path, &input).with_context(|| format!("writing {path}"))?;
            anyhow::bail!("seed {seed} breaks a promise; the input is in {path}");
        }
        seed += 1;
    }
    println!("{} inputs, seeds {} to {}", seed - arguments.seed, arguments.seed, seed - 1);
    Ok(())
}

/// Makes one input.
struct Maker<'a> {
    random: Random,
    corpus: &'a [Vec<u8>],
}

impl Maker<'_> {
    fn below(&mut self, limit: usize) -> usize {
        (self.random.next_number() % limit.max(1) as u64) as usize
    }

    fn kept(&mut self) -> Vec<u8> {
        let at = self.below(self.corpus.len());
        self.corpus[at].clone()
    }

    /// Returns some bytes of an input: of a text often whole words or lines.
    fn piece(&mut self) -> Vec<u8> {
        let kept = self.kept();
        let apart = [b' ', b'\n', kept.get(kept.len() / 2).copied().unwrap_or(0)][self.below(3)];
        let pieces: Vec<&[u8]> = kept.split(|byte| *byte == apart).collect();
        let at = self.below(pieces.len());
        [pieces[at], &[apart]].concat()
    }

    fn make(mut self) -> Vec<u8> {
        let mut input = self.kept();
        for _ in 0..=self.below(CHANGES_MAX) {
            let at = self.below(input.len() + 1);
            match self.below(6) {
                0 => input.truncate(at),
                1 => {
                    let end = (at + self.below(16)).min(input.len());
                    input.drain(at..end);
                }
                2 => {
                    let byte = self.random.next_number() as u8;
                    input.splice(at..(at + 1).min(input.len()), [byte]);
                }
                3 => input = [&input[..at], &self.kept()].concat(),
                _ => {
                    let piece = self.piece();
                    input.splice(at..at, piece);
                }
            }
        }
        input.truncate(LENGTH_MAX);
        input
    }
}
