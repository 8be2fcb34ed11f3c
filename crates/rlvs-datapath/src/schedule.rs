//! New connections: which destination takes one, and how it gets into the table.

use core::cell::Cell;

use crate::abi::{Destination, RING_LINE, method, scheduler, service_flag, settings_flag};
use crate::connection::{Context, Found, Key, Value};
use crate::frame::{Answer, Frame, Query, Verdict};
use crate::ip::{Flow, Ip, Packet};
use crate::reason::Reason;
use crate::schedulers::{self, Ring, takes_connections};
use crate::state::{self, Seen};
use crate::tables::{Tables, bump};

/// What a function on the way to a connection returns, in one word as BPF wants it: a destination's
/// id with this bit, or the number of a reason.
pub(crate) const OPENED: u32 = 1 << 31;
/// Set in a reason's number when another destination may do better.
pub(crate) const NEXT: u32 = 1 << 30;
/// The connection is there already.
pub(crate) const THERE: u32 = 1 << 29;
/// A destination must be searched for.
pub(crate) const SEARCHING: u32 = 1 << 28;
/// The guard must be asked.
pub(crate) const ASKING: u32 = 1 << 26;
/// Nothing stands against it.
pub(crate) const DONE: u32 = u32::MAX;

/// What became of a packet that may open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub enum Opening {
    /// It did, to the destination of this id.
    To(u32),
    /// Another CPU has opened it since the packet did not find it.
    There,
    /// A destination must be searched for: `Context::search_for` does and comes back.
    Search,
    /// The guard must be asked: `Context::ask_guard` does and comes back.
    Ask,
    /// It did not, for this reason.
    Refused(Reason),
}

impl<'a, T: Tables> Context<'a, T> {
    /// Opens a connection for a packet that may start one.
    #[inline(always)]
    pub fn open<A: Ip, F: Frame, const PORTS: bool>(
        &self,
        frame: &mut F,
        packet: &Packet<A>,
        service: u32,
    ) -> Opening {
        let admitted = self.allow(frame, packet, service);
        let result = match admitted {
            DONE => self.open_locked::<A, PORTS>(packet, service),
            reason => reason,
        };
        match result {
            THERE => Opening::There,
            SEARCHING => Opening::Search,
            ASKING => Opening::Ask,
            id if id & OPENED != 0 => Opening::To(id & !OPENED),
            reason => Opening::Refused(Reason::from_number(reason)),
        }
    }

    /// Returns whether the service takes connections here at all, and from this client.
    #[inline(always)]
    pub(crate) fn allow<A: Ip, F: Frame>(&self, frame: &mut F, packet: &Packet<A>, id: u32) -> u32 {
        // One calls after the other, not the other: the stack is small. A call is dear.
        let admitted = if A::FAMILY == 4 && F::USUAL {
            self.admit_here(frame, packet, id)
        } else {
            self.admit(frame, packet, id)
        };
        match admitted {
            ASKING => self.guarded(packet, id),
            admitted => admitted,
        }
    }

    /// Returns whether the service takes connections here at all, or [`ASKING`] if not from everybody.
    #[inline(never)]
    fn admit<A: Ip, F: Frame>(&self, frame: &mut F, packet: &Packet<A>, id: u32) -> u32 {
        self.admit_here(frame, packet, id)
    }

    #[inline(always)]
    fn admit_here<A: Ip, F: Frame>(&self, frame: &mut F, packet: &Packet<A>, id: u32) -> u32 {
        let Some(service) = self.tables.service(id) else {
            return Reason::Inconsistent as u32;
        };
        if service.flags & service_flag::LIVE == 0 {
            return Reason::NoService as u32;
        }
        if !self.is_local(frame, packet.target, id) {
            return Reason::NotLocal as u32;
        }
        if packet.ttl <= 1 {
            return Reason::Expired as u32;
        }
        let is_guarded = service.flags & service_flag::GUARDED != 0;
        if is_guarded || self.settings.drop_rate != 0 { ASKING } else { DONE }
    }

    #[inline(always)]
    fn open_locked<A: Ip, const PORTS: bool>(&self, packet: &Packet<A>, id: u32) -> u32 {
        let key = Key::new(self.settings, &packet.request(), id);
        let Some(lock) = self.lock(&key, 0) else { return Reason::Busy as u32 };
        let result = if self.may_be_there(&key) && self.find_here(&key).is_some() {
            THERE
        } else {
            self.schedule::<A, PORTS>(packet, &key)
        };
        self.unlock(lock);
        result
    }

    /// Gives the connection to the destination that the scheduler chooses. If that cannot take it,
    /// another is searched for.
    #[inline(always)]
    fn schedule<A: Ip, const PORTS: bool>(&self, packet: &Packet<A>, key: &Key<A>) -> u32 {
        let id = if A::FAMILY == 4 && PORTS {
            self.choose_here(packet, key)
        } else {
            self.choose(packet, key)
        };
        let id = self.tables.forget(id.into()) as u32;
        match id {
            schedulers::NOBODY => return self.why_nobody(),
            schedulers::SEARCH => return SEARCHING,
            _ => {}
        }
        match self.connect::<A, PORTS>(packet, key, id) {
            next if next & (NEXT | OPENED) == NEXT => {
                let again = self.note_failure(key, id, next & !NEXT);
                if again { SEARCHING } else { next & !NEXT }
            }
            result => result,
        }
    }

    /// Makes the entries of a connection to one destination and counts it.
    #[inline(always)]
    fn connect<A: Ip, const PORTS: bool>(&self, packet: &Packet<A>, key: &Key<A>, id: u32) -> u32 {
        let Some(destination) = self.tables.destination(id) else {
            return Reason::Inconsistent as u32;
        };
        if !takes_connections(destination) {
            return NEXT | Reason::NoDestination as u32;
        }
        let paired = destination.method == method::MASQUERADE;
        let seen = if paired { Seen::Request } else { Seen::RequestOnly };
        let strict = self.settings.strict != 0;
        let state = state::first::<PORTS>(seen, packet.protocol, packet.flags, strict);
        let value = Value::new(self.now, state, id, key.owner, paired);
        self.join(packet, key, destination, value)
    }

    /// Makes the entries of a connection as its value says, and counts it. The caller holds the lock
    /// of the key and has not found it.
    #[inline(always)]
    pub(crate) fn join<A: Ip>(
        &self,
        packet: &Packet<A>,
        key: &Key<A>,
        destination: &Destination,
        value: Value,
    ) -> u32 {
        let result = self.enter(packet, key, destination, value);
        if result & OPENED != 0 {
            self.count_got(value.destination());
        }
        result
    }

    /// As [`join`](Self::join), but its destination does not count it among those that it got.
    #[inline(always)]
    pub(crate) fn enter<A: Ip>(
        &self,
        packet: &Packet<A>,
        key: &Key<A>,
        destination: &Destination,
        value: Value,
    ) -> u32 {
        let id = value.destination();
        if value.is_paired() {
            let peer = A::from_octets(&destination.address);
            let peer_port = u16::from_be_bytes(destination.port);
            let back = Flow { peer, peer_port, ..packet.request() };
            let back = Key::new(self.settings, &back, destination.reply);
            let Some(lock) = self.lock(&back, 1) else { return Reason::Busy as u32 };
            let result = self.connect_pair(key, &back, value);
            self.unlock(lock);
            if result != OPENED {
                return result;
            }
        } else if self.insert(key, value) == 0 {
            return Reason::Stateless as u32;
        }
        self.count_entered(destination, value);
        OPENED | id
    }

    /// Counts a connection that a destination got.
    #[inline(always)]
    pub(crate) fn count_got(&self, destination: u32) {
        if let Some(row) = self.tables.row(self.row_index(destination)) {
            bump(&row.connections, 1);
        }
    }

    /// Counts a connection whose entries have been made.
    #[inline(always)]
    pub(crate) fn count_entered(&self, destination: &Destination, value: Value) {
        if let Some(counts) = self.tables.counts(value.destination()) {
            let before = self.tables.add(&counts.connections, value.state().one());
            if destination.upper != 0 {
                self.note_connection(value.destination(), before);
            }
        }
    }

    /// Makes both halves of a NAT connection, or none. What is left of a connection whose request
    /// half is gone makes way; a living one keeps its place. The caller holds both locks.
    #[inline(always)]
    fn connect_pair<A: Ip>(&self, key: &Key<A>, back: &Key<A>, value: Value) -> u32 {
        if let Some(Found { slot, value }) = self.find_here(back)
            && !self.clear_orphan(key, &Found { slot, value })
        {
            return NEXT | Reason::ReplyTaken as u32;
        }
        let reply = self.insert(back, value.reply(back.owner));
        if reply == 0 {
            return Reason::TableFull as u32;
        }
        if self.insert(key, value) == 0 {
            self.take_back::<A>(reply);
            return Reason::TableFull as u32;
        }
        OPENED
    }

    /// Removes a reply half if its connection has ended. Returns whether the place is free.
    #[inline(always)]
    fn clear_orphan<A: Ip>(&self, own: &Key<A>, reply: &Found<'_, A::Slot>) -> bool {
        let id = reply.value.destination();
        let owner = self.tables.destination(id).map_or(0, |destination| destination.service);
        let Some(service) = self.tables.service(owner) else { return self.remove(reply) };
        if owner == 0 || owner == own.owner {
            return self.remove(reply);
        }
        let peer = A::from_octets(&service.address);
        let peer_port = u16::from_be_bytes(service.port);
        let flow = Flow { client: own.client, peer, port: own.port, peer_port };
        match self.find_here(&Key::new(self.settings, &flow, owner)) {
            Some(request) if request.value.destination() == id => {
                let over = !self.is_young(reply.value) && !self.is_young(request.value);
                // What else is to be done for one that a template controls the sweep does.
                let plain = !request.value.is_controlled();
                over && plain && self.remove_uncontrolled(&request) && self.remove(reply)
            }
            _ => self.remove(reply),
        }
    }

    /// Picks a destination by the flow's hash alone, for when the table has no room: the same for
    /// every packet of the flow while the ring stays. Of fo and ovf it is the first.
    #[inline(always)]
    pub fn pick_stateless<A: Ip>(&self, key: &Key<A>) -> Option<u32> {
        let schedule = self.tables.schedule(key.owner)?;
        let ring = Ring(self.tables.read(&schedule.ring));
        let index = match ring.scheduler() {
            scheduler::FO | scheduler::OVF => 0,
            _ => key.flow().checked_rem(ring.length().into())? as u32,
        };
        let id = self.tables.ring(ring.line() * RING_LINE + index)? as u32;
        let destination = self.tables.destination(id)?;
        if takes_connections(destination) { Some(id) } else { None }
    }

    /// Returns whether the virtual address is one of this host's, as the kernel's IPVS demands by
    /// sitting at LOCAL_IN. The routing table is asked at most once a second and service.
    #[inline(always)]
    fn is_local<A: Ip, F: Frame>(&self, frame: &mut F, target: A, service: u32) -> bool {
        const KNOWN: u64 = 2;
        const LOCAL: u64 = 1;
        if self.settings.flags & settings_flag::ANY != 0 {
            return true;
        }
        let Some(schedule) = self.tables.schedule(service) else { return false };
        let seen = self.tables.read(&schedule.local);
        if seen & KNOWN != 0 && self.now.since((seen >> 32) as u32) < self.settings.second {
            return seen & LOCAL != 0;
        }
        let local = is_own_address(frame, target);
        let word = u64::from(self.now.0) << 32 | KNOWN | u64::from(local);
        self.tables.write(&schedule.local, word);
        local
    }

    /// Returns the row of a destination for this CPU.
    #[inline(always)]
    pub fn row_index(&self, destination: u32) -> u32 {
        destination * self.settings.cpus + self.tables.cpu()
    }
}

/// Returns the verdict for a packet that no destination takes and that is not answered.
pub const fn quiet(reason: Reason) -> Verdict {
    match reason {
        Reason::NoService | Reason::NotLocal | Reason::NoConnection | Reason::FromPeer => {
            Verdict::Pass(reason)
        }
        _ => Verdict::Drop(reason),
    }
}

/// Returns whether the routing table would not send a packet for this address anywhere.
#[inline(always)]
fn is_own_address<A: Ip, F: Frame>(frame: &mut F, address: A) -> bool {
    let query = Query { family: A::FAMILY.into(), now: 0, target: address.octets() };
    matches!(frame.query(&query, &Cell::default()), Answer::NotForwarded)
}
