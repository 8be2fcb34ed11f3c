//! One virtual router: its state machine.
//!
//! ```text
//!               able               silence for master_down
//! Initialize ---------> Backup ------------------------------> Master
//!     |                 |    ^ <------------------------------ |   ^
//!     | faulty   faulty |    | able    outranked or overslept  |   | owner
//!     +------> Fault <--+----+---------------------------------+   |
//!                |               faulty                            |
//!                +-------------------------------------------------+
//! ```
//!
//! All changes of state go through [`Instance::transition`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rlvs_wire::vrrp::{Advertisement, OWNER, RESIGN, Version};

use super::announce::Announcer;
use super::config::{INTERVAL_MIN, InstanceConfig, Preempt, VirtualAddress};
use super::event::{Event, LinkState, Output, Received, State, Who, Why};
use super::receive::{self, Counters, Rejection};
use super::track::Ability;

/// A virtual router and everything that it remembers.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) config: InstanceConfig,
    pub(super) state: State,
    /// With all weights.
    pub(super) priority: u8,
    pub(super) counters: Counters,
    /// Who was last heard to be master.
    pub(super) master: Option<IpAddr>,
    /// Its priority, and when that was.
    heard: Option<(u8, Instant)>,
    pub(super) source: Option<IpAddr>,
    pub(super) link: LinkState,
    pub(super) macs: BTreeMap<Arc<str>, [u8; 6]>,
    pub(super) announcer: Announcer,
    /// Number of the last IPv4 packet.
    pub(super) identification: u16,
    /// In `Master` the next advertisement, in `Backup` the end of patience.
    pub(super) deadline: Option<Instant>,
    /// The interval of the master, or ours.
    master_interval: Duration,
    /// When a master of lower priority was let be long enough.
    preempt_at: Option<Instant>,
    pub(super) last_advert: Option<Instant>,
    /// When a lower priority was last answered with announcements.
    answered: Option<Instant>,
    /// Of whom it was said that its priority is lower.
    lower_told: Option<IpAddr>,
    /// The last list of addresses that differed.
    differing: Option<Vec<u8>>,
    /// Addresses that were the interface's own before we came: an owner's.
    kept: BTreeSet<IpAddr>,
}

/// What the router knows for an instance.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Situation {
    pub(super) ability: Ability,
    pub(super) priority: u8,
    pub(super) link: LinkState,
    pub(super) source: Option<IpAddr>,
    /// Hardware addresses of the interfaces that its addresses are on.
    pub(super) macs: BTreeMap<Arc<str>, [u8; 6]>,
}

pub(super) type Outputs = VecDeque<Output>;

impl Instance {
    pub(super) fn new(config: InstanceConfig) -> Self {
        Self {
            state: State::Initialize,
            priority: config.priority,
            counters: Counters::default(),
            master: None,
            heard: None,
            source: None,
            link: LinkState::default(),
            macs: BTreeMap::new(),
            announcer: Announcer::default(),
            identification: 0,
            deadline: None,
            master_interval: config.interval,
            preempt_at: None,
            last_advert: None,
            answered: None,
            lower_told: None,
            differing: None,
            kept: BTreeSet::new(),
            config,
        }
    }

    /// Takes note of what it depends on.
    pub(super) fn settle(&mut self, situation: Situation, now: Instant, out: &mut Outputs) {
        let Situation { ability, priority, link, source, macs } = situation;
        self.macs = macs;
        if self.state == State::Initialize && self.config.is_owner() {
            self.kept.extend(link.addresses.iter().copied());
        }
        if self.priority != priority {
            let event = Event::Priority { from: self.priority, to: priority };
            self.log(event, out);
            self.priority = priority;
        }
        self.source = source;
        self.link = link;
        match (self.state, ability) {
            (State::Stopped, _) | (_, Ability::Waiting) => {}
            (_, Ability::Faulty(why)) => self.transition(State::Fault, why, now, out),
            (State::Initialize | State::Fault, Ability::Able) if self.priority == OWNER => {
                self.transition(State::Master, Why::Owner, now, out);
            }
            (State::Initialize, Ability::Able) => {
                self.transition(State::Backup, Why::Start, now, out);
            }
            (State::Fault, Ability::Able) => {
                self.transition(State::Backup, Why::Recovered, now, out);
            }
            (State::Backup | State::Master, Ability::Able) => {}
        }
        self.announce(now, out);
    }

    /// Takes a packet for this virtual router.
    pub(super) fn packet(&mut self, packet: &Received, now: Instant, out: &mut Outputs) {
        if !matches!(self.state, State::Backup | State::Master) {
            return;
        }
        let advertisement = match receive::check(&self.config, self.source, packet) {
            Ok(advertisement) => advertisement,
            Err(kind) => return self.reject(kind, packet.source, out),
        };
        let from = packet.source;
        let resigns = advertisement.priority == RESIGN;
        if resigns && self.state == State::Backup && self.master.is_some_and(|it| it != from) {
            return self.reject(Rejection::Resignation, from, out);
        }
        self.counters.received += 1;
        self.compare_addresses(&advertisement, from, out);
        if resigns {
            self.counters.resignations_received += 1;
        } else if self.is_second(&advertisement, from, now) {
            return;
        } else {
            self.master = Some(from);
            self.heard = Some((advertisement.priority, now));
        }
        match self.state {
            State::Backup => self.packet_as_backup(&advertisement, from, now, out),
            State::Master => self.packet_as_master(&advertisement, from, now, out),
            State::Initialize | State::Fault | State::Stopped => {}
        }
        self.announce(now, out);
    }

    /// Tells whether this is the lesser of two masters who have not heard each other yet. Its last
    /// word may come behind the first of the other, and its interval must not be learned.
    fn is_second(&self, advertisement: &Advertisement<'_>, from: IpAddr, now: Instant) -> bool {
        let (State::Backup, Some(master), Some((priority, when))) =
            (self.state, self.master, self.heard)
        else {
            return false;
        };
        (advertisement.priority, from) < (priority, master) && now < when + self.master_interval
    }

    /// RFC 9568 §6.4.2.
    fn packet_as_backup(
        &mut self,
        advertisement: &Advertisement<'_>,
        from: IpAddr,
        now: Instant,
        out: &mut Outputs,
    ) {
        let priority = advertisement.priority;
        if priority == RESIGN {
            self.log(Event::Resigned { from }, out);
            self.master = None;
            self.deadline = Some(now + self.skew());
            return;
        }
        let patient = match self.config.preempt {
            Preempt::Never => self.priority != OWNER,
            Preempt::After(delay) if priority < self.priority && !delay.is_zero() => {
                now < *self.preempt_at.get_or_insert(now + delay)
            }
            Preempt::After(_) => false,
        };
        if priority < self.priority && !patient {
            self.tell_lower(priority, from, out);
            return;
        }
        if priority >= self.priority {
            self.preempt_at = None;
        }
        let interval = Duration::from_millis(10) * u32::from(advertisement.interval_cs);
        if self.config.version == Version::V3 && interval != self.master_interval {
            self.master_interval = interval;
            self.log(Event::IntervalLearned { interval, from }, out);
        }
        self.deadline = Some(now + self.master_down());
    }

    /// RFC 9568 §6.4.3.
    fn packet_as_master(
        &mut self,
        advertisement: &Advertisement<'_>,
        from: IpAddr,
        now: Instant,
        out: &mut Outputs,
    ) {
        let priority = advertisement.priority;
        if priority == RESIGN {
            self.log(Event::Resigned { from }, out);
            // Whoever overslept does not speak before all others were heard.
            if !self.has_overslept(now) {
                self.advertise(now, out);
            }
            return;
        }
        if priority == OWNER && self.priority == OWNER {
            self.log(Event::TwoOwners { from }, out);
        }
        let is_higher_address = self.source.is_some_and(|source| from > source);
        if priority > self.priority || (priority == self.priority && is_higher_address) {
            if self.config.answer_higher && !self.has_overslept(now) {
                self.send_advert(self.priority, now, out);
            }
            self.transition(State::Backup, Why::Outranked(from), now, out);
            // The new master's interval counts from its first word on.
            self.master = Some(from);
            self.packet_as_backup(advertisement, from, now, out);
        } else if self.has_overslept(now) {
            self.transition(State::Backup, Why::Overslept(from), now, out);
        } else {
            self.answer_lower(priority, from, now, out);
        }
    }

    /// Tells a lower priority, and the neighbours, that the master is here.
    fn answer_lower(&mut self, priority: u8, from: IpAddr, now: Instant, out: &mut Outputs) {
        self.tell_lower(priority, from, out);
        // A flood must not be answered by a flood.
        let pause = |last: Option<Instant>, pause| last.is_some_and(|last| now < last + pause);
        if self.config.answer_lower && !pause(self.last_advert, INTERVAL_MIN) {
            self.advertise(now, out);
        }
        if !pause(self.answered, self.config.interval / 2) {
            self.answered = Some(now);
            self.announcer.burst(self.config.held(), self.config.announce.lower_repeat);
        }
    }

    fn tell_lower(&mut self, priority: u8, from: IpAddr, out: &mut Outputs) {
        if self.lower_told.replace(from) != Some(from) {
            self.log(Event::LowerPriority { from, priority }, out);
        }
    }

    fn reject(&mut self, kind: Rejection, from: IpAddr, out: &mut Outputs) {
        let count = self.counters.rejected.entry(kind).or_default();
        *count += 1;
        let count = *count;
        if count.is_power_of_two() {
            self.log(Event::Rejected { kind, from, count }, out);
        }
    }

    /// Another list of addresses is accepted, so that lists can be edited one router at a time.
    fn compare_addresses(
        &mut self,
        advertisement: &Advertisement<'_>,
        from: IpAddr,
        out: &mut Outputs,
    ) {
        let length = if from.is_ipv4() { 4 } else { 16 };
        let own = self.advertised();
        let sorted = |bytes: &[u8]| -> BTreeSet<Vec<u8>> {
            bytes.chunks(length).map(<[u8]>::to_vec).collect()
        };
        if sorted(&own) == sorted(advertisement.addresses) {
            self.differing = None;
            return;
        }
        self.counters.addresses_differ += 1;
        let theirs = advertisement.addresses.to_vec();
        if self.differing.as_ref() != Some(&theirs) {
            self.differing = Some(theirs);
            self.log(Event::AddressesDiffer { from }, out);
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, now: Instant, out: &mut Outputs) {
        if let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) {
            match self.state {
                State::Backup => self.transition(State::Master, Why::Silence, now, out),
                State::Master => {
                    self.advertise(now, out);
                    // Waking up late must not add up.
                    let regular = deadline + self.config.interval;
                    self.deadline =
                        Some(regular).filter(|regular| *regular > now).or(self.deadline);
                }
                State::Initialize | State::Fault | State::Stopped => self.deadline = None,
            }
        }
        self.announce(now, out);
    }

    /// Changes the state, and does what goes with it.
    pub(super) fn transition(&mut self, to: State, why: Why, now: Instant, out: &mut Outputs) {
        let from = std::mem::replace(&mut self.state, to);
        if from == to || from == State::Stopped {
            self.state = from;
            return;
        }
        if from == State::Master {
            self.leave_master(to, &why, now, out);
        } else if from == State::Initialize && to != State::Master {
            // What an earlier process left behind.
            self.remove_addresses(out);
        }
        (self.deadline, self.preempt_at, self.lower_told) = (None, None, None);
        (self.answered, self.master_interval) = (None, self.config.interval);
        match to {
            State::Master => self.enter_master(now, out),
            State::Backup => self.deadline = Some(now + self.master_down()),
            State::Initialize | State::Fault | State::Stopped => self.master = None,
        }
        let who = Who::Instance(self.config.name.clone());
        out.push_back(Output::Notify { who, state: to, priority: self.priority });
        self.log(Event::Transition { from, to, why }, out);
    }

    /// The addresses come right behind the advertisement, each with its first announcement.
    fn enter_master(&mut self, now: Instant, out: &mut Outputs) {
        self.counters.became_master += 1;
        self.master = None;
        self.advertise(now, out);
        let addresses: Vec<VirtualAddress> = self.config.held().cloned().collect();
        let announce = self.config.announce;
        self.announcer.clear();
        self.add_addresses(&addresses, announce.repeat, now, out);
        self.announcer.start(&announce, now);
    }

    fn leave_master(&mut self, to: State, why: &Why, now: Instant, out: &mut Outputs) {
        self.counters.released_master += 1;
        self.announcer.clear();
        let yields = to == State::Backup && *why != Why::Group;
        if !yields && !self.has_overslept(now) && self.link.running {
            self.send_advert(RESIGN, now, out);
            self.counters.resignations_sent += 1;
        }
        self.remove_addresses(out);
        self.last_advert = None;
    }

    /// Sends an advertisement and sets the time for the next.
    pub(super) fn advertise(&mut self, now: Instant, out: &mut Outputs) {
        self.send_advert(self.priority, now, out);
        self.deadline = Some(now + self.config.interval);
    }

    fn remove_addresses(&self, out: &mut Outputs) {
        for address in self.config.held().filter(|one| !self.kept.contains(&one.address)) {
            self.remove_address(address, out);
        }
    }

    /// Takes another configuration of the same virtual router.
    pub(super) fn reconfigure(&mut self, new: InstanceConfig, now: Instant, out: &mut Outputs) {
        if new == self.config {
            return;
        }
        let old = std::mem::replace(&mut self.config, new);
        let held: Vec<VirtualAddress> = self.config.held().cloned().collect();
        let gone = old.held().filter(|one| !held.contains(one));
        for address in gone.filter(|one| !self.kept.contains(&one.address)) {
            self.announcer.forget(address);
            if self.state == State::Master {
                self.remove_address(address, out);
            }
        }
        if self.state == State::Master {
            let added: Vec<VirtualAddress> =
                held.into_iter().filter(|one| old.held().all(|other| other != one)).collect();
            self.add_addresses(&added, self.config.announce.repeat, now, out);
            self.deadline = Some(now);
        } else if self.state == State::Backup {
            if self.config.version == Version::V2 || self.master.is_none() {
                self.master_interval = self.config.interval;
            }
            let patience = now + self.master_down();
            self.deadline = self.deadline.map(|deadline| deadline.min(patience));
        }
    }

    /// RFC 3768 §6.1 in version 2: in seconds, whatever the interval.
    fn skew(&self) -> Duration {
        let unit = match self.config.version {
            Version::V2 => Duration::from_secs(1),
            Version::V3 => self.master_interval,
        };
        unit * (256 - u32::from(self.priority)) / 256
    }

    /// Returns how long a backup waits for the master's next advertisement.
    fn master_down(&self) -> Duration {
        self.master_interval * self.config.down_adverts + self.skew()
    }

    /// Tells whether a master has been silent for so long that another may be master.
    fn has_overslept(&self, now: Instant) -> bool {
        let silence = self.config.interval * self.config.down_adverts;
        self.last_advert.is_some_and(|last| now >= last + silence)
    }

    /// Tells whether `now` is so far behind what was due that the process cannot have run.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        let grace = match self.state {
            State::Master => self.config.interval,
            State::Backup => self.master_interval,
            State::Initialize | State::Fault | State::Stopped => return false,
        };
        self.deadline.is_some_and(|deadline| now >= deadline + grace)
    }

    /// Returns the next moment to be called, and why.
    pub(super) fn due(&self) -> Option<(Instant, &'static str)> {
        let deadline = match self.state {
            State::Master => self.deadline.map(|deadline| (deadline, "advertisement")),
            State::Backup => self.deadline.map(|deadline| (deadline, "master down")),
            State::Initialize | State::Fault | State::Stopped => None,
        };
        let announcement = self.announcer.due().map(|due| (due, "announcement"));
        deadline.into_iter().chain(announcement).min()
    }

    pub(super) fn log(&self, event: Event, out: &mut Outputs) {
        out.push_back(Output::Log { about: self.config.name.clone(), event });
    }
}
