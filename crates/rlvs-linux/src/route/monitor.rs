//! Notice of interfaces and addresses that change.

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
        let failed = |source| Error::Netlink {
            operation: "listening to changes of interfaces".to_owned(),
            source: netlink::Error::Socket { operation: "opening", source },
        };
        let mut socket =
            netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).map_err(failed)?;
        socket.bind(&netlink_sys::SocketAddr::new(0, GROUPS)).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Self { socket })
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
