//! What only packets tell of the network: who answers for an address, who leaves checksums unfinished.

use std::collections::BTreeSet;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::route::Mac;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// linux/if_packet.h; the checksum of the packet has yet to be computed.
const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
/// Packets that are looked at, so that a busy interface does not hold us up.
const PACKETS_MAX: usize = 10_000;
/// As much of a frame as is looked at.
const HEAD: usize = 64;
const ARP_FRAME: usize = 42;

/// A packet socket of one interface.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
}

/// A frame that came in.
struct Seen {
    head: [u8; HEAD],
    length: usize,
    status: u32,
}

impl Tap {
    /// Opens one that does not block, for frames of an Ethernet type, in the calling thread's namespace.
    ///
    /// # Errors
    /// A missing capability (CAP_NET_RAW).
    fn open(interface: u32, ethertype: u16) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is involved. Protocol 0 hears nothing before it is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let (level, on) = (libc::SOL_PACKET, 1_i32);
        for option in [libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
            // SAFETY: the pointer is to an integer of the length that is said.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    level,
                    option,
                    (&raw const on).cast(),
                    size_of::<i32>() as u32,
                )
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: every bit pattern is a link-layer address, also zeros.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to an address of the length that is said.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { socket }) }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        Ok(nix::unistd::write(&self.socket, frame).map(drop)?)
    }

    /// Returns the next frame, if there is one.
    fn next(&self) -> Option<Seen> {
        let mut head = [0; HEAD];
        // As much as the message has, and aligned for its head.
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: HEAD };
        // SAFETY: every field may be 0.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message names memory of ours with its true lengths.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(length).ok()?.min(HEAD);
        let mut status = 0;
        // SAFETY: the kernel has filled in the message that these walk along, and the data of such a
        // message is `tpacket_auxdata`, of which the first word is read.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const message);
            while !at.is_null() {
                if ((*at).cmsg_level, (*at).cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                    status = libc::CMSG_DATA(at).cast::<u32>().read_unaligned();
                }
                at = libc::CMSG_NXTHDR(&raw const message, at);
            }
        }
        Some(Seen { head, length, status })
    }
}

/// Listens for packets that reach an interface with checksums that their sender has left to hardware,
/// which is not there: XDP hands them on as they are, and whoever gets them throws them away.
#[derive(Debug)]
pub struct ChecksumWatch {
    taps: Vec<Tap>,
}

impl ChecksumWatch {
    /// Begins to listen on an interface of the calling thread's namespace.
    ///
    /// # Errors
    /// A missing capability.
    pub fn begin(interface: u32) -> io::Result<Self> {
        let taps = [ETHERTYPE_IPV4, ETHERTYPE_IPV6].map(|kind| Tap::open(interface, kind));
        Ok(Self { taps: taps.into_iter().collect::<io::Result<_>>()? })
    }

    /// Returns whose packets came with unfinished checksums.
    pub fn end(self) -> BTreeSet<IpAddr> {
        let frames = |tap: Tap| std::iter::from_fn(move || tap.next()).take(PACKETS_MAX);
        let unfinished = |seen: &Seen| seen.status & TP_STATUS_CSUMNOTREADY != 0;
        self.taps
            .into_iter()
            .flat_map(frames)
            .filter(unfinished)
            .filter_map(|seen| source(&seen))
            .collect()
    }
}

fn source(seen: &Seen) -> Option<IpAddr> {
    let frame = seen.head.get(..seen.length)?;
    match u16::from_be_bytes(*frame.get(12..)?.first_chunk()?) {
        ETHERTYPE_IPV4 => {
            let octets: [u8; 4] = *frame.get(26..)?.first_chunk()?;
            Some(Ipv4Addr::from(octets).into())
        }
        ETHERTYPE_IPV6 => {
            let octets: [u8; 16] = *frame.get(22..)?.first_chunk()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// Asks by ARP who has addresses, in the way that changes nobody's table (RFC 5227 §2.1.1), and
/// returns every answer that comes within `wait`.
///
/// # Errors
/// A missing capability, or an interface that is down.
pub fn who_has(
    interface: u32,
    mac: Mac,
    addresses: &BTreeSet<Ipv4Addr>,
    wait: Duration,
) -> io::Result<BTreeSet<(Ipv4Addr, Mac)>> {
    let tap = Tap::open(interface, ETHERTYPE_ARP)?;
    for address in addresses {
        tap.send(&probe(mac, *address))?;
    }
    let deadline = Instant::now() + wait;
    let mut answers = BTreeSet::new();
    loop {
        while let Some(seen) = tap.next() {
            let answer = answer(seen.head.get(..seen.length).unwrap_or_default());
            answers.extend(answer.filter(|(address, _)| addresses.contains(address)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(answers);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut wanted = [PollFd::new(tap.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns an ARP probe: a question without a sender's address.
fn probe(mac: Mac, target: Ipv4Addr) -> [u8; ARP_FRAME] {
    let mut frame = [0; ARP_FRAME];
    let parts: [(usize, &[u8]); 6] = [
        (0, &[0xff; 6]),
        (6, &mac.0),
        (12, &ETHERTYPE_ARP.to_be_bytes()),
        // Ethernet, IPv4, lengths of their addresses, request.
        (14, &[0, 1, 8, 0, 6, 4, 0, 1]),
        (22, &mac.0),
        (38, &target.octets()),
    ];
    for (at, bytes) in parts {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
    }
    frame
}

/// Reads who says in an ARP reply that it has which address.
fn answer(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
    if frame.get(14..22)? != REPLY {
        return None;
    }
    let mac: [u8; 6] = *frame.get(22..)?.first_chunk()?;
    let address: [u8; 4] = *frame.get(28..)?.first_chunk()?;
    Some((address.into(), Mac(mac)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_answered_by_its_mirror_image() {
        let (asker, owner) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let mut frame = probe(asker, address);
        assert_eq!(answer(&frame), None, "a question is no answer");
        frame[21] = 2;
        frame[22..28].copy_from_slice(&owner.0);
        frame[28..32].copy_from_slice(&address.octets());
        assert_eq!(answer(&frame), Some((address, owner)));
        assert_eq!(answer(&frame[..31]), None);
    }
}
