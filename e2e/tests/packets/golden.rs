//! Picks recorded of the real kernel, replayed on the host body with real packets: connections are
//! opened, closed and counted, destinations edited.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use e2e::director::{Director, last_byte};
use e2e::host::{HostFrame, HostTables, Routes, Way, decide};
use e2e::packet::{Kind, Packet};
use e2e::scene::{TCP, UDP};
use e2e::table::{Description, Server, Virtual};
use rlvs_control::scheduler;
use rlvs_datapath::abi::{Interface, Tunnel, method, settings_flag};
use rlvs_datapath::frame::Verdict;
use rlvs_wire::tcp::{ACK, FIN, SYN};
use serde_json::Value;

/// Recordings that are not replayed, by a part of the name, and why.
const SKIPPED: [(&str, &str); 3] = [
    ("persist-", "persistence is not carried out yet"),
    ("-ops", "one-packet scheduling is not carried out yet"),
    ("twos-", "its draws are random: see `twos_draws_by_weight_and_load`"),
];
/// The client of the recordings that do not name one.
const CLIENT: &str = "192.168.1.10";
const MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];

/// A service with its director and its clients.
struct Replay {
    tables: HostTables,
    director: Director,
    routes: Routes,
    at: SocketAddr,
    kind: fn(u8) -> Kind,
    servers: BTreeMap<String, (u32, Server)>,
    held: VecDeque<SocketAddr>,
    next_port: u16,
    client: IpAddr,
}

impl Replay {
    fn new(case: &Value, setup: &[&str], edits: &[&str]) -> Self {
        let words: Vec<&str> = setup[0].split_whitespace().collect();
        let at: SocketAddr = words[2].parse().expect("a service is an address and a port");
        let flags = words.iter().skip_while(|word| **word != "-b").nth(1).map_or(0, |flags| {
            let bit = |(flag, bit): (&str, u32)| if flags.contains(flag) { bit } else { 0 };
            bit(("fallback", 1)) | bit(("port", 2))
        });
        let number = scheduler::number(case["sched"].as_str().expect("a name")).expect("ours");
        let mut servers: BTreeMap<String, (u32, Server)> = BTreeMap::new();
        for line in setup[1..].iter().chain(edits).filter(|line| line.starts_with("-a")) {
            let id = servers.len() as u32 + 1;
            let (name, server) = server(line);
            servers.entry(name).or_insert((id, server));
        }
        let mut all: Vec<&(u32, Server)> = servers.values().collect();
        all.sort_by_key(|(id, _)| *id);
        let (protocol, kind): (u8, fn(u8) -> Kind) = match words[1] {
            "-t" => (TCP, Kind::Tcp),
            _ => (UDP, |_| Kind::Udp),
        };
        let [a, b, c, d, e, f] = MAC;
        let description = Description {
            services: vec![Virtual {
                address: at.ip(),
                port: at.port(),
                protocol,
                scheduler: number,
                scheduler_flags: flags,
                servers: all.into_iter().map(|(_, server)| *server).collect(),
            }],
            interfaces: vec![Interface {
                index: 2,
                flags: 0,
                mac: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
            }],
            buckets: 64,
            flags: settings_flag::ANY,
            cpus: 1,
            clock: 1000,
            mss: 0,
        };
        let mut tables = description.build();
        let director = Director::new(number, flags, &mut tables);
        let mut routes = Routes::default();
        for (_, server) in servers.values() {
            let neighbour = [2, 0, 0, 0, 1, last_byte(server.address)];
            let way = Way::Hop { interface: 3, neighbour, own: MAC, mtu: 1500 };
            let longest = if server.address.is_ipv4() { 32 } else { 128 };
            routes.insert(server.address, longest, way);
        }
        let (held, next_port) = (VecDeque::new(), 1024);
        let client = CLIENT.parse().expect("an address");
        let mut replay =
            Self { tables, director, routes, at, kind, servers, held, next_port, client };
        setup[1..].iter().for_each(|line| replay.ipvsadm(line));
        replay
    }

    fn ipvsadm(&mut self, line: &str) {
        let (name, server) = server(line);
        let (id, _) = self.servers[&name];
        match &line[..2] {
            "-a" => self.director.add(&mut self.tables, id, &server),
            "-e" => self.director.edit(&mut self.tables, id, &server),
            "-d" => self.director.remove(&mut self.tables, id),
            other => panic!("unknown command {other}"),
        }
    }

    /// Sends a packet and returns who got it.
    fn send(&mut self, client: SocketAddr, flags: u8) -> String {
        let kind = (self.kind)(flags);
        let (from, to) = ([2, 0, 0, 0, 9, 9], MAC);
        let (source, target) = (client, self.at);
        let packet = Packet { from, to, source, target, kind, ttl: 64, payload: Vec::new() };
        let mut frame = HostFrame::<true>::new(&packet.bytes(), 2, &self.routes);
        match decide(&mut frame, &self.tables) {
            // 192.168.1.101 and fd00:1::101 are r1.
            Verdict::Transmit { interface: 3 } => format!("r{}", frame.bytes[5] % 100),
            // Refused by ICMP.
            Verdict::Transmit { interface: 2 } => "ECONNREFUSED".to_owned(),
            other => panic!("{other:?} of {packet:?}"),
        }
    }

    fn open(&mut self, client: SocketAddr) -> String {
        let server = self.send(client, SYN);
        if server != "ECONNREFUSED" && (self.kind)(0) != Kind::Udp {
            assert_eq!(self.send(client, ACK), server);
        }
        server
    }

    fn close(&mut self, client: SocketAddr) {
        self.send(client, FIN | ACK);
    }

    fn next_client(&mut self) -> SocketAddr {
        self.next_port += 1;
        (self.client, self.next_port).into()
    }

    fn step(&mut self, step: &Value) -> Vec<String> {
        let count = step["picks"].as_array().map_or(0, Vec::len);
        match step["op"].as_str().expect("a step has an operation") {
            "adm" => strings(&step["ipvsadm"]).into_iter().for_each(|line| self.ipvsadm(line)),
            "short" => return (0..count).map(|_| self.short()).collect(),
            "hold" => return (0..count).map(|_| self.hold()).collect(),
            "udpn" => {
                let next = |_| {
                    let client = self.next_client();
                    self.open(client)
                };
                return (0..count).map(next).collect();
            }
            "udp1" => {
                let client = self.next_client();
                return (0..count).map(|_| self.open(client)).collect();
            }
            "close" => {
                let number = step["n"].as_u64().expect("how many") as usize;
                let closed: Vec<_> = self.held.drain(..number.min(self.held.len())).collect();
                closed.into_iter().for_each(|client| self.close(client));
            }
            other => panic!("unknown operation {other}"),
        }
        Vec::new()
    }

    fn short(&mut self) -> String {
        let client = self.next_client();
        let server = self.open(client);
        if server != "ECONNREFUSED" {
            self.close(client);
        }
        server
    }

    fn hold(&mut self) -> String {
        let client = self.next_client();
        let server = self.open(client);
        if server != "ECONNREFUSED" {
            self.held.push_back(client);
        }
        server
    }

    /// Holds active and inactive connections against the recording.
    fn check_counts(&self, after: &Value, of: &str) {
        for (name, expected) in after.as_object().into_iter().flatten() {
            let (id, _) = self.servers[name];
            let connections = self.tables.counts[id as usize].connections.get();
            let counted = [connections & 0xffff_ffff, connections >> 32].map(Some);
            let expected = ["active", "inact"].map(|word| expected[word].as_u64());
            assert_eq!(counted, expected, "{name} of {of}");
        }
    }
}

fn server(line: &str) -> (String, Server) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |option| words.iter().skip_while(move |word| **word != option).nth(1);
    let number = |option| after(option).map_or(0, |word| word.parse().expect("a number"));
    let at = after("-r").expect("a line has a server");
    let real: SocketAddr = at.parse().expect("a server is an address and a port");
    let method = if words.contains(&"-m") { method::MASQUERADE } else { method::DIRECT };
    let server = Server {
        address: real.ip(),
        port: real.port(),
        method,
        weight: number("-w"),
        upper: number("-x"),
        lower: number("-y"),
        tunnel: Tunnel::default(),
    };
    ((*at).to_owned(), server)
}

fn strings(value: &Value) -> Vec<&str> {
    let values = value.as_array().expect("a list");
    values.iter().map(|value| value.as_str().expect("a string")).collect()
}

fn check_case(case: &Value) {
    let of = format!("{} on {}", case["name"], case["kernel"]);
    let setup = strings(&case["setup"]);
    if let Some(map) = case.get("map_vip") {
        return check_map_of_addresses(case, &setup, map);
    }
    let steps = case["steps"].as_array().expect("a case has steps");
    let edits: Vec<&str> =
        steps.iter().filter_map(|step| step.get("ipvsadm")).flat_map(strings).collect();
    let mut replay = Replay::new(case, &setup, &edits);
    for (at, step) in steps.iter().enumerate() {
        if let Some(map) = step.get("map") {
            check_map(&mut replay, map, &of);
            continue;
        }
        let picks = replay.step(step);
        if step.get("picks").is_some() {
            assert_eq!(picks, strings(&step["picks"]), "step {at} of {of}");
        }
        replay.check_counts(&step["after"], &of);
    }
}

/// Clients, each with the server that it was given.
fn check_map(replay: &mut Replay, map: &Value, of: &str) {
    for (client, expected) in map.as_object().expect("a map") {
        let (address, port) = match client.split_once(" port ") {
            Some((address, port)) => (address, port.parse().expect("a port")),
            None => (client.as_str(), 40_000),
        };
        let client: SocketAddr = (address.parse::<IpAddr>().expect("an address"), port).into();
        let server = replay.open(client);
        assert_eq!(server, expected.as_str().expect("a server"), "{client} of {of}");
        // Out of the way of the next step.
        replay.tables.connections4.iter().flat_map(|bucket| &bucket.slots).for_each(|slot| {
            slot.key.set(0);
            slot.value.set(0);
        });
        replay.tables.connections6.iter().flat_map(|bucket| &bucket.slots).for_each(|slot| {
            slot.key.set(0);
            slot.value.set(0);
        });
    }
}

/// Virtual addresses, each with the server that its clients were given.
fn check_map_of_addresses(case: &Value, setup: &[&str], map: &Value) {
    for (address, expected) in map.as_object().expect("a map") {
        let service = format!(" {address}:");
        let own: Vec<&str> = setup.iter().filter(|line| line.contains(&service)).copied().collect();
        let mut replay = Replay::new(case, &own, &[]);
        let client = replay.next_client();
        assert_eq!(replay.open(client), expected.as_str().expect("a server"), "{address}");
    }
}

#[track_caller]
fn check(text: &str, replayed: usize, skipped: usize) {
    let cases: Vec<Value> = serde_json::from_str(text).expect("the recording is JSON");
    let (skip, replay): (Vec<_>, Vec<_>) = cases.iter().partition(|case| {
        let name = case["name"].as_str().expect("a case has a name");
        SKIPPED.iter().any(|(part, _)| name.contains(part))
    });
    replay.into_iter().for_each(check_case);
    assert_eq!((cases.len() - skip.len(), skip.len()), (replayed, skipped));
}

macro_rules! recorded {
    ($($test:ident: $name:literal, $replayed:literal, $skipped:literal;)*) => {$(
        #[test]
        fn $test() {
            let text = include_str!(concat!(
                "../../../crates/rlvs-control/tests/golden/sched/",
                $name,
                ".json"
            ));
            check(text, $replayed, $skipped);
        }
    )*};
}

recorded! {
    rr_picks_as_recorded: "rr", 24, 10;
    wrr_picks_as_recorded: "wrr", 16, 4;
    lc_picks_as_recorded: "lc", 12, 0;
    wlc_picks_as_recorded: "wlc", 18, 2;
    sed_picks_as_recorded: "sed", 12, 0;
    nq_picks_as_recorded: "nq", 12, 0;
    lblc_picks_as_recorded: "lblc", 8, 0;
    lblcr_picks_as_recorded: "lblcr", 8, 0;
    dh_picks_as_recorded: "dh", 10, 0;
    sh_picks_as_recorded: "sh", 23, 2;
    mh_picks_as_recorded: "mh", 19, 0;
    fo_picks_as_recorded: "fo", 8, 0;
    ovf_picks_as_recorded: "ovf", 8, 0;
    twos_is_not_replayed: "twos", 0, 2;
}
