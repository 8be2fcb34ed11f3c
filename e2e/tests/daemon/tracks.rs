//! What virtual routers follow besides interfaces and scripts: ours beside the real one, each master
//! of a virtual router of its own, with the same files.

use std::fs;
use std::path::PathBuf;

use e2e::lab::wait_for;
use nix::sys::signal::Signal;
use rlvs::lab::site::Host::{First, Second};

use crate::router;
use crate::site::{Daemon, Site};
use crate::words::{end, real};

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
