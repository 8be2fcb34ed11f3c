//! Persistence: templates, which lead all new connections of a client, or of a network of clients, to
//! the destination that had the first.
//!
//! As `ip_vs_sched_persist()`: a template lives for the service's time-out after the last *new*
//! connection. If that runs out while it still controls connections, it lives on for a minute at a
//! time, and so long only from then on. It is counted with its destination. One whose destination is
//! gone, or may not be used, is dead: it leads nowhere, and stays as long as it would have.
//!
//! A template is looked for, made, extended and removed under its lock. A connection that it controls
//! says so in its value; when that connection goes, one is taken from what the template of its client
//! and destination controls. A template of a call ([`sip`](crate::sip)) controls nothing.

use crate::abi::{Service, WideSlot, destination_flag, service_flag, settings_flag};
use crate::connection::{self, Context, Found, Value};
use crate::ip::{Ip, Packet};
use crate::learn::Learnt;
use crate::reason::Reason;
use crate::schedule::{OPENED, SEARCHING};
use crate::schedulers::{self, takes_connections};
use crate::state::State;
use crate::tables::Tables;
use crate::wide::{Key, family_of, sought, words_of};

/// Set in what [`Context::follow_template`] returns, besides [`OPENED`].
pub(crate) const CONTROLS: u32 = 1 << 30;
/// The destination id there.
pub(crate) const ID: u32 = CONTROLS - 1;
/// There is no template.
pub(crate) const ABSENT: u32 = 1 << 27;
/// Kind of the locks of templates.
const LOCK: u32 = 2;
/// State of a template of which a connection that is gone had been established. For those that are
/// there, whoever lists templates looks at them.
pub const ASSURED: State = State(1);
/// How often a lost compare-and-swap is tried again.
const TRIES: u32 = 2;

/// Returns the key of the template for a client of a service.
#[inline(always)]
fn key(record: &Service, service: u32, client: (u64, u64)) -> Key {
    let mask = words_of(record.family, &record.mask);
    let client = (client.0 & mask.0, client.1 & mask.1);
    Key::template(record.family, client, service)
}

/// Returns how many connections a template controls more when it leads one more: one of a call none, as
/// a connection does not say to which call it belongs.
#[inline(always)]
const fn holds(key: &Key) -> u64 {
    (key.peer.0 == 0) as u64
}

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the destination to which the template of a client leads, with [`OPENED`] and
    /// [`CONTROLS`], or the number of a reason. The template controls one connection more. If there is
    /// none it is made to lead to `chosen`, a destination with [`OPENED`]; if that is 0, [`ABSENT`] is
    /// returned.
    #[inline(never)]
    pub(crate) fn follow_template<A: Ip>(
        &self,
        service: u32,
        packet: &Packet<A>,
        chosen: u32,
    ) -> u32 {
        let Some(record) = self.tables.service(service) else { return Reason::Inconsistent as u32 };
        let call = self.call(record);
        let key = Key { peer: (call, 0), ..key(record, service, packet.source.words()) };
        let Some(lock) = self.lock_wide(&key, LOCK) else { return Reason::Busy as u32 };
        let found = self.tables.forget(self.extend_template(&key).into()) as u32;
        let result = match (found, chosen) {
            (0, 0) => ABSENT,
            (0, _) => {
                let held = u64::from(record.persistence) << 32 | holds(&key);
                let value = Value::new(self.now, State::NONE, chosen & ID, 0, false);
                self.make_template(&key, value, held)
            }
            _ => found,
        };
        self.unlock(lock);
        if result & OPENED == 0 || call != 0 { result } else { result | CONTROLS }
    }

    /// Returns the hash of the call that the packet at hand belongs to, or 0 where calls do not matter.
    #[inline(always)]
    fn call(&self, record: &Service) -> u64 {
        if record.flags & service_flag::SIP == 0 {
            return 0;
        }
        let scratch = self.tables.scratch(self.tables.cpu());
        scratch.map_or(0, |scratch| self.tables.read(&scratch.call))
    }

    /// Has the template of a key control one more, and live anew. Returns 0 if there is none that leads
    /// anywhere.
    #[inline(always)]
    fn extend_template(&self, key: &Key) -> u32 {
        let mut value = Value(0);
        let Some(slot) = self.find_wide::<{ sought::TEMPLATE }>(key, &mut value) else { return 0 };
        if self.retire_template::<true>(slot, value) {
            return 0;
        }
        let id = value.destination();
        if !self.may_follow(id) {
            self.kill(slot, key);
            return 0;
        }
        let [held, _] = &slot.other;
        self.tables.add(held, holds(key));
        self.renew(slot);
        OPENED | id
    }

    /// Makes a template one that leads nowhere: from here on it is another one.
    #[inline(always)]
    fn kill(&self, slot: &WideSlot, key: &Key) {
        const DEATH: u64 = (crate::wide::kind::TEMPLATE ^ crate::wide::kind::DEAD) << 60;
        self.tables.swap(&slot.key, key.word, key.word ^ DEATH);
    }

    /// Has a client of a service be led where another director leads it, for `timeout` units; one that is led
    /// already stays where it is. Returns a [`Learnt`] number.
    #[inline(always)]
    pub(crate) fn learn_template(
        &self,
        record: &Service,
        service: u32,
        client: (u64, u64),
        id: u32,
        timeout: u32,
        assured: bool,
    ) -> u32 {
        let key = key(record, service, client);
        let Some(lock) = self.lock_wide(&key, LOCK) else { return Learnt::Busy as u32 };
        let state = if assured { ASSURED } else { State::NONE };
        let told = Value::new(self.now, state, id, 0, false).learnt();
        let stands = self.tables.forget(self.follow_told_template(&key, told, timeout).into());
        let result = if stands != 0 {
            stands as u32
        } else if self.make_template(&key, told, u64::from(timeout) << 32) & OPENED != 0 {
            Learnt::Entered as u32
        } else {
            Learnt::Full as u32
        };
        self.unlock(lock);
        result
    }

    /// Gives the template of a key the time-out that is told. Returns 0 if there is none that leads anywhere.
    #[inline(always)]
    fn follow_told_template(&self, key: &Key, told: Value, timeout: u32) -> u32 {
        let mut value = Value(0);
        let Some(slot) = self.find_wide::<{ sought::TEMPLATE }>(key, &mut value) else { return 0 };
        if self.retire_template::<true>(slot, value) {
            return 0;
        }
        if !self.may_follow(value.destination()) {
            self.kill(slot, key);
            return 0;
        }
        if value.destination() != told.destination() {
            return Learnt::Kept as u32;
        }
        let [held, _] = &slot.other;
        let before = (self.tables.read(held) >> 32) as u32;
        self.tables.add(held, u64::from(timeout.wrapping_sub(before)) << 32);
        let now = Value(self.tables.read(&slot.value));
        if self.tables.swap(&slot.value, now.0, now.as_told(told).0) {
            Learnt::Updated as u32
        } else {
            Learnt::Busy as u32
        }
    }

    /// Makes a template's time begin anew.
    #[inline(always)]
    fn renew(&self, slot: &WideSlot) {
        for _ in 0..TRIES {
            let value = Value(self.tables.read(&slot.value));
            let new = value.with(self.now, value.state());
            if self.tables.swap(&slot.value, value.0, new.0) {
                break;
            }
        }
    }

    /// Returns whether a destination may be used as a template says, as `ip_vs_check_template()`: its
    /// weight matters only if the user wants that.
    #[inline(always)]
    fn may_follow(&self, id: u32) -> bool {
        let Some(destination) = self.tables.destination(id) else { return false };
        let expires = self.settings.flags & settings_flag::EXPIRE_QUIESCENT != 0;
        destination.flags & destination_flag::AVAILABLE != 0
            && destination.retired_at == 0
            && !(expires && destination.weight == 0)
    }

    /// Makes the template of a key as its value says; `held` is its time-out and what it controls.
    #[inline(always)]
    fn make_template(&self, key: &Key, value: Value, held: u64) -> u32 {
        let id = value.destination();
        let key = Key { peer: (key.peer.0, id.into()), ..*key };
        if self.insert_wide(&key, value, held, 0).is_none() {
            return Reason::TableFull as u32;
        }
        if let Some(counts) = self.tables.counts(id) {
            self.tables.add(&counts.persistent, 1);
        }
        OPENED | id
    }

    /// Has the scheduler choose. Returns a destination that takes new connections, with [`OPENED`],
    /// [`SEARCHING`] or the number of a reason.
    #[inline(never)]
    pub(crate) fn appoint<A: Ip>(&self, service: u32, packet: &Packet<A>) -> u32 {
        let key = connection::Key::new(self.settings, &packet.request(), service);
        let id = self.tables.forget(self.choose(packet, &key).into()) as u32;
        match id {
            schedulers::NOBODY => return self.why_nobody(),
            schedulers::SEARCH => return SEARCHING,
            _ => {}
        }
        if self.tables.destination(id).is_some_and(takes_connections) {
            return OPENED | id;
        }
        let reason = Reason::NoDestination as u32;
        if self.note_failure(&key, id, reason) { SEARCHING } else { reason }
    }

    /// Takes one connection of a client from what the template that leads to its destination controls,
    /// and notes if it had been established. Returns whether there was such a template.
    #[inline(always)]
    pub fn release_template(&self, high: u64, low: u64, connection: Value) -> bool {
        let id = connection.destination();
        let Some(destination) = self.tables.destination(id) else { return false };
        let service = destination.service;
        let Some(record) = self.tables.service(service) else { return false };
        let key = Key { peer: (0, id.into()), ..key(record, service, (high, low)) };
        let mut value = Value(0);
        let Some(slot) = self.find_wide::<{ sought::HOLDER }>(&key, &mut value) else {
            return false;
        };
        let [held, _] = &slot.other;
        for _ in 0..TRIES {
            let before = self.tables.read(held);
            if before as u32 == 0 {
                return false;
            }
            if self.tables.swap(held, before, before - 1) {
                break;
            }
        }
        !connection.state().was_established()
            || self.tables.swap(&slot.value, value.0, value.with_state(ASSURED).0)
    }

    /// Removes a template whose time has run out, or gives it another minute if it controls
    /// connections, as `ip_vs_conn_expire()`. Returns whether it is gone.
    #[inline(never)]
    pub(crate) fn retire_template<const LOCKED: bool>(
        &self,
        slot: &WideSlot,
        value: Value,
    ) -> bool {
        let [held, _] = &slot.other;
        let word = self.tables.read(held);
        let (age, timeout) = (self.now.since(value.time()), (word >> 32) as u32);
        if age <= timeout {
            return false;
        }
        if LOCKED {
            return self.retire_locked(slot, value);
        }
        let word = self.tables.read(&slot.key);
        let client = (self.tables.read(&slot.client[0]), self.tables.read(&slot.client[1]));
        let service = (word >> 32) as u32 & 0xffff;
        let peer = (self.tables.read(&slot.peer[0]), 0);
        let key = Key { peer, ..Key::template(family_of(word), client, service) };
        let Some(lock) = self.try_lock_wide(&key, LOCK) else { return false };
        let gone = self.retire_locked(slot, value);
        self.unlock(lock);
        gone
    }

    #[inline(always)]
    fn retire_locked(&self, slot: &WideSlot, value: Value) -> bool {
        let [held, _] = &slot.other;
        let word = self.tables.read(held);
        let (age, timeout) = (self.now.since(value.time()), (word >> 32) as u32);
        if word as u32 != 0 {
            let minute = self.settings.second.wrapping_mul(60);
            let since = age.wrapping_sub(timeout).checked_rem(minute).unwrap_or(0);
            let then =
                crate::tables::Time(self.now.0.wrapping_sub(since) & crate::tables::TIME_MASK);
            if self.tables.swap(&slot.value, value.0, value.with(then, value.state()).0) {
                let change = u64::from(minute.wrapping_sub(timeout)) << 32;
                self.tables.add(held, change);
            }
            return false;
        }
        let removed = self.remove(&Found { slot, value });
        if removed && let Some(counts) = self.tables.counts(value.destination()) {
            self.tables.add(&counts.persistent, u64::MAX);
        }
        removed
    }
}
