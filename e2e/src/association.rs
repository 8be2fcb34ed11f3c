//! Just enough SCTP for an association over raw sockets, as kernels without SCTP have them: it
//! opens, echoes, closes, and answers nothing whose checksum is wrong.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{SockaddrStorage, bind};
use rlvs_linux::netns::Namespace;

use crate::lab::TIME_MAX;
use crate::packet::{association_packet, crc32c};

/// DATA.
pub const DATA: u8 = 0;
/// INIT.
pub const INIT: u8 = 1;
/// INIT ACK.
pub const INIT_ACK: u8 = 2;
/// SACK.
pub const SACK: u8 = 3;
/// SHUTDOWN.
pub const SHUTDOWN: u8 = 7;
/// SHUTDOWN ACK.
pub const SHUTDOWN_ACK: u8 = 8;
/// COOKIE ECHO.
pub const COOKIE_ECHO: u8 = 10;
/// COOKIE ACK.
pub const COOKIE_ACK: u8 = 11;
/// SHUTDOWN COMPLETE.
pub const SHUTDOWN_COMPLETE: u8 = 14;

/// A packet that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Address of who sent it.
    pub from: IpAddr,
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub target: u16,
    /// Type of its chunk.
    pub chunk: u8,
    /// What the chunk holds.
    pub payload: Vec<u8>,
}

/// An address of the thread's namespace at which SCTP is spoken.
#[derive(Debug)]
pub struct Speaker(UdpSocket);

impl Speaker {
    /// Opens a raw socket for an address.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn open(at: IpAddr) -> io::Result<Self> {
        let domain = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: numbers only.
        let fd = unsafe { libc::socket(domain, kind, libc::IPPROTO_SCTP) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(at, 0)))?;
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(TIME_MAX))?;
        Ok(Self(socket))
    }

    /// Sends one chunk.
    ///
    /// # Errors
    /// No way.
    pub fn say(&self, source: u16, to: SocketAddr, chunk: u8, payload: &[u8]) -> io::Result<()> {
        let packet = association_packet(source, to.port(), chunk, payload, None);
        self.0.send_to(&packet, SocketAddr::new(to.ip(), 0)).map(drop)
    }

    /// Waits for a packet whose checksum is right.
    ///
    /// # Errors
    /// None came.
    pub fn hear(&self) -> io::Result<Heard> {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = self.0.recv_from(&mut buffer)?;
            let at = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            if let Some(heard) = parse(from.ip(), &buffer[at.min(length)..length]) {
                return Ok(heard);
            }
        }
    }
}

fn parse(from: IpAddr, packet: &[u8]) -> Option<Heard> {
    let crc = u32::from_le_bytes(packet.get(8..12)?.try_into().ok()?);
    let mut cleared = packet.to_vec();
    cleared[8..12].fill(0);
    let two = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let end = 12 + usize::from(two(14)?);
    let payload = packet.get(16..end)?.to_vec();
    let heard = Heard { from, source: two(0)?, target: two(2)?, chunk: packet[12], payload };
    (crc == crc32c(&cleared)).then_some(heard)
}

/// Serves one address and port in a namespace until the process ends: data comes back.
pub fn server(namespace: &Namespace, at: SocketAddr) {
    let speaker = namespace.run(|| Speaker::open(at.ip())).expect("a namespace");
    let speaker = speaker.unwrap_or_else(|error| panic!("{at}: {error}"));
    std::thread::spawn(move || {
        loop {
            let Ok(heard) = speaker.hear() else { continue };
            let answer = match heard.chunk {
                INIT => INIT_ACK,
                COOKIE_ECHO => COOKIE_ACK,
                DATA => SACK,
                SHUTDOWN => SHUTDOWN_ACK,
                _ => continue,
            };
            if heard.target == at.port() {
                let to = SocketAddr::new(heard.from, heard.source);
                // Who asked may be gone by now.
                drop(speaker.say(at.port(), to, answer, &heard.payload));
            }
        }
    });
}
