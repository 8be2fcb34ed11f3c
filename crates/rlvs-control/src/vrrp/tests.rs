//! The state machine against recorded frames and the tables of the standards.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rlvs_wire::vrrp::{Advertisement, Datagram, LENGTH_MAX, NO_AUTHENTICATION, PASSWORD};

use super::config::*;
use super::receive;
use super::*;
use crate::model::Family;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Frames of keepalived 2.2.7.
const RECORDED: &str = include_str!("recorded.txt");

/// A router with a clock of its own.
struct Bench {
    router: Router,
    start: Instant,
    now: Instant,
    /// What came out and was not looked at.
    out: Vec<Output>,
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn vip(text: &str, bits: u8) -> VirtualAddress {
    VirtualAddress { address: address(text), bits, interface: None }
}

/// The canonical instance of the recordings.
fn instance(version: Version, priority: u8) -> InstanceConfig {
    let mut config = InstanceConfig::new("VI_1", "eth0", 51);
    config.version = version;
    config.priority = priority;
    config.addresses = vec![vip("10.9.0.100", 24)];
    config.announce.delay = SECOND;
    config
}

fn links(running: bool, last: u8, more: &[&str]) -> BTreeMap<Arc<str>, LinkState> {
    let mut addresses =
        vec![IpAddr::from([10, 9, 0, last]), address(&format!("fe80::ff:fe00:90{last}"))];
    addresses.extend(more.iter().map(|text| address(text)));
    let mac = Some([2, 0, 0, 0, 9, last]);
    let state = LinkState { running, mac, addresses };
    ["eth0", "eth1"].map(|name| (name.into(), state.clone())).into()
}

impl Bench {
    /// Starts at 10.9.0.`last`.
    fn new(config: Config, last: u8) -> Self {
        let start = Instant::now();
        let router = Router::new(config, start).expect("a right configuration");
        let mut bench = Self { router, start, now: start, out: Vec::new() };
        bench.input(Input::Links(links(true, last, &[])));
        bench
    }

    fn one(config: InstanceConfig, last: u8) -> Self {
        Self::new(Config { instances: vec![config], ..Config::default() }, last)
    }

    fn input(&mut self, input: Input) {
        self.router.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.router.poll_output() {
            let read_first = output == Output::ReadFirst;
            self.out.push(output);
            if read_first {
                self.router.handle(Input::AllRead, self.now);
            }
        }
    }

    /// Lets time pass, timer by timer.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((due, _)) = self.router.poll_timeout().filter(|(due, _)| *due <= end) {
            self.now = self.now.max(due);
            self.router.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Lets time pass without the process.
    fn freeze(&mut self, time: Duration) {
        self.now += time;
    }

    fn state(&self) -> State {
        self.router.status()[0].state
    }

    fn counters(&self) -> Counters {
        self.router.status()[0].counters.clone()
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Runs until the state is this, and returns how long that took.
    fn until(&mut self, state: State, at_most: Duration) -> Duration {
        let from = self.now;
        while self.state() != state {
            let (due, _) = self.router.poll_timeout().expect("a timer");
            assert!(due <= from + at_most, "still {} after {at_most:?}", self.state());
            self.run(due.saturating_duration_since(self.now));
        }
        self.now - from
    }

    fn adverts(&mut self) -> Vec<Vec<u8>> {
        let packet = |output| match output {
            Output::SendAdvert { packet, .. } => Some(packet),
            _ => None,
        };
        std::mem::take(&mut self.out).into_iter().filter_map(packet).collect()
    }

    /// Priorities of the advertisements that were sent.
    fn priorities(&mut self) -> Vec<u8> {
        self.adverts().iter().map(|packet| packet[22]).collect()
    }

    /// Makes 10.9.0.`from` send an advertisement with this priority.
    fn hear(&mut self, from: u8, priority: u8) {
        let config = self.router.instances().next().expect("an instance").clone();
        self.input(Input::Packet(advert(&config, from, priority)));
    }
}

/// An advertisement of another router with the same configuration.
fn advert(config: &InstanceConfig, from: u8, priority: u8) -> Received {
    let source = match config.family {
        Family::V4 => IpAddr::from([10, 9, 0, from]),
        Family::V6 => address(&format!("fe80::ff:fe00:90{from}")),
    };
    let destination = receive::group(config.family);
    let mut addresses = Vec::new();
    for address in &config.addresses {
        match address.address {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
    }
    let advertisement = Advertisement {
        version: config.version,
        vrid: config.vrid,
        priority,
        interval_cs: config.interval_cs(),
        authentication: if config.password.is_some() { PASSWORD } else { NO_AUTHENTICATION },
        data: config.password.unwrap_or_default(),
        addresses: &addresses,
    };
    let mut bytes = [0; LENGTH_MAX];
    let ends = receive::ends(source, destination).expect("one family");
    let length = advertisement.emit(&ends, &mut bytes).expect("room");
    let payload = bytes[..length].to_vec();
    Received { interface: "eth0".into(), source, destination, hops: 255, payload }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn recorded(configuration: &str) -> Vec<(&'static str, Vec<u8>)> {
    let of_line = |line: &'static str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, kind, _, to, packet] = words[..] else { return None };
        if name != configuration {
            return None;
        }
        let from = words[2];
        let mac = |text: &str| hex(&text.replace(':', ""));
        let packet = hex(packet);
        if kind == "advertisement" {
            return Some((kind, packet));
        }
        let ethertype = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 6] };
        Some((kind, [mac(to), mac(from), ethertype.to_vec(), packet].concat()))
    };
    RECORDED.lines().filter_map(of_line).collect()
}

/// The packet without what no two senders have in common: IPv4 number and header checksum, IPv6
/// flow label.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[1] &= 0xf0;
        packet[2..4].fill(0);
    }
    packet
}

/// Plays master and backup of a recording, and compares each frame that was recorded.
fn check_recorded(name: &str, configure: impl Fn(&mut InstanceConfig, u8)) {
    let frames = recorded(name);
    assert!(frames.len() >= 4, "{name}: {} frames", frames.len());
    let mut found = 0;
    for (last, priority) in [(1, 200), (2, 100)] {
        let mut config = instance(Version::V3, priority);
        configure(&mut config, last);
        let mut bench = Bench::one(config, last);
        bench.run(SECOND * 20);
        bench.input(Input::Stop);
        let sent: Vec<(usize, Vec<u8>)> = bench
            .out
            .iter()
            .enumerate()
            .filter_map(|(at, output)| match output {
                Output::SendAdvert { packet, .. } => Some((at, comparable(packet))),
                Output::SendFrame { frame, .. } => Some((at, frame.clone())),
                _ => None,
            })
            .collect();
        for (kind, frame) in &frames {
            let own = match (*kind, frame[0] >> 4) {
                ("announcement", _) => last == 1,
                (_, 6) => frame[23] == last,
                _ => frame[15] == last,
            };
            if !own {
                continue;
            }
            let expected = if *kind == "announcement" { frame.clone() } else { comparable(frame) };
            // What was sent last before the end has another number; so the number is set.
            let is_it = |sent: &[u8]| {
                let mut sent = sent.to_vec();
                if *kind == "advertisement" && sent.len() > 20 && sent[0] == 0x45 && sent[22] == 0 {
                    sent[4..6].copy_from_slice(&expected[4..6]);
                    sent[10..12].copy_from_slice(&expected[10..12]);
                }
                sent == expected
            };
            assert!(
                sent.iter().any(|(_, sent)| is_it(sent)),
                "{name}: not sent: {expected:02x?}\nsent: {sent:02x?}"
            );
            found += 1;
        }
    }
    assert_eq!(found, frames.len(), "{name}");
}

#[test]
fn every_recorded_frame_is_sent_byte_for_byte() {
    check_recorded("v2-password", |config, _| {
        config.version = Version::V2;
        config.password = Some(*b"1234\0\0\0\0");
    });
    check_recorded("v2", |config, _| config.version = Version::V2);
    check_recorded("v3", |_, _| {});
    check_recorded("v3-tenth", |config, _| config.interval = 100 * MS);
    check_recorded("v3-ipv6", |config, _| {
        config.family = Family::V6;
        config.addresses = vec![vip("fe80::9:100", 64), vip("fd09::100", 64)];
    });
    check_recorded("v3-virtual-mac", |config, _| config.virtual_mac = Some("vrrp.51".into()));
    let unicast = |config: &mut InstanceConfig, last: u8| {
        let address = IpAddr::from([10, 9, 0, 3 - last]);
        let peers = vec![Peer { address, hops: (0, 255) }];
        config.delivery = Delivery::Unicast { peers, hops: 255, only_peers: true };
    };
    check_recorded("v3-unicast", |config, last| {
        unicast(config, last);
        config.interval = 100 * MS;
    });
    check_recorded("v2-unicast", |config, last| {
        unicast(config, last);
        config.version = Version::V2;
    });
}

#[test]
fn numbers_of_packets_count_from_1_and_leave_0_out() {
    let mut config = instance(Version::V3, 200);
    config.interval = 10 * MS;
    let mut bench = Bench::one(config, 1);
    bench.run(SECOND * 660);
    let numbers: Vec<u16> =
        bench.adverts().iter().map(|packet| u16::from_be_bytes([packet[4], packet[5]])).collect();
    let expected: Vec<u16> = (1..=u16::MAX).chain(1..=u16::MAX).take(numbers.len()).collect();
    assert_eq!(numbers, expected);
    assert!(numbers.len() > 65_600);
    let last = bench.elapsed();
    assert_eq!(last, SECOND * 660);
}

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
            Output::RemoveAddress { .. } | Output::ReadFirst => "other",
        })
        .collect();
    let expected = ["advert", "add", "frame", "frame", "frame", "frame", "frame", "notify", "log"];
    assert_eq!(kinds, expected);
}

#[test]
fn skew_and_master_down_are_those_of_the_standards() {
    let mut check = |version, priority: u8, interval: Duration, silence_ms: u64, skew_ms: u64| {
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
fn a_fault_resigns_once_and_heals_to_backup() {
    let mut config = instance(Version::V2, 100);
    let script = |weight| Track { what: Tracked::Script("chk".into()), weight, reverse: false };
    config.track = vec![script(0)];
    let scripts = vec![ScriptConfig { name: "chk".into(), rise: 2, fall: 2, init_fail: false }];
    let mut bench = Bench::new(Config { instances: vec![config], scripts, ..Config::default() }, 2);
    let mut result = |bench: &mut Bench, good, expected| {
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
    config.track = vec![track("a", 1, false), interface(50, false), interface(-7, true)];
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
fn preempt_nopreempt_and_a_delay() {
    let mut check = |preempt, expected: Option<u64>| {
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
    let mut check = |from: u8, priority: u8, yields: bool| {
        let mut bench = Bench::one(instance(Version::V2, 100), 2);
        bench.until(State::Master, SECOND * 4);
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
fn nonsense_moves_nothing_and_is_counted_by_kind() {
    let good = |config: &InstanceConfig| advert(config, 1, 254);
    let mut v2 = instance(Version::V2, 100);
    v2.password = Some(*b"1234\0\0\0\0");
    let v3 = instance(Version::V3, 100);
    let mut check = |config: &InstanceConfig, kind, spoil: &dyn Fn(&mut Received)| {
        for master in [false, true] {
            let mut bench = Bench::one(config.clone(), 2);
            if master {
                bench.until(State::Master, SECOND * 4);
            }
            let mut packet = good(config);
            spoil(&mut packet);
            let before = (bench.state(), bench.router.poll_timeout());
            bench.input(Input::Packet(packet));
            assert_eq!((bench.state(), bench.router.poll_timeout()), before, "{kind:?}");
            let rejected = bench.counters().rejected;
            assert_eq!(rejected, BTreeMap::from([(kind, 1)]), "master: {master}");
        }
    };
    // The checksum is made right again, so that only what is meant is wrong.
    let set = |at: usize, value: u8| {
        move |packet: &mut Received| {
            packet.payload[at] = value;
            repair(packet);
        }
    };
    check(&v2, Rejection::Hops, &|packet| packet.hops = 254);
    check(&v2, Rejection::Checksum, &|packet| packet.payload[6] ^= 1);
    check(&v3, Rejection::Checksum, &|packet| packet.payload[6] ^= 1);
    check(&v2, Rejection::Type, &set(0, 0x22));
    check(&v2, Rejection::Version, &set(0, 0x11));
    check(&v2, Rejection::Version, &|packet| *packet = advert(&instance(Version::V3, 1), 1, 254));
    check(&v2, Rejection::Length, &set(3, 2));
    check(&v2, Rejection::Length, &set(3, 0));
    check(&v2, Rejection::Length, &|packet| packet.payload.truncate(5));
    check(&v3, Rejection::Length, &|packet| packet.payload.extend([0; 28]));
    check(&v2, Rejection::AuthenticationType, &set(4, 0));
    check(&v2, Rejection::Password, &set(12, b'x'));
    check(&v2, Rejection::Interval, &set(5, 2));
    check(&v2, Rejection::Interval, &set(5, 0));
    check(&v3, Rejection::Interval, &|packet| {
        packet.payload[4..6].fill(0);
        repair(packet);
    });
    check(&v3, Rejection::Own, &|packet| *packet = advert(&instance(Version::V3, 1), 2, 254));
    check(&v3, Rejection::Destination, &|packet| packet.destination = address("10.9.0.2"));
    check(&v3, Rejection::Destination, &|packet| packet.destination = address("fe80::1"));
}

/// Makes the checksum right.
fn repair(packet: &mut Received) {
    packet.payload[6..8].fill(0);
    let mut sum: u32 = packet
        .payload
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).expect("folded");
    packet.payload[6..8].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_foreign_number_is_nobodys() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    let mut other = instance(Version::V2, 254);
    other.vrid = 52;
    bench.input(Input::Packet(advert(&other, 1, 254)));
    assert_eq!(bench.router.strangers(), 1);
    assert_eq!(bench.counters(), Counters::default());
}

#[test]
fn a_resignation_counts_only_from_the_master() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    bench.hear(1, 200);
    let before = bench.router.poll_timeout();
    bench.hear(3, 0);
    assert_eq!(bench.router.poll_timeout(), before);
    assert_eq!(bench.counters().rejected, BTreeMap::from([(Rejection::Resignation, 1)]));
    bench.hear(1, 0);
    assert_ne!(bench.router.poll_timeout(), before);
}

#[test]
fn another_list_of_addresses_is_taken_and_told_once() {
    let mut bench = Bench::one(instance(Version::V2, 100), 2);
    let mut other = instance(Version::V2, 200);
    other.addresses.push(vip("10.9.0.101", 24));
    bench.out.clear();
    for _ in 0..3 {
        bench.run(SECOND);
        bench.input(Input::Packet(advert(&other, 1, 200)));
    }
    assert_eq!(bench.state(), State::Backup);
    let event = Event::AddressesDiffer { from: address("10.9.0.1") };
    assert_eq!(bench.out, [Output::Log { about: "VI_1".into(), event }]);
    assert_eq!((bench.counters().received, bench.counters().addresses_differ), (3, 3));
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

#[test]
fn recorded_advertisements_are_read() {
    for line in RECORDED.lines().filter(|line| line.contains(" advertisement ")) {
        let packet = hex(line.split_ascii_whitespace().next_back().expect("a packet"));
        let (source, destination, payload) = match Datagram::parse(&packet) {
            Some(read) => (read.source.into(), read.destination.into(), read.payload.to_vec()),
            None => {
                let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16");
                (octets(8).into(), octets(24).into(), packet[40..].to_vec())
            }
        };
        let ends = receive::ends(source, destination).expect("one family");
        let read = Advertisement::parse(&payload, &ends).expect(line);
        assert_eq!(read.vrid, 51);
        assert!([0, 100, 200].contains(&read.priority));
    }
}
