//! Counters and rates of the table, and the zero points from which they are shown.
//!
//! Programs count up and nobody else writes what they count: zeroing keeps what has been counted in
//! a map of its own, so that no packet goes uncounted.

use rlvs_control::model::{ServiceEntry, Traffic};
use rlvs_datapath::abi::{Base, COUNTERS, Estimate, IDS, Row, Totals};
use rlvs_datapath::estimate;

use super::super::error::Error;
use super::super::records::{counters, traffic};
use super::{BpfTable, service_range};

/// Index of all services together in the maps `estimates` and `bases`, and their element of `totals`
/// for those that are gone.
const ALL: u32 = 0;

/// What is counted, and what in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Since the counters were zeroed.
    pub counted: Traffic,
    /// In a second.
    pub rates: Traffic,
}

impl BpfTable {
    /// Sums the counters of a destination over all CPUs.
    pub(super) fn rows(&self, id: u32) -> [u64; COUNTERS] {
        let mut sum = [0; COUNTERS];
        for row in (0..self.cpus).filter_map(|cpu| self.maps.rows.read(id * self.cpus + cpu)) {
            add(&mut sum, counters(&row));
        }
        sum
    }

    /// Makes what is known of a destination's traffic nothing; no packet is on its way to it.
    pub(super) fn clear_counters(&self, id: u32) {
        for cpu in 0..self.cpus {
            self.maps.rows.write(id * self.cpus + cpu, Row::default());
        }
        self.forget_counters(id);
    }

    /// Keeps what a service has counted in the sum of all, before its records become another's.
    pub(super) fn retire_counters(&self, id: u32) {
        let mut gone = self.maps.totals.read(ALL).unwrap_or_default();
        add(&mut gone.retired, self.sum(id));
        self.maps.totals.write(ALL, gone);
        self.maps.totals.write(id, Totals::default());
        self.forget_counters(IDS + id);
    }

    fn forget_counters(&self, index: u32) {
        self.maps.bases.write(index, Base::default());
        self.maps.estimates.write(index, Estimate::default());
    }

    /// Returns what a service has ever counted, with what destinations that are gone have.
    fn sum(&self, service: u32) -> [u64; COUNTERS] {
        let mut sum = self.maps.totals.read(service).unwrap_or_default().retired;
        for &destination in self.destinations.range(service_range(service)).map(|(_, id)| id) {
            add(&mut sum, self.rows(destination));
        }
        sum
    }

    fn sum_of_all(&self) -> [u64; COUNTERS] {
        let mut sum = self.maps.totals.read(ALL).unwrap_or_default().retired;
        self.services.values().for_each(|&id| add(&mut sum, self.sum(id)));
        sum
    }

    fn since_zero(&self, index: u32, mut sum: [u64; COUNTERS]) -> Traffic {
        let base = self.maps.bases.read(index).unwrap_or_default().counted;
        for (sum, base) in sum.iter_mut().zip(base) {
            *sum = sum.saturating_sub(base);
        }
        traffic(sum)
    }

    /// Returns the counters of a destination.
    pub(super) fn destination_traffic(&self, id: u32) -> Traffic {
        self.since_zero(id, self.rows(id))
    }

    /// Returns the counters of a service.
    pub(super) fn service_traffic(&self, id: u32) -> Traffic {
        self.since_zero(IDS + id, self.sum(id))
    }

    fn rate(&self, index: u32) -> Traffic {
        traffic(estimate::shown(&self.maps.estimates.read(index).unwrap_or_default()))
    }

    /// Puts rates in the place of counters in the entry of the service `id`.
    pub(super) fn put_rates(&self, id: u32, entry: &mut ServiceEntry) {
        entry.traffic = self.rate(IDS + id);
        for to in &mut entry.destinations {
            let known = self.destinations.get(&(id, to.destination.id));
            to.traffic = known.map_or_else(Traffic::default, |&destination| self.rate(destination));
        }
    }

    /// Zeroes a service and `destinations` of it.
    // As ip_vs_zero_service().
    pub(super) fn zero_service(&self, id: u32, destinations: &[u32]) -> Result<(), Error> {
        for &destination in destinations {
            self.zero_at(destination, self.rows(destination))?;
        }
        self.zero_at(IDS + id, self.sum(id))
    }

    /// Zeroes what is counted of all services together.
    pub(super) fn zero_all(&self) -> Result<(), Error> {
        self.zero_at(IDS + ALL, self.sum_of_all())
    }

    /// Remembers what has been counted as the new beginning, and has the rates made 0.
    fn zero_at(&self, index: u32, counted: [u64; COUNTERS]) -> Result<(), Error> {
        self.maps.bases.update(index, &Base { counted })?;
        if let Some(zeroed) = self.maps.estimates.word(index, |record| &record.zeroed) {
            zeroed.store(1, std::sync::atomic::Ordering::SeqCst);
        }
        Ok(())
    }

    /// Returns what each CPU has counted for the destinations that there are, since they were made.
    pub fn counted_by_cpu(&self) -> Vec<Traffic> {
        let rows = |cpu| {
            let mut sum = [0; COUNTERS];
            for &id in self.destinations.values() {
                let row = self.maps.rows.read(id * self.cpus + cpu).unwrap_or_default();
                add(&mut sum, counters(&row));
            }
            traffic(sum)
        };
        (0..self.cpus).map(rows).collect()
    }

    /// Returns what all services have counted, also those that are gone.
    pub fn total(&self) -> Total {
        Total {
            counted: self.since_zero(IDS + ALL, self.sum_of_all()),
            rates: self.rate(IDS + ALL),
        }
    }
}

fn add(sum: &mut [u64; COUNTERS], more: [u64; COUNTERS]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(more);
    }
}
