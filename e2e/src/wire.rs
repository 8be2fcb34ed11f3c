//! A packet socket: frames as they are on the wire.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// How long to wait for a frame before looking whether there is more to do.
const TIME_MAX: Duration = Duration::from_millis(20);

/// Opens a packet socket of the calling thread's namespace on an interface. It sends and receives
/// as a datagram socket that is connected does.
///
/// # Errors
/// No such interface, or no right to see what is on it.
pub fn open(interface: u32) -> io::Result<UdpSocket> {
    let kind = SockType::Raw;
    let fd = socket(AddressFamily::Packet, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is as long as is said and outlives the call.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(TIME_MAX))?;
    Ok(socket)
}
