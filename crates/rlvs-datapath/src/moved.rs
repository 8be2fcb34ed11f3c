//! Frames whose transport header stands elsewhere than right behind a plain IP header, or is not
//! there: what the forwarding function does to a packet goes for them too.

use core::cell::Cell;

use rlvs_wire::{ethernet, sctp, tcp, udp};

use crate::abi::{Hop, Tunnel};
use crate::frame::{Answer, Frame, Growth, Query};
use crate::ip::{Ip, Substitute, follow_crc_at};
use crate::tunnel::Brief;

/// A frame with options or extension headers, or with a fragment. `PORTS` says whether its protocol is TCP or
/// UDP, else it may be any that is served.
pub struct Moved<'a, F, const PORTS: bool> {
    frame: &'a mut F,
    /// Offset of the transport header; 0 in a fragment that does not have it.
    transport: usize,
}

impl<'a, F: Frame, const PORTS: bool> Moved<'a, F, PORTS> {
    /// Wraps a frame; `transport` is the offset of the transport header, 0 for none.
    #[inline(always)]
    pub fn new(frame: &'a mut F, transport: usize) -> Self {
        Self { frame, transport }
    }

    /// Returns whether it has no transport header.
    #[inline(always)]
    pub fn is_bare(&self) -> bool {
        self.transport == 0
    }
}

impl<F: Frame, const PORTS: bool> Frame for Moved<'_, F, PORTS> {
    const RESOLVES: bool = F::RESOLVES;
    const LEAVES_ZERO_CRC: bool = F::LEAVES_ZERO_CRC;
    const USUAL: bool = false;

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.frame.interface()
    }
    #[inline(always)]
    fn mark(&self) -> u32 {
        self.frame.mark()
    }
    #[inline(always)]
    fn length(&self) -> usize {
        self.frame.length()
    }
    #[inline(always)]
    fn head<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.frame.head::<N>()
    }
    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.frame.at::<N>(offset)
    }
    #[inline(always)]
    fn reframe(&mut self, by: usize, length: usize) -> Option<()> {
        self.frame.reframe(by, length)
    }
    #[inline(always)]
    fn grow(&mut self, by: usize, growth: Growth) -> Option<()> {
        self.frame.grow(by, growth)
    }
    #[inline(always)]
    fn wrap(&mut self, tunnel: &Tunnel, inner: Brief) -> Option<()> {
        self.frame.wrap(tunnel, inner)
    }
    #[inline(always)]
    fn add_to_sum(&mut self, sum: u16) {
        self.frame.add_to_sum(sum);
    }
    #[inline(always)]
    fn segment(&mut self, length: u32, _: impl FnOnce(&mut Self) -> u32) -> u32 {
        let transport = self.transport;
        self.frame.segment(length, |frame| {
            let offset = frame.at::<1>(transport + tcp::DATA_OFFSET).map_or(0, |byte| byte[0] >> 4);
            transport.saturating_sub(ethernet::LENGTH) as u32 + u32::from(offset) * 4
        })
    }
    #[inline(always)]
    fn byte(&mut self, at: usize) -> Option<u8> {
        self.frame.byte(at)
    }
    #[inline(always)]
    fn follow_crc(old: u32, difference: u32, bytes: u16) -> u32 {
        F::follow_crc(old, difference, bytes)
    }
    #[inline(always)]
    fn query(&mut self, query: &Query, hop: &Cell<Hop>) -> Answer {
        self.frame.query(query, hop)
    }
    #[inline(always)]
    fn resolve(&mut self, hop: &Cell<Hop>) {
        self.frame.resolve(hop);
    }
    #[inline(always)]
    fn lower_hop_limit(&mut self) -> Option<()> {
        if lower_hop_limit(self.frame) { Some(()) } else { None }
    }
    #[inline(always)]
    fn retarget<A: Ip>(&mut self, protocol: u8, by: &Substitute<'_>) -> Option<()> {
        let is_v6 = A::FAMILY != 4;
        if self.transport == 0 {
            self.frame.follow_bare(is_v6, by.deltas);
            return Some(());
        }
        if !PORTS && protocol == sctp::PROTOCOL {
            // Without a checksum over addresses only IPv4's header makes up for them.
            if is_v6 {
                self.frame.add_to_sum(by.deltas.address);
            }
            let port = u16::from_be_bytes(by.port);
            let (at, delta) = (by.end.port_at(), by.deltas.port);
            return match follow_crc_at::<A, F>(self.frame, self.transport, at, port, delta) {
                true => Some(()),
                false => None,
            };
        }
        *self.frame.at::<2>(self.transport + by.end.port_at())? = by.port;
        let is_udp = protocol == udp::PROTOCOL;
        let checksum_at = if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM };
        self.frame.follow_at(self.transport + checksum_at, is_udp, is_v6, by.deltas)
    }
}

/// Lowers the hop limit. Out of line, as there is little room on the stack where it is called.
#[inline(never)]
pub(crate) fn lower_hop_limit<F: Frame>(frame: &mut F) -> bool {
    frame.lower_hop_limit().is_some()
}
