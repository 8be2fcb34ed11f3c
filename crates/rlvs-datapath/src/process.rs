//! The forwarding function.
//!
//! Order of a request: is the frame ours, does it go to a service, does its connection exist, can it
//! be opened; then the way to the destination, *then* state, counters and rewriting: a packet that
//! XDP must leave to TC because its neighbour is unknown has changed nothing but the table, and
//! being seen again changes nothing more.

use rlvs_wire::{ethernet, u16_at};

use crate::abi::{
    Destination, INTERFACE_BUCKETS, REASONS, Row, destination_flag, endpoint_kind, interface_flag,
    method,
};
use crate::connection::{Context, Found, Key};
use crate::endpoint;
use crate::frame::{Deltas, Frame, Verdict};
use crate::hop::{self, Way};
use crate::ip::{End, Ip, Packet, Substitute, V4, V6};
use crate::reason::Reason;
use crate::refuse::{Complaint, refuse};
use crate::schedule::quiet;
use crate::state;
use crate::tables::{Tables, Time, bump};

/// Decides what becomes of a frame, rewrites it accordingly and counts.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(Reason::NoService) };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
    let (verdict, behind_xdp) = decide(&context, frame);
    let counted = match verdict {
        Verdict::Pass(reason) => (!behind_xdp || !F::RESOLVES).then_some(reason),
        Verdict::Drop(reason) => Some(reason),
        Verdict::Transmit { .. } | Verdict::Resolve => None,
    };
    if let Some(reason) = counted {
        context.count(reason);
    }
    verdict
}

/// Returns the verdict, and whether XDP sees this interface's frames first.
#[inline(always)]
fn decide<F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> (Verdict, bool) {
    let interface = frame.interface();
    let Some(head) = frame.head::<14>() else {
        return (Verdict::Pass(Reason::Malformed), false);
    };
    let kind = u16_at(head, ethernet::TYPE);
    let mac: [u8; 6] = rlvs_wire::bytes_at(head, ethernet::DESTINATION);
    let Some(flags) = context.owns(interface, mac) else {
        return (Verdict::Pass(Reason::OtherHost), false);
    };
    let verdict = match kind {
        ethernet::IPV4 => ip::<V4, F, T>(context, frame),
        ethernet::IPV6 => ip::<V6, F, T>(context, frame),
        _ => Verdict::Pass(Reason::OtherProtocol),
    };
    (verdict, flags & interface_flag::XDP != 0)
}

#[inline(always)]
fn ip<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    let Context { tables, settings, .. } = *context;
    let Packet { source, target, source_port, target_port, protocol, .. } = packet;
    let service =
        endpoint::Key::new(settings, endpoint_kind::SERVICE, target, target_port, protocol);
    let (owner, flow, is_reply) = match service.id(tables) {
        Some(service) => (service, packet.from(), false),
        None => {
            let kind = endpoint_kind::REPLY;
            match endpoint::Key::new(settings, kind, source, source_port, protocol).id(tables) {
                Some(endpoint) => (endpoint, packet.to(), true),
                None => return Verdict::Pass(Reason::NoService),
            }
        }
    };
    let found = match context.find_live(&Key::new(settings, &flow, owner)) {
        // The stack answers it, in the director's name.
        Some(_) if packet.ttl <= 1 && is_reply => return Verdict::Pass(Reason::Expired),
        Some(_) if packet.ttl <= 1 => {
            return complain(context, frame, &packet, Complaint::TimeExceeded, Reason::Expired);
        }
        Some(found) => found,
        None if is_reply => return Verdict::Pass(Reason::NoConnection),
        None => match start(context, frame, &packet, owner) {
            Ok(found) => found,
            Err(verdict) => return verdict,
        },
    };
    if is_reply {
        answer(context, frame, &packet, &found)
    } else {
        request(context, frame, &packet, &found)
    }
}

/// A packet from a client to a service with which it has no connection: opens one, or says what
/// becomes of the packet instead.
#[inline(always)]
fn start<'a, A: Ip, F: Frame, T: Tables>(
    context: &Context<'a, T>,
    frame: &mut F,
    packet: &Packet<A>,
    service: u32,
) -> Result<Found<'a, A::Slot>, Verdict> {
    let refused = if state::starts(packet.protocol, packet.flags) {
        match context.open(frame, packet, service) {
            Ok(found) => return Ok(found),
            Err(reason) => reason,
        }
    } else {
        Reason::Stateless
    };
    Err(match refused {
        Reason::Stateless => astray(context, frame, packet, service),
        Reason::NoDestination | Reason::TableFull | Reason::ReplyTaken => {
            complain(context, frame, packet, Complaint::PortUnreachable, refused)
        }
        Reason::Expired => complain(context, frame, packet, Complaint::TimeExceeded, refused),
        _ => quiet(refused),
    })
}

/// A packet from a client on its connection.
#[inline(always)]
fn request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Verdict {
    let (destination, row) = match context.destination(found.value.destination()) {
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
    context.track_request(packet, found);
    forward(frame, packet, destination, row, &way)
}

/// Sends a request on its way.
#[inline(always)]
fn forward<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    if does_not_fit(frame, packet.length, way) {
        return Verdict::Drop(Reason::TooBig);
    }
    let done = if destination.method == method::MASQUERADE {
        let deltas = Deltas { address: destination.address_delta, port: destination.port_delta };
        let (end, address, port) = (End::Target, &destination.address, destination.port);
        A::translate(frame, packet.protocol, &Substitute { end, address, port, deltas })
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
fn answer<A: Ip, F: Frame, T: Tables>(
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
    let deltas = Deltas {
        address: rlvs_wire::checksum::inverse(destination.address_delta),
        port: rlvs_wire::checksum::inverse(destination.port_delta),
    };
    let (end, address, port) = (End::Source, &service.address, service.port);
    let by = Substitute { end, address, port, deltas };
    if A::translate(frame, packet.protocol, &by).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, u64::from(packet.length));
    hop::send(frame, &way)
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
    let key = Key::new(context.settings, &packet.from(), service);
    let stateless = match context.pick_stateless(&key) {
        Some(id) if context.is_full(&key) => context.destination(id),
        _ => return Verdict::Pass(Reason::NoConnection).pack(),
    };
    let verdict = match stateless {
        Ok((to, _)) if to.method == method::MASQUERADE => Verdict::Pass(Reason::NoConnection),
        Ok((to, row)) => match context.way_to_destination::<A, F>(frame, row, to) {
            Ok(way) => {
                context.count(Reason::Stateless);
                forward(frame, packet, to, row, &way)
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
