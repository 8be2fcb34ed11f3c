//! What a service's scheduler goes by: laid out, put in force, kept while the service changes.

use std::sync::atomic::Ordering;

use rlvs_control::ring::{self, Kind, Member, State, Stored};
use rlvs_control::scheduler::{self, Candidate};
use rlvs_datapath::abi::{Destination, RING_LINE, Schedule};
use rlvs_datapath::schedulers::{Ring, is_overloaded_after, searches};

use super::BpfTable;
use crate::dataplane::Error;
use crate::dataplane::load;
use crate::dataplane::records::address;
use crate::dataplane::stages::Group;

impl BpfTable {
    /// Returns the destinations of a service as its scheduler sees them.
    fn candidates(&self, service: u32) -> Vec<Candidate> {
        let candidate = |id| {
            let record = self.destination_record(id);
            Candidate {
                id,
                weight: record.weight,
                last_weight: record.last_weight,
                limited: record.upper != 0,
                address: address(record.family, record.address),
                port: u16::from_be_bytes(record.port),
            }
        };
        self.list(service).into_iter().map(candidate).collect()
    }

    pub(super) fn members(&self, service: u32) -> Vec<Member> {
        scheduler::members(&self.candidates(service))
    }

    /// Returns where a service's scheduler stands; `None` if it does not stand anywhere.
    pub(super) fn state(&self, id: u32, members: &[Member]) -> Option<State> {
        let kind = scheduler::kind(self.service_record(id).scheduler)?;
        let schedule = self.maps.schedules.read(id)?;
        let stored = Stored {
            base: schedule.base.get(),
            last: schedule.last.get() as u32,
            level: schedule.level.get() as u32,
        };
        Some(ring::resume(kind, members, stored, schedule.position.get()))
    }

    /// Lays out what a service's scheduler goes by and puts it in force.
    pub(super) fn publish(
        &mut self,
        id: u32,
        state: impl FnOnce(&[Member], Kind) -> State,
    ) -> Result<(), Error> {
        self.published += 1;
        let list = self.candidates(id);
        let record = self.service_record(id);
        let kind = scheduler::kind(record.scheduler);
        let state = kind.map(|kind| state(&scheduler::members(&list), kind));
        let position = self.maps.schedules.read(id).map_or(0, |schedule| schedule.position.get());
        let layout = scheduler::lay_out(record.scheduler, &list, state, position);
        let limited = list.iter().any(|one| one.limited);
        if limited || searches(record.scheduler, record.scheduler_flags) && record.scheduler != 0 {
            load::ensure_group(Group::Search)?;
        }
        let length = layout.elements.len() as u32;
        let line = self.allocate(length.div_ceil(RING_LINE))?;
        let mut elements = layout.elements;
        elements.resize(length.next_multiple_of(RING_LINE) as usize, 0);
        for (index, element) in (line * RING_LINE..).zip(elements) {
            self.maps.rings.write(index, element);
        }
        self.store(id, |record| &record.base, layout.stored.base);
        self.store(id, |record| &record.last, layout.stored.last.into());
        self.store(id, |record| &record.level, layout.stored.level.into());
        let ring = Ring::new(record.scheduler, record.scheduler_flags, line, length);
        self.store(id, |record| &record.ring, ring.0);
        Ok(())
    }

    pub(super) fn store(
        &self,
        id: u32,
        field: fn(&Schedule) -> &rlvs_datapath::abi::Word,
        value: u64,
    ) {
        if let Some(word) = self.maps.schedules.word(id, field) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// Makes the thresholds of a destination hold for the connections that it has.
    pub(super) fn settle_overload(&self, id: u32, before: &Destination) {
        let Some(word) = self.maps.overloads.word(id / 64, |word| word) else { return };
        let bit = 1 << (id % 64);
        let connections = self.maps.counts.read(id).map_or(0, |counts| counts.connections.get());
        let after = self.destination_record(id);
        let marked = word.load(Ordering::SeqCst) & bit != 0;
        if is_overloaded_after(connections, marked, before, &after) {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Makes lblc and lblcr forget what they have chosen for a service, or only where that is one
    /// destination.
    pub(super) fn forget_favourites(&self, service: u32, only: Option<u32>) {
        use rlvs_datapath::abi::scheduler::{LBLC, LBLCR};
        if ![LBLC, LBLCR].contains(&self.service_record(service).scheduler) {
            return;
        }
        for index in 0..self.maps.favourites.len() {
            let Some(entry) = self.maps.favourites.read(index) else { break };
            let named = |id: u32| entry.members.iter().any(|member| member.get() == id.into());
            if (entry.used.get() >> 32) as u32 == service
                && only.is_none_or(named)
                && let Some(key) = self.maps.favourites.word(index, |entry| &entry.key)
            {
                key.store(0, Ordering::SeqCst);
            }
        }
    }
}
