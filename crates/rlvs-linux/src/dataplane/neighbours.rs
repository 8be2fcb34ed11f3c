//! Keeps the neighbours of destinations resolved, so that XDP need not wait for one.

use std::net::IpAddr;

use crate::route::Rtnetlink;

/// Asks the kernel to keep the way to an address resolved. Nothing depends on it: an unresolved
/// neighbour is resolved by the first packet that needs it, so a refusal is no error.
pub(super) fn keep_resolved(address: IpAddr) {
    let Ok(mut rtnetlink) = Rtnetlink::open() else { return };
    if let Ok(Some((interface, neighbour))) = rtnetlink.next_hop(address) {
        // The interface may be down for now.
        drop(rtnetlink.ensure_managed_neighbour(interface, neighbour));
    }
}
