//! Full NAT: the client's end of a connection is replaced too, by an address and port of a pool, so that
//! servers answer the director wherever their routes lead, and clients may be their neighbours.
//!
//! A connection has two halves in the wide table, as those of services of any port, and each says in one
//! bit that its client's end is replaced. Its `other` end is then the client of its other half: of the
//! request half the pool's address and port, of the reply half the real client's. The virtual end and
//! the server's follow from its destination, so only services with an address and a port of their own
//! have full NAT.
//!
//! A request gets its pool address and port by the hash of its flow, and the next that is free if that
//! is taken, [`TRIES`] times at most: the same client port towards the same server has the same
//! pool port again if it can. Free is what no living reply half has, so each server has all ports of the
//! pool for itself.
//!
//! Packets come here from the stages that find the service but no connection, and answers, which no
//! endpoint names, from [`apart`](crate::apart).

use crate::abi::{
    Destination, POOL_ADDRESSES, Pool, PoolAddress, Row, Scratch, Service, WideSlot,
    destination_flag, endpoint_kind, service_flag,
};
use crate::apart::{count_answer, deltas};
use crate::connection::{Context, Found, Value};
use crate::endpoint;
use crate::frame::{Deltas, Frame, Verdict};
use crate::hash;
use crate::hop;

use crate::forward::{account, does_not_fit};
use crate::ip::{End, Flow, Ip, Packet, Substitute, V4, V6};
use crate::mss;
use crate::reason::Reason;
use crate::refuse::{Complaint, complain, complain_of_length};
use crate::schedule::{DONE, OPENED, THERE};
use crate::special::{self, IN_PLACE};
use crate::stage::Stage;
use crate::state::{self, Seen};
use crate::tables::{Step, Tables, Time};
use crate::template::{CONTROLS, ID};
use crate::wide::{self, Key, kind, ports_of, sought, words_of};

/// How many places of the pool are tried for a new connection. With 95 of 100 ports of the pool in use
/// towards a server, one connection in 700 finds none.
pub const TRIES: u32 = 128;

/// Nothing stands against a search for a place.
const READY: u32 = DONE;

/// What takes the places of both ends of a packet.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub(crate) struct Ends {
    /// Source address, as two words.
    pub(crate) source: (u64, u64),
    /// Destination address.
    pub(crate) target: (u64, u64),
    /// Source and destination port.
    pub(crate) ports: (u16, u16),
}

/// Carries a packet of a service with full NAT, or an answer to one.
#[inline(always)]
pub fn carry<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if let Some(service) = context.service_of(&packet) {
        return request(context, frame, &packet, service);
    }
    match context.find_wide_live(&Key::reply(&packet)) {
        Some(Found { slot, value }) if value.is_substituted() => {
            answer(context, frame, &packet, slot, value)
        }
        _ => Verdict::Pass(Reason::NoConnection),
    }
}

/// A packet from a client.
#[inline(always)]
fn request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    service: u32,
) -> Verdict {
    let found = context.find_wide_live(&Key::request(packet));
    let Some(Found { slot, value }) = found else {
        if state::starts::<true>(packet.protocol, packet.flags) {
            return context.leave(packet, service, Stage::full::<A>());
        }
        return Verdict::Pass(Reason::NoConnection);
    };
    if packet.ttl <= 1 {
        return complain(context, frame, packet, Complaint::TimeExceeded, Reason::Expired);
    }
    if context.is_forsaken::<true>(packet.protocol, packet.flags, value) {
        return context.leave(packet, service, Stage::full::<A>());
    }
    if !value.is_substituted() {
        return Verdict::Next(Stage::apart::<A>());
    }
    let track = || context.track_wide::<true>(slot, value, packet.protocol, packet.flags);
    let too_big = |frame: &mut F, mtu| complain_of_length(context, frame, packet, mtu);
    deliver(context, frame, packet, &Found { slot, value }, track, too_big)
}

/// Sends a packet to its server; `track` notes it once the way is known and returns whether its connection is
/// still there, `too_big` is told what the way
/// takes if the packet is longer.
#[inline(always)]
pub(crate) fn deliver<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, WideSlot>,
    track: impl FnOnce() -> bool,
    too_big: impl FnOnce(&mut F, u32) -> Verdict,
) -> Verdict {
    let (destination, row) = match context.destination(found.value.destination()) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    // A server that has become this host gets nothing: it would answer itself.
    let way = match context.way_to_destination(frame, row, destination) {
        Ok(way) => way,
        Err(Verdict::Drop(Reason::Unreachable)) => return Verdict::Next(Stage::lost::<A>()),
        Err(verdict) => return verdict,
    };
    if let Some(mtu) = does_not_fit(frame, packet, 0, &way) {
        return too_big(frame, mtu);
    }
    // Read before: as long as the half is there, its place of the pool is its own.
    let ends = context.to_server(found.slot, destination);
    if !track() {
        return Verdict::Drop(Reason::Busy);
    }
    if exchange(frame, packet, &ends) == 0 {
        return Verdict::Drop(Reason::Malformed);
    }
    account(frame, packet, row, &way)
}

/// A packet from a server.
#[inline(always)]
fn answer<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    slot: &WideSlot,
    value: Value,
) -> Verdict {
    // The stack would answer in the place of the pool's address, which is its own.
    if packet.ttl <= 1 {
        return complain(context, frame, packet, Complaint::TimeExceeded, Reason::Expired);
    }
    let track = |frame: &mut F| {
        mss::limit(context, frame, packet)?;
        context.track_wide_reply::<true>(slot, packet.protocol, packet.flags);
        Ok(())
    };
    let too_big = |frame: &mut F, mtu| complain_of_length(context, frame, packet, mtu);
    give_back(context, frame, packet, &Found { slot, value }, track, too_big)
}

/// Sends a packet to its client, as [`deliver`] to its server.
#[inline(always)]
pub(crate) fn give_back<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, WideSlot>,
    track: impl FnOnce(&mut F) -> Result<(), Verdict>,
    too_big: impl FnOnce(&mut F, u32) -> Verdict,
) -> Verdict {
    let (destination, row): (&Destination, &Row) =
        match context.destination(found.value.destination()) {
            Ok(both) => both,
            Err(reason) => return Verdict::Drop(reason),
        };
    let Some(service) = context.tables.service(destination.service) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    let ends = context.to_client(found.slot, service);
    let (high, low) = ends.target;
    let way = match context.way_to_client(frame, A::from_words(high, low)) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    if let Some(mtu) = does_not_fit(frame, packet, 0, &way) {
        return too_big(frame, mtu);
    }
    if let Err(verdict) = track(frame) {
        return verdict;
    }
    if exchange(frame, packet, &ends) == 0 {
        return Verdict::Drop(Reason::Malformed);
    }
    count_answer(row, packet.length);
    hop::send(frame, &way)
}

/// Replaces both ends of a packet and lowers its time to live. Returns 0 if that cannot be done.
#[inline(never)]
fn exchange<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, by: &Ends) -> u32 {
    let Packet { source, target, source_port, target_port, protocol, .. } = *packet;
    let (port, peer_port) = by.ports;
    let address = A::from_words(by.target.0, by.target.1).octets();
    let by_target = deltas(target, target_port, &address, peer_port);
    let to = substitute(End::Target, &address, peer_port, by_target);
    if A::translate::<F, true>(frame, protocol, &to).is_none() {
        return 0;
    }
    let address = A::from_words(by.source.0, by.source.1).octets();
    let by_source = deltas(source, source_port, &address, port);
    let from = substitute(End::Source, &address, port, by_source);
    u32::from(A::readdress(frame, protocol, &from).is_some())
}

#[inline(always)]
pub(crate) fn substitute(
    end: End,
    address: &[u8; 16],
    port: u16,
    deltas: Deltas,
) -> Substitute<'_> {
    Substitute { end, address, port: port.to_be_bytes(), deltas }
}

/// Finds a place of the pool for a new connection, by what the stages before have left. It is taken by the
/// reply half.
#[inline(always)]
pub fn lease<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, _: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let mut lease = Lease { value: 0, hash: 0, now: 0, done: 0 };
    let mut result = context.clear_way::<A>(scratch);
    if result == READY {
        result = context.begin_lease::<A>(scratch, &mut lease);
    }
    if result == READY {
        context.tables.repeat(TRIES, &mut lease);
        if context.tables.forget(lease.done) != 0 {
            return Verdict::Next(Stage::enter::<A>());
        }
        result = Reason::NoPort as u32;
    }
    refuse::<A, T>(context, scratch, result)
}

/// Makes the request half of a new connection whose reply half is there.
#[inline(always)]
pub fn enter<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, _: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let result = context.enter_full::<A>(scratch);
    refuse::<A, T>(context, scratch, result)
}

/// Says what follows when entries have been made, or not.
#[inline(always)]
fn refuse<A: Ip, T: Tables>(context: &Context<'_, T>, scratch: &Scratch, result: u32) -> Verdict {
    Verdict::unpack(conclude::<A, T>(context, scratch, result))
}

#[inline(never)]
fn conclude<A: Ip, T: Tables>(context: &Context<'_, T>, scratch: &Scratch, result: u32) -> u64 {
    let packet = special::recall::<A, T>(context, scratch);
    let chosen = context.tables.read(&scratch.chosen) as u32;
    special::conclude(context, scratch, &packet, chosen, result).pack()
}

/// A search for a place of the pool. All else that it needs stands in the map `scratch`.
#[repr(align(8))]
struct Lease {
    /// The reply half's value.
    value: u64,
    /// The hash of the flow.
    hash: u64,
    /// Coarse time.
    now: u64,
    /// Whether a place was found.
    done: u64,
}

impl Step for Lease {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(settings) = tables.settings() else { return true };
        let Some(scratch) = tables.scratch(tables.cpu()) else { return true };
        let Some(to) = tables.destination(Value(self.value).destination()) else { return true };
        let Some(pool) = tables.pool(u32::from(to.family != V4::FAMILY)) else { return true };
        let Some((address, port)) = place(pool, self.hash, index) else { return true };
        let [high, low] = *address;
        tables.write(&scratch.lease[0], high);
        tables.write(&scratch.lease[1], low);
        tables.write(&scratch.lease[2], port.into());
        let context = Context { tables, settings, now: Time(self.now as u32) };
        self.done = context.take_place(scratch, to, self.value).into();
        self.done != 0
    }
}

/// Returns the place of the pool that is tried at a turn: every address at one port, then at the next.
/// The step from port to port is odd, so that a range of 2^n ports is gone through whole.
#[inline(always)]
fn place(pool: &Pool, hash: u64, turn: u32) -> Option<(&[u64; 2], u16)> {
    let length = pool.length;
    let index = (hash as u32).wrapping_add(turn).checked_rem(length)?;
    let PoolAddress { address, first, last, .. } =
        pool.addresses.get((index & (POOL_ADDRESSES - 1)) as usize)?;
    let round = turn.checked_div(length)?;
    let step = (hash >> 24) as u32 & 0xff | 1;
    let ports = u32::from(last.wrapping_sub(*first)) + 1;
    let at = ((hash >> 40) as u32).wrapping_add(round.wrapping_mul(step)).checked_rem(ports)?;
    Some((address, first.wrapping_add(at as u16)))
}

impl<T: Tables> Context<'_, T> {
    /// Returns whether a service has, or had, destinations of full NAT.
    #[inline(always)]
    pub(crate) fn has_full_nat(&self, service: u32) -> bool {
        self.tables.service(service).is_some_and(|service| service.flags & service_flag::FULL != 0)
    }

    /// Returns what takes the places of a request's ends.
    #[inline(always)]
    pub(crate) fn to_server(&self, slot: &WideSlot, to: &Destination) -> Ends {
        let [high, low] = &slot.other;
        let word = self.tables.read(&slot.key);
        Ends {
            source: (self.tables.read(high), self.tables.read(low)),
            target: words_of(wide::family_of(word), &to.address),
            ports: (ports_of(word).2, u16::from_be_bytes(to.port)),
        }
    }

    /// Returns what takes the places of an answer's ends.
    #[inline(always)]
    pub(crate) fn to_client(&self, slot: &WideSlot, service: &Service) -> Ends {
        let [high, low] = &slot.other;
        let word = self.tables.read(&slot.key);
        Ends {
            source: words_of(wide::family_of(word), &service.address),
            target: (self.tables.read(high), self.tables.read(low)),
            ports: (u16::from_be_bytes(service.port), ports_of(word).2),
        }
    }

    /// Removes what is over of a connection, before a place is looked for: it may be its own. Returns
    /// [`READY`] unless there is one that stays.
    #[inline(never)]
    fn clear_way<A: Ip>(&self, scratch: &Scratch) -> u32 {
        let packet = special::recall::<A, T>(self, scratch);
        let key = Key::request(&packet);
        let Some(lock) = self.lock_wide(&key, 0) else { return Reason::Busy as u32 };
        let old = self.tables.make_way_wide(&key, packet.flags);
        self.unlock(lock);
        if old == IN_PLACE {
            return THERE;
        }
        self.tables.write(&scratch.owed, old);
        READY
    }

    /// Fills in what the search for a place needs. Returns [`READY`] or the number of a reason.
    #[inline(never)]
    fn begin_lease<A: Ip>(&self, scratch: &Scratch, lease: &mut Lease) -> u32 {
        let packet = special::recall::<A, T>(self, scratch);
        let value = self.new_full(&packet, scratch);
        let Some(to) = self.tables.destination(value.destination()) else {
            return Reason::Inconsistent as u32;
        };
        let server = A::from_octets(&to.address);
        let flow =
            Flow { client: packet.source, peer: server, port: packet.source_port, peer_port: 0 };
        let keys = &self.settings.keys;
        lease.hash = hash::mix(keys, A::hash_flow(keys, &flow), packet.protocol.into());
        lease.value = value.reply(0).substituted().0;
        lease.now = self.now.0.into();
        READY
    }

    /// Returns the value of the request half of a new connection.
    #[inline(always)]
    fn new_full<A: Ip>(&self, packet: &Packet<A>, scratch: &Scratch) -> Value {
        let chosen = self.tables.read(&scratch.chosen) as u32;
        let state = special::first(Seen::Request, packet.protocol, packet.flags, false);
        let value = Value::new(self.now, state, chosen & ID, 0, true).substituted();
        if chosen & CONTROLS != 0 { value.controlled() } else { value }
    }

    /// Returns the key of the reply half at the place of the pool that was found.
    #[inline(always)]
    fn leased(&self, scratch: &Scratch, to: &Destination) -> Key {
        let read = |word| self.tables.read(word);
        let [high, low, port] = &scratch.lease;
        let protocol = read(&scratch.brief) & 0xff;
        let client_port = read(&scratch.ports) >> 16 & 0xffff;
        Key {
            word: wide::kind_word(kind::REPLY)
                | u64::from(to.family) << 56
                | protocol << 48
                | read(port) << 32
                | u64::from(u16::from_be_bytes(to.port)) << 16
                | client_port,
            client: (read(high), read(low)),
            peer: words_of(to.family, &to.address),
        }
    }

    /// Puts a reply half at a place of the pool. Returns whether that was free.
    #[inline(always)]
    fn take_place(&self, scratch: &Scratch, to: &Destination, value: u64) -> u32 {
        let key = self.leased(scratch, to);
        if self.is_service(&key) {
            return 0;
        }
        let Some(lock) = self.lock_wide(&key, 1) else { return 0 };
        let mut old = Value(0);
        // One that nobody has answered for long lives by its requests.
        let free = match self.find_wide::<{ sought::EXACT }>(&key, &mut old) {
            // Its request half first: of two CPUs that know of it the one that changes that has it.
            Some(slot) => {
                !self.is_young(old)
                    && self.end_twin(slot, old)
                    && self.remove(&Found { slot, value: old })
            }
            None => true,
        };
        let [high, low] = &scratch.source;
        let (high, low) = (self.tables.read(high), self.tables.read(low));
        let done = self.tables.forget(free.into()) != 0
            && self.insert_wide(&key, Value(value), high, low).is_some();
        self.unlock(lock);
        done.into()
    }

    /// Returns whether an answer to a place of the pool would be taken for a request.
    #[inline(always)]
    fn is_service(&self, key: &Key) -> bool {
        if wide::family_of(key.word) == V4::FAMILY {
            self.is_service_of::<V4>(key) != 0
        } else {
            self.is_service_of::<V6>(key) != 0
        }
    }

    #[inline(never)]
    fn is_service_of<A: Ip>(&self, key: &Key) -> u32 {
        let (high, low) = key.client;
        let (kind, protocol) = (endpoint_kind::SERVICE, wide::protocol_of(key.word));
        let (port, ..) = ports_of(key.word);
        let key = endpoint::Key::new(self.settings, kind, A::from_words(high, low), port, protocol);
        key.id(self.tables).unwrap_or(0)
    }

    /// Makes the request half of a connection whose reply half is there, and counts it; or removes that.
    #[inline(never)]
    fn enter_full<A: Ip>(&self, scratch: &Scratch) -> u32 {
        let packet = special::recall::<A, T>(self, scratch);
        let value = self.new_full(&packet, scratch);
        let Some(to) = self.tables.destination(value.destination()) else {
            return Reason::Inconsistent as u32;
        };
        let key = Key::request(&packet);
        let result = match self.lock_wide(&key, 0) {
            Some(lock) => {
                let result = self.insert_full(&key, value, scratch);
                self.unlock(lock);
                result
            }
            None => Reason::Busy as u32,
        };
        if result == OPENED {
            self.count_opened(to, value);
        } else {
            self.give_back_place(scratch, to);
        }
        result
    }

    #[inline(always)]
    fn insert_full(&self, key: &Key, value: Value, scratch: &Scratch) -> u32 {
        let mut other = Value(0);
        if self.find_wide::<{ sought::EXACT }>(key, &mut other).is_some() {
            return THERE;
        }
        let [high, low, port] = &scratch.lease;
        let (high, low) = (self.tables.read(high), self.tables.read(low));
        let key = Key { word: key.word | self.tables.read(port), ..*key };
        match self.insert_wide(&key, value, high, low) {
            Some(_) => OPENED,
            None => Reason::TableFull as u32,
        }
    }

    /// Removes a reply half that has no request half.
    #[inline(never)]
    fn give_back_place(&self, scratch: &Scratch, to: &Destination) -> u32 {
        let mut value = Value(0);
        match self.find_wide::<{ sought::EXACT }>(&self.leased(scratch, to), &mut value) {
            Some(slot) => u32::from(self.remove(&Found { slot, value })),
            None => 0,
        }
    }
}
