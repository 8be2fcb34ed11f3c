//! ICMP errors about a tunnel's packets, told to the client whose packet was inside, as `ip_vs_in_icmp()`
//! does: routers between this host and a real server know of the tunnel only.
//!
//! Such an error quotes the outer header and the begin of what is behind it. The client gets one that
//! quotes its own packet, from the virtual address; an MTU is less the outer headers. Where the outer header
//! is of the other IP version, the error is translated as RFC 2473, section 8, has it; the kernel's IPVS
//! tells such a client nothing.

use rlvs_wire::{
    DESTINATION_PORT, SOURCE_PORT, ethernet, gre, gue, icmp, ipip, ipv4, ipv6, put_at, u8_at,
    u16_at, u32_at, u64_at, udp,
};

use crate::abi::{Tunnel, method};
use crate::connection::Context;
use crate::errors::{Quote, is_error, is_other, with_ports};
use crate::frame::{Frame, Verdict};
use crate::hop;
use crate::ip::{IP, Ip, L4_V4, L4_V6, Packet, V4, V6};
use crate::reason::Reason;
use crate::refuse::{complete_v4, complete_v6};
use crate::stage::Stage;
use crate::tables::Tables;

/// An error about a packet that this host may have sent through a tunnel.
#[inline(always)]
pub fn relay<A: Relayed, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match tell::<A, A, F, T>(context, frame) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// As [`relay`], where what is in the tunnel is of the other IP version.
#[inline(always)]
pub fn across<A: Relayed, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match tell::<A, A::Other, F, T>(context, frame) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// Tells a client of version `B` of an error of version `A`.
#[inline(always)]
fn tell<A: Relayed, B: Relayed, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
) -> Result<Verdict, Verdict> {
    let outer: Outer<A> = A::outer(frame).map_err(Verdict::Pass)?;
    let at = inside::<A, F>(frame, outer.protocol);
    let at = context.tables.forget(at.into()) as usize;
    // A datagram that holds nothing of ours is anybody's.
    let other = |reason| match outer.protocol {
        udp::PROTOCOL => Verdict::Pass(Reason::NoService),
        _ => Verdict::Pass(reason),
    };
    let is_across = A::FAMILY != B::FAMILY;
    if !is_across && frame.byte(at).is_some_and(|first| first >> 4 == A::Other::FAMILY) {
        return Ok(Verdict::Next(Stage::across::<A>()));
    }
    let packet: Packet<B> = B::inner(frame, at).map_err(other)?;
    let stranger = Verdict::Pass(Reason::NoConnection);
    let half = context.half(&packet).ok_or(stranger)?;
    let found = context.find_live(&half.key).ok_or(stranger)?;
    let (destination, _) = context.destination(found.value.destination()).map_err(Verdict::Drop)?;
    let tunnel: Option<&Tunnel> = context.tables.tunnel(destination.tunnel);
    let tunnel = tunnel.ok_or(Verdict::Drop(Reason::Inconsistent))?;
    if half.is_reply
        || destination.method != method::TUNNEL
        || tunnel.family != A::FAMILY
        || tunnel.target != outer.target.octets()
    {
        return Err(stranger);
    }
    // Whoever lets routers cut a packet does not ask for the MTU.
    if packet.flags & UNFRAGMENTED == 0 && A::mtu(outer.header).is_some() {
        return Err(stranger);
    }
    let overhead = tunnel.overhead.into();
    let header = if is_across {
        A::translated(outer.header, overhead).ok_or(Verdict::Pass(Reason::OtherProtocol))?
    } else {
        A::less(outer.header, overhead)
    };
    let way = context.way_to_client(frame, packet.source)?;
    // The kernel would take it for a packet of the version that it was.
    if is_across && way.resolve {
        return Err(Verdict::Pass(Reason::Unresolved));
    }
    if !context.may_complain() {
        return Err(Verdict::Drop(Reason::IcmpLimited));
    }
    B::replace(frame, at, header).ok_or(Verdict::Drop(Reason::NoRoom))?;
    Ok(hop::send(frame, &way))
}

/// Flag of a packet inside that routers may not cut.
const UNFRAGMENTED: u8 = 1;

/// What an error says, and of which outer packet.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub struct Outer<A> {
    /// Type, code, 16 bits of 0 and the header's second half.
    pub header: u64,
    /// Where the packet went.
    pub target: A,
    /// IP protocol of what is in it.
    pub protocol: u8,
}

/// Returns the offset of the packet in a tunnel's packet that is quoted, 0 if it is none of a kind that
/// [`tunnel::wrap`](crate::tunnel::wrap) makes.
#[inline(never)]
fn inside<A: Relayed, F: Frame>(frame: &mut F, protocol: u8) -> u32 {
    let at = A::BEHIND;
    let behind = match protocol {
        ipip::PROTOCOL_V4 | ipip::PROTOCOL_V6 => 0,
        gre::PROTOCOL => match frame.at::<{ gre::LENGTH }>(at).map(|head| u16_at(head, gre::FLAGS))
        {
            Some(0) => gre::LENGTH,
            Some(gre::CHECKSUM_PRESENT) => gre::LENGTH_WITH_CHECKSUM,
            _ => return 0,
        },
        udp::PROTOCOL => match frame.at::<1>(at + udp::LENGTH) {
            Some(&mut [first]) if first & gue::VERSION_MASK == 0 => {
                udp::LENGTH + gue::LENGTH + usize::from(first & gue::OPTIONS_MASK) * 4
            }
            _ => return 0,
        },
        _ => return 0,
    };
    (at + behind) as u32
}

/// Errors about tunnels of an IP version, and packets of it in tunnels.
pub trait Relayed: Quote {
    /// The other IP version.
    type Other: Relayed;
    /// Offset of what is behind the outer header that is quoted.
    const BEHIND: usize;

    /// Reads an error and the outer header that it quotes.
    fn outer<F: Frame>(frame: &mut F) -> Result<Outer<Self>, Reason>;
    /// Reads the packet at an offset, of which 8 bytes behind the IP header are quoted at least. Its flags
    /// say whether routers may cut it.
    fn inner<F: Frame>(frame: &mut F, at: usize) -> Result<Packet<Self>, Reason>;
    /// Returns the MTU that an error tells, if it is one that does.
    fn mtu(header: u64) -> Option<u32>;
    /// Returns what an error says, its MTU less that many bytes.
    fn less(header: u64, overhead: u32) -> u64;
    /// Returns the same as the other IP version says it, if it can: all but an MTU comes to the host's being
    /// unreachable, as routers in the tunnel are not on the client's way.
    fn translated(header: u64, overhead: u32) -> Option<u64>;
    /// Makes the frame an error about the packet at an offset.
    fn replace<F: Frame>(frame: &mut F, at: usize, header: u64) -> Option<()>;
}

const QUOTED: usize = 8;
const QUOTE_V4: usize = L4_V4 + icmp::LENGTH;
const QUOTE_V6: usize = L4_V6 + icmp::LENGTH;
const BEHIND_V4: usize = QUOTE_V4 + ipv4::LENGTH;
const BEHIND_V6: usize = QUOTE_V6 + ipv6::LENGTH;
const INNER_V4: usize = ipv4::LENGTH + QUOTED;
const INNER_V6: usize = ipv6::LENGTH + QUOTED;
/// Type and code of what tells an MTU.
const TOO_BIG_V4: u64 = 0x0304;
/// The same of IPv6.
const TOO_BIG_V6: u64 = 0x0200;
/// The checksum of an ICMP header.
const CHECKSUM: u64 = 0xffff << 32;
/// The smallest MTU that is told (RFC 791).
const MTU_MIN_V4: u32 = 68;
/// The same of IPv6 (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1280;

impl Relayed for V4 {
    type Other = V6;
    const BEHIND: usize = BEHIND_V4;

    #[inline(always)]
    fn outer<F: Frame>(frame: &mut F) -> Result<Outer<Self>, Reason> {
        is_other::<Self, F>(frame)?;
        let head = frame.head::<BEHIND_V4>().ok_or(Reason::Malformed)?;
        if !is_error(u8_at(head, L4_V4 + icmp::TYPE)) {
            return Err(Reason::OtherProtocol);
        }
        let sent_by = u32_at(head, QUOTE_V4 + ipv4::SOURCE);
        if u8_at(head, QUOTE_V4) != 0x45 || sent_by != u32_at(head, IP + ipv4::DESTINATION) {
            return Err(Reason::Malformed);
        }
        if u16_at(head, QUOTE_V4 + ipv4::FRAGMENT) & ipv4::FRAGMENT_OFFSET != 0 {
            return Err(Reason::Fragment);
        }
        Ok(Outer {
            header: u64_at(head, L4_V4) & !CHECKSUM,
            target: Self(u32_at(head, QUOTE_V4 + ipv4::DESTINATION)),
            protocol: u8_at(head, QUOTE_V4 + ipv4::PROTOCOL),
        })
    }

    #[inline(always)]
    fn inner<F: Frame>(frame: &mut F, at: usize) -> Result<Packet<Self>, Reason> {
        let head = frame.at::<INNER_V4>(at).ok_or(Reason::Malformed)?;
        let part = u16_at(head, ipv4::FRAGMENT);
        if u8_at(head, 0) != 0x45 || part & !ipv4::DONT_FRAGMENT != 0 {
            return Err(Reason::OtherProtocol);
        }
        Ok(Packet {
            source: Self(u32_at(head, ipv4::SOURCE)),
            target: Self(u32_at(head, ipv4::DESTINATION)),
            source_port: u16_at(head, ipv4::LENGTH + SOURCE_PORT),
            target_port: u16_at(head, ipv4::LENGTH + DESTINATION_PORT),
            protocol: with_ports(u8_at(head, ipv4::PROTOCOL))?,
            flags: if part != 0 { UNFRAGMENTED } else { 0 },
            ttl: 0,
            length: 0,
        })
    }

    #[inline(always)]
    fn mtu(header: u64) -> Option<u32> {
        if header >> 48 == TOO_BIG_V4 { Some(header as u32 & 0xffff) } else { None }
    }

    #[inline(always)]
    fn less(header: u64, overhead: u32) -> u64 {
        match Self::mtu(header) {
            Some(mtu) => header & !0xffff | u64::from(mtu.saturating_sub(overhead).max(MTU_MIN_V4)),
            None => header,
        }
    }

    #[inline(always)]
    fn translated(header: u64, overhead: u32) -> Option<u64> {
        const UNREACHABLE: u64 = 0x0103;
        match Self::mtu(header) {
            Some(mtu) => {
                let mtu = mtu.saturating_sub(overhead).max(MTU_MIN_V6);
                Some(TOO_BIG_V6 << 48 | u64::from(mtu))
            }
            None if header >> 56 == u64::from(icmp::SOURCE_QUENCH) => None,
            None => Some(UNREACHABLE << 48),
        }
    }

    #[inline(always)]
    fn replace<F: Frame>(frame: &mut F, at: usize, header: u64) -> Option<()> {
        const LENGTH: usize = QUOTE_V4 + INNER_V4;
        let quote: [u8; INNER_V4] = *frame.at::<INNER_V4>(at)?;
        frame.reframe(0, LENGTH)?;
        let head = frame.head::<LENGTH>()?;
        put_at(head, ethernet::TYPE, ethernet::IPV4.to_be_bytes());
        put_at(head, QUOTE_V4, quote);
        complete_v4(head, header);
        Some(())
    }
}

impl Relayed for V6 {
    type Other = V4;
    const BEHIND: usize = BEHIND_V6;

    #[inline(always)]
    fn outer<F: Frame>(frame: &mut F) -> Result<Outer<Self>, Reason> {
        is_other::<Self, F>(frame)?;
        let head = frame.head::<BEHIND_V6>().ok_or(Reason::Malformed)?;
        if u8_at(head, L4_V6 + icmp::TYPE) & icmp::INFORMATIONAL_V6 != 0 {
            return Err(Reason::OtherProtocol);
        }
        let word = |at| u64_at(head, at);
        let (sent_by, to) = (QUOTE_V6 + ipv6::SOURCE, IP + ipv6::DESTINATION);
        let is_ours = word(sent_by) == word(to) && word(sent_by + 8) == word(to + 8);
        if u8_at(head, QUOTE_V6) >> 4 != 6 || !is_ours {
            return Err(Reason::Malformed);
        }
        let target = QUOTE_V6 + ipv6::DESTINATION;
        Ok(Outer {
            header: word(L4_V6) & !CHECKSUM,
            target: Self(word(target), word(target + 8)),
            protocol: u8_at(head, QUOTE_V6 + ipv6::NEXT_HEADER),
        })
    }

    #[inline(always)]
    fn inner<F: Frame>(frame: &mut F, at: usize) -> Result<Packet<Self>, Reason> {
        let head = frame.at::<INNER_V6>(at).ok_or(Reason::Malformed)?;
        if u8_at(head, 0) >> 4 != 6 {
            return Err(Reason::OtherProtocol);
        }
        let address = |at| Self(u64_at(head, at), u64_at(head, at + 8));
        Ok(Packet {
            source: address(ipv6::SOURCE),
            target: address(ipv6::DESTINATION),
            source_port: u16_at(head, ipv6::LENGTH + SOURCE_PORT),
            target_port: u16_at(head, ipv6::LENGTH + DESTINATION_PORT),
            protocol: with_ports(u8_at(head, ipv6::NEXT_HEADER))?,
            flags: UNFRAGMENTED,
            ttl: 0,
            length: 0,
        })
    }

    #[inline(always)]
    fn mtu(header: u64) -> Option<u32> {
        if header >> 48 == TOO_BIG_V6 { Some(header as u32) } else { None }
    }

    #[inline(always)]
    fn less(header: u64, overhead: u32) -> u64 {
        match Self::mtu(header) {
            Some(mtu) => {
                let mtu = mtu.saturating_sub(overhead).max(MTU_MIN_V6);
                header & !u64::from(u32::MAX) | u64::from(mtu)
            }
            None => header,
        }
    }

    #[inline(always)]
    fn translated(header: u64, overhead: u32) -> Option<u64> {
        const UNREACHABLE: u64 = 0x0301;
        Some(match Self::mtu(header) {
            Some(mtu) => {
                let mtu = mtu.saturating_sub(overhead).clamp(MTU_MIN_V4, 0xffff);
                TOO_BIG_V4 << 48 | u64::from(mtu)
            }
            None => UNREACHABLE << 48,
        })
    }

    #[inline(always)]
    fn replace<F: Frame>(frame: &mut F, at: usize, header: u64) -> Option<()> {
        const LENGTH: usize = QUOTE_V6 + INNER_V6;
        let quote: [u8; INNER_V6] = *frame.at::<INNER_V6>(at)?;
        frame.reframe(0, LENGTH)?;
        let head = frame.head::<LENGTH>()?;
        put_at(head, ethernet::TYPE, ethernet::IPV6.to_be_bytes());
        put_at(head, QUOTE_V6, quote);
        complete_v6(head, header);
        Some(())
    }
}
