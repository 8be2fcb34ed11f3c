//! The largest segment that each end of a connection says it takes (RFC 9293, section 3.7.1), lowered on
//! its way to the other, so that segments fit where too many ICMP errors are lost.

use rlvs_wire::{checksum, tcp, u8_at};

use crate::connection::Context;
use crate::frame::{Deltas, Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::process;
use crate::reason::Reason;
use crate::tables::Tables;

/// Bytes of options that a TCP header has room for.
const OPTIONS_MAX: u32 = 40;

/// A packet with SYN, of a service. Who says nothing takes 536 bytes, and that is left.
#[inline(always)]
pub fn clamp<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Pass(reason),
    };
    let Some(half) = context.half(&packet) else { return Verdict::Pass(Reason::NoService) };
    let at = said_at::<A, F, T>(frame, context.tables) as usize;
    if at != 0 && !lower::<A, F>(frame, at, context.settings.mss as u16) {
        return Verdict::Pass(Reason::Malformed);
    }
    let is_new = context.glance(&half.key).is_none();
    Verdict::Next(process::behind::<A>(&packet, is_new && !half.is_reply))
}

/// Lowers what a packet announces that has not come by [`clamp`], as no endpoint names it.
#[inline(always)]
pub(crate) fn limit<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
) -> Result<(), Verdict> {
    let limit = context.settings.mss;
    if limit == 0 || packet.protocol != tcp::PROTOCOL || packet.flags & tcp::SYN == 0 {
        return Ok(());
    }
    let at = said_at::<A, F, T>(frame, context.tables);
    if at != 0 && lower_at::<A, F>(frame, at, limit as u16) == 0 {
        return Err(Verdict::Pass(Reason::Malformed));
    }
    Ok(())
}

/// As [`lower`], out of line; returns 1 if it is done.
#[inline(never)]
fn lower_at<A: Ip, F: Frame>(frame: &mut F, at: u32, limit: u16) -> u32 {
    lower::<A, F>(frame, at as usize, limit).into()
}

/// Returns the offset of what the option says, 0 if there is no such option.
#[inline(never)]
fn said_at<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> u32 {
    let Some(header) = frame.at::<{ tcp::LENGTH }>(A::TRANSPORT) else { return 0 };
    let length = u32::from(u8_at(header, tcp::DATA_OFFSET) >> 4) * 4;
    let end = tables.forget(A::TRANSPORT as u64 + u64::from(length)) as u32;
    let mut at = (A::TRANSPORT + tcp::LENGTH) as u32;
    for _ in 0..OPTIONS_MAX {
        at = tables.forget(at.into()) as u32;
        if at + tcp::option::MSS_LENGTH > end {
            break;
        }
        let Some(&mut [kind, size]) = frame.at::<2>(at as usize) else { break };
        at += match kind {
            tcp::option::NOP => 1,
            tcp::option::MSS if u32::from(size) == tcp::option::MSS_LENGTH => return at + 2,
            tcp::option::END | tcp::option::MSS => break,
            _ if size >= 2 => size.into(),
            _ => break,
        };
    }
    0
}

/// Lowers the 16 bits at an offset to a limit, lets the checksum follow.
#[inline(always)]
fn lower<A: Ip, F: Frame>(frame: &mut F, at: usize, limit: u16) -> bool {
    let Some(said) = frame.at::<2>(at) else { return false };
    let old = u16::from_be_bytes(*said);
    if old <= limit {
        return true;
    }
    *said = limit.to_be_bytes();
    // At an odd offset its halves stand in two words of the sum.
    let port = match (at - A::TRANSPORT) & 1 {
        0 => checksum::delta(old, limit),
        _ => checksum::delta(old.swap_bytes(), limit.swap_bytes()),
    };
    let deltas = Deltas { address: 0, port };
    frame.follow_at(A::TRANSPORT + tcp::CHECKSUM, false, A::FAMILY != 4, deltas).is_some()
}
