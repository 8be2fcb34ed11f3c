//! Next hops: where frames go, from the routing table, kept for a second.

use crate::abi::{Destination, Hop, ROUTES};
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

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the way to a destination.
    #[inline(always)]
    pub fn way_to_destination<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        row: &crate::abi::Row,
        destination: &Destination,
    ) -> Result<Way, Verdict> {
        let hop = row.hop.get();
        if self.is_fresh(&hop) {
            return Ok(Way::Hop(hop));
        }
        let query = Query { family: A::FAMILY.into(), target: destination.address };
        let way = self.ask(frame, &query)?;
        if let Way::Hop(hop) = way {
            row.hop.set(hop);
        }
        Ok(way)
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
        let way = self.ask(frame, &Query { family: A::FAMILY.into(), target: client.octets() })?;
        if let Way::Hop(hop) = way {
            route.high.set(high);
            route.low.set(low);
            route.hop.set(hop);
        }
        Ok(way)
    }

    #[inline(always)]
    fn is_fresh(&self, hop: &Hop) -> bool {
        hop.interface != 0 && self.now.since(hop.checked) < self.settings.second
    }

    #[inline(always)]
    fn ask<F: Frame>(&self, frame: &mut F, query: &Query) -> Result<Way, Verdict> {
        match frame.query(query) {
            Answer::Hop(mut hop) => {
                hop.checked = self.now.0;
                Ok(Way::Hop(hop))
            }
            Answer::Unresolved if F::RESOLVES => Ok(Way::Resolve),
            Answer::Unresolved => Err(Verdict::Pass(Reason::Unresolved)),
            Answer::NotForwarded | Answer::Unreachable => Err(Verdict::Drop(Reason::Unreachable)),
        }
    }
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
