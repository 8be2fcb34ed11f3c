//! A packet in its Ethernet frame, and what can be asked of the network around it.
//!
//! What is handed around by value is aligned to 8 bytes: the BPF stack takes aligned accesses only,
//! and the compiler, which may access packets unaligned, does not know that.

use core::cell::Cell;

use rlvs_wire::{checksum, crc32c};

use crate::abi::{Hop, Tunnel};
use crate::ip::{Ip, Substitute};
use crate::reason::Reason;
use crate::stage::Stage;
use crate::tunnel::Brief;

/// What becomes of a packet. The body carries it out and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub enum Verdict {
    /// Goes on to TC or the stack as it came.
    Pass(Reason),
    /// Ends here.
    Drop(Reason),
    /// Leaves by this interface; its Ethernet header is complete.
    Transmit {
        /// Interface index.
        interface: u32,
    },
    /// Leaves to a neighbour once the kernel has resolved it; the frame has been told which.
    Resolve {
        /// Interface index. Every verdict has a number, so that none is copied undefined.
        interface: u32,
    },
    /// Nothing has been done yet: this stage decides.
    Next(Stage),
    /// Comes in by the loopback device: from this host, to this host. Only a body that
    /// [can](Frame::RESOLVES) resolve neighbours is told so.
    Arrive,
}

impl Verdict {
    /// Packs the verdict into one word, the only thing that an out-of-line BPF function returns
    /// safely.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Pass(reason) => reason as u64,
            Self::Drop(reason) => 1 << 32 | reason as u64,
            Self::Transmit { interface } => 2 << 32 | interface as u64,
            Self::Resolve { interface } => 3 << 32 | interface as u64,
            Self::Next(stage) => 4 << 32 | stage as u64,
            Self::Arrive => 5 << 32,
        }
    }

    /// Unpacks a verdict.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        let low = word as u32;
        match word >> 32 {
            0 => Self::Pass(Reason::from_number(low)),
            1 => Self::Drop(Reason::from_number(low)),
            2 => Self::Transmit { interface: low },
            3 => Self::Resolve { interface: low },
            4 => Self::Next(Stage::from_number(low)),
            _ => Self::Arrive,
        }
    }
}

/// A question to the routing table: how does the host itself reach this address?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Query {
    /// Address in network order, an IPv4 one in the first four bytes.
    pub target: [u8; 16],
    /// 4 or 6.
    pub family: u32,
    /// Coarse time.
    pub now: u32,
}

/// What the routing table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub enum Answer {
    /// There is a way.
    Hop,
    /// A route, but its neighbour's MAC address is not known.
    Unresolved,
    /// The address is this host's own, or nothing leads there.
    NotForwarded,
    /// A route that forbids it.
    Unreachable,
}

/// Checksum deltas of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Deltas {
    /// Of the address, which the pseudo header holds.
    pub address: u16,
    /// Of the port.
    pub port: u16,
}

/// Offsets that [`Frame::at`] takes lie below this, a power of two.
pub const OFFSETS: usize = 512;

/// What room in front of a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Growth {
    /// Whether the outer header is IPv6.
    pub is_v6: bool,
    /// A [`tunnel_form`](crate::abi::tunnel_form) number.
    pub form: u8,
    /// Whether the packet is a UDP datagram.
    pub is_datagram: bool,
}

/// A packet in its Ethernet frame.
pub trait Frame {
    /// Whether the body can hand a packet to the kernel to resolve its neighbour.
    const RESOLVES: bool;
    /// Whether an SCTP checksum of 0 may be one that the hardware is yet to compute, as in a packet
    /// of this host's other namespaces. One in 2^32 is 0 for another reason.
    const LEAVES_ZERO_CRC: bool = Self::RESOLVES;

    /// Returns the interface it came in by.
    fn interface(&self) -> u32;
    /// Returns the mark that another program has given it, or 0.
    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }
    /// Returns its length in bytes from the Ethernet header on.
    fn length(&self) -> usize;
    /// Returns whether it is at least that long.
    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        self.length() >= length
    }
    /// Returns its first `N` bytes, or `None` if it is shorter.
    fn head<const N: usize>(&mut self) -> Option<&mut [u8; N]>;
    /// Returns `N` bytes from an offset below [`OFFSETS`] on, or `None` if it is shorter.
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;
    /// Returns the byte at an offset that only the packet tells.
    fn byte(&mut self, at: usize) -> Option<u8>;
    /// Makes room for `by` bytes before the first and cuts the end off so that `length` remain.
    /// The first bytes hold anything afterwards.
    fn reframe(&mut self, by: usize, length: usize) -> Option<()>;
    /// Makes room for `by` bytes between the Ethernet header and the packet. All bytes before the
    /// packet hold anything afterwards, but for the Ethernet addresses where the body
    /// [resolves](Self::RESOLVES).
    fn grow(&mut self, by: usize, growth: Growth) -> Option<()>;
    /// Puts the headers of a tunnel before the packet: [`tunnel::wrap`](crate::tunnel::wrap), out of
    /// line if the body likes it better.
    fn wrap(&mut self, tunnel: &Tunnel, inner: Brief) -> Option<()>;
    /// Adds what was written to what hardware has summed of the frame.
    #[inline(always)]
    fn add_to_sum(&mut self, _sum: u16) {}
    /// Returns the length of the IP packets that it leaves in, given the one it came in; if the kernel
    /// will cut it into segments, that of one of them, with the IP and transport headers that each has.
    #[inline(always)]
    fn segment(&mut self, length: u32, _headers: impl FnOnce(&mut Self) -> u32) -> u32 {
        length
    }
    /// Asks the routing table; a way goes into `hop`, with the query's time, an unresolved one as
    /// [`Hop::unresolved`].
    fn query(&mut self, query: &Query, hop: &Cell<Hop>) -> Answer;

    /// Lets the transport checksum at `at` follow an address and a port that changed; `N` is the
    /// length of the headers with it. A UDP checksum of 0 stays 0, a computed 0 becomes 0xffff.
    #[inline(always)]
    fn follow<const N: usize>(&mut self, at: usize, udp: bool, by: Deltas) -> Option<()> {
        let head = self.head::<N>()?;
        let old = rlvs_wire::u16_at(head, at);
        if udp && old == 0 {
            return Some(());
        }
        let new = checksum::update(old, u64::from(by.address) + u64::from(by.port));
        let new = if udp && new == 0 { 0xffff } else { new };
        rlvs_wire::put_at(head, at, new.to_be_bytes());
        Some(())
    }

    /// As [`follow`](Self::follow), for a transport header that may stand anywhere.
    #[inline(always)]
    fn follow_at(&mut self, at: usize, udp: bool, _is_v6: bool, by: Deltas) -> Option<()> {
        let field = self.at::<2>(at)?;
        let old = rlvs_wire::u16_at(field, 0);
        if udp && old == 0 {
            return Some(());
        }
        let new = checksum::update(old, u64::from(by.address) + u64::from(by.port));
        let new = if udp && new == 0 { 0xffff } else { new };
        *field = new.to_be_bytes();
        Some(())
    }

    /// Lets what hardware has summed follow an address that no checksum of the packet makes up for.
    #[inline(always)]
    fn follow_bare(&mut self, _is_v6: bool, _by: Deltas) {}

    /// Whether the transport header stands right behind an IP header without options, as it does in
    /// a frame that is not [`Moved`](crate::moved::Moved).
    const USUAL: bool = true;

    /// Puts a port where the transport header of an unusual packet stands, and lets its checksum
    /// follow.
    #[inline(always)]
    fn retarget<A: Ip>(&mut self, _protocol: u8, _by: &Substitute<'_>) -> Option<()> {
        None
    }
    /// Returns the CRC of a packet of this length whose first four bytes have changed, as
    /// [`crc32c::follow`].
    #[inline(always)]
    fn follow_crc(old: u32, difference: u32, bytes: u16) -> u32 {
        crc32c::follow(old, difference, crc32c::power(bytes))
    }

    /// Sends the frame to an unresolved neighbour, if the body [can](Self::RESOLVES).
    #[inline(always)]
    fn resolve(&mut self, _hop: &Cell<Hop>) {}

    /// Lowers the hop limit of an IPv6 packet by one.
    #[inline(always)]
    fn lower_hop_limit(&mut self) -> Option<()> {
        let head = self.head::<22>()?;
        head[21] = head[21].wrapping_sub(1);
        Some(())
    }
}
