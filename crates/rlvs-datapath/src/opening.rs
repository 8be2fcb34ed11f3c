//! Requests that may open a connection.

use crate::association;
use crate::connection::Context;
use crate::forward::deliver;
use crate::fragment;
use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::local::Sender;
use crate::reason::Reason;
use crate::refuse::{Complaint, complain};
use crate::schedule::{Opening, quiet};
use crate::stage::Stage;
use crate::tables::Tables;

/// A TCP or UDP request that may open a connection.
#[inline(always)]
pub fn first<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match A::parse(frame) {
        Ok(packet) => start::<A, F, T, true>(context, frame, &packet, Stage::rest::<A>()),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// A request that may open a connection; `rest` carries what does not.
#[inline(always)]
pub fn start<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    rest: Stage,
) -> Verdict {
    let Some(service) = context.service_of(packet) else {
        return Verdict::Pass(Reason::NoService);
    };
    // The connection that it belonged to was discarded.
    if !context.may_start::<A, PORTS>(packet) {
        return Verdict::Pass(Reason::NoConnection);
    }
    match context.sender(frame, service) {
        Sender::Client => {}
        Sender::Peer => return Verdict::Pass(Reason::FromPeer),
        Sender::Here => return Verdict::Pass(Reason::Local),
        Sender::Unknown => return Verdict::Next(Stage::peers::<A>()),
    }
    if context.is_special(service) {
        return context.leave(packet, service, rest);
    }
    match context.open::<A, F, PORTS>(frame, packet, service) {
        Opening::To(id) => {
            // The connection is there, and its packet is found to be too big once more.
            let too_big = |_: &mut F, _| Verdict::Next(rest);
            deliver::<A, F, T, PORTS>(context, frame, packet, id, || {}, too_big, Some(rest))
        }
        // There is no room: it goes astray.
        Opening::There | Opening::Refused(Reason::Stateless) => Verdict::Next(rest),
        Opening::Search => {
            context.search_for(if PORTS { Stage::open::<A>() } else { Stage::associate::<A>() })
        }
        Opening::Ask => {
            context.ask_guard(if PORTS { Stage::open::<A>() } else { Stage::associate::<A>() })
        }
        Opening::Refused(reason) => refuse_start(context, frame, packet, reason),
    }
}

/// Says what becomes of a packet that opens no connection.
#[inline(always)]
pub(crate) fn refuse_start<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    refused: Reason,
) -> Verdict {
    match refused {
        Reason::NoDestination | Reason::TableFull | Reason::ReplyTaken | Reason::NoPort => {
            complain(context, frame, packet, Complaint::PortUnreachable, refused)
        }
        Reason::Denied | Reason::NotAllowed | Reason::TooFast | Reason::TooMany
            if context.tells_refusals() =>
        {
            complain(context, frame, packet, Complaint::PortUnreachable, refused)
        }
        Reason::Expired => complain(context, frame, packet, Complaint::TimeExceeded, refused),
        _ => quiet(refused),
    }
}

/// Asks for the ways to directors that may have sent a request, and has it opened.
#[inline(always)]
pub fn peers<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let (packet, open) = match A::parse(frame) {
        Ok(packet) => (Ok(packet), Stage::open::<A>()),
        Err(Reason::Options | Reason::Fragment) => {
            (fragment::begin::<A, F, T>(context, frame), Stage::odd_open::<A>())
        }
        Err(_) => (association::parse::<A, F>(frame), Stage::associate::<A>()),
    };
    let packet = match packet {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    if let Some(service) = context.service_of(&packet) {
        context.ask_for_a_peer(frame, service);
    }
    Verdict::Next(open)
}
