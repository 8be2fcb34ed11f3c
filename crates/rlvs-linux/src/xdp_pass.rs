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

/// `r0 = XDP_PASS; exit`
const PROGRAM: [Instruction; 2] = [
    Instruction { code: 0xb7, registers: 0, offset: 0, immediate: XDP_PASS },
    Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`, as long as it has been since Linux 3.18.
#[repr(C)]
struct LoadRequest {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

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
    let program = load().map_err(Error::Load)?;
    Ok(rtnetlink.set_native_xdp(index, &program)?)
}

fn load() -> io::Result<OwnedFd> {
    let request = LoadRequest {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: PROGRAM.len() as u32,
        instructions: PROGRAM.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
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
