//! Routes and rules of masters and of the host, in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rlvs_control::routing::Entry;
use rlvs_control::vrrp::{Event, Router};

use super::Told;
use crate::route::{Error, Link, RoutingMonitor, Rtnetlink};

/// What is watched, and what the kernel refuses.
#[derive(Debug, Default)]
pub(super) struct Routing {
    monitor: Option<RoutingMonitor>,
    /// Who made what is to be put back, by the kernel's numbers.
    protocols: BTreeSet<u8>,
    /// What is missing because the kernel refuses it, which was said.
    refused: Vec<(Arc<Entry>, String)>,
}

impl Routing {
    /// Watches routes and rules, if any is put back; closes the watch if none is.
    pub(super) fn watch(&mut self, router: &Router) -> Result<(), Error> {
        let of_instances = router.instances().flat_map(|config| &config.routing);
        let all: Vec<&Arc<Entry>> = of_instances.chain(&router.fixed().routing).collect();
        let tracked = all.iter().filter(|one| one.is_tracked());
        self.protocols = tracked.map(|one| one.protocol()).collect();
        self.refused.retain(|(entry, _)| all.contains(&entry));
        match (self.protocols.is_empty(), &self.monitor) {
            (true, _) => self.monitor = None,
            (false, Some(_)) => {}
            (false, None) => self.monitor = Some(RoutingMonitor::open()?),
        }
        Ok(())
    }

    /// Returns what to wait for.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.monitor.as_ref().map(RoutingMonitor::as_fd)
    }

    /// Takes notices, and tells whether something may have been taken away that is put back.
    pub(super) fn has_lost(&self) -> bool {
        self.monitor.as_ref().is_some_and(|monitor| monitor.has_lost(&self.protocols))
    }

    /// Adds an entry; returns what is to be told of it. What the kernel refuses is told once, for as
    /// long as the reason is the same.
    pub(super) fn add(
        &mut self,
        route: &mut Rtnetlink,
        links: &BTreeMap<Arc<str>, Link>,
        about: Arc<str>,
        entry: Arc<Entry>,
        again: bool,
    ) -> Option<Told> {
        let index = |name: &str| links.get(name).map(|link| link.index);
        let known = self.refused.iter().position(|(one, _)| *one == entry);
        match route.add_entry(&entry, index) {
            Err(error) if error.refusal() != Some(libc::EEXIST) => {
                let why = reason(&error);
                let said =
                    known.and_then(|at| self.refused.get(at)).is_some_and(|one| one.1 == why);
                if said {
                    return None;
                }
                known.map(|at| self.refused.remove(at));
                let whose = if about.is_empty() { String::new() } else { format!("{about}: ") };
                let place = entry.line().map_or(String::new(), |place| format!("{place}: "));
                let what = format!("{place}{whose}{entry} is not there: {why}");
                self.refused.push((entry, why));
                Some(Told::Failed { what })
            }
            outcome => {
                let was_refused = known.map(|at| self.refused.remove(at)).is_some();
                let restored = again && outcome.is_ok() && !was_refused;
                restored.then_some(Told::Log { about, event: Event::RoutingRestored { entry } })
            }
        }
    }

    /// Removes an entry.
    pub(super) fn remove(
        &mut self,
        route: &mut Rtnetlink,
        links: &BTreeMap<Arc<str>, Link>,
        entry: &Arc<Entry>,
    ) -> Result<(), Error> {
        self.refused.retain(|(one, _)| one != entry);
        match route.delete_entry(entry, |name| links.get(name).map(|link| link.index)) {
            // It has gone with its interface.
            Err(Error::NoLink(_)) => Ok(()),
            removed => removed,
        }
    }
}

fn reason(error: &Error) -> String {
    let refused = match error {
        Error::Netlink { source, .. } => source as &dyn std::error::Error,
        other => return other.to_string(),
    };
    let number = refused.source().map_or(String::new(), |source| format!(" ({source})"));
    format!("{refused}{number}")
}
