//! Connections, put into maps.
//!
//! Invariant: only into tables that no program hung on an interface looks at. So no lock is needed; the
//! sweep, which runs already, removes by compare-and-swap.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rlvs_control::model::{DestinationId, ServiceId};
use rlvs_datapath::abi::{
    self, Connections4, Connections6, Counts, Endpoints4, Endpoints6, Errand, Estimate, Favourites,
    Fragments, Interfaces, Limit, Line, MarkRules, Pool, RingLine, Route, Row, Schedule, Scratch,
    Service, Settings, Sources, Wides, Word,
};
use rlvs_datapath::connection::{self, Context, Value};
use rlvs_datapath::ip::{Flow, Ip, Slot};
use rlvs_datapath::state::State;
use rlvs_datapath::tables::{Book, TIME_MASK, Tables, Time};
use rlvs_datapath::wide::{self, kind, sought};

use super::{Half, Kind, Wide};
use crate::dataplane::maps::{Mapped, Maps};
use crate::dataplane::records::{self, serves, service_id, v4, v6};
use crate::dataplane::{Error, load, pins, sys};

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
        let address = records::address(record.family, record.address);
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
