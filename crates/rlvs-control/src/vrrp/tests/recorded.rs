//! Frames of keepalived 2.2.7: ours are the same.

use super::*;

/// Configuration, kind, both hardware addresses and the packet.
const RECORDED: &str = include_str!("../recorded.txt");

#[test]
fn every_recorded_frame_is_sent_byte_for_byte() {
    check_recorded("v2-password", |config, _| {
        config.version = Version::V2;
        config.password = Some(*b"1234\0\0\0\0");
    });
    check_recorded("v2", |config, _| config.version = Version::V2);
    check_recorded("v3", |_, _| {});
    check_recorded("v3-tenth", |config, _| config.interval = 100 * MS);
    check_recorded("v3-ipv6", |config, _| {
        config.family = Family::V6;
        config.addresses = vec![vip("fe80::9:100", 64), vip("fd09::100", 64)];
    });
    check_recorded("v3-virtual-mac", |config, _| config.virtual_mac = Some("vrrp.51".into()));
    let unicast = |config: &mut InstanceConfig, last: u8| {
        let address = IpAddr::from([10, 9, 0, 3 - last]);
        let peers = vec![Peer { address, hops: (0, 255) }];
        config.delivery = Delivery::Unicast { peers, hops: 255, only_peers: true };
    };
    check_recorded("v3-unicast", |config, last| {
        unicast(config, last);
        config.interval = 100 * MS;
    });
    check_recorded("v2-unicast", |config, last| {
        unicast(config, last);
        config.version = Version::V2;
    });
}

#[test]
fn numbers_of_packets_count_from_1_and_leave_0_out() {
    let mut config = instance(Version::V3, 200);
    config.interval = 10 * MS;
    let mut bench = Bench::one(config, 1);
    bench.run(SECOND * 660);
    let numbers: Vec<u16> =
        bench.adverts().iter().map(|packet| u16::from_be_bytes([packet[4], packet[5]])).collect();
    let expected: Vec<u16> = (1..=u16::MAX).chain(1..=u16::MAX).take(numbers.len()).collect();
    assert_eq!(numbers, expected);
    assert!(numbers.len() > 65_600);
    let last = bench.elapsed();
    assert_eq!(last, SECOND * 660);
}

#[test]
fn recorded_advertisements_are_read() {
    for line in RECORDED.lines().filter(|line| line.contains(" advertisement ")) {
        let packet = hex(line.split_ascii_whitespace().next_back().expect("a packet"));
        let (source, destination, payload) = match Datagram::parse(&packet) {
            Some(read) => (read.source.into(), read.destination.into(), read.payload.to_vec()),
            None => {
                let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16");
                (octets(8).into(), octets(24).into(), packet[40..].to_vec())
            }
        };
        let ends = receive::ends(source, destination).expect("one family");
        let read = Advertisement::parse(&payload, &ends).expect(line);
        assert_eq!(read.vrid, 51);
        assert!([0, 100, 200].contains(&read.priority));
    }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn recorded(configuration: &str) -> Vec<(&'static str, Vec<u8>)> {
    let of_line = |line: &'static str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, kind, _, to, packet] = words[..] else { return None };
        if name != configuration {
            return None;
        }
        let from = words[2];
        let mac = |text: &str| hex(&text.replace(':', ""));
        let packet = hex(packet);
        if kind == "advertisement" {
            return Some((kind, packet));
        }
        let ethertype = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 6] };
        Some((kind, [mac(to), mac(from), ethertype.to_vec(), packet].concat()))
    };
    RECORDED.lines().filter_map(of_line).collect()
}

/// The packet without what no two senders have in common: IPv4 number and header checksum, IPv6
/// flow label.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[1] &= 0xf0;
        packet[2..4].fill(0);
    }
    packet
}

/// Plays master and backup of a recording, and compares each frame that was recorded.
fn check_recorded(name: &str, configure: impl Fn(&mut InstanceConfig, u8)) {
    let frames = recorded(name);
    assert!(frames.len() >= 4, "{name}: {} frames", frames.len());
    let mut found = 0;
    for (last, priority) in [(1, 200), (2, 100)] {
        let mut config = instance(Version::V3, priority);
        configure(&mut config, last);
        let mut bench = Bench::one(config, last);
        bench.run(SECOND * 20);
        bench.input(Input::Stop);
        let sent: Vec<(usize, Vec<u8>)> = bench
            .out
            .iter()
            .enumerate()
            .filter_map(|(at, output)| match output {
                Output::SendAdvert { packet, .. } => Some((at, comparable(packet))),
                Output::SendFrame { frame, .. } => Some((at, frame.clone())),
                _ => None,
            })
            .collect();
        for (kind, frame) in &frames {
            let own = match (*kind, frame[0] >> 4) {
                ("announcement", _) => last == 1,
                (_, 6) => frame[23] == last,
                _ => frame[15] == last,
            };
            if !own {
                continue;
            }
            let expected = if *kind == "announcement" { frame.clone() } else { comparable(frame) };
            // What was sent last before the end has another number; so the number is set.
            let is_it = |sent: &[u8]| {
                let mut sent = sent.to_vec();
                if *kind == "advertisement" && sent.len() > 20 && sent[0] == 0x45 && sent[22] == 0 {
                    sent[4..6].copy_from_slice(&expected[4..6]);
                    sent[10..12].copy_from_slice(&expected[10..12]);
                }
                sent == expected
            };
            assert!(
                sent.iter().any(|(_, sent)| is_it(sent)),
                "{name}: not sent: {expected:02x?}\nsent: {sent:02x?}"
            );
            found += 1;
        }
    }
    assert_eq!(found, frames.len(), "{name}");
}
