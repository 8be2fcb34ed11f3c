//! IPv4 and IPv6 behind one trait, so that there is one forwarding path.

use rlvs_wire::{
    DESTINATION_PORT, SOURCE_PORT, bytes_at, checksum, ethernet, ipv4, ipv6, put_at, sctp, tcp,
    u8_at, u16_at, u32_at, u64_at, udp,
};

use crate::abi::{Destination, Service, Settings, Slot4, Slot6};
use crate::connection::{Key, Value};
use crate::frame::{Deltas, Frame};
use crate::hash;
use crate::layout::{self, Layout};
use crate::moved::lower_hop_limit;
use crate::reason::Reason;
use crate::tables::Tables;

/// The two ends of one half of a connection, as its packets name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Flow<A> {
    /// Client address.
    pub client: A,
    /// The other end's address: the virtual one in requests, the real server's in replies.
    pub peer: A,
    /// Client port.
    pub port: u16,
    /// The other end's port.
    pub peer_port: u16,
}

/// A parsed packet. Ports in host order; a protocol without has 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Packet<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub target: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub target_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags, or an [`event`](crate::association::states::event) of SCTP; else 0.
    pub flags: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Length of the IP packet.
    pub length: u32,
}

impl<A> Flow<A> {
    /// Returns both ports as one number.
    #[inline(always)]
    fn ports(&self) -> u64 {
        u64::from(self.port) << 16 | u64::from(self.peer_port)
    }
}

impl<A: Copy> Packet<A> {
    /// Returns the flow of a packet from a client.
    #[inline(always)]
    pub fn request(&self) -> Flow<A> {
        let Self { source, target, source_port, target_port, .. } = *self;
        Flow { client: source, peer: target, port: source_port, peer_port: target_port }
    }

    /// Returns the length of what the IP header precedes, if that is `LEAST` at least. Extension
    /// headers count.
    #[inline(always)]
    pub fn payload<const LEAST: u32>(&self) -> Result<u32, Reason>
    where
        A: Ip,
    {
        let header = if A::FAMILY == 4 { ipv4::LENGTH } else { ipv6::LENGTH } as u32;
        let payload = self.length.wrapping_sub(header);
        if self.length < header + LEAST { Err(Reason::Malformed) } else { Ok(payload) }
    }

    /// Returns the flow of a packet to a client.
    #[inline(always)]
    pub fn reply(&self) -> Flow<A> {
        let Self { source, target, source_port, target_port, .. } = *self;
        Flow { client: target, peer: source, port: target_port, peer_port: source_port }
    }
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Source: replies.
    Source,
    /// Destination: requests.
    Target,
}

impl End {
    /// Returns the offset of this end's port in a TCP or UDP header.
    #[inline(always)]
    pub const fn port_at(self) -> usize {
        match self {
            Self::Source => SOURCE_PORT,
            Self::Target => DESTINATION_PORT,
        }
    }
}

/// What to put in place of an address and a port.
#[derive(Clone, Copy, Debug)]
pub struct Substitute<'a> {
    /// Which end.
    pub end: End,
    /// Address, an IPv4 one in the first four bytes.
    pub address: &'a [u8; 16],
    /// Port.
    pub port: [u8; 2],
    /// What that does to checksums.
    pub deltas: Deltas,
}

impl<'a> Substitute<'a> {
    /// Has a NAT destination's packet come from its service.
    #[inline(always)]
    pub const fn by_service(destination: &Destination, service: &'a Service) -> Self {
        let deltas = Deltas {
            address: checksum::inverse(destination.address_delta),
            port: checksum::inverse(destination.port_delta),
        };
        Self { end: End::Source, address: &service.address, port: service.port, deltas }
    }

    /// Has a packet to a service go to its NAT destination.
    #[inline(always)]
    pub const fn by_destination(destination: &'a Destination) -> Self {
        let deltas = Deltas { address: destination.address_delta, port: destination.port_delta };
        Self { end: End::Target, address: &destination.address, port: destination.port, deltas }
    }
}

/// An IP address, and all that depends on its version.
pub trait Ip: Copy + Eq {
    /// 4 or 6.
    const FAMILY: u8;
    /// Slot in which its connections and endpoints are kept.
    type Slot: Slot;

    /// Parses the packet behind an Ethernet header of this version's type.
    fn parse<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason>;
    /// Finds the parts of a packet with options or extension headers, or of a fragment.
    fn layout<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Layout<Self>, Reason>;
    /// Returns the protocol that the first header names.
    fn protocol<F: Frame>(frame: &mut F) -> Option<u8>;
    /// Returns what the header says of a packet of another protocol, which [`parse`](Self::parse)
    /// has refused for nothing else.
    fn portless<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason>;
    /// Offset of the transport header in a frame.
    const TRANSPORT: usize;
    /// Lowers the time to live by one. `PORTS` as for [`translate`](Self::translate).
    fn lower<F: Frame, const PORTS: bool>(frame: &mut F) -> Option<()>;
    /// Returns type of service or traffic class, and the don't-fragment flag as it stands in an IPv4
    /// header; 0 for IPv6.
    fn marks<F: Frame>(frame: &mut F) -> Option<(u8, u16)>;
    /// Returns the sum of a packet whose checksums are right, but none if one of the transport is
    /// missing or does not cover all of it.
    fn sum<F: Frame>(frame: &mut F, packet: &Packet<Self>) -> Option<u16>;
    /// Replaces one end, lowers the time to live, lets checksums follow. `PORTS` says whether the
    /// protocol is TCP or UDP, so that those carry nothing of the others.
    fn translate<F: Frame, const PORTS: bool>(
        frame: &mut F,
        protocol: u8,
        by: &Substitute<'_>,
    ) -> Option<()>;
    /// Replaces one end of a TCP or UDP packet that stays on this host, lets checksums follow.
    fn readdress<F: Frame>(frame: &mut F, protocol: u8, by: &Substitute<'_>) -> Option<()>;
    /// Returns the address in network order.
    fn octets(self) -> [u8; 16];
    /// Returns the address as two words.
    fn words(self) -> (u64, u64);
    /// Returns the address back from its words.
    fn from_words(high: u64, low: u64) -> Self;
    /// Returns the address back from network order, an IPv4 one from the first four bytes.
    fn from_octets(octets: &[u8; 16]) -> Self;
    /// Returns the connection slots at a place.
    fn connections<T: Tables>(tables: &T, index: u32) -> Option<&[Self::Slot]>;
    /// Looks for a half, as [`seek`](crate::connection::seek).
    fn seek<T: Tables>(tables: &T, key: &Key<Self>) -> u64;
    /// Makes way for a connection, as `Context::make_way`.
    fn make_way<T: Tables>(tables: &T, key: &Key<Self>) -> u64;
    /// Inserts a half, as [`put`](crate::connection::put).
    fn put<T: Tables>(tables: &T, key: &Key<Self>, value: Value) -> u64;
    /// Returns the endpoint slots at a place.
    fn endpoints<T: Tables>(tables: &T, index: u32) -> Option<&[Self::Slot]>;
    /// Returns the number of connection places minus one.
    fn mask(settings: &Settings) -> u32;
    /// Number of endpoint places minus one.
    const ENDPOINT_MASK: u32;
    /// Slots in a pair of connection buckets, a power of two.
    const SLOTS: usize;

    /// Hashes the address with 32 more bits of a key.
    fn hash(self, keys: &[u64; 3], more: u64) -> u64;
    /// Hashes both ends of a flow.
    fn hash_flow(keys: &[u64; 3], flow: &Flow<Self>) -> u64;
}

/// A slot of a connection or endpoint table.
pub trait Slot {
    /// Returns the key's first word.
    fn key(&self) -> &crate::abi::Word;
    /// Returns the value.
    fn value(&self) -> &crate::abi::Word;
    /// Returns 0 if the address words beside the key are these, anything else if not.
    fn address_difference<T: Tables>(&self, tables: &T, high: u64, low: u64) -> u64;
    /// Stores the address words beside the key.
    fn set_address<T: Tables>(&self, tables: &T, high: u64, low: u64);
    /// Returns the address words, given the key's first word.
    fn address<T: Tables>(&self, tables: &T, key: u64) -> (u64, u64);
    /// Returns the key's first word for an address and 32 more bits.
    fn key_word(low: u64, more: u32) -> u64;
}

impl Slot for Slot4 {
    #[inline(always)]
    fn key(&self) -> &crate::abi::Word {
        &self.key
    }
    #[inline(always)]
    fn value(&self) -> &crate::abi::Word {
        &self.value
    }
    #[inline(always)]
    fn address_difference<T: Tables>(&self, _: &T, _: u64, _: u64) -> u64 {
        0
    }
    #[inline(always)]
    fn set_address<T: Tables>(&self, _: &T, _: u64, _: u64) {}
    #[inline(always)]
    fn address<T: Tables>(&self, _: &T, key: u64) -> (u64, u64) {
        (0, key >> 32)
    }
    #[inline(always)]
    fn key_word(low: u64, more: u32) -> u64 {
        low << 32 | more as u64
    }
}

impl Slot for Slot6 {
    #[inline(always)]
    fn key(&self) -> &crate::abi::Word {
        &self.key
    }
    #[inline(always)]
    fn value(&self) -> &crate::abi::Word {
        &self.value
    }
    #[inline(always)]
    fn address_difference<T: Tables>(&self, tables: &T, high: u64, low: u64) -> u64 {
        (tables.read(&self.high) ^ high) | (tables.read(&self.low) ^ low)
    }
    #[inline(always)]
    fn set_address<T: Tables>(&self, tables: &T, high: u64, low: u64) {
        tables.write(&self.high, high);
        tables.write(&self.low, low);
    }
    #[inline(always)]
    fn address<T: Tables>(&self, tables: &T, _: u64) -> (u64, u64) {
        (tables.read(&self.high), tables.read(&self.low))
    }
    #[inline(always)]
    fn key_word(_: u64, more: u32) -> u64 {
        1 << 32 | more as u64
    }
}

/// An IPv4 address in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4(pub u32);

/// An IPv6 address as two words in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6(pub u64, pub u64);

pub(crate) const IP: usize = ethernet::LENGTH;
pub(crate) const L4_V4: usize = IP + ipv4::LENGTH;
pub(crate) const L4_V6: usize = IP + ipv6::LENGTH;

impl Ip for V4 {
    const FAMILY: u8 = 4;
    type Slot = Slot4;

    #[inline(always)]
    fn parse<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason> {
        let head = frame.head::<34>().ok_or(Reason::Malformed)?;
        let first = u8_at(head, IP);
        if first != 0x45 {
            let options = first >> 4 == 4 && first & 15 > 5;
            return Err(if options { Reason::Options } else { Reason::Malformed });
        }
        let total = u16_at(head, IP + ipv4::TOTAL_LENGTH);
        let (sum, part) = (header_sum(head), u16_at(head, IP + ipv4::FRAGMENT));
        let source = Self(u32_at(head, IP + ipv4::SOURCE));
        let target = Self(u32_at(head, IP + ipv4::DESTINATION));
        let ttl = u8_at(head, IP + ipv4::TTL);
        let protocol = u8_at(head, IP + ipv4::PROTOCOL);
        if !frame.holds(IP + usize::from(total)) || checksum::fold(sum) != 0xffff {
            return Err(Reason::Malformed);
        }
        if part & ipv4::FRAGMENT_MASK != 0 {
            return Err(Reason::Fragment);
        }
        let payload = u32::from(total).wrapping_sub(ipv4::LENGTH as u32);
        if source.0 == 0 || payload > u32::from(total) {
            return Err(Reason::Malformed);
        }
        let ports = match protocol {
            tcp::PROTOCOL => tcp_ports(frame.head::<54>(), L4_V4, payload)?,
            udp::PROTOCOL => udp_ports(frame.head::<42>(), L4_V4, payload)?,
            _ => return Err(Reason::OtherProtocol),
        };
        Ok(ports.packet(source, target, protocol, ttl, u32::from(total)))
    }

    #[inline(always)]
    fn layout<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Layout<Self>, Reason> {
        layout::v4(frame, tables)
    }

    #[inline(always)]
    fn protocol<F: Frame>(frame: &mut F) -> Option<u8> {
        Some(u8_at(frame.head::<34>()?, IP + ipv4::PROTOCOL))
    }

    #[inline(always)]
    fn portless<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason> {
        let head = frame.head::<34>().ok_or(Reason::Malformed)?;
        let source = Self(u32_at(head, IP + ipv4::SOURCE));
        let target = Self(u32_at(head, IP + ipv4::DESTINATION));
        let (protocol, ttl) = (u8_at(head, IP + ipv4::PROTOCOL), u8_at(head, IP + ipv4::TTL));
        let total = u16_at(head, IP + ipv4::TOTAL_LENGTH);
        Ok(NO_PORTS.packet(source, target, protocol, ttl, u32::from(total)))
    }
    const TRANSPORT: usize = L4_V4;

    #[inline(always)]
    fn lower<F: Frame, const PORTS: bool>(frame: &mut F) -> Option<()> {
        lower_v4(frame.head::<34>()?, 0);
        Some(())
    }

    #[inline(always)]
    fn marks<F: Frame>(frame: &mut F) -> Option<(u8, u16)> {
        let head = frame.head::<34>()?;
        Some((u8_at(head, IP + ipv4::TOS), u16_at(head, IP + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT))
    }

    #[inline(always)]
    fn sum<F: Frame>(frame: &mut F, packet: &Packet<Self>) -> Option<u16> {
        let head = frame.head::<42>()?;
        let is_plain =
            u8_at(head, IP) == 0x45 && u16_at(head, IP + ipv4::FRAGMENT) & ipv4::FRAGMENT_MASK == 0;
        let protocol = u8_at(head, IP + ipv4::PROTOCOL);
        if !is_plain || !has_checksum(protocol, u16_at(head, L4_V4 + udp::CHECKSUM)) {
            return None;
        }
        // The header sums up to nothing, the rest to the complement of the pseudo header.
        let addresses = u64::from(packet.source.0) + u64::from(packet.target.0);
        let length = packet.length.wrapping_sub(ipv4::LENGTH as u32);
        Some(!checksum::fold(addresses + u64::from(protocol) + u64::from(length)))
    }

    #[inline(always)]
    fn translate<F: Frame, const PORTS: bool>(
        frame: &mut F,
        protocol: u8,
        by: &Substitute<'_>,
    ) -> Option<()> {
        replace_v4::<F, PORTS>(frame, protocol, by, true)
    }

    #[inline(always)]
    fn readdress<F: Frame>(frame: &mut F, protocol: u8, by: &Substitute<'_>) -> Option<()> {
        replace_v4::<F, true>(frame, protocol, by, false)
    }

    #[inline(always)]
    fn octets(self) -> [u8; 16] {
        (u128::from(self.0) << 96).to_be_bytes()
    }
    #[inline(always)]
    fn words(self) -> (u64, u64) {
        (0, u64::from(self.0))
    }
    #[inline(always)]
    fn from_words(_: u64, low: u64) -> Self {
        Self(low as u32)
    }
    #[inline(always)]
    fn from_octets(octets: &[u8; 16]) -> Self {
        Self(u32_at(octets, 0))
    }
    #[inline(always)]
    fn connections<T: Tables>(tables: &T, index: u32) -> Option<&[Slot4]> {
        Some(&tables.connections4(index)?.slots)
    }
    #[inline(always)]
    fn seek<T: Tables>(tables: &T, key: &Key<Self>) -> u64 {
        tables.seek4(key)
    }
    #[inline(always)]
    fn put<T: Tables>(tables: &T, key: &Key<Self>, value: Value) -> u64 {
        tables.put4(key, value)
    }
    #[inline(always)]
    fn make_way<T: Tables>(tables: &T, key: &Key<Self>) -> u64 {
        tables.make_way4(key)
    }
    #[inline(always)]
    fn endpoints<T: Tables>(tables: &T, index: u32) -> Option<&[Slot4]> {
        Some(&tables.endpoints4(index)?.slots)
    }
    #[inline(always)]
    fn mask(settings: &Settings) -> u32 {
        settings.connections4_mask
    }
    const ENDPOINT_MASK: u32 = crate::abi::ENDPOINT4_BUCKETS - 1;
    const SLOTS: usize = crate::abi::SLOTS4;

    #[inline(always)]
    fn hash(self, keys: &[u64; 3], more: u64) -> u64 {
        hash::mix(keys, u64::from(self.0) << 32 | more & 0xffff_ffff, more >> 32)
    }
    #[inline(always)]
    fn hash_flow(keys: &[u64; 3], flow: &Flow<Self>) -> u64 {
        hash::mix(keys, u64::from(flow.client.0) << 32 | u64::from(flow.peer.0), flow.ports())
    }
}

impl Ip for V6 {
    const FAMILY: u8 = 6;
    type Slot = Slot6;

    #[inline(always)]
    fn parse<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason> {
        let head = frame.head::<54>().ok_or(Reason::Malformed)?;
        let version = u8_at(head, IP) >> 4;
        let payload = u32::from(u16_at(head, IP + ipv6::PAYLOAD_LENGTH));
        let source = Self(u64_at(head, IP + ipv6::SOURCE), u64_at(head, IP + ipv6::SOURCE + 8));
        let target =
            Self(u64_at(head, IP + ipv6::DESTINATION), u64_at(head, IP + ipv6::DESTINATION + 8));
        let ttl = u8_at(head, IP + ipv6::HOP_LIMIT);
        let protocol = u8_at(head, IP + ipv6::NEXT_HEADER);
        if version != 6 || !frame.holds(L4_V6 + payload as usize) {
            return Err(Reason::Malformed);
        }
        let ports = match protocol {
            tcp::PROTOCOL => tcp_ports(frame.head::<74>(), L4_V6, payload)?,
            udp::PROTOCOL => udp_ports(frame.head::<62>(), L4_V6, payload)?,
            ipv6::FRAGMENT => return Err(Reason::Fragment),
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION_OPTIONS => {
                return Err(Reason::Options);
            }
            _ => return Err(Reason::OtherProtocol),
        };
        Ok(ports.packet(source, target, protocol, ttl, payload + ipv6::LENGTH as u32))
    }

    #[inline(always)]
    fn layout<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Result<Layout<Self>, Reason> {
        layout::v6(frame, tables)
    }

    #[inline(always)]
    fn protocol<F: Frame>(frame: &mut F) -> Option<u8> {
        Some(u8_at(frame.head::<54>()?, IP + ipv6::NEXT_HEADER))
    }

    #[inline(always)]
    fn portless<F: Frame>(frame: &mut F) -> Result<Packet<Self>, Reason> {
        let head = frame.head::<54>().ok_or(Reason::Malformed)?;
        let address = |at| Self(u64_at(head, IP + at), u64_at(head, IP + at + 8));
        let (source, target) = (address(ipv6::SOURCE), address(ipv6::DESTINATION));
        let protocol = u8_at(head, IP + ipv6::NEXT_HEADER);
        let ttl = u8_at(head, IP + ipv6::HOP_LIMIT);
        let payload = u32::from(u16_at(head, IP + ipv6::PAYLOAD_LENGTH));
        Ok(NO_PORTS.packet(source, target, protocol, ttl, payload + ipv6::LENGTH as u32))
    }
    const TRANSPORT: usize = L4_V6;

    #[inline(always)]
    fn lower<F: Frame, const PORTS: bool>(frame: &mut F) -> Option<()> {
        // SCTP leaves little room on the stack.
        if PORTS { frame.lower_hop_limit() } else { done(lower_hop_limit(frame)) }
    }

    #[inline(always)]
    fn marks<F: Frame>(frame: &mut F) -> Option<(u8, u16)> {
        Some(((u16_at(frame.head::<22>()?, IP) >> 4) as u8, 0))
    }

    #[inline(always)]
    fn sum<F: Frame>(frame: &mut F, _: &Packet<Self>) -> Option<u16> {
        let head = frame.head::<62>()?;
        let protocol = u8_at(head, IP + ipv6::NEXT_HEADER);
        if !has_checksum(protocol, u16_at(head, L4_V6 + udp::CHECKSUM)) {
            return None;
        }
        // Addresses and length are in the header and, complemented, in the rest.
        let first = u64::from(u32_at(head, IP));
        let limit = u64::from(u16_at(head, IP + ipv6::NEXT_HEADER));
        Some(checksum::fold(first + limit + u64::from(!u16::from(protocol))))
    }

    #[inline(always)]
    fn translate<F: Frame, const PORTS: bool>(
        frame: &mut F,
        protocol: u8,
        by: &Substitute<'_>,
    ) -> Option<()> {
        Self::lower::<F, PORTS>(frame)?;
        replace_v6::<F, PORTS>(frame, protocol, by)
    }

    #[inline(always)]
    fn readdress<F: Frame>(frame: &mut F, protocol: u8, by: &Substitute<'_>) -> Option<()> {
        replace_v6::<F, true>(frame, protocol, by)
    }

    #[inline(always)]
    fn octets(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_be_bytes()
    }
    #[inline(always)]
    fn words(self) -> (u64, u64) {
        (self.0, self.1)
    }
    #[inline(always)]
    fn from_words(high: u64, low: u64) -> Self {
        Self(high, low)
    }
    #[inline(always)]
    fn from_octets(octets: &[u8; 16]) -> Self {
        Self(u64_at(octets, 0), u64_at(octets, 8))
    }
    #[inline(always)]
    fn connections<T: Tables>(tables: &T, index: u32) -> Option<&[Slot6]> {
        Some(&tables.connections6(index)?.slots)
    }
    #[inline(always)]
    fn seek<T: Tables>(tables: &T, key: &Key<Self>) -> u64 {
        tables.seek6(key)
    }
    #[inline(always)]
    fn put<T: Tables>(tables: &T, key: &Key<Self>, value: Value) -> u64 {
        tables.put6(key, value)
    }
    #[inline(always)]
    fn make_way<T: Tables>(tables: &T, key: &Key<Self>) -> u64 {
        tables.make_way6(key)
    }
    #[inline(always)]
    fn endpoints<T: Tables>(tables: &T, index: u32) -> Option<&[Slot6]> {
        Some(&tables.endpoints6(index)?.slots)
    }
    #[inline(always)]
    fn mask(settings: &Settings) -> u32 {
        settings.connections6_mask
    }
    const ENDPOINT_MASK: u32 = crate::abi::ENDPOINT6_BUCKETS - 1;
    const SLOTS: usize = crate::abi::SLOTS6;

    #[inline(always)]
    fn hash(self, keys: &[u64; 3], more: u64) -> u64 {
        hash::mix(keys, hash::mix(keys, self.0, self.1), more)
    }
    #[inline(always)]
    fn hash_flow(keys: &[u64; 3], flow: &Flow<Self>) -> u64 {
        let Flow { client, peer, .. } = *flow;
        // A client chooses the ports, not the peer's address, which therefore needs no keys. The
        // ports are below, as a product spreads bits upwards only.
        let more = (peer.0 ^ peer.1).rotate_left(32).wrapping_add(flow.ports());
        hash::mix(keys, hash::mix(keys, client.0, client.1), more)
    }
}

/// Sums the words of an IPv4 header without options.
#[inline(always)]
pub fn header_sum(head: &[u8; 34]) -> u64 {
    u64::from(u32_at(head, IP))
        + u64::from(u32_at(head, IP + 4))
        + u64::from(u32_at(head, IP + 8))
        + u64::from(u32_at(head, IP + 12))
        + u64::from(u32_at(head, IP + 16))
}

/// Replaces one end, lowers the time to live if asked to, lets checksums follow.
#[inline(always)]
fn replace_v4<F: Frame, const PORTS: bool>(
    frame: &mut F,
    protocol: u8,
    by: &Substitute<'_>,
    lower: bool,
) -> Option<()> {
    if !F::USUAL {
        readdress_v4(frame.head::<34>()?, by, lower);
        return frame.retarget::<V4>(protocol, by);
    }
    let head = frame.head::<42>()?;
    readdress_v4(head, by, lower);
    if PORTS {
        put_at(head, L4_V4 + by.end.port_at(), by.port);
    }
    // Without ports the header's own checksum has gone the other way.
    match protocol {
        tcp::PROTOCOL if PORTS => frame.follow::<54>(L4_V4 + tcp::CHECKSUM, false, by.deltas),
        _ if PORTS => frame.follow::<42>(L4_V4 + udp::CHECKSUM, true, by.deltas),
        sctp::PROTOCOL => replace_port::<46, F>(frame, by),
        _ => Some(()),
    }
}

/// Replaces one end, lets checksums follow.
#[inline(always)]
fn replace_v6<F: Frame, const PORTS: bool>(
    frame: &mut F,
    protocol: u8,
    by: &Substitute<'_>,
) -> Option<()> {
    if !F::USUAL {
        readdress_v6(frame.head::<54>()?, by);
        return frame.retarget::<V6>(protocol, by);
    }
    let head = frame.head::<62>()?;
    readdress_v6(head, by);
    if PORTS {
        put_at(head, L4_V6 + by.end.port_at(), by.port);
    } else {
        frame.add_to_sum(by.deltas.address);
    }
    match protocol {
        tcp::PROTOCOL if PORTS => frame.follow::<74>(L4_V6 + tcp::CHECKSUM, false, by.deltas),
        _ if PORTS => frame.follow::<62>(L4_V6 + udp::CHECKSUM, true, by.deltas),
        sctp::PROTOCOL => replace_port::<66, F>(frame, by),
        _ => Some(()),
    }
}

/// Lowers the time to live; the header checksum follows that and `delta`.
#[inline(always)]
pub(crate) fn lower_v4<const N: usize>(head: &mut [u8; N], delta: u16) {
    const TTL_DELTA: u64 = 0xfeff; // the sum of -0x0100
    let ttl = u8_at(head, IP + ipv4::TTL).wrapping_sub(1);
    put_at(head, IP + ipv4::TTL, [ttl]);
    let old = u16_at(head, IP + ipv4::CHECKSUM);
    let new = checksum::update(old, TTL_DELTA + u64::from(delta));
    put_at(head, IP + ipv4::CHECKSUM, new.to_be_bytes());
}

/// Replaces an IPv4 address, lowers the time to live if asked to; the header checksum follows.
#[inline(always)]
fn readdress_v4<const N: usize>(head: &mut [u8; N], by: &Substitute<'_>, lower: bool) {
    if lower {
        lower_v4(head, by.deltas.address);
    } else {
        let old = u16_at(head, IP + ipv4::CHECKSUM);
        let new = checksum::update(old, u64::from(by.deltas.address));
        put_at(head, IP + ipv4::CHECKSUM, new.to_be_bytes());
    }
    let at = match by.end {
        End::Source => ipv4::SOURCE,
        End::Target => ipv4::DESTINATION,
    };
    put_at(head, IP + at, rlvs_wire::bytes_at::<16, 4>(by.address, 0));
}

/// Replaces an IPv6 address.
#[inline(always)]
fn readdress_v6<const N: usize>(head: &mut [u8; N], by: &Substitute<'_>) {
    let at = match by.end {
        End::Source => ipv6::SOURCE,
        End::Target => ipv6::DESTINATION,
    };
    let [high, low]: [[u8; 8]; 2] =
        [rlvs_wire::bytes_at(by.address, 0), rlvs_wire::bytes_at(by.address, 8)];
    put_at(head, IP + at, high);
    put_at(head, IP + at + 8, low);
}

/// Returns whether a transport header has a checksum, given what stands where UDP has it.
#[inline(always)]
const fn has_checksum(protocol: u8, datagram: u16) -> bool {
    protocol == tcp::PROTOCOL || protocol == udp::PROTOCOL && datagram != 0
}

#[inline(always)]
fn done(is_done: bool) -> Option<()> {
    if is_done { Some(()) } else { None }
}

/// Replaces a port of SCTP; the CRC follows. `N` is the length of the headers.
#[inline(always)]
fn replace_port<const N: usize, F: Frame>(frame: &mut F, by: &Substitute<'_>) -> Option<()> {
    let port = u16::from_be_bytes(by.port);
    done(follow_crc::<N, F>(frame, by.end.port_at(), port, by.deltas.port))
}

/// As [`replace_port`]; `delta` is what the port does to a sum. Out of line, and without pointers, as
/// there is little room on the stack where it is called. Returns whether it could be done.
#[inline(never)]
fn follow_crc<const N: usize, F: Frame>(
    frame: &mut F,
    port_at: usize,
    port: u16,
    delta: u16,
) -> bool {
    let Some(head) = frame.head::<N>() else { return false };
    let length = if N == L4_V4 + sctp::LENGTH {
        u16_at(head, IP + ipv4::TOTAL_LENGTH).wrapping_sub(ipv4::LENGTH as u16)
    } else {
        u16_at(head, IP + ipv6::PAYLOAD_LENGTH)
    };
    let sum = put_port::<N, F>(head, N - sctp::LENGTH, port_at, port, length);
    if sum != 0 {
        frame.add_to_sum(checksum::fold(u64::from(sum) + u64::from(delta)));
    }
    true
}

/// As [`follow_crc`], for a header that stands at an offset that only the packet tells. Of a fragment the
/// port may not change: how many bytes follow it is not known.
#[inline(never)]
pub(crate) fn follow_crc_at<A: Ip, F: Frame>(
    frame: &mut F,
    at: usize,
    port_at: usize,
    port: u16,
    delta: u16,
) -> bool {
    let Some(head) = frame.head::<34>() else { return false };
    let end = if A::FAMILY == 4 {
        u16_at(head, IP + ipv4::TOTAL_LENGTH).wrapping_add(IP as u16)
    } else {
        u16_at(head, IP + ipv6::PAYLOAD_LENGTH).wrapping_add(L4_V6 as u16)
    };
    let Some(header) = frame.at::<{ sctp::LENGTH }>(at) else { return false };
    let sum =
        put_port::<{ sctp::LENGTH }, F>(header, 0, port_at, port, end.wrapping_sub(at as u16));
    if sum != 0 {
        frame.add_to_sum(checksum::fold(u64::from(sum) + u64::from(delta)));
    }
    true
}

/// Puts a port into the header of SCTP at `at` of a packet with so many bytes from there on, and lets its CRC
/// follow. Returns what the CRC does to a sum, 0 if the port is there already.
#[inline(always)]
fn put_port<const N: usize, F: Frame>(
    head: &mut [u8; N],
    at: usize,
    port_at: usize,
    port: u16,
    length: u16,
) -> u16 {
    let port = port.to_be_bytes();
    let before = u32::from_le_bytes(bytes_at(head, at));
    let old: [u8; 2] = bytes_at(head, at + port_at);
    if old == port {
        return 0;
    }
    put_at(head, at + port_at, port);
    let difference = before ^ u32::from_le_bytes(bytes_at(head, at));
    let crc = u32::from_le_bytes(bytes_at(head, at + sctp::CHECKSUM));
    let is_whole = crc != 0 || !F::LEAVES_ZERO_CRC;
    let new = if is_whole { F::follow_crc(crc, difference, length) } else { 0 };
    put_at(head, at + sctp::CHECKSUM, new.to_le_bytes());
    let sum = |crc: u32| checksum::fold(u64::from(crc.swap_bytes()));
    match checksum::delta(sum(crc), sum(new)) {
        0 => u16::MAX,
        delta => delta,
    }
}

const NO_PORTS: Ports = Ports { source: 0, target: 0, flags: 0 };

struct Ports {
    source: u16,
    target: u16,
    flags: u8,
}

impl Ports {
    #[inline(always)]
    fn packet<A>(self, source: A, target: A, protocol: u8, ttl: u8, length: u32) -> Packet<A> {
        Packet {
            source,
            target,
            source_port: self.source,
            target_port: self.target,
            protocol,
            flags: self.flags,
            ttl,
            length,
        }
    }
}

#[inline(always)]
fn tcp_ports<const N: usize>(
    head: Option<&mut [u8; N]>,
    at: usize,
    payload: u32,
) -> Result<Ports, Reason> {
    let head = head.ok_or(Reason::Malformed)?;
    let header = u32::from(u8_at(head, at + tcp::DATA_OFFSET) >> 4) * 4;
    if header < tcp::LENGTH as u32 || header > payload {
        return Err(Reason::Malformed);
    }
    Ok(Ports {
        source: u16_at(head, at + SOURCE_PORT),
        target: u16_at(head, at + DESTINATION_PORT),
        flags: u8_at(head, at + tcp::FLAGS),
    })
}

#[inline(always)]
fn udp_ports<const N: usize>(
    head: Option<&mut [u8; N]>,
    at: usize,
    payload: u32,
) -> Result<Ports, Reason> {
    let head = head.ok_or(Reason::Malformed)?;
    let length = u32::from(u16_at(head, at + udp::DATAGRAM_LENGTH));
    if length < udp::LENGTH as u32 || length > payload {
        return Err(Reason::Malformed);
    }
    Ok(Ports {
        source: u16_at(head, at + SOURCE_PORT),
        target: u16_at(head, at + DESTINATION_PORT),
        flags: 0,
    })
}
