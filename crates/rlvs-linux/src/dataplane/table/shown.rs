//! The table as it is shown.

use rlvs_control::model::{
    Destination as Wanted, DestinationEntry, DestinationId, Persistence, Service as WantedService,
    ServiceEntry,
};
use rlvs_datapath::abi::{Service, service_flag};

use super::BpfTable;
use crate::dataplane::load;
use crate::dataplane::records::{self, address, method_of, scheduler_name, service_id};

impl BpfTable {
    pub(super) fn entry(&self, id: u32) -> ServiceEntry {
        let record = self.service_record(id);
        let list = self.list(id);
        ServiceEntry {
            service: WantedService {
                id: service_id(&record),
                scheduler: scheduler_name(record.scheduler).to_owned(),
                scheduler_flags: record.scheduler_flags as u8,
                one_packet: record.flags & service_flag::ONE_PACKET != 0,
                persistence: self.persistence(&record),
                persistence_engine: records::engine(&record),
            },
            traffic: self.service_traffic(id),
            destinations: list.into_iter().map(|id| self.destination_entry(id)).collect(),
        }
    }

    fn persistence(&self, record: &Service) -> Option<Persistence> {
        let timeout_s = load::seconds(record.persistence);
        let netmask = records::netmask(record);
        (record.persistence != 0).then_some(Persistence { timeout_s, netmask })
    }

    pub(super) fn destination_entry(&self, id: u32) -> DestinationEntry {
        let record = self.destination_record(id);
        let tunnel = self.maps.tunnels.read(record.tunnel).unwrap_or_default();
        let counts = self.maps.counts.read(id).unwrap_or_default();
        let connections = counts.connections.get();
        DestinationEntry {
            destination: Wanted {
                id: DestinationId {
                    address: address(record.family, record.address),
                    port: u16::from_be_bytes(record.port),
                },
                method: method_of(&record, &tunnel),
                weight: record.weight,
                upper_threshold: record.upper,
                lower_threshold: record.lower,
            },
            active: connections as u32,
            inactive: (connections >> 32) as u32,
            persistent: counts.persistent.get() as u32,
            traffic: self.destination_traffic(id),
        }
    }
}
