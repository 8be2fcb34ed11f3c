//! What the kernel is asked about the ways to destinations, and told: it keeps their neighbours
//! resolved, so that XDP need not wait for one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rlvs_datapath::abi::destination_flag;

use crate::route::{Rtnetlink, Way};

/// The ways that have been asked for, by one socket.
#[derive(Debug, Default)]
pub(super) struct Ways {
    rtnetlink: Option<Rtnetlink>,
    /// The last address asked for: it is asked for again by who adds a destination.
    last: Option<(IpAddr, Option<Way>)>,
    /// Neighbours that are kept resolved already.
    kept: BTreeSet<(u32, IpAddr)>,
    /// The kernel has no room for more neighbours.
    is_full: bool,
    asked: u64,
}

impl Ways {
    /// Returns how many questions the kernel was asked.
    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    fn rtnetlink(&mut self) -> Option<&mut Rtnetlink> {
        if self.rtnetlink.is_none() {
            self.rtnetlink = Rtnetlink::open().ok();
        }
        self.rtnetlink.as_mut()
    }

    fn way(&mut self, address: IpAddr) -> Option<Way> {
        if let Some((known, way)) = &self.last
            && *known == address
        {
            return *way;
        }
        self.asked += 1;
        let way = self.rtnetlink()?.way(address).ok().flatten();
        self.last = Some((address, way));
        way
    }

    /// Returns what the routing table says of a destination's place, as [`destination_flag`] bits;
    /// none if it cannot be asked.
    pub(super) fn place(&mut self, address: IpAddr) -> u8 {
        self.last = None;
        match self.way(address) {
            Some(way) if way.local => destination_flag::LOCAL,
            Some(Way { hop: Some((_, neighbour)), .. }) if neighbour == address => {
                destination_flag::ADJACENT
            }
            _ => 0,
        }
    }

    /// Returns the address that this host would send from on the way to another, if there is one.
    pub(super) fn source(&mut self, target: IpAddr) -> Option<IpAddr> {
        self.way(target)?.source
    }

    /// Returns the interface and the neighbour by which a destination is reached, if it is not here.
    pub(super) fn hop(&mut self, target: IpAddr) -> Option<(u32, IpAddr)> {
        self.way(target)?.hop
    }

    /// Asks the kernel to keep neighbours resolved. Nothing depends on it: an unresolved neighbour is
    /// resolved by the first packet that needs it, so a refusal is no error.
    pub(super) fn keep_resolved(&mut self, hops: BTreeSet<(u32, IpAddr)>) {
        for (interface, neighbour) in hops {
            if self.is_full || !self.kept.insert((interface, neighbour)) {
                continue;
            }
            if let Some(rtnetlink) = self.rtnetlink()
                && let Err(error) = rtnetlink.ensure_managed_neighbour(interface, neighbour)
            {
                // Any other refusal is of this one: its interface may be down for now.
                self.is_full = error.refusal() == Some(libc::ENOBUFS);
            }
        }
    }
}
