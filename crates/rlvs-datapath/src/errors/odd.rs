//! ICMP errors about packets with IPv4 options or IPv6 extension headers, as this host's own stack says them: to
//! one about a packet with options it gives some of these (`__ip_options_echo()`).

use rlvs_wire::{
    DESTINATION_PORT, SOURCE_PORT, bytes_at, icmp, ipv4, ipv6, put_at, tcp, u8_at, u16_at, u32_at,
};

use super::{
    IP, L4_V6, LEAST, PORTS_V6, QUOTE_V6, Quote, address_v6, delta, follow, follow_tcp, follow_udp,
    is_error, is_other, sum, with_ports,
};
use crate::frame::Frame;
use crate::ip::{End, Ip, Packet, Substitute, V4, V6};
use crate::layout::{self, Layout, Piece};
use crate::reason::Reason;
use crate::strange::Place;
use crate::tables::Tables;

/// Up to the end of a TCP checksum.
const TCP: usize = tcp::CHECKSUM + 2;

/// As [`Quote::quoted_odd`].
#[inline(always)]
pub(super) fn v4<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
) -> Result<(Packet<V4>, Place), Reason> {
    let outer: Layout<V4> = V4::layout(frame, tables)?;
    if outer.piece != Piece::Whole || outer.protocol != icmp::PROTOCOL {
        return Err(Reason::OtherProtocol);
    }
    let message = tables.forget(outer.transport.into()) as u32;
    let kind = *frame.at::<1>(message as usize + icmp::TYPE).ok_or(Reason::Malformed)?;
    if !is_error(kind[0]) {
        return Err(Reason::OtherProtocol);
    }
    let header = message + icmp::LENGTH as u32;
    let head = frame.at::<{ ipv4::LENGTH }>(header as usize).ok_or(Reason::Malformed)?;
    let first = u8_at(head, 0);
    let length = u32::from(first & 15) * 4;
    let peer = u32_at(head, ipv4::DESTINATION);
    let is_later = u16_at(head, ipv4::FRAGMENT) & ipv4::FRAGMENT_OFFSET != 0;
    let is_own = u32_at(head, ipv4::SOURCE) == outer.target.0;
    let protocol = with_ports(u8_at(head, ipv4::PROTOCOL))?;
    if first >> 4 != 4 || length < ipv4::LENGTH as u32 || !is_own {
        return Err(Reason::Malformed);
    }
    if is_later {
        return Err(Reason::Fragment);
    }
    let transport = tables.forget(u64::from(header + length)) as u32;
    let end = (IP as u32 + outer.length, outer.ttl);
    about(frame, (V4(peer), outer.target), protocol, end, header, transport)
}

/// As [`Quote::quoted_odd`]. Errors of the stack have no extension headers themselves.
#[inline(always)]
pub(super) fn v6<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
) -> Result<(Packet<V6>, Place), Reason> {
    is_other::<V6, F>(frame)?;
    let head = frame.head::<PORTS_V6>().ok_or(Reason::Malformed)?;
    let length = u32::from(u16_at(head, IP + ipv6::PAYLOAD_LENGTH)) + ipv6::LENGTH as u32;
    let ttl = u8_at(head, IP + ipv6::HOP_LIMIT);
    let target = address_v6(head, IP + ipv6::DESTINATION);
    let peer = address_v6(head, QUOTE_V6 + ipv6::DESTINATION);
    let is_own = address_v6(head, QUOTE_V6 + ipv6::SOURCE) == target;
    let first = u8_at(head, QUOTE_V6 + ipv6::NEXT_HEADER);
    if u8_at(head, L4_V6 + icmp::TYPE) & icmp::INFORMATIONAL_V6 != 0 {
        return Err(Reason::OtherProtocol);
    }
    if u8_at(head, QUOTE_V6) >> 4 != 6 || !is_own {
        return Err(Reason::Malformed);
    }
    let chain = layout::behind_extensions(frame, tables, PORTS_V6 as u32, first);
    if chain.transport() == 0 {
        return Err(chain.reason());
    }
    if chain.piece() == Piece::Later {
        return Err(Reason::Fragment);
    }
    let protocol = with_ports(chain.protocol())?;
    let transport = tables.forget(chain.transport().into()) as u32;
    about(frame, (peer, target), protocol, (IP as u32 + length, ttl), QUOTE_V6 as u32, transport)
}

/// Returns what is quoted, exchanged, and where: to whom it went and who said it, its protocol, the error's end
/// in the frame and its time to live, the offsets of the quoted headers.
#[inline(always)]
fn about<A: Ip, F: Frame>(
    frame: &mut F,
    (source, target): (A, A),
    protocol: u8,
    (end, ttl): (u32, u8),
    header: u32,
    transport: u32,
) -> Result<(Packet<A>, Place), Reason> {
    if end < transport + LEAST as u32 {
        return Err(Reason::Malformed);
    }
    let ports = frame.at::<LEAST>(transport as usize).ok_or(Reason::Malformed)?;
    let (source_port, target_port) = (u16_at(ports, DESTINATION_PORT), u16_at(ports, SOURCE_PORT));
    let length = end - IP as u32;
    let packet =
        Packet { source, target, source_port, target_port, protocol, flags: 0, ttl, length };
    Ok((packet, Place::quoted_at(header, transport)))
}

/// As [`Quote::translate_error`], where the parts stand at a place.
#[inline(always)]
pub(crate) fn translate<A: Quote, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    by: &Substitute<'_>,
    place: Place,
) -> Option<()> {
    let (header, transport) = (place.quoted_header(), place.transport());
    let outer = readdress::<A, F>(frame, by, header)?;
    let port_at = match by.end {
        End::Source => DESTINATION_PORT,
        End::Target => SOURCE_PORT,
    };
    // Added before the offset is checked: Linux 6.1 forgets the check at an addition behind it.
    *frame.at::<2>(transport + port_at)? = by.port;
    let is_there = packet.length as usize + IP >= transport + TCP;
    let quoted = if is_there && packet.protocol == tcp::PROTOCOL {
        follow_tcp(frame.at::<TCP>(transport)?, 0, by.deltas)
    } else {
        follow_udp(frame.at::<LEAST>(transport)?, 0, packet.protocol, by.deltas)
    };
    let changed = sum(by.deltas) + u64::from(outer) + u64::from(quoted);
    let message = frame.at::<{ icmp::LENGTH }>(header.wrapping_sub(icmp::LENGTH))?;
    follow(message, icmp::CHECKSUM, changed, false);
    Some(())
}

/// Replaces an address of the error and that of what it quotes. Returns what this does to the message's sum
/// besides the address that it quotes.
#[inline(always)]
fn readdress<A: Quote, F: Frame>(frame: &mut F, by: &Substitute<'_>, header: usize) -> Option<u16> {
    if A::FAMILY == 4 {
        let (outer, quoted) = match by.end {
            End::Source => (ipv4::SOURCE, ipv4::DESTINATION),
            End::Target => (ipv4::DESTINATION, ipv4::SOURCE),
        };
        let address: [u8; 4] = bytes_at(by.address, 0);
        let head = frame.head::<{ IP + ipv4::LENGTH }>()?;
        let changed = delta::<4>(&bytes_at(head, IP + outer), &address);
        follow(head, IP + ipv4::CHECKSUM, changed.into(), false);
        put_at(head, IP + outer, address);
        let head = frame.at::<{ ipv4::LENGTH }>(header)?;
        put_at(head, quoted, address);
        return Some(follow(head, ipv4::CHECKSUM, by.deltas.address.into(), false));
    }
    let (outer, quoted) = match by.end {
        End::Source => (ipv6::SOURCE, ipv6::DESTINATION),
        End::Target => (ipv6::DESTINATION, ipv6::SOURCE),
    };
    let [high, low]: [[u8; 8]; 2] = [bytes_at(by.address, 0), bytes_at(by.address, 8)];
    let head = frame.head::<PORTS_V6>()?;
    let pseudo = delta::<16>(&bytes_at(head, IP + outer), by.address);
    put_at(head, IP + outer, high);
    put_at(head, IP + outer + 8, low);
    put_at(head, QUOTE_V6 + quoted, high);
    put_at(head, QUOTE_V6 + quoted + 8, low);
    Some(pseudo)
}
