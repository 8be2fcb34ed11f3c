//! What is unusual in two ways: ICMP errors about servers here and about services without a port or an
//! address of their own.

use std::net::SocketAddr;

use e2e::bpf::Input;
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet};
use e2e::scene::{PORT, REAL_PORT, SCTP, TCP, UDP, description, destination, request, service};
use e2e::table::{Description, Server};
use e2e::unusual::{atomic, extended, optioned};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_wire::tcp::{ACK, SYN};

use crate::persistence::{any_port, by_mark, persist};

/// Services 1, TCP, and 2, UDP, and 3, SCTP, whose destination is the director at its address 101.
pub(crate) fn on_director(network: &Network, family: u8, method: u8) -> Description {
    let address = vip(family, 101);
    let of = |protocol| {
        service(family, protocol, vec![Server { address, ..destination(family, 11, method) }])
    };
    description(network, [TCP, UDP, SCTP].map(of).to_vec())
}

/// An error of each kind that a transport is told of, and the header's second half.
pub(crate) fn errors(family: u8) -> [([u8; 2], [u8; 4]); 2] {
    let (none, mtu) = ([0; 4], [0, 0, 5, 0x14]);
    if family == 4 { [([3, 3], none), ([3, 4], mtu)] } else { [([1, 4], none), ([2, 0], mtu)] }
}

/// Quotes so many bytes from a packet's transport header on.
pub(crate) fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    packet.bytes()[14..][..header + bytes].to_vec()
}

/// Returns a packet as it is quoted.
pub(crate) fn said(source: SocketAddr, target: SocketAddr, kind: Kind) -> Packet {
    let [from, to] = [[0; 6], [0; 6]];
    Packet { from, to, source, target, kind, ttl: 60, payload: b"what was said".to_vec() }
}

/// Asserts that a frame passes as it came and leaves nothing but a count.
#[track_caller]
fn passes(outcome: &Outcome, frame: &[u8]) {
    assert!(matches!(outcome.verdict, Verdict::Pass(_)), "{outcome:?}");
    assert_eq!(outcome.bytes, frame);
    let is_count = |change: &String| change.starts_with("reason ");
    assert!(outcome.changes.iter().all(is_count), "{:?}", outcome.changes);
}

#[test]
fn errors_about_a_nat_server_here_are_translated_both_ways() {
    network::run("errors-here", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::MASQUERADE));
        for (family, kind) in
            [4, 6].into_iter().flat_map(|f| [Kind::Tcp(SYN), Kind::Udp].map(|kind| (f, kind)))
        {
            world.reset(&on_director(network, family, method::MASQUERADE));
            let opening = request(network, family, kind);
            let opened = world.step_tc(&Input::new(&opening.bytes(), network.inside.index));
            assert_eq!(opened.verdict, Verdict::Pass(Reason::Local));
            let _: Outcome = world.step_xdp(&Input::new(&opening.bytes(), network.inside.index));
            let client_end = opening.source;
            let virtual_end = SocketAddr::from((vip(family, 100), PORT));
            let own_end = SocketAddr::from((vip(family, 101), REAL_PORT));
            let id = if kind == Kind::Udp { 2 } else { 1 };
            for (error, rest) in errors(family) {
                for bytes in [8, 20] {
                    // A router among the clients about what the server said.
                    let about = |source| quote(&said(source, client_end, kind), bytes);
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
                    let told =
                        Message { target: own_end.ip(), payload: about(own_end), ..came.clone() };
                    let step = world.step(&came.bytes());
                    assert_eq!(step.xdp.verdict, Verdict::Pass(Reason::Local));
                    assert_eq!(step.xdp.bytes, came.bytes());
                    assert_eq!(step.tc.verdict, Verdict::Pass(Reason::Local));
                    assert_eq!(step.tc.bytes, told.bytes());
                    // The stack about what the client said.
                    let about = |target| quote(&said(client_end, target, kind), bytes);
                    let left = Message {
                        from: network.inside.mac,
                        to: GATEWAY_MAC,
                        source: own_end.ip(),
                        target: client_end.ip(),
                        payload: about(own_end),
                        ..came
                    };
                    let outcome = world.step_out(&left.bytes());
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::Local));
                    let heard = Message {
                        source: virtual_end.ip(),
                        payload: about(virtual_end),
                        ..left.clone()
                    };
                    assert_eq!(outcome.bytes, heard.bytes());
                    let counted = |line: &String| line.starts_with(&format!("d{id} "));
                    assert_eq!(outcome.changes.iter().filter(|line| counted(line)).count(), 2);
                    // About another client's, or to another port, it is none of ours.
                    let other = SocketAddr::from((own_end.ip(), REAL_PORT + 1));
                    let astray = Message { payload: about(other), ..left };
                    let outcome = world.step_out(&astray.bytes());
                    assert_eq!((outcome.bytes, outcome.changes), (astray.bytes(), Vec::new()));
                }
            }
        }
    });
}

/// What the stack quotes has the headers of the packet that it got; to one with IPv4 options it gives some of them.
#[test]
fn errors_of_a_nat_server_here_about_unusual_packets_come_from_the_service() {
    type Headers = fn(&[u8]) -> Vec<u8>;
    const V4: [Headers; 3] = [
        |frame| optioned(frame, &[1, 1, 1, 1]),
        |frame| optioned(frame, &[7, 39, 4, 0, 0, 0, 0, 0].repeat(5)),
        |frame| optioned(frame, &[148, 4, 0, 0]),
    ];
    const V6: [Headers; 3] = [
        |frame| extended(frame, &[(60, &[1, 4, 0, 0, 0, 0])]),
        |frame| extended(frame, &[(0, &[1, 4, 0, 0, 0, 0]), (60, &[0; 14])]),
        |frame| atomic(frame, 77),
    ];
    network::run("odd-errors-here", |network| {
        let mut world = World::new(network, &on_director(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            for (kind, bytes) in [(Kind::Tcp(SYN), 8), (Kind::Tcp(SYN), 20), (Kind::Udp, 20)] {
                world.reset(&on_director(network, family, method::MASQUERADE));
                let opening = request(network, family, kind);
                let opened = world.step_tc(&Input::new(&opening.bytes(), network.inside.index));
                assert_eq!(opened.verdict, Verdict::Pass(Reason::Local));
                world.leave_to_tc();
                let virtual_end = opening.target;
                let own_end = SocketAddr::from((vip(family, 101), REAL_PORT));
                let all = if family == 4 { V4 } else { V6 };
                for (number, headers) in all.into_iter().enumerate() {
                    let about = |target| {
                        let frame = headers(&said(opening.source, target, kind).bytes());
                        let end = frame.len() - said(opening.source, target, kind).payload.len();
                        let header = if let Kind::Tcp(_) = kind { 20 } else { 8 };
                        frame[14..(end - header + bytes).min(frame.len())].to_vec()
                    };
                    for (error, rest) in errors(family) {
                        let of = |own: SocketAddr, quoted: Vec<u8>| {
                            let (from, to) = (network.inside.mac, GATEWAY_MAC);
                            let [source, target] = [own.ip(), opening.source.ip()];
                            let ttl = 64;
                            let payload = quoted;
                            let message = Message {
                                from,
                                to,
                                source,
                                target,
                                ttl,
                                kind: error,
                                rest,
                                payload,
                            };
                            // A route that is recorded stands before the message too.
                            match number {
                                1 if family == 4 => headers(&message.bytes()),
                                _ => message.bytes(),
                            }
                        };
                        let outcome = world.step_out(&of(own_end, about(own_end)));
                        assert_eq!(
                            outcome.verdict,
                            Verdict::Pass(Reason::Local),
                            "{family} {number}"
                        );
                        assert_eq!(outcome.bytes, of(virtual_end, about(virtual_end)));
                        let counted = |line: &&String| line.contains(" packets out = ");
                        assert_eq!(outcome.changes.iter().filter(counted).count(), 1);
                        let other = SocketAddr::from((own_end.ip(), REAL_PORT + 1));
                        let cut = {
                            let mut quoted = about(own_end);
                            let behind = if let Kind::Tcp(_) = kind { bytes } else { 20 };
                            quoted.truncate(quoted.len() - behind + 7);
                            quoted
                        };
                        for astray in [of(own_end, about(other)), of(own_end, cut)] {
                            let outcome = world.step_out(&astray);
                            assert_eq!((outcome.bytes, outcome.changes), (astray, Vec::new()));
                        }
                    }
                }
            }
        }
    });
}

/// Begins anew with services, of NAT, of every port, or one of a mark.
pub(crate) fn begin_wide(world: &mut World<'_>, family: u8, has_mark: bool) {
    if has_mark {
        by_mark(world, family, true);
    } else {
        world.reset(&any_port(world.network, family, method::MASQUERADE));
        persist(world, family, 128);
    }
}

fn wide_scenes() -> impl Iterator<Item = (u8, bool)> {
    [4, 6].into_iter().flat_map(|family| [(family, false), (family, true)])
}

#[test]
fn errors_about_services_without_a_port_find_their_connection() {
    network::run("errors-wide", |network| {
        let mut world = World::new(network, &any_port(network, 4, method::MASQUERADE));
        for (family, has_mark) in wide_scenes() {
            begin_wide(&mut world, family, has_mark);
            let mut opening = request(network, family, Kind::Tcp(SYN));
            opening.target.set_port(443);
            let opened = world.step(&opening.bytes()).same();
            assert!(matches!(opened.verdict, Verdict::Transmit { .. }), "{opened:?}");
            let (client_end, virtual_end) = (opening.source, opening.target);
            let real_end = SocketAddr::from((server(family, 11), 443));
            for (error, rest) in errors(family) {
                let about = |source| quote(&said(source, client_end, Kind::Tcp(SYN | ACK)), 20);
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
                let told = Message {
                    from: network.outside.mac,
                    to: server_mac(11),
                    target: real_end.ip(),
                    ttl: 60,
                    payload: about(real_end),
                    ..came.clone()
                };
                let outcome = world.step(&came.bytes()).same();
                assert_eq!(outcome.bytes, told.bytes(), "{family} {has_mark} {error:?}");
                let about = |target| quote(&said(client_end, target, Kind::Tcp(ACK)), 20);
                let back = Message {
                    from: server_mac(11),
                    to: network.outside.mac,
                    source: real_end.ip(),
                    target: client_end.ip(),
                    payload: about(real_end),
                    ..came.clone()
                };
                let heard = Message {
                    from: network.inside.mac,
                    to: GATEWAY_MAC,
                    source: virtual_end.ip(),
                    ttl: 60,
                    payload: about(virtual_end),
                    ..back.clone()
                };
                let input = back.bytes();
                let outcome = world.step_with(&Input::new(&input, network.outside.index)).same();
                assert_eq!(outcome.bytes, heard.bytes(), "{family} {has_mark} {error:?}");
                // Of a port that nothing was said from.
                let other = SocketAddr::from((virtual_end.ip(), 444));
                let stray = Message { payload: about(other), ..came }.bytes();
                passes(&world.step(&stray).same(), &stray);
            }
        }
    });
}
