//! `rlvs status --json`, as docs/json.md describes it.

use rlvs_linux::dataplane::note::Running;
use serde_json::{Map, Value, json};

use super::snapshot::{Health, Server, Service, Snapshot};
use crate::doctor::finding_json;
use crate::drain::drained_json;
use crate::face;
use crate::ipvsadm::sync_daemon_json;
use crate::json::{self, SCHEMA, traffic};
use crate::keepalived::daemon::state::State;

/// Returns the document where nothing is attached.
pub(super) fn detached(daemon: Option<&State>) -> Value {
    json!({ "schema": SCHEMA, "attached": false, "daemon": daemon })
}

/// Returns the document.
pub(super) fn status(snapshot: &Snapshot) -> Value {
    let (active, inactive, persistent) = snapshot.connections();
    let mut interfaces: Vec<Value> = snapshot
        .interfaces
        .iter()
        .map(|one| json!({ "name": one.name, "mode": face::mode_word(one.mode), "why": one.why }))
        .collect();
    let unattached = snapshot.unattached.iter();
    interfaces.extend(unattached.map(|name| json!({ "name": name, "mode": null, "why": "" })));
    let reasons: Map<String, Value> = snapshot
        .reasons
        .iter()
        .map(|(reason, packets)| (reason.name().to_owned(), json!(packets)))
        .collect();
    json!({
        "schema": SCHEMA,
        "attached": true,
        "pins": snapshot.pins,
        "interfaces": interfaces,
        "connections": { "active": active, "inactive": inactive, "persistent": persistent },
        "counters": traffic(&snapshot.total.counted),
        "rates": traffic(&snapshot.total.rates),
        "services": snapshot.services.iter().map(service).collect::<Vec<_>>(),
        "drained": snapshot.drained.iter().map(drained_json).collect::<Vec<_>>(),
        "synchronisation": snapshot.synchronisation.iter().map(synchronisation).collect::<Vec<_>>(),
        "access": snapshot.access,
        "defence": {
            "scarce": snapshot.defence.scarce,
            "ends_half_open": snapshot.defence.ends_half_open,
            "drop_rate": snapshot.defence.drop_rate,
            "strict": snapshot.defence.strict,
        },
        "reasons": reasons,
        "findings": snapshot.findings.iter().map(finding_json).collect::<Vec<_>>(),
        "daemon": snapshot.daemon,
    })
}

fn service(service: &Service) -> Value {
    let entry = &service.entry;
    let mut value = json!({
        "scheduler": entry.service.scheduler,
        "counters": traffic(&entry.traffic),
        "rates": traffic(&service.rates),
        "destinations": service.servers.iter().map(server).collect::<Vec<_>>(),
        "absent": service.absent.iter().map(|(id, why)| {
            json!({ "address": id.address, "port": id.port, "why": why })
        }).collect::<Vec<_>>(),
    });
    let identity = json::service(entry.service.id);
    if let (Value::Object(value), Value::Object(identity)) = (&mut value, identity) {
        value.extend(identity);
    }
    value
}

fn synchronisation(running: &Running) -> Value {
    let mut value = sync_daemon_json(&running.daemon);
    value["pid"] = running.pid.into();
    let counts = running.counts.iter().map(|(name, count)| (name.clone(), json!(count)));
    value["counts"] = Value::Object(counts.collect());
    value
}

fn server(server: &Server) -> Value {
    let to = &server.entry.destination;
    let why = match &server.health {
        Health::Down(why) => Some(why),
        Health::Up | Health::Unchecked => None,
    };
    json!({
        "address": to.id.address,
        "port": to.id.port,
        "method": to.method.name(),
        "weight": to.weight,
        "drained": server.drained,
        "health": server.health.name(),
        "why": why,
        "active": server.entry.active,
        "inactive": server.entry.inactive,
        "persistent": server.entry.persistent,
        "counters": traffic(&server.entry.traffic),
        "rates": traffic(&server.rates),
    })
}
