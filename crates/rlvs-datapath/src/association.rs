//! SCTP associations, and what IPsec carries.
//!
//! An association is a connection whose states are its own, moved by the first chunk of each packet.
//! It passes by NAT as TCP does, but for its checksum, which covers ports and not addresses.
//!
//! AH and ESP have no ports, and nothing of their own in the table: they follow the key exchange of
//! the same two addresses, UDP from port 500 to port 500, as `ip_vs_proto_ah_esp.c`.

pub mod states;

use rlvs_wire::{ipsec, sctp, u8_at, u16_at, u32_at, udp};

use crate::connection::Context;
use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::opening::start;
use crate::reason::Reason;
use crate::rest::carry;
use crate::stage::Stage;
use crate::tables::Tables;
use states::{event, event_of};

/// An SCTP, AH or ESP packet to or from anybody.
#[inline(always)]
pub fn any<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match parse::<A, F>(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    let known_as = match packet.protocol {
        sctp::PROTOCOL => packet,
        _ => Packet {
            source_port: ipsec::KEY_EXCHANGE,
            target_port: ipsec::KEY_EXCHANGE,
            protocol: udp::PROTOCOL,
            ..packet
        },
    };
    let open = Stage::associate::<A>();
    carry::<A, F, T, false>(context, frame, &packet, &known_as, open)
}

/// An SCTP packet that may open an association.
#[inline(always)]
pub fn first<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match parse::<A, F>(frame) {
        Ok(packet) if packet.protocol != sctp::PROTOCOL => Verdict::Pass(Reason::NoConnection),
        Ok(packet) => start::<A, F, T, false>(context, frame, &packet, Stage::sctp::<A>()),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Parses a packet; its flags are an [`event`] of SCTP.
#[inline(always)]
pub(crate) fn parse<A: Ip, F: Frame>(frame: &mut F) -> Result<Packet<A>, Reason> {
    let packet = A::portless(frame)?;
    match packet.protocol {
        sctp::PROTOCOL => with_chunk(frame, packet),
        ipsec::ESP | ipsec::AH => packet.payload::<{ ipsec::LENGTH }>().map(|_| packet),
        _ => Err(Reason::OtherProtocol),
    }
}

/// Bytes of the common header and the first chunk's.
pub(crate) const HEADERS: usize = sctp::LENGTH + sctp::CHUNK_LENGTH;

/// Adds what the common header and the first chunk say.
#[inline(always)]
fn with_chunk<A: Ip, F: Frame>(frame: &mut F, packet: Packet<A>) -> Result<Packet<A>, Reason> {
    let end = A::TRANSPORT + packet.payload::<{ HEADERS as u32 }>()? as usize;
    let said = if A::FAMILY == 4 {
        said::<F, { 34 + HEADERS }>(frame, end)
    } else {
        said::<F, { 54 + HEADERS }>(frame, end)
    };
    if said == CUT {
        return Err(Reason::Malformed);
    }
    let (source_port, target_port) = ((said >> 32) as u16, (said >> 16) as u16);
    Ok(Packet { source_port, target_port, flags: said as u8, ..packet })
}

/// What [`said`] returns of a packet that is too short.
const CUT: u64 = u64::MAX;

/// Returns ports (32 bits) above the event (16), of a packet that ends at `end` and whose headers end
/// at `N`. Out of line, as there is little room on the stack where it is called.
#[inline(never)]
fn said<F: Frame, const N: usize>(frame: &mut F, end: usize) -> u64 {
    let chunk = N - sctp::CHUNK_LENGTH;
    let Some(head) = frame.head::<N>() else { return CUT };
    let (kind, length) = (u8_at(head, chunk), u16_at(head, chunk + sctp::LENGTH_OF_CHUNK));
    let ports = u64::from(u32_at(head, N - HEADERS));
    ports << 16 | u64::from(event_of_packet(frame, kind, length, chunk, end))
}

/// Returns the event of a packet that ends at `end`, by the type and the length of its first chunk, which stands
/// at `chunk`: an ABORT behind a cookie counts too.
#[inline(always)]
pub(crate) fn event_of_packet<F: Frame>(
    frame: &mut F,
    kind: u8,
    length: u16,
    chunk: usize,
    end: usize,
) -> u8 {
    let event = event_of(kind);
    let length = usize::from(length);
    if event == event::COOKIE_ECHO || event == event::COOKIE_ACK {
        let next = chunk + length.next_multiple_of(4);
        let fits = length >= sctp::CHUNK_LENGTH && next + sctp::CHUNK_LENGTH <= end;
        if fits && frame.byte(next) == Some(sctp::ABORT) {
            return event::ABORT;
        }
    }
    event
}
