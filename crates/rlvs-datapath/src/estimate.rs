//! The estimator: connections, packets and bytes in a second, of every destination, every service
//! and all of them, averaged as the kernel's IPVS averages.
//!
//! It looks at everything once in a round of [`ROUND_NS`], a share at each tick of the sweep's timer:
//! first the destinations, which add what they have counted to their services, then the services,
//! then all. A rate is a quarter of what was counted in the round and three quarters of what it was
//! before; connections and packets are kept in units of 2^-10 a second, bytes of 2^-5.
//!
//! Invariant: only the timer writes rates. Whoever wants them to be 0 says so in
//! [`Estimate::zeroed`], and they count as 0 until the timer has made them so.

use crate::abi::{COUNTERS, Estimate, IDS, Row, SweepCursor, settings_flag};
use crate::connection::Context;
use crate::tables::{Tables, bump};

/// Time from one look to the next, as the kernel's.
pub const ROUND_NS: u64 = 2_000_000_000;
/// Ticks in which the destinations, and again the services, are gone through: together with the ticks
/// between they take less than a round.
const SHARES: u32 = 100;

/// Place in a round: destinations by id, then services at [`IDS`] plus id from 1 on, then these.
const ALL: u32 = 2 * IDS;
const DONE: u32 = ALL + 1;

/// How much a counter is shifted to what its rate is kept in, and a rate to what is shown: connections
/// and packets over the two seconds of a round, then bytes.
// As ip_vs_est.c: a multiple of 2^10 or 2^5 for a second.
const FINE: (u32, u32) = (9, 10);
const COARSE: (u32, u32) = (4, 5);
/// By counter.
const POINTS: [(u32, u32); COUNTERS] = [FINE, FINE, FINE, COARSE, COARSE];

/// What one tick looks at: `count` indices of the map `estimates` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The first index.
    pub first: u32,
    /// How many.
    pub count: u32,
}

const NOTHING: Share = Share { first: 0, count: 0 };

/// Returns a rate after a round in which so much was counted.
// As ip_vs_chain_estimation().
#[inline(always)]
#[must_use]
pub const fn averaged(rate: u64, counted: u64, shift: u32) -> u64 {
    let now = counted << (shift & 63);
    rate.wrapping_add((now.wrapping_sub(rate).cast_signed() >> 2).cast_unsigned())
}

/// Returns the rates as they are shown, in whole numbers a second.
// As ip_vs_read_estimator().
#[must_use]
pub fn shown(estimate: &Estimate) -> [u64; COUNTERS] {
    let mut shown = [0; COUNTERS];
    if estimate.zeroed.get() == 0 {
        for ((shown, rate), (_, shift)) in shown.iter_mut().zip(&estimate.rates).zip(POINTS) {
            *shown = rate.get().wrapping_add((1 << (shift - 1)) - 1) >> shift;
        }
    }
    shown
}

impl<T: Tables> Context<'_, T> {
    /// Takes the next share and moves the cursor.
    #[inline(always)]
    pub fn next_share(&self, cursor: &SweepCursor, now_ns: u64) -> Share {
        if self.settings.flags & settings_flag::NO_ESTIMATION != 0 {
            return NOTHING;
        }
        let at = cursor.estimated.get() as u32;
        let (share, next) = if at < IDS {
            part(at, 0, self.settings.destinations, IDS + 1)
        } else if at < ALL {
            part(at, IDS, self.settings.services, ALL)
        } else if at == ALL {
            (Share { first: IDS, count: 1 }, DONE)
        } else {
            let began = cursor.round_ns.get();
            if began == 0 {
                // The first round's end is the beginning of time.
                cursor.round_ns.set(now_ns);
            }
            let since = now_ns.wrapping_sub(began);
            if began == 0 || since < ROUND_NS {
                return NOTHING;
            }
            // Rounds keep step with each other unless the timer was away for one.
            let late = if since < 2 * ROUND_NS { since - ROUND_NS } else { 0 };
            cursor.round_ns.set(now_ns.wrapping_sub(late));
            (NOTHING, 0)
        };
        cursor.estimated.set(u64::from(next));
        share
    }

    /// Adds what a destination has counted on one CPU.
    #[inline(always)]
    pub fn add_row(&self, id: u32, cpu: u32, sum: &mut [u64; COUNTERS]) {
        let row = id.wrapping_mul(self.settings.cpus).wrapping_add(cpu);
        let Some(Row { connections, in_packets, out_packets, in_bytes, out_bytes, .. }) =
            self.tables.row(row)
        else {
            return;
        };
        let counters = [connections, in_packets, out_packets, in_bytes, out_bytes];
        for (sum, counter) in sum.iter_mut().zip(counters) {
            *sum = sum.wrapping_add(self.tables.read(counter));
        }
    }

    /// Looks at a destination whose counters add up to `sum`.
    #[inline(always)]
    pub fn estimate_destination(&self, id: u32, sum: &[u64; COUNTERS]) {
        let Some(destination) = self.tables.destination(id) else { return };
        if destination.service == 0 {
            return;
        }
        let (Some(own), Some(service), Some(all)) = (
            self.tables.estimate(id),
            self.tables.estimate(destination.service.wrapping_add(IDS)),
            self.tables.estimate(IDS),
        ) else {
            return;
        };
        let kept = self.begin(own);
        let totals = service.counted.iter().zip(&all.counted);
        let records = own.counted.iter().zip(&own.rates);
        for (((&sum, (seen, rate)), (service, all)), (shift, _)) in
            sum.iter().zip(records).zip(totals).zip(POINTS)
        {
            // A destination that was freed meanwhile begins at 0 again.
            let before = seen.replace(sum);
            let counted = if sum < before { sum } else { sum - before };
            bump(service, counted);
            bump(all, counted);
            rate.set(averaged(rate.get() & kept, counted, shift));
        }
        self.end(own, kept);
    }

    /// Looks at a service, or at all of them together.
    #[inline(always)]
    pub fn estimate_service(&self, index: u32) {
        let Some(own) = self.tables.estimate(index) else { return };
        let kept = self.begin(own);
        for ((counted, rate), (shift, _)) in own.counted.iter().zip(&own.rates).zip(POINTS) {
            rate.set(averaged(rate.get() & kept, counted.replace(0), shift));
        }
        self.end(own, kept);
    }

    /// Returns the mask of what is kept of the rates: all or nothing.
    #[inline(always)]
    fn begin(&self, estimate: &Estimate) -> u64 {
        self.tables.is_set(self.tables.read(&estimate.zeroed)).wrapping_sub(1)
    }

    #[inline(always)]
    fn end(&self, estimate: &Estimate, kept: u64) {
        // Only a wish that was there at the beginning is fulfilled.
        if kept == 0 {
            self.tables.write(&estimate.zeroed, 0);
        }
    }
}

/// Takes the next share of `count` indices from `begin` on, and tells where the one after it begins:
/// at `behind` if there is none.
#[inline(always)]
const fn part(at: u32, begin: u32, count: u32, behind: u32) -> (Share, u32) {
    let end = begin.wrapping_add(count);
    let size = count / SHARES + 1;
    let next = at.wrapping_add(size);
    if next < end {
        (Share { first: at, count: size }, next)
    } else {
        (Share { first: at, count: end.saturating_sub(at) }, behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen in the kernel: bytes a second after traffic has stopped.
    #[test]
    fn a_rate_falls_as_the_kernels_does() {
        let estimate = Estimate::default();
        estimate.rates[3].set(121 << 5);
        let mut seen = [0; 7];
        for seen in &mut seen {
            *seen = shown(&estimate)[3];
            estimate.rates[3].set(averaged(estimate.rates[3].get(), 0, COARSE.0));
        }
        assert_eq!(seen, [121, 91, 68, 51, 38, 29, 21]);
    }

    #[test]
    fn a_steady_rate_is_reached_by_quarters() {
        let mut rate = 0;
        let mut seen = [0; 6];
        for seen in &mut seen {
            rate = averaged(rate, 2000, FINE.0);
            *seen = rate >> FINE.1;
        }
        assert_eq!(seen, [250, 437, 578, 683, 762, 822]);
    }

    #[test]
    fn shares_cover_every_index_once() {
        const BEHIND: u32 = 1 << 20;
        for count in [1, 2, 99, 100, 101, 5000, IDS - 1, IDS] {
            let (mut at, mut next, mut shares) = (IDS, IDS, 0);
            while next != BEHIND {
                assert_eq!(next, at, "{count}");
                let share;
                (share, next) = part(at, IDS, count, BEHIND);
                assert_eq!(share.first, at, "{count}");
                at += share.count;
                shares += 1;
            }
            assert_eq!(at, IDS + count);
            assert!(shares <= SHARES + 1, "{count}: {shares}");
        }
    }
}
