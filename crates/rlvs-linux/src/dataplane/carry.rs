//! Connections in words that do not depend on the layout of maps: one program tells them, the next one puts
//! them into maps of its own.
//!
//! [`tell`] reads them, [`put`] writes them; neither knows more of a layout than its own.

mod put;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use rlvs_control::model::{Destination, DestinationId, ServiceId};
use rlvs_datapath::abi::{self, SLOTS4, SLOTS6, WIDE_SLOTS, settings_flag};
use rlvs_datapath::connection::Value;
use rlvs_datapath::ip::Slot;
use rlvs_datapath::tables::{TIME_MASK, Time};
use rlvs_datapath::wide::{self, kind};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::load::{self, Sizes};
use super::maps::Maps;
use super::pins;
use super::records::{client, is_listed, method_of, serves, service_id};
pub use put::{Put, put};

/// Version of these words: raised when one changes its meaning, such as the numbers of states.
pub const SCHEMA: u32 = 1;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What requests find.
    Request,
    /// What replies find.
    Reply,
    /// A persistence template.
    Template,
    /// A template that leads nowhere any more.
    Dead,
}

/// What a slot of the wide table has besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wide {
    /// IP protocol.
    pub protocol: u8,
    /// Port of the other end.
    pub peer_port: u16,
    /// The port that the other half has.
    pub other_port: u16,
    /// Address of the other end, upper and lower half; of a template the hash of its call, and 0.
    pub peer: [u64; 2],
    /// Of a reply half, the virtual address; with full NAT the client of the other half. Of a template,
    /// its time-out in milliseconds and the connections that it controls.
    pub other: [u64; 2],
    /// The client's end is replaced: full NAT.
    pub substituted: bool,
}

/// Half of a connection, or a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Half {
    /// What it is.
    pub kind: Kind,
    /// Where the client is; of a reply half of full NAT its end towards the server.
    pub client: SocketAddr,
    /// Which of the destinations it leads to, counted from 0.
    pub to: usize,
    /// Number of the state.
    pub state: u32,
    /// Time since its last packet.
    pub idle_ms: u64,
    /// Whether there are two halves.
    pub paired: bool,
    /// Whether a template controls it.
    pub controlled: bool,
    /// What it has besides, in the wide table.
    pub wide: Option<Wide>,
}

/// A destination that connections lead to.
#[derive(Clone, Debug)]
pub struct End {
    /// Its service.
    pub service: ServiceId,
    /// The destination, with weight 0 if it is not listed.
    pub destination: Destination,
    /// Whether it is in its service's list.
    pub listed: bool,
}

/// What a data plane is made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Whether it serves addresses that are not this host's.
    pub any: bool,
    /// Whether the loopback device did not forward IPv4 before, nor IPv6, nor take what comes from own
    /// addresses.
    pub changed: [bool; 3],
    /// Pairs of buckets of IPv4 and IPv6 connections, and buckets of the wide table.
    pub sizes: [u32; 3],
    /// Time-outs set by `ipvsadm --set`: TCP, FIN_WAIT, UDP, in seconds.
    pub timeouts_s: [u32; 3],
}

const CHANGED: [u32; 3] = [
    settings_flag::CHANGED_FORWARDING4,
    settings_flag::CHANGED_FORWARDING6,
    settings_flag::CHANGED_ACCEPT_LOCAL,
];

impl Made {
    pub(super) fn sizes(&self) -> Sizes {
        let [connections4, connections6, wide] = self.sizes;
        Sizes { connections4, connections6, wide }
    }

    /// Asks for tables for this many connections.
    pub fn make_for(&mut self, connections: u32) {
        let Sizes { connections4, connections6, wide } = Sizes::for_connections(connections);
        self.sizes = [connections4, connections6, wide];
    }

    /// Returns for how many connections tables have to be made that these did not fit into: each is at least
    /// twice as large as it would have been, and at most half full.
    pub fn larger(&self, halves: &[Half]) -> u32 {
        let table = |half: &Half| match (&half.wide, half.client) {
            (Some(_), _) => 2,
            (None, SocketAddr::V4(_)) => 0,
            (None, SocketAddr::V6(_)) => 1,
        };
        let mut counts = [0_u64; 3];
        for half in halves {
            counts[table(half)] += 1;
        }
        let slots = [SLOTS4, SLOTS6, WIDE_SLOTS];
        let [connections4, connections6, wide] = [0, 1, 2].map(|at| {
            let half_full = (2 * counts[at]).div_ceil(slots[at] as u64);
            half_full.max(2 * u64::from(self.sizes[at])).min(1 << 31) as u32
        });
        Sizes { connections4, connections6, wide }.connections()
    }

    /// Writes what the settings have of it.
    pub(super) fn put(&self, maps: &Maps) -> Result<(), Error> {
        let mut settings = maps.settings();
        let flags = CHANGED.iter().zip(self.changed).chain([(&settings_flag::ANY, self.any)]);
        settings.flags |= flags.filter(|(_, on)| *on).fold(0, |all, (flag, _)| all | flag);
        maps.settings.update(0, &settings)
    }
}

/// What is attached in the calling thread's network namespace, but for what commands tell.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it was made with; without the time-outs.
    pub made: Made,
    /// Destinations of connections.
    pub ends: Vec<End>,
    /// Connections by halves, and templates.
    pub halves: Vec<Half>,
}

/// Tells all connections of the calling thread's network namespace.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn tell() -> Result<Told, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    tell_of(&Maps::open(&folder)?)
}

/// As [`tell`], for who has the folder's lock.
pub(super) fn tell_of(maps: &Maps) -> Result<Told, Error> {
    let settings = maps.settings();
    let mut teller = Teller::new(maps)?;
    for index in 0..maps.connections4.len() {
        let Some(bucket) = maps.connections4.read(index) else { break };
        let low_is_in_key = |slot: &abi::Slot4| (0, slot.key.get() >> 32);
        teller.ordinary(&bucket.slots, 4, low_is_in_key);
    }
    for index in 0..maps.connections6.len() {
        let Some(bucket) = maps.connections6.read(index) else { break };
        teller.ordinary(&bucket.slots, 6, |slot| (slot.high.get(), slot.low.get()));
    }
    for index in 0..maps.wide.len() {
        let Some(bucket) = maps.wide.read(index) else { break };
        bucket.slots.iter().for_each(|slot| teller.wide(slot));
    }
    let made = Made {
        any: settings.flags & settings_flag::ANY != 0,
        changed: CHANGED.map(|flag| settings.flags & flag != 0),
        sizes: [settings.connections4_mask, settings.connections6_mask, settings.wide_mask]
            .map(|mask| mask.saturating_add(1)),
        timeouts_s: [0; 3],
    };
    Ok(Told { made, ends: teller.ends, halves: teller.halves })
}

struct Teller<'a> {
    maps: &'a Maps,
    now: Time,
    unit_ns: u64,
    /// Which end a destination id is, if its connections can be carried.
    known: BTreeMap<u32, Option<usize>>,
    ends: Vec<End>,
    halves: Vec<Half>,
}

impl<'a> Teller<'a> {
    fn new(maps: &'a Maps) -> Result<Self, Error> {
        let (_, unit_ns) = load::clock()?;
        let now = Time(maps.now()? & TIME_MASK);
        Ok(Self { maps, now, unit_ns, known: BTreeMap::new(), ends: vec![], halves: vec![] })
    }

    /// Returns which end a destination is; `None` if its packets are dropped anyway.
    fn end(&mut self, id: u32) -> Option<usize> {
        if let Some(known) = self.known.get(&id) {
            return *known;
        }
        let end = self.read_end(id);
        let at = end.is_some().then_some(self.ends.len());
        self.ends.extend(end);
        self.known.insert(id, at);
        at
    }

    fn read_end(&self, id: u32) -> Option<End> {
        let record = self.maps.destinations.read(id).filter(serves)?;
        let service = self.maps.services.read(record.service)?;
        let tunnel = self.maps.tunnels.read(id).unwrap_or_default();
        let listed = is_listed(&record);
        let address = super::records::address(record.family, record.address);
        let destination = Destination {
            id: DestinationId { address, port: u16::from_be_bytes(record.port) },
            method: method_of(&record, &tunnel),
            weight: 0,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        Some(End { service: service_id(&service), destination, listed })
    }

    fn ordinary<S: Slot>(&mut self, slots: &[S], family: u8, address: impl Fn(&S) -> (u64, u64)) {
        for slot in slots {
            let (key, value) = (slot.key().get(), Value(slot.value().get()));
            if key == 0 || !value.is_live() {
                continue;
            }
            let (high, low) = address(slot);
            let client = client(family, high, low, Value::port(key));
            let kind = if value.is_reply() { Kind::Reply } else { Kind::Request };
            self.push(kind, client, value, None);
        }
    }

    fn wide(&mut self, slot: &abi::WideSlot) {
        let (key, value) = (slot.key.get(), Value(slot.value.get()));
        let kind = match wide::kind_of(key) {
            kind::REQUEST => Kind::Request,
            kind::REPLY => Kind::Reply,
            kind::TEMPLATE => Kind::Template,
            kind::DEAD => Kind::Dead,
            _ => return,
        };
        if !value.is_live() {
            return;
        }
        let is_template = matches!(kind, Kind::Template | Kind::Dead);
        let [high, low] = slot.client.each_ref().map(Cell::get);
        let (peer, other) =
            (slot.peer.each_ref().map(Cell::get), slot.other.each_ref().map(Cell::get));
        let (port, peer_port, other_port) = wide::ports_of(key);
        let client = client(wide::family_of(key), high, low, if is_template { 0 } else { port });
        let timeout_ms = (other[0] >> 32) * self.unit_ns / 1_000_000;
        let wide = Wide {
            protocol: wide::protocol_of(key),
            peer_port: if is_template { 0 } else { peer_port },
            other_port: if is_template { 0 } else { other_port },
            peer: if is_template { [peer[0], 0] } else { peer },
            other: if is_template { [timeout_ms, other[0] & 0xffff_ffff] } else { other },
            substituted: value.is_substituted(),
        };
        self.push(kind, client, value, Some(wide));
    }

    fn push(&mut self, kind: Kind, client: SocketAddr, value: Value, wide: Option<Wide>) {
        let Some(to) = self.end(value.destination()) else { return };
        let idle_ms = u64::from(self.now.since(value.time())) * self.unit_ns / 1_000_000;
        let (paired, controlled) = (value.is_paired(), value.is_controlled());
        let state = value.state().0;
        self.halves.push(Half { kind, client, to, state, idle_ms, paired, controlled, wide });
    }
}
