//! Fragments, IPv4 options and IPv6 extension headers.

use crate::connection::Context;
use crate::frame::{Frame, Verdict};
use crate::ip::Ip;
use crate::reason::Reason;
use crate::tables::Tables;

/// A packet whose headers are not the usual ones.
#[inline(always)]
pub fn odd<A: Ip, F: Frame, T: Tables>(_: &Context<'_, T>, frame: &mut F) -> Verdict {
    match A::parse(frame) {
        Err(reason) => Verdict::Pass(reason),
        Ok(_) => Verdict::Pass(Reason::Options),
    }
}
