//! The fuzzers.

use std::fs;

use anyhow::{Context, Result};

use crate::run;

/// What is fuzzed.
#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// The forwarding function, by tables and frames
    Packets,
    /// The virtual routers, by packets
    Vrrp,
    /// keepalived.conf
    Conf,
    /// Replies to checks
    Replies,
    /// `ipvsadm -R`, by lines
    Restore,
}

impl What {
    /// Returns its program, the folder of what is found and that of what is kept.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Packets => ["packets", "found", "corpus"],
            Self::Vrrp => ["vrrp", "found-vrrp", "corpus-vrrp"],
            Self::Conf => ["conf", "found-conf", "corpus-conf"],
            Self::Replies => ["replies", "found-replies", "corpus-replies"],
            Self::Restore => ["restore", "found-restore", "corpus-restore"],
        }
    }
}

/// What `cargo xtask fuzz` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long to look for new inputs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Without libFuzzer: what is kept is changed at random. Built with the tests, and blind to what
    /// code is reached; not for conf
    #[arg(long)]
    plain: bool,
    /// What to feed
    #[arg(value_enum, default_value = "packets")]
    what: What,
}

/// Coverage for libFuzzer, as `rustc` gives it without flags of its own for it.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";
/// Named, so that the flags do not reach programs that run while building.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Bytes of an input.
const LENGTH_MAX: &str = "-max_len=1024";

/// Builds and runs the fuzzer, beginning with what is kept in `fuzz`, and adds to it whatever
/// reaches code that nothing kept there does.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.plain {
        return run_plain(arguments);
    }
    let folder = run::workspace()?.join("fuzz");
    let target = run::target()?.join("fuzz");
    let [name, found, kept] = arguments.what.names();
    let (found, kept) = (target.join(found), folder.join(kept));
    for folder in [&found, &kept] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    run::stage("building the fuzzer", || {
        let mut build = run::cargo()?;
        build.args(["build", "--release", "--bin", name, "--target", TARGET, "--manifest-path"]);
        build.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(&target);
        run::run(build.env("RUSTFLAGS", FLAGS))
    })?;
    let program = target.join(TARGET).join("release").join(name);
    let fuzzer = || {
        let mut command = std::process::Command::new(&program);
        // What breaks a promise is written here.
        command.current_dir(&target).arg(LENGTH_MAX);
        command
    };
    run::stage("fuzzing", || {
        let time = format!("-max_total_time={}", arguments.seconds);
        run::run(fuzzer().arg(time).arg("-print_final_stats=1").arg(&found).arg(&kept))
    })?;
    run::stage("keeping what is new", || {
        run::run(fuzzer().arg("-set_cover_merge=1").arg(&kept).arg(&found))
    })
}

/// Changes what is kept at random.
fn run_plain(arguments: &Arguments) -> Result<()> {
    let [name, _, kept] = arguments.what.names();
    let mut command = run::cargo()?;
    command.args(["run", "--quiet", "--package", "e2e", "--bin", "mutate", "--", name]);
    command.arg(run::workspace()?.join("fuzz").join(kept));
    run::run(command.arg(format!("--seconds={}", arguments.seconds)))
}
