//! Where one end of a connection is this host: a real server on the director, a client on it, and two
//! directors that are also the real servers.
//!
//! XDP leaves all of it to TC. Nothing here lowers the time to live, as the packet stays on the host.
//! A real server here gets its packets from the stack: as they are, or, with NAT, readdressed. What
//! such a server answers [`depart`] translates as it leaves, and what the stack says of packets to it. A
//! client here sends by the loopback device, and sees answers come in there, as they come from one of this host's own addresses. Only NAT serves
//! it: its own address is the virtual one, which the real servers of direct routing have as well.
//!
//! A fragment, or what has options or extension headers, is left to the stack as it came: there is no
//! room on the stack of BPF to translate it here too.
//!
//! Of two directors that send to each other, one would send back what the other sent. So a packet whose
//! frame comes from a real server of the service is passed to the stack, which has the virtual address.

use core::cell::Cell;

use rlvs_wire::{ethernet, put_at, u16_at};

use crate::abi::{
    Destination, Hop, Row, Service, destination_flag, endpoint_kind, method, service_flag,
};
use crate::connection::{Context, Found, Key};
use crate::endpoint;
use crate::errors::Quote;
use crate::frame::{Frame, Verdict};
use crate::hop::Way;
use crate::ip::{Ip, Packet, Substitute, V4, V6};
use crate::reason::Reason;
use crate::tables::{Tables, Time, bump};

/// Interface index of the loopback device.
pub const LOOPBACK: u32 = 1;
/// How many destinations of a service are looked through for the one that sent a packet. Each may cost
/// two tail calls, of which a packet has 33.
const PEERS_MAX: u32 = 12;

/// Length and protocol of a packet in one word: a reference to it would keep all of it on the stack.
#[derive(Clone, Copy)]
struct Brief(u64);

impl Brief {
    #[inline(always)]
    fn of<A>(packet: &Packet<A>) -> Self {
        Self(u64::from(packet.length) << 8 | u64::from(packet.protocol))
    }
    #[inline(always)]
    fn length(self) -> u64 {
        self.0 >> 8
    }
    #[inline(always)]
    fn protocol(self) -> u8 {
        self.0 as u8
    }
}

/// Gives a request to the real server on this host.
#[inline(always)]
pub(crate) fn deliver<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
) -> Verdict {
    Verdict::unpack(deliver_out_of_line::<A, F>(frame, Brief::of(packet), destination, row))
}

#[inline(never)]
fn deliver_out_of_line<A: Ip, F: Frame>(
    frame: &mut F,
    packet: Brief,
    destination: &Destination,
    row: &Row,
) -> u64 {
    if destination.method == method::MASQUERADE {
        let by = Substitute::by_destination(destination);
        if A::readdress(frame, packet.protocol(), &by).is_none() {
            return Verdict::Drop(Reason::Malformed).pack();
        }
    }
    bump(&row.in_packets, 1);
    bump(&row.in_bytes, packet.length());
    Verdict::Pass(Reason::Local).pack()
}

/// Gives a reply to the client on this host.
#[inline(always)]
pub(crate) fn give_back<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    (destination, service): (&Destination, &Service),
    row: &Row,
) -> Verdict {
    let packet = Brief::of(packet);
    Verdict::unpack(give_back_out_of_line::<A, F>(frame, packet, destination, service, row))
}

#[inline(never)]
fn give_back_out_of_line<A: Ip, F: Frame>(
    frame: &mut F,
    packet: Brief,
    destination: &Destination,
    service: &Service,
    row: &Row,
) -> u64 {
    if name_service::<A, F>(frame, packet.protocol(), destination, service).is_none() {
        return Verdict::Drop(Reason::Malformed).pack();
    }
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, packet.length());
    // By itself it knows its way already.
    if frame.interface() == LOOPBACK {
        return Verdict::Pass(Reason::Local).pack();
    }
    // The loopback device's address, by which it knows its own.
    let Some(head) = frame.head::<12>() else { return Verdict::Drop(Reason::Malformed).pack() };
    put_at(head, 0, [0; 12]);
    Verdict::Arrive.pack()
}

/// Puts the service in the place of the real server.
#[inline(always)]
fn name_service<A: Ip, F: Frame>(
    frame: &mut F,
    protocol: u8,
    destination: &Destination,
    service: &Service,
) -> Option<()> {
    A::readdress(frame, protocol, &Substitute::by_service(destination, service))
}

/// Decides over a frame that leaves this host: what a NAT destination here says is said by the
/// service; anything else leaves as it is, and nothing is counted.
#[inline(always)]
pub fn depart<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    const PASS: Verdict = Verdict::Pass(Reason::NoService);
    let Some(settings) = tables.settings() else { return PASS };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
    let Some(head) = frame.head::<14>() else { return PASS };
    match u16_at(head, ethernet::TYPE) {
        ethernet::IPV4 => depart_as::<V4, F, T>(&context, frame),
        ethernet::IPV6 => depart_as::<V6, F, T>(&context, frame),
        _ => None,
    }
    .unwrap_or(PASS)
}

/// Returns `None` for a packet that is not ours.
#[inline(always)]
fn depart_as<A: Quote, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
) -> Option<Verdict> {
    let (packet, is_error) = match A::parse(frame) {
        Ok(packet) => (packet, false),
        // What the stack says of a packet that it got.
        Err(Reason::OtherProtocol) => (A::quoted(frame).ok()?, true),
        Err(_) => return None,
    };
    let Packet { source, source_port, protocol, .. } = packet;
    let kind = endpoint_kind::REPLY;
    let endpoint = endpoint::Key::new(context.settings, kind, source, source_port, protocol);
    let key = Key::new(context.settings, &packet.reply(), endpoint.id(context.tables)?);
    let found: Found<'_, A::Slot> = context.find_live(&key)?;
    let (destination, row) = context.destination(found.value.destination()).ok()?;
    let service = context.tables.service(destination.service)?;
    if is_error {
        if explain::<A, F>(frame, Brief::of(&packet), destination, service) == 0 {
            return None;
        }
    } else {
        context.track_reply::<_, true>(&packet, &found);
        name_service::<A, F>(frame, packet.protocol, destination, service)?;
    }
    bump(&row.out_packets, 1);
    bump(&row.out_bytes, u64::from(packet.length));
    Some(Verdict::Pass(Reason::Local))
}

/// Has the service say an ICMP error about a packet to a NAT destination here: nobody else knows what it
/// quotes. Returns 0 if that cannot be done.
#[inline(never)]
fn explain<A: Quote, F: Frame>(
    frame: &mut F,
    error: Brief,
    destination: &Destination,
    service: &Service,
) -> u32 {
    let nobody = A::from_words(0, 0);
    let packet = Packet {
        source: nobody,
        target: nobody,
        source_port: 0,
        target_port: 0,
        protocol: error.protocol(),
        flags: 0,
        ttl: 0,
        length: error.length() as u32,
    };
    let by = Substitute::by_service(destination, service);
    A::translate_error(frame, &packet, &by, false).is_some().into()
}

/// Returns whether a packet would go back to the director that it comes from.
#[inline(always)]
pub(crate) fn would_return<F: Frame>(
    frame: &mut F,
    destination: &Destination,
    way: &Way<'_>,
) -> bool {
    is_from(frame, destination, way.hop) != 0
}

/// Returns 1 if a frame comes from a peer to which a way leads, else 0. One that is not resolved has
/// no address to be mistaken for its own.
#[inline(never)]
fn is_from<F: Frame>(frame: &mut F, destination: &Destination, hop: &Cell<Hop>) -> u32 {
    let hop = hop.get();
    let Some(head) = frame.head::<14>() else { return 0 };
    let is_peer = destination.flags & destination_flag::PEER != 0 && hop.interface != 0;
    u32::from(is_peer && leads_to(&hop, sender_of(head)))
}

/// Returns the source address of a frame as a number.
#[inline(always)]
fn sender_of(head: &[u8; 14]) -> u64 {
    let [a, b, c, d, e, f]: [u8; 6] = rlvs_wire::bytes_at(head, ethernet::SOURCE);
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// Returns whether a way leads to the neighbour whose address is this number.
#[inline(always)]
fn leads_to(hop: &Hop, neighbour: u64) -> bool {
    const MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    (hop.head ^ neighbour) & MASK == 0
}

/// Who sent a frame that may open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// No real server of the service that is known.
    Client = 0,
    /// A real server of the service, which is a director too: it has chosen this host.
    Peer = 1,
    /// The ways to them have to be asked for.
    Unknown = 2,
    /// A client on this host, whom the service does not serve.
    Here = 3,
}

impl<T: Tables> Context<'_, T> {
    /// Returns who sent a frame to a service.
    #[inline(always)]
    pub(crate) fn sender<F: Frame>(&self, frame: &mut F, service: u32) -> Sender {
        let Some(service) = self.tables.service(service) else { return Sender::Client };
        if frame.interface() == LOOPBACK && service.flags & service_flag::LOCAL_CLIENTS == 0 {
            return Sender::Here;
        }
        if service.flags & service_flag::PEERED == 0 {
            return Sender::Client;
        }
        let Some(head) = frame.head::<14>() else { return Sender::Client };
        match self.tables.look_for_peer(sender_of(head), service.head) {
            0 => Sender::Client,
            1 => Sender::Peer,
            _ => Sender::Unknown,
        }
    }

    /// Compares a frame's sender with the ways that are kept. Returns a `Sender`.
    #[inline(always)]
    pub fn look_for_peer(&self, sender: u64, first: u32) -> u32 {
        let mut id = first;
        for _ in 0..PEERS_MAX {
            if id == 0 {
                break;
            }
            let Ok((destination, row)) = self.destination(id) else { break };
            if destination.flags & destination_flag::PEER != 0 {
                let hop = row.hop.get();
                if self.is_unknown(&hop) {
                    return Sender::Unknown as u32;
                }
                if hop.interface != 0 && leads_to(&hop, sender) {
                    return Sender::Peer as u32;
                }
            }
            id = destination.next;
        }
        Sender::Client as u32
    }

    /// Asks for one of the ways that [`sender`](Self::sender) wants to know; the next packet's look, or
    /// this one's next, finds another. One that there is not is kept as such until the destination is
    /// chosen.
    #[inline(always)]
    pub(crate) fn ask_for_a_peer<F: Frame>(&self, frame: &mut F, service: u32) {
        let id = self
            .tables
            .service(service)
            .map_or(0, |service| self.tables.unknown_peer(service.head));
        let Ok((destination, row)) = self.destination(id) else { return };
        if id == 0 {
            return;
        }
        if self.way_to_destination(frame, row, destination).is_err() {
            row.hop.set(Hop::unresolved(LOOPBACK, false, [0; 4]));
        }
    }

    /// Returns the first peer whose way has to be asked for, 0 if there is none.
    #[inline(always)]
    pub fn unknown_peer(&self, first: u32) -> u32 {
        let mut id = first;
        for _ in 0..PEERS_MAX {
            let Ok((destination, row)) = self.destination(id) else { return 0 };
            if destination.flags & destination_flag::PEER != 0 && self.is_unknown(&row.hop.get()) {
                return id;
            }
            id = destination.next;
        }
        0
    }

    /// Returns whether a way to a peer has to be asked for.
    #[inline(always)]
    fn is_unknown(&self, hop: &Hop) -> bool {
        hop.interface == 0 && hop.checked == 0 || hop.interface != 0 && !self.is_fresh(hop)
    }
}
