//! Taking another configuration: what is the same goes on as it was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::checker::{Checker, FIRST_ROUND_MAX};
use super::history::{CheckHistory, History};
use super::{
    Check, CheckId, CheckState, Health, Output, Place, Server, ServerState, Service, ServiceState,
};
use crate::model::DestinationId;

impl<R: Clone + PartialEq> Health<R> {
    /// Takes new services. What is the same goes on: state, counts, timers and running attempts of
    /// checks that are in both, weights, quorums.
    pub fn reload(&mut self, services: Vec<Service<R>>, now: Instant) {
        let old = std::mem::take(&mut self.services);
        let mut old: BTreeMap<String, ServiceState<R>> =
            old.into_iter().map(|service| (service.name.clone(), service)).collect();
        for service in services {
            let before = old.remove(&service.name);
            let state = self.service_state(service, before, now);
            self.services.push(state);
        }
        for (name, gone) in old {
            self.forget(gone.servers.into_iter().flat_map(|server| server.checks));
            self.outputs.push_back(Output::Pool(name));
        }
        self.find_places();
        for at in 0..self.services.len() {
            self.judge(at, now);
            self.outputs.push_back(Output::Pool(self.services[at].name.clone()));
        }
    }

    fn find_places(&mut self) {
        let servers = self.services.iter().flat_map(|service| &service.servers);
        let number = servers.map(|server| server.checks.len()).sum();
        self.places = Vec::with_capacity(number);
        self.names.clear();
        let index = |at: usize| u32::try_from(at).expect("as many have no room in memory");
        for (at, service) in self.services.iter().enumerate() {
            self.names.insert(service.name.clone(), at);
            for (server, state) in service.servers.iter().enumerate() {
                for (check, state) in state.checks.iter().enumerate() {
                    let (service, server) = (index(at), index(server));
                    let place = Place { service, server, check: index(check) };
                    self.places.push((state.id, place));
                }
            }
        }
        self.places.sort_unstable_by_key(|&(id, _)| id);
    }

    fn service_state(
        &mut self,
        service: Service<R>,
        before: Option<ServiceState<R>>,
        now: Instant,
    ) -> ServiceState<R> {
        let Service { name, quorum, sorry, servers } = service;
        let held = before.as_ref().is_none_or(|before| before.held);
        let suspended = before.as_ref().is_some_and(|before| before.suspended);
        let history = before.as_ref().map(|before| before.history.clone());
        let history = history.unwrap_or_else(|| History::new(now));
        let mut old: BTreeMap<DestinationId, ServerState<R>> = before
            .into_iter()
            .flat_map(|before| before.servers)
            .map(|server| (server.destination.id, server))
            .collect();
        let servers = servers
            .into_iter()
            .map(|server| {
                let before = old.remove(&server.destination.id);
                self.server_state(server, before, suspended, now)
            })
            .collect();
        self.forget(old.into_values().flat_map(|server| server.checks));
        ServiceState { name, quorum, sorry, servers, held, suspended, history }
    }

    fn server_state(
        &mut self,
        server: Server<R>,
        before: Option<ServerState<R>>,
        suspended: bool,
        now: Instant,
    ) -> ServerState<R> {
        let Server { destination, inhibit, checks } = server;
        let same = before.as_ref().is_some_and(|old| old.destination.weight == destination.weight);
        let asked = before.as_ref().and_then(|old| old.asked).filter(|_| same);
        let known = before.is_some();
        let was_up = before.as_ref().is_none_or(|old| old.checks.iter().all(|c| c.checker.up));
        let history = before.as_ref().map(|old| old.history.clone());
        let history = history.unwrap_or_else(|| History::new(now));
        let mut old = before.map(|old| old.checks).unwrap_or_default();
        let checks = checks
            .into_iter()
            .map(|check| {
                let same = old.iter().position(|old| old.check.request == check.request);
                if let Some(at) = same {
                    return CheckState { check, ..old.swap_remove(at) };
                }
                // A server that is known keeps its state until a new check has looked.
                let up = if known { was_up } else { !check.starts_down };
                self.check_state(check, up, suspended, now)
            })
            .collect();
        self.forget(old);
        ServerState { destination, inhibit, checks, asked, history }
    }

    fn check_state(
        &mut self,
        check: Check<R>,
        up: bool,
        suspended: bool,
        now: Instant,
    ) -> CheckState<R> {
        let id = CheckId(self.checks);
        self.checks += 1;
        let timing = &check.timing;
        let first = part(timing.warmup.min(FIRST_ROUND_MAX), self.seed, u64::from(id.0) * 2);
        let spread = part(timing.delay_loop, self.seed, u64::from(id.0) * 2 + 1);
        let timer = (!suspended).then_some(now + first);
        self.timers.extend(timer.map(|at| (at, id)));
        let (checker, history) = (Checker::new(up, spread), CheckHistory::new(now));
        CheckState { id, check, checker, running: None, timer, history }
    }

    fn forget(&mut self, checks: impl IntoIterator<Item = CheckState<R>>) {
        for check in checks {
            if let Some(at) = check.timer {
                self.timers.remove(&(at, check.id));
            }
            if check.running.is_some() {
                self.outputs.push_back(Output::Cancel(check.id));
            }
        }
    }
}

/// Returns the part of `whole` that belongs to a number, by the seed alone.
pub(super) fn part(whole: Duration, seed: u64, number: u64) -> Duration {
    // The finalizer of splitmix64.
    let mut bits = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = (bits ^ (bits >> 31)) >> 32;
    let nanoseconds = (whole.as_nanos() * u128::from(share)) >> 32;
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}
