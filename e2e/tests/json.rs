//! `--json` of the commands that change something: what they say is so, and is told in docs/json.md.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use e2e::lab::Stage;
use e2e::schema;
use rlvs::lab::topology::{VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::dataplane::parameters::ALL;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

/// Runs a command with `--json` and returns the lines that it prints.
fn lines(stage: &Stage, words: &[&str]) -> Vec<Value> {
    let said = stage.rlvs(&[words, &["--json"]].concat()).ok();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Commands of several words have the second one of a list: `acl deny`.
    let length = if ["acl", "mark", "snat"].contains(&words[0]) { 2 } else { 1 };
    lines.iter().for_each(|line| schema::check(&words[..length].join(" "), line));
    lines
}

fn line(stage: &Stage, words: &[&str]) -> Value {
    let mut lines = lines(stage, words);
    assert_eq!(lines.len(), 1, "{words:?}: {lines:?}");
    lines.remove(0)
}

#[test]
fn commands_that_change_something_say_in_json_what_is_so_afterwards() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let vip = VIPS[1].of(Family::V4).to_string();
    let interface = |new: bool| json!([{ "name": "eth1", "mode": "tc", "new": new }]);
    let attach = || line(&stage, &["attach", "--mode", "tc", "eth1"])["interfaces"].clone();
    assert_eq!(attach(), interface(true));
    assert_eq!(attach(), interface(false));
    let setting = |words: &[&str]| line(&stage, words)["settings"][0].clone();
    let limit = setting(&["set", "tcp_mss", "1400"]);
    assert_eq!((&limit["value"], &limit["default"]), (&json!("1400"), &json!("0")));
    assert_eq!(setting(&["set", "tcp_mss"]), limit);
    assert_eq!(setting(&["set", "conntrack"])["unheeded"], "without meaning here");
    let all = line(&stage, &["set"]);
    assert_eq!(all["settings"].as_array().unwrap().len(), ALL.len());

    let rule = json!({
        "mark": 7, "to": format!("{vip}/32"), "protocol": 6, "first_port": 80, "last_port": 443,
    });
    let words = ["7", "--to", &vip, "--protocol", "tcp", "--port", "80-443"];
    let mark = |command: &[&str]| line(&stage, &[&["mark"], command].concat())["rules"].clone();
    assert_eq!(mark(&[&["add"], &words[..]].concat()), json!([rule]));
    assert_eq!(mark(&["list"]), json!([rule]));
    assert_eq!(mark(&[&["del"], &words[..]].concat()), json!([]));

    let member = json!({ "address": vip, "first_port": 2000, "last_port": 3000 });
    let snat = |command: &[&str]| line(&stage, &[&["snat"], command].concat())["addresses"].clone();
    assert_eq!(snat(&["add", &vip, "--ports", "2000-3000"]), json!([member]));
    assert_eq!(snat(&["list"]), json!([member]));
    assert_eq!(snat(&["del", &vip]), json!([]));

    let service = format!("{vip}:80");
    stage.ipvsadm(&format!("-A -t {service} -s rr")).ok();
    let denied = line(&stage, &["acl", "deny", "-t", &service, "203.0.113.0/24"]);
    assert_eq!(denied["services"][0]["deny"], json!(["203.0.113.0/24"]));
    assert_eq!(denied["services"][0]["address"], json!(vip));
    let limited = line(&stage, &["acl", "limit", "--rate", "9"]);
    assert_eq!(limited["all"]["limit"]["rate"], 9);
    assert_eq!(line(&stage, &["acl", "list"])["all"], limited["all"]);
    let cleared = line(&stage, &["acl", "clear"]);
    assert_eq!((&cleared["all"]["limit"], &cleared["services"]), (&Value::Null, &json!([])));

    let file = line(&stage, &["proc", "ip_vs"]);
    assert_eq!(file["services"][0]["address"], json!(vip));
    assert_eq!(line(&stage, &["proc", "ip_vs_conn"])["connections"], json!([]));
    assert_eq!(line(&stage, &["proc", "ip_vs_stats"])["counters"]["connections"], 0);
    let cpus = line(&stage, &["proc", "ip_vs_stats_percpu"])["cpus"].as_array().unwrap().len();
    assert_eq!(cpus, aya::util::nr_cpus().unwrap());
    assert_eq!(line(&stage, &["proc", "ip_vs_app"])["helpers"], json!([]));

    let file = stage.lab.directory().join("keepalived.conf");
    fs::write(&file, "vrrp_instance {\n").unwrap();
    let said = stage.rlvs(&["check", "--json", "--effective", file.to_str().unwrap()]);
    let checked: Value = serde_json::from_str(&said.output).unwrap();
    schema::check("check", &checked);
    assert_eq!((said.status, &checked["ok"]), (Some(1), &json!(false)), "{checked}");

    let upgraded = line(&stage, &["upgrade"]);
    let unchanged = json!([{ "namespace": null, "outcome": "unchanged", "why": null }]);
    assert_eq!(upgraded["namespaces"], unchanged);
    let drained = stage.rlvs(&["undrain", "10.0.1.77", "--json"]);
    assert_eq!((drained.status, drained.output.as_str()), (Some(1), ""), "{drained:?}");
    assert_eq!(line(&stage, &["detach"])["detached"], true);
    assert_eq!(
        stage.rlvs(&["status", "--json"]).output,
        "{\"attached\":false,\"daemon\":null,\"schema\":1}\n"
    );
    assert_eq!(line(&stage, &["upgrade"])["namespaces"], json!([]));
    let refused = stage.rlvs(&["detach", "--json"]);
    assert_eq!((refused.status, refused.output.as_str()), (Some(1), ""), "{refused:?}");
}

#[test]
fn loading_says_in_json_each_thing_that_it_does() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let vip = VIPS[1].of(Family::V4).to_string();
    let path = stage.lab.directory().join("rlvs.toml");
    let named = path.to_str().unwrap();
    let pool = format!("[[snat.pool]]\naddresses = '{vip}'\n");
    let rest =
        "[attach]\ninterfaces = ['eth1']\n[settings]\ntcp_mss = 1400\n[acl]\ndeny = ['10.9.9.9']\n";
    fs::write(&path, format!("{rest}{pool}")).unwrap();
    let done = lines(&stage, &["load", named]);
    assert_eq!(done[0]["interfaces"][0]["new"], true);
    assert_eq!(done[1]["setting"], json!({ "name": "tcp_mss", "value": 1400, "was": 0 }));
    assert_eq!(done[2]["snat_added"]["address"], json!(vip));
    assert!(done[3]["access"].as_str().unwrap().starts_with("1 network,"), "{done:?}");
    assert_eq!(done.len(), 4, "{done:?}");
    fs::write(&path, "[snat]\npool = []\n").unwrap();
    assert_eq!(line(&stage, &["load", named])["snat_removed"]["address"], json!(vip));
    fs::write(&path, "").unwrap();
    assert!(line(&stage, &["load", named])["nothing"].as_str().unwrap().contains("nothing"));
    stage.rlvs(&["detach"]).ok();
}
