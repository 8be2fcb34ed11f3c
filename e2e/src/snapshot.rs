//! What tables hold, in words, and how that changed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rlvs_datapath::abi::{Hop, OCCUPANCY_WORDS, REASONS, Slot4, Slot6, Word};
use rlvs_datapath::connection::Value;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::state::State;
use rlvs_datapath::tables::Time;
use rlvs_datapath::template::ASSURED;
use rlvs_datapath::wide;

use crate::host::{HostTables, address_of};
use crate::table::FIRST_REPLY;

/// Everything that programs write and that is not zero, by name.
pub type Snapshot = BTreeMap<String, String>;

/// Looks at all tables. CPUs are added up.
#[must_use]
pub fn take(tables: &HostTables) -> Snapshot {
    let now = Time::now(tables, &tables.settings);
    let cpus = tables.settings.cpus;
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    let mut words = Snapshot::new();
    let mut add = |value: u64, name: &dyn Fn() -> String| {
        if value != 0 {
            *sums.entry(name()).or_default() += value;
        }
    };
    for (number, counter) in (0..).zip(&tables.reasons) {
        add(counter.get(), &|| format!("reason {}", Reason::from_number(number % REASONS).name()));
    }
    for (index, row) in (0u32..).zip(&tables.rows) {
        let id = index / cpus;
        add(row.connections.get(), &|| format!("d{id} connections"));
        add(row.in_packets.get(), &|| format!("d{id} packets in"));
        add(row.out_packets.get(), &|| format!("d{id} packets out"));
        add(row.in_bytes.get(), &|| format!("d{id} bytes in"));
        add(row.out_bytes.get(), &|| format!("d{id} bytes out"));
        way(&mut words, || format!("d{id} way"), &row.hop.get(), now);
    }
    for (id, counts) in tables.counts.iter().enumerate() {
        add(counts.connections.get() & 0xffff_ffff, &|| format!("d{id} active"));
        add(counts.connections.get() >> 32, &|| format!("d{id} inactive"));
        add(counts.persistent.get(), &|| format!("d{id} persistent"));
    }
    for (id, schedule) in tables.schedules.iter().enumerate() {
        add(schedule.position.get(), &|| format!("s{id} position"));
        let local = schedule.local.get();
        if local != 0 {
            let word = if local & 1 != 0 { "yes" } else { "no" };
            words.insert(format!("s{id} local"), word.to_owned() + &age(now, (local >> 32) as u32));
        }
    }
    for (index, lock) in tables.locks.iter().enumerate().filter(|(_, lock)| lock.get() != 0) {
        add(lock.get(), &|| format!("lock {index}"));
    }
    // Most words are zero, and there are many.
    for (index, word) in (0u32..).zip(&tables.occupancy).filter(|(_, word)| word.get() != 0) {
        for bit in (0..64).filter(|bit| word.get() >> bit & 1 != 0) {
            let table = ["v4", "v6", "wide"][(index / OCCUPANCY_WORDS) as usize];
            add(1, &|| format!("occupied {table} {}", index % OCCUPANCY_WORDS * 64 + bit));
        }
    }
    let all: &[_] = tables.sources.split_last().map_or(&[], |(_, sources)| sources);
    for source in all.iter().flat_map(|bucket| &bucket.slots).filter(|one| one.key.get() != 0) {
        add(source.number.get() >> 24 & 0xff_ffff, &|| "sources have".to_owned());
        add(source.rate.get() >> 41, &|| "sources may open".to_owned());
    }
    for route in tables.routes.iter().filter(|route| route.hop.get().interface != 0) {
        let (high, low) = (route.high.get(), route.low.get());
        let client = if high == 0 {
            IpAddr::V4(Ipv4Addr::from_bits(low as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits((u128::from(high) << 64) | u128::from(low)))
        };
        way(&mut words, || format!("way to {client}"), &route.hop.get(), now);
    }
    words.extend(sums.into_iter().map(|(name, sum)| (name, sum.to_string())));
    words.extend(connections(tables));
    words.extend(wide_entries(tables));
    words
}

fn way(words: &mut Snapshot, name: impl FnOnce() -> String, hop: &Hop, now: Time) {
    if hop.interface != 0 {
        let [.., last] = hop.neighbour();
        words.insert(name(), format!(".. {last:02x}{}", age(now, hop.checked)));
    }
}

fn age(now: Time, then: u32) -> String {
    match now.since(then) {
        0 => String::new(),
        units => format!(" {units} ago"),
    }
}

/// Looks at the connections alone: `CLIENT:PORT OWNER`, where the owner is `sN`, service N, or `rN`,
/// reply endpoint N, and `STATE dN`.
///
/// # Panics
/// Two slots hold the same half.
#[must_use]
pub fn connections(tables: &HostTables) -> Snapshot {
    let now = Time::now(tables, &tables.settings);
    let mut entries = Snapshot::new();
    let mut enter = |key: u64, value: u64, client: IpAddr| {
        if key == 0 && value == 0 {
            return;
        }
        let value = Value(value);
        let owner = (key as u32 & 0xffff) | ((value.0 >> 54 & 63) as u32 * 0x1_0000);
        let owner = match owner.checked_sub(FIRST_REPLY) {
            Some(number) => format!("r{}", number + 1),
            None => format!("s{owner}"),
        };
        let name = format!("{client}:{} {owner}", Value::port(key));
        let live = if value.is_live() { "" } else { " not live" };
        let reply = if value.is_reply() { " reply" } else { "" };
        let paired = if value.is_paired() { " paired" } else { "" };
        let state = State::NAMES.get(value.state().0 as usize).unwrap_or(&"?");
        let age = age(now, value.time());
        let text = format!("{state} d{}{paired}{reply}{live}{age}", value.destination());
        let twice = entries.insert(name.clone(), text);
        assert_eq!(twice, None, "{name} is in the table twice");
    };
    for Slot4 { key, value } in tables.connections4.iter().flat_map(|bucket| &bucket.slots) {
        let client = Ipv4Addr::from_bits((key.get() >> 32) as u32);
        enter(key.get(), value.get(), client.into());
    }
    for Slot6 { key, value, high, low } in tables.connections6.iter().flat_map(|b| &b.slots) {
        let bits = (u128::from(high.get()) << 64) | u128::from(low.get());
        enter(key.get(), value.get(), address_of(6, &bits.to_be_bytes()));
    }
    entries
}

/// Looks at the wide table: a connection is `CLIENT:PORT to VIP:PORT` or `SERVER:PORT to CLIENT:PORT`,
/// of full NAT with `for`, the client of the other half, a template `CLIENT template sN`, and what it controls stands behind its destination.
///
/// # Panics
/// Two slots hold the same half.
#[must_use]
pub fn wide_entries(tables: &HostTables) -> Snapshot {
    let now = Time::now(tables, &tables.settings);
    let mut entries = Snapshot::new();
    for slot in tables.wide.iter().flat_map(|bucket| &bucket.slots) {
        let (key, value) = (slot.key.get(), Value(slot.value.get()));
        if key == 0 && value.0 == 0 {
            continue;
        }
        let address = |words: &[Word; 2]| {
            let bits = u128::from(words[0].get()) << 64 | u128::from(words[1].get());
            match wide::family_of(key) {
                4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
                _ => address_of(6, &bits.to_be_bytes()),
            }
        };
        let (port, peer_port, other_port) = wide::ports_of(key);
        let (client, id) = (address(&slot.client), value.destination());
        let held = slot.other[0].get();
        let call = match slot.peer[0].get() {
            0 => String::new(),
            call => format!(" call {call:016x}"),
        };
        let template =
            |word| (format!("{client} {word} s{port}{call}"), format!(" holds {}", held as u32));
        let protocol = wide::protocol_of(key);
        let ends =
            [(client, port), (address(&slot.peer), peer_port)].map(|(a, p)| format!("{a}:{p}"));
        let other = match value.is_substituted() {
            true => format!(" for {}:{other_port}", address(&slot.other)),
            false => String::new(),
        };
        let (name, more) = match wide::kind_of(key) {
            wide::kind::REQUEST => (format!("{} to {} {protocol}", ends[0], ends[1]), other),
            wide::kind::REPLY => (format!("{} to {} {protocol}", ends[1], ends[0]), other),
            wide::kind::TEMPLATE => template("template"),
            wide::kind::DEAD => template("dead template"),
            other => (format!("{client} of kind {other}"), String::new()),
        };
        let state = match State::NAMES.get(value.state().0 as usize) {
            Some(_) if wide::kind_of(key) >= wide::kind::TEMPLATE && value.state() == ASSURED => {
                "ASSURED"
            }
            name => name.unwrap_or(&"?"),
        };
        let live = if value.is_live() { "" } else { " not live" };
        let text = format!("{state} d{id}{more}{live}{}", age(now, value.time()));
        let twice = entries.insert(name.clone(), text);
        assert_eq!(twice, None, "{name} is in the table twice");
    }
    entries
}

/// What destinations count is what is in the tables.
///
/// # Panics
/// It is not.
pub fn assert_counts(tables: &HostTables) {
    let mut counts = vec![0_u64; tables.counts.len()];
    let four = tables.connections4.iter().flat_map(|bucket| &bucket.slots);
    let six = tables.connections6.iter().flat_map(|bucket| &bucket.slots);
    let wide = tables.wide.iter().flat_map(|bucket| &bucket.slots);
    let wide = wide.filter(|slot| wide::kind_of(slot.key.get()) == wide::kind::REQUEST);
    let values = four.map(|slot| &slot.value).chain(six.map(|slot| &slot.value));
    for value in values.chain(wide.map(|slot| &slot.value)).map(|value| Value(value.get())) {
        if value.is_live() && !value.is_reply() {
            let one = if value.state().is_active() { 1 } else { 1 << 32 };
            counts[value.destination() as usize] += one;
        }
    }
    for (id, count) in counts.iter().enumerate() {
        assert_eq!(tables.counts[id].connections.get(), *count, "destination {id}");
    }
}

/// Returns what differs, a line each: `NAME = VALUE`, or `NAME gone`.
#[must_use]
pub fn changes(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| format!("{name} gone"));
    let new = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
    let mut lines: Vec<String> =
        new.map(|(name, value)| format!("{name} = {value}")).chain(gone).collect();
    lines.sort();
    lines
}
