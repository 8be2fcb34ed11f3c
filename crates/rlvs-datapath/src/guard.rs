//! Who may open connections: lists of networks, and limits for those that may.
//!
//! A stage that is about to open a connection of a guarded service looks the client up in the [`book`](crate::book)
//! ([`Tables::consult`]). Whom the lists let in, but only so often or so many at a time, it leaves in its
//! CPU's row of the map `limits` and hands on to [`Stage::Guard`], which leaves its answer there and hands
//! back. So the guard is told of a client and not of a frame, one program serves all kinds of packets,
//! and packets of connections that are there never meet it.

use crate::abi::{Limit, SLOTS6, SOURCE_BUCKETS, Service, Source, Word, service_flag};
use crate::book::{Rules, rules_flag, seek, way};
use crate::connection::{Context, Key, Value};
use crate::frame::Verdict;
use crate::hash;
use crate::ip::{Ip, Packet};
use crate::reason::Reason;
use crate::schedule::{ASKING, DONE};
use crate::stage::Stage;
use crate::state::State;
use crate::tables::{Book, TIME_BITS, TIME_MASK, Tables, Time};

/// Who asks.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Client {
    high: u64,
    low: u64,
    service: u32,
    family: u8,
}

/// Set in an answer if a refusal is told by ICMP.
const TOLD: u32 = 1 << 30;
/// The lists let a client in, whose connections are limited.
const LIMITED: u32 = 1 << 29;

/// Carries out the stage [`Stage::Guard`]: answers what this CPU asks.
#[inline(always)]
pub fn guard<T: Tables>(tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(Reason::NoService) };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
    let Some(row) = tables.limit(tables.cpu()) else { return Verdict::Drop(Reason::Inconsistent) };
    let back = tables.read(&row.back) as u32;
    let answer = tables.forget(context.measure(row).into()) as u32;
    let answer = context.note_telling(row, answer);
    tables.write(&row.answer, u64::from(context.now.0) << 32 | u64::from(answer));
    Verdict::Next(Stage::from_number(back))
}

impl<'a, T: Tables> Context<'a, T> {
    /// Has the guard answer, and the packet come back to this stage.
    #[inline(always)]
    pub(crate) fn ask_guard(&self, back: Stage) -> Verdict {
        let Some(row) = self.tables.limit(self.tables.cpu()) else {
            return Verdict::Drop(Reason::Inconsistent);
        };
        self.tables.write(&row.back, back as u64);
        Verdict::Next(Stage::Guard)
    }

    /// Returns whether a service's new connections are asked of the guard.
    #[inline(always)]
    pub(crate) fn is_guarded(&self, service: u32) -> bool {
        let guarded = |service: &Service| service.flags & service_flag::GUARDED != 0;
        self.tables.service(service).is_some_and(guarded)
    }

    /// Returns whether the client whose connection was refused last on this CPU is told.
    #[inline(always)]
    pub(crate) fn tells_refusals(&self) -> bool {
        let row = self.tables.limit(self.tables.cpu());
        row.is_some_and(|row| self.tables.read(&row.back) >> 32 != 0)
    }

    /// Returns the guard's answer: [`DONE`], the number of a reason, or [`ASKING`] if it has to be asked
    /// first.
    #[inline(never)]
    pub(crate) fn guarded<A: Ip>(&self, packet: &Packet<A>, service: u32) -> u32 {
        let cpu = self.tables.cpu();
        let Some(row) = self.tables.limit(cpu) else { return Reason::Inconsistent as u32 };
        let (high, low) = packet.source.words();
        let asked = u64::from(service) << 32
            | u64::from(packet.source_port) << 16
            | u64::from(packet.target_port);
        let [upper, lower] = &row.source;
        let read = |word| self.tables.read(word);
        let difference = (read(upper) ^ high) | (read(lower) ^ low) | (read(&row.asked) ^ asked);
        let answer = read(&row.answer);
        if difference == 0 && answer as u32 != 0 && answer >> 32 == u64::from(self.now.0) {
            // An answer is good for one connection.
            self.tables.write(&row.answer, 0);
            return answer as u32;
        }
        let judged = self.tables.consult(high, low, service);
        let is_thinned = judged == DONE && self.settings.drop_rate != 0;
        if judged != LIMITED && !is_thinned {
            return self.note_telling(row, judged);
        }
        // Taken from what may be opened once, before the search.
        if self.is_searched_for(packet, service) {
            return DONE;
        }
        if self.thins(row) {
            return self.note_telling(row, Reason::Thinned as u32);
        }
        if judged == DONE {
            return DONE;
        }
        for (word, value) in
            [upper, lower, &row.asked, &row.answer].into_iter().zip([high, low, asked, 0])
        {
            self.tables.write(word, value);
        }
        ASKING
    }

    /// Returns whether a packet comes back from the search for its destination.
    #[inline(always)]
    fn is_searched_for<A: Ip>(&self, packet: &Packet<A>, service: u32) -> bool {
        let Some(errand) = self.tables.errand(self.tables.cpu()) else { return false };
        let key = Key::new(self.settings, &packet.request(), service);
        self.tables.read(&errand.flow) == key.flow()
            && self.tables.read(&errand.service) == u64::from(service)
    }

    /// Notes for [`tells_refusals`](Self::tells_refusals) whether a refusal is told, and returns the answer
    /// without that.
    #[inline(always)]
    fn note_telling(&self, row: &Limit, answer: u32) -> u32 {
        let told = u64::from(answer != DONE && answer & TOLD != 0) << 32;
        let back = self.tables.read(&row.back) & 0xffff_ffff;
        self.tables.write(&row.back, told | back);
        if answer == DONE { DONE } else { answer & !TOLD }
    }

    /// Decides by the lists alone whether an address, in two words, may open a connection: `DONE`, the
    /// number of a reason with `TOLD`, or `LIMITED`.
    #[inline(always)]
    pub fn judge(&self, high: u64, low: u64, service: u32) -> u32 {
        let Some(record) = self.tables.service(service) else { return Reason::Inconsistent as u32 };
        if record.flags & service_flag::GUARDED == 0 {
            return DONE;
        }
        let family = record.family;
        let Some(book) = self.tables.book() else { return DONE };
        let Some(all) = book.line(0) else { return DONE };
        let all = Rules::of(all);
        let own = own_rules::<T>(book, &all, record);
        let forget = |word| self.tables.forget(word);
        let address = (family, high, low);
        let ends = (seek(book, &own, address, forget), seek(book, &all, address, forget));
        let (mine, general) = (ends.0 & way::RANK, ends.1 & way::RANK);
        let end = if mine >= general { ends.0 } else { ends.1 };
        let flags = if own.flags & rules_flag::PRESENT != 0 { own.flags } else { all.flags };
        let told = if flags & rules_flag::TELLS != 0 { TOLD } else { 0 };
        if end & way::DENIED != 0 {
            return told | Reason::Denied as u32;
        }
        if end & way::RANK == 0 && (own.flags | all.flags) & rules_flag::ALLOWS != 0 {
            return told | Reason::NotAllowed as u32;
        }
        if (own.flags | all.flags) & rules_flag::LIMITS != 0 { LIMITED } else { DONE }
    }

    /// Decides whether the client that this CPU asks for has had its share.
    #[inline(always)]
    fn measure(&self, row: &Limit) -> u32 {
        let [high, low] = &row.source;
        let service = (self.tables.read(&row.asked) >> 32) as u32;
        let Some(record) = self.tables.service(service) else { return Reason::Inconsistent as u32 };
        let (high, low) = (self.tables.read(high), self.tables.read(low));
        let client = Client { high, low, service, family: record.family };
        let Some(book) = self.tables.book() else { return DONE };
        let Some(all) = book.line(0) else { return DONE };
        let all = Rules::of(all);
        let own = own_rules::<T>(book, &all, record);
        let limits = if own.flags & rules_flag::LIMITS != 0 { own } else { all };
        if limits.flags & rules_flag::LIMITS == 0 {
            return DONE;
        }
        let flags = if own.flags & rules_flag::PRESENT != 0 { own.flags } else { all.flags };
        let told = if flags & rules_flag::TELLS != 0 { TOLD } else { 0 };
        let counted = record.flags & service_flag::ONE_PACKET == 0;
        match self.limit(&limits, &client, counted) {
            DONE => DONE,
            reason => told | reason,
        }
    }

    /// Returns whether this is the connection of so many that is dropped, as `ip_vs_todrop()`, but of
    /// those of this CPU.
    #[inline(always)]
    fn thins(&self, row: &Limit) -> bool {
        let rate = u64::from(self.settings.drop_rate);
        if rate == 0 {
            return false;
        }
        let admitted = self.tables.read(&row.admitted).wrapping_add(1);
        let is_it = admitted >= rate;
        self.tables.write(&row.admitted, if is_it { 0 } else { admitted });
        is_it
    }

    /// Takes a connection from what a client's network may still open.
    #[inline(always)]
    fn limit(&self, limits: &Rules, client: &Client, counted: bool) -> u32 {
        let Some(source) = self.source(limits, client) else { return Reason::Busy as u32 };
        let counted = counted && limits.number != 0;
        if counted && held(self.turned(source)) >= limits.number {
            return Reason::TooMany as u32;
        }
        if limits.rate == 0 {
            self.tables.write(&source.rate, stamped(limits.burst, self.now));
        } else if !self.take(source, limits) {
            return Reason::TooFast as u32;
        }
        if counted {
            self.change(&source.number, |_| self.turned(source).wrapping_add(ONE_HELD | 1));
        }
        DONE
    }

    /// Takes one connection from the bucket of a source. Returns whether there was one.
    #[inline(always)]
    fn take(&self, source: &Source, limits: &Rules) -> bool {
        for _ in 0..TRIES {
            let before = self.tables.read(&source.rate);
            let filled = self.filled(before, limits);
            if filled < ONE {
                return false;
            }
            if self.tables.swap(&source.rate, before, stamped(filled - ONE, self.now)) {
                return true;
            }
        }
        false
    }

    /// Returns how many connections a bucket holds by now.
    #[inline(always)]
    fn filled(&self, rate: u64, limits: &Rules) -> u64 {
        let age = self.now.since(rate as u32 & TIME_MASK);
        let more = u64::from(age).wrapping_mul(limits.rate);
        (rate >> TIME_BITS).wrapping_add(more).min(limits.burst)
    }

    /// Changes a word that others change.
    #[inline(always)]
    fn change(&self, word: &Word, to: impl Fn(u64) -> u64) -> bool {
        for _ in 0..TRIES {
            let before = self.tables.read(word);
            if self.tables.swap(word, before, to(before)) {
                return true;
            }
        }
        false
    }

    /// Returns the number of the sweep's pass, 16 bits.
    #[inline(always)]
    fn pass(&self) -> u64 {
        let last = self.tables.sources(SOURCE_BUCKETS).and_then(|bucket| bucket.slots.first());
        last.map_or(0, |slot| self.tables.read(&slot.number)) & 0xffff
    }

    /// Returns a source's number as it is in this pass of the sweep: when a pass ends, there are as many
    /// connections as it has come upon, and those that were opened meanwhile, which it may have passed
    /// by.
    #[inline(always)]
    fn turned(&self, source: &Source) -> u64 {
        let (word, found) = (self.tables.read(&source.number), self.tables.read(&source.found));
        let (pass, then) = (self.pass(), word >> 48);
        if then == pass {
            return word;
        }
        // One that no pass has come upon since has none.
        if pass.wrapping_sub(then) & 0xffff != 1 {
            return pass << 48;
        }
        let found = if found >> 48 == then { found & COUNT } else { 0 };
        let there = found + (word & COUNT);
        pass << 48 | there.min(COUNT) << COUNT_BITS
    }

    /// Finds the slot of a client's network, or makes one of a free slot, or of that which was asked
    /// for longest ago.
    #[inline(always)]
    fn source(&self, limits: &Rules, client: &Client) -> Option<&'a Source> {
        let Client { high, low, service, family } = *client;
        let (high, low) = match family {
            4 => (0, low & limits.mask4),
            _ => (high & limits.mask6[0], low & limits.mask6[1]),
        };
        let more = u64::from(service) << 8 | u64::from(family);
        let keys = &self.settings.keys;
        let key = hash::mix(keys, hash::mix(keys, low, more), high) | 1;
        let bucket = self.tables.sources((key >> 32) as u32 & (SOURCE_BUCKETS - 1))?;
        let (mut index, mut best) = (0, 0);
        for (at, slot) in (0..).zip(&bucket.slots) {
            let fit = match self.tables.read(&slot.key) {
                there if there == key => u32::MAX,
                0 => u32::MAX - 1,
                _ => self.now.since(self.tables.read(&slot.rate) as u32 & TIME_MASK) + 1,
            };
            if fit > best {
                (index, best) = (at, fit);
            }
        }
        let slot = bucket.slots.get(index & (SLOTS6 - 1))?;
        let old = self.tables.read(&slot.key);
        if old != key {
            if !self.tables.swap(&slot.key, old, key) {
                return None;
            }
            self.tables.write(&slot.rate, stamped(limits.burst, self.now));
            self.tables.write(&slot.number, self.pass() << 48);
            self.tables.write(&slot.found, 0);
        }
        Some(slot)
    }

    /// Counts a connection that the sweep has come upon for the network of its client, if the
    /// connections of networks are limited. Returns whether it did.
    #[inline(always)]
    pub fn note_source(&self, high: u64, low: u64, value: Value) -> bool {
        if value.is_reply() || is_ending(value.state()) {
            return false;
        }
        let Some(destination) = self.tables.destination(value.destination()) else { return false };
        let service = destination.service;
        let Some(record) = self.tables.service(service) else { return false };
        if record.flags & service_flag::GUARDED == 0 {
            return false;
        }
        let Some(book) = self.tables.book() else { return false };
        let Some(all) = book.line(0) else { return false };
        let all = Rules::of(all);
        let own = own_rules::<T>(book, &all, record);
        let limits = if own.flags & rules_flag::LIMITS != 0 { own } else { all };
        if limits.number == 0 {
            return false;
        }
        let client = Client { high, low, service, family: record.family };
        let Some(source) = self.source(&limits, &client) else { return false };
        self.change(&source.number, |_| self.turned(source));
        let (found, pass) = (self.tables.read(&source.found), self.pass());
        let count = if found >> 48 == pass { found & COUNT } else { 0 };
        self.tables.write(&source.found, pass << 48 | (count + 1).min(COUNT));
        true
    }

    /// Tells the guard that a pass of the sweep has begun.
    #[inline(always)]
    pub fn begin_pass(&self, pass: u64) {
        let last = self.tables.sources(SOURCE_BUCKETS).and_then(|bucket| bucket.slots.first());
        if let Some(slot) = last {
            self.tables.write(&slot.number, pass);
        }
    }
}

/// Returns the rules that a service has of its own.
#[inline(always)]
fn own_rules<T: Tables>(book: &T::Book, all: &Rules, record: &Service) -> Rules {
    if record.access == 0 || record.access >= all.lines {
        return Rules::default();
    }
    book.line(record.access).map_or(Rules::default(), Rules::of)
}

/// How often a lost compare-and-swap is tried again.
const TRIES: u32 = 4;
/// One connection in a bucket.
const ONE: u64 = 1 << 16;
/// Bits of a count in [`Source::number`].
const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const ONE_HELD: u64 = 1 << COUNT_BITS;

#[inline(always)]
const fn held(number: u64) -> u64 {
    number >> COUNT_BITS & COUNT
}

#[inline(always)]
const fn stamped(tokens: u64, now: Time) -> u64 {
    tokens << TIME_BITS | now.0 as u64
}

/// Returns whether a connection in this state is about to be gone, and not counted any more.
#[inline(always)]
const fn is_ending(state: State) -> bool {
    const ENDING: u64 = 1 << State::FIN_WAIT.0
        | 1 << State::TIME_WAIT.0
        | 1 << State::CLOSE.0
        | 1 << State::CLOSE_WAIT.0
        | 1 << State::LAST_ACK.0
        | 1 << State::ASSOCIATION_CLOSED.0;
    ENDING >> (state.0 & 31) & 1 != 0
}
