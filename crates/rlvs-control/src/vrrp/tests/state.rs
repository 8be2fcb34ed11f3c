//! When states change, and what happens then.

use super::*;
use crate::routing::{Entry, Network, Route};

#[test]
fn a_backup_waits_three_intervals_and_skew_then_takes_over_in_order() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    let notify = |state| Output::Notify { who: Who::Instance("VI_1".into()), state, priority: 100 };
    let remove = Output::RemoveAddress { interface: "eth0".into(), address: vip("10.9.0.100", 24) };
    assert_eq!(bench.out[..2], [remove, notify(State::Backup)]);
    bench.out.clear();
    let (due, why) = bench.router.poll_timeout().expect("a timer");
    assert_eq!((due - bench.now, why), (SECOND * 3 + SECOND * 156 / 256, "master down"));
    bench.until(State::Master, SECOND * 4);
    let kinds: Vec<&str> = bench
        .out
        .iter()
        .map(|output| match output {
            Output::SendAdvert { .. } => "advert",
            Output::AddAddress { .. } => "add",
            Output::SendFrame { .. } => "frame",
            Output::Notify { .. } => "notify",
            Output::Log { .. } => "log",
            _ => "other",
        })
        .collect();
    let expected = ["advert", "add", "frame", "frame", "frame", "frame", "frame", "notify", "log"];
    assert_eq!(kinds, expected);
}

#[test]
fn routes_come_after_addresses_and_go_before_them() {
    let entry = |bits: u8, untracked: bool| {
        let destination = Network { address: address("10.1.0.0"), bits };
        Arc::new(Entry::Route(Route { untracked, ..Route::to(destination) }))
    };
    let (first, second, third) = (entry(24, false), entry(23, true), entry(22, false));
    let mut config = instance(Version::V2, 100);
    config.routing = vec![first.clone(), second.clone()];
    let mut bench = Bench::one(config.clone(), 2);
    let changes = |bench: &mut Bench| -> Vec<(bool, Option<u8>)> {
        let of = |output: &Output| match output {
            Output::AddAddress { .. } => Some((true, None)),
            Output::RemoveAddress { .. } => Some((false, None)),
            Output::AddRouting { entry, .. } => Some((true, bits(entry))),
            Output::RemoveRouting { entry, .. } => Some((false, bits(entry))),
            _ => None,
        };
        bench.out.drain(..).filter_map(|output| of(&output)).collect()
    };
    // What an earlier process may have left.
    assert_eq!(changes(&mut bench), [(false, Some(23)), (false, Some(24)), (false, None)]);
    bench.input(Input::RoutingChanged);
    bench.until(State::Master, SECOND * 4);
    assert_eq!(changes(&mut bench), [(true, None), (true, Some(24)), (true, Some(23))]);
    bench.input(Input::RoutingChanged);
    assert_eq!(changes(&mut bench), [(true, Some(24))]);
    config.routing = vec![third, first];
    let new = Config { instances: vec![config], ..Config::default() };
    bench.input(Input::Reload(new));
    assert_eq!(changes(&mut bench), [(false, Some(23)), (true, Some(22))]);
    bench.hear(1, 200);
    assert_eq!(changes(&mut bench), [(false, Some(24)), (false, Some(22)), (false, None)]);
}

fn bits(entry: &Entry) -> Option<u8> {
    match entry {
        Entry::Route(route) => Some(route.destination.bits),
        Entry::Rule(_) => None,
    }
}

#[test]
fn skew_and_master_down_are_those_of_the_standards() {
    let check = |version, priority: u8, interval: Duration, silence_ms: u64, skew_ms: u64| {
        let mut config = instance(version, priority);
        config.interval = interval;
        let mut bench = Bench::one(config, 2);
        bench.hear(1, 254);
        let waited = bench.until(State::Master, SECOND * 10);
        assert_eq!(waited.as_millis(), u128::from(silence_ms), "{version:?} {priority}");
        bench.hear(1, 255);
        assert_eq!(bench.state(), State::Backup);
        bench.hear(1, 0);
        let waited = bench.until(State::Master, SECOND * 10);
        assert_eq!(waited.as_millis(), u128::from(skew_ms), "{version:?} {priority}");
    };
    check(Version::V2, 100, SECOND, 3609, 609);
    check(Version::V2, 100, SECOND * 2, 6609, 609);
    check(Version::V3, 100, SECOND, 3609, 609);
    check(Version::V3, 100, 100 * MS, 360, 60);
    check(Version::V3, 100, 20 * MS, 72, 12);
    check(Version::V3, 200, 10 * MS, 32, 2);
    check(Version::V3, 1, 100 * MS, 399, 99);
}

#[test]
fn an_owner_is_master_at_once_and_keeps_its_addresses() {
    let start = Instant::now();
    let instances = vec![instance(Version::V3, 255)];
    let config = Config { instances, ..Config::default() };
    let router = Router::new(config, start).expect("a right configuration");
    let mut bench = Bench { router, start, now: start, out: Vec::new() };
    bench.input(Input::Links(links(true, 1, &["10.9.0.100"])));
    assert_eq!(bench.state(), State::Master);
    assert_eq!(bench.priorities(), [255]);
    bench.input(Input::Stop);
    let removed = |output: &Output| matches!(output, Output::RemoveAddress { .. });
    assert!(!bench.out.iter().any(removed), "{:?}", bench.out);
    assert_eq!(bench.priorities(), [0]);
}

#[test]
fn a_stop_resigns_once_and_only_as_master() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    bench.input(Input::Stop);
    assert_eq!(bench.priorities(), []);
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    bench.until(State::Master, SECOND * 4);
    bench.out.clear();
    bench.input(Input::Stop);
    bench.input(Input::Stop);
    let removes = |output: &Output| matches!(output, Output::RemoveAddress { .. });
    let send = bench.out.iter().position(|output| matches!(output, Output::SendAdvert { .. }));
    let remove = bench.out.iter().position(removes);
    assert!(send < remove, "{:?}", bench.out);
    assert_eq!(bench.priorities(), [0]);
    assert_eq!(bench.router.poll_timeout(), None);
    assert_eq!(bench.counters().resignations_sent, 1);
}

#[test]
fn preempt_nopreempt_and_a_delay() {
    let check = |preempt, expected: Option<u64>| {
        let mut config = instance(Version::V2, 200);
        config.preempt = preempt;
        let mut bench = Bench::one(config, 1);
        let mut taken = None;
        for tenth in 0..100 {
            if tenth % 10 == 0 && bench.state() == State::Backup {
                bench.hear(2, 100);
            }
            bench.run(100 * MS);
            if bench.state() == State::Master && taken.is_none() {
                taken = Some(tenth);
            }
        }
        assert_eq!(taken, expected, "{preempt:?}");
    };
    check(Preempt::After(Duration::ZERO), Some(32));
    check(Preempt::Never, None);
    // The last advertisement within the delay is that at 2 s; 3.219 s later.
    check(Preempt::After(SECOND * 3), Some(52));
}

#[test]
fn a_backup_learns_the_interval_and_forgets_it_as_master() {
    let mut bench = Bench::one(instance(Version::V3, 100), 2);
    let mut other = instance(Version::V3, 200);
    other.interval = 200 * MS;
    bench.input(Input::Packet(advert(&other, 1, 200)));
    let waited = bench.until(State::Master, SECOND);
    assert_eq!(waited.as_millis(), 721);
    let (due, _) = bench.router.poll_timeout().expect("a timer");
    assert_eq!(due - bench.now, SECOND);
}

#[test]
fn a_master_that_yields_learns_the_interval_too() {
    let mut config = instance(Version::V3, 100);
    config.interval = 100 * MS;
    let mut bench = Bench::one(config, 2);
    bench.until(State::Master, SECOND);
    bench.input(Input::Packet(advert(&instance(Version::V3, 200), 1, 200)));
    let waited = bench.until(State::Master, SECOND * 4);
    assert_eq!(waited.as_millis(), 3609);
}

#[test]
fn a_master_yields_to_more_and_to_an_equal_of_higher_address() {
    let check = |from: u8, priority: u8, yields: bool| {
        let mut bench = Bench::one(instance(Version::V2, 100), 2);
        bench.until(State::Master, SECOND * 4);
        bench.run(MS * 10);
        bench.out.clear();
        bench.hear(from, priority);
        let expected = if yields { State::Backup } else { State::Master };
        assert_eq!(bench.state(), expected, "{from} {priority}");
        // Whoever stays says so at once.
        assert_eq!(bench.priorities(), if yields { vec![] } else { vec![100] });
    };
    check(1, 101, true);
    check(3, 100, true);
    check(1, 100, false);
    check(3, 99, false);
    check(3, 0, false);
}

#[test]
fn an_address_taken_away_comes_back_without_a_change_of_state() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    let removed =
        || Input::AddressRemoved { interface: "eth0".into(), address: address("10.9.0.100") };
    bench.out.clear();
    bench.input(removed());
    assert_eq!(bench.out, []);
    bench.until(State::Master, SECOND * 4);
    bench.out.clear();
    bench.input(removed());
    let add = Output::AddAddress { interface: "eth0".into(), address: vip("10.9.0.100", 24) };
    let add = bench.out.iter().position(|output| *output == add).expect("added again");
    assert!(matches!(bench.out[add + 1], Output::SendFrame { .. }), "{:?}", bench.out);
    assert_eq!(bench.state(), State::Master);
    assert_eq!((bench.counters().became_master, bench.counters().restored), (1, 1));
}

#[test]
fn announcements_are_counted_delayed_refreshed_and_paced() {
    let mut config = instance(Version::V3, 255);
    config.addresses.push(vip("10.9.0.101", 24));
    config.announce = Announce {
        repeat: 2,
        delay: SECOND * 5,
        refresh: SECOND * 7,
        refresh_repeat: 1,
        arp_pace: 100 * MS,
        ..Announce::default()
    };
    let mut bench = Bench::one(config, 1);
    let mut sent = Vec::new();
    for tenth in 0..80_u32 {
        for output in std::mem::take(&mut bench.out) {
            if let Output::SendFrame { frame, .. } = output {
                sent.push((tenth, frame[31]));
            }
        }
        bench.run(100 * MS);
    }
    let expected = [
        (0, 100),
        (1, 101),
        (2, 100),
        (3, 101),
        (50, 100),
        (51, 101),
        (52, 100),
        (53, 101),
        (70, 100),
        (71, 101),
    ];
    assert_eq!(sent, expected);
}

#[test]
fn a_group_is_master_together_and_faulty_together() {
    let mut second = instance(Version::V3, 100);
    (second.name, second.interface, second.vrid) = ("VI_2".into(), "eth1".into(), 52);
    let groups = vec![GroupConfig {
        name: "G".into(),
        members: vec!["VI_1".into(), "VI_2".into()],
        track: Vec::new(),
    }];
    let mut first = instance(Version::V3, 100);
    first.interval = 100 * MS;
    let instances = vec![first, second];
    let mut bench = Bench::new(Config { instances, groups, ..Config::default() }, 2);
    let states = |bench: &Bench| -> Vec<State> {
        bench.router.status().iter().map(|status| status.state).collect()
    };
    assert_eq!(states(&bench), [State::Backup; 2]);
    bench.until(State::Master, SECOND);
    assert_eq!(states(&bench), [State::Master; 2]);
    let told = |bench: &mut Bench| -> Vec<State> {
        let group = |output| match output {
            Output::Notify { who: Who::Group(_), state, priority: 0 } => Some(state),
            _ => None,
        };
        std::mem::take(&mut bench.out).into_iter().filter_map(group).collect()
    };
    assert_eq!(told(&mut bench), [State::Backup, State::Master]);
    bench.hear(1, 200);
    assert_eq!(states(&bench), [State::Backup; 2]);
    bench.until(State::Master, SECOND);
    told(&mut bench);
    let mut down = links(true, 2, &[]);
    down.get_mut("eth1").expect("eth1").running = false;
    bench.input(Input::Links(down));
    assert_eq!(states(&bench), [State::Fault; 2]);
    assert_eq!(told(&mut bench), [State::Fault]);
    bench.input(Input::Links(links(true, 2, &[])));
    assert_eq!(states(&bench), [State::Backup; 2]);
}

#[test]
fn whoever_overslept_listens_before_it_speaks() {
    // Another has taken over: silence, and addresses away.
    let mut bench = Bench::one(instance(Version::V2, 200), 1);
    bench.until(State::Master, SECOND * 4);
    bench.out.clear();
    bench.freeze(SECOND * 6);
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.router.poll_output(), Some(Output::ReadFirst));
    assert_eq!(bench.router.poll_output(), None);
    for _ in 0..3 {
        bench.hear(2, 100);
    }
    bench.input(Input::AllRead);
    assert_eq!(bench.state(), State::Backup);
    assert_eq!(bench.priorities(), []);
    // Nobody has: it goes on.
    let mut bench = Bench::one(instance(Version::V2, 200), 1);
    bench.until(State::Master, SECOND * 4);
    bench.out.clear();
    bench.freeze(SECOND * 6);
    bench.router.handle_timeout(bench.now);
    bench.drain();
    assert_eq!((bench.state(), bench.priorities()), (State::Master, vec![200]));
    // A backup hears the master that it missed.
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    bench.freeze(SECOND * 6);
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.router.poll_output().map(drop), Some(()));
    bench.hear(1, 200);
    bench.input(Input::AllRead);
    assert_eq!(bench.state(), State::Backup);
}

#[test]
fn a_flood_is_not_answered_by_a_flood() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    bench.until(State::Master, SECOND * 4);
    bench.run(SECOND / 10);
    bench.out.clear();
    for at in 0..500 {
        bench.hear(1, if at % 2 == 0 { 50 } else { 0 });
        bench.run(MS);
    }
    let frame = |output: &&Output| matches!(output, Output::SendFrame { .. });
    // Five at once, and five half an interval later at the most.
    assert!(bench.out.iter().filter(frame).count() <= 10);
    assert_eq!(bench.priorities(), [100; 50]);
}
