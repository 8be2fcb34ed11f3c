//! ICMP errors about no connection open one where `schedule_icmp` asks for it.

use std::net::SocketAddr;

use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet};
use e2e::scene::{PORT, REAL_PORT, SCTP, TCP, UDP, description, destination, service};
use e2e::table::{Description, SECOND};
use e2e::world::World;
use rlvs_datapath::abi::{method, scheduler, service_flag, settings_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_wire::tcp::ACK;

use crate::combined::begin_wide;
use crate::persistence::{any_port, persist};

/// Services 1, TCP, and 2, UDP, with servers 11 and 12.
fn scene(network: &Network, family: u8, method: u8, scheduler: u32) -> Description {
    let servers = || [11, 12].map(|number| destination(family, number, method)).to_vec();
    let of = |protocol| {
        let mut service = service(family, protocol, servers());
        service.scheduler = scheduler;
        service
    };
    description(network, [TCP, UDP].map(of).to_vec())
}

fn ask(world: &mut World<'_>) {
    world.edit(|tables| tables.settings.flags |= settings_flag::SCHEDULE_ERRORS);
}

/// What one end said to client 7, as it is quoted.
fn quoted(source: SocketAddr, kind: Kind, port: u16) -> Vec<u8> {
    let family = if source.is_ipv4() { 4 } else { 6 };
    let target = (client(family, 7), port).into();
    let payload = b"heard by nobody".to_vec();
    let said = Packet { from: [0; 6], to: [0; 6], source, target, kind, ttl: 57, payload };
    let header = if family == 4 { 20 } else { 40 };
    said.bytes()[14..][..header + 8].to_vec()
}

/// A router among the clients about what the service's port said to a client's.
fn error(network: &Network, family: u8, kind: Kind, ports: (u16, u16)) -> Message {
    Message {
        from: GATEWAY_MAC,
        to: network.inside.mac,
        source: client(family, 9),
        target: vip(family, 100),
        ttl: 61,
        kind: if family == 4 { [3, 3] } else { [1, 4] },
        rest: [0; 4],
        payload: quoted((vip(family, 100), ports.0).into(), kind, ports.1),
    }
}

/// The same as a server gets it, who has said it himself if he is reached by NAT.
fn told(
    network: &Network,
    came: &Message,
    number: u8,
    real: Option<(SocketAddr, Kind, u16)>,
) -> Message {
    let (from, to, ttl) = (network.outside.mac, server_mac(number), came.ttl - 1);
    let told = Message { from, to, ttl, ..came.clone() };
    match real {
        Some((real, kind, port)) => {
            Message { target: real.ip(), payload: quoted(real, kind, port), ..told }
        }
        None => told,
    }
}

fn seen(world: &World<'_>, name: &str) -> String {
    world.snapshot().get(name).cloned().unwrap_or_default()
}

#[test]
fn an_error_about_no_connection_opens_one_to_who_is_next() {
    network::run("adopt", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, scheduler::RR));
        for scheduler in [scheduler::RR, scheduler::WLC] {
            for (family, method) in [4, 6]
                .into_iter()
                .flat_map(|f| [method::DIRECT, method::MASQUERADE].map(|m| (f, m)))
            {
                world.reset(&scene(network, family, method, scheduler));
                for (id, kind) in [(1, Kind::Tcp(ACK)), (3, Kind::Udp)] {
                    let of = format!("{family} {method} {kind:?} by {scheduler}");
                    let came = error(network, family, kind, (PORT, 4242));
                    // As long as nobody asks for it.
                    world.edit(|tables| tables.settings.flags &= !settings_flag::SCHEDULE_ERRORS);
                    let outcome = world.step(&came.bytes()).same();
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection), "{of}");
                    assert_eq!(outcome.bytes, came.bytes());
                    ask(&mut world);
                    for (port, number, id) in [(4242, 11, id), (4243, 12, id + 1)] {
                        let came = error(network, family, kind, (PORT, port));
                        let nat = method == method::MASQUERADE;
                        let real: SocketAddr = (server(family, number), REAL_PORT).into();
                        let real = nat.then_some((real, kind, port));
                        let expected = told(network, &came, number, real);
                        let outcome = world.step(&came.bytes()).same();
                        let out = Verdict::Transmit { interface: network.outside.index };
                        assert_eq!(outcome.verdict, out, "{of} {:?}", outcome.changes);
                        assert_eq!(outcome.bytes, expected.bytes(), "{of}");
                        assert_eq!(seen(&world, &format!("d{id} inactive")), "1", "{of}");
                        assert_eq!(seen(&world, &format!("d{id} connections")), "1", "{of}");
                        assert_eq!(seen(&world, &format!("d{id} packets in")), "1", "{of}");
                        // What follows goes the same way, as the packet itself would.
                        let again = world.step(&came.bytes()).same();
                        assert_eq!(again.bytes, outcome.bytes, "{of}");
                        assert_eq!(seen(&world, &format!("d{id} connections")), "1", "{of}");
                    }
                }
                // It is forgotten after 3 seconds.
                world.advance(4 * SECOND);
                world.edit(|tables| tables.settings.flags &= !settings_flag::SCHEDULE_ERRORS);
                let came = error(network, family, Kind::Udp, (PORT, 4243));
                let outcome = world.step(&came.bytes()).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
            }
        }
    });
}

#[test]
fn such_a_connection_is_persistent_of_any_port_or_of_a_mark_as_others() {
    network::run("adopt-special", |network| {
        let mut world = World::new(network, &any_port(network, 4, method::MASQUERADE));
        let out = Verdict::Transmit { interface: network.outside.index };
        for family in [4, 6] {
            world.reset(&scene(network, family, method::DIRECT, scheduler::RR));
            persist(&mut world, family, 128);
            ask(&mut world);
            for port in [4242, 4243] {
                let came = error(network, family, Kind::Udp, (PORT, port));
                let outcome = world.step(&came.bytes()).same();
                assert_eq!(outcome.bytes, told(network, &came, 11, None).bytes());
            }
            assert_eq!(seen(&world, "d3 persistent"), "1");
            for has_mark in [false, true] {
                begin_wide(&mut world, family, has_mark);
                ask(&mut world);
                let came = error(network, family, Kind::Tcp(ACK), (443, 4242));
                let outcome = world.step(&came.bytes()).same();
                assert_eq!(outcome.verdict, out, "{family} {has_mark} {:?}", outcome.changes);
                let real = (server(family, 11), 443).into();
                let real = Some((real, Kind::Tcp(ACK), 4242));
                let expected = told(network, &came, 11, real).bytes();
                assert_eq!(outcome.bytes, expected, "{family} {has_mark}");
                let again = world.step(&came.bytes()).same();
                assert_eq!(again.bytes, outcome.bytes);
                assert_eq!(seen(&world, "d1 connections"), "1");
            }
        }
    });
}

#[test]
fn what_nobody_takes_is_dropped_and_what_is_left_out_passes() {
    network::run("adopt-refused", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, scheduler::RR));
        for family in [4, 6] {
            let mut empty = scene(network, family, method::DIRECT, scheduler::RR);
            empty.services.iter_mut().for_each(|service| service.servers.clear());
            world.reset(&empty);
            ask(&mut world);
            let udp = error(network, family, Kind::Udp, (PORT, 4242));
            let outcome = world.step(&udp.bytes()).same();
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoDestination));
            let other = error(network, family, Kind::Udp, (PORT + 1, 4242));
            let outcome = world.step(&other.bytes()).same();
            assert!(matches!(outcome.verdict, Verdict::Pass(_)), "{outcome:?}");
            assert_eq!(outcome.bytes, other.bytes());
            let last = Message { ttl: 1, ..udp.clone() }.bytes();
            let outcome = world.step(&last).same();
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass(Reason::Expired), last));
            world.reset(&scene(network, family, method::DIRECT, scheduler::RR));
            ask(&mut world);
            for flags in [service_flag::ONE_PACKET, service_flag::SIP] {
                world.edit(|tables| tables.services[2].flags |= service_flag::SPECIAL | flags);
                let outcome = world.step(&udp.bytes()).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
                world.edit(|tables| tables.services[2].flags &= !flags);
            }
            assert!(e2e::snapshot::connections(world.tables()).is_empty());
        }
    });
}

#[test]
fn an_association_is_opened_too() {
    network::run("adopt-sctp", |network| {
        let direct = |family| {
            let servers = vec![destination(family, 11, method::DIRECT)];
            description(network, vec![service(family, SCTP, servers)])
        };
        let mut world = World::new(network, &direct(4));
        for family in [4, 6] {
            world.reset(&direct(family));
            ask(&mut world);
            let mut came = error(network, family, Kind::Udp, (PORT, 4242));
            let protocol_at = if family == 4 { 9 } else { 6 };
            came.payload[protocol_at] = SCTP;
            if family == 4 {
                // The checksum follows.
                let old = u16::from_be_bytes([came.payload[10], came.payload[11]]);
                let sum = u32::from(!old) + u32::from(SCTP) - u32::from(UDP);
                let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
                came.payload[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let outcome = world.step(&came.bytes()).same();
            assert_eq!(outcome.bytes, told(network, &came, 11, None).bytes());
            assert_eq!(seen(&world, "d1 inactive"), "1");
            let kept = e2e::snapshot::connections(world.tables());
            assert!(kept.values().any(|half| half.contains("NONE")), "{kept:?}");
        }
    });
}
