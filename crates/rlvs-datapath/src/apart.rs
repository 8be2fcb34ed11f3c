//! Packets that no endpoint names: those of connections in the wide table, datagrams that leave no
//! entry and their answers, and what may open a connection of a service without a port or an address.

use rlvs_wire::{checksum, tcp};

use crate::abi::{
    Destination, Row, Scratch, Service, WideSlot, destination_flag, endpoint_kind, method,
    service_flag, settings_flag,
};
use crate::connection::{Context, Found, Value};
use crate::endpoint;
use crate::forward::{account, does_not_fit, forward};
use crate::frame::{Deltas, Frame, Verdict};
use crate::hop;
use crate::ip::{End, Ip, Packet, Substitute};
use crate::local;
use crate::reason::Reason;
use crate::refuse::{Complaint, complain, complain_of_length, leave_too_big};
use crate::stage::Stage;
use crate::tables::{Tables, bump};
use crate::wide::{Key, ports_of, protocol_of};

/// A TCP or UDP packet that no endpoint names; it may be a request.
#[inline(always)]
pub fn any<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    let chosen = context.take_chosen(&packet);
    if chosen != 0 {
        return plain_request(context, frame, &packet, chosen, None);
    }
    if let Some(found) = context.find_wide_live(&Key::request(&packet)) {
        if packet.ttl <= 1 {
            return complain(context, frame, &packet, Complaint::TimeExceeded, Reason::Expired);
        }
        if context.is_forsaken::<true>(packet.protocol, packet.flags, found.value) {
            return context.leave(&packet, 0, Stage::apart::<A>());
        }
        return plain_request(context, frame, &packet, found.value.destination(), Some(found));
    }
    Verdict::Next(Stage::back::<A>())
}

/// A packet that no endpoint names and that is no request of a connection.
#[inline(always)]
pub fn back<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if let Some(Found { slot, value }) = context.find_wide_live(&Key::reply(&packet)) {
        if value.is_substituted() {
            return Verdict::Next(Stage::full::<A>());
        }
        let track = |slot: &WideSlot| {
            context.track_wide_reply::<true>(slot, packet.protocol, packet.flags);
        };
        return answer(context, frame, &packet, value.destination(), Some(slot), track);
    }
    let id = context.answers_once(&packet);
    if id != 0 {
        return answer(context, frame, &packet, id, None, |_| {});
    }
    if context.may_start::<A, true>(&packet) {
        return context.leave(&packet, 0, Stage::apart::<A>());
    }
    if context.tells_servers(&packet) {
        return complain(context, frame, &packet, Complaint::PortUnreachable, Reason::UnknownReply);
    }
    Verdict::Pass(Reason::NoService)
}

/// A packet from a client, of TCP or UDP and with the usual headers.
#[inline(always)]
fn plain_request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    id: u32,
    found: Option<Found<'_, WideSlot>>,
) -> Verdict {
    let track = |found: &Found<'_, WideSlot>| {
        context.track_wide::<true>(found.slot, found.value, packet.protocol, packet.flags);
    };
    let is_alone = found.is_none();
    let too_big = |frame: &mut F, mtu| {
        let verdict = complain_of_length(context, frame, packet, mtu);
        if is_alone {
            context.keep_choice(frame, packet, id, verdict, true);
        }
        verdict
    };
    request(context, frame, packet, id, true, found, track, too_big)
}

/// Returns what replacing one end of a packet by an address and port does to checksums.
#[inline(always)]
pub(crate) fn deltas<A: Ip>(old: A, old_port: u16, new: &[u8; 16], new_port: u16) -> Deltas {
    let (high, low) = old.words();
    let address = delta_of(high, low, new) as u16;
    Deltas { address, port: checksum::delta(old_port, new_port) }
}

#[inline(never)]
fn delta_of(high: u64, low: u64, new: &[u8; 16]) -> u32 {
    let old = checksum::sum(&(u128::from(high) << 64 | u128::from(low)).to_be_bytes());
    checksum::delta(checksum::fold(old), checksum::fold(checksum::sum(new))).into()
}

/// Returns the port of a real server for packets to a port of a service, as `ip_vs_sched_persist()`
/// and `ip_vs_schedule()`.
#[inline(always)]
pub(crate) fn real_port(service: &Service, destination: &Destination, port: u16) -> u16 {
    let real = u16::from_be_bytes(destination.port);
    let is_own = service.persistence == 0 || port == u16::from_be_bytes(service.port);
    if real != 0 && is_own { real } else { port }
}

/// A packet from a client, to a destination; `track` notes it on its connection once the way is known,
/// `too_big` is told what the way takes if the packet is longer. One that `is_first` is no later fragment.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the two kinds of packets differ in all of them")]
pub(crate) fn request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    id: u32,
    is_first: bool,
    found: Option<Found<'_, WideSlot>>,
    track: impl FnOnce(&Found<'_, WideSlot>),
    too_big: impl FnOnce(&mut F, u32) -> Verdict,
) -> Verdict {
    let Ok((destination, row)) = context.destination(id) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    let way = match context.way_to_destination(frame, row, destination) {
        Ok(way) if local::would_return(frame, destination, &way) => {
            return Verdict::Pass(Reason::FromPeer);
        }
        Ok(way) => Some(way),
        Err(Verdict::Pass(Reason::Local)) if destination.flags & destination_flag::LOCAL == 0 => {
            return Verdict::Next(Stage::lost::<A>());
        }
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES => None,
        Err(Verdict::Drop(Reason::Unreachable)) => return Verdict::Next(Stage::lost::<A>()),
        Err(verdict) => {
            if found.is_none() {
                context.keep_choice(frame, packet, id, verdict, is_first);
            }
            return verdict;
        }
    };
    let port = match &found {
        Some(found) => ports_of(context.tables.read(&found.slot.key)).2,
        None => {
            let service = context.tables.service(destination.service);
            service.map_or(0, |service| real_port(service, destination, packet.target_port))
        }
    };
    if let Some(found) = &found {
        track(found);
    }
    let is_nat = destination.method == method::MASQUERADE;
    let Some(way) = way else {
        count_request(row, packet.length);
        if !is_nat {
            return Verdict::Pass(Reason::Local);
        }
        let address = A::from_octets(&destination.address).words();
        return context.replace::<A>(End::Target, address, port, local::PACKET);
    };
    let (end, address) = (End::Target, &destination.address);
    let deltas = deltas(packet.target, packet.target_port, address, port);
    let by = Substitute { end, address, port: port.to_be_bytes(), deltas };
    if let Some(mtu) = does_not_fit(frame, packet, destination.overhead, &way) {
        return too_big(frame, mtu);
    }
    if !is_nat {
        return forward::<A, F, T, true>(context, frame, packet, destination, row, &way);
    }
    if A::translate::<F, true>(frame, packet.protocol, &by).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    account(frame, packet, row, &way)
}

/// A packet from a NAT destination; `track` notes it on its connection, if it has one, once the way is known.
#[inline(always)]
pub(crate) fn answer<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    id: u32,
    slot: Option<&WideSlot>,
    track: impl FnOnce(&WideSlot),
) -> Verdict {
    let Ok((destination, row)) = context.destination(id) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    if packet.ttl <= 1 {
        return Verdict::Pass(Reason::Expired);
    }
    let way = match context.way_to_client(frame, packet.target) {
        Ok(way) => Some(way),
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES => None,
        Err(verdict) => return verdict,
    };
    let (address, port) = match slot {
        Some(slot) => {
            track(slot);
            let [high, low] = &slot.other;
            let vip = A::from_words(context.tables.read(high), context.tables.read(low));
            (vip.octets(), ports_of(context.tables.read(&slot.key)).2)
        }
        None => {
            let Some(service) = context.tables.service(destination.service) else {
                return Verdict::Drop(Reason::Inconsistent);
            };
            (service.address, u16::from_be_bytes(service.port))
        }
    };
    let Some(way) = way else {
        count_answer(row, packet.length);
        let address = A::from_octets(&address).words();
        return context.replace::<A>(End::Source, address, port, local::PACKET);
    };
    if does_not_fit(frame, packet, 0, &way).is_some() {
        return leave_too_big::<A, F>(frame);
    }
    let deltas = deltas(packet.source, packet.source_port, &address, port);
    let by = Substitute { end: End::Source, address: &address, port: port.to_be_bytes(), deltas };
    if A::translate::<F, true>(frame, packet.protocol, &by).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    count_answer(row, packet.length);
    hop::send(frame, &way)
}

#[inline(always)]
pub(crate) fn count_request(row: &Row, length: u32) {
    bump(&row.in_packets, 1);
    bump(&row.in_bytes, length.into());
}

#[inline(always)]
pub(crate) fn count_answer(row: &Row, length: u32) {
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, length.into());
}

impl<T: Tables> Context<'_, T> {
    /// Returns whether a packet that belongs to nothing is a server's, who is to be told so.
    #[inline(never)]
    fn tells_servers<A: Ip>(&self, packet: &Packet<A>) -> bool {
        let wanted = self.settings.flags & settings_flag::TELL_SERVERS != 0;
        let is_reset = packet.protocol == tcp::PROTOCOL && packet.flags & tcp::RST != 0;
        wanted && !is_reset && self.half(packet).is_some_and(|half| half.is_reply)
    }

    /// Returns the destination that was chosen for this datagram alone, or 0.
    #[inline(always)]
    pub(crate) fn take_chosen<A: Ip>(&self, packet: &Packet<A>) -> u32 {
        let Some(scratch) = self.tables.scratch(self.tables.cpu()) else { return 0 };
        let Scratch { source: [_, low], ports, once, .. } = scratch;
        let id = self.tables.read(once) as u32;
        let is_that = self.tables.read(low) == packet.source.words().1
            && self.tables.read(ports) as u32
                == u32::from(packet.source_port) << 16 | u32::from(packet.target_port);
        self.tables.write(once, 0);
        if is_that { id } else { 0 }
    }

    /// Has the stage that cuts a packet, if that follows, or TC, if XDP leaves the packet to it, take the
    /// destination that was chosen for it alone; one that `is_new` has been chosen by this packet.
    #[inline(always)]
    pub(crate) fn keep_choice<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        packet: &Packet<A>,
        id: u32,
        verdict: Verdict,
        is_new: bool,
    ) {
        let is_next = matches!(verdict, Verdict::Next(_));
        if F::RESOLVES {
            if is_next && let Some(scratch) = self.tables.scratch(self.tables.cpu()) {
                self.tables.write(&scratch.once, id.into());
            }
        } else if is_new && (is_next || matches!(verdict, Verdict::Pass(_))) {
            self.hand_on(frame, packet, id);
        }
    }

    /// Returns the destination that a datagram comes from whose requests leave no entry, or 0.
    #[inline(always)]
    pub(crate) fn answers_once<A: Ip>(&self, packet: &Packet<A>) -> u32 {
        let Packet { source, source_port, protocol, .. } = *packet;
        let kind = endpoint_kind::ONE_PACKET;
        let key = endpoint::Key::new(self.settings, kind, source, source_port, protocol);
        key.id(self.tables).unwrap_or(0)
    }

    /// Returns the service that a packet goes to which no endpoint names, or 0: by its mark, which a
    /// rule of ours has given or else is as `given`, by the relation of FTP's data to its control connections,
    /// by its address alone.
    #[inline(always)]
    pub(crate) fn service_apart<A: Ip>(&self, packet: &Packet<A>, given: u32) -> u32 {
        const FTP: u16 = 21;
        const FTP_DATA: u16 = 20;
        const UNPRIVILEGED: u16 = 1024;
        let Packet { target, target_port, protocol, .. } = *packet;
        let id = |kind, address: A, port, protocol| {
            let key = endpoint::Key::new(self.settings, kind, address, port, protocol);
            key.id(self.tables).unwrap_or(0)
        };
        let mark = match self.mark(packet) {
            0 => given,
            mark => mark,
        };
        if mark != 0 {
            let found = id(endpoint_kind::MARK, A::from_words(0, mark.into()), 0, 0);
            if found != 0 && self.is_live(found) {
                return found;
            }
        }
        let is_data = target_port == FTP_DATA || target_port >= UNPRIVILEGED;
        let kind = endpoint_kind::SERVICE;
        if protocol == rlvs_wire::tcp::PROTOCOL && is_data {
            let found = id(kind, target, FTP, protocol);
            if found != 0 && self.is_live(found) {
                return found;
            }
        }
        id(kind, target, 0, protocol)
    }

    #[inline(always)]
    fn is_live(&self, service: u32) -> bool {
        let live = |service: &Service| service.flags & service_flag::LIVE != 0;
        self.tables.service(service).is_some_and(live)
    }

    /// Removes what is over, or forsaken, of a connection in the wide table, as
    /// [`make_way`](Self::make_way).
    #[inline(always)]
    pub fn make_way_wide(&self, key: &Key, flags: u8) -> u64 {
        let mut value = Value(0);
        let Some(slot) = self.find_wide::<{ crate::wide::sought::EXACT }>(key, &mut value) else {
            return 0;
        };
        let forsaken = self.is_forsaken_of(protocol_of(key.word), flags, value);
        let mut other = Value(0);
        let twin = self.find_twin(slot, value, &mut other);
        let young = self.is_young(value) || twin.is_some() && self.is_young(other);
        if young && !forsaken || !self.remove_uncontrolled(&Found { slot, value }) {
            return crate::special::IN_PLACE;
        }
        if let Some(slot) = twin {
            self.remove(&Found { slot, value: other });
        }
        if value.is_controlled() { value.0 } else { 0 }
    }

    /// Makes the entries of a connection in the wide table and counts it. The caller holds the lock of
    /// the key and has not found it. The value says which destination, and whether there are two halves.
    #[inline(never)]
    pub(crate) fn join_wide<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        destination: &Destination,
        value: Value,
    ) -> u32 {
        let result = self.enter_wide_here(packet, service, destination, value);
        if result == crate::schedule::OPENED {
            self.count_got(value.destination());
        }
        result
    }

    /// As [`enter`](Self::enter) in the wide table.
    #[inline(never)]
    pub(crate) fn enter_wide<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        destination: &Destination,
        value: Value,
    ) -> u32 {
        self.enter_wide_here(packet, service, destination, value)
    }

    #[inline(always)]
    fn enter_wide_here<A: Ip>(
        &self,
        packet: &Packet<A>,
        service: u32,
        destination: &Destination,
        value: Value,
    ) -> u32 {
        let Some(service) = self.tables.service(service) else {
            return Reason::Inconsistent as u32;
        };
        let port = real_port(service, destination, packet.target_port);
        let request = Key::request(packet);
        let request = Key { word: request.word | u64::from(port), ..request };
        if value.is_paired() {
            let back = Packet {
                source: A::from_octets(&destination.address),
                source_port: port,
                target: packet.source,
                target_port: packet.source_port,
                ..*packet
            };
            let reply = Key::reply(&back);
            let reply = Key { word: reply.word | u64::from(packet.target_port), ..reply };
            let (high, low) = packet.target.words();
            if self.insert_reply(&reply, value.reply(0), high, low) == 0 {
                return Reason::ReplyTaken as u32;
            }
        }
        if self.insert_wide(&request, value, 0, 0).is_none() {
            // The reply half goes with its time.
            return Reason::TableFull as u32;
        }
        self.count_entered(destination, value);
        crate::schedule::OPENED
    }

    /// Counts a connection that has been opened and whose entries have been made.
    #[inline(always)]
    pub(crate) fn count_opened(&self, destination: &Destination, value: Value) {
        self.count_entered(destination, value);
        self.count_got(value.destination());
    }

    /// Puts a reply half into the table. Returns 0 if there is one that is not over.
    #[inline(always)]
    fn insert_reply(&self, key: &Key, value: Value, high: u64, low: u64) -> u32 {
        let Some(lock) = self.lock_wide(key, 1) else { return 0 };
        let mut old = Value(0);
        let free = match self.find_wide::<{ crate::wide::sought::EXACT }>(key, &mut old) {
            Some(slot) => !self.is_young(old) && self.remove(&Found { slot, value: old }),
            None => true,
        };
        let done = self.tables.forget(free.into()) != 0
            && self.insert_wide(key, value, high, low).is_some();
        self.unlock(lock);
        done.into()
    }
}
