//! Keeping a table as it should be: what differs is changed, what fails is tried again.
//!
//! Only services that are or were asked for are touched. What somebody else changed in them is
//! reported, and put right, except that a destination was drained: the table remembers what weight is
//! wanted of it and goes by 0.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{
    Destination, DestinationEntry, DestinationId, Drained, Service, ServiceEntry, ServiceId,
    Traffic,
};
use crate::plan::{Change, plan};
use crate::table::{Error, Table};

/// Destinations, each with its service.
type Named = BTreeSet<(ServiceId, DestinationId)>;

/// What came of an attempt to bring a table to what is desired.
#[derive(Debug, Default)]
pub struct Report {
    /// Changes carried out.
    pub done: Vec<Change>,
    /// Changes refused. They stay in the difference.
    pub refused: Vec<(Change, Error)>,
    /// Of what was changed, what somebody else had made necessary.
    pub foreign: Vec<Change>,
    /// Destinations that somebody has drained since the last report, or that were when the first was
    /// made.
    pub drained: Vec<(ServiceId, DestinationId)>,
    /// Destinations that are drained no longer.
    pub undrained: Vec<(ServiceId, DestinationId)>,
}

/// A service with its destinations, those first that come first in the configuration.
type Wanted = Arc<(Service, Vec<Destination>)>;

/// What a table should hold, and what was last seen to be in it.
#[derive(Debug, Default)]
pub struct Upkeep {
    desired: BTreeMap<ServiceId, Wanted>,
    /// Services as they were when last brought to what was desired.
    left: BTreeMap<ServiceId, Wanted>,
    /// Services whose table entry may differ.
    dirty: BTreeSet<ServiceId>,
    /// Destinations that were drained when last looked at, of services that are asked for.
    drained: Named,
}

impl Upkeep {
    /// Asks for a service with these destinations, or with `None` for its absence.
    pub fn want(&mut self, id: ServiceId, service: Option<(Service, Vec<Destination>)>) {
        let same = self.desired.get(&id).map(|wanted| &**wanted) == service.as_ref();
        if same && (self.left.contains_key(&id) || service.is_none()) {
            return;
        }
        match service {
            Some(service) => self.desired.insert(id, Arc::new(service)),
            None => self.desired.remove(&id),
        };
        self.dirty.insert(id);
    }

    /// Removes every service that is not asked for, and returns which those were (`lvs_flush`).
    ///
    /// # Errors
    /// The table cannot be read, or refuses.
    pub fn remove_others(&self, table: &mut dyn Table) -> Result<Vec<ServiceId>, Error> {
        let there = table.services()?.into_iter().map(|entry| entry.service.id);
        let others: Vec<ServiceId> = there.filter(|id| !self.desired.contains_key(id)).collect();
        for &id in &others {
            table.delete_service(id)?;
        }
        Ok(others)
    }

    /// Returns whether something is to be changed.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Returns whose service this is: one that is asked for.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.desired.keys().copied()
    }

    /// Brings what may differ to what is desired.
    ///
    /// # Errors
    /// The table cannot be read, and nothing was changed; or changes could not be put in force, and
    /// all is tried again.
    pub fn apply(&mut self, table: &mut dyn Table) -> Result<Report, Error> {
        let touched = std::mem::take(&mut self.dirty);
        let current = match read(table, &touched).and_then(|current| with_drained(table, current)) {
            Ok(current) => current,
            Err(error) => {
                self.dirty = touched;
                return Err(error);
            }
        };
        let (current, drained) = current;
        self.carry_out(table, touched, current, drained)
    }

    /// Looks at every service that is asked for, and puts right what differs.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn reconcile(&mut self, table: &mut dyn Table) -> Result<Report, Error> {
        let found = table.drained().and_then(|drained| {
            let different = self.different(table, &drained)?;
            Ok((different, drained))
        });
        let ((touched, current), drained) = match found {
            Ok(found) => found,
            Err(error) => {
                self.dirty.extend(self.desired.keys());
                return Err(error);
            }
        };
        self.dirty.clear();
        let drained = drained.into_iter().map(|one| (one.service, one.id)).collect();
        self.carry_out(table, touched, current, drained)
    }

    /// Returns which services may differ from what is desired, and how they are. One is read after
    /// the other: nearly all are as they should be, and need not be held at once.
    fn different(
        &self,
        table: &mut dyn Table,
        drained: &[Drained],
    ) -> Result<(BTreeSet<ServiceId>, Vec<ServiceEntry>), Error> {
        let (mut touched, mut different) = (self.dirty.clone(), Vec::new());
        let clean = self.desired.keys().filter(|id| !self.dirty.contains(id));
        for &id in self.dirty.iter().chain(clean) {
            let mut current = read(table, &BTreeSet::from([id]))?;
            want_of(drained, &mut current);
            if self.dirty.contains(&id) || !self.is_right(id, current.first()) {
                touched.insert(id);
                different.append(&mut current);
            }
        }
        Ok((touched, different))
    }

    /// Returns whether a service is as it should be, and was left so.
    fn is_right(&self, id: ServiceId, current: Option<&ServiceEntry>) -> bool {
        let (Some(wanted), Some(left)) = (self.desired.get(&id), self.left.get(&id)) else {
            return false;
        };
        let (service, destinations) = &**wanted;
        current.is_some_and(|there| {
            let same = there.destinations.iter().rev().map(|to| &to.destination).eq(destinations);
            Arc::ptr_eq(wanted, left) && there.service == *service && same
        })
    }

    fn carry_out(
        &mut self,
        table: &mut dyn Table,
        touched: BTreeSet<ServiceId>,
        current: Vec<ServiceEntry>,
        drained: Named,
    ) -> Result<Report, Error> {
        let desired: Vec<ServiceEntry> = touched
            .iter()
            .filter_map(|id| self.desired.get(id))
            .map(|wanted| entry(wanted))
            .collect();
        let mut report = Report { foreign: self.foreign(&touched, &current), ..Report::default() };
        self.note_drained(&drained, &mut report);
        let mut serving = Serving::new(&current, &desired, drained);
        table.batch();
        for change in in_order(&current, plan(&current, &desired)) {
            if serving.is_last(&change) {
                self.dirty.insert(service_of(&change));
                continue;
            }
            match change.apply(table) {
                Ok(()) => {
                    serving.take(&change);
                    report.done.push(change);
                }
                Err(error) => report.refused.push((change, error)),
            }
        }
        if let Err(error) = table.commit() {
            // Which of them are in force is only known by looking again.
            self.dirty = touched;
            return Err(error);
        }
        self.dirty.extend(report.refused.iter().map(|(change, _)| service_of(change)));
        for id in touched.difference(&self.dirty) {
            self.left.remove(id);
        }
        let clean = touched.difference(&self.dirty);
        let clean = clean.filter_map(|&id| Some((id, self.desired.get(&id)?.clone())));
        self.left.extend(clean);
        Ok(report)
    }

    fn note_drained(&mut self, now: &Named, report: &mut Report) {
        let ours = |(id, _): &&(ServiceId, DestinationId)| self.desired.contains_key(id);
        let now: BTreeSet<_> = now.iter().filter(ours).copied().collect();
        report.drained = now.difference(&self.drained).copied().collect();
        report.undrained = self.drained.difference(&now).copied().collect();
        self.drained = now;
    }

    /// Returns what brings the table back to how it was left.
    fn foreign(&self, touched: &BTreeSet<ServiceId>, current: &[ServiceEntry]) -> Vec<Change> {
        let left: Vec<ServiceEntry> =
            touched.iter().filter_map(|id| self.left.get(id)).map(|left| entry(left)).collect();
        let known = |entry: &&ServiceEntry| self.left.contains_key(&entry.service.id);
        let current: Vec<ServiceEntry> = current.iter().filter(known).map(bare).collect();
        plan(&current, &left)
    }
}

fn read(table: &mut dyn Table, ids: &BTreeSet<ServiceId>) -> Result<Vec<ServiceEntry>, Error> {
    let mut entries = Vec::new();
    for &id in ids {
        match table.service(id) {
            Ok(entry) => entries.push(entry),
            Err(Error::NoService) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

/// Returns the destinations that are drained, and services with the weights that are wanted of those.
fn with_drained(
    table: &mut dyn Table,
    mut current: Vec<ServiceEntry>,
) -> Result<(Vec<ServiceEntry>, Named), Error> {
    let drained = table.drained()?;
    want_of(&drained, &mut current);
    Ok((current, drained.into_iter().map(|one| (one.service, one.id)).collect()))
}

/// Gives destinations that are drained the weights that are wanted of them.
fn want_of(drained: &[Drained], current: &mut [ServiceEntry]) {
    if drained.is_empty() {
        return;
    }
    let weights: BTreeMap<_, u32> =
        drained.iter().map(|one| ((one.service, one.id), one.weight)).collect();
    for entry in current {
        for there in &mut entry.destinations {
            let to = &mut there.destination;
            to.weight = weights.get(&(entry.service.id, to.id)).copied().unwrap_or(to.weight);
        }
    }
}

/// Who takes connections while changes are carried out.
struct Serving {
    now: BTreeMap<ServiceId, BTreeSet<DestinationId>>,
    /// Services that shall have somebody in the end.
    shall: BTreeSet<ServiceId>,
    /// Who takes none, whatever weight is wanted.
    drained: Named,
}

impl Serving {
    fn new(current: &[ServiceEntry], desired: &[ServiceEntry], drained: Named) -> Self {
        let of = |entry: &ServiceEntry| -> BTreeSet<DestinationId> {
            let there = entry.destinations.iter().map(|to| to.destination);
            there
                .filter(|to| to.weight > 0 && !drained.contains(&(entry.service.id, to.id)))
                .map(|to| to.id)
                .collect()
        };
        let now = current.iter().map(|entry| (entry.service.id, of(entry))).collect();
        let shall = desired.iter().filter(|entry| !of(entry).is_empty());
        let shall = shall.map(|entry| entry.service.id).collect();
        Self { now, shall, drained }
    }

    /// Returns whether a change would take the last destination from a service that shall have one:
    /// what was to come first has been refused.
    fn is_last(&self, change: &Change) -> bool {
        let (service, gone) = match change {
            Change::DeleteDestination(service, id) => (service, id),
            Change::EditDestination(service, to) if to.weight == 0 => (service, &to.id),
            _ => return false,
        };
        let now = self.now.get(service);
        self.shall.contains(service) && now.is_some_and(|now| now.len() == 1 && now.contains(gone))
    }

    fn take(&mut self, change: &Change) {
        let service = service_of(change);
        let now = self.now.entry(service).or_default();
        match change {
            Change::AddDestination(_, to) | Change::EditDestination(_, to)
                if to.weight > 0 && !self.drained.contains(&(service, to.id)) =>
            {
                now.insert(to.id);
            }
            Change::EditDestination(_, to) => {
                now.remove(&to.id);
            }
            Change::DeleteDestination(_, id) => {
                now.remove(id);
            }
            _ => {}
        }
    }
}

/// Sorts changes so that no service is without a destination between two of them that has one before
/// and after: first what takes connections more, then what takes them less.
fn in_order(current: &[ServiceEntry], mut changes: Vec<Change>) -> Vec<Change> {
    let weights: BTreeMap<_, u32> = current
        .iter()
        .flat_map(|entry| entry.destinations.iter().map(move |to| (entry.service.id, to)))
        .map(|(service, to)| ((service, to.destination.id), to.destination.weight))
        .collect();
    changes.sort_by_key(|change| match change {
        Change::AddService(_) => 0,
        Change::AddDestination(..) => 1,
        Change::EditService(_) => 2,
        Change::EditDestination(service, to) => {
            let before = weights.get(&(*service, to.id)).copied().unwrap_or(0);
            if to.weight >= before { 3 } else { 4 }
        }
        Change::DeleteDestination(..) => 5,
        Change::DeleteService(_) => 6,
    });
    changes
}

fn service_of(change: &Change) -> ServiceId {
    match change {
        Change::AddService(service) | Change::EditService(service) => service.id,
        Change::DeleteService(id)
        | Change::AddDestination(id, _)
        | Change::EditDestination(id, _)
        | Change::DeleteDestination(id, _) => *id,
    }
}

fn entry((service, destinations): &(Service, Vec<Destination>)) -> ServiceEntry {
    let destination = |&destination: &Destination| DestinationEntry {
        destination,
        active: 0,
        inactive: 0,
        persistent: 0,
        traffic: Traffic::default(),
    };
    ServiceEntry {
        service: service.clone(),
        traffic: Traffic::default(),
        // A table has the newest first, and what comes first in the configuration is added first.
        destinations: destinations.iter().rev().map(destination).collect(),
    }
}

fn bare(there: &ServiceEntry) -> ServiceEntry {
    let destinations: Vec<_> = there.destinations.iter().rev().map(|to| to.destination).collect();
    entry(&(there.service.clone(), destinations))
}
