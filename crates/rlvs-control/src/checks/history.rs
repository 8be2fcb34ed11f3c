//! What has become of checks, servers and services so far, for those who look.

use std::time::{Duration, Instant};

use super::checker::{Outcome, Timing};
use super::{CheckState, Health, Quorum, ServerState, ServiceState, Sorry};
use crate::model::Destination;

/// What is remembered of a check.
#[derive(Clone, Debug)]
pub(super) struct CheckHistory {
    /// When it began, or last went up or down.
    pub(super) since: Instant,
    /// When the attempt that runs began.
    begun: Option<Instant>,
    last: Option<Last>,
    attempts: u64,
    failures: u64,
}

/// How the last attempt of a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// When it ended.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What it came to.
    pub outcome: Outcome,
}

impl CheckHistory {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, begun: None, last: None, attempts: 0, failures: 0 }
    }

    /// Takes note of the beginning of an attempt.
    pub(super) fn begins(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// Takes note of how an attempt ended.
    pub(super) fn ended(&mut self, outcome: &Outcome, changed: bool, now: Instant) {
        let took = self.begun.take().map_or(Duration::ZERO, |begun| now - begun);
        self.attempts += 1;
        self.failures += u64::from(matches!(outcome, Outcome::Bad(_)));
        self.last = Some(Last { at: now, took, outcome: outcome.clone() });
        if changed {
            self.since = now;
        }
    }
}

/// What is remembered of a server, or of a service's quorum.
#[derive(Clone, Debug)]
pub(super) struct History {
    since: Instant,
    downs: u64,
    why: Option<String>,
}

impl History {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, downs: 0, why: None }
    }

    /// Takes note of a change for the better.
    pub(super) fn rises(&mut self, now: Instant) {
        (self.since, self.why) = (now, None);
    }

    /// Takes note of a change for the worse.
    pub(super) fn falls(&mut self, why: Option<String>, now: Instant) {
        (self.since, self.why) = (now, why);
        self.downs += 1;
    }
}

/// How a service is.
#[derive(Debug)]
pub struct ServiceReport<'a, R> {
    /// Its name.
    pub name: &'a str,
    /// What it asks for.
    pub quorum: Quorum,
    /// Whether it has its quorum.
    pub has_quorum: bool,
    /// Since when.
    pub since: Instant,
    /// How often it has lost it.
    pub losses: u64,
    /// The sum of weights of its good servers.
    pub weight: u64,
    /// The sum at which a lost quorum is gained.
    pub gained_at: u64,
    /// Who serves without a quorum.
    pub sorry: Option<Sorry>,
    /// Whether its checks rest.
    pub suspended: bool,
    /// Its servers, in the order of the configuration.
    pub servers: Vec<ServerReport<'a, R>>,
}

/// How a server is.
#[derive(Debug)]
pub struct ServerReport<'a, R> {
    /// As it is configured.
    pub destination: Destination,
    /// The weight that it has while it is good.
    pub weight: u32,
    /// Whether all its checks are good.
    pub up: bool,
    /// Since when.
    pub since: Instant,
    /// How often it went down.
    pub downs: u64,
    /// Why it is down, if it has ever been up.
    pub why: Option<&'a str>,
    /// It stays with weight 0 when it is not good.
    pub inhibit: bool,
    /// Its checks, in the order of the configuration.
    pub checks: Vec<CheckReport<'a, R>>,
}

/// How a check is.
#[derive(Debug)]
pub struct CheckReport<'a, R> {
    /// What an attempt does.
    pub request: &'a R,
    /// When, and what is concluded.
    pub timing: &'a Timing,
    /// Whether the server is good, as far as this check can tell.
    pub up: bool,
    /// Since when.
    pub since: Instant,
    /// Attempts that have ended.
    pub attempts: u64,
    /// Those of them that said that the server is bad.
    pub failures: u64,
    /// The last of them.
    pub last: Option<&'a Last>,
    /// Good rounds in a row of a check that is down, bad ones of one that is up.
    pub rounds: u32,
}

impl<R> Health<R> {
    /// Returns how every service is, in the order of the configuration.
    pub fn report(&self) -> impl Iterator<Item = ServiceReport<'_, R>> {
        self.services.iter().map(ServiceState::report)
    }
}

impl<R> ServiceState<R> {
    fn report(&self) -> ServiceReport<'_, R> {
        ServiceReport {
            name: &self.name,
            quorum: self.quorum,
            has_quorum: self.held,
            since: self.history.since,
            losses: self.history.downs,
            weight: self.good_weight(),
            gained_at: self.quorum.gained_at(self.configured_weight()),
            sorry: self.sorry,
            suspended: self.suspended,
            servers: self.servers.iter().map(ServerState::report).collect(),
        }
    }
}

impl<R> ServerState<R> {
    fn report(&self) -> ServerReport<'_, R> {
        ServerReport {
            destination: self.destination,
            weight: self.weight(),
            up: self.is_up(),
            since: self.history.since,
            downs: self.history.downs,
            why: self.history.why.as_deref(),
            inhibit: self.inhibit,
            checks: self.checks.iter().map(CheckState::report).collect(),
        }
    }
}

impl<R> CheckState<R> {
    fn report(&self) -> CheckReport<'_, R> {
        CheckReport {
            request: &self.check.request,
            timing: &self.check.timing,
            up: self.checker.up,
            since: self.history.since,
            attempts: self.history.attempts,
            failures: self.history.failures,
            last: self.history.last.as_ref(),
            rounds: self.checker.rounds(),
        }
    }
}
