//! `rlvs drain` and `rlvs undrain` on the lab's director.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use e2e::lab::{
    self, Greeted, Method, Stage, connect, inside, tcp_server, udp_client, udp_server, wait_until,
};
use e2e::schema;
use nix::sys::signal::Signal;
use rlvs::lab::topology::{HTTP_PORT, REAL_SERVERS, VIP, VIPS, Wiring};
use rlvs_linux::process::{Guard, Handle};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 7000;

fn echo_stage() -> Stage {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, PORT, Some(server.title));
    }
    stage
}

/// Connects until the server of this name answers.
fn connect_to(stage: &Stage, service: SocketAddr, name: &str) -> Greeted {
    stage.as_client(|| {
        (0..4)
            .map(|_| connect(service).unwrap())
            .find(|greeted| greeted.name == name)
            .expect("round robin comes by every server")
    })
}

fn answers(stage: &Stage, service: SocketAddr) -> BTreeSet<String> {
    stage.as_client(|| (0..8).map(|_| connect(service).unwrap().name).collect())
}

fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"still there?")?;
    stream.read_exact(&mut [0; 12])
}

fn weight(stage: &Stage, server: &str) -> String {
    let listing = stage.listing();
    let line = listing.lines().find(|line| line.contains(server)).unwrap();
    line.split_ascii_whitespace().nth(3).unwrap().to_owned()
}

#[test]
fn a_drained_server_runs_empty_and_comes_back() {
    let stage = echo_stage();
    let service = stage.serve("-t", (VIP.v4, PORT).into(), Method::Nat, PORT);
    let one = SocketAddr::new(REAL_SERVERS[0].inside.v4.into(), PORT);
    let (name, both) =
        (one.to_string(), BTreeSet::from(["Server 1", "Server 2"].map(str::to_owned)));
    stage.ipvsadm(&format!("-e -t {service} -r {one} -m -w 7")).ok();
    let mut held = connect_to(&stage, service, "Server 1");

    // Whoever shows it is killed: it stays drained.
    let mut command = Command::new(PROGRAM);
    command.args(["drain", &name]).stdout(Stdio::piped());
    inside(stage.lab.director(), &mut command);
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let guard = Guard::new(child);
    let mut line = [0; 16];
    output.read_exact(&mut line).unwrap();
    Handle::open(guard.pid().unwrap()).unwrap().signal(Signal::SIGKILL).unwrap();
    drop(guard);
    assert_eq!(weight(&stage, &name), "0");
    assert_eq!(answers(&stage, service), BTreeSet::from(["Server 2".to_owned()]));
    echoes(&mut held.stream).unwrap();
    // Edits are remembered, and a removal is not the end of it.
    stage.ipvsadm(&format!("-e -t {service} -r {one} -m -w 5")).ok();
    assert_eq!(weight(&stage, &name), "0");
    stage.ipvsadm(&format!("-d -t {service} -r {one}")).ok();
    stage.ipvsadm(&format!("-a -t {service} -r {one} -m -w 9")).ok();
    assert_eq!(weight(&stage, &name), "0");
    echoes(&mut held.stream).unwrap();

    let said = stage.rlvs(&["drain", &name, "--deadline", "0s"]);
    assert_eq!(said.status, Some(3), "{said:?}");
    assert!(said.output.contains("1 active"), "{said:?}");
    let said = stage.rlvs(&["undrain", &name]).ok();
    assert!(said.contains("weight 9 again"), "{said}");
    assert_eq!(weight(&stage, &name), "9");
    assert_eq!(answers(&stage, service), both);
    let said = stage.rlvs(&["undrain", &name]);
    assert_eq!(said.status, Some(1));
    assert!(said.errors.contains("is not drained; no server is"), "{said:?}");
    let said = stage.rlvs(&["drain", "192.0.2.7"]);
    assert_eq!(said.status, Some(1));
    assert!(said.errors.contains(&name), "{said:?}");
}

#[test]
fn draining_ends_when_the_server_is_empty() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let service = stage.serve("-u", (VIP.v4, PORT).into(), Method::Nat, PORT);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        udp_server(namespace, (server.inside.v4, PORT).into(), "");
    }
    let ask = || {
        let socket = udp_client(service).unwrap();
        socket.send(b"hello").unwrap();
        socket.recv(&mut [0; 9]).unwrap();
    };
    stage.as_client(|| (0..2).for_each(|_| ask()));
    stage.ipvsadm("--set 0 0 1").ok();
    let one = REAL_SERVERS[0].inside.v4.to_string();
    let said = stage.rlvs(&["drain", &one, "--deadline", "1m"]).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("1 inactive connections"), "{said}");
    assert!(lines[1].contains(" 0 inactive connections"), "{said}");
    assert!(lines[2].contains("no connection is left"), "{said}");
}

#[test]
fn what_is_left_at_the_deadline_is_reset() {
    let stage = echo_stage();
    for (method, vips) in [(Method::Direct, VIPS[1]), (Method::Nat, VIPS[2])] {
        for address in vips.both() {
            let service = stage.serve("-t", (address, PORT).into(), method, PORT);
            let family = rlvs_control::model::Family::of(address);
            let one = SocketAddr::new(method.address(&REAL_SERVERS[0], family), PORT).to_string();
            let mut first = connect_to(&stage, service, "Server 1");
            let mut second = connect_to(&stage, service, "Server 2");
            echoes(&mut first.stream).unwrap();
            let name = format!("tcp:{service}");
            let words = [
                "drain",
                &one,
                "--service",
                &name,
                "--deadline",
                "0s",
                "--then",
                "reset",
                "--json",
            ];
            let said = stage.rlvs(&words).ok();
            let lines: Vec<Value> =
                said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            lines.iter().for_each(|line| schema::check("drain", line));
            assert_eq!(lines[0]["drained"][0]["weight"], 1, "{said}");
            assert_eq!(lines.last().unwrap()["outcome"], "reset", "{said}");
            let said = stage.rlvs(&["undrain", &one, "--service", &name, "--json"]).ok();
            let line: Value = serde_json::from_str(&said).unwrap();
            schema::check("undrain", &line);
            stage.rlvs(&["drain", &one, "--service", &name, "--deadline", "0s"]).ok();
            let left = stage.counts("-t", service);
            assert!(left.contains(&(one.clone(), 0, 0)), "{left:?}");
            let error = echoes(&mut first.stream).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{method:?} {address}");
            echoes(&mut second.stream).unwrap();
        }
    }
}

#[test]
fn no_request_fails_while_servers_are_drained() {
    let Some(wrk) = lab::tool("wrk") else { return };
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let service = stage.serve("-t", (VIP.v4, HTTP_PORT).into(), Method::Direct, HTTP_PORT);
    let mut command = Command::new(wrk);
    command.args(["-t1", "-c8", "-d3s", "-H", "Connection: close"]);
    command.arg(format!("http://{service}/")).stdout(Stdio::piped());
    inside(stage.lab.client(), &mut command);
    let child = command.spawn().unwrap();
    let served = || stage.counts("-t", service).iter().map(|row| row.1 + row.2).sum::<u32>() > 100;
    wait_until("load", &true, served);
    for server in &REAL_SERVERS {
        let name = server.outside.v4.to_string();
        stage.rlvs(&["drain", &name, "--deadline", "0s"]);
        assert_eq!(weight(&stage, &name), "0");
        stage.rlvs(&["undrain", &name]).ok();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(" requests in "), "{said}");
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
}
