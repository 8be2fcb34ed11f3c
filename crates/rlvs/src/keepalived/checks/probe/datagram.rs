//! `UDP_CHECK`, `DNS_CHECK` and `PING_CHECK`.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{SockProtocol, SockType};
use rlvs_conf::desired::{CheckerKind, Reply};
use rlvs_control::checks::Outcome;
use rlvs_wire::checksum;

use super::{Progress, socket};
use crate::keepalived::checks::dns;
use crate::keepalived::checks::request::Request;

/// The longest datagram that is looked at.
const DATAGRAM_MAX: usize = 65_536;

/// Sends a datagram.
#[derive(Debug)]
pub(in crate::keepalived::checks) struct Udp {
    socket: UdpSocket,
    wanted: Wanted,
}

/// What an answer to a datagram must be like.
#[derive(Debug)]
enum Wanted {
    /// Anything, and nothing too.
    Anything,
    /// These bytes.
    Bytes(Reply),
    /// The answer to this query.
    Dns(Vec<u8>),
}

impl Udp {
    pub(super) fn begin(request: &Request, number: u64) -> Result<Self, Outcome> {
        let (payload, wanted) = match &request.kind {
            CheckerKind::Udp(udp) => {
                let wanted = udp.reply.clone().map_or(Wanted::Anything, Wanted::Bytes);
                (udp.payload.clone(), wanted)
            }
            CheckerKind::Dns(dns) => {
                let query =
                    dns::query(number as u16, &dns.record, &dns.name).map_err(Outcome::Unknown)?;
                (query.clone(), Wanted::Dns(query))
            }
            _ => return Err(Outcome::Unknown("not a check by datagram".into())),
        };
        let socket = UdpSocket::from(socket::open(request, SockType::Datagram, None)?);
        socket.send(&payload).map_err(|error| socket::io_failed(&error))?;
        Ok(Self { socket, wanted })
    }

    pub(super) fn ready(&mut self) -> Progress {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let answer = match self.socket.recv(&mut datagram) {
                Ok(length) => &datagram[..length],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) => return Progress::Ended(socket::io_failed(&error)),
            };
            match &self.wanted {
                Wanted::Anything => return Progress::Ended(Outcome::Good),
                Wanted::Bytes(reply) => return Progress::Ended(judge(reply, answer)),
                Wanted::Dns(query) => match dns::judge(query, answer) {
                    Some(Ok(())) => return Progress::Ended(Outcome::Good),
                    Some(Err(why)) => return Progress::Ended(Outcome::Bad(why)),
                    // The answer to another query, too late.
                    None => {}
                },
            }
        }
    }
}

/// Holds an answer against what it must be like.
fn judge(reply: &Reply, answer: &[u8]) -> Outcome {
    let lengths = usize::from(reply.length_min)..=usize::from(reply.length_max);
    if !lengths.contains(&answer.len()) {
        return Outcome::Bad(format!("an answer of {} bytes", answer.len()));
    }
    let halves = answer.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let same = |(wanted, half): (&Option<u8>, u8)| wanted.is_none_or(|wanted| wanted == half);
    if answer.len() * 2 < reply.nibbles.len() || !reply.nibbles.iter().zip(halves).all(same) {
        return Outcome::Bad("another answer than the configured one".into());
    }
    Outcome::Good
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends an ICMP echo request.
#[derive(Debug)]
pub(in crate::keepalived::checks) struct Ping {
    socket: UdpSocket,
    v6: bool,
    /// The socket has whole IPv4 packets, and those of other checks too.
    raw: bool,
    /// Identifier and sequence number, by which an answer is known.
    key: [u8; 4],
}

/// What a ping says, over and over, as keepalived's does.
const WORDS: &[u8; 19] = b"keepalived check - ";
/// Bytes behind the header of a ping.
const PING_PAYLOAD: usize = 128;
const PING: usize = 8 + PING_PAYLOAD;

impl Ping {
    pub(super) fn begin(request: &Request, number: u64) -> Result<Self, Outcome> {
        let v6 = request.at().is_ipv6();
        let protocol = if v6 { SockProtocol::IcmpV6 } else { SockProtocol::Icmp };
        let open = |kind| socket::open(request, kind, Some(protocol));
        // Not every host lets these be opened; a raw one needs a privilege.
        let (descriptor, raw) = match open(SockType::Datagram) {
            Ok(descriptor) => (descriptor, false),
            Err(_) => (open(SockType::Raw)?, true),
        };
        let key = (number as u32).to_be_bytes();
        let ping = Self { socket: UdpSocket::from(descriptor), v6, raw, key };
        let message = ping.message();
        ping.socket.send(&message).map_err(|error| socket::io_failed(&error))?;
        Ok(ping)
    }

    /// Returns an echo request (RFC 792, RFC 4443 §4.1). The kernel sums those of ICMPv6.
    fn message(&self) -> [u8; PING] {
        let mut message = [0; PING];
        message[0] = if self.v6 { 128 } else { 8 };
        message[4..8].copy_from_slice(&self.key);
        for (byte, word) in message[8..].iter_mut().zip(WORDS.iter().cycle()) {
            *byte = *word;
        }
        if !self.v6 {
            let sum = !checksum::fold(checksum::sum(&message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    pub(super) fn ready(&mut self) -> Progress {
        let mut packet = [0; 512];
        loop {
            match self.socket.recv(&mut packet) {
                Ok(length) if self.is_answer(&packet[..length]) => {
                    return Progress::Ended(Outcome::Good);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) => return Progress::Ended(socket::io_failed(&error)),
            }
        }
    }

    fn is_answer(&self, packet: &[u8]) -> bool {
        let header = match packet.first() {
            Some(first) if self.raw && !self.v6 => usize::from(first & 15) * 4,
            _ => 0,
        };
        let Some(message) = packet.get(header..header + PING) else { return false };
        let kind = if self.v6 { 129 } else { 0 };
        // Without a raw socket the identifier is the kernel's, and what comes is for this socket.
        let from = if self.raw { 4 } else { 6 };
        message[0] == kind
            && message[from..8] == self.key[from - 4..]
            && message[8..] == self.message()[8..]
    }
}

impl AsFd for Ping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_against_halves_of_bytes() {
        let reply = |nibbles: &[Option<u8>]| Reply {
            nibbles: nibbles.to_vec(),
            length_min: 1,
            length_max: 3,
        };
        let check = |reply: &Reply, answer: &[u8]| judge(reply, answer) == Outcome::Good;
        let some = reply(&[Some(1), None, Some(3), Some(4)]);
        assert!(check(&some, &[0x1f, 0x34]));
        assert!(check(&some, &[0x10, 0x34, 0x77]));
        assert!(!check(&some, &[0x1f, 0x35]));
        assert!(!check(&some, &[0x1f]));
        assert!(!check(&some, &[0x1f, 0x34, 0, 0]));
        assert!(check(&reply(&[]), &[9]));
        assert!(!check(&reply(&[]), &[]));
    }
}
