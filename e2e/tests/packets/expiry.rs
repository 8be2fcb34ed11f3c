//! Connections end by time, whatever the sweep does.

use e2e::bpf::Input;
use e2e::network::{self, client};
use e2e::packet::Kind;
use e2e::scene::{TCP, UDP, description, destination, plain, reply, request, service};
use e2e::table::SECOND;
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::tables::TIME_MASK;
use rlvs_wire::tcp::{ACK, SYN};

fn without_occupied(outcome: &Outcome) -> Vec<&str> {
    let lines = outcome.changes.iter().map(String::as_str);
    lines.filter(|line| !line.starts_with("occupied")).collect()
}

/// Two destinations, so that a new connection shows by going to the other one.
#[test]
fn an_expired_connection_is_as_good_as_none() {
    network::run("expired", |network| {
        let scene = |family, method, clock| {
            let servers = || [11, 12].map(|number| destination(family, number, method)).to_vec();
            let services = vec![service(family, TCP, servers()), service(family, UDP, servers())];
            let mut description = description(network, services);
            description.clock = clock;
            description
        };
        let mut world = World::new(network, &scene(4, method::DIRECT, 0));
        for method in [method::DIRECT, method::MASQUERADE] {
            // The second clock wraps on the way.
            for (family, now) in [(4, 5000), (6, TIME_MASK - 20), (4, TIME_MASK - 20), (6, 0)] {
                world.reset(&scene(family, method, 0));
                world.set_clock(now);
                let packet = request(network, family, Kind::Udp).bytes();
                let first = world.step(&packet).same();
                assert_eq!(first.bytes[5], 11);
                // The last unit of its life.
                world.advance(300 * SECOND);
                let again = world.step(&packet).same();
                assert_eq!(again.bytes[5], 11);
                assert!(!again.changes.iter().any(|line| line.starts_with("d3 connections")));
                world.advance(300 * SECOND + 1);
                let after = world.step(&packet).same();
                assert_eq!(after.bytes[5], 12, "{after:?}");
                let client = client(family, 7);
                let length = packet.len() - 14;
                let nat = method == method::MASQUERADE;
                let paired = if nat { " paired" } else { "" };
                let mut expected = vec![
                    format!("{client}:4242 s2 = UDP d4{paired}"),
                    "d3 inactive gone".to_owned(),
                    "d4 inactive = 1".to_owned(),
                    "d4 connections = 1".to_owned(),
                    "d4 packets in = 1".to_owned(),
                    format!("d4 bytes in = {length}"),
                    "d4 way = .. 0c".to_owned(),
                    "s2 position = 2".to_owned(),
                    "s2 local = yes".to_owned(),
                ];
                if nat {
                    expected.push(format!("{client}:4242 r2 = UDP d4 paired reply"));
                    expected.push(format!("{client}:4242 r1 gone").replace("r1", "r3"));
                }
                expected.sort();
                let mut seen: Vec<String> =
                    without_occupied(&after).into_iter().map(str::to_owned).collect();
                seen.retain(|line| !line.contains(" r"));
                expected.retain(|line| !line.contains(" r"));
                assert_eq!(seen, expected);
                let entries = e2e::snapshot::connections(world.tables());
                assert_eq!(entries.len(), if nat { 2 } else { 1 }, "{entries:?}");
            }
        }
    });
}

#[test]
fn a_segment_of_an_expired_connection_is_not_ours() {
    network::run("segment", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for method in [method::DIRECT, method::MASQUERADE] {
            world.reset(&plain(network, 4, method));
            let _: Outcome = world.step(&request(network, 4, Kind::Tcp(SYN)).bytes()).same();
            world.advance(60 * SECOND + 1);
            let frame = request(network, 4, Kind::Tcp(ACK)).bytes();
            let outcome = world.step(&frame).same();
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
            assert_eq!(outcome.bytes, frame);
            let client = client(4, 7);
            let mut expected = vec![
                format!("{client}:4242 s1 gone"),
                "d1 active gone".to_owned(),
                "reason no_connection = 1".to_owned(),
            ];
            if method == method::MASQUERADE {
                expected.insert(0, format!("{client}:4242 r1 gone"));
            }
            assert_eq!(outcome.changes, expected);
        }
    });
}

/// Either half alone keeps the connection: a client that only listens, and one that only sends.
#[test]
fn a_pair_lives_as_long_as_its_younger_half() {
    network::run("younger", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            let from_client = request(network, family, Kind::Udp).bytes();
            let from_server = reply(network, family, Kind::Udp).bytes();
            let frames = [
                Input::new(&from_client, network.inside.index),
                Input::new(&from_server, network.outside.index),
            ];
            for [busy, idle] in [frames, [frames[1], frames[0]]] {
                world.reset(&plain(network, family, method::MASQUERADE));
                let _: Outcome = world.step_with(&frames[0]).same();
                for _ in 0..5 {
                    world.advance(200 * SECOND);
                    let outcome = world.step_with(&busy).same();
                    assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
                }
                let outcome = world.step_with(&idle).same();
                assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
                let entries = e2e::snapshot::connections(world.tables());
                let client = client(family, 7);
                let expected = [
                    (format!("{client}:4242 r2"), "UDP d2 paired reply".to_owned()),
                    (format!("{client}:4242 s2"), "UDP d2 paired".to_owned()),
                ];
                assert_eq!(entries.into_iter().collect::<Vec<_>>(), expected);
                assert_eq!(world.snapshot().get("d2 inactive"), Some(&"1".to_owned()));
                assert_eq!(world.snapshot().get("d2 connections"), Some(&"1".to_owned()));
                world.advance(300 * SECOND + 1);
                // The server speaks first after all is over: both halves go.
                let outcome = world.step_with(&frames[1]).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
                assert_eq!(
                    outcome.changes,
                    [
                        format!("{client}:4242 r2 gone"),
                        format!("{client}:4242 s2 gone"),
                        "d2 inactive gone".to_owned(),
                        "reason no_connection = 1".to_owned(),
                    ]
                );
            }
        }
    });
}

/// A way is asked for again after a second, and only then.
#[test]
fn ways_are_fresh_for_a_second() {
    network::run("fresh", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let packet = request(network, 4, Kind::Udp).bytes();
        let _: Outcome = world.step(&packet).same();
        world.advance(SECOND - 1);
        let kept = world.step(&packet).same();
        assert!(!kept.changes.iter().any(|line| line.starts_with("d2 way")), "{kept:?}");
        world.advance(1);
        let asked = world.step(&packet).same();
        assert!(asked.changes.contains(&"d2 way = .. 0b".to_owned()), "{asked:?}");
    });
}
