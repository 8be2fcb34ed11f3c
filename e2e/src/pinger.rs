//! A client that pings an address every 5 ms, and knows how long it had no answer.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    socket,
};
use nix::sys::time::TimeSpec;

use rlvs_linux::netns::Namespace;

const INTERVAL: Duration = Duration::from_millis(5);
/// Answers in a row that are taken for a good way.
const ANSWERS: usize = 20;

#[derive(Clone, Copy)]
struct Ping {
    sent: Instant,
    answered: bool,
}

/// Pings until it is dropped.
pub struct Pinger {
    pings: Arc<Mutex<Vec<Ping>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinger {
    /// Starts pinging from a namespace.
    ///
    /// # Errors
    /// No raw socket, or no thread, is to be had.
    pub fn start(client: &Namespace, to: IpAddr) -> Result<Self> {
        let (family, protocol) = if to.is_ipv6() {
            (AddressFamily::Inet6, SockProtocol::IcmpV6)
        } else {
            (AddressFamily::Inet, SockProtocol::Icmp)
        };
        let open = || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        let socket = client.run(open)?.context("opening a socket for pings")?;
        let (pings, ends) = (Arc::default(), Arc::default());
        let work = Work { socket, to, pings: Arc::clone(&pings) };
        let until = Arc::clone(&ends);
        let thread = std::thread::Builder::new().name("ping".to_owned());
        let thread = thread.spawn(move || work.run(&until))?;
        Ok(Self { pings, ends, thread: Some(thread) })
    }

    /// Tells whether the last pings were all answered.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        let pings = self.pings();
        // The very last may still be on its way.
        let answers = pings.iter().rev().skip(1).take_while(|ping| ping.answered).count();
        answers >= ANSWERS
    }

    /// Returns how long there was no answer since a moment: from each first ping without one to the
    /// next that has one.
    #[must_use]
    pub fn unanswered(&self, since: Instant) -> Duration {
        let mut total = Duration::ZERO;
        let mut lost_at = None;
        for ping in self.pings().iter().filter(|ping| ping.sent + INTERVAL >= since) {
            if !ping.answered {
                lost_at.get_or_insert(ping.sent);
            } else if let Some(lost_at) = lost_at.take() {
                total += ping.sent - lost_at;
            }
        }
        total
    }

    fn pings(&self) -> std::sync::MutexGuard<'_, Vec<Ping>> {
        self.pings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been told already.
            thread.join().ok();
        }
    }
}

struct Work {
    socket: OwnedFd,
    to: IpAddr,
    pings: Arc<Mutex<Vec<Ping>>>,
}

impl Work {
    fn run(self, ends: &AtomicBool) {
        let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
        let mut due = Instant::now();
        while !ends.load(Ordering::Relaxed) {
            let mut pings = self.pings.lock().unwrap_or_else(PoisonError::into_inner);
            let number = u16::try_from(pings.len() % 0x1_0000).unwrap_or_default();
            pings.push(Ping { sent: Instant::now(), answered: false });
            drop(pings);
            // What cannot be sent has no answer.
            let flags = MsgFlags::MSG_DONTWAIT;
            sendto(self.socket.as_raw_fd(), &self.question(number), &to, flags).ok();
            // A late one is not followed by those that were missed.
            due = (due + INTERVAL).max(Instant::now());
            self.listen(due);
        }
    }

    /// Takes answers until a moment.
    fn listen(&self, until: Instant) {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if left.is_zero()
                || !ppoll(&mut ready, Some(TimeSpec::from(left)), None).is_ok_and(|n| n > 0)
            {
                return;
            }
            let mut bytes = [0; 128];
            let length = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
            if let Some(number) = self.answer(&bytes[..length.unwrap_or(0)]) {
                self.take(number);
            }
        }
    }

    fn take(&self, number: u16) {
        let mut pings = self.pings.lock().unwrap_or_else(PoisonError::into_inner);
        // Never more than one round of numbers are on their way.
        let behind = usize::from(
            u16::try_from(pings.len() % 0x1_0000).unwrap_or_default().wrapping_sub(number),
        );
        let at = pings.len().checked_sub(behind);
        if let Some(ping) = at.and_then(|at| pings.get_mut(at)) {
            ping.answered = true;
        }
    }

    /// Returns an echo request; the kernel sums those of IPv6.
    fn question(&self, number: u16) -> [u8; 8] {
        let [high, low] = number.to_be_bytes();
        let [id, id_low] = id().to_be_bytes();
        let mut bytes = [if self.to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, id, id_low, high, low];
        let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
        [bytes[2], bytes[3]] = (!folded).to_be_bytes();
        bytes
    }

    /// Returns the number of the ping that this answers.
    fn answer(&self, packet: &[u8]) -> Option<u16> {
        let (kind, message) = if self.to.is_ipv4() {
            let header = usize::from(packet.first()? & 15) * 4;
            (0, packet.get(header..)?)
        } else {
            (129, packet)
        };
        let &[first, _, _, _, id_high, id_low, high, low, ..] = message else { return None };
        let is_ours = first == kind && [id_high, id_low] == id().to_be_bytes();
        is_ours.then_some(u16::from_be_bytes([high, low]))
    }
}

/// Returns what tells our pings from those of others.
fn id() -> u16 {
    u16::try_from(std::process::id() & 0xffff).unwrap_or_default()
}
