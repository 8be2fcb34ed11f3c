//! What virtual routers follow besides interfaces and scripts: ours beside the real one, each master
//! of a virtual router of its own, with the same files.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::lab::{tool, wait_for};
use nix::sys::signal::Signal;
use rlvs::lab::site::Host::{First, Second};
use rlvs_linux::process::Guard;

use crate::site::{Daemon, Site};
use crate::words::{end, ip, real};
use crate::{router, when};

/// How a virtual router is: its priority, or fault.
type Standing = Option<u8>;

/// Returns how the last line with a change says that the real one is.
fn theirs(log: &PathBuf) -> Standing {
    let said = fs::read_to_string(log).unwrap_or_default();
    let (mut priority, mut fault) = (100, false);
    for line in said.lines() {
        // Of a change, or at the end of a fault.
        if let Some((_, change)) = line.split_once("ing effective priority ") {
            priority = change.rsplit_once("to ").unwrap().1.trim().parse().unwrap();
        }
        fault |= line.contains("Entering FAULT STATE");
        fault &= !line.contains("Entering BACKUP STATE");
    }
    (!fault).then_some(priority)
}

/// The same of ours.
fn ours(daemon: &Daemon) -> Standing {
    let (mut priority, mut fault) = (100, false);
    for line in daemon.said().lines() {
        if let Some((_, change)) = line.split_once(": priority ") {
            priority = change.split_once(" to ").unwrap().1.trim().parse().unwrap();
        }
        fault |= line.contains(" to FAULT");
        fault &= !line.contains("FAULT to BACKUP");
    }
    (!fault).then_some(priority)
}

#[test]
fn a_tracked_file_is_followed_as_by_the_real_one() {
    let site = Site::new();
    let path = |name: &str| site.directory().join(name);
    let text = |vrid: u8| {
        let files = format!(
            "track_file by_two {{\n file {}\n weight 2\n init_file 5 overwrite\n}}\n\
             vrrp_track_file fatal {{\n file {}\n weight 0\n init_file\n}}\n\
             track_file own {{\n file {}\n}}\n",
            path("by_two").display(),
            path("fatal").display(),
            path("own").display(),
        );
        let tracks = "advert_int 1\n track_file {\n by_two\n fatal\n own weight -3\n }";
        let instance = router(100).replace("advert_int 1", tracks);
        let instance = instance.replace("router_id 51", &format!("router_id {vrid}"));
        let instance = instance.replace("192.168.1.200", &format!("192.168.1.2{vrid}"));
        format!("global_defs {{\n script_user root\n}}\n{files}{instance}")
    };
    fs::write(path("by_two"), "77").unwrap();
    let there = real(&site, Second, &text(52));
    let log = path("real-Second.log");
    let mut daemon = Daemon::start(&site, First, &text(51));
    let both = |what: &str, expected: Standing| {
        wait_for(what, || {
            let seen = (ours(&daemon), theirs(&log));
            if seen == (expected, expected) {
                Ok(())
            } else {
                Err(format!("{seen:?}\n{}", fs::read_to_string(&log).unwrap()))
            }
        });
    };
    both("what the file says at the start", Some(110));
    assert_eq!(fs::read_to_string(path("by_two")).unwrap().trim(), "5");
    assert_eq!(fs::read_to_string(path("fatal")).unwrap().trim(), "0");
    for (number, expected) in [
        ("-7", Some(86)),
        ("77\n", Some(254)),
        ("-126", Some(1)),
        ("-127", None),
        ("8", Some(116)),
        // The real one says nothing of its priority where a fault ends with the number 0.
        ("-300", None),
        ("9", Some(118)),
        ("", Some(100)),
        ("7", Some(114)),
        ("none", Some(100)),
        ("7 apples", Some(114)),
        ("+3", Some(106)),
        ("0x10", Some(132)),
        ("010", Some(116)),
    ] {
        fs::write(path("by_two"), number).unwrap();
        both(&format!("`{number}`"), expected);
    }
    // It is put in place of another, made anew, and taken away.
    fs::write(path("new"), "4").unwrap();
    fs::rename(path("new"), path("by_two")).unwrap();
    both("another file", Some(108));
    fs::write(path("own"), "2").unwrap();
    both("a file that was not there", Some(102));
    fs::remove_file(path("by_two")).unwrap();
    both("no file", Some(94));
    fs::write(path("fatal"), "1").unwrap();
    both("a fault", None);
    fs::write(path("fatal"), "0").unwrap();
    both("all is well", Some(94));
    end(there);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

#[test]
fn weights_are_reversed_as_by_the_real_one() {
    let site = Site::new();
    let good = site.directory().join("good");
    for host in [First, Second] {
        ip(&site, host, "link add other type veth peer name end");
        ip(&site, host, "link set end up");
    }
    let weights = ["10 reverse", "-10 reverse"];
    let text = |vrid: u8, weight: &str| {
        let script = format!(
            "vrrp_script S {{\n script \"/usr/bin/test -e {}\"\n interval 1\n weight {weight}\n}}\n",
            good.display()
        );
        let tracks = format!(
            "advert_int 1\n track_interface {{\n other weight {weight}\n }}\n track_script {{\n S\n }}"
        );
        let instance = router(100).replace("advert_int 1", &tracks);
        let instance = instance.replace("router_id 51", &format!("router_id {vrid}"));
        let instance = instance.replace("192.168.1.200", &format!("192.168.1.2{vrid}"));
        format!("global_defs {{\n script_user root\n}}\n{script}{instance}")
    };
    for (number, weight) in (0..).zip(weights) {
        let mut seen = Vec::new();
        for well in [true, false] {
            let state = if well { "up" } else { "down" };
            for host in [First, Second] {
                ip(&site, host, &format!("link set other {state}"));
            }
            if well {
                fs::write(&good, "").unwrap();
            } else {
                fs::remove_file(&good).unwrap();
            }
            let there = real(&site, Second, &text(50 + number, weight));
            let log = site.directory().join("real-Second.log");
            let mut daemon = Daemon::start(&site, First, &text(10 + number, weight));
            // Each of the two has been taken into account by both.
            daemon.wait_said("INIT to BACKUP", 1);
            daemon.wait_said("script S:", 1);
            wait_for("the real one", || {
                let said = fs::read_to_string(&log).unwrap();
                when(said.contains("VRRP_Script(S)") && said.contains("Entering BACKUP STATE"))
            });
            let counts = (weight.starts_with("10")) == well;
            let change: i32 = weight.split(' ').next().unwrap().parse().unwrap();
            let expected = u8::try_from(100 - if counts { 2 * change } else { 0 }).unwrap();
            wait_for(&format!("{weight} {state}: {expected}"), || {
                let standing = (ours(&daemon), theirs(&log));
                let expected = (Some(expected), Some(expected));
                if standing == expected {
                    Ok(())
                } else {
                    Err(format!("{standing:?}\n{}", daemon.said()))
                }
            });
            seen.push(expected);
            end(there);
            assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
        }
        assert_ne!(seen[0], seen[1]);
    }
}

/// A program of a name of its own, which runs until it is ended.
fn program(site: &Site, name: &str) -> PathBuf {
    let path = site.directory().join(name);
    fs::copy(tool("sleep").unwrap(), &path).unwrap();
    path
}

fn run_program(path: &PathBuf, words: &[&str]) -> Guard {
    Guard::new(Command::new(path).args(words).stdin(Stdio::null()).spawn().unwrap())
}

#[test]
fn tracked_processes_are_followed() {
    let site = Site::new();
    // A name that nothing else on this machine has.
    let name = format!("p{}", std::process::id());
    let path = program(&site, &name);
    let shown = path.display();
    let text = format!(
        "track_process named {{\n process {name}\n quorum 2\n quorum_max 3\n weight 20\n}}\n\
         vrrp_track_process exact {{\n process \"{shown}\" 1001\n weight 5\n terminate_delay 1\n}}\n\
         track_process none {{\n process {shown} 13\n param_match partial\n quorum_max 0\n weight 0\n}}\n{}",
        router(100)
            .replace("advert_int 1", "advert_int 1\n track_process {\n named\n exact\n none\n }",)
    );
    let first = run_program(&path, &["1000"]);
    let mut daemon = Daemon::start(&site, First, &text);
    daemon.wait_said("INIT to BACKUP", 1);
    let standing = |what: &str, expected: Standing| {
        wait_for(what, || {
            let seen = ours(&daemon);
            if seen == expected { Ok(()) } else { Err(format!("{seen:?}\n{}", daemon.said())) }
        });
    };
    standing("too few", Some(100));
    let second = run_program(&path, &["1001"]);
    standing("a second, of these words", Some(125));
    let third = run_program(&path, &["1000"]);
    let fourth = run_program(&path, &["1000"]);
    standing("too many", Some(105));
    drop(fourth);
    standing("enough", Some(125));
    let forbidden = run_program(&path, &["13", "14"]);
    standing("one that must not run", None);
    drop(forbidden);
    standing("it has gone", Some(125));
    // It goes, and another comes in time.
    drop(second);
    let other = run_program(&path, &["1001"]);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 1);
    standing("all is as it was", Some(125));
    assert!(!daemon.said().contains("exact: 0"), "{}", daemon.said());
    let gone = Instant::now();
    drop(other);
    standing("it counts a second later", Some(120));
    assert!(gone.elapsed() >= Duration::from_secs(1), "{:?}", gone.elapsed());
    // Nobody looks: the kernel tells at once, for a second has not passed.
    let gone = Instant::now();
    drop((first, third));
    standing("none is left", Some(100));
    assert!(gone.elapsed() < Duration::from_millis(900), "{:?}", gone.elapsed());
    assert!(!daemon.said().contains("/proc is looked at"), "{}", daemon.said());
    // A shell that becomes another program, and a name that is given later.
    let script = format!("exec -a {name} {shown} 1000");
    let mut shell = Command::new(tool("bash").unwrap());
    let shell = Guard::new(shell.args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap());
    let another = run_program(&path, &["1000"]);
    standing("two again", Some(120));
    drop((shell, another));
    standing("and none", Some(100));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}
