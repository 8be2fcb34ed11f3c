//! The benchmarks: of the packet path, of fail-over, of the daemon, of administration.

use std::process::Command;

use anyhow::Result;

use crate::run::{self, Passed};

/// Measures the packet path, with the benchmark built for release.
pub(crate) fn packet_path(passed: &Passed) -> Result<()> {
    let mut bench = run::cargo()?;
    bench.args(["run", "--quiet", "--release", "--package", "e2e", "--bin", "bench", "--"]);
    run::run(bench.args(&passed.arguments))
}

/// Runs the benchmark of a name with the programs that it measures, all built for release.
pub(crate) fn run(name: &str, passed: &Passed) -> Result<()> {
    let mut build = run::cargo()?;
    build.args(["build", "--quiet", "--release", "--package", "e2e", "--bin", "rlvs-e2e"]);
    run::run(build.args(["--bin", name]))?;
    run::run(Command::new(run::target()?.join("release").join(name)).args(&passed.arguments))
}
