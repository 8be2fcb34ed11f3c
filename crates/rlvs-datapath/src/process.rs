//! The forwarding function, in stages.
//!
//! [`process`] carries what nearly every packet is: one in the middle of its connection's life, to
//! or from a destination whose way is known. It changes nothing before it knows that the packet is
//! such a one, and hands any other to the [`Stage`] that can deal with it, which begins anew. In BPF
//! a stage is a program of its own, so that what is rare costs the common packet neither
//! instructions nor stack.
//!
//! Order of a request: is the frame ours, does it go to a service, does its connection exist, can it
//! be opened; then the way to the destination, *then* state, counters and rewriting: a packet that
//! XDP must leave to TC because its neighbour is unknown has changed nothing but the table, and
//! being seen again changes nothing more.

use rlvs_wire::{ethernet, icmp, ipsec, sctp, tcp, u16_at};

use crate::abi::{
    Destination, Hop, INTERFACE_BUCKETS, REASONS, Row, destination_flag, endpoint_kind,
    interface_flag, settings_flag,
};
use crate::connection::{Context, Found, Key, seen};
use crate::endpoint;
use crate::forward::{forward, give_back, headers};
use crate::frame::{Frame, Verdict};
use crate::hop::Way;
use crate::ip::{Ip, Packet, V4, V6};
use crate::reason::Reason;
use crate::stage::Stage;
use crate::state::{self, Seen};
use crate::tables::{Tables, Time, bump};

/// Decides what becomes of a frame, rewrites it accordingly and counts; or names the stage that does.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle::<true, F, T>(frame, tables, |context, frame, kind| match kind {
        ethernet::IPV4 => established::<V4, F, T>(context, frame),
        ethernet::IPV6 => established::<V6, F, T>(context, frame),
        _ => Verdict::Pass(Reason::OtherProtocol),
    })
}

/// Lets `work` decide over a frame that is addressed to the interface it came in by, and counts. `FIRST`
/// says that nobody has looked at the frame before; else XDP, which need not know the interface's flags,
/// asks nothing of it again, and `work` is told of no kind.
#[inline(always)]
pub fn settle<const FIRST: bool, F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    work: impl FnOnce(&Context<'_, T>, &mut F, u16) -> Verdict,
) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(Reason::NoService) };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
    if !FIRST && !F::RESOLVES {
        return context.counted(work(&context, frame, 0), false);
    }
    let interface = frame.interface();
    // Whether XDP sees this interface's frames first, and has counted what it passed.
    let mut behind_xdp = false;
    let verdict = match frame.head::<14>() {
        None => Verdict::Pass(Reason::Malformed),
        Some(head) => {
            let kind = u16_at(head, ethernet::TYPE);
            match context.owns(interface, rlvs_wire::bytes_at(head, ethernet::DESTINATION)) {
                None => Verdict::Pass(Reason::OtherHost),
                Some(flags) => {
                    behind_xdp = flags & interface_flag::XDP != 0;
                    work(&context, frame, kind)
                }
            }
        }
    };
    context.counted(verdict, behind_xdp && F::RESOLVES)
}

/// Which half of which connection a packet would belong to.
pub(crate) struct Half<A> {
    pub(crate) key: Key<A>,
    pub(crate) is_reply: bool,
}

/// A packet in the middle of its connection's life.
#[inline(always)]
fn established<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return unusual::<A, F>(frame, reason),
    };
    let Some(half) = context.half(&packet) else {
        return context.unnamed::<A, true>(Reason::NoService);
    };
    let Some(found) = context.glance(&half.key) else {
        return Verdict::Next(clamped::<A, T>(context, &packet, !half.is_reply));
    };
    let done = if half.is_reply {
        steady_answer(context, frame, &packet, &found)
    } else {
        steady_request(context, frame, &packet, &found)
    };
    done.unwrap_or_else(|| Verdict::Next(clamped::<A, T>(context, &packet, false)))
}

/// Returns what becomes of a packet of another protocol, or whose headers are not the usual ones.
#[inline(always)]
fn unusual<A: Ip, F: Frame>(frame: &mut F, reason: Reason) -> Verdict {
    match (reason, A::protocol(frame)) {
        (Reason::Fragment | Reason::Options, _) => Verdict::Next(Stage::odd::<A>()),
        (Reason::OtherProtocol, Some(icmp::PROTOCOL | icmp::PROTOCOL_V6)) => {
            Verdict::Next(Stage::icmp::<A>())
        }
        (Reason::OtherProtocol, Some(sctp::PROTOCOL | ipsec::ESP | ipsec::AH)) => {
            Verdict::Next(Stage::sctp::<A>())
        }
        _ => Verdict::Pass(reason),
    }
}

/// Returns the stage for a packet that is not simply forwarded.
#[inline(always)]
fn clamped<A: Ip, T: Tables>(context: &Context<'_, T>, packet: &Packet<A>, is_new: bool) -> Stage {
    if context.settings.mss != 0 && packet.flags & tcp::SYN != 0 {
        return Stage::clamp::<A>();
    }
    behind::<A>(packet, is_new)
}

/// Returns the stage for a packet whose segments are short enough; `is_new` tells a request that no
/// connection is found for.
#[inline(always)]
pub fn behind<A: Ip>(packet: &Packet<A>, is_new: bool) -> Stage {
    let may_open = is_new && state::starts::<true>(packet.protocol, packet.flags);
    if may_open { Stage::open::<A>() } else { Stage::rest::<A>() }
}

/// Forwards a request, if nothing about it needs thought.
#[inline(always)]
fn steady_request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Option<Verdict> {
    let (destination, row) = context.destination(found.value.destination()).ok()?;
    let steady = context.is_steady(found.value, seen(found.value), packet.protocol, packet.flags);
    let way = Way { hop: &row.hop, resolve: false };
    if !steady || !context.is_easy(frame, packet, destination, &row.hop.get()) {
        return None;
    }
    context.touch(found);
    Some(forward::<A, F, T, true>(context, frame, packet, destination, row, &way))
}

/// Sends a reply to its client, if nothing about it needs thought.
#[inline(always)]
fn steady_answer<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
) -> Option<Verdict> {
    let (destination, row) = context.destination(found.value.destination()).ok()?;
    let service = context.tables.service(destination.service)?;
    let steady = context.is_steady(found.value, Seen::Reply, packet.protocol, packet.flags);
    let way = Way { hop: context.known_way_to_client(packet.target)?, resolve: false };
    if !steady || !context.is_easy(frame, packet, destination, &way.hop.get()) {
        return None;
    }
    context.touch(found);
    Some(give_back::<A, F, true>(frame, packet, (destination, service), row, &way))
}

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the id of the service that a packet goes to.
    #[inline(always)]
    pub(crate) fn service_of<A: Ip>(&self, packet: &Packet<A>) -> Option<u32> {
        let Packet { target, target_port, protocol, .. } = *packet;
        let kind = endpoint_kind::SERVICE;
        endpoint::Key::new(self.settings, kind, target, target_port, protocol).id(self.tables)
    }

    /// Returns the half that a packet belongs to, if it goes to a service or comes from a NAT
    /// destination.
    #[inline(always)]
    pub(crate) fn half<A: Ip>(&self, packet: &Packet<A>) -> Option<Half<A>> {
        if let Some(owner) = self.service_of(packet) {
            let key = Key::new(self.settings, &packet.request(), owner);
            return Some(Half { key, is_reply: false });
        }
        let Packet { source, source_port, protocol, .. } = *packet;
        let kind = endpoint_kind::REPLY;
        let endpoint = endpoint::Key::new(self.settings, kind, source, source_port, protocol);
        let owner = endpoint.id(self.tables)?;
        Some(Half { key: Key::new(self.settings, &packet.reply(), owner), is_reply: true })
    }

    /// Returns what becomes of a packet that belongs to no connection and service by its ports and
    /// addresses.
    #[inline(always)]
    pub(crate) fn unnamed<A: Ip, const PORTS: bool>(&self, reason: Reason) -> Verdict {
        const APART: u32 = settings_flag::WIDE | settings_flag::TELL_SERVERS;
        if PORTS && self.settings.flags & APART != 0 {
            Verdict::Next(Stage::apart::<A>())
        } else if !PORTS && self.settings.flags & settings_flag::WIDE != 0 {
            Verdict::Next(Stage::strange::<A>())
        } else {
            Verdict::Pass(reason)
        }
    }

    /// Returns whether a packet that belongs to no connection may start one.
    #[inline(always)]
    pub(crate) fn may_start<A: Ip, const PORTS: bool>(&self, packet: &Packet<A>) -> bool {
        let Packet { protocol, flags, .. } = *packet;
        state::starts::<PORTS>(protocol, flags)
            || state::goes_on::<PORTS>(self.settings.flags, protocol, flags)
    }

    /// Returns whether a packet may live on, its destination is there, and the way is known and wide
    /// enough.
    #[inline(always)]
    fn is_easy<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        packet: &Packet<A>,
        destination: &Destination,
        hop: &Hop,
    ) -> bool {
        const FLAGS: u8 = destination_flag::AVAILABLE | destination_flag::PEER;
        packet.ttl > 1
            && destination.flags & FLAGS == destination_flag::AVAILABLE
            && self.is_fresh(hop)
            && frame.segment(packet.length, |frame| headers::<A, F>(frame, packet.protocol))
                + u32::from(destination.overhead)
                <= hop.mtu
    }

    /// Returns the flags of the interface if `mac` is one of its addresses.
    #[inline(always)]
    fn owns(&self, interface: u32, mac: [u8; 6]) -> Option<u32> {
        let [a, b, c, d, e, f] = mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let bucket = self.tables.interfaces(interface & (INTERFACE_BUCKETS - 1))?;
        for slot in &bucket.slots {
            if slot.index == interface && slot.mac == mac {
                return Some(slot.flags);
            }
        }
        None
    }

    /// Returns a destination and this CPU's row of it.
    #[inline(always)]
    pub(crate) fn destination(&self, id: u32) -> Result<(&'a Destination, &'a Row), Reason> {
        let destination = self.tables.destination(id).ok_or(Reason::Inconsistent)?;
        let row = self.tables.row(self.row_index(id)).ok_or(Reason::Inconsistent)?;
        Ok((destination, row))
    }

    /// Counts why a packet is not simply forwarded; `is_seen` tells that XDP has counted what it passed.
    #[inline(always)]
    fn counted(&self, verdict: Verdict, is_seen: bool) -> Verdict {
        let reason = match verdict {
            Verdict::Pass(reason) => (!is_seen).then_some(reason),
            Verdict::Drop(reason) => Some(reason),
            Verdict::Arrive => Some(Reason::Local),
            Verdict::Transmit { .. } | Verdict::Resolve { .. } | Verdict::Next(_) => None,
        };
        if let Some(reason) = reason {
            self.count(reason);
        }
        verdict
    }

    /// Counts a reason.
    #[inline(always)]
    pub fn count(&self, reason: Reason) {
        if let Some(counter) = self.tables.reason(self.tables.cpu() * REASONS + reason as u32) {
            bump(counter, 1);
        }
    }
}
