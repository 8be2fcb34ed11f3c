//! One run of the fuzzer of VRRP: any configuration, any packets, any times.
//!
//! The bytes are read as a script; bytes that are missing read as 0. Nothing may panic; a master
//! holds all its addresses and nobody else any; a packet that is refused changes neither the state
//! nor any time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rlvs_control::model::Family;
use rlvs_control::vrrp::config::{
    Config, Delivery, InstanceConfig, Peer, Preempt, Version, VirtualAddress,
};
use rlvs_control::vrrp::{Input, LinkState, Output, Received, Router, State, Status};
use rlvs_wire::vrrp::{Advertisement, Datagram, Ends, GROUP_V4, GROUP_V6, LENGTH_MAX};

/// The most things that happen in one run.
const STEPS: usize = 64;

/// The script.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn is(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn time(&mut self) -> Duration {
        let unit = [1, 10, 100, 1000][usize::from(self.byte() & 3)];
        Duration::from_millis(u64::from(self.byte()) * unit)
    }
}

/// The router under test, and what its outputs have made of the interface.
struct Play {
    router: Router,
    now: Instant,
    held: BTreeSet<IpAddr>,
}

/// Plays a script.
///
/// # Panics
/// The router panics, or breaks one of its promises.
pub fn run(data: &[u8]) {
    let mut script = Script(data);
    // What the kernel hands over is taken apart before it is anybody's.
    let _whole = Datagram::parse(data).is_some();
    let config = configuration(&mut script);
    let now = Instant::now();
    let Ok(router) = Router::new(config.clone(), now) else { return };
    let mut play = Play { router, now, held: BTreeSet::new() };
    play.input(links(true));
    for _ in 0..STEPS {
        if script.0.is_empty() {
            return;
        }
        play.step(&mut script, &config);
    }
}

fn configuration(script: &mut Script<'_>) -> Config {
    let mut one = InstanceConfig::new("VI_1", "eth0", 51);
    let bits = script.byte();
    one.family = if bits & 1 == 0 { Family::V4 } else { Family::V6 };
    one.version = if bits & 3 == 0 { Version::V2 } else { Version::V3 };
    one.priority = script.byte();
    one.interval = match one.version {
        Version::V2 => Duration::from_secs(script.byte().into()),
        Version::V3 => Duration::from_millis(u64::from(script.byte()) * 10),
    };
    one.addresses = (0..=bits >> 6).map(|number| address(one.family, 100 + number)).collect();
    one.password = (bits & 4 != 0 && one.version == Version::V2).then_some(*b"1234\0\0\0\0");
    one.preempt = match script.byte() & 3 {
        0 => Preempt::Never,
        1 => Preempt::After(Duration::from_secs(2)),
        _ => Preempt::After(Duration::ZERO),
    };
    if bits & 8 != 0 {
        let peers = vec![Peer { address: router(one.family, 1), hops: (1, 255) }];
        one.delivery = Delivery::Unicast { peers, hops: 255, only_peers: bits & 16 != 0 };
    }
    Config { instances: vec![one], ..Config::default() }
}

fn router(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => [10, 9, 0, last].into(),
        Family::V6 => [0xfe80, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
    }
}

fn address(family: Family, last: u8) -> VirtualAddress {
    let bits = if family == Family::V4 { 24 } else { 64 };
    VirtualAddress::new(router(family, last), bits)
}

fn links(running: bool) -> Input {
    let addresses = vec![router(Family::V4, 2), router(Family::V6, 2)];
    let state = LinkState { running, mac: Some([2, 0, 0, 0, 9, 2]), addresses };
    Input::Links(BTreeMap::from([("eth0".into(), state)]))
}

impl Play {
    fn step(&mut self, script: &mut Script<'_>, config: &Config) {
        match script.byte() % 10 {
            0 => self.input(links(script.is())),
            1 => {
                self.now += script.time();
                self.router.handle_timeout(self.now);
                self.drain();
            }
            2 => {
                let interface = "eth0".into();
                let address = router(Family::V4, 100 + (script.byte() & 3));
                self.input(Input::AddressRemoved { interface, address });
            }
            3 => {
                let mut config = config.clone();
                config.instances[0].priority = script.byte();
                self.input(Input::Reload(config));
            }
            4 => {
                self.now += script.time();
                self.input(Input::AllRead);
            }
            _ => {
                let packet = packet(script, &config.instances[0]);
                self.packet(packet);
            }
        }
    }

    fn packet(&mut self, packet: Received) {
        let before = (self.status(), self.router.poll_timeout());
        self.input(Input::Packet(packet));
        let after = (self.status(), self.router.poll_timeout());
        if after.0.counters.received == before.0.counters.received {
            let unchanged = before.0.state == after.0.state && before.1 == after.1;
            assert!(unchanged, "a packet that does not count: {before:?} to {after:?}");
        }
    }

    fn status(&self) -> Status {
        self.router.status().remove(0)
    }

    fn input(&mut self, input: Input) {
        self.router.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::AddAddress { address, .. } => drop(self.held.insert(address.address)),
                Output::RemoveAddress { address, .. } => drop(self.held.remove(&address.address)),
                Output::ReadFirst => self.router.handle(Input::AllRead, self.now),
                _ => {}
            }
        }
        let is_master = self.status().state == State::Master;
        let all = self.router.instances().flat_map(|one| one.held()).map(|one| one.address);
        let wanted = if is_master { all.collect() } else { BTreeSet::new() };
        assert_eq!(self.held, wanted);
    }
}

/// Makes a packet: an advertisement, a little spoilt or not, or any bytes at all.
fn packet(script: &mut Script<'_>, config: &InstanceConfig) -> Received {
    let bits = script.byte();
    let family = if bits & 7 == 7 { Family::V4 } else { config.family };
    let source = router(family, if bits & 8 == 0 { 1 } else { script.byte() });
    let destination = match (&config.delivery, family) {
        (Delivery::Unicast { .. }, _) => router(family, 2),
        (Delivery::Multicast, Family::V4) => GROUP_V4.into(),
        (Delivery::Multicast, Family::V6) => GROUP_V6.into(),
    };
    let hops = if bits & 16 == 0 { 255 } else { script.byte() };
    let mut payload = if bits & 32 == 0 {
        advertisement(script, config, source, destination)
    } else {
        let count = script.byte().into();
        script.bytes(count)
    };
    if bits & 64 != 0 && !payload.is_empty() {
        let at = usize::from(script.byte()) % payload.len();
        payload[at] ^= script.byte();
    }
    Received { interface: "eth0".into(), source, destination, hops, payload }
}

fn advertisement(
    script: &mut Script<'_>,
    config: &InstanceConfig,
    source: IpAddr,
    destination: IpAddr,
) -> Vec<u8> {
    let ends = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Ends::V4 { source: source.octets(), destination: destination.octets() }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Ends::V6 { source: source.octets(), destination: destination.octets() }
        }
        _ => return Vec::new(),
    };
    let count = usize::from(script.byte() & 3);
    let interval_cs = match config.version {
        Version::V2 => u16::from(script.byte()) * 100,
        Version::V3 => u16::from_be_bytes([script.byte() & 0x0f, script.byte()]),
    };
    let addresses = script.bytes(count * ends.address_length());
    let advertisement = Advertisement {
        version: config.version,
        vrid: config.vrid,
        priority: script.byte(),
        interval_cs,
        authentication: u8::from(config.password.is_some()),
        data: config.password.unwrap_or_default(),
        addresses: &addresses,
    };
    let mut bytes = [0; LENGTH_MAX];
    let length = advertisement.emit(&ends, &mut bytes).unwrap_or(0);
    let written = &bytes[..length];
    // What was written is read again as it was.
    if length > 0 {
        assert_eq!(Advertisement::parse(written, &ends), Ok(advertisement));
    }
    written.to_vec()
}
