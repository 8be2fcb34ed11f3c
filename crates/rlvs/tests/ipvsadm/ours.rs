//! What upstream's tool does not have: JSON, whole restores, thresholds in the save format.

use rlvs::ipvsadm::{run_restore, run_save};
use serde_json::Value;

use crate::machine::Machine;

const LINES: [&str; 6] = [
    "-A -t 1.2.3.4:80 -s rr -p 300 -M 255.255.255.0",
    "-a -t 1.2.3.4:80 -r 10.0.0.1:8080 -m -w 2 -x 20 -y 10",
    "-a -t 1.2.3.4:80 -r 10.0.0.2 -i --tun-type gre --tun-csum",
    "-A -f 7 -6 -s mh -b mh-port",
    "-A -u [2001:db8::1]:53 -s rr -o",
    "-a -u [2001:db8::1]:53 -r [2001:db8::2]:53 -g",
];

fn machine() -> Machine {
    let machine = Machine::new();
    for line in LINES {
        machine.ok(line);
    }
    machine
}

#[test]
fn json_has_every_column_of_every_list() {
    let machine = machine();
    let json: Value = serde_json::from_str(&machine.ok("-L --json")).unwrap();
    let zeros = serde_json::json!({
        "connections": 0, "in_packets": 0, "out_packets": 0, "in_bytes": 0, "out_bytes": 0,
    });
    let expected = serde_json::json!({
        "schema": 1, "version": "1.2.1", "size": 4096,
        "services": [
            {
                "protocol": "tcp", "address": "1.2.3.4", "port": 80, "scheduler": "rr",
                "scheduler_flags": [], "one_packet": false,
                "persistence": {"timeout_s": 300, "netmask": "255.255.255.0"},
                "persistence_engine": null, "counters": zeros, "rates": zeros,
                "destinations": [
                    {
                        "address": "10.0.0.1", "port": 8080, "method": "masquerade",
                        "tunnel": null, "weight": 2, "upper_threshold": 20,
                        "lower_threshold": 10, "active": 0, "inactive": 0, "persistent": 0,
                        "counters": zeros, "rates": zeros,
                    },
                    {
                        "address": "10.0.0.2", "port": 80, "method": "tunnel",
                        "tunnel": {"type": "gre", "checksum": "outer"}, "weight": 1,
                        "upper_threshold": 0, "lower_threshold": 0, "active": 0, "inactive": 0,
                        "persistent": 0, "counters": zeros, "rates": zeros,
                    },
                ],
            },
            {
                "protocol": "udp", "address": "2001:db8::1", "port": 53, "scheduler": "rr",
                "scheduler_flags": [], "one_packet": true, "persistence": null,
                "persistence_engine": null, "counters": zeros, "rates": zeros,
                "destinations": [{
                    "address": "2001:db8::2", "port": 53, "method": "direct-route",
                    "tunnel": null, "weight": 1, "upper_threshold": 0, "lower_threshold": 0,
                    "active": 0, "inactive": 0, "persistent": 0,
                    "counters": zeros, "rates": zeros,
                }],
            },
            {
                "mark": 7, "family": "ipv6", "scheduler": "mh", "scheduler_flags": ["mh-port"],
                "one_packet": false, "persistence": null, "persistence_engine": null,
                "counters": zeros, "rates": zeros, "destinations": [],
            },
        ],
    });
    assert_eq!(json, expected);
    let one: Value = serde_json::from_str(&machine.ok("-L --json -f 7 -6")).unwrap();
    assert_eq!(one["services"][0]["mark"], 7);
    assert_eq!(one["services"].as_array().unwrap().len(), 1);
    let timeouts = r#"{"schema":1,"timeouts":{"tcp_fin_s":120,"tcp_s":900,"udp_s":300}}"#;
    assert_eq!(machine.ok("-L --json --timeout").trim(), timeouts);
    assert_eq!(machine.ok("-L --json -c").trim(), r#"{"connections":[],"schema":1}"#);
    assert_eq!(machine.ok("-L --json --daemon").trim(), r#"{"daemons":[],"schema":1}"#);
}

#[test]
fn thresholds_are_saved_and_restored_when_asked_for() {
    let machine = machine();
    assert!(!machine.ok("-S -n").contains("-x"));
    let full = machine.ok("-S -n --full");
    assert!(full.contains("-r 10.0.0.1:8080 -m -w 2 -x 20 -y 10\n"), "{full}");
    assert_eq!(machine.run_face(run_save, &["-n", "--full"], "").stdout, full);
    let other = Machine::new();
    assert_eq!(other.run_words(&["-R"], &full).status, 0);
    assert_eq!(other.ok("-S -n --full"), full);
}

#[test]
fn a_whole_restore_is_carried_out_whole_or_not_at_all() {
    let machine = machine();
    let before = machine.ok("-S -n --full");
    for (lines, status) in [
        ("-C\n-A -t 9.9.9.9:1\n-A -t 9.9.9.9:1\n", 255),
        ("-C\n-A -t 9.9.9.9:1\n-A -t 9.9.9.9:2 -w 3\n", 2),
        ("-C\n# a remark\n", 255),
        ("-C\n-L\n", 2),
        ("-C\n-R\n", 2),
        ("-C\n--help\n", 2),
    ] {
        let outcome = machine.run_words(&["-R", "--atomic"], lines);
        assert_eq!(outcome.status, status, "{lines}{outcome:?}");
        assert!(outcome.stderr.contains("line "), "{outcome:?}");
        assert_eq!(machine.ok("-S -n --full"), before, "{lines}");
    }
    let lines = "-C\n-A -f 3 -s rr\n-a -f 3 -r 10.0.0.9 -w 4\n--set 11 12 13\n";
    let outcome = machine.run_words(&["-R", "--atomic"], lines);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert_eq!(machine.ok("-S -n"), "-A -f 3 -s rr\n-a -f 3 -r 10.0.0.9:0 -g -w 4\n");
    assert_eq!(machine.ok("-L --timeout"), "Timeout (tcp tcpfin udp): 11 12 13\n");
}

#[test]
fn save_and_restore_have_the_options_of_the_scripts() {
    let machine = machine();
    for (words, status) in [(&["-n"][..], 0), (&["what", "-n"], 0), (&["-c"], 1), (&["--help"], 1)]
    {
        let outcome = machine.run_face(run_save, words, "");
        assert_eq!(outcome.status, status, "{words:?}");
        assert_eq!(outcome.stdout.is_empty(), status == 1, "{words:?}");
        assert_eq!(outcome.stderr.is_empty(), status == 0, "{words:?}");
    }
    let lines = "# saved\n-A -f 3 -s rr\n#-A -f 4 -s rr\n-a -f 3 -r 10.0.0.9 -w 4\n";
    assert_eq!(machine.run_face(run_restore, &[""; 0], lines).status, 0);
    assert_eq!(machine.ok("-S -n"), "-A -f 3 -s rr\n-a -f 3 -r 10.0.0.9:0 -g -w 4\n");
    // As it was, if a line makes no sense.
    let outcome = machine.run_face(run_restore, &["--atomic"], "-A -f 5 -s rr\nnonsense\n");
    assert_eq!(outcome.status, 255);
    assert_eq!(machine.ok("-S -n"), "-A -f 3 -s rr\n-a -f 3 -r 10.0.0.9:0 -g -w 4\n");
}
