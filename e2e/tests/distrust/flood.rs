//! Floods from clients that are none: who has a connection keeps it, and the administrator is told.

use std::net::SocketAddrV4;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use e2e::flood::{self, Flood};
use e2e::lab::{Greeted, Stage, Stop};
use rlvs::lab::topology::VIPS;

use crate::{ECHO, echo_until, hold, stage};

/// Clients of a flood, for each of two services: more than the table has slots.
const CLIENTS: u32 = 20_000;
/// How long `rlvs status` and `rlvs metrics` may take meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(5);

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
    let mut held = hold(&stage, 4);
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
