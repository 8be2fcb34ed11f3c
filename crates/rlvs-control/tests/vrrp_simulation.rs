//! Two to five routers of one virtual router on a network that loses, delays, doubles and divides,
//! with processes that freeze, restart, jump in time and are configured anew.
//!
//! Once nothing has disturbed them for as long as the protocol takes, there is one master: never
//! none, never two for longer than packets travel. `RLVS_SIM_SEED=N` plays one seed, `RLVS_SIM_SEEDS=N` more or
//! fewer of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rlvs_control::vrrp::config::{Config, InstanceConfig, Preempt, Version, VirtualAddress};
use rlvs_control::vrrp::{Input, LinkState, Output, Received, Router, State};

const SEEDS: u64 = 256;
/// How long a seed is played.
const LENGTH: Duration = Duration::from_secs(60);
const MS: Duration = Duration::from_millis(1);
/// The longest way of a packet.
const TRAVEL_MAX: Duration = Duration::from_millis(3);
/// Packets that a sleeping process's socket holds.
const WAITING_MAX: usize = 64;
/// Calls at one instant: more is a loop.
const CALLS_MAX: u32 = 1000;
/// Lines of what happened that are shown of a seed that fails.
const LINES_MAX: usize = 60;

#[test]
fn there_is_one_master_once_the_network_is_calm() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("RLVS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RLVS_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let one = seeds.end - seeds.start == 1;
    let mut calm = Duration::ZERO;
    let mut takeovers = 0;
    for seed in seeds {
        let mut world = World::new(seed);
        world.play();
        calm += world.calm;
        takeovers += world.takeovers;
    }
    // The test would prove nothing if it were never calm, or if nothing happened.
    assert!(
        one || (calm > LENGTH * 8 && takeovers > 1000),
        "{calm:?} calm, {takeovers} changes of master"
    );
}

/// A generator of numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn time(&mut self, at_most: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(at_most.as_micros()).unwrap() + 1))
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length).unwrap())).unwrap()
    }
}

struct Node {
    config: InstanceConfig,
    router: Option<Router>,
    /// By how much its clock is ahead.
    ahead: Duration,
    frozen_until: Option<Duration>,
    frozen_since: Duration,
    link: bool,
    /// Only nodes of one side hear each other.
    side: u8,
    waiting: VecDeque<Received>,
    /// The addresses that it holds.
    held: BTreeSet<IpAddr>,
    was_master: bool,
}

struct Travelling {
    arrives: Duration,
    to: usize,
    packet: Received,
}

struct World {
    seed: u64,
    random: Random,
    base: Instant,
    now: Duration,
    nodes: Vec<Node>,
    /// The longest interval that any node has had, and others may have learned.
    longest: Duration,
    travelling: Vec<Travelling>,
    loss_percent: u64,
    next_disturbance: Duration,
    disturbed: Duration,
    /// Nobody can be expected to be right: divided, frozen or all gone.
    troubled: bool,
    /// Since when there are two masters or none.
    wrong_since: Option<Duration>,
    calm: Duration,
    takeovers: u32,
    lines: VecDeque<String>,
}

fn address(number: usize) -> IpAddr {
    IpAddr::from([10, 9, 0, u8::try_from(number + 1).unwrap()])
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let version = if random.is(50) { Version::V2 } else { Version::V3 };
        let count = 2 + random.index(4);
        let owner = random.is(20).then_some(0);
        let nodes = (0..count).map(|number| {
            let mut config = InstanceConfig::new("VI_1", "eth0", 51);
            config.version = version;
            // Equal ones happen.
            config.priority = u8::try_from(1 + random.below(6) * 50).unwrap();
            if owner == Some(number) {
                config.priority = 255;
            }
            if version == Version::V3 {
                config.interval = [100, 250, 1000].map(|ms| MS * ms)[random.index(3)];
            }
            config.preempt = match random.below(4) {
                0 => Preempt::Never,
                1 => Preempt::After(MS * 2000),
                _ => Preempt::After(Duration::ZERO),
            };
            config.addresses = vec![virtual_address(100)];
            config.answer_higher = random.is(30);
            Node {
                config,
                router: None,
                ahead: Duration::ZERO,
                frozen_until: None,
                frozen_since: Duration::ZERO,
                link: true,
                side: 0,
                waiting: VecDeque::new(),
                held: BTreeSet::new(),
                was_master: false,
            }
        });
        let nodes = nodes.collect();
        let mut world = Self {
            seed,
            random,
            base: Instant::now(),
            now: Duration::ZERO,
            nodes,
            longest: Duration::ZERO,
            travelling: Vec::new(),
            loss_percent: 0,
            next_disturbance: Duration::ZERO,
            disturbed: Duration::ZERO,
            troubled: false,
            wrong_since: None,
            calm: Duration::ZERO,
            takeovers: 0,
            lines: VecDeque::new(),
        };
        for number in 0..count {
            world.start(number);
        }
        world.plan_disturbance();
        world
    }

    fn play(&mut self) {
        let mut calls = 0;
        while self.now < LENGTH {
            let next = self.next_moment();
            calls = if next > self.now { 0 } else { calls + 1 };
            if calls > CALLS_MAX {
                self.fail("time stands still");
            }
            self.check_until(next);
            self.now = self.now.max(next);
            self.step();
            self.look();
        }
    }

    /// Returns when something happens next.
    fn next_moment(&self) -> Duration {
        let due = self.nodes.iter().filter_map(|node| {
            if let Some(until) = node.frozen_until {
                return Some(until);
            }
            let (due, _) = node.router.as_ref()?.poll_timeout()?;
            Some(due.saturating_duration_since(self.base + node.ahead))
        });
        let arrivals = self.travelling.iter().map(|travelling| travelling.arrives);
        due.chain(arrivals).chain([self.next_disturbance]).min().unwrap()
    }

    fn step(&mut self) {
        if self.next_disturbance <= self.now {
            self.disturb();
            self.plan_disturbance();
        }
        let arrived = |one: &Travelling| one.arrives <= self.now;
        let (arrived, travelling): (Vec<_>, _) =
            std::mem::take(&mut self.travelling).into_iter().partition(arrived);
        self.travelling = travelling;
        for Travelling { to, packet, .. } in arrived {
            self.arrive(to, packet);
        }
        for number in 0..self.nodes.len() {
            let thaws = self.nodes[number].frozen_until.is_some_and(|until| until <= self.now);
            if thaws {
                self.nodes[number].frozen_until = None;
                self.note(number, "goes on");
            }
            let replaced = thaws && self.is_replaced(number);
            self.turn(number);
            if replaced && self.state(number) == Some(State::Master) {
                self.fail(&format!("node {number} overslept, and is master beside another"));
            }
        }
    }

    /// Tells whether another speaks to a master that slept for too long.
    fn is_replaced(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        let slept = self.now - node.frozen_since >= node.config.interval * 3;
        // Versions and intervals of version 2 are the same everywhere, so the first byte that can
        // differ is the priority.
        let speaks = |packet: &Received| packet.source != address(number) && packet.payload[2] > 0;
        self.state(number) == Some(State::Master) && slept && node.waiting.iter().any(speaks)
    }

    fn arrive(&mut self, to: usize, packet: Received) {
        let node = &mut self.nodes[to];
        if !node.link || node.router.is_none() {
            return;
        }
        if node.waiting.len() < WAITING_MAX {
            node.waiting.push_back(packet);
        }
    }

    /// Lets a process that is not frozen do what the edge does when it wakes up.
    fn turn(&mut self, number: usize) {
        if self.nodes[number].frozen_until.is_some() {
            return;
        }
        // Sometimes the timer is looked at first: then it must ask for the packets itself.
        if !self.random.is(30) {
            self.read(number);
        }
        let now = self.local(number);
        if let Some(router) = &mut self.nodes[number].router {
            router.handle_timeout(now);
        }
        self.carry_out(number);
        self.read(number);
    }

    fn read(&mut self, number: usize) {
        while let Some(packet) = self.nodes[number].waiting.pop_front() {
            self.input(number, Input::Packet(packet));
        }
    }

    fn local(&self, number: usize) -> Instant {
        self.base + self.now + self.nodes[number].ahead
    }

    fn input(&mut self, number: usize, input: Input) {
        let now = self.local(number);
        if let Some(router) = &mut self.nodes[number].router {
            router.handle(input, now);
        }
        self.carry_out(number);
    }

    fn carry_out(&mut self, number: usize) {
        while let Some(output) = self.nodes[number].router.as_mut().and_then(Router::poll_output) {
            match output {
                Output::SendAdvert { source, destination, packet, .. } => {
                    let payload = packet[20..].to_vec();
                    let hops = packet[8];
                    let interface = "eth0".into();
                    self.send(number, Received { interface, source, destination, hops, payload });
                }
                Output::AddAddress { address, .. } => {
                    self.nodes[number].held.insert(address.address);
                }
                Output::RemoveAddress { address, .. } => {
                    self.nodes[number].held.remove(&address.address);
                }
                Output::ReadFirst => {
                    while let Some(packet) = self.nodes[number].waiting.pop_front() {
                        let now = self.local(number);
                        let router = self.nodes[number].router.as_mut().unwrap();
                        router.handle(Input::Packet(packet), now);
                    }
                    let now = self.local(number);
                    let router = self.nodes[number].router.as_mut().unwrap();
                    router.handle(Input::AllRead, now);
                }
                Output::Log { event, .. } => self.note(number, &event.to_string()),
                Output::SendFrame { .. }
                | Output::Notify { .. }
                | Output::AddRouting { .. }
                | Output::RemoveRouting { .. } => {}
            }
        }
        self.check_addresses(number);
    }

    /// A master holds all its addresses, anybody else none.
    fn check_addresses(&mut self, number: usize) {
        let node = &self.nodes[number];
        let wanted = match self.state(number) {
            Some(State::Master) => node.config.held().map(|one| one.address).collect(),
            _ => BTreeSet::new(),
        };
        if node.router.is_some() && node.held != wanted {
            let message = format!("node {number} holds {:?}, not {wanted:?}", node.held);
            self.fail(&message);
        }
    }

    fn send(&mut self, from: usize, packet: Received) {
        if !self.nodes[from].link {
            return;
        }
        for to in 0..self.nodes.len() {
            if to == from {
                // A network that sends one's own packets back must not matter.
                if self.random.is(5) {
                    self.travel(to, &packet);
                }
                continue;
            }
            if self.nodes[to].side != self.nodes[from].side {
                continue;
            }
            if self.random.is(self.loss_percent) {
                self.disturbed = self.now;
                continue;
            }
            self.travel(to, &packet);
            if self.random.is(5) {
                self.travel(to, &packet);
            }
        }
    }

    fn travel(&mut self, to: usize, packet: &Received) {
        let arrives = self.now + self.random.time(TRAVEL_MAX);
        self.travelling.push(Travelling { arrives, to, packet: packet.clone() });
    }

    fn plan_disturbance(&mut self) {
        let pause = if self.random.is(40) { MS * 15_000 } else { MS * 1500 };
        self.next_disturbance = self.now + self.random.time(pause);
    }

    fn disturb(&mut self) {
        self.disturbed = self.now;
        let number = self.random.index(self.nodes.len());
        match self.random.below(9) {
            0 => {
                self.loss_percent = [0, 0, 5, 30][self.random.index(4)];
                self.note(number, &format!("loss of {} %", self.loss_percent));
            }
            1 => self.divide(),
            2 => self.kill(number),
            3 => {
                self.note(number, "is asked to stop");
                self.input(number, Input::Stop);
                self.kill(number);
            }
            4 => {
                let until = self.now + self.random.time(MS * 6000);
                self.note(number, &format!("is frozen until {until:?}"));
                self.nodes[number].frozen_until = Some(until);
                self.nodes[number].frozen_since = self.now;
            }
            5 => {
                let by = self.random.time(MS * 5000);
                self.note(number, &format!("'s clock jumps by {by:?}"));
                self.nodes[number].ahead += by;
            }
            6 => {
                self.nodes[number].link = !self.nodes[number].link;
                self.note(number, &format!("has a link: {}", self.nodes[number].link));
                self.tell_link(number);
            }
            7 => self.reconfigure(number),
            _ => self.heal(),
        }
    }

    fn divide(&mut self) {
        for number in 0..self.nodes.len() {
            self.nodes[number].side = u8::try_from(self.random.below(2)).unwrap();
        }
        self.note(0, "and others: divided");
    }

    /// The host dies, or the process with its addresses: another start finds none.
    fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.router = None;
        node.waiting.clear();
        node.held.clear();
        node.frozen_until = None;
        self.note(number, "is gone");
        if self.random.is(50) {
            self.start(number);
        }
    }

    fn start(&mut self, number: usize) {
        let instances = vec![self.nodes[number].config.clone()];
        self.longest = self.longest.max(instances[0].interval);
        let config = Config { instances, ..Config::default() };
        self.nodes[number].router = Some(Router::new(config, self.local(number)).unwrap());
        self.note(number, "starts");
        self.tell_link(number);
    }

    fn tell_link(&mut self, number: usize) {
        let state = LinkState {
            running: self.nodes[number].link,
            mac: Some([2, 0, 0, 0, 9, 1]),
            addresses: vec![address(number)],
        };
        self.input(number, Input::Links(BTreeMap::from([("eth0".into(), state)])));
    }

    fn reconfigure(&mut self, number: usize) {
        let config = &mut self.nodes[number].config;
        match self.random.below(3) {
            0 if !config.is_owner() => {
                config.priority = u8::try_from(1 + self.random.below(6) * 50).unwrap();
            }
            1 => {
                let first = u8::try_from(100 + self.random.below(3)).unwrap();
                config.addresses = vec![virtual_address(first), virtual_address(110)];
            }
            _ if config.version == Version::V3 => {
                config.interval = [100, 250, 1000].map(|ms| MS * ms)[self.random.index(3)];
            }
            _ => {}
        }
        let instances = vec![config.clone()];
        self.longest = self.longest.max(config.interval);
        self.note(number, "is configured anew");
        self.input(number, Input::Reload(Config { instances, ..Config::default() }));
    }

    /// All is well from here on, until the next disturbance.
    fn heal(&mut self) {
        self.loss_percent = 0;
        for number in 0..self.nodes.len() {
            self.nodes[number].side = 0;
            self.nodes[number].frozen_until = None;
            if self.nodes[number].router.is_none() {
                self.start(number);
            }
            if !self.nodes[number].link {
                self.nodes[number].link = true;
                self.tell_link(number);
            }
        }
        self.note(0, "and others: healed");
        self.next_disturbance += MS * 1000;
    }

    fn state(&self, number: usize) -> Option<State> {
        let router = self.nodes[number].router.as_ref()?;
        router.status().first().map(|status| status.state)
    }

    fn masters(&self) -> usize {
        let is_master = |number: &usize| self.state(*number) == Some(State::Master);
        (0..self.nodes.len()).filter(is_master).count()
    }

    /// Looks at the masters behind every step.
    fn look(&mut self) {
        for number in 0..self.nodes.len() {
            let is_master = self.state(number) == Some(State::Master);
            let was_master = std::mem::replace(&mut self.nodes[number].was_master, is_master);
            self.takeovers += u32::from(is_master && !was_master);
        }
        let one_side = self.nodes.iter().all(|node| node.side == self.nodes[0].side);
        let frozen = self.nodes.iter().any(|node| node.frozen_until.is_some());
        // Nodes that are gone are none of the others' trouble, unless all are.
        let alive = self.nodes.iter().any(|node| node.router.is_some() && node.link);
        self.troubled = frozen || !one_side || !alive;
        let right = self.masters() == 1;
        self.wrong_since = if right { None } else { self.wrong_since.or(Some(self.now)) };
    }

    /// Fails if what is wrong would still be wrong at `next`, when it may not be.
    fn check_until(&mut self, next: Duration) {
        if self.troubled {
            self.disturbed = next;
            return;
        }
        let calm_from = self.disturbed + self.bound();
        self.calm += next.saturating_sub(calm_from.max(self.now));
        let Some(wrong) = self.wrong_since else { return };
        let allowed = wrong.max(calm_from) + TRAVEL_MAX * 2;
        let masters = self.masters();
        if next > allowed || (masters == 0 && next > calm_from && wrong > calm_from) {
            self.fail(&format!("{masters} masters since {wrong:?}, calm since {calm_from:?}"));
        }
    }

    /// How long the protocol may take: the longest patience there can be.
    fn bound(&self) -> Duration {
        self.longest * 4 + TRAVEL_MAX * 4
    }

    fn note(&mut self, number: usize, what: &str) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:?} node {number} {what}", self.now));
    }

    fn fail(&mut self, what: &str) -> ! {
        let mut text = String::new();
        for line in &self.lines {
            writeln!(text, "{line}").unwrap();
        }
        for node in &self.nodes {
            let status = node.router.as_ref().map(Router::status);
            writeln!(text, "{:?} {status:?}", node.config).unwrap();
        }
        panic!("{text}{:?}: {what}; RLVS_SIM_SEED={} plays it again", self.now, self.seed);
    }
}

fn virtual_address(last: u8) -> VirtualAddress {
    VirtualAddress::new(IpAddr::from([10, 9, 0, last]), 24)
}
