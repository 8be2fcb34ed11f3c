//! Destinations that are drained: a mark in their record, which outlives their removal.

use rlvs_control::model::{DestinationId, Drained, ServiceId};
use rlvs_control::table::Error;
use rlvs_datapath::abi::Destination;
pub(super) use rlvs_datapath::abi::aside::DRAINED;
use rlvs_datapath::abi::aside::QUIESCED;

use super::super::records::{is_listed, service_id};
use super::BpfTable;

/// Gives a record the weight that is asked for, or remembers it where it is drained.
pub(super) fn set_weight(record: &mut Destination, old: &Destination, wanted: u32, drained: bool) {
    record.weight = if drained { 0 } else { wanted };
    record.last_weight = if wanted != 0 { wanted } else { old.last_weight };
    record.aside = match (drained, wanted) {
        (false, _) => 0,
        (true, 0) => DRAINED | QUIESCED,
        (true, _) => DRAINED,
    };
}

/// Returns the weight that a drained destination is given back.
fn returned(record: &Destination) -> u32 {
    if record.aside & QUIESCED != 0 { 0 } else { record.last_weight }
}

impl BpfTable {
    /// Returns the number of a destination, listed or remembered.
    pub(super) fn known(&self, service: ServiceId, id: DestinationId) -> Result<u32, Error> {
        let service = self.services.get(&service).copied().ok_or(Error::NoService)?;
        self.destinations.get(&(service, id)).copied().ok_or(Error::NoDestination)
    }

    pub(super) fn set_aside(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.put_in_force()?;
        let service = self.live(service)?;
        let number = self.listed(service, id)?;
        if self.destination_record(number).aside & DRAINED != 0 {
            return Ok(());
        }
        let to = self.destination_entry(number).destination;
        self.replace(service, number, &to, true)
    }

    pub(super) fn give_back(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.put_in_force()?;
        let number = self.known(service, id)?;
        let mut record = self.destination_record(number);
        if record.aside & DRAINED == 0 {
            return Err(Error::Invalid("the destination is not drained".to_owned()));
        }
        if !is_listed(&record) {
            record.aside = 0;
            // It is in no list.
            self.maps.destinations.write(number, record);
            return Ok(());
        }
        let mut to = self.destination_entry(number).destination;
        to.weight = returned(&record);
        self.replace(record.service, number, &to, false)
    }

    pub(super) fn list_drained(&self) -> Vec<Drained> {
        let drained = |(&(service, id), &number): (&(u32, DestinationId), &u32)| {
            let record = self.destination_record(number);
            if record.aside & DRAINED == 0 {
                return None;
            }
            let counts = self.destination_entry(number);
            Some(Drained {
                service: service_id(&self.service_record(service)),
                id,
                weight: returned(&record),
                listed: is_listed(&record),
                active: counts.active,
                inactive: counts.inactive,
                persistent: counts.persistent,
            })
        };
        self.destinations.iter().filter_map(drained).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_meanwhile_is_given_back() {
        let mut record = Destination { weight: 3, last_weight: 3, ..Destination::default() };
        for (wanted, drained, weight, back) in
            [(3, true, 0, 3), (7, true, 0, 7), (0, true, 0, 0), (4, false, 4, 4)]
        {
            let old = record;
            set_weight(&mut record, &old, wanted, drained);
            assert_eq!((record.weight, returned(&record)), (weight, back), "{wanted} {drained}");
        }
    }
}
