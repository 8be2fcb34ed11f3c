//! Frames made by `etherparse`, which shares nothing with our own packet code: its checksums are
//! computed over the whole packet.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep, TcpHeader,
};

/// What is in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP with these flags ([`rlvs_wire::tcp`]).
    Tcp(u8),
    /// UDP.
    Udp,
    /// SCTP: types of the first chunk, which has the payload, and of an empty one behind it.
    Sctp(u8, Option<u8>),
    /// Any other protocol, by number; the payload is all that is in it.
    Other(u8),
}

/// A packet in words.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ethernet source.
    pub from: [u8; 6],
    /// Ethernet destination.
    pub to: [u8; 6],
    /// Source.
    pub source: SocketAddr,
    /// Destination, of the same family.
    pub target: SocketAddr,
    /// Transport.
    pub kind: Kind,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Returns the IP protocol number.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp(_) => rlvs_wire::tcp::PROTOCOL,
            Kind::Udp => rlvs_wire::udp::PROTOCOL,
            Kind::Sctp(..) => rlvs_wire::sctp::PROTOCOL,
            Kind::Other(protocol) => protocol,
        }
    }

    /// Returns the frame.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.with_options(&[])
    }

    /// Returns the frame with options of TCP, a multiple of four bytes.
    #[must_use]
    pub fn with_options(&self, options: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let step: PacketBuilderStep<IpHeaders> = match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                ethernet.ipv4(source.octets(), target.octets(), self.ttl)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                ethernet.ipv6(source.octets(), target.octets(), self.ttl)
            }
            (source, target) => panic!("{source} and {target} are of two families"),
        };
        let (source, target) = (self.source.port(), self.target.port());
        let mut bytes = Vec::new();
        let written = match self.kind {
            Kind::Tcp(flags) => {
                let mut header = TcpHeader::new(source, target, 0x1234_5678, 0x7210);
                header.acknowledgment_number = 0x9abc_def0;
                let set = |flag| flags & flag != 0;
                (header.fin, header.syn, header.rst, header.psh, header.ack) =
                    (set(1), set(2), set(4), set(8), set(16));
                header.set_options_raw(options).expect("options that fit");
                step.tcp_header(header).write(&mut bytes, &self.payload)
            }
            Kind::Udp => step.udp(source, target).write(&mut bytes, &self.payload),
            Kind::Sctp(first, second) => {
                let sctp = association_packet(source, target, first, &self.payload, second);
                step.write(&mut bytes, IpNumber(self.protocol()), &sctp)
            }
            Kind::Other(protocol) => step.write(&mut bytes, IpNumber(protocol), &self.payload),
        };
        written.expect("a packet that can be written");
        bytes
    }

    /// Returns a packet of the other direction between the same ends.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { source: self.target, target: self.source, ..self.clone() }
    }

    /// Returns the length of the IP packet.
    #[must_use]
    pub fn length(&self) -> usize {
        let ip = if self.source.is_ipv4() { 20 } else { 40 };
        let payload = self.payload.len();
        ip + match self.kind {
            Kind::Tcp(_) => 20 + payload,
            Kind::Udp => 8 + payload,
            Kind::Sctp(_, second) => 16 + payload.next_multiple_of(4) + second.map_or(0, |_| 4),
            Kind::Other(_) => payload,
        }
    }
}

/// An ICMP message in words.
#[derive(Clone, Debug)]
pub struct Message {
    /// Ethernet source.
    pub from: [u8; 6],
    /// Ethernet destination.
    pub to: [u8; 6],
    /// Source.
    pub source: IpAddr,
    /// Destination, of the same family.
    pub target: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Type and code.
    pub kind: [u8; 2],
    /// The header's second half.
    pub rest: [u8; 4],
    /// What it carries; of an error, the packet that it quotes.
    pub payload: Vec<u8>,
}

impl Message {
    /// Returns the frame.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let ([kind, code], rest) = (self.kind, self.rest);
        let mut bytes = Vec::new();
        let written = match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => ethernet
                .ipv4(source.octets(), target.octets(), self.ttl)
                .icmpv4(Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest })
                .write(&mut bytes, &self.payload),
            (IpAddr::V6(source), IpAddr::V6(target)) => ethernet
                .ipv6(source.octets(), target.octets(), self.ttl)
                .icmpv6(Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest })
                .write(&mut bytes, &self.payload),
            (source, target) => panic!("{source} and {target} are of two families"),
        };
        written.expect("a message that can be written");
        bytes
    }

    /// Returns the length of the IP packet.
    #[must_use]
    pub fn length(&self) -> usize {
        let ip = if self.source.is_ipv4() { 20 } else { 40 };
        ip + 8 + self.payload.len()
    }
}

/// Returns an SCTP packet: the common header, a chunk with a payload, perhaps an empty one.
#[must_use]
pub fn association_packet(
    source: u16,
    target: u16,
    first: u8,
    payload: &[u8],
    second: Option<u8>,
) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), target.to_be_bytes()].concat();
    packet.extend([0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0]);
    packet.extend([first, 0]);
    packet.extend((payload.len() as u16 + 4).to_be_bytes());
    packet.extend_from_slice(payload);
    packet.resize(packet.len().next_multiple_of(4), 0);
    if let Some(second) = second {
        packet.extend([second, 0, 0, 4]);
    }
    let crc = crc32c(&packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    packet
}

/// Computes CRC32c bit by bit, the most significant first, as RFC 9260 defines it before it
/// describes how to be fast; shares nothing with `rlvs_wire::crc32c`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let remainder = bytes.iter().fold(u32::MAX, |remainder, byte| {
        (0..8).fold(remainder, |remainder, bit| {
            let next = u32::from(byte >> bit & 1);
            if remainder >> 31 ^ next == 1 { remainder << 1 ^ 0x1edc_6f41 } else { remainder << 1 }
        })
    });
    !remainder.reverse_bits()
}

/// Returns the offset of the transport header in a frame without IP options.
#[must_use]
pub fn transport(frame: &[u8]) -> usize {
    if frame[12..14] == [0x08, 0x00] { 34 } else { 54 }
}

/// Sets the checksum of a UDP datagram.
pub fn set_udp_checksum(frame: &mut [u8], checksum: u16) {
    let at = transport(frame) + 6;
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
