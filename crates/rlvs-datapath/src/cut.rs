//! Packets that are too long for the way to their destination, and whose senders let routers cut them, or
//! that have unusual headers.
//!
//! One packet that comes in cannot leave as two by these programs. So what enters a tunnel over IPv4 goes
//! to the host's stack with its outer header, by the loopback device: the stack forwards it from there and
//! cuts it, as `ip_vs_tunnel_xmit()` leaves it to `ip_local_out()`. A forwarded packet over IPv6 is not
//! cut: its sender is told the MTU, although he did not ask. Direct routing and NAT have nothing to put
//! before a packet, and drop it. XDP leaves all of them to TC.
//!
//! Who does not let routers cut his packets is told the MTU by the stage that carries them, or here if they have
//! options or extension headers or are first fragments, as long datagrams of IPv6 are: the stack, whose own
//! address the virtual one is, would take them for its own.

use rlvs_wire::{checksum, ipv4, put_at, u8_at, u16_at};

use crate::abi::{Destination, Row, method, settings_flag};
use crate::association;
use crate::connection::Context;
use crate::forward::does_not_fit;
use crate::fragment::known;
use crate::frame::{Frame, Verdict};
use crate::ip::{IP, Ip, Packet};
use crate::moved::Moved;
use crate::process::Half;
use crate::reason::Reason;
use crate::refuse::{Complaint, complain, may_be_cut};
use crate::tables::{Tables, bump};
use crate::tunnel;
use crate::wide::Key;

const TOO_BIG: Verdict = Verdict::Drop(Reason::TooBig);

/// A packet to a destination that is too long for the way there.
#[inline(always)]
pub fn cut<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    match leave_to_the_stack::<A, F, T>(context, frame) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

#[inline(always)]
fn leave_to_the_stack<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
) -> Result<Verdict, Verdict> {
    let (packet, is_later): (Packet<A>, bool) = match A::parse(frame) {
        Err(Reason::OtherProtocol) => {
            association::parse::<A, F>(frame).map(|packet| (packet, false))
        }
        _ => known(context, frame),
    }
    .map_err(|_| TOO_BIG)?;
    let id = context.destination_of(&packet).ok_or(TOO_BIG)?;
    let (destination, row) = context.destination(id).map_err(Verdict::Drop)?;
    let is_cut = may_be_cut::<A, F>(frame);
    if is_cut && destination.method != method::TUNNEL {
        return Err(TOO_BIG);
    }
    let way = context.way_to_destination(frame, row, destination)?;
    let mtu = does_not_fit(frame, &packet, destination.overhead, &way).ok_or(TOO_BIG)?;
    if is_cut && destination.family == 4 {
        return arrive(context, frame, &packet, destination, row);
    }
    // Nobody is told of any but the first fragment (RFC 1122, section 3.2.2): only that has ports.
    if is_later {
        return Err(TOO_BIG);
    }
    let mut frame = Moved::<F, false>::new(frame, 0);
    let complaint = Complaint::TooBig { mtu };
    Ok(complain(context, &mut frame, &packet, complaint, Reason::TooBig))
}

/// Puts the outer header before a packet and has it come in by the loopback device.
#[inline(always)]
fn arrive<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    destination: &Destination,
    row: &Row,
) -> Result<Verdict, Verdict> {
    tunnel::enter::<A, F, T, true>(context, frame, packet, destination, row)
        .map_err(Verdict::Drop)?;
    let head = frame.head::<34>().ok_or(Verdict::Drop(Reason::NoRoom))?;
    // The stack lowers it once more.
    let ttl = u8_at(head, IP + ipv4::TTL);
    let sum = u16_at(head, IP + ipv4::CHECKSUM);
    let raised = checksum::update(sum, checksum::delta(0, 0x100).into());
    put_at(head, IP + ipv4::TTL, [ttl.wrapping_add(1)]);
    put_at(head, IP + ipv4::CHECKSUM, raised.to_be_bytes());
    put_at(head, 0, [0; 12]);
    bump(&row.in_packets, 1);
    bump(&row.in_bytes, packet.length.into());
    Ok(Verdict::Arrive)
}

impl<T: Tables> Context<'_, T> {
    /// Returns the destination of a request's connection.
    #[inline(always)]
    fn destination_of<A: Ip>(&self, packet: &Packet<A>) -> Option<u32> {
        if let Some(Half { key, is_reply: false }) = self.half(packet)
            && let Some(found) = self.find_live(&key)
        {
            return Some(found.value.destination());
        }
        if self.settings.flags & settings_flag::WIDE == 0 {
            return None;
        }
        let chosen = self.take_chosen(packet);
        if chosen != 0 {
            return Some(chosen);
        }
        Some(self.find_wide_live(&Key::request(packet))?.value.destination())
    }
}
