//! Persistent services, services of every port and of a mark, with real clients and servers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;

use e2e::lab::{Method, Stage, connect, tcp_server};
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};
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
