//! The connection table: find, insert, keep, remove.
//!
//! A connection is a slot keyed by client address, client port and *owner*: the endpoint id of the
//! service (requests) or of the NAT destination (replies). A NAT connection has both, a *pair*; its
//! request half is the authority: it carries the counts and exists as long as the connection does.
//!
//! Life of a slot: claimed by swapping its value from 0, then its key is published; removed by
//! swapping its value to [`DYING`], then key and value are cleared. A reader that sees the key
//! before and after reading the value has the value of that key. Insertions of one key exclude each
//! other by a lock; nothing else takes one.

use rlvs_wire::tcp;

use crate::abi::{GROUP, LOCKS, OCCUPANCY_WORDS, Settings, Word};
use crate::hash::{self, Places};
use crate::ip::{Flow, Ip, Packet, Slot};
use crate::state::{self, Seen, State};
use crate::tables::{TIME_BITS, TIME_MASK, Tables, Time};

/// Value of a slot that is being cleared.
pub const DYING: u64 = 1 << 62;

const LIVE: u64 = 1 << 63;
const STATE_SHIFT: u32 = TIME_BITS;
const STATE_MASK: u64 = 31;
const REPLY: u64 = 1 << 30;
const PAIRED: u64 = 1 << 31;
const ELSEWHERE: u64 = 1 << 60;
const CONTROLLED: u64 = 1 << 61;
const DESTINATION_SHIFT: u32 = 32;
const DESTINATION_MASK: u64 = (1 << 21) - 1;
const LEARNT: u64 = 1 << 53;
const OWNER_SHIFT: u32 = 54;
const OWNER_MASK: u64 = (1 << 6) - 1;
/// In the wide table, whose entries have no owner: the client's end is replaced.
const SUBSTITUTED: u64 = 1 << OWNER_SHIFT;

/// What a slot says of its connection, in 64 bits: coarse time of the last packet (25), state (5),
/// reply half, paired, destination id (21 from bit 32), learnt from another director, upper bits of the
/// owner (6), in its second place, controlled by a template, live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(pub u64);

impl Value {
    /// Returns the value of a request half.
    #[inline(always)]
    pub fn new(now: Time, state: State, destination: u32, owner: u32, paired: bool) -> Self {
        Self(
            LIVE | u64::from(now.0)
                | u64::from(state.0) << STATE_SHIFT
                | if paired { PAIRED } else { 0 }
                | (u64::from(destination) & DESTINATION_MASK) << DESTINATION_SHIFT
                | (u64::from(owner) >> 16 & OWNER_MASK) << OWNER_SHIFT,
        )
    }
    /// Returns the value of the reply half that belongs to a request half.
    #[inline(always)]
    pub fn reply(self, owner: u32) -> Self {
        // The first datagram that answers a controlled one is told by its state.
        let half = if self.is_controlled() && self.state() == State::UDP {
            self.with_state(State::NONE)
        } else {
            self
        };
        let rest = half.0 & !(OWNER_MASK << OWNER_SHIFT);
        Self(rest | REPLY | (u64::from(owner) >> 16 & OWNER_MASK) << OWNER_SHIFT)
    }
    /// Returns the value of a connection that a template controls.
    #[inline(always)]
    pub fn controlled(self) -> Self {
        Self(self.0 | CONTROLLED)
    }
    /// Returns whether a template controls the connection.
    #[inline(always)]
    pub fn is_controlled(self) -> bool {
        self.0 & CONTROLLED != 0
    }
    /// Returns the value of what another director told of.
    #[inline(always)]
    pub fn learnt(self) -> Self {
        Self(self.0 | LEARNT)
    }
    /// Returns whether another director told of it, and no packet has come since.
    #[inline(always)]
    pub fn is_learnt(self) -> bool {
        self.0 & LEARNT != 0
    }
    /// Returns whether a value leads where another does, and in the same way.
    #[inline(always)]
    pub(crate) fn is_same_way(self, other: Self) -> bool {
        const WAY: u64 = DESTINATION_MASK << DESTINATION_SHIFT | PAIRED;
        (self.0 ^ other.0) & WAY == 0
    }
    /// Returns the value with the time and the state of what is told.
    #[inline(always)]
    pub(crate) fn as_told(self, told: Self) -> Self {
        self.with(Time(told.time()), told.state()).learnt()
    }
    /// Returns the value of a connection of full NAT, in the wide table.
    #[inline(always)]
    pub fn substituted(self) -> Self {
        Self(self.0 | SUBSTITUTED)
    }
    /// Returns whether an entry of the wide table is a connection of full NAT.
    #[inline(always)]
    pub fn is_substituted(self) -> bool {
        self.0 & SUBSTITUTED != 0
    }
    /// Returns whether a connection is there.
    #[inline(always)]
    pub fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }
    /// Returns whether this is the request half of a connection whose handshake is not over.
    #[inline(always)]
    pub fn is_half_open(self) -> bool {
        !self.is_reply() && self.state().is_half_open()
    }
    /// Returns whether this is a reply half.
    #[inline(always)]
    pub fn is_reply(self) -> bool {
        self.0 & REPLY != 0
    }
    /// Returns whether the connection has two halves.
    #[inline(always)]
    pub fn is_paired(self) -> bool {
        self.0 & PAIRED != 0
    }
    /// Returns the coarse time of its last packet.
    #[inline(always)]
    pub fn time(self) -> u32 {
        self.0 as u32 & TIME_MASK
    }
    /// Returns its state.
    #[inline(always)]
    pub fn state(self) -> State {
        State((self.0 >> STATE_SHIFT & STATE_MASK) as u32)
    }
    /// Returns its destination id.
    #[inline(always)]
    pub fn destination(self) -> u32 {
        (self.0 >> DESTINATION_SHIFT & DESTINATION_MASK) as u32
    }
    /// Returns the value with another time and state, which are this director's own.
    #[inline(always)]
    pub fn with(self, now: Time, state: State) -> Self {
        const KEPT: u64 = !(TIME_MASK as u64 | STATE_MASK << STATE_SHIFT | LEARNT);
        Self(self.0 & KEPT | u64::from(now.0) | u64::from(state.0) << STATE_SHIFT)
    }
    /// Returns the value with another state.
    #[inline(always)]
    pub fn with_state(self, state: State) -> Self {
        Self(self.0 & !(STATE_MASK << STATE_SHIFT) | u64::from(state.0) << STATE_SHIFT)
    }
    /// Returns the client port that is in a key word.
    #[inline(always)]
    pub fn port(key: u64) -> u16 {
        (key >> 16) as u16
    }
}

/// The key of one half of a connection, with its places.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub struct Key<A> {
    /// Client address.
    pub client: A,
    /// Client port.
    pub port: u16,
    /// Endpoint id of the service or of the NAT destination.
    pub owner: u32,
    places: Places,
}

/// What a look-up has found, in one word: the value of a slot, but where it has bits of the owner, whom the
/// seeker knows, the index of the slot and whether that is in the second place. 0 for nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sought(pub(crate) u64);

impl Sought {
    /// Added to the index in a second place.
    pub(crate) const SECOND: u64 = 8;
    const INSTEAD: u64 = OWNER_MASK << OWNER_SHIFT;

    #[inline(always)]
    pub(crate) const fn new(value: Value, at: u64) -> Self {
        Self(value.0 & !Self::INSTEAD | at << OWNER_SHIFT)
    }
    #[inline(always)]
    pub(crate) const fn is_nothing(self) -> bool {
        self.0 == 0
    }
    #[inline(always)]
    pub(crate) const fn index(self) -> u64 {
        self.0 >> OWNER_SHIFT & (Self::SECOND - 1)
    }
    #[inline(always)]
    pub(crate) const fn place(self, Places { first, second }: Places) -> u32 {
        let is_second = (self.0 >> OWNER_SHIFT & Self::SECOND != 0) as u32;
        first ^ (first ^ second) & is_second.wrapping_neg()
    }
    #[inline(always)]
    pub(crate) const fn value(self, owner: u32) -> Value {
        let owner = owner as u64 >> 16 & OWNER_MASK;
        Value(self.0 & !Self::INSTEAD | owner << OWNER_SHIFT)
    }
}

/// Where a slot is: its place and its index there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot(u64);

impl Spot {
    const SOME: u64 = 1 << 32;

    /// Packs it into one word, which is not 0.
    #[inline(always)]
    pub(crate) const fn pack(place: u32, index: u64, slots: usize) -> u64 {
        Self::SOME | (place as u64 * slots as u64 + (index & (slots as u64 - 1)))
    }
    /// Unpacks it; 0 is none.
    #[inline(always)]
    pub(crate) const fn unpack(word: u64) -> Option<Self> {
        if word == 0 { None } else { Some(Self(word)) }
    }
    #[inline(always)]
    pub(crate) const fn place(self, slots: usize) -> u32 {
        self.0 as u32 / slots as u32
    }
    #[inline(always)]
    pub(crate) const fn index(self, slots: usize) -> usize {
        self.0 as usize & (slots - 1)
    }
}

impl<A: Ip> Key<A> {
    /// Returns the numbers that make a key: its places, its client in two words, port and owner.
    #[inline(always)]
    pub fn numbers(&self) -> [u64; 4] {
        let Places { first, second } = self.places;
        let (high, low) = self.client.words();
        let ends = u64::from(self.port) << 32 | u64::from(self.owner);
        [u64::from(first) << 32 | u64::from(second), high, low, ends]
    }

    /// Returns the key that such numbers make.
    #[inline(always)]
    pub fn from_numbers([places, high, low, ends]: [u64; 4]) -> Self {
        Self {
            client: A::from_words(high, low),
            port: (ends >> 32) as u16,
            owner: ends as u32,
            places: Places { first: (places >> 32) as u32, second: places as u32 },
        }
    }

    /// Computes where the half of a flow that belongs to `owner` is kept.
    #[inline(always)]
    pub fn new(settings: &Settings, flow: &Flow<A>, owner: u32) -> Self {
        let Flow { client, port, .. } = *flow;
        let places = hash::places(A::hash_flow(&settings.keys, flow), A::mask(settings));
        Self { client, port, owner, places }
    }

    /// Returns a number that is the same for every packet of the flow.
    #[inline(always)]
    pub fn flow(&self) -> u64 {
        u64::from(self.places.first) << 32 | u64::from(self.places.second)
    }

    #[inline(always)]
    fn word(&self) -> u64 {
        let low = self.client.words().1;
        A::Slot::key_word(low, u32::from(self.port) << 16 | self.owner & 0xffff)
    }

    /// Returns 0 if a slot holds this half, anything else if not. Without `EXACT` the owner's upper
    /// bits, which are in the value, are not looked at.
    #[inline(always)]
    fn difference<T: Tables, const EXACT: bool>(
        &self,
        tables: &T,
        slot: &A::Slot,
        word: u64,
    ) -> u64 {
        let (high, low) = self.client.words();
        let foreign = if EXACT { self.foreign(tables.read(slot.value())) } else { 0 };
        (tables.read(slot.key()) ^ word) | slot.address_difference(tables, high, low) | foreign
    }

    /// Returns the value of a slot that held this half. Read once more: whoever cleared the slot meanwhile
    /// cleared the key first.
    #[inline(always)]
    fn confirm<T: Tables>(&self, tables: &T, slot: &A::Slot) -> Option<Value> {
        let value = tables.read(slot.value());
        if self.foreign(value) != 0 || tables.read(slot.key()) != self.word() {
            return None;
        }
        Some(Value(value))
    }

    /// Returns 0 if a value is that of a living half of this key's owner.
    #[inline(always)]
    fn foreign(&self, value: u64) -> u64 {
        const OF_KEY: u64 = LIVE | OWNER_MASK << OWNER_SHIFT;
        let wanted = LIVE | (u64::from(self.owner) >> 16 & OWNER_MASK) << OWNER_SHIFT;
        (value ^ wanted) & OF_KEY
    }
}

/// A connection that was found: its slot and what it said.
#[derive(Debug)]
pub struct Found<'a, S> {
    /// The slot.
    pub slot: &'a S,
    /// Its value when it was read.
    pub value: Value,
}

/// The tables with what a packet needs of them all along.
#[derive(Clone, Copy)]
pub struct Context<'a, T> {
    /// The maps.
    pub tables: &'a T,
    /// The settings.
    pub settings: &'a Settings,
    /// The time.
    pub now: Time,
}

impl<'a, T: Tables> Context<'a, T> {
    /// Returns what a function needs that is handed numbers only.
    #[inline(always)]
    pub fn of(tables: &'a T) -> Option<Self> {
        let settings = tables.settings()?;
        Some(Self { tables, settings, now: Time::now(tables, settings) })
    }

    /// Finds a half, expired or not.
    #[inline(always)]
    pub fn find<A: Ip>(&self, key: &Key<A>) -> Option<Found<'a, A::Slot>> {
        let mut value = Value(0);
        let slot = self.find_out_of_line(key, &mut value)?;
        Some(Found { slot, value })
    }

    // BPF functions return one word that must not be a pointer to the stack, which the register of
    // a function without a result may hold by accident: so each out-of-line one returns something.
    #[inline(never)]
    fn find_out_of_line<A: Ip>(&self, key: &Key<A>, value: &mut Value) -> Option<&'a A::Slot> {
        let found = self.find_here(key)?;
        *value = found.value;
        Some(found.slot)
    }

    /// As [`find`](Self::find), in line, where there is more stack in the caller than below it.
    #[inline(always)]
    pub fn find_here<A: Ip>(&self, key: &Key<A>) -> Option<Found<'a, A::Slot>> {
        let sought = Sought(A::seek(self.tables, key));
        if sought.is_nothing() {
            return None;
        }
        let slots = A::connections(self.tables, sought.place(key.places))?;
        let slot = slots.get(sought.index() as usize & (A::SLOTS - 1))?;
        Some(Found { slot, value: sought.value(key.owner) })
    }

    /// Returns whether a half may be in one of its places, by the first words of keys alone: a third of the
    /// instructions of a look-up, and no call.
    #[inline(always)]
    pub(crate) fn may_be_there<A: Ip>(&self, key: &Key<A>) -> bool {
        let word = key.word();
        let Some(slots) = A::connections(self.tables, key.places.first) else { return false };
        let mut differ = 1;
        for slot in slots {
            differ &= self.tables.is_set(self.tables.read(slot.key()) ^ word);
        }
        differ == 0 || !none_elsewhere(self.tables)
    }

    /// Returns the slot at a spot.
    #[inline(always)]
    fn slot<A: Ip>(&self, spot: u64) -> Option<&'a A::Slot> {
        let spot = Spot::unpack(spot)?;
        A::connections(self.tables, spot.place(A::SLOTS))?.get(spot.index(A::SLOTS))
    }

    /// Finds a half quickly. `None` leaves the question open: [`find_live`](Self::find_live) answers.
    #[inline(always)]
    pub fn glance<A: Ip>(&self, key: &Key<A>) -> Option<Found<'a, A::Slot>> {
        match self.glance_at(key, key.places.first) {
            Some(found) => Some(found),
            None if none_elsewhere(self.tables) => None,
            None => self.glance_at(key, key.places.second),
        }
    }

    /// Searches a place one cache line after the other.
    #[inline(always)]
    fn glance_at<A: Ip>(&self, key: &Key<A>, place: u32) -> Option<Found<'a, A::Slot>> {
        let slots = A::connections(self.tables, place)?;
        let (near, far) = slots.split_at_checked(A::SLOTS / 2)?;
        match self.glance_in(key, near) {
            Some(found) => Some(found),
            None => self.glance_in(key, far),
        }
    }

    /// Searches slots without a branch.
    #[inline(always)]
    fn glance_in<A: Ip>(&self, key: &Key<A>, slots: &'a [A::Slot]) -> Option<Found<'a, A::Slot>> {
        let index = index_in::<A, T, false>(self.tables, key, slots)?;
        let slot = slots.get(index as usize & (A::SLOTS - 1))?;
        let value = key.confirm(self.tables, slot)?;
        Some(Found { slot, value })
    }

    /// Finds a half of a connection that has not expired; an expired one is removed, unless a template
    /// controls it.
    #[inline(always)]
    pub fn find_live<A: Ip>(&self, key: &Key<A>) -> Option<Found<'a, A::Slot>> {
        let found = self.find(key)?;
        let Found { slot, value } = found;
        if self.is_young(value) || !self.retire::<A, false>(slot, value) {
            Some(found)
        } else {
            None
        }
    }

    /// Returns whether this half's own time has not run out.
    #[inline(always)]
    pub fn is_young(&self, value: Value) -> bool {
        let timeout = self.settings.timeouts[value.state().0 as usize & 31];
        self.now.since(value.time()) <= timeout
    }

    /// Returns the key of a half's other half, if it has one.
    #[inline(always)]
    pub(crate) fn other_half<A: Ip>(&self, client: A, port: u16, value: Value) -> Option<Key<A>> {
        if !value.is_paired() {
            return None;
        }
        let destination = self.tables.destination(value.destination())?;
        let (owner, peer, peer_port) = if value.is_reply() {
            let service = self.tables.service(destination.service)?;
            (destination.service, &service.address, service.port)
        } else {
            (destination.reply, &destination.address, destination.port)
        };
        let (peer, peer_port) = (A::from_octets(peer), u16::from_be_bytes(peer_port));
        Some(Key::new(self.settings, &Flow { client, peer, port, peer_port }, owner))
    }

    /// Removes a connection one of whose halves has run out, unless its other half is younger.
    /// Returns whether it is gone, or as good as gone: without `ALL` one that a template controls is
    /// left to the sweep, and to the stage that may open it anew.
    #[inline(never)]
    pub fn retire<A: Ip, const ALL: bool>(&self, slot: &A::Slot, value: Value) -> bool {
        let found = Found { slot, value };
        let word = self.tables.read(slot.key());
        if word == 0 {
            return false;
        }
        let (high, low) = slot.address(self.tables, word);
        let client = A::from_words(high, low);
        let Some(key) = self.other_half(client, Value::port(word), value) else {
            return self.remove_whole::<A::Slot, ALL>(&found);
        };
        let Some(other) = self.find_here(&key) else {
            return self.remove_whole::<A::Slot, ALL>(&found);
        };
        if other.value.destination() != value.destination() {
            return self.remove_whole::<A::Slot, ALL>(&found);
        }
        if self.is_young(other.value) {
            return false;
        }
        let (request, reply) = if value.is_reply() { (&other, &found) } else { (&found, &other) };
        let removed = self.remove_whole::<A::Slot, ALL>(request);
        if removed && (ALL || !value.is_controlled()) {
            self.remove(reply);
        }
        removed
    }

    #[inline(always)]
    fn remove_whole<S: Slot, const ALL: bool>(&self, found: &Found<'_, S>) -> bool {
        if ALL {
            return self.remove_counted(found);
        }
        found.value.is_controlled() || self.remove_uncontrolled(found)
    }

    /// Removes a connection by its request half, which has this key, whatever its age. Returns whether this call did it.
    #[inline(never)]
    pub fn discard<A: Ip, const ALL: bool>(
        &self,
        key: &Key<A>,
        slot: &A::Slot,
        value: Value,
    ) -> bool {
        let removed = self.remove_whole::<A::Slot, ALL>(&Found { slot, value });
        if removed
            && (ALL || !value.is_controlled())
            && let Some(key) = self.other_half(key.client, key.port, value)
            && let Some(reply) = self.find_here(&key)
            && reply.value.destination() == value.destination()
        {
            self.remove(&reply);
        }
        removed
    }

    /// Removes a half-open connection by its request half, whatever its age, as `ip_vs_random_dropentry()`
    /// does. Returns whether this call did it.
    #[inline(never)]
    pub fn give_way<A: Ip>(&self, slot: &A::Slot, value: Value) -> bool {
        let word = self.tables.read(slot.key());
        if word == 0 {
            return false;
        }
        let (high, low) = slot.address(self.tables, word);
        let removed = self.remove_counted(&Found { slot, value });
        if removed
            && let Some(key) = self.other_half(A::from_words(high, low), Value::port(word), value)
            && let Some(reply) = self.find_here(&key)
            && reply.value.destination() == value.destination()
        {
            self.remove(&reply);
        }
        removed
    }

    /// Removes one half, and its connection from the counts and from its template if it is the request
    /// half. Returns whether this call did it.
    #[inline(always)]
    pub fn remove_counted<S: Slot>(&self, found: &Found<'_, S>) -> bool {
        let (high, low) = found.slot.address(self.tables, self.tables.read(found.slot.key()));
        let removed = self.remove_uncontrolled(found);
        if removed && !found.value.is_reply() && found.value.is_controlled() {
            self.tables.release_template(high, low, found.value.0);
        }
        removed
    }

    /// Removes one half, and its connection from the counts if it is the request half, which no
    /// template controls. Returns whether this call did it.
    #[inline(always)]
    pub fn remove_uncontrolled<S: Slot>(&self, found: &Found<'_, S>) -> bool {
        let removed = self.remove(found);
        if removed
            && !found.value.is_reply()
            && let Some(counts) = self.tables.counts(found.value.destination())
        {
            let one = found.value.state().one();
            self.tables.add(&counts.connections, one.wrapping_neg());
        }
        removed
    }

    /// Clears a slot if it still says what was found.
    #[inline(always)]
    pub fn remove<S: Slot>(&self, found: &Found<'_, S>) -> bool {
        if !self.tables.swap(found.slot.value(), found.value.0, DYING) {
            return false;
        }
        self.tables.write(found.slot.key(), 0);
        count_elsewhere(self.tables, found.value.0, u64::MAX);
        self.tables.swap(found.slot.value(), DYING, 0)
    }

    /// Puts a half into a free slot and returns its spot, for `take_back`; 0 if there
    /// is none. The caller holds the lock of the key and has not found it.
    #[inline(always)]
    pub fn insert<A: Ip>(&self, key: &Key<A>, value: Value) -> u64 {
        A::put(self.tables, key, value)
    }

    /// Removes a half that has just been inserted at a spot.
    #[inline(always)]
    pub(crate) fn take_back<A: Ip>(&self, spot: u64) -> bool {
        let Some(slot) = self.slot::<A>(spot) else { return false };
        self.remove(&Found { slot, value: Value(self.tables.read(slot.value())) })
    }

    /// Returns whether neither place of a key has a free slot.
    #[inline(always)]
    pub fn is_full<A: Ip>(&self, key: &Key<A>) -> bool {
        vacancy::<A, T>(self.tables, key.places.first) >= A::SLOTS as u64
            && vacancy::<A, T>(self.tables, key.places.second) >= A::SLOTS as u64
    }

    /// Takes the lock of a half; `kind` 0 for request halves, 1 for reply halves, taken in that
    /// order. `None` if another CPU does not let go.
    #[inline(always)]
    pub fn lock<A: Ip>(&self, key: &Key<A>, kind: u32) -> Option<Lock<'a>> {
        self.lock_at(kind * LOCKS + (key.places.first & (LOCKS - 1)))
    }

    #[inline(always)]
    pub(crate) fn lock_at(&self, index: u32) -> Option<Lock<'a>> {
        let word = self.tables.lock(index)?;
        let free = self.tables.swap(word, 0, 1) || self.tables.wait_to_swap(word, 0, 1);
        if free { Some(Lock(word)) } else { None }
    }

    /// Takes a lock if nobody has it.
    #[inline(always)]
    pub(crate) fn try_lock_at(&self, index: u32) -> Option<Lock<'a>> {
        let word = self.tables.lock(index)?;
        if self.tables.swap(word, 0, 1) { Some(Lock(word)) } else { None }
    }

    /// Gives a lock back. A store is enough: whoever takes the lock sees what was stored before.
    #[inline(always)]
    pub fn unlock(&self, lock: Lock<'_>) {
        self.tables.write(lock.0, 0);
    }

    /// Notes the time of a packet that leaves the state as it is.
    #[inline(always)]
    pub fn touch<S: Slot>(&self, found: &Found<'_, S>) {
        let Found { slot, value } = *found;
        if value.time() != self.now.0 {
            self.tables.swap(slot.value(), value.0, value.with(self.now, value.state()).0);
        }
    }

    /// As [`touch`](Self::touch), and returns whether the half is still there.
    #[inline(always)]
    pub(crate) fn touch_there<S: Slot>(&self, found: &Found<'_, S>) -> bool {
        let Found { slot, value } = *found;
        let new = value.with(self.now, value.state());
        if value.time() == self.now.0 || self.tables.swap(slot.value(), value.0, new.0) {
            return true;
        }
        // Another CPU has noted a packet, or removed it.
        let again = Value(self.tables.read(slot.value()));
        again.is_live() && again.destination() == value.destination()
    }

    /// Returns whether a packet finds its connection in the middle of its life and leaves it there. A
    /// SYN never does: it may begin another one.
    #[inline(always)]
    pub fn is_steady(&self, value: Value, seen: Seen, protocol: u8, flags: u8) -> bool {
        flags & tcp::SYN == 0
            && self.is_young(value)
            && value.state() == state::next::<true>(value.state(), seen, protocol, flags)
    }

    /// Notes a request: its time, and what it does to the connection's state.
    #[inline(always)]
    pub fn track_request<A: Ip, const PORTS: bool>(
        &self,
        packet: &Packet<A>,
        found: &Found<'_, A::Slot>,
    ) {
        let Found { slot, value } = *found;
        let state = state::next::<PORTS>(value.state(), seen(value), packet.protocol, packet.flags);
        if value.state() != state {
            self.change_by_request::<A, PORTS>(packet, slot, value);
        } else {
            self.touch(found);
        }
    }

    #[inline(never)]
    fn change_by_request<A: Ip, const PORTS: bool>(
        &self,
        packet: &Packet<A>,
        slot: &A::Slot,
        value: Value,
    ) -> bool {
        let Packet { protocol, flags, .. } = *packet;
        let found = Found { slot, value };
        let Some(state) =
            self.advance::<A::Slot, PORTS>(&found, seen(value), protocol, flags, true)
        else {
            return false;
        };
        self.mirror(packet, value, state);
        true
    }

    /// Notes a reply: its time, and what it does to the connection's state.
    #[inline(always)]
    pub fn track_reply<A: Ip, const PORTS: bool>(
        &self,
        packet: &Packet<A>,
        found: &Found<'_, A::Slot>,
    ) {
        let Found { slot, value } = *found;
        let state = state::next::<PORTS>(value.state(), Seen::Reply, packet.protocol, packet.flags);
        if value.state() != state || self.is_strict_about::<PORTS>(packet.flags) {
            self.change_by_reply::<A, PORTS>(packet, slot, value);
        } else {
            self.touch(found);
        }
    }

    #[inline(never)]
    fn change_by_reply<A: Ip, const PORTS: bool>(
        &self,
        packet: &Packet<A>,
        slot: &A::Slot,
        value: Value,
    ) -> bool {
        let Packet { protocol, flags, .. } = *packet;
        let mut state = self.next::<PORTS>(value.state(), Seen::Reply, protocol, flags);
        if let Some(key) = self.other_half(packet.target, packet.target_port, value)
            && let Some(request) = self.find_here(&key)
            && let Some(agreed) =
                self.advance::<A::Slot, PORTS>(&request, Seen::Reply, protocol, flags, false)
        {
            state = agreed;
        }
        self.tables.swap(slot.value(), value.0, value.with(self.now, state).0)
    }

    /// Moves a request half to the state that follows, and its connection between the counts.
    /// Returns the new state, or `None` if the half is gone.
    #[inline(always)]
    pub(crate) fn advance<S: Slot, const PORTS: bool>(
        &self,
        found: &Found<'_, S>,
        seen: Seen,
        protocol: u8,
        flags: u8,
        touch: bool,
    ) -> Option<State> {
        let mut value = found.value;
        for _ in 0..TRIES {
            let state = self.next::<PORTS>(value.state(), seen, protocol, flags);
            let new = if touch { value.with(self.now, state) } else { value.with_state(state) };
            if self.tables.swap(found.slot.value(), value.0, new.0) {
                self.recount(value, state);
                return Some(state);
            }
            let again = Value(self.tables.read(found.slot.value()));
            if !again.is_live() || again.destination() != value.destination() {
                return None;
            }
            value = again;
        }
        None
    }

    /// Returns whether a server's packet may change a state that it usually leaves.
    #[inline(always)]
    pub(crate) fn is_strict_about<const PORTS: bool>(&self, flags: u8) -> bool {
        PORTS && self.settings.strict != 0 && flags & tcp::SYN != 0
    }

    /// Returns the state after a packet by the states in force: [`state::next`], or the stricter ones.
    #[inline(always)]
    pub(crate) fn next<const PORTS: bool>(
        &self,
        state: State,
        seen: Seen,
        protocol: u8,
        flags: u8,
    ) -> State {
        let strict = PORTS && self.settings.strict != 0;
        state::next_by::<PORTS>(state, seen, protocol, flags, strict)
    }

    #[inline(always)]
    pub(crate) fn recount(&self, before: Value, after: State) {
        const LEAVES: u64 = (1 << 32) - 1;
        // One that becomes active does the opposite.
        let left = before.state().activity().wrapping_sub(after.activity());
        let change = LEAVES.wrapping_mul(left);
        if change != 0
            && let Some(counts) = self.tables.counts(before.destination())
        {
            self.tables.add(&counts.connections, change);
        }
    }

    /// Gives a request half's new state to its reply half.
    #[inline(always)]
    fn mirror<A: Ip>(&self, packet: &Packet<A>, value: Value, state: State) {
        if let Some(key) = self.other_half(packet.source, packet.source_port, value)
            && let Some(mut reply) = self.find_here(&key)
        {
            for _ in 0..TRIES {
                let new = reply.value.with_state(state);
                if self.tables.swap(reply.slot.value(), reply.value.0, new.0) {
                    return;
                }
                reply.value = Value(self.tables.read(reply.slot.value()));
                if !reply.value.is_live() {
                    return;
                }
            }
        }
    }
}

/// Returns the number of slots in use that are in their second place.
#[inline(always)]
fn elsewhere<T: Tables>(tables: &T) -> Option<&Word> {
    Some(&tables.schedule(0)?.position)
}

/// Returns whether nothing at all is in its second place, as in a table that is not very full: then a
/// new connection need not look there.
#[inline(always)]
fn none_elsewhere<T: Tables>(tables: &T) -> bool {
    elsewhere(tables).is_some_and(|count| tables.read(count) == 0)
}

/// Looks for a half and returns a `Sought`.
#[inline(always)]
pub fn seek<A: Ip, T: Tables>(tables: &T, key: &Key<A>) -> u64 {
    let Places { first, second } = key.places;
    match seek_at(tables, key, first, 0) {
        0 if none_elsewhere(tables) => 0,
        0 => seek_at(tables, key, second, Sought::SECOND),
        sought => sought,
    }
}

#[inline(always)]
fn seek_at<A: Ip, T: Tables>(tables: &T, key: &Key<A>, place: u32, which: u64) -> u64 {
    let Some(slots) = A::connections(tables, place) else { return 0 };
    let Some(index) = index_in::<A, T, true>(tables, key, slots) else { return 0 };
    let Some(slot) = slots.get(index as usize & (A::SLOTS - 1)) else { return 0 };
    match key.confirm(tables, slot) {
        Some(value) => Sought::new(value, which | index).0,
        None => 0,
    }
}

/// Searches slots without a branch.
#[inline(always)]
fn index_in<A: Ip, T: Tables, const EXACT: bool>(
    tables: &T,
    key: &Key<A>,
    slots: &[A::Slot],
) -> Option<u64> {
    let word = key.word();
    let (mut matches, mut index) = (0, 0);
    for (at, slot) in (0..).zip(slots) {
        let difference = key.difference::<T, EXACT>(tables, slot, word);
        let same = 1 ^ tables.is_set(difference);
        matches |= same;
        index |= same * at;
    }
    if matches == 0 { None } else { Some(index) }
}

/// Puts a half into a free slot: in its first place, so that one cache line serves its packets, unless
/// that is all but full and the second has more room. Returns its spot, or 0.
#[inline(always)]
pub fn put<A: Ip, T: Tables>(tables: &T, key: &Key<A>, value: Value) -> u64 {
    let Places { first, second } = key.places;
    let (mut place, mut index) = (first, vacancy::<A, T>(tables, first));
    if index >= A::SLOTS as u64 * 3 / 4 {
        let in_second = vacancy::<A, T>(tables, second);
        if in_second < index {
            (place, index) = (second, in_second);
        }
    }
    let Some(slots) = A::connections(tables, place) else { return 0 };
    let mark = if place == first { 0 } else { ELSEWHERE };
    // Counted before it is there, so that nobody who could find it passes by its second place.
    // A first place leaves the count alone, which every CPU reads.
    count_elsewhere(tables, mark, 1);
    for _ in 0..TRIES {
        if index >= A::SLOTS as u64 {
            break;
        }
        let Some(slot) = slots.get(index as usize & (A::SLOTS - 1)) else { break };
        // Another CPU may be faster to this slot.
        if tables.swap(slot.value(), 0, value.0 | mark) {
            let (high, low) = key.client.words();
            slot.set_address(tables, high, low);
            // The sweep looks at the value, which was stored before the group's bit is read.
            tables.write(slot.key(), key.word());
            occupy::<A, T>(tables, place);
            return Spot::pack(place, index, A::SLOTS);
        }
        index = vacancy::<A, T>(tables, place);
    }
    count_elsewhere(tables, mark, u64::MAX);
    0
}

/// Adds to the number of slots in their second place, for one that is marked as such.
#[inline(always)]
fn count_elsewhere<T: Tables>(tables: &T, mark: u64, by: u64) {
    if mark & ELSEWHERE != 0
        && let Some(count) = elsewhere(tables)
    {
        tables.add(count, by);
    }
}

/// Returns the index of the first free slot at a place, or the number of slots.
#[inline(always)]
fn vacancy<A: Ip, T: Tables>(tables: &T, place: u32) -> u64 {
    let Some(slots) = A::connections(tables, place) else { return A::SLOTS as u64 };
    // As long as every slot so far is taken, `taken` is 1 and the index goes up.
    let (mut taken, mut index) = (1, 0);
    for slot in slots {
        taken &= tables.is_set(tables.read(slot.value()));
        index += taken;
    }
    index
}

/// Tells the sweep that there is something in this place's group.
#[inline(always)]
fn occupy<A: Ip, T: Tables>(tables: &T, place: u32) {
    let (word, bit) = occupancy_of::<A>(place / GROUP);
    if let Some(word) = tables.occupancy(word)
        && tables.read(word) & bit == 0
    {
        tables.set_bits(word, bit);
    }
}

/// A lock that is held.
#[must_use]
pub struct Lock<'a>(&'a Word);

/// How often a lost compare-and-swap is tried again: each loss is another CPU's success on the
/// same connection at the same instant.
const TRIES: u32 = 2;

/// Returns how a request counts for the states of a connection.
#[inline(always)]
pub fn seen(value: Value) -> Seen {
    if value.is_paired() { Seen::Request } else { Seen::RequestOnly }
}

/// Returns the word and bit of the occupancy map for a group of this version's table.
#[inline(always)]
pub fn occupancy_of<A: Ip>(group: u32) -> (u32, u64) {
    let base = if A::FAMILY == 4 { 0 } else { OCCUPANCY_WORDS };
    (base + group / 64, 1 << (group % 64))
}
