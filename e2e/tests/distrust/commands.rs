//! Commands that are killed, meet each other, or find something amiss.

use std::process::{Command, Stdio};

use e2e::bare::{Host, left, pinned};
use e2e::lab::{Said, tool, wait_for, wait_until};
use rlvs_linux::dataplane::pins;

use crate::PROGRAM;

/// How often a command is killed before a test believes that it cannot be.
const TRIES: usize = 50;

#[test]
fn an_attach_or_detach_that_is_killed_is_taken_back_whole() {
    let host = Host::new(PROGRAM, "killed");
    host.rlvs(&["attach"]).ok();
    let root = pins::root().unwrap().unwrap();
    let off = ["0", "0"].map(str::to_owned);
    // It is gone to all commands, and something of it is still there.
    let mut tries = 0..TRIES;
    loop {
        tries.next().expect("a detach is killed on its way");
        host.rlvs(&["attach"]).ok();
        let killed = host.is_killed(&["detach"], || host.folders(&root) == [true, false]);
        if killed && host.folders(&root) == [true, false] {
            break;
        }
    }
    host.rlvs(&["ipvsadm", "-L", "-n"]).ok();
    assert_eq!((host.hooks(), host.forwarding()), (Vec::new(), off.clone()));
    assert_eq!(host.folders(&root), [false, false]);
    // The loopback device forwards already, and no command would find the programs.
    let mut tries = 0..TRIES;
    loop {
        tries.next().expect("an attach is killed on its way");
        let killed = host.is_killed(&["attach"], || host.forwarding() != off);
        if killed && host.folders(&root) == [true, false] {
            break;
        }
        host.rlvs(&["attach"]).ok();
        host.rlvs(&["detach"]).ok();
    }
    assert_ne!(host.forwarding(), off);
    host.rlvs(&["status"]);
    assert_eq!((host.hooks(), host.forwarding()), (Vec::new(), off));
    assert_eq!(host.folders(&root), [false, false]);
}

/// Whoever deletes a pin, or puts a map of his own in its place, is told so; a detach is all that is needed.
#[test]
fn a_table_with_a_map_that_is_gone_or_anothers_is_refused_and_can_be_removed() {
    let Some(bpftool) = tool("bpftool") else { return };
    let host = Host::new(PROGRAM, "amiss");
    for other in [false, true] {
        host.rlvs(&["attach"]).ok();
        let numbers = pinned(&host.namespace);
        let pin = host.namespace.run(|| {
            let folder = pins::open().unwrap().unwrap();
            std::fs::remove_file(folder.path("services")).unwrap();
            pins::shown(&folder, "services")
        });
        let pin = pin.unwrap();
        if other {
            let words = format!("map create {pin} type hash key 4 value 64 entries 9 name other");
            let words: Vec<&str> = words.split(' ').collect();
            Command::new(&bpftool).args(words).status().unwrap();
        }
        for words in [&["ipvsadm", "-A", "-t", "192.168.1.100:80"][..], &["status"], &["attach"]] {
            let said = host.rlvs(words);
            assert!(said.status != Some(0) && said.errors.contains(&pin), "{words:?}: {said:?}");
            assert!(said.errors.contains("`rlvs detach`"), "{words:?}: {said:?}");
        }
        host.rlvs(&["detach"]).ok();
        assert_eq!((host.hooks(), host.forwarding().concat()), (Vec::new(), "00".to_owned()));
        wait_until("maps and programs that are left", &Vec::new(), || left(&numbers));
    }
}

/// Returns what each command says that has waited for the table's lock while everything was detached.
fn beside_a_detach(host: &Host, commands: &[&[&str]]) -> Vec<(Option<i32>, String)> {
    let work = || {
        let folder = pins::open().unwrap().unwrap();
        let lock = folder.lock().unwrap();
        let spawn = |words: &&[&str]| {
            host.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = commands.iter().map(spawn).collect();
        wait_for("all to wait", || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let waits = |child: &std::process::Child| {
                let pid = child.id().to_string();
                let is_its = |line: &&str| line.split_ascii_whitespace().any(|word| word == pid);
                locks.lines().filter(|line| line.contains("->")).any(|line| is_its(&line))
            };
            if children.iter().all(waits) { Ok(()) } else { Err(locks) }
        });
        pins::remove_own().unwrap();
        drop(lock);
        // They end with the thread that has started them.
        let said = children.into_iter().map(|child| Said::from(child.wait_with_output().unwrap()));
        said.map(|said| (said.status, said.output + &said.errors)).collect()
    };
    host.namespace.run(work).unwrap()
}

/// Each does what it would have done afterwards.
#[test]
fn who_waits_for_a_table_that_is_removed_meanwhile_begins_anew() {
    let host = Host::new(PROGRAM, "beside");
    host.rlvs(&["attach"]).ok();
    let said = beside_a_detach(
        &host,
        &[
            &["ipvsadm", "-L", "-n"],
            &["upgrade"],
            &["acl", "deny", "192.0.2.0/24"],
            &["set", "drop_entry", "1"],
            &["status"],
        ],
    );
    assert_eq!((said[0].0, said[0].1.lines().count()), (Some(0), 3), "{said:?}");
    assert_eq!(said[1], (Some(0), "rlvs: nothing is attached here\n".to_owned()));
    for one in &said[2..] {
        assert!(one.0 == Some(1) && one.1.contains("attached"), "{one:?}");
    }
    assert_eq!((host.hooks(), host.forwarding().concat()), (Vec::new(), "00".to_owned()));
    for words in [&["attach"][..], &["ipvsadm", "-A", "-t", "192.168.1.100:80", "-s", "rr"]] {
        host.rlvs(&["attach"]).ok();
        let said = beside_a_detach(&host, &[words]);
        assert_eq!(said[0].0, Some(0), "{said:?}");
        assert_eq!(host.hooks(), ["rlvs_tc"], "{words:?}: {said:?}");
        let is_edit = words.len() > 1;
        assert_eq!(host.rlvs(&["ipvsadm", "-S", "-n"]).ok().lines().count(), usize::from(is_edit));
    }
}
