//! One run of the fuzzer: any tables, any frames, on the host body.
//!
//! The bytes are read as a script: services with their destinations, words of the tables to be
//! spoiled, then frames and what an administrator or time does between them. Bytes that are missing
//! read as 0, so every input is a script. Nothing may panic. As long as no table was spoiled, a frame
//! that passes leaves as it came, no lock stays taken, and what is counted is in the table.

use std::net::IpAddr;

use rlvs_datapath::abi::{Interface, Tunnel, destination_flag, interface_flag, method};
use rlvs_datapath::frame::Verdict;

use crate::host::{HostFrame, HostTables, IDS, RING_LINES, Routes, Way, decide};
use crate::network::{client, forbidden, server, server_mac, unresolved_client, vip};
use crate::packet::{Kind, Packet};
use crate::scene::{POOL_FIRST, full, translate_fully, tunnelled};
use crate::snapshot;
use crate::table::{Description, SECOND, Server, Virtual};

/// The interfaces that frames come in by, with the address they are sent to.
const PORTS: [(u32, [u8; 6]); 2] = [(2, [2, 0, 0, 0, 9, 1]), (3, [2, 0, 0, 0, 9, 2])];
/// The most frames of one run.
const FRAMES: usize = 64;
/// Ports of the pool of full NAT.
const POOL_PORTS: u16 = 4;

/// The script.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }
    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let length = N.min(self.0.len());
        let (now, later) = self.0.split_at(length);
        bytes[..length].copy_from_slice(now);
        self.0 = later;
        bytes
    }
    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }
}

/// Plays a script.
///
/// # Panics
/// The forwarding function panics, or breaks one of its promises.
pub fn run(data: &[u8]) {
    let mut script = Script(data);
    let mut tables = description(&mut script).build();
    translate_fully(&mut tables, POOL_PORTS);
    let routes = routes();
    let mut whole = true;
    for _ in 0..script.below(8) {
        spoil(&mut script, &mut tables);
        whole = false;
    }
    for _ in 0..FRAMES {
        if script.is_over() {
            break;
        }
        match script.below(8) {
            0 => administer(&mut script, &mut tables),
            kind => {
                let frame = frame(&mut script, kind);
                play(&mut script, &tables, &routes, &frame, whole);
            }
        }
    }
    if whole {
        assert!(tables.locks.iter().all(|lock| lock.get() == 0), "a lock is still taken");
        snapshot::assert_counts(&tables);
    }
}

fn description(script: &mut Script<'_>) -> Description {
    let mut services = Vec::new();
    for number in 0..=script.below(4) {
        let bits = script.byte();
        let family = if bits & 1 == 0 { 4 } else { 6 };
        let servers = (0..bits >> 4 & 3).map(|_| real_server(script, family)).collect();
        services.push(Virtual {
            address: vip(family, 100 + number),
            port: 80,
            protocol: if bits & 2 == 0 {
                rlvs_wire::tcp::PROTOCOL
            } else {
                rlvs_wire::udp::PROTOCOL
            },
            scheduler: 1 + u32::from(script.below(15)),
            scheduler_flags: u32::from(bits >> 2 & 3),
            servers,
        });
    }
    let interface = |(index, mac): (u32, [u8; 6])| {
        let [a, b, c, d, e, f] = mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        Interface { index, flags: interface_flag::XDP, mac }
    };
    let flags = u32::from(script.byte());
    let word = script.word();
    Description {
        services,
        interfaces: PORTS.map(interface).to_vec(),
        buckets: 4,
        flags,
        mss: (word >> 48) as u32,
        cpus: 1,
        clock: word as u32,
    }
}

fn real_server(script: &mut Script<'_>, family: u8) -> Server {
    let bits = script.byte();
    if bits & 0x30 == 0x30 {
        let (outer, form) = (script.one(&[4, 6]), script.below(3));
        return tunnelled(family, outer, 11 + (bits & 3), form, script.below(3));
    }
    if bits & 0x3f == 0x20 {
        return Server { weight: 1 + u32::from(bits >> 6), ..full(family, 12 + (bits >> 6)) };
    }
    let method = if bits & 1 == 0 { method::DIRECT } else { method::MASQUERADE };
    let address = match bits >> 1 & 7 {
        0 => forbidden(family),
        1 => server(family, 99),
        number => server(family, 10 + number),
    };
    let port = if method == method::MASQUERADE { 8080 } else { 80 };
    let tunnel = Tunnel::default();
    let (upper, lower) = (u32::from(bits >> 3 & 1) * 4, u32::from(bits >> 2 & 1));
    Server { address, port, method, weight: u32::from(bits >> 6), upper, lower, tunnel }
}

fn routes() -> Routes {
    let mut routes = Routes::default();
    for family in [4, 6] {
        let longest = if family == 4 { 32 } else { 128 };
        for number in 11..=18 {
            let (interface, own) = PORTS[1];
            let way = Way::Hop { interface, neighbour: server_mac(number), own, mtu: 1500 };
            routes.insert(server(family, number), longest, way);
        }
        let (interface, own) = PORTS[0];
        let gateway = Way::Hop { interface, neighbour: [2, 0, 0, 0, 9, 0xfe], own, mtu: 1400 };
        routes.insert(client(family, 0), if family == 4 { 24 } else { 64 }, gateway);
        routes.insert(server(family, 99), longest, Way::Unresolved { interface });
        routes.insert(unresolved_client(family), longest, Way::Unresolved { interface });
        routes.insert(forbidden(family), longest, Way::Unreachable);
    }
    routes
}

/// Writes any word anywhere.
fn spoil(script: &mut Script<'_>, tables: &mut HostTables) {
    let (kind, at, word) = (script.byte(), script.byte() as usize, script.word());
    let (id, low) = (at % IDS as usize, word as u32);
    match kind % 12 {
        0 => tables.destinations[id].service = low,
        1 => tables.destinations[id].reply = low,
        2 => tables.destinations[id].method = low as u8,
        3 => tables.destinations[id].address = (u128::from(word) * 0x1_0000_0001).to_be_bytes(),
        4 => tables.services[id].flags = low,
        5 => tables.rings[at / 16 % RING_LINES as usize].elements[at % 16] = word,
        6 => tables.schedules[id].ring.set(word),
        7 => tables.connections4[at % 4].slots[at / 4 % 8].value.set(word),
        8 => tables.connections6[at % 4].slots[at / 4 % 4].value.set(word),
        9 => tables.connections4[at % 4].slots[at / 4 % 8].key.set(word),
        10 => tables.settings.timeouts[at % 16] = low,
        _ => tables.settings.keys[at % 3] = word,
    }
}

fn administer(script: &mut Script<'_>, tables: &mut HostTables) {
    let id = usize::from(script.byte()) % IDS as usize;
    match script.below(3) {
        0 => tables.destinations[id].flags ^= destination_flag::AVAILABLE,
        1 => tables.destinations[id].weight = u32::from(script.below(3)),
        _ => {
            let units = u32::from(script.byte()) * SECOND;
            tables.settings.clock_offset = tables.settings.clock_offset.wrapping_add(units);
        }
    }
}

/// Makes a frame: a packet of a flow, a little spoilt or not, or any bytes at all.
fn frame(script: &mut Script<'_>, kind: u8) -> Vec<u8> {
    let (_, to) = script.one(&PORTS);
    if kind == 7 {
        let mut bytes: Vec<u8> = (0..script.byte()).map(|_| script.byte()).collect();
        let kind = script.one(&[[8, 0], [0x86, 0xdd], [0x81, 0]]);
        let head = [to.as_slice(), &[2, 0, 0, 0, 9, 9], &kind].concat();
        bytes.splice(0..0, head);
        return bytes;
    }
    let family = if script.byte() & 1 == 0 { 4 } else { 6 };
    let client: IpAddr = client(family, 1 + script.below(4));
    let port = 1000 + u16::from(script.below(8));
    let flags = script.byte();
    let kind = if flags & 0x80 == 0 { Kind::Tcp(flags & 0x3f) } else { Kind::Udp };
    let way = script.byte();
    let (source, target) = if way & 1 == 0 {
        ((client, port), (vip(family, 100 + script.below(4)), 80))
    } else {
        let target = match way & 0xe {
            0xe => (server(family, 1), POOL_FIRST + u16::from(way >> 4) % POOL_PORTS),
            _ => (client, port),
        };
        ((server(family, 12 + script.below(6)), 8080), target)
    };
    let ttl = script.one(&[64, 64, 64, 1, 0, 2]);
    let payload = vec![0x5a; usize::from(script.byte()) * 8];
    let (source, target) = (source.into(), target.into());
    let from = [2, 0, 0, 0, 9, 9];
    let mut bytes = Packet { from, to, source, target, kind, ttl, payload }.bytes();
    for _ in 0..script.below(3) {
        let at = usize::from(script.byte()) % bytes.len();
        bytes[at] ^= script.byte();
    }
    if script.byte() & 7 == 7 {
        bytes.truncate(14 + usize::from(script.byte()));
    }
    bytes
}

fn play(script: &mut Script<'_>, tables: &HostTables, routes: &Routes, frame: &[u8], whole: bool) {
    let how = script.byte();
    let (interface, _) = PORTS[usize::from(how & 1)];
    let headroom = if how & 2 == 0 { 256 } else { 0 };
    let (verdict, bytes) = if how & 4 == 0 {
        let mut packet = HostFrame::<'_, false>::new(frame, interface, routes);
        packet.headroom = headroom;
        (decide(&mut packet, tables), packet.bytes)
    } else {
        let mut packet = HostFrame::<'_, true>::new(frame, interface, routes);
        (packet.headroom, packet.segmented) = (headroom, how & 8 != 0);
        (decide(&mut packet, tables), packet.bytes)
    };
    let undecided = matches!(verdict, Verdict::Next(stage) if how & 4 != 0 || stage.is_on_xdp());
    assert!(!whole || !undecided, "nobody decides: {verdict:?}");
    if matches!(verdict, Verdict::Pass(_) | Verdict::Next(_)) {
        assert!(!whole || bytes == frame, "{verdict:?} changed the frame");
    }
}
