//! The maps, as the forwarding function sees them.

use core::cell::Cell;

use crate::abi::{
    Connections4, Connections6, Counts, Destination, Endpoints4, Endpoints6, Errand, Estimate,
    Favourites, Fragments, IDS, Interfaces, Limit, Line, MarkRules, Pool, RING_LINE, RingLine,
    Route, Row, Schedule, Scratch, Service, Settings, Sources, Tunnel, Wides, Word,
};
use crate::connection::{self, Context, Value};
use crate::ip::{V4, V6};
use crate::reason::Reason;
use crate::special::IN_PLACE;
use crate::{schedulers, wide};

/// The maps of one network namespace, and the memory operations that a body has for them.
///
/// Every look-up returns `None` for an index that the map does not have.
pub trait Tables: Sized {
    /// The book of access.
    type Book: Book;

    /// Returns the settings.
    fn settings(&self) -> Option<&Settings>;
    /// Returns the time in jiffies.
    fn jiffies(&self) -> u64;
    /// Returns the number of the CPU that runs this.
    fn cpu(&self) -> u32;
    /// Returns a pair of IPv4 connection buckets.
    fn connections4(&self, index: u32) -> Option<&Connections4>;
    /// Returns a pair of IPv6 connection buckets.
    fn connections6(&self, index: u32) -> Option<&Connections6>;
    /// Returns a bucket of the wide table.
    fn wide(&self, index: u32) -> Option<&Wides>;
    /// Returns what a CPU's stages leave for each other.
    fn scratch(&self, cpu: u32) -> Option<&Scratch>;
    /// Returns the rules that give marks.
    fn marks(&self) -> Option<&MarkRules>;
    /// Returns the addresses of full NAT: 0 those of IPv4, 1 those of IPv6.
    fn pool(&self, index: u32) -> Option<&Pool>;
    /// Returns a bucket of IPv4 endpoints.
    fn endpoints4(&self, index: u32) -> Option<&Endpoints4>;
    /// Returns a word of the map that tells which endpoints may be there.
    fn presence(&self, index: u32) -> Option<&Word>;
    /// Returns a bucket of IPv6 endpoints.
    fn endpoints6(&self, index: u32) -> Option<&Endpoints6>;
    /// Returns a service.
    fn service(&self, id: u32) -> Option<&Service>;
    /// Returns what a service's scheduler keeps.
    fn schedule(&self, id: u32) -> Option<&Schedule>;
    /// Returns a line of the rings.
    fn ring_line(&self, index: u32) -> Option<&RingLine>;
    /// Returns an element of the rings.
    #[inline(always)]
    fn ring(&self, index: u32) -> Option<u64> {
        let line = self.ring_line(index / RING_LINE)?;
        line.elements.get((index % RING_LINE) as usize).copied()
    }
    /// Returns a destination.
    fn destination(&self, id: u32) -> Option<&Destination>;
    /// Returns a tunnel.
    fn tunnel(&self, id: u32) -> Option<&Tunnel>;
    /// Returns the connection counts of all destinations, by id.
    fn all_counts(&self) -> Option<&[Counts]>;
    /// Returns the connection counts of a destination.
    #[inline(always)]
    fn counts(&self, id: u32) -> Option<&Counts> {
        of_destination(self.all_counts()?, id)
    }
    /// Returns a word of the map that tells which destinations are overloaded.
    fn overload(&self, index: u32) -> Option<&Word>;
    /// Returns what the stages of a CPU tell each other of a search.
    fn errand(&self, cpu: u32) -> Option<&Errand>;
    /// Returns an entry of lblc and lblcr.
    fn favourites(&self, index: u32) -> Option<&Favourites>;
    /// Returns the row of one destination and CPU.
    fn row(&self, index: u32) -> Option<&Row>;
    /// Returns a row of the client route cache.
    fn route(&self, index: u32) -> Option<&Route>;
    /// Returns a bucket of interfaces.
    fn interfaces(&self, index: u32) -> Option<&Interfaces>;
    /// Returns a bucket of datagrams that come in fragments.
    fn fragments(&self, index: u32) -> Option<&Fragments>;
    /// Returns a word of the occupancy map.
    fn occupancy(&self, index: u32) -> Option<&Word>;
    /// Returns a lock.
    fn lock(&self, index: u32) -> Option<&Word>;
    /// Returns a counter of reasons.
    fn reason(&self, index: u32) -> Option<&Word>;
    /// Returns what a CPU has sent of its own.
    fn limit(&self, cpu: u32) -> Option<&Limit>;
    /// Returns the book of access that is in force. It is replaced as a whole: whoever asks once sees
    /// one.
    fn book(&self) -> Option<&Self::Book>;
    /// Returns a bucket of sources whose connections are limited.
    fn sources(&self, index: u32) -> Option<&Sources>;
    /// Returns what the estimator keeps of a destination or a service.
    fn estimate(&self, index: u32) -> Option<&Estimate>;

    /// Reads a word that others change. Reads of one CPU happen in program order.
    fn read(&self, word: &Word) -> u64;
    /// Reads the lower and the upper half of a word that others change, maybe at two moments.
    #[inline(always)]
    fn halves(&self, word: &Word) -> (u64, u64) {
        let word = self.read(word);
        (word & 0xffff_ffff, word >> 32)
    }
    /// Stores a word. Stores of one CPU become visible in program order.
    fn write(&self, word: &Word, value: u64);
    /// Replaces `old` by `new` if that is what is there; a full memory barrier.
    fn swap(&self, word: &Word, old: u64, new: u64) -> bool;
    /// Sets bits; a full memory barrier.
    fn set_bits(&self, word: &Word, bits: u64);
    /// Clears bits; a full memory barrier.
    fn clear_bits(&self, word: &Word, bits: u64);
    /// Tries [`swap`](Self::swap) again for longer than any holder of a lock works, and returns
    /// whether it was done.
    fn wait_to_swap(&self, word: &Word, old: u64, new: u64) -> bool;
    /// Has `state` take steps 0, 1, 2 and so on, until one says that it was the last or `times` are
    /// taken. The BPF verifier follows the step once, however often it is taken.
    #[inline(always)]
    fn repeat<S: Step>(&self, times: u32, state: &mut S)
    where
        Self: Sized,
    {
        for index in 0..times {
            if state.step(self, index) {
                break;
            }
        }
    }
    /// Returns 1 if `word` is not 0, else 0, without a branch: the BPF verifier follows every branch
    /// and a processor guesses it. A body whose compiler makes one of this spells it out.
    #[inline(always)]
    fn is_set(&self, word: u64) -> u64 {
        (word | word.wrapping_neg()) >> 63
    }
    /// Returns `word`. Of the result the BPF verifier knows nothing, so that it follows what comes
    /// then once, and not once for each way that led there.
    #[inline(always)]
    fn forget(&self, word: u64) -> u64 {
        word
    }
    /// Adds with wrap-around and returns what was there; a full memory barrier.
    fn add(&self, word: &Word, value: u64) -> u64;

    // What follows takes numbers and returns one. BPF has it as global functions: the verifier follows
    // such a function once, not at every call, and knows nothing of what it returns.

    /// Looks for an IPv4 half, as [`connection::seek`].
    #[inline(always)]
    fn seek4(&self, key: &connection::Key<V4>) -> u64 {
        connection::seek(self, key)
    }
    /// Looks for an IPv6 half.
    #[inline(always)]
    fn seek6(&self, key: &connection::Key<V6>) -> u64 {
        connection::seek(self, key)
    }
    /// Inserts an IPv4 half and returns its spot, or 0.
    #[inline(always)]
    fn put4(&self, key: &connection::Key<V4>, value: Value) -> u64 {
        connection::put(self, key, value)
    }
    /// Inserts an IPv6 half and returns its spot, or 0.
    #[inline(always)]
    fn put6(&self, key: &connection::Key<V6>, value: Value) -> u64 {
        connection::put(self, key, value)
    }
    /// Makes way for an IPv4 connection, as `Context::make_way`.
    #[inline(always)]
    fn make_way4(&self, key: &connection::Key<V4>) -> u64 {
        Context::of(self).map_or(IN_PLACE, |context| context.make_way(key))
    }
    /// Makes way for an IPv6 connection.
    #[inline(always)]
    fn make_way6(&self, key: &connection::Key<V6>) -> u64 {
        Context::of(self).map_or(IN_PLACE, |context| context.make_way(key))
    }
    /// Makes way for a connection in the wide table, as `Context::make_way_wide`.
    #[inline(always)]
    fn make_way_wide(&self, key: &wide::Key, flags: u8) -> u64 {
        Context::of(self).map_or(IN_PLACE, |context| context.make_way_wide(key, flags))
    }
    /// Takes one connection from what a template controls, as `Context::release_template`.
    #[inline(always)]
    fn release_template(&self, high: u64, low: u64, value: u64) -> bool {
        Context::of(self).is_some_and(|context| context.release_template(high, low, Value(value)))
    }
    /// Looks a client up in the book of access, as [`Context::judge`].
    #[inline(always)]
    fn consult(&self, high: u64, low: u64, service: u32) -> u32 {
        let refused = Reason::Inconsistent as u32;
        Context::of(self).map_or(refused, |context| context.judge(high, low, service))
    }
    /// Counts a connection for the network of its client, as [`Context::note_source`].
    #[inline(always)]
    fn note_source(&self, high: u64, low: u64, value: Value) -> bool {
        Context::of(self).is_some_and(|context| context.note_source(high, low, value))
    }
    /// Returns whether a destination is overloaded, as `schedulers::is_overloaded`.
    #[inline(always)]
    fn is_overloaded(&self, id: u32) -> bool {
        schedulers::is_overloaded(self, id)
    }
    /// Compares a sender with the ways to peers, as `Context::look_for_peer`.
    #[inline(always)]
    fn look_for_peer(&self, sender: u64, first: u32) -> u32 {
        Context::of(self).map_or(0, |context| context.look_for_peer(sender, first))
    }
    /// Returns the first peer whose way has to be asked for, as `Context::unknown_peer`.
    #[inline(always)]
    fn unknown_peer(&self, first: u32) -> u32 {
        Context::of(self).map_or(0, |context| context.unknown_peer(first))
    }
}

/// Returns the connection counts of a destination. The id is cut to the bits that an id has, which is
/// how the BPF verifier knows that it is within bounds.
#[inline(always)]
pub fn of_destination(counts: &[Counts], id: u32) -> Option<&Counts> {
    counts.get((id & (IDS - 1)) as usize)
}

/// Who may open connections, in lines; see [`book`](crate::book).
pub trait Book {
    /// Returns a line.
    fn line(&self, index: u32) -> Option<&Line>;
}

/// What [`Tables::repeat`] repeats. In BPF a state holds numbers only.
pub trait Step {
    /// Takes one step and returns whether it was the last.
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool;
}

/// How often a lock that another CPU holds is tried.
pub const SPINS: u32 = 4096;

/// Adds to a counter that only this CPU writes.
#[inline(always)]
pub fn bump(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}

/// Coarse time: units of at least 256 ms, 25 bits, wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u32);

/// Bits of a stored time.
pub const TIME_BITS: u32 = 25;
/// Mask of a stored time.
pub const TIME_MASK: u32 = (1 << TIME_BITS) - 1;

impl Time {
    /// Reads the clock.
    #[inline(always)]
    pub fn now<T: Tables>(tables: &T, settings: &Settings) -> Self {
        let units = (tables.jiffies() >> (settings.clock_shift & 31)) as u32;
        Self(units.wrapping_add(settings.clock_offset) & TIME_MASK)
    }

    /// Returns the units since `then`; 0 if `then` lies ahead, as another CPU may have stored it.
    #[inline(always)]
    pub const fn since(self, then: u32) -> u32 {
        let age = self.0.wrapping_sub(then) & TIME_MASK;
        if age > TIME_MASK / 2 { 0 } else { age }
    }
}
