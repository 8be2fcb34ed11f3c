//! The wide table's packets that are not TCP or UDP behind a plain header: SCTP, what IPsec carries, IPv4
//! options, IPv6 extension headers, fragments.
//!
//! There is one view of them all: the first of these stages finds the parts of the packet and leaves them in the
//! map `scratch`, where the next find them, and whoever opens a connection. What [`apart`] and
//! [`full`](crate::full) do with other packets is done with these by the same functions, on a frame that
//! knows where its transport header is.
//!
//! A datagram that is scheduled alone leaves no entry: its destination is kept beside the ports of its first
//! fragment, for the others.

use rlvs_wire::{sctp, tcp, udp};

use crate::abi::{Scratch, WideSlot};
use crate::apart;
use crate::connection::{Context, Found, Value};
use crate::fragment::Origin;
use crate::frame::{Frame, Verdict};
use crate::full as both;
use crate::ip::{Ip, Packet};
use crate::layout::Layout;
use crate::moved::Moved;
use crate::reason::Reason;
use crate::refuse::{cut_or_tell, leave_too_big};
use crate::special::recall;
use crate::stage::Stage;
use crate::tables::Tables;
use crate::wide::{Key, ports_of};

/// What [`Context::lay_out`] returns if nothing is wrong.
pub(crate) const FINE: u32 = u32::MAX;

/// Any such packet; it may be a request.
#[inline(always)]
pub fn any<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    match context.lay_out::<A, F>(frame, scratch) {
        FINE => {}
        reason => return Verdict::Pass(Reason::from_number(reason)),
    }
    let packet = recall::<A, T>(context, scratch);
    let place = Place::of(context, scratch);
    let mut frame = Moved::<F, false>::new(frame, place.transport());
    let chosen = context.alone(&packet, scratch, place);
    if chosen != 0 {
        return request(context, &mut frame, &packet, place, chosen, None);
    }
    let Some(found) = context.find_wide_live(&Key::request(&packet)) else {
        return Verdict::Next(Stage::strange_back::<A>());
    };
    if packet.ttl <= 1 {
        return Verdict::Pass(Reason::Expired);
    }
    let Found { slot, value } = found;
    if !place.is_bare() && context.is_forsaken_of(packet.protocol, packet.flags, value) {
        return Verdict::Next(Stage::special::<A>());
    }
    context.remember(&packet, place.begun(context, scratch));
    if value.is_substituted() {
        return Verdict::Next(Stage::strange_full::<A>());
    }
    request(context, &mut frame, &packet, place, value.destination(), Some(Found { slot, value }))
}

/// One that is no request of a connection that is there, as the stage before has left it.
#[inline(always)]
pub fn back<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let packet = recall::<A, T>(context, scratch);
    let place = Place::of(context, scratch);
    let mut frame = Moved::<F, false>::new(frame, place.transport());
    let found = context.find_wide_live(&Key::reply(&packet));
    let (id, slot) = match found {
        Some(Found { slot, value }) => (value.destination(), Some((slot, value))),
        None => (context.answers_once(&packet), None),
    };
    if id == 0 {
        return start(context, &packet, scratch, place);
    }
    context.remember(&packet, place.begun(context, scratch));
    let track = |slot: &WideSlot| context.note_reply(slot, &packet, place);
    match slot {
        Some((_, value)) if value.is_substituted() => Verdict::Next(Stage::strange_full::<A>()),
        Some((slot, _))
            if place.keeps_port(&packet) && port(context, slot) != packet.source_port =>
        {
            Verdict::Pass(Reason::Fragment)
        }
        slot => {
            let slot = slot.map(|(slot, _)| slot);
            apart::answer(context, &mut frame, &packet, id, slot, track)
        }
    }
}

/// One of a connection of full NAT.
#[inline(always)]
pub fn full<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let Some(scratch) = context.tables.scratch(context.tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let packet = recall::<A, T>(context, scratch);
    let place = Place::of(context, scratch);
    let frame = &mut Moved::<F, true>::new(frame, place.transport());
    if let Some(found) = context.find_wide_live(&Key::request(&packet)) {
        let track = || context.note(&found, &packet, place);
        let too_big = |_: &mut Moved<'_, F, true>, _| cut_or_tell::<A>();
        return both::deliver(context, frame, &packet, &found, track, too_big);
    }
    let Some(found) = context.find_wide_live(&Key::reply(&packet)) else {
        return Verdict::Pass(Reason::NoConnection);
    };
    // The stack would answer in the place of the pool's address, which is its own.
    if packet.ttl <= 1 {
        return Verdict::Drop(Reason::Expired);
    }
    let track = |_: &mut Moved<'_, F, true>| {
        context.note_reply(found.slot, &packet, place);
        Ok(())
    };
    let too_big = |frame: &mut Moved<'_, F, true>, _| leave_too_big::<A, _>(frame);
    both::give_back(context, frame, &packet, &found, track, too_big)
}

/// A packet from a client, to a destination.
#[inline(always)]
fn request<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut Moved<'_, F, false>,
    packet: &Packet<A>,
    place: Place,
    id: u32,
    found: Option<Found<'_, WideSlot>>,
) -> Verdict {
    if let Some(Found { slot, value }) = &found
        && value.is_paired()
        && place.keeps_port(packet)
        && port(context, slot) != packet.target_port
    {
        return Verdict::Pass(Reason::Fragment);
    }
    let track = |found: &Found<'_, WideSlot>| {
        context.note(found, packet, place);
    };
    let is_alone = found.is_none();
    let too_big = |frame: &mut Moved<'_, F, false>, _| {
        let verdict = cut_or_tell::<A>();
        if is_alone {
            context.keep_choice(frame, packet, id, verdict, !place.is_later());
        }
        verdict
    };
    apart::request(context, frame, packet, id, !place.is_later(), found, track, too_big)
}

/// One that belongs to no connection.
#[inline(always)]
fn start<A: Ip, T: Tables>(
    context: &Context<'_, T>,
    packet: &Packet<A>,
    scratch: &Scratch,
    place: Place,
) -> Verdict {
    let is_named = context.service_of(packet).is_some();
    if is_named && context.tables.read(&scratch.service) == 0 {
        return Verdict::Pass(Reason::NoConnection);
    }
    let may_start = match packet.protocol {
        tcp::PROTOCOL | udp::PROTOCOL => context.may_start::<A, true>(packet),
        _ => context.may_start::<A, false>(packet),
    };
    if place.is_bare() || !may_start {
        return Verdict::Pass(if is_named { Reason::NoConnection } else { Reason::NoService });
    }
    Verdict::Next(Stage::special::<A>())
}

/// Returns the port that the other half of a connection has.
#[inline(always)]
fn port<T: Tables>(context: &Context<'_, T>, slot: &WideSlot) -> u16 {
    ports_of(context.tables.read(&slot.key)).2
}

/// Where the transport header stands (16 bits; 0 if there is none), whether the packet is part of a datagram, and
/// where the IP header stands that an ICMP error quotes (upper 32 bits), if its headers are unusual.
#[derive(Clone, Copy)]
pub struct Place(pub(crate) u64);

impl Place {
    const FIRST: u64 = 1 << 16;
    const LATER: u64 = 1 << 17;
    /// That of a packet which an ICMP error quotes: it has no part in its connection's state.
    pub(crate) const QUOTED: Self = Self(1 << 18);

    /// Returns that of one with unusual headers that an ICMP error quotes: the offsets of its IP header and of
    /// its transport header.
    #[inline(always)]
    pub(crate) fn quoted_at(header: u32, transport: u32) -> Self {
        Self(Self::QUOTED.0 | u64::from(header) << 32 | u64::from(transport & 0xffff))
    }
    /// Returns the offset of a quoted IP header that [`quoted_at`](Self::quoted_at) was told.
    #[inline(always)]
    pub(crate) fn quoted_header(self) -> usize {
        (self.0 >> 32) as usize
    }

    #[inline(always)]
    fn new<A: Ip>(layout: &Layout<A>, origin: Origin) -> Self {
        let transport = if origin.is_bare(layout) { 0 } else { u64::from(layout.transport) };
        let first = if origin.is_first() { Self::FIRST } else { 0 };
        let later = if origin.is_later() { Self::LATER } else { 0 };
        Self(transport | first | later)
    }
    #[inline(always)]
    pub(crate) fn of<T: Tables>(context: &Context<'_, T>, scratch: &Scratch) -> Self {
        Self(context.tables.forget(context.tables.read(&scratch.place)))
    }
    #[inline(always)]
    pub(crate) fn transport(self) -> usize {
        (self.0 & 0xffff) as usize
    }
    #[inline(always)]
    pub(crate) fn is_bare(self) -> bool {
        self.transport() == 0
    }
    #[inline(always)]
    pub(crate) fn is_quoted(self) -> bool {
        self.0 & Self::QUOTED.0 != 0
    }
    #[inline(always)]
    fn is_later(self) -> bool {
        self.0 & Self::LATER != 0
    }
    /// Returns the hash of a datagram of which this is the first fragment, else 0.
    #[inline(always)]
    pub(crate) fn begun<T: Tables>(self, context: &Context<'_, T>, scratch: &Scratch) -> u64 {
        if self.0 & Self::FIRST != 0 { context.tables.read(&scratch.datagram) } else { 0 }
    }
    /// Returns whether no port of a packet may change, as its checksum covers what other fragments hold.
    #[inline(always)]
    pub(crate) fn keeps_port<A>(self, packet: &Packet<A>) -> bool {
        self.0 & (Self::FIRST | Self::LATER) != 0 && packet.protocol == sctp::PROTOCOL
    }
}

impl<T: Tables> Context<'_, T> {
    /// Finds the parts of a packet and leaves them for the next stages. Returns [`FINE`], or the number of the
    /// reason for which it is passed to the stack.
    #[inline(never)]
    pub(crate) fn lay_out<A: Ip, F: Frame>(&self, frame: &mut F, scratch: &Scratch) -> u32 {
        match self.try_to_lay_out::<A, F>(frame, scratch) {
            Ok(()) => FINE,
            Err(reason) => reason as u32,
        }
    }

    #[inline(always)]
    fn try_to_lay_out<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        scratch: &Scratch,
    ) -> Result<(), Reason> {
        let layout: Layout<A> = A::layout(frame, self.tables)?;
        let datagram = self.datagram(&layout);
        let origin = self.origin::<A, F, false>(frame, &layout, datagram)?;
        let origin = Origin(self.tables.forget(origin.0));
        let packet = origin.packet(&layout);
        let service = self.service_of(&packet).unwrap_or(0);
        let service = if self.has_full_nat(service) { service } else { 0 };
        self.leave_as_it_is(&packet, service, Stage::strange::<A>() as u32);
        self.tables.write(&scratch.place, Place::new(&layout, origin).0);
        self.tables.write(&scratch.datagram, datagram);
        Ok(())
    }

    /// Returns the destination that was chosen for a packet's datagram alone, or 0.
    #[inline(always)]
    fn alone<A: Ip>(&self, packet: &Packet<A>, scratch: &Scratch, place: Place) -> u32 {
        if place.is_later() {
            return self.recall_choice(self.tables.read(&scratch.datagram));
        }
        let chosen = self.take_chosen(packet);
        let datagram = place.begun(self, scratch);
        if chosen != 0 && datagram != 0 {
            self.remember(packet, datagram);
            self.remember_choice(datagram, chosen);
        }
        chosen
    }

    /// Notes a request on its connection, and returns whether that is still there. What has no transport header
    /// has its time alone to tell.
    #[inline(always)]
    fn note<A: Ip>(&self, found: &Found<'_, WideSlot>, packet: &Packet<A>, place: Place) -> bool {
        let &Found { slot, value } = found;
        let Packet { protocol, flags, .. } = *packet;
        match protocol {
            _ if place.is_bare() => self.touch_there(found),
            sctp::PROTOCOL => self.track_wide::<false>(slot, value, protocol, flags),
            _ => self.track_wide::<true>(slot, value, protocol, flags),
        }
    }

    /// Notes a reply.
    #[inline(always)]
    pub(crate) fn note_reply<A: Ip>(&self, slot: &WideSlot, packet: &Packet<A>, place: Place) {
        let Packet { protocol, flags, .. } = *packet;
        match protocol {
            _ if place.is_bare() => {
                let value = Value(self.tables.read(&slot.value));
                self.touch(&Found { slot, value });
            }
            sctp::PROTOCOL => {
                self.track_wide_reply::<false>(slot, protocol, flags);
            }
            _ => {
                self.track_wide_reply::<true>(slot, protocol, flags);
            }
        }
    }
}
