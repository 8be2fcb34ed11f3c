//! Persistent services, services of every port and of a mark, with real clients and servers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{SocketAddr, UdpSocket};

use e2e::association::{self, Speaker};
use e2e::lab::{Method, Random, Stage, connect, tcp_server};
use rlvs::lab::topology::{CLIENT, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORTS: [u16; 2] = [8001, 8002];

fn stage(wiring: Wiring) -> Stage {
    let stage = Stage::attached(wiring, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        PORTS.iter().for_each(|&port| tcp_server(namespace, port, Some(server.title)));
    }
    stage
}

/// Returns who answered each of some connections.
fn names(stage: &Stage, to: &[SocketAddr]) -> Vec<String> {
    stage.as_client(|| to.iter().map(|&to| connect(to).unwrap().name).collect())
}

fn add(stage: &Stage, service: &str, family: Family, method: Method, port: u16) {
    for server in &REAL_SERVERS {
        let real = SocketAddr::new(method.address(server, family), port);
        stage.ipvsadm(&format!("-a {service} -r {real} {}", method.option())).ok();
    }
}

/// Returns the lines of `-L -c` that show templates: state, source, virtual, destination.
fn templates(stage: &Stage) -> Vec<String> {
    let listing = stage.ipvsadm("-L -c -n").ok();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [protocol, _, rest @ ..] = &words[..] else { return None };
        let is_template = rest.get(1).is_some_and(|source| source.ends_with(":0"));
        is_template.then(|| format!("{protocol} {}", rest.join(" ")))
    };
    listing.lines().filter_map(line).collect()
}

fn persistence(wiring: Wiring) {
    let stage = stage(wiring);
    for (method, family, number) in [
        (Method::Direct, Family::V4, 0),
        (Method::Nat, Family::V4, 1),
        (Method::Nat, Family::V6, 2),
    ] {
        // One port: the ring would change servers.
        let vip = SocketAddr::new(VIPS[number].of(family), PORTS[0]);
        stage.ipvsadm(&format!("-A -t {vip} -s rr -p 100")).ok();
        add(&stage, &format!("-t {vip}"), family, method, PORTS[0]);
        let seen = names(&stage, &[vip; 4]);
        assert_eq!(seen, [&*seen[0]; 4], "{method:?} {vip}");
        let listing = stage.ipvsadm(&format!("-L -n -t {vip} --persistent-conn")).ok();
        assert!(listing.contains("rr persistent 100"), "{listing}");
        let shown = templates(&stage);
        let [template] = &shown[..] else { panic!("{shown:?}") };
        assert!(template.starts_with("TCP ASSURED "), "{template}");
        assert!(template.contains(&format!(" {vip} ")), "{template}");
        assert!(template.ends_with(&format!(":{}", PORTS[0])), "{template}");

        // Every port, and the templates apart.
        let any = SocketAddr::new(VIPS[number + 3].of(family), 0);
        stage.ipvsadm(&format!("-A -t {any} -s rr -p 100")).ok();
        add(&stage, &format!("-t {any}"), family, method, 0);
        let [first, second] = PORTS.map(|port| SocketAddr::new(any.ip(), port));
        let seen = names(&stage, &[first, second, second, first]);
        assert_eq!(seen, [&*seen[0]; 4], "{method:?} {any}");
        let all = templates(&stage);
        assert!(all.iter().any(|line| line.contains(&format!(" {any} ")) && line.ends_with(":0")));
        stage.ipvsadm("-C").ok();
        stage.rlvs(&["detach"]).ok();
        stage.rlvs(&["attach"]).ok();
    }
}

#[test]
fn clients_keep_their_server_through_tc() {
    persistence(Wiring::Plain);
}

#[test]
fn clients_keep_their_server_through_native_xdp() {
    persistence(Wiring::Tuned);
}

/// Calls from many ports, through the command's maps and programs.
#[test]
fn a_call_keeps_its_server() {
    let stage = stage(Wiring::Plain);
    let vip = SocketAddr::new(VIPS[0].of(Family::V4), PORTS[0]);
    let service = format!("-A -u {vip} -s rr -p 100 --pe sip");
    stage.ipvsadm(&service).ok();
    add(&stage, &format!("-u {vip}"), Family::V4, Method::Nat, PORTS[0]);
    stage.as_client(|| {
        for call in ["one@a", "one@a", "two@a", "one@a", ""] {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let invite = format!("INVITE sip:b SIP/2.0\r\nCall-ID: {call}\r\n\r\n");
            socket.send_to(invite.as_bytes(), vip).unwrap();
        }
    });
    let listing = stage.ipvsadm("-L -n -c --persistent-conn").ok();
    let (calls, flows): (Vec<&str>, Vec<&str>) = listing
        .lines()
        .filter(|line| line.starts_with("UDP"))
        .partition(|line| line.contains(" sip "));
    let word = |line: &&str, number| line.split_ascii_whitespace().nth(number).unwrap().to_owned();
    let mut servers: Vec<String> = flows.iter().map(|line| word(line, 5)).collect();
    servers.sort();
    assert_eq!(servers.len(), 4, "{listing}");
    assert_eq!(servers.iter().filter(|&server| *server == servers[1]).count(), 3, "{listing}");
    assert_eq!(calls.len(), 2, "{listing}");
    for call in calls {
        assert_eq!(word(&call, 6), "sip", "{call}");
        assert!(u64::from_str_radix(&word(&call, 7), 16).is_ok(), "{call}");
    }
    assert!(stage.rlvs(&["status"]).ok().contains("1 no_call_id"), "{:?}", stage.rlvs(&["status"]));
    let saved = stage.ipvsadm("-S -n").ok();
    assert!(saved.starts_with(&format!("{service}\n")), "{saved}");
    assert!(stage.listing().contains(&format!("{vip} rr persistent 100 pe sip\n")));
    stage.ipvsadm(&format!("-E -u {vip} -s rr -p 100")).ok();
    assert!(!stage.ipvsadm("-S -n").ok().contains("sip"));
}

#[test]
fn a_mark_joins_ports() {
    let stage = stage(Wiring::Plain);
    let vip = VIPS[6].v4;
    for port in PORTS {
        let (to, port) = (vip.to_string(), port.to_string());
        stage.rlvs(&["mark", "add", "77", "--to", &to, "--protocol", "tcp", "--port", &port]).ok();
    }
    stage.ipvsadm("-A -f 77 -s rr -p 60").ok();
    add(&stage, "-f 77", Family::V4, Method::Nat, 0);
    let [first, second] = PORTS.map(|port| SocketAddr::new(vip.into(), port));
    let seen = names(&stage, &[first, second, second, first]);
    assert_eq!(seen, [&*seen[0]; 4]);
    let shown = templates(&stage);
    let [template] = &shown[..] else { panic!("{shown:?}") };
    assert!(template.starts_with("IP ASSURED ") && template.contains(" 0.0.0.77:0 "), "{template}");
    assert!(stage.listing().contains("FWM  77 rr persistent 60\n"), "{}", stage.listing());
    let rules = stage.rlvs(&["mark", "list"]).ok();
    let expected = PORTS.map(|port| format!("77 to {vip}/32 protocol tcp port {port}\n"));
    assert_eq!(rules, expected.concat());
    let port = PORTS[1].to_string();
    let words =
        ["mark", "del", "77", "--to", &vip.to_string(), "--protocol", "tcp", "--port", &port];
    stage.rlvs(&words).ok();
    assert_eq!(stage.rlvs(&["mark", "list"]).ok(), expected[0]);
}

/// A client's associations with any port of an address go to one server, each to the port that it named, and
/// another port nobody serves is answered by nobody. The kernel here may have no SCTP: raw sockets speak it.
fn associations_of_any_port(wiring: Wiring) {
    let stage = Stage::attached(wiring, PROGRAM);
    for (method, number) in [(Method::Direct, 0), (Method::Nat, 1)] {
        for family in [Family::V4, Family::V6] {
            let vip = VIPS[number].of(family);
            let service = SocketAddr::new(vip, 0);
            for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
                let at = if method == Method::Nat { server.inside.of(family) } else { vip };
                PORTS.iter().for_each(|&port| association::server(namespace, (at, port).into()));
            }
            stage.ipvsadm(&format!("-A --sctp-service {service} -s rr -p 100")).ok();
            add(&stage, &format!("--sctp-service {service}"), family, method, 0);
            let speaker = stage.as_client(|| Speaker::open(CLIENT.of(family))).unwrap();
            for (from, port) in [(4001, PORTS[0]), (4002, PORTS[1]), (4003, PORTS[0])] {
                let target = SocketAddr::new(vip, port);
                for (chunk, answer) in [
                    (association::INIT, association::INIT_ACK),
                    (association::COOKIE_ECHO, association::COOKIE_ACK),
                    (association::DATA, association::SACK),
                ] {
                    let payload = Random(u64::from(from) + u64::from(chunk)).bytes(777);
                    speaker.say(from, target, chunk, &payload).unwrap();
                    let said = format!("{wiring:?} {method:?} {target} {chunk}");
                    let heard = speaker.hear().unwrap_or_else(|error| panic!("{said}: {error}"));
                    let ends = (heard.from, heard.source, heard.target);
                    assert_eq!(ends, (vip, port, from), "{said}");
                    assert!(heard.chunk == answer && heard.payload == payload, "{said}");
                }
            }
            let mut active: Vec<u32> = stage
                .counts("--sctp-service", service)
                .into_iter()
                .map(|(_, active, _)| active)
                .collect();
            active.sort_unstable();
            assert_eq!(active, [0, 3], "{wiring:?} {method:?}: {}", stage.listing());
            stage.ipvsadm("-C").ok();
        }
    }
}

#[test]
fn associations_of_any_port_go_to_one_server_through_tc() {
    associations_of_any_port(Wiring::Plain);
}

#[test]
fn associations_of_any_port_go_to_one_server_through_native_xdp() {
    associations_of_any_port(Wiring::Tuned);
}
