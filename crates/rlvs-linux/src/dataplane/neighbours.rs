//! What the kernel is asked about the ways to destinations, and told: it keeps their neighbours
//! resolved, so that XDP need not wait for one.

use std::net::IpAddr;

use crate::route::Rtnetlink;

/// Returns the address that this host would send from on the way to another, if there is one.
pub(super) fn source(target: IpAddr) -> Option<IpAddr> {
    Rtnetlink::open().ok()?.source(target).ok()?
}

/// Asks the kernel to keep the way to an address resolved. Nothing depends on it: an unresolved
/// neighbour is resolved by the first packet that needs it, so a refusal is no error.
pub(super) fn keep_resolved(address: IpAddr) {
    let Ok(mut rtnetlink) = Rtnetlink::open() else { return };
    if let Ok(Some((interface, neighbour))) = rtnetlink.next_hop(address) {
        // The interface may be down for now.
        drop(rtnetlink.ensure_managed_neighbour(interface, neighbour));
    }
}
