//! ICMP errors about connections: they find them in both directions.

use crate::connection::Context;
use crate::frame::{Frame, Verdict};
use crate::ip::Ip;
use crate::reason::Reason;
use crate::tables::Tables;

/// An ICMP message to or from anybody.
#[inline(always)]
pub fn related<A: Ip, F: Frame, T: Tables>(_: &Context<'_, T>, _: &mut F) -> Verdict {
    Verdict::Pass(Reason::OtherProtocol)
}
