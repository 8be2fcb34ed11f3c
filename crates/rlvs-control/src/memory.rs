//! A table in memory that follows the rules of IPVS and forwards nothing.
//!
//! It is what tests hold a front end against, and the measure for the other tables: same edits,
//! same answers. It carries out everything that the model can say.

use crate::check;
use crate::model::{
    Connection, Destination, DestinationEntry, DestinationId, Service, ServiceEntry, ServiceId,
    Timeouts, Traffic,
};
use crate::table::{Error, Table};

/// The size of the connection table of a kernel with default settings.
const CONNECTION_TABLE_SIZE: u32 = 4096;

/// A virtual-server table that lives as long as the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTable {
    /// What [`Table::connections`] answers; nothing else reads it.
    pub tracked: Vec<Connection>,
    entries: Vec<ServiceEntry>,
    timeouts: Timeouts,
}

impl Default for MemoryTable {
    /// Returns an empty table with the kernel's time-outs.
    fn default() -> Self {
        Self {
            tracked: Vec::new(),
            entries: Vec::new(),
            timeouts: Timeouts { tcp_s: 900, tcp_fin_s: 120, udp_s: 300 },
        }
    }
}

impl MemoryTable {
    /// Returns a table of these services.
    pub fn with(entries: Vec<ServiceEntry>, timeouts: Timeouts) -> Self {
        Self { tracked: Vec::new(), entries, timeouts }
    }

    /// Returns a service for a test to set its counters.
    ///
    /// # Errors
    /// [`Error::NoService`] if it is not there.
    pub fn entry(&mut self, id: ServiceId) -> Result<&mut ServiceEntry, Error> {
        self.entries.iter_mut().find(|entry| entry.service.id == id).ok_or(Error::NoService)
    }
}

impl Table for MemoryTable {
    fn add_service(&mut self, service: &Service) -> Result<(), Error> {
        if self.entry(service.id).is_ok() {
            return Err(Error::ServiceExists);
        }
        check::service(service)?;
        self.entries.push(ServiceEntry {
            service: service.clone(),
            traffic: Traffic::default(),
            destinations: Vec::new(),
        });
        Ok(())
    }

    fn edit_service(&mut self, service: &Service) -> Result<(), Error> {
        let entry = self.entry(service.id)?;
        check::service(service)?;
        entry.service = service.clone();
        Ok(())
    }

    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
        self.entry(id)?;
        self.entries.retain(|entry| entry.service.id != id);
        Ok(())
    }

    fn add_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        let entry = self.entry(service)?;
        check::destination(service, to)?;
        if find(entry, to.id).is_ok() {
            return Err(Error::DestinationExists);
        }
        check::real_server(to.id.address)?;
        let new = DestinationEntry {
            destination: *to,
            active: 0,
            inactive: 0,
            persistent: 0,
            traffic: Traffic::default(),
        };
        entry.destinations.insert(0, new);
        Ok(())
    }

    fn edit_destination(&mut self, service: ServiceId, to: &Destination) -> Result<(), Error> {
        let entry = self.entry(service)?;
        check::destination(service, to)?;
        find(entry, to.id)?.destination = *to;
        Ok(())
    }

    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        let entry = self.entry(service)?;
        find(entry, id)?;
        entry.destinations.retain(|there| there.destination.id != id);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.entries.clear();
        Ok(())
    }

    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        Ok(self.entries.clone())
    }

    fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        Ok(self.tracked.clone())
    }

    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        Ok(self.timeouts)
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        let keep = |new: u32, old: u32| if new == 0 { old } else { new };
        self.timeouts = Timeouts {
            tcp_s: keep(timeouts.tcp_s, self.timeouts.tcp_s),
            tcp_fin_s: keep(timeouts.tcp_fin_s, self.timeouts.tcp_fin_s),
            udp_s: keep(timeouts.udp_s, self.timeouts.udp_s),
        };
        Ok(())
    }

    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error> {
        if let Some(id) = service {
            self.entry(id)?;
        }
        for entry in &mut self.entries {
            if service.is_none_or(|id| id == entry.service.id) {
                entry.traffic = Traffic::default();
                entry.destinations.iter_mut().for_each(|to| to.traffic = Traffic::default());
            }
        }
        Ok(())
    }

    fn connection_table_size(&mut self) -> Result<u32, Error> {
        Ok(CONNECTION_TABLE_SIZE)
    }
}

fn find(entry: &mut ServiceEntry, id: DestinationId) -> Result<&mut DestinationEntry, Error> {
    entry
        .destinations
        .iter_mut()
        .find(|there| there.destination.id == id)
        .ok_or(Error::NoDestination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, ForwardingMethod};

    const ID: ServiceId = ServiceId::Mark { family: Family::V4, mark: 7 };

    #[test]
    fn the_newest_destination_comes_first() {
        let mut table = with_service();
        for last in [1, 2, 3] {
            table.add_destination(ID, &destination(last)).unwrap();
        }
        let entry = table.service(ID).unwrap();
        let order: Vec<_> = entry.destinations.iter().map(|to| to.destination.id).collect();
        assert_eq!(order, [3, 2, 1].map(|last| destination(last).id));
    }

    #[test]
    fn errors_are_those_of_ipvs_in_its_order() {
        let mut table = with_service();
        let other = ServiceId::Mark { family: Family::V6, mark: 7 };
        let mut bad = destination(1);
        bad.lower_threshold = 1;
        let mut foo = service(ID);
        foo.scheduler = "foo".to_owned();
        assert!(matches!(table.add_service(&foo), Err(Error::ServiceExists)));
        assert!(matches!(table.edit_service(&foo), Err(Error::UnknownScheduler(_))));
        foo.id = other;
        assert!(matches!(table.edit_service(&foo), Err(Error::NoService)));
        assert!(matches!(table.add_service(&foo), Err(Error::UnknownScheduler(_))));
        assert!(matches!(table.add_destination(other, &bad), Err(Error::NoService)));
        assert!(matches!(table.add_destination(ID, &bad), Err(Error::Range(_))));
        assert!(matches!(table.edit_destination(ID, &bad), Err(Error::Range(_))));
        assert!(matches!(table.edit_destination(ID, &destination(1)), Err(Error::NoDestination)));
        table.add_destination(ID, &destination(1)).unwrap();
        let again = table.add_destination(ID, &destination(1));
        assert!(matches!(again, Err(Error::DestinationExists)));
        let absent = table.delete_destination(ID, destination(2).id);
        assert!(matches!(absent, Err(Error::NoDestination)));
        assert!(matches!(table.zero(Some(other)), Err(Error::NoService)));
    }

    #[test]
    fn a_time_out_of_zero_keeps_what_is_there() {
        let mut table = MemoryTable::default();
        table.set_timeouts(Timeouts { tcp_s: 0, tcp_fin_s: 60, udp_s: 0 }).unwrap();
        let expected = Timeouts { tcp_s: 900, tcp_fin_s: 60, udp_s: 300 };
        assert_eq!(table.timeouts().unwrap(), expected);
    }

    #[test]
    fn zero_resets_the_counters_of_the_service_named() {
        let other = ServiceId::Mark { family: Family::V6, mark: 7 };
        let mut table = with_service();
        table.add_service(&service(other)).unwrap();
        table.add_destination(ID, &destination(1)).unwrap();
        for id in [ID, other] {
            let entry = table.entry(id).unwrap();
            entry.traffic.connections = 3;
            entry.destinations.iter_mut().for_each(|to| to.traffic.in_bytes = 5);
        }
        table.zero(Some(ID)).unwrap();
        assert_eq!(table.entry(ID).unwrap().traffic, Traffic::default());
        assert_eq!(table.entry(ID).unwrap().destinations[0].traffic, Traffic::default());
        assert_eq!(table.entry(other).unwrap().traffic.connections, 3);
        table.zero(None).unwrap();
        assert_eq!(table.entry(other).unwrap().traffic, Traffic::default());
    }

    fn with_service() -> MemoryTable {
        let mut table = MemoryTable::default();
        table.add_service(&service(ID)).unwrap();
        table
    }

    fn service(id: ServiceId) -> Service {
        Service {
            id,
            scheduler: "rr".to_owned(),
            scheduler_flags: 0,
            one_packet: false,
            persistence: None,
            persistence_engine: None,
        }
    }

    fn destination(last: u8) -> Destination {
        Destination {
            id: DestinationId { address: [10, 0, 0, last].into(), port: 80 },
            method: ForwardingMethod::DirectRoute,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }
}
