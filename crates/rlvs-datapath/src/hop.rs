//! Next hops: where frames go, from the routing table, kept for a second.

use core::cell::Cell;

use crate::abi::{Destination, Hop, ROUTES, Row};
use crate::connection::Context;
use crate::frame::{Answer, Frame, Query, Verdict};
use crate::hash;
use crate::ip::Ip;
use crate::reason::Reason;
use crate::tables::Tables;

/// A way for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The neighbour's MAC address is known.
    Hop(Hop),
    /// The kernel has to find it out.
    Resolve,
}

// What an out-of-line question returns.
const HOP: u32 = 0;
const RESOLVE: u32 = 1;
const UNRESOLVED: u32 = 2;
const UNREACHABLE: u32 = 3;

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the way to a destination.
    #[inline(always)]
    pub fn way_to_destination<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        row: &Row,
        destination: &Destination,
    ) -> Result<Way, Verdict> {
        let hop = row.hop.get();
        if self.is_fresh(&hop) {
            return Ok(Way::Hop(hop));
        }
        let [high, low] = words(&destination.address);
        self.found(&row.hop, self.ask::<A, F>(frame, high, low, &row.hop))
    }

    /// Returns the way to a client.
    #[inline(always)]
    pub fn way_to_client<A: Ip, F: Frame>(&self, frame: &mut F, client: A) -> Result<Way, Verdict> {
        let (high, low) = client.words();
        let slot = hash::mix(&self.settings.keys, low, high) as u32 & (ROUTES - 1);
        let route = self
            .tables
            .route(self.tables.cpu() * ROUTES + slot)
            .ok_or(Verdict::Drop(Reason::Inconsistent))?;
        let hop = route.hop.get();
        if self.is_fresh(&hop) && route.low.get() == low && route.high.get() == high {
            return Ok(Way::Hop(hop));
        }
        let [target_high, target_low] = words(&client.octets());
        let result = self.ask::<A, F>(frame, target_high, target_low, &route.hop);
        if result == HOP {
            route.high.set(high);
            route.low.set(low);
        }
        self.found(&route.hop, result)
    }

    #[inline(always)]
    fn is_fresh(&self, hop: &Hop) -> bool {
        hop.interface != 0 && self.now.since(hop.checked) < self.settings.second
    }

    /// Asks the routing table for an address, given as it stands in memory, and keeps the answer.
    #[inline(never)]
    fn ask<A: Ip, F: Frame>(&self, frame: &mut F, high: u64, low: u64, kept: &Cell<Hop>) -> u32 {
        let target = (u128::from(low) << 64 | u128::from(high)).to_le_bytes();
        let query = Query { family: A::FAMILY.into(), target };
        match frame.query(&query, kept) {
            Answer::Hop => {
                let mut hop = kept.get();
                hop.checked = self.now.0;
                kept.set(hop);
                HOP
            }
            Answer::Unresolved if F::RESOLVES => RESOLVE,
            Answer::Unresolved => UNRESOLVED,
            Answer::NotForwarded | Answer::Unreachable => UNREACHABLE,
        }
    }

    #[inline(always)]
    fn found(&self, kept: &Cell<Hop>, result: u32) -> Result<Way, Verdict> {
        match result {
            HOP => Ok(Way::Hop(kept.get())),
            RESOLVE => Ok(Way::Resolve),
            UNRESOLVED => Err(Verdict::Pass(Reason::Unresolved)),
            _ => Err(Verdict::Drop(Reason::Unreachable)),
        }
    }
}

/// Reads an address as two words without changing the order of its bytes.
#[inline(always)]
fn words(address: &[u8; 16]) -> [u64; 2] {
    let at = |at| u64::from_le_bytes(rlvs_wire::bytes_at(address, at));
    [at(0), at(8)]
}

/// Writes the Ethernet addresses for a way and returns the verdict that sends the frame there.
#[inline(always)]
pub fn send<F: Frame>(frame: &mut F, way: &Way) -> Verdict {
    match way {
        Way::Resolve => Verdict::Resolve,
        Way::Hop(hop) => match frame.head::<12>() {
            Some(head) => {
                rlvs_wire::put_at(head, 0, hop.head.to_ne_bytes());
                rlvs_wire::put_at(head, 8, hop.tail.to_ne_bytes());
                Verdict::Transmit { interface: hop.interface }
            }
            None => Verdict::Drop(Reason::Malformed),
        },
    }
}
