//! Which destination takes a connection, as the servers see it.

use e2e::bpf::Input;
use e2e::network::{self, Network, client, server_mac, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene::{TCP, UDP, description, destination, request, service};
use e2e::world::World;
use rlvs_datapath::abi::{method, scheduler};
use rlvs_wire::tcp::SYN;

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
