//! Who may open connections.

use std::net::IpAddr;

use e2e::bpf::Input;
use e2e::guarded::{own, put};
use e2e::network::{self, Network, client};
use e2e::packet::{Kind, Packet};
use e2e::scene::{self, SCTP, TCP, UDP, destination, request, service};
use e2e::table::{Description, SECOND};
use e2e::unusual::optioned;
use e2e::world::{Outcome, World};
use rlvs_control::access::{Access, Limit, Prefix, Verdict as Says};
use rlvs_datapath::abi::{method, scheduler, service_flag, settings_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_wire::tcp::{ACK, RST, SYN};

/// Services 1 TCP, 2 UDP, direct; 3 TCP on port 81, NAT; 4 on port 82, wlc, which must be searched for; 5
/// SCTP.
fn description(network: &Network, family: u8) -> Description {
    let direct =
        |protocol| service(family, protocol, vec![destination(family, 11, method::DIRECT)]);
    let mut nat = service(family, TCP, vec![destination(family, 12, method::MASQUERADE)]);
    nat.port = 81;
    let two = || [13, 14].map(|number| destination(family, number, method::DIRECT)).to_vec();
    let mut searched = service(family, TCP, two());
    (searched.port, searched.scheduler) = (82, scheduler::WLC);
    scene::description(network, vec![direct(TCP), direct(UDP), nat, searched, direct(SCTP)])
}

fn network_of(address: IpAddr, length: u8) -> Prefix {
    Prefix::new(address, length)
}

fn lists(says: &[(Prefix, Says)]) -> Access {
    let mut access = Access::default();
    access.all.prefixes.extend(says.iter().copied());
    access
}

fn from(network: &Network, family: u8, number: u8, port: u16, kind: Kind) -> Packet {
    let packet = request(network, family, kind);
    Packet { source: (client(family, number), port).into(), ..packet }
}

fn to_port(mut packet: Packet, port: u16) -> Packet {
    packet.target.set_port(port);
    packet
}

/// Whether a packet went on, and if not, why.
fn refused(outcome: &Outcome) -> Option<&'static str> {
    match outcome.verdict {
        Verdict::Drop(reason) | Verdict::Pass(reason) => Some(reason.name()),
        _ => None,
    }
}

#[track_caller]
fn goes(world: &World<'_>, packet: &Packet) -> Option<&'static str> {
    refused(&world.step(&packet.bytes()).same())
}

#[test]
fn the_longest_prefix_decides_and_those_of_the_service_before_those_of_all() {
    network::run("guard-lists", |network| {
        let mut world = World::new(network, &description(network, 4));
        for family in [4, 6] {
            let bits = if family == 4 { 32 } else { 128 };
            let mut port = 1000;
            let mut asks = |world: &World<'_>, number, to| {
                port += 1;
                goes(world, &to_port(from(network, family, number, port, Kind::Tcp(SYN)), to))
            };
            let one = |number| network_of(client(family, number), bits);
            let around = |number, less| network_of(client(family, number), bits - less);
            world.reset(&description(network, family));
            let mut access = lists(&[(around(8, 3), Says::Deny), (one(9), Says::Allow)]);
            world.edit(|tables| put(tables, &access));
            assert_eq!(asks(&world, 9, 80), None);
            assert_eq!(asks(&world, 8, 80), Some("denied"));
            assert_eq!(asks(&world, 10, 81), Some("denied"));
            assert_eq!(asks(&world, 10, 82), Some("denied"));
            assert_eq!(asks(&world, 16, 80), Some("not_allowed"), "an allow list denies others");
            // As long in the service's own lists: those decide. Shorter: they do not.
            let rules = access.rules_mut(Some(own(1)));
            rules.prefixes.extend([(around(8, 3), Says::Allow), (around(16, 4), Says::Allow)]);
            rules.prefixes.insert(one(17), Says::Deny);
            world.edit(|tables| put(tables, &access));
            assert_eq!(asks(&world, 8, 80), None);
            assert_eq!(asks(&world, 8, 81), Some("denied"));
            assert_eq!(asks(&world, 20, 80), None);
            assert_eq!(asks(&world, 17, 80), Some("denied"));
            assert_eq!(asks(&world, 20, 81), Some("not_allowed"));
            access.all.prefixes.clear();
            world.edit(|tables| put(tables, &access));
            assert_eq!(asks(&world, 99, 80), Some("not_allowed"));
            assert_eq!(asks(&world, 99, 81), None, "nothing is said of it");
        }
    });
}

#[test]
fn connections_that_are_there_are_not_asked_about() {
    network::run("guard-there", |network| {
        let mut world = World::new(network, &description(network, 4));
        for (family, port) in [(4, 80), (6, 80), (4, 82), (6, 81)] {
            world.reset(&description(network, family));
            let packet = |kind| to_port(from(network, family, 7, 4242, kind), port);
            assert_eq!(goes(&world, &packet(Kind::Tcp(SYN))), None);
            let all = network_of(client(family, 7), 0);
            world.edit(|tables| put(tables, &lists(&[(all, Says::Deny)])));
            for flags in [SYN, ACK, RST] {
                assert_eq!(goes(&world, &packet(Kind::Tcp(flags))), None, "{flags}");
            }
            assert_eq!(
                goes(&world, &to_port(from(network, family, 8, 4242, Kind::Tcp(SYN)), port)),
                Some("denied")
            );
        }
    });
}

#[test]
fn every_way_to_a_connection_leads_past_the_guard() {
    network::run("guard-ways", |network| {
        let mut world = World::new(network, &description(network, 4));
        for family in [4, 6] {
            let deny = lists(&[(network_of(client(family, 7), 0), Says::Deny)]);
            let begin = |world: &mut World<'_>, edit: &dyn Fn(&mut e2e::host::HostTables)| {
                world.reset(&description(network, family));
                world.edit(|tables| {
                    edit(tables);
                    put(tables, &deny);
                });
            };
            let packet = |kind| from(network, family, 7, 4242, kind);
            begin(&mut world, &|_| {});
            let outcome = world.step(&packet(Kind::Tcp(SYN)).bytes()).same();
            let changes: Vec<_> = outcome.changes.iter().map(String::as_str).collect();
            assert_eq!(changes, ["reason denied = 1", "s1 local = yes"]);
            begin(&mut world, &|_| {});
            assert_eq!(goes(&world, &packet(Kind::Udp)), Some("denied"));
            assert_eq!(goes(&world, &packet(Kind::Sctp(1, None))), Some("denied"));
            if family == 4 {
                let options = optioned(&packet(Kind::Tcp(SYN)).bytes(), &[1, 1, 1, 1]);
                let outcome = world.step_with(&Input::new(&options, network.inside.index)).same();
                assert_eq!(refused(&outcome), Some("denied"));
            }
            // Those that need more than an entry, and those of single packets.
            for flags in [service_flag::SPECIAL, service_flag::SPECIAL | service_flag::ONE_PACKET] {
                begin(&mut world, &|tables| {
                    for service in &mut tables.services[1..3] {
                        service.flags |= flags;
                    }
                    tables.settings.flags |= settings_flag::WIDE;
                });
                assert_eq!(goes(&world, &packet(Kind::Tcp(SYN))), Some("denied"));
                assert_eq!(goes(&world, &packet(Kind::Udp)), Some("denied"));
            }
        }
    });
}

#[test]
fn a_refusal_is_told_where_that_is_asked_for() {
    network::run("guard-told", |network| {
        let mut world = World::new(network, &description(network, 4));
        for family in [4, 6] {
            for (kind, id) in [(Kind::Tcp(SYN), 1), (Kind::Udp, 2)] {
                world.reset(&description(network, family));
                let mut access = lists(&[(network_of(client(family, 7), 0), Says::Deny)]);
                access.rules_mut(Some(own(id))).reject = true;
                world.edit(|tables| put(tables, &access));
                let packet = request(network, family, kind);
                let outcome = world.step(&packet.bytes()).same();
                assert_eq!(outcome.verdict, Verdict::Transmit { interface: network.inside.index });
                assert_eq!(&outcome.bytes[..6], &packet.from, "to whom it came from");
                let at = if family == 4 { 34 } else { 54 };
                let unreachable = if family == 4 { [3, 3] } else { [1, 4] };
                assert_eq!(outcome.bytes[at..at + 2], unreachable);
                assert!(outcome.changes.contains(&"reason denied = 1".to_owned()));
            }
        }
    });
}

fn limited(rate: Option<u32>, burst: u32, number: Option<u32>, length: u8) -> Access {
    let mut access = Access::default();
    let limit = Limit { rate, burst, number, length4: length, length6: 96 + length };
    access.all.limit = Some(limit);
    access
}

#[test]
fn networks_open_connections_no_faster_than_they_may() {
    network::run("guard-rate", |network| {
        let mut world = World::new(network, &description(network, 4));
        for family in [4, 6] {
            for (port, kind) in [(80, Kind::Tcp(SYN)), (82, Kind::Tcp(SYN)), (80, Kind::Udp)] {
                world.reset(&description(network, family));
                world.edit(|tables| put(tables, &limited(Some(4), 3, None, 29)));
                let mut flow = 1000;
                let mut asks = |world: &World<'_>, number| {
                    flow += 1;
                    goes(world, &to_port(from(network, family, number, flow, kind), port))
                };
                for number in [8, 9, 10] {
                    assert_eq!(asks(&world, number), None);
                }
                // The network has used up what it may open at once, its neighbour has not.
                assert_eq!(asks(&world, 8), Some("rate_limited"));
                assert_eq!(asks(&world, 16), None);
                // One each quarter of a second.
                world.advance(SECOND / 4);
                assert_eq!((asks(&world, 11), asks(&world, 11)), (None, Some("rate_limited")));
                world.advance(100 * SECOND);
                let many: Vec<_> = (0..5).map(|_| asks(&world, 15)).collect();
                assert_eq!(many, [None, None, None, Some("rate_limited"), Some("rate_limited")]);
            }
        }
    });
}

#[test]
fn a_service_is_limited_by_its_own_rules_if_it_has_some() {
    network::run("guard-own-limit", |network| {
        let mut world = World::new(network, &description(network, 4));
        let mut access = limited(Some(1), 1, None, 32);
        access.rules_mut(Some(own(3))).limit =
            Some(Limit { rate: Some(1), burst: 2, ..Limit::default() });
        world.edit(|tables| put(tables, &access));
        let mut flow = 1000;
        let mut asks = |port| {
            flow += 1;
            goes(&world, &to_port(from(network, 4, 7, flow, Kind::Tcp(SYN)), port))
        };
        let slow = Some("rate_limited");
        assert_eq!([asks(80), asks(80)], [None, slow]);
        assert_eq!([asks(82), asks(82)], [None, slow], "each service counts for itself");
        assert_eq!([asks(81), asks(81), asks(81)], [None, None, slow]);
    });
}

#[test]
fn networks_have_no_more_connections_than_they_may() {
    network::run("guard-number", |network| {
        let mut world = World::new(network, &description(network, 4));
        for family in [4, 6] {
            world.reset(&description(network, family));
            world.edit(|tables| put(tables, &limited(None, 1, Some(3), 29)));
            let mut flow = 1000;
            let mut asks = |world: &World<'_>, number| {
                flow += 1;
                goes(world, &from(network, family, number, flow, Kind::Tcp(SYN)))
            };
            let four = [asks(&world, 8), asks(&world, 9), asks(&world, 15), asks(&world, 8)];
            assert_eq!(four, [None, None, None, Some("number_limited")]);
            assert_eq!(asks(&world, 16), None);
            let changes = world.snapshot();
            assert_eq!(changes.get("sources have").map(String::as_str), Some("4"));
        }
    });
}
