//! Packets with IPv4 options or IPv6 extension headers, and fragments.
//!
//! The first fragment of a datagram carries its ports: it fares like any packet, and once it is on
//! its way the map `fragments` keeps its ports for the datagram's other fragments, which then go the
//! same way. One that comes before the first is left to the stack, which does not balance it.
//!
//! A datagram is known by a keyed hash of 64 bits over addresses, number and, in IPv4, protocol. The
//! map has a fixed size and is apart from the connections; where a bucket is full the oldest gives
//! way. Only fragments to or from a service get in.

use rlvs_wire::{ipsec, ipv4, sctp, tcp, u16_at, udp};

use crate::abi::{FRAGMENT_BUCKETS, SLOTS6, Slot4, method, service_flag, settings_flag};
use crate::connection::Context;
use crate::forward::{answer, deliver};
use crate::frame::{Frame, Verdict};
use crate::hash;
use crate::ip::{Flow, IP, Ip, Packet};
use crate::layout::{Layout, Piece};
use crate::local::Sender;
use crate::moved::Moved;
use crate::process::Half;
use crate::reason::Reason;
use crate::refuse::cut_or_tell;
use crate::schedule::{Opening, quiet};
use crate::stage::Stage;
use crate::state;
use crate::tables::Tables;

/// Seconds for which later fragments are waited for.
const LIFE_S: u32 = 4;
/// A slot's key while a CPU writes its value.
const TAKEN: u64 = 1;
/// What makes of a datagram's key that of its destination.
const CHOICE: u64 = 1 << 63;
/// The same of one that XDP leaves to TC.
const HANDED: u64 = 1 << 62;
/// Bits of a slot's value that hold the coarse time; above them stand the protocol (8) and the ports.
const TIME_BITS: u32 = 24;
const TIME_MASK: u32 = (1 << TIME_BITS) - 1;

/// A packet whose headers are not the usual ones.
#[inline(always)]
pub fn odd<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    carry(context, frame, balance::<A, F, T, true>).unwrap_or_else(Verdict::Pass)
}

/// Such a packet that may open a connection.
#[inline(always)]
pub fn odd_open<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    carry(context, frame, open::<A, F, T, true>).unwrap_or_else(Verdict::Pass)
}

/// Such a packet of SCTP, or what IPsec carries.
#[inline(always)]
pub fn odd_sctp<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    carry(context, frame, balance::<A, F, T, false>).unwrap_or_else(Verdict::Pass)
}

/// Such a packet that may open an association.
#[inline(always)]
pub fn odd_init<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    carry(context, frame, open::<A, F, T, false>).unwrap_or_else(Verdict::Pass)
}

/// Returns such a packet, of which all or the begin is there.
#[inline(always)]
pub fn begin<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
) -> Result<Packet<A>, Reason> {
    let layout: Layout<A> = A::layout(frame, context.tables)?;
    let (ports, protocol, flags) = layout.ends(frame)?;
    Ok(layout.with(ports, protocol, flags))
}

/// Returns a packet with any headers, all of it or a fragment whose datagram's first is known, and whether
/// it is such a fragment.
#[inline(always)]
pub(crate) fn known<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
) -> Result<(Packet<A>, bool), Reason> {
    let layout: Layout<A> = A::layout(frame, context.tables)?;
    let origin = context.origin::<A, F, false>(frame, &layout, context.datagram(&layout))?;
    let origin = Origin(context.tables.forget(origin.0));
    Ok((origin.packet(&layout), origin.is_later()))
}

/// Finds the parts of a packet and has `work` send it, which is told the hash of the
/// datagram if others of it follow, else 0. `PORTS` says whether the protocol is TCP or UDP.
#[inline(always)]
fn carry<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut F,
    work: impl FnOnce(
        &Context<'_, T>,
        &mut Moved<'_, F, PORTS>,
        &Packet<A>,
        u64,
    ) -> Result<Verdict, Reason>,
) -> Result<Verdict, Reason> {
    let layout = A::layout(frame, context.tables)?;
    let datagram = context.datagram(&layout);
    let origin = context.origin::<A, F, PORTS>(frame, &layout, datagram)?;
    let origin = Origin(context.tables.forget(origin.0));
    if PORTS && origin.is_other() {
        return Ok(Verdict::Next(Stage::odd_sctp::<A>()));
    }
    let packet = origin.packet(&layout);
    let transport = if origin.is_bare::<A>(&layout) { 0 } else { layout.transport };
    let transport = context.tables.forget(transport.into()) as usize;
    let mut moved = Moved::new(frame, transport);
    let datagram = if origin.is_first() { datagram } else { 0 };
    work(context, &mut moved, &packet, context.tables.forget(datagram))
}

/// What a packet holds of its datagram (8 bits), protocol (8), TCP flags (8) and ports (32) in one
/// word.
#[derive(Clone, Copy)]
pub(crate) struct Origin(pub(crate) u64);

impl Origin {
    #[inline(always)]
    fn new(piece: Piece, protocol: u8, flags: u8, ports: u32) -> Self {
        let low = (piece as u32) << 16 | u32::from(flags) << 8 | u32::from(protocol);
        Self(u64::from(ports) << 32 | u64::from(low))
    }
    /// Returns whether it is neither of TCP nor of UDP.
    #[inline(always)]
    fn is_other(self) -> bool {
        !matches!(self.0 as u8, tcp::PROTOCOL | udp::PROTOCOL)
    }
    /// Returns whether there is no transport header whose ports are known.
    #[inline(always)]
    pub(crate) fn is_bare<A: Ip>(self, layout: &Layout<A>) -> bool {
        self.is_later() || matches!(layout.protocol, ipsec::ESP | ipsec::AH)
    }
    #[inline(always)]
    pub(crate) fn is_first(self) -> bool {
        (self.0 >> 16) as u8 == Piece::First as u8
    }
    #[inline(always)]
    pub(crate) fn is_later(self) -> bool {
        (self.0 >> 16) as u8 == Piece::Later as u8
    }
    #[inline(always)]
    pub(crate) fn packet<A: Ip>(self, layout: &Layout<A>) -> Packet<A> {
        layout.with((self.0 >> 32) as u32, self.0 as u8, (self.0 >> 8) as u8)
    }
}

/// Sends a packet on its connection. What elsewhere is answered with an ICMP error is
/// left to the stack, which says the same in its own way.
#[inline(always)]
fn balance<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut Moved<'_, F, PORTS>,
    packet: &Packet<A>,
    datagram: u64,
) -> Result<Verdict, Reason> {
    let Some(Half { key, is_reply }) = context.half(packet) else {
        return context.strange::<A>(Reason::NoService);
    };
    context.remember(packet, datagram);
    let Some(found) = context.find_live(&key) else {
        let starts = state::starts::<PORTS>(packet.protocol, packet.flags);
        if is_reply || frame.is_bare() || !starts {
            return context.strange::<A>(Reason::NoConnection);
        }
        let open = if PORTS { Stage::odd_open::<A>() } else { Stage::odd_init::<A>() };
        return Ok(Verdict::Next(open));
    };
    if packet.ttl <= 1 {
        return Err(Reason::Expired);
    }
    // The first fragment has had its say about the state.
    let later = frame.is_bare();
    let is_part = later || datagram != 0;
    if !PORTS && is_part && packet.protocol == sctp::PROTOCOL {
        // Its checksum covers what only the other fragments hold.
        if context.moves_port(found.value.destination()) {
            return Err(Reason::Fragment);
        }
    }
    Ok(if is_reply {
        answer::<A, _, T, PORTS>(context, frame, packet, &found, || match later {
            true => context.touch(&found),
            false => context.track_reply::<A, PORTS>(packet, &found),
        })
    } else {
        let track = || match later {
            true => context.touch(&found),
            false => context.track_request::<A, PORTS>(packet, &found),
        };
        let destination = found.value.destination();
        let too_big = |_: &mut Moved<'_, F, PORTS>, _| cut_or_tell::<A>();
        deliver::<A, _, T, PORTS>(context, frame, packet, destination, track, too_big, None)
    })
}

/// Opens a connection for a packet and sends it on.
#[inline(always)]
fn open<A: Ip, F: Frame, T: Tables, const PORTS: bool>(
    context: &Context<'_, T>,
    frame: &mut Moved<'_, F, PORTS>,
    packet: &Packet<A>,
    datagram: u64,
) -> Result<Verdict, Reason> {
    let (again, carry) = match PORTS {
        true => (Stage::odd_open::<A>(), Stage::odd::<A>()),
        false => (Stage::odd_init::<A>(), Stage::odd_sctp::<A>()),
    };
    let service = context.service_of(packet).ok_or(Reason::NoService)?;
    match context.sender(frame, service) {
        Sender::Client => {}
        Sender::Peer => return Err(Reason::FromPeer),
        Sender::Here => return Err(Reason::Local),
        Sender::Unknown => return Ok(Verdict::Next(Stage::peers::<A>())),
    }
    if context.has_full_nat(service) {
        return Ok(Verdict::Next(Stage::strange::<A>()));
    }
    if context.is_special(service) {
        return Ok(context.leave(packet, service, carry));
    }
    Ok(match context.open::<A, _, PORTS>(frame, packet, service) {
        Opening::To(id) if !PORTS && datagram != 0 && context.moves_port(id) => {
            return Err(Reason::Fragment);
        }
        Opening::To(id) => {
            let too_big = |_: &mut Moved<'_, F, PORTS>, _| cut_or_tell::<A>();
            deliver::<A, _, T, PORTS>(context, frame, packet, id, || {}, too_big, Some(carry))
        }
        Opening::There => Verdict::Next(carry),
        Opening::Search => context.search_for(again),
        Opening::Ask => context.ask_guard(again),
        Opening::Refused(reason) => left_to_the_stack(reason),
    })
}

/// Says what becomes of a packet with unusual headers that opens no connection.
#[inline(always)]
pub(crate) fn left_to_the_stack(reason: Reason) -> Verdict {
    match reason {
        Reason::Stateless => Verdict::Pass(Reason::TableFull),
        Reason::NoDestination | Reason::TableFull | Reason::ReplyTaken | Reason::Expired => {
            Verdict::Pass(reason)
        }
        _ => quiet(reason),
    }
}

impl<T: Tables> Context<'_, T> {
    /// Returns the hash by which a fragmented datagram is known; never 0, which a free slot has, nor
    /// [`TAKEN`].
    #[inline(always)]
    pub(crate) fn datagram<A: Ip>(&self, layout: &Layout<A>) -> u64 {
        let Layout { source, target, identification, protocol, .. } = *layout;
        self.datagram_of((source, target), identification, protocol)
    }

    #[inline(always)]
    fn datagram_of<A: Ip>(
        &self,
        (source, target): (A, A),
        identification: u32,
        protocol: u8,
    ) -> u64 {
        let (port, peer_port) = ((identification >> 16) as u16, identification as u16);
        let flow = Flow { client: source, peer: target, port, peer_port };
        // The protocol of an IPv6 datagram stands in its first fragment alone.
        let protocol = if A::FAMILY == 4 { protocol } else { 0 };
        let more = u64::from(A::FAMILY) << 8 | u64::from(protocol);
        hash::mix(&self.settings.keys, A::hash_flow(&self.settings.keys, &flow), more) | 2
    }

    /// Returns what a packet says of ports and flags, or its datagram's first fragment has said. With `PORTS`
    /// only those of TCP and UDP are read.
    #[inline(always)]
    pub(crate) fn origin<A: Ip, F: Frame, const PORTS: bool>(
        &self,
        frame: &mut F,
        layout: &Layout<A>,
        datagram: u64,
    ) -> Result<Origin, Reason> {
        match layout.piece {
            Piece::Later => {
                let known = self.recall(datagram).ok_or(Reason::Fragment)?;
                Ok(Origin::new(Piece::Later, (known >> TIME_BITS) as u8, 0, (known >> 32) as u32))
            }
            piece @ (Piece::Whole | Piece::First) if !PORTS => {
                let (ports, protocol, flags) = layout.ends(frame)?;
                Ok(Origin::new(piece, protocol, flags, ports))
            }
            piece => match layout.protocol {
                sctp::PROTOCOL | ipsec::ESP | ipsec::AH => {
                    Ok(Origin::new(piece, layout.protocol, 0, 0))
                }
                protocol => {
                    let (ports, flags) = layout.ports(frame)?;
                    Ok(Origin::new(piece, protocol, flags, ports))
                }
            },
        }
    }

    /// Hands a packet on that may be of the wide table, if there may be such packets.
    #[inline(always)]
    fn strange<A: Ip>(&self, reason: Reason) -> Result<Verdict, Reason> {
        match self.settings.flags & settings_flag::WIDE {
            0 => Err(reason),
            _ => Ok(Verdict::Next(Stage::strange::<A>())),
        }
    }

    /// Returns whether a destination gets packets at another port than its service.
    #[inline(always)]
    fn moves_port(&self, id: u32) -> bool {
        let Some(to) = self.tables.destination(id) else { return false };
        let is_nat = to.method == method::MASQUERADE;
        is_nat && self.tables.service(to.service).is_some_and(|service| service.port != to.port)
    }

    #[inline(always)]
    fn slots(&self, datagram: u64) -> Option<&[Slot4]> {
        let place = (datagram >> 32) as u32 & (FRAGMENT_BUCKETS - 1);
        Some(&self.tables.fragments(place)?.slots)
    }

    /// Returns what is kept of a datagram, if its first fragment has come by lately.
    #[inline(always)]
    fn recall(&self, datagram: u64) -> Option<u64> {
        let mut known = 0;
        for slot in self.slots(datagram)? {
            // Read before and after: whoever takes the slot changes the key before the value.
            let before = self.tables.read(&slot.key);
            let value = self.tables.read(&slot.value);
            let after = self.tables.read(&slot.key);
            let mask = self.tables.is_set((before ^ datagram) | (after ^ datagram)).wrapping_sub(1);
            known = known & !mask | value & mask;
        }
        if known == 0 || self.age(known) > LIFE_S * self.settings.second {
            return None;
        }
        Some(known)
    }

    /// Returns how long ago a datagram's first fragment came by.
    #[inline(always)]
    fn age(&self, value: u64) -> u32 {
        self.now.0.wrapping_sub(value as u32) & TIME_MASK
    }

    /// Keeps the ports of a first fragment for those that follow it.
    #[inline(always)]
    pub(crate) fn remember<A: Ip>(&self, packet: &Packet<A>, datagram: u64) {
        if datagram == 0 {
            return;
        }
        let ports = u64::from(packet.source_port) << 16 | u64::from(packet.target_port);
        let value = ports << 32
            | u64::from(packet.protocol) << TIME_BITS
            | u64::from(self.now.0 & TIME_MASK);
        self.put(datagram, value);
    }

    /// Keeps the destination that a datagram has got alone, for the fragments that follow its first.
    #[inline(always)]
    pub(crate) fn remember_choice(&self, datagram: u64, destination: u32) {
        let value = u64::from(destination) << 32 | u64::from(self.now.0 & TIME_MASK);
        self.put(datagram ^ CHOICE, value);
    }

    /// Returns what [`remember_choice`](Self::remember_choice) has kept, or 0.
    #[inline(always)]
    pub(crate) fn recall_choice(&self, datagram: u64) -> u32 {
        self.recall(datagram ^ CHOICE).map_or(0, |known| (known >> 32) as u32)
    }

    /// Leaves TC the destination that XDP has chosen for a datagram alone, whole or a first fragment, which
    /// TC has to cut, resolve a neighbour for or pass to this host: what one CPU's stages leave for each other
    /// others may have written over by then.
    #[inline(always)]
    pub(crate) fn hand_on<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        packet: &Packet<A>,
        destination: u32,
    ) {
        let key = self.handed(frame, packet);
        self.put(key, u64::from(destination) << 32 | u64::from(self.now.0 & TIME_MASK));
    }

    /// Takes what [`hand_on`](Self::hand_on) has left, or 0, for a service with these flags.
    #[inline(never)]
    pub(crate) fn take_handed<A: Ip, F: Frame>(
        &self,
        frame: &mut F,
        packet: &Packet<A>,
        flags: u32,
    ) -> u32 {
        if flags & service_flag::ONE_PACKET == 0 || packet.protocol != udp::PROTOCOL {
            return 0;
        }
        let key = self.handed(frame, packet);
        let id = self.recall(key).map_or(0, |known| (known >> 32) as u32);
        if id != 0 {
            self.put(key, u64::from(self.now.0 & TIME_MASK));
        }
        self.tables.forget(id.into()) as u32
    }

    /// Returns the key of what is handed on of a datagram: its flow, with its number in IPv4, its length in
    /// IPv6, where the number would be.
    #[inline(always)]
    fn handed<A: Ip, F: Frame>(&self, frame: &mut F, packet: &Packet<A>) -> u64 {
        let number = frame.head::<34>().map_or(0, |head| u16_at(head, IP + ipv4::IDENTIFICATION));
        let ports = u32::from(packet.source_port) << 16 | u32::from(packet.target_port);
        let ends = (packet.source, packet.target);
        self.datagram_of(ends, ports ^ u32::from(number), packet.protocol) ^ HANDED
    }

    /// Puts a value into the datagram's own slot, else into a free one, else into the oldest.
    /// Returns whether no other CPU was at the same slot.
    #[inline(never)]
    fn put(&self, datagram: u64, value: u64) -> bool {
        let Some(slots) = self.slots(datagram) else { return false };
        let (mut index, mut best) = (0, 0);
        for (at, slot) in (0..).zip(slots) {
            let fit = match self.tables.read(&slot.key) {
                key if key == datagram => u32::MAX,
                0 => u32::MAX - 1,
                _ => self.age(self.tables.read(&slot.value)) + 1,
            };
            if fit > best {
                (index, best) = (at, fit);
            }
        }
        let Some(slot) = slots.get(index & (SLOTS6 - 1)) else { return false };
        let old = self.tables.read(&slot.key);
        if old == TAKEN || !self.tables.swap(&slot.key, old, TAKEN) {
            return false;
        }
        self.tables.write(&slot.value, value);
        self.tables.swap(&slot.key, TAKEN, datagram)
    }
}
