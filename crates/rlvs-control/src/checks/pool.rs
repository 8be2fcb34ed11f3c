//! Which destinations a service should have.

use super::{Health, ServerState, ServiceState};
use crate::model::{Destination, DestinationId};

impl<R> ServerState<R> {
    /// Returns whether all its checks are good.
    pub(super) fn is_up(&self) -> bool {
        self.checks.iter().all(|check| check.checker.up)
    }

    /// Returns its weight while it is good.
    pub(super) fn weight(&self) -> u32 {
        self.asked.unwrap_or(self.destination.weight)
    }

    /// Returns its place in the table, if it has one. Who is good and may not serve has weight 0: its
    /// connections go on.
    fn destination(&self, serves: bool) -> Option<Destination> {
        let weight = if serves && self.is_up() { self.weight() } else { 0 };
        let there = self.inhibit || self.is_up();
        there.then_some(Destination { weight, ..self.destination })
    }
}

impl<R> ServiceState<R> {
    /// Returns the sum of weights of good servers.
    pub(super) fn good_weight(&self) -> u64 {
        let good = self.servers.iter().filter(|server| server.is_up());
        good.map(|server| u64::from(server.weight())).sum()
    }

    /// Returns the sum of the weights that the servers are configured with.
    pub(super) fn configured_weight(&self) -> u64 {
        self.servers.iter().map(|server| u64::from(server.destination.weight)).sum()
    }

    fn destinations(&self) -> Vec<Destination> {
        let sorry_serves = !self.held && self.sorry.is_some();
        let mut pool: Vec<Destination> =
            self.servers.iter().filter_map(|to| to.destination(!sorry_serves)).collect();
        let Some(sorry) = self.sorry.filter(|sorry| sorry_serves || sorry.inhibit) else {
            return pool;
        };
        let weight = if sorry_serves { sorry.destination.weight } else { 0 };
        match pool.iter_mut().find(|to| to.id == sorry.destination.id) {
            // A real server may be the sorry server too.
            Some(same) => same.weight = same.weight.max(weight),
            None => pool.push(Destination { weight, ..sorry.destination }),
        }
        pool
    }
}

impl<R> Health<R> {
    /// Returns the destinations that a service should have, in the order of its configuration.
    pub fn destinations(&self, service: &str) -> Vec<Destination> {
        self.service(service).map(ServiceState::destinations).unwrap_or_default()
    }

    /// Returns whether a service has its quorum.
    pub fn has_quorum(&self, service: &str) -> bool {
        self.service(service).is_some_and(|service| service.held)
    }

    /// Returns the servers of a service, in the order of its configuration.
    pub fn servers(&self, service: &str) -> impl Iterator<Item = DestinationId> {
        let servers = self.service(service).into_iter().flat_map(|service| &service.servers);
        servers.map(|server| server.destination.id)
    }

    /// Returns whether a server is good; `None` if it is not known.
    pub fn is_up(&self, service: &str, server: DestinationId) -> Option<bool> {
        let servers = &self.service(service)?.servers;
        servers.iter().find(|to| to.destination.id == server).map(ServerState::is_up)
    }

    fn service(&self, name: &str) -> Option<&ServiceState<R>> {
        self.services.get(*self.names.get(name)?)
    }
}
