//! A router with a clock of its own, and the tests that use it.

mod configuration;
mod reception;
mod recorded;
mod resume;
mod state;

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
    VirtualAddress::new(address(text), bits)
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
