//! Random packets through XDP, TC and the host: the same verdicts, bytes, counters and tables.
//!
//! The first half is the same in every run, and is what must have met each kind of packet: a run
//! that meets few by chance is no failure. The seed of the second half is printed; `RLVS_SEED` plays
//! one again.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a step that fails panics; what it shows is not always looked at"
)]

use std::net::SocketAddr;

use e2e::bpf::Input;
use e2e::host::IDS;
use e2e::network::{self, Network, client, forbidden, server, server_mac, vip};
use e2e::packet::{Kind, Message, Packet, transport};
use e2e::scene::{
    self, POOL_FIRST, REAL_PORT, SCTP, TCP, UDP, destination, full, service, translate_fully,
    tunnelled,
};
use e2e::snapshot::assert_counts;
use e2e::table::{Description, SECOND, Virtual};
use e2e::unusual::{atomic, extended, fragments, optioned};
use e2e::world::World;
use rlvs_datapath::abi::{destination_flag, method, scheduler, tunnel_checksum, tunnel_form};
use rlvs_datapath::frame::Verdict;
use rlvs_datapath::reason::Reason;
use rlvs_datapath::tables::TIME_MASK;
use rlvs_wire::tcp::{ACK, FIN, RST, SYN};

const PACKETS: u32 = 5000;
/// Seed of the first half.
const STANDING_SEED: u64 = 1;
const FLOWS: u64 = 400;
/// Flows that have packets at the same time.
const AT_ONCE: u64 = 60;

/// Port of the key exchange.
const EXCHANGE: u16 = 500;

/// Port of the services with full NAT.
const FULL_PORT: u16 = 8001;
/// Ports of its pool, too few for all.
const POOL_PORTS: u16 = 2;

/// A generator of numbers that is the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % limit
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

fn seed() -> u64 {
    let seed = std::env::var("RLVS_SEED").map_or_else(
        |_| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("a clock that is right").as_nanos() as u64
        },
        |text| text.parse().expect("RLVS_SEED is a number"),
    );
    println!("RLVS_SEED={seed}");
    seed
}

/// Services with all methods mixed; two virtual addresses share the NAT destinations. The table is
/// small enough to fill up.
fn description(network: &Network, unresolved: bool) -> Description {
    let mut services = Vec::new();
    for family in [4, 6] {
        for (number, protocol) in [(100, TCP), (100, UDP), (101, TCP), (101, UDP)] {
            let mut servers = vec![
                destination(family, 11, method::DIRECT),
                destination(family, 12, method::MASQUERADE),
                destination(family, 13, method::MASQUERADE),
                destination(family, 14, method::DIRECT),
            ];
            servers[1].weight = 2;
            if number == 101 {
                servers[3].address = forbidden(family);
            }
            if unresolved {
                servers.push(destination(family, 99, method::MASQUERADE));
                servers.push(destination(family, 99, method::DIRECT));
            }
            // Every kind of tunnel occurs, through its own family and through the other.
            let form = form_of(number, protocol);
            let outer = if protocol == TCP { family } else { 10 - family };
            servers.push(tunnelled(family, outer, 16, form, tunnel_checksum::OUTER));
            let mut service = service(family, protocol, servers);
            service.address = vip(family, number);
            service.scheduler = match (family, number, protocol) {
                (4, 100, TCP) => scheduler::WRR,
                (4, 100, _) => scheduler::WLC,
                (4, _, TCP) => scheduler::LBLCR,
                (4, ..) => scheduler::P2C,
                (_, 100, TCP) => scheduler::SH,
                (_, 100, _) => scheduler::MH,
                (_, _, TCP) => scheduler::NQ,
                _ => scheduler::RR,
            };
            service.scheduler_flags = u32::from(family == 6);
            (service.servers[0].upper, service.servers[0].lower) = (3, 1);
            services.push(service);
        }
        let mut nat = service(family, TCP, vec![destination(family, 15, method::MASQUERADE)]);
        nat.port = 8000;
        let mut other = nat.clone();
        other.address = vip(family, 101);
        services.extend([nat, other]);
        for protocol in [TCP, UDP] {
            services.extend(of_full_nat(family, protocol));
        }
        let mut sctp = service(family, SCTP, Vec::new());
        sctp.servers.push(destination(family, 12, method::MASQUERADE));
        sctp.servers.push(destination(family, 11, method::DIRECT));
        let mut exchange = Virtual { protocol: UDP, port: EXCHANGE, ..sctp.clone() };
        for server in &mut exchange.servers {
            server.port = EXCHANGE;
        }
        sctp.servers.push(destination(family, 13, method::MASQUERADE));
        services.extend([sctp, exchange]);
    }
    let mut description = scene::description(network, services);
    description.buckets = 32;
    description
}

/// Returns services with full NAT alone and beside other methods; one server has plain NAT too.
fn of_full_nat(family: u8, protocol: u8) -> [Virtual; 2] {
    let mut pure = service(family, protocol, vec![full(family, 17), full(family, 12)]);
    pure.port = FULL_PORT;
    let mut direct = destination(family, 11, method::DIRECT);
    direct.port = FULL_PORT;
    let nat = destination(family, 12, method::MASQUERADE);
    let servers = vec![full(family, 17), direct, nat];
    let mixed = Virtual { address: vip(family, 101), servers, ..pure.clone() };
    [pure, mixed]
}

fn form_of(number: u8, protocol: u8) -> u8 {
    match (number, protocol) {
        (100, TCP) => tunnel_form::IPIP,
        (100, _) => tunnel_form::GRE,
        _ => tunnel_form::GUE,
    }
}

/// Makes a packet of one of the flows that are alive, in either direction.
fn packet(random: &mut Random, network: &Network, number: u32) -> (Packet, u32) {
    let flow = (u64::from(number / 64) * 8 + random.below(AT_ONCE)) % FLOWS;
    let family = if flow & 1 == 0 { 4 } else { 6 };
    let client: SocketAddr =
        (client(family, (flow / 16) as u8 + 1), 1000 + (flow % 16) as u16).into();
    let flags = random.one(&[SYN, SYN, SYN, ACK, ACK, ACK, FIN | ACK, RST, SYN | ACK, 0, 0xff]);
    let chunk = random.one(&[1, 1, 1, 2, 10, 11, 0, 3, 6, 7, 8, 9, 14, 0x80]);
    let kind = match flow / 2 % 9 {
        0 | 3 | 6 => Kind::Udp,
        1 | 4 => Kind::Sctp(chunk, random.chance(20).then_some(6)),
        2 => random.one(&[Kind::Udp, Kind::Other(50), Kind::Other(51)]),
        _ => Kind::Tcp(flags),
    };
    let is_exchange = flow / 2 % 9 == 2;
    let client = if is_exchange { (client.ip(), EXCHANGE).into() } else { client };
    let length = if random.chance(2) { 1600 } else { random.below(40) };
    let payload = (0..length).map(|_| random.below(256) as u8).collect();
    let ttl = if random.chance(4) { random.below(3) as u8 } else { 64 };
    if random.chance(40) {
        let number = random.one(&[12, 12, 13, 13, 15, 17]);
        let port = if is_exchange { EXCHANGE } else { REAL_PORT };
        let source = (server(family, number), port).into();
        let (from, to) = (server_mac(number), network.outside.mac);
        let target = if random.chance(25) {
            (server(family, 1), POOL_FIRST + random.below(POOL_PORTS.into()) as u16).into()
        } else {
            client
        };
        return (Packet { from, to, source, target, kind, ttl, payload }, network.outside.index);
    }
    let port = random.one(&[80, 80, 8000, FULL_PORT]);
    let port = if is_exchange { EXCHANGE } else { port };
    let target = (vip(family, random.one(&[100, 101])), port).into();
    let (from, to) = (network::GATEWAY_MAC, network.inside.mac);
    (Packet { from, to, source: client, target, kind, ttl, payload }, network.inside.index)
}

/// Makes an ICMP message that goes where a packet goes, most often an error about its opposite, which
/// is quoted in part or garbled.
fn message(random: &mut Random, packet: &Packet) -> Vec<u8> {
    let against = packet.reversed();
    let quoted = Packet { payload: vec![0x5a; 30], ..against.clone() }.bytes();
    let mut payload = quoted[14..].to_vec();
    if random.chance(30) {
        payload.truncate(random.below(payload.len() as u64) as usize);
    }
    if random.chance(20) && !payload.is_empty() {
        let at = random.below(payload.len() as u64) as usize;
        payload[at] ^= 1 << random.below(8);
    }
    let kind = if packet.source.is_ipv4() {
        random.one(&[[3, 1], [3, 3], [3, 4], [4, 0], [11, 0], [12, 0], [8, 0], [0, 0], [5, 1]])
    } else {
        random.one(&[[1, 4], [2, 0], [3, 0], [4, 0], [127, 0], [128, 0], [129, 0], [135, 0]])
    };
    let family = family_of(packet);
    let source = random.one(&[packet.source.ip(), client(family, 200)]);
    let rest = [0, 0, 5, random.below(256) as u8];
    let (from, to, target, ttl) = (packet.from, packet.to, packet.target.ip(), packet.ttl);
    Message { from, to, source, target, ttl, kind, rest, payload }.bytes()
}

/// Makes some frames unusual: options, extension headers, fragments, in any order.
fn disguised(random: &mut Random, frame: Vec<u8>) -> Vec<Vec<u8>> {
    if !random.chance(30) {
        return vec![frame];
    }
    let is_v4 = transport(&frame) == 34;
    let content: Vec<u8> = (0..64).map(|_| random.one(&[0, 1, 1, 2, 4, 7, 8, 131, 148])).collect();
    match random.below(3) {
        0 if is_v4 => vec![optioned(&frame, &content[..4 * random.below(11) as usize])],
        0 => {
            let mut header =
                || (random.one(&[0, 43, 43, 60, 60]), 6 + 8 * random.below(4) as usize);
            let headers: Vec<(u8, usize)> = [header(), header(), header()].into();
            let headers: Vec<(u8, &[u8])> =
                headers.iter().map(|&(number, length)| (number, &content[..length])).collect();
            vec![extended(&frame, &headers[..random.below(4) as usize])]
        }
        1 if !is_v4 => vec![atomic(&frame, random.below(8) as u32)],
        _ => {
            let size = 8 * (1 + random.below(6) as usize);
            let mut pieces = fragments(&frame, random.below(8) as u32, size);
            pieces.truncate(4);
            if random.chance(20) {
                pieces.reverse();
            }
            pieces
        }
    }
}

/// Spoils a frame a little.
fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(4) {
        0 if frame.len() > 54 => {
            frame.truncate(54.max(random.below(frame.len() as u64) as usize));
        }
        1 => frame.extend_from_slice(&[0x5a; 7]),
        _ => {
            let at = random.below(frame.len().min(124) as u64) as usize;
            frame[at] ^= 1 << random.below(8);
        }
    }
}

/// What an administrator does now and then.
fn administer(random: &mut Random, world: &mut World<'_>) {
    let id = 1 + random.below(u64::from(IDS) - 1) as usize;
    match random.below(4) {
        0 => world.edit(|tables| {
            let destination = &mut tables.destinations[id];
            if destination.service != 0 {
                destination.flags ^= destination_flag::AVAILABLE;
            }
        }),
        1 => world.edit(|tables| {
            let destination = &mut tables.destinations[id];
            destination.weight = u32::from(destination.weight == 0);
        }),
        _ => {}
    }
    let units = random.one(&[0, 1, SECOND, 10 * SECOND, 61 * SECOND, 301 * SECOND]);
    world.advance(units);
}

fn play(test: &str, unresolved: bool) {
    network::run(test, |network| {
        let mut random = Random(STANDING_SEED);
        let mut world = World::new(network, &description(network, unresolved));
        world.edit(|tables| translate_fully(tables, POOL_PORTS));
        world.set_clock(TIME_MASK - 3000 * SECOND);
        let (mut sent, mut messages, mut from_pool) = (0, 0, 0);
        for number in 0..PACKETS {
            if number == PACKETS / 2 {
                assert_about_something(&world, sent, messages);
                println!("{from_pool} answers were sent on from the pool");
                assert!(from_pool >= 5, "{from_pool} answers were sent on from the pool");
                random = Random(seed());
            }
            let (packet, interface) = packet(&mut random, network, number);
            let is_message = random.chance(15);
            let frames = if is_message {
                vec![message(&mut random, &packet)]
            } else {
                disguised(&mut random, packet.bytes())
            };
            for mut frame in frames {
                if random.chance(12) {
                    mutate(&mut random, &mut frame);
                }
                let input = Input::new(&frame, interface);
                let step = world.step_quietly(&input, number % 64 == 0);
                let transmitted = u32::from(matches!(step.xdp.verdict, Verdict::Transmit { .. }));
                sent += transmitted;
                messages += if is_message { transmitted } else { 0 };
                let is_to_pool = packet.target.ip() == server(family_of(&packet), 1);
                from_pool += if is_to_pool && !is_message { transmitted } else { 0 };
                if matches!(step.xdp.verdict, Verdict::Next(_)) {
                    assert_eq!(step.xdp.bytes, frame, "packet {number}");
                    world.leave_to_tc();
                } else if !unresolved {
                    assert_eq!(step.xdp.verdict, step.tc.verdict, "packet {number}: {frame:02x?}");
                    if !matches!(step.xdp.verdict, Verdict::Drop(_)) {
                        assert_eq!(step.xdp.bytes, step.tc.bytes, "packet {number}: {frame:02x?}");
                    }
                }
            }
            if number % 64 == 0 {
                assert_counts(world.tables());
                if !unresolved {
                    world.assert_equal_tables();
                }
                administer(&mut random, &mut world);
            }
        }
        assert_counts(world.tables());
    });
}

fn family_of(packet: &Packet) -> u8 {
    if packet.source.is_ipv4() { 4 } else { 6 }
}

/// Each kind of packet was met.
fn assert_about_something(world: &World<'_>, sent: u32, messages: u32) {
    let seen = world.snapshot();
    let counted = |reason: Reason| seen.contains_key(&format!("reason {}", reason.name()));
    let wanted = [
        Reason::Malformed,
        Reason::Fragment,
        Reason::Options,
        Reason::NoConnection,
        Reason::Expired,
        Reason::TooBig,
        Reason::Unreachable,
        Reason::TableFull,
        Reason::Stateless,
        Reason::NoPort,
    ];
    let missing: Vec<Reason> = wanted.into_iter().filter(|&reason| !counted(reason)).collect();
    let reasons: Vec<_> = seen.iter().filter(|(name, _)| name.starts_with("reason")).collect();
    println!("{sent} packets were forwarded, {messages} of them ICMP, the others: {reasons:?}");
    assert_eq!(missing, []);
    assert!(sent > PACKETS / 20, "{sent} packets were forwarded");
    assert!(messages >= 5, "{messages} ICMP errors were forwarded");
}

#[test]
fn random_packets_fare_alike_in_all_bodies() {
    play("random", false);
}

#[test]
fn random_packets_to_unresolved_neighbours_fare_as_on_the_host() {
    play("random-unresolved", true);
}
