//! Virtual servers and checks: what `keepalived` does besides VRRP.
//!
//! [`Checks`] joins health (which attempts, which destinations), the runner that carries attempts out,
//! and the table. Its owner calls [`Checks::turn`] in a loop and tells what [`Checks::poll_event`]
//! returns; scripts and mails that an event names are the owner's to carry out.

mod config;
mod dns;
mod event;
mod keeper;
mod probe;
pub mod reply;
mod report;
pub mod request;
pub mod runner;
mod tell;
mod tls;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rlvs_conf::desired::Desired;
use rlvs_control::checks::{Health, Input, Output};
use rlvs_control::model::{Service, ServiceId, Timeouts};
use rlvs_control::table::Error;
use rlvs_control::upkeep::Report;

use config::{Config, Known};
pub use event::{Event, Kind};
pub use keeper::Open;
use keeper::{Keeper, Manner, Wish};
use request::Request;
use runner::Runner;

/// Virtual servers, their checks, and the table.
pub struct Checks {
    health: Health<Request>,
    known: BTreeMap<String, Known>,
    runner: Runner,
    keeper: Keeper,
    events: VecDeque<Event>,
    /// What the table refused when it was last asked.
    refused: BTreeSet<String>,
    /// Time-outs of connections that were last asked for.
    timeouts: Timeouts,
    /// When the ticks began at which checks begin.
    began: Instant,
}

/// Checks begin at ticks of so much, so that many do not wake this thread one by one.
const TICK: Duration = Duration::from_millis(20);

impl Checks {
    /// Begins with what a configuration says about virtual servers. The seed sets checks apart.
    ///
    /// # Errors
    /// The kernel has no descriptor for us.
    pub fn new(desired: &Desired, open: Open, seed: u64) -> io::Result<Self> {
        let Config { health, services, events, .. } = config::read(desired);
        let now = Instant::now();
        let timeouts = config::timeouts(desired);
        let mut checks = Self {
            health: Health::new(health, seed, now),
            known: services,
            runner: Runner::new()?,
            keeper: Keeper::new(open)?,
            events: events.into(),
            refused: BTreeSet::new(),
            timeouts,
            began: now,
        };
        checks.runner.wake_by(checks.keeper.reported())?;
        checks.keeper.removal(config::removal(desired));
        checks.tell_start(desired.global.initial_notifies);
        checks.drain(now);
        // Behind the services, which are no others then.
        checks.keeper.manner(Manner { timeouts, flush: desired.global.flush });
        Ok(checks)
    }

    /// Takes another configuration. What is the same in both goes on as it was.
    pub fn reload(&mut self, desired: &Desired) {
        let now = Instant::now();
        let Config { health, services, events, .. } = config::read(desired);
        self.events.extend(events);
        let timeouts = config::timeouts(desired);
        if std::mem::replace(&mut self.timeouts, timeouts) != timeouts {
            self.keeper.manner(Manner { timeouts, flush: false });
        }
        self.keeper.removal(config::removal(desired));
        let before = std::mem::replace(&mut self.known, services);
        self.health.reload(health, now);
        let wanted = ids(&self.known);
        let gone = ids(&before).into_iter().filter(|id| !wanted.contains(id));
        self.keeper.wish(gone.map(|id| (id, None)).collect());
        self.drain(now);
    }

    /// Returns the services whose checks rest while none of these addresses is on this host.
    pub fn suspendable(&self) -> impl Iterator<Item = (&str, &[IpAddr])> {
        let services = self.known.iter().map(|(name, known)| (&**name, &*known.suspend));
        services.filter(|(_, addresses)| !addresses.is_empty())
    }

    /// Lets the checks of a service rest or go on (`ha_suspend`).
    pub fn suspend(&mut self, service: &str, suspended: bool) {
        let now = Instant::now();
        self.health.handle(Input::Suspended(service.to_owned(), suspended), now);
        self.drain(now);
    }

    /// Waits until there is something to do, at most until a moment, and does it.
    ///
    /// # Errors
    /// The kernel refused to wait.
    pub fn turn(&mut self, until: Option<Instant>) -> io::Result<()> {
        let at = [until, self.poll_timeout()].into_iter().flatten().min();
        let finished = self.runner.wait(at)?;
        let now = Instant::now();
        for (id, attempt, outcome) in finished {
            self.health.handle(Input::Finished(id, attempt, outcome), now);
        }
        self.health.handle_timeout(now);
        self.drain(now);
        while let Some(report) = self.keeper.poll_report() {
            self.take_report(report);
        }
        Ok(())
    }

    /// Returns when [`Self::turn`] must be called, if its descriptor is not ready before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let health = self.health.poll_timeout().map(|(at, _)| tick(self.began, at));
        [health, self.runner.poll_timeout()].into_iter().flatten().min()
    }

    /// Returns what is to be told next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns a line for each service and each of its servers: how they are.
    pub fn status(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, known) in &self.known {
            let quorum = if self.health.has_quorum(name) { "has" } else { "lacks" };
            lines.push(format!("VS {name}: {quorum} its quorum"));
            let serving = self.health.destinations(name);
            for id in self.health.servers(name) {
                let state = match self.health.is_up(name, id) {
                    Some(true) => "up",
                    Some(false) => "down",
                    None => continue,
                };
                let weight = serving.iter().find(|to| to.id == id).map(|to| to.weight);
                let place = weight
                    .map_or("not in the table".to_owned(), |weight| format!("weight {weight}"));
                let server = tell::server_of(id, known.protocol);
                lines.push(format!("RS {server} of VS {name}: {state}, {place}"));
            }
        }
        lines
    }

    /// Returns the health of the servers.
    pub fn health(&self) -> &Health<Request> {
        &self.health
    }

    /// Ends: tells what wants to be told at the end, and unless they are to be kept removes the
    /// services from the table.
    pub fn stop(&mut self, keep: bool) {
        self.tell_stop();
        if keep {
            return;
        }
        self.keeper.wish(ids(&self.known).into_iter().map(|id| (id, None)).collect());
        self.keeper.end();
        while let Some(report) = self.keeper.poll_report() {
            self.take_report(report);
        }
    }

    fn drain(&mut self, now: Instant) {
        let mut wishes = Vec::new();
        while let Some(output) = self.health.poll_output() {
            match output {
                Output::Start(id, attempt) => {
                    if let Some(request) = self.health.request(id).cloned() {
                        self.runner.start(id, attempt, request, now);
                    }
                }
                Output::Cancel(id) => self.runner.cancel(id),
                Output::Pool(name) => self.wish(&name, &mut wishes),
                Output::Event(event) => self.tell(event),
            }
        }
        self.runner.look(now);
        if !wishes.is_empty() {
            self.keeper.wish(wishes);
        }
    }

    fn wish(&self, name: &str, wishes: &mut Vec<Wish>) {
        let Some(known) = self.known.get(name) else { return };
        let destinations = self.health.destinations(name);
        let wish = |table: &Service| (table.id, Some((table.clone(), destinations.clone())));
        wishes.extend(known.tables.iter().map(wish));
    }

    fn take_report(&mut self, outcome: Result<Report, Error>) {
        let mut refused = BTreeSet::new();
        match outcome {
            Ok(report) => {
                self.tell_foreign(&report.foreign);
                self.tell_drained(&report);
                let carried = Some(report.done.len()).filter(|&changes| changes > 0);
                self.events.extend(carried.map(tell::carried));
                for (change, error) in &report.refused {
                    let event = tell::refused(change, error);
                    refused.insert(event.to_string());
                    self.tell_once(event);
                }
            }
            Err(error) => {
                let event = tell::unreadable(&error);
                refused.insert(event.to_string());
                self.tell_once(event);
            }
        }
        self.refused = refused;
    }

    fn tell_once(&mut self, event: Event) {
        if !self.refused.contains(&event.to_string()) {
            self.events.push_back(event);
        }
    }
}

/// Returns the first tick that is not before a moment.
fn tick(began: Instant, at: Instant) -> Instant {
    let nanoseconds = at.saturating_duration_since(began).as_nanos();
    let ticks = nanoseconds.div_ceil(TICK.as_nanos());
    u32::try_from(ticks).map_or(at, |ticks| began + TICK * ticks)
}

/// Returns every service of a table that virtual servers stand for.
fn ids(known: &BTreeMap<String, Known>) -> BTreeSet<ServiceId> {
    known.values().flat_map(|known| &known.tables).map(|table| table.id).collect()
}

impl AsFd for Checks {
    /// Returns the descriptor that is readable when [`Self::turn`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.runner.as_fd()
    }
}
