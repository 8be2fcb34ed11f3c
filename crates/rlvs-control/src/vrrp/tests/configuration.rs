//! What is configured, tracked and reloaded.

use super::*;

#[test]
fn a_fault_resigns_once_and_heals_to_backup() {
    let mut config = instance(Version::V2, 100);
    let script = |weight| Track { what: Tracked::Script("chk".into()), weight, reverse: false };
    config.track = vec![script(0)];
    let scripts = vec![ScriptConfig { name: "chk".into(), rise: 2, fall: 2, init_fail: false }];
    let mut bench = Bench::new(Config { instances: vec![config], scripts, ..Config::default() }, 2);
    let result = |bench: &mut Bench, good, expected| {
        bench.input(Input::Script { name: "chk".into(), good });
        assert_eq!(bench.state(), expected);
    };
    assert_eq!(bench.state(), State::Initialize);
    result(&mut bench, true, State::Initialize);
    result(&mut bench, true, State::Backup);
    bench.until(State::Master, SECOND * 4);
    bench.out.clear();
    result(&mut bench, false, State::Master);
    result(&mut bench, false, State::Fault);
    assert_eq!(bench.priorities(), [0]);
    result(&mut bench, true, State::Fault);
    result(&mut bench, true, State::Backup);
    bench.input(Input::Links(links(false, 2, &[])));
    assert_eq!(bench.state(), State::Fault);
}

#[test]
fn weights_move_the_priority_within_1_and_254() {
    let mut config = instance(Version::V2, 100);
    let track =
        |name: &str, weight, reverse| Track { what: Tracked::Value(name.into()), weight, reverse };
    let interface =
        |weight, reverse| Track { what: Tracked::Interface("eth1".into()), weight, reverse };
    config.track = vec![track("a", 1, false), interface(50, false), interface(7, true)];
    let mut bench = Bench::one(config, 2);
    let mut check = |value: i32, expected: u8| {
        bench.input(Input::Value { name: "a".into(), value });
        assert_eq!(bench.router.status()[0].priority, expected, "{value}");
    };
    check(0, 143);
    check(10, 153);
    check(-10, 133);
    check(1000, 254);
    check(-253, 1);
    bench.input(Input::Value { name: "a".into(), value: -254 });
    assert_eq!(bench.state(), State::Fault);
}

#[test]
fn what_is_known_before_the_interfaces_is_no_fault() {
    let mut config = instance(Version::V2, 100);
    let track = |what, weight, reverse| Track { what, weight, reverse };
    let process = || Tracked::Process("p".into());
    config.track = vec![track(Tracked::Value("f".into()), 0, false), track(process(), 20, false)];
    let start = Instant::now();
    let wanted = Config { instances: vec![config.clone()], ..Config::default() };
    let router = Router::new(wanted, start).expect("a right configuration");
    let mut bench = Bench { router, start, now: start, out: Vec::new() };
    bench.input(Input::Value { name: "f".into(), value: 0 });
    bench.input(Input::Process { name: "p".into(), good: true });
    assert_eq!((bench.state(), bench.out.len()), (State::Initialize, 0));
    bench.input(Input::Links(links(true, 2, &[])));
    let priority = |bench: &Bench| bench.router.status()[0].priority;
    assert_eq!((bench.state(), priority(&bench)), (State::Backup, 120));
    bench.input(Input::Process { name: "p".into(), good: false });
    assert_eq!((bench.state(), priority(&bench)), (State::Backup, 100));
    // The sign, and not when it counts.
    for (weight, reverse, good, expected) in [
        (20, true, true, 80),
        (20, true, false, 100),
        (-20, false, true, 100),
        (-20, false, false, 80),
        (-20, true, true, 100),
        (-20, true, false, 120),
    ] {
        config.track = vec![track(process(), weight, reverse)];
        let wanted = Config { instances: vec![config.clone()], ..Config::default() };
        bench.input(Input::Reload(wanted));
        bench.input(Input::Process { name: "p".into(), good });
        assert_eq!(priority(&bench), expected, "{weight} {reverse} {good}");
    }
    for (reverse, good, expected) in [
        (false, true, State::Backup),
        (false, false, State::Fault),
        (true, false, State::Backup),
        (true, true, State::Fault),
    ] {
        config.track = vec![track(process(), 0, reverse)];
        let wanted = Config { instances: vec![config.clone()], ..Config::default() };
        bench.input(Input::Reload(wanted));
        bench.input(Input::Process { name: "p".into(), good });
        assert_eq!(bench.state(), expected, "{reverse} {good}");
    }
}

#[test]
fn a_reload_changes_what_differs_and_nothing_else() {
    let config = |instances| Config { instances, ..Config::default() };
    let mut bench = Bench::one(instance(Version::V2, 200), 1);
    bench.until(State::Master, SECOND * 4);
    bench.run(SECOND * 2);
    bench.out.clear();
    bench.input(Input::Reload(config(vec![instance(Version::V2, 200)])));
    assert_eq!(bench.out, []);
    let mut changed = instance(Version::V2, 50);
    changed.addresses = vec![vip("10.9.0.101", 24)];
    bench.input(Input::Reload(config(vec![changed.clone()])));
    bench.run(Duration::ZERO);
    assert_eq!(bench.state(), State::Master);
    let (interface, old, new) = ("eth0".into(), vip("10.9.0.100", 24), vip("10.9.0.101", 24));
    let interface: &Arc<str> = &interface;
    for (address, added) in [(old, false), (new, true)] {
        let interface = interface.clone();
        let expected = match added {
            true => Output::AddAddress { interface, address },
            false => Output::RemoveAddress { interface, address },
        };
        assert!(bench.out.contains(&expected), "{expected:?}");
    }
    assert_eq!(bench.priorities(), [50]);
    // What is wrong changes nothing, and says why.
    let mut wrong = changed;
    wrong.vrid = 0;
    bench.input(Input::Reload(config(vec![wrong])));
    let refused = Event::ReloadRefused(vec![Refusal::Range("VI_1".into(), "virtual_router_id")]);
    assert_eq!(bench.out, [Output::Log { about: "".into(), event: refused }]);
    bench.out.clear();
    bench.input(Input::Reload(Config::default()));
    assert_eq!(bench.priorities(), [0]);
    assert_eq!(bench.router.poll_timeout(), None);
}

#[test]
fn wrong_configurations_are_refused() {
    let refused = |change: &dyn Fn(&mut InstanceConfig)| {
        let mut one = instance(Version::V2, 100);
        change(&mut one);
        Config { instances: vec![one], ..Config::default() }.refusals()
    };
    let name: Arc<str> = "VI_1".into();
    assert_eq!(refused(&|_| {}), []);
    let nobody = refused(&|one| {
        one.delivery = Delivery::Unicast { peers: Vec::new(), hops: 255, only_peers: true };
    });
    assert_eq!(nobody, [Refusal::NoPeer(name.clone())]);
    let range = |what| vec![Refusal::Range(name.clone(), what)];
    assert_eq!(refused(&|one| one.interval = 1500 * MS), range("advert_int"));
    assert_eq!(refused(&|one| one.priority = 0), range("priority"));
    let slow = refused(&|one| {
        (one.version, one.interval) = (Version::V3, SECOND * 41);
    });
    assert_eq!(slow, range("advert_int"));
    let fast = refused(&|one| {
        (one.version, one.interval) = (Version::V3, 10 * MS);
    });
    assert_eq!(fast, []);
    assert_eq!(refused(&|one| one.addresses.clear()), [Refusal::NoAddress(name.clone())]);
    let two = Config {
        instances: vec![instance(Version::V2, 1), instance(Version::V3, 2)],
        ..Config::default()
    };
    let expected =
        [Refusal::DoubleName(name.clone()), Refusal::DoubleVrid(name.clone(), 51, "eth0".into())];
    assert_eq!(two.refusals(), expected);
}
