//! Where the parts of a packet stand that has IPv4 options or IPv6 extension headers, or is a
//! fragment.

use rlvs_wire::ipv4::option;
use rlvs_wire::{
    SOURCE_PORT, checksum, ethernet, ipsec, ipv4, ipv6, sctp, tcp, u8_at, u16_at, u32_at, udp,
};

use crate::association::{HEADERS, event_of_packet};
use crate::frame::{Frame, OFFSETS};
use crate::ip::{Ip, Packet, V4, V6, header_sum};
use crate::reason::Reason;
use crate::tables::Tables;

const IP: usize = ethernet::LENGTH;
const OPTIONS_V4: usize = IP + ipv4::LENGTH;
const HEADERS_V6: usize = IP + ipv6::LENGTH;
/// Bytes of options that an IPv4 header has room for.
const OPTIONS_MAX: u32 = 40;
/// Extension headers that are followed.
const EXTENSIONS_MAX: u32 = 4;
/// Transport headers stand below this offset.
const TRANSPORT_MAX: u32 = OFFSETS as u32 - tcp::LENGTH as u32;

/// What a packet holds of its datagram.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    Whole = 0,
    /// Its begin.
    First = 1,
    /// Anything else of it.
    Later = 2,
}

/// The parts of a packet.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub struct Layout<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub target: A,
    /// Offset of what follows the IP headers, in the frame.
    pub transport: u32,
    /// Number of bytes there.
    pub payload: u32,
    /// Length of the IP packet.
    pub length: u32,
    /// Number that the fragments of a datagram share.
    pub identification: u32,
    /// What it holds of its datagram.
    pub piece: Piece,
    /// Protocol; of an IPv6 datagram's later fragments not known.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
}

impl<A: Ip> Layout<A> {
    /// Reads ports and flags of a TCP or UDP packet that has them.
    #[inline(always)]
    pub fn ports<F: Frame>(&self, frame: &mut F) -> Result<(u32, u8), Reason> {
        let lacks = match self.piece {
            Piece::Whole => Reason::Malformed,
            _ => Reason::Fragment,
        };
        let at = self.transport as usize;
        match self.protocol {
            tcp::PROTOCOL if self.payload < tcp::LENGTH as u32 => Err(lacks),
            udp::PROTOCOL if self.payload < udp::LENGTH as u32 => Err(lacks),
            tcp::PROTOCOL => {
                let header = frame.at::<{ tcp::LENGTH }>(at).ok_or(Reason::Malformed)?;
                let length = u32::from(u8_at(header, tcp::DATA_OFFSET) >> 4) * 4;
                if length < tcp::LENGTH as u32 || length > self.payload {
                    return Err(lacks);
                }
                Ok((u32_at(header, SOURCE_PORT), u8_at(header, tcp::FLAGS)))
            }
            udp::PROTOCOL => {
                let header = frame.at::<{ udp::LENGTH }>(at).ok_or(Reason::Malformed)?;
                let length = u32::from(u16_at(header, udp::DATAGRAM_LENGTH));
                let too_long = length > self.payload && self.piece == Piece::Whole;
                if length < udp::LENGTH as u32 || too_long {
                    return Err(Reason::Malformed);
                }
                Ok((u32_at(header, SOURCE_PORT), 0))
            }
            _ => Err(self.unserved()),
        }
    }

    /// Reads ports, protocol and flags of any packet that is served and has its transport header: those of
    /// IPsec are the ports and the protocol of its key exchange.
    #[inline(always)]
    pub fn ends<F: Frame>(&self, frame: &mut F) -> Result<(u32, u8, u8), Reason> {
        match self.protocol {
            sctp::PROTOCOL if self.payload < HEADERS as u32 => Err(self.unserved()),
            sctp::PROTOCOL => {
                let at = self.transport as usize;
                let header = frame.at::<HEADERS>(at).ok_or(Reason::Malformed)?;
                let ports = u32_at(header, SOURCE_PORT);
                let [kind, length] = [sctp::LENGTH, sctp::LENGTH + sctp::LENGTH_OF_CHUNK];
                let (kind, length) = (u8_at(header, kind), u16_at(header, length));
                let end = at + self.payload as usize;
                let event = event_of_packet(frame, kind, length, at + sctp::LENGTH, end);
                Ok((ports, self.protocol, event))
            }
            ipsec::ESP | ipsec::AH if self.payload < ipsec::LENGTH => Err(self.unserved()),
            ipsec::ESP | ipsec::AH => {
                Ok((u32::from(ipsec::KEY_EXCHANGE) * 0x1_0001, udp::PROTOCOL, 0))
            }
            protocol => self.ports(frame).map(|(ports, flags)| (ports, protocol, flags)),
        }
    }

    /// Returns the packet with what is not in the layout; the source port is the upper half.
    #[inline(always)]
    pub fn with(&self, ports: u32, protocol: u8, flags: u8) -> Packet<A> {
        Packet {
            source: self.source,
            target: self.target,
            source_port: (ports >> 16) as u16,
            target_port: ports as u16,
            protocol,
            flags,
            ttl: self.ttl,
            length: self.length,
        }
    }

    /// Returns the reason for which it is left to the stack if nothing else speaks against it.
    #[inline(always)]
    pub fn unserved(&self) -> Reason {
        match self.piece {
            Piece::Whole => Reason::Options,
            _ => Reason::Fragment,
        }
    }
}

/// Finds the parts of an IPv4 packet.
#[inline(always)]
pub fn v4<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Layout<V4>, Reason> {
    let head = frame.head::<34>().ok_or(Reason::Malformed)?;
    let first = u8_at(head, IP);
    let length = u32::from(u16_at(head, IP + ipv4::TOTAL_LENGTH));
    let part = u16_at(head, IP + ipv4::FRAGMENT);
    let identification = u32::from(u16_at(head, IP + ipv4::IDENTIFICATION));
    let (ttl, protocol) = (u8_at(head, IP + ipv4::TTL), u8_at(head, IP + ipv4::PROTOCOL));
    let source = V4(u32_at(head, IP + ipv4::SOURCE));
    let target = V4(u32_at(head, IP + ipv4::DESTINATION));
    let sum = header_sum(head);
    let header = u32::from(first & 15) * 4;
    if first >> 4 != 4 || header < ipv4::LENGTH as u32 || length < header || source.0 == 0 {
        return Err(Reason::Malformed);
    }
    if !frame.holds(IP + length as usize) {
        return Err(Reason::Malformed);
    }
    // What the verifier learns of the length there must not split what follows here.
    let options = tables.forget(u64::from(header) - ipv4::LENGTH as u64) as u32;
    match read_options(frame, tables, options, sum) {
        FINE => {}
        reason => return Err(Reason::from_number(reason)),
    }
    let piece = match (part & ipv4::FRAGMENT_OFFSET, part & ipv4::FRAGMENT_MASK) {
        (0, 0) => Piece::Whole,
        (0, _) => Piece::First,
        _ => Piece::Later,
    };
    let payload = length - header;
    // It would write over the flags of the first fragment (RFC 3128).
    if protocol == tcp::PROTOCOL && part & ipv4::FRAGMENT_OFFSET == 1 {
        return Err(Reason::Fragment);
    }
    let transport = IP as u32 + header;
    Ok(Layout { source, target, transport, payload, length, identification, piece, protocol, ttl })
}

/// What [`read_options`] returns if nothing is wrong.
const FINE: u32 = u32::MAX;

/// Checks the options of an IPv4 header, and its checksum, given the sum of what is before them. A
/// packet with a source route goes where that says, not where we would send it.
#[inline(never)]
fn read_options<F: Frame, T: Tables>(frame: &mut F, tables: &T, length: u32, sum: u64) -> u32 {
    let mut sum = sum;
    for word in 0..OPTIONS_MAX / 4 {
        if word * 4 < length {
            let Some(word) = frame.at::<4>(OPTIONS_V4 + word as usize * 4) else {
                return Reason::Malformed as u32;
            };
            sum += u64::from(u32_at(word, 0));
        }
    }
    if checksum::fold(sum) != 0xffff {
        return Reason::Malformed as u32;
    }
    let length = tables.forget(length.into()) as u32;
    let mut at = 0;
    for _ in 0..OPTIONS_MAX {
        at = tables.forget(at.into()) as u32;
        if at >= length {
            return FINE;
        }
        let Some(kind) = frame.byte(OPTIONS_V4 + at as usize) else {
            return Reason::Malformed as u32;
        };
        at += match kind {
            option::END => return FINE,
            option::NOP => 1,
            option::LOOSE_ROUTE | option::STRICT_ROUTE => return Reason::Options as u32,
            _ => match frame.byte(OPTIONS_V4 + at as usize + 1) {
                Some(size) if size >= 2 && at + u32::from(size) <= length => size.into(),
                _ => return Reason::Malformed as u32,
            },
        };
    }
    FINE
}

/// Finds the parts of an IPv6 packet.
#[inline(always)]
pub fn v6<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Layout<V6>, Reason> {
    let head = frame.head::<54>().ok_or(Reason::Malformed)?;
    let behind = u32::from(u16_at(head, IP + ipv6::PAYLOAD_LENGTH));
    let version = u8_at(head, IP) >> 4;
    let (next, ttl) = (u8_at(head, IP + ipv6::NEXT_HEADER), u8_at(head, IP + ipv6::HOP_LIMIT));
    let word = |at| rlvs_wire::u64_at(head, IP + at);
    let source = V6(word(ipv6::SOURCE), word(ipv6::SOURCE + 8));
    let target = V6(word(ipv6::DESTINATION), word(ipv6::DESTINATION + 8));
    if version != 6 || !frame.holds(HEADERS_V6 + behind as usize) {
        return Err(Reason::Malformed);
    }
    let read = behind_extensions(frame, tables, HEADERS_V6 as u32, next);
    let transport = read.transport();
    let length = behind + ipv6::LENGTH as u32;
    let payload = (IP as u32 + length).wrapping_sub(transport);
    if transport == 0 {
        return Err(read.reason());
    }
    if payload > length {
        return Err(Reason::Malformed);
    }
    let (piece, protocol) = (read.piece(), read.protocol());
    let identification = read.identification();
    Ok(Layout { source, target, transport, payload, length, identification, piece, protocol, ttl })
}

/// What [`read_extensions`] has found, in the one word that an out-of-line BPF function may return:
/// from the top the number of a fragmented datagram (32 bits), offset of the transport header (16;
/// 0 if it is left to the stack), what the packet holds of its datagram (8), protocol or else
/// reason (8).
#[derive(Clone, Copy)]
pub(crate) struct Chain(u64);

impl Chain {
    #[inline(always)]
    fn pack(identification: u32, transport: u32, piece: Piece, protocol: u8) -> u64 {
        u64::from(identification) << 32
            | u64::from(transport & 0xffff) << 16
            | (piece as u64) << 8
            | u64::from(protocol)
    }
    #[inline(always)]
    fn identification(self) -> u32 {
        (self.0 >> 32) as u32
    }
    #[inline(always)]
    pub(crate) fn transport(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }
    #[inline(always)]
    pub(crate) fn piece(self) -> Piece {
        match self.0 >> 8 & 0xff {
            0 => Piece::Whole,
            1 => Piece::First,
            _ => Piece::Later,
        }
    }
    #[inline(always)]
    pub(crate) fn protocol(self) -> u8 {
        self.0 as u8
    }
    #[inline(always)]
    pub(crate) fn reason(self) -> Reason {
        Reason::from_number(self.0 as u32 & 0xff)
    }
}

/// Returns where the transport header of an IPv6 packet stands, given the offset behind its IPv6 header and what
/// that names.
#[inline(always)]
pub(crate) fn behind_extensions<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    begin: u32,
    first: u8,
) -> Chain {
    Chain(read_extensions(frame, tables, begin, first))
}

/// Follows the extension headers of an IPv6 packet, which begin at an offset: one of hop-by-hop options there,
/// destination options, routing headers that have been followed to their end, one of a fragment.
#[inline(never)]
fn read_extensions<F: Frame, T: Tables>(frame: &mut F, tables: &T, begin: u32, first: u8) -> u64 {
    let (mut next, mut at) = (first, begin);
    let (mut piece, mut identification, mut fragmented) = (Piece::Whole, 0, false);
    for _ in 0..EXTENSIONS_MAX + 1 {
        at = tables.forget(at.into()) as u32;
        if at > TRANSPORT_MAX {
            break;
        }
        match next {
            ipv6::HOP_BY_HOP if at != begin => break,
            ipv6::FRAGMENT if fragmented => break,
            ipv6::HOP_BY_HOP | ipv6::DESTINATION_OPTIONS | ipv6::ROUTING => {
                let Some(&mut [following, length, _, left]) = frame.at::<4>(at as usize) else {
                    return Chain::pack(0, 0, Piece::Whole, Reason::Malformed as u8);
                };
                if next == ipv6::ROUTING && left != 0 {
                    break;
                }
                next = following;
                at += (u32::from(length) + 1) * 8;
            }
            ipv6::FRAGMENT => {
                let Some(header) = frame.at::<{ ipv6::FRAGMENT_LENGTH }>(at as usize) else {
                    return Chain::pack(0, 0, Piece::Whole, Reason::Malformed as u8);
                };
                fragmented = true;
                next = u8_at(header, 0);
                identification = u32_at(header, 4);
                at += ipv6::FRAGMENT_LENGTH as u32;
                let part = u16_at(header, 2);
                // The second would write over the flags of the first fragment (RFC 3128).
                match (part >> 3, part & 1) {
                    (0, 0) => {}
                    (0, _) => piece = Piece::First,
                    (1, _) if next == tcp::PROTOCOL => break,
                    _ => return Chain::pack(identification, at, Piece::Later, next),
                }
            }
            protocol => return Chain::pack(identification, at, piece, protocol),
        }
    }
    let reason = if fragmented { Reason::Fragment } else { Reason::Options };
    Chain::pack(0, 0, Piece::Whole, reason as u8)
}
