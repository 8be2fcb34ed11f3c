//! Next hops: where frames go, from the routing table, kept for a second.

use core::cell::Cell;

use crate::abi::{Destination, Hop, ROUTES, Route, Row};
use crate::connection::Context;
use crate::frame::{Answer, Frame, Query, Verdict};
use crate::hash;
use crate::ip::{Ip, V4, V6};
use crate::reason::Reason;
use crate::tables::Tables;

/// A way for a packet. Every field is always set: BPF may not even copy what is not.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The hop, unless the kernel has to find out the neighbour's MAC address.
    pub hop: &'a Cell<Hop>,
    /// Whether it has to.
    pub resolve: bool,
}

// What an out-of-line question returns.
const HOP: u32 = 0;
const RESOLVE: u32 = 1;
const UNRESOLVED: u32 = 2;
const UNREACHABLE: u32 = 3;
const LOCAL: u32 = 4;

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the way to a destination, which may be of another family than the packet. One that is
    /// this host itself is to be passed, as [`Reason::Local`]; the same is said of one to which no route
    /// leads at all, as the look-up does not tell: whoever asks looks at
    /// [`LOCAL`](crate::abi::destination_flag::LOCAL).
    #[inline(always)]
    pub fn way_to_destination<F: Frame>(
        &self,
        frame: &mut F,
        row: &'a Row,
        destination: &Destination,
    ) -> Result<Way<'a>, Verdict> {
        if self.is_fresh(&row.hop.get()) {
            return Ok(Way { hop: &row.hop, resolve: false });
        }
        let [high, low] = words(&destination.address);
        let result = if destination.family == V4::FAMILY {
            self.ask::<V4, F>(frame, high, low, &row.hop)
        } else {
            self.ask::<V6, F>(frame, high, low, &row.hop)
        };
        self.found(&row.hop, result)
    }

    /// Returns the way to a client.
    #[inline(always)]
    pub fn way_to_client<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        client: A,
    ) -> Result<Way<'a>, Verdict> {
        let route = self.route(client).ok_or(Verdict::Drop(Reason::Inconsistent))?;
        let (high, low) = client.words();
        let kept = route.low.get() == low && route.high.get() == high;
        if kept && self.is_fresh(&route.hop.get()) {
            return Ok(Way { hop: &route.hop, resolve: false });
        }
        let [target_high, target_low] = words(&client.octets());
        let result = self.ask::<A, F>(frame, target_high, target_low, &route.hop);
        if result == HOP {
            route.high.set(high);
            route.low.set(low);
        }
        self.found(&route.hop, result)
    }

    /// Returns the way to a client if this CPU has one, fresh or not.
    #[inline(always)]
    pub fn known_way_to_client<A: Ip>(&self, client: A) -> Option<&'a Cell<Hop>> {
        let route = self.route(client)?;
        let (high, low) = client.words();
        if route.low.get() == low && route.high.get() == high { Some(&route.hop) } else { None }
    }

    /// Returns where this CPU keeps the way to a client.
    #[inline(always)]
    fn route<A: Ip>(&self, client: A) -> Option<&'a Route> {
        let (high, low) = client.words();
        let slot = hash::mix(&self.settings.keys, low, high) as u32 & (ROUTES - 1);
        self.tables.route(self.tables.cpu() * ROUTES + slot)
    }

    /// Returns whether a way is known and was asked for within the last second.
    #[inline(always)]
    pub fn is_fresh(&self, hop: &Hop) -> bool {
        hop.interface != 0 && self.now.since(hop.checked) < self.settings.second
    }

    /// Asks the routing table for an address, given as it stands in memory, and keeps the answer.
    #[inline(never)]
    fn ask<A: Ip, F: Frame>(&self, frame: &mut F, high: u64, low: u64, kept: &Cell<Hop>) -> u32 {
        let target = (u128::from(low) << 64 | u128::from(high)).to_le_bytes();
        let query = Query { family: A::FAMILY.into(), now: self.now.0, target };
        match frame.query(&query, kept) {
            Answer::Hop => HOP,
            Answer::Unresolved if F::RESOLVES => RESOLVE,
            Answer::Unresolved => UNRESOLVED,
            Answer::NotForwarded => LOCAL,
            Answer::Unreachable => UNREACHABLE,
        }
    }

    #[inline(always)]
    fn found(&self, hop: &'a Cell<Hop>, result: u32) -> Result<Way<'a>, Verdict> {
        match result {
            HOP => Ok(Way { hop, resolve: false }),
            RESOLVE => Ok(Way { hop, resolve: true }),
            UNRESOLVED => Err(Verdict::Pass(Reason::Unresolved)),
            LOCAL => Err(Verdict::Pass(Reason::Local)),
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
pub fn send<F: Frame>(frame: &mut F, way: &Way<'_>) -> Verdict {
    if way.resolve {
        frame.resolve(way.hop);
        return Verdict::Resolve { interface: way.hop.get().awaited().0 };
    }
    let hop = way.hop.get();
    let Some(head) = frame.head::<12>() else { return Verdict::Drop(Reason::Malformed) };
    rlvs_wire::put_at(head, 0, hop.head.to_ne_bytes());
    rlvs_wire::put_at(head, 8, hop.tail.to_ne_bytes());
    Verdict::Transmit { interface: hop.interface }
}
