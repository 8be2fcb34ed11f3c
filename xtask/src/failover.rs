//! The benchmark of fail-over.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::run;

/// What `cargo xtask failover` takes.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What the benchmark itself takes; `--help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Measures what a client sees of a fail-over.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    with_daemon("failover", &arguments.arguments)
}

/// Runs a benchmark of the daemon, both built for release.
pub(crate) fn with_daemon(name: &str, arguments: &[OsString]) -> Result<()> {
    let mut build = run::cargo()?;
    build.args(["build", "--quiet", "--release", "--package", "e2e", "--bin", "rlvs-e2e"]);
    run::run(build.args(["--bin", name]))?;
    run::run(Command::new(run::target()?.join("release").join(name)).args(arguments))
}
