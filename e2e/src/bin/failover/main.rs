//! Fail-over as a client sees it: how long it gets no answer from the virtual address when the
//! master ends, dies, is killed or loses its link; ours and the real keepalived in turn.
//!
//! Needs root. `docs/performance.md` says how to read what it prints.

mod director;
#[path = "../bench/interrupt.rs"]
mod interrupt;
mod network;
mod report;
mod variant;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::pinger::Pinger;

use crate::director::{Director, Product};
use crate::network::{A, B, CLIENT, Network};
use crate::report::{Report, Row};
use crate::variant::{ALL, Event, Variant};

/// Measures fail-over as a client sees it, as root.
#[derive(Parser)]
#[command(name = "cargo xtask failover", disable_version_flag = true)]
struct Arguments {
    /// Measure only the rows whose names contain one of these, such as `v3-0.1s/death`
    #[arg(long = "only", value_name = "TEXT")]
    only: Vec<String>,
    /// Fewer rows, one round
    #[arg(long)]
    quick: bool,
    /// Rounds, each of ours and of keepalived
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<u32>,
    /// Only ours, as where keepalived is not installed
    #[arg(long)]
    alone: bool,
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail if ours is worse than keepalived
    #[arg(long)]
    check: bool,
}

/// How long after the take-over answers are looked at: a second set of announcements, a late packet.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// How long anything else may take.
const TIME_MAX: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("failover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    interrupt::listen()?;
    let ours = Product::ours()?;
    let theirs = (!arguments.alone).then(Product::theirs).transpose()?;
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 5 });
    let mut report = Report::new(theirs.as_ref());
    for (variant, event) in wanted(arguments) {
        let mut row = Row::new(variant, event);
        for round in 0..rounds {
            // The same moments between two advertisements for both.
            let phase = variant.interval * (2 * round + 1) / (2 * rounds);
            row.ours.push(measure(&ours, variant, event, phase)?);
            if let Some(theirs) = &theirs {
                row.theirs.push(measure(theirs, variant, event, phase)?);
            }
        }
        report.add(row);
    }
    ensure!(!report.rows.is_empty(), "no row has such a name");
    report.end();
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let worse = report.worse();
    worse.iter().for_each(|line| eprintln!("failover: {line}"));
    let failed = arguments.check && !worse.is_empty();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn wanted(arguments: &Arguments) -> Vec<(&'static Variant, Event)> {
    let all = ALL.iter().flat_map(|variant| Event::ALL.map(|event| (variant, event)));
    let chosen = |(variant, event): &(&Variant, Event)| {
        let name = format!("{}/{event}", variant.name);
        let is_named = arguments.only.iter().any(|only| name.contains(only));
        let is_quick = variant.quick.contains(event);
        is_named || (arguments.only.is_empty() && (!arguments.quick || is_quick))
    };
    all.filter(chosen).collect()
}

/// Returns how long the client had no answer.
fn measure(
    product: &Product,
    variant: &Variant,
    event: Event,
    phase: Duration,
) -> Result<Duration> {
    let network = Network::new(variant)?;
    let mut master = Director::start(product, &network, A, variant, 200)?;
    wait(&network, "the master", || network.has_vip(A, variant))?;
    let backup = Director::start(product, &network, B, variant, 100)?;
    wait(&network, "the backup", || Ok(backup.is_backup()))?;
    let pinger = Pinger::start(network.host(CLIENT), variant.vip())?;
    wait(&network, "answers", || Ok(pinger.is_answered()))?;
    network.wait_advert()?;
    pause(phase);
    let before = Instant::now();
    event.happen(&network, &mut master)?;
    wait(&network, "the take-over", || match event {
        // Whoever is there first.
        Event::Crash => Ok(master.is_master_again() || network.has_vip(B, variant)?),
        _ => network.has_vip(B, variant),
    })?;
    let enough = Instant::now() + AFTERWARDS;
    wait(&network, "answers", || Ok(Instant::now() > enough && pinger.is_answered()))?;
    Ok(pinger.unanswered(before))
}

/// Waits until something is so.
fn wait(network: &Network, what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + TIME_MAX;
    while !is_so()? {
        interrupt::check()?;
        ensure!(Instant::now() < deadline, "waiting for {what}: {}", network.logs());
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// Lets time pass.
fn pause(time: Duration) {
    let until = Instant::now() + time;
    // Whoever was woken before it slept returns at once.
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
        std::thread::park_timeout(left);
    }
}
