//! What an operator gets wrong, and what goes wrong around a command, is told in words that help.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::process::{Command, Stdio};

use e2e::lab::{Method, Said, Stage, connect, inside, tcp_server, wait_for};
use rlvs::lab::topology::{VIPS, Wiring};
use rlvs_linux::dataplane::pins;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const VIP: &str = "192.168.1.201";
const PORT: u16 = 7000;

/// Runs the program on the director with this as its standard output.
fn writing(stage: &Stage, words: &str, to: impl Into<Stdio>) -> Said {
    let mut command = Command::new(PROGRAM);
    command.args(words.split_ascii_whitespace()).stdin(Stdio::null()).stdout(to);
    inside(stage.lab.director(), command.stderr(Stdio::piped()));
    command.output().unwrap().into()
}

#[track_caller]
fn assert_refused(stage: &Stage, words: &str, status: i32, says: &str) {
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    let said = stage.rlvs(&words);
    assert_eq!(said.status, Some(status), "{words:?}: {said:?}");
    assert!(said.errors.contains(says) && !said.errors.contains("panicked"), "{words:?}: {said:?}");
}

#[test]
fn wrong_names_are_answered_with_what_would_be_right() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.ipvsadm(&format!("-A -t {VIP}:80")).ok();
    stage.ipvsadm(&format!("-a -t {VIP}:80 -r 10.0.1.101 -m")).ok();
    stage.ipvsadm(&format!("-A -t {VIP}:81")).ok();
    const END: &str = "it is no ADDRESS:PORT, such as 192.0.2.1:80 or [2001:db8::1]:80";
    for words in [
        "trace 192.168.1.10 192.168.1.201:80",
        "trace 192.168.1.10:1 192.168.1.201",
        "acl deny -t 192.168.1.201 10.0.0.0/8",
        "exporter --listen localhost",
    ] {
        assert_refused(&stage, words, 2, END);
    }
    for (words, says) in [
        ("drain 10.0.1.101 --service 192.168.1.201:82", "there is no such service"),
        (
            "drain 10.0.1.101 --service 192.168.1.201:81",
            "the service has no real server 10.0.1.101: there is none at all",
        ),
        ("drain 10.0.1.109", "no service has a real server 10.0.1.109: there are 10.0.1.101:80"),
        ("undrain 10.0.1.101", "10.0.1.101 is not drained; no server is"),
    ] {
        assert_refused(&stage, words, 1, says);
    }
    let file = stage.lab.directory().join("rlvs.toml");
    for (text, says) in [
        ("[[acl.service]]\ntcp = '192.0.2.1'\n", format!(":2:7: {END}")),
        ("[acl]\ndeny_files = ['none.txt']\n", ":2:15: reading ".to_owned()),
    ] {
        fs::write(&file, text).unwrap();
        assert_refused(&stage, &format!("load {}", file.display()), 1, &says);
    }
    // Tables that are there are not made larger, and that is said.
    let said = stage.rlvs(&["attach", "--connections", "1000"]);
    assert!(said.errors.contains("stay as they were made, for 699050 connections"), "{said:?}");
    fs::write(&file, "[attach]\nconnections = 1000\n").unwrap();
    let said = stage.rlvs(&["load", file.to_str().unwrap()]);
    assert!(said.errors.contains("`rlvs detach` first"), "{said:?}");
    let said = stage.rlvs(&["attach", "--connections", "690000"]);
    assert_eq!((said.status, said.errors.as_str()), (Some(0), ""));
    stage.rlvs(&["detach"]).ok();
    assert_refused(&stage, "detach", 1, "rlvs: nothing is attached here\n");
    // Nobody has typed that interface.
    fs::write(&file, "[attach]\ninterfaces = ['eth7']\n[acl]\ndeny = ['192.0.2.1']\n").unwrap();
    let by_file = |words: &str| {
        let mut command = Command::new(PROGRAM);
        command.args(words.split_ascii_whitespace()).stdin(Stdio::null());
        inside(stage.lab.director(), command.env("RLVS_CONFIG", &file));
        Said::from(command.output().unwrap())
    };
    let says = format!(
        "eth7: there is no such interface in this network namespace, and {} asks for it",
        file.display()
    );
    for words in ["ipvsadm -A -t 192.168.1.201:80", "attach", "load"] {
        let said = by_file(words);
        assert!(said.status != Some(0) && said.errors.contains(&says), "{words}: {said:?}");
    }
    // Every command that loads the file finds it in the same place.
    stage.rlvs(&["attach"]).ok();
    assert!(by_file("acl load").ok().contains("1 network"));
}

#[test]
fn who_does_not_read_all_of_it_hears_no_complaint() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.ipvsadm(&format!("-A -t {VIP}:80")).ok();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    for words in [
        "set",
        "set tcp_mss",
        "status",
        "status --json",
        "metrics",
        "man ipvsadm",
        "upgrade",
        "proc ip_vs",
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let said = writing(&stage, words, writer);
        assert_eq!((said.status, said.errors.as_str()), (Some(0), ""), "{words}");
        let said = writing(&stage, words, full());
        assert_eq!(said.status, Some(1), "{words}: {said:?}");
        let says = "writing to standard output: No space left on device";
        assert!(said.errors.contains(says), "{words}: {said:?}");
    }
    // What it was to do is done.
    assert_eq!(writing(&stage, "detach", full()).status, Some(1));
    assert_refused(&stage, "detach", 1, "nothing is attached here");
}

#[test]
fn a_capture_names_the_file_that_has_no_room_and_ends_when_nobody_reads_it() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for namespace in stage.lab.real_servers() {
        tcp_server(namespace, PORT, None);
    }
    let service = stage.serve("-t", (VIPS[1].v4, PORT).into(), Method::Nat, PORT);
    let visit = || drop(stage.as_client(|| connect(service)).unwrap());
    let capture = |file: &str| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(PROGRAM);
        command.args(["capture", "-w", file, "--seconds", "60"]).stdin(Stdio::null());
        command.stdout(writer).stderr(Stdio::piped());
        inside(stage.lab.director(), &mut command);
        let mut capture = command.spawn().unwrap();
        wait_for("its end", || {
            visit();
            capture.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        });
        Said::from(capture.wait_with_output().unwrap())
    };
    let said = capture("/dev/full");
    assert_eq!(said.status, Some(1), "{said:?}");
    assert!(said.errors.contains("rlvs: writing /dev/full: No space left"), "{said:?}");
    let said = capture("-");
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(!said.errors.contains("pipe"), "{said:?}");
    // It has let go of the interfaces.
    visit();
    stage.rlvs(&["upgrade"]).ok();
}

#[test]
fn a_pin_that_is_gone_is_named_and_detaching_helps() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.ipvsadm(&format!("-A -t {VIP}:80")).ok();
    for pin in ["settings", "stages_tc"] {
        let remove = || fs::remove_file(pins::open().unwrap().unwrap().path(pin)).unwrap();
        stage.lab.director().run(remove).unwrap();
        let says =
            format!("/{pin} is gone, which somebody must have removed: packets are balanced");
        let words = if pin == "stages_tc" { "attach --every-program" } else { "status" };
        assert_refused(&stage, words, 1, &says);
        stage.rlvs(&["detach"]).ok();
        stage.ipvsadm(&format!("-A -t {VIP}:80")).ok();
        assert!(stage.listing().contains(VIP));
    }
}
