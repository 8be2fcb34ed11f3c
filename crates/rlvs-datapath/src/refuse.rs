//! ICMP errors in the name of the virtual address, so that clients fail at once.

use rlvs_wire::{checksum, ethernet, icmp, ipv4, ipv6, put_at, tcp, u16_at};

use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, Packet};
use crate::reason::Reason;

/// What is wrong with a packet, in ICMP's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Nobody serves this port: type 3 code 3, ICMPv6 type 1 code 4.
    PortUnreachable,
    /// The time to live ran out: type 11 code 0, ICMPv6 type 3 code 0.
    TimeExceeded,
}

impl Complaint {
    const fn code(self, family: u8) -> [u8; 2] {
        match (self, family) {
            (Self::PortUnreachable, 4) => [3, 3],
            (Self::PortUnreachable, _) => [1, 4],
            (Self::TimeExceeded, 4) => [11, 0],
            (Self::TimeExceeded, _) => [3, 0],
        }
    }
}

const TTL: u8 = 64;
const TOS: u8 = 0xc0; // internetwork control, as the kernel's icmp_send()
const QUOTED_UDP: usize = 8;
const IP: usize = ethernet::LENGTH;

/// Turns the frame into an ICMP error to whom it came from. Quoted are the IP header and the whole
/// TCP or UDP header without options.
#[inline(always)]
pub fn refuse<A: Ip, F: Frame>(frame: &mut F, packet: &Packet<A>, complaint: Complaint) -> Verdict {
    Verdict::unpack(refuse_out_of_line(frame, packet, complaint))
}

#[inline(never)]
fn refuse_out_of_line<A: Ip, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    complaint: Complaint,
) -> u64 {
    let interface = frame.interface();
    let done = if A::FAMILY == 4 {
        if packet.protocol == tcp::PROTOCOL {
            refuse_v4::<F, 82>(frame, complaint)
        } else {
            refuse_v4::<F, 70>(frame, complaint)
        }
    } else if packet.protocol == tcp::PROTOCOL {
        refuse_v6::<F, 122>(frame, complaint)
    } else {
        refuse_v6::<F, 110>(frame, complaint)
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
    assert!(IP + 2 * ipv6::LENGTH + icmp::LENGTH + tcp::LENGTH == 122);
};

/// `N` is the length of the frame that leaves.
#[inline(always)]
fn refuse_v4<F: Frame, const N: usize>(frame: &mut F, complaint: Complaint) -> Option<()> {
    const ADDED: usize = ipv4::LENGTH + icmp::LENGTH;
    let ethernet: [u8; 14] = *frame.head::<14>()?;
    frame.reframe(ADDED, N)?;
    let head = frame.head::<N>()?;
    write_ethernet(head, &ethernet);
    let quoted = IP + ADDED;
    let client: [u8; 4] = rlvs_wire::bytes_at(head, quoted + ipv4::SOURCE);
    let service: [u8; 4] = rlvs_wire::bytes_at(head, quoted + ipv4::DESTINATION);
    put_at(head, IP, [0x45, TOS]);
    put_at(head, IP + ipv4::TOTAL_LENGTH, ((N - IP) as u16).to_be_bytes());
    put_at(head, IP + 4, [0; 4]);
    put_at(head, IP + ipv4::TTL, [TTL, icmp::PROTOCOL, 0, 0]);
    put_at(head, IP + ipv4::SOURCE, service);
    put_at(head, IP + ipv4::DESTINATION, client);
    let sum = sum_from(head, IP, IP + ipv4::LENGTH);
    put_at(head, IP + ipv4::CHECKSUM, (!checksum::fold(sum)).to_be_bytes());
    let at = IP + ipv4::LENGTH;
    put_at(head, at, complaint.code(4));
    put_at(head, at + 2, [0; 6]);
    let sum = sum_from(head, at, N);
    put_at(head, at + 2, (!checksum::fold(sum)).to_be_bytes());
    Some(())
}

/// `N` is the length of the frame that leaves.
#[inline(always)]
fn refuse_v6<F: Frame, const N: usize>(frame: &mut F, complaint: Complaint) -> Option<()> {
    const ADDED: usize = ipv6::LENGTH + icmp::LENGTH;
    let ethernet: [u8; 14] = *frame.head::<14>()?;
    frame.reframe(ADDED, N)?;
    let head = frame.head::<N>()?;
    write_ethernet(head, &ethernet);
    let quoted = IP + ADDED;
    let client: [u8; 16] = rlvs_wire::bytes_at(head, quoted + ipv6::SOURCE);
    let service: [u8; 16] = rlvs_wire::bytes_at(head, quoted + ipv6::DESTINATION);
    let payload = (N - IP - ipv6::LENGTH) as u16;
    put_at(head, IP, [0x60, 0, 0, 0]);
    put_at(head, IP + ipv6::PAYLOAD_LENGTH, payload.to_be_bytes());
    put_at(head, IP + ipv6::NEXT_HEADER, [icmp::PROTOCOL_V6, TTL]);
    put_at(head, IP + ipv6::SOURCE, service);
    put_at(head, IP + ipv6::DESTINATION, client);
    let at = IP + ipv6::LENGTH;
    put_at(head, at, complaint.code(6));
    put_at(head, at + 2, [0; 6]);
    let pseudo = u64::from(payload) + u64::from(icmp::PROTOCOL_V6);
    let sum = pseudo + sum_from(head, IP + ipv6::SOURCE, N);
    put_at(head, at + 2, (!checksum::fold(sum)).to_be_bytes());
    Some(())
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
