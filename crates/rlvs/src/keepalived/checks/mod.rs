//! Virtual servers and checks: what `keepalived` does besides VRRP.
//!
//! [`Checks`] joins health (which attempts, which destinations), the runner that carries attempts out,
//! and the table. Its owner calls [`Checks::turn`] in a loop and tells what [`Checks::poll_event`]
//! returns; scripts and mails that an event names are the owner's to carry out.

mod config;
mod event;
mod probe;
pub mod reply;
pub mod request;
pub mod runner;
mod tell;
mod tls;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rlvs_conf::desired::Desired;
use rlvs_control::checks::{Health, Input, Output};
use rlvs_control::model::ServiceId;
use rlvs_control::table::{Error, Table};
use rlvs_control::upkeep::{Report, Upkeep};

use config::{Config, Known};
pub use event::{Event, Kind};
use request::Request;
use runner::Runner;

/// Opens the table for one batch of changes: whoever has it open keeps others out.
pub type Open = Box<dyn FnMut() -> Result<Box<dyn Table>, Error> + Send>;

/// How often the table is held against what it should be.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Looking at a large table takes no more than one part of the time in this many.
const LOOK_SHARE: u32 = 50;
/// When what the table has refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Virtual servers, their checks, and the table.
pub struct Checks {
    health: Health<Request>,
    known: BTreeMap<String, Known>,
    runner: Runner,
    upkeep: Upkeep,
    open: Open,
    events: VecDeque<Event>,
    /// What the table refused when it was last asked.
    refused: BTreeSet<String>,
    look_at: Instant,
    retry_at: Option<Instant>,
}

impl Checks {
    /// Begins with what a configuration says about virtual servers. The seed sets checks apart.
    ///
    /// # Errors
    /// The kernel has no descriptor for us.
    pub fn new(desired: &Desired, open: Open, seed: u64) -> io::Result<Self> {
        let Config { health, services, events } = config::read(desired);
        let now = Instant::now();
        let mut checks = Self {
            health: Health::new(health, seed, now),
            known: services,
            runner: Runner::new()?,
            upkeep: Upkeep::default(),
            open,
            events: events.into(),
            refused: BTreeSet::new(),
            look_at: now + LOOK_INTERVAL,
            retry_at: None,
        };
        checks.tell_start(desired.global.initial_notifies);
        checks.drain(now);
        Ok(checks)
    }

    /// Takes another configuration. What is the same in both goes on as it was.
    pub fn reload(&mut self, desired: &Desired) {
        let now = Instant::now();
        let Config { health, services, events } = config::read(desired);
        self.events.extend(events);
        self.known = services;
        self.health.reload(health, now);
        let wanted: BTreeSet<ServiceId> =
            self.known.values().flat_map(|known| &known.tables).map(|table| table.id).collect();
        let gone: Vec<_> = self.upkeep.services().filter(|id| !wanted.contains(id)).collect();
        for id in gone {
            self.upkeep.want(id, None);
        }
        self.drain(now);
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
        let next = self.poll_timeout();
        let at = until.map_or(next, |until| until.min(next));
        let finished = self.runner.wait(Some(at))?;
        let now = Instant::now();
        for (id, attempt, outcome) in finished {
            self.health.handle(Input::Finished(id, attempt, outcome), now);
        }
        self.health.handle_timeout(now);
        self.drain(now);
        self.maintain(now);
        Ok(())
    }

    /// Returns when [`Self::turn`] must be called, if its descriptor is not ready before.
    pub fn poll_timeout(&self) -> Instant {
        let maintain = self.maintain_at();
        match self.health.poll_timeout() {
            Some((at, _)) => at.min(maintain),
            None => maintain,
        }
    }

    /// Returns what is to be told next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
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
        let all: Vec<_> = self.upkeep.services().collect();
        for id in all {
            self.upkeep.want(id, None);
        }
        self.maintain(Instant::now());
    }

    fn drain(&mut self, now: Instant) {
        while let Some(output) = self.health.poll_output() {
            match output {
                Output::Start(id, attempt) => {
                    if let Some(request) = self.health.request(id).cloned() {
                        self.runner.start(id, attempt, request, now);
                    }
                }
                Output::Cancel(id) => self.runner.cancel(id),
                Output::Pool(name) => self.want(&name),
                Output::Event(event) => self.tell(event),
            }
        }
    }

    fn want(&mut self, name: &str) {
        let Some(known) = self.known.get(name) else { return };
        let destinations = self.health.destinations(name);
        for table in &known.tables {
            self.upkeep.want(table.id, Some((table.clone(), destinations.clone())));
        }
    }

    fn maintain_at(&self) -> Instant {
        match self.retry_at {
            Some(at) => at.min(self.look_at),
            None if self.upkeep.is_dirty() => Instant::now(),
            None => self.look_at,
        }
    }

    /// Brings the table to what it should be, if it may differ.
    fn maintain(&mut self, now: Instant) {
        let look = self.look_at <= now;
        let retry = self.retry_at.is_none_or(|at| at <= now);
        if !look && !(retry && self.upkeep.is_dirty()) {
            return;
        }
        let outcome = (self.open)().and_then(|mut table| {
            if look { self.upkeep.reconcile(&mut *table) } else { self.upkeep.apply(&mut *table) }
        });
        let after = Instant::now();
        if look {
            self.look_at = after + LOOK_INTERVAL.max((after - now) * LOOK_SHARE);
        }
        self.take_report(outcome);
        self.retry_at = self.upkeep.is_dirty().then_some(after + RETRY_INTERVAL);
    }

    fn take_report(&mut self, outcome: Result<Report, Error>) {
        let mut refused = BTreeSet::new();
        match outcome {
            Ok(report) => {
                report.foreign.iter().for_each(|change| self.tell_foreign(change));
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

impl AsFd for Checks {
    /// Returns the descriptor that is readable when [`Self::turn`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.runner.as_fd()
    }
}
