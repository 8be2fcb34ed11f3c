//! `rlvs load`: the machine's own configuration, as units and administrators load it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use e2e::lab::{Said, Stage, connect, inside, tcp_server};
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

/// Writes the machine's file and returns where it is.
fn written(stage: &Stage, text: &str) -> PathBuf {
    let path = stage.lab.directory().join("rlvs.toml");
    fs::write(&path, text).unwrap();
    path
}

/// Runs a command that goes by the file.
fn by(stage: &Stage, path: &PathBuf, words: &[&str]) -> Said {
    let mut command = Command::new(stage.program());
    command.args(words).env("RLVS_CONFIG", path);
    inside(stage.lab.director(), &mut command);
    Said::from(command.output().unwrap())
}

/// Returns a file, and what is said when it is loaded.
fn text() -> (String, String) {
    let vip = VIPS[1].of(Family::V4);
    (
        format!(
            "[attach]\ninterfaces = ['eth1']\nmode = 'tc'\n\
             [settings]\ntcp_mss = 1400\n\
             [[snat.pool]]\naddresses = '{vip}'\nports = '2000-3000'\n\
             [acl]\ndeny = ['203.0.113.0/24']\n"
        ),
        format!(
            "rlvs: eth1 attached: TC\nrlvs: tcp_mss = 1400, was 0\n\
             rlvs: full NAT uses {vip} ports 2000-3000\n\
             rlvs: access: 1 network, 0 limits, 0 services with rules of its own\n"
        ),
    )
}

#[test]
fn what_is_asked_for_is_done_once_and_differences_alone_after_that() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let (wanted, done) = text();
    let path = written(&stage, &wanted);
    let load = || by(&stage, &path, &["load"]);
    assert_eq!(load().ok(), done);
    assert_eq!(load().ok(), "rlvs: eth1 was attached: TC\n");
    assert_eq!(stage.rlvs(&["set", "tcp_mss"]).ok(), "tcp_mss = 1400\n");

    let vip = VIPS[1].of(Family::V4);
    fs::write(
        &path,
        format!(
            "[settings]\ntcp_mss = 0\n[snat]\npool = [{{ addresses = '192.0.2.77' }}]\n\
             [[acl.service]]\ntcp = '{vip}:80'\nallow = ['10.0.0.0/8']\n"
        ),
    )
    .unwrap();
    let said = load();
    assert!(said.errors.contains("192.0.2.77 is not an address of this host"), "{}", said.errors);
    let expected = format!(
        "rlvs: tcp_mss = 0, was 1400\nrlvs: full NAT no longer uses {vip}\n\
         rlvs: full NAT uses 192.0.2.77 ports 1024-32767\n\
         rlvs: access: 1 network, 0 limits, 1 service with rules of its own\n"
    );
    assert_eq!((said.status, said.output), (Some(0), expected));
    // What the file does not name stays.
    fs::write(&path, "").unwrap();
    assert!(load().ok().ends_with("asks for nothing\n"));
    assert_eq!(stage.rlvs(&["snat", "list"]).ok(), "192.0.2.77 ports 1024-32767\n");
}

#[test]
fn a_file_that_is_wrong_is_told_and_changes_nothing() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let path = written(&stage, "[settings]\ntcp_mss = 1400\n[attach]\nmode = 'xdp'\n");
    let wrong = format!("{}:4:8: unknown variant `xdp`", path.display());
    let checked = stage.rlvs(&["check", path.to_str().unwrap()]);
    assert_eq!(checked.status, Some(1));
    assert!(checked.output.starts_with(&format!("error: {wrong}")), "{}", checked.output);
    for words in [&["load"][..], &["load", "--at-start"], &["attach"]] {
        let said = by(&stage, &path, words);
        assert_eq!(said.status, Some(1), "{words:?}");
        assert!(said.errors.starts_with(&format!("rlvs: {wrong}")), "{}", said.errors);
    }
    let said = by(&stage, &path, &["ipvsadm", "-A", "-t", "192.0.2.1:80"]);
    assert_eq!(said.status, Some(2), "{}", said.errors);
    assert!(said.errors.contains(&wrong), "{}", said.errors);
    // With something attached, units that start again only warn, and the table can be reached.
    stage.rlvs(&["attach"]).ok();
    let said = by(&stage, &path, &["load", "--at-start"]);
    assert_eq!(said.status, Some(0), "{}", said.errors);
    assert!(said.errors.contains(&wrong) && said.errors.contains("going on"), "{}", said.errors);
    assert_eq!(by(&stage, &path, &["load"]).status, Some(1));
    assert_eq!(by(&stage, &path, &["ipvsadm", "-L", "-n"]).status, Some(0));
    assert_eq!(stage.rlvs(&["set", "tcp_mss"]).ok(), "tcp_mss = 0\n");
}

#[test]
fn the_first_service_attaches_as_the_file_says_and_other_namespaces_do_not_go_by_the_machines() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let path = written(&stage, "[attach]\ninterfaces = ['eth0']\nmode = 'tc'\n");
    let vip = SocketAddr::new(VIPS[1].of(Family::V4), 9000);
    let said = by(&stage, &path, &["ipvsadm", "-A", "-t", &vip.to_string()]);
    assert_eq!((said.status, said.errors.as_str()), (Some(0), "rlvs: eth0 attached: TC\n"));
    let real = SocketAddr::new(REAL_SERVERS[0].inside.of(Family::V4), 9000);
    stage.rlvs(&["attach"]).ok();
    stage.ipvsadm(&format!("-a -t {vip} -r {real} -m")).ok();
    tcp_server(&stage.lab.real_servers()[0], 9000, None);
    stage.as_client(|| drop(connect(vip).unwrap()));

    let kernel = written(&stage, "[backend]\nname = 'kernel'\n");
    assert!(by(&stage, &kernel, &["load"]).ok().contains("the kernel's table is used"));
    // There may be no such kernel module here.
    let metrics = by(&stage, &kernel, &["metrics"]).output;
    assert!(metrics.contains("backend=\"kernel\""), "{metrics}");
}
