//! bpf(2) on map elements, and maps as memory.

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rlvs_datapath::abi;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;

/// The head of `union bpf_attr` for operations on map elements.
#[repr(C)]
struct ElementRequest {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A type whose every byte may be shared with the kernel.
///
/// # Safety
/// Any bytes must be a value of the type, the type must have no padding, and it must be laid out as
/// in C.
pub(super) unsafe trait Element: 'static {}

// SAFETY: each is `repr(C)`, made of integers, arrays of integers and cells of 64-bit words, and of
// the size that its fields add up to (abi.rs asserts the sizes).
unsafe impl Element for abi::Settings {}
// SAFETY: as above.
unsafe impl Element for abi::Service {}
// SAFETY: as above.
unsafe impl Element for abi::Pool {}
// SAFETY: as above.
unsafe impl Element for abi::Schedule {}
// SAFETY: as above.
unsafe impl Element for abi::Totals {}
// SAFETY: as above.
unsafe impl Element for abi::Estimate {}
// SAFETY: as above.
unsafe impl Element for abi::Base {}
// SAFETY: as above.
unsafe impl Element for abi::Destination {}
// SAFETY: as above.
unsafe impl Element for abi::Tunnel {}
// SAFETY: as above.
unsafe impl Element for abi::Counts {}
// SAFETY: as above.
unsafe impl Element for abi::Favourites {}
// SAFETY: as above; the cell holds a `Hop`, which is all integers.
unsafe impl Element for abi::Row {}
// SAFETY: as above.
unsafe impl Element for abi::Interfaces {}
// SAFETY: as above.
unsafe impl Element for abi::Endpoints4 {}
// SAFETY: as above; IPv6 connections are the same type.
unsafe impl Element for abi::Endpoints6 {}
// SAFETY: as above.
unsafe impl Element for abi::Connections4 {}
// SAFETY: as above.
unsafe impl Element for abi::Wides {}
// SAFETY: as above.
unsafe impl Element for abi::MarkRules {}
// SAFETY: as above.
unsafe impl Element for abi::Line {}
// SAFETY: as above; taken.rs asserts its size.
unsafe impl Element for super::capture::Wanted {}
// SAFETY: an integer.
unsafe impl Element for u64 {}
// SAFETY: a cell of an integer.
unsafe impl Element for Cell<u64> {}

/// Writes one element of a map, whole: the system call is not interrupted half way.
pub(super) fn update<T: Element>(map: BorrowedFd<'_>, index: u32, value: &T) -> io::Result<()> {
    let request = ElementRequest {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the request, four bytes of key and the map's value size, which the
    // caller of `Mapped::open` has checked to be the size of T; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            &raw const request,
            size_of::<ElementRequest>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads one element of a map that is no memory of ours. `N` words are its value size.
pub(super) fn lookup<const N: usize>(map: BorrowedFd<'_>, index: u32) -> io::Result<[u64; N]> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
    let mut value = [0_u64; N];
    let request = ElementRequest {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the request and four bytes of key, and writes the map's value size,
    // which the layout version fixes at 8 N bytes; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_ELEM,
            &raw const request,
            size_of::<ElementRequest>(),
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// `BPF_F_MMAPABLE` and `BPF_F_INNER_MAP`, as the object declares books.
const BOOK_FLAGS: u32 = 1 << 10 | 1 << 12;

/// Makes an array of so many lines, which may stand in the map of books.
pub(super) fn create_lines(count: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    #[repr(C)]
    struct CreateRequest {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        elements: u32,
        flags: u32,
        inner: u32,
        node: u32,
        name: [u8; 16],
        padding: u32,
    }
    let request = CreateRequest {
        kind: BPF_MAP_TYPE_ARRAY,
        key_bytes: 4,
        value_bytes: size_of::<abi::Line>() as u32,
        elements: count,
        flags: BOOK_FLAGS,
        inner: 0,
        node: 0,
        name: *b"rlvs_book\0\0\0\0\0\0\0",
        padding: 0,
    };
    // SAFETY: the kernel reads the request, which outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const request, size_of::<CreateRequest>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes a map the one element of an array of maps. When it returns no program reads the old one.
pub(super) fn update_map(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    let (index, value) = (0_u32, inner.as_raw_fd());
    let request = ElementRequest {
        map: outer.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads the request, four bytes of key and a descriptor; all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            &raw const request,
            size_of::<ElementRequest>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the id of the map or program that is an element of an array of such.
pub(super) fn lookup_id(outer: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    // The kernel writes four bytes.
    lookup::<1>(outer, index).map(|[word]| u32::from_ne_bytes(*first_half(&word.to_ne_bytes())))
}

fn first_half(bytes: &[u8; 8]) -> &[u8; 4] {
    let ([half, _], []) = bytes.as_chunks::<4>() else { return &[0; 4] };
    half
}

/// An array map as memory that programs and other processes change at the same time.
#[derive(Debug)]
pub(super) struct Memory<T> {
    start: NonNull<T>,
    elements: usize,
    bytes: usize,
    kind: PhantomData<T>,
}

impl<T: Element> Memory<T> {
    /// Maps the `elements` elements of an array map.
    pub(super) fn map(map: BorrowedFd<'_>, elements: usize) -> io::Result<Self> {
        Self::protected(map, elements, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Maps the `elements` elements of an array map to look at: writing is a fault.
    pub(super) fn look(map: BorrowedFd<'_>, elements: usize) -> io::Result<Self> {
        Self::protected(map, elements, libc::PROT_READ)
    }

    fn protected(map: BorrowedFd<'_>, elements: usize, protection: i32) -> io::Result<Self> {
        const PAGE: usize = 4096;
        // The kernel rounds elements up to 8 bytes; ours are that long to begin with.
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let bytes = (elements * size_of::<T>()).next_multiple_of(PAGE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, elements, bytes, kind: PhantomData })
    }

    pub(super) fn len(&self) -> usize {
        self.elements
    }

    fn at(&self, index: usize) -> Option<*mut T> {
        // SAFETY: inside the mapping.
        (index < self.elements).then(|| unsafe { self.start.as_ptr().add(index) })
    }

    /// Returns an element of which programs write nothing but cells, while nobody edits the rest.
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        // SAFETY: inside the mapping and aligned; any bytes are a T.
        self.at(index).map(|at| unsafe { &*at })
    }

    /// Copies an element as it is at this instant. Words that programs change meanwhile are each
    /// whole, but need not be of the same instant.
    pub(super) fn read(&self, index: usize) -> Option<T> {
        // SAFETY: inside the mapping and aligned; any bytes are a T. Read as volatile because
        // programs write it.
        self.at(index).map(|at| unsafe { at.read_volatile() })
    }

    /// Copies each word that is not 0 to a memory that nobody else has and that is 0.
    pub(super) fn copy_into_zeros(&self, to: &Self) {
        const { assert!(align_of::<T>() >= align_of::<u64>()) };
        let words = self.elements.min(to.elements) * size_of::<T>() / 8;
        let (from, to) = (self.start.as_ptr().cast::<u64>(), to.start.as_ptr().cast::<u64>());
        for at in 0..words {
            // SAFETY: inside both mappings and aligned; as in `read`.
            unsafe {
                let word = from.add(at).read_volatile();
                if word != 0 {
                    to.add(at).write_volatile(word);
                }
            }
        }
    }

    /// Writes an element that nobody else reads yet or writes at all.
    pub(super) fn write(&self, index: usize, value: T) {
        if let Some(at) = self.at(index) {
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) };
        }
    }

    /// Returns a word of an element by which programs and we talk.
    pub(super) fn word(
        &self,
        index: usize,
        field: impl Fn(&T) -> &Cell<u64>,
    ) -> Option<&AtomicU64> {
        let at = self.at(index)?;
        // SAFETY: inside the mapping; the reference is only used to find the field's address, and
        // an aligned 64-bit word in shared memory may be used as an atomic as long as the mapping
        // lives.
        Some(unsafe { AtomicU64::from_ptr(field(&*at).as_ptr()) })
    }
}

/// Returns a word of shared memory as the atomic that it is to programs.
pub(super) fn atomic(word: &Cell<u64>) -> &AtomicU64 {
    // SAFETY: aligned, and valid as long as the cell is; who else has it uses atomics too.
    unsafe { AtomicU64::from_ptr(word.as_ptr()) }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, to which no reference outlives self.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Returns when every program that ran when this was called has ended (a grace period).
pub(super) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only. Where it is missing, the caller's step is merely not waited for.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    std::sync::atomic::fence(Ordering::SeqCst);
}

#[repr(C)]
struct PinRequest {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned somewhere.
fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let request = PinRequest { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the request and the path, which outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const request, size_of::<PinRequest>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just given to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins what is pinned somewhere in another place of the same file system too.
pub(super) fn pin_again(from: &Path, to: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_int = 6;
    let fd = open_pinned(from)?;
    let to = CString::new(to.as_os_str().as_bytes())?;
    let request = PinRequest { path: to.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the kernel reads the request and the path, which outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw const request, size_of::<PinRequest>())
    };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel says of a pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PinnedLink {
    /// Id of its program.
    pub(super) program: u32,
    /// Number of the interface that it hangs on; 0 if the interface is gone.
    pub(super) interface: u32,
}

/// Returns the number of the interface that a pinned link hangs on; 0 if the interface is gone.
pub(super) fn link_interface(path: &Path) -> io::Result<u32> {
    link(path).map(|link| link.interface)
}

/// Asks the kernel about a pinned link.
pub(super) fn link(path: &Path) -> io::Result<PinnedLink> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    /// Offset of the program's id in `struct bpf_link_info`.
    const PROGRAM: usize = 8;
    /// Offset of the interface there, the same for XDP and TCX links.
    const INTERFACE: usize = 16;

    #[repr(C)]
    struct InfoRequest {
        fd: u32,
        length: u32,
        info: u64,
    }

    let fd = open_pinned(path)?;
    let mut info = [0_u8; 64];
    let mut request = InfoRequest {
        fd: fd.as_raw_fd() as u32,
        length: info.len() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes of info, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw mut request,
            size_of::<InfoRequest>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let word = |at: usize| {
        let bytes = info.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    Ok(PinnedLink { program: word(PROGRAM), interface: word(INTERFACE) })
}
