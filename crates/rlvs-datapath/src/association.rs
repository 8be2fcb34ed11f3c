//! SCTP associations.

use crate::connection::Context;
use crate::frame::{Frame, Verdict};
use crate::ip::Ip;
use crate::reason::Reason;
use crate::tables::Tables;

/// An SCTP packet to or from anybody.
#[inline(always)]
pub fn any<A: Ip, F: Frame, T: Tables>(_: &Context<'_, T>, _: &mut F) -> Verdict {
    Verdict::Pass(Reason::OtherProtocol)
}
