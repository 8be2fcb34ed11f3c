//! The benchmark of the daemon.

use std::ffi::OsString;

use anyhow::Result;

use crate::failover;

/// What `cargo xtask burden` takes.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What the benchmark itself takes; `--help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Measures what the daemon costs.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    failover::with_daemon("burden", &arguments.arguments)
}
