//! The connection tables, read as `ipvsadm -L -c` shows them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use rlvs_control::model::{Connection, EngineData, Protocol};
use rlvs_datapath::abi::{Settings, WideSlot};
use rlvs_datapath::connection::Value;
use rlvs_datapath::ip::Slot;
use rlvs_datapath::state::State;
use rlvs_datapath::tables::{TIME_MASK, Time};
use rlvs_datapath::template::ASSURED;
use rlvs_datapath::wide;
use rlvs_wire::udp;

use super::error::Error;
use super::load;
use super::maps::Maps;
use super::records::{SIP, address, client, octets, protocol_of};

/// The port of a template that leads nowhere any more, as in `ip_vs_check_template()`.
const DEAD_PORT: u16 = 0xffff;
/// The port of FTP's control connections.
const FTP: u16 = 21;

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
    // Templates come last: what they control says whether they are assured.
    for templates in [false, true] {
        let seen = established(&connections);
        for index in 0..maps.wide.len() {
            let Some(bucket) = maps.wide.read(index) else { break };
            let is_wanted = |slot: &&WideSlot| {
                (wide::kind_of(slot.key.get()) >= wide::kind::TEMPLATE) == templates
            };
            let entry = |slot| wide_entry(maps, &settings, now, unit_ns, slot, &seen);
            connections.extend(bucket.slots.iter().filter(is_wanted).filter_map(entry));
        }
    }
    Ok(connections.into_iter().map(|(connection, ..)| connection).collect())
}

/// Times that entries are aged which packets keep young meanwhile.
const ENDING_PASSES: u32 = 1000;

/// Makes every entry of these destinations one whose time has run out: packets find it no more, and
/// the sweep removes it and counts. Returns how many connections and templates there were. All the
/// tables are searched, however few the destinations are.
///
/// # Errors
/// Packets kept some young all the time.
pub(super) fn end(maps: &Maps, destinations: &BTreeSet<u32>) -> Result<u64, Error> {
    let settings = maps.settings();
    let mut ended = None;
    for _ in 0..ENDING_PASSES {
        let now = Time(maps.now()? & TIME_MASK);
        let young = young_entries(maps, &settings, now, destinations);
        let connections = young.iter().filter(|entry| !entry.value.is_reply()).count() as u64;
        let ended = *ended.get_or_insert(connections);
        if young.is_empty() {
            return Ok(ended);
        }
        // Both halves of a pair at nearly the same time, for either keeps the other.
        for entry in young {
            let value = entry.value;
            let then = Time(now.0.wrapping_sub(entry.timeout + 2) & TIME_MASK);
            // A packet that was faster has made it young again: the next pass sees it.
            let old = value.with(then, value.state()).0;
            let order = Ordering::SeqCst;
            entry.word.compare_exchange(value.0, old, order, order).ok();
        }
    }
    Err(Error::Load {
        what: "the end of connections".to_owned(),
        reason: "packets kept some of them alive all the time; stop them first".to_owned(),
    })
}

/// An entry whose time has not run out.
struct Young<'a> {
    word: &'a AtomicU64,
    value: Value,
    timeout: u32,
}

fn young_entries<'a>(
    maps: &'a Maps,
    settings: &Settings,
    now: Time,
    destinations: &BTreeSet<u32>,
) -> Vec<Young<'a>> {
    let young = |word: Option<&'a AtomicU64>, value: u64, template: Option<u32>| {
        let value = Value(value);
        let of_state = || settings.timeouts.get(value.state().0 as usize).copied();
        let timeout = template.or_else(of_state)?;
        let is_it = value.is_live() && destinations.contains(&value.destination());
        let is_young = is_it && now.since(value.time()) <= timeout;
        is_young.then_some(Young { word: word?, value, timeout })
    };
    let mut found = Vec::new();
    for index in 0..maps.connections4.len() {
        let Some(bucket) = maps.connections4.read(index) else { break };
        for (slot, entry) in bucket.slots.iter().enumerate() {
            let word = maps.connections4.word(index, |bucket| &bucket.slots[slot].value);
            found.extend(young(word, entry.value.get(), None));
        }
    }
    for index in 0..maps.connections6.len() {
        let Some(bucket) = maps.connections6.read(index) else { break };
        for (slot, entry) in bucket.slots.iter().enumerate() {
            let word = maps.connections6.word(index, |bucket| &bucket.slots[slot].value);
            found.extend(young(word, entry.value.get(), None));
        }
    }
    for index in 0..maps.wide.len() {
        let Some(bucket) = maps.wide.read(index) else { break };
        for (slot, entry) in bucket.slots.iter().enumerate() {
            let is_template = wide::kind_of(entry.key.get()) >= wide::kind::TEMPLATE;
            let timeout = is_template.then(|| (entry.other[0].get() >> 32) as u32);
            let word = maps.wide.word(index, |bucket| &bucket.slots[slot].value);
            found.extend(young(word, entry.value.get(), timeout));
        }
    }
    found
}

/// Ends of connections that a template controls and that have been established: client, destination.
type Ends = BTreeSet<(IpAddr, u32)>;

fn established(connections: &[(Connection, Value)]) -> Ends {
    connections
        .iter()
        .filter(|(_, value)| value.is_controlled() && value.state().was_established())
        .map(|(connection, value)| (connection.client.ip(), value.destination()))
        .collect()
}

/// Shows an entry of the wide table.
fn wide_entry(
    maps: &Maps,
    settings: &Settings,
    now: u32,
    unit_ns: u64,
    slot: &WideSlot,
    established: &Ends,
) -> Option<(Connection, Value)> {
    let (key, value) = (slot.key.get(), Value(slot.value.get()));
    let kind = wide::kind_of(key);
    if key == 0 || !value.is_live() || kind == wide::kind::REPLY {
        return None;
    }
    let family = wide::family_of(key);
    let destination = maps.destinations.read(value.destination())?;
    let service = maps.services.read(destination.service)?;
    let [high, low] = &slot.client;
    let (port, peer_port, real_port) = wide::ports_of(key);
    let age = Time(now & TIME_MASK).since(value.time());
    let left =
        |timeout: u32| (u64::from(timeout.saturating_sub(age)) * unit_ns / 1_000_000_000) as u32;
    let real = |port| SocketAddr::new(address(destination.family, destination.address), port);
    if kind == wide::kind::REQUEST {
        let [peer_high, peer_low] = &slot.peer;
        let state = value.state().0 as usize;
        let connection = Connection {
            protocol: Protocol::from_number(wide::protocol_of(key)),
            state: name_of(value.state(), wide::protocol_of(key)),
            expires_s: left(settings.timeouts.get(state).copied()?),
            client: client(family, high.get(), low.get(), port),
            virtual_address: client(family, peer_high.get(), peer_low.get(), peer_port),
            destination: real(match value.is_substituted() {
                true => u16::from_be_bytes(destination.port),
                false => real_port,
            }),
            engine: None,
            is_learnt: value.is_learnt(),
        };
        return Some((connection, value));
    }
    let client = client(family, high.get(), low.get(), 0);
    let network = u128::from_be_bytes(octets(client.ip()));
    let kept = u128::from_be_bytes(service.mask);
    let is_of = |(from, to): &(IpAddr, u32)| {
        *to == value.destination() && u128::from_be_bytes(octets(*from)) & kept == network
    };
    let assured = value.state() == ASSURED || established.iter().any(is_of);
    let port = u16::from_be_bytes(service.port);
    let (at, to) = match (kind, port) {
        (wide::kind::DEAD, _) => (DEAD_PORT, DEAD_PORT),
        (_, FTP) => (0, 0),
        (_, port) => (port, if port == 0 { 0 } else { u16::from_be_bytes(destination.port) }),
    };
    let virtual_address = match service.mark {
        0 => address(family, service.address),
        mark => address(family, octets(Ipv4Addr::from_bits(mark).into())),
    };
    let connection = Connection {
        protocol: Protocol::from_number(if service.mark == 0 { service.protocol } else { 0 }),
        state: if assured { "ASSURED" } else { "NONE" },
        expires_s: left((slot.other[0].get() >> 32) as u32),
        client,
        virtual_address: SocketAddr::new(virtual_address, at),
        destination: real(to),
        engine: engine_data(slot.peer[0].get()),
        is_learnt: value.is_learnt(),
    };
    Some((connection, value))
}

/// Returns the name of a state. The kernel has one only for UDP, also for what has seen no datagram.
fn name_of(state: State, protocol: u8) -> &'static str {
    let state = if protocol == udp::PROTOCOL { State::UDP } else { state };
    State::NAMES.get(state.0 as usize).copied().unwrap_or("NONE")
}

/// Shows what a template of a call knows of it: the hash of its Call-ID.
fn engine_data(call: u64) -> Option<EngineData> {
    let engine = SIP.to_owned();
    (call != 0).then(|| EngineData { engine, data: format!("{call:016x}") })
}

fn shown(
    maps: &Maps,
    settings: &Settings,
    now: u32,
    unit_ns: u64,
    slot: &impl Slot,
    (family, (high, low)): (u8, (u64, u64)),
) -> Option<(Connection, Value)> {
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
    let connection = Connection {
        protocol: protocol_of(service.protocol),
        state: name_of(state, service.protocol),
        expires_s: (u64::from(left) * unit_ns / 1_000_000_000) as u32,
        client: client(family, high, low, Value::port(key)),
        virtual_address: at(family, service.address, service.port),
        destination: at(destination.family, destination.address, destination.port),
        engine: None,
        is_learnt: value.is_learnt(),
    };
    Some((connection, value))
}
