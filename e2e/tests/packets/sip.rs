//! The persistence engine `sip`: datagrams of a call go where its first went.

use e2e::network::{self, Network, client};
use e2e::packet::{Kind, Packet};
use e2e::scene::{TCP, UDP, description, destination, request, service};
use e2e::table::{Description, SECOND};
use e2e::unusual::{fragments, optioned};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::{method, service_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::sip::{LENGTH_MAX, REACH};
use rlvs_wire::tcp::SYN;

const LIFE_S: u32 = 100;

fn scene(network: &Network, family: u8, method: u8) -> Description {
    let servers = || [11, 12].map(|number| destination(family, number, method)).to_vec();
    description(network, vec![service(family, TCP, servers()), service(family, UDP, servers())])
}

/// Begins anew with services that persist by calls, with `flags` besides.
fn begin(world: &mut World<'_>, family: u8, method: u8, flags: u32) {
    world.reset(&scene(world.network, family, method));
    world.edit(|tables| {
        for service in &mut tables.services[1..=2] {
            service.flags |= service_flag::SPECIAL | service_flag::SIP | flags;
            service.persistence = LIFE_S * SECOND;
            service.mask = [255; 16];
        }
    });
}

fn invite(call: &str) -> String {
    format!(
        "INVITE sip:b SIP/2.0\r\nVia: SIP/2.0/UDP a\r\nCall-ID: {call}\r\nCSeq: 1 INVITE\r\n\r\n"
    )
}

/// Returns a datagram of client `number` from `port`.
fn datagram(world: &World<'_>, family: u8, (number, port): (u8, u16), text: &str) -> Packet {
    let mut packet = request(world.network, family, Kind::Udp);
    packet.source = (client(family, number), port).into();
    packet.payload = text.as_bytes().to_vec();
    packet
}

fn send(world: &World<'_>, family: u8, from: (u8, u16), text: &str) -> Outcome {
    world.step(&datagram(world, family, from, text).bytes()).same()
}

/// Returns the number of the server that a frame goes to.
fn server(outcome: &Outcome) -> u8 {
    assert!(matches!(outcome.verdict, Verdict::Transmit { .. }), "{outcome:?}");
    outcome.bytes[5]
}

fn templates(world: &World<'_>) -> usize {
    world.snapshot().keys().filter(|name| name.contains(" template s2 call ")).count()
}

#[test]
fn datagrams_of_a_call_go_where_its_first_went() {
    network::run("sip", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        let walks = [
            (4, method::DIRECT, 0),
            (6, method::MASQUERADE, 0),
            (4, method::DIRECT, service_flag::ONE_PACKET),
            (6, method::DIRECT, service_flag::ONE_PACKET),
        ];
        for (family, method, flags) in walks {
            begin(&mut world, family, method, flags);
            let one = |from, call: &str| server(&send(&world, family, from, &invite(call)));
            let first = one((7, 1000), "one@a");
            let other = one((7, 1001), "two@a");
            assert_ne!(first, other, "round robin");
            // Where rr would go elsewhere, the call decides, from whichever port.
            for port in 1002..1005 {
                assert_eq!(one((7, port), "one@a"), first);
            }
            assert_eq!(one((7, 1005), "two@a"), other);
            assert_eq!(templates(&world), 2);
            // Another client's call of that name is another one.
            one((8, 1000), "one@a");
            assert_eq!(templates(&world), 3);
            // A proxy has many, and no two are taken for one.
            for number in 0..40_u16 {
                one((9, 2000 + number), &format!("{number}@a"));
            }
            assert_eq!(templates(&world), 43);
            // The service over TCP has no calls.
            let mut syn = request(network, family, Kind::Tcp(SYN));
            syn.payload = invite("one@a").into_bytes();
            let outcome = world.step(&syn.bytes()).same();
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoCallId));
        }
    });
}

/// A template of a call lives for its time after the last that it led, whatever its connections do.
#[test]
fn a_call_is_forgotten_after_its_time() {
    network::run("sip-life", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        begin(&mut world, 4, method::DIRECT, 0);
        let first = server(&send(&world, 4, (7, 1000), &invite("one")));
        world.advance(LIFE_S * SECOND);
        assert_eq!(server(&send(&world, 4, (7, 1001), &invite("one"))), first);
        world.advance(LIFE_S * SECOND);
        assert_eq!(server(&send(&world, 4, (7, 1002), &invite("one"))), first);
        assert_eq!(world.snapshot().get("d3 persistent").map(String::as_str), Some("1"));
        world.advance(LIFE_S * SECOND + 1);
        assert_ne!(server(&send(&world, 4, (7, 1003), &invite("one"))), first, "round robin");
        assert_eq!(templates(&world), 1);
        // A destination that is removed is not led to any more.
        world.edit(|tables| {
            tables.destinations[4].flags = 0;
            tables.destinations[4].weight = 0;
            tables.destinations[4].last_weight = 0;
        });
        assert_eq!(server(&send(&world, 4, (7, 1004), &invite("one"))), first);
    });
}

#[test]
fn a_datagram_without_a_whole_call_id_is_dropped() {
    network::run("sip-bad", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        for family in [4, 6] {
            begin(&mut world, family, method::DIRECT, service_flag::ONE_PACKET);
            let whole = invite("one@a");
            let end = whole.find("\r\nCSeq").unwrap();
            // Every place where it may be cut.
            for length in 0..whole.len() {
                let outcome = send(&world, family, (7, 1000), &whole[..length]);
                if length > end {
                    server(&outcome);
                } else {
                    assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoCallId), "{length}");
                }
            }
            let of_length = |length| invite(&"x".repeat(length));
            server(&send(&world, family, (7, 1000), &of_length(LENGTH_MAX as usize)));
            for text in
                [of_length(LENGTH_MAX as usize + 1), invite("a b"), invite("a@"), invite("")]
            {
                let outcome = send(&world, family, (7, 1000), &text);
                assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoCallId), "{text}");
            }
            // What stands further behind than is searched is not found.
            let far = |before: usize| format!("{}\r\ni:a\n", "x".repeat(before));
            let near = far(REACH as usize - 6);
            let packet = |text: &str| datagram(&world, family, (7, 1000), text).bytes();
            let verdict = |text: &str| world.step(&packet(text)).same().verdict;
            assert_ne!(verdict(&near), Verdict::Drop(Reason::NoCallId));
            assert_eq!(verdict(&format!("x{near}")), Verdict::Drop(Reason::NoCallId));
        }
    });
}

/// A first fragment and a packet with options have their Call-ID elsewhere.
#[test]
fn a_call_id_is_found_behind_other_headers() {
    network::run("sip-odd", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT));
        begin(&mut world, 4, method::DIRECT, 0);
        let first = server(&send(&world, 4, (7, 1000), &invite("one")));
        let text = invite("one") + &"x".repeat(1000);
        let frame = datagram(&world, 4, (7, 1001), &text).bytes();
        let optioned = optioned(&frame, &[1; 8]);
        assert_eq!(server(&world.step(&optioned).same()), first);
        let frame = datagram(&world, 4, (7, 1002), &text).bytes();
        for piece in fragments(&frame, 77, 512) {
            assert_eq!(server(&world.step(&piece).same()), first);
        }
        assert_eq!(templates(&world), 1);
    });
}
