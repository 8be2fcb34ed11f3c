//! Where one end of a connection is this host: a real server on the director, a client on it, and two
//! directors that are also the real servers.
//!
//! XDP leaves all of it to TC. Nothing here lowers the time to live, as the packet stays on the host.
//! A real server here gets its packets from the stack: as they are, or, with NAT, readdressed. What
//! such a server answers [`depart`] translates as it leaves, and what the stack says of packets to it. A
//! client here sends by the loopback device, and sees answers come in there, as they come from one of this host's own addresses. Only NAT serves
//! it: its own address is the virtual one, which the real servers of direct routing have as well.
//!
//! What is readdressed goes to a stage of its own, [`here`], which finds the parts of any packet first, so that
//! options, extension headers, fragments and SCTP fare like the rest. The stage before has found whose packet
//! it is, noted and counted it, and leaves what takes the place of one end in the map `scratch`.
//!
//! Of two directors that send to each other, one would send back what the other sent. So a packet whose
//! frame comes from a real server of the service is passed to the stack, which has the virtual address.

use core::cell::Cell;

use rlvs_wire::{ethernet, put_at, sctp, u16_at};

use crate::abi::{
    Destination, Hop, Row, Scratch, Service, destination_flag, endpoint_kind, method, service_flag,
    settings_flag,
};
use crate::apart::{count_answer, count_request, deltas};
use crate::connection::{Context, Found, Key};
use crate::endpoint;
use crate::errors::{Quote, odd};
use crate::frame::{Frame, Verdict};
use crate::hop::Way;
use crate::ip::{End, Ip, Packet, Substitute, V4, V6};
use crate::moved::Moved;
use crate::reason::Reason;
use crate::special::recall;
use crate::stage::Stage;
use crate::strange::{FINE, Place};
use crate::tables::Tables;
use crate::wide::{self, ports_of};

/// Interface index of the loopback device.
pub const LOOPBACK: u32 = 1;
/// How many destinations of a service are looked through for the one that sent a packet. Each may cost
/// two tail calls, of which a packet has 33.
const PEERS_MAX: u32 = 12;

/// Counts a request to a real server on this host, which the stack gets, readdressed if it is one of NAT.
#[inline(always)]
pub(crate) fn deliver<A: Ip, T: Tables>(
    context: &Context<'_, T>,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
) -> Verdict {
    count_request(row, packet.length);
    if destination.method != method::MASQUERADE {
        return Verdict::Pass(Reason::Local);
    }
    let address = A::from_octets(&destination.address).words();
    context.replace::<A>(End::Target, address, u16::from_be_bytes(destination.port), PACKET)
}

/// Counts a reply to a client on this host, which is to get it from the service.
#[inline(always)]
pub(crate) fn give_back<A: Ip, T: Tables>(
    context: &Context<'_, T>,
    packet: &Packet<A>,
    service: &Service,
    row: &Row,
) -> Verdict {
    count_answer(row, packet.length);
    let address = A::from_octets(&service.address).words();
    context.replace::<A>(End::Source, address, u16::from_be_bytes(service.port), PACKET)
}

/// What [`Context::replace`] is told of a packet that is no ICMP error.
pub(crate) const PACKET: u64 = 0;
/// Of an ICMP error: what it quotes is readdressed too.
pub(crate) const ERROR: u64 = 1 << 16;
/// In the third word of what stands in, above the port (16 bits): it takes the place of the source.
const REPLY: u64 = 1 << 17;

/// A packet that stays on this host, of whatever kind: puts what the stage before has left in the place of one
/// end.
#[inline(always)]
pub fn here<A: Quote, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let brief = context.tables.read(&scratch.stand_in[2]);
    let seen = match brief & ERROR {
        0 => context.lay_out::<A, F>(frame, scratch),
        _ => context.lay_out_quoted::<A, F>(frame, scratch),
    };
    if seen != FINE {
        return Verdict::Pass(Reason::from_number(seen));
    }
    if put_in_place::<A, F, T, false>(context, frame, scratch) == 0 {
        return Verdict::Drop(Reason::Malformed);
    }
    // By the loopback device a reply knows its way already.
    if brief & REPLY == 0 || frame.interface() == LOOPBACK {
        return Verdict::Pass(Reason::Local);
    }
    // That device's address, by which it knows its own.
    let Some(head) = frame.head::<12>() else { return Verdict::Drop(Reason::Malformed) };
    put_at(head, ethernet::DESTINATION, [0; 6]);
    put_at(head, ethernet::SOURCE, ARRIVED);
    Verdict::Arrive
}

/// Where a frame comes from that a program had come in by the loopback device; of its own they have none.
pub const ARRIVED: [u8; 6] = [2, 0, 0, 0, 0, 0];

/// Returns whether a frame by the loopback device is none for a service of every port or of a mark: an answer
/// to the virtual address, which clients here have for their own, or a packet that the service cannot serve.
#[inline(always)]
pub(crate) fn is_none_of<F: Frame>(frame: &mut F, service: &Service) -> bool {
    if !F::RESOLVES || frame.interface() != LOOPBACK {
        return false;
    }
    let is_answer = frame.head::<14>().is_some_and(|head| sender_of(head) != 0);
    is_answer || service.flags & service_flag::LOCAL_CLIENTS == 0
}

/// Decides over a frame that leaves this host: what a NAT destination here says is said by the
/// service; anything else leaves as it is, and nothing is counted.
#[inline(always)]
pub fn depart<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(context) = Context::of(tables) else { return STRANGER };
    let Some(head) = frame.head::<14>() else { return STRANGER };
    match u16_at(head, ethernet::TYPE) {
        ethernet::IPV4 => depart_as::<V4, F, T>(&context, frame),
        ethernet::IPV6 => depart_as::<V6, F, T>(&context, frame),
        _ => STRANGER,
    }
}

/// What becomes of a frame that leaves and is not ours.
const STRANGER: Verdict = Verdict::Pass(Reason::NoService);

#[inline(always)]
fn depart_as<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(Reason::Malformed) => return STRANGER,
        Err(_) => return Verdict::Next(Stage::said::<A>()),
    };
    let Some(found) = context.find_reply(&packet) else {
        return match context.settings.flags & settings_flag::WIDE {
            0 => STRANGER,
            _ => Verdict::Next(Stage::said::<A>()),
        };
    };
    let Ok((destination, row)) = context.destination(found.value.destination()) else {
        return STRANGER;
    };
    let Some(service) = context.tables.service(destination.service) else { return STRANGER };
    context.track_reply::<_, true>(&packet, &found);
    let by = Substitute::by_service(destination, service);
    if A::readdress(frame, packet.protocol, &by).is_none() {
        return STRANGER;
    }
    count_answer(row, packet.length);
    Verdict::Pass(Reason::Local)
}

/// Has `work` decide over a frame that leaves this host, whosever it is. Nothing is counted.
#[inline(always)]
pub fn leaving<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    work: impl FnOnce(&Context<'_, T>, &mut F, u16) -> Verdict,
) -> Verdict {
    Context::of(tables).map_or(STRANGER, |context| work(&context, frame, 0))
}

/// As [`depart`], what is not TCP or UDP behind a plain header, or of no ordinary connection: an ICMP error of
/// this host's stack, which quotes what it got, is told by the service as well.
#[inline(always)]
pub fn said<A: Quote, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else { return STRANGER };
    let seen = match A::protocol(frame) {
        Some(protocol) if protocol == A::ICMP => {
            match context.lay_out_quoted::<A, F>(frame, scratch) {
                FINE => FINE,
                _ => context.lay_out_quoted_odd::<A, F>(frame, scratch),
            }
        }
        _ => context.lay_out::<A, F>(frame, scratch),
    };
    if seen != FINE
        || context.let_speak::<A>(scratch) == 0
        || put_in_place::<A, F, T, true>(context, frame, scratch) == 0
    {
        return STRANGER;
    }
    Verdict::Pass(Reason::Local)
}

/// Puts what `scratch` says in the place of one end of the packet there, or of an ICMP error and what it quotes,
/// with unusual headers if `ODD`. Returns 0 if that cannot be done.
#[inline(never)]
fn put_in_place<A: Quote, F: Frame, T: Tables, const ODD: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    scratch: &Scratch,
) -> u32 {
    let packet = recall::<A, T>(context, scratch);
    let [high, low, brief] = &scratch.stand_in;
    let brief = context.tables.forget(context.tables.read(brief));
    let address = A::from_words(context.tables.read(high), context.tables.read(low)).octets();
    let port = brief as u16;
    let (end, old, old_port) = match brief & REPLY {
        0 => (End::Target, packet.target, packet.target_port),
        _ => (End::Source, packet.source, packet.source_port),
    };
    let deltas = deltas(old, old_port, &address, port);
    let by = Substitute { end, address: &address, port: port.to_be_bytes(), deltas };
    let place = Place::of(context, scratch);
    if ODD && brief & ERROR != 0 && !place.is_bare() {
        return odd::translate::<A, F>(frame, &packet, &by, place).is_some().into();
    }
    if brief & ERROR != 0 {
        return A::translate_error(frame, &packet, &by, false).is_some().into();
    }
    let frame = &mut Moved::<F, false>::new(frame, place.transport());
    A::readdress(frame, packet.protocol, &by).is_some().into()
}

impl<'a, T: Tables> Context<'a, T> {
    /// Has the stage for what stays on this host put an address and a port in the place of an end; `kind` is
    /// [`PACKET`] or [`ERROR`].
    #[inline(always)]
    pub(crate) fn replace<A: Ip>(
        &self,
        end: End,
        (high, low): (u64, u64),
        port: u16,
        kind: u64,
    ) -> Verdict {
        let is_reply = if end == End::Source { REPLY } else { 0 };
        self.leave_stand_in(high, low, u64::from(port) | kind | is_reply);
        Verdict::Next(Stage::here::<A>())
    }

    /// Leaves what stands in for an end. Returns 1, as BPF functions return something.
    #[inline(never)]
    fn leave_stand_in(&self, high: u64, low: u64, brief: u64) -> u32 {
        if let Some(scratch) = self.tables.scratch(self.tables.cpu()) {
            for (place, word) in scratch.stand_in.iter().zip([high, low, brief]) {
                self.tables.write(place, word);
            }
        }
        1
    }

    /// As [`lay_out`](Self::lay_out), what an ICMP error quotes.
    #[inline(never)]
    fn lay_out_quoted<A: Quote, F: Frame>(&self, frame: &mut F, scratch: &Scratch) -> u32 {
        match A::quoted(frame) {
            Ok(packet) => {
                self.leave_as_it_is(&packet, 0, 0);
                self.tables.write(&scratch.place, Place::QUOTED.0);
                FINE
            }
            Err(reason) => reason as u32,
        }
    }

    /// As [`lay_out_quoted`](Self::lay_out_quoted), a packet with IPv4 options or IPv6 extension headers.
    #[inline(never)]
    fn lay_out_quoted_odd<A: Quote, F: Frame>(&self, frame: &mut F, scratch: &Scratch) -> u32 {
        match A::quoted_odd(frame, self.tables) {
            Ok((packet, place)) => {
                self.leave_as_it_is(&packet, 0, 0);
                self.tables.write(&scratch.place, place.0);
                FINE
            }
            Err(reason) => reason as u32,
        }
    }

    /// Finds the reply half that a packet belongs to.
    #[inline(always)]
    fn find_reply<A: Ip>(&self, packet: &Packet<A>) -> Option<Found<'a, A::Slot>> {
        let Packet { source, source_port, protocol, .. } = *packet;
        let kind = endpoint_kind::REPLY;
        let endpoint = endpoint::Key::new(self.settings, kind, source, source_port, protocol);
        self.find_live(&Key::new(self.settings, &packet.reply(), endpoint.id(self.tables)?))
    }

    /// Leaves who is to say to its client what a NAT destination here says, and notes and counts it. Returns
    /// 0 for a packet that is not ours.
    #[inline(never)]
    fn let_speak<A: Ip>(&self, scratch: &Scratch) -> u32 {
        self.find_speaker::<A>(scratch).is_some().into()
    }

    #[inline(always)]
    fn find_speaker<A: Ip>(&self, scratch: &Scratch) -> Option<()> {
        let packet = &recall::<A, T>(self, scratch);
        let place = Place::of(self, scratch);
        let id;
        let mut slot = None;
        if let Some(found) = self.find_reply(packet) {
            id = found.value.destination();
            match packet.protocol {
                _ if place.is_quoted() => {}
                _ if place.is_bare() => self.touch(&found),
                sctp::PROTOCOL => self.track_reply::<A, false>(packet, &found),
                _ => self.track_reply::<A, true>(packet, &found),
            }
        } else if self.settings.flags & settings_flag::WIDE == 0 {
            return None;
        } else if let Some(found) = self.find_wide_live(&wide::Key::reply(packet)) {
            // Full NAT has its clients' answers come in.
            if found.value.is_substituted() {
                return None;
            }
            id = found.value.destination();
            slot = Some(found.slot);
        } else {
            id = Some(self.answers_once(packet)).filter(|&id| id != 0)?;
        }
        let (destination, row) = self.destination(id).ok()?;
        let service = self.tables.service(destination.service)?;
        let ((high, low), port) = match slot {
            Some(slot) => {
                let [high, low] = &slot.other;
                let address = (self.tables.read(high), self.tables.read(low));
                (address, ports_of(self.tables.read(&slot.key)).2)
            }
            None => (A::from_octets(&service.address).words(), u16::from_be_bytes(service.port)),
        };
        if place.keeps_port(packet) && port != packet.source_port {
            return None;
        }
        if let Some(slot) = slot
            && !place.is_quoted()
        {
            self.note_reply(slot, packet, place);
        }
        self.remember(packet, place.begun(self, scratch));
        let error = if place.is_quoted() { ERROR } else { PACKET };
        self.leave_stand_in(high, low, u64::from(port) | error | REPLY);
        count_answer(row, packet.length);
        Some(())
    }
}

/// Returns whether a packet would go back to the director that it comes from.
#[inline(always)]
pub(crate) fn would_return<F: Frame>(
    frame: &mut F,
    destination: &Destination,
    way: &Way<'_>,
) -> bool {
    is_from(frame, destination, way.hop) != 0
}

/// Returns 1 if a frame comes from a peer to which a way leads, else 0. One that is not resolved has
/// no address to be mistaken for its own.
#[inline(never)]
fn is_from<F: Frame>(frame: &mut F, destination: &Destination, hop: &Cell<Hop>) -> u32 {
    let hop = hop.get();
    let Some(head) = frame.head::<14>() else { return 0 };
    let is_peer = destination.flags & destination_flag::PEER != 0 && hop.interface != 0;
    u32::from(is_peer && leads_to(&hop, sender_of(head)))
}

/// Returns the source address of a frame as a number.
#[inline(always)]
fn sender_of(head: &[u8; 14]) -> u64 {
    let [a, b, c, d, e, f]: [u8; 6] = rlvs_wire::bytes_at(head, ethernet::SOURCE);
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// Returns whether a way leads to the neighbour whose address is this number.
#[inline(always)]
fn leads_to(hop: &Hop, neighbour: u64) -> bool {
    const MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    (hop.head ^ neighbour) & MASK == 0
}

/// Who sent a frame that may open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// No real server of the service that is known.
    Client = 0,
    /// A real server of the service, which is a director too: it has chosen this host.
    Peer = 1,
    /// The ways to them have to be asked for.
    Unknown = 2,
    /// A client on this host, whom the service does not serve.
    Here = 3,
}

impl<T: Tables> Context<'_, T> {
    /// Returns who sent a frame to a service.
    #[inline(always)]
    pub(crate) fn sender<F: Frame>(&self, frame: &mut F, service: u32) -> Sender {
        let Some(service) = self.tables.service(service) else { return Sender::Client };
        if frame.interface() == LOOPBACK && service.flags & service_flag::LOCAL_CLIENTS == 0 {
            return Sender::Here;
        }
        if service.flags & service_flag::PEERED == 0 {
            return Sender::Client;
        }
        let Some(head) = frame.head::<14>() else { return Sender::Client };
        match self.tables.look_for_peer(sender_of(head), service.head) {
            0 => Sender::Client,
            1 => Sender::Peer,
            _ => Sender::Unknown,
        }
    }

    /// Compares a frame's sender with the ways that are kept. Returns a `Sender`.
    #[inline(always)]
    pub fn look_for_peer(&self, sender: u64, first: u32) -> u32 {
        let mut id = first;
        for _ in 0..PEERS_MAX {
            if id == 0 {
                break;
            }
            let Ok((destination, row)) = self.destination(id) else { break };
            if destination.flags & destination_flag::PEER != 0 {
                let hop = row.hop.get();
                if self.is_unknown(&hop) {
                    return Sender::Unknown as u32;
                }
                if hop.interface != 0 && leads_to(&hop, sender) {
                    return Sender::Peer as u32;
                }
            }
            id = destination.next;
        }
        Sender::Client as u32
    }

    /// Asks for one of the ways that [`sender`](Self::sender) wants to know; the next packet's look, or
    /// this one's next, finds another. One that there is not is kept as such until the destination is
    /// chosen.
    #[inline(always)]
    pub(crate) fn ask_for_a_peer<F: Frame>(&self, frame: &mut F, service: u32) {
        let id = self
            .tables
            .service(service)
            .map_or(0, |service| self.tables.unknown_peer(service.head));
        let Ok((destination, row)) = self.destination(id) else { return };
        if id == 0 {
            return;
        }
        if self.way_to_destination(frame, row, destination).is_err() {
            row.hop.set(Hop::unresolved(LOOPBACK, false, [0; 4]));
        }
    }

    /// Returns the first peer whose way has to be asked for, 0 if there is none.
    #[inline(always)]
    pub fn unknown_peer(&self, first: u32) -> u32 {
        let mut id = first;
        for _ in 0..PEERS_MAX {
            let Ok((destination, row)) = self.destination(id) else { return 0 };
            if destination.flags & destination_flag::PEER != 0 && self.is_unknown(&row.hop.get()) {
                return id;
            }
            id = destination.next;
        }
        0
    }

    /// Returns whether a way to a peer has to be asked for.
    #[inline(always)]
    fn is_unknown(&self, hop: &Hop) -> bool {
        hop.interface == 0 && hop.checked == 0 || hop.interface != 0 && !self.is_fresh(hop)
    }
}
