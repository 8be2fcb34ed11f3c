//! The benchmark of the packet path.

use std::ffi::OsString;

use anyhow::Result;

use crate::run;

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What the benchmark itself takes; `--help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Measures the packet path, with the benchmark built for release.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut bench = run::cargo()?;
    bench.args(["run", "--quiet", "--release", "--package", "e2e", "--bin", "bench", "--"]);
    run::run(bench.args(&arguments.arguments))
}
