//! Tunnels: the headers that IPVS puts before a packet, as `ip_vs_tunnel_xmit()` does.
//!
//! What is the same for every packet to a destination stands ready in its [`Tunnel`]. The checksum
//! of an outer header covers the whole packet, but the packet need not be read for it: what a right
//! transport checksum covers sums up to the complement of the pseudo header's sum, whatever it is
//! (local checksum offload, as the kernel has it). So a packet with a wrong one leaves with a wrong
//! outer one, and ends where the tunnel does. A packet without transport checksum, or one that the
//! kernel will cut into segments, goes without an outer one.

use core::net::IpAddr;

use rlvs_wire::{checksum, ethernet, gre, gue, ipip, ipv4, ipv6, put_at, udp};

use crate::abi::{Destination, Row, Tunnel, tunnel_checksum, tunnel_form};
use crate::connection::Context;
use crate::frame::{Frame, Growth};
use crate::ip::{Ip, Packet};
use crate::reason::Reason;
use crate::tables::Tables;

/// What the outer headers take from the packet inside, in two words, for bodies that wrap out of
/// line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brief(pub u64, pub u64);

/// What [`Brief`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
struct Inner {
    /// Length of the packet.
    length: u16,
    /// Identification for an outer header that may be fragmented.
    number: u16,
    /// The don't-fragment flag as it stands in an IPv4 header.
    unfragmented: u16,
    /// Time to live or hop limit, lowered.
    ttl: u8,
    /// Type of service or traffic class, for the outer header.
    tos: u8,
    /// Source port of an outer UDP header.
    port: u16,
    /// Sum of the whole packet.
    sum: u16,
    /// Whether that is known.
    is_summed: bool,
    /// Whether it is a datagram, whose length says something.
    is_datagram: bool,
}

impl Inner {
    #[inline(always)]
    fn pack(&self) -> Brief {
        let first = u64::from(self.length)
            | u64::from(self.number) << 16
            | u64::from(self.unfragmented) << 32
            | u64::from(self.ttl) << 48
            | u64::from(self.tos) << 56;
        let second = u64::from(self.port)
            | u64::from(self.sum) << 16
            | u64::from(self.is_summed) << 32
            | u64::from(self.is_datagram) << 33;
        Brief(first, second)
    }

    #[inline(always)]
    fn unpack(Brief(first, second): Brief) -> Self {
        Self {
            length: first as u16,
            number: (first >> 16) as u16,
            unfragmented: (first >> 32) as u16,
            ttl: (first >> 48) as u8,
            tos: (first >> 56) as u8,
            port: second as u16,
            sum: (second >> 16) as u16,
            is_summed: second >> 32 & 1 != 0,
            is_datagram: second >> 33 & 1 != 0,
        }
    }
}

/// Congestion bits of a type of service.
const CONGESTION: u8 = 3;
/// Congestion was experienced.
const EXPERIENCED: u8 = 3;
/// Congestion would be noticed.
const CAPABLE: u8 = 2;
/// Outer UDP ports come from here, as the kernel's by default: `ip_local_port_range`.
const PORTS: (u64, u64) = (32_768, 28_232);

/// Wraps a packet, whose time to live is lowered first, into the headers of its destination's tunnel. `PORTS` as
/// for [`Ip::translate`].
#[inline(always)]
pub fn enter<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
) -> Result<(), Reason> {
    let tunnel = context.tables.tunnel(destination.tunnel).ok_or(Reason::Inconsistent)?;
    if tunnel.family == 0 {
        return Err(Reason::Unreachable);
    }
    A::lower::<F, PORTS>(frame).ok_or(Reason::Malformed)?;
    let (tos, unfragmented) = A::marks(frame).ok_or(Reason::Malformed)?;
    let sum = if tunnel.checksum != tunnel_checksum::NONE
        && frame.segment(packet.length, |_| 0) == packet.length
    {
        A::sum(frame, packet)
    } else {
        None
    };
    // As INET_ECN_encapsulate() does.
    let congestion = if tos & CONGESTION == EXPERIENCED { CAPABLE } else { tos & CONGESTION };
    let inner = Inner {
        length: packet.length as u16,
        number: row.in_packets.get() as u16,
        unfragmented,
        ttl: packet.ttl.wrapping_sub(1),
        tos: tos & !CONGESTION | congestion,
        port: port_of(packet),
        sum: sum.unwrap_or(0),
        is_summed: sum.is_some(),
        is_datagram: packet.protocol == udp::PROTOCOL,
    };
    frame.wrap(tunnel, inner.pack()).ok_or(Reason::NoRoom)
}

/// Returns an outer UDP port, the same for all packets of a flow.
#[inline(always)]
fn port_of<A: Ip>(packet: &Packet<A>) -> u16 {
    let (high, low) = packet.source.words();
    let ports = u64::from(packet.source_port) << 16 | u64::from(packet.target_port);
    let hash = (high ^ low ^ ports << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (PORTS.0 + ((hash * PORTS.1) >> 32)) as u16
}

/// Puts the headers before a packet.
#[inline(always)]
pub fn wrap<F: Frame>(frame: &mut F, tunnel: &Tunnel, brief: Brief) -> Option<()> {
    let inner = Inner::unpack(brief);
    let is_v6 = tunnel.family != 4;
    let is_summed = tunnel.checksum != tunnel_checksum::NONE && inner.is_summed;
    let between = match tunnel.form {
        tunnel_form::GRE if is_summed => gre::LENGTH_WITH_CHECKSUM,
        tunnel_form::GRE => gre::LENGTH,
        tunnel_form::GUE => udp::LENGTH + gue::LENGTH,
        _ => 0,
    };
    let length = if is_v6 { ipv6::LENGTH } else { ipv4::LENGTH } + between;
    let form = tunnel.form;
    frame.grow(length, Growth { is_v6, form, is_datagram: inner.is_datagram })?;
    let payload = inner.length.wrapping_add(between as u16);
    let sum = if is_v6 {
        let head = frame.head::<{ BEHIND_V6 + SHIM }>()?;
        write_v6(head, tunnel, &inner, payload)
            + write_shim::<BEHIND_V6, _>(head, tunnel, &inner, is_summed)
    } else {
        let head = frame.head::<{ BEHIND_V4 + SHIM }>()?;
        write_v4(head, tunnel, &inner, payload);
        // A header with its checksum sums up to nothing.
        write_shim::<BEHIND_V4, _>(head, tunnel, &inner, is_summed)
    };
    frame.add_to_sum(checksum::fold(sum));
    Some(())
}

const IP: usize = ethernet::LENGTH;
const BEHIND_V4: usize = IP + ipv4::LENGTH;
const BEHIND_V6: usize = IP + ipv6::LENGTH;
/// The most that is between the outer IP header and the packet. A shorter shim leaves room that is
/// the packet's, which is never shorter than this.
const SHIM: usize = udp::LENGTH + gue::LENGTH;

#[inline(always)]
fn write_v4<const N: usize>(head: &mut [u8; N], tunnel: &Tunnel, inner: &Inner, payload: u16) {
    let total = u32::from(payload.wrapping_add(ipv4::LENGTH as u16));
    let number = if inner.unfragmented != 0 { 0 } else { u32::from(inner.number) };
    let first = 0x4500_0000 | u32::from(inner.tos) << 16 | total;
    let second = number << 16 | u32::from(inner.unfragmented);
    let third = u32::from(inner.ttl) << 24 | u32::from(tunnel.protocol) << 16;
    // The sum of the addresses has the protocol in it.
    let ttl = u64::from(inner.ttl) << 8;
    let sum = u64::from(first) + u64::from(second) + ttl + u64::from(tunnel.sum);
    let third = third | u32::from(!checksum::fold(sum));
    put_at(head, ethernet::TYPE, ethernet::IPV4.to_be_bytes());
    put_at(head, IP, first.to_be_bytes());
    put_at(head, IP + 4, second.to_be_bytes());
    put_at(head, IP + 8, third.to_be_bytes());
    put_at::<_, 4>(head, IP + ipv4::SOURCE, rlvs_wire::bytes_at(&tunnel.source, 0));
    put_at::<_, 4>(head, IP + ipv4::DESTINATION, rlvs_wire::bytes_at(&tunnel.target, 0));
}

/// Returns the sum of what it has written.
#[inline(always)]
fn write_v6<const N: usize>(
    head: &mut [u8; N],
    tunnel: &Tunnel,
    inner: &Inner,
    payload: u16,
) -> u64 {
    let first = 0x6000_0000 | u32::from(inner.tos) << 20;
    let (protocol, limit) = (u32::from(tunnel.protocol), u32::from(inner.ttl));
    let second = u32::from(payload) << 16 | protocol << 8 | limit;
    put_at(head, ethernet::TYPE, ethernet::IPV6.to_be_bytes());
    put_at(head, IP, first.to_be_bytes());
    put_at(head, IP + 4, second.to_be_bytes());
    for (from, at) in
        [(&tunnel.source, IP + ipv6::SOURCE), (&tunnel.target, IP + ipv6::DESTINATION)]
    {
        put_at::<_, 8>(head, at, rlvs_wire::bytes_at(from, 0));
        put_at::<_, 8>(head, at + 8, rlvs_wire::bytes_at(from, 8));
    }
    // The protocol is in the addresses' sum, where it does not stand in the upper half of a word.
    let addresses = u64::from(tunnel.sum) + u64::from(!u16::from(tunnel.protocol));
    u64::from(first) + u64::from(second) + addresses
}

/// Writes what is between the outer IP header and the packet, and returns its sum.
#[inline(always)]
fn write_shim<const AT: usize, const N: usize>(
    head: &mut [u8; N],
    tunnel: &Tunnel,
    inner: &Inner,
    is_summed: bool,
) -> u64 {
    let kind = u16::from_be_bytes(tunnel.kind);
    match tunnel.form {
        tunnel_form::GRE if is_summed => {
            let flags = gre::CHECKSUM_PRESENT;
            let before = u64::from(flags) + u64::from(kind);
            let checksum = !checksum::fold(before + u64::from(inner.sum));
            put_at(head, AT, (u32::from(flags) << 16 | u32::from(kind)).to_be_bytes());
            put_at(head, AT + gre::CHECKSUM, (u32::from(checksum) << 16).to_be_bytes());
            before + u64::from(checksum)
        }
        tunnel_form::GRE => {
            put_at(head, AT, u32::from(kind).to_be_bytes());
            kind.into()
        }
        tunnel_form::GUE => {
            let length = inner.length.wrapping_add(SHIM as u16);
            let target = u16::from_be_bytes(tunnel.port);
            let first = u32::from(inner.port) << 16 | u32::from(target);
            let before = u64::from(first) + u64::from(length) + u64::from(kind);
            let checksum = if is_summed {
                let pseudo = u64::from(tunnel.sum) + u64::from(length);
                match !checksum::fold(before + pseudo + u64::from(inner.sum)) {
                    0 => 0xffff,
                    other => other,
                }
            } else {
                0
            };
            put_at(head, AT, first.to_be_bytes());
            let second = u32::from(length) << 16 | u32::from(checksum);
            put_at(head, AT + udp::DATAGRAM_LENGTH, second.to_be_bytes());
            put_at(head, AT + udp::LENGTH, (u32::from(kind) << 16).to_be_bytes());
            before + u64::from(checksum)
        }
        _ => 0,
    }
}

impl Tunnel {
    /// Returns what the headers for one destination have in common.
    ///
    /// `form` is a [`tunnel_form`], `checksum` a [`tunnel_checksum`] number; `inner` is the family of
    /// the packets, `port` the UDP port of GUE. A source of another family than the target's is none.
    #[must_use]
    pub fn new(
        (source, target): (IpAddr, IpAddr),
        inner: u8,
        form: u8,
        checksum: u8,
        port: u16,
    ) -> Self {
        let (family, ip_length) =
            if target.is_ipv4() { (4, ipv4::LENGTH) } else { (6, ipv6::LENGTH) };
        let carried = if inner == 4 { ipip::PROTOCOL_V4 } else { ipip::PROTOCOL_V6 };
        let with_checksum = checksum != tunnel_checksum::NONE;
        let (protocol, kind, between) = match form {
            tunnel_form::GRE => {
                let kind = if inner == 4 { ethernet::IPV4 } else { ethernet::IPV6 };
                let length = if with_checksum { gre::LENGTH_WITH_CHECKSUM } else { gre::LENGTH };
                (gre::PROTOCOL, kind, length)
            }
            tunnel_form::GUE => (udp::PROTOCOL, u16::from(carried), SHIM),
            _ => (carried, 0, 0),
        };
        let (source_octets, target_octets) = (octets(source), octets(target));
        let sum = |octets: &[u8; 16]| checksum::sum(octets);
        let addresses = sum(&source_octets) + sum(&target_octets);
        let same = source.is_ipv4() == target.is_ipv4();
        Self {
            source: source_octets,
            target: target_octets,
            sum: checksum::fold(addresses + u64::from(protocol)),
            overhead: (ip_length + between) as u16,
            kind: kind.to_be_bytes(),
            port: port.to_be_bytes(),
            family: if same { family } else { 0 },
            form,
            checksum,
            protocol,
            reserved: [0; 5],
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96).to_be_bytes(),
        IpAddr::V6(address) => address.octets(),
    }
}
