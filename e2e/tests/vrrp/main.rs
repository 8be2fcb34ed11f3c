//! Virtual routers of ours beside those of the real keepalived, on a wire between two namespaces.
//!
//! keepalived is 10.9.0.1, fe80::ff:fe00:901; ours is 2. What is on the wire is recorded on our
//! side, with the kernel's times.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod announce;
mod hundredth;
mod wire;

use std::time::Duration;

use e2e::lab::{run, tool, wait_for};
use nix::sys::signal::Signal;
use rlvs_linux::process::Guard;
use rlvs_linux::process::Handle;
use rlvs_linux::route::{Prefix, Rtnetlink};

use wire::{
    Advert, Frame, IPV6, Keepalived, LATE, OURS, TENTH, THEIRS, UNICAST, UNICAST6, V2, V3, Variant,
    Wire, assert_content, assert_dissected, assert_node_content, assert_takes, end, is_prompt, now,
};

/// How long an address may be missing that somebody takes away.
const BACK_MAX: Duration = Duration::from_millis(100);

/// How often ours takes over until it was prompt: the machine may have paused in the others.
const ATTEMPTS: usize = 3;

/// Ours is backup and takes over after keepalived's end in order and after its death. Returns whether it was
/// prompt.
fn as_backup(variant: &Variant) -> bool {
    let mut wire = Wire::new(variant);
    let keepalived = Keepalived::start(&mut wire, variant, 200);
    let (node, log) = wire.node(&variant.node(100));
    wire.wait_log(&log, "state BACKUP");
    wire.wait_advert(THEIRS, 200, Duration::ZERO);
    assert!(!wire.has_vip(variant));
    keepalived.stop();
    let resigned = wire.wait_advert(THEIRS, 0, Duration::ZERO);
    let taken = wire.wait_advert(OURS, 100, resigned);
    let prompt = is_prompt("the skew", taken - resigned, variant.skew(100));
    wire.wait_log(&log, "state MASTER");
    assert!(wire.has_vip(variant));
    assert_announced(&wire, variant, taken);
    // It has priority 200, so it takes the address back after its own patience.
    let keepalived = Keepalived::start(&mut wire, variant, 200);
    let back = wire.wait_advert(THEIRS, 200, taken);
    wire.wait_log(&log, "has the higher priority");
    wait_for("the address to go", || {
        if wire.has_vip(variant) { Err("there".to_owned()) } else { Ok(()) }
    });
    wire.wait_advert(THEIRS, 200, back);
    // Before, for what follows may come before this thread runs on.
    let died = now();
    keepalived.die();
    let taken = wire.wait_advert(OURS, 100, died);
    let theirs = |one: &&Advert| one.from == THEIRS && one.time < taken;
    let last = wire.adverts().iter().rfind(theirs).unwrap().time;
    let prompt =
        is_prompt("three intervals and skew", taken - last, variant.master_down(100)) && prompt;
    assert_announced(&wire, variant, taken);
    finish(&wire, node, &log, 100);
    prompt
}

/// The first announcement comes right behind the address, which comes right behind the advertisement.
fn assert_announced(wire: &Wire, variant: &Variant, taken: Duration) {
    let first = wait_for("an announcement", || {
        let frames = wire.frames();
        let announces = |one: &&Frame| one.time > taken && one.announces(variant.vip());
        frames.iter().find(announces).map(|one| one.time).ok_or(format!("{} frames", frames.len()))
    });
    let gap = first - taken;
    assert!(gap < LATE, "{gap:?}");
    eprintln!("{}: announced {gap:?} behind the advertisement", variant.name);
}

/// Ends ours in order: it resigns once.
fn finish(wire: &Wire, node: Guard, log: &str, priority: u8) {
    let before = wire.adverts().iter().filter(|one| one.from == OURS && one.priority == 0).count();
    let asked = now();
    end(node, Signal::SIGTERM);
    wire.wait_advert(OURS, 0, asked);
    wire.wait_log(log, "state STOP");
    assert_node_content(&wire.log(log));
    let adverts = wire.adverts();
    let resigned = adverts.iter().filter(|one| one.from == OURS && one.priority == 0).count();
    assert_eq!(resigned - before, 1, "priority {priority}");
    assert_content(wire);
    assert_dissected(wire);
}

/// Ours is master; keepalived takes over when ours freezes, dies and ends in order.
fn as_master(variant: &Variant) {
    let mut wire = Wire::new(variant);
    let keepalived = Keepalived::start(&mut wire, variant, 100);
    let (node, log) = wire.node(&variant.node(200));
    wire.wait_log(&log, "state MASTER");
    let first = wire.wait_advert(OURS, 200, Duration::ZERO);
    assert_announced(&wire, variant, first);
    assert!(wire.has_vip(variant));
    // It goes on while others take its address away.
    let index = Rtnetlink::open_in(&wire.ours).unwrap().link("eth0").unwrap().index;
    let bits = if variant.family == 4 { 24 } else { 64 };
    let prefix = Prefix { address: variant.vip(), bits };
    let removed = now();
    Rtnetlink::open_in(&wire.ours).unwrap().delete_address(index, prefix).unwrap();
    wait_for("the address", || if wire.has_vip(variant) { Ok(()) } else { Err("gone".to_owned()) });
    let back = now() - removed;
    assert!(back < BACK_MAX, "{back:?}");
    eprintln!("{}: the address was back after {back:?}", variant.name);
    // Frozen, it is taken for dead; then it listens first, and is silent until its time has come.
    let handle = Handle::open(node.pid().unwrap()).unwrap();
    let frozen = now();
    handle.signal(Signal::SIGSTOP).unwrap();
    let taken = wire.wait_advert(THEIRS, 100, frozen);
    let ours = |one: &&Advert| one.from == OURS && one.time < taken;
    let last = wire.adverts().iter().rfind(ours).unwrap().time;
    assert_takes("keepalived's patience", taken - last, variant.master_down(100));
    wire.wait_advert(THEIRS, 100, taken);
    let thawed = now();
    handle.signal(Signal::SIGCONT).unwrap();
    wire.wait_log(&log, "took over while this process did not run");
    let spoken = wire.wait_advert(OURS, 200, thawed);
    assert_takes("our patience", spoken - thawed, variant.master_down(200));
    // Dead, it leaves its address behind; the next one listens, for another has taken over.
    wire.wait_advert(OURS, 200, spoken);
    let died = now();
    end(node, Signal::SIGKILL);
    let taken = wire.wait_advert(THEIRS, 100, died);
    let last =
        wire.adverts().iter().rfind(|one| one.from == OURS && one.time < taken).unwrap().time;
    assert_takes("keepalived's patience", taken - last, variant.master_down(100));
    assert!(wire.has_vip(variant));
    let (node, log) = wire.node(&variant.node(200));
    wire.wait_log(&log, "state BACKUP");
    let taken = wire.wait_advert(OURS, 200, taken);
    wire.wait_log(&log, "state MASTER");
    wire.wait_advert(OURS, 200, taken);
    finish(&wire, node, &log, 200);
    let resigned = wire.wait_advert(OURS, 0, taken);
    let theirs = wire.wait_advert(THEIRS, 100, resigned);
    assert_takes("keepalived's skew", theirs - resigned, variant.skew(100));
    assert!(!wire.has_vip(variant));
    keepalived.stop();
    assert_content(&wire);
}

/// Plays both parts at once, each on a wire of its own.
fn both(variant: &Variant) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let prompt = (0..ATTEMPTS).any(|_| as_backup(variant));
            assert!(prompt, "too late each time");
        });
        scope.spawn(|| as_master(variant));
    });
}

#[test]
fn version_2_beside_keepalived() {
    both(&V2);
}

#[test]
fn version_3_beside_keepalived() {
    both(&V3);
}

#[test]
fn tenths_of_a_second_beside_keepalived() {
    both(&TENTH);
}

#[test]
fn unicast_beside_keepalived() {
    both(&UNICAST);
}

#[test]
fn unicast_over_ipv6_beside_keepalived() {
    both(&UNICAST6);
}

#[test]
fn ipv6_beside_keepalived() {
    both(&IPV6);
}

#[test]
fn a_virtual_hardware_address_beside_keepalived() {
    let variant = &TENTH;
    let mut wire = Wire::new(variant);
    let keepalived = Keepalived::start(&mut wire, variant, 100);
    let mut words = variant.node(200);
    words.push("virtual_mac=vrrp.51".to_owned());
    let (node, log) = wire.node(&words);
    wire.wait_log(&log, "state MASTER");
    let taken = wire.wait_advert(OURS, 200, Duration::ZERO);
    wire.wait_advert(OURS, 200, taken);
    let mut rtnetlink = Rtnetlink::open_in(&wire.ours).unwrap();
    let link = rtnetlink.link("vrrp.51").unwrap();
    assert_eq!(link.addresses.iter().map(|one| one.address).collect::<Vec<_>>(), [variant.vip()]);
    // A client on the other side reaches the address at that hardware address.
    run(&wire.theirs, &tool("ping").unwrap(), &["-c", "1", "-W", "5", "10.9.0.100"]).ok();
    let frames = wire.frames();
    let ours = frames.iter().filter(|one| Advert::of(one).is_some_and(|one| one.from == OURS));
    let mac = [0, 0, 0x5e, 0, 1, 51];
    assert!(ours.clone().count() > 1);
    assert!(ours.map(|one| &one.bytes[6..12]).all(|source| source == mac));
    let arp = |one: &&Frame| one.bytes[12..14] == [8, 6] && one.bytes[28..32] == [10, 9, 0, 100];
    let announcements: Vec<&Frame> = frames.iter().filter(arp).collect();
    assert!(announcements.len() >= 5);
    assert!(announcements.iter().all(|one| one.bytes[6..12] == mac && one.bytes[22..28] == mac));
    end(node, Signal::SIGTERM);
    wire.wait_log(&log, "state STOP");
    assert_node_content(&wire.log(&log));
    assert!(rtnetlink.link("vrrp.51").is_err());
    keepalived.stop();
    assert_content(&wire);
}

#[test]
fn a_link_that_goes_down_is_a_fault_until_it_is_back() {
    let variant = &TENTH;
    let mut wire = Wire::new(variant);
    let (node, log) = wire.node(&variant.node(100));
    wire.wait_log(&log, "state MASTER");
    let mut theirs = Rtnetlink::open_in(&wire.theirs).unwrap();
    let index = theirs.link("eth0").unwrap().index;
    theirs.set_up(index, false).unwrap();
    wire.wait_log(&log, "state FAULT");
    assert!(!wire.has_vip(variant));
    theirs.set_up(index, true).unwrap();
    wire.wait_log(&log, "FAULT to BACKUP: all is well again");
    wait_for("the address", || if wire.has_vip(variant) { Ok(()) } else { Err("gone".to_owned()) });
    end(node, Signal::SIGTERM);
    wire.wait_log(&log, "state STOP");
    assert_node_content(&wire.log(&log));
}
