//! Floods from clients that are none: who has a connection keeps it, and the administrator is told.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use e2e::flood::{self, Flood};
use e2e::lab::{Greeted, Method, Stage, Stop, TIME_MAX, connect, tcp_server, udp_server};
use rlvs::lab::topology::{Addresses, REAL_SERVERS, VIPS, Wiring};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO: u16 = 7;
/// Clients of a flood, for each of two services: more than the table has slots.
const CLIENTS: u32 = 20_000;

fn stage() -> Stage {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    stage.rlvs(&["attach", "--mode", "tc", "--connections", "10000"]).ok();
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, ECHO, Some(server.title));
        udp_server(namespace, (server.inside.v4, ECHO).into(), "");
    }
    for (vip, method) in VIPS.iter().zip(Method::ALL) {
        stage.serve("-t", (vip.v4, ECHO).into(), method, ECHO);
        stage.serve("-u", (vip.v4, ECHO).into(), method, ECHO);
    }
    stage
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

/// How long a word may take there and back while a flood has the processors.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long `rlvs status` and `rlvs metrics` may take meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Has everybody who has a connection say words until `look` returns true.
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

fn in_time(stage: &Stage, words: &[&str]) -> String {
    let begin = Instant::now();
    let said = stage.rlvs(words).output;
    assert!(begin.elapsed() < LOOK_MAX, "{words:?} took {:?}", begin.elapsed());
    said
}

/// Floods both services while `meanwhile` happens to those who have a connection.
fn under(flood: Flood, meanwhile: impl FnOnce(&Stage, &mut [Greeted])) {
    let stage = stage();
    let director = flood::address_of(&stage, "eth0");
    let connect_all = |vip: &Addresses| {
        let at: SocketAddr = (vip.v4, ECHO).into();
        stage.as_client(|| (0..4).map(|_| connect(at).unwrap()).collect::<Vec<_>>())
    };
    let mut held: Vec<Greeted> = VIPS[..2].iter().flat_map(connect_all).collect();
    let frames: Vec<Vec<u8>> = VIPS[..2]
        .iter()
        .flat_map(|vip| flood.frames(director, SocketAddrV4::new(vip.v4, ECHO), CLIENTS))
        .collect();
    let socket = flood::wire_of_client(&stage);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| flood::spray(&socket, &frames, &stop));
        meanwhile(&stage, &mut held);
    });
}

/// Waits for a part of what a command says.
fn says(stage: &Stage, words: &[&str], part: &str) -> Result<(), String> {
    let said = in_time(stage, words);
    if said.contains(part) { Ok(()) } else { Err(format!("no `{part}` in {said}")) }
}

#[test]
fn connections_live_through_a_flood_of_syns_and_what_is_done_is_said() {
    under(Flood::Syns, |stage, held| {
        let status = |part| says(stage, &["status"], part);
        let off = "defence       a table has little room, and drop_entry, drop_packet, secure_tcp are off\n";
        echo_until(held, "a full table", || status(off));
        echo_until(held, "a finding", || says(stage, &["doctor"], "as in a flood of SYNs\n"));
        stage.rlvs(&["set", "drop_entry", "2"]).ok();
        stage.rlvs(&["set", "secure_tcp", "2"]).ok();
        let on = "defence       a table has little room: half-open connections are ended, states are the strict ones\n";
        echo_until(held, "defences", || status(on));
        echo_until(held, "metrics", || says(stage, &["metrics"], "rlvs_table_used_slots"));
        for _ in 0..3 {
            // Counts and connections change while they are held against each other.
            let said = stage.rlvs(&["doctor"]).output;
            assert!(!said.contains("this must not happen"), "{said}");
        }
        stage.rlvs(&["set", "drop_packet", "2"]).ok();
        echo_until(held, "dropped packets", || status("new connections is dropped"));
        let json: serde_json::Value =
            serde_json::from_str(&in_time(stage, &["status", "--json"])).unwrap();
        let defence = &json["defence"];
        assert!(defence["drop_rate"].as_u64().unwrap() > 0, "{defence}");
        assert_eq!([&defence["scarce"], &defence["ends_half_open"], &defence["strict"]], [true; 3]);
    });
}

#[test]
fn connections_live_through_floods_of_datagrams_fragments_and_errors() {
    for (flood, reason) in [
        (Flood::Datagrams, "table_full"),
        (Flood::Fragments, "table_full"),
        (Flood::Errors, "no_connection"),
    ] {
        under(flood, |stage, held| {
            echo_until(held, "the reason", || says(stage, &["status"], reason));
            let begin = Instant::now();
            echo_until(held, "a second", || {
                in_time(stage, &["metrics"]);
                if begin.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err(String::new()) }
            });
        });
    }
}
