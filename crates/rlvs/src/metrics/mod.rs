//! Metrics: what the table, the data plane, the daemon and the machine can tell, for Prometheus
//! (`rlvs exporter`, `keepalived --metrics`) and Zabbix (`rlvs metrics --json`).
//!
//! All is read when somebody asks (`reading`), beside whoever edits and beside the packet path.

mod document;
mod exposition;
mod families;
mod host;
mod reading;
pub(crate) mod server;
mod text;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::configuration;
use crate::keepalived::daemon::state;
use crate::words;
pub use document::document;
use reading::Reading;
use server::Source;

/// Where `rlvs exporter` listens: the port of the exporter for keepalived whose names it has.
const LISTEN: &str = "127.0.0.1:9165";

/// Arguments of `rlvs metrics`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// One JSON document in place of Prometheus' text
    #[arg(long)]
    json: bool,
    /// Whose table: `rlvs`, or `kernel` for that of the kernel's IPVS
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
}

/// Arguments of `rlvs exporter`.
#[derive(Args, Debug)]
pub struct ExporterArguments {
    /// Where to serve /metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = LISTEN, value_parser = words::end)]
    listen: SocketAddr,
    /// Whose table: `rlvs`, or `kernel` for that of the kernel's IPVS
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
}

/// Runs `rlvs metrics`.
///
/// # Errors
/// The table cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let reading = Reading::take(
        configuration::backend(arguments.backend.as_deref())?,
        state::ask().map(Arc::new),
    );
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer(&mut out, &reading)?;
        writeln!(out)?;
    } else {
        out.write_all(render(&reading).as_bytes())?;
    }
    match reading.error {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => bail!("the table cannot be read: {error}"),
    }
}

/// Runs `rlvs exporter`.
///
/// # Errors
/// It cannot listen there.
pub fn export(arguments: &ExporterArguments) -> Result<ExitCode> {
    let backend = configuration::backend(arguments.backend.as_deref())?;
    let listener = TcpListener::bind(arguments.listen)
        .with_context(|| format!("listening on {}", arguments.listen))?;
    let address = listener.local_addr().context("asking where it listens")?;
    // It serves whether or not anybody reads this.
    drop(writeln!(io::stdout(), "rlvs: metrics at http://{address}/metrics"));
    let source =
        Source { backend, daemon: Box::new(|| Box::pin(async { state::ask().map(Arc::new) })) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(server::serve(listener, Arc::new(source)))? {}
}

/// Returns a reading in Prometheus' words.
fn render(reading: &Reading) -> String {
    exposition::write(reading)
}
