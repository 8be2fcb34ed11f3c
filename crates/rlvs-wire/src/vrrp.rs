//! VRRP advertisements, versions 2 (RFC 3768) and 3 (RFC 5798, RFC 9568), with the IP headers around
//! them.
//!
//! Version 3, and version 2 without its last 8 bytes (RFC 3768 §5.1, RFC 9568 §5.1):
//!
//! ```text
//!  0                   1                   2                   3
//! |Version| Type  | Virtual Rtr ID|   Priority    | Count IP Addrs|
//! | Auth Type (2) or interval (3) | Checksum                      |
//! | IP addresses, 4 or 16 bytes each                              |
//! | Authentication data, 8 bytes, version 2 only, always there    |
//! ```
//!
//! Reading never panics, whatever the bytes; [`Advertisement::parse`] gives nothing back whose
//! checksum, count or length is not right.

use crate::{checksum, ipv4, ipv6, put_at, u16_at};

/// IP protocol number.
pub const PROTOCOL: u8 = 112;
/// The group that IPv4 advertisements are sent to.
pub const GROUP_V4: [u8; 4] = [224, 0, 0, 18];
/// The group that IPv6 advertisements are sent to: `ff02::12`.
pub const GROUP_V6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12];
/// Time to live of every multicast advertisement: proof that no router has forwarded it.
pub const HOPS: u8 = 255;
/// Type of service and traffic class: network control.
pub const TOS: u8 = 0xc0;
/// Length of the part before the addresses.
pub const HEADER_LENGTH: usize = 8;
/// Length of the authentication data of version 2.
pub const DATA_LENGTH: usize = 8;
/// The most addresses that the count can tell.
pub const ADDRESSES_MAX: usize = 255;
/// Length of the longest advertisement.
pub const LENGTH_MAX: usize = HEADER_LENGTH + ADDRESSES_MAX * 16 + DATA_LENGTH;
/// Authentication type of version 2: none.
pub const NO_AUTHENTICATION: u8 = 0;
/// Authentication type of version 2: a password in clear.
pub const PASSWORD: u8 = 1;
/// The longest interval that version 3 can tell, in hundredths of a second.
pub const INTERVAL_CS_MAX: u16 = 0x0fff;
/// The priority of a router that owns the addresses.
pub const OWNER: u8 = 255;
/// The priority that says: this master goes.
pub const RESIGN: u8 = 0;

/// The only type of VRRP packet.
const ADVERTISEMENT: u8 = 1;
const CHECKSUM: core::ops::Range<usize> = 6..8;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// RFC 3768: IPv4, seconds, authentication data.
    V2,
    /// RFC 5798 and RFC 9568: both families, hundredths of a second.
    V3,
}

/// Both ends of a packet, which version 3 puts under its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// IPv4.
    V4 {
        /// Source address.
        source: [u8; 4],
        /// Destination address.
        destination: [u8; 4],
    },
    /// IPv6.
    V6 {
        /// Source address.
        source: [u8; 16],
        /// Destination address.
        destination: [u8; 16],
    },
}

impl Ends {
    /// Returns the length of an address.
    pub const fn address_length(&self) -> usize {
        match self {
            Self::V4 { .. } => 4,
            Self::V6 { .. } => 16,
        }
    }

    /// Returns the sum of the pseudo header (RFC 791, RFC 8200 §8.1) of `length` bytes.
    fn pseudo_header(&self, protocol: u8, length: usize) -> u64 {
        let addresses = match self {
            Self::V4 { source, destination } => checksum::sum(source) + checksum::sum(destination),
            Self::V6 { source, destination } => checksum::sum(source) + checksum::sum(destination),
        };
        addresses + u64::from(protocol) + length as u64
    }
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header.
    Truncated,
    /// Neither version 2 nor 3.
    Version,
    /// Not an advertisement.
    Type,
    /// The count of addresses does not fit the length.
    Length,
    /// The checksum is wrong in every reading.
    Checksum,
}

/// An advertisement: what is sent, and what a received one says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement<'a> {
    /// Version of the protocol.
    pub version: Version,
    /// The virtual router.
    pub vrid: u8,
    /// Priority of the sender.
    pub priority: u8,
    /// Interval of the sender, in hundredths of a second; whole seconds in version 2.
    pub interval_cs: u16,
    /// Authentication type; 0 in version 3.
    pub authentication: u8,
    /// Authentication data; zeros in version 3.
    pub data: [u8; DATA_LENGTH],
    /// The addresses, one after the other.
    pub addresses: &'a [u8],
}

impl<'a> Advertisement<'a> {
    /// Reads what follows the IP header.
    ///
    /// # Errors
    /// What is wrong with it. The checksum of version 3 over IPv4 is right with the pseudo header
    /// (RFC 5798) or without it (a reading of others).
    pub fn parse(bytes: &'a [u8], ends: &Ends) -> Result<Self, Malformed> {
        let header: &[u8; HEADER_LENGTH] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        let [version, vrid, priority, count, authentication, seconds, _, _] = *header;
        let (version, kind) = (version >> 4, version & 0x0f);
        let version = match version {
            2 => Version::V2,
            3 => Version::V3,
            _ => return Err(Malformed::Version),
        };
        if kind != ADVERTISEMENT {
            return Err(Malformed::Type);
        }
        let rest = bytes.get(HEADER_LENGTH..).unwrap_or_default();
        let (addresses, behind) = rest
            .split_at_checked(usize::from(count) * ends.address_length())
            .ok_or(Malformed::Length)?;
        let data = match version {
            Version::V2 => *behind.first_chunk().ok_or(Malformed::Length)?,
            Version::V3 => [0; DATA_LENGTH],
        };
        if behind.len() != data_length(version) {
            return Err(Malformed::Length);
        }
        if !is_intact(version, bytes, ends) {
            return Err(Malformed::Checksum);
        }
        let (authentication, interval_cs) = match version {
            Version::V2 => (authentication, u16::from(seconds) * 100),
            Version::V3 => (NO_AUTHENTICATION, u16_at(header, 4) & INTERVAL_CS_MAX),
        };
        Ok(Self { version, vrid, priority, interval_cs, authentication, data, addresses })
    }

    /// Writes what follows the IP header, and returns its length.
    ///
    /// Returns `None` if it does not fit `into`, or its values not their fields.
    pub fn emit(&self, ends: &Ends, into: &mut [u8]) -> Option<usize> {
        let count = self.addresses.len() / ends.address_length();
        let count = u8::try_from(count).ok()?;
        let length = HEADER_LENGTH + self.addresses.len() + data_length(self.version);
        let bytes = into.get_mut(..length)?;
        let [high, low] = self.interval_cs.to_be_bytes();
        let (version, fourth, fifth) = match self.version {
            Version::V2 => (2, self.authentication, u8::try_from(self.interval_cs / 100).ok()?),
            Version::V3 if self.interval_cs > INTERVAL_CS_MAX => return None,
            Version::V3 => (3, high, low),
        };
        let version = version << 4 | ADVERTISEMENT;
        let header = [version, self.vrid, self.priority, count, fourth, fifth, 0, 0];
        let (head, rest) = bytes.split_first_chunk_mut::<HEADER_LENGTH>()?;
        *head = header;
        let (addresses, behind) = rest.split_at_mut_checked(self.addresses.len())?;
        addresses.copy_from_slice(self.addresses);
        if self.version == Version::V2 {
            *behind.first_chunk_mut()? = self.data;
        }
        let pseudo = match self.version {
            Version::V2 => 0,
            Version::V3 => ends.pseudo_header(PROTOCOL, length),
        };
        let sum = !checksum::fold(sum_of(bytes) + pseudo);
        bytes.get_mut(CHECKSUM)?.copy_from_slice(&sum.to_be_bytes());
        Some(length)
    }
}

const fn data_length(version: Version) -> usize {
    match version {
        Version::V2 => DATA_LENGTH,
        Version::V3 => 0,
    }
}

/// Tells whether the checksum is right in one of the readings that the version allows.
fn is_intact(version: Version, bytes: &[u8], ends: &Ends) -> bool {
    let sum = sum_of(bytes);
    let alone = checksum::fold(sum) == 0xffff;
    let with_ends = || checksum::fold(sum + ends.pseudo_header(PROTOCOL, bytes.len())) == 0xffff;
    match (version, ends) {
        (Version::V2, _) => alone,
        (Version::V3, Ends::V4 { .. }) => alone || with_ends(),
        (Version::V3, Ends::V6 { .. }) => with_ends(),
    }
}

/// Returns the sum of the words of any number of bytes, an odd last one filled up with 0.
fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let total: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    total + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

/// Returns the IPv4 header of an advertisement of `length` bytes.
pub fn ipv4_header(
    source: [u8; 4],
    destination: [u8; 4],
    identification: u16,
    hops: u8,
    length: usize,
) -> Option<[u8; ipv4::LENGTH]> {
    let total = u16::try_from(ipv4::LENGTH + length).ok()?;
    let mut header = [0; ipv4::LENGTH];
    header[0] = 0x45;
    put_at(&mut header, ipv4::TOS, [TOS]);
    put_at(&mut header, ipv4::TOTAL_LENGTH, total.to_be_bytes());
    put_at(&mut header, ipv4::IDENTIFICATION, identification.to_be_bytes());
    put_at(&mut header, ipv4::TTL, [hops]);
    put_at(&mut header, ipv4::PROTOCOL, [PROTOCOL]);
    put_at(&mut header, ipv4::SOURCE, source);
    put_at(&mut header, ipv4::DESTINATION, destination);
    let sum = !checksum::fold(checksum::sum(&header));
    put_at(&mut header, ipv4::CHECKSUM, sum.to_be_bytes());
    Some(header)
}

/// Returns the IPv6 header of an advertisement of `length` bytes, with flow label 0.
pub fn ipv6_header(
    source: [u8; 16],
    destination: [u8; 16],
    hops: u8,
    length: usize,
) -> Option<[u8; ipv6::LENGTH]> {
    let length = u16::try_from(length).ok()?;
    Some(ipv6_header_of(TOS, PROTOCOL, source, destination, hops, length))
}

fn ipv6_header_of(
    class: u8,
    protocol: u8,
    source: [u8; 16],
    destination: [u8; 16],
    hops: u8,
    length: u16,
) -> [u8; ipv6::LENGTH] {
    let mut header = [0; ipv6::LENGTH];
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    put_at(&mut header, ipv6::PAYLOAD_LENGTH, length.to_be_bytes());
    put_at(&mut header, ipv6::NEXT_HEADER, [protocol]);
    put_at(&mut header, ipv6::HOP_LIMIT, [hops]);
    put_at(&mut header, ipv6::SOURCE, source);
    put_at(&mut header, ipv6::DESTINATION, destination);
    header
}

/// An IPv4 packet of this protocol, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Time to live.
    pub hops: u8,
    /// What follows the header, without padding.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Takes apart an IPv4 packet; `None` unless it is a whole one of this protocol.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; ipv4::LENGTH] = bytes.first_chunk()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        let whole = bytes.get(..usize::from(u16_at(header, ipv4::TOTAL_LENGTH)))?;
        let is_ours = header[0] >> 4 == 4
            && length >= ipv4::LENGTH
            && header[ipv4::PROTOCOL] == PROTOCOL
            && u16_at(header, ipv4::FRAGMENT) & ipv4::FRAGMENT_MASK == 0;
        if !is_ours {
            return None;
        }
        Some(Self {
            source: crate::bytes_at(header, ipv4::SOURCE),
            destination: crate::bytes_at(header, ipv4::DESTINATION),
            hops: header[ipv4::TTL],
            payload: whole.get(length..)?,
        })
    }
}

/// Frames that tell neighbours where an address is.
pub mod announcement {
    use super::{Ends, checksum, ethernet_header, ipv6_header_of, sum_of};
    use crate::{ethernet, icmp, put_at};

    /// Length of a gratuitous ARP request with its Ethernet header.
    pub const ARP_LENGTH: usize = ethernet::LENGTH + 28;
    /// Length of an unsolicited neighbour advertisement with its Ethernet header.
    pub const NEIGHBOUR_LENGTH: usize = ethernet::LENGTH + 40 + 32;

    const MESSAGE_LENGTH: u16 = 32;
    const ARP: u16 = 0x0806;
    const BROADCAST: [u8; 6] = [0xff; 6];
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER: [u8; 2] = [2, 1];

    /// Returns a gratuitous ARP request (RFC 5227 §3) for `address` at `mac`.
    pub fn arp(mac: [u8; 6], address: [u8; 4]) -> [u8; ARP_LENGTH] {
        let mut frame = [0; ARP_LENGTH];
        put_at(&mut frame, 0, ethernet_header(BROADCAST, mac, ARP));
        // Ethernet, IPv4, lengths of their addresses, request.
        put_at(&mut frame, 14, [0, 1, 8, 0, 6, 4, 0, 1]);
        put_at(&mut frame, 22, mac);
        put_at(&mut frame, 28, address);
        put_at(&mut frame, 32, BROADCAST);
        put_at(&mut frame, 38, address);
        frame
    }

    /// Returns an unsolicited neighbour advertisement (RFC 4861 §7.2.6) for `address` at `mac`.
    pub fn neighbour(mac: [u8; 6], address: [u8; 16]) -> [u8; NEIGHBOUR_LENGTH] {
        let mut message = [0; MESSAGE_LENGTH as usize];
        put_at(&mut message, 0, [ADVERTISEMENT]);
        put_at(&mut message, 4, [OVERRIDE]);
        put_at(&mut message, 8, address);
        put_at(&mut message, 24, TARGET_LINK_LAYER);
        put_at(&mut message, 26, mac);
        let ends = Ends::V6 { source: address, destination: ALL_NODES };
        let pseudo = ends.pseudo_header(icmp::PROTOCOL_V6, message.len());
        let sum = !checksum::fold(sum_of(&message) + pseudo);
        put_at(&mut message, icmp::CHECKSUM, sum.to_be_bytes());
        let header = ipv6_header_of(0, icmp::PROTOCOL_V6, address, ALL_NODES, 255, MESSAGE_LENGTH);
        let mut frame = [0; NEIGHBOUR_LENGTH];
        put_at(&mut frame, 0, ethernet_header(ALL_NODES_MAC, mac, ethernet::IPV6));
        put_at(&mut frame, ethernet::LENGTH, header);
        put_at(&mut frame, ethernet::LENGTH + 40, message);
        frame
    }
}

fn ethernet_header(to: [u8; 6], from: [u8; 6], kind: u16) -> [u8; crate::ethernet::LENGTH] {
    let mut header = [0; crate::ethernet::LENGTH];
    put_at(&mut header, crate::ethernet::DESTINATION, to);
    put_at(&mut header, crate::ethernet::SOURCE, from);
    put_at(&mut header, crate::ethernet::TYPE, kind.to_be_bytes());
    header
}

/// Returns the virtual router's own hardware address (RFC 9568 §7.3).
pub const fn virtual_mac(vrid: u8, for_ipv6: bool) -> [u8; 6] {
    [0, 0, 0x5e, 0, if for_ipv6 { 2 } else { 1 }, vrid]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MULTICAST: Ends = Ends::V4 { source: [10, 9, 0, 1], destination: GROUP_V4 };
    const VIP: [u8; 4] = [10, 9, 0, 100];

    fn advertisement(version: Version, interval_cs: u16) -> Advertisement<'static> {
        Advertisement {
            version,
            vrid: 51,
            priority: 200,
            interval_cs,
            authentication: NO_AUTHENTICATION,
            data: [0; 8],
            addresses: &VIP,
        }
    }

    /// Emitting gives these bytes, and reading them the advertisement.
    fn check(advertisement: Advertisement<'_>, ends: &Ends, expected: &[u8]) {
        let mut bytes = [0xa5; 64];
        let length = advertisement.emit(ends, &mut bytes).expect("room");
        assert_eq!(bytes[..length], *expected);
        assert_eq!(Advertisement::parse(expected, ends), Ok(advertisement));
    }

    #[test]
    fn version_2_with_a_password() {
        let mut sent = advertisement(Version::V2, 100);
        (sent.authentication, sent.data) = (PASSWORD, *b"1234\0\0\0\0");
        let expected = b"\x21\x33\xc8\x01\x01\x01\xa6\xf6\x0a\x09\x00\x641234\0\0\0\0";
        check(sent, &MULTICAST, expected);
    }

    #[test]
    fn version_3_with_its_pseudo_header() {
        let expected = [0x31, 0x33, 200, 1, 0, 0x64, 0x11, 0x61, 10, 9, 0, 100];
        check(advertisement(Version::V3, 100), &MULTICAST, &expected);
    }

    #[test]
    fn version_3_without_a_pseudo_header_is_read_too_and_no_third_reading() {
        let mut bytes = [0x31, 0x33, 200, 1, 0, 0x64, 0xfb, 0xf9, 10, 9, 0, 100];
        let read = Advertisement::parse(&bytes, &MULTICAST);
        assert_eq!(read, Ok(advertisement(Version::V3, 100)));
        let right = [0x1161, 0xfbf9];
        for sum in 0..=u16::MAX {
            [bytes[6], bytes[7]] = sum.to_be_bytes();
            let read = Advertisement::parse(&bytes, &MULTICAST);
            assert_eq!(read.is_ok(), right.contains(&sum), "{sum:04x}");
        }
    }

    #[test]
    fn a_count_or_length_that_lies_is_refused() {
        let good = [0x31, 0x33, 200, 1, 0, 0x64, 0x11, 0x61, 10, 9, 0, 100];
        for length in 0..good.len() {
            let expected =
                if length < HEADER_LENGTH { Malformed::Truncated } else { Malformed::Length };
            assert_eq!(Advertisement::parse(&good[..length], &MULTICAST), Err(expected));
        }
        for count in [0, 2, 255] {
            let mut bytes = good;
            bytes[3] = count;
            let read = Advertisement::parse(&bytes, &MULTICAST);
            assert_eq!(read, Err(Malformed::Length), "{count}");
        }
    }

    #[test]
    fn headers_stand_before_it_as_recorded() {
        let mut bytes = [0; 32];
        let header = ipv4_header([10, 9, 0, 1], GROUP_V4, 1, HOPS, 12).expect("a short packet");
        bytes[..20].copy_from_slice(&header);
        let expected =
            [0x45, 0xc0, 0, 0x20, 0, 1, 0, 0, 0xff, 0x70, 0xd0, 0x90, 10, 9, 0, 1, 224, 0, 0, 18];
        assert_eq!(header, expected);
        let read = Datagram::parse(&bytes).expect("a packet");
        assert_eq!((read.source, read.hops, read.payload.len()), ([10, 9, 0, 1], 255, 12));
        bytes[3] = 33;
        assert_eq!(Datagram::parse(&bytes), None);
    }
}
