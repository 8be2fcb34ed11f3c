//! Full NAT: both ends are replaced, both ways; what the pool gives and takes back.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use e2e::bpf::Input;
use e2e::host::{HostFrame, HostTables, decide};
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet};
use e2e::scene::{
    POOL_FIRST, PORT, REAL_PORT, TCP, UDP, description, full, reply, request, service,
    translate_fully,
};
use e2e::table::{Description, SECOND, Server};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{destination_flag, settings_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::state::State;
use rlvs_wire::tcp::{ACK, FIN, RST, SYN};

const FIRST: u16 = POOL_FIRST;

fn scene(network: &Network, family: u8, servers: &[u8]) -> Description {
    let servers: Vec<Server> = servers.iter().map(|&number| full(family, number)).collect();
    let services = vec![service(family, TCP, servers.clone()), service(family, UDP, servers)];
    let flags = settings_flag::WIDE;
    Description { flags, ..description(network, services) }
}

/// Begins anew, with a pool of so many ports at the director's address among the servers.
fn begin(world: &mut World<'_>, family: u8, servers: &[u8], ports: u16) {
    world.reset(&scene(world.network, family, servers));
    world.edit(|tables| {
        translate_fully(tables, ports);
        tables.pools[usize::from(family == 4)].length = 0;
    });
}

fn from(world: &World<'_>, family: u8, kind: Kind, number: u8, port: u16) -> Packet {
    Packet { source: (client(family, number), port).into(), ..request(world.network, family, kind) }
}

/// Returns the port that a frame comes from.
fn port_of(outcome: &Outcome) -> u16 {
    assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
    let at = e2e::packet::transport(&outcome.bytes);
    u16::from_be_bytes(outcome.bytes[at..][..2].try_into().unwrap())
}

fn seen(world: &World<'_>, name: &str) -> String {
    world.snapshot().get(name).cloned().unwrap_or_default()
}

/// Writes an end as snapshots do.
fn shown(end: SocketAddr) -> String {
    format!("{}:{}", end.ip(), end.port())
}

/// Returns the name of a half of a connection of a packet's protocol.
fn half(from: SocketAddr, to: SocketAddr, packet: &Packet) -> String {
    format!("{} to {} {}", shown(from), shown(to), packet.protocol())
}

fn pool_end(family: u8, port: u16) -> SocketAddr {
    (server(family, 1), port).into()
}

fn real_end(family: u8) -> SocketAddr {
    (server(family, 11), REAL_PORT).into()
}

fn virtual_end(family: u8) -> SocketAddr {
    (vip(family, 100), PORT).into()
}

/// Returns what server 11 says to a place of the pool.
fn to_pool(network: &Network, family: u8, kind: Kind, port: u16) -> Packet {
    Packet { target: pool_end(family, port), ..reply(network, family, kind) }
}

fn answer(world: &World<'_>, packet: &Packet) -> Outcome {
    world.step_with(&Input::new(&packet.bytes(), world.network.outside.index)).same()
}

fn scenes() -> [(u8, Kind); 4] {
    [(4, Kind::Tcp(SYN)), (6, Kind::Tcp(SYN)), (4, Kind::Udp), (6, Kind::Udp)]
}

fn of(kind: Kind, flags: u8) -> Kind {
    if kind == Kind::Udp { kind } else { Kind::Tcp(flags) }
}

/// Both directions, byte for byte, and every count.
#[test]
fn both_ends_are_replaced_both_ways() {
    network::run("full", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        for (family, kind) in scenes() {
            begin(&mut world, family, &[11], 8);
            let id = if kind == Kind::Udp { 2 } else { 1 };
            let said = from(&world, family, kind, 7, 4242);
            let outcome = world.step(&said.bytes()).same();
            let port = port_of(&outcome);
            assert!((FIRST..FIRST + 8).contains(&port), "{port}");
            let (source, target) = (pool_end(family, port), real_end(family));
            let (from_mac, to_mac) = (network.outside.mac, server_mac(11));
            let sent = |said: &Packet| Packet {
                from: from_mac,
                to: to_mac,
                source,
                target,
                ttl: said.ttl - 1,
                ..said.clone()
            };
            assert_eq!(outcome.bytes, sent(&said).bytes());
            let name = half(said.source, said.target, &said);
            let back = half(target, source, &said);
            let (state, count) = if id == 2 { ("UDP", "inactive") } else { ("SYN_RECV", "active") };
            for change in [
                format!("{name} = {state} d{id} for {}", shown(source)),
                format!("{back} = {state} d{id} for {}", shown(said.source)),
                format!("d{id} {count} = 1"),
                format!("d{id} connections = 1"),
                format!("d{id} packets in = 1"),
                format!("d{id} bytes in = {}", said.length()),
            ] {
                assert!(outcome.changes.contains(&change), "{change}: {:#?}", outcome.changes);
            }
            let back = to_pool(network, family, of(kind, SYN | ACK), port);
            let outcome = answer(&world, &back);
            let seen_by_client = |back: &Packet| Packet {
                from: network.inside.mac,
                to: GATEWAY_MAC,
                source: virtual_end(family),
                target: said.source,
                ttl: back.ttl - 1,
                ..back.clone()
            };
            assert_eq!(outcome.bytes, seen_by_client(&back).bytes());
            for change in
                [format!("d{id} packets out = 1"), format!("d{id} bytes out = {}", back.length())]
            {
                assert!(outcome.changes.contains(&change), "{change}: {:#?}", outcome.changes);
            }
            let next = Packet { kind: of(kind, ACK), ..said.clone() };
            assert_eq!(world.step(&next.bytes()).same().bytes, sent(&next).bytes());
            let state = if id == 2 { "UDP" } else { "ESTABLISHED" };
            assert_eq!(seen(&world, &name), format!("{state} d{id} for {}", shown(source)));
            assert_eq!(seen(&world, &format!("d{id} connections")), "1");
            if id == 2 {
                continue;
            }
            // Both halves end, and the counts with them.
            let back = to_pool(network, family, Kind::Tcp(FIN | ACK), port);
            assert_eq!(answer(&world, &back).bytes, seen_by_client(&back).bytes());
            let last = Packet { kind: Kind::Tcp(RST), ..said.clone() };
            assert_eq!(world.step(&last.bytes()).same().bytes, sent(&last).bytes());
            assert_eq!(seen(&world, &name), format!("CLOSE d{id} for {}", shown(source)));
            assert_eq!(seen(&world, "d1 active") + &seen(&world, "d1 inactive"), "1");
        }
    });
}

/// What both ends announce is lowered where that is limited, though no endpoint names the answer.
#[test]
fn what_both_ends_announce_is_lowered() {
    network::run("full-mss", |network| {
        let limited = Description { mss: 1300, ..scene(network, 4, &[11]) };
        let mut world = World::new(network, &limited);
        let (said, lowered) = ([2, 4, 5, 180], [2, 4, 5, 20]);
        for family in [4, 6] {
            begin(&mut world, family, &[11], 8);
            world.edit(|tables| tables.settings.mss = 1300);
            let packet = from(&world, family, Kind::Tcp(SYN), 7, 4242);
            let outcome = world.step(&packet.with_options(&said)).same();
            let port = port_of(&outcome);
            let sent = Packet {
                from: network.outside.mac,
                to: server_mac(11),
                source: pool_end(family, port),
                target: real_end(family),
                ttl: packet.ttl - 1,
                ..packet.clone()
            };
            assert_eq!(outcome.bytes, sent.with_options(&lowered));
            let back = to_pool(network, family, Kind::Tcp(SYN | ACK), port);
            let frame = back.with_options(&said);
            let outcome = world.step_with(&Input::new(&frame, network.outside.index)).same();
            let given = Packet {
                from: network.inside.mac,
                to: GATEWAY_MAC,
                source: virtual_end(family),
                target: packet.source,
                ttl: back.ttl - 1,
                ..back
            };
            assert_eq!(outcome.bytes, given.with_options(&lowered));
        }
    });
}

/// A datagram without checksum stays without.
#[test]
fn a_missing_checksum_stays_missing() {
    network::run("full-zero", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        begin(&mut world, 4, &[11], 8);
        let mut bytes = from(&world, 4, Kind::Udp, 7, 4242).bytes();
        e2e::packet::set_udp_checksum(&mut bytes, 0);
        let outcome = world.step(&bytes).same();
        assert!((FIRST..).contains(&port_of(&outcome)));
        assert_eq!(outcome.bytes[40..42], [0, 0]);
    });
}

/// Each server has all ports of the pool; who finds none is told, and a port whose connection is over
/// is given again.
#[test]
fn a_pool_is_used_up_and_filled_again() {
    network::run("full-pool", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        for (family, kind) in scenes() {
            begin(&mut world, family, &[11, 12], 8);
            let send = |world: &World<'_>, port| {
                world.step(&from(world, family, kind, 7, port).bytes()).same()
            };
            let mut places: Vec<(u8, u16)> = (1000..1016)
                .map(|port| send(&world, port))
                .map(|outcome| (outcome.bytes[5], port_of(&outcome)))
                .collect();
            places.sort_unstable();
            let every = |server| (FIRST..FIRST + 8).map(move |port| (server, port));
            assert_eq!(places, every(11).chain(every(12)).collect::<Vec<_>>());
            let refused = send(&world, 1016);
            let inside = network.inside.index;
            assert_eq!(refused.verdict, Verdict::Transmit { interface: inside });
            let icmp = if family == 4 { 34 } else { 54 };
            let unreachable = if family == 4 { [3, 3] } else { [1, 4] };
            assert_eq!(refused.bytes[icmp..][..2], unreachable);
            assert_eq!(seen(&world, "reason no_port"), "1");
            // What is there goes on.
            assert!((FIRST..FIRST + 8).contains(&port_of(&send(&world, 1003))));
            // The first connections are over.
            world.advance(301 * SECOND);
            assert!((FIRST..FIRST + 8).contains(&port_of(&send(&world, 1016))));
            assert_eq!(seen(&world, "reason no_port"), "1");
            // Without a pool nobody is served.
            world.edit(|tables| tables.pools[usize::from(family == 6)].length = 0);
            assert_eq!(send(&world, 1017).verdict, Verdict::Transmit { interface: inside });
            assert_eq!(seen(&world, "reason no_port"), "2");
        }
    });
}

/// A client that nobody answers keeps its place of the pool as long as it sends.
#[test]
fn a_place_without_answers_is_not_given_away() {
    network::run("full-mute", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        begin(&mut world, 4, &[11], 1);
        let send = |world: &World<'_>, number| {
            world.step(&from(world, 4, Kind::Udp, number, 4242).bytes()).same()
        };
        assert_eq!(port_of(&send(&world, 7)), FIRST);
        for _ in 0..3 {
            world.advance(200 * SECOND);
            assert_eq!(port_of(&send(&world, 7)), FIRST);
            let refused = Verdict::Transmit { interface: network.inside.index };
            assert_eq!(send(&world, 8).verdict, refused);
        }
        assert_eq!(seen(&world, "reason no_port"), "3");
        assert_eq!(seen(&world, "d2 connections"), "1");
        // When it is silent too, another has it.
        world.advance(301 * SECOND);
        assert_eq!(port_of(&send(&world, 8)), FIRST);
        assert_eq!(seen(&world, "d2 connections"), "2");
    });
}

/// Who has lost its place to another has neither that nor the other's connection.
#[test]
fn a_place_given_to_another_is_lost() {
    network::run("full-lost", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        for (family, kind) in scenes() {
            begin(&mut world, family, &[11], 1);
            let send = |world: &World<'_>, number| {
                world.step(&from(world, family, kind, number, 4242).bytes()).same()
            };
            assert_eq!(port_of(&send(&world, 7)), FIRST);
            world.advance(301 * SECOND);
            assert_eq!(port_of(&send(&world, 8)), FIRST);
            let kinds = [of(kind, ACK), kind];
            for kind in kinds {
                let late = world.step(&from(&world, family, kind, 7, 4242).bytes()).same();
                let is_refused = late.verdict
                    == Verdict::Transmit { interface: network.inside.index }
                    || late.verdict == Verdict::Pass(Reason::NoConnection);
                assert!(is_refused, "{kind:?}: {late:?}");
            }
            let back = to_pool(network, family, of(kind, SYN | ACK), FIRST);
            let outcome = answer(&world, &back);
            let got = e2e::packet::transport(&outcome.bytes);
            let target = match client(family, 8) {
                std::net::IpAddr::V4(address) => address.octets().to_vec(),
                std::net::IpAddr::V6(address) => address.octets().to_vec(),
            };
            assert_eq!(outcome.bytes[got - target.len()..got], target);
            e2e::snapshot::assert_counts(world.tables());
        }
    });
}

/// A client sends in the moment in which its connection runs out, while its place of the pool is given to
/// another client on another CPU, in every order of their compare-and-swaps. Either has the place in the end,
/// and who does not sends nothing from there.
#[test]
fn a_place_is_given_away_or_used_but_not_both() {
    network::run("full-race", |network| {
        for (family, kind) in scenes() {
            for (first, second) in [(7, 8), (8, 7)] {
                let orders = (0..100).take_while(|&swaps| {
                    let race = Race { network, family, kind };
                    race.is_run(first, second, swaps)
                });
                // Of the one that gives away there are two locks and four halves.
                assert!(orders.count() > if first == 8 { 8 } else { 0 });
            }
        }
    });
}

/// Two clients and a pool of one place.
struct Race<'a> {
    network: &'a Network,
    family: u8,
    kind: Kind,
}

impl Race<'_> {
    fn frame(&self, number: u8) -> Vec<u8> {
        let end = (client(self.family, number), 4242).into();
        Packet { source: end, ..request(self.network, self.family, self.kind) }.bytes()
    }

    /// Returns the coarse time at which a client sends: the last at which the first's connection is there, and
    /// the next.
    fn time(&self, tables: &HostTables, number: u8) -> u64 {
        let state = if self.kind == Kind::Udp { State::UDP } else { State::SYN_RECV };
        let life = u64::from(tables.settings.timeouts[state.0 as usize]);
        1_000 + life + u64::from(number == 8)
    }

    /// Has `second` send after so many compare-and-swaps of what `first` does. Returns whether there were as
    /// many.
    fn is_run(&self, first: u8, second: u8, swaps: u32) -> bool {
        let mut tables = scene(self.network, self.family, &[11]).build();
        assert!(tables.settings.cpus > 1, "a race needs two CPUs");
        translate_fully(&mut tables, 1);
        let set = |tables: &HostTables, units: u64, cpu: u32| {
            tables.jiffies.set(units << tables.settings.clock_shift);
            tables.cpu.set(cpu);
        };
        let (routes, inside) = (&self.network.routes, self.network.inside.index);
        let run = |tables: &HostTables, number| {
            let bytes = self.frame(number);
            let mut frame = HostFrame::<true>::new(&bytes, inside, routes);
            let verdict = decide(&mut frame, tables);
            Outcome { verdict, bytes: frame.bytes, changes: Vec::new() }
        };
        set(&tables, 1_000, 0);
        assert_eq!(port_of(&run(&tables, 7)), FIRST);
        let (times, other) =
            ([first, second].map(|number| self.time(&tables, number)), self.frame(second));
        let (routes_there, sent) = (routes.clone(), Rc::new(Cell::new(false)));
        let sent_there = sent.clone();
        tables.meanwhile.set(swaps, move |tables| {
            set(tables, times[1], 1);
            let mut frame = HostFrame::<true>::new(&other, inside, &routes_there);
            let verdict = decide(&mut frame, tables);
            sent_there.set(is_from_pool(verdict, &frame.bytes));
            set(tables, times[0], 0);
        });
        set(&tables, times[0], 0);
        let outcome = run(&tables, first);
        if tables.meanwhile.is_left() {
            return false;
        }
        let outcomes =
            [(first, is_from_pool(outcome.verdict, &outcome.bytes)), (second, sent.get())];
        self.check(
            &tables,
            &outcomes,
            &format!("{:?} IPv{}: {first}, {swaps}", self.kind, self.family),
        );
        true
    }

    fn check(&self, tables: &HostTables, outcomes: &[(u8, bool)], said: &str) {
        let entries = e2e::snapshot::take(tables);
        let packet = request(self.network, self.family, self.kind);
        let back = half(real_end(self.family), pool_end(self.family, FIRST), &packet);
        let owner = entries.get(&back).cloned().unwrap_or_default();
        for &(number, has_sent) in outcomes {
            let end = (client(self.family, number), 4242).into();
            let is_there = entries.contains_key(&half(end, packet.target, &packet));
            let owns = owner.contains(&format!(" for {}", shown(end)));
            assert!(
                !is_there || owns,
                "{said}: {number} has a connection without a place: {entries:#?}"
            );
            assert!(
                !has_sent || is_there,
                "{said}: {number} sent from a place that it lost: {entries:#?}"
            );
        }
        e2e::snapshot::assert_counts(tables);
    }
}

/// Returns whether a frame went to the server from the place of the pool.
fn is_from_pool(verdict: Verdict, bytes: &[u8]) -> bool {
    let at = e2e::packet::transport(bytes);
    matches!(verdict, Verdict::Transmit { .. }) && bytes[at..][..2] == FIRST.to_be_bytes()
}

/// The same client port gets the same port of the pool again, also when it begins anew.
#[test]
fn a_flow_keeps_its_port() {
    network::run("full-again", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        begin(&mut world, 4, &[11], 20_000);
        let syn = from(&world, 4, Kind::Tcp(SYN), 7, 4242);
        let port = port_of(&world.step(&syn.bytes()).same());
        let _: Outcome = answer(&world, &to_pool(network, 4, Kind::Tcp(SYN | ACK), port));
        let last = Packet { kind: Kind::Tcp(FIN | ACK), ..syn.clone() };
        assert_eq!(port_of(&world.step(&last.bytes()).same()), port);
        let _: Outcome = answer(&world, &to_pool(network, 4, Kind::Tcp(FIN | ACK), port));
        let name = format!("{} to {} 6", syn.source, syn.target);
        assert!(seen(&world, &name).starts_with("TIME_WAIT"), "{}", seen(&world, &name));
        assert_eq!(port_of(&world.step(&syn.bytes()).same()), port);
        let state = seen(&world, &name);
        assert!(state.starts_with("SYN_RECV d1"), "{state}");
        assert_eq!(seen(&world, "d1 connections"), "2");
        assert_eq!(seen(&world, "d1 active"), "1");
        assert_eq!(e2e::snapshot::wide_entries(world.tables()).len(), 2);
    });
}

/// The stack would answer with a reset in the pool's name: the server is told by us.
#[test]
fn a_server_is_told_what_does_not_pass() {
    network::run("full-told", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        for family in [4, 6] {
            begin(&mut world, family, &[11], 8);
            let syn = from(&world, family, Kind::Tcp(SYN), 7, 4242);
            let port = port_of(&world.step(&syn.bytes()).same());
            let old = Packet { ttl: 1, ..to_pool(network, family, Kind::Tcp(ACK), port) };
            let long = Packet { payload: vec![7; 1600], ttl: 64, ..old.clone() };
            let kinds = if family == 4 { [[11, 0], [3, 4]] } else { [[3, 0], [2, 0]] };
            for (packet, kind) in [old, long].into_iter().zip(kinds) {
                let bytes = packet.bytes();
                let input = Input::new(&bytes, network.outside.index);
                let outcome = world.step_with(&input).same();
                let out = Verdict::Transmit { interface: network.outside.index };
                assert_eq!(outcome.verdict, out, "{kind:?}");
                assert_eq!(outcome.bytes[..6], server_mac(11));
                let icmp = if family == 4 { 34 } else { 54 };
                assert_eq!(outcome.bytes[icmp..][..2], kind);
            }
            // One that belongs to nothing is the stack's.
            let stray = to_pool(network, family, Kind::Tcp(ACK), port + 8);
            let outcome = answer(&world, &stray);
            assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoService));
        }
    });
}

#[test]
fn a_removed_server_is_silent() {
    network::run("full-gone", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        begin(&mut world, 4, &[11], 8);
        let syn = from(&world, 4, Kind::Tcp(SYN), 7, 4242);
        let port = port_of(&world.step(&syn.bytes()).same());
        world.edit(|tables| tables.destinations[1].flags &= !destination_flag::AVAILABLE);
        let ack = Packet { kind: Kind::Tcp(ACK), ..syn };
        let removed = Verdict::Drop(Reason::Removed);
        assert_eq!(world.step(&ack.bytes()).same().verdict, removed);
        let back = to_pool(network, 4, Kind::Tcp(SYN | ACK), port);
        assert_eq!(answer(&world, &back).verdict, removed);
    });
}

/// A packet in the middle of nothing is the stack's.
#[test]
fn what_begins_nothing_passes() {
    network::run("full-nothing", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        begin(&mut world, 4, &[11], 8);
        let ack = from(&world, 4, Kind::Tcp(ACK), 7, 4242);
        let outcome = world.step(&ack.bytes()).same();
        assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
        assert!(e2e::snapshot::wide_entries(world.tables()).is_empty());
    });
}

/// A destination of ordinary NAT beside one of full NAT, and a template that leads to either.
#[test]
fn other_destinations_and_templates_go_with_it() {
    network::run("full-mixed", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        for family in [4, 6] {
            begin(&mut world, family, &[11, 12], 8);
            // Service 1 has destinations 1 and 2.
            world.edit(|tables| {
                tables.destinations[2].flags &= !destination_flag::FULL;
                (tables.services[1].persistence, tables.services[1].mask) =
                    (100 * SECOND, [0xff; 16]);
            });
            let syn = Kind::Tcp(SYN);
            for (number, to) in [(7, 11), (8, 12)] {
                for port in 1000..1003 {
                    let packet = from(&world, family, syn, number, port);
                    let outcome = world.step(&packet.bytes()).same();
                    assert_eq!(outcome.bytes[5], to);
                    assert_eq!(port_of(&outcome) == port, to == 12, "{port}");
                }
                let name = format!("{} template s1", client(family, number));
                assert_eq!(seen(&world, &name), format!("NONE d{} holds 3", to - 10));
            }
            let plain = from(&world, family, syn, 8, 1000);
            let back = Packet {
                source: (server(family, 12), REAL_PORT).into(),
                target: plain.source,
                ..reply(network, family, Kind::Tcp(SYN | ACK))
            };
            let outcome = answer(&world, &back);
            let expected = Packet {
                from: network.inside.mac,
                to: GATEWAY_MAC,
                source: virtual_end(family),
                ttl: back.ttl - 1,
                ..back.clone()
            };
            assert_eq!(outcome.bytes, expected.bytes());
            let ack = Packet { kind: Kind::Tcp(ACK), ..plain };
            assert_eq!(world.step(&ack.bytes()).same().bytes[5], 12);
            assert!(seen(&world, "reason no_port").is_empty());
        }
    });
}

fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    packet.bytes()[14..][..header + bytes].to_vec()
}

/// Errors about what either end said, from the end itself or a router, come to the other end about what
/// that has said.
#[test]
fn errors_go_to_who_said_what_they_quote() {
    network::run("full-errors", |network| {
        let mut world = World::new(network, &scene(network, 4, &[11]));
        for (family, kind) in scenes() {
            begin(&mut world, family, &[11], 8);
            let said = from(&world, family, kind, 7, 4242);
            let port = port_of(&world.step(&said.bytes()).same());
            let (message, rest) = match family {
                4 => ([3, 3], [0; 4]),
                _ => ([1, 4], [0; 4]),
            };
            let plain = |source, target, kind| Packet {
                from: [0; 6],
                to: [0; 6],
                source,
                target,
                kind: of(kind, ACK),
                ttl: 57,
                payload: b"what somebody said, and nobody heard".to_vec(),
            };
            for length in [8, 16, 18, 28] {
                for who in [11, 12] {
                    let sent = plain(pool_end(family, port), real_end(family), kind);
                    let seen = plain(said.source, virtual_end(family), kind);
                    let error = Message {
                        from: server_mac(11),
                        to: network.outside.mac,
                        source: server(family, who),
                        target: server(family, 1),
                        ttl: 64,
                        kind: message,
                        rest,
                        payload: quote(&sent, length),
                    };
                    let expected = Message {
                        from: network.inside.mac,
                        to: GATEWAY_MAC,
                        source: vip(family, 100),
                        target: client(family, 7),
                        ttl: 63,
                        payload: quote(&seen, length),
                        ..error.clone()
                    };
                    let input = error.bytes();
                    let input = Input::new(&input, network.outside.index);
                    assert_eq!(world.step_with(&input).same().bytes, expected.bytes());
                }
                let sent = plain(virtual_end(family), said.source, kind);
                let seen = plain(real_end(family), pool_end(family, port), kind);
                let error = Message {
                    from: GATEWAY_MAC,
                    to: network.inside.mac,
                    source: client(family, 9),
                    target: vip(family, 100),
                    ttl: 64,
                    kind: message,
                    rest,
                    payload: quote(&sent, length),
                };
                let expected = Message {
                    from: network.outside.mac,
                    to: server_mac(11),
                    source: server(family, 1),
                    target: server(family, 11),
                    ttl: 63,
                    payload: quote(&seen, length),
                    ..error.clone()
                };
                assert_eq!(world.step(&error.bytes()).same().bytes, expected.bytes());
            }
        }
    });
}
