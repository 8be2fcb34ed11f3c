//! ICMP errors about connections go where the packets that they quote came from.

use std::net::SocketAddr;

use e2e::bpf::Input;
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet, set_udp_checksum};
use e2e::scene::{PORT, REAL_PORT, lines, plain, request};
use e2e::world::World;
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_wire::tcp::{ACK, SYN};

/// Families, methods and protocols.
fn scenes() -> Vec<(u8, u8, Kind)> {
    let methods = [method::DIRECT, method::MASQUERADE];
    let of = |family| methods.map(|method| (family, method));
    let of = [of(4), of(6)].concat();
    of.into_iter().flat_map(|(f, m)| [(f, m, Kind::Tcp(SYN)), (f, m, Kind::Udp)]).collect()
}

/// Begins anew and opens the connection of client 7, port 4242; returns the destination's number.
fn open(world: &mut World<'_>, family: u8, method: u8, kind: Kind) -> u32 {
    let network = world.network;
    world.reset(&plain(network, family, method));
    let outcome = world.step(&request(network, family, kind).bytes()).same();
    assert_eq!(outcome.verdict, Verdict::Transmit { interface: network.outside.index });
    if kind == Kind::Udp { 2 } else { 1 }
}

/// What one end said to the other, on its way to where somebody minds it.
fn said(source: SocketAddr, target: SocketAddr, kind: Kind) -> Packet {
    let kind = if kind == Kind::Udp { kind } else { Kind::Tcp(ACK) };
    let payload = b"what somebody said, and nobody heard".to_vec();
    Packet { from: [0; 6], to: [0; 6], source, target, kind, ttl: 57, payload }
}

/// Quotes so many bytes from a packet's transport header on.
fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    packet.bytes()[14..][..header + bytes].to_vec()
}

/// The errors that are about connections; the second half of the header of some matters.
fn kinds(family: u8) -> Vec<([u8; 2], [u8; 4])> {
    let none = [0; 4];
    if family == 4 {
        let (pointer, mtu) = ([20, 0, 0, 0], [0, 0, 5, 0x14]);
        vec![([3, 3], none), ([3, 4], mtu), ([4, 0], none), ([11, 0], none), ([12, 0], pointer)]
    } else {
        vec![([1, 4], none), ([2, 0], [0, 0, 5, 0x14]), ([3, 0], none), ([4, 1], none)]
    }
}

/// From a router among the clients to the virtual address.
fn to_virtual(network: &Network, family: u8, payload: Vec<u8>) -> Message {
    let (kind, rest) = kinds(family)[0];
    let (source, target) = (client(family, 9), vip(family, 100));
    let (from, to) = (GATEWAY_MAC, network.inside.mac);
    Message { from, to, source, target, ttl: 61, kind, rest, payload }
}

fn client_end(family: u8) -> SocketAddr {
    (client(family, 7), 4242).into()
}

fn virtual_end(family: u8) -> SocketAddr {
    (vip(family, 100), PORT).into()
}

fn real_end(family: u8) -> SocketAddr {
    (server(family, 11), REAL_PORT).into()
}

/// How much of a packet is quoted behind the IP header: as little as there must be, up to a TCP checksum
/// without and with it, all.
fn lengths(packet: &Packet) -> [usize; 4] {
    [8, 16, 18, packet.length() - if packet.source.is_ipv4() { 20 } else { 40 }]
}

#[test]
fn errors_about_replies_go_to_the_server() {
    network::run("to-server", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        for (family, method, kind) in scenes() {
            let id = open(&mut world, family, method, kind);
            let opening = request(network, family, kind).length();
            let reply = said(virtual_end(family), client_end(family), kind);
            let (mut packets, mut bytes) = (1, opening);
            for (kind, rest) in kinds(family) {
                for length in lengths(&reply) {
                    // What is touched would show its age.
                    world.advance(1);
                    let payload = quote(&reply, length);
                    let error = Message { kind, rest, ..to_virtual(network, family, payload) };
                    let mut sent = Message {
                        from: network.outside.mac,
                        to: server_mac(11),
                        ttl: 60,
                        ..error.clone()
                    };
                    if method == method::MASQUERADE {
                        sent.target = server(family, 11);
                        let reply = Packet { source: real_end(family), ..reply.clone() };
                        sent.payload = quote(&reply, length);
                    }
                    let outcome = world.step(&error.bytes()).same();
                    let out = Verdict::Transmit { interface: network.outside.index };
                    let of = format!("{kind:?} {method} {length} quoted of {reply:?}");
                    assert_eq!((outcome.verdict, &outcome.bytes), (out, &sent.bytes()), "{of}");
                    packets += 1;
                    bytes += error.length();
                    let expected = lines([
                        format!("d{id} packets in = {packets}"),
                        format!("d{id} bytes in = {bytes}"),
                    ]);
                    let is_way = |line: &&String| line.contains(" way = ");
                    let changes: Vec<String> =
                        outcome.changes.iter().filter(|line| !is_way(line)).cloned().collect();
                    assert_eq!(changes, expected, "{of}");
                }
            }
        }
    });
}

#[test]
fn errors_about_requests_go_to_the_client_in_the_virtual_address_name() {
    network::run("to-client", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        let nat = scenes().into_iter().filter(|&(_, method, _)| method == method::MASQUERADE);
        for (family, method, kind) in nat {
            let id = open(&mut world, family, method, kind);
            let request = said(client_end(family), real_end(family), kind);
            let seen = Packet { target: virtual_end(family), ..request.clone() };
            let (mut packets, mut bytes) = (0, 0);
            for (kind, rest) in kinds(family) {
                for (length, who) in lengths(&request).into_iter().flat_map(|l| [(l, 11), (l, 12)])
                {
                    let error = Message {
                        from: server_mac(who),
                        to: network.outside.mac,
                        source: server(family, who),
                        target: client(family, 7),
                        ttl: 64,
                        kind,
                        rest,
                        payload: quote(&request, length),
                    };
                    let sent = Message {
                        from: network.inside.mac,
                        to: GATEWAY_MAC,
                        source: vip(family, 100),
                        ttl: 63,
                        payload: quote(&seen, length),
                        ..error.clone()
                    };
                    let frame = error.bytes();
                    let outcome =
                        world.step_with(&Input::new(&frame, network.outside.index)).same();
                    let out = Verdict::Transmit { interface: network.inside.index };
                    let of = format!("{kind:?} from {who}, {length} quoted of {request:?}");
                    assert_eq!((outcome.verdict, &outcome.bytes), (out, &sent.bytes()), "{of}");
                    packets += 1;
                    bytes += error.length();
                    let way = format!("way to {} = .. fe", client(family, 7));
                    let expected = lines([
                        format!("d{id} packets out = {packets}"),
                        format!("d{id} bytes out = {bytes}"),
                        if packets == 1 { way } else { String::new() },
                    ]);
                    assert_eq!(outcome.changes, expected, "{of}");
                }
            }
        }
    });
}

/// The payloads go through sums at which the quoted checksum is 0 before or after.
#[test]
fn quoted_checksums_are_those_of_a_packet_made_so() {
    network::run("quoted-sums", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for (family, kind) in [4, 6].into_iter().flat_map(|f| [(f, Kind::Tcp(SYN)), (f, Kind::Udp)])
        {
            open(&mut world, family, method::MASQUERADE, kind);
            let frames = |value: u16| {
                let payload = value.to_be_bytes().to_vec();
                let reply = said(virtual_end(family), client_end(family), kind);
                let reply = Packet { payload, ..reply };
                let all = lengths(&reply)[3];
                let error = to_virtual(network, family, quote(&reply, all));
                let (from, to, ttl) = (network.outside.mac, server_mac(11), 60);
                let reply = Packet { source: real_end(family), ..reply };
                let (target, payload) = (server(family, 11), quote(&reply, all));
                (error.bytes(), Message { from, to, ttl, target, payload, ..error }.bytes())
            };
            let checksum = |frame: &[u8]| {
                let at = if family == 4 { 62 } else { 102 };
                let at = at + if kind == Kind::Udp { 6 } else { 16 };
                u16::from_be_bytes([frame[at], frame[at + 1]])
            };
            let (before, after) = frames(0);
            let mut values: Vec<u16> = (0..=u16::MAX).step_by(4099).collect();
            for zero in [checksum(&before), checksum(&after)] {
                values.extend([zero.wrapping_sub(1), zero, zero.wrapping_add(1)]);
            }
            let mut seen = Vec::new();
            for value in values {
                let (before, after) = frames(value);
                let step = world.step_quietly(&Input::new(&before, network.inside.index), false);
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
fn no_quoted_udp_checksum_stays_none() {
    network::run("quoted-none", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        open(&mut world, 4, method::MASQUERADE, Kind::Udp);
        let without = |source| {
            let mut bytes = said(source, client_end(4), Kind::Udp).bytes();
            set_udp_checksum(&mut bytes, 0);
            bytes.split_off(14)
        };
        let error = to_virtual(network, 4, without(virtual_end(4)));
        let outcome = world.step(&error.bytes()).same();
        let (from, to, ttl) = (network.outside.mac, server_mac(11), 60);
        let (target, payload) = (server(4, 11), without(real_end(4)));
        assert_eq!(outcome.bytes, Message { from, to, ttl, target, payload, ..error }.bytes());
    });
}

/// What the hardware knows of the sum stays true, as an error's checksum is taken over all of it.
#[test]
fn a_sum_by_hardware_stays_right() {
    network::run("summed-errors", |network| {
        let mut world = World::new(network, &plain(network, 4, method::DIRECT));
        for (family, method, kind) in scenes() {
            open(&mut world, family, method, kind);
            let reply = said(virtual_end(family), client_end(family), kind);
            for length in lengths(&reply) {
                let error = to_virtual(network, family, quote(&reply, length));
                let ran = world.run_summed(&error.bytes()).unwrap();
                assert_eq!(ran.code, e2e::bpf::TC_CODES[2], "{method} {error:?}");
            }
        }
    });
}

#[track_caller]
fn passes(world: &World<'_>, frame: &[u8], reason: Reason) {
    let outcome = world.step(frame).same();
    assert_eq!((outcome.verdict, &outcome.bytes[..]), (Verdict::Pass(reason), frame));
    let [change] = &outcome.changes[..] else { panic!("{:?}", outcome.changes) };
    assert!(change.starts_with(&format!("reason {} = ", reason.name())), "{change}");
}

#[test]
fn messages_about_nothing_of_ours_pass_as_they_came() {
    network::run("other-icmp", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for (family, method, kind) in scenes() {
            let id = open(&mut world, family, method, kind);
            let reply = said(virtual_end(family), client_end(family), kind);
            let about = |reply: &Packet| to_virtual(network, family, quote(reply, 8)).bytes();
            let error = to_virtual(network, family, quote(&reply, 8));
            let of_kind = |kind, payload: &[u8]| {
                Message { kind, payload: payload.to_vec(), ..error.clone() }.bytes()
            };
            // Echo and what else is no error, long or short; neighbour discovery; redirects.
            let others: &[u8] =
                if family == 4 { &[0, 5, 8, 13, 18] } else { &[128, 129, 135, 136, 143] };
            for &other in others {
                for payload in [&b""[..], b"ping", &error.payload] {
                    passes(&world, &of_kind([other, 0], payload), Reason::OtherProtocol);
                }
            }
            let mut stranger = reply.clone();
            stranger.target.set_port(4243);
            passes(&world, &about(&stranger), Reason::NoConnection);
            let mut other = reply.clone();
            other.source.set_port(81);
            passes(&world, &about(&other), Reason::NoService);
            let last = Message { ttl: 1, ..error.clone() };
            passes(&world, &last.bytes(), Reason::Expired);
            // It went to another than who it says has sent the packet.
            let astray = Message { target: vip(family, 101), ..error.clone() };
            passes(&world, &astray.bytes(), Reason::Malformed);
            for length in 0..error.payload.len() {
                let cut = of_kind(error.kind, &error.payload[..length]);
                passes(&world, &cut, Reason::Malformed);
            }
            let spoilt = |changes: &[(usize, u8)]| {
                let mut payload = error.payload.clone();
                for &(at, value) in changes {
                    payload[at] = value;
                }
                of_kind(error.kind, &payload)
            };
            if family == 4 {
                passes(&world, &spoilt(&[(0, 0x46)]), Reason::Options);
                passes(&world, &spoilt(&[(0, 0x65)]), Reason::Malformed);
                passes(&world, &spoilt(&[(6, 0), (7, 1)]), Reason::Fragment);
                passes(&world, &spoilt(&[(9, 1)]), Reason::OtherProtocol);
            } else {
                passes(&world, &spoilt(&[(0, 0x45)]), Reason::Malformed);
                passes(&world, &spoilt(&[(6, 44)]), Reason::Fragment);
                passes(&world, &spoilt(&[(6, 60)]), Reason::Options);
                passes(&world, &spoilt(&[(6, 58)]), Reason::OtherProtocol);
            }
            // The connection is still what it was.
            let kept = e2e::snapshot::connections(world.tables());
            let half = &kept[&format!("{}:4242 s{id}", client(family, 7))];
            assert!(!half.contains("ago"), "{half}");
        }
    });
}

/// An error does not revive a connection that has run out.
#[test]
fn errors_about_expired_connections_pass() {
    network::run("late-errors", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        open(&mut world, 4, method::MASQUERADE, Kind::Udp);
        world.advance(301 * e2e::table::SECOND);
        let reply = said(virtual_end(4), client_end(4), Kind::Udp);
        let frame = to_virtual(network, 4, quote(&reply, 8)).bytes();
        let outcome = world.step(&frame).same();
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
        assert_eq!(outcome.bytes, frame);
        assert!(e2e::snapshot::connections(world.tables()).is_empty());
    });
}
