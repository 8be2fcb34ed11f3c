//! Tunnel packets made by plain rules, with `etherparse` for the outer headers.

use std::net::IpAddr;

use e2e::packet::set_udp_checksum;
use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use rlvs_linux::decap::{Encapsulation, Kind};

pub(crate) const ETHERNET: usize = 14;

/// The port that GUE comes to.
pub(crate) const GUE_PORT: u16 = 6080;

/// The outer headers of a tunnel packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wrap {
    pub(crate) encapsulation: Encapsulation,
    pub(crate) from: [u8; 6],
    pub(crate) to: [u8; 6],
    pub(crate) source: IpAddr,
    pub(crate) target: IpAddr,
}

/// Every combination of encapsulation and versions.
pub(crate) fn kinds() -> impl Iterator<Item = Kind> {
    Encapsulation::ALL.into_iter().flat_map(|encapsulation| {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(outer_v6, inner_v6)| Kind { encapsulation, outer_v6, inner_v6 })
    })
}

impl Wrap {
    /// Returns the frame that carries an IP packet.
    pub(crate) fn frame(&self, inner: &[u8]) -> Vec<u8> {
        let is_v6 = inner[0] >> 4 == 6;
        let protocol = if is_v6 { 41 } else { 4 };
        let kind: u16 = if is_v6 { 0x86dd } else { 0x0800 };
        match self.encapsulation {
            Encapsulation::Ipip => self.ip(protocol, inner),
            Encapsulation::Gre => self.ip(47, &[&[0, 0], &kind.to_be_bytes()[..], inner].concat()),
            Encapsulation::GreChecksum => {
                let kind = kind.to_be_bytes();
                let mut bytes = [&[0x80, 0], &kind[..], &[0; 4], inner].concat();
                let checksum = !sum(&bytes, 0);
                bytes[4..6].copy_from_slice(&checksum.to_be_bytes());
                self.ip(47, &bytes)
            }
            Encapsulation::Gue | Encapsulation::GueChecksum => {
                self.udp(&[&[0, protocol, 0, 0], inner].concat())
            }
            Encapsulation::GueRemote | Encapsulation::GueRemoteChecksum => {
                let (start, at) = transport(inner);
                let mut inner = inner.to_vec();
                let pseudo = pseudo(&inner).to_be_bytes();
                inner[at..at + 2].copy_from_slice(&pseudo);
                let (start, at) = ((start as u16).to_be_bytes(), (at as u16).to_be_bytes());
                let header = [2, protocol, 0, 1, 0x80, 0, 0, 0];
                self.udp(&[&header[..], &start, &at, &inner].concat())
            }
        }
    }

    fn ip(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.outer().write(&mut bytes, IpNumber(protocol), payload).unwrap();
        bytes
    }

    fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.outer().udp(54_321, GUE_PORT).write(&mut bytes, payload).unwrap();
        if matches!(self.encapsulation, Encapsulation::Gue | Encapsulation::GueRemote) {
            set_udp_checksum(&mut bytes, 0);
        }
        bytes
    }

    fn outer(&self) -> PacketBuilderStep<IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                ethernet.ipv4(source.octets(), target.octets(), 63)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                ethernet.ipv6(source.octets(), target.octets(), 63)
            }
            (source, target) => panic!("{source} and {target} are of two families"),
        }
    }
}

/// Returns the one's complement sum of bytes and what was summed before.
pub(crate) fn sum(bytes: &[u8], before: u64) -> u16 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u64::from(high) << 8 | u64::from(low),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    let mut sum = before + words.sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Returns where an IP packet's transport header starts and where its checksum stands.
pub(crate) fn transport(packet: &[u8]) -> (usize, usize) {
    let (start, protocol) = if packet[0] >> 4 == 6 { (40, packet[6]) } else { (20, packet[9]) };
    (start, start + if protocol == 6 { 16 } else { 6 })
}

/// Returns the sum of an IP packet's pseudo header, which stands in the place of the checksum while
/// hardware, or the far end of the tunnel, has yet to complete it.
pub(crate) fn pseudo(packet: &[u8]) -> u16 {
    let (start, _) = transport(packet);
    let (addresses, protocol) = if packet[0] >> 4 == 6 {
        (&packet[8..40], packet[6])
    } else {
        (&packet[12..20], packet[9])
    };
    sum(addresses, u64::from(protocol) + (packet.len() - start) as u64)
}

/// Makes an outer IPv4 header's checksum right again.
pub(crate) fn sum_header(frame: &mut [u8]) {
    let end = ETHERNET + 4 * usize::from(frame[ETHERNET] & 15);
    frame[24..26].fill(0);
    let checksum = !sum(&frame[ETHERNET..end], 0);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}
