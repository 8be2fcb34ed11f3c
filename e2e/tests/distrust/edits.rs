//! Everything about a service is changed while its connections are in use.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use e2e::lab::{Greeted, Method, Stage, connect};
use rlvs::lab::topology::REAL_SERVERS;
use rlvs_control::model::Family;

use crate::{ECHO, echo, echo_until, hold, services, stage};

const SCHEDULERS: [&str; 16] = [
    "wrr", "lc", "wlc", "sed", "nq", "lblc", "lblcr", "dh", "sh", "mh", "fo", "ovf", "twos", "p2c",
    "none", "rr",
];

fn real(method: Method, server: usize) -> SocketAddr {
    (method.address(&REAL_SERVERS[server], Family::V4), ECHO).into()
}

/// Opens so many connections and tells how many each server has got.
fn spread(stage: &Stage, at: SocketAddr, count: usize) -> Vec<usize> {
    let mut got: BTreeMap<String, usize> = BTreeMap::new();
    let opened: Vec<Greeted> =
        stage.as_client(|| (0..count).map(|_| connect(at).unwrap()).collect());
    for mut one in opened {
        echo(&mut one);
        *got.entry(one.name).or_default() += 1;
    }
    REAL_SERVERS.iter().map(|server| got.remove(server.title).unwrap_or(0)).collect()
}

#[test]
fn nobody_who_is_connected_notices_that_the_service_is_changed() {
    let stage = stage();
    let mut held = hold(&stage, 4);
    for (at, method) in services() {
        let option = method.option();
        let mut edit = |what: &str| {
            stage.ipvsadm(what).ok();
            echo_until(&mut held, what, || Ok(()));
        };
        for scheduler in SCHEDULERS {
            edit(&format!("-E -t {at} -s {scheduler}"));
            edit(&format!("-E -t {at} -s {scheduler} -p 60"));
            if scheduler != "none" {
                stage.as_client(|| drop(connect(at).unwrap()));
            }
        }
        edit(&format!("-E -t {at} -s rr"));
        for server in [0, 1] {
            for weight in [0, 7, 1] {
                let to = real(method, server);
                edit(&format!("-e -t {at} -r {to} {option} -w {weight}"));
                let all = spread(&stage, at, 4);
                let (expected, none) = if weight == 0 { ([4, 0], 0) } else { ([2, 2], 2) };
                assert_eq!((all[1 - server], all[server]), (expected[0], none), "{to}: {weight}");
            }
        }
        edit(&format!("-E -t {at} -s wrr"));
        edit(&format!("-e -t {at} -r {} {option} -w 3", real(method, 1)));
        assert_eq!(spread(&stage, at, 16), [4, 12]);
        edit(&format!("-E -t {at} -s lc"));
        edit(&format!("-e -t {at} -r {} {option} -w 1", real(method, 1)));
    }
}

/// Between the two commands packets of its connections are dropped, and sent again.
#[test]
fn connections_go_on_when_their_service_is_removed_and_made_again() {
    let stage = stage();
    let mut held = hold(&stage, 4);
    for (at, method) in services() {
        for turn in 0..3 {
            if turn == 2 {
                for server in [0, 1] {
                    stage.ipvsadm(&format!("-d -t {at} -r {}", real(method, server))).ok();
                }
            } else {
                stage.ipvsadm(&format!("-D -t {at}")).ok();
                stage.ipvsadm(&format!("-A -t {at} -s rr")).ok();
            }
            for server in [0, 1] {
                let to = real(method, server);
                stage.ipvsadm(&format!("-a -t {at} -r {to} {}", method.option())).ok();
            }
            echo_until(&mut held, "a service made again", || Ok(()));
            assert_eq!(spread(&stage, at, 8), [4, 4]);
        }
        let active: u32 = stage.counts("-t", at).iter().map(|row| row.1).sum();
        assert!(active >= 4, "{active} of 4 are counted");
    }
}
