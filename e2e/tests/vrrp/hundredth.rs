//! Advertisements each 10 ms: nobody changes without cause while nothing happens.

use std::time::Duration;

use e2e::lab::wait_for;
use nix::sys::signal::Signal;

use crate::both;
use crate::wire::{
    Advert, EARLY, HUNDREDTH, Keepalived, OURS, THEIRS, Wire, assert_content, assert_dissected,
    assert_node_content, end,
};

/// How long nothing happens.
const CALM: Duration = Duration::from_secs(5);

/// How many advertisements a backup that was held up may send, of a hundred of the master's.
const HELD_UP_PERCENT: usize = 2;

/// Returns the longest time between two advertisements of a master, and their number.
fn longest_gap(adverts: &[Advert], from: u8, priority: u8) -> (Duration, usize) {
    let times = adverts.iter().filter(|one| one.from == from && one.priority == priority);
    let times: Vec<Duration> = times.map(|one| one.time).collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
    (longest.unwrap_or_default(), times.len())
}

/// Lets time pass for two nodes on the wire of which one is master.
fn wait_calm(wire: &Wire, master: u8) {
    let begun = wire.wait_advert(master, 200, Duration::ZERO);
    wait_for("the calm", || {
        let adverts = wire.adverts();
        let last = adverts.last().map_or(begun, |one| one.time);
        if last - begun >= CALM { Ok(()) } else { Err(format!("{} of them", adverts.len())) }
    });
}

/// Every advertisement of the backup's must have a silence of the master's before it, as long as the
/// protocol has it: then the machine held up the master, and the backup did what it is there for.
fn assert_no_flap(wire: &Wire, master: u8, backup: u8) {
    let adverts = wire.adverts();
    let patience = HUNDREDTH.master_down(100) - EARLY;
    let mut heard: Option<Duration> = None;
    for advert in &adverts {
        if advert.from == master {
            heard = Some(advert.time);
        } else if let Some(heard) = heard.filter(|_| advert.from == backup) {
            let silence = advert.time - heard;
            assert!(silence >= patience, "{backup} took over after {silence:?}");
        }
    }
}

#[test]
fn hundredths_of_a_second_beside_keepalived() {
    both(&HUNDREDTH);
}

#[test]
fn nobody_flaps_while_keepalived_is_master() {
    let mut wire = Wire::new(&HUNDREDTH);
    let keepalived = Keepalived::start(&mut wire, &HUNDREDTH, 200);
    let (node, log) = wire.node(&HUNDREDTH.node(100));
    wire.wait_log(&log, "state BACKUP");
    wait_calm(&wire, THEIRS);
    assert_no_flap(&wire, THEIRS, OURS);
    end(node, Signal::SIGTERM);
    wire.wait_log(&log, "state STOP");
    assert_node_content(&wire.log(&log));
    keepalived.stop();
    assert_content(&wire);
}

#[test]
fn nobody_flaps_while_ours_is_master() {
    let mut wire = Wire::new(&HUNDREDTH);
    let keepalived = Keepalived::start(&mut wire, &HUNDREDTH, 100);
    let (node, log) = wire.node(&HUNDREDTH.node(200));
    wire.wait_log(&log, "state MASTER");
    wait_calm(&wire, OURS);
    let (longest, count) = longest_gap(&wire.adverts(), OURS, 200);
    // Where the machine holds keepalived up it looks at its timer before it hears, and speaks once or twice;
    // whom ours does not convince speaks as often as ours.
    let (_, theirs) = longest_gap(&wire.adverts(), THEIRS, 100);
    assert!(theirs * 100 <= count * HELD_UP_PERCENT, "{theirs} beside {count}");
    assert!(longest < HUNDREDTH.master_down(100), "ours was silent for {longest:?}");
    let expected = CALM.as_millis() / HUNDREDTH.interval.as_millis();
    assert!(count as u128 * 100 >= expected * 95, "{count} of {expected} advertisements");
    end(node, Signal::SIGTERM);
    wire.wait_log(&log, "state STOP");
    assert_node_content(&wire.log(&log));
    keepalived.stop();
    assert_content(&wire);
    assert_dissected(&wire);
}
