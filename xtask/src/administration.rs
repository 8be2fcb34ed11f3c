//! The benchmark of administration.

use std::ffi::OsString;

use anyhow::Result;

use crate::failover;

/// What `cargo xtask administration` takes.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What the benchmark itself takes; `--help` tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Measures what an administrator waits for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    failover::with_daemon("administration", &arguments.arguments)
}
