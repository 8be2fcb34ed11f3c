//! ICMP errors that open connections, where `schedule_icmp` asks for it: one that quotes a packet of
//! no known connection goes to the server that the packet itself would have come from, chosen as for a
//! new connection. So several directors in front of the same servers pass on what only one of them knows.
//!
//! [`errors`] and [`quoted`] find no connection and hand on to [`first`],
//! which leaves the quoted packet, turned round, to the stage of [special](crate::special) services;
//! [`carry`] sends the error on once the entries are there. Such a connection has seen no packet yet:
//! its state is NONE, and so is its time-out.

use rlvs_wire::{sctp, udp};

use crate::abi::{service_flag, settings_flag};
use crate::connection::{Context, Found};
use crate::errors::{self, Quote};
use crate::frame::{Frame, Verdict};
use crate::ip::Packet;
use crate::process::Half;
use crate::quoted;
use crate::reason::Reason;
use crate::stage::Stage;
use crate::state::State;
use crate::tables::Tables;
use crate::wide;

/// Flags of a packet that is quoted. None that opens a connection itself has them: of TCP they are SYN and
/// RST at once, of SCTP no type of a chunk that opens.
pub(crate) const QUOTED: u8 = 0xff;

/// Returns the state of a connection that has seen no packet.
#[inline(always)]
pub(crate) fn first_state(protocol: u8) -> State {
    if protocol == sctp::PROTOCOL { State::UNASSOCIATED } else { State::NONE }
}

impl<T: Tables> Context<'_, T> {
    /// Says what becomes of an ICMP error about a request's way back that no connection has.
    #[inline(always)]
    pub(crate) fn about_nothing<A: Quote>(&self) -> Verdict {
        if self.settings.flags & settings_flag::SCHEDULE_ERRORS != 0 {
            Verdict::Next(Stage::adopt::<A>())
        } else {
            Verdict::Pass(Reason::NoConnection)
        }
    }
}

/// Finds the service that a quoted packet came from, and has a connection opened.
// As ip_vs_in_icmp() with sysctl_schedule_icmp().
#[inline(always)]
pub fn first<A: Quote, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::quoted(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if packet.ttl <= 1 {
        return Verdict::Pass(Reason::Expired);
    }
    let service = match context.service_of(&packet) {
        Some(service) => service,
        None => context.service_apart(&packet, frame.mark()),
    };
    let service = context.tables.forget(service.into()) as u32;
    let Some(record) = context.tables.service(service) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let once = record.flags & service_flag::ONE_PACKET != 0 && packet.protocol == udp::PROTOCOL;
    let is_left = record.flags & (service_flag::FULL | service_flag::SIP) != 0;
    if service == 0 || once || is_left {
        return Verdict::Pass(Reason::NoConnection);
    }
    context.leave(&Packet { flags: QUOTED, ..packet }, service, Stage::adopted::<A>())
}

/// Sends an error on to the server of the connection that it has opened.
#[inline(always)]
pub fn carry<A: Quote, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::quoted(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if let Some(Half { key, is_reply: false }) = context.half(&packet)
        && let Some(found) = context.find_live(&key)
    {
        let done = context
            .destination(found.value.destination())
            .map_err(Verdict::Drop)
            .and_then(|(to, row)| errors::to_destination(context, frame, &packet, to, row));
        return match done {
            Ok(verdict) | Err(verdict) => verdict,
        };
    }
    let Some(Found { slot, value }) = context.find_wide_live(&wide::Key::request(&packet)) else {
        return Verdict::Drop(Reason::NoConnection);
    };
    let done = context
        .destination(value.destination())
        .map_err(Verdict::Drop)
        .and_then(|found| quoted::to_server(context, frame, &packet, slot, value, found));
    match done {
        Ok(verdict) | Err(verdict) => verdict,
    }
}
