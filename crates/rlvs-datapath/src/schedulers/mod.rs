//! Which destination takes a connection, as the schedulers of the kernel's IPVS choose.
//!
//! What a scheduler knows beforehand the control plane lays out as a *ring*: the order of picks, a
//! hash table, or the list of destinations that may be chosen, newest first as the kernel's. Where one
//! element answers, `Context::pick` does; where many must be looked at, the stage
//! [`Search`](crate::stage::Stage::Search) does, which has a stack of its own. They talk through an
//! [`Errand`](crate::abi::Errand).
//!
//! `p2c` is our own: of two destinations, drawn by weight, the one with less load for its weight. It
//! takes the same time among any number, and spreads nearly as well as wlc.

pub mod favourites;
pub mod hashing;
mod search;

pub use search::search;

use crate::abi::{Destination, Schedule, destination_flag, scheduler, scheduler_flag};
use crate::connection::{Context, Key};
use crate::hash;
use crate::ip::{Ip, Packet};
use crate::reason::Reason;
use crate::tables::Tables;

/// Nobody takes the connection.
pub(crate) const NOBODY: u32 = u32::MAX;
/// The stage for it must say who takes the connection.
pub(crate) const SEARCH: u32 = u32::MAX - 1;
/// How many destinations are tried for one connection before it is refused.
const ATTEMPTS: u64 = 3;

/// A ring in force, in one word: number of elements (24 bits), first line (24), flags (8) and number
/// (8) of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring(pub u64);

impl Ring {
    /// Returns the ring of a scheduler with these flags.
    pub const fn new(scheduler: u32, flags: u32, line: u32, length: u32) -> Self {
        Self(
            (scheduler as u64) << 56
                | (flags as u64 & 0xff) << 48
                | (line as u64 & 0xff_ffff) << 24
                | length as u64 & 0xff_ffff,
        )
    }
    /// Returns the number of elements.
    #[inline(always)]
    pub const fn length(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }
    /// Returns the first line.
    #[inline(always)]
    pub const fn line(self) -> u32 {
        (self.0 >> 24) as u32 & 0xff_ffff
    }
    /// Returns the number of lines.
    #[inline(always)]
    pub const fn lines(self) -> u32 {
        self.length().div_ceil(crate::abi::RING_LINE)
    }
    /// Returns the index of the first element.
    #[inline(always)]
    const fn first(self) -> u32 {
        self.line().wrapping_mul(crate::abi::RING_LINE)
    }
    /// Returns the scheduler's flags.
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        (self.0 >> 48) as u32 & 0xff
    }
    /// Returns the scheduler's number.
    #[inline(always)]
    pub const fn scheduler(self) -> u32 {
        (self.0 >> 56) as u32
    }
}

/// An element of a ring has thresholds.
const LIMITED: u64 = 1 << 63;

/// Returns whether a scheduler looks at many destinations, its own thresholds aside: whether its
/// services need the stage [`Search`](crate::stage::Stage::Search).
#[inline(always)]
pub const fn searches(scheduler: u32, flags: u32) -> bool {
    match scheduler {
        scheduler::RR | scheduler::WRR | scheduler::DH | scheduler::P2C => false,
        scheduler::SH | scheduler::MH => flags & scheduler_flag::FALLBACK != 0,
        _ => true,
    }
}

/// Returns an element of a ring: destination id (32 bits), weight (31), whether it has thresholds.
#[inline(always)]
pub const fn element(id: u32, weight: u32, limited: bool) -> u64 {
    (limited as u64) << 63 | (weight as u64 & 0x7fff_ffff) << 32 | id as u64
}

#[inline(always)]
const fn weight_of(element: u64) -> u64 {
    element << 1 >> 33
}

/// Returns the number of active connections.
#[inline(always)]
const fn active(connections: u64) -> u64 {
    connections & 0xffff_ffff
}

/// Returns the number of connections.
#[inline(always)]
const fn total(connections: u64) -> u64 {
    active(connections) + (connections >> 32)
}

/// Returns what connections cost: an active one as much as 257 others, as
/// `ip_vs_dest_conn_overhead()`.
#[inline(always)]
const fn overhead(connections: u64) -> u64 {
    overhead_of((active(connections), connections >> 32))
}

/// Returns what connections cost, by how many are active and how many are not.
#[inline(always)]
const fn overhead_of((active, inactive): (u64, u64)) -> u64 {
    active * 257 + inactive
}

/// Returns the number of connections below which an overloaded destination takes new ones.
const fn low_threshold(upper: u32, lower: u32) -> u32 {
    if lower != 0 { lower } else { upper - (upper >> 2) }
}

/// Returns whether a destination is overloaded once its thresholds are no more those of `before` but
/// those of `after`; `marked` is its bit, `connections` what it has.
// As __ip_vs_update_dest().
pub fn is_overloaded_after(
    connections: u64,
    marked: bool,
    before: &Destination,
    after: &Destination,
) -> bool {
    let total = total(connections);
    let low = |of: &Destination| u64::from(low_threshold(of.upper, of.lower));
    let was = marked && total >= low(before);
    after.upper != 0 && (total >= after.upper.into() || was && total >= low(after))
}

/// Returns whether a destination has had as many connections as it may have, and not yet fewer than
/// its lower threshold since. The bit is set when a connection comes; that it falls is seen here and
/// when the next comes, as in between connections only go.
#[inline(always)]
pub fn is_overloaded<T: Tables>(tables: &T, id: u32) -> bool {
    let Some(destination) = tables.destination(id) else { return true };
    let Some(word) = tables.overload(id / 64) else { return true };
    let Some(counts) = tables.counts(id) else { return true };
    let low = low_threshold(destination.upper, destination.lower);
    let marked = tables.read(word) >> (id % 64) & tables.is_set(destination.upper.into());
    // Negative, and its highest bit set, if there are fewer.
    let fewer = total(tables.read(&counts.connections)).wrapping_sub(low.into()) >> 63;
    tables.forget(marked & 1 & !fewer) != 0
}

/// Returns whether a destination takes new connections, its thresholds aside.
#[inline(always)]
pub(crate) fn takes_connections(destination: &Destination) -> bool {
    destination.flags & destination_flag::AVAILABLE != 0 && destination.weight > 0
}

/// Returns whether a destination of a service may be chosen.
#[inline(always)]
fn is_eligible<T: Tables>(tables: &T, id: u32, avoid: u32) -> bool {
    let Some(destination) = tables.destination(id) else { return false };
    id != avoid
        && takes_connections(destination)
        && !(destination.upper != 0 && tables.is_overloaded(id))
}

/// Returns an address as sh, dh and mh hash it: its words of 32 bits, xored.
#[inline(always)]
fn folded<A: Ip>(address: A) -> u32 {
    let (high, low) = address.words();
    let both = high ^ low;
    (both >> 32) as u32 ^ both as u32
}

/// Returns what sh and mh hash of a client.
#[inline(always)]
fn client_of<A: Ip>(packet: &Packet<A>, flags: u32) -> u32 {
    let port = if flags & scheduler_flag::PORT != 0 { packet.source_port } else { 0 };
    folded(packet.source).wrapping_add(port.into())
}

impl<T: Tables> Context<'_, T> {
    /// Chooses a destination for a packet that opens a connection, or returns [`NOBODY`] or
    /// [`SEARCH`]. The answer to an errand is taken once.
    #[inline(never)]
    pub(crate) fn choose<A: Ip>(&self, packet: &Packet<A>, key: &Key<A>) -> u32 {
        self.choose_here(packet, key)
    }

    /// As [`choose`](Self::choose), in line.
    #[inline(always)]
    pub(crate) fn choose_here<A: Ip>(&self, packet: &Packet<A>, key: &Key<A>) -> u32 {
        let tables = self.tables;
        let Some(errand) = tables.errand(tables.cpu()) else { return NOBODY };
        let service = u64::from(key.owner);
        if tables.read(&errand.flow) == key.flow() && tables.read(&errand.service) == service {
            let answer = tables.read(&errand.answer) as u32;
            if answer != 0 {
                tables.write(&errand.flow, 0);
                return answer;
            }
        } else {
            tables.write(&errand.tried, 0);
        }
        tables.write(&errand.flow, 0);
        let Some(schedule) = tables.schedule(key.owner) else { return NOBODY };
        let ring = Ring(tables.read(&schedule.ring));
        let client = client_of(packet, ring.flags());
        tables.write(&errand.source, client.into());
        let picked = self.pick(schedule, ring, key.owner, client, packet.target);
        if picked == SEARCH {
            tables.write(&errand.flow, key.flow());
            tables.write(&errand.service, service);
            tables.write(&errand.target, favourites::key(self.settings, packet.target, service));
            tables.write(&errand.answer, 0);
            tables.write(&errand.search, 1);
        }
        picked
    }

    /// Picks where one or two elements answer.
    #[inline(always)]
    fn pick<A: Ip>(
        &self,
        schedule: &Schedule,
        ring: Ring,
        service: u32,
        client: u32,
        target: A,
    ) -> u32 {
        let length = u64::from(ring.length());
        if length == 0 {
            return NOBODY;
        }
        let index = match ring.scheduler() {
            scheduler::RR | scheduler::WRR => {
                let index = self.tables.add(&schedule.position, 1).checked_rem(length);
                return self.pick_in_turn(ring, index.unwrap_or(0) as u32);
            }
            scheduler::SH => hashing::bucket(client),
            scheduler::DH => hashing::bucket(folded(target)),
            scheduler::MH => hashing::maglev(client, hashing::PLACE) % hashing::MAGLEV,
            scheduler::P2C => return self.pick_of_two(schedule, ring, service),
            _ => return SEARCH,
        };
        let Some(element) = self.tables.ring(ring.first() + index) else { return NOBODY };
        match is_eligible(self.tables, element as u32, 0) {
            true => element as u32,
            false if ring.flags() & scheduler_flag::FALLBACK != 0 => SEARCH,
            false => NOBODY,
        }
    }

    #[inline(always)]
    fn pick_in_turn(&self, ring: Ring, index: u32) -> u32 {
        let Some(element) = self.tables.ring(ring.first() + index) else { return NOBODY };
        if self.is_laden(element) { SEARCH } else { element as u32 }
    }

    /// Draws two elements of the ring, in which each destination is as often as its weight says.
    #[inline(always)]
    fn pick_of_two(&self, schedule: &Schedule, ring: Ring, service: u32) -> u32 {
        let (index, other) = self.draw(schedule, ring, service);
        let one = self.tables.ring(ring.first() + index).unwrap_or(0);
        let two = self.tables.ring(ring.first() + other).unwrap_or(0);
        match (self.is_laden(one), self.is_laden(two)) {
            (true, true) => SEARCH,
            (true, false) => two as u32,
            (false, true) => one as u32,
            (false, false) => {
                let product = |of: u64, by| self.load(of).wrapping_mul(weight_of(by));
                if product(one, two) > product(two, one) { two as u32 } else { one as u32 }
            }
        }
    }

    /// Returns two places of the ring, which differ if it has two.
    #[inline(always)]
    fn draw(&self, schedule: &Schedule, ring: Ring, service: u32) -> (u32, u32) {
        let random = self.random(schedule, service);
        let length = ring.length();
        let below =
            |random: u64, limit: u32| (((random & 0xffff_ffff) * u64::from(limit)) >> 32) as u32;
        let one = below(random, length);
        let two = one + 1 + below(random >> 32, length.wrapping_sub(1));
        (one, if two >= length { two - length } else { two })
    }

    /// Returns a number that nobody can foretell who does not know the secrets.
    #[inline(always)]
    fn random(&self, schedule: &Schedule, service: u32) -> u64 {
        let position = self.tables.add(&schedule.position, 1);
        hash::mix(&self.settings.keys, position, service.into())
    }

    /// Returns whether a destination is overloaded, which needs no look if it has no thresholds.
    #[inline(always)]
    fn is_laden(&self, element: u64) -> bool {
        element & LIMITED != 0 && self.tables.is_overloaded(element as u32)
    }

    #[inline(always)]
    fn load(&self, element: u64) -> u64 {
        let counts = self.tables.counts(element as u32);
        counts.map_or(0, |counts| overhead(self.tables.read(&counts.connections)))
    }

    /// Notes that a destination has got a connection beside those that it had, as
    /// `ip_vs_bind_dest()`. Returns whether it is overloaded.
    #[inline(never)]
    pub(crate) fn note_connection(&self, id: u32, before: u64) -> bool {
        let Some(destination) = self.tables.destination(id) else { return false };
        let Some(word) = self.tables.overload(id / 64) else { return false };
        let (bit, before) = (1 << (id % 64), total(before));
        if before < low_threshold(destination.upper, destination.lower).into() {
            self.tables.clear_bits(word, bit);
        }
        let full = before + 1 >= u64::from(destination.upper);
        if full {
            self.tables.set_bits(word, bit);
        }
        full
    }

    /// Notes that a destination could not take a connection, so that another is chosen. Returns whether
    /// there is to be another attempt.
    #[inline(never)]
    pub(crate) fn note_failure<A: Ip>(&self, key: &Key<A>, id: u32, reason: u32) -> bool {
        let Some(errand) = self.tables.errand(self.tables.cpu()) else { return false };
        let tries = (self.tables.read(&errand.tried) >> 32 & 0xff) + 1;
        let tried = u64::from(reason & 0xff) << 40 | tries << 32 | u64::from(id);
        self.tables.write(&errand.tried, tried);
        if tries >= ATTEMPTS {
            return false;
        }
        let schedule = self.tables.schedule(key.owner);
        let ring = Ring(schedule.map_or(0, |schedule| self.tables.read(&schedule.ring)));
        self.tables.write(&errand.search, searches(ring.scheduler(), ring.flags()).into());
        self.tables.write(&errand.flow, key.flow());
        self.tables.write(&errand.service, key.owner.into());
        self.tables.write(&errand.answer, 0);
        true
    }

    /// Returns why nobody takes the connection.
    #[inline(always)]
    pub(crate) fn why_nobody(&self) -> u32 {
        let errand = self.tables.errand(self.tables.cpu());
        match errand.map_or(0, |errand| self.tables.read(&errand.tried) >> 40) as u32 {
            0 => Reason::NoDestination as u32,
            reason => reason,
        }
    }
}
