//! SCTP: the kernel's states, every one by every chunk, and checksums; and what IPsec carries.

use e2e::bpf::Input;
use e2e::network::{self, GATEWAY_MAC, Network, client, server, server_mac, vip};
use e2e::packet::{Kind, Packet, crc32c, transport};
use e2e::scene::{PORT, REAL_PORT, SCTP, UDP, description, destination, reply, request, service};
use e2e::table::{Description, SECOND};
use e2e::world::{Outcome, World};
use rlvs_datapath::abi::method;
use rlvs_datapath::connection::Value;
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::state::State;

/// ip_vs_proto_sctp.c, from left to right the states in the order of their numbers.
const INPUT: &str = "
    data         ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    init         I1 IN IN CS CR CW CO CE ES SS SR SA IN IN
    init-ack     CW CW CW CS CR CO CO CE ES SS SR SA RJ CL
    cookie-echo  CR IN IN CR CR CW CO CE ES SS SR SA RJ CL
    cookie-ack   ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL
    shutdown     SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL
    shutd-ack    CL IN IN CS CR CW CO CE ES CL SR CL RJ CL
    shutd-compl  CL CL CL CS CR CW CO CE ES SS SR CL RJ CL
    error        CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL
    abort        CL CL CL CL CL RJ CL CL CL CL CL CL CL CL";
const OUTPUT: &str = "
    data         ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    init         CW CW CW CW CW CW CW CW ES CW CW CW CW CW
    init-ack     CS CS CS CS CR CW CO CE ES SS SR SA RJ CL
    cookie-echo  CE CE CE CE CE CE CE CE ES SS SR SA RJ CL
    cookie-ack   ES ES ES ES ES ES ES ES ES SS SR SA RJ CL
    shutdown     SS SS SS SS SS SS SS SS SS SS SR SA RJ CL
    shutd-ack    SA SA SA SA SA CW CO CE ES SA SA SA RJ CL
    shutd-compl  CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    error        CL CL CL CL CL CW CO CE ES SS SR SA RJ CL
    abort        CL RJ CL CL CL CL CL CL CL CL CL CL CL CL";
const INPUT_ONLY: &str = "
    data         ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL
    init         I1 IN IN IN IN IN CO CE ES SS SR SA IN IN
    init-ack     CE CE CE CE CE CE CO CE ES SS SR SA RJ CL
    cookie-echo  ES ES ES ES ES ES CO CE ES SS SR SA RJ CL
    cookie-ack   ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL
    shutdown     SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL
    shutd-ack    CL IN IN CS CR CW CO CE CL CL SR CL RJ CL
    shutd-compl  CL CL CL CL CL CW CO CE ES SS CL CL RJ CL
    error        CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    abort        CL CL CL CL CL RJ CL CL CL CL CL CL CL CL";
const SHORT: [&str; 14] =
    ["NO", "I1", "IN", "CS", "CR", "CW", "CO", "CE", "ES", "SS", "SR", "SA", "RJ", "CL"];
const NAMES: [&str; 14] = [
    "NONE",
    "INIT1",
    "INIT",
    "C-SENT",
    "C-REPLIED",
    "C-WAIT",
    "COOKIE",
    "C-ECHOED",
    "ESTABLISHED",
    "S-SENT",
    "S-RECEIVED",
    "S-ACK-SENT",
    "REJECTED",
    "CLOSED",
];
const ESTABLISHED: usize = 8;
const CLOSED: usize = 13;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Lines of the tables, with the chunks that mean them.
const EVENTS: [(&str, u8, Option<u8>); 22] = [
    ("data", 0, None),
    ("data", 0, Some(ABORT)),
    ("data", SACK, None),
    ("data", 4, None),
    ("data", 5, None),
    ("data", 12, None),
    ("data", 13, None),
    ("data", 15, None),
    ("data", 0xc1, None),
    ("init", INIT, None),
    ("init-ack", INIT_ACK, None),
    ("cookie-echo", COOKIE_ECHO, None),
    ("cookie-echo", COOKIE_ECHO, Some(0)),
    ("abort", COOKIE_ECHO, Some(ABORT)),
    ("cookie-ack", COOKIE_ACK, None),
    ("abort", COOKIE_ACK, Some(ABORT)),
    ("shutdown", SHUTDOWN, Some(ABORT)),
    ("shutd-ack", SHUTDOWN_ACK, None),
    ("shutd-compl", SHUTDOWN_COMPLETE, None),
    ("error", 9, None),
    ("abort", ABORT, None),
    ("abort", ABORT, Some(0)),
];

/// Who sends, which chunk first, and the state after that.
type Moment = (char, u8, &'static str);

fn next(table: &str, state: usize, event: &str) -> usize {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|line| line.first() == Some(&event)).unwrap();
    SHORT.iter().position(|name| *name == line[1 + state]).unwrap()
}

/// Service 1 with one destination on server 11, or two with server 12 besides.
fn scene(network: &Network, family: u8, method: u8, servers: u8) -> Description {
    let servers = (11..11 + servers).map(|number| destination(family, number, method)).collect();
    description(network, vec![service(family, SCTP, servers)])
}

fn chunk(first: u8) -> Kind {
    Kind::Sctp(first, None)
}

/// Puts the only association into a state, as if it had come there by itself.
fn put(world: &mut World<'_>, state: usize) {
    world.edit(|tables| {
        let four = tables.connections4.iter().flat_map(|bucket| &bucket.slots);
        let six = tables.connections6.iter().flat_map(|bucket| &bucket.slots);
        let values = four.map(|slot| &slot.value).chain(six.map(|slot| &slot.value));
        for value in values.filter(|value| Value(value.get()).is_live()) {
            value.set(value.get() & !(31 << 25) | (16 + state as u64) << 25);
        }
        tables.counts[1].connections.set(counted(state));
    });
}

fn counted(state: usize) -> u64 {
    if state == ESTABLISHED { 1 } else { 1 << 32 }
}

#[test]
fn every_state_by_every_chunk_is_the_kernels() {
    network::run("chunks", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 1));
        let walks = [
            (method::DIRECT, INPUT_ONLY, false),
            (method::MASQUERADE, INPUT, false),
            (method::MASQUERADE, OUTPUT, true),
        ];
        for (family, (method, table, replies)) in
            [4, 6].into_iter().flat_map(|family| walks.map(|walk| (family, walk)))
        {
            world.reset(&scene(network, family, method, 1));
            let opening = request(network, family, chunk(INIT)).bytes();
            let step = world.step_quietly(&Input::new(&opening, network.inside.index), false);
            assert_eq!(step.xdp, step.tc);
            for (before, (event, first, second)) in
                (0..14).flat_map(|state| EVENTS.map(|event| (state, event)))
            {
                put(&mut world, before);
                let kind = Kind::Sctp(first, second);
                let (packet, interface) = if replies {
                    (reply(network, family, kind), network.outside.index)
                } else {
                    (request(network, family, kind), network.inside.index)
                };
                let step = world.step_quietly(&Input::new(&packet.bytes(), interface), false);
                assert_eq!(step.xdp, step.tc);
                // An INIT on what has ended begins anew.
                let anew = !replies && first == INIT && before == CLOSED;
                let after = if anew { 1 } else { next(table, before, event) };
                let said = format!("{} and {kind:?} of {table}", SHORT[before]);
                let sent = matches!(step.xdp.verdict, Verdict::Transmit { .. });
                assert!(sent, "{said}: {:?}", step.xdp.verdict);
                let entries = e2e::snapshot::connections(world.tables());
                let halves = if method == method::MASQUERADE { 2 } else { 1 };
                assert_eq!(entries.len(), halves, "{said}");
                let name = format!("{} d1", NAMES[after]);
                assert!(
                    entries.values().all(|value| value.starts_with(&name)),
                    "{said} {entries:?}"
                );
                assert_eq!(world.tables().counts[1].connections.get(), counted(after), "{said}");
            }
        }
    });
}

#[test]
fn only_an_init_opens() {
    network::run("only-init", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 1));
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            world.reset(&scene(network, family, method, 1));
            for (_, first, second) in EVENTS.into_iter().filter(|event| event.1 != INIT) {
                let frame = request(network, family, Kind::Sctp(first, second)).bytes();
                let outcome = world.step(&frame).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoConnection));
                assert_eq!(outcome.bytes, frame);
            }
            let outcome = world.step(&request(network, family, chunk(INIT)).bytes()).same();
            assert!(matches!(outcome.verdict, Verdict::Transmit { .. }));
            let seen = world.snapshot();
            let said = |name: &str| seen.get(name).map(String::as_str);
            assert_eq!(said("d1 inactive"), Some("1"));
            assert_eq!(said("d1 active"), None);
            assert_eq!(said("d1 connections"), Some("1"));
            assert_eq!(said("reason no_connection"), Some("21"));
        }
    });
}

/// The lives of associations as the kernel was seen to lead them.
#[test]
fn associations_live_as_in_the_kernel() {
    network::run("associations", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 1));
        // A capital letter is the client's, a small one the server's.
        let lives: [(u8, &[Moment]); 3] = [
            (
                method::MASQUERADE,
                &[
                    ('C', INIT, "INIT1"),
                    ('s', INIT_ACK, "C-SENT"),
                    ('C', COOKIE_ECHO, "C-REPLIED"),
                    ('s', COOKIE_ACK, "ESTABLISHED"),
                    ('C', 0, "ESTABLISHED"),
                    ('s', SACK, "ESTABLISHED"),
                    ('C', SHUTDOWN, "S-RECEIVED"),
                    ('s', SHUTDOWN_ACK, "S-ACK-SENT"),
                    ('C', SHUTDOWN_COMPLETE, "CLOSED"),
                ],
            ),
            (method::MASQUERADE, &[('C', INIT, "INIT1"), ('s', ABORT, "REJECTED")]),
            (
                method::DIRECT,
                &[
                    ('C', INIT, "INIT1"),
                    ('C', COOKIE_ECHO, "ESTABLISHED"),
                    ('C', 0, "ESTABLISHED"),
                    ('C', SHUTDOWN, "S-RECEIVED"),
                    ('C', SHUTDOWN_COMPLETE, "CLOSED"),
                ],
            ),
        ];
        for (family, (method, life)) in
            [4, 6].into_iter().flat_map(|family| lives.map(|life| (family, life)))
        {
            world.reset(&scene(network, family, method, 1));
            for &(who, first, state) in life {
                let outcome = if who == 'C' {
                    world.step(&request(network, family, chunk(first)).bytes())
                } else {
                    let frame = reply(network, family, chunk(first)).bytes();
                    world.step_with(&Input::new(&frame, network.outside.index))
                };
                assert!(matches!(outcome.same().verdict, Verdict::Transmit { .. }));
                let entries = e2e::snapshot::connections(world.tables());
                assert!(entries.values().all(|value| value.starts_with(state)), "{entries:?}");
                let active = state == "ESTABLISHED";
                let counts = world.tables().counts[1].connections.get();
                assert_eq!(counts, if active { 1 } else { 1 << 32 }, "{state}");
            }
        }
    });
}

/// A request as it leaves to server 11, and a reply as it leaves to the client.
fn forwarded(network: &Network, packet: &Packet, is_reply: bool, port: u16) -> Packet {
    let family = if packet.source.is_ipv4() { 4 } else { 6 };
    let mut sent = Packet { ttl: packet.ttl - 1, ..packet.clone() };
    if is_reply {
        (sent.from, sent.to) = (network.inside.mac, GATEWAY_MAC);
        sent.source = (vip(family, 100), port).into();
    } else {
        (sent.from, sent.to) = (network.outside.mac, server_mac(11));
        sent.target = (server(family, 11), port).into();
    }
    sent
}

#[test]
fn nat_keeps_the_checksum_right_at_every_length_and_wrong_if_it_was() {
    network::run("crc", |network| {
        let mut world = World::new(network, &scene(network, 4, method::MASQUERADE, 1));
        for family in [4, 6] {
            world.reset(&scene(network, family, method::MASQUERADE, 1));
            let opening = request(network, family, chunk(INIT)).bytes();
            assert!(matches!(world.step(&opening).same().verdict, Verdict::Transmit { .. }));
            let longest = if family == 4 { 1500 - 36 } else { 1500 - 56 };
            for length in (0..64).chain((64..longest).step_by(53)).chain([longest]) {
                let payload: Vec<u8> = (0..length).map(|at| (at * at + length) as u8).collect();
                for is_reply in [false, true] {
                    let (packet, input) = if is_reply {
                        (reply(network, family, chunk(0)), network.outside.index)
                    } else {
                        (request(network, family, chunk(0)), network.inside.index)
                    };
                    let packet = Packet { payload: payload.clone(), ..packet };
                    let port = if is_reply { PORT } else { REAL_PORT };
                    let mut sent = forwarded(network, &packet, is_reply, port).bytes();
                    let mut frame = packet.bytes();
                    for wrong in [0, 0x10] {
                        let at = transport(&frame) + 9;
                        frame[at] ^= wrong;
                        sent[at] ^= wrong;
                        let step = world.step_quietly(&Input::new(&frame, input), false);
                        assert_eq!(step.xdp.bytes, sent, "{length} bytes, XDP, reply {is_reply}");
                        assert_eq!(step.tc.bytes, sent, "{length} bytes, TC, reply {is_reply}");
                    }
                }
            }
        }
    });
}

#[test]
fn padding_of_the_frame_is_not_summed() {
    network::run("crc-padding", |network| {
        let world = World::new(network, &scene(network, 4, method::MASQUERADE, 1));
        let packet = Packet { payload: Vec::new(), ..request(network, 4, chunk(INIT)) };
        let mut frame = packet.bytes();
        let mut sent = forwarded(network, &packet, false, REAL_PORT).bytes();
        frame.resize(60, 0x5a);
        sent.resize(60, 0x5a);
        assert_eq!(world.step(&frame).same().bytes, sent);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    });
}

#[test]
fn without_a_change_of_ports_the_checksum_is_left_alone() {
    network::run("crc-same", |network| {
        let scene = |family| {
            let mut real = destination(family, 11, method::MASQUERADE);
            real.port = PORT;
            description(network, vec![service(family, SCTP, vec![real])])
        };
        let mut world = World::new(network, &scene(4));
        for family in [4, 6] {
            world.reset(&scene(family));
            let packet = request(network, family, chunk(INIT));
            let outcome = world.step(&packet.bytes()).same();
            assert_eq!(outcome.bytes, forwarded(network, &packet, false, PORT).bytes());
        }
    });
}

/// Behind TC a checksum of 0 waits for the hardware, which expects 0 there; XDP sees frames that are
/// finished.
#[test]
fn a_checksum_of_zero_stays_in_tc() {
    network::run("crc-zero", |network| {
        let mut world = World::new(network, &scene(network, 4, method::MASQUERADE, 1));
        for family in [4, 6] {
            world.reset(&scene(network, family, method::MASQUERADE, 1));
            let packet = request(network, family, chunk(INIT));
            let (mut frame, sent) =
                (packet.bytes(), forwarded(network, &packet, false, REAL_PORT).bytes());
            let at = transport(&frame) + 8;
            let crc = |frame: &[u8]| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
            let change = crc(&frame) ^ crc(&sent);
            frame[at..at + 4].fill(0);
            let step = world.step(&frame);
            assert_eq!(crc(&step.xdp.bytes), change);
            assert_eq!(crc(&step.tc.bytes), 0);
        }
    });
}

#[test]
fn the_hardwares_sum_stays_right_in_tc() {
    network::run("crc-summed", |network| {
        let mut world = World::new(network, &scene(network, 4, method::MASQUERADE, 1));
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            world.reset(&scene(network, family, method, 1));
            let frame = request(network, family, chunk(INIT)).bytes();
            let ran = world.run_summed(&frame);
            assert_eq!(ran.map(|ran| ran.code).ok(), Some(7), "method {method}, IPv{family}");
        }
    });
}

/// Two stages see the INIT of a persistent service, and one of them notes it.
#[test]
fn persistent_associations_live_as_others() {
    use rlvs_datapath::abi::service_flag;
    network::run("sctp-persistent", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 2));
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            world.reset(&scene(network, family, method, 2));
            world.edit(|tables| {
                tables.services[1].flags |= service_flag::SPECIAL;
                (tables.services[1].persistence, tables.services[1].mask) = (SECOND, [0xff; 16]);
            });
            let opening = request(network, family, chunk(INIT)).bytes();
            assert!(matches!(world.step(&opening).same().verdict, Verdict::Transmit { .. }));
            let entries = e2e::snapshot::connections(world.tables());
            assert!(entries.values().all(|value| value.starts_with("INIT1")), "{entries:?}");
            assert_eq!(world.tables().counts[1].connections.get(), 1 << 32);
        }
    });
}

#[test]
fn an_init_on_what_has_ended_goes_to_the_next_server() {
    network::run("anew", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 2));
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            for state in [0, 1, ESTABLISHED, 12, CLOSED] {
                world.reset(&scene(network, family, method, 2));
                let frame = request(network, family, chunk(INIT)).bytes();
                assert_eq!(world.step(&frame).same().bytes[5], 11);
                put(&mut world, state);
                let again = world.step(&frame).same();
                let expected = if state == CLOSED { 12 } else { 11 };
                assert_eq!(again.bytes[5], expected, "{}", SHORT[state]);
                let entries = e2e::snapshot::connections(world.tables());
                let halves = if method == method::MASQUERADE { 2 } else { 1 };
                assert_eq!(entries.len(), halves, "{entries:?}");
                let total = |id: usize| {
                    let word = world.tables().counts[id].connections.get();
                    (word & 0xffff_ffff) + (word >> 32)
                };
                assert_eq!([total(1), total(2)], if state == CLOSED { [0, 1] } else { [1, 0] });
            }
        }
    });
}

#[test]
fn each_state_has_the_kernels_timeout() {
    const TIMEOUTS_S: [u32; 14] = [3, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61];
    network::run("chunk-timeouts", |network| {
        let mut world = World::new(network, &scene(network, 4, method::MASQUERADE, 1));
        for (state, seconds) in TIMEOUTS_S.into_iter().enumerate() {
            let opening = request(network, 4, chunk(INIT)).bytes();
            let _ = world.step_quietly(&Input::new(&opening, network.inside.index), false);
            for late in [0, 1] {
                put(&mut world, state);
                world.advance(seconds * SECOND + late);
                let data = request(network, 4, chunk(SACK)).bytes();
                let step = world.step_quietly(&Input::new(&data, network.inside.index), false);
                let verdict = step.same().verdict;
                let said = format!("{} after {seconds} s and {late}", SHORT[state]);
                if late == 0 {
                    assert!(matches!(verdict, Verdict::Transmit { .. }), "{said}: {verdict:?}");
                } else {
                    assert_eq!(verdict, Verdict::Pass(Reason::NoConnection), "{said}");
                    assert_eq!(world.tables().counts[1].connections.get(), 0, "{said}");
                }
            }
        }
        let names: Vec<&str> = State::NAMES[16..].to_vec();
        assert_eq!(names, NAMES);
    });
}

#[test]
fn nobody_to_take_it_is_said_by_icmp() {
    network::run("nobody", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 0));
        for (family, expected) in [(4, [3, 3]), (6, [1, 4])] {
            world.reset(&scene(network, family, method::DIRECT, 0));
            let frame = request(network, family, chunk(INIT)).bytes();
            let outcome = world.step(&frame).same();
            let interface = network.inside.index;
            assert_eq!(outcome.verdict, Verdict::Transmit { interface });
            let icmp = transport(&outcome.bytes);
            assert_eq!(outcome.bytes[icmp..icmp + 2], expected);
            // The IP header and eight bytes are quoted.
            assert_eq!(outcome.bytes[icmp + 8..], frame[14..transport(&frame) + 8]);
            assert!(outcome.changes.contains(&"reason no_destination = 1".to_owned()));
        }
    });
}

#[test]
fn packets_that_contradict_themselves_pass() {
    network::run("chunk-lengths", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 1));
        for family in [4, 6] {
            world.reset(&scene(network, family, method::DIRECT, 1));
            // Too short for a chunk.
            for length in [0, 8, 12, 15] {
                let payload = request(network, family, chunk(INIT)).bytes();
                let payload = payload[transport(&payload)..][..length].to_vec();
                let packet = Packet { payload, ..request(network, family, Kind::Other(SCTP)) };
                let outcome = world.step(&packet.bytes()).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::Malformed), "{length} bytes");
            }
            // A cookie whose length leads nowhere is a cookie.
            let opening = request(network, family, chunk(INIT)).bytes();
            let _: Outcome = world.step(&opening).same();
            for length in [0_u16, 3, 40, 0xffff] {
                put(&mut world, 1);
                let kind = Kind::Sctp(COOKIE_ECHO, Some(ABORT));
                let mut frame = request(network, family, kind).bytes();
                let at = transport(&frame) + 14;
                frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
                let outcome = world.step(&frame).same();
                assert!(matches!(outcome.verdict, Verdict::Transmit { .. }));
                let entries = e2e::snapshot::connections(world.tables());
                let is_established = |value: &String| value.starts_with("ESTABLISHED");
                assert!(entries.values().all(is_established), "{length}: {entries:?}");
            }
        }
    });
}

const IKE: u16 = 500;
const ESP: u8 = 50;
const AH: u8 = 51;

/// Service 1 for the key exchange, on server 11.
fn key_exchange(network: &Network, family: u8, method: u8) -> Description {
    let mut real = destination(family, 11, method);
    real.port = IKE;
    let mut service = service(family, UDP, vec![real]);
    service.port = IKE;
    description(network, vec![service])
}

fn of_pair(network: &Network, family: u8, kind: Kind, is_reply: bool) -> Packet {
    let mut packet =
        if is_reply { reply(network, family, kind) } else { request(network, family, kind) };
    packet.source.set_port(IKE);
    packet.target.set_port(IKE);
    packet
}

#[test]
fn ipsec_follows_the_key_exchange_of_the_same_addresses() {
    network::run("ipsec", |network| {
        let mut world = World::new(network, &key_exchange(network, 4, method::DIRECT));
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            for protocol in [ESP, AH] {
                world.reset(&key_exchange(network, family, method));
                let packet = of_pair(network, family, Kind::Other(protocol), false);
                let before = world.step(&packet.bytes()).same();
                assert_eq!(before.verdict, Verdict::Pass(Reason::NoConnection));
                assert_eq!(before.bytes, packet.bytes());
                assert_eq!(before.changes, ["reason no_connection = 1"]);

                // A key exchange from another port is another's.
                let mut other = of_pair(network, family, Kind::Udp, false);
                other.source.set_port(4500);
                let _: Outcome = world.step(&other.bytes()).same();
                let before = world.step(&packet.bytes()).same();
                assert_eq!(before.verdict, Verdict::Pass(Reason::NoConnection));

                let exchange = of_pair(network, family, Kind::Udp, false);
                let _: Outcome = world.step(&exchange.bytes()).same();
                world.advance(200 * SECOND);
                let outcome = world.step(&packet.bytes()).same();
                let out = Verdict::Transmit { interface: network.outside.index };
                let mut sent = forwarded(network, &packet, false, IKE);
                if method == method::DIRECT {
                    sent.target = packet.target;
                }
                assert_eq!((outcome.verdict, outcome.bytes), (out, sent.bytes()));
                let seen = world.snapshot();
                assert_eq!(seen.get("d1 packets in"), Some(&"3".to_owned()));
                assert_eq!(seen.get("d1 connections"), Some(&"2".to_owned()));
                assert_eq!(seen.get("d1 inactive"), Some(&"2".to_owned()));
                // It keeps its entry alive.
                world.advance(200 * SECOND);
                let outcome = world.step(&packet.bytes()).same();
                assert_eq!(outcome.verdict, out);

                let answer = of_pair(network, family, Kind::Other(protocol), true);
                let frame = answer.bytes();
                let outcome = world.step_with(&Input::new(&frame, network.outside.index)).same();
                if method == method::MASQUERADE {
                    let sent = forwarded(network, &answer, true, IKE);
                    assert_eq!(outcome.bytes, sent.bytes());
                    assert_eq!(world.snapshot().get("d1 packets out"), Some(&"1".to_owned()));
                } else {
                    assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoService));
                    assert_eq!(outcome.bytes, frame);
                }
                world.reset(&key_exchange(network, family, method));
                let _: Outcome = world.step(&exchange.bytes()).same();
                assert_eq!(world.run_summed(&packet.bytes()).map(|ran| ran.code).ok(), Some(7));
                let client = client(family, 7);
                let entries = e2e::snapshot::connections(world.tables());
                assert!(entries.contains_key(&format!("{client}:500 s1")), "{entries:?}");
            }
        }
    });
}

#[test]
fn ipsec_of_no_service_passes() {
    network::run("ipsec-none", |network| {
        let mut world = World::new(network, &scene(network, 4, method::DIRECT, 1));
        for family in [4, 6] {
            world.reset(&scene(network, family, method::DIRECT, 1));
            for protocol in [ESP, AH] {
                let frame = request(network, family, Kind::Other(protocol)).bytes();
                let outcome = world.step(&frame).same();
                assert_eq!(outcome.verdict, Verdict::Pass(Reason::NoService));
                assert_eq!(outcome.bytes, frame);
            }
        }
    });
}
