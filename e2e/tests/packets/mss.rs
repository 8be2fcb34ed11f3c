//! The largest segment that ends announce, limited.

use e2e::bpf::Input;
use e2e::network::{self, server_mac};
use e2e::packet::{Kind, Packet};
use e2e::scene::{REAL_PORT, plain, reply, request};
use e2e::table::Description;
use e2e::world::World;
use rlvs_datapath::abi::method;
use rlvs_datapath::frame::Verdict;
use rlvs_wire::tcp::{ACK, SYN};

const LIMIT: u16 = 1300;

/// Options with what they become: the value at even and at odd offsets, behind others, short enough,
/// absent, and in forms that are no MSS option.
fn options() -> Vec<(Vec<u8>, Vec<u8>)> {
    let [high, low] = LIMIT.to_be_bytes();
    let same = |options: &[u8]| (options.to_vec(), options.to_vec());
    vec![
        (vec![2, 4, 5, 180], vec![2, 4, high, low]),
        (vec![1, 2, 4, 255, 255, 1, 1, 0], vec![1, 2, 4, high, low, 1, 1, 0]),
        (
            [&[8, 10][..], &[7; 8], &[4, 2, 1, 3, 3, 9, 2, 4, 5, 180]].concat(),
            [&[8, 10][..], &[7; 8], &[4, 2, 1, 3, 3, 9, 2, 4, high, low]].concat(),
        ),
        same(&[2, 4, high, low]),
        same(&[2, 4, 0, 88]),
        same(&[]),
        same(&[0, 2, 4, 255]),
        same(&[2, 3, 255, 255]),
        same(&[1, 1, 1, 2]),
        same(&[3, 0, 2, 4, 255, 255, 0, 0]),
        same(&[3, 40, 2, 4, 255, 255, 0, 0]),
    ]
}

fn limited(description: Description) -> Description {
    Description { mss: LIMIT.into(), ..description }
}

#[test]
fn what_both_ends_announce_is_lowered_and_its_checksum_follows() {
    network::run("mss", |network| {
        let mut world = World::new(network, &plain(network, 4, method::MASQUERADE));
        for family in [4, 6] {
            for (options, lowered) in options() {
                world.reset(&limited(plain(network, family, method::MASQUERADE)));
                let packet = request(network, family, Kind::Tcp(SYN));
                let sent = Packet {
                    from: network.outside.mac,
                    to: server_mac(11),
                    target: (network::server(family, 11), REAL_PORT).into(),
                    ttl: 63,
                    ..packet.clone()
                };
                let outcome = world.step(&packet.with_options(&options)).same();
                let out = Verdict::Transmit { interface: network.outside.index };
                assert_eq!(outcome.verdict, out, "{options:?}");
                assert_eq!(outcome.bytes, sent.with_options(&lowered), "{options:?}");
                // A second one finds the connection and fares alike.
                let outcome = world.step(&packet.with_options(&options)).same();
                assert_eq!(outcome.bytes, sent.with_options(&lowered), "{options:?}");

                let answer = reply(network, family, Kind::Tcp(SYN | ACK));
                let given = Packet {
                    from: network.inside.mac,
                    to: network::GATEWAY_MAC,
                    source: packet.target,
                    ttl: 63,
                    ..answer.clone()
                };
                let frame = answer.with_options(&options);
                let outcome = world.step_with(&Input::new(&frame, network.outside.index)).same();
                assert_eq!(outcome.bytes, given.with_options(&lowered), "{options:?}");
            }
        }
    });
}

#[test]
fn later_segments_and_packets_of_others_keep_theirs() {
    network::run("mss-others", |network| {
        let world = World::new(network, &limited(plain(network, 4, method::DIRECT)));
        let said = [2, 4, 255, 255];
        let first = world.step(&request(network, 4, Kind::Tcp(SYN)).bytes()).same();
        assert_ne!(first.changes, [""; 0]);
        let packet = request(network, 4, Kind::Tcp(ACK));
        let sent =
            Packet { from: network.outside.mac, to: server_mac(11), ttl: 63, ..packet.clone() };
        let outcome = world.step(&packet.with_options(&said)).same();
        assert_eq!(outcome.bytes, sent.with_options(&said));
        let mut packet = request(network, 4, Kind::Tcp(SYN));
        packet.target.set_port(9);
        let outcome = world.step(&packet.with_options(&said)).same();
        assert_eq!(outcome.bytes, packet.with_options(&said));
    });
}
