//! Sockets of checks, with the ends that the configuration gives them. Nothing waits.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt,
    socket, sockopt,
};
use rlvs_control::checks::Outcome;

use super::super::request::Request;

/// Opens a socket and begins to connect it.
pub(super) fn open(
    request: &Request,
    kind: SockType,
    protocol: Option<SockProtocol>,
) -> Result<OwnedFd, Outcome> {
    let mut to = request.at();
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, kind, flags, protocol).map_err(lacking)?;
    prepare(&socket, request).map_err(failed)?;
    // An ICMP socket takes no port.
    if protocol.is_some() {
        to.set_port(0);
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(failed(error)),
    }
}

fn prepare(socket: &OwnedFd, request: &Request) -> nix::Result<()> {
    let Some(origin) = &request.origin else { return Ok(()) };
    if origin.mark != 0 {
        setsockopt(socket, sockopt::Mark, &origin.mark)?;
    }
    if let Some(interface) = &origin.interface {
        setsockopt(socket, sockopt::BindToDevice, &OsString::from(interface))?;
    }
    if origin.address.is_none() && origin.port.is_none() {
        return Ok(());
    }
    let any: IpAddr = match request.at().ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    setsockopt(socket, sockopt::ReuseAddr, &true)?;
    let from = SocketAddr::new(origin.address.unwrap_or(any), origin.port.unwrap_or(0));
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))
}

/// Tells what a system call's error says: that of a full host says nothing about the server.
pub(super) fn failed(error: Errno) -> Outcome {
    match error {
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN => {
            lacking(error)
        }
        _ => Outcome::Bad(error.desc().to_lowercase()),
    }
}

pub(super) fn lacking(error: Errno) -> Outcome {
    Outcome::Unknown(error.desc().to_lowercase())
}

/// The same for an error of the standard library.
pub(super) fn io_failed(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(number) => failed(Errno::from_raw(number)),
        None => Outcome::Bad(error.to_string()),
    }
}
