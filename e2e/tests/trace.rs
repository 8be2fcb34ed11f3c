//! `rlvs trace`: what it says is what a client then meets, and asking changes nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use e2e::bpf::map_bytes;
use e2e::lab::{Greeted, Method, Stage, connect, tcp_server};
use e2e::schema;
use rlvs::lab::topology::{CLIENT, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_datapath::abi::{REASONS, SOURCE_BUCKETS, Sources};
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::pins;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 7000;
/// A port of the client from which nothing else comes.
const CLIENT_PORT: u16 = 1234;
const NOT_FORWARDED: i32 = 3;

fn echo_stage(wiring: Wiring) -> Stage {
    let stage = Stage::attached(wiring, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, PORT, Some(server.title));
    }
    stage
}

/// Asks for a packet from a port of the client; `words` are options.
fn ask(stage: &Stage, port: u16, target: SocketAddr, words: &[&str]) -> (Option<i32>, Value) {
    let client = SocketAddr::new(CLIENT.of(Family::of(target.ip())), port).to_string();
    let target = target.to_string();
    let words = [&["trace", "--json", &client, &target], words].concat();
    let said = stage.rlvs(&words);
    let value = serde_json::from_str(&said.output).unwrap_or_else(|_| panic!("{said:?}"));
    schema::check("trace", &value);
    (said.status, value)
}

#[track_caller]
fn forwarded(stage: &Stage, target: SocketAddr) -> Value {
    let (status, value) = ask(stage, CLIENT_PORT, target, &[]);
    assert_eq!((status, &value["verdict"]), (Some(0), &"forwarded".into()), "{value:#}");
    value
}

/// Asserts that a packet is not forwarded, for a reason.
#[track_caller]
fn refused(stage: &Stage, target: SocketAddr, verdict: &str, reason: &str) -> Value {
    let (status, value) = ask(stage, CLIENT_PORT, target, &[]);
    assert_eq!((status, &value["verdict"]), (Some(NOT_FORWARDED), &verdict.into()), "{value:#}");
    assert_eq!(value["reasons"], Value::from(vec![reason]), "{value:#}");
    value
}

/// Returns the title of the server that was chosen.
#[track_caller]
fn title(value: &Value) -> &'static str {
    let address: IpAddr = value["chosen"]["address"].as_str().unwrap().parse().unwrap();
    let is_it = |server: &&rlvs::lab::topology::RealServer| {
        server.inside.both().contains(&address) || server.outside.both().contains(&address)
    };
    REAL_SERVERS.iter().find(is_it).unwrap().title
}

fn says(value: &Value, words: &str) -> bool {
    value["why"].as_array().unwrap().iter().any(|why| why.as_str().unwrap().contains(words))
}

fn meets(stage: &Stage, service: SocketAddr) -> Greeted {
    stage.as_client(|| connect(service).unwrap())
}

/// Adds a service with both servers and returns its address.
fn serve(stage: &Stage, vip: IpAddr, method: &str, options: &str) -> SocketAddr {
    let service = SocketAddr::new(vip, PORT);
    stage.ipvsadm(&format!("-A -t {service} {options}")).ok();
    for server in &REAL_SERVERS {
        let place = if method == "-m" { server.inside } else { server.outside };
        let real = SocketAddr::new(place.of(Family::of(vip)), PORT);
        stage.ipvsadm(&format!("-a -t {service} -r {real} {method}")).ok();
    }
    service
}

#[test]
fn what_is_foretold_is_what_a_client_meets() {
    let methods = [("-g", VIPS[1]), ("-m", VIPS[2]), ("-i", VIPS[3])];
    let scenes =
        [(Wiring::Plain, Family::V4, &methods[..]), (Wiring::Tuned, Family::V6, &methods[1..2])];
    for (wiring, family, methods) in scenes {
        let stage = echo_stage(wiring);
        for &(method, vips) in methods {
            let service = serve(&stage, vips.of(family), method, "-s rr");
            let mut met = Vec::new();
            // Asking takes no turn.
            assert_eq!(
                forwarded(&stage, service)["chosen"],
                forwarded(&stage, service)["chosen"],
                "{method}"
            );
            for _ in 0..2 {
                let foretold = forwarded(&stage, service);
                assert_eq!(foretold["chosen"]["opened"], true, "{foretold:#}");
                assert!(says(&foretold, "rr: it is its turn"), "{foretold:#}");
                is_rewritten(&foretold, method, service);
                let greeted = meets(&stage, service);
                assert_eq!(greeted.name, title(&foretold), "{method} {foretold:#}");
                met.push(greeted);
            }
            assert_ne!(met[0].name, met[1].name);
            goes_on(&stage, service, &met[0]);
        }
    }
}

/// Asserts that the packet becomes what the method makes of it.
#[track_caller]
fn is_rewritten(value: &Value, method: &str, service: SocketAddr) {
    let (becomes, chosen) = (&value["becomes"], &value["chosen"]);
    let server = &chosen["address"];
    let virtual_address = Value::from(service.ip().to_string());
    let (target, tunnel, interface) = match method {
        "-m" => (server, &Value::Null, "eth1"),
        "-g" => (&virtual_address, &Value::Null, "eth0"),
        _ => (&virtual_address, server, "eth0"),
    };
    assert_eq!(&becomes["destination"]["address"], target, "{value:#}");
    assert_eq!(&becomes["tunnel"]["destination"], tunnel, "{value:#}");
    assert_eq!(becomes["source"]["port"], CLIENT_PORT, "{value:#}");
    assert_eq!(chosen["interface"], interface, "{value:#}");
    assert_eq!(becomes["ttl"], 63, "{value:#}");
}

/// Asserts that a packet of a connection that is there is known to be one.
#[track_caller]
fn goes_on(stage: &Stage, service: SocketAddr, greeted: &Greeted) {
    let port = greeted.stream.local_addr().unwrap().port();
    let (status, value) = ask(stage, port, service, &["--established"]);
    assert_eq!(status, Some(0), "{value:#}");
    assert_eq!(title(&value), greeted.name, "{value:#}");
    assert_eq!(value["connection"]["state"], "ESTABLISHED", "{value:#}");
    assert_eq!(value["chosen"]["opened"], false, "{value:#}");
    assert!(says(&value, "it belongs to a connection"), "{value:#}");
}

#[test]
fn a_client_stays_with_its_server_and_others_are_told_apart() {
    let stage = echo_stage(Wiring::Plain);
    // A persistent client.
    let service = serve(&stage, VIPS[1].v4.into(), "-m", "-s rr -p 300");
    let first = forwarded(&stage, service);
    assert_eq!(first["chosen"]["template_made"], true, "{first:#}");
    let greeted = meets(&stage, service);
    assert_eq!(greeted.name, title(&first), "{first:#}");
    let again = forwarded(&stage, service);
    assert_eq!(title(&again), greeted.name, "{again:#}");
    assert_eq!(again["chosen"]["template_made"], false, "{again:#}");
    assert!(says(&again, "persistence template leads there"), "{again:#}");
    // A server that is drained, then one that is overloaded.
    let service = serve(&stage, VIPS[2].v4.into(), "-m", "-s wrr");
    let [one, two] =
        [0, 1].map(|at| SocketAddr::new(REAL_SERVERS[at].inside.v4.into(), PORT).to_string());
    let name = format!("tcp:{service}");
    let said = stage.rlvs(&["drain", &one, "--service", &name, "--deadline", "0s"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    for _ in 0..2 {
        let value = forwarded(&stage, service);
        assert_eq!(title(&value), "Server 2", "{value:#}");
        let drained = |at: usize| value["servers"][at]["drained"].as_bool().unwrap();
        assert!(drained(0) != drained(1), "{value:#}");
        assert!(says(&value, "1 of 2 servers"), "{value:#}");
        assert_eq!(meets(&stage, service).name, "Server 2");
    }
    stage.rlvs(&["undrain", &one, "--service", &name]).ok();
    stage.ipvsadm(&format!("-e -t {service} -r {two} -m -x 1")).ok();
    let held: Vec<Greeted> = (0..2).map(|_| meets(&stage, service)).collect();
    let value = forwarded(&stage, service);
    assert_eq!(title(&value), "Server 1", "{value:#}");
    let overloaded = |server: &&Value| server["overloaded"] == true;
    let of: Vec<&Value> = value["servers"].as_array().unwrap().iter().filter(overloaded).collect();
    assert_eq!(of.len(), 1, "{value:#}");
    assert_eq!(of[0]["address"], REAL_SERVERS[1].inside.v4.to_string(), "{value:#}");
    drop(held);
}

#[test]
fn what_is_not_forwarded_has_a_reason() {
    let stage = echo_stage(Wiring::Plain);
    let service = stage.serve("-t", (VIPS[1].v4, PORT).into(), Method::Nat, PORT);
    let other = SocketAddr::new(VIPS[1].v4.into(), PORT + 1);
    let value = refused(&stage, other, "passed", "no_service");
    assert!(value["service"].is_null() && value["chosen"].is_null(), "{value:#}");
    // In the middle of nothing.
    let (status, value) = ask(&stage, CLIENT_PORT, service, &["--established"]);
    assert_eq!(status, Some(NOT_FORWARDED), "{value:#}");
    assert_eq!(value["reasons"], Value::from(vec!["no_connection"]), "{value:#}");
    // Who is denied.
    let client = CLIENT.v4.to_string();
    let at = service.to_string();
    stage.rlvs(&["acl", "deny", "-t", &at, &client]).ok();
    let value = refused(&stage, service, "dropped", "denied");
    assert_eq!(value["service"]["guarded"], true, "{value:#}");
    stage.rlvs(&["acl", "del", "-t", &at, &client]).ok();
    forwarded(&stage, service);
    // A virtual address that is not here.
    let away: SocketAddr = "192.168.1.240:7000".parse().unwrap();
    serve(&stage, away.ip(), "-m", "-s rr");
    refused(&stage, away, "passed", "not_local");
    // Nobody who takes connections.
    let empty = SocketAddr::new(VIPS[2].v4.into(), PORT);
    stage.ipvsadm(&format!("-A -t {empty} -s wlc")).ok();
    let value = refused(&stage, empty, "answered", "no_destination");
    assert!(says(&value, "the service has no server"), "{value:#}");
    assert_eq!(value["becomes"]["icmp"], serde_json::json!({"type": 3, "code": 3}), "{value:#}");
    // No way to the server.
    stage.ipvsadm(&format!("-a -t {empty} -r 198.51.100.7:80 -m")).ok();
    let value = refused(&stage, empty, "answered", "unreachable");
    assert!(says(&value, "there is no route to the server"), "{value:#}");
    assert_eq!(value["becomes"]["icmp"], serde_json::json!({"type": 3, "code": 1}), "{value:#}");
    assert_eq!(value["chosen"]["address"], "198.51.100.7", "{value:#}");
    // Other protocols, each by its own service.
    for (proto, option) in [("udp", "-u"), ("sctp", "--sctp-service")] {
        let service = stage.serve(option, (VIPS[3].v4, PORT).into(), Method::Nat, PORT);
        let (status, value) = ask(&stage, CLIENT_PORT, service, &["--proto", proto]);
        assert_eq!(status, Some(0), "{value:#}");
        assert_eq!(value["becomes"]["destination"]["port"], PORT, "{value:#}");
        assert_eq!(value["service"]["protocol"], proto, "{value:#}");
    }
    for (words, error) in [
        (["trace", "[fd00:1::10]:1", "192.168.1.200:80"], "are of two families"),
        (["trace", "192.168.1.100:1", "192.168.1.200:80"], "is an address of this host"),
        (["trace", "198.51.100.7:1", "192.168.1.200:80"], "there is no route to 198.51.100.7"),
    ] {
        let said = stage.rlvs(&words);
        assert_eq!(said.status, Some(1), "{said:?}");
        assert!(said.errors.contains(error), "{said:?}");
    }
}

/// Returns what is in every map that packets or commands change, but for what the timer writes.
fn maps(stage: &Stage) -> BTreeMap<String, Vec<u8>> {
    let read = || {
        let folder = pins::open().unwrap().unwrap();
        let is_map = |name: &String| {
            let others = ["object", "program_", "link_", "stages_", "sweep", "estimates", "book"];
            !others.iter().any(|other| name.starts_with(other))
        };
        let names = folder.names().unwrap().into_iter().filter(is_map);
        names.map(|name| (name.clone(), map_bytes(&folder.path(&name)))).collect()
    };
    let mut maps: BTreeMap<String, Vec<u8>> = stage.lab.director().run(read).unwrap();
    // The last of them says how often the sweep has come round.
    let sources = maps.get_mut("sources").unwrap();
    sources.truncate(SOURCE_BUCKETS as usize * size_of::<Sources>());
    // The lab's own packets, such as those that ask for a neighbour, are counted under the first reasons.
    for row in maps.get_mut("reasons").unwrap().chunks_mut(REASONS as usize * 8) {
        row[..(Reason::NoService as usize + 1) * 8].fill(0);
    }
    maps
}

#[test]
fn asking_changes_no_byte_of_any_map() {
    let stage = echo_stage(Wiring::Plain);
    let services = [(VIPS[1], "-s rr"), (VIPS[2], "-s wlc -p 300")]
        .map(|(vip, options)| serve(&stage, vip.v4.into(), "-m", options));
    let away = serve(&stage, "192.168.1.240".parse().unwrap(), "-m", "-s rr");
    let held: Vec<Greeted> = services.iter().map(|service| meets(&stage, *service)).collect();
    let before = maps(&stage);
    assert!(before.contains_key("connections4") && before.contains_key("rows"));
    for (service, greeted) in services.iter().zip(&held) {
        let port = greeted.stream.local_addr().unwrap().port();
        forwarded(&stage, *service);
        assert_eq!(ask(&stage, port, *service, &["--established"]).0, Some(0));
    }
    refused(&stage, away, "passed", "not_local");
    let after = maps(&stage);
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let seen: Vec<&String> = before.keys().filter(differs).collect();
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn people_read_it_line_by_line() {
    let stage = echo_stage(Wiring::Plain);
    let service = serve(&stage, VIPS[1].v4.into(), "-m", "-s rr");
    let client = SocketAddr::new(CLIENT.v4.into(), CLIENT_PORT).to_string();
    let said = stage.rlvs(&["trace", "--proto", "tcp", &client, &service.to_string()]).ok();
    let mut words = said.lines().filter_map(|line| line.split_ascii_whitespace().next());
    let expected =
        ["packet", "service", "server", "server", "why", "why", "becomes", "way", "verdict"];
    assert!(expected.into_iter().all(|word| words.next() == Some(word)), "{said}");
    assert!(said.contains("-> 10.0.1."), "{said}");
    assert!(said.ends_with("verdict  forwarded\n"), "{said}");
    stage.rlvs(&["detach"]).ok();
    let said = stage.rlvs(&["trace", &client, &service.to_string()]);
    assert_eq!(said.status, Some(1), "{said:?}");
    assert!(said.errors.contains("attached"), "{said:?}");
}
