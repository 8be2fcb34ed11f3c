//! The connection tables, read as `ipvsadm -L -c` shows them.

use std::net::SocketAddr;

use rlvs_control::model::Connection;
use rlvs_datapath::abi::Settings;
use rlvs_datapath::connection::Value;
use rlvs_datapath::ip::Slot;
use rlvs_datapath::state::State;

use super::error::Error;
use super::load;
use super::maps::Maps;
use super::records::{address, client, protocol_of};

/// Lists every connection that has not expired.
///
/// # Errors
/// The kernel's clock cannot be read.
pub(super) fn list(maps: &Maps) -> Result<Vec<Connection>, Error> {
    let settings = maps.settings();
    let (_, unit_ns) = load::clock()?;
    let now = maps.now()?;
    let mut connections = Vec::new();
    for index in 0..maps.connections4.len() {
        let Some(bucket) = maps.connections4.read(index) else { break };
        for slot in &bucket.slots {
            let words = (0, slot.key.get() >> 32);
            connections.extend(shown(maps, &settings, now, unit_ns, slot, (4, words)));
        }
    }
    for index in 0..maps.connections6.len() {
        let Some(bucket) = maps.connections6.read(index) else { break };
        for slot in &bucket.slots {
            let words = (slot.high.get(), slot.low.get());
            connections.extend(shown(maps, &settings, now, unit_ns, slot, (6, words)));
        }
    }
    Ok(connections)
}

fn shown(
    maps: &Maps,
    settings: &Settings,
    now: u32,
    unit_ns: u64,
    slot: &impl Slot,
    (family, (high, low)): (u8, (u64, u64)),
) -> Option<Connection> {
    let (key, value) = (slot.key().get(), Value(slot.value().get()));
    if key == 0 || !value.is_live() || value.is_reply() {
        return None;
    }
    let destination = maps.destinations.read(value.destination())?;
    let service = maps.services.read(destination.service)?;
    let state = value.state();
    let timeout = settings.timeouts.get(state.0 as usize).copied()?;
    let age = rlvs_datapath::tables::Time(now & rlvs_datapath::tables::TIME_MASK);
    let left = timeout.saturating_sub(age.since(value.time()));
    let at =
        |family, octets, port| SocketAddr::new(address(family, octets), u16::from_be_bytes(port));
    Some(Connection {
        protocol: protocol_of(service.protocol),
        state: State::NAMES.get(state.0 as usize).copied().unwrap_or("NONE"),
        expires_s: (u64::from(left) * unit_ns / 1_000_000_000) as u32,
        client: client(family, high, low, Value::port(key)),
        virtual_address: at(family, service.address, service.port),
        destination: at(destination.family, destination.address, destination.port),
    })
}
