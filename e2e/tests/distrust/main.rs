//! A user who distrusts the balancer: floods, edits under load, commands that are killed. Who has a
//! connection keeps it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod commands;
mod edits;
mod flood;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use e2e::lab::{Greeted, Method, Stage, TIME_MAX, connect, tcp_server, udp_server};
use rlvs::lab::topology::{Addresses, REAL_SERVERS, VIPS, Wiring};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO: u16 = 7;
/// How long a word may take there and back while the processors have other things to do.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A lab with a table for 10,000 connections, and services of TCP and UDP by each method on an address of its own.
fn stage() -> Stage {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    stage.rlvs(&["attach", "--mode", "tc", "--connections", "10000"]).ok();
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, ECHO, Some(server.title));
        udp_server(namespace, (server.inside.v4, ECHO).into(), "");
    }
    for (at, method) in services() {
        stage.serve("-t", at, method, ECHO);
        stage.serve("-u", at, method, ECHO);
    }
    stage
}

/// Where the services are, with their methods.
fn services() -> [(SocketAddr, Method); 2] {
    let of = |vip: Addresses, method| ((vip.v4, ECHO).into(), method);
    [of(VIPS[0], Method::ALL[0]), of(VIPS[1], Method::ALL[1])]
}

/// Opens so many connections to each of the services.
fn hold(stage: &Stage, count: usize) -> Vec<Greeted> {
    let connect_all =
        |at| stage.as_client(|| (0..count).map(|_| connect(at).unwrap()).collect::<Vec<_>>());
    services().into_iter().flat_map(|(at, _)| connect_all(at)).collect()
}

/// Says a word and waits for it to come back.
fn echo(held: &mut Greeted) -> Duration {
    let begin = Instant::now();
    held.stream.write_all(b"word").unwrap();
    let mut said = [0; 4];
    held.stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"word");
    begin.elapsed()
}

/// Has everybody who has a connection say words until `look` is content.
fn echo_until(held: &mut [Greeted], what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        for one in &mut *held {
            let time = echo(one);
            assert!(time < ANSWER_MAX, "{what}: {time:?} for an answer");
        }
        match look() {
            Ok(()) => return,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
    }
}
