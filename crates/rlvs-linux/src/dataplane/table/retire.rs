//! What is out of service: remembered while it has connections and for a while after, then forgotten.
//!
//! Connections of what is removed go on where [`Removal::Keep`] was asked for: the destination stays
//! available, only in no list.

use rlvs_control::model::ServiceId;
use rlvs_control::table::{Error as TableError, Removal};
use rlvs_datapath::abi::{
    Counts, Destination, Schedule, Service, destination_flag, service_flag, settings_flag,
};

use super::ends::{once_endpoint, reply_endpoint, service_endpoint};
use super::{BpfTable, aside, seconds, service_range};
use crate::dataplane::records::{is_listed, serves};
use crate::dataplane::{Error, connections, endpoints};

/// How long a destination without connections is remembered, as the kernel's trash.
const REMEMBERED_S: u32 = 120;

impl BpfTable {
    /// Takes a destination out of service but remembers it. It must be out of the list already, or
    /// its whole list gone. One that has its connections still keeps them only if that is asked for now.
    pub(super) fn retire(&mut self, id: u32) -> Result<(), Error> {
        let mut record = self.destination_record(id);
        let keeps = self.keeps();
        if !serves(&record) || keeps && !is_listed(&record) {
            return Ok(());
        }
        if keeps {
            // Whoever picked it from the ring before leaves it alone.
            record.weight = 0;
        } else {
            record.flags &= !destination_flag::AVAILABLE;
        }
        record.next = 0;
        record.retired_at = seconds().max(1);
        // It is out of the list, and leads its connections where it led.
        self.maps.destinations.write(id, record);
        if self.removal == Removal::Reset {
            self.resets.insert(id);
        }
        Ok(())
    }

    /// Ends an edit that has removed something.
    pub(super) fn end_removal(&mut self) -> Result<(), TableError> {
        self.settled();
        if !self.batched {
            self.end_resets()?;
        }
        Ok(self.forget(false)?)
    }

    /// Ends the connections of what was removed ([`Removal::Reset`]), in one search for all of them.
    pub(super) fn end_resets(&mut self) -> Result<(), Error> {
        let resets = std::mem::take(&mut self.resets);
        if !resets.is_empty() {
            self.ended += 1;
            connections::end(&self.maps, &resets)?;
        }
        Ok(())
    }

    /// Returns whether connections of what is removed go on: `expire_nodest_conn` asks for the contrary.
    fn keeps(&self) -> bool {
        let expire = self.maps.settings().flags & settings_flag::EXPIRE_REMOVED != 0;
        self.removal == Removal::Keep && !expire
    }

    /// Takes a service and all its destinations out of service but remembers them.
    pub(super) fn retire_service(&mut self, id: u32) -> Result<(), Error> {
        let known: Vec<u32> =
            self.destinations.range(service_range(id)).map(|(_, &id)| id).collect();
        let mut record = self.service_record(id);
        self.forget_favourites(id, None);
        record.flags &= !service_flag::LIVE;
        record.head = 0;
        self.maps.services.update(id, &record)?;
        self.store(id, |record| &record.ring, 0);
        known.into_iter().try_for_each(|destination| self.retire(destination))
    }

    /// Forgets retired destinations without connections, those of the last two minutes only if
    /// `all`, and retired services without destinations.
    pub(super) fn forget(&mut self, all: bool) -> Result<(), Error> {
        if std::mem::replace(&mut self.forgotten, true) && !all {
            return Ok(());
        }
        let now = seconds();
        let idle = |id: u32| {
            let record = self.destination_record(id);
            let age = now.saturating_sub(record.retired_at);
            let in_use = |counts: Counts| counts.connections.get() | counts.persistent.get() != 0;
            let in_use = self.maps.counts.read(id).is_some_and(in_use);
            let drained = record.aside & aside::DRAINED != 0;
            !is_listed(&record) && !in_use && !drained && (all || age > REMEMBERED_S)
        };
        let gone: Vec<_> = self
            .destinations
            .iter()
            .filter(|&(_, &id)| idle(id))
            .map(|(&key, &id)| (key, id))
            .collect();
        for (key, id) in gone {
            self.destinations.remove(&key);
            self.free_destination(id);
        }
        let empty: Vec<(ServiceId, u32)> = self
            .services
            .iter()
            .map(|(&key, &id)| (key, id))
            .filter(|&(_, id)| {
                self.service_record(id).flags & service_flag::LIVE == 0
                    && self.destinations.range(service_range(id)).next().is_none()
            })
            .collect();
        for (key, id) in empty {
            self.services.remove(&key);
            self.free_service(id);
        }
        Ok(())
    }

    fn free_destination(&mut self, id: u32) {
        let record = self.destination_record(id);
        let service = self.service_record(record.service);
        let mut totals = self.maps.totals.read(record.service).unwrap_or_default();
        for (total, more) in totals.retired.iter_mut().zip(self.rows(id)) {
            *total += more;
        }
        self.maps.totals.write(record.service, totals);
        if record.reply != 0 {
            let endpoint = reply_endpoint(&service, &record);
            if let Some((_, users)) = self.replies.get_mut(&endpoint) {
                *users -= 1;
                if *users == 0 {
                    self.replies.remove(&endpoint);
                    self.reply_ids.remove(&record.reply);
                    endpoints::remove(&self.maps, &endpoint);
                }
            }
        }
        if service.flags & service_flag::ONE_PACKET != 0 {
            endpoints::remove(&self.maps, &once_endpoint(&service, &record));
        }
        self.forget_favourites(record.service, Some(id));
        self.maps.destinations.write(id, Destination::default());
        self.settle_overload(id, &record);
        self.clear_counters(id);
        self.free_destination_from = self.free_destination_from.min(id);
    }

    fn free_service(&mut self, id: u32) {
        let record = self.service_record(id);
        endpoints::remove(&self.maps, &service_endpoint(&record));
        // No packet leads to it any more.
        self.retire_counters(id);
        self.maps.services.write(id, Service::default());
        self.maps.schedules.write(id, Schedule::default());
        self.free_service_from = self.free_service_from.min(id);
    }
}
