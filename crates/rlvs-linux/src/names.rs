//! Names of hosts, as the system's resolver knows them.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// Returns the name of the host with this address, if it has one.
///
/// Asks the resolver (`getnameinfo`), which may wait for the network.
#[allow(unsafe_code, reason = "neither std nor nix has getnameinfo")]
pub fn host_name(address: IpAddr) -> Option<String> {
    let socket = SockaddrStorage::from(SocketAddr::new(address, 0));
    // RFC 1035 §2.3.4 allows 255 bytes; the rest is what glibc recommends (NI_MAXHOST).
    let mut name = [0_u8; 1025];
    // SAFETY: `socket` is an initialised socket address of the length passed, `name` is writable
    // for the length passed, and a null service of length 0 asks for no service name.
    let failure = unsafe {
        libc::getnameinfo(
            socket.as_ptr(),
            socket.len(),
            name.as_mut_ptr().cast(),
            1025,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if failure != 0 {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_has_a_name() {
        assert_eq!(host_name([127, 0, 0, 1].into()).as_deref(), Some("localhost"));
    }

    #[test]
    fn an_address_without_a_name_has_none() {
        // 0.0.0.0 is answered without a question to the network.
        assert_eq!(host_name([0, 0, 0, 0].into()), None);
    }
}
