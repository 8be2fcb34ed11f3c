//! What the decapsulator and whoever attaches it agree on; `rlvs-linux` includes this file too.

/// Most addresses at which one host takes tunnel packets.
pub const ADDRESSES_MAX: usize = 256;

/// How a packet was wrapped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encapsulation {
    /// IP in IP.
    Ipip,
    /// GRE without checksum.
    Gre,
    /// GRE with a right checksum.
    GreChecksum,
    /// GUE without UDP checksum.
    Gue,
    /// GUE with a right UDP checksum.
    GueChecksum,
    /// GUE without UDP checksum, the transport checksum left to be completed here.
    GueRemote,
    /// GUE with a right UDP checksum, the transport checksum left to be completed here.
    GueRemoteChecksum,
}

impl Encapsulation {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Ipip,
        Self::Gre,
        Self::GreChecksum,
        Self::Gue,
        Self::GueChecksum,
        Self::GueRemote,
        Self::GueRemoteChecksum,
    ];
}

/// A packet that was taken out: how it was wrapped, and the two versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// How it was wrapped.
    pub encapsulation: Encapsulation,
    /// Whether the outer header is IPv6.
    pub outer_v6: bool,
    /// Whether the inner packet is IPv6.
    pub inner_v6: bool,
}

impl Kind {
    /// Returns the place of its counter.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        4 * self.encapsulation as u32 + 2 * self.outer_v6 as u32 + self.inner_v6 as u32
    }
}

/// Why a tunnel packet to this host was dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The outer IPv4 header's checksum is wrong.
    HeaderChecksum,
    /// The outer packet is a fragment.
    Fragment,
    /// The outer headers say that they or the packet are longer than what is there.
    Truncated,
    /// GRE of another version, or with fields besides the checksum.
    GreFlags,
    /// The GRE checksum is wrong.
    GreChecksum,
    /// The outer UDP checksum is wrong.
    UdpChecksum,
    /// GUE of another version.
    GueVersion,
    /// A control message of GUE.
    GueControl,
    /// GUE with flags or options besides the remote checksum.
    GueFlags,
    /// GRE or GUE that carries something other than IP.
    Protocol,
    /// The inner packet is of another version than announced, or not exactly as long as its place.
    Inner,
    /// The remote checksum option does not point at the inner packet's transport checksum, or what
    /// stands there is not the sum of the pseudo header.
    RemoteChecksum,
    /// The kernel could not take the headers off.
    Room,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::HeaderChecksum,
        Self::Fragment,
        Self::Truncated,
        Self::GreFlags,
        Self::GreChecksum,
        Self::UdpChecksum,
        Self::GueVersion,
        Self::GueControl,
        Self::GueFlags,
        Self::Protocol,
        Self::Inner,
        Self::RemoteChecksum,
        Self::Room,
    ];

    /// Returns the place of its counter.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        4 * Encapsulation::ALL.len() as u32 + self as u32
    }
}

/// Number of counters.
pub const COUNTERS: usize = 4 * Encapsulation::ALL.len() + Refusal::ALL.len();
