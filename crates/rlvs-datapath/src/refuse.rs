//! ICMP errors in the name of the virtual address, so that clients fail at once, and how many of
//! them.

use rlvs_wire::{checksum, ethernet, icmp, ipv4, ipv6, put_at, tcp, u16_at};

use crate::association;
use crate::connection::Context;
use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::reason::Reason;
use crate::stage::Stage;
use crate::tables::Tables;

/// What is wrong with a packet, in ICMP's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Nobody serves this port: type 3 code 3, ICMPv6 type 1 code 4.
    PortUnreachable,
    /// No way leads to whom the packet is for: type 3 code 1, ICMPv6 type 1 code 3.
    HostUnreachable,
    /// The time to live ran out: type 11 code 0, ICMPv6 type 3 code 0.
    TimeExceeded,
    /// Longer than the way takes: type 3 code 4, ICMPv6 type 2 code 0.
    TooBig {
        /// Largest IP packet that it takes. No IPv6 link takes less than 1280 bytes, and one that
        /// says so is not believed.
        mtu: u32,
    },
}

/// Smallest MTU of an IPv6 link (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1280;
/// ICMP errors that one CPU sends in a unit of coarse time, which is at least 256 ms: no more than
/// 1,000 a second, as `net.ipv4.icmp_msgs_per_sec`, but for each CPU, and for packets that are too big
/// as well.
pub const ERRORS_A_UNIT: u32 = 256;

impl Complaint {
    /// Returns the ICMP header, its checksum 0.
    const fn header(self, family: u8) -> u64 {
        let (kind, code, rest) = match (self, family) {
            (Self::PortUnreachable, 4) => (3, 3, 0),
            (Self::PortUnreachable, _) => (1, 4, 0),
            (Self::HostUnreachable, 4) => (3, 1, 0),
            (Self::HostUnreachable, _) => (1, 3, 0),
            (Self::TimeExceeded, 4) => (11, 0, 0),
            (Self::TimeExceeded, _) => (3, 0, 0),
            (Self::TooBig { mtu }, 4) => (3, 4, mtu & 0xffff),
            (Self::TooBig { mtu }, _) => (2, 0, if mtu < MTU_MIN_V6 { MTU_MIN_V6 } else { mtu }),
        };
        kind << 56 | code << 48 | rest as u64
    }
}

impl<T: Tables> Context<'_, T> {
    /// Returns whether this CPU may send one more ICMP error, and notes that it does.
    #[inline(always)]
    pub fn may_complain(&self) -> bool {
        let Some(limit) = self.tables.limit(self.tables.cpu()) else { return false };
        let (kept, now) = (limit.errors.get(), u64::from(self.now.0) << 32);
        let errors = if kept >> 32 == now >> 32 { kept } else { now };
        if errors as u32 >= ERRORS_A_UNIT {
            return false;
        }
        limit.errors.set(errors + 1);
        true
    }
}

const TTL: u8 = 64;
// Internetwork control, and of the quoted packet what is no precedence, as the kernel's icmp_send().
const TOS: u8 = 0xc0;
const TOS_QUOTED: u8 = 0x1e;
const QUOTED_UDP: usize = 8;
/// The most bytes of options that an IPv4 header has.
const OPTIONS_MAX: usize = 40;
/// Bytes of a fragment header, or of another extension header that says little.
const EXTENSION: usize = 8;
const IP: usize = ethernet::LENGTH;

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

/// A packet to whose destination no way leads: its sender is told, as `dst_link_failure()` does.
#[inline(always)]
pub fn lost<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let packet = match A::parse(frame) {
        Err(Reason::OtherProtocol) => association::parse::<A, F>(frame),
        parsed => parsed,
    };
    match packet {
        Ok(packet) => {
            let (complaint, reason) = (Complaint::HostUnreachable, Reason::Unreachable);
            complain(context, frame, &packet, complaint, reason)
        }
        Err(_) => Verdict::Drop(Reason::Unreachable),
    }
}

/// Tells the sender of a packet how long it may be, unless he lets routers cut it into fragments.
#[inline(always)]
pub(crate) fn complain_of_length<A: Ip, F: Frame, T: Tables>(
    context: &Context<'_, T>,
    frame: &mut F,
    packet: &Packet<A>,
    mtu: u32,
) -> Verdict {
    if may_be_cut::<A, F>(frame) {
        return Verdict::Next(Stage::cut::<A>());
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

/// Says what becomes of a request with unusual headers that is too long: the same stage cuts it behind a
/// tunnel's header or tells its sender. The stack would not: it has the virtual address, and forwards nothing.
#[inline(always)]
pub(crate) const fn cut_or_tell<A: Ip>() -> Verdict {
    Verdict::Next(Stage::cut::<A>())
}

/// Returns whether routers may cut a packet into fragments.
#[inline(always)]
pub(crate) fn may_be_cut<A: Ip, F: Frame>(frame: &mut F) -> bool {
    let whole = |head: &mut [u8; 34]| u16_at(head, IP + ipv4::FRAGMENT) & ipv4::DONT_FRAGMENT != 0;
    A::FAMILY == 4 && !frame.head::<34>().is_some_and(whole)
}

/// Turns the frame into an ICMP error to whom it came from, in the name of whom it went to. Quoted are the IP
/// header and the whole TCP or UDP header without options; of a long packet with unusual headers as much as all options of IPv4 and the ports take, or two short
/// extension headers and a TCP header.
#[inline(always)]
pub fn refuse<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, complaint: Complaint) -> Verdict {
    Verdict::unpack(refuse_out_of_line(frame, packet, complaint.header(A::FAMILY)))
}

#[inline(never)]
fn refuse_out_of_line<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, header: u64) -> u64 {
    let interface = frame.interface();
    let done = if !F::USUAL {
        if A::FAMILY == 4 {
            refuse_v4::<F, 110>(frame, header)
        } else {
            refuse_v6::<F, 138>(frame, header)
        }
    } else if A::FAMILY == 4 {
        if packet.protocol == tcp::PROTOCOL {
            refuse_v4::<F, 82>(frame, header)
        } else {
            refuse_v4::<F, 70>(frame, header)
        }
    } else if packet.protocol == tcp::PROTOCOL {
        refuse_v6::<F, 122>(frame, header)
    } else {
        refuse_v6::<F, 110>(frame, header)
    };
    match done {
        Some(()) => Verdict::Transmit { interface }.pack(),
        None => Verdict::Drop(Reason::NoRoom).pack(),
    }
}

const _: () = {
    assert!(IP + 2 * ipv4::LENGTH + icmp::LENGTH + QUOTED_UDP == 70);
    assert!(IP + 2 * ipv4::LENGTH + icmp::LENGTH + tcp::LENGTH == 82);
    assert!(IP + 2 * ipv6::LENGTH + icmp::LENGTH + QUOTED_UDP == 110);
    assert!(IP + 2 * ipv4::LENGTH + icmp::LENGTH + OPTIONS_MAX + QUOTED_UDP == 110);
    assert!(IP + 2 * ipv6::LENGTH + icmp::LENGTH + 2 * EXTENSION + tcp::LENGTH == 138);
    assert!(IP + 2 * ipv6::LENGTH + icmp::LENGTH + tcp::LENGTH == 122);
};

/// `N` is the length of the frame that leaves.
#[inline(always)]
fn refuse_v4<F: Frame, const N: usize>(frame: &mut F, header: u64) -> Option<()> {
    const ADDED: usize = ipv4::LENGTH + icmp::LENGTH;
    let ethernet: [u8; 14] = *frame.head::<14>()?;
    frame.reframe(ADDED, N)?;
    let head = frame.head::<N>()?;
    write_ethernet(head, &ethernet);
    complete_v4(head, header);
    Some(())
}

/// Writes the headers before a quoted packet, which the error is about and whose ends are its own.
#[inline(always)]
pub(crate) fn complete_v4<const N: usize>(head: &mut [u8; N], header: u64) {
    let quoted = IP + ipv4::LENGTH + icmp::LENGTH;
    let client: [u8; 4] = rlvs_wire::bytes_at(head, quoted + ipv4::SOURCE);
    let service: [u8; 4] = rlvs_wire::bytes_at(head, quoted + ipv4::DESTINATION);
    let [tos]: [u8; 1] = rlvs_wire::bytes_at(head, quoted + 1);
    put_at(head, IP, [0x45, TOS | tos & TOS_QUOTED]);
    put_at(head, IP + ipv4::TOTAL_LENGTH, ((N - IP) as u16).to_be_bytes());
    put_at(head, IP + 4, [0; 4]);
    put_at(head, IP + ipv4::TTL, [TTL, icmp::PROTOCOL, 0, 0]);
    put_at(head, IP + ipv4::SOURCE, service);
    put_at(head, IP + ipv4::DESTINATION, client);
    let sum = sum_from(head, IP, IP + ipv4::LENGTH);
    put_at(head, IP + ipv4::CHECKSUM, (!checksum::fold(sum)).to_be_bytes());
    let at = IP + ipv4::LENGTH;
    put_at(head, at, header.to_be_bytes());
    let sum = sum_from(head, at, N);
    put_at(head, at + 2, (!checksum::fold(sum)).to_be_bytes());
}

/// `N` is the length of the frame that leaves.
#[inline(always)]
fn refuse_v6<F: Frame, const N: usize>(frame: &mut F, header: u64) -> Option<()> {
    const ADDED: usize = ipv6::LENGTH + icmp::LENGTH;
    let ethernet: [u8; 14] = *frame.head::<14>()?;
    frame.reframe(ADDED, N)?;
    let head = frame.head::<N>()?;
    write_ethernet(head, &ethernet);
    complete_v6(head, header);
    Some(())
}

/// As [`complete_v4`].
#[inline(always)]
pub(crate) fn complete_v6<const N: usize>(head: &mut [u8; N], header: u64) {
    let quoted = IP + ipv6::LENGTH + icmp::LENGTH;
    let client: [u8; 16] = rlvs_wire::bytes_at(head, quoted + ipv6::SOURCE);
    let service: [u8; 16] = rlvs_wire::bytes_at(head, quoted + ipv6::DESTINATION);
    let payload = (N - IP - ipv6::LENGTH) as u16;
    put_at(head, IP, [0x60, 0, 0, 0]);
    put_at(head, IP + ipv6::PAYLOAD_LENGTH, payload.to_be_bytes());
    put_at(head, IP + ipv6::NEXT_HEADER, [icmp::PROTOCOL_V6, TTL]);
    put_at(head, IP + ipv6::SOURCE, service);
    put_at(head, IP + ipv6::DESTINATION, client);
    let at = IP + ipv6::LENGTH;
    put_at(head, at, header.to_be_bytes());
    let pseudo = u64::from(payload) + u64::from(icmp::PROTOCOL_V6);
    let sum = pseudo + sum_from(head, IP + ipv6::SOURCE, N);
    put_at(head, at + 2, (!checksum::fold(sum)).to_be_bytes());
}

#[inline(always)]
fn write_ethernet<const N: usize>(head: &mut [u8; N], old: &[u8; 14]) {
    let to: [u8; 6] = rlvs_wire::bytes_at(old, ethernet::SOURCE);
    let from: [u8; 6] = rlvs_wire::bytes_at(old, ethernet::DESTINATION);
    let kind: [u8; 2] = rlvs_wire::bytes_at(old, ethernet::TYPE);
    put_at(head, ethernet::DESTINATION, to);
    put_at(head, ethernet::SOURCE, from);
    put_at(head, ethernet::TYPE, kind);
}

/// Sums 16-bit words from `from` to `to`, both constants.
#[inline(always)]
fn sum_from<const N: usize>(head: &[u8; N], from: usize, to: usize) -> u64 {
    let mut total = 0;
    let mut at = from;
    while at < to {
        total += u64::from(u16_at(head, at));
        at += 2;
    }
    total
}
