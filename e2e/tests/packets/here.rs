//! Packets with unusual headers, of SCTP and of services without a port or an address of their own, and ICMP
//! errors, to and from a real server or a client that is the director itself.

use std::net::SocketAddr;

use e2e::bpf::Input;
use e2e::host::HostTables;
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet};
use e2e::scene::{
    PORT, REAL_PORT, SCTP, TCP, UDP, description, destination, reply, request, service,
};
use e2e::table::{Description, SECOND};
use e2e::unusual::{atomic, extended, fragments, optioned};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{
    Interface, destination_flag, endpoint_kind, method, service_flag, settings_flag,
};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::local::{ARRIVED, LOOPBACK};
use rlvs_datapath::reason::Reason;
use rlvs_wire::ipsec::{AH, ESP, KEY_EXCHANGE};
use rlvs_wire::tcp::{ACK, SYN};

use crate::combined::{errors, on_director, quote, said};
use crate::persistence::by_mark;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// A port that no service names.
const SOME_PORT: u16 = 443;

/// What opens, is answered, and goes on.
const KINDS: [[Kind; 3]; 3] = [
    [Kind::Tcp(SYN), Kind::Tcp(SYN | ACK), Kind::Tcp(ACK)],
    [Kind::Udp, Kind::Udp, Kind::Udp],
    [Kind::Sctp(INIT, None), Kind::Sctp(INIT_ACK, None), Kind::Sctp(COOKIE_ECHO, None)],
];

fn each() -> impl Iterator<Item = (u8, [Kind; 3])> {
    [4, 6].into_iter().flat_map(|family| KINDS.map(|kinds| (family, kinds)))
}

/// A packet and what is expected of it, each as it is and as the same unusual ones: options or extension
/// headers, and pieces, but for SCTP, in whose pieces NAT changes no port.
fn guises(packet: &Packet, expected: &Packet) -> Vec<(Vec<u8>, Vec<u8>)> {
    let of = |packet: &Packet| {
        let bytes = packet.bytes();
        let long = Packet { payload: vec![0x42; 301], ..packet.clone() };
        let mut all = match packet.source.is_ipv4() {
            true => vec![optioned(&bytes, &[148, 4, 0, 0]), optioned(&bytes, &[1; 40])],
            false => {
                let headers: [(u8, &[u8]); 2] = [(0, &[1, 4, 0, 0, 0, 0]), (60, &[0; 6])];
                vec![extended(&bytes, &headers), atomic(&bytes, 77)]
            }
        };
        all.push(bytes);
        if !matches!(packet.kind, Kind::Sctp(..)) {
            all.extend(fragments(&long.bytes(), 0x3456_789a, 128));
        }
        all
    };
    of(packet).into_iter().zip(of(expected)).collect()
}

/// Has the director get packets: XDP leaves them as they are to TC, which has the stack get what is expected.
#[track_caller]
fn get(world: &World<'_>, interface: u32, packets: &[(Vec<u8>, Vec<u8>)]) {
    for (frame, expected) in packets {
        let step = world.step_with(&Input::new(frame, interface));
        assert_eq!(step.xdp.verdict, Verdict::Pass(Reason::Local), "{frame:02x?}");
        assert_eq!(step.xdp.bytes, *frame);
        let silent = |line: &String| !line.starts_with('d') || !line.contains(" packets ");
        assert!(step.xdp.changes.iter().all(silent), "{:?}", step.xdp.changes);
        assert_eq!(step.tc.bytes, *expected, "{:?}", step.tc.changes);
        assert!(matches!(step.tc.verdict, Verdict::Pass(Reason::Local) | Verdict::Arrive));
        assert_eq!(step.tc.changes.iter().filter(|line| !silent(line)).count(), 1);
    }
}

/// Has the director say packets, each of which is counted once.
#[track_caller]
fn say(world: &World<'_>, packets: &[(Vec<u8>, Vec<u8>)]) {
    for (frame, expected) in packets {
        let outcome = world.step_out(frame);
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local), "{frame:02x?}");
        assert_eq!(outcome.bytes, *expected);
        let counted = |line: &&String| line.starts_with('d') && line.contains(" packets out = ");
        assert_eq!(outcome.changes.iter().filter(counted).count(), 1, "{:?}", outcome.changes);
    }
}

/// Asserts that frames leave as they are, without a trace.
#[track_caller]
fn leaves_alone(world: &World<'_>, frames: &[Vec<u8>]) {
    for frame in frames {
        let outcome = world.step_out(frame);
        assert!(matches!(outcome.verdict, Verdict::Pass(_)));
        assert_eq!((&outcome.bytes, &outcome.changes), (frame, &Vec::new()));
    }
}

/// A packet as it is and as unusual ones, but for pieces, which tell whose they are by their datagram's number.
fn whole(packet: &Packet) -> Vec<Vec<u8>> {
    guises(packet, packet).into_iter().take(3).map(|(frame, _)| frame).collect()
}

fn state(world: &World<'_>, name: &str) -> String {
    world.snapshot().get(name).cloned().unwrap_or_default()
}

/// What a server at an end of the director's own says to a client.
fn from_own(network: &Network, own: SocketAddr, to: SocketAddr, kind: Kind) -> Packet {
    let (from, to_mac) = (network.inside.mac, GATEWAY_MAC);
    let payload = b"what the director says".to_vec();
    Packet { from, to: to_mac, source: own, target: to, kind, ttl: 64, payload }
}

#[test]
fn what_is_unusual_for_a_nat_server_here_and_its_answers_is_translated() {
    network::run("odd-here", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::MASQUERADE));
        for (family, [opening, answer, rest]) in each() {
            world.reset(&on_director(network, family, method::MASQUERADE));
            let own = SocketAddr::from((vip(family, 101), REAL_PORT));
            for kind in [opening, rest] {
                let packet = request(network, family, kind);
                let expected = Packet { target: own, ..packet.clone() };
                get(&world, network.inside.index, &guises(&packet, &expected));
                let virtual_end = packet.target;
                let back = from_own(network, own, packet.source, answer);
                let expected = Packet { source: virtual_end, ..back.clone() };
                say(&world, &guises(&back, &expected));
                // From another port, or to somebody else, it is none of ours.
                let other = (own.ip(), REAL_PORT + 1).into();
                let astray = Packet { source: other, ..back.clone() };
                leaves_alone(&world, &whole(&astray));
                let astray = Packet { target: (packet.source.ip(), 9).into(), ..back };
                leaves_alone(&world, &whole(&astray));
            }
        }
    });
}

/// The answers move the association on, as they would from elsewhere.
#[test]
fn an_association_with_a_nat_server_here_comes_about() {
    network::run("sctp-here", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            world.reset(&on_director(network, family, method::MASQUERADE));
            let name = format!("{}:4242 s3", client(family, 7));
            let own = SocketAddr::from((vip(family, 101), REAL_PORT));
            let steps = [
                (INIT, "INIT d"),
                (INIT_ACK, "C-SENT d"),
                (COOKIE_ECHO, "C-REPLIED d"),
                (COOKIE_ACK, "ESTABLISHED"),
            ];
            for (chunk, expected) in steps {
                let packet = request(network, family, Kind::Sctp(chunk, None));
                if matches!(chunk, INIT | COOKIE_ECHO) {
                    let step = world.step_tc(&Input::new(&packet.bytes(), network.inside.index));
                    assert_eq!(step.verdict, Verdict::Pass(Reason::Local));
                } else {
                    let back = from_own(network, own, packet.source, packet.kind);
                    let outcome = world.step_out(&back.bytes());
                    let answer = Packet { source: packet.target, ..back };
                    assert_eq!(outcome.bytes, answer.bytes());
                }
                world.leave_to_tc();
                let now = state(&world, &name);
                assert!(now.starts_with(expected), "{family} {chunk}: {now:?}");
            }
        }
    });
}

/// The checksum covers what the other fragments hold.
#[test]
fn pieces_of_an_association_here_need_the_same_port() {
    network::run("pieces-here", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::MASQUERADE));
        for (family, port) in [(4, REAL_PORT), (6, REAL_PORT), (4, PORT), (6, PORT)] {
            let mut tables = on_director(network, family, method::MASQUERADE);
            tables.services[2].servers[0].port = port;
            world.reset(&tables);
            let own = SocketAddr::from((vip(family, 101), port));
            let opening = request(network, family, Kind::Sctp(INIT, None));
            let step = world.step(&opening.bytes());
            assert_eq!(step.tc.verdict, Verdict::Pass(Reason::Local));
            let of = |packet: &Packet| {
                let long = Packet { payload: vec![0x42; 301], ..packet.clone() };
                fragments(&long.bytes(), 0x3456_789a, 128)
            };
            let packet = request(network, family, Kind::Sctp(COOKIE_ECHO, None));
            let back = from_own(network, own, packet.source, Kind::Sctp(COOKIE_ACK, None));
            if port == REAL_PORT {
                for frame in of(&packet) {
                    let outcome = world.step(&frame).same();
                    assert!(matches!(outcome.verdict, Verdict::Pass(Reason::Fragment)));
                    assert_eq!(outcome.bytes, frame);
                }
                let first = world.step_out(&of(&back)[0]);
                assert_eq!(first.bytes, of(&back)[0]);
                continue;
            }
            let sent = Packet { target: own, ..packet.clone() };
            let both: Vec<_> = of(&packet).into_iter().zip(of(&sent)).collect();
            get(&world, network.inside.index, &both);
            let told = Packet { source: packet.target, ..back.clone() };
            let both: Vec<_> = of(&back).into_iter().zip(of(&told)).collect();
            say(&world, &both);
        }
    });
}

/// AH and ESP have no ports, and follow the key exchange.
#[test]
fn what_ipsec_carries_to_a_server_here_follows_the_key_exchange() {
    network::run("ipsec-here", |network| {
        let tables = |family| {
            let mut tables = on_director(network, family, method::MASQUERADE);
            tables.services[1].port = KEY_EXCHANGE;
            tables.services[1].servers[0].port = KEY_EXCHANGE;
            tables
        };
        let mut world = World::new(network, &tables(4));
        for family in [4, 6] {
            world.reset(&tables(family));
            let end = |address| SocketAddr::from((address, KEY_EXCHANGE));
            let [client, own] = [end(client(family, 7)), end(vip(family, 101))];
            let of = |kind| Packet {
                source: client,
                target: end(vip(family, 100)),
                ..request(network, family, kind)
            };
            for kind in [Kind::Udp, Kind::Other(ESP), Kind::Other(AH)] {
                let packet = of(kind);
                let sent = Packet { target: own, ..packet.clone() };
                get(&world, network.inside.index, &[(packet.bytes(), sent.bytes())]);
                let back = from_own(network, own, client, kind);
                let told = Packet { source: packet.target, ..back.clone() };
                say(&world, &[(back.bytes(), told.bytes())]);
            }
        }
    });
}

/// Direct routing and tunnels leave a packet as it is: the director has the address.
#[test]
fn what_is_unusual_for_a_direct_server_here_is_noted_on_its_connection() {
    network::run("odd-direct", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::DIRECT));
        for (family, [opening, _, rest]) in each() {
            world.reset(&on_director(network, family, method::DIRECT));
            for kind in [opening, rest] {
                let packet = request(network, family, kind);
                get(&world, network.inside.index, &guises(&packet, &packet));
            }
            if let Kind::Sctp(..) = opening {
                world.leave_to_tc();
                let now = state(&world, &format!("{}:4242 s3", client(family, 7)));
                assert!(now.starts_with("ESTABLISHED"), "{now:?}");
            }
        }
    });
}

/// Services of NAT that serve clients here too, with the loopback device.
fn for_own_clients(network: &Network, family: u8) -> Description {
    let of =
        |protocol| service(family, protocol, vec![destination(family, 11, method::MASQUERADE)]);
    with_loopback(description(network, [TCP, UDP, SCTP].map(of).to_vec()))
}

fn with_loopback(mut tables: Description) -> Description {
    tables.interfaces.push(Interface { index: LOOPBACK, flags: 0, mac: 0 });
    tables
}

fn serve_own(tables: &mut HostTables) {
    tables.services.iter_mut().for_each(|one| one.flags |= service_flag::LOCAL_CLIENTS);
}

/// Opens a connection of a client here with server 11; returns what it said.
fn open_here(world: &World<'_>, family: u8, kind: Kind, port: u16) -> Packet {
    let network = world.network;
    let mut packet = Packet {
        from: [0; 6],
        to: [0; 6],
        source: (vip(family, 102), 4242).into(),
        ..request(network, family, kind)
    };
    packet.target.set_port(port);
    let outcome = world.step_with(&Input::new(&packet.bytes(), LOOPBACK)).same();
    assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
    packet
}

/// What server 11 says from a port to a client here, and what that gets.
fn answered(network: &Network, said: &Packet, kind: Kind, port: u16) -> (Packet, Packet) {
    let family = if said.source.is_ipv4() { 4 } else { 6 };
    let back = Packet {
        source: (server(family, 11), port).into(),
        target: said.source,
        ..reply(network, family, kind)
    };
    let got = Packet { from: ARRIVED, to: [0; 6], source: said.target, ..back.clone() };
    (back, got)
}

#[test]
fn what_is_unusual_of_a_client_here_is_served_by_nat() {
    network::run("odd-client", |network| {
        let mut world = World::new(network, &for_own_clients(network, 4));
        for (family, [opening, answer, rest]) in each() {
            world.reset(&for_own_clients(network, family));
            world.edit(serve_own);
            let said = open_here(&world, family, opening, PORT);
            let sent = Packet {
                from: network.outside.mac,
                to: server_mac(11),
                target: (server(family, 11), REAL_PORT).into(),
                ttl: 63,
                kind: rest,
                ..said.clone()
            };
            for (frame, expected) in guises(&Packet { kind: rest, ..said.clone() }, &sent) {
                let outcome: Outcome = world.step_with(&Input::new(&frame, LOOPBACK)).same();
                assert_eq!(outcome.bytes, expected, "{:?}", outcome.verdict);
            }
            let (back, got) = answered(network, &said, answer, REAL_PORT);
            get(&world, network.outside.index, &guises(&back, &got));
        }
    });
}

/// Persistent services of every port, at the director or server 11.
fn every_port(network: &Network, family: u8, own: bool) -> Description {
    let of = |protocol| {
        let mut server = destination(family, 11, method::MASQUERADE);
        server.port = 0;
        if own {
            server.address = vip(family, 101);
        }
        let mut service = service(family, protocol, vec![server]);
        service.port = 0;
        service
    };
    let flags = settings_flag::WIDE;
    with_loopback(Description { flags, ..description(network, [TCP, UDP, SCTP].map(of).to_vec()) })
}

/// Begins anew with such services, or for TCP with that of a mark.
fn begin_wide(world: &mut World<'_>, family: u8, has_mark: bool, own: bool) {
    if !has_mark {
        world.reset(&every_port(world.network, family, own));
        world.edit(|tables| {
            serve_own(tables);
            for service in &mut tables.services[1..=3] {
                service.flags |= service_flag::SPECIAL;
                (service.persistence, service.mask) = (100 * SECOND, [0xff; 16]);
            }
        });
        return;
    }
    let interfaces = every_port(world.network, family, own).build().interfaces;
    let address = e2e::table::octets(vip(family, 101));
    by_mark(world, family, false);
    world.edit(|tables| {
        serve_own(tables);
        tables.interfaces.clone_from(&interfaces);
        if own {
            for to in &mut tables.destinations[1..=2] {
                (to.address, to.flags) = (address, to.flags | destination_flag::LOCAL);
            }
        } else {
            // Of its two servers the first takes all.
            let to = tables.destinations[1];
            (tables.destinations[2].address, tables.destinations[2].flags) = (to.address, to.flags);
        }
    });
}

/// IP version, whether there is a mark, and what opens, is answered and goes on.
fn wide() -> impl Iterator<Item = (u8, bool, [Kind; 3])> {
    let marks = [4, 6].map(|family| (family, true, KINDS[0]));
    each().map(|(family, kinds)| (family, false, kinds)).chain(marks)
}

#[test]
fn a_nat_server_here_of_every_port_or_a_mark_is_heard() {
    network::run("wide-here", |network| {
        let mut world = World::new(network, &every_port(network, 4, true));
        for (family, has_mark, [opening, answer, rest]) in wide() {
            begin_wide(&mut world, family, has_mark, true);
            let own = SocketAddr::from((vip(family, 101), SOME_PORT));
            for kind in [opening, rest] {
                let mut packet = request(network, family, kind);
                packet.target.set_port(SOME_PORT);
                let sent = Packet { target: own, ..packet.clone() };
                let both = [(packet.bytes(), sent.bytes())];
                get(&world, network.inside.index, &both);
                get(&world, network.inside.index, &guises(&packet, &sent));
                let back = from_own(network, own, packet.source, answer);
                let told = Packet { source: packet.target, ..back.clone() };
                say(&world, &guises(&back, &told));
                let other = (own.ip(), SOME_PORT + 1).into();
                let astray = Packet { source: other, ..back };
                leaves_alone(&world, &whole(&astray));
            }
        }
    });
}

#[test]
fn a_client_here_is_answered_by_services_of_every_port_or_a_mark() {
    network::run("wide-client", |network| {
        let mut world = World::new(network, &every_port(network, 4, false));
        for (family, has_mark, [opening, answer, _]) in wide() {
            begin_wide(&mut world, family, has_mark, false);
            let said = open_here(&world, family, opening, SOME_PORT);
            let (back, got) = answered(network, &said, answer, SOME_PORT);
            get(&world, network.outside.index, &guises(&back, &got));
            // Where the client has the virtual address, its answer is no request when it comes in.
            let arrived = Packet { target: (said.target.ip(), 4242).into(), kind: opening, ..got };
            for frame in whole(&arrived) {
                let outcome = world.step_tc(&Input::new(&frame, LOOPBACK));
                assert!(matches!(outcome.verdict, Verdict::Pass(_)), "{outcome:?}");
                assert_eq!(outcome.bytes, frame);
            }
        }
    });
}

/// Datagrams that are scheduled alone leave no entry; the answers come from the service all the same.
#[test]
fn single_datagrams_to_a_nat_server_here_are_answered_by_the_service() {
    network::run("once-here", |network| {
        let tables = |family| Description {
            flags: settings_flag::WIDE,
            ..on_director(network, family, method::MASQUERADE)
        };
        let mut world = World::new(network, &tables(4));
        for family in [4, 6] {
            world.reset(&tables(family));
            let own = SocketAddr::from((vip(family, 101), REAL_PORT));
            world.edit(|tables| {
                tables.services[2].flags |= service_flag::SPECIAL | service_flag::ONE_PACKET;
                let kind = endpoint_kind::ONE_PACKET;
                e2e::table::enter(tables, kind, own.ip(), REAL_PORT, UDP, 2);
            });
            let packet = request(network, family, Kind::Udp);
            let sent = Packet { target: own, ..packet.clone() };
            get(&world, network.inside.index, &guises(&packet, &sent));
            let back = from_own(network, own, packet.source, Kind::Udp);
            let told = Packet { source: packet.target, ..back.clone() };
            say(&world, &guises(&back, &told));
        }
    });
}

/// What a router, or the server's stack, says of what a client here said.
fn about_requests(
    network: &Network,
    said: &Packet,
    real: SocketAddr,
    kind: Kind,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let family = if said.source.is_ipv4() { 4 } else { 6 };
    // What else is quoted of SCTP is its checksum, which stays.
    let bytes = if matches!(kind, Kind::Sctp(..)) { 8 } else { 20 };
    let mut all = Vec::new();
    for (error, rest) in errors(family) {
        for source in [server(family, 11), server(family, 12)] {
            let about = |target| quote(&crate::combined::said(said.source, target, kind), bytes);
            let came = Message {
                from: server_mac(11),
                to: network.outside.mac,
                source,
                target: said.source.ip(),
                ttl: 61,
                kind: error,
                rest,
                payload: about(real),
            };
            let told = Message {
                from: ARRIVED,
                to: [0; 6],
                source: said.target.ip(),
                payload: about(said.target),
                ..came.clone()
            };
            all.push((came.bytes(), told.bytes()));
        }
    }
    all
}

#[test]
fn errors_about_what_a_client_here_said_reach_it() {
    network::run("errors-client", |network| {
        let mut world = World::new(network, &for_own_clients(network, 4));
        for (family, [opening, _, _]) in each() {
            world.reset(&for_own_clients(network, family));
            world.edit(serve_own);
            let said = open_here(&world, family, opening, PORT);
            let real = SocketAddr::from((server(family, 11), REAL_PORT));
            let errors = about_requests(network, &said, real, opening);
            get(&world, network.outside.index, &errors);
            // About what nobody said they pass as they came.
            let other = SocketAddr::from((real.ip(), REAL_PORT + 1));
            for (frame, _) in about_requests(network, &said, other, opening) {
                let outcome = world.step_with(&Input::new(&frame, network.outside.index)).same();
                assert_eq!(outcome.bytes, frame);
            }
        }
        for (family, has_mark, [opening, _, _]) in wide() {
            begin_wide(&mut world, family, has_mark, false);
            let said = open_here(&world, family, opening, SOME_PORT);
            let real = SocketAddr::from((server(family, 11), SOME_PORT));
            let errors = about_requests(network, &said, real, opening);
            get(&world, network.outside.index, &errors);
        }
    });
}

#[test]
fn errors_about_a_nat_server_here_of_every_port_or_a_mark_are_translated_both_ways() {
    network::run("errors-wide-here", |network| {
        let mut world = World::new(network, &every_port(network, 4, true));
        for (family, has_mark, [opening, _, _]) in wide() {
            begin_wide(&mut world, family, has_mark, true);
            let mut packet = request(network, family, opening);
            packet.target.set_port(SOME_PORT);
            let (client_end, virtual_end) = (packet.source, packet.target);
            let own = SocketAddr::from((vip(family, 101), SOME_PORT));
            let sent = Packet { target: own, ..packet.clone() };
            get(&world, network.inside.index, &[(packet.bytes(), sent.bytes())]);
            for (error, rest) in errors(family) {
                let about = |source| quote(&said(source, client_end, opening), 20);
                let came = Message {
                    from: GATEWAY_MAC,
                    to: network.inside.mac,
                    source: client(family, 200),
                    target: virtual_end.ip(),
                    ttl: 61,
                    kind: error,
                    rest,
                    payload: about(virtual_end),
                };
                let got = Message { target: own.ip(), payload: about(own), ..came.clone() };
                get(&world, network.inside.index, &[(came.bytes(), got.bytes())]);
                let about = |target| quote(&said(client_end, target, opening), 20);
                let left = Message {
                    from: network.inside.mac,
                    to: GATEWAY_MAC,
                    source: own.ip(),
                    target: client_end.ip(),
                    payload: about(own),
                    ..came
                };
                let heard = Message {
                    source: virtual_end.ip(),
                    payload: about(virtual_end),
                    ..left.clone()
                };
                say(&world, &[(left.bytes(), heard.bytes())]);
            }
        }
    });
}
