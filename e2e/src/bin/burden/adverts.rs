//! When advertisements pass on the wire, by the kernel's clock.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};

use crate::INTERVAL;
use crate::network::Network;

/// Room for all frames of some seconds.
const BUFFER_BYTES: usize = 8 << 20;
/// Protocol number of VRRP.
const VRRP: u8 = 112;

/// Hears what the virtual router says.
pub(crate) struct Adverts {
    socket: OwnedFd,
}

impl Adverts {
    pub(crate) fn start(network: &Network) -> Result<Self> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        };
        let socket = network.listener.run(open)?.context("opening a packet socket")?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES)?;
        Ok(Self { socket })
    }

    /// Forgets what has come so far.
    pub(crate) fn forget(&self) {
        while self.next().is_some() {}
    }

    /// Returns the time of the next advertisement that waits.
    fn advert(&self) -> Option<Duration> {
        loop {
            if let (time, true) = self.next()? {
                return Some(time);
            }
        }
    }

    /// Listens so much longer, and returns how much later than due the latest advertisement was.
    pub(crate) fn latest(&self, longer: Duration) -> Result<Duration> {
        let until = Instant::now() + longer;
        // Whoever was woken before it slept returns at once.
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|l| !l.is_zero())
        {
            std::thread::park_timeout(left);
        }
        let times: Vec<Duration> = std::iter::from_fn(|| self.advert()).collect();
        let pairs = times.iter().zip(times.iter().skip(1));
        let longest = pairs.map(|(one, next)| next.saturating_sub(*one)).max();
        Ok(longest.context("nobody advertises")?.saturating_sub(INTERVAL))
    }

    /// Returns when the next frame came, and whether it is an advertisement.
    fn next(&self) -> Option<(Duration, bool)> {
        let mut bytes = [0; 128];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let time = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let fd = self.socket.as_raw_fd();
            let message =
                recvmsg::<()>(fd, &mut parts, Some(&mut control), MsgFlags::empty()).ok()?;
            message.cmsgs().ok()?.find_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            })?
        };
        Some((time, bytes[12..14] == [8, 0] && bytes[23] == VRRP))
    }
}
