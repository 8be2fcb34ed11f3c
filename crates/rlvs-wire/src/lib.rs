//! What the bytes of a packet mean: offsets, protocol numbers, checksums.
//!
//! Headers are plain byte arrays of a length known to the compiler, so that an access needs no
//! run-time check and the same code serves BPF and the host. Everything is in network byte order
//! on the wire; [`u16_at`] and its kin return host order. No access here can panic: an offset
//! outside the array does not compile into a reachable branch, because every caller passes
//! constants.
#![no_std]
#![forbid(unsafe_code)]

pub mod checksum;
pub mod crc32c;
pub mod sync;
pub mod vrrp;

/// Ethernet header: destination (6), source (6), type (2).
pub mod ethernet {
    /// Offset of the destination address.
    pub const DESTINATION: usize = 0;
    /// Offset of the source address.
    pub const SOURCE: usize = 6;
    /// Offset of the type.
    pub const TYPE: usize = 12;
    /// Length of the header without tags.
    pub const LENGTH: usize = 14;
    /// Type of IPv4.
    pub const IPV4: u16 = 0x0800;
    /// Type of IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// IPv4 header (RFC 791), offsets from its first byte.
pub mod ipv4 {
    /// Length without options.
    pub const LENGTH: usize = 20;
    /// Offset of the type of service.
    pub const TOS: usize = 1;
    /// Offset of the total length.
    pub const TOTAL_LENGTH: usize = 2;
    /// Offset of flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// More-fragments flag and fragment offset within [`FRAGMENT`].
    pub const FRAGMENT_MASK: u16 = 0x3fff;
    /// Fragment offset within [`FRAGMENT`].
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
    /// Don't-fragment flag within [`FRAGMENT`].
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// Offset of the number that the fragments of a datagram share.
    pub const IDENTIFICATION: usize = 4;
    /// Offset of the time to live.
    pub const TTL: usize = 8;
    /// Offset of the protocol.
    pub const PROTOCOL: usize = 9;
    /// Offset of the header checksum.
    pub const CHECKSUM: usize = 10;
    /// Offset of the source address.
    pub const SOURCE: usize = 12;
    /// Offset of the destination address.
    pub const DESTINATION: usize = 16;

    /// Kinds of options: the first byte of each.
    pub mod option {
        /// Ends the list; has no length.
        pub const END: u8 = 0;
        /// Fills up; has no length.
        pub const NOP: u8 = 1;
        /// Loose source route.
        pub const LOOSE_ROUTE: u8 = 131;
        /// Strict source route.
        pub const STRICT_ROUTE: u8 = 137;
    }
}

/// IPv6 header (RFC 8200), offsets from its first byte.
pub mod ipv6 {
    /// Length of the fixed header.
    pub const LENGTH: usize = 40;
    /// Offset of the payload length.
    pub const PAYLOAD_LENGTH: usize = 4;
    /// Offset of the next header.
    pub const NEXT_HEADER: usize = 6;
    /// Offset of the hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Offset of the source address.
    pub const SOURCE: usize = 8;
    /// Offset of the destination address.
    pub const DESTINATION: usize = 24;
    /// Next header: hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Next header: routing.
    pub const ROUTING: u8 = 43;
    /// Next header: fragment.
    pub const FRAGMENT: u8 = 44;
    /// Next header: destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Length of the fragment header: next header, reserved, offset (13 bits) and more (1), number.
    pub const FRAGMENT_LENGTH: usize = 8;
}

/// TCP header (RFC 9293), offsets from its first byte.
pub mod tcp {
    /// IP protocol number.
    pub const PROTOCOL: u8 = 6;
    /// Length without options.
    pub const LENGTH: usize = 20;
    /// Offset of the byte whose upper half is the data offset in 32-bit words.
    pub const DATA_OFFSET: usize = 12;
    /// Offset of the flags.
    pub const FLAGS: usize = 13;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;

    /// Kinds of options.
    pub mod option {
        /// There are no more.
        pub const END: u8 = 0;
        /// A byte of nothing.
        pub const NOP: u8 = 1;
        /// The largest segment taken, in two bytes.
        pub const MSS: u8 = 2;
        /// Length of that.
        pub const MSS_LENGTH: u32 = 4;
    }
}

/// UDP header (RFC 768), offsets from its first byte.
pub mod udp {
    /// IP protocol number.
    pub const PROTOCOL: u8 = 17;
    /// Length of the header.
    pub const LENGTH: usize = 8;
    /// Offset of the length of header and data.
    pub const DATAGRAM_LENGTH: usize = 4;
    /// Offset of the checksum; 0 in IPv4 means that there is none.
    pub const CHECKSUM: usize = 6;
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443) errors.
pub mod icmp {
    /// IP protocol number of ICMP.
    pub const PROTOCOL: u8 = 1;
    /// IP protocol number of ICMPv6.
    pub const PROTOCOL_V6: u8 = 58;
    /// Length of the header of an error.
    pub const LENGTH: usize = 8;
    /// Offset of the type.
    pub const TYPE: usize = 0;
    /// Offset of the checksum: over the message, in ICMPv6 with a pseudo header.
    pub const CHECKSUM: usize = 2;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Within the type of an ICMPv6 message: set unless it is an error.
    pub const INFORMATIONAL_V6: u8 = 0x80;
}

/// SCTP (RFC 9260): a common header, offsets from its first byte, and chunks, offsets from each one's
/// first byte.
pub mod sctp {
    /// IP protocol number.
    pub const PROTOCOL: u8 = 132;
    /// Length of the common header.
    pub const LENGTH: usize = 12;
    /// Offset of the CRC32c of the packet, least significant byte first.
    pub const CHECKSUM: usize = 8;
    /// Length of a chunk's header.
    pub const CHUNK_LENGTH: usize = 4;
    /// Offset of the length of a chunk, which is padded to a multiple of four bytes.
    pub const LENGTH_OF_CHUNK: usize = 2;
    /// Chunk type: asks for an association.
    pub const INIT: u8 = 1;
    /// Chunk type: answers it.
    pub const INIT_ACK: u8 = 2;
    /// Chunk type: ends it at once.
    pub const ABORT: u8 = 6;
    /// Chunk type: will send nothing more.
    pub const SHUTDOWN: u8 = 7;
    /// Chunk type: answers it, has sent everything.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Chunk type: reports an error.
    pub const ERROR: u8 = 9;
    /// Chunk type: returns the state cookie.
    pub const COOKIE_ECHO: u8 = 10;
    /// Chunk type: answers it.
    pub const COOKIE_ACK: u8 = 11;
    /// Chunk type: the association has ended.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// IPsec: the protocols, and the key exchange that goes before.
pub mod ipsec {
    /// IP protocol number of the encapsulating security payload (RFC 4303).
    pub const ESP: u8 = 50;
    /// IP protocol number of the authentication header (RFC 4302).
    pub const AH: u8 = 51;
    /// Least length of either header.
    pub const LENGTH: u32 = 8;
    /// UDP port of the key exchange, at both ends (RFC 7296).
    pub const KEY_EXCHANGE: u16 = 500;
}

/// IP in IP (RFC 2003, RFC 2473, RFC 4213): a packet follows the outer header at once.
pub mod ipip {
    /// IP protocol number of an IPv4 packet.
    pub const PROTOCOL_V4: u8 = 4;
    /// IP protocol number of an IPv6 packet.
    pub const PROTOCOL_V6: u8 = 41;
}

/// GRE header (RFC 2784), offsets from its first byte.
pub mod gre {
    /// IP protocol number.
    pub const PROTOCOL: u8 = 47;
    /// Length without checksum.
    pub const LENGTH: usize = 4;
    /// Length with checksum and the reserved bytes behind it.
    pub const LENGTH_WITH_CHECKSUM: usize = 8;
    /// Offset of flags and version.
    pub const FLAGS: usize = 0;
    /// Within [`FLAGS`]: a checksum of header and payload is there.
    pub const CHECKSUM_PRESENT: u16 = 0x8000;
    /// Offset of the payload's type, one of the types of Ethernet.
    pub const TYPE: usize = 2;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 4;
}

/// Generic UDP encapsulation, version 0 (draft-ietf-intarea-gue), offsets from the first byte
/// behind the UDP header. The remote checksum option is Linux's own, as a private field.
pub mod gue {
    /// The port that IANA has set aside for it.
    pub const PORT: u16 = 6080;
    /// Length without options.
    pub const LENGTH: usize = 4;
    /// Length with the private flags and the remote checksum option.
    pub const LENGTH_WITH_REMOTE_CHECKSUM: usize = 12;
    /// Offset of the byte with version, control flag and length of the options.
    pub const VERSION: usize = 0;
    /// Version and control flag within [`VERSION`], both 0 in a packet that carries another.
    pub const VERSION_MASK: u8 = 0xe0;
    /// Within [`VERSION`]: length of the options in 32-bit words.
    pub const OPTIONS_MASK: u8 = 0x1f;
    /// Offset of the payload's IP protocol number.
    pub const NEXT_PROTOCOL: usize = 1;
    /// Offset of the flags.
    pub const FLAGS: usize = 2;
    /// Within [`FLAGS`]: private flags follow the header.
    pub const PRIVATE: u16 = 0x0001;
    /// Offset of the private flags.
    pub const PRIVATE_FLAGS: usize = 4;
    /// Within [`PRIVATE_FLAGS`]: the payload's transport checksum is yet to be completed.
    pub const REMOTE_CHECKSUM: u32 = 0x8000_0000;
    /// Offset of where the bytes to sum start, counted from the payload's first.
    pub const REMOTE_START: usize = 8;
    /// Offset of where the checksum stands, counted from the payload's first byte.
    pub const REMOTE_OFFSET: usize = 10;
}

/// Offset of the source port in TCP, UDP and SCTP headers.
pub const SOURCE_PORT: usize = 0;
/// Offset of the destination port in TCP, UDP and SCTP headers.
pub const DESTINATION_PORT: usize = 2;

/// Copies `M` bytes from a constant offset.
#[inline(always)]
pub fn bytes_at<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    match bytes.get(at..).and_then(|tail| tail.first_chunk::<M>()) {
        Some(chunk) => *chunk,
        None => [0; M],
    }
}

/// Writes `M` bytes at a constant offset.
#[inline(always)]
pub fn put_at<const N: usize, const M: usize>(bytes: &mut [u8; N], at: usize, value: [u8; M]) {
    if let Some(chunk) = bytes.get_mut(at..).and_then(|tail| tail.first_chunk_mut::<M>()) {
        *chunk = value;
    }
}

/// Reads one byte at a constant offset.
#[inline(always)]
pub fn u8_at<const N: usize>(bytes: &[u8; N], at: usize) -> u8 {
    u8::from_be_bytes(bytes_at(bytes, at))
}

/// Reads 16 bits at a constant offset.
#[inline(always)]
pub fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes(bytes_at(bytes, at))
}

/// Reads 32 bits at a constant offset.
#[inline(always)]
pub fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(bytes, at))
}

/// Reads 64 bits at a constant offset.
#[inline(always)]
pub fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(bytes, at))
}
