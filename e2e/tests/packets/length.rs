//! Packets that are longer than their way takes.

use e2e::bpf::Input;
use e2e::network::{self, Network, vip};
use e2e::packet::{Kind, Message, Packet};
use e2e::scene::{plain, reply, request};
use e2e::unusual::{extended, fragments, optioned};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::refuse::ERRORS_A_UNIT;
use rlvs_datapath::stage::Stage;
use rlvs_wire::tcp::{ACK, SYN};

/// The error about a packet, in somebody's name.
fn too_big(packet: &Packet, source: std::net::IpAddr, mtu: u16) -> Vec<u8> {
    let four = source.is_ipv4();
    let header = if packet.kind == Kind::Udp { 8 } else { 20 } + if four { 20 } else { 40 };
    let [high, low] = mtu.to_be_bytes();
    let message = Message {
        from: packet.to,
        to: packet.from,
        source,
        target: packet.source.ip(),
        ttl: 64,
        kind: if four { [3, 4] } else { [2, 0] },
        rest: [0, 0, high, low],
        payload: packet.bytes()[14..][..header].to_vec(),
    };
    let mut bytes = message.bytes();
    if four {
        // Internetwork control, and fragments allowed: 0x00c0 - 0x4000 more in the header's sum.
        bytes[15] = 0xc0;
        bytes[20] = 0;
        let sum = u32::from(u16::from_be_bytes([bytes[24], bytes[25]])) + 0x4000 - 0x00c0;
        let sum = (sum & 0xffff) + (sum >> 16);
        bytes[24..26].copy_from_slice(&(sum as u16).to_be_bytes());
    }
    bytes
}

/// Clears the don't-fragment flag of an IPv4 packet.
fn may_be_cut(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.bytes();
    assert_eq!(frame[20], 0x40);
    frame[20] = 0;
    let sum = u32::from(u16::from_be_bytes([frame[24], frame[25]])) + 0x4000;
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(sum as u16).to_be_bytes());
    frame
}

fn long(packet: Packet, length: usize) -> Packet {
    let headers = packet.length() - packet.payload.len();
    Packet { payload: vec![7; length - headers], ..packet }
}

#[track_caller]
fn answered(outcome: &Outcome, interface: u32, expected: &[u8]) {
    assert_eq!(outcome.verdict, Verdict::Transmit { interface });
    assert_eq!(outcome.bytes, expected);
    assert!(is_counted(outcome), "{:?}", outcome.changes);
}

fn is_counted(outcome: &Outcome) -> bool {
    outcome.changes.contains(&format!("reason {} = 1", Reason::TooBig.name()))
}

/// Sets the MTU of every way that is known.
fn narrow(world: &mut World<'_>, mtu: u32) {
    world.edit(|tables| {
        let rows = tables.rows.iter().map(|row| &row.hop);
        for hop in rows.chain(tables.routes.iter().map(|route| &route.hop)) {
            hop.set(rlvs_datapath::abi::Hop { mtu, ..hop.get() });
        }
    });
}

#[test]
fn clients_are_told_how_long_a_request_may_be() {
    network::run("long-request", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let kinds = [Kind::Tcp(SYN), Kind::Udp];
        for (family, method) in [4, 6]
            .into_iter()
            .flat_map(|f| [method::DIRECT, method::MASQUERADE].map(|method| (f, method)))
        {
            for kind in kinds {
                // The one that opens the connection, and one that follows.
                let name = vip(family, 100);
                world.reset(&plain(network, family, method));
                let first = long(request(network, family, kind), 1501);
                let outcome = world.step(&first.bytes()).same();
                answered(&outcome, network.inside.index, &too_big(&first, name, 1500));

                world.reset(&plain(network, family, method));
                let fits = long(request(network, family, kind), 1500);
                let outcome = world.step(&fits.bytes()).same();
                let out = Verdict::Transmit { interface: network.outside.index };
                assert_eq!(outcome.verdict, out);
                let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(ACK) };
                narrow(&mut world, 1400);
                let packet = Packet { kind, ..long(request(network, family, kind), 1401) };
                let outcome = world.step(&packet.bytes()).same();
                answered(&outcome, network.inside.index, &too_big(&packet, name, 1400));
                let packet = long(packet, 1400);
                assert_eq!(world.step(&packet.bytes()).same().verdict, out);
            }
        }
    });
}

/// What is quoted of packets with unusual headers has their ports in it: the whole of the header of IPv4 with
/// its options, a fragment header and more of IPv6. XDP leaves it to TC.
#[test]
fn clients_are_told_of_packets_with_unusual_headers() {
    network::run("long-unusual", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        for (family, method, kind) in [4, 6].into_iter().flat_map(|family| {
            [(family, method::DIRECT, Kind::Tcp(SYN)), (family, method::MASQUERADE, Kind::Udp)]
        }) {
            let packet = long(request(network, family, kind), 1496);
            let unusual = match family {
                4 => optioned(&packet.bytes(), &[148, 4, 0, 0].repeat(10)),
                _ => extended(&packet.bytes(), &[(60, &[1, 4, 0, 0, 0, 0])]),
            };
            // The one that opens the connection, and one that follows.
            world.reset(&plain(network, family, method));
            told(&world, &unusual, 1500);
            let _ = world.step(&request(network, family, kind).bytes()).same();
            narrow(&mut world, 1400);
            told(&world, &unusual, 1400);
            if family == 6 {
                // Only the first of a datagram's fragments.
                let pieces = fragments(&packet.bytes(), 0x77, 1448);
                told(&world, &pieces[0], 1400);
            }
        }
    });
}

/// Checks that the sender of a frame is told an MTU by TC, and that what is quoted begins the frame.
fn told(world: &World<'_>, frame: &[u8], mtu: u32) {
    let bodies = world.step(frame);
    assert!(matches!(bodies.xdp.verdict, Verdict::Next(Stage::Cut4 | Stage::Cut6)), "{bodies:?}");
    let outcome = bodies.tc;
    assert_eq!(outcome.verdict, Verdict::Transmit { interface: world.network.inside.index });
    let (at, header, kind) =
        if frame[12..14] == [8, 0] { (34, 20, [3, 4]) } else { (54, 40, [2, 0]) };
    assert_eq!(outcome.bytes[at..][..2], kind);
    assert_eq!(outcome.bytes[at + 4..][..4], mtu.to_be_bytes());
    let quoted = &outcome.bytes[at + 8..];
    assert!(quoted.len() >= header + 28, "{} bytes are quoted", quoted.len());
    assert_eq!(quoted, &frame[14..][..quoted.len()]);
    let words = |bytes: &[u8]| -> u64 {
        bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum()
    };
    // The pseudo header of ICMPv6: addresses, length, protocol.
    let message = &outcome.bytes[at..];
    let pseudo = words(&outcome.bytes[22..54]) + message.len() as u64 + 58;
    let pseudo = if header == 40 { pseudo } else { 0 };
    assert_eq!(rlvs_wire::checksum::fold(words(message) + pseudo), 0xffff);
    let is_counted = outcome.changes.iter().any(|line| line.starts_with("reason too_big"));
    assert!(is_counted, "{:?}", outcome.changes);
}

#[test]
fn the_stack_tells_servers_how_long_a_reply_may_be() {
    network::run("long-reply", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for (family, kind) in [4, 6].into_iter().flat_map(|f| [(f, Kind::Tcp(SYN)), (f, Kind::Udp)])
        {
            world.reset(&plain(network, family, method::MASQUERADE));
            let _: Outcome = world.step(&request(network, family, kind).bytes()).same();
            let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(SYN | ACK) };
            let long = long(reply(network, family, kind), 1501);
            let bytes = long.bytes();
            let outcome = world.step_with(&Input::new(&bytes, network.outside.index)).same();
            let passed = (Verdict::Pass(Reason::TooBig), bytes);
            assert_eq!((outcome.verdict, outcome.bytes.clone()), passed);
            assert!(is_counted(&outcome), "{:?}", outcome.changes);
            if family == 4 {
                let bytes = may_be_cut(&long);
                let input = Input::new(&bytes, network.outside.index);
                assert_eq!(world.step_with(&input).same().verdict, Verdict::Drop(Reason::TooBig));
            }
        }
    });
}

/// No IPv6 link takes less than 1280 bytes, whatever the routing table says.
#[test]
fn nobody_is_told_less_than_an_ipv6_link_takes() {
    network::run("narrow-v6", |network| {
        let mut world = World::new(network, &plain(network, 6, method::DIRECT));
        let packet = long(request(network, 6, Kind::Udp), 1300);
        let _: Outcome = world.step(&packet.bytes()).same();
        narrow(&mut world, 1000);
        let outcome = world.step(&packet.bytes()).same();
        answered(&outcome, network.inside.index, &too_big(&packet, vip(6, 100), 1280));
    });
}

/// A router would cut it, we do not; its sender has not asked to be told.
#[test]
fn a_long_packet_that_may_be_cut_is_dropped() {
    network::run("may-be-cut", |network| {
        let world = World::new(network, &plain(network, 4, method::DIRECT));
        let frame = may_be_cut(&long(request(network, 4, Kind::Udp), 1501));
        let bodies = world.step(&frame);
        assert_eq!(bodies.tc.verdict, Verdict::Drop(Reason::TooBig));
        assert!(is_counted(&bodies.tc), "{:?}", bodies.tc.changes);
        // TC, which begins anew, does it for both, and counts it once.
        assert_eq!(bodies.xdp.verdict, Verdict::Next(Stage::Cut4));
        assert_eq!(bodies.xdp.bytes, frame);
        assert!(!is_counted(&bodies.xdp), "{:?}", bodies.xdp.changes);
    });
}

/// What the kernel will cut into segments of 1000 bytes is as long as one of them, with its headers.
#[test]
fn a_frame_to_be_segmented_is_as_long_as_a_segment() {
    network::run("segment", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for (family, headers) in [(4, 40), (6, 60)] {
            world.reset(&plain(network, family, method::MASQUERADE));
            let packet = request(network, family, Kind::Tcp(SYN));
            let _: Outcome = world.step(&packet.bytes()).same();
            let packet = long(Packet { kind: Kind::Tcp(ACK), ..packet }, 3000);
            let frame = packet.bytes();
            let input = Input { segmented: true, ..Input::new(&frame, network.inside.index) };
            narrow(&mut world, 1000 + headers);
            let outcome = world.step_tc(&input);
            let out = Verdict::Transmit { interface: network.outside.index };
            assert_eq!(outcome.verdict, out);
            narrow(&mut world, 1000 + headers - 1);
            let outcome = world.step_tc(&input);
            assert_eq!(outcome.verdict, Verdict::Transmit { interface: network.inside.index });
        }
    });
}

fn expired(network: &Network) -> Vec<u8> {
    Packet { ttl: 1, ..request(network, 4, Kind::Tcp(SYN)) }.bytes()
}

/// Every error counts, and time lets it send again.
#[test]
fn a_cpu_sends_so_many_errors_at_a_time() {
    network::run("limit", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let frame = expired(network);
        let input = Input::new(&frame, network.inside.index);
        for _ in 0..2 {
            for _ in 0..ERRORS_A_UNIT {
                let verdict = world.step_quietly(&input, false).same().verdict;
                assert_eq!(verdict, Verdict::Transmit { interface: network.inside.index });
            }
            for _ in 0..3 {
                let verdict = world.step_quietly(&input, false).same().verdict;
                assert_eq!(verdict, Verdict::Drop(Reason::IcmpLimited));
            }
            world.advance(1);
        }
        let counted = world.snapshot();
        assert_eq!(counted["reason icmp_limited"], "6");
        assert_eq!(counted["reason ttl_expired"], (2 * ERRORS_A_UNIT).to_string());
    });
}
