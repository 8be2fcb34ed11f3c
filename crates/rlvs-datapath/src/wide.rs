//! The wide table: what the 16 or 32 bytes of an ordinary slot cannot name.
//!
//! Connections of services without a port or an address of their own, in halves as elsewhere, and
//! persistence templates (see [`template`](crate::template)). Life of a slot, locks and counts are
//! those of [`connection`](crate::connection). It is off the common path: look-ups are out of line, and
//! both places of a key are searched.

use crate::abi::{GROUP, LOCKS, OCCUPANCY_WORDS, WIDE_SLOTS, WideSlot, Wides, Word};
use crate::connection::{Context, Found, Lock, Value, seen};
use crate::hash::{self, Places};
use crate::ip::{Ip, Packet, Slot};
use crate::state::{self, Seen, State};
use crate::tables::Tables;

/// What an entry is.
pub mod kind {
    /// The half of a connection that requests find.
    pub const REQUEST: u64 = 1;
    /// The half that replies find.
    pub const REPLY: u64 = 2;
    /// A persistence template.
    pub const TEMPLATE: u64 = 4;
    /// A template that leads nowhere any more, but has connections.
    pub const DEAD: u64 = 5;
}

/// Bits of a key that are not compared: the port that the other half has.
const OTHER_PORT: u64 = 0xffff;
const KIND_SHIFT: u32 = 60;
/// How often a lost compare-and-swap is tried again.
const TRIES: u32 = 2;
/// The bit in which a dead template differs.
const DEATH: u64 = 1 << KIND_SHIFT;

/// The key of an entry: kind (4 bits), IP version (4), protocol (8), client port, the other end's port
/// and the port that the other half has (16 each), and addresses.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub struct Key {
    /// The first word, as it stands in a slot.
    pub word: u64,
    /// Client address.
    pub client: (u64, u64),
    /// The other end's address; of a template the hash of its call, or 0, and its destination.
    pub peer: (u64, u64),
}

/// What a look-up compares.
pub mod sought {
    /// All of the key.
    pub const EXACT: u8 = 0;
    /// All but the destination: the template of a client.
    pub const TEMPLATE: u8 = 1;
    /// A template that leads to a destination and controls connections, dead or not.
    pub const HOLDER: u8 = 2;
}

impl Key {
    /// Returns the key of a request half.
    #[inline(always)]
    pub fn request<A: Ip>(packet: &Packet<A>) -> Self {
        let Packet { source, target, source_port, target_port, protocol, .. } = *packet;
        let word = word::<A>(kind::REQUEST, protocol, source_port, target_port);
        Self { word, client: source.words(), peer: target.words() }
    }

    /// Returns the key of the reply half that a packet from a server would find.
    #[inline(always)]
    pub fn reply<A: Ip>(packet: &Packet<A>) -> Self {
        let Packet { source, target, source_port, target_port, protocol, .. } = *packet;
        let word = word::<A>(kind::REPLY, protocol, target_port, source_port);
        Self { word, client: target.words(), peer: source.words() }
    }

    /// Returns the key of a template by its family, its client's masked address and its service.
    #[inline(always)]
    pub fn template(family: u8, client: (u64, u64), service: u32) -> Self {
        let word = kind::TEMPLATE << KIND_SHIFT
            | u64::from(family) << 56
            | u64::from(service & 0xffff) << 32;
        Self { word, client, peer: (0, 0) }
    }

    #[inline(always)]
    fn places(&self, settings: &crate::abi::Settings) -> Places {
        let keys = &settings.keys;
        let is_template = self.word >> (KIND_SHIFT + 2) != 0;
        let peer = if is_template { (self.peer.0, 0) } else { self.peer };
        let word = (self.word & !DEATH) >> 16;
        let client = hash::mix(keys, self.client.0 ^ word, self.client.1);
        hash::places(hash::mix(keys, peer.0 ^ client, peer.1), settings.wide_mask)
    }
}

#[inline(always)]
fn word<A: Ip>(kind: u64, protocol: u8, port: u16, peer_port: u16) -> u64 {
    kind << KIND_SHIFT
        | u64::from(A::FAMILY) << 56
        | u64::from(protocol) << 48
        | u64::from(port) << 32
        | u64::from(peer_port) << 16
}

/// Returns the part of an entry's first word that says what it is.
#[inline(always)]
pub const fn kind_word(kind: u64) -> u64 {
    kind << KIND_SHIFT
}

/// Returns what an entry's first word says that it is.
#[inline(always)]
pub const fn kind_of(word: u64) -> u64 {
    word >> KIND_SHIFT
}

/// Returns the IP version in an entry's first word.
#[inline(always)]
pub const fn family_of(word: u64) -> u8 {
    (word >> 56) as u8 & 15
}

/// Returns the protocol in an entry's first word.
#[inline(always)]
pub const fn protocol_of(word: u64) -> u8 {
    (word >> 48) as u8
}

/// Returns the client's port, the other end's, and the one that the other half has.
#[inline(always)]
pub const fn ports_of(word: u64) -> (u16, u16, u16) {
    ((word >> 32) as u16, (word >> 16) as u16, word as u16)
}

impl Slot for WideSlot {
    #[inline(always)]
    fn key(&self) -> &Word {
        &self.key
    }
    #[inline(always)]
    fn value(&self) -> &Word {
        &self.value
    }
    #[inline(always)]
    fn address_difference<T: Tables>(&self, tables: &T, high: u64, low: u64) -> u64 {
        let [client_high, client_low] = &self.client;
        (tables.read(client_high) ^ high) | (tables.read(client_low) ^ low)
    }
    #[inline(always)]
    fn set_address<T: Tables>(&self, tables: &T, high: u64, low: u64) {
        let [client_high, client_low] = &self.client;
        tables.write(client_high, high);
        tables.write(client_low, low);
    }
    #[inline(always)]
    fn address<T: Tables>(&self, tables: &T, _: u64) -> (u64, u64) {
        let [high, low] = &self.client;
        (tables.read(high), tables.read(low))
    }
    #[inline(always)]
    fn key_word(_: u64, more: u32) -> u64 {
        more.into()
    }
}

impl<'a, T: Tables> Context<'a, T> {
    /// Finds an entry, expired or not; `SOUGHT` is a [`sought`] number.
    #[inline(never)]
    pub fn find_wide<const SOUGHT: u8>(
        &self,
        key: &Key,
        value: &mut Value,
    ) -> Option<&'a WideSlot> {
        let Places { first, second } = key.places(self.settings);
        let mut bucket = self.tables.wide(first)?;
        let mut index = self.match_in::<SOUGHT>(key, bucket);
        if index == 0 {
            bucket = self.tables.wide(second)?;
            index = self.match_in::<SOUGHT>(key, bucket);
        }
        if index == 0 {
            return None;
        }
        let slot = bucket.slots.get(index as usize & (WIDE_SLOTS - 1))?;
        let now = self.tables.read(&slot.value);
        // Read once more: whoever cleared the slot meanwhile cleared the key first.
        let ignored = if SOUGHT == sought::HOLDER { OTHER_PORT | DEATH } else { OTHER_PORT };
        if !Value(now).is_live() || (self.tables.read(&slot.key) ^ key.word) & !ignored != 0 {
            return None;
        }
        *value = Value(now);
        Some(slot)
    }

    /// Searches a bucket without a branch; returns the slot's index and a higher bit, or 0. Out of line,
    /// as a search of both places in one takes 288 bytes of stack.
    #[inline(never)]
    fn match_in<const SOUGHT: u8>(&self, key: &Key, bucket: &Wides) -> u64 {
        let ignored = if SOUGHT == sought::HOLDER { OTHER_PORT | DEATH } else { OTHER_PORT };
        let mut index = 0;
        for (at, slot) in (WIDE_SLOTS as u64..).zip(&bucket.slots) {
            let [peer_high, peer_low] = &slot.peer;
            let peer = (self.tables.read(peer_high) ^ key.peer.0)
                | (self.tables.read(peer_low) ^ key.peer.1);
            let (high, low) = key.client;
            let mut difference = (self.tables.read(&slot.key) ^ key.word) & !ignored
                | slot.address_difference(self.tables, high, low);
            if SOUGHT == sought::TEMPLATE {
                difference |= self.tables.read(peer_high) ^ key.peer.0;
            } else {
                difference |= peer;
            }
            if SOUGHT == sought::HOLDER {
                let [held, _] = &slot.other;
                difference |= 1 ^ self.tables.is_set(self.tables.read(held) & 0xffff_ffff);
            }
            let same = 1 ^ self.tables.is_set(difference);
            index |= at & same.wrapping_neg();
        }
        self.tables.forget(index)
    }

    /// Finds a half of a connection that has not expired; an expired one is left to the sweep, and to
    /// the stage that may open it anew.
    #[inline(always)]
    pub fn find_wide_live(&self, key: &Key) -> Option<Found<'a, WideSlot>> {
        let mut value = Value(0);
        let slot = self.find_wide::<{ sought::EXACT }>(key, &mut value)?;
        if self.is_young(value) || self.lives_by_twin(slot, value) {
            Some(Found { slot, value })
        } else {
            None
        }
    }

    /// Returns whether the other half of a connection has not expired.
    #[inline(never)]
    pub(crate) fn lives_by_twin(&self, slot: &WideSlot, value: Value) -> bool {
        let mut other = Value(0);
        self.find_twin(slot, value, &mut other).is_some()
            && other.destination() == value.destination()
            && self.is_young(other)
    }

    /// Puts an entry into a free slot. The caller holds the lock of the key and has not found it.
    #[inline(never)]
    pub fn insert_wide(
        &self,
        key: &Key,
        value: Value,
        other_high: u64,
        other_low: u64,
    ) -> Option<&'a WideSlot> {
        let Places { first, second } = key.places(self.settings);
        for _ in 0..TRIES {
            let (near, far) = (self.vacancy_wide(first)?, self.vacancy_wide(second)?);
            let (place, index) = if near <= far { (first, near) } else { (second, far) };
            if index >= WIDE_SLOTS as u64 {
                return None;
            }
            let slot = self.tables.wide(place)?.slots.get(index as usize & (WIDE_SLOTS - 1))?;
            // Another CPU may be faster to this slot.
            if self.tables.swap(&slot.value, 0, value.0) {
                let (high, low) = key.client;
                slot.set_address(self.tables, high, low);
                let words = [key.peer.0, key.peer.1, other_high, other_low];
                for (word, what) in slot.peer.iter().chain(&slot.other).zip(words) {
                    self.tables.write(word, what);
                }
                self.tables.swap(&slot.key, 0, key.word);
                self.occupy_wide(place);
                return Some(slot);
            }
        }
        None
    }

    /// Returns the index of the first free slot at a place, or the number of slots.
    #[inline(always)]
    fn vacancy_wide(&self, place: u32) -> Option<u64> {
        let (mut taken, mut index) = (1, 0);
        for slot in &self.tables.wide(place)?.slots {
            taken &= self.tables.is_set(self.tables.read(&slot.value));
            index += taken;
        }
        Some(self.tables.forget(index))
    }

    /// Tells the sweep that there is something in this place's group.
    #[inline(always)]
    fn occupy_wide(&self, place: u32) {
        let group = place / GROUP;
        let bit = 1 << (group % 64);
        if let Some(word) = self.tables.occupancy(2 * OCCUPANCY_WORDS + group / 64)
            && self.tables.read(word) & bit == 0
        {
            self.tables.set_bits(word, bit);
        }
    }

    /// Takes the lock of a key; `kind` 0 for request halves, 1 for reply halves, 2 for templates, of
    /// which none is taken while a later one is held. `None` if another CPU does not let go.
    #[inline(always)]
    pub fn lock_wide(&self, key: &Key, kind: u32) -> Option<Lock<'a>> {
        self.lock_at(kind * LOCKS + (key.places(self.settings).first & (LOCKS - 1)))
    }

    /// Takes the lock of a key if nobody has it.
    #[inline(always)]
    pub(crate) fn try_lock_wide(&self, key: &Key, kind: u32) -> Option<Lock<'a>> {
        let index = kind * LOCKS + (key.places(self.settings).first & (LOCKS - 1));
        self.try_lock_at(index)
    }

    /// Finds a half's other half, expired or not.
    #[inline(always)]
    pub(crate) fn find_twin(
        &self,
        slot: &WideSlot,
        value: Value,
        other: &mut Value,
    ) -> Option<&'a WideSlot> {
        let mut key = Key { word: 0, client: (0, 0), peer: (0, 0) };
        if self.twin(slot, value, &mut key) == 0 {
            return None;
        }
        let twin = self.find_wide::<{ sought::EXACT }>(&key, other)?;
        let is_other = other.destination() != value.destination();
        if is_other || self.refers_to(twin, slot, value) == 0 {
            return None;
        }
        Some(twin)
    }

    /// Returns 0 if what stands where a half has its other half belongs to another connection, which has
    /// got its server's end since, or its place of the pool.
    #[inline(never)]
    fn refers_to(&self, twin: &WideSlot, slot: &WideSlot, value: Value) -> u32 {
        let (port, peer_port, _) = ports_of(self.tables.read(&slot.key));
        let (end, port) = match (value.is_substituted(), value.is_reply()) {
            (true, _) => (&slot.client, port),
            (false, false) => (&slot.peer, peer_port),
            // It was sought by its virtual end.
            (false, true) => return 1,
        };
        let (.., other_port) = ports_of(self.tables.read(&twin.key));
        let differs = |at: usize| self.tables.read(&end[at]) ^ self.tables.read(&twin.other[at]);
        u32::from(differs(0) | differs(1) | u64::from(port ^ other_port) == 0)
    }

    /// Writes the key of a half's other half. Returns 0 if it has none. Out of line, so that there is one
    /// key on the stack where it is called.
    #[inline(never)]
    fn twin(&self, slot: &WideSlot, value: Value, key: &mut Key) -> u32 {
        if !value.is_paired() {
            return 0;
        }
        let word = self.tables.read(&slot.key);
        let [high, low] = &slot.other;
        let other = (self.tables.read(high), self.tables.read(low));
        let Some(to) = self.tables.destination(value.destination()) else { return 0 };
        let family = family_of(word);
        if value.is_substituted() {
            let (kind, address, port) = if value.is_reply() {
                let Some(service) = self.tables.service(to.service) else { return 0 };
                (kind::REQUEST, &service.address, service.port)
            } else {
                (kind::REPLY, &to.address, to.port)
            };
            key.word = crossed(word, kind, u16::from_be_bytes(port));
            (key.client, key.peer) = (other, words_of(family, address));
            return 1;
        }
        key.client = slot.address(self.tables, word);
        if value.is_reply() {
            (key.word, key.peer) = (turned(word, kind::REQUEST), other);
        } else {
            (key.word, key.peer) = (turned(word, kind::REPLY), words_of(family, &to.address));
        }
        1
    }

    /// Removes an entry that has run out, of a pair if both have. A template stays if another CPU has
    /// its lock. Returns whether it is gone.
    #[inline(never)]
    pub fn retire_wide(&self, slot: &WideSlot, value: Value) -> bool {
        let word = self.tables.read(&slot.key);
        if word == 0 {
            return false;
        }
        if kind_of(word) >= kind::TEMPLATE {
            return self.retire_template::<false>(slot, value);
        }
        if self.is_young(value) {
            return false;
        }
        let found = Found { slot, value };
        let mut other = Value(0);
        let Some(twin) = self.find_twin(slot, value, &mut other) else {
            return self.remove_counted(&found);
        };
        if other.destination() == value.destination() && self.is_young(other) {
            return false;
        }
        let twin = Found { slot: twin, value: other };
        let (request, reply) = if value.is_reply() { (&twin, &found) } else { (&found, &twin) };
        let removed = self.remove_counted(request);
        if removed {
            self.remove(reply);
        }
        removed
    }

    /// Removes the request half of a connection, and its connection from the counts, if that has run out too.
    /// Returns whether there is none any more.
    #[inline(never)]
    pub(crate) fn end_twin(&self, reply: &WideSlot, value: Value) -> bool {
        let mut other = Value(0);
        match self.find_twin(reply, value, &mut other) {
            Some(slot) => {
                !self.is_young(other) && self.remove_counted(&Found { slot, value: other })
            }
            None => true,
        }
    }

    /// Removes a half-open connection by its request half, whatever its age. Returns whether this call did
    /// it.
    #[inline(never)]
    pub fn give_way_wide(&self, slot: &WideSlot, value: Value) -> bool {
        if kind_of(self.tables.read(&slot.key)) != kind::REQUEST {
            return false;
        }
        let mut other = Value(0);
        let twin = self.find_twin(slot, value, &mut other);
        let removed = self.remove_counted(&Found { slot, value });
        if let Some(twin) = twin
            && removed
        {
            self.remove(&Found { slot: twin, value: other });
        }
        removed
    }

    /// Notes a request: its time, and what it does to the state. Returns whether the connection is still
    /// there. `PORTS` as for [`state::next`].
    #[inline(never)]
    pub fn track_wide<const PORTS: bool>(
        &self,
        slot: &WideSlot,
        value: Value,
        protocol: u8,
        flags: u8,
    ) -> bool {
        let found = Found { slot, value };
        let seen = seen(value);
        if value.state() == state::next::<PORTS>(value.state(), seen, protocol, flags) {
            return self.touch_there(&found);
        }
        let mut other = Value(0);
        let twin = self.find_twin(slot, value, &mut other);
        let state = self.advance_wide::<false, PORTS>(slot, value, protocol, flags);
        if state == GONE {
            return false;
        }
        if let Some(slot) = twin {
            self.tables.swap(&slot.value, other.0, other.with_state(State(state)).0);
        }
        true
    }

    /// Notes a reply, as [`track_wide`](Self::track_wide). Returns whether the connection is still there.
    #[inline(never)]
    pub fn track_wide_reply<const PORTS: bool>(
        &self,
        slot: &WideSlot,
        protocol: u8,
        flags: u8,
    ) -> bool {
        let value = Value(self.tables.read(&slot.value));
        let mut state = state::next::<PORTS>(value.state(), Seen::Reply, protocol, flags);
        if value.state() == state && !self.is_strict_about::<PORTS>(flags) {
            self.touch(&Found { slot, value });
            return true;
        }
        let mut other = Value(0);
        if let Some(slot) = self.find_twin(slot, value, &mut other) {
            let agreed = self.advance_wide::<true, PORTS>(slot, other, protocol, flags);
            if agreed != GONE {
                state = State(agreed);
            }
        }
        self.tables.swap(&slot.value, value.0, value.with(self.now, state).0)
    }

    /// Moves a request half to the state that follows and returns that, or [`GONE`]. Out of line: what calls
    /// it has little stack.
    #[inline(never)]
    fn advance_wide<const REPLY: bool, const PORTS: bool>(
        &self,
        slot: &WideSlot,
        value: Value,
        protocol: u8,
        flags: u8,
    ) -> u32 {
        let found = Found { slot, value };
        let seen = if REPLY { Seen::Reply } else { seen(value) };
        let state = self.advance::<WideSlot, PORTS>(&found, seen, protocol, flags, !REPLY);
        state.map_or(GONE, |state| state.0)
    }
}

/// No state: the connection is not there.
const GONE: u32 = u32::MAX;

/// Returns the first word of the other half's key.
#[inline(always)]
const fn turned(word: u64, kind: u64) -> u64 {
    const SAME: u64 = 0x0fff_ffff_0000_0000;
    kind << KIND_SHIFT | word & SAME | (word & OTHER_PORT) << 16
}

/// Returns the first word of the key of the other half of a connection of full NAT, given the port of the
/// end that both look at.
#[inline(always)]
const fn crossed(word: u64, kind: u64, port: u16) -> u64 {
    const SAME: u64 = 0x0fff_0000_0000_0000;
    kind << KIND_SHIFT | word & SAME | (word & OTHER_PORT) << 32 | (port as u64) << 16
}

/// Returns an address of a record as two words.
#[inline(always)]
pub fn words_of(family: u8, octets: &[u8; 16]) -> (u64, u64) {
    use crate::ip::{V4, V6};
    if family == 4 { V4::from_octets(octets).words() } else { V6::from_octets(octets).words() }
}
