//! Frames made by `etherparse`, which shares nothing with our own packet code: its checksums are
//! computed over the whole packet.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};

/// TCP, and which flags are set; or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP with these flags ([`rlvs_wire::tcp`]).
    Tcp(u8),
    /// UDP.
    Udp,
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
        }
    }

    /// Returns the frame.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
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
                step.tcp_header(header).write(&mut bytes, &self.payload)
            }
            Kind::Udp => step.udp(source, target).write(&mut bytes, &self.payload),
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
        let transport = if self.kind == Kind::Udp { 8 } else { 20 };
        ip + transport + self.payload.len()
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
