//! ICMP errors about connections: they find them in both directions.
//!
//! An error quotes the packet that it is about, and travels against it. So it goes where a packet goes
//! whose ends are those of the quoted one, exchanged: about what a server said to a client, it comes
//! from the client's side and goes to the server; about what a client said to a NAT destination, it
//! goes to the client. Translated are both the error's own header and the quoted one.
//!
//! It is counted as a packet of its connection, as the kernel's IPVS does, and changes neither state nor
//! time-out. What quotes anything else passes as it came.

pub(crate) mod odd;

use rlvs_wire::{
    DESTINATION_PORT, SOURCE_PORT, bytes_at, checksum, gre, icmp, ipip, ipv4, ipv6, put_at, sctp,
    tcp, u8_at, u16_at, u32_at, u64_at, udp,
};

use crate::abi::{Destination, Row, Service, destination_flag, method, settings_flag};
use crate::apart::{count_answer, count_request};
use crate::connection::Context;
use crate::forward::{does_not_fit, forward};
use crate::frame::{Deltas, Frame, Verdict};
use crate::hop::{self, Way};
use crate::ip::{End, IP, Ip, L4_V4, L4_V6, Packet, Substitute, V4, V6, lower_v4};
use crate::local;
use crate::process::Half;
use crate::reason::Reason;
use crate::stage::Stage;
use crate::strange::Place;
use crate::tables::Tables;

/// An ICMP message to or from anybody.
#[inline(always)]
pub fn related<A: Quote, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::quoted(frame) {
        Ok(packet) => packet,
        Err(Reason::OtherProtocol) if A::quotes_tunnel(frame) => {
            return Verdict::Next(Stage::relay::<A>());
        }
        Err(reason) => return Verdict::Pass(reason),
    };
    let is_wide = context.settings.flags & settings_flag::WIDE != 0;
    let Some(Half { key, is_reply }) = context.half(&packet) else {
        return match packet.protocol {
            _ if is_wide => Verdict::Next(Stage::quoted::<A>()),
            udp::PROTOCOL => Verdict::Next(Stage::relay::<A>()),
            _ => Verdict::Pass(Reason::NoService),
        };
    };
    let Some(found) = context.find_live(&key) else {
        return match is_wide {
            true => Verdict::Next(Stage::quoted::<A>()),
            false if !is_reply => context.about_nothing::<A>(),
            false => Verdict::Pass(Reason::NoConnection),
        };
    };
    if packet.ttl <= 1 {
        return Verdict::Pass(Reason::Expired);
    }
    let destination = context.destination(found.value.destination());
    let done = destination.map_err(Verdict::Drop).and_then(|(destination, row)| {
        if is_reply {
            to_client(context, frame, &packet, destination, row)
        } else {
            to_destination(context, frame, &packet, destination, row)
        }
    });
    match done {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// Hands an error from the clients' side to the server whose packet it quotes.
#[inline(always)]
pub(crate) fn to_destination<A: Quote, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
) -> Result<Verdict, Verdict> {
    let is_nat = destination.method == method::MASQUERADE;
    let way = match context.way_to_destination(frame, row, destination) {
        // A server here knows itself by its own address and port only.
        Err(Verdict::Pass(Reason::Local))
            if F::RESOLVES && is_nat && destination.flags & destination_flag::LOCAL != 0 =>
        {
            let port = u16::from_be_bytes(destination.port);
            let address = A::from_octets(&destination.address).words();
            count_request(row, packet.length);
            return Ok(context.replace::<A>(End::Target, address, port, local::ERROR));
        }
        way => way?,
    };
    fit(frame, packet, destination.overhead, &way)?;
    if !is_nat {
        let message = Packet { protocol: A::ICMP, ..*packet };
        return Ok(forward::<A, F, T, true>(context, frame, &message, destination, row, &way));
    }
    translate(frame, packet, &Substitute::by_destination(destination))?;
    count_request(row, packet.length);
    Ok(hop::send(frame, &way))
}

/// Hands an error from the servers' side, of a server or of a router before it, to the client.
#[inline(always)]
fn to_client<A: Quote, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
) -> Result<Verdict, Verdict> {
    let service: Option<&Service> = context.tables.service(destination.service);
    let service = service.ok_or(Verdict::Drop(Reason::Inconsistent))?;
    let way = match context.way_to_client(frame, packet.target) {
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES => {
            let port = u16::from_be_bytes(service.port);
            let address = A::from_octets(&service.address).words();
            count_answer(row, packet.length);
            return Ok(context.replace::<A>(End::Source, address, port, local::ERROR));
        }
        way => way?,
    };
    fit(frame, packet, 0, &way)?;
    translate(frame, packet, &Substitute::by_service(destination, service))?;
    count_answer(row, packet.length);
    Ok(hop::send(frame, &way))
}

/// Nobody is told that an error is too long.
#[inline(always)]
pub(crate) fn fit<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    overhead: u16,
    way: &Way<'_>,
) -> Result<(), Verdict> {
    match does_not_fit(frame, packet, overhead, way) {
        Some(_) => Err(Verdict::Drop(Reason::TooBig)),
        None => Ok(()),
    }
}

#[inline(always)]
fn translate<A: Quote, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    by: &Substitute<'_>,
) -> Result<(), Verdict> {
    A::translate_error(frame, packet, by, true).ok_or(Verdict::Drop(Reason::Malformed))
}

/// ICMP errors of an IP version.
pub trait Quote: Ip {
    /// IP protocol number of its ICMP.
    const ICMP: u8;

    /// Returns what an ICMP error quotes, as the packet against it: what was its source is the target.
    /// Length and time to live are the error's own.
    fn quoted<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason>;
    /// As [`quoted`](Self::quoted) where the error or what it quotes has IPv4 options, or what it quotes IPv6
    /// extension headers; also returns where its parts stand.
    fn quoted_odd<F: Frame, T: Tables>(
        frame: &mut F,
        tables: &T,
    ) -> Result<(Packet<Self>, Place), Reason>;
    /// Returns whether a message is an error about a packet in a tunnel without ports.
    fn quotes_tunnel<F: Frame>(frame: &mut F) -> bool;
    /// Replaces one end of an error and the opposite end of what it quotes, lowers the time to live if
    /// asked to, lets checksums follow.
    fn translate_error<F: Frame>(
        frame: &mut F,
        packet: &Packet<Self>,
        by: &Substitute<'_>,
        lower: bool,
    ) -> Option<()>;
}

/// Bytes that are quoted behind the IP header at least.
const LEAST: usize = 8;
const QUOTE_V4: usize = L4_V4 + icmp::LENGTH;
const QUOTE_V6: usize = L4_V6 + icmp::LENGTH;
const PORTS_V4: usize = QUOTE_V4 + ipv4::LENGTH;
const PORTS_V6: usize = QUOTE_V6 + ipv6::LENGTH;
/// Up to the end of what is quoted at least.
const HEADERS_V4: usize = PORTS_V4 + LEAST;
const HEADERS_V6: usize = PORTS_V6 + LEAST;
/// Up to the end of a quoted TCP checksum.
const TCP_V4: usize = PORTS_V4 + tcp::CHECKSUM + 2;
const TCP_V6: usize = PORTS_V6 + tcp::CHECKSUM + 2;

impl Quote for V4 {
    const ICMP: u8 = icmp::PROTOCOL;

    #[inline(always)]
    fn quoted<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason> {
        is_other::<Self, F>(frame)?;
        let head = frame.head::<QUOTE_V4>().ok_or(Reason::Malformed)?;
        let total = u16_at(head, IP + ipv4::TOTAL_LENGTH);
        let ttl = u8_at(head, IP + ipv4::TTL);
        let target = u32_at(head, IP + ipv4::DESTINATION);
        if !is_error(u8_at(head, L4_V4 + icmp::TYPE)) {
            return Err(Reason::OtherProtocol);
        }
        let head = frame.head::<HEADERS_V4>().ok_or(Reason::Malformed)?;
        let first = u8_at(head, QUOTE_V4);
        if first != 0x45 {
            let options = first >> 4 == 4 && first & 15 > 5;
            return Err(if options { Reason::Options } else { Reason::Malformed });
        }
        if usize::from(total) < HEADERS_V4 - IP || u32_at(head, QUOTE_V4 + ipv4::SOURCE) != target {
            return Err(Reason::Malformed);
        }
        if u16_at(head, QUOTE_V4 + ipv4::FRAGMENT) & ipv4::FRAGMENT_OFFSET != 0 {
            return Err(Reason::Fragment);
        }
        Ok(Packet {
            source: Self(u32_at(head, QUOTE_V4 + ipv4::DESTINATION)),
            target: Self(target),
            source_port: u16_at(head, PORTS_V4 + DESTINATION_PORT),
            target_port: u16_at(head, PORTS_V4 + SOURCE_PORT),
            protocol: with_ports(u8_at(head, QUOTE_V4 + ipv4::PROTOCOL))?,
            flags: 0,
            ttl,
            length: u32::from(total),
        })
    }

    #[inline(always)]
    fn quoted_odd<F: Frame, T: Tables>(
        frame: &mut F,
        tables: &T,
    ) -> Result<(Packet<Self>, Place), Reason> {
        odd::v4(frame, tables)
    }

    #[inline(always)]
    fn quotes_tunnel<F: Frame>(frame: &mut F) -> bool {
        let Some(head) = frame.head::<HEADERS_V4>() else { return false };
        is_error(u8_at(head, L4_V4 + icmp::TYPE))
            && is_tunnel(u8_at(head, QUOTE_V4 + ipv4::PROTOCOL))
    }

    #[inline(always)]
    fn translate_error<F: Frame>(
        frame: &mut F,
        packet: &Packet<Self>,
        by: &Substitute<'_>,
        lower: bool,
    ) -> Option<()> {
        let head = frame.head::<HEADERS_V4>()?;
        let (outer, quoted, port_at) = match by.end {
            End::Source => (ipv4::SOURCE, ipv4::DESTINATION, DESTINATION_PORT),
            End::Target => (ipv4::DESTINATION, ipv4::SOURCE, SOURCE_PORT),
        };
        let address: [u8; 4] = bytes_at(by.address, 0);
        // A router's error has another source than the server.
        let old: [u8; 4] = bytes_at(head, IP + outer);
        let changed = delta(&old, &address);
        if lower {
            lower_v4(head, changed);
        } else {
            follow(head, IP + ipv4::CHECKSUM, changed.into(), false);
        }
        put_at(head, IP + outer, address);
        put_at(head, QUOTE_V4 + quoted, address);
        put_at(head, PORTS_V4 + port_at, by.port);
        let header = follow(head, QUOTE_V4 + ipv4::CHECKSUM, by.deltas.address.into(), false);
        let transport = if packet.length as usize >= TCP_V4 - IP && packet.protocol == tcp::PROTOCOL
        {
            follow_tcp(frame.head::<TCP_V4>()?, PORTS_V4, by.deltas)
        } else {
            follow_udp(frame.head::<HEADERS_V4>()?, PORTS_V4, packet.protocol, by.deltas)
        };
        let changed = sum(by.deltas) + u64::from(header) + u64::from(transport);
        let head = frame.head::<HEADERS_V4>()?;
        follow(head, L4_V4 + icmp::CHECKSUM, changed, false);
        Some(())
    }
}

impl Quote for V6 {
    const ICMP: u8 = icmp::PROTOCOL_V6;

    #[inline(always)]
    fn quoted<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason> {
        is_other::<Self, F>(frame)?;
        let head = frame.head::<QUOTE_V6>().ok_or(Reason::Malformed)?;
        let length = usize::from(u16_at(head, IP + ipv6::PAYLOAD_LENGTH)) + ipv6::LENGTH;
        let ttl = u8_at(head, IP + ipv6::HOP_LIMIT);
        let target = address_v6(head, IP + ipv6::DESTINATION);
        if u8_at(head, L4_V6 + icmp::TYPE) & icmp::INFORMATIONAL_V6 != 0 {
            return Err(Reason::OtherProtocol);
        }
        let head = frame.head::<HEADERS_V6>().ok_or(Reason::Malformed)?;
        if u8_at(head, QUOTE_V6) >> 4 != 6
            || length < HEADERS_V6 - IP
            || address_v6(head, QUOTE_V6 + ipv6::SOURCE) != target
        {
            return Err(Reason::Malformed);
        }
        let protocol = match u8_at(head, QUOTE_V6 + ipv6::NEXT_HEADER) {
            ipv6::FRAGMENT => return Err(Reason::Fragment),
            0 | 43 | 60 => return Err(Reason::Options),
            protocol => with_ports(protocol)?,
        };
        Ok(Packet {
            source: address_v6(head, QUOTE_V6 + ipv6::DESTINATION),
            target,
            source_port: u16_at(head, PORTS_V6 + DESTINATION_PORT),
            target_port: u16_at(head, PORTS_V6 + SOURCE_PORT),
            protocol,
            flags: 0,
            ttl,
            length: length as u32,
        })
    }

    #[inline(always)]
    fn quoted_odd<F: Frame, T: Tables>(
        frame: &mut F,
        tables: &T,
    ) -> Result<(Packet<Self>, Place), Reason> {
        odd::v6(frame, tables)
    }

    #[inline(always)]
    fn quotes_tunnel<F: Frame>(frame: &mut F) -> bool {
        let Some(head) = frame.head::<HEADERS_V6>() else { return false };
        u8_at(head, L4_V6 + icmp::TYPE) & icmp::INFORMATIONAL_V6 == 0
            && is_tunnel(u8_at(head, QUOTE_V6 + ipv6::NEXT_HEADER))
    }

    #[inline(always)]
    fn translate_error<F: Frame>(
        frame: &mut F,
        packet: &Packet<Self>,
        by: &Substitute<'_>,
        lower: bool,
    ) -> Option<()> {
        if lower {
            frame.lower_hop_limit()?;
        }
        let head = frame.head::<HEADERS_V6>()?;
        let (outer, quoted, port_at) = match by.end {
            End::Source => (ipv6::SOURCE, ipv6::DESTINATION, DESTINATION_PORT),
            End::Target => (ipv6::DESTINATION, ipv6::SOURCE, SOURCE_PORT),
        };
        let old: [u8; 16] = bytes_at(head, IP + outer);
        let pseudo = delta(&old, by.address);
        let [high, low]: [[u8; 8]; 2] = [bytes_at(by.address, 0), bytes_at(by.address, 8)];
        put_at(head, IP + outer, high);
        put_at(head, IP + outer + 8, low);
        put_at(head, QUOTE_V6 + quoted, high);
        put_at(head, QUOTE_V6 + quoted + 8, low);
        put_at(head, PORTS_V6 + port_at, by.port);
        let transport = if packet.length as usize >= TCP_V6 - IP && packet.protocol == tcp::PROTOCOL
        {
            follow_tcp(frame.head::<TCP_V6>()?, PORTS_V6, by.deltas)
        } else {
            follow_udp(frame.head::<HEADERS_V6>()?, PORTS_V6, packet.protocol, by.deltas)
        };
        let changed = sum(by.deltas) + u64::from(pseudo) + u64::from(transport);
        let head = frame.head::<HEADERS_V6>()?;
        follow(head, L4_V6 + icmp::CHECKSUM, changed, false);
        Some(())
    }
}

/// Returns whether an ICMP message is an error, by its type.
#[inline(always)]
pub(crate) fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        icmp::UNREACHABLE | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM
    )
}

/// Checks the IP header of a message that is neither TCP nor UDP.
#[inline(always)]
pub(crate) fn is_other<A: Ip, F: Frame>(frame: &mut F) -> Result<(), Reason> {
    match A::parse(frame) {
        Err(Reason::OtherProtocol) => Ok(()),
        Err(reason) => Err(reason),
        Ok(_) => Err(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, ipip::PROTOCOL_V4 | ipip::PROTOCOL_V6 | gre::PROTOCOL)
}

/// Returns a protocol whose header begins with two ports.
#[inline(always)]
pub(crate) fn with_ports(protocol: u8) -> Result<u8, Reason> {
    match protocol {
        tcp::PROTOCOL | udp::PROTOCOL | sctp::PROTOCOL => Ok(protocol),
        _ => Err(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn address_v6<const N: usize>(head: &[u8; N], at: usize) -> V6 {
    V6(u64_at(head, at), u64_at(head, at + 8))
}

#[inline(always)]
fn delta<const N: usize>(old: &[u8; N], new: &[u8; N]) -> u16 {
    checksum::delta(checksum::fold(checksum::sum(old)), checksum::fold(checksum::sum(new)))
}

#[inline(always)]
fn sum(deltas: Deltas) -> u64 {
    u64::from(deltas.address) + u64::from(deltas.port)
}

/// Lets the checksum at `at` follow, and returns the delta of its own words.
#[inline(always)]
fn follow<const N: usize>(head: &mut [u8; N], at: usize, by: u64, udp: bool) -> u16 {
    let old = u16_at(head, at);
    let new = checksum::update(old, by);
    let new = if udp && new == 0 { 0xffff } else { new };
    put_at(head, at, new.to_be_bytes());
    checksum::delta(old, new)
}

#[inline(always)]
fn follow_tcp<const N: usize>(head: &mut [u8; N], transport: usize, by: Deltas) -> u16 {
    follow(head, transport + tcp::CHECKSUM, sum(by), false)
}

/// Lets a quoted UDP checksum follow, if there is one. Of TCP it is not quoted, of SCTP it covers no
/// address, and ports only in a way that takes the whole packet: it stays as it is.
#[inline(always)]
fn follow_udp<const N: usize>(head: &mut [u8; N], at: usize, protocol: u8, by: Deltas) -> u16 {
    if protocol != udp::PROTOCOL || u16_at(head, at + udp::CHECKSUM) == 0 {
        return 0;
    }
    follow(head, at + udp::CHECKSUM, sum(by), true)
}
