//! A daemon runs while a version with other maps takes over, and is followed by that version's.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use e2e::lab::{Said, Stop, inside, wait_for, wait_until};
use e2e::versions::Versions;
use nix::sys::signal::Signal;
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{First, Second, Web1, Web2};

use crate::site::{Daemon, PROGRAM, Site};
use crate::{ONE, both, when};

fn run(site: &Site, program: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    inside(site.host(First), &mut command);
    command.output().unwrap().into()
}

/// Returns the services of the first director as `ipvsadm` of a program shows them.
fn table(site: &Site, program: &Path) -> String {
    run(site, program, &["ipvsadm", "-S", "-n"]).ok()
}

#[test]
fn a_daemon_whose_maps_another_layout_takes_over_hands_on_to_that_version() {
    let site = Site::new();
    let [_one, two] = [site.web(Web1), site.web(Web2)];
    let versions = Versions::new("daemon", PROGRAM, site.directory());
    let [old, new] = versions.of.each_ref().map(|version| version.program.as_path());
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3");
    let first = quick.replace("priority 100", "priority 200");
    let mut daemon = Daemon::start_other(&site, First, &first, old);
    let backup = Daemon::start(&site, Second, &quick);
    wait_until("the master", &(true, both()), || (site.vip_is_at(First), site.table(First)));
    site.wait_answer();
    let before = table(&site, old);
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    let lost = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let client = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let is_answered = site.ask().is_ok();
                let counter = if is_answered { &answers } else { &lost };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let some_more = |what: &str| {
            let seen = answers.load(Ordering::Relaxed);
            wait_for(what, || {
                when(answers.load(Ordering::Relaxed) > seen + 20 || client.is_finished())
            });
        };
        some_more("answers before");
        assert_eq!(lost.load(Ordering::Relaxed), 0);
        let said = run(&site, new, &["upgrade", "--from", old.to_str().unwrap()]).ok();
        assert!(said.contains("runs this version's programs from now on"), "{said}");
        // The process of the version before still speaks for the virtual router; the table is not its own
        // any more, and it says what is to be done.
        daemon.wait_said("restart this daemon, so that the installed version keeps the table", 1);
        assert_eq!(table(&site, new), before);
        some_more("answers after the upgrade");
        // One connection may have been opened after connections were read for the last time.
        let lost_then = lost.load(Ordering::Relaxed);
        assert!(lost_then <= 1, "{lost_then} requests were lost");

        // As the package does it.
        daemon.end(Signal::SIGKILL);
        daemon = Daemon::start_other(&site, First, &first, new);
        daemon.wait_said("INIT to MASTER: going on where an earlier process was cut off", 1);
        some_more("answers after the restart");
        drop(stopping);
        client.join().unwrap();
        assert_eq!(lost.load(Ordering::Relaxed), lost_then, "requests after the upgrade");
    });
    assert!(site.vip_is_at(First) && !site.vip_is_at(Second));
    assert_eq!(table(&site, new), before);
    for word in ["Removing service", "Adding service", "to BACKUP", "changes by others"] {
        assert!(!daemon.said().contains(word), "{word}: {}", daemon.said());
    }
    assert!(!backup.said().contains("to MASTER"), "{}", backup.said());

    // Its checks decide about the new maps.
    drop(two);
    let alone: Vec<&str> = before.lines().filter(|line| !line.contains("192.168.1.102")).collect();
    wait_until("a stopped server is taken out", &alone.join("\n"), || {
        table(&site, new).trim_end().to_owned()
    });
    assert!(before.contains(ONE), "{before}");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(table(&site, new), "");
    run(&site, new, &["detach"]).ok();
}
