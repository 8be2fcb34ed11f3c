//! The few switches of a network driver that only `SIOCETHTOOL` reaches.
//!
//! What `ethtool -K DEV tx off` and `ethtool -K DEV gro on` do, for interfaces of the calling
//! thread's namespace.

use std::io;
use std::os::fd::AsRawFd;

// linux/ethtool.h; libc does not have them.
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Why a switch could not be read or set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is empty, longer than 15 bytes or has a zero byte.
    #[error("`{0}` cannot name an interface: 1 to 15 bytes")]
    Name(String),
    /// The operating system refused.
    #[error("{operation} of {interface}{hint}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        interface: String,
        /// What to do about it, if that is known; empty if not.
        hint: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes the kernel finish checksums before it hands a packet to the interface, as XDP at the other
/// end of a veth pair cannot.
///
/// # Errors
/// No such interface, a driver that does not let go of it, or a missing capability.
pub fn tx_checksum_off(interface: &str) -> Result<(), Error> {
    call(interface, "switching off tx checksum offload", ETHTOOL_STXCSUM, 0).map(drop)
}

/// Tells whether the interface leaves checksums for the driver to finish.
///
/// # Errors
/// No such interface.
pub fn is_tx_checksum_on(interface: &str) -> Result<bool, Error> {
    Ok(call(interface, "reading tx checksum offload", ETHTOOL_GTXCSUM, 0)? != 0)
}

/// Switches generic receive offload on, which makes a veth end poll for frames redirected to it.
///
/// # Errors
/// No such interface, or a missing capability.
pub fn gro_on(interface: &str) -> Result<(), Error> {
    call(interface, "switching on generic receive offload", ETHTOOL_SGRO, 1).map(drop)
}

/// Tells whether generic receive offload is on.
///
/// # Errors
/// No such interface.
pub fn is_gro_on(interface: &str) -> Result<bool, Error> {
    Ok(call(interface, "reading generic receive offload", ETHTOOL_GGRO, 0)? != 0)
}

fn call(name: &str, operation: &'static str, command: u32, data: u32) -> Result<u32, Error> {
    let failed = |source: io::Error| Error::System {
        operation,
        interface: name.to_owned(),
        hint: match source.raw_os_error() {
            Some(libc::EPERM) => " needs CAP_NET_ADMIN: run this as root (sudo)",
            _ => "",
        },
        source,
    };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(Error::Name(name.to_owned()));
    }
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
    let mut value = Value { command, data };
    let mut interface_name = [0; libc::IFNAMSIZ];
    for (slot, byte) in interface_name.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    let mut request = libc::ifreq {
        ifr_name: interface_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    // SAFETY: the kernel reads the name, which ends in a zero byte, and reads and writes the eight
    // bytes of `value`, the size that all four commands have; both outlive the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if status < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(value.data) }
}
