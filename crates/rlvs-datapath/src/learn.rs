//! Connections and templates that another director tells of, put into the tables of this one, so that they
//! go on here when that one is gone.
//!
//! As `ip_vs_proc_conn()`: what is there is given the state and the time that are told, or makes way if it
//! leads elsewhere; what is not is entered and counted with its destination, but not as a connection that
//! the destination got. Whose it is user space says, which looked before and without a lock, so it is looked
//! at again. Carried out by programs that no packet reaches: user space hands them a [`Record`] by
//! `BPF_PROG_TEST_RUN`, so whoever is killed leaves no lock behind.
//!
//! An entry says that it was learnt until a packet of its own comes; until then nobody is told of it, or two
//! directors that tell each other would keep it alive.

use crate::abi::{Destination, Service, WideSlot, destination_flag, method, service_flag};
use crate::connection::{Context, Found, Key, Value};
use crate::ip::{Ip, Packet};
use crate::schedule::OPENED;
use crate::state::State;
use crate::tables::{TIME_MASK, Tables, Time};
use crate::wide;

/// Words of a record.
pub const WORDS: usize = 9;

/// What is told of a connection or a template, with whose it is here. Numbers are in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Client's address in two words, as [`Ip::words`].
    pub client: (u64, u64),
    /// Virtual address.
    pub target: (u64, u64),
    /// Destination's address.
    pub server: (u64, u64),
    /// Client's port.
    pub port: u16,
    /// Virtual port.
    pub target_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Service id.
    pub service: u32,
    /// Destination id.
    pub destination: u32,
    /// Number of the [`State`]; of a template 1 if it is assured.
    pub state: u32,
    /// How long it stays without a packet, in units of coarse time.
    pub timeout: u32,
}

impl Record {
    /// Returns it as the program takes it.
    #[must_use]
    pub fn words(&self) -> [u64; WORDS] {
        let ends = u64::from(self.port) << 32
            | u64::from(self.target_port) << 16
            | u64::from(self.protocol);
        [
            self.client.0,
            self.client.1,
            self.target.0,
            self.target.1,
            self.server.0,
            self.server.1,
            ends,
            u64::from(self.service) << 32 | u64::from(self.destination),
            u64::from(self.state) << 32 | u64::from(self.timeout),
        ]
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Learnt {
    /// It was entered.
    Entered = 1,
    /// It was there, and is as was told now.
    Updated = 2,
    /// What is there stays: what was told of is over, or leads elsewhere as a template.
    Kept = 3,
    /// Its service or destination is not there, or takes no such thing.
    Unknown = 4,
    /// There is no room, or its server's end is another connection's.
    Full = 5,
    /// Another CPU was at it: it may be half as told, and is to be told once more.
    Busy = 6,
}

impl Learnt {
    /// Returns what a program's result means.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Entered,
            2 => Self::Updated,
            3 => Self::Kept,
            4 => Self::Unknown,
            5 => Self::Full,
            6 => Self::Busy,
            _ => return None,
        })
    }
}

/// Returns whether connections of a service to a port have their entries in the wide table.
#[inline(always)]
#[must_use]
pub fn is_wide(service: &Service, port: u16) -> bool {
    let is_special = service.mark != 0 || service.flags & service_flag::FULL != 0;
    is_special || u16::from_be_bytes(service.port) != port
}

/// There is nothing yet.
const ABSENT: u32 = 0;

/// Learns a connection, of the wide table if `WIDE`: the stack has no room for both ways in one program.
#[inline(always)]
pub fn connection<A: Ip, T: Tables, const WIDE: bool>(tables: &T, record: &[u64; WORDS]) -> u32 {
    let Some(context) = Context::of(tables) else { return Learnt::Unknown as u32 };
    if context.is_meant(record, A::FAMILY) == 0 {
        return Learnt::Unknown as u32;
    }
    let [high, low, target_high, target_low, _, _, ends, ids, life] = *record;
    let (service, id) = ((ids >> 32) as u32, ids as u32);
    let Some(destination) = tables.destination(id) else { return Learnt::Unknown as u32 };
    if destination.flags & destination_flag::FULL != 0 {
        return Learnt::Unknown as u32;
    }
    let packet = Packet {
        source: A::from_words(high, low),
        target: A::from_words(target_high, target_low),
        source_port: (ends >> 32) as u16,
        target_port: (ends >> 16) as u16,
        // Of these only the protocol matters. Constants the compiler would store together, askew.
        protocol: ends as u8,
        flags: (ends >> 8) as u8,
        ttl: (ends >> 48) as u8,
        length: life as u32,
    };
    let (state, timeout) = (State((life >> 32) as u32), life as u32);
    let whole = context.settings.timeouts[state.0 as usize & 31];
    // Its time runs out when the other director's would.
    let then = context.now.0.wrapping_sub(whole.saturating_sub(timeout)) & TIME_MASK;
    let paired = destination.method == method::MASQUERADE;
    let told = Value::new(Time(then), state, id, service, paired).learnt();
    let Some(of) = tables.service(service) else { return Learnt::Unknown as u32 };
    if is_wide(of, packet.target_port) != WIDE {
        return Learnt::Unknown as u32;
    }
    if WIDE {
        return context.take_told_wide(&packet, service, destination, told);
    }
    if A::from_octets(&of.address).words() != packet.target.words() {
        return Learnt::Unknown as u32;
    }
    context.take_told(&packet, service, destination, told)
}

/// Learns a template.
#[inline(always)]
pub fn template<T: Tables>(tables: &T, record: &[u64; WORDS]) -> u32 {
    let Some(context) = Context::of(tables) else { return Learnt::Unknown as u32 };
    let [high, low, .., life] = *record;
    let (service, id) = ((record[7] >> 32) as u32, record[7] as u32);
    let Some(of) = tables.service(service) else { return Learnt::Unknown as u32 };
    let takes = of.persistence != 0 && of.flags & service_flag::SIP == 0;
    if !takes || context.is_meant(record, of.family) == 0 {
        return Learnt::Unknown as u32;
    }
    let assured = life >> 32 != 0;
    context.learn_template(of, service, (high, low), id, life as u32, assured)
}

impl<T: Tables> Context<'_, T> {
    /// Returns 1 if the service and the destination that a record names are those that it means, else 0. Out of
    /// line, for the stack's sake.
    #[inline(never)]
    fn is_meant(&self, record: &[u64; WORDS], family: u8) -> u32 {
        let [.., high, low, ends, ids, _] = *record;
        let (service, id) = ((ids >> 32) as u32, ids as u32);
        let Some(of) = self.tables.service(service) else { return 0 };
        let Some(destination) = self.tables.destination(id) else { return 0 };
        let is_it = of.flags & service_flag::LIVE != 0
            && of.family == family
            && (of.mark != 0 || of.protocol == ends as u8)
            && destination.service == service
            && destination.family == family
            && destination.flags & destination_flag::AVAILABLE != 0
            && destination.retired_at == 0;
        let address = wide::words_of(family, &destination.address);
        (is_it && (address.0 ^ high) | (address.1 ^ low) == 0).into()
    }

    #[inline(always)]
    fn take_told<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        destination: &Destination,
        told: Value,
    ) -> u32 {
        let key = Key::new(self.settings, &packet.request(), service);
        let Some(lock) = self.lock(&key, 0) else { return Learnt::Busy as u32 };
        let stands = match self.find_here(&key) {
            Some(found) => self.follow_told(&key, found.slot, found.value, told),
            None => ABSENT,
        };
        let stands = self.tables.forget(stands.into()) as u32;
        let result = if stands == ABSENT {
            entered(self.enter_told(packet, &key, destination, told))
        } else {
            stands
        };
        self.unlock(lock);
        result
    }

    /// Gives a connection that is there what is told of it, or removes it for that. Returns [`ABSENT`] if
    /// there is room for it now.
    #[inline(never)]
    fn follow_told<A: Ip>(&self, key: &Key<A>, slot: &A::Slot, value: Value, told: Value) -> u32 {
        use crate::ip::Slot;
        if !value.is_same_way(told) {
            // One that is over replaces nothing.
            if !told.state().is_active() {
                return Learnt::Kept as u32;
            }
            let is_gone = self.discard::<A, true>(key, slot, value);
            return if is_gone { ABSENT } else { Learnt::Busy as u32 };
        }
        if !self.tables.swap(slot.value(), value.0, value.as_told(told).0) {
            return Learnt::Busy as u32;
        }
        self.recount(value, told.state());
        // Where a packet got ahead the reply half is behind now: told once more, both are alike.
        if let Some(key) = self.other_half(key.client, key.port, value)
            && let Some(Found { slot, value }) = self.find_here(&key)
            && !self.tables.swap(slot.value(), value.0, value.as_told(told).0)
        {
            return Learnt::Busy as u32;
        }
        Learnt::Updated as u32
    }

    #[inline(never)]
    fn enter_told<A: Ip>(
        &self,
        packet: &Packet<A>,
        key: &Key<A>,
        destination: &Destination,
        told: Value,
    ) -> u32 {
        self.enter(packet, key, destination, told)
    }

    #[inline(always)]
    fn take_told_wide<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        destination: &Destination,
        told: Value,
    ) -> u32 {
        let key = wide::Key::request(packet);
        let Some(lock) = self.lock_wide(&key, 0) else { return Learnt::Busy as u32 };
        let mut value = Value(0);
        let stands = match self.find_wide::<{ wide::sought::EXACT }>(&key, &mut value) {
            Some(slot) => self.follow_told_wide(slot, value, told),
            None => ABSENT,
        };
        let stands = self.tables.forget(stands.into()) as u32;
        let result = if stands == ABSENT {
            entered(self.enter_wide(packet, service, destination, told))
        } else {
            stands
        };
        self.unlock(lock);
        result
    }

    /// As [`follow_told`](Self::follow_told) in the wide table.
    #[inline(never)]
    fn follow_told_wide(&self, slot: &WideSlot, value: Value, told: Value) -> u32 {
        let is_same_way = value.is_same_way(told);
        // One that is over replaces nothing.
        if value.is_substituted() || !is_same_way && !told.state().is_active() {
            return Learnt::Kept as u32;
        }
        let mut other = Value(0);
        let twin = self.find_twin(slot, value, &mut other);
        if !is_same_way {
            // Here and not by `give_way_wide`: Linux 6.1 has no stack for one call more.
            if !self.remove_counted(&Found { slot, value }) {
                return Learnt::Busy as u32;
            }
            if let Some(slot) = twin {
                self.remove(&Found { slot, value: other });
            }
            return ABSENT;
        }
        if !self.tables.swap(&slot.value, value.0, value.as_told(told).0) {
            return Learnt::Busy as u32;
        }
        self.recount(value, told.state());
        if let Some(twin) = twin
            && !self.tables.swap(&twin.value, other.0, other.as_told(told).0)
        {
            return Learnt::Busy as u32;
        }
        Learnt::Updated as u32
    }
}

/// Returns what became of a connection by what making its entries returned.
#[inline(always)]
const fn entered(result: u32) -> u32 {
    if result & OPENED != 0 { Learnt::Entered as u32 } else { Learnt::Full as u32 }
}
