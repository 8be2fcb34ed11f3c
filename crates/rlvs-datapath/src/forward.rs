//! Sending: requests to destinations, replies to clients, once it is known what they belong to.

use rlvs_wire::{ipv4, ipv6, tcp, u8_at, udp};

use crate::abi::{Destination, Row, Service, destination_flag, method};
use crate::connection::{Context, Found};
use crate::frame::{Frame, Verdict};
use crate::hop::{self, Way};
use crate::ip::{IP, Ip, Packet, Substitute};
use crate::local;
use crate::reason::Reason;
use crate::refuse::leave_too_big;
use crate::stage::Stage;
use crate::tables::{Tables, bump};
use crate::tunnel;

// How a destination is reached.
const KNOWN: u64 = 0;
const UNKNOWN: u64 = 1;
const HERE: u64 = 2;

/// Sends a request to its destination; `track` notes it once the way is known, `too_big` is told what
/// the way takes if the packet is longer. Where the connection has just been opened, `opened` is the
/// stage for destinations that are this host or may be directors.
#[inline(always)]
pub(crate) fn deliver<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    id: u32,
    track: impl FnOnce(),
    too_big: impl FnOnce(&mut F, u32) -> Verdict,
    opened: Option<Stage>,
) -> Verdict {
    let (destination, row) = match context.destination(id) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    if let Some(stage) = opened
        && destination.flags & destination_flag::PEER != 0
    {
        return Verdict::Next(stage);
    }
    let way = match context.way_to_destination(frame, row, destination) {
        Ok(way) if opened.is_none() && local::would_return(frame, destination, &way) => {
            return Verdict::Pass(Reason::FromPeer);
        }
        Ok(way) => Some(way),
        Err(Verdict::Pass(Reason::Local)) if destination.flags & destination_flag::LOCAL == 0 => {
            return Verdict::Next(Stage::lost::<A>());
        }
        // XDP leaves it to TC, with nothing but the table changed.
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES => match opened {
            Some(stage) => return Verdict::Next(stage),
            None => None,
        },
        Err(Verdict::Drop(Reason::Unreachable)) => return Verdict::Next(Stage::lost::<A>()),
        Err(verdict) => return verdict,
    };
    // What follows is the same for all, and the verifier need not tell them apart yet.
    let kind = match way {
        _ if !F::RESOLVES => KNOWN,
        None => HERE,
        Some(way) if way.resolve => UNKNOWN,
        Some(_) => KNOWN,
    };
    let kind = if F::RESOLVES { context.tables.forget(kind) } else { kind };
    track();
    if kind == HERE {
        return local::deliver(context, packet, destination, row);
    }
    let way = Way { hop: &row.hop, resolve: kind == UNKNOWN };
    if let Some(mtu) = does_not_fit(frame, packet, destination.overhead, &way) {
        return too_big(frame, mtu);
    }
    forward::<A, F, T, PORTS>(context, frame, packet, destination, row, &way)
}

/// Sends a request on its way.
#[inline(always)]
pub(crate) fn forward<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    if destination.method == method::TUNNEL {
        if let Err(reason) =
            tunnel::enter::<A, F, T, PORTS>(context, frame, packet, destination, row)
        {
            return Verdict::Drop(reason);
        }
        return account(frame, packet, row, way);
    }
    let done = if destination.method == method::MASQUERADE {
        let by = Substitute::by_destination(destination);
        A::translate::<F, PORTS>(frame, packet.protocol, &by)
    } else {
        A::lower::<F, PORTS>(frame)
    };
    if done.is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    account(frame, packet, row, way)
}

/// Counts a request and sends it.
#[inline(always)]
pub(crate) fn account<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    bump(&row.in_packets, 1);
    bump(&row.in_bytes, u64::from(packet.length));
    hop::send(frame, way)
}

/// A packet from a NAT destination on a connection, be it one that was removed; `track` notes it once the way is known.
#[inline(always)]
pub(crate) fn answer<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
    track: impl FnOnce(),
) -> Verdict {
    let (destination, row) = match context.destination(found.value.destination()) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(service) = context.tables.service(destination.service) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let way = match context.way_to_client(frame, packet.target) {
        Ok(way) => Some(way),
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES => None,
        Err(verdict) => return verdict,
    };
    track();
    let Some(way) = way else { return local::give_back(context, packet, service, row) };
    if does_not_fit(frame, packet, 0, &way).is_some() {
        return leave_too_big::<A, F>(frame);
    }
    give_back::<A, F, PORTS>(frame, packet, (destination, service), row, &way)
}

/// Sends a reply to its client.
#[inline(always)]
pub(crate) fn give_back<A: Ip, F: Frame, const PORTS: bool>(
    frame: &mut F,
    packet: &Packet<A>,
    (destination, service): (&Destination, &Service),
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    let by = Substitute::by_service(destination, service);
    if A::translate::<F, PORTS>(frame, packet.protocol, &by).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, u64::from(packet.length));
    hop::send(frame, way)
}

/// Returns the longest packet that a way takes beside `overhead` bytes of outer headers, if this one
/// is longer.
#[inline(always)]
pub(crate) fn does_not_fit<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    overhead: u16,
    way: &Way<'_>,
) -> Option<u32> {
    if way.resolve {
        return None;
    }
    let mtu = way.hop.get().mtu.saturating_sub(overhead.into());
    let headers = |frame: &mut F| headers::<A, F>(frame, packet.protocol);
    if frame.segment(packet.length, headers) > mtu { Some(mtu) } else { None }
}

/// Returns the length of a packet's IP and transport headers.
#[inline(always)]
pub(crate) fn headers<A: Ip, F: Frame>(frame: &mut F, protocol: u8) -> u32 {
    const AT_V4: usize = IP + ipv4::LENGTH + tcp::DATA_OFFSET;
    const AT_V6: usize = IP + ipv6::LENGTH + tcp::DATA_OFFSET;
    let (ip, offset) = match (A::FAMILY, protocol) {
        (4, tcp::PROTOCOL) => (ipv4::LENGTH, frame.head::<54>().map(|head| u8_at(head, AT_V4))),
        (4, _) => (ipv4::LENGTH, None),
        (_, tcp::PROTOCOL) => (ipv6::LENGTH, frame.head::<74>().map(|head| u8_at(head, AT_V6))),
        _ => (ipv6::LENGTH, None),
    };
    ip as u32 + offset.map_or(udp::LENGTH as u32, |offset| u32::from(offset >> 4) * 4)
}
