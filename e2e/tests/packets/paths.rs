//! Every path of a packet that is forwarded.

use e2e::bpf::Input;
use e2e::network::{self, GATEWAY_MAC, client, server, server_mac, vip};
use e2e::packet::{Kind, Packet, set_udp_checksum, transport};
use e2e::scene::{
    PORT, REAL_PORT, TCP, UDP, description, destination, lines, plain, reply, request, service,
};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{interface_flag, method};
use rlvs_datapath::frame::Verdict;
use rlvs_wire::tcp::{ACK, SYN};

/// Family, a packet that opens a connection, its service and destination, the state, the count.
fn openings() -> Vec<(u8, Kind, u32, &'static str, &'static str)> {
    let of = |family| {
        [
            (family, Kind::Tcp(SYN), 1, "SYN_RECV", "active"),
            (family, Kind::Udp, 2, "UDP", "inactive"),
        ]
    };
    [of(4), of(6)].concat()
}

/// Returns the lines that say which groups of the table are in use now; which they are is the
/// hash's choice, that there are as many as entries, at most, is not.
fn occupied(outcome: &Outcome, family: u8, entries: usize) -> Vec<String> {
    let is = |line: &&String| line.starts_with(&format!("occupied v{family} "));
    let lines: Vec<String> = outcome.changes.iter().filter(is).cloned().collect();
    assert!((1..=entries).contains(&lines.len()), "{lines:?}");
    lines
}

#[track_caller]
fn assert_changes<const N: usize>(outcome: &Outcome, expected: [String; N], occupied: &[String]) {
    let mut expected = lines(expected);
    expected.extend_from_slice(occupied);
    expected.sort();
    assert_eq!(outcome.changes, expected);
}

#[test]
fn direct_routing_changes_the_next_hop_and_the_hop_limit() {
    network::run("direct", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let out = Verdict::Transmit { interface: network.outside.index };
        for (family, kind, id, state, count) in openings() {
            world.reset(&plain(network, family, method::DIRECT));
            let packet = request(network, family, kind);
            let (client, length) = (client(family, 7), packet.length());
            let sent =
                Packet { from: network.outside.mac, to: server_mac(11), ttl: 63, ..packet.clone() };

            let first = world.step(&packet.bytes()).same();
            assert_eq!((first.verdict, &first.bytes), (out, &sent.bytes()));
            let expected = [
                format!("{client}:4242 s{id} = {state} d{id}"),
                format!("d{id} {count} = 1"),
                format!("d{id} connections = 1"),
                format!("d{id} packets in = 1"),
                format!("d{id} bytes in = {length}"),
                format!("d{id} way = .. 0b"),
                format!("s{id} position = 1"),
                format!("s{id} local = yes"),
            ];
            assert_changes(&first, expected, &occupied(&first, family, 1));

            let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(ACK) };
            let packet = Packet { kind, ttl: 2, ..packet };
            let second = world.step(&packet.bytes()).same();
            let sent = Packet { kind, ttl: 1, ..sent };
            assert_eq!((second.verdict, &second.bytes), (out, &sent.bytes()));
            let established = format!("{client}:4242 s{id} = ESTABLISHED d{id}");
            let expected = [
                if kind == Kind::Udp { String::new() } else { established },
                format!("d{id} packets in = 2"),
                format!("d{id} bytes in = {}", 2 * length),
            ];
            assert_changes(&second, expected, &[]);
        }
    });
}

#[test]
fn nat_translates_requests_and_replies() {
    network::run("nat", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        let out = Verdict::Transmit { interface: network.outside.index };
        let back = Verdict::Transmit { interface: network.inside.index };
        for (family, kind, id, state, count) in openings() {
            world.reset(&plain(network, family, method::MASQUERADE));
            let packet = request(network, family, kind);
            let (client, length) = (client(family, 7), packet.length());
            let sent = Packet {
                from: network.outside.mac,
                to: server_mac(11),
                target: (server(family, 11), REAL_PORT).into(),
                ttl: 63,
                ..packet.clone()
            };

            let first = world.step(&packet.bytes()).same();
            assert_eq!((first.verdict, &first.bytes), (out, &sent.bytes()));
            let expected = [
                format!("{client}:4242 s{id} = {state} d{id} paired"),
                format!("{client}:4242 r{id} = {state} d{id} paired reply"),
                format!("d{id} {count} = 1"),
                format!("d{id} connections = 1"),
                format!("d{id} packets in = 1"),
                format!("d{id} bytes in = {length}"),
                format!("d{id} way = .. 0b"),
                format!("s{id} position = 1"),
                format!("s{id} local = yes"),
            ];
            assert_changes(&first, expected, &occupied(&first, family, 2));

            let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(SYN | ACK) };
            let packet = reply(network, family, kind);
            let answered = Packet {
                from: network.inside.mac,
                to: GATEWAY_MAC,
                source: (vip(family, 100), PORT).into(),
                ttl: 63,
                ..packet.clone()
            };
            let second =
                world.step_with(&Input::new(&packet.bytes(), network.outside.index)).same();
            assert_eq!((second.verdict, &second.bytes), (back, &answered.bytes()));
            let expected = [
                format!("d{id} packets out = 1"),
                format!("d{id} bytes out = {}", packet.length()),
                format!("way to {client} = .. fe"),
            ];
            assert_changes(&second, expected, &[]);

            let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(ACK) };
            let packet = Packet { kind, ..request(network, family, kind) };
            let third = world.step(&packet.bytes()).same();
            assert_eq!((third.verdict, &third.bytes), (out, &Packet { kind, ..sent }.bytes()));
            let established = |half: &str, kind: &str| match packet.kind {
                Kind::Udp => String::new(),
                _ => format!("{client}:4242 {half}{id} = ESTABLISHED d{id} {kind}"),
            };
            let expected = [
                established("s", "paired"),
                established("r", "paired reply"),
                format!("d{id} packets in = 2"),
                format!("d{id} bytes in = {}", 2 * length),
            ];
            assert_changes(&third, expected, &[]);
        }
    });
}

/// Among the payloads are those for which the checksum, before and after, is 0 and its neighbours.
#[test]
fn translated_checksums_are_those_of_a_packet_made_so() {
    network::run("sums", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for (family, kind, ..) in openings() {
            world.reset(&plain(network, family, method::MASQUERADE));
            let frames = |value: u16| {
                let payload = value.to_be_bytes().to_vec();
                let packet = Packet { payload, ..request(network, family, kind) };
                let (from, to, ttl) = (network.outside.mac, server_mac(11), 63);
                let target = (server(family, 11), REAL_PORT).into();
                (packet.bytes(), Packet { from, to, ttl, target, ..packet }.bytes())
            };
            let checksum = |frame: &[u8]| {
                let at = transport(frame) + if kind == Kind::Udp { 6 } else { 16 };
                u16::from_be_bytes([frame[at], frame[at + 1]])
            };
            // Adding a word's checksum to the sum makes the checksum 0.
            let (before, after) = frames(0);
            let mut values: Vec<u16> = (0..=u16::MAX).step_by(1021).collect();
            for zero in [checksum(&before), checksum(&after)] {
                values.extend([zero.wrapping_sub(1), zero, zero.wrapping_add(1)]);
            }
            let mut seen = Vec::new();
            for value in values {
                let (before, after) = frames(value);
                let input = Input::new(&before, network.inside.index);
                let step = world.step_quietly(&input, false);
                assert_eq!(step.xdp.bytes, after, "payload {value:04x}");
                assert_eq!(step.tc.bytes, after, "payload {value:04x}");
                seen.extend([checksum(&before), checksum(&after)]);
            }
            let zero = if kind == Kind::Udp { 0xffff } else { 0 };
            assert!(seen.contains(&zero) && seen.contains(&1), "{seen:04x?}");
        }
    });
}

#[test]
fn no_udp_checksum_stays_none() {
    network::run("no-sum", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for method in [method::MASQUERADE, method::DIRECT] {
            world.reset(&plain(network, 4, method));
            let mut packet = request(network, 4, Kind::Udp);
            let mut frame = packet.bytes();
            set_udp_checksum(&mut frame, 0);
            let outcome = world.step(&frame).same();
            (packet.from, packet.to, packet.ttl) = (network.outside.mac, server_mac(11), 63);
            if method == method::MASQUERADE {
                packet.target = (server(4, 11), REAL_PORT).into();
            }
            let mut sent = packet.bytes();
            set_udp_checksum(&mut sent, 0);
            assert_eq!(outcome.bytes, sent);
        }
    });
}

/// The Ethernet padding of a short packet is not part of it.
#[test]
fn padding_is_neither_counted_nor_summed() {
    network::run("padding", |network| {
        let world = World::new(network, &plain(network, 4, method::MASQUERADE));
        let packet = Packet { payload: Vec::new(), ..request(network, 4, Kind::Udp) };
        let mut frame = packet.bytes();
        frame.resize(60, 0x5a);
        let outcome = world.step(&frame).same();
        let (from, to, ttl) = (network.outside.mac, server_mac(11), 63);
        let target = (server(4, 11), REAL_PORT).into();
        let mut sent = Packet { from, to, ttl, target, ..packet }.bytes();
        sent.resize(60, 0x5a);
        assert_eq!(outcome.bytes, sent);
        assert!(outcome.changes.contains(&"d2 bytes in = 28".to_owned()), "{:?}", outcome.changes);
    });
}

#[test]
fn one_client_address_keeps_connections_to_two_services_apart() {
    network::run("apart", |network| {
        let services = |family| {
            let of = |protocol, number| {
                service(family, protocol, vec![destination(family, number, method::MASQUERADE)])
            };
            let mut other = of(TCP, 12);
            other.port = 443;
            vec![of(TCP, 11), of(UDP, 11), other]
        };
        let mut world = World::new(network, &description(network, services(4)));
        for family in [4, 6] {
            world.reset(&description(network, services(family)));
            for (kind, port, number) in
                [(Kind::Tcp(SYN), PORT, 11), (Kind::Udp, PORT, 11), (Kind::Tcp(SYN), 443, 12)]
            {
                let mut packet = request(network, family, kind);
                packet.target.set_port(port);
                let outcome = world.step(&packet.bytes()).same();
                (packet.from, packet.to, packet.ttl) =
                    (network.outside.mac, server_mac(number), 63);
                packet.target = (server(family, number), REAL_PORT).into();
                assert_eq!(outcome.bytes, packet.bytes());
            }
            let client = client(family, 7);
            let entries = e2e::snapshot::connections(world.tables());
            let expected = [
                format!("{client}:4242 r1 SYN_RECV d1 paired reply"),
                format!("{client}:4242 r2 UDP d2 paired reply"),
                format!("{client}:4242 r3 SYN_RECV d3 paired reply"),
                format!("{client}:4242 s1 SYN_RECV d1 paired"),
                format!("{client}:4242 s2 UDP d2 paired"),
                format!("{client}:4242 s3 SYN_RECV d3 paired"),
            ];
            let entries: Vec<String> =
                entries.iter().map(|(name, value)| format!("{name} {value}")).collect();
            assert_eq!(entries, expected);
        }
    });
}

/// A frame that waits to be cut into segments is longer than the next hop takes, and goes all the
/// same.
#[test]
fn a_frame_to_be_segmented_is_not_too_big_for_tc() {
    network::run("segments", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            world.reset(&plain(network, family, method::MASQUERADE));
            let packet =
                Packet { payload: vec![7; 2000], ..request(network, family, Kind::Tcp(SYN)) };
            let frame = packet.bytes();
            let input = Input { segmented: true, ..Input::new(&frame, network.inside.index) };
            assert_eq!(
                world.step_tc(&input).verdict,
                Verdict::Transmit { interface: network.outside.index }
            );
        }
    });
}

/// The neighbour is not known: XDP leaves the packet to TC and has only opened the connection; TC
/// sends it to the neighbour that the kernel will resolve, and counts it.
#[test]
fn tc_sends_to_an_unresolved_neighbour() {
    network::run("unresolved", |network| {
        let scene = |family, method| {
            let of = |protocol| service(family, protocol, vec![destination(family, 99, method)]);
            description(network, vec![of(TCP), of(UDP)])
        };
        let mut world = World::new(network, &scene(4, method::DIRECT));
        for (family, kind, id, state, count) in openings() {
            world.reset(&scene(family, method::DIRECT));
            let packet = request(network, family, kind);
            let step = world.step(&packet.bytes());
            assert_eq!(step.xdp.verdict, Verdict::Pass(rlvs_datapath::reason::Reason::Unresolved));
            assert_eq!(step.xdp.bytes, packet.bytes());
            let opened = |last: [String; 2]| {
                let client = client(family, 7);
                let [one, other] = last;
                [
                    format!("{client}:4242 s{id} = {state} d{id}"),
                    format!("d{id} {count} = 1"),
                    format!("d{id} connections = 1"),
                    format!("s{id} position = 1"),
                    format!("s{id} local = yes"),
                    one,
                    other,
                ]
            };
            let expected = opened(["reason unresolved = 1".to_owned(), String::new()]);
            assert_changes(&step.xdp, expected, &occupied(&step.xdp, family, 1));
            assert!(matches!(step.tc.verdict, Verdict::Resolve { .. }), "{:?}", step.tc.verdict);
            assert_eq!(step.tc.bytes, Packet { ttl: 63, ..packet.clone() }.bytes());
            let length = packet.length();
            let expected =
                opened([format!("d{id} packets in = 1"), format!("d{id} bytes in = {length}")]);
            assert_changes(&step.tc, expected, &occupied(&step.tc, family, 1));
        }
    });
}

/// Where XDP sees a frame first, TC does not count again what XDP has passed.
#[test]
fn tc_behind_xdp_does_not_count_what_passes() {
    network::run("behind", |network| {
        let mut description = plain(network, 4, method::DIRECT);
        description.interfaces[0].flags = interface_flag::XDP;
        let world = World::new(network, &description);
        let packet =
            Packet { target: (vip(4, 100), 81).into(), ..request(network, 4, Kind::Tcp(SYN)) };
        let step = world.step(&packet.bytes());
        assert_eq!(step.xdp.changes, ["reason no_service = 1"]);
        assert_eq!(step.tc.changes, [""; 0]);
        assert_eq!((step.xdp.verdict, step.xdp.bytes), (step.tc.verdict, step.tc.bytes));
    });
}

/// Where the hardware has summed a packet, the kernel keeps that sum; a program that changes the
/// packet has to keep it right, or the receiver behind a veth pair complains. (ICMP errors are left
/// out: docs/differences.md.)
#[test]
fn the_hardwares_sum_stays_right_in_tc() {
    network::run("summed", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        let mut wrong = Vec::new();
        for method in [method::DIRECT, method::MASQUERADE] {
            for (family, kind, ..) in openings() {
                world.reset(&plain(network, family, method));
                match world.run_summed(&request(network, family, kind).bytes()) {
                    Ok(ran) => assert_eq!(ran.code, 7),
                    Err(error) => {
                        wrong.push(format!("method {method}, IPv{family}, {kind:?}: {error}"));
                    }
                }
            }
        }
        assert_eq!(wrong, [""; 0]);
    });
}
