//! What many edits in one go share: an addition to a service's list, or a change of one of its
//! destinations, waits for those that follow it, and the service's list is relinked and its ring
//! published once for all of them.
//!
//! Invariant: only one service has edits that wait, all additions or all changes, and it is marked as
//! unsettled until they are in force. Whatever reads or edits anything else puts them in force first.
//! Nobody else sees them before, as they would need the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rlvs_control::ring::State;
use rlvs_control::table::Error;
use rlvs_datapath::abi::{IDS, RING_LINE, RING_LINES};
use rlvs_datapath::schedulers::Ring;

use super::BpfTable;

/// Edits of a service's list that are not in force yet.
#[derive(Debug)]
pub(super) struct Pending {
    service: u32,
    kind: Edits,
    /// Where the service's scheduler stood before them; `None` if it has no ring.
    state: Option<State>,
    /// First of the list when they are in force.
    head: u32,
    added: usize,
    /// Neighbours by which the new destinations are reached.
    hops: BTreeSet<(u32, IpAddr)>,
}

/// Which edits wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edits {
    Additions,
    Changes,
}

/// What a table has asked of the kernel and of the programs, for those who count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rings put in force.
    pub published: u64,
    /// Elements of maps written by a system call each.
    pub updates: u64,
    /// Questions for a route, each of several system calls.
    pub routes: u64,
    /// Searches of all connections for those of removed destinations.
    pub ended: u64,
}

impl BpfTable {
    /// Returns the work done since the table was opened.
    pub fn work(&self) -> Work {
        let updates = self.maps.updates();
        Work { published: self.published, updates, routes: self.ways.asked(), ended: self.ended }
    }

    /// Begins an addition to a service's list, and returns what is first of the list so far.
    pub(super) fn begin_addition(&mut self, service: u32) -> Result<u32, Error> {
        self.begin(service, Edits::Additions)?;
        Ok(self.pending.as_ref().map_or(0, |pending| pending.head))
    }

    /// Begins a change of one of a service's destinations.
    pub(super) fn begin_change(&mut self, service: u32) -> Result<(), Error> {
        self.begin(service, Edits::Changes)
    }

    /// Ends a change: it waits if others are to follow.
    pub(super) fn end_change(&mut self) -> Result<(), Error> {
        if self.batched { Ok(()) } else { self.put_in_force() }
    }

    fn begin(&mut self, service: u32, kind: Edits) -> Result<(), Error> {
        let same = |pending: &Pending| pending.service == service && pending.kind == kind;
        if self.pending.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.put_in_force()?;
        let before = self.members(service);
        let state = self.state(service, &before);
        let head = self.service_record(service).head;
        self.unsettled(service);
        let hops = BTreeSet::new();
        self.pending = Some(Pending { service, kind, state, head, added: 0, hops });
        Ok(())
    }

    /// Ends an addition, whose record is whole: it waits if others are to follow.
    pub(super) fn end_addition(&mut self, id: u32, address: IpAddr) -> Result<(), Error> {
        if let Some(pending) = &mut self.pending {
            pending.head = id;
            pending.added += 1;
            pending.hops.extend(self.ways.hop(address));
        }
        if self.batched { Ok(()) } else { self.put_in_force() }
    }

    /// Puts edits that wait in force.
    pub(super) fn put_in_force(&mut self) -> Result<(), Error> {
        let Some(Pending { service, kind: edits, state, head, added, hops }) = self.pending.take()
        else {
            return Ok(());
        };
        let mut owner = self.service_record(service);
        owner.head = head;
        self.maps.services.update(service, &owner)?;
        self.mark_places(service)?;
        self.publish(service, |members, kind| match (state, edits) {
            (Some(state), Edits::Additions) => state.grown(members, added),
            (Some(state), Edits::Changes) => state.changed(members),
            (None, _) => State::new(kind, members),
        })?;
        self.settled();
        self.ways.keep_resolved(hops);
        Ok(())
    }

    /// Returns an id that no service has, below those in use or the next.
    pub(super) fn new_service_id(&mut self) -> Result<u32, Error> {
        let mut settings = self.maps.settings();
        if settings.services < IDS {
            settings.services += 1;
            self.maps.settings.write(0, settings);
            return Ok(settings.services - 1);
        }
        let free =
            |table: &Self, from| (from..IDS).find(|&id| table.service_record(id).family == 0);
        let found = free(self, self.free_service_from);
        let found = match found {
            Some(id) => Some(id),
            None => {
                self.forget(true)?;
                free(self, 1)
            }
        };
        let id = found.ok_or(Error::Full { what: "virtual services", limit: IDS as usize - 1 })?;
        self.free_service_from = id + 1;
        Ok(id)
    }

    /// Returns an id that no destination has, below those in use or the next.
    pub(super) fn new_destination_id(&mut self) -> Result<u32, Error> {
        let mut settings = self.maps.settings();
        if settings.destinations < IDS {
            settings.destinations += 1;
            self.maps.settings.write(0, settings);
            return Ok(settings.destinations - 1);
        }
        let free =
            |table: &Self, from| (from..IDS).find(|&id| table.destination_record(id).service == 0);
        let found = free(self, self.free_destination_from);
        let found = match found {
            Some(id) => Some(id),
            None => {
                self.forget(true)?;
                free(self, 1)
            }
        };
        let id = found.ok_or(Error::Full { what: "real servers", limit: IDS as usize - 1 })?;
        self.free_destination_from = id + 1;
        Ok(id)
    }

    /// Finds room for a ring: the next gap between the rings in force, walking round. Counts in lines.
    pub(super) fn allocate(&mut self, length: u32) -> Result<u32, super::super::Error> {
        if length == 0 {
            return Ok(0);
        }
        // Rings that this table has replaced stay in the list until it is full: what is in force is
        // read again then.
        let mut used = match self.rings.take() {
            Some(used) => used,
            None => self.rings_in_force(),
        };
        let find = |used: &BTreeMap<u32, u32>, cursor| {
            gap(used, cursor, length).or_else(|| gap(used, 0, length))
        };
        let mut found = find(&used, self.ring_cursor);
        if found.is_none() {
            used = self.rings_in_force();
            found = find(&used, self.ring_cursor);
        }
        let offset = found.ok_or_else(|| super::super::Error::Load {
            what: "a scheduler's ring".to_owned(),
            reason: format!(
                "the rings of all services hold at most {RING_LINES} times {RING_LINE} entries"
            ),
        })?;
        used.insert(offset, length);
        self.rings = Some(used);
        self.ring_cursor = offset + length;
        self.store(0, |record| &record.base, self.ring_cursor.into());
        Ok(offset)
    }

    /// Returns the first line of every ring in force, and how many it has.
    fn rings_in_force(&self) -> BTreeMap<u32, u32> {
        self.services
            .values()
            .filter_map(|&id| Some(Ring(self.maps.schedules.read(id)?.ring.get())))
            .map(|ring| (ring.line(), ring.lines()))
            .filter(|&(_, lines)| lines > 0)
            .collect()
    }
}

impl Drop for BpfTable {
    fn drop(&mut self) {
        // Whoever cares for the answer has asked for it by `commit`.
        drop(self.put_in_force());
        drop(self.end_resets());
    }
}

/// Finds `length` lines from `from` on that no ring has.
fn gap(used: &BTreeMap<u32, u32>, from: u32, length: u32) -> Option<u32> {
    // The ring before may reach beyond `from`.
    let before = used.range(..from).next_back().map_or(0, |(&offset, &used)| offset + used);
    let mut start = from.max(before);
    for (&offset, &used) in used.range(from..) {
        if start + length <= offset {
            return Some(start);
        }
        start = start.max(offset + used);
    }
    (start + length <= RING_LINES).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_between_rings_and_after_the_last() {
        let used = BTreeMap::from([(0, 10), (20, 5), (25, 5)]);
        assert_eq!(gap(&used, 0, 10), Some(10));
        assert_eq!(gap(&used, 0, 11), Some(30));
        assert_eq!(gap(&used, 5, 10), Some(10));
        assert_eq!(gap(&used, 12, 9), Some(30));
        assert_eq!(gap(&used, 12, 8), Some(12));
        assert_eq!(gap(&used, 22, 1), Some(30));
        assert_eq!(gap(&BTreeMap::new(), 5, RING_LINES), None);
    }
}
