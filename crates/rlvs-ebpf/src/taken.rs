//! What the capturing programs and whoever reads from them agree on; `rlvs-linux` includes this file
//! too.

/// Most bytes that are kept of a frame.
pub const FRAME_MAX: usize = 2048;

/// The packets that are wanted: those of which the frame that came or the one that went fits every
/// word that is not 0. The one element of the map `wanted`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Nanoseconds of the monotonic clock at which nothing is wanted any more, whatever becomes of
    /// the process that wanted it.
    pub until_ns: u64,
    /// Source or destination: an address in network order, an IPv4 one in the first word.
    pub host: [u32; 4],
    /// Bits of it that must be equal, in network order.
    pub mask: [u32; 4],
    /// EtherType, for packets of one version of IP.
    pub kind: u32,
    /// Protocol of IP.
    pub protocol: u32,
    /// Source or destination port, by number.
    pub port: u32,
    /// Reasons of which one must have been counted for the packet, by bit.
    pub reasons: u32,
    /// Bytes to keep of a frame, 1 to [`FRAME_MAX`].
    pub bytes: u32,
    /// 0.
    pub padding: u32,
    /// Packets to take, all CPUs together; taken ones are counted down. Signed, so that CPUs that
    /// come at the same time find it below 0.
    pub left: i64,
}

const _: () = assert!(size_of::<Wanted>() == 8 + 2 * 16 + 6 * 4 + 8);
const _: () = assert!(size_of::<Head>() == 40);

/// Where a packet was met.
pub const XDP: u32 = 0;
/// As [`XDP`]: at TC ingress.
pub const TC: u32 = 1;
/// As [`XDP`]: at TC egress.
pub const OUT: u32 = 2;

/// A packet, before the bytes of the frame that came and of the one that went.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Nanoseconds of the monotonic clock when it came.
    pub time_ns: u64,
    /// Index of the interface.
    pub interface: u32,
    /// [`XDP`], [`TC`] or [`OUT`].
    pub place: u32,
    /// What the program returned: an XDP action or a TC action.
    pub action: u32,
    /// Reasons that were counted meanwhile, by bit.
    pub reasons: u32,
    /// Length of the frame that came.
    pub came: u32,
    /// Bytes of it that are here.
    pub came_kept: u32,
    /// Length of the frame when the program was done with it.
    pub went: u32,
    /// Bytes of it that are here, behind the other.
    pub went_kept: u32,
}
