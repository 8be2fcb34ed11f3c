//! The benchmark of the packet path.

use anyhow::{Result, bail};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Measures the packet path.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    bail!("there is no benchmark to run")
}
