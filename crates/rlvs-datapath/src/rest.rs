//! What belongs to a service and is not steady: states that change, connections that expire, ways that
//! must be asked for, packets that have gone astray.

use rlvs_wire::{tcp, udp};

use crate::abi::{destination_flag, method, settings_flag};
use crate::connection::{Context, Found, Key, Value, seen};
use crate::forward::{answer, deliver, does_not_fit, forward};
use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::process::Half;
use crate::reason::Reason;
use crate::refuse::{Complaint, complain, complain_of_length};
use crate::stage::Stage;
use crate::state::{self, State};
use crate::tables::Tables;

/// Any TCP or UDP packet to or from a service.
#[inline(always)]
pub fn any<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match A::parse(frame) {
        Ok(packet) => carry::<A, F, T, true>(context, frame, &packet, &packet, Stage::open::<A>()),
        Err(reason) => Verdict::Pass(reason),
    }
}

/// Any packet to or from a service, which is found by what the packet is `known_as`; `open` carries
/// one that may open a connection. `PORTS`: see [`Ip::translate`].
#[inline(always)]
pub fn carry<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    known_as: &Packet<A>,
    open: Stage,
) -> Verdict {
    let Some(half) = context.half(known_as) else {
        return context.unnamed::<A, PORTS>(Reason::NoService);
    };
    let Half { key, is_reply } = half;
    match context.find_live(&key) {
        // The stack answers it, in the director's name.
        Some(_) if packet.ttl <= 1 && is_reply => Verdict::Pass(Reason::Expired),
        Some(_) if packet.ttl <= 1 => {
            complain(context, frame, packet, Complaint::TimeExceeded, Reason::Expired)
        }
        Some(found) if is_reply => {
            let track = || context.track_reply::<A, PORTS>(packet, &found);
            answer::<A, F, T, PORTS>(context, frame, packet, &found, track)
        }
        Some(Found { slot, value })
            if context.is_forsaken::<PORTS>(packet.protocol, packet.flags, value) =>
        {
            // Whoever has discarded it, it is gone; or it is discarded by the stage that it needs.
            context.discard::<A, false>(&key, slot, value);
            Verdict::Next(open)
        }
        Some(found) => request::<A, F, T, PORTS>(context, frame, packet, &found),
        None if is_reply => context.unnamed::<A, PORTS>(Reason::NoConnection),
        None if context.may_start::<A, PORTS>(packet) && !context.is_full(&key) => {
            Verdict::Next(open)
        }
        // It has not met the guard before it came here.
        None if !PORTS && context.is_guarded(key.owner) => Verdict::Pass(Reason::NoConnection),
        None => astray(context, frame, packet, key.owner),
    }
}

/// A packet from a client on its connection.
#[inline(always)]
fn request<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Verdict {
    let track = || context.track_request::<A, PORTS>(packet, found);
    let too_big = |frame: &mut F, mtu| complain_of_length(context, frame, packet, mtu);
    let destination = found.value.destination();
    deliver::<A, F, T, PORTS>(context, frame, packet, destination, track, too_big, None)
}

/// A request without a connection that cannot start one or finds no room for it: with a full table
/// it follows its hash, so that connections opened so go on; else it is not ours.
#[inline(always)]
fn astray<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    service: u32,
) -> Verdict {
    Verdict::unpack(astray_out_of_line(context, frame, packet, service))
}

#[inline(never)]
fn astray_out_of_line<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    service: u32,
) -> u64 {
    if context.has_full_nat(service) {
        return Verdict::Next(Stage::full::<A>()).pack();
    }
    let key = Key::new(context.settings, &packet.request(), service);
    let stateless = match context.pick_stateless(&key) {
        Some(id) if context.is_full(&key) => context.destination(id),
        _ => return Verdict::Pass(Reason::NoConnection).pack(),
    };
    let verdict = match stateless {
        Ok((to, _)) if to.method == method::MASQUERADE => Verdict::Pass(Reason::NoConnection),
        Ok((to, row)) => match context.way_to_destination(frame, row, to) {
            Ok(way) => match does_not_fit(frame, packet, to.overhead, &way) {
                Some(mtu) => complain_of_length(context, frame, packet, mtu),
                None => {
                    context.count(Reason::Stateless);
                    // Nothing is translated.
                    forward::<A, F, T, true>(context, frame, packet, to, row, &way)
                }
            },
            Err(verdict) => verdict,
        },
        Err(reason) => Verdict::Drop(reason),
    };
    verdict.pack()
}

impl<T: Tables> Context<'_, T> {
    /// Returns whether a request leaves the connection that it finds behind and opens another.
    #[inline(always)]
    pub(crate) fn is_forsaken<const PORTS: bool>(
        &self,
        protocol: u8,
        flags: u8,
        value: Value,
    ) -> bool {
        let settings = self.settings.flags;
        let expires = settings & settings_flag::EXPIRE_REMOVED != 0;
        let is_half_open = PORTS && protocol == tcp::PROTOCOL && value.state() == State::SYN_RECV;
        if (expires || is_half_open)
            && let Some(destination) = self.tables.destination(value.destination())
        {
            let gone = destination.flags & destination_flag::AVAILABLE == 0;
            let quiet = destination.weight == 0 && state::starts::<PORTS>(protocol, flags);
            // What a template has chosen it would choose again.
            let elsewhere = quiet && !value.is_controlled() && protocol != udp::PROTOCOL;
            if expires && (gone || elsewhere) {
                return true;
            }
            // Its server did not answer, and has been taken out since: nothing will come of it, and no
            // template leads there any more.
            if is_half_open && quiet && !gone && destination.retired_at != 0 {
                return true;
            }
        }
        // As `is_new_conn_expected()`.
        !value.is_controlled()
            && state::begins_anew::<PORTS>(value.state(), seen(value), protocol, flags, settings)
    }

    /// As [`is_forsaken`](Self::is_forsaken), of any protocol.
    #[inline(always)]
    pub(crate) fn is_forsaken_of(&self, protocol: u8, flags: u8, value: Value) -> bool {
        match protocol {
            tcp::PROTOCOL | udp::PROTOCOL => self.is_forsaken::<true>(protocol, flags, value),
            _ => self.is_forsaken::<false>(protocol, flags, value),
        }
    }
}
