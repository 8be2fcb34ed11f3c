//! A master with a large table, and a backup that begins with nothing.

use std::net::{SocketAddr, SocketAddrV4};

use e2e::flood;
use e2e::lab::{Said, Stage, wait_for};
use e2e::packet::Kind;
use rlvs::lab::topology::{REAL_SERVERS, VIP, Wiring};
use serde_json::Value;

use crate::takeover::Second;
use crate::{Daemon, PROGRAM};

const FLOWS: u32 = 100_000;
const PORT: u16 = 5300;

fn inactive(listing: &Said) -> u64 {
    e2e::lab::counts(&listing.output).iter().map(|row| u64::from(row.2)).sum()
}

/// Returns what a director's daemon says of itself.
fn counts(status: Said, role: &str) -> Value {
    let status: Value = serde_json::from_str(&status.output).unwrap();
    let all = status["synchronisation"].as_array().unwrap();
    all.iter().find(|one| one["role"] == role).unwrap()["counts"].clone()
}

/// Nobody tells of a connection twice before a third of its time-out is over: what is not heard now stays
/// unknown.
#[test]
fn a_backup_hears_all_that_a_large_table_has() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let second = Second::attached(&stage);
    let vip = SocketAddrV4::new(VIP.v4, PORT);
    for line in [
        format!("-A -u {vip} -s rr"),
        format!("-a -u {vip} -r {}:{PORT} -g", REAL_SERVERS[0].outside.v4),
    ] {
        stage.ipvsadm(&line).ok();
        second.ipvsadm(&line).ok();
    }
    flood::open(&stage, vip, Kind::Udp, FLOWS);
    let list = format!("-L -n -u {}", SocketAddr::from(vip));
    let there = wait_for("the connections", || {
        let there = inactive(&stage.ipvsadm(&list));
        // Some may have found both their places taken.
        if there >= u64::from(FLOWS - FLOWS / 100) { Ok(there) } else { Err(there.to_string()) }
    });
    second.ipvsadm("--start-daemon backup --mcast-interface eth1 --syncid 9").ok();
    stage.ipvsadm("--start-daemon master --mcast-interface eth1 --syncid 9").ok();
    let _daemon = Daemon(&stage);
    wait_for("that all was told", || {
        let told = counts(stage.rlvs(&["status", "--json"]), "master");
        if told["entries"] == there { Ok(()) } else { Err(told.to_string()) }
    });
    let said = stage.rlvs(&["status"]).output;
    let messages = &counts(stage.rlvs(&["status", "--json"]), "master")["messages"];
    let line =
        format!("sync          master on eth1, syncid 9: {messages} messages, {there} entries\n");
    assert!(said.contains(&line), "{said}");
    let page = stage.rlvs(&["metrics"]).ok();
    for (event, count) in
        [("messages", messages.clone()), ("entries", there.into()), ("failed", 0.into())]
    {
        let line = format!("rlvs_sync_events_total{{role=\"master\",event=\"{event}\"}} {count}\n");
        assert!(page.contains(&line), "{line}{page}");
    }
    let heard = wait_for("that all was heard", || {
        let heard = counts(second.rlvs(&["status", "--json"]), "backup");
        if heard["messages"] == *messages { Ok(heard) } else { Err(heard.to_string()) }
    });
    let known: u64 = ["entered", "full"].iter().map(|name| heard[name].as_u64().unwrap()).sum();
    assert_eq!(known, there, "{heard}");
    assert_eq!(inactive(&second.ipvsadm(&list)), heard["entered"].as_u64().unwrap());
}
