//! Persistence: which server a client gets, what its template counts and controls, when that ends.

use e2e::bpf::Input;
use e2e::network::{self, Network, client};
use e2e::packet::Kind;
use e2e::scene::{TCP, UDP, description, destination, reply, request, service};
use e2e::table::{Description, SECOND};
use e2e::unusual::{extended, optioned};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{MarkRule, endpoint_kind, method, service_flag, settings_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::state::State;
use rlvs_wire::tcp::{ACK, FIN, SYN};

use crate::reasons::fill;

/// Who sends, with which flags, and the state after that.
type Moment = (char, u8, &'static str);

/// Seconds that templates live.
const LIFE_S: u32 = 100;

fn scene(network: &Network, family: u8, method: u8) -> Description {
    let servers = || [11, 12].map(|number| destination(family, number, method)).to_vec();
    let services = vec![service(family, TCP, servers()), service(family, UDP, servers())];
    description(network, services)
}

/// Makes both services persistent; the mask keeps `bits` of client addresses.
pub(crate) fn persist(world: &mut World<'_>, family: u8, bits: u32) {
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
    assert!(
        matches!(outcome.verdict, rlvs_datapath::frame::Verdict::Transmit { .. }),
        "{outcome:?}"
    );
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
                    let kept =
                        bits_of(number) & u128::MAX.checked_shl(128 - bits.min(width)).unwrap_or(0);
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

/// A template lives for its time after the last new connection, and while it controls connections.
#[test]
fn a_template_lives_as_long_as_its_connections() {
    network::run("tpl-life", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        for (family, method) in [(4, method::DIRECT), (6, method::MASQUERADE)] {
            world.reset(&scene(network, family, method));
            persist(&mut world, family, 128);
            let name = format!("{} template s2", client(family, 7));
            let udp = Kind::Udp;
            assert_eq!(server(&send(&world, family, udp, 7, 1000)), 11);
            world.advance(LIFE_S * SECOND);
            assert_eq!(server(&send(&world, family, udp, 7, 1001)), 11);
            assert_eq!(seen(&world, &name), "UDP d3 holds 2".replace("UDP", "NONE"));
            // Its time is over, its connections are not: a minute more, from when it was over.
            world.advance(LIFE_S * SECOND + 10 * SECOND);
            assert_eq!(server(&send(&world, family, udp, 7, 1002)), 11);
            assert_eq!(seen(&world, &name), "NONE d3 holds 3");
            let slot = world.tables().wide.iter().flat_map(|bucket| &bucket.slots);
            let timeout = slot.map(|slot| slot.other[0].get() >> 32).find(|&timeout| timeout != 0);
            assert_eq!(timeout, Some(u64::from(60 * SECOND)));
            // Connections 1000 and 1001 are over, and come anew: the template is told of both.
            world.advance(301 * SECOND);
            assert_eq!(server(&send(&world, family, udp, 7, 1000)), 11);
            assert_eq!(seen(&world, "d3 persistent"), "1");
            assert_eq!(seen(&world, &name), "NONE d3 holds 3");
        }
    });
}

/// A SYN on a half-open connection of a server that was taken out opens it anew where the new template leads,
/// of every method and service; one that has been answered stays, and so does one of a server that is only
/// quiet.
#[test]
fn a_half_open_connection_leaves_a_server_that_was_taken_out() {
    network::run("tpl-half", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        let methods = [method::DIRECT, method::MASQUERADE];
        for (family, method) in [4, 6].into_iter().flat_map(|it| methods.map(|way| (it, way))) {
            for marked in [false, true] {
                for (state, retired, stays) in [
                    (State::SYN_RECV, 1, false),
                    (State::SYN_RECV, 0, true),
                    (State::ESTABLISHED, 1, true),
                ] {
                    if marked {
                        by_mark(&mut world, family, true);
                    } else {
                        world.reset(&scene(network, family, method));
                        persist(&mut world, family, 128);
                    }
                    let (syn, said) =
                        (Kind::Tcp(SYN), format!("IPv{family}, {method}, {marked}, {state:?}"));
                    assert_eq!(server(&send(&world, family, syn, 7, 1000)), 11, "{said}");
                    crate::states::put_all(&mut world, state);
                    world.edit(|tables| {
                        tables.destinations[1].weight = 0;
                        tables.destinations[1].retired_at = retired;
                    });
                    let at = if stays { 11 } else { 12 };
                    assert_eq!(server(&send(&world, family, syn, 7, 1000)), at, "{said}");
                    // Who goes on stays with whom he has now.
                    assert_eq!(
                        server(&send(&world, family, Kind::Tcp(ACK), 7, 1000)),
                        at,
                        "{said}"
                    );
                    let counts =
                        [1, 2].map(|id: usize| world.tables().counts[id].connections.get() != 0);
                    assert_eq!(counts, [stays, !stays], "{said}");
                    e2e::snapshot::assert_counts(world.tables());
                }
            }
        }
    });
}

/// How a server leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Quiesced,
    Silent,
    /// Its connections go on.
    Kept,
}

/// Weight 0 keeps a client by default; it loses its server with `expire_quiescent_template`, and with
/// the server itself, though connections may go on.
#[test]
fn a_template_that_leads_nowhere_is_dead() {
    network::run("tpl-dead", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        use Leaving::{Kept, Quiesced, Silent};
        for (family, leaving) in [(4, Quiesced), (6, Silent), (4, Silent), (4, Kept), (6, Kept)] {
            world.reset(&scene(network, family, method::DIRECT));
            persist(&mut world, family, 128);
            let syn = Kind::Tcp(SYN);
            assert_eq!(server(&send(&world, family, syn, 7, 1000)), 11);
            world.edit(|tables| tables.destinations[1].weight = 0);
            assert_eq!(server(&send(&world, family, syn, 7, 1001)), 11);
            world.edit(|tables| match leaving {
                Quiesced => tables.settings.flags |= settings_flag::EXPIRE_QUIESCENT,
                Silent => tables.destinations[1].flags = 0,
                Kept => tables.destinations[1].retired_at = 1,
            });
            assert_eq!(server(&send(&world, family, syn, 7, 1002)), 12);
            if leaving == Kept {
                let ack = Kind::Tcp(ACK);
                assert_eq!(server(&send(&world, family, ack, 7, 1001)), 11);
            }
            let of = |word| format!("{} {word} s1", client(family, 7));
            assert_eq!(seen(&world, &of("dead template")), "NONE d1 holds 2");
            assert_eq!(seen(&world, &of("template")), "NONE d2 holds 1");
            assert_eq!([seen(&world, "d1 persistent"), seen(&world, "d2 persistent")], ["1", "1"]);
        }
    });
}

/// Returns tables with a service for every port of the address, TCP, and one for UDP.
pub(crate) fn any_port(network: &Network, family: u8, method: u8) -> Description {
    let mut description = scene(network, family, method);
    for service in &mut description.services {
        service.port = 0;
        service.servers.iter_mut().for_each(|server| server.port = 0);
    }
    description.flags |= settings_flag::WIDE;
    description
}

fn send_to(world: &World<'_>, family: u8, kind: Kind, ports: (u16, u16)) -> Outcome {
    let mut packet = request(world.network, family, kind);
    packet.source.set_port(ports.0);
    packet.target.set_port(ports.1);
    world.step(&packet.bytes()).same()
}

#[test]
fn a_service_of_every_port_keeps_a_client_and_its_ports() {
    network::run("any-port", |network| {
        let mut world = World::new(network, &any_port(network, 4, method::DIRECT));
        for (family, method) in [
            (4, method::DIRECT),
            (4, method::MASQUERADE),
            (6, method::DIRECT),
            (6, method::MASQUERADE),
        ] {
            world.reset(&any_port(network, family, method));
            persist(&mut world, family, 128);
            let syn = Kind::Tcp(SYN);
            for (count, port) in (1..).zip([80, 443, 8080]) {
                let outcome = send_to(&world, family, syn, (1000, port));
                assert_eq!(server(&outcome), 11);
                let to = u16::from_be_bytes(
                    outcome.bytes[e2e::packet::transport(&outcome.bytes) + 2..][..2]
                        .try_into()
                        .unwrap(),
                );
                assert_eq!(to, port);
                assert_eq!(seen(&world, "d1 active"), count.to_string());
            }
            let (client, vip) = (client(family, 7), network::vip(family, 100));
            assert_eq!(seen(&world, &format!("{client} template s1")), "NONE d1 holds 3");
            let name = format!("{client}:1000 to {vip}:443 6");
            assert_eq!(seen(&world, &name), "SYN_RECV d1");
            if method == method::MASQUERADE {
                let mut packet = reply(network, family, Kind::Tcp(SYN | ACK));
                packet.source.set_port(443);
                packet.target.set_port(1000);
                let input = packet.bytes();
                let outcome = world.step_with(&Input::new(&input, network.outside.index)).same();
                let mut expected = packet.clone();
                (expected.source, expected.ttl) = ((vip, 443).into(), packet.ttl - 1);
                assert_eq!(outcome.bytes[14..], expected.bytes()[14..]);
                assert_eq!(seen(&world, "d1 packets out"), "1");
            }
            assert_eq!(server(&send_to(&world, family, Kind::Tcp(ACK), (1000, 443))), 11);
            assert_eq!(seen(&world, &name), "ESTABLISHED d1");
            assert_eq!(server(&send_to(&world, family, Kind::Tcp(FIN | ACK), (1000, 443))), 11);
            assert_eq!(seen(&world, "d1 inactive"), "1");
            // Other protocols are another service's.
            assert_eq!(server(&send_to(&world, family, Kind::Udp, (1000, 443))), 11);
            assert_eq!(seen(&world, "d3 inactive"), "1");
            // What is over is absent at once, and its template told.
            world.advance(61 * SECOND);
            assert_eq!(server(&send_to(&world, family, syn, (1000, 8080))), 11);
            // That of port 80 is left to the sweep.
            assert_eq!(seen(&world, "d1 active"), "2");
            assert_eq!(seen(&world, &format!("{client} template s1")), "NONE d1 holds 3");
        }
    });
}

/// Connections of the wide table have the states of `secure_tcp` too.
#[test]
fn a_service_of_every_port_waits_for_the_server_to_speak() {
    network::run("any-port-strict", |network| {
        let mut world = World::new(network, &any_port(network, 4, method::DIRECT));
        let lives: [(u8, &[Moment]); 2] = [
            (
                method::MASQUERADE,
                &[
                    ('C', SYN, "SYN_RECV"),
                    ('s', SYN | ACK, "SYNACK"),
                    ('C', ACK, "SYNACK"),
                    ('C', FIN | ACK, "SYNACK"),
                    ('s', ACK, "ESTABLISHED"),
                    ('C', FIN | ACK, "CLOSE_WAIT"),
                ],
            ),
            (method::DIRECT, &[('C', SYN, "SYNACK"), ('C', ACK, "ESTABLISHED")]),
        ];
        for (family, (method, life)) in [4, 6].into_iter().flat_map(|f| lives.map(|life| (f, life)))
        {
            world.reset(&any_port(network, family, method));
            persist(&mut world, family, 128);
            world.edit(|tables| tables.settings.strict = 1);
            let (client, vip) = (client(family, 7), network::vip(family, 100));
            for &(who, flags, state) in life {
                if who == 'C' {
                    send_to(&world, family, Kind::Tcp(flags), (1000, 443));
                } else {
                    let mut packet = reply(network, family, Kind::Tcp(flags));
                    packet.source.set_port(443);
                    packet.target.set_port(1000);
                    let input = packet.bytes();
                    let outcome =
                        world.step_with(&Input::new(&input, network.outside.index)).same();
                    assert!(matches!(
                        outcome.verdict,
                        rlvs_datapath::frame::Verdict::Transmit { .. }
                    ));
                }
                let said = format!("{method} {family} {who} {flags:02x}");
                let name = format!("{client}:1000 to {vip}:443 6");
                assert_eq!(seen(&world, &name), format!("{state} d1"), "{said}");
                let active = if state == "CLOSE_WAIT" { "" } else { "1" };
                assert_eq!(seen(&world, "d1 active"), active, "{said}");
            }
        }
    });
}

/// Begins anew with one service, of NAT, for the mark of packets to ports 80, 443 and 444.
pub(crate) fn by_mark(world: &mut World<'_>, family: u8, persistent: bool) {
    let mut description = any_port(world.network, family, method::MASQUERADE);
    let mark_address = match family {
        4 => std::net::Ipv4Addr::from_bits(77).into(),
        _ => std::net::Ipv6Addr::from_bits(77).into(),
    };
    description.services.truncate(1);
    description.services[0].address = mark_address;
    world.reset(&description);
    let bits = match network::vip(family, 100) {
        std::net::IpAddr::V4(address) => u128::from(address.to_bits()),
        std::net::IpAddr::V6(address) => address.to_bits(),
    };
    world.edit(|tables| {
        let service = &mut tables.services[1];
        (service.mark, service.address, service.protocol) = (77, [0; 16], 0);
        service.flags |= service_flag::SPECIAL;
        if persistent {
            (service.persistence, service.mask) = (LIFE_S * SECOND, [0xff; 16]);
        }
        e2e::table::enter(tables, endpoint_kind::MARK, mark_address, 0, 0, 1);
        let rule = |first, last| MarkRule {
            network: [(bits >> 64) as u64, bits as u64],
            mask: [if family == 4 { 0 } else { u64::MAX }, u64::MAX],
            ports: [first, last],
            protocol: 6,
            family,
            mark: 77,
            ..MarkRule::default()
        };
        tables.marks.rules[..2].copy_from_slice(&[rule(80, 80), rule(443, 444)]);
        tables.marks.length = 2;
    });
}

/// A mark joins ports, protocols and addresses; without persistence each connection is its own.
#[test]
fn a_mark_joins_two_ports() {
    network::run("mark", |network| {
        let mut world = World::new(network, &any_port(network, 4, method::MASQUERADE));
        for (family, persistent) in [(4, true), (6, true), (4, false)] {
            by_mark(&mut world, family, persistent);
            let syn = Kind::Tcp(SYN);
            let servers =
                [80, 443, 444].map(|port| server(&send_to(&world, family, syn, (1000, port))));
            assert_eq!(servers, if persistent { [11, 11, 11] } else { [11, 12, 11] });
            let template = seen(&world, &format!("{} template s1", client(family, 7)));
            assert_eq!(template, if persistent { "NONE d1 holds 3" } else { "" });
            for (kind, port) in [(syn, 442), (syn, 445), (Kind::Udp, 80)] {
                let outcome = send_to(&world, family, kind, (1000, port));
                let no_service = rlvs_datapath::reason::Reason::NoService;
                assert_eq!(outcome.verdict, rlvs_datapath::frame::Verdict::Pass(no_service));
            }
            if persistent {
                let kind = Kind::Udp;
                let mut packet = request(network, family, kind);
                packet.source.set_port(1001);
                given_by_others(&mut world, &packet.bytes());
            }
        }
    });
}

/// By TC a mark counts that somebody else has given, and where none of our rules gives one. XDP meets
/// packets before anybody can.
fn given_by_others(world: &mut World<'_>, frame: &[u8]) {
    let mut with = |mark, ours| {
        world.edit(|tables| {
            tables.marks.rules[0].protocol = if ours { 17 } else { 6 };
            tables.marks.rules[0].mark = if ours { 78 } else { 77 };
        });
        let input = Input { mark, ..Input::new(frame, world.network.inside.index) };
        let xdp = world.step_xdp(&input).verdict;
        let no_service = rlvs_datapath::reason::Reason::NoService;
        assert_eq!(xdp, rlvs_datapath::frame::Verdict::Pass(no_service));
        world.step_tc(&input)
    };
    for (mark, ours) in [(0, false), (76, false), (77, true)] {
        let outcome = with(mark, ours);
        assert_eq!(outcome.bytes, frame, "{mark} {ours}");
    }
    assert_eq!(server(&with(77, false)), 11);
}

/// Each datagram is scheduled anew and leaves no entry; what NAT servers answer is put right.
#[test]
fn single_packets_leave_nothing() {
    use rlvs_datapath::abi::endpoint_kind;
    network::run("ops", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        for (family, method) in
            [(4, method::DIRECT), (4, method::MASQUERADE), (6, method::MASQUERADE)]
        {
            let mut description = scene(network, family, method);
            description.flags |= settings_flag::WIDE;
            world.reset(&description);
            world.edit(|tables| {
                tables.services[2].flags |= service_flag::SPECIAL | service_flag::ONE_PACKET;
                for (id, number) in [(3, 11), (4, 12)] {
                    let address = network::server(family, number);
                    let (kind, port) = (endpoint_kind::ONE_PACKET, e2e::scene::REAL_PORT);
                    e2e::table::enter(tables, kind, address, port, UDP, id);
                }
            });
            let sent = |_| server(&send(&world, family, Kind::Udp, 7, 1000));
            assert_eq!([1, 2, 3, 4].map(sent), [11, 12, 11, 12]);
            assert!(e2e::snapshot::connections(world.tables()).is_empty());
            assert!(e2e::snapshot::wide_entries(world.tables()).is_empty());
            assert_eq!(seen(&world, "d3 connections"), "2");
            assert_eq!(seen(&world, "d3 inactive"), "");
            if method == method::MASQUERADE {
                let packet = reply(network, family, Kind::Udp);
                let input = packet.bytes();
                let outcome = world.step_with(&Input::new(&input, network.outside.index)).same();
                let mut expected = packet.clone();
                let vip = network::vip(family, 100);
                (expected.source, expected.ttl) = ((vip, e2e::scene::PORT).into(), packet.ttl - 1);
                assert_eq!(outcome.bytes[14..], expected.bytes()[14..]);
            }
        }
    });
}

/// The stage that would carry it sends it back to be opened: it must not go in circles.
#[test]
fn what_is_unusual_and_finds_no_room_is_left_to_the_stack() {
    network::run("no_room", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        for family in [4, 6] {
            world.reset(&scene(network, family, method::DIRECT));
            persist(&mut world, family, 128);
            world.edit(fill);
            for kind in [Kind::Tcp(SYN), Kind::Udp] {
                let frame = request(network, family, kind).bytes();
                let frame = match family {
                    4 => optioned(&frame, &[1, 1, 1, 0]),
                    _ => extended(&frame, &[(60, &[1, 4, 0, 0, 0, 0])]),
                };
                let outcome = world.step(&frame).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::TableFull));
                assert_eq!(outcome.bytes, frame);
            }
        }
    });
}
