//! The lists of `-L --json`. docs/json.md tells what each member means.

use rlvs_control::model::{
    ConnectionLine, DestinationEntry, ForwardingMethod, ServiceEntry, SyncDaemon, Timeouts, Tunnel,
    TunnelChecksum,
};
use serde_json::{Map, Value, json};

use super::list::{netmask, scheduler_flags};
use super::order;
use super::snapshot::Snapshot;
use crate::json::{self, SCHEMA, traffic};

/// Returns a list as one line of JSON.
pub(crate) fn text(snapshot: &Snapshot) -> String {
    let mut root = Map::new();
    root.insert("schema".to_owned(), SCHEMA.into());
    match snapshot {
        Snapshot::Services { banner, entries, rates } => {
            if let Some((version, size)) = banner {
                root.insert("version".to_owned(), version.to_string().into());
                root.insert("size".to_owned(), (*size).into());
            }
            root.insert("services".to_owned(), services(entries, rates));
        }
        Snapshot::Connections(lines) => {
            root.insert("connections".to_owned(), lines.iter().map(connection).collect());
        }
        Snapshot::Timeouts(Timeouts { tcp_s, tcp_fin_s, udp_s }) => {
            let timeouts = json!({"tcp_s": tcp_s, "tcp_fin_s": tcp_fin_s, "udp_s": udp_s});
            root.insert("timeouts".to_owned(), timeouts);
        }
        Snapshot::Daemons(daemons) => {
            root.insert("daemons".to_owned(), daemons.iter().map(daemon).collect());
        }
    }
    Value::Object(root).to_string() + "\n"
}

fn services(entries: &[ServiceEntry], rates: &[ServiceEntry]) -> Value {
    let sorted = |entries: &[ServiceEntry]| {
        let mut entries = order::sort_services(entries.to_vec());
        for entry in &mut entries {
            entry.destinations = order::sort_destinations(std::mem::take(&mut entry.destinations));
        }
        entries
    };
    let rates = sorted(rates);
    sorted(entries).iter().zip(&rates).map(|(entry, rates)| service(entry, rates)).collect()
}

fn service(entry: &ServiceEntry, rates: &ServiceEntry) -> Value {
    let service = &entry.service;
    let mut value = json::service(service.id);
    let flags = scheduler_flags(service).unwrap_or_default();
    let flags: Vec<&str> = flags.split(',').filter(|flag| !flag.is_empty()).collect();
    let persistence = service.persistence.map(|persistence| {
        json!({"timeout_s": persistence.timeout_s, "netmask": netmask(persistence.netmask)})
    });
    let destinations = entry.destinations.iter().zip(&rates.destinations);
    let rest = json!({
        "scheduler": service.scheduler,
        "scheduler_flags": flags,
        "one_packet": service.one_packet,
        "persistence": persistence,
        "persistence_engine": service.persistence_engine,
        "counters": traffic(&entry.traffic),
        "rates": traffic(&rates.traffic),
        "destinations": destinations.map(|(to, rates)| destination(to, rates)).collect::<Vec<_>>(),
    });
    if let (Value::Object(value), Value::Object(rest)) = (&mut value, rest) {
        value.extend(rest);
    }
    value
}

fn destination(entry: &DestinationEntry, rates: &DestinationEntry) -> Value {
    let to = &entry.destination;
    let tunnel = match to.method {
        ForwardingMethod::Tunnel(kind) => tunnel(kind),
        _ => Value::Null,
    };
    json!({
        "address": to.id.address,
        "port": to.id.port,
        "method": to.method.name(),
        "tunnel": tunnel,
        "weight": to.weight,
        "upper_threshold": to.upper_threshold,
        "lower_threshold": to.lower_threshold,
        "active": entry.active,
        "inactive": entry.inactive,
        "persistent": entry.persistent,
        "counters": traffic(&entry.traffic),
        "rates": traffic(&rates.traffic),
    })
}

fn tunnel(tunnel: Tunnel) -> Value {
    match tunnel {
        Tunnel::Ipip => json!({"type": "ipip"}),
        Tunnel::Gre { checksum } => {
            json!({"type": "gre", "checksum": if checksum { "outer" } else { "none" }})
        }
        Tunnel::Gue { port, checksum } => {
            let checksum = match checksum {
                TunnelChecksum::None => "none",
                TunnelChecksum::Outer => "outer",
                TunnelChecksum::Remote => "remote",
            };
            json!({"type": "gue", "port": port, "checksum": checksum})
        }
    }
}

fn connection(line: &ConnectionLine) -> Value {
    json!({
        "protocol": line.protocol.to_lowercase(),
        "state": line.state,
        "expires_s": line.expires_s,
        "client": {"address": line.client.ip(), "port": line.client.port()},
        "virtual": {
            "address": line.virtual_address.ip(), "port": line.virtual_address.port(),
        },
        "destination": {"address": line.destination.ip(), "port": line.destination.port()},
        "engine": line.engine.as_ref().map(|data| json!({"name": data.engine, "data": data.data})),
        "origin": line.is_learnt.map(|is_learnt| if is_learnt { "sync" } else { "local" }),
    })
}

/// Returns how a synchronisation daemon was started.
pub(crate) fn daemon(daemon: &SyncDaemon) -> Value {
    json!({
        "role": daemon.role.to_string(),
        "interface": daemon.interface,
        "sync_id": daemon.sync_id,
        "message_bytes_max": daemon.message_bytes_max,
        "group": daemon.group,
        "port": daemon.port,
        "ttl": daemon.ttl,
    })
}
