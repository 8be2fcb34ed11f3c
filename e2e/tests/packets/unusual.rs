//! Fragments, IPv4 options, IPv6 extension headers, tags.

use e2e::bpf::Input;
use e2e::network::{self, Network, client, server_mac};
use e2e::packet::{Kind, Packet, transport};
use e2e::scene::{PORT, REAL_PORT, plain, reply, request};
use e2e::unusual::{Fragment, atomic, extended, fragments, optioned, tagged};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_wire::tcp::{ACK, SYN};

/// Record route with room for two, a no-operation, the end.
const RECORD_ROUTE: &[u8] = &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1];

type Disguise = fn(&[u8]) -> Vec<u8>;

/// Returns ways to make a packet unusual that change nothing about where it goes.
fn disguises(family: u8) -> Vec<Disguise> {
    if family == 4 {
        vec![
            |frame| optioned(frame, &[1, 1, 1, 0]),
            |frame| optioned(frame, RECORD_ROUTE),
            |frame| optioned(frame, &[148, 4, 0, 0]),
            |frame| optioned(frame, &[1; 40]),
        ]
    } else {
        vec![
            |frame| extended(frame, &[(0, &[1, 4, 0, 0, 0, 0])]),
            |frame| extended(frame, &[(60, &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]),
            |frame| extended(frame, &[(43, &[4, 0, 0, 0, 0, 0])]),
            |frame| extended(frame, &[(0, &[0; 6]), (60, &[0; 6]), (43, &[0; 6]), (60, &[0; 6])]),
            |frame| atomic(frame, 77),
        ]
    }
}

/// What leaves for a request of client 7.
fn sent(network: &Network, packet: &Packet, method: u8) -> Packet {
    let mut sent =
        Packet { from: network.outside.mac, to: server_mac(11), ttl: 63, ..packet.clone() };
    if method == method::MASQUERADE {
        sent.target =
            (network::server(if packet.source.is_ipv4() { 4 } else { 6 }, 11), REAL_PORT).into();
    }
    sent
}

/// What leaves for a reply of server 11.
fn given_back(network: &Network, family: u8, packet: &Packet) -> Packet {
    let source = (network::vip(family, 100), PORT).into();
    let (from, to) = (network.inside.mac, network::GATEWAY_MAC);
    Packet { from, to, source, ttl: 63, ..packet.clone() }
}

#[test]
fn options_and_extension_headers_change_nothing_about_balancing() {
    network::run("disguised", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let out = Verdict::Transmit { interface: network.outside.index };
        let back = Verdict::Transmit { interface: network.inside.index };
        for family in [4, 6] {
            for disguise in disguises(family) {
                for method in [method::DIRECT, method::MASQUERADE] {
                    world.reset(&plain(network, family, method));
                    for kind in [Kind::Tcp(SYN), Kind::Tcp(ACK), Kind::Udp, Kind::Udp] {
                        let packet = request(network, family, kind);
                        let outcome = world.step(&disguise(&packet.bytes())).same();
                        let expected = disguise(&sent(network, &packet, method).bytes());
                        assert_eq!((outcome.verdict, outcome.bytes), (out, expected), "{kind:?}");
                    }
                    let client = client(family, 7);
                    let entries = e2e::snapshot::connections(world.tables());
                    let paired = if method == method::DIRECT { "" } else { " paired" };
                    let established = format!("ESTABLISHED d1{paired}");
                    assert_eq!(entries[&format!("{client}:4242 s1")], established);
                    if method == method::DIRECT {
                        continue;
                    }
                    for kind in [Kind::Tcp(SYN | ACK), Kind::Udp] {
                        let packet = reply(network, family, kind);
                        let frame = disguise(&packet.bytes());
                        let input = Input::new(&frame, network.outside.index);
                        let outcome = world.step_with(&input).same();
                        let expected = disguise(&given_back(network, family, &packet).bytes());
                        assert_eq!((outcome.verdict, outcome.bytes), (back, expected), "{kind:?}");
                    }
                }
            }
        }
    });
}

#[track_caller]
fn passes(world: &World<'_>, frame: &[u8], reason: Reason) {
    let outcome: Outcome = world.step(frame).same();
    assert_eq!(outcome.verdict, Verdict::Pass(reason), "{frame:02x?}");
    assert_eq!(outcome.bytes, frame);
    assert_eq!(outcome.changes.len(), 1, "{outcome:?}");
}

#[test]
fn what_leads_elsewhere_or_lies_is_left_to_the_stack() {
    network::run("elsewhere", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        let frame = request(network, 4, Kind::Tcp(SYN)).bytes();
        for route in [131, 137] {
            passes(&world, &optioned(&frame, &[1, route, 7, 4, 1, 2, 3, 4]), Reason::Options);
            world.reset(&plain(network, 4, method::MASQUERADE));
        }
        // Options that end behind the header, or before they begin.
        for options in [[7, 5, 4, 0], [1, 1, 1, 7], [7, 1, 0, 0], [7, 0, 0, 0]] {
            passes(&world, &optioned(&frame, &options), Reason::Malformed);
            world.reset(&plain(network, 4, method::MASQUERADE));
        }
        let mut wrong = optioned(&frame, RECORD_ROUTE);
        wrong[44] ^= 1;
        passes(&world, &wrong, Reason::Malformed);

        let frame = request(network, 6, Kind::Tcp(SYN)).bytes();
        let headers: [&[(u8, &[u8])]; 4] = [
            &[(43, &[0, 1, 0, 0, 0, 0])],
            &[(60, &[0; 6]), (0, &[0; 6])],
            &[(60, &[0; 6]), (60, &[0; 6]), (60, &[0; 6]), (60, &[0; 6]), (60, &[0; 6])],
            &[(60, &[0; 510])],
        ];
        for headers in headers {
            world.reset(&plain(network, 6, method::MASQUERADE));
            passes(&world, &extended(&frame, headers), Reason::Options);
        }
        for tag in [0x8100, 0x88a8] {
            world.reset(&plain(network, 6, method::DIRECT));
            passes(&world, &tagged(&frame, tag), Reason::OtherProtocol);
        }
    });
}

/// Every fragment of a datagram goes where the first goes, and is the fragment of the datagram that
/// would have left in one piece.
#[test]
fn fragments_follow_the_first() {
    network::run("fragments", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let out = Verdict::Transmit { interface: network.outside.index };
        let back = Verdict::Transmit { interface: network.inside.index };
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            world.reset(&plain(network, family, method));
            for kind in [Kind::Udp, Kind::Tcp(SYN), Kind::Tcp(ACK)] {
                let packet = Packet { payload: vec![7; 3001], ..request(network, family, kind) };
                let whole = sent(network, &packet, method);
                let pieces = fragments(&packet.bytes(), 0x1234_5678, 1000);
                let expected = fragments(&whole.bytes(), 0x1234_5678, 1000);
                for (piece, expected) in pieces.iter().zip(&expected) {
                    let outcome = world.step(piece).same();
                    assert_eq!((outcome.verdict, &outcome.bytes), (out, expected), "{kind:?}");
                }
                assert!(pieces.len() > 3);
            }
            let snapshot = world.snapshot();
            assert_eq!(snapshot["d2 packets in"], "4");
            if method == method::DIRECT {
                continue;
            }
            let packet = Packet { payload: vec![9; 3001], ..reply(network, family, Kind::Udp) };
            let expected = fragments(&given_back(network, family, &packet).bytes(), 9, 1400);
            for (piece, expected) in fragments(&packet.bytes(), 9, 1400).iter().zip(&expected) {
                let outcome = world.step_with(&Input::new(piece, network.outside.index)).same();
                assert_eq!((outcome.verdict, &outcome.bytes), (back, expected));
            }
        }
    });
}

#[test]
fn a_fragment_whose_first_is_not_known_is_left_to_the_stack() {
    network::run("unknown", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            world.reset(&plain(network, family, method::MASQUERADE));
            let packet = Packet { payload: vec![7; 3001], ..request(network, family, Kind::Udp) };
            let pieces = fragments(&packet.bytes(), 5, 1000);
            passes(&world, &pieces[1], Reason::Fragment);
            let _: Outcome = world.step(&pieces[0]).same();
            assert!(matches!(world.step(&pieces[1]).same().verdict, Verdict::Transmit { .. }));
            // Another datagram, another sender, another protocol.
            let other = fragments(&packet.bytes(), 6, 1000);
            let verdict = world.step(&other[1]).same().verdict;
            assert_eq!(verdict, Verdict::Pass(Reason::Fragment));
            let stranger = Packet { source: (client(family, 8), 4242).into(), ..packet.clone() };
            let verdict = world.step(&fragments(&stranger.bytes(), 5, 1000)[1]).same().verdict;
            assert_eq!(verdict, Verdict::Pass(Reason::Fragment));
            // The time for which it is waited for.
            world.advance(4 * e2e::table::SECOND);
            assert!(matches!(world.step(&pieces[2]).same().verdict, Verdict::Transmit { .. }));
            world.advance(1);
            let verdict = world.step(&pieces[3]).same().verdict;
            assert_eq!(verdict, Verdict::Pass(Reason::Fragment));
        }
    });
}

/// Too short for ports and flags, or aimed at flags that have been looked at (RFC 3128).
#[test]
fn tiny_and_overlapping_fragments_touch_no_table() {
    network::run("tiny", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            for kind in [Kind::Tcp(SYN), Kind::Udp] {
                let frame = request(network, family, kind).bytes();
                let at = transport(&frame);
                let piece = |offset, length, more| {
                    Fragment { identification: 3, offset, more }.of(&frame, at, length)
                };
                let enough = if kind == Kind::Udp { 8 } else { 20 };
                for length in [0, 7, enough - 1] {
                    world.reset(&plain(network, family, method::MASQUERADE));
                    passes(&world, &piece(0, length, true), Reason::Fragment);
                }
                world.reset(&plain(network, family, method::MASQUERADE));
                let first = world.step(&piece(0, enough, true)).same();
                assert!(matches!(first.verdict, Verdict::Transmit { .. }), "{first:?}");
                let second = world.step(&piece(1, 8, false)).same();
                match kind {
                    Kind::Tcp(_) => assert_eq!(second.verdict, Verdict::Pass(Reason::Fragment)),
                    _ => assert!(matches!(second.verdict, Verdict::Transmit { .. })),
                }
            }
        }
    });
}

/// The table of fragments is full of others: the oldest of a bucket gives way, no connection does.
#[test]
fn a_flood_of_first_fragments_leaves_connections_alone() {
    network::run("flood", |network| {
        let world = World::new(network, &plain(network, 4, method::DIRECT));
        let packet = Packet { payload: vec![7; 100], ..request(network, 4, Kind::Udp) };
        let _: Outcome = world.step(&packet.bytes()).same();
        let before = e2e::snapshot::connections(world.tables());
        for identification in 0..12_000 {
            let pieces = fragments(&packet.bytes(), identification, 64);
            let input = Input::new(&pieces[0], network.inside.index);
            let step = world.step_quietly(&input, false);
            assert!(matches!(step.xdp.verdict, Verdict::Transmit { .. }));
            if identification % 1000 == 0 {
                let outcome = world.step(&pieces[1]).same();
                assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{identification}");
            }
        }
        assert_eq!(e2e::snapshot::connections(world.tables()), before);
    });
}

/// What the hardware has summed stays true, of which the kernel makes sure.
#[test]
fn the_hardwares_sum_stays_right_for_unusual_packets() {
    network::run("unusual-sum", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            world.reset(&plain(network, family, method));
            let packet = Packet { payload: vec![7; 3001], ..request(network, family, Kind::Udp) };
            for piece in fragments(&packet.bytes(), 5, 1000) {
                world.run_summed(&piece).unwrap();
            }
            let packet = Packet { payload: vec![7; 1001], ..packet };
            for disguise in disguises(family) {
                world.run_summed(&disguise(&packet.bytes())).unwrap();
            }
        }
    });
}
