//! Notice of interfaces and addresses that change, and of routes and rules that go.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use super::Error;
use crate::netlink;

/// Groups of routing netlink: links, IPv4 addresses, IPv6 addresses.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Tells that something about interfaces or their addresses has changed, not what: whoever wants
/// to know lists them, and then misses nothing even if notices were lost.
#[derive(Debug)]
pub struct Monitor {
    socket: netlink_sys::Socket,
}

impl Monitor {
    /// Begins to listen in the calling thread's namespace.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn open() -> Result<Self, Error> {
        let operation = "listening to changes of interfaces";
        listening(operation, GROUPS).map(|socket| Self { socket })
    }

    /// Takes all notices, and tells whether there was one.
    pub fn has_changed(&self) -> bool {
        let mut changed = false;
        loop {
            match self.socket.recv_from_full() {
                Ok(_) => changed = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return changed,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Notices were lost: then something has changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Groups of routing netlink: IPv4 routes, IPv4 rules, IPv6 routes, IPv6 rules.
const ROUTING_GROUPS: u32 = 0x40 | 0x80 | 0x400 | 1 << (libc::RTNLGRP_IPV6_RULE - 1);
/// Notices that are read in one turn: a router's daemon may change routes for as long as it likes.
const NOTICES_AT_ONCE: usize = 1024;
/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// Tells that routes or rules may have been removed.
#[derive(Debug)]
pub struct RoutingMonitor {
    socket: netlink_sys::Socket,
}

impl RoutingMonitor {
    /// Begins to listen in the calling thread's namespace.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn open() -> Result<Self, Error> {
        let operation = "listening to changes of routes";
        listening(operation, ROUTING_GROUPS).map(|socket| Self { socket })
    }

    /// Takes notices, and tells whether a rule was removed, or a route that one of these `protocols`
    /// has made. What has been lost on the way counts.
    pub fn has_lost(&self, protocols: &BTreeSet<u8>) -> bool {
        let mut lost = false;
        for _ in 0..NOTICES_AT_ONCE {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => lost |= tells_of_loss(&bytes, protocols),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return lost,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => lost = true,
            }
        }
        lost
    }
}

impl AsFd for RoutingMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Looks through the messages of one datagram.
fn tells_of_loss(mut bytes: &[u8], protocols: &BTreeSet<u8>) -> bool {
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let [a, b, c, d, low, high, ..] = *header;
        // `struct rtmsg`: family, two lengths, type of service, table, protocol.
        let protocol = bytes.get(HEADER_BYTES + 5);
        match u16::from_ne_bytes([low, high]) {
            libc::RTM_DELRULE => return true,
            libc::RTM_DELROUTE if protocol.is_some_and(|one| protocols.contains(one)) => {
                return true;
            }
            _ => {}
        }
        let length = u32::from_ne_bytes([a, b, c, d]).next_multiple_of(4);
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER_BYTES);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    false
}

/// Opens a socket that hears these groups.
fn listening(operation: &str, groups: u32) -> Result<netlink_sys::Socket, Error> {
    let failed = |source| Error::Netlink {
        operation: operation.to_owned(),
        source: netlink::Error::Socket { operation: "opening", source },
    };
    let mut socket =
        netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).map_err(failed)?;
    socket.bind(&netlink_sys::SocketAddr::new(0, groups)).map_err(failed)?;
    socket.set_non_blocking(true).map_err(failed)?;
    Ok(socket)
}
