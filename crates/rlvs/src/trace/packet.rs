//! The packet that is asked about, and what became of it, in words.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    IpNumber, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};
use rlvs_control::model::{ForwardingMethod, Protocol, Tunnel};
use rlvs_linux::route::Mac;

/// A neighbour that there is not: where the packet comes from.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Hop limit of the packet.
const TTL: u8 = 64;
const WINDOW: u16 = 64_240;

/// A packet of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where it comes from.
    pub client: SocketAddr,
    /// Where it goes, of the same family.
    pub target: SocketAddr,
    /// Whether it comes in the middle of a connection, and does not begin one.
    pub established: bool,
}

impl Asked {
    /// Returns what it is in one word.
    pub const fn kind(&self) -> &'static str {
        match (self.protocol, self.established) {
            (Protocol::Tcp, false) => "SYN",
            (Protocol::Tcp, true) => "ACK",
            (Protocol::Sctp, false) => "INIT",
            (Protocol::Sctp, true) => "DATA",
            _ => "datagram",
        }
    }

    /// Returns the frame, addressed to an interface.
    ///
    /// # Errors
    /// Addresses of two families.
    pub fn frame(&self, mac: Mac) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(NOBODY, mac.0);
        let step: PacketBuilderStep<_> = match (self.client.ip(), self.target.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), TTL),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), TTL),
            (from, to) => bail!("{from} and {to} are of two families"),
        };
        let (from, to) = (self.client.port(), self.target.port());
        let mut bytes = Vec::new();
        let written = match (self.protocol, self.established) {
            (Protocol::Tcp, false) => step.tcp(from, to, 1, WINDOW).syn().write(&mut bytes, &[]),
            (Protocol::Tcp, true) => step.tcp(from, to, 2, WINDOW).ack(2).write(&mut bytes, &[]),
            (Protocol::Udp, _) => step.udp(from, to).write(&mut bytes, &[0; 8]),
            (Protocol::Sctp, _) => {
                let packet = association(from, to, self.established);
                step.write(&mut bytes, IpNumber::SCTP, &packet)
            }
            (other, _) => bail!("{other} has no services"),
        };
        written.context("the packet cannot be written")?;
        Ok(bytes)
    }
}

/// Returns an SCTP packet with one chunk: INIT, or DATA with four bytes. Its checksum is 0: the balancer
/// only moves it along with what it changes.
fn association(from: u16, to: u16, established: bool) -> Vec<u8> {
    const TAG: u32 = 7;
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    // Verification tag (0 in an INIT), checksum, chunk: type, flags, length, and what belongs to it.
    let (tag, chunk) = match established {
        false => {
            (0, [&[1, 0, 0, 20][..], &TAG.to_be_bytes(), &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]])
        }
        true => (TAG, [&[0, 3, 0, 20][..], &1_u32.to_be_bytes(), &[0; 12]]),
    };
    [&ports[..], &tag.to_be_bytes(), &[0; 4], &chunk.concat()].concat()
}

/// What is in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Becomes {
    /// Ethernet address that it goes to.
    pub mac: Mac,
    /// Addresses of the outer IP header, if it is in a tunnel.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub target: IpAddr,
    /// Its ports, if it has some.
    pub ports: Option<(u16, u16)>,
    /// Its time to live.
    pub ttl: u8,
    /// Type and code of an ICMP message.
    pub icmp: Option<(u8, u8)>,
}

impl Becomes {
    /// Reads a frame that goes to a server by this method. `None` if it is no such frame.
    pub fn read(frame: &[u8], method: Option<ForwardingMethod>) -> Option<Self> {
        let mac = Mac(*frame.first_chunk()?);
        let whole = SlicedPacket::from_ethernet(frame).ok()?;
        let inner = match method {
            Some(ForwardingMethod::Tunnel(tunnel)) => inside(&whole, tunnel),
            _ => None,
        };
        let (outer, packet) = match inner {
            None => (None, whole),
            Some(inner) => {
                let (source, target, _) = ends(&whole)?;
                (Some((source, target)), SlicedPacket::from_ip(inner).ok()?)
            }
        };
        let (source, target, ttl) = ends(&packet)?;
        let (ports, icmp) = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                (Some((tcp.source_port(), tcp.destination_port())), None)
            }
            Some(TransportSlice::Udp(udp)) => {
                (Some((udp.source_port(), udp.destination_port())), None)
            }
            Some(TransportSlice::Icmpv4(icmp)) => (None, Some((icmp.type_u8(), icmp.code_u8()))),
            Some(TransportSlice::Icmpv6(icmp)) => (None, Some((icmp.type_u8(), icmp.code_u8()))),
            None => (ports_of(&packet), None),
        };
        Some(Self { mac, outer, source, target, ports, ttl, icmp })
    }
}

/// Returns source, destination and time to live.
fn ends(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr, u8)> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            Some((ip.source_addr().into(), ip.destination_addr().into(), ip.ttl()))
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            Some((ip.source_addr().into(), ip.destination_addr().into(), ip.hop_limit()))
        }
        NetSlice::Arp(_) => None,
    }
}

/// Returns the ports of an SCTP packet.
fn ports_of(packet: &SlicedPacket<'_>) -> Option<(u16, u16)> {
    let payload = packet.net.as_ref()?.ip_payload_ref()?;
    if payload.ip_number != IpNumber::SCTP {
        return None;
    }
    let [a, b, c, d] = payload.payload.first_chunk()?;
    Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
}

/// Returns the IP packet in a tunnel's.
fn inside<'a>(whole: &SlicedPacket<'a>, tunnel: Tunnel) -> Option<&'a [u8]> {
    const GRE_BASE: usize = 4;
    const GRE_CHECKSUM: u8 = 0x80;
    const GUE_BASE: usize = 4;
    /// Length of what follows the base of GUE's header, in words.
    const GUE_LENGTH: u8 = 0x1f;
    let payload = match &whole.net {
        Some(NetSlice::Ipv4(ip)) => ip.payload().payload,
        Some(NetSlice::Ipv6(ip)) => ip.payload().payload,
        _ => return None,
    };
    match tunnel {
        Tunnel::Ipip => Some(payload),
        Tunnel::Gre { .. } => {
            let checksum = if payload.first()? & GRE_CHECKSUM != 0 { 4 } else { 0 };
            payload.get(GRE_BASE + checksum..)
        }
        Tunnel::Gue { .. } => {
            let Some(TransportSlice::Udp(udp)) = &whole.transport else { return None };
            let gue = udp.payload();
            gue.get(GUE_BASE + usize::from(gue.first()? & GUE_LENGTH) * 4..)
        }
    }
}
