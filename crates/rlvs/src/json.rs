//! What every `--json` has in common. docs/json.md tells what each member means.

use std::io::{self, Write};

use rlvs_control::model::{Family, ServiceId, Traffic};
use serde_json::{Value, json};

/// Version of the schema: raised when a member changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 1;

/// Whether a command answers in JSON.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Json {
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Writes an object as a line, with the version of the schema.
pub(crate) fn print(mut object: Value) -> io::Result<()> {
    if let Some(members) = object.as_object_mut() {
        members.insert("schema".to_owned(), SCHEMA.into());
    }
    writeln!(io::stdout().lock(), "{object}")
}

/// Returns the members by which a service is known.
pub(crate) fn service(id: ServiceId) -> Value {
    match id {
        ServiceId::Address { protocol, address, port } => json!({
            "protocol": protocol.to_string().to_lowercase(), "address": address, "port": port,
        }),
        ServiceId::Mark { mark, family } => json!({
            "mark": mark, "family": if family == Family::V4 { "ipv4" } else { "ipv6" },
        }),
    }
}

/// Returns counters or rates.
pub(crate) fn traffic(traffic: &Traffic) -> Value {
    let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = traffic;
    json!({
        "connections": connections,
        "in_packets": in_packets,
        "out_packets": out_packets,
        "in_bytes": in_bytes,
        "out_bytes": out_bytes,
    })
}
