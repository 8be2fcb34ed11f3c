//! Counts held against the tables that they count, and how full those are.

use std::collections::BTreeMap;

use rlvs_control::model::{DestinationId, ServiceId};
use rlvs_datapath::connection::Value;
use rlvs_datapath::wide;

use super::super::records::service_id;
use super::BpfTable;

/// Readings that a difference must outlast: packets change both sides meanwhile.
const READINGS: u32 = 4;

/// Connections and templates of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Active connections.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
}

/// A destination whose counts are not what the tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// Its service.
    pub service: ServiceId,
    /// Which it is.
    pub id: DestinationId,
    /// What is counted.
    pub counted: Tally,
    /// What is there.
    pub found: Tally,
}

impl Miscount {
    fn difference(&self) -> [u32; 3] {
        let Self { counted, found, .. } = self;
        [
            counted.active.wrapping_sub(found.active),
            counted.inactive.wrapping_sub(found.inactive),
            counted.persistent.wrapping_sub(found.persistent),
        ]
    }
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// What the table is for.
    pub name: &'static str,
    /// Slots in use.
    pub used: u64,
    /// Those of connections whose handshake is not over.
    pub half_open: u64,
    /// Slots that there are.
    pub slots: u64,
}

impl BpfTable {
    /// Returns the destinations that have other counts than connections, by the same difference in each of
    /// several readings. One whose counts packets change during a reading is not judged: who finds nothing
    /// wrong while it is busy may ask again.
    pub fn audit(&self) -> Vec<Miscount> {
        lasting(|| self.read_counts())
    }

    fn read_counts(&self) -> Vec<Miscount> {
        let counted = |number: u32| {
            let entry = self.destination_entry(number);
            let (active, inactive) = (entry.active, entry.inactive);
            Tally { active, inactive, persistent: entry.persistent }
        };
        let before: BTreeMap<u32, Tally> =
            self.destinations.values().map(|&number| (number, counted(number))).collect();
        let found = self.tally();
        let differs = |(&(service, id), &number): (&(u32, DestinationId), &u32)| {
            let counted = counted(number);
            let found = found.get(&number).copied().unwrap_or_default();
            let is_quiet = before.get(&number) == Some(&counted);
            let service = service_id(&self.service_record(service));
            (is_quiet && counted != found).then_some(Miscount { service, id, counted, found })
        };
        self.destinations.iter().filter_map(differs).collect()
    }

    /// Counts what is in the tables, by destination.
    fn tally(&self) -> BTreeMap<u32, Tally> {
        let mut sums = BTreeMap::<u32, Tally>::new();
        let mut connection = |value: u64| {
            let value = Value(value);
            if value.is_live() && !value.is_reply() {
                let (sum, one) =
                    (sums.entry(value.destination()).or_default(), value.state().one());
                sum.active += one as u32;
                sum.inactive += (one >> 32) as u32;
            }
        };
        for index in 0..self.maps.connections4.len() {
            let bucket = self.maps.connections4.read(index).unwrap_or_default();
            bucket.slots.iter().for_each(|slot| connection(slot.value.get()));
        }
        for index in 0..self.maps.connections6.len() {
            let bucket = self.maps.connections6.read(index).unwrap_or_default();
            bucket.slots.iter().for_each(|slot| connection(slot.value.get()));
        }
        let mut templates = Vec::new();
        for index in 0..self.maps.wide.len() {
            for slot in &self.maps.wide.read(index).unwrap_or_default().slots {
                match wide::kind_of(slot.key.get()) {
                    wide::kind::REQUEST => connection(slot.value.get()),
                    wide::kind::TEMPLATE | wide::kind::DEAD => templates.push(slot.value.get()),
                    _ => {}
                }
            }
        }
        for value in templates.into_iter().map(Value).filter(|value| value.is_live()) {
            sums.entry(value.destination()).or_default().persistent += 1;
        }
        sums
    }

    /// Returns how full the tables of connections are.
    pub fn fill(&self) -> Vec<Fill> {
        let maps = &self.maps;
        let buckets4 = (0..maps.connections4.len()).filter_map(|at| maps.connections4.read(at));
        let buckets6 = (0..maps.connections6.len()).filter_map(|at| maps.connections6.read(at));
        let wides = (0..maps.wide.len()).filter_map(|at| maps.wide.read(at));
        use rlvs_datapath::abi::{SLOTS4, SLOTS6, WIDE_SLOTS};
        vec![
            fill_of(
                "IPv4 connections",
                maps.connections4.len() as usize * SLOTS4,
                buckets4.flat_map(|all| all.slots.map(|slot| slot.value.get())),
            ),
            fill_of(
                "IPv6 connections",
                maps.connections6.len() as usize * SLOTS6,
                buckets6.flat_map(|all| all.slots.map(|slot| slot.value.get())),
            ),
            fill_of(
                "templates and connections of any port",
                maps.wide.len() as usize * WIDE_SLOTS,
                wides.flat_map(|all| all.slots.map(|slot| slot.value.get())),
            ),
        ]
    }

    /// Returns the bytes that the tunnel to a destination puts before a packet; 0 if it has none.
    pub fn overhead(&self, service: ServiceId, id: DestinationId) -> u16 {
        self.known(service, id).map_or(0, |number| self.destination_record(number).overhead)
    }
}

fn fill_of(name: &'static str, slots: usize, values: impl Iterator<Item = u64>) -> Fill {
    let (mut used, mut half_open) = (0, 0);
    for value in values.filter(|&value| value != 0).map(Value) {
        used += 1;
        half_open += u64::from(value.state().is_half_open());
    }
    Fill { name, used, half_open, slots: slots as u64 }
}

/// Returns what differs by as much in every reading.
fn lasting(mut read: impl FnMut() -> Vec<Miscount>) -> Vec<Miscount> {
    let mut lasting = read();
    for _ in 1..READINGS {
        if lasting.is_empty() {
            break;
        }
        let again = read();
        let is_same = |one: &Miscount| {
            again.iter().any(|other| {
                (other.service, other.id) == (one.service, one.id)
                    && other.difference() == one.difference()
            })
        };
        lasting.retain(is_same);
    }
    lasting
}

#[cfg(test)]
mod tests {
    use rlvs_control::model::Family;

    use super::*;

    #[test]
    fn only_what_differs_by_as_much_each_time_is_a_miscount() {
        let one = |port, counted, found| Miscount {
            service: ServiceId::Mark { family: Family::V4, mark: 1 },
            id: DestinationId { address: [10, 0, 0, 1].into(), port },
            counted: Tally { active: counted, ..Tally::default() },
            found: Tally { active: found, ..Tally::default() },
        };
        let mut number = 0;
        // The first is wrong by two while it is used, the second is read while connections come and go, the
        // third is seen in one reading only.
        let found = lasting(|| {
            number += 1;
            let mut all = vec![one(1, 10 + number, 8 + number), one(2, 100, 100 - number)];
            all.extend((number == 1).then(|| one(3, 5, 4)));
            all
        });
        assert_eq!(found, [one(1, 11, 9)]);
    }
}
