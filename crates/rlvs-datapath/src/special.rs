//! New connections of services that need more than a destination and an entry: persistent ones, those
//! without a port or an address of their own, and those that schedule each datagram.
//!
//! The stage that finds such a service leaves the packet in the map `scratch` and hands on to
//! [`Stage::Special4`] or [`Stage::Special6`], which makes the entries and hands on to the stage that
//! carries packets of a connection that is there. So it is told of the packet and not of the frame, and
//! any kind of packet may come here.

use rlvs_wire::{sctp, udp};

use crate::abi::{
    Destination, Scratch, Service, Word, destination_flag, method, service_flag, settings_flag,
};
use crate::adopt::{self, QUOTED};
use crate::connection::{Context, Key, Value};
use crate::fragment::left_to_the_stack;
use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::local;
use crate::opening::refuse_start;
use crate::reason::Reason;
use crate::schedule::{ASKING, DONE, NEXT, OPENED, SEARCHING, THERE, quiet};
use crate::sip;
use crate::stage::Stage;
use crate::state::{self, Seen, State};
use crate::tables::{Tables, bump};
use crate::template::{ABSENT, CONTROLS, ID};
use crate::wide;

/// What [`Context::leave_out_of_line`] returns for a service with full NAT.
const AGAIN: u32 = 2;
/// What [`Context::make_way`] returns for a connection that stays.
pub(crate) const IN_PLACE: u64 = 1;

/// Chooses the destination of a new connection, by what the stage before has left.
#[inline(always)]
pub fn choose<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let packet = recall::<A, T>(context, scratch);
    let refused = context.tables.read(&scratch.refused) as u32;
    if refused != 0 {
        return refuse(context, frame, scratch, &packet, refused & !OPENED);
    }
    let service = match context.tables.read(&scratch.service) as u32 {
        0 => context.service_apart(&packet, frame.mark()),
        service => service,
    };
    let service = context.tables.forget(service.into()) as u32;
    let Some(record) = context.tables.service(service) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    // Port 0 and marks are for any port, others persist for FTP's data.
    let is_wider = record.persistence != 0 && record.flags & service_flag::FULL == 0;
    let is_own =
        is_wider || record.mark != 0 || u16::from_be_bytes(record.port) == packet.target_port;
    if service == 0 || !is_own {
        return Verdict::Pass(Reason::NoService);
    }
    if local::is_none_of(frame, record) {
        return Verdict::Pass(Reason::Local);
    }
    context.tables.write(&scratch.service, service.into());
    // What XDP leaves to TC has been chosen for there.
    if F::RESOLVES {
        let id = context.take_handed(frame, &packet, record.flags);
        if id != 0 {
            return context.go_once::<A>(scratch, id);
        }
    }
    if record.flags & service_flag::SIP != 0
        && record.persistence != 0
        && context.tables.read(&scratch.brief) & sip::SOUGHT == 0
    {
        return Verdict::Next(Stage::sip::<A>());
    }
    let chosen = match context.allow(frame, &packet, service) {
        DONE => context.lead(&packet, service),
        reason => reason,
    };
    if chosen == SEARCHING {
        return context.search_for(Stage::special::<A>());
    }
    if chosen == ASKING {
        return context.ask_guard(Stage::special::<A>());
    }
    if chosen & OPENED == 0 {
        return refuse(context, frame, scratch, &packet, chosen);
    }
    if record.flags & service_flag::ONE_PACKET != 0 && packet.protocol == udp::PROTOCOL {
        return context.send_once(&packet, scratch, chosen);
    }
    context.tables.write(&scratch.chosen, chosen.into());
    let is_full = |to: &Destination| to.flags & destination_flag::FULL != 0;
    if context.tables.destination(chosen & ID).is_some_and(is_full) {
        return Verdict::Next(Stage::lease::<A>());
    }
    Verdict::Next(Stage::join::<A>())
}

/// Makes the entries of a new connection, by what the stages before have left.
#[inline(always)]
pub fn join<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, _: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let packet = recall::<A, T>(context, scratch);
    let service = context.tables.read(&scratch.service) as u32;
    let chosen = context.tables.read(&scratch.chosen) as u32;
    let result = context.connect_special(&packet, service, chosen, &scratch.owed);
    conclude(context, scratch, &packet, chosen, result)
}

/// Says what follows when the entries have been made, or not.
#[inline(always)]
pub(crate) fn conclude<A: Ip, T: Tables>(
    context: &Context<'_, T>,
    scratch: &Scratch,
    packet: &Packet<A>,
    chosen: u32,
    result: u32,
) -> Verdict {
    let result = context.tables.forget(result.into()) as u32;
    if result & OPENED == 0 && chosen & CONTROLS != 0 {
        let unborn = Value::new(context.now, State::NONE, chosen & ID, 0, false);
        context.tables.write(&scratch.unborn, unborn.0);
    }
    context.settle_debts(packet, scratch);
    let back = back(context, scratch);
    // An error that finds no room does not go astray as its packet would, nor does what has unusual headers:
    // the stage that carries these would have it opened again.
    let stays = [Stage::adopted::<A>(), Stage::odd::<A>(), Stage::odd_sctp::<A>()];
    let goes_astray = result == Reason::Stateless as u32 && !stays.contains(&back);
    if result & OPENED != 0 || result == THERE || goes_astray {
        return Verdict::Next(back);
    }
    // There is room on the stack to say so.
    context.tables.write(&scratch.refused, u64::from(OPENED | result & !NEXT));
    Verdict::Next(Stage::special::<A>())
}

/// Returns the stage that carries the packet once its connection is there.
#[inline(always)]
fn back<T: Tables>(context: &Context<'_, T>, scratch: &Scratch) -> Stage {
    Stage::from_number((context.tables.read(&scratch.brief) >> 24) as u32 & 0xff)
}

/// Says what becomes of a packet that opens no connection.
#[inline(always)]
fn refuse<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    scratch: &Scratch,
    packet: &Packet<A>,
    result: u32,
) -> Verdict {
    let reason = Reason::from_number(result);
    let back = back(context, scratch) as u32;
    let is_plain =
        [Stage::rest::<A>(), Stage::apart::<A>(), Stage::full::<A>()].map(|stage| stage as u32);
    if is_plain.contains(&back) {
        return refuse_start(context, frame, packet, reason);
    }
    if back == Stage::adopted::<A>() as u32 {
        // As ip_vs_leave(): nobody is told of an error about an error.
        return quiet(reason);
    }
    left_to_the_stack(reason)
}

/// Returns the packet that was left.
#[inline(always)]
pub(crate) fn recall<A: Ip, T: Tables>(context: &Context<'_, T>, scratch: &Scratch) -> Packet<A> {
    let read = |word| context.tables.read(word);
    let ([source_high, source_low], [target_high, target_low]) = (&scratch.source, &scratch.target);
    let (ports, brief) = (read(&scratch.ports), read(&scratch.brief));
    Packet {
        source: A::from_words(read(source_high), read(source_low)),
        target: A::from_words(read(target_high), read(target_low)),
        source_port: (ports >> 16) as u16,
        target_port: ports as u16,
        protocol: brief as u8,
        flags: (brief >> 8) as u8,
        ttl: (brief >> 16) as u8,
        length: (ports >> 32) as u32,
    }
}

/// Returns the state that a connection has before the stage that carries its first packet notes that. To TCP and
/// UDP it makes no difference that it is noted once more.
#[inline(always)]
pub(crate) fn first(seen: Seen, protocol: u8, flags: u8, strict: bool) -> State {
    if protocol == sctp::PROTOCOL {
        State::UNASSOCIATED
    } else {
        state::first::<true>(seen, protocol, flags, strict)
    }
}

/// Returns the number of that state, or of another one for a packet that was quoted.
#[inline(never)]
fn unless_quoted(state: u32, protocol: u8, flags: u8) -> u32 {
    if flags == QUOTED { adopt::first_state(protocol).0 } else { state }
}

impl<T: Tables> Context<'_, T> {
    /// Returns whether a service's new connections are for the stage of special services.
    #[inline(always)]
    pub(crate) fn is_special(&self, service: u32) -> bool {
        self.tables
            .service(service)
            .is_some_and(|service| service.flags & service_flag::SPECIAL != 0)
    }

    /// Leaves a packet for the stage of special services; `back` carries it on. Where a service has
    /// full NAT, its own stage looks first whether the connection is there.
    #[inline(always)]
    pub(crate) fn leave<A: Ip>(&self, packet: &Packet<A>, service: u32, back: Stage) -> Verdict {
        if self.leave_out_of_line(packet, service, back as u32) == AGAIN {
            return Verdict::Next(Stage::full::<A>());
        }
        Verdict::Next(Stage::special::<A>())
    }

    #[inline(never)]
    fn leave_out_of_line<A: Ip>(&self, packet: &Packet<A>, service: u32, back: u32) -> u32 {
        let is_again = back != Stage::full::<A>() as u32 && self.has_full_nat(service);
        self.leave_as_it_is(packet, service, back);
        if is_again { AGAIN } else { 1 }
    }

    /// Leaves a packet in the map `scratch`.
    #[inline(always)]
    pub(crate) fn leave_as_it_is<A: Ip>(&self, packet: &Packet<A>, service: u32, back: u32) {
        let Some(scratch) = self.tables.scratch(self.tables.cpu()) else { return };
        let Packet { source_port, target_port, protocol, flags, ttl, length, .. } = *packet;
        let ports = u64::from(length) << 32 | u64::from(source_port) << 16 | u64::from(target_port);
        let brief = u64::from(back) << 24
            | u64::from(ttl) << 16
            | u64::from(flags) << 8
            | u64::from(protocol);
        let (source, target) = (packet.source.words(), packet.target.words());
        let words =
            [source.0, source.1, target.0, target.1, ports, brief, service.into(), 0, 0, 0, 0];
        let [source_high, source_low] = &scratch.source;
        let [target_high, target_low] = &scratch.target;
        let Scratch { ports, brief, service, chosen, owed, unborn, refused, .. } = scratch;
        let ends = [source_high, source_low, target_high, target_low];
        let rest = [ports, brief, service, chosen, owed, unborn, refused];
        let places = ends.into_iter().chain(rest);
        for (place, word) in places.zip(words) {
            self.tables.write(place, word);
        }
    }

    /// Returns the destination of a new connection as [`follow_template`](Self::follow_template) does.
    #[inline(always)]
    fn lead<A: Ip>(&self, packet: &Packet<A>, service: u32) -> u32 {
        let persists = |service: &Service| service.persistence != 0;
        let is_persistent = self.tables.service(service).is_some_and(persists);
        if is_persistent {
            let led = self.follow_template(service, packet, 0);
            if led != ABSENT {
                return led;
            }
        }
        let chosen = self.appoint(service, packet);
        if !is_persistent || chosen & OPENED == 0 {
            return chosen;
        }
        // Another CPU may have made the template since: then that leads.
        self.follow_template(service, packet, chosen)
    }

    /// Makes the entries of a connection to a destination. What `owed` says when it is done was
    /// controlled by a template, and is gone.
    #[inline(always)]
    fn connect_special<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        chosen: u32,
        owed: &Word,
    ) -> u32 {
        let id = chosen & ID;
        let Some(destination) = self.tables.destination(id) else {
            return Reason::Inconsistent as u32;
        };
        let paired = destination.method == method::MASQUERADE;
        let seen = if paired { Seen::Request } else { Seen::RequestOnly };
        let strict = self.settings.strict != 0;
        let state = first(seen, packet.protocol, packet.flags, strict);
        let state = State(unless_quoted(state.0, packet.protocol, packet.flags));
        let value = Value::new(self.now, state, id, service, paired);
        let value = if chosen & CONTROLS != 0 { value.controlled() } else { value };
        let Some(record) = self.tables.service(service) else {
            return Reason::Inconsistent as u32;
        };
        let is_wide = record.mark != 0 || record.flags & service_flag::FULL != 0;
        if is_wide || u16::from_be_bytes(record.port) != packet.target_port {
            return self.connect_wide(packet, service, destination, value, owed);
        }
        let key = Key::new(self.settings, &packet.request(), service);
        let Some(lock) = self.lock(&key, 0) else { return Reason::Busy as u32 };
        let old = A::make_way(self.tables, &key);
        let result = if old == IN_PLACE {
            THERE
        } else {
            self.tables.write(owed, old);
            self.join_special(packet, &key, destination, value)
        };
        self.unlock(lock);
        result
    }

    #[inline(always)]
    fn connect_wide<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        destination: &Destination,
        value: Value,
        owed: &Word,
    ) -> u32 {
        let key = wide::Key::request(packet);
        let Some(lock) = self.lock_wide(&key, 0) else { return Reason::Busy as u32 };
        let old = self.tables.make_way_wide(&key, packet.flags);
        let result = if old == IN_PLACE {
            THERE
        } else {
            self.tables.write(owed, old);
            self.join_wide(packet, service, destination, value)
        };
        self.unlock(lock);
        result
    }

    /// Has a destination take one datagram, which leaves no entry and which a template controls only so
    /// long.
    #[inline(always)]
    fn send_once<A: Ip>(&self, packet: &Packet<A>, scratch: &Scratch, chosen: u32) -> Verdict {
        let id = chosen & ID;
        if chosen & CONTROLS != 0 {
            let (high, low) = packet.source.words();
            let one = Value::new(self.now, State::NONE, id, 0, false);
            self.tables.release_template(high, low, one.0);
        }
        if let Some(row) = self.tables.row(self.row_index(id)) {
            bump(&row.connections, 1);
        }
        self.go_once::<A>(scratch, id)
    }

    /// Has a destination get the datagram that is there, which leaves no entry.
    #[inline(always)]
    fn go_once<A: Ip>(&self, scratch: &Scratch, id: u32) -> Verdict {
        self.tables.write(&scratch.once, id.into());
        let back = back(self, scratch) as u32;
        let is_odd = back == Stage::odd::<A>() as u32 || back == Stage::strange::<A>() as u32;
        Verdict::Next(if is_odd { Stage::strange::<A>() } else { Stage::apart::<A>() })
    }

    #[inline(never)]
    fn join_special<A: Ip>(
        &self,
        packet: &Packet<A>,
        key: &Key<A>,
        destination: &Destination,
        value: Value,
    ) -> u32 {
        self.join(packet, key, destination, value)
    }

    /// Removes a connection that is over, or whose destination is gone if others are to be chosen.
    /// Returns `IN_PLACE` if there is one that stays, its value if a template controlled the one that
    /// went, else 0.
    #[inline(always)]
    pub fn make_way<A: Ip>(&self, key: &Key<A>) -> u64 {
        let Some(found) = self.find_here(key) else { return 0 };
        let is_orphan = self.is_orphan(found.value);
        if self.is_young(found.value) && !is_orphan {
            return IN_PLACE;
        }
        let twin = self.other_half(key.client, key.port, found.value);
        let twin = twin.and_then(|key| self.find_here(&key));
        let twin = twin.filter(|twin| twin.value.destination() == found.value.destination());
        if twin.as_ref().is_some_and(|twin| self.is_young(twin.value)) && !is_orphan
            || !self.remove_uncontrolled(&found)
        {
            return IN_PLACE;
        }
        if let Some(twin) = twin {
            self.remove(&twin);
        }
        if found.value.is_controlled() { found.value.0 } else { 0 }
    }

    /// Returns whether a connection's destination is gone, and the user wants another; or it was taken out
    /// without having answered.
    #[inline(always)]
    fn is_orphan(&self, value: Value) -> bool {
        let expires = self.settings.flags & settings_flag::EXPIRE_REMOVED != 0;
        let is_half_open = value.state() == State::SYN_RECV;
        let forsakes = |destination: &Destination| {
            let gone = destination.flags & destination_flag::AVAILABLE == 0;
            expires && gone || is_half_open && destination.retired_at != 0
        };
        self.tables.destination(value.destination()).map_or(expires, forsakes)
    }

    /// Takes from templates what they control no more: a connection that made way, and one that did not
    /// come about.
    #[inline(always)]
    fn settle_debts<A: Ip>(&self, packet: &Packet<A>, scratch: &Scratch) {
        let (high, low) = packet.source.words();
        for debt in [&scratch.owed, &scratch.unborn] {
            let value = Value(self.tables.read(debt));
            if value.is_live() {
                self.tables.release_template(high, low, value.0);
            }
        }
    }
}
