//! What must be changed to make one table of another.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Destination, DestinationId, Service, ServiceEntry, ServiceId};
use crate::table::{Error, Table};

/// One edit of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Removes a service with its destinations.
    DeleteService(ServiceId),
    /// Removes a destination.
    DeleteDestination(ServiceId, DestinationId),
    /// Replaces a service's attributes.
    EditService(Service),
    /// Replaces a destination's attributes.
    EditDestination(ServiceId, Destination),
    /// Adds a service without destinations.
    AddService(Service),
    /// Adds a destination.
    AddDestination(ServiceId, Destination),
}

impl Change {
    /// Carries the change out.
    ///
    /// # Errors
    /// What the table refuses.
    pub fn apply(&self, table: &mut dyn Table) -> Result<(), Error> {
        match self {
            Self::DeleteService(id) => table.delete_service(*id),
            Self::DeleteDestination(id, to) => table.delete_destination(*id, *to),
            Self::EditService(service) => table.edit_service(service),
            Self::EditDestination(id, to) => table.edit_destination(*id, to),
            Self::AddService(service) => table.add_service(service),
            Self::AddDestination(id, to) => table.add_destination(*id, to),
        }
    }
}

/// Returns the changes that make `desired` of `current`: what comes, what changes, what goes. In this
/// order a change that a table refuses has cost nothing yet that could not be had back: nothing is
/// gone. What is in both alike is left alone, with its connections, counters and place in the list;
/// what comes is added in the order in which it would get the place that it has in `desired`.
pub fn plan(current: &[ServiceEntry], desired: &[ServiceEntry]) -> Vec<Change> {
    let index = |entries: &[ServiceEntry]| -> BTreeMap<ServiceId, usize> {
        entries.iter().enumerate().map(|(at, entry)| (entry.service.id, at)).collect()
    };
    let (had, wanted) = (index(current), index(desired));
    let (mut gone, mut edited, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for entry in current {
        if !wanted.contains_key(&entry.service.id) {
            gone.push(Change::DeleteService(entry.service.id));
        }
    }
    for entry in desired {
        let id = entry.service.id;
        let before = had.get(&id).and_then(|&at| current.get(at));
        match before {
            None => new.push(Change::AddService(entry.service.clone())),
            Some(before) if before.service != entry.service => {
                edited.push(Change::EditService(entry.service.clone()));
            }
            Some(_) => {}
        }
        let before: BTreeMap<DestinationId, &Destination> = before
            .iter()
            .flat_map(|entry| &entry.destinations)
            .map(|to| (to.destination.id, &to.destination))
            .collect();
        let stays: BTreeSet<DestinationId> =
            entry.destinations.iter().map(|to| to.destination.id).collect();
        for &to in before.keys().filter(|to| !stays.contains(to)) {
            gone.push(Change::DeleteDestination(id, to));
        }
        // The newest is first in the list.
        for to in entry.destinations.iter().rev().map(|to| to.destination) {
            match before.get(&to.id) {
                None => new.push(Change::AddDestination(id, to)),
                Some(&&old) if old != to => edited.push(Change::EditDestination(id, to)),
                Some(_) => {}
            }
        }
    }
    new.into_iter().chain(edited).chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::MemoryTable;
    use crate::model::{Family, ForwardingMethod, Timeouts};

    fn tables() -> impl Strategy<Value = MemoryTable> {
        let destinations = prop::collection::btree_map(0u8..6, 0u32..3, 0..5);
        let services = prop::collection::btree_map(1u32..6, (any::<bool>(), destinations), 0..5);
        services.prop_map(|services| {
            let timeouts = Timeouts { tcp_s: 1, tcp_fin_s: 1, udp_s: 1 };
            let mut table = MemoryTable::with(Vec::new(), timeouts);
            for (mark, (rr, destinations)) in services {
                let id = ServiceId::Mark { family: Family::V4, mark };
                let service = Service {
                    id,
                    scheduler: if rr { "rr" } else { "wrr" }.to_owned(),
                    scheduler_flags: 0,
                    one_packet: false,
                    persistence: None,
                    persistence_engine: None,
                };
                table.add_service(&service).expect("a new service");
                for (last, weight) in destinations {
                    let to = Destination {
                        id: DestinationId { address: [10, 0, 0, last + 1].into(), port: 80 },
                        method: ForwardingMethod::Masquerade,
                        weight,
                        upper_threshold: 0,
                        lower_threshold: 0,
                    };
                    table.add_destination(id, &to).expect("a new destination");
                }
            }
            table
        })
    }

    /// Everything but the order of lists.
    fn sorted(table: &mut MemoryTable) -> Vec<ServiceEntry> {
        let mut entries = table.services().expect("memory");
        entries.sort_by_key(|entry| entry.service.id);
        for entry in &mut entries {
            entry.destinations.sort_by_key(|to| to.destination.id);
        }
        entries
    }

    proptest! {
        #[test]
        fn a_plan_carried_out_leads_to_what_is_desired(mut one in tables(), mut other in tables()) {
            let (current, desired) = (sorted(&mut one), sorted(&mut other));
            prop_assert_eq!(plan(&current, &current), []);
            for change in plan(&current, &desired) {
                change.apply(&mut one).expect("a change that IPVS takes");
            }
            prop_assert_eq!(sorted(&mut one), desired);
        }
    }

    #[test]
    fn a_new_service_has_its_list_in_order() {
        let mut wanted = MemoryTable::default();
        let id = ServiceId::Mark { family: Family::V4, mark: 1 };
        let service = Service {
            id,
            scheduler: "rr".to_owned(),
            scheduler_flags: 0,
            one_packet: false,
            persistence: None,
            persistence_engine: None,
        };
        wanted.add_service(&service).expect("a new service");
        for last in [3, 1, 2] {
            let to = Destination {
                id: DestinationId { address: [10, 0, 0, last].into(), port: 80 },
                method: ForwardingMethod::Masquerade,
                weight: 1,
                upper_threshold: 0,
                lower_threshold: 0,
            };
            wanted.add_destination(id, &to).expect("a new destination");
        }
        let mut made = MemoryTable::default();
        let desired = wanted.services().expect("memory");
        for change in plan(&[], &desired) {
            change.apply(&mut made).expect("a change that IPVS takes");
        }
        assert_eq!(made.services().expect("memory"), desired);
    }
}
