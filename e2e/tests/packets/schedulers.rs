//! Which destination takes a connection, as the servers see it.

use std::cell::RefCell;

use e2e::bpf::Input;
use e2e::director::Director;
use e2e::host::{HostFrame, HostTables, decide};
use e2e::network::{self, Network, client, server_mac, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene::{TCP, UDP, description, destination, request, service};
use e2e::table::{SECOND, Server, Virtual};
use e2e::world::World;
use rlvs_datapath::abi::{method, scheduler};
use rlvs_datapath::frame::Verdict;
use rlvs_wire::tcp::{ACK, FIN, SYN};

/// Opens connections from as many ports; returns the servers that got them.
fn picks(world: &World<'_>, network: &Network, family: u8, kind: Kind, count: u16) -> Vec<u8> {
    let pick = |port| {
        let mut packet = request(network, family, kind);
        packet.source.set_port(port);
        let outcome = world.step_quietly(&Input::new(&packet.bytes(), network.inside.index), false);
        assert_eq!(outcome.xdp, outcome.tc);
        outcome.xdp.bytes[5]
    };
    (1..=count).map(pick).collect()
}

#[test]
fn rr_and_wrr_pick_in_order() {
    network::run("picks", |network| {
        let mut world = World::new(network, &description(network, Vec::new()));
        for (family, protocol, kind) in [(4, TCP, Kind::Tcp(SYN)), (6, UDP, Kind::Udp)] {
            for method in [method::DIRECT, method::MASQUERADE] {
                let mut servers = [11, 12, 13].map(|number| destination(family, number, method));
                let mut service = service(family, protocol, servers.to_vec());
                world.reset(&description(network, vec![service.clone()]));
                let seen = picks(&world, network, family, kind, 7);
                assert_eq!(seen, [11, 12, 13, 11, 12, 13, 11]);

                for (server, weight) in servers.iter_mut().zip([3, 2, 1]) {
                    server.weight = weight;
                }
                (service.scheduler, service.servers) = (scheduler::WRR, servers.to_vec());
                world.reset(&description(network, vec![service.clone()]));
                let seen = picks(&world, network, family, kind, 12);
                assert_eq!(seen, [11, 11, 12, 11, 12, 13, 11, 11, 12, 11, 12, 13]);

                // A weight of 0, told before the ring is replaced, takes no new connection.
                world.edit(|tables| tables.destinations[1].weight = 0);
                let seen = picks(&world, network, family, kind, 18);
                assert_eq!(seen[..12], [11, 11, 12, 11, 12, 13, 11, 11, 12, 11, 12, 13]);
                assert_eq!(seen[12..], [12, 12, 13, 12, 12, 13]);
            }
        }
    });
}

/// One client port reaches one server by two services: the server could not tell the connections
/// apart, so the second goes to the next destination.
#[test]
fn a_tuple_that_is_taken_picks_another_destination() {
    network::run("taken", |network| {
        let scene = |family| {
            let servers = [11, 12].map(|number| destination(family, number, method::MASQUERADE));
            let one = service(family, TCP, servers.to_vec());
            let mut other = one.clone();
            other.address = vip(family, 101);
            description(network, vec![one, other])
        };
        let mut world = World::new(network, &scene(4));
        for family in [4, 6] {
            world.reset(&scene(family));
            let one = request(network, family, Kind::Tcp(SYN));
            let other = Packet { target: (vip(family, 101), 80).into(), ..one.clone() };
            let first = world.step(&one.bytes()).same();
            let second = world.step(&other.bytes()).same();
            assert_eq!(first.bytes[..6], server_mac(11));
            assert_eq!(second.bytes[..6], server_mac(12));
            let client = client(family, 7);
            let changes: Vec<&String> =
                second.changes.iter().filter(|line| !line.starts_with("occupied")).collect();
            assert_eq!(
                changes,
                [
                    &format!("{client}:4242 r2 = SYN_RECV d4 paired reply"),
                    &format!("{client}:4242 s2 = SYN_RECV d4 paired"),
                    "d4 active = 1",
                    &format!("d4 bytes in = {}", one.length()),
                    "d4 connections = 1",
                    "d4 packets in = 1",
                    "d4 way = .. 0c",
                    "s2 local = yes",
                    "s2 position = 2",
                ]
            );
        }
    });
}

/// A service of several destinations as clients, servers and the administrator see it.
struct Town<'a> {
    world: World<'a>,
    network: &'a Network,
    director: Director,
    family: u8,
    method: u8,
}

/// Destinations that a town has, each with its number as id less 10.
const NUMBERS: std::ops::RangeInclusive<u8> = 11..=15;

impl<'a> Town<'a> {
    fn new(network: &'a Network) -> Self {
        let mut world = World::new(network, &description(network, Vec::new()));
        let director = begin(&mut world, scheduler::RR, 0);
        Self { world, network, director, family: 4, method: method::DIRECT }
    }

    /// Begins again with another scheduler and the first destinations, of these weights, the last
    /// added first.
    fn begin(&mut self, family: u8, number: u32, flags: u32, weights: &[u32]) {
        (self.family, self.method) = (family, method::DIRECT);
        let servers = NUMBERS.map(|number| destination(family, number, method::DIRECT)).collect();
        let service = service(family, TCP, servers);
        self.world.reset(&description(self.network, vec![service]));
        self.director = begin(&mut self.world, number, flags);
        for (id, &weight) in (1..).zip(weights) {
            self.add(id, |server| server.weight = weight);
        }
    }

    fn edit(&mut self, change: impl Fn(&mut Director, &mut HostTables)) {
        let after = RefCell::new(self.director.clone());
        self.world.edit(|tables| {
            let mut director = self.director.clone();
            change(&mut director, tables);
            after.replace(director);
        });
        self.director = after.into_inner();
    }

    fn server(&self, id: u32, set: impl Fn(&mut Server)) -> Server {
        let mut server = destination(self.family, 10 + id as u8, self.method);
        set(&mut server);
        server
    }

    fn add(&mut self, id: u32, set: impl Fn(&mut Server)) {
        let server = self.server(id, set);
        self.edit(|director, tables| director.add(tables, id, &server));
    }

    fn change(&mut self, id: u32, set: impl Fn(&mut Server)) {
        let server = self.server(id, set);
        self.edit(|director, tables| director.edit(tables, id, &server));
    }

    fn remove(&mut self, id: u32) {
        self.edit(|director, tables| director.remove(tables, id));
    }

    /// Sends a packet through all bodies; returns the id of the destination that got it.
    fn send(&self, client: u8, port: u16, flags: u8) -> Option<u32> {
        let mut packet = request(self.network, self.family, Kind::Tcp(flags));
        packet.source = (network::client(self.family, client), port).into();
        let bytes = packet.bytes();
        let input = Input::new(&bytes, self.network.inside.index);
        let outcome = self.world.step_quietly(&input, false);
        assert_eq!(outcome.xdp, outcome.tc);
        let servers = outcome.xdp.bytes[..5] == server_mac(0)[..5];
        servers.then(|| u32::from(outcome.xdp.bytes[5]) - 10)
    }

    fn connections(&self, id: u32) -> [u64; 2] {
        let word = self.world.tables().counts[id as usize].connections.get();
        [word & 0xffff_ffff, word >> 32]
    }
}

fn begin(world: &mut World<'_>, number: u32, flags: u32) -> Director {
    let director = RefCell::new(None);
    world.edit(|tables| {
        director.replace(Some(Director::new(number, flags, tables)));
    });
    director.into_inner().unwrap()
}

/// Every scheduler, with connections that come and go and destinations that are edited: the bodies are
/// equal after each packet, and nobody gets a connection who may not.
#[test]
fn every_scheduler_is_the_same_in_all_bodies() {
    network::run("all", |network| {
        let mut town = Town::new(network);
        for (name, number) in rlvs_control::scheduler::ALL {
            for flags in 0..4 {
                if flags != 0 && !["sh", "mh"].contains(&name) {
                    continue;
                }
                for family in [4, 6] {
                    live(&mut town, family, number, flags);
                }
            }
        }
    });
}

fn live(town: &mut Town<'_>, family: u8, number: u32, flags: u32) {
    town.begin(family, number, flags, &[3, 2, 0]);
    let mut open = Vec::new();
    for turn in 0..48_u16 {
        match turn {
            10 => town.change(3, |server| server.weight = 4),
            16 => town.add(4, |server| (server.weight, server.upper, server.lower) = (9, 3, 1)),
            24 => town.change(1, |server| (server.weight, server.upper) = (0, 1)),
            32 => town.remove(2),
            36 => town.change(3, |server| (server.weight, server.upper) = (1, 2)),
            40 => town.add(2, |server| server.weight = 2),
            _ => {}
        }
        let (client, port) = (1 + turn as u8 % 7, 2000 + turn);
        if let Some(id) = town.send(client, port, SYN) {
            assert!(town.director.ids().any(|listed| listed == id), "{id} is not in the list");
            assert_ne!(town.world.tables().destinations[id as usize].weight, 0);
            open.push((client, port, id));
        }
        if turn % 3 == 2 && !open.is_empty() {
            let (client, port, id) = open.remove(usize::from(turn * 5) % open.len());
            let sent = town.send(client, port, FIN | ACK);
            assert!(sent.is_none_or(|sent| sent == id));
        }
    }
    assert!(!open.is_empty(), "scheduler {number} has scheduled something");
}

/// A destination takes as many connections as its upper threshold says, and new ones once it has fewer
/// than the lower: three quarters of the upper if none is set.
#[test]
fn thresholds_stop_and_start_as_in_the_kernel() {
    network::run("thresholds", |network| {
        let mut town = Town::new(network);
        for number in [scheduler::RR, scheduler::WLC, scheduler::SED, scheduler::P2C] {
            // ipvs.md §2.1: upper, lower, connections left when it opens again.
            for (upper, lower, reopens) in [(4, 0, 2), (8, 0, 5), (3, 0, 2), (4, 2, 1)] {
                town.begin(4, number, 0, &[]);
                town.add(1, |server| (server.upper, server.lower) = (upper, lower));
                let opened: Vec<bool> =
                    (0..12).map(|port| town.send(1, 3000 + port, SYN).is_some()).collect();
                assert_eq!(opened.iter().filter(|opened| **opened).count(), upper as usize);
                assert!(opened[..upper as usize].iter().all(|opened| *opened));
                // Connections that run out.
                for left in (0..upper).rev() {
                    town.world.edit(|tables| {
                        tables.counts[1].connections.set(left.into());
                    });
                    let reopened = town.send(1, 4000 + left as u16, SYN).is_some();
                    assert_eq!(reopened, left <= reopens, "{left} left of {upper}, {lower}");
                    if reopened {
                        break;
                    }
                }
            }
        }
    });
}

/// Thresholds that are edited hold at once for what is there, as `__ip_vs_update_dest()`.
#[test]
fn edited_thresholds_hold_for_the_connections_that_are_there() {
    network::run("edited", |network| {
        let mut town = Town::new(network);
        town.begin(4, scheduler::LC, 0, &[]);
        town.add(1, |server| server.upper = 3);
        let mut port = 5000;
        let mut opens = |town: &Town<'_>| {
            port += 1;
            town.send(1, port, SYN).is_some()
        };
        assert_eq!([(); 4].map(|()| opens(&town)), [true, true, true, false]);
        town.change(1, |server| server.upper = 0);
        assert!(opens(&town), "without thresholds it takes any number");
        town.change(1, |server| server.upper = 4);
        assert!(!opens(&town), "four connections are as many as four");
        town.change(1, |server| (server.upper, server.lower) = (6, 5));
        assert!(opens(&town), "four are fewer than the lower threshold");
        assert!(opens(&town));
        assert!(!opens(&town), "six are as many as six");
        town.change(1, |server| (server.upper, server.lower) = (9, 6));
        assert!(!opens(&town), "six are not fewer than the lower threshold");
        town.world.edit(|tables| tables.counts[1].connections.set(5));
        assert!(opens(&town));
        assert_eq!(town.connections(1), [6, 0]);
    });
}

/// lblc stays with the server of a virtual address until it has too much to do; what it chose is
/// forgotten with the destination.
#[test]
fn a_favourite_is_kept_until_it_is_hot_or_gone() {
    network::run("favourite", |network| {
        let mut town = Town::new(network);
        for (number, after) in [(scheduler::LBLC, 1), (scheduler::LBLCR, 1)] {
            town.begin(4, number, 0, &[4, 4, 4]);
            let held: Vec<_> = (0..6).map(|port| town.send(1, 6000 + port, SYN)).collect();
            // Five connections are more than its weight, and others have less than two.
            assert_eq!(held, [3, 3, 3, 3, 3, 2].map(Some));
            town.remove(2);
            assert_eq!(town.send(1, 6100, SYN), Some(after));
            town.change(1, |server| server.weight = 0);
            assert_eq!(town.send(1, 6101, SYN), Some(3));
        }
    });
}

/// What nobody has used for `lblc_expiration` seconds is forgotten: the server with the least load
/// comes next.
#[test]
fn a_favourite_that_is_not_used_expires() {
    network::run("fav-expiry", |network| {
        let mut town = Town::new(network);
        for number in [scheduler::LBLC, scheduler::LBLCR] {
            town.begin(4, number, 0, &[4, 4, 4]);
            town.world.edit(|tables| {
                // The other's is no business of this one.
                let of = &mut tables.settings;
                (of.lblc_expiration, of.lblcr_expiration) =
                    if number == scheduler::LBLC { (10, 1) } else { (1, 10) };
            });
            assert_eq!(town.send(1, 6000, SYN), Some(3));
            // Each use begins its time again.
            for port in 6001..6003 {
                town.world.advance(9 * SECOND);
                assert_eq!(town.send(1, port, SYN), Some(3), "{number}");
            }
            town.world.advance(11 * SECOND);
            assert_eq!(town.send(1, 6003, SYN), Some(2), "{number}");
        }
    });
}

/// A set of lblcr that has not changed for `lblcr_expiration` seconds loses the server with the most
/// load, as `ip_vs_lblcr_schedule()` does.
#[test]
fn a_set_that_does_not_change_gets_smaller() {
    network::run("set-expiry", |network| {
        let mut town = Town::new(network);
        town.begin(4, scheduler::LBLCR, 0, &[4, 4, 4]);
        town.world.edit(|tables| tables.settings.lblcr_expiration = 10);
        let picks: Vec<_> = (0..6).map(|port| town.send(1, 6000 + port, SYN)).collect();
        assert_eq!(picks, [3, 3, 3, 3, 3, 2].map(Some));
        let members = |town: &Town<'_>| {
            let entries = &town.world.tables().favourites;
            let entry = entries.iter().find(|entry| entry.key.get() != 0).unwrap();
            entry.members.iter().map(|id| id.get()).take_while(|id| *id != 0).collect::<Vec<_>>()
        };
        assert_eq!(members(&town), [2, 3]);
        town.world.advance(6 * SECOND);
        assert_eq!(town.send(1, 6100, SYN), Some(2));
        assert_eq!(members(&town), [2, 3]);
        town.world.advance(5 * SECOND);
        assert_eq!(town.send(1, 6101, SYN), Some(2));
        assert_eq!(members(&town), [2]);
    });
}

/// Where loads are equal the kernel's twos gives each destination its weight in the sum of weights
/// and one, and the first one more; with p2c loads are as weights.
#[test]
fn twos_and_p2c_draw_by_weight_and_load() {
    network::run("draw", |network| {
        let mut town = Town::new(network);
        let draw = |town: &Town<'_>, port, forget: bool| {
            let mut packet = request(network, 4, Kind::Tcp(SYN));
            packet.source.set_port(port);
            let bytes = packet.bytes();
            let mut frame = HostFrame::<true>::new(&bytes, network.inside.index, &network.routes);
            decide(&mut frame, town.world.tables());
            let id = frame.bytes[5] - 10;
            if forget {
                let counts = &town.world.tables().counts[usize::from(id)];
                counts.connections.set(0);
                let slots = town.world.tables().connections4.iter().flat_map(|b| &b.slots);
                slots.for_each(|slot| (slot.key.set(0), slot.value.set(0)).1);
            }
            usize::from(id)
        };
        town.begin(4, scheduler::TWOS, 0, &[3, 2]);
        let mut drawn = [0_usize; 4];
        (0..3000).for_each(|port| drawn[draw(&town, 1000 + port, true)] += 1);
        // Two of weight 2 and 3: the first in the list, the last added, has 3 of 6.
        assert!(drawn[1].abs_diff(1500) < 120 && drawn[2].abs_diff(1500) < 120, "{drawn:?}");

        town.begin(4, scheduler::P2C, 0, &[3, 2, 1]);
        let mut drawn = [0_usize; 4];
        (0..180).for_each(|port| drawn[draw(&town, 1000 + port, false)] += 1);
        for (drawn, expected) in drawn[1..].iter().zip([90_usize, 60, 30]) {
            assert!(drawn.abs_diff(expected) <= 4, "{drawn} instead of {expected}");
        }
    });
}

/// Who takes a connection is found in a time that does not depend on how many destinations there are; twos, which
/// looks at all of them, is there to show that it is seen.
#[test]
fn some_choose_as_quickly_among_many() {
    const CHOSEN: [u32; 6] = [
        scheduler::RR,
        scheduler::WRR,
        scheduler::SH,
        scheduler::DH,
        scheduler::MH,
        scheduler::P2C,
    ];
    network::run("looks", |network| {
        // How often the table is looked at for a connection, at most.
        let looks = |number: u32, count: u8| {
            let servers = (11..11 + count).map(|number| destination(4, number, method::DIRECT));
            let service = Virtual { scheduler: number, ..service(4, TCP, servers.rev().collect()) };
            let tables = description(network, vec![service]).build();
            let look = |port| {
                let mut packet = request(network, 4, Kind::Tcp(SYN));
                packet.source.set_port(port);
                let bytes = packet.bytes();
                let mut frame =
                    HostFrame::<true>::new(&bytes, network.inside.index, &network.routes);
                tables.looks.set(0);
                let verdict = decide(&mut frame, &tables);
                assert!(!matches!(verdict, Verdict::Drop(_)), "{number}: {verdict:?}");
                tables.looks.get()
            };
            (1000..1050).map(look).max()
        };
        for number in CHOSEN {
            assert_eq!(looks(number, 100), looks(number, 4), "scheduler {number}");
        }
        assert!(looks(scheduler::TWOS, 100) > looks(scheduler::TWOS, 4));
    });
}
