//! Packets of real servers and clients on the director itself.

use e2e::bpf::Input;
use e2e::host::HostTables;
use e2e::network::{self, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene::{PORT, REAL_PORT, TCP, UDP, description, destination, plain, request, service};
use e2e::table::{Description, Server};
use e2e::unusual::{extended, fragments, optioned, resized};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{Interface, destination_flag, method, service_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::local::{ARRIVED, LOOPBACK};
use rlvs_datapath::reason::Reason;
use rlvs_wire::tcp::{ACK, FIN, SYN};

const CASES: [(u8, Kind, u32); 4] =
    [(4, Kind::Tcp(SYN), 1), (4, Kind::Udp, 2), (6, Kind::Tcp(SYN), 1), (6, Kind::Udp, 2)];

/// Services 1, TCP, and 2, UDP, whose destination is the director at its address 101.
fn on_director(network: &Network, family: u8, method: u8) -> Description {
    let of = |protocol| {
        let address = vip(family, 101);
        service(family, protocol, vec![Server { address, ..destination(family, 11, method) }])
    };
    description(network, vec![of(TCP), of(UDP)])
}

/// Asserts that the changes have these lines.
#[track_caller]
fn assert_has(outcome: &Outcome, lines: &[String]) {
    for line in lines {
        assert!(outcome.changes.contains(line), "no {line:?} in {:#?}", outcome.changes);
    }
}

fn traffic(id: u32, direction: &str, packets: usize, length: usize) -> [String; 2] {
    [
        format!("d{id} packets {direction} = {packets}"),
        format!("d{id} bytes {direction} = {}", packets * length),
    ]
}

#[test]
fn a_direct_destination_here_gets_packets_as_they_came_from_tc() {
    network::run("local-direct", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::DIRECT));
        for (family, kind, id) in CASES {
            world.reset(&on_director(network, family, method::DIRECT));
            let packet = request(network, family, kind);
            let bytes = packet.bytes();
            for packets in 1..3 {
                let step = world.step(&bytes);
                for outcome in [&step.xdp, &step.tc] {
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local));
                    assert_eq!(outcome.bytes, bytes);
                    assert_has(outcome, &[format!("reason local = {packets}")]);
                }
                // XDP leaves the counting to TC.
                assert!(!step.xdp.changes.iter().any(|line| line.contains("packets in")));
                assert_has(&step.tc, &traffic(id, "in", packets, packet.length()));
            }
            if kind != Kind::Udp {
                let fin = Packet { kind: Kind::Tcp(FIN | ACK), ..packet };
                let step = world.step(&fin.bytes());
                let closing = format!("{}:4242 s1 = TIME_WAIT d1", client(family, 7));
                assert_has(&step.tc, &[closing]);
                assert!(!step.xdp.changes.iter().any(|line| line.contains("s1 =")));
            }
        }
    });
}

#[test]
fn a_nat_destination_here_is_translated_to_and_fro_and_keeps_the_hop_limit() {
    network::run("local-nat", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::MASQUERADE));
        for (family, kind, id) in CASES {
            world.reset(&on_director(network, family, method::MASQUERADE));
            let packet = request(network, family, kind);
            let (client, own) = (client(family, 7), vip(family, 101));
            let step = world.step(&packet.bytes());
            assert_eq!(step.xdp.verdict, Verdict::Pass(Reason::Local));
            assert_eq!(step.xdp.bytes, packet.bytes());
            assert_eq!(step.tc.verdict, Verdict::Pass(Reason::Local));
            let sent = Packet { target: (own, REAL_PORT).into(), ..packet.clone() };
            assert_eq!(step.tc.bytes, sent.bytes());
            assert_has(&step.tc, &traffic(id, "in", 1, packet.length()));

            let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(SYN | ACK) };
            let said = Packet {
                from: network.inside.mac,
                to: network::GATEWAY_MAC,
                source: (own, REAL_PORT).into(),
                target: (client, 4242).into(),
                kind,
                ..packet.clone()
            };
            let outcome = world.step_out(&said.bytes());
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local));
            let answer = Packet { source: (vip(family, 100), PORT).into(), ..said.clone() };
            assert_eq!(outcome.bytes, answer.bytes());
            let [packets, bytes] = traffic(id, "out", 1, packet.length());
            let mut expected = vec![bytes, packets];
            expected.sort();
            assert_eq!(outcome.changes, expected);

            // To another client, or of another destination, it is none of ours.
            for other in [
                Packet { target: (network::client(family, 8), 4242).into(), ..said.clone() },
                Packet { source: (own, REAL_PORT + 1).into(), ..said.clone() },
                packet.clone(),
            ] {
                let outcome = world.step_out(&other.bytes());
                assert_eq!((outcome.bytes, outcome.changes), (other.bytes(), Vec::new()));
            }
            world.edit(|tables| {
                tables.destinations[id as usize].flags &= !destination_flag::AVAILABLE;
            });
            // What a removed server says is still translated, as the kernel does.
            let outcome = world.step_out(&said.bytes());
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local));
        }
    });
}

#[test]
fn a_client_here_sends_and_gets_by_the_loopback_device() {
    network::run("local-client", |network| {
        let tables = |family| {
            let mut tables = plain(network, family, method::MASQUERADE);
            tables.interfaces.push(Interface { index: LOOPBACK, flags: 0, mac: 0 });
            tables
        };
        let mut world = World::new(network, &tables(4));
        for (family, kind, id) in CASES {
            world.reset(&tables(family));
            let serve = |tables: &mut HostTables| {
                tables.services[id as usize].flags |= service_flag::LOCAL_CLIENTS;
            };
            let own = (vip(family, 102), 4242);
            let packet = Packet {
                from: [0; 6],
                to: [0; 6],
                source: own.into(),
                ..request(network, family, kind)
            };
            let input = |frame, interface| Input::new(frame, interface);
            let bytes = packet.bytes();
            let outcome = world.step_with(&input(&bytes, LOOPBACK)).same();
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local));
            assert_eq!(
                (outcome.bytes, outcome.changes),
                (bytes.clone(), vec!["reason local = 1".into()])
            );
            world.edit(serve);
            let outcome = world.step_with(&input(&bytes, LOOPBACK)).same();
            assert_eq!(outcome.verdict, Verdict::Transmit { interface: network.outside.index });
            let sent = Packet {
                from: network.outside.mac,
                to: server_mac(11),
                target: (server(family, 11), REAL_PORT).into(),
                ttl: 63,
                ..packet.clone()
            };
            assert_eq!(outcome.bytes, sent.bytes());

            let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(SYN | ACK) };
            let said = Packet {
                from: server_mac(11),
                to: network.outside.mac,
                source: (server(family, 11), REAL_PORT).into(),
                target: own.into(),
                kind,
                ..packet.clone()
            };
            let bytes = said.bytes();
            let step = world.step_with(&input(&bytes, network.outside.index));
            assert_eq!(step.xdp.verdict, Verdict::Pass(Reason::Local));
            assert_eq!(step.xdp.bytes, bytes);
            assert_eq!(step.tc.verdict, Verdict::Arrive);
            let got = Packet {
                from: ARRIVED,
                to: [0; 6],
                source: (vip(family, 100), PORT).into(),
                ..said.clone()
            };
            assert_eq!(step.tc.bytes, got.bytes());
            assert_has(&step.tc, &traffic(id, "out", 1, packet.length()));
        }
    });
}

/// Service 1 with destination 1, the director, and destination 2, server 12, which may be one too.
fn pair(network: &Network, family: u8) -> Description {
    let mut servers = [11, 12].map(|number| destination(family, number, method::DIRECT));
    servers[0].address = vip(family, 101);
    description(network, vec![service(family, TCP, servers.to_vec())])
}

/// The frame with options or extension headers, and the first fragment of a longer one.
fn disguises(frame: &[u8]) -> Vec<Vec<u8>> {
    let longer = [frame, &[7; 64]].concat();
    let (disguised, longer) = if frame[12..14] == [0x08, 0x00] {
        (optioned(frame, &[1, 1, 1, 0]), resized(&longer))
    } else {
        (extended(frame, &[(60, &[1, 4, 0, 0, 0, 0])]), resized(&longer))
    };
    vec![disguised, fragments(&longer, 77, 40).swap_remove(0)]
}

#[test]
fn what_the_other_director_sends_is_not_balanced_again() {
    network::run("peers", |network| {
        let mut world = World::new(network, &pair(network, 4));
        for family in [4, 6] {
            world.reset(&pair(network, family));
            world.edit(|tables| {
                tables.services[1].flags |= service_flag::PEERED;
                tables.services[1].head = 2;
                tables.destinations[2].next = 1;
                tables.destinations[2].flags |= destination_flag::PEER;
            });
            let syn = request(network, family, Kind::Tcp(SYN));
            let from_peer = Packet { from: server_mac(12), ..syn.clone() };
            for _ in 0..2 {
                let outcome = world.step(&from_peer.bytes()).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::FromPeer));
                assert_eq!(outcome.bytes, from_peer.bytes());
            }
            for disguised in disguises(&from_peer.bytes()) {
                let outcome = world.step(&disguised).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::FromPeer));
                assert_eq!(outcome.bytes, disguised);
            }
            // The first client gets the director, the second the other one.
            let outcome = world.step_tc(&Input::new(&syn.bytes(), network.inside.index));
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local));
            let _: Outcome = world.step_xdp(&Input::new(&syn.bytes(), network.inside.index));
            let second = Packet { source: (client(family, 8), 4242).into(), ..syn };
            let outcome = world.step(&second.bytes()).same();
            assert_eq!(outcome.verdict, Verdict::Transmit { interface: network.outside.index });
            // And what comes back from there stays here, whatever the table says.
            for kind in [Kind::Tcp(SYN), Kind::Tcp(ACK)] {
                let back = Packet { from: server_mac(12), kind, ..second.clone() };
                let outcome = world.step(&back.bytes()).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::FromPeer), "{kind:?}");
                assert_eq!(outcome.bytes, back.bytes());
            }
        }
    });
}
