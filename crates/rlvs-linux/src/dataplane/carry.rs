//! Connections in words that do not depend on the layout of maps: one program tells them, the next one puts
//! them into maps of its own.
//!
//! Invariant: they are put only into tables that no program hung on an interface looks at. So no lock is
//! needed; the sweep, which runs already, removes by compare-and-swap.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rlvs_control::model::{Destination, DestinationId, ServiceId};
use rlvs_datapath::abi::{
    self, Connections4, Connections6, Counts, Endpoints4, Endpoints6, Errand, Estimate, Favourites,
    Fragments, Interfaces, Limit, Line, MarkRules, Pool, RingLine, Route, Row, Schedule, Scratch,
    Service, Settings, Sources, Wides, Word, settings_flag,
};
use rlvs_datapath::connection::{self, Context, Value};
use rlvs_datapath::ip::{Flow, Ip, Slot};
use rlvs_datapath::state::State;
use rlvs_datapath::tables::{Book, TIME_MASK, Tables, Time};
use rlvs_datapath::wide::{self, kind, sought};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::load::{self, Sizes};
use super::maps::{Mapped, Maps};
use super::pins;
use super::records::{client, is_listed, method_of, serves, service_id, v4, v6};
use super::sys;

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
    let maps = Maps::open(&folder)?;
    let settings = maps.settings();
    let mut teller = Teller::new(&maps)?;
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

/// What came of putting connections into tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// Halves and templates that are there now.
    pub there: u64,
    /// Those for which there was no destination or no room.
    pub left: u64,
}

/// Puts connections into the tables of the calling thread's network namespace, which no program looks at.
/// What is there already gets the state and time that are told.
///
/// # Errors
/// Nothing is there, or a missing capability.
pub fn put(ends: &[(ServiceId, DestinationId)], halves: &[Half]) -> Result<Put, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    let maps = Maps::open(&folder)?;
    let tables = Fresh::open(&maps)?;
    let ids = destinations(&maps);
    let ids: Vec<Option<u32>> = ends.iter().map(|end| ids.get(end).copied()).collect();
    let context = Context { tables: &tables, settings: &tables.settings, now: tables.now };
    let mut done = Put::default();
    for half in halves {
        let id = ids.get(half.to).copied().flatten();
        match id.is_some_and(|id| tables.put_half(&context, half, id)) {
            true => done.there += 1,
            false => done.left += 1,
        }
    }
    Ok(done)
}

/// Returns the ids of destinations that take packets.
fn destinations(maps: &Maps) -> BTreeMap<(ServiceId, DestinationId), u32> {
    let of = |id: u32| {
        let record = maps.destinations.read(id).filter(serves)?;
        let service = maps.services.read(record.service)?;
        let address = super::records::address(record.family, record.address);
        let destination = DestinationId { address, port: u16::from_be_bytes(record.port) };
        Some(((service_id(&service), destination), id))
    };
    (1..maps.settings().destinations).filter_map(of).collect()
}

/// How long the sweep may take to begin in new maps.
const BEGIN_MAX: Duration = Duration::from_secs(2);

/// Tables that no program looks at yet.
struct Fresh<'a> {
    maps: &'a Maps,
    occupancy: Mapped<Word>,
    settings: Settings,
    now: Time,
    unit_ns: u64,
}

impl<'a> Fresh<'a> {
    fn open(maps: &'a Maps) -> Result<Self, Error> {
        let (_, unit_ns) = load::clock()?;
        // The sweep tells the time with its first tick.
        let deadline = Instant::now() + BEGIN_MAX;
        while maps.now()? == 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let now = Time(maps.now()? & TIME_MASK);
        let occupancy = Mapped::open(&maps.folder, "occupancy")?;
        Ok(Self { maps, occupancy, settings: maps.settings(), now, unit_ns })
    }

    fn units(&self, ms: u64) -> u32 {
        (ms.saturating_mul(1_000_000) / self.unit_ns).min(u64::from(TIME_MASK / 2)) as u32
    }

    /// Returns the value that a half has here.
    fn value(&self, half: &Half, id: u32) -> Value {
        let then = Time(self.now.0.wrapping_sub(self.units(half.idle_ms)) & TIME_MASK);
        let mut value = Value::new(then, State(half.state & 31), id, 0, half.paired);
        if half.controlled {
            value = value.controlled();
        }
        if half.kind == Kind::Reply {
            value = value.reply(0).with_state(State(half.state & 31));
        }
        if half.wide.as_ref().is_some_and(|wide| wide.substituted) {
            value = value.substituted();
        }
        value
    }

    fn put_half(&self, context: &Context<'_, Self>, half: &Half, id: u32) -> bool {
        let done = match (&half.wide, half.client) {
            (Some(wide), _) => self.put_wide(context, half, wide, id),
            (None, SocketAddr::V4(client)) => {
                self.put_ordinary(context, half, v4(*client.ip()), id)
            }
            (None, SocketAddr::V6(client)) => {
                self.put_ordinary(context, half, v6(*client.ip()), id)
            }
        };
        if done == Some(true)
            && let Some(counts) = self.counts(id)
        {
            match half.kind {
                Kind::Request => {
                    self.add(&counts.connections, State(half.state & 31).one());
                }
                Kind::Template | Kind::Dead => {
                    self.add(&counts.persistent, 1);
                }
                Kind::Reply => {}
            }
        }
        done.is_some()
    }

    /// Returns whether the half is new, `None` if there is no room.
    fn put_ordinary<A: Ip>(
        &self,
        context: &Context<'_, Self>,
        half: &Half,
        client: A,
        id: u32,
    ) -> Option<bool> {
        let to = self.destination(id)?;
        let service = self.service(to.service)?;
        let (owner, peer, peer_port) = match half.kind {
            Kind::Reply => (to.reply, &to.address, to.port),
            _ => (to.service, &service.address, service.port),
        };
        let (port, peer_port) = (half.client.port(), u16::from_be_bytes(peer_port));
        let flow = Flow { client, peer: A::from_octets(peer), port, peer_port };
        let key = connection::Key::new(&self.settings, &flow, owner);
        let owned = Value::new(Time(0), State::NONE, 0, owner, false);
        let value = Value(self.value(half, id).0 | owned.0);
        if let Some(found) = context.find(&key) {
            self.refresh(found.slot.value(), found.value, value, half.kind);
            return Some(false);
        }
        (context.insert(&key, value) != 0).then_some(true)
    }

    fn put_wide(
        &self,
        context: &Context<'_, Self>,
        half: &Half,
        wide: &Wide,
        id: u32,
    ) -> Option<bool> {
        let value = self.value(half, id);
        let words = words(half.client);
        let (key, other) = match half.kind {
            Kind::Template | Kind::Dead => {
                let to = self.destination(id)?;
                let family = self.service(to.service)?.family;
                let key = wide::Key::template(family, words, to.service);
                let death = wide::kind_word(kind::TEMPLATE ^ kind::DEAD);
                let death = if half.kind == Kind::Dead { death } else { 0 };
                let [timeout_ms, held] = wide.other;
                let held = u64::from(self.units(timeout_ms)) << 32 | held & 0xffff_ffff;
                let peer = (wide.peer[0], id.into());
                (wide::Key { word: key.word ^ death, peer, ..key }, [held, 0])
            }
            Kind::Request | Kind::Reply => {
                let kind = if half.kind == Kind::Reply { kind::REPLY } else { kind::REQUEST };
                let word = wide::kind_word(kind)
                    | if half.client.is_ipv4() { 4 } else { 6 } << 56
                    | u64::from(wide.protocol) << 48
                    | u64::from(half.client.port()) << 32
                    | u64::from(wide.peer_port) << 16
                    | u64::from(wide.other_port);
                let [high, low] = wide.peer;
                (wide::Key { word, client: words, peer: (high, low) }, wide.other)
            }
        };
        let mut found = Value(0);
        if let Some(slot) = context.find_wide::<{ sought::EXACT }>(&key, &mut found) {
            self.refresh(&slot.value, found, value, half.kind);
            return Some(false);
        }
        context.insert_wide(&key, value, other[0], other[1]).map(|_| true)
    }

    /// Gives a half that is there already the state and time that are told now.
    fn refresh(&self, word: &Word, found: Value, told: Value, kind: Kind) {
        let new = found.with(Time(told.time()), told.state());
        let is_same = found.destination() == told.destination();
        if is_same
            && self.swap(word, found.0, new.0)
            && kind == Kind::Request
            && let Some(counts) = self.counts(found.destination())
        {
            let change = new.state().one().wrapping_sub(found.state().one());
            self.add(&counts.connections, change);
        }
    }
}

fn words(end: SocketAddr) -> (u64, u64) {
    match end {
        SocketAddr::V4(end) => v4(*end.ip()).words(),
        SocketAddr::V6(end) => v6(*end.ip()).words(),
    }
}

/// No rules: nobody asks.
struct NoBook;

impl Book for NoBook {
    fn line(&self, _: u32) -> Option<&Line> {
        None
    }
}

/// Only what insertion asks for is there.
impl Tables for Fresh<'_> {
    type Book = NoBook;

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn jiffies(&self) -> u64 {
        u64::from(self.now.0) << self.settings.clock_shift
    }
    fn cpu(&self) -> u32 {
        0
    }
    fn connections4(&self, index: u32) -> Option<&Connections4> {
        self.maps.connections4.get(index)
    }
    fn connections6(&self, index: u32) -> Option<&Connections6> {
        self.maps.connections6.get(index)
    }
    fn wide(&self, index: u32) -> Option<&Wides> {
        self.maps.wide.get(index)
    }
    fn service(&self, id: u32) -> Option<&Service> {
        self.maps.services.get(id)
    }
    fn schedule(&self, id: u32) -> Option<&Schedule> {
        self.maps.schedules.get(id)
    }
    fn destination(&self, id: u32) -> Option<&abi::Destination> {
        self.maps.destinations.get(id)
    }
    fn counts(&self, id: u32) -> Option<&Counts> {
        self.maps.counts.get(id)
    }
    fn occupancy(&self, index: u32) -> Option<&Word> {
        self.occupancy.get(index)
    }
    fn scratch(&self, _: u32) -> Option<&Scratch> {
        None
    }
    fn marks(&self) -> Option<&MarkRules> {
        None
    }
    fn pool(&self, _: u32) -> Option<&Pool> {
        None
    }
    fn endpoints4(&self, _: u32) -> Option<&Endpoints4> {
        None
    }
    fn presence(&self, _: u32) -> Option<&Word> {
        None
    }
    fn endpoints6(&self, _: u32) -> Option<&Endpoints6> {
        None
    }
    fn ring_line(&self, _: u32) -> Option<&RingLine> {
        None
    }
    fn tunnel(&self, _: u32) -> Option<&abi::Tunnel> {
        None
    }
    fn all_counts(&self) -> Option<&[Counts]> {
        None
    }
    fn overload(&self, _: u32) -> Option<&Word> {
        None
    }
    fn errand(&self, _: u32) -> Option<&Errand> {
        None
    }
    fn favourites(&self, _: u32) -> Option<&Favourites> {
        None
    }
    fn row(&self, _: u32) -> Option<&Row> {
        None
    }
    fn route(&self, _: u32) -> Option<&Route> {
        None
    }
    fn interfaces(&self, _: u32) -> Option<&Interfaces> {
        None
    }
    fn fragments(&self, _: u32) -> Option<&Fragments> {
        None
    }
    fn lock(&self, _: u32) -> Option<&Word> {
        None
    }
    fn reason(&self, _: u32) -> Option<&Word> {
        None
    }
    fn limit(&self, _: u32) -> Option<&Limit> {
        None
    }
    fn book(&self) -> Option<&NoBook> {
        None
    }
    fn sources(&self, _: u32) -> Option<&Sources> {
        None
    }
    fn estimate(&self, _: u32) -> Option<&Estimate> {
        None
    }
    fn read(&self, word: &Word) -> u64 {
        sys::atomic(word).load(Ordering::SeqCst)
    }
    fn write(&self, word: &Word, value: u64) {
        sys::atomic(word).store(value, Ordering::SeqCst);
    }
    fn swap(&self, word: &Word, old: u64, new: u64) -> bool {
        let order = Ordering::SeqCst;
        sys::atomic(word).compare_exchange(old, new, order, order).is_ok()
    }
    fn set_bits(&self, word: &Word, bits: u64) {
        sys::atomic(word).fetch_or(bits, Ordering::SeqCst);
    }
    fn clear_bits(&self, word: &Word, bits: u64) {
        sys::atomic(word).fetch_and(!bits, Ordering::SeqCst);
    }
    fn wait_to_swap(&self, word: &Word, old: u64, new: u64) -> bool {
        self.swap(word, old, new)
    }
    fn add(&self, word: &Word, value: u64) -> u64 {
        sys::atomic(word).fetch_add(value, Ordering::SeqCst)
    }
}
