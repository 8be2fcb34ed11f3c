//! Health of real servers: what to check when, and which destinations serve.
//!
//! A value without sockets, clock or threads. [`Health`] says which attempts to start
//! ([`Output::Start`]), is told how they ended ([`Health::handle`]), and keeps for each service the
//! destinations that it should have ([`Health::destinations`]). What an attempt is, `R`, only its
//! caller knows. While one server is good, or there is a sorry server, no service is without a
//! destination that takes connections, but for servers whose own weight is 0.

mod checker;
mod history;
mod pool;
mod quorum;
mod reload;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::model::{Destination, DestinationId};
use checker::Checker;
pub use checker::{FIRST_ROUND_MAX, Outcome, Timing};
use history::{CheckHistory, History};
pub use history::{CheckReport, Last, ServerReport, ServiceReport};
pub use quorum::Quorum;

/// A check. No other ever has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(pub u32);

/// An attempt of a check. No other ever has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// A service, under one name or several addresses, as far as its servers' health goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service<R> {
    /// Its name, which no other has.
    pub name: String,
    /// What must be good.
    pub quorum: Quorum,
    /// Who serves while the quorum is lost.
    pub sorry: Option<Sorry>,
    /// The servers; no two have the same address and port.
    pub servers: Vec<Server<R>>,
}

/// Serves while the quorum is lost, and is not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sorry {
    /// The server, with the weight that it has while it serves.
    pub destination: Destination,
    /// It stays, with weight 0, while it is not needed.
    pub inhibit: bool,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server<R> {
    /// The server with its configured weight.
    pub destination: Destination,
    /// When it is not good it stays, with weight 0.
    pub inhibit: bool,
    /// All must be good.
    pub checks: Vec<Check<R>>,
}

/// A check of a real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check<R> {
    /// What an attempt does.
    pub request: R,
    /// When, and what is concluded. Many checks share it.
    pub timing: Arc<Timing>,
    /// The server is down until it succeeds.
    pub starts_down: bool,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// An attempt ended.
    Finished(CheckId, AttemptId, Outcome),
    /// Checks of a service shall rest, or go on. Its servers keep their state.
    Suspended(String, bool),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Begin an attempt.
    Start(CheckId, AttemptId),
    /// End an attempt whose result is not wanted any more.
    Cancel(CheckId),
    /// The service's destinations may have changed.
    Pool(String),
    /// Tell.
    Event(Event),
}

/// Something that an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Name of the service.
    pub service: String,
    /// The server concerned, if it is one.
    pub server: Option<DestinationId>,
    /// What happened, with its cause.
    pub what: What,
}

/// What happened, with its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An attempt failed.
    Failed(CheckId, String),
    /// An attempt could not be made: this host lacks something.
    NotAsked(CheckId, String),
    /// The server is good: what was bad succeeded.
    Up,
    /// The server is bad.
    Down(String),
    /// A check has set the server's weight.
    Weight(u32),
    /// The sum of good weights has reached what is asked for.
    QuorumGained {
        /// The sum.
        sum: u64,
        /// What is asked for.
        needed: u64,
    },
    /// The sum of good weights is below what is asked for.
    QuorumLost {
        /// The sum.
        sum: u64,
        /// What is asked for.
        needed: u64,
    },
}

/// Health of all services.
///
/// Call [`Self::handle`] and [`Self::handle_timeout`] as things happen, then drain
/// [`Self::poll_output`]; [`Self::poll_timeout`] says when to call again. Time never goes back.
#[derive(Clone, Debug)]
pub struct Health<R> {
    services: Vec<ServiceState<R>>,
    names: BTreeMap<String, usize>,
    /// By the check's number.
    places: Vec<(CheckId, Place)>,
    timers: BTreeSet<(Instant, CheckId)>,
    outputs: VecDeque<Output>,
    checks: u32,
    attempts: u64,
    seed: u64,
}

/// Where a check stands: indices of service, server, check.
#[derive(Clone, Copy, Debug)]
struct Place {
    service: u32,
    server: u32,
    check: u32,
}

#[derive(Clone, Debug)]
struct ServiceState<R> {
    name: String,
    quorum: Quorum,
    sorry: Option<Sorry>,
    servers: Vec<ServerState<R>>,
    held: bool,
    suspended: bool,
    history: History,
}

#[derive(Clone, Debug)]
struct ServerState<R> {
    destination: Destination,
    inhibit: bool,
    /// Nearly every server has one, which needs no memory of its own.
    checks: SmallVec<[CheckState<R>; 1]>,
    /// Weight that a check asks for.
    asked: Option<u32>,
    history: History,
}

#[derive(Clone, Debug)]
struct CheckState<R> {
    id: CheckId,
    check: Check<R>,
    checker: Checker,
    running: Option<AttemptId>,
    timer: Option<Instant>,
    history: CheckHistory,
}

impl<R: Clone + PartialEq> Health<R> {
    /// Returns the health of `services` before anything was checked. The seed sets the checks'
    /// rounds apart.
    pub fn new(services: Vec<Service<R>>, seed: u64, now: Instant) -> Self {
        let mut health = Self {
            services: Vec::new(),
            names: BTreeMap::new(),
            places: Vec::new(),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
            checks: 0,
            attempts: 0,
            seed,
        };
        health.reload(services, now);
        health
    }

    /// Takes what has happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Finished(id, attempt, outcome) => {
                if self.check(id).is_some_and(|check| check.running == Some(attempt)) {
                    self.finished(id, outcome, now);
                }
            }
            Input::Suspended(name, suspended) => self.suspend(&name, suspended, now),
        }
    }

    /// Starts what is due, and gives up what takes too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let attempt = AttemptId(self.attempts);
            let Some(check) = self.check(id) else { continue };
            check.timer = None;
            if check.running.is_some() {
                let why = format!("no result within {:?}", check.check.timing.deadline);
                self.outputs.push_back(Output::Cancel(id));
                self.finished(id, Outcome::Bad(why), now);
                continue;
            }
            check.running = Some(attempt);
            check.history.begins(now);
            let deadline = now + check.check.timing.deadline;
            check.timer = Some(deadline);
            self.timers.insert((deadline, id));
            self.attempts += 1;
            self.outputs.push_back(Output::Start(id, attempt));
        }
    }

    /// Returns when to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.timers.first().map(|&(at, _)| (at, "a check begins or takes too long"))
    }

    /// Returns what to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns what an attempt of this check does.
    pub fn request(&self, id: CheckId) -> Option<&R> {
        let at = self.place(id)?;
        let server = self.services.get(at.service as usize)?.servers.get(at.server as usize)?;
        server.checks.get(at.check as usize).map(|check| &check.check.request)
    }

    /// Returns the names of all services.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    fn server(&mut self, id: CheckId) -> Option<(&mut ServerState<R>, usize)> {
        let at = self.place(id)?;
        let service = self.services.get_mut(at.service as usize)?;
        Some((service.servers.get_mut(at.server as usize)?, at.check as usize))
    }

    fn place(&self, id: CheckId) -> Option<Place> {
        let at = self.places.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        self.places.get(at).map(|&(_, place)| place)
    }

    fn check(&mut self, id: CheckId) -> Option<&mut CheckState<R>> {
        let (server, at) = self.server(id)?;
        server.checks.get_mut(at)
    }

    fn set_timer(&mut self, id: CheckId, to: Option<Instant>) {
        let Some(check) = self.check(id) else { return };
        let before = std::mem::replace(&mut check.timer, to);
        if let Some(before) = before {
            self.timers.remove(&(before, id));
        }
        self.timers.extend(to.map(|at| (at, id)));
    }

    fn finished(&mut self, id: CheckId, outcome: Outcome, now: Instant) {
        let Some(check) = self.check(id) else { return };
        check.running = None;
        let timing = &check.check.timing;
        let step = match &outcome {
            Outcome::Good | Outcome::Weight(_) => check.checker.finished(timing, true),
            Outcome::Bad(_) => check.checker.finished(timing, false),
            Outcome::Unknown(_) => checker::Step { pause: timing.delay_loop, changed: false },
        };
        check.history.ended(&outcome, step.changed, now);
        self.set_timer(id, Some(now + step.pause));
        if step.changed || outcome != Outcome::Good {
            self.conclude(id, outcome, step.changed, now);
        }
    }

    /// Draws a server's conclusion from an attempt that changed something or is worth telling.
    fn conclude(&mut self, id: CheckId, outcome: Outcome, changed: bool, now: Instant) {
        let Some(Place { service, .. }) = self.place(id) else { return };
        let service = service as usize;
        let Some((server, at)) = self.server(id) else { return };
        let mut told = Vec::new();
        let asked = server.asked;
        let why = match outcome {
            Outcome::Good => String::new(),
            Outcome::Weight(weight) => {
                server.asked = Some(weight);
                String::new()
            }
            Outcome::Bad(why) => {
                // The weight is the configured one again, until a check asks for another.
                server.asked = server.asked.filter(|_| !changed);
                told.push(What::Failed(id, why.clone()));
                why
            }
            Outcome::Unknown(why) => {
                told.push(What::NotAsked(id, why.clone()));
                why
            }
        };
        let others = server.checks.iter().enumerate().all(|(i, c)| i == at || c.checker.up);
        if changed && others {
            if server.is_up() {
                server.history.rises(now);
                told.push(What::Up);
            } else {
                server.history.falls(Some(why.clone()), now);
                told.push(What::Down(why));
            }
        }
        let weight = server.asked.filter(|_| server.asked != asked);
        told.extend(weight.map(What::Weight));
        let of = Some(server.destination.id);
        told.into_iter().for_each(|what| self.tell(service, of, what));
        if changed || weight.is_some() {
            self.judge(service, now);
            self.outputs.push_back(Output::Pool(self.services[service].name.clone()));
        }
    }

    fn tell(&mut self, service: usize, server: Option<DestinationId>, what: What) {
        let service = self.services[service].name.clone();
        self.outputs.push_back(Output::Event(Event { service, server, what }));
    }

    fn suspend(&mut self, name: &str, suspended: bool, now: Instant) {
        let Some(service) = self.names.get(name).and_then(|&at| self.services.get_mut(at)) else {
            return;
        };
        if std::mem::replace(&mut service.suspended, suspended) == suspended {
            return;
        }
        let ids: Vec<CheckId> =
            service.servers.iter().flat_map(|to| &to.checks).map(|check| check.id).collect();
        for id in ids {
            let running = self.check(id).and_then(|check| check.running.take());
            if running.is_some() {
                self.outputs.push_back(Output::Cancel(id));
            }
            self.set_timer(id, (!suspended).then_some(now));
        }
    }

    /// Holds a service's sum of good weights against its quorum.
    fn judge(&mut self, at: usize, now: Instant) {
        let service = &mut self.services[at];
        let (sum, total) = (service.good_weight(), service.configured_weight());
        let held = service.quorum.holds(service.held, sum, total);
        if std::mem::replace(&mut service.held, held) == held {
            return;
        }
        if held {
            service.history.rises(now);
        } else {
            service.history.falls(None, now);
        }
        let what = if held {
            What::QuorumGained { sum, needed: service.quorum.gained_at(total) }
        } else {
            What::QuorumLost { sum, needed: service.quorum.lost_below() }
        };
        self.tell(at, None, what);
    }
}
