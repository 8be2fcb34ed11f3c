//! Picks recorded of the real kernel, `golden/sched/*.json`, replayed on rings.

use rlvs_control::ring::Kind;
use serde_json::Value;

use crate::director::Director;

/// Recordings that are not replayed, by a part of the name, and why.
const SKIPPED: [(&str, &str); 3] = [
    ("persist-", "picks go by the client's template, not by connection"),
    ("threshold-", "overload depends on the number of connections"),
    ("-one", "one socket: a single connection whatever is sent"),
];

#[track_caller]
fn check(text: &str, kind: Kind, replayed: usize, skipped: usize) {
    let cases: Vec<Value> = serde_json::from_str(text).expect("the recording is JSON");
    let (skip, replay): (Vec<_>, Vec<_>) = cases.iter().partition(|case| {
        let name = case["name"].as_str().expect("a case has a name");
        SKIPPED.iter().any(|(part, _)| name.contains(part))
    });
    // The position is far from 0, as in a service that had other destinations before.
    replay.iter().for_each(|case| Replay::new(kind, 1_000_003).run(case));
    assert_eq!((replay.len(), skip.len()), (replayed, skipped));
}

struct Replay {
    director: Director,
}

impl Replay {
    fn new(kind: Kind, position: u64) -> Self {
        Self { director: Director::new(kind, position) }
    }

    fn run(&mut self, case: &Value) {
        strings(&case["setup"]).iter().for_each(|line| self.ipvsadm(line));
        for step in case["steps"].as_array().expect("a case has steps") {
            match step["op"].as_str().expect("a step has an operation") {
                // A connection each; a datagram each with -o; a socket each.
                "short" | "hold" | "udp1" | "udpn" => self.check_picks(case, step),
                "adm" => strings(&step["ipvsadm"]).iter().for_each(|line| self.ipvsadm(line)),
                // The end of a connection is nothing to rr and wrr.
                "close" => {}
                other => panic!("{}: unknown operation {other}", case["name"]),
            }
        }
    }

    fn check_picks(&mut self, case: &Value, step: &Value) {
        let expected = strings(&step["picks"]);
        let picks: Vec<String> = expected
            .iter()
            .map(|_| self.director.pick().map_or("ECONNREFUSED".into(), |id| format!("r{id}")))
            .collect();
        assert_eq!(picks, expected, "{} on {}, step {}", case["name"], case["kernel"], step["op"]);
    }

    fn ipvsadm(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |option| words.iter().skip_while(|word| **word != option).nth(1);
        // 192.168.1.101:80 is r1.
        let id = || {
            let address = after("-r").and_then(|server| server.split(':').next());
            let host = address.and_then(|address| address.rsplit('.').next());
            host.and_then(|host| host.parse::<u32>().ok()).expect("a line has a server") - 100
        };
        let weight =
            || after("-w").and_then(|word| word.parse().ok()).expect("a line has a weight");
        match words[0] {
            "-A" => assert!(self.director.members.is_empty()),
            "-a" => self.director.add(id(), weight()),
            "-e" => self.director.edit(id(), weight()),
            "-d" => self.director.remove(id()),
            other => panic!("unknown command {other}"),
        }
    }
}

fn strings(value: &Value) -> Vec<String> {
    let values = value.as_array().expect("a list");
    values.iter().map(|value| value.as_str().expect("a string").to_owned()).collect()
}

#[test]
fn rr_picks_as_recorded() {
    check(include_str!("../golden/sched/rr.json"), Kind::Rr, 16, 18);
}

#[test]
fn wrr_picks_as_recorded() {
    check(include_str!("../golden/sched/wrr.json"), Kind::Wrr, 16, 4);
}
