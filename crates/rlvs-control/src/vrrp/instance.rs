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

use rlvs_wire::vrrp::{OWNER, RESIGN, Version};

use super::announce::Announcer;
use super::config::{InstanceConfig, VirtualAddress};
use super::event::{Event, LinkState, Output, State, Who, Why};
use super::receive::Counters;
use super::routing;
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
    pub(super) heard: Option<(u8, Instant)>,
    pub(super) source: Option<IpAddr>,
    pub(super) link: LinkState,
    pub(super) macs: BTreeMap<Arc<str>, [u8; 6]>,
    pub(super) announcer: Announcer,
    /// Number of the last IPv4 packet.
    pub(super) identification: u16,
    /// In `Master` the next advertisement, in `Backup` the end of patience.
    pub(super) deadline: Option<Instant>,
    /// The interval of the master, or ours.
    pub(super) master_interval: Duration,
    /// When a master of lower priority was let be long enough.
    pub(super) preempt_at: Option<Instant>,
    pub(super) last_advert: Option<Instant>,
    /// When a lower priority was last answered with announcements.
    pub(super) answered: Option<Instant>,
    /// Of whom it was said that its priority is lower.
    pub(super) lower_told: Option<IpAddr>,
    /// The last list of addresses that differed.
    pub(super) differing: Option<Vec<u8>>,
    /// Addresses that were the interface's own before we came: an owner's.
    kept: BTreeSet<IpAddr>,
    /// An earlier process was cut off as master; it had been silent for so long at this moment. Until
    /// it is known that another has taken over, its addresses stay.
    left_behind: Option<(Duration, Instant)>,
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
            left_behind: None,
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
            (State::Initialize, Ability::Able) if self.resumes(now) => {
                self.transition(State::Master, Why::Resumed, now, out);
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
        } else if to != State::Master
            && (to != State::Backup || self.left_behind.is_none())
            && (self.left_behind.take().is_some() || from == State::Initialize)
        {
            // What an earlier process left behind.
            self.remove_held(out);
        }
        (self.deadline, self.preempt_at, self.lower_told) = (None, None, None);
        (self.answered, self.master_interval) = (None, self.config.interval);
        match to {
            State::Master => {
                self.left_behind = None;
                self.enter_master(now, out);
            }
            State::Backup => self.deadline = Some(now + self.master_down()),
            State::Initialize | State::Fault | State::Stopped => self.master = None,
        }
        let who = Who::Instance(self.config.name.clone());
        out.push_back(Output::Notify { who, state: to, priority: self.priority });
        self.log(Event::Transition { from, to, why }, out);
    }

    /// Takes note of an earlier process that was cut off as master.
    pub(super) fn left_behind(&mut self, silent: Duration, now: Instant) {
        if self.state == State::Initialize {
            self.left_behind = Some((silent, now));
        }
    }

    /// Tells whether an earlier process was master until so recently that nobody else can be.
    fn resumes(&self, now: Instant) -> bool {
        let patience = self.config.interval * self.config.down_adverts;
        self.left_behind.is_some_and(|(silent, then)| silent + (now - then) < patience)
    }

    /// Lets go of what an earlier process left behind: another is master.
    pub(super) fn let_go(&mut self, out: &mut Outputs) {
        if self.left_behind.take().is_some() {
            self.remove_held(out);
        }
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
        routing::add(&self.config.name, &self.config.routing, out);
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
        self.remove_held(out);
        self.last_advert = None;
    }

    /// Sends an advertisement and sets the time for the next.
    pub(super) fn advertise(&mut self, now: Instant, out: &mut Outputs) {
        self.send_advert(self.priority, now, out);
        self.deadline = Some(now + self.config.interval);
    }

    /// Removes all that only a master has.
    fn remove_held(&self, out: &mut Outputs) {
        routing::remove(&self.config.name, &self.config.routing, out);
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
        let is_master = self.state == State::Master;
        if is_master {
            routing::remove_others(&self.config.name, &old.routing, &self.config.routing, out);
        }
        let held: Vec<VirtualAddress> = self.config.held().cloned().collect();
        let gone = old.held().filter(|one| !held.contains(one));
        for address in gone.filter(|one| !self.kept.contains(&one.address)) {
            self.announcer.forget(address);
            if is_master {
                self.remove_address(address, out);
            }
        }
        if is_master {
            let added: Vec<VirtualAddress> =
                held.into_iter().filter(|one| old.held().all(|other| other != one)).collect();
            self.add_addresses(&added, self.config.announce.repeat, now, out);
            routing::add_others(&self.config.name, &self.config.routing, &old.routing, out);
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
    pub(super) fn skew(&self) -> Duration {
        let unit = match self.config.version {
            Version::V2 => Duration::from_secs(1),
            Version::V3 => self.master_interval,
        };
        unit * (256 - u32::from(self.priority)) / 256
    }

    /// Returns how long a backup waits for the master's next advertisement.
    pub(super) fn master_down(&self) -> Duration {
        self.master_interval * self.config.down_adverts + self.skew()
    }

    /// Tells whether a master has been silent for so long that another may be master.
    pub(super) fn has_overslept(&self, now: Instant) -> bool {
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
