//! What a router does about a master that was cut off.

use super::*;

/// A router that begins where a master was cut off, so long after its last advertisement.
fn cut_off(silent: Duration) -> Bench {
    let start = Instant::now();
    let instances = vec![instance(Version::V2, 100)];
    let router = Router::new(Config { instances, ..Config::default() }, start);
    let router = router.expect("a right configuration");
    let mut bench = Bench { router, start, now: start, out: Vec::new() };
    bench.input(Input::Resume { name: "VI_1".into(), silent });
    bench.input(Input::Links(links(true, 1, &["10.9.0.100"])));
    bench
}

fn removed(bench: &Bench) -> usize {
    let is_it = |output: &&Output| matches!(output, Output::RemoveAddress { .. });
    bench.out.iter().filter(is_it).count()
}

#[test]
fn whoever_was_master_until_just_now_goes_on() {
    let mut bench = cut_off(SECOND * 3 - MS);
    assert_eq!((bench.state(), removed(&bench)), (State::Master, 0));
    assert_eq!(bench.priorities(), [100]);
}

#[test]
fn who_comes_later_listens_and_keeps_the_addresses_until_another_is_heard() {
    let mut bench = cut_off(SECOND * 3);
    assert_eq!((bench.state(), removed(&bench)), (State::Backup, 0));
    bench.run(SECOND);
    bench.hear(2, 50);
    assert_eq!((bench.state(), removed(&bench)), (State::Backup, 1));
    bench.hear(2, 50);
    assert_eq!(removed(&bench), 1);
    bench.until(State::Master, SECOND * 3);
}

#[test]
fn without_another_the_addresses_stay_for_good() {
    let mut bench = cut_off(SECOND * 100);
    bench.until(State::Master, SECOND * 4);
    assert_eq!(removed(&bench), 0);
    bench.input(Input::Stop);
    assert_eq!(removed(&bench), 1);
}

#[test]
fn at_a_fault_or_the_end_the_addresses_go() {
    let mut bench = cut_off(SECOND * 100);
    bench.input(Input::Links(links(false, 1, &["10.9.0.100"])));
    assert_eq!((bench.state(), removed(&bench)), (State::Fault, 1));
    let mut bench = cut_off(SECOND * 100);
    bench.input(Input::Stop);
    assert_eq!(removed(&bench), 1);
}
