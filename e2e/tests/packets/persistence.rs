//! Persistence: which server a client gets, what its template counts and controls, when that ends.

use e2e::bpf::Input;
use e2e::network::{self, Network, client};
use e2e::packet::Kind;
use e2e::scene::{TCP, UDP, description, destination, reply, request, service};
use e2e::table::{Description, SECOND};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{method, service_flag, settings_flag};
use rlvs_wire::tcp::{ACK, FIN, RST, SYN};

/// Seconds that templates live.
const LIFE_S: u32 = 100;

fn scene(network: &Network, family: u8, method: u8) -> Description {
    let servers = || [11, 12].map(|number| destination(family, number, method)).to_vec();
    let services = vec![service(family, TCP, servers()), service(family, UDP, servers())];
    description(network, services)
}

/// Makes both services persistent; the mask keeps `bits` of client addresses.
fn persist(world: &mut World<'_>, family: u8, bits: u32) {
    let width = if family == 4 { 32 } else { 128 };
    let mask = u128::MAX.checked_shl(128 - bits.min(width)).unwrap_or(0).to_be_bytes();
    world.edit(|tables| {
        for service in &mut tables.services[1..=2] {
            service.flags |= service_flag::SPECIAL;
            service.persistence = LIFE_S * SECOND;
            service.mask = mask;
        }
    });
}

/// Sends a packet of client `number`'s flow from `port`.
fn send(world: &World<'_>, family: u8, kind: Kind, number: u8, port: u16) -> Outcome {
    let mut packet = request(world.network, family, kind);
    packet.source = (client(family, number), port).into();
    world.step(&packet.bytes()).same()
}

/// Returns the number of the server that a frame goes to.
fn server(outcome: &Outcome) -> u8 {
    assert!(matches!(outcome.verdict, rlvs_datapath::frame::Verdict::Transmit { .. }), "{outcome:?}");
    outcome.bytes[5]
}

fn seen(world: &World<'_>, name: &str) -> String {
    world.snapshot().get(name).cloned().unwrap_or_default()
}

#[test]
fn a_client_goes_where_its_template_leads() {
    network::run("template", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        for method in [method::DIRECT, method::MASQUERADE] {
            for (family, bits) in [(4, 32), (6, 128), (4, 24), (6, 64)] {
                world.reset(&scene(network, family, method));
                persist(&mut world, family, bits);
                let syn = Kind::Tcp(SYN);
                let first = send(&world, family, syn, 7, 1000);
                assert_eq!(server(&first), 11);
                let bits_of = |number: u8| match client(family, number) {
                    std::net::IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
                    std::net::IpAddr::V6(address) => address.to_bits(),
                };
                let masked = |number| {
                    let width = if family == 4 { 32 } else { 128 };
                    let kept = bits_of(number) & u128::MAX.checked_shl(128 - bits.min(width)).unwrap_or(0);
                    e2e::host::address_of(family.into(), &kept.to_be_bytes())
                };
                let name = format!("{} template s1", masked(7));
                assert_eq!(seen(&world, &name), "NONE d1 holds 1", "{:#?}", world.snapshot());
                assert_eq!(seen(&world, "d1 persistent"), "1");
                assert_eq!(seen(&world, "d1 active"), "1");
                // The ring would lead the next to the other server.
                for port in 1001..1004 {
                    assert_eq!(server(&send(&world, family, syn, 7, port)), 11);
                }
                assert_eq!(seen(&world, &name), "NONE d1 holds 4");
                assert_eq!(seen(&world, "d1 active"), "4");
                assert_eq!(seen(&world, "s1 position"), "1");
                // The other service has a template of its own.
                assert_eq!(server(&send(&world, family, Kind::Udp, 7, 1000)), 11);
                let apart = bits == 32 || bits == 128;
                let other = send(&world, family, syn, 8, 1000);
                assert_eq!(server(&other), if apart { 12 } else { 11 });
                assert_eq!(seen(&world, "d2 persistent"), if apart { "1" } else { "" });
                assert_eq!(seen(&world, "d3 persistent"), "1");
                // A connection that is there does not ask its template.
                let before = seen(&world, &name);
                let ack = send(&world, family, Kind::Tcp(ACK), 7, 1002);
                assert_eq!(server(&ack), 11);
                assert_eq!(seen(&world, &name), before);
            }
        }
    });
}
