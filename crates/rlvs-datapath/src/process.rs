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

use rlvs_wire::{ethernet, icmp, ipsec, ipv4, ipv6, sctp, tcp, u8_at, u16_at, udp};

use crate::abi::{
    Destination, Hop, INTERFACE_BUCKETS, REASONS, Row, Service, destination_flag, endpoint_kind,
    interface_flag, method, settings_flag,
};
use crate::apart;
use crate::association;
use crate::connection::{Context, Found, Key, Value, seen};
use crate::endpoint;
use crate::errors::{self, Quote};
use crate::fragment;
use crate::frame::{Deltas, Frame, Verdict};
use crate::hop::{self, Way};
use crate::ip::{End, IP, Ip, Packet, Substitute, V4, V6};
use crate::local::{self, Sender};
use crate::mss;
use crate::reason::Reason;
use crate::refuse::{Complaint, refuse};
use crate::relay::{self, Relayed};
use crate::schedule::{Opening, quiet};
use crate::schedulers;
use crate::special;
use crate::state::{self, Seen};
use crate::tables::{Tables, Time, bump};
use crate::tunnel;

/// What goes on where [`process`] stops.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// An IPv4 request that may open a connection.
    Open4 = 0,
    /// The same over IPv6.
    Open6 = 1,
    /// Anything else that belongs to a service over IPv4: states that change, connections that
    /// expire, ways to be asked for, replies that nothing is known of.
    Rest4 = 2,
    /// The same over IPv6.
    Rest6 = 3,
    /// ICMP.
    Icmp4 = 4,
    /// ICMPv6.
    Icmp6 = 5,
    /// IPv4 with options, or a fragment.
    Odd4 = 6,
    /// IPv6 with extension headers, a fragment header among them.
    Odd6 = 7,
    /// SCTP, AH and ESP over IPv4.
    Sctp4 = 8,
    /// SCTP, AH and ESP over IPv6.
    Sctp6 = 9,
    /// What [`Odd4`](Self::Odd4) is for and may open a connection.
    OddOpen4 = 10,
    /// The same over IPv6.
    OddOpen6 = 11,
    /// The ways to directors that may have sent an IPv4 request are to be asked for.
    Peers4 = 12,
    /// The same over IPv6.
    Peers6 = 13,
    /// An SCTP packet over IPv4 that may open an association.
    Associate4 = 14,
    /// The same over IPv6.
    Associate6 = 15,
    /// The largest segment that an IPv4 packet announces is to be lowered.
    Clamp4 = 16,
    /// The same over IPv6.
    Clamp6 = 17,
    /// An ICMP error may be about a tunnel's packet over IPv4.
    Relay4 = 18,
    /// The same over IPv6.
    Relay6 = 19,
    /// The destination of a new connection is to be searched for among many.
    Search = 20,
    /// A new IPv4 connection of a service that needs more than an entry.
    Special4 = 21,
    /// The same over IPv6.
    Special6 = 22,
    /// Its destination is chosen, and the entries are to be made.
    Join4 = 23,
    /// The same over IPv6.
    Join6 = 24,
    /// An IPv4 packet that no endpoint names.
    Apart4 = 25,
    /// The same over IPv6.
    Apart6 = 26,
    /// One that is no request of a connection.
    Back4 = 27,
    /// The same over IPv6.
    Back6 = 28,
}

impl Stage {
    /// Every stage, in the order of their numbers.
    pub const ALL: [Self; 29] = [
        Self::Open4,
        Self::Open6,
        Self::Rest4,
        Self::Rest6,
        Self::Icmp4,
        Self::Icmp6,
        Self::Odd4,
        Self::Odd6,
        Self::Sctp4,
        Self::Sctp6,
        Self::OddOpen4,
        Self::OddOpen6,
        Self::Peers4,
        Self::Peers6,
        Self::Associate4,
        Self::Associate6,
        Self::Clamp4,
        Self::Clamp6,
        Self::Relay4,
        Self::Relay6,
        Self::Search,
        Self::Special4,
        Self::Special6,
        Self::Join4,
        Self::Join6,
        Self::Apart4,
        Self::Apart6,
        Self::Back4,
        Self::Back6,
    ];

    /// Returns whether packets are balanced without it, but for those that it is for: what has
    /// unusual headers, SCTP and IPsec.
    pub const fn is_optional(self) -> bool {
        matches!(
            self,
            Self::Odd4
                | Self::Odd6
                | Self::OddOpen4
                | Self::OddOpen6
                | Self::Sctp4
                | Self::Sctp6
                | Self::Associate4
                | Self::Associate6
                | Self::Relay4
                | Self::Relay6
        )
    }

    /// Returns the end of the names of the programs that carry it out.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open4 => "open4",
            Self::Open6 => "open6",
            Self::Rest4 => "rest4",
            Self::Rest6 => "rest6",
            Self::Icmp4 => "icmp4",
            Self::Icmp6 => "icmp6",
            Self::Odd4 => "odd4",
            Self::Odd6 => "odd6",
            Self::Sctp4 => "sctp4",
            Self::Sctp6 => "sctp6",
            Self::OddOpen4 => "begin4",
            Self::OddOpen6 => "begin6",
            Self::Peers4 => "peers4",
            Self::Peers6 => "peers6",
            Self::Associate4 => "associate4",
            Self::Associate6 => "associate6",
            Self::Clamp4 => "clamp4",
            Self::Clamp6 => "clamp6",
            Self::Relay4 => "relay4",
            Self::Relay6 => "relay6",
            Self::Search => "search",
            Self::Special4 => "special4",
            Self::Special6 => "special6",
            Self::Join4 => "join4",
            Self::Join6 => "join6",
            Self::Apart4 => "apart4",
            Self::Apart6 => "apart6",
            Self::Back4 => "back4",
            Self::Back6 => "back6",
        }
    }

    /// Returns the stage of a number; an unknown number is the last stage's.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Open4,
            1 => Self::Open6,
            2 => Self::Rest4,
            3 => Self::Rest6,
            4 => Self::Icmp4,
            5 => Self::Icmp6,
            6 => Self::Odd4,
            7 => Self::Odd6,
            8 => Self::Sctp4,
            9 => Self::Sctp6,
            10 => Self::OddOpen4,
            11 => Self::OddOpen6,
            12 => Self::Peers4,
            13 => Self::Peers6,
            14 => Self::Associate4,
            15 => Self::Associate6,
            16 => Self::Clamp4,
            17 => Self::Clamp6,
            18 => Self::Relay4,
            19 => Self::Relay6,
            20 => Self::Search,
            21 => Self::Special4,
            22 => Self::Special6,
            23 => Self::Join4,
            24 => Self::Join6,
            25 => Self::Apart4,
            26 => Self::Apart6,
            27 => Self::Back4,
            _ => Self::Back6,
        }
    }

    #[inline(always)]
    const fn open<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Open4 } else { Self::Open6 }
    }

    #[inline(always)]
    const fn clamp<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Clamp4 } else { Self::Clamp6 }
    }

    /// Returns the stage of errors about tunnels for an IP version.
    #[inline(always)]
    pub const fn relay<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Relay4 } else { Self::Relay6 }
    }

    /// Returns the stage that asks for directors for an IP version.
    #[inline(always)]
    pub const fn peers<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Peers4 } else { Self::Peers6 }
    }

    #[inline(always)]
    pub(crate) const fn rest<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Rest4 } else { Self::Rest6 }
    }

    #[inline(always)]
    pub(crate) const fn odd_open<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::OddOpen4 } else { Self::OddOpen6 }
    }

    #[inline(always)]
    pub(crate) const fn odd<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Odd4 } else { Self::Odd6 }
    }

    /// Returns the stage of special services for an IP version.
    #[inline(always)]
    pub const fn special<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Special4 } else { Self::Special6 }
    }

    /// Returns the stage of packets that no endpoint names.
    #[inline(always)]
    pub const fn apart<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Apart4 } else { Self::Apart6 }
    }

    /// Returns the stage of those that are no requests of a connection.
    #[inline(always)]
    pub const fn back<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Back4 } else { Self::Back6 }
    }

    /// Returns the stage that makes their entries.
    #[inline(always)]
    pub const fn join<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Join4 } else { Self::Join6 }
    }

    /// Returns the stage of SCTP for an IP version.
    #[inline(always)]
    pub const fn sctp<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Sctp4 } else { Self::Sctp6 }
    }

    /// Returns the stage that opens associations for an IP version.
    #[inline(always)]
    pub const fn associate<A: Ip>() -> Self {
        if A::FAMILY == 4 { Self::Associate4 } else { Self::Associate6 }
    }
}

/// Returns what becomes of a packet of another protocol, or whose headers are not the usual ones.
#[inline(always)]
fn unusual<A: Ip, F: Frame>(frame: &mut F, reason: Reason) -> Verdict {
    let icmp = if A::FAMILY == 4 { Stage::Icmp4 } else { Stage::Icmp6 };
    match (reason, A::protocol(frame)) {
        (Reason::Fragment | Reason::Options, _) => Verdict::Next(Stage::odd::<A>()),
        (Reason::OtherProtocol, Some(icmp::PROTOCOL | icmp::PROTOCOL_V6)) => Verdict::Next(icmp),
        (Reason::OtherProtocol, Some(sctp::PROTOCOL | ipsec::ESP | ipsec::AH)) => {
            Verdict::Next(Stage::sctp::<A>())
        }
        _ => Verdict::Pass(reason),
    }
}

/// Decides what becomes of a frame, rewrites it accordingly and counts; or names the stage that does.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, kind| match kind {
        ethernet::IPV4 => established::<V4, F, T>(context, frame),
        ethernet::IPV6 => established::<V6, F, T>(context, frame),
        _ => Verdict::Pass(Reason::OtherProtocol),
    })
}

/// Carries out the stages [`Stage::Open4`] and [`Stage::Open6`].
#[inline(always)]
pub fn open<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| first::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Rest4`] and [`Stage::Rest6`].
#[inline(always)]
pub fn rest<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| any::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Icmp4`] and [`Stage::Icmp6`].
#[inline(always)]
pub fn icmp<A: Quote, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| errors::related::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Odd4`] and [`Stage::Odd6`].
#[inline(always)]
pub fn odd<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| fragment::odd::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::OddOpen4`] and [`Stage::OddOpen6`].
#[inline(always)]
pub fn odd_open<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| fragment::odd_open::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Sctp4`] and [`Stage::Sctp6`].
#[inline(always)]
pub fn sctp<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| association::any::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Peers4`] and [`Stage::Peers6`].
#[inline(always)]
pub fn peers<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| {
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
    })
}

/// Carries out the stages [`Stage::Associate4`] and [`Stage::Associate6`].
#[inline(always)]
pub fn associate<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| association::first::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Clamp4`] and [`Stage::Clamp6`].
#[inline(always)]
pub fn clamp<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| mss::clamp::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Relay4`] and [`Stage::Relay6`].
#[inline(always)]
pub fn relay<A: Relayed, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| relay::relay::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Special4`] and [`Stage::Special6`].
#[inline(always)]
pub fn special<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| special::choose::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Join4`] and [`Stage::Join6`].
#[inline(always)]
pub fn join<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, _, _| special::join::<A, T>(context))
}

/// Carries out the stages [`Stage::Apart4`] and [`Stage::Apart6`].
#[inline(always)]
pub fn apart<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| apart::any::<A, F, T>(context, frame))
}

/// Carries out the stages [`Stage::Back4`] and [`Stage::Back6`].
#[inline(always)]
pub fn back<A: Ip, F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    settle(frame, tables, |context, frame, _| apart::back::<A, F, T>(context, frame))
}

/// Carries out a stage, for bodies that call it like any function.
pub fn go_on<F: Frame, T: Tables>(stage: Stage, frame: &mut F, tables: &T) -> Verdict {
    match stage {
        Stage::Open4 => open::<V4, F, T>(frame, tables),
        Stage::Open6 => open::<V6, F, T>(frame, tables),
        Stage::Rest4 => rest::<V4, F, T>(frame, tables),
        Stage::Rest6 => rest::<V6, F, T>(frame, tables),
        Stage::Icmp4 => icmp::<V4, F, T>(frame, tables),
        Stage::Icmp6 => icmp::<V6, F, T>(frame, tables),
        Stage::Odd4 => odd::<V4, F, T>(frame, tables),
        Stage::Odd6 => odd::<V6, F, T>(frame, tables),
        Stage::Sctp4 => sctp::<V4, F, T>(frame, tables),
        Stage::Sctp6 => sctp::<V6, F, T>(frame, tables),
        Stage::OddOpen4 => odd_open::<V4, F, T>(frame, tables),
        Stage::OddOpen6 => odd_open::<V6, F, T>(frame, tables),
        Stage::Peers4 => peers::<V4, F, T>(frame, tables),
        Stage::Peers6 => peers::<V6, F, T>(frame, tables),
        Stage::Associate4 => associate::<V4, F, T>(frame, tables),
        Stage::Associate6 => associate::<V6, F, T>(frame, tables),
        Stage::Clamp4 => clamp::<V4, F, T>(frame, tables),
        Stage::Clamp6 => clamp::<V6, F, T>(frame, tables),
        Stage::Relay4 => relay::<V4, F, T>(frame, tables),
        Stage::Relay6 => relay::<V6, F, T>(frame, tables),
        Stage::Search => schedulers::search(tables),
        Stage::Special4 => special::<V4, F, T>(frame, tables),
        Stage::Special6 => special::<V6, F, T>(frame, tables),
        Stage::Join4 => join::<V4, F, T>(frame, tables),
        Stage::Join6 => join::<V6, F, T>(frame, tables),
        Stage::Apart4 => apart::<V4, F, T>(frame, tables),
        Stage::Apart6 => apart::<V6, F, T>(frame, tables),
        Stage::Back4 => back::<V4, F, T>(frame, tables),
        Stage::Back6 => back::<V6, F, T>(frame, tables),
    }
}

/// Lets `work` decide over a frame that is addressed to the interface it came in by, and counts.
#[inline(always)]
fn settle<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    work: impl FnOnce(&Context<'_, T>, &mut F, u16) -> Verdict,
) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(Reason::NoService) };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
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
    let counted = match verdict {
        Verdict::Pass(reason) => (!behind_xdp || !F::RESOLVES).then_some(reason),
        Verdict::Drop(reason) => Some(reason),
        Verdict::Arrive => Some(Reason::Local),
        Verdict::Transmit { .. } | Verdict::Resolve { .. } | Verdict::Next(_) => None,
    };
    if let Some(reason) = counted {
        context.count(reason);
    }
    verdict
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

/// A TCP or UDP request that may open a connection.
#[inline(always)]
fn first<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
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
        Reason::NoDestination | Reason::TableFull | Reason::ReplyTaken => {
            complain(context, frame, packet, Complaint::PortUnreachable, refused)
        }
        Reason::Expired => complain(context, frame, packet, Complaint::TimeExceeded, refused),
        _ => quiet(refused),
    }
}

/// Any TCP or UDP packet to or from a service.
#[inline(always)]
fn any<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
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
        Some(Found { slot, value }) if context.is_forsaken::<A, PORTS>(packet, value) => {
            // Whoever has discarded it, it is gone; or it is discarded by the stage that it needs.
            context.discard::<A, false>(&key, slot, value);
            Verdict::Next(open)
        }
        Some(found) => request::<A, F, T, PORTS>(context, frame, packet, &found),
        None if is_reply => context.unnamed::<A, PORTS>(Reason::NoConnection),
        None if context.may_start::<A, PORTS>(packet) && !context.is_full(&key) => {
            Verdict::Next(open)
        }
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

/// Sends a request to its destination; `track` notes it once the way is known, `too_big` is told what
/// the way takes if the packet is longer. Where the connection has just been opened, `opened` is the
/// stage for destinations that are this host or may be directors.
#[inline(always)]
pub(crate) fn deliver<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    id: u32,
    track: impl FnOnce(),
    too_big: impl FnOnce(&mut F, u32) -> Verdict,
    opened: Option<Stage>,
) -> Verdict {
    let (destination, row) = match context.destination(id) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    if destination.flags & destination_flag::AVAILABLE == 0 {
        return Verdict::Drop(Reason::Removed);
    }
    if let Some(stage) = opened
        && destination.flags & destination_flag::PEER != 0
    {
        return Verdict::Next(stage);
    }
    let way = match context.way_to_destination(frame, row, destination) {
        Ok(way) if opened.is_none() && local::would_return(frame, destination, &way) => {
            return Verdict::Pass(Reason::FromPeer);
        }
        Ok(way) => Some(way),
        // XDP leaves it to TC, with nothing but the table changed.
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES && F::USUAL && PORTS => match opened {
            Some(stage) => return Verdict::Next(stage),
            None => None,
        },
        Err(verdict) => return verdict,
    };
    track();
    let Some(way) = way else { return local::deliver(frame, packet, destination, row) };
    if let Some(mtu) = does_not_fit(frame, packet, destination.overhead, &way) {
        return too_big(frame, mtu);
    }
    forward::<A, F, T, PORTS>(context, frame, packet, destination, row, &way)
}

/// Sends a request on its way.
#[inline(always)]
pub(crate) fn forward<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    if destination.method == method::TUNNEL {
        if let Err(reason) =
            tunnel::enter::<A, F, T, PORTS>(context, frame, packet, destination, row)
        {
            return Verdict::Drop(reason);
        }
        return account(frame, packet, row, way);
    }
    let done = if destination.method == method::MASQUERADE {
        let deltas = Deltas { address: destination.address_delta, port: destination.port_delta };
        let (end, address, port) = (End::Target, &destination.address, destination.port);
        A::translate::<F, PORTS>(frame, packet.protocol, &Substitute { end, address, port, deltas })
    } else {
        A::lower::<F, PORTS>(frame)
    };
    if done.is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    account(frame, packet, row, way)
}

/// Counts a request and sends it.
#[inline(always)]
pub(crate) fn account<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    bump(&row.in_packets, 1);
    bump(&row.in_bytes, u64::from(packet.length));
    hop::send(frame, way)
}

/// A packet from a NAT destination on a connection, be it one that was removed; `track` notes it once the way is known.
#[inline(always)]
pub(crate) fn answer<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    found: &Found<'_, A::Slot>,
    track: impl FnOnce(),
) -> Verdict {
    let (destination, row) = match context.destination(found.value.destination()) {
        Ok(both) => both,
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(service) = context.tables.service(destination.service) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let way = match context.way_to_client(frame, packet.target) {
        Ok(way) => Some(way),
        Err(Verdict::Pass(Reason::Local)) if F::RESOLVES && F::USUAL => None,
        Err(verdict) => return verdict,
    };
    track();
    let Some(way) = way else {
        return local::give_back(frame, packet, (destination, service), row);
    };
    if does_not_fit(frame, packet, 0, &way).is_some() {
        return leave_too_big::<A, F>(frame);
    }
    give_back::<A, F, PORTS>(frame, packet, (destination, service), row, &way)
}

/// Sends a reply to its client.
#[inline(always)]
fn give_back<A: Ip, F: Frame, const PORTS: bool>(
    frame: &mut F,
    packet: &Packet<A>,
    (destination, service): (&Destination, &Service),
    row: &Row,
    way: &Way<'_>,
) -> Verdict {
    let deltas = Deltas {
        address: rlvs_wire::checksum::inverse(destination.address_delta),
        port: rlvs_wire::checksum::inverse(destination.port_delta),
    };
    let (end, address, port) = (End::Source, &service.address, service.port);
    let by = Substitute { end, address, port, deltas };
    if A::translate::<F, PORTS>(frame, packet.protocol, &by).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, u64::from(packet.length));
    hop::send(frame, way)
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

/// Answers a packet with an ICMP error, in the name of whom it was sent to.
#[inline(always)]
pub(crate) fn complain<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    complaint: Complaint,
    reason: Reason,
) -> Verdict {
    if !context.may_complain() {
        return Verdict::Drop(Reason::IcmpLimited);
    }
    let verdict = refuse(frame, packet, complaint);
    // One that fails is counted under its own reason.
    if matches!(verdict, Verdict::Transmit { .. }) {
        context.count(reason);
    }
    verdict
}

/// Tells the sender of a packet how long it may be, unless he lets routers cut it into fragments,
/// which we do not.
#[inline(always)]
pub(crate) fn complain_of_length<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    mtu: u32,
) -> Verdict {
    if may_be_cut::<A, F>(frame) {
        return Verdict::Drop(Reason::TooBig);
    }
    complain(context, frame, packet, Complaint::TooBig { mtu }, Reason::TooBig)
}

/// Leaves a packet that is too long to the stack, which answers it in the director's name, as it comes
/// to the same conclusion.
#[inline(always)]
pub(crate) fn leave_too_big<A: Ip, F: Frame>(frame: &mut F) -> Verdict {
    if may_be_cut::<A, F>(frame) {
        Verdict::Drop(Reason::TooBig)
    } else {
        Verdict::Pass(Reason::TooBig)
    }
}

/// Returns whether routers may cut a packet into fragments.
#[inline(always)]
fn may_be_cut<A: Ip, F: Frame>(frame: &mut F) -> bool {
    let whole = |head: &mut [u8; 34]| u16_at(head, IP + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT != 0;
    A::FAMILY == 4 && !frame.head::<34>().is_some_and(whole)
}

/// Returns the longest packet that a way takes beside `overhead` bytes of outer headers, if this one
/// is longer.
#[inline(always)]
pub(crate) fn does_not_fit<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    overhead: u16,
    way: &Way<'_>,
) -> Option<u32> {
    if way.resolve {
        return None;
    }
    let mtu = way.hop.get().mtu.saturating_sub(overhead.into());
    let headers = |frame: &mut F| headers::<A, F>(frame, packet.protocol);
    if frame.segment(packet.length, headers) > mtu { Some(mtu) } else { None }
}

/// Returns the length of a packet's IP and transport headers.
#[inline(always)]
fn headers<A: Ip, F: Frame>(frame: &mut F, protocol: u8) -> u32 {
    const AT_V4: usize = IP + ipv4::LENGTH + tcp::DATA_OFFSET;
    const AT_V6: usize = IP + ipv6::LENGTH + tcp::DATA_OFFSET;
    let (ip, offset) = match (A::FAMILY, protocol) {
        (4, tcp::PROTOCOL) => (ipv4::LENGTH, frame.head::<54>().map(|head| u8_at(head, AT_V4))),
        (4, _) => (ipv4::LENGTH, None),
        (_, tcp::PROTOCOL) => (ipv6::LENGTH, frame.head::<74>().map(|head| u8_at(head, AT_V6))),
        _ => (ipv6::LENGTH, None),
    };
    ip as u32 + offset.map_or(udp::LENGTH as u32, |offset| u32::from(offset >> 4) * 4)
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
    fn unnamed<A: Ip, const PORTS: bool>(&self, reason: Reason) -> Verdict {
        if PORTS && self.settings.flags & settings_flag::WIDE != 0 {
            Verdict::Next(Stage::apart::<A>())
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

    /// Returns whether a request leaves the connection that it finds behind and opens another.
    #[inline(always)]
    pub(crate) fn is_forsaken<A: Ip, const PORTS: bool>(
        &self,
        packet: &Packet<A>,
        value: Value,
    ) -> bool {
        let Packet { protocol, flags, .. } = *packet;
        let settings = self.settings.flags;
        if settings & settings_flag::EXPIRE_REMOVED != 0
            && let Some(destination) = self.tables.destination(value.destination())
        {
            let gone = destination.flags & destination_flag::AVAILABLE == 0;
            // What a template has chosen it would choose again.
            let quiet = destination.weight == 0
                && !value.is_controlled()
                && state::starts::<PORTS>(protocol, flags);
            if gone || quiet && protocol != udp::PROTOCOL {
                return true;
            }
        }
        // As `is_new_conn_expected()`.
        !value.is_controlled()
            && state::begins_anew::<PORTS>(value.state(), seen(value), protocol, flags, settings)
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

    /// Counts a reason.
    #[inline(always)]
    pub fn count(&self, reason: Reason) {
        if let Some(counter) = self.tables.reason(self.tables.cpu() * REASONS + reason as u32) {
            bump(counter, 1);
        }
    }
}
