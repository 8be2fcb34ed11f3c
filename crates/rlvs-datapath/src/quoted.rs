//! ICMP errors about connections of the wide table, as [`errors`](crate::errors) has them about others:
//! of services of any port or of a mark, and of full NAT, where both ends of the error and of what it
//! quotes are replaced.

use rlvs_wire::udp;

use crate::abi::{Destination, Row, WideSlot, destination_flag, method};
use crate::apart::{count_answer, count_request, deltas};
use crate::connection::{Context, Found, Value};
use crate::errors::{Quote, fit};
use crate::forward::{account, forward};
use crate::frame::{Frame, Verdict};
use crate::full::{Ends, substitute};
use crate::hop::{self, Way};
use crate::ip::{End, Packet};
use crate::local;
use crate::reason::Reason;
use crate::stage::Stage;
use crate::tables::Tables;
use crate::wide::{Key, ports_of};

/// An ICMP error about none of the ordinary connections.
#[inline(always)]
pub fn related<A: Quote, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::quoted(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    let reply = context.find_wide_live(&Key::reply(&packet));
    let (is_reply, found) = match reply {
        Some(found) => (true, Some(found)),
        None => (false, context.find_wide_live(&Key::request(&packet))),
    };
    let Some(Found { slot, value }) = found else {
        return match packet.protocol {
            udp::PROTOCOL if context.service_of(&packet).is_none() => {
                Verdict::Next(Stage::relay::<A>())
            }
            _ => context.about_nothing::<A>(),
        };
    };
    if packet.ttl <= 1 {
        return Verdict::Pass(Reason::Expired);
    }
    let done = context.destination(value.destination()).map_err(Verdict::Drop).and_then(|found| {
        if is_reply {
            to_client(context, frame, &packet, slot, value, found)
        } else {
            to_server(context, frame, &packet, slot, value, found)
        }
    });
    match done {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// Hands an error from the servers' side to the client.
#[inline(always)]
fn to_client<A: Quote, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    slot: &WideSlot,
    value: Value,
    (destination, row): (&Destination, &Row),
) -> Result<Verdict, Verdict> {
    let ends = if value.is_substituted() {
        let service = context.tables.service(destination.service);
        context.to_client(slot, service.ok_or(Verdict::Drop(Reason::Inconsistent))?)
    } else {
        let [high, low] = &slot.other;
        Ends {
            source: (context.tables.read(high), context.tables.read(low)),
            target: packet.target.words(),
            ports: (ports_of(context.tables.read(&slot.key)).2, packet.target_port),
        }
    };
    let (high, low) = ends.target;
    let way = match context.way_to_client(frame, A::from_words(high, low)) {
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES && !value.is_substituted() => {
            count_answer(row, packet.length);
            return Ok(context.replace::<A>(End::Source, ends.source, ends.ports.0, local::ERROR));
        }
        way => way?,
    };
    fit(frame, packet, 0, &way)?;
    exchange(frame, packet, &ends)?;
    count_answer(row, packet.length);
    Ok(hop::send(frame, &way))
}

/// Hands an error from the clients' side to the server whose packet it quotes.
#[inline(always)]
pub(crate) fn to_server<A: Quote, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    slot: &WideSlot,
    value: Value,
    (destination, row): (&Destination, &Row),
) -> Result<Verdict, Verdict> {
    let is_nat = destination.method == method::MASQUERADE;
    let way: Way<'_> = match context.way_to_destination(frame, row, destination) {
        Err(Verdict::Pass(Reason::Local))
            if F::RESOLVES
                && is_nat
                && !value.is_substituted()
                && destination.flags & destination_flag::LOCAL != 0 =>
        {
            let address = A::from_octets(&destination.address).words();
            let port = ports_of(context.tables.read(&slot.key)).2;
            count_request(row, packet.length);
            return Ok(context.replace::<A>(End::Target, address, port, local::ERROR));
        }
        way => way?,
    };
    fit(frame, packet, destination.overhead, &way)?;
    if !is_nat {
        let message = Packet { protocol: A::ICMP, ..*packet };
        return Ok(forward::<A, F, T, true>(context, frame, &message, destination, row, &way));
    }
    let ends = if value.is_substituted() {
        context.to_server(slot, destination)
    } else {
        Ends {
            source: packet.source.words(),
            target: A::from_octets(&destination.address).words(),
            ports: (packet.source_port, ports_of(context.tables.read(&slot.key)).2),
        }
    };
    exchange(frame, packet, &ends)?;
    Ok(account(frame, packet, row, &way))
}

/// Replaces those ends of an error, and the opposite ones of what it quotes, that are other ones then. A
/// router's address stands where it stood if the client's end does.
#[inline(always)]
fn exchange<A: Quote, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    by: &Ends,
) -> Result<(), Verdict> {
    let done = exchange_out_of_line(frame, packet, by);
    if done == 0 { Err(Verdict::Drop(Reason::Malformed)) } else { Ok(()) }
}

#[inline(never)]
fn exchange_out_of_line<A: Quote, F: Frame>(frame: &mut F, packet: &Packet<A>, by: &Ends) -> u32 {
    let (port, peer_port) = by.ports;
    let mut is_lowered = false;
    if (by.target, peer_port) != (packet.target.words(), packet.target_port) {
        if replace_target(frame, packet, by.target, peer_port) == 0 {
            return 0;
        }
        is_lowered = true;
    }
    if (by.source, port) == (packet.source.words(), packet.source_port) {
        return is_lowered.into();
    }
    if is_lowered {
        replace_source::<A, F, false>(frame, packet, by.source, port)
    } else {
        replace_source::<A, F, true>(frame, packet, by.source, port)
    }
}

#[inline(always)]
fn replace_target<A: Quote, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    (high, low): (u64, u64),
    port: u16,
) -> u32 {
    let address = A::from_words(high, low).octets();
    let deltas = deltas(packet.target, packet.target_port, &address, port);
    let by = substitute(End::Target, &address, port, deltas);
    A::translate_error(frame, packet, &by, true).is_some().into()
}

#[inline(always)]
fn replace_source<A: Quote, F: Frame, const LOWER: bool>(
    frame: &mut F,
    packet: &Packet<A>,
    (high, low): (u64, u64),
    port: u16,
) -> u32 {
    let address = A::from_words(high, low).octets();
    let deltas = deltas(packet.source, packet.source_port, &address, port);
    let by = substitute(End::Source, &address, port, deltas);
    A::translate_error(frame, packet, &by, LOWER).is_some().into()
}
