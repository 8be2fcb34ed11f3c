//! The wide table's connections, and associations, by packets that are not TCP or UDP behind a plain header:
//! each goes where a plain one would go, changed as that would be.

use std::net::SocketAddr;

use e2e::bpf::Input;
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Packet, transport};
use e2e::scene::{
    POOL_FIRST, REAL_PORT, SCTP, TCP, UDP, description, destination, full, reply, request, service,
    translate_fully,
};
use e2e::table::{Description, SECOND};
use e2e::unusual::{atomic, extended, fragments, optioned};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{endpoint_kind, method, service_flag, settings_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_wire::ipsec::{AH, ESP, KEY_EXCHANGE};
use rlvs_wire::tcp::{ACK, FIN, SYN};

use crate::persistence::by_mark;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SHUTDOWN: u8 = 7;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// A port that no service names.
const SOME_PORT: u16 = 443;

const METHODS: [(u8, u8); 4] =
    [(4, method::DIRECT), (6, method::DIRECT), (4, method::MASQUERADE), (6, method::MASQUERADE)];

/// Persistent services 1, 2 and 3 of every port, of TCP, UDP and SCTP, each with two servers.
fn every_port(network: &Network, family: u8, method: u8) -> Description {
    let of = |protocol| {
        let mut service = service(
            family,
            protocol,
            [11, 12].map(|number| destination(family, number, method)).to_vec(),
        );
        service.port = 0;
        service.servers.iter_mut().for_each(|server| server.port = 0);
        service
    };
    let flags = settings_flag::WIDE;
    Description { flags, ..description(network, [TCP, UDP, SCTP].map(of).to_vec()) }
}

fn begin(world: &mut World<'_>, family: u8, method: u8) {
    world.reset(&every_port(world.network, family, method));
    world.edit(|tables| {
        for service in &mut tables.services[1..=3] {
            service.flags |= service_flag::SPECIAL;
            (service.persistence, service.mask) = (100 * SECOND, [0xff; 16]);
        }
    });
}

fn seen(world: &World<'_>, name: &str) -> String {
    world.snapshot().get(name).cloned().unwrap_or_default()
}

/// What a client says to a port of the service's address.
fn to_port(network: &Network, family: u8, kind: Kind, port: u16) -> Packet {
    let mut packet = request(network, family, kind);
    packet.target.set_port(port);
    packet
}

/// What server 11 says from a port.
fn from_port(network: &Network, family: u8, kind: Kind, port: u16) -> Packet {
    let mut packet = reply(network, family, kind);
    packet.source.set_port(port);
    packet
}

/// What leaves for server 11, from somebody to an end.
fn sent(network: &Network, packet: &Packet, source: SocketAddr, target: SocketAddr) -> Packet {
    let (from, to) = (network.outside.mac, server_mac(11));
    Packet { from, to, source, target, ttl: packet.ttl - 1, ..packet.clone() }
}

/// What leaves for the client, from an end to somebody.
fn told(network: &Network, packet: &Packet, source: SocketAddr, target: SocketAddr) -> Packet {
    let (from, to) = (network.inside.mac, GATEWAY_MAC);
    Packet { from, to, source, target, ttl: packet.ttl - 1, ..packet.clone() }
}

/// Returns what leaves for server 11 by a method, at a port.
fn by_method(network: &Network, packet: &Packet, method: u8, port: u16) -> Packet {
    let family = if packet.source.is_ipv4() { 4 } else { 6 };
    let target = match method {
        method::MASQUERADE => (server(family, 11), port).into(),
        _ => packet.target,
    };
    sent(network, packet, packet.source, target)
}

/// Returns a packet and what is expected of it, each as the same unusual ones.
fn disguises(packet: &Packet, expected: &Packet) -> Vec<(Vec<u8>, Vec<u8>)> {
    let of = |packet: &Packet| {
        let bytes = packet.bytes();
        if packet.source.is_ipv4() {
            vec![optioned(&bytes, &[148, 4, 0, 0]), optioned(&bytes, &[1; 40])]
        } else {
            vec![extended(&bytes, &[(0, &[1, 4, 0, 0, 0, 0]), (60, &[0; 6])]), atomic(&bytes, 77)]
        }
    };
    of(packet).into_iter().zip(of(expected)).collect()
}

/// Returns the fragments of a long packet, and of what is expected of it.
fn pieces(packet: &Packet, expected: &Packet) -> Vec<(Vec<u8>, Vec<u8>)> {
    let of = |packet: &Packet| {
        let long = Packet { payload: vec![0x42; 301], ..packet.clone() };
        fragments(&long.bytes(), 0x3456_789a, 128)
    };
    of(packet).into_iter().zip(of(expected)).collect()
}

/// Sends packets by an interface and asserts what comes out.
#[track_caller]
fn become_those(world: &World<'_>, interface: u32, packets: &[(Vec<u8>, Vec<u8>)]) {
    for (frame, expected) in packets {
        let outcome: Outcome = world.step_with(&Input::new(frame, interface)).same();
        assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
        assert_eq!(outcome.bytes, *expected, "{:?}", outcome.changes);
    }
}

#[track_caller]
fn passes(world: &World<'_>, frame: &[u8], interface: u32, reason: Reason) {
    let outcome: Outcome = world.step_with(&Input::new(frame, interface)).same();
    assert_eq!(outcome.verdict, Verdict::Pass(reason), "{frame:02x?}");
    assert_eq!(outcome.bytes, frame);
}

/// Both directions of an association, whose state is what its chunks make it, at a port that no service
/// names and that stays what it is.
#[test]
fn associations_of_every_port_live() {
    network::run("sctp-any", |network| {
        let mut world = World::new(network, &every_port(network, 4, method::DIRECT));
        for (family, method) in METHODS {
            begin(&mut world, family, method);
            let name = format!("{}:4242 to {}:443 132", client(family, 7), vip(family, 100));
            let life: &[(bool, u8, &str)] = match method {
                method::DIRECT => &[
                    (true, INIT, "INIT1"),
                    (true, COOKIE_ECHO, "ESTABLISHED"),
                    (true, SHUTDOWN, "S-RECEIVED"),
                ],
                _ => &[
                    (true, INIT, "INIT1"),
                    (false, INIT_ACK, "C-SENT"),
                    (true, COOKIE_ECHO, "C-REPLIED"),
                    (false, COOKIE_ACK, "ESTABLISHED"),
                    (true, SHUTDOWN, "S-RECEIVED"),
                ],
            };
            passes(
                &world,
                &to_port(network, family, Kind::Sctp(COOKIE_ECHO, None), SOME_PORT).bytes(),
                network.inside.index,
                Reason::NoService,
            );
            for &(is_request, chunk, state) in life {
                let kind = Kind::Sctp(chunk, None);
                let (packet, expected, interface) = if is_request {
                    let packet = to_port(network, family, kind, SOME_PORT);
                    let expected = by_method(network, &packet, method, SOME_PORT);
                    (packet, expected, network.inside.index)
                } else {
                    let packet = from_port(network, family, kind, SOME_PORT);
                    let end = (vip(family, 100), SOME_PORT).into();
                    let expected = told(network, &packet, end, packet.target);
                    (packet, expected, network.outside.index)
                };
                let outcome = world.step_with(&Input::new(&packet.bytes(), interface)).same();
                assert_eq!(outcome.bytes, expected.bytes(), "{chunk} {:?}", outcome.changes);
                assert_eq!(seen(&world, &name), format!("{state} d5"));
                let counted = if state == "ESTABLISHED" { ["1", ""] } else { ["", "1"] };
                let counts = ["d5 active", "d5 inactive"].map(|count| seen(&world, count));
                assert_eq!(counts.map(|count| count.replace('0', "")), counted, "{state}");
            }
            // The client's next association follows its template, to another port.
            let packet = to_port(network, family, Kind::Sctp(INIT, None), 9);
            let outcome = world.step(&packet.bytes()).same();
            assert_eq!(outcome.bytes, by_method(network, &packet, method, 9).bytes());
            assert_eq!(
                seen(&world, &format!("{} template s3", client(family, 7))),
                "NONE d5 holds 2"
            );
        }
    });
}

/// What opens, what follows and what answers, with options, extension headers and in fragments, of TCP,
/// UDP and SCTP.
#[test]
fn what_is_unusual_of_every_port_goes_as_the_plain() {
    network::run("odd-any", |network| {
        let mut world = World::new(network, &every_port(network, 4, method::DIRECT));
        let kinds = |is_first| match is_first {
            true => [Kind::Tcp(SYN), Kind::Udp, Kind::Sctp(INIT, None)],
            false => [Kind::Tcp(ACK), Kind::Udp, Kind::Sctp(COOKIE_ECHO, None)],
        };
        for (family, method) in METHODS {
            for in_pieces in [false, true] {
                begin(&mut world, family, method);
                let made = if in_pieces { pieces } else { disguises };
                let inside = network.inside.index;
                for is_first in [true, false] {
                    for kind in kinds(is_first) {
                        let packet = to_port(network, family, kind, SOME_PORT);
                        let expected = by_method(network, &packet, method, SOME_PORT);
                        become_those(&world, inside, &made(&packet, &expected));
                    }
                }
                let name = format!("{}:4242 to {}:443", client(family, 7), vip(family, 100));
                assert_eq!(seen(&world, &format!("{name} 6")), "ESTABLISHED d1");
                assert_eq!(seen(&world, &format!("{name} 17")), "UDP d3");
                let states = if method == method::DIRECT { "ESTABLISHED d5" } else { "INIT d5" };
                assert_eq!(seen(&world, &format!("{name} 132")), states);
                let parts = if in_pieces { 6 } else { 4 };
                assert_eq!(seen(&world, "d3 packets in"), parts.to_string());
                assert_eq!(seen(&world, "d3 connections"), "1");
                if method == method::DIRECT {
                    continue;
                }
                for kind in [Kind::Tcp(FIN | ACK), Kind::Udp, Kind::Sctp(INIT_ACK, None)] {
                    let packet = from_port(network, family, kind, SOME_PORT);
                    let end = (vip(family, 100), SOME_PORT).into();
                    let expected = told(network, &packet, end, packet.target);
                    become_those(&world, network.outside.index, &made(&packet, &expected));
                }
                assert_eq!(seen(&world, &format!("{name} 6")), "FIN_WAIT d1");
                assert_eq!(seen(&world, "d3 packets out"), (parts / 2).to_string());
            }
        }
    });
}

/// A mark's destinations may have ports of their own, which the CRC of SCTP follows; not that of a fragment.
#[test]
fn what_is_unusual_of_a_mark_goes_as_the_plain() {
    network::run("odd-mark", |network| {
        let mut world = World::new(network, &every_port(network, 4, method::DIRECT));
        for family in [4, 6] {
            by_mark(&mut world, family, false);
            world.edit(|tables| {
                tables.marks.rules[0].protocol = 0;
                tables.destinations[1].port = REAL_PORT.to_be_bytes();
                tables.destinations[2].weight = 0;
            });
            let (inside, outside) = (network.inside.index, network.outside.index);
            let init = to_port(network, family, Kind::Sctp(INIT, None), 80);
            for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Sctp(INIT, None)] {
                let packet = to_port(network, family, kind, 80);
                let expected = by_method(network, &packet, method::MASQUERADE, REAL_PORT);
                become_those(&world, inside, &[(packet.bytes(), expected.bytes())]);
                become_those(&world, inside, &disguises(&packet, &expected));
                let packet = from_port(network, family, kind, REAL_PORT);
                let expected = told(network, &packet, (vip(family, 100), 80).into(), packet.target);
                become_those(&world, outside, &[(packet.bytes(), expected.bytes())]);
                become_those(&world, outside, &disguises(&packet, &expected));
                if packet.protocol() != SCTP {
                    become_those(&world, outside, &pieces(&packet, &expected));
                    continue;
                }
                for (frame, _) in pieces(&packet, &packet) {
                    passes(&world, &frame, outside, Reason::Fragment);
                }
                for (frame, _) in pieces(&init, &init) {
                    passes(&world, &frame, inside, Reason::Fragment);
                }
            }
        }
    });
}

/// Associations of an ordinary service: options and extension headers change nothing, fragments follow where
/// no port changes.
#[test]
fn unusual_packets_of_associations_go_as_the_plain() {
    network::run("odd-sctp", |network| {
        let scene = |family, method, port| {
            let mut server = destination(family, 11, method);
            server.port = port;
            description(network, vec![service(family, SCTP, vec![server])])
        };
        let mut world = World::new(network, &scene(4, method::DIRECT, 80));
        let (inside, outside) = (network.inside.index, network.outside.index);
        for (family, method) in METHODS {
            for port in [80, REAL_PORT] {
                if method == method::DIRECT && port != 80 {
                    continue;
                }
                world.reset(&scene(family, method, port));
                let packet = request(network, family, Kind::Sctp(COOKIE_ECHO, None));
                for (frame, _) in disguises(&packet, &packet) {
                    passes(&world, &frame, inside, Reason::NoConnection);
                }
                let packet = request(network, family, Kind::Sctp(INIT, None));
                let expected = by_method(network, &packet, method, port);
                if port == 80 {
                    become_those(&world, inside, &pieces(&packet, &expected));
                    world.reset(&scene(family, method, port));
                }
                become_those(&world, inside, &disguises(&packet, &expected));
                let packet = request(network, family, Kind::Sctp(0, None));
                let expected = by_method(network, &packet, method, port);
                let parts = pieces(&packet, &expected);
                if port == 80 {
                    become_those(&world, inside, &parts);
                } else {
                    for (frame, _) in &parts {
                        passes(&world, frame, inside, Reason::Fragment);
                    }
                }
                if method == method::DIRECT {
                    continue;
                }
                let packet = from_port(network, family, Kind::Sctp(INIT_ACK, None), port);
                let expected = told(network, &packet, (vip(family, 100), 80).into(), packet.target);
                become_those(&world, outside, &disguises(&packet, &expected));
                if port == 80 {
                    become_those(&world, outside, &pieces(&packet, &expected));
                }
            }
        }
    });
}

/// What opens, follows and answers where both ends are replaced.
#[test]
fn what_is_unusual_of_full_nat_goes_as_the_plain() {
    network::run("odd-full", |network| {
        let scene = |family| {
            let of = |protocol| service(family, protocol, vec![full(family, 11)]);
            let flags = settings_flag::WIDE;
            Description { flags, ..description(network, [TCP, UDP].map(of).to_vec()) }
        };
        let mut world = World::new(network, &scene(4));
        for family in [4, 6] {
            for in_pieces in [false, true] {
                world.reset(&scene(family));
                world.edit(|tables| translate_fully(tables, 1));
                let made = if in_pieces { pieces } else { disguises };
                let (here, there) = (
                    (server(family, 1), POOL_FIRST).into(),
                    (server(family, 11), REAL_PORT).into(),
                );
                for kind in [Kind::Tcp(SYN), Kind::Tcp(ACK), Kind::Udp] {
                    let packet = request(network, family, kind);
                    let expected = sent(network, &packet, here, there);
                    become_those(&world, network.inside.index, &made(&packet, &expected));
                    let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(SYN | ACK) };
                    let back = Packet { target: here, ..reply(network, family, kind) };
                    let expected = told(network, &back, packet.target, packet.source);
                    become_those(&world, network.outside.index, &made(&back, &expected));
                }
                let name = format!("{}:4242 to {}:80 6", client(family, 7), vip(family, 100));
                assert_eq!(
                    seen(&world, &name),
                    format!("ESTABLISHED d1 for {}:{POOL_FIRST}", server(family, 1))
                );
                assert_eq!(seen(&world, "d1 connections"), "1");
                // Nothing begins in the middle.
                let ack = request(network, family, Kind::Tcp(ACK));
                let ack = Packet { source: (client(family, 8), 4242).into(), ..ack };
                for (frame, _) in disguises(&ack, &ack) {
                    passes(&world, &frame, network.inside.index, Reason::NoConnection);
                }
            }
        }
    });
}

/// A datagram that is scheduled alone goes to one server, in however many pieces, and the next to the next.
#[test]
fn the_fragments_of_a_single_datagram_stay_together() {
    network::run("odd-once", |network| {
        let scene = |family, method| {
            let servers = [11, 12].map(|number| destination(family, number, method)).to_vec();
            let flags = settings_flag::WIDE;
            Description { flags, ..description(network, vec![service(family, UDP, servers)]) }
        };
        let mut world = World::new(network, &scene(4, method::DIRECT));
        for (family, method) in METHODS {
            world.reset(&scene(family, method));
            world.edit(|tables| {
                tables.services[1].flags |= service_flag::SPECIAL | service_flag::ONE_PACKET;
                let address = network::server(family, 11);
                e2e::table::enter(tables, endpoint_kind::ONE_PACKET, address, REAL_PORT, UDP, 1);
            });
            let packet = Packet { payload: vec![1; 301], ..request(network, family, Kind::Udp) };
            let mut servers = Vec::new();
            for number in 1..5 {
                let of = |frame: &Vec<u8>| {
                    let outcome = world.step(frame).same();
                    assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
                    outcome.bytes[5]
                };
                let parts: Vec<u8> =
                    fragments(&packet.bytes(), number, 128).iter().map(of).collect();
                assert!(
                    parts.len() == 3 && parts.iter().all(|part| *part == parts[0]),
                    "{parts:?}"
                );
                servers.push(parts[0]);
            }
            assert_eq!(servers, [11, 12, 11, 12]);
            for (frame, _) in disguises(&packet, &packet) {
                servers.push(world.step(&frame).same().bytes[5]);
            }
            assert_eq!(servers[4..], [11, 12]);
            assert_eq!(seen(&world, "d1 connections"), "3");
            assert_eq!(seen(&world, "d1 packets in"), "7");
            assert!(e2e::snapshot::wide_entries(world.tables()).is_empty());
            if method == method::MASQUERADE {
                let back = reply(network, family, Kind::Udp);
                let expected = told(network, &back, packet.target, back.target);
                become_those(&world, network.outside.index, &disguises(&back, &expected));
                become_those(&world, network.outside.index, &pieces(&back, &expected));
            }
        }
    });
}

/// AH and ESP follow the key exchange in fragments too, and that of a service of every port.
#[test]
fn ipsec_in_fragments_follows_the_key_exchange() {
    network::run("odd-ipsec", |network| {
        let ordinary = |family, method| {
            let mut server = destination(family, 11, method);
            server.port = KEY_EXCHANGE;
            let mut service = service(family, UDP, vec![server]);
            service.port = KEY_EXCHANGE;
            description(network, vec![service])
        };
        let mut world = World::new(network, &ordinary(4, method::DIRECT));
        for (family, method) in METHODS {
            for is_wide in [false, true] {
                if is_wide {
                    begin(&mut world, family, method);
                } else {
                    world.reset(&ordinary(family, method));
                }
                let esp = |protocol| Packet {
                    payload: vec![0x5a; 301],
                    ..request(network, family, Kind::Other(protocol))
                };
                let unknown = fragments(&esp(ESP).bytes(), 5, 128);
                let outcome = world.step(&unknown[0]).same();
                assert!(matches!(outcome.verdict, Verdict::Pass(_)), "{outcome:?}");
                let mut exchange = to_port(network, family, Kind::Udp, KEY_EXCHANGE);
                exchange.source.set_port(KEY_EXCHANGE);
                let outcome = world.step(&exchange.bytes()).same();
                assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
                for protocol in [ESP, AH] {
                    let packet = esp(protocol);
                    let expected = by_method(network, &packet, method, 0);
                    let whole = (packet.bytes(), expected.bytes());
                    become_those(&world, network.inside.index, &[whole]);
                    become_those(&world, network.inside.index, &pieces(&packet, &expected));
                    if family == 4 {
                        become_those(&world, network.inside.index, &disguises(&packet, &expected));
                    }
                    assert_eq!(transport(&packet.bytes()), if family == 4 { 34 } else { 54 });
                }
            }
        }
    });
}

/// What the hardware has summed stays true, of which the kernel makes sure.
#[test]
fn the_hardwares_sum_stays_right_for_strange_packets() {
    network::run("odd-summed", |network| {
        let mut world = World::new(network, &every_port(network, 4, method::DIRECT));
        let fine = |world: &World<'_>, packets: &[(Vec<u8>, Vec<u8>)]| {
            for (frame, _) in packets {
                assert_eq!(world.run_summed(frame).map(|ran| ran.code).ok(), Some(7));
            }
        };
        for (family, method) in METHODS {
            begin(&mut world, family, method);
            for kind in [Kind::Tcp(SYN), Kind::Udp, Kind::Sctp(INIT, None)] {
                let packet = to_port(network, family, kind, SOME_PORT);
                fine(&world, &disguises(&packet, &packet));
                fine(&world, &pieces(&packet, &packet));
            }
        }
        for family in [4, 6] {
            by_mark(&mut world, family, false);
            world.edit(|tables| {
                tables.marks.rules[0].protocol = 0;
                tables.destinations[1].port = REAL_PORT.to_be_bytes();
                tables.destinations[2].weight = 0;
            });
            let packet = to_port(network, family, Kind::Sctp(INIT, None), 80);
            fine(&world, &disguises(&packet, &packet));
        }
    });
}
