//! The forwarding function, in stages.
//!
//! [`process`] carries what nearly every packet is: one in the middle of its connection's life, to
//! or from a destination whose way is known. It changes nothing before it knows that the packet is
//! such a one, and hands any other to the [`Stage`] that can deal with it, which begins anew. In BPF
//! a stage is a program of its own, so that what is rare costs the common packet neither
//! instructions nor stack.
//!
//! Order of a request: is the frame ours, does it go to a service, does its connection exist, can it
//! be opened; then the way to the destination, *then* state, counters and rewriting: a packet that
//! XDP must leave to TC because its neighbour is unknown has changed nothing but the table, and
//! being seen again changes nothing more.

use rlvs_wire::{ethernet, icmp, ipsec, sctp, u16_at};

use crate::abi::{
    Destination, Hop, INTERFACE_BUCKETS, REASONS, Row, Service, destination_flag, endpoint_kind,
    interface_flag, method,
};
use crate::association;
use crate::connection::{Context, Found, Key, seen};
use crate::endpoint;
use crate::errors;
use crate::fragment;
use crate::frame::{Deltas, Frame, Verdict};
use crate::hop::{self, Way};
use crate::ip::{End, Ip, Packet, Substitute, V4, V6};
use crate::reason::Reason;
use crate::refuse::{Complaint, refuse};
use crate::schedule::{Opening, quiet};
use crate::state::{self, Seen};
use crate::tables::{Tables, Time, bump};

/// What goes on where [`process`] stops.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// An IPv4 request that may open a connection.
    Open4 = 0,
    /// The same over IPv6.
    Open6 = 1,
    /// Anything else that belongs to a service over IPv4: states that change, connections that
    /// expire, ways to be asked for, replies that nothing is known of.
    Rest4 = 2,
    /// The same over IPv6.
    Rest6 = 3,
    /// ICMP.
    Icmp4 = 4,
    /// ICMPv6.
    Icmp6 = 5,
    /// IPv4 with options, or a fragment.
    Odd4 = 6,
    /// IPv6 with extension headers, a fragment header among them.
    Odd6 = 7,
    /// SCTP, AH and ESP over IPv4.
    Sctp4 = 8,
    /// SCTP, AH and ESP over IPv6.
    Sctp6 = 9,
    /// An SCTP packet over IPv4 that may open an association.
    Associate4 = 10,
    /// The same over IPv6.
    Associate6 = 11,
}

impl Stage {
    /// Every stage, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Open4,
        Self::Open6,
        Self::Rest4,
        Self::Rest6,
        Self::Icmp4,
        Self::Icmp6,
        Self::Odd4,
        Self::Odd6,
        Self::Sctp4,
        Self::Sctp6,
        Self::Associate4,
        Self::Associate6,
    ];

    /// Returns the end of the names of the programs that carry it out.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open4 => "open4",
            Self::Open6 => "open6",
            Self::Rest4 => "rest4",
            Self::Rest6 => "rest6",
            Self::Icmp4 => "icmp4",
            Self::Icmp6 => "icmp6",
            Self::Odd4 => "odd4",
            Self::Odd6 => "odd6",
            Self::Sctp4 => "sctp4",
            Self::Sctp6 => "sctp6",
            Self::Associate4 => "associate4",
            Self::Associate6 => "associate6",
        }
    }

    /// Returns the stage of a number; an unknown number is the last stage's.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Open4,
            1 => Self::Open6,
            2 => Self::Rest4,
            3 => Self::Rest6,
            4 => Self::Icmp4,
            5 => Self::Icmp6,
            6 => Self::Odd4,
            7 => Self::Odd6,
            8 => Self::Sctp4,
            9 => Self::Sctp6,
            10 => Self::Associate4,
            _ => Self::Associate6,
        }
    }

    #[inline(always)]
    const fn open<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Open4 } else { Self::Open6 }
    }

    #[inline(always)]
    const fn rest<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Rest4 } else { Self::Rest6 }
    }

    /// Returns the stage of SCTP for an IP version.
    #[inline(always)]
    pub const fn sctp<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Sctp4 } else { Self::Sctp6 }
    }

    /// Returns the stage that opens associations for an IP version.
    #[inline(always)]
    pub const fn associate<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Associate4 } else { Self::Associate6 }
    }
}

/// Returns what becomes of a packet of another protocol, or whose headers are not the usual ones.
#[inline(always)]
fn unusual<A: Ip, F: Frame>(frame: &mut F, reason: Reason) -> Verdict {
    let (icmp, odd) =
        if A::FAMILY == 4 { (Stage::Icmp4, Stage::Odd4) } else { (Stage::Icmp6, Stage::Odd6) };
    match (reason, A::protocol(frame)) {
        (Reason::Fragment | Reason::Options, _) => Verdict::Next(odd),
        (Reason::OtherProtocol, Some(icmp::PROTOCOL | icmp::PROTOCOL_V6)) => Verdict::Next(icmp),
        (Reason::OtherProtocol, Some(sctp::PROTOCOL | ipsec::ESP | ipsec::AH)) => {
            Verdict::Next(Stage::sctp::<A>())
        }
        _ => Verdict::Pass(reason),
    }
}

/// Decides what becomes of a frame, rewrites it accordingly and counts; or names the stage that does.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, kind| match kind {
        ethernet::IPV4 => established::<V4, F, T>(context, frame),
        ethernet::IPV6 => established::<V6, F, T>(context, frame),
        _ => Verdict::Pass(Reason::OtherProtocol),
    })
}

/// Carries out the stages [`Stage::Open4`] and [`Stage::Open6`].
#[inline(always)]
pub fn open<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| first::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Rest4`] and [`Stage::Rest6`].
#[inline(always)]
pub fn rest<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| any::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Icmp4`] and [`Stage::Icmp6`].
#[inline(always)]
pub fn icmp<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| errors::related::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Odd4`] and [`Stage::Odd6`].
#[inline(always)]
pub fn odd<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| fragment::odd::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Sctp4`] and [`Stage::Sctp6`].
#[inline(always)]
pub fn sctp<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| association::any::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Associate4`] and [`Stage::Associate6`].
#[inline(always)]
pub fn associate<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| association::first::<A, F, T>(context, frame))
}

/// Carries out a stage, for bodies that call it like any function.
pub fn go_on<F: Frame, T: Tables>(stage: Stage, frame: &mut F, tables: &T) -> Verdict {
    match stage {
        Stage::Open4 => open::<V4, F, T>(frame, tables),
        Stage::Open6 => open::<V6, F, T>(frame, tables),
        Stage::Rest4 => rest::<V4, F, T>(frame, tables),
        Stage::Rest6 => rest::<V6, F, T>(frame, tables),
        Stage::Icmp4 => icmp::<V4, F, T>(frame, tables),
        Stage::Icmp6 => icmp::<V6, F, T>(frame, tables),
        Stage::Odd4 => odd::<V4, F, T>(frame, tables),
        Stage::Odd6 => odd::<V6, F, T>(frame, tables),
        Stage::Sctp4 => sctp::<V4, F, T>(frame, tables),
        Stage::Sctp6 => sctp::<V6, F, T>(frame, tables),
        Stage::Associate4 => associate::<V4, F, T>(frame, tables),
        Stage::Associate6 => associate::<V6, F, T>(frame, tables),
    }
}

/// Lets `work` decide over a frame that is addressed to the interface it came in by, and counts.
#[inline(always)]
fn settle<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    work: impl FnOnce(&Context<'_, T>, &mut F, u16) -> Verdict,
) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(Reason::NoService) };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
    let interface = frame.interface();
    // Whether XDP sees this interface's frames first, and has counted what it passed.
    let mut behind_xdp = false;
    let verdict = match frame.head::<14>() {
        None => Verdict::Pass(Reason::Malformed),
        Some(head) => {
            let kind = u16_at(head, ethernet::TYPE);
            match context.owns(interface, rlvs_wire::bytes_at(head, ethernet::DESTINATION)) {
                None => Verdict::Pass(Reason::OtherHost),
                Some(flags) => {
                    behind_xdp = flags & interface_flag::XDP != 0;
                    work(&context, frame, kind)
                }
            }
        }
    };
    let counted = match verdict {
        Verdict::Pass(reason) => (!behind_xdp || !F::RESOLVES).then_some(reason),
        Verdict::Drop(reason) => Some(reason),
        Verdict::Transmit { .. } | Verdict::Resolve { .. } | Verdict::Next(_) => None,
    };
    if let Some(reason) = counted {
        context.count(reason);
    }
    verdict
}

/// Which half of which connection a packet would belong to.
struct Half<A> {
    key: Key<A>,
    is_reply: bool,
}

/// A packet in the middle of its connection's life.
#[inline(always)]
fn established<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return unusual::<A, F>(frame, reason),
    };
    let Some(half) = context.half(&packet) else { return Verdict::Pass(Reason::NoService) };
    let Some(found) = context.glance(&half.key) else {
        let may_open = !half.is_reply && state::starts(packet.protocol, packet.flags);
        return Verdict::Next(if may_open { Stage::open::<A>() } else { Stage::rest::<A>() });
    };
    let done = if half.is_reply {
        steady_answer(context, frame, &packet, &found)
    } else {
        steady_request(context, frame, &packet, &found)
    };
    done.unwrap_or(Verdict::Next(Stage::rest::<A>()))
}

/// Forwards a request, if nothing about it needs thought.
#[inline(always)]
fn steady_request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Option<Verdict> {
    let (destination, row) = context.destination(found.value.destination()).ok()?;
    let steady = context.is_steady(found.value, seen(found.value), packet.protocol, packet.flags);
    let way = Way { hop: &row.hop, resolve: false };
    if !steady || !context.is_easy(frame, packet, destination, &row.hop.get()) {
        return None;
    }
    context.touch(found);
    Some(forward::<A, F, true>(frame, packet, destination, row, &way))
}

/// Sends a reply to its client, if nothing about it needs thought.
#[inline(always)]
fn steady_answer<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Option<Verdict> {
    let (destination, row) = context.destination(found.value.destination()).ok()?;
    let service = context.tables.service(destination.service)?;
    let steady = context.is_steady(found.value, Seen::Reply, packet.protocol, packet.flags);
    let way = Way { hop: context.known_way_to_client(packet.target)?, resolve: false };
    if !steady || !context.is_easy(frame, packet, destination, &way.hop.get()) {
        return None;
    }
    context.touch(found);
    Some(give_back::<A, F, true>(frame, packet, (destination, service), row, &way))
}

/// A TCP or UDP request that may open a connection.
#[inline(always)]
fn first<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match A::parse(frame) {
        Ok(packet) => start::<A, F, T, true>(context, frame, &packet, Stage::rest::<A>()),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// A request that may open a connection; `rest` carries what does not.
#[inline(always)]
pub fn start<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    rest: Stage,
) -> Verdict {
    let Some(service) = context.service_of(packet) else {
        return Verdict::Pass(Reason::NoService);
    };
    match context.open(frame, packet, service) {
        Opening::To(id) => deliver::<A, F, T, PORTS>(context, frame, packet, id, || {}),
        // There is no room: it goes astray.
        Opening::There | Opening::Refused(Reason::Stateless) => Verdict::Next(rest),
        Opening::Refused(reason) => refuse_start(context, frame, packet, reason),
    }
}

/// Says what becomes of a packet that opens no connection.
#[inline(always)]
fn refuse_start<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    refused: Reason,
) -> Verdict {
    match refused {
        Reason::NoDestination | Reason::TableFull | Reason::ReplyTaken => {
            complain(context, frame, packet, Complaint::PortUnreachable, refused)
        }
        Reason::Expired => complain(context, frame, packet, Complaint::TimeExceeded, refused),
        _ => quiet(refused),
    }
}

/// Any TCP or UDP packet to or from a service.
#[inline(always)]
fn any<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match A::parse(frame) {
        Ok(packet) => carry::<A, F, T, true>(context, frame, &packet, &packet, Stage::open::<A>()),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Any packet to or from a service, which is found by what the packet is `known_as`; `open` carries
/// one that may open a connection. `PORTS`: see [`Ip::translate`].
#[inline(always)]
pub fn carry<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    known_as: &Packet<A>,
    open: Stage,
) -> Verdict {
    let Some(half) = context.half(known_as) else { return Verdict::Pass(Reason::NoService) };
    let Half { key, is_reply } = half;
    match context.find_live(&key) {
        // The stack answers it, in the director's name.
        Some(_) if packet.ttl <= 1 && is_reply => Verdict::Pass(Reason::Expired),
        Some(_) if packet.ttl <= 1 => {
            complain(context, frame, packet, Complaint::TimeExceeded, Reason::Expired)
        }
        Some(found) if is_reply => answer::<A, F, T, PORTS>(context, frame, packet, &found),
        Some(found)
            if state::starts_anew(found.value.state(), packet.protocol, packet.flags)
                && context.retire::<A>(found.slot, found.value, true) =>
        {
            Verdict::Next(open)
        }
        Some(found) => request::<A, F, T, PORTS>(context, frame, packet, &found),
        None if is_reply => Verdict::Pass(Reason::NoConnection),
        None if state::starts(packet.protocol, packet.flags) && !context.is_full(&key) => {
            Verdict::Next(open)
        }
        None => astray(context, frame, packet, key.owner),
    }
}

/// A packet from a client on its connection.
#[inline(always)]
fn request<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Verdict {
    let track = || context.track_request(packet, found);
    deliver::<A, F, T, PORTS>(context, frame, packet, found.value.destination(), track)
}

/// Sends a request to its destination; `track` notes it once the way is known.
#[inline(always)]
fn deliver<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    id: u32,
    track: impl FnOnce(),
) -> Verdict {
    let (destination, row) = match context.destination(id) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    let way = match context.way_to_destination::<A, F>(frame, row, destination) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    track();
    if does_not_fit(frame, packet.length, &way) {
        return Verdict::Drop(Reason::TooBig);
    }
    forward::<A, F, PORTS>(frame, packet, destination, row, &way)
}

/// Sends a request on its way.
#[inline(always)]
fn forward<A: Ip, F: Frame, const PORTS: bool>(
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    let done = if destination.method == method::MASQUERADE {
        let deltas = Deltas { address: destination.address_delta, port: destination.port_delta };
        let (end, address, port) = (End::Target, &destination.address, destination.port);
        A::translate::<F, PORTS>(frame, packet.protocol, &Substitute { end, address, port, deltas })
    } else {
        A::lower(frame)
    };
    if done.is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    bump(&row.in_packets, 1);
    bump(&row.in_bytes, u64::from(packet.length));
    hop::send(frame, way)
}

/// A packet from a NAT destination on a connection.
#[inline(always)]
fn answer<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Verdict {
    let (destination, row) = match context.destination(found.value.destination()) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(service) = context.tables.service(destination.service) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    let way = match context.way_to_client(frame, packet.target) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    context.track_reply(packet, found);
    if does_not_fit(frame, packet.length, &way) {
        return Verdict::Drop(Reason::TooBig);
    }
    give_back::<A, F, PORTS>(frame, packet, (destination, service), row, &way)
}

/// Sends a reply to its client.
#[inline(always)]
fn give_back<A: Ip, F: Frame, const PORTS: bool>(
    frame: &mut F,
    packet: &Packet<A>,
    (destination, service): (&Destination, &Service),
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    let deltas = Deltas {
        address: rlvs_wire::checksum::inverse(destination.address_delta),
        port: rlvs_wire::checksum::inverse(destination.port_delta),
    };
    let (end, address, port) = (End::Source, &service.address, service.port);
    let by = Substitute { end, address, port, deltas };
    if A::translate::<F, PORTS>(frame, packet.protocol, &by).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, u64::from(packet.length));
    hop::send(frame, way)
}

/// A request without a connection that cannot start one or finds no room for it: with a full table
/// it follows its hash, so that connections opened so go on; else it is not ours.
#[inline(always)]
fn astray<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    service: u32,
) -> Verdict {
    Verdict::unpack(astray_out_of_line(context, frame, packet, service))
}

#[inline(never)]
fn astray_out_of_line<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    service: u32,
) -> u64 {
    let key = Key::new(context.settings, &packet.request(), service);
    let stateless = match context.pick_stateless(&key) {
        Some(id) if context.is_full(&key) => context.destination(id),
        _ => return Verdict::Pass(Reason::NoConnection).pack(),
    };
    let verdict = match stateless {
        Ok((to, _)) if to.method == method::MASQUERADE => Verdict::Pass(Reason::NoConnection),
        Ok((to, row)) => match context.way_to_destination::<A, F>(frame, row, to) {
            Ok(way) if does_not_fit(frame, packet.length, &way) => Verdict::Drop(Reason::TooBig),
            Ok(way) => {
                context.count(Reason::Stateless);
                // Nothing is translated.
                forward::<A, F, true>(frame, packet, to, row, &way)
            }
            Err(verdict) => verdict,
        },
        Err(reason) => Verdict::Drop(reason),
    };
    verdict.pack()
}

#[inline(always)]
fn complain<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    complaint: Complaint,
    reason: Reason,
) -> Verdict {
    let verdict = refuse(frame, packet, complaint);
    // One that fails is counted under its own reason.
    if matches!(verdict, Verdict::Transmit { .. }) {
        context.count(reason);
    }
    verdict
}

#[inline(always)]
fn does_not_fit<F: Frame>(frame: &F, length: u32, way: &Way<'_>) -> bool {
    !way.resolve && frame.segment(length) > way.hop.get().mtu
}

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the id of the service that a packet goes to.
    #[inline(always)]
    fn service_of<A: Ip>(&self, packet: &Packet<A>) -> Option<u32> {
        let Packet { target, target_port, protocol, .. } = *packet;
        let kind = endpoint_kind::SERVICE;
        endpoint::Key::new(self.settings, kind, target, target_port, protocol).id(self.tables)
    }

    /// Returns the half that a packet belongs to, if it goes to a service or comes from a NAT
    /// destination.
    #[inline(always)]
    fn half<A: Ip>(&self, packet: &Packet<A>) -> Option<Half<A>> {
        if let Some(owner) = self.service_of(packet) {
            let key = Key::new(self.settings, &packet.request(), owner);
            return Some(Half { key, is_reply: false });
        }
        let Packet { source, source_port, protocol, .. } = *packet;
        let kind = endpoint_kind::REPLY;
        let endpoint = endpoint::Key::new(self.settings, kind, source, source_port, protocol);
        let owner = endpoint.id(self.tables)?;
        Some(Half { key: Key::new(self.settings, &packet.reply(), owner), is_reply: true })
    }

    /// Returns whether a packet may live on, its destination is there, and the way is known and wide
    /// enough.
    #[inline(always)]
    fn is_easy<A, F: Frame>(
        &self,
        frame: &F,
        packet: &Packet<A>,
        destination: &Destination,
        hop: &Hop,
    ) -> bool {
        packet.ttl > 1
            && destination.flags & destination_flag::AVAILABLE != 0
            && self.is_fresh(hop)
            && frame.segment(packet.length) <= hop.mtu
    }

    /// Returns the flags of the interface if `mac` is one of its addresses.
    #[inline(always)]
    fn owns(&self, interface: u32, mac: [u8; 6]) -> Option<u32> {
        let [a, b, c, d, e, f] = mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let bucket = self.tables.interfaces(interface & (INTERFACE_BUCKETS - 1))?;
        for slot in &bucket.slots {
            if slot.index == interface && slot.mac == mac {
                return Some(slot.flags);
            }
        }
        None
    }

    /// Returns a destination and this CPU's row of it.
    #[inline(always)]
    fn destination(&self, id: u32) -> Result<(&'a Destination, &'a Row), Reason> {
        let destination = self.tables.destination(id).ok_or(Reason::Inconsistent)?;
        let row = self.tables.row(self.row_index(id)).ok_or(Reason::Inconsistent)?;
        Ok((destination, row))
    }

    /// Counts a reason.
    #[inline(always)]
    pub fn count(&self, reason: Reason) {
        if let Some(counter) = self.tables.reason(self.tables.cpu() * REASONS + reason as u32) {
            bump(counter, 1);
        }
    }
}
