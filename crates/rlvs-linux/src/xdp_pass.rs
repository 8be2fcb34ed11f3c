//! A native XDP program that lets everything pass.
//!
//! A veth end takes the frames that XDP at its peer sends back (`XDP_TX`) only while it runs a
//! program itself. Two instructions do; nothing else is needed of the program, so it is assembled
//! here. It stays until the interface goes or another program replaces it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::route::{self, Rtnetlink};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
const XDP_PASS: i32 = 2;

/// `struct bpf_insn`, with both registers in one byte.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `r0 = ACTION; exit`
fn program(action: i32) -> [Instruction; 2] {
    [
        Instruction { code: 0xb7, registers: 0, offset: 0, immediate: action },
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ]
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`, as long as it has been since Linux 4.17.
#[repr(C)]
struct LoadRequest {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The program takes frames that lie in several buffers, so that it is no bar to a large MTU.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// Why the program could not be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel did not take the program.
    #[error("loading the XDP program that lets everything pass needs CAP_BPF and CAP_NET_ADMIN")]
    Load(#[source] io::Error),
    /// The interface did not take it.
    #[error(transparent)]
    Attach(#[from] route::Error),
}

/// Attaches the program in native mode to an interface of `rtnetlink`'s namespace.
///
/// # Errors
/// No native XDP there, another program in the way, or a missing capability.
pub fn attach_pass(rtnetlink: &mut Rtnetlink, index: u32) -> Result<(), Error> {
    let program = load(XDP_PASS).map_err(Error::Load)?;
    Ok(rtnetlink.set_native_xdp(index, &program)?)
}

fn load(action: i32) -> io::Result<OwnedFd> {
    let instructions = program(action);
    let request = LoadRequest {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: BPF_F_XDP_HAS_FRAGS,
    };
    // SAFETY: the kernel reads the request, the instructions and the licence, all of which outlive
    // the call with the lengths given, and writes nothing as there is no log buffer.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const request, size_of::<LoadRequest>())
    };
    match i32::try_from(result) {
        // SAFETY: the kernel has just returned this descriptor, so it is open and nobody else's.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::ethtool;
    use crate::netns::{self, Namespace};
    use crate::route::Prefix;

    const XDP_TX: i32 = 3;
    const SENT_PACKETS: u64 = 5;

    struct Fixture(Namespace);

    impl Drop for Fixture {
        fn drop(&mut self) {
            netns::delete(self.0.name()).ok();
        }
    }

    fn received_packets(interface: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends frames into a veth whose other end sends them all back, and returns how many came.
    fn reflected_packets(test: &str, prepare: fn(&mut Rtnetlink, u32)) -> u64 {
        let name = format!("rlvs-test-{}-{test}", std::process::id());
        let fixture = Fixture(Namespace::create(&name).unwrap());
        let namespace = &fixture.0;
        let mut rtnetlink = Rtnetlink::open_in(namespace).unwrap();
        let work = || {
            // No frames of IPv6's own.
            crate::sysctl::write("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            rtnetlink.add_veth("mirror", "user", namespace).unwrap();
            let mirror = rtnetlink.link("mirror").unwrap();
            let user = rtnetlink.link("user").unwrap().index;
            rtnetlink.set_native_xdp(mirror.index, &load(XDP_TX).unwrap()).unwrap();
            prepare(&mut rtnetlink, user);
            let address = "192.0.2.1".parse().unwrap();
            rtnetlink.add_address(user, Prefix { address, bits: 24 }).unwrap();
            rtnetlink.set_up(mirror.index, true).unwrap();
            rtnetlink.set_up(user, true).unwrap();
            let other = "192.0.2.2".parse().unwrap();
            rtnetlink.set_neighbour(user, other, mirror.mac.unwrap()).unwrap();
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            for _ in 0..SENT_PACKETS {
                socket.send_to(b"x", (other, 9)).unwrap();
            }
            let deadline = Instant::now() + Duration::from_millis(500);
            while received_packets("user:") < SENT_PACKETS && Instant::now() < deadline {
                // Nothing comes here; it is a short wait.
                assert!(socket.recv(&mut [0; 8]).is_err());
            }
            received_packets("user:")
        };
        namespace.run(work).unwrap()
    }

    #[test]
    fn frames_sent_back_arrive_where_everything_passes() {
        let arrived = reflected_packets("pass", |rtnetlink: &mut Rtnetlink, user| {
            attach_pass(rtnetlink, user).unwrap();
        });
        assert_eq!(arrived, SENT_PACKETS);
    }

    #[test]
    fn polling_alone_does_not_make_frames_sent_back_arrive() {
        // If this fails, the kernel has learnt it and the lab needs no program at the peers.
        let arrived = reflected_packets("gro", |_, _| ethtool::gro_on("user").unwrap());
        assert_eq!(arrived, 0);
    }
}
