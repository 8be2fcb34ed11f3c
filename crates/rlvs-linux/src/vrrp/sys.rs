//! The few system calls that have no safe wrapper.
#![expect(unsafe_code, reason = "raw sockets of a protocol, their options, link-layer addresses")]

use std::ffi::c_int;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Opens a raw socket that does not block.
pub(super) fn raw_socket(domain: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(domain, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option that takes a plain value.
pub(super) fn set_option<T: Copy>(
    socket: &impl AsFd,
    level: c_int,
    name: c_int,
    value: T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to `length` bytes that outlive the call.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Names a group of IPv4 and the interface with an index.
pub(super) fn membership_v4(group: Ipv4Addr, index: u32) -> io::Result<libc::ip_mreqn> {
    Ok(libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: u32::from_ne_bytes(group.octets()) },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: i32::try_from(index).map_err(io::Error::other)?,
    })
}

/// Has a socket get what is sent to a group of IPv4 on the interface with an index.
pub(crate) fn join_v4(socket: &impl AsFd, group: Ipv4Addr, index: u32) -> io::Result<()> {
    let membership = membership_v4(group, index)?;
    set_option(socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, membership)
}

/// Sends an Ethernet frame by an interface.
pub(super) fn send_frame(socket: &impl AsFd, interface: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: every bit pattern is a link-layer address, also zeros.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    to.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>());
    let length = length.map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    let bytes = frame.as_ptr().cast();
    // SAFETY: both pointers are to as many bytes as is said, which outlive the call.
    let sent = unsafe { libc::sendto(fd, bytes, frame.len(), 0, (&raw const to).cast(), length) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts the calling thread before all others that are not real-time; what it starts is not.
pub(super) fn be_real_time() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is to a parameter that outlives the call.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
