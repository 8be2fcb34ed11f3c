//! The programs of `rlvs capture`. While it runs they hang where the balancer's programs do, call
//! those, and keep what came, what went, and what was counted meanwhile. The balancer's programs know
//! nothing of it.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "adding to shared words has no stable spelling on this target"
)]

mod taken;

use core::ffi::c_void;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC, xdp_action, xdp_md};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_ringbuf_output, bpf_skb_load_bytes,
    bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use rlvs_datapath::abi::{CPUS, REASONS, Word};

use crate::taken::{FRAME_MAX, Head, OUT, TC, Wanted, XDP};

/// BPF_F_MMAPABLE.
const MAPPED: usize = 1 << 10;
/// Bytes of the ring.
const RING: usize = 4 << 20;
/// Bytes of a head.
const HEAD: usize = size_of::<Head>();

#[btf_map(name = "wanted")]
static WANTED: Array<Wanted, 1, MAPPED> = Array::new();
#[btf_map(name = "lost")]
static LOST: Array<u64, 1, MAPPED> = Array::new();
#[btf_map(name = "taken")]
static TAKEN: RingBuf<u8, RING> = RingBuf::new();
#[btf_map(name = "paper")]
static PAPER: PerCpuArray<Paper, 1> = PerCpuArray::new();
/// The balancer's, whose counters tell what was counted meanwhile.
#[btf_map(name = "reasons")]
static REASON_COUNTERS: Array<Word, { (CPUS * REASONS) as usize }, MAPPED> = Array::new();
/// The balancer's program.
#[btf_map(name = "entry_xdp")]
static ENTRY_XDP: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "entry_tc")]
static ENTRY_TC: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "entry_out")]
static ENTRY_OUT: ProgramArray<1> = ProgramArray::new();

/// A packet while it is written down.
#[repr(C)]
struct Paper {
    head: Head,
    /// What came, and behind it what went.
    bytes: [u8; 2 * FRAME_MAX],
    /// The counters of reasons of this CPU when it came.
    counters: [u64; REASONS as usize],
}

/// A packet as a kind of program sees it.
trait Packet {
    /// The length of its frame.
    fn length(&self) -> u32;
    /// The interface that it came by.
    fn interface(&self) -> u32;
    /// Reads bytes of it; tells whether they are there.
    ///
    /// # Safety
    /// So many bytes may be written.
    unsafe fn read(&self, at: u32, into: *mut u8, count: u32) -> bool;
    /// Reads a number of bytes that does not vary.
    #[inline(always)]
    fn get<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: of its length.
        unsafe { self.read(at, bytes.as_mut_ptr(), N as u32) }.then_some(bytes)
    }
}

struct Xdp(*mut xdp_md);

impl Packet for Xdp {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a valid context.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }
    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }
    #[inline(always)]
    unsafe fn read(&self, at: u32, into: *mut u8, count: u32) -> bool {
        // SAFETY: as above, and as promised.
        unsafe { bpf_xdp_load_bytes(self.0, at, into.cast::<c_void>(), count) == 0 }
    }
}

struct Tc(*mut __sk_buff);

impl Packet for Tc {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a valid context.
        unsafe { (*self.0).len }
    }
    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }
    #[inline(always)]
    unsafe fn read(&self, at: u32, into: *mut u8, count: u32) -> bool {
        // SAFETY: as above, and as promised.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, into.cast::<c_void>(), count) == 0 }
    }
}

/// Calls the balancer's program; what it returns comes back from here, of which the compiler knows
/// nothing. Without one, which does not occur, the packet is the stack's.
#[inline(never)]
fn call_xdp(ctx: &XdpContext) -> u32 {
    // SAFETY: nothing is left to be dropped.
    unsafe { ENTRY_XDP.tail_call(ctx, 0) };
    black_box(xdp_action::XDP_PASS)
}

/// As [`call_xdp`].
#[inline(never)]
fn call_tc(ctx: &TcContext) -> i32 {
    // SAFETY: as above.
    unsafe { ENTRY_TC.tail_call(ctx, 0) };
    black_box(TC_ACT_UNSPEC)
}

/// As [`call_xdp`].
#[inline(never)]
fn call_out(ctx: &TcContext) -> i32 {
    // SAFETY: as above.
    unsafe { ENTRY_OUT.tail_call(ctx, 0) };
    black_box(TC_ACT_UNSPEC)
}

/// At XDP.
#[xdp(frags)]
pub fn capture_xdp(ctx: XdpContext) -> u32 {
    let came = begin(&Xdp(ctx.ctx), XDP);
    let action = call_xdp(&ctx);
    if let Some(came) = came {
        end(&Xdp(ctx.ctx), came, action);
    }
    action
}

/// At TC ingress.
#[classifier]
pub fn capture_tc(ctx: TcContext) -> i32 {
    let came = begin(&Tc(ctx.as_ptr().cast()), TC);
    let action = call_tc(&ctx);
    if let Some(came) = came {
        end(&Tc(ctx.as_ptr().cast()), came, action as u32);
    }
    action
}

/// At TC egress.
#[classifier]
pub fn capture_out(ctx: TcContext) -> i32 {
    let came = begin(&Tc(ctx.as_ptr().cast()), OUT);
    let action = call_out(&ctx);
    if let Some(came) = came {
        end(&Tc(ctx.as_ptr().cast()), came, action as u32);
    }
    action
}

/// What is remembered of a packet while the balancer has it.
#[derive(Clone, Copy)]
struct Came {
    /// Whether the frame that came is one of those that are wanted.
    fits: bool,
}

/// Writes down what came, unless nothing is wanted any more.
#[inline(always)]
fn begin(packet: &impl Packet, place: u32) -> Option<Came> {
    let wanted = WANTED.get(0)?;
    // SAFETY: the helper takes nothing.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    if time_ns >= wanted.until_ns || wanted.left <= 0 {
        return None;
    }
    // SAFETY: an element of this CPU, on which nothing else captures until this packet is done with.
    let paper = unsafe { &mut *PAPER.get_ptr_mut(0)? };
    let came = packet.length();
    let interface = packet.interface();
    let came_kept = keep(packet, &mut paper.bytes, 0, wanted.bytes, came);
    paper.head = Head { time_ns, interface, place, came, came_kept, ..Head::default() };
    note_counters(&mut paper.counters);
    Some(Came { fits: fits(packet, wanted) })
}

/// Writes down what went, and hands it all on if it is wanted.
#[inline(always)]
fn end(packet: &impl Packet, came: Came, action: u32) {
    let (Some(shared), Some(paper)) = (WANTED.get_ptr_mut(0), PAPER.get_ptr_mut(0)) else { return };
    // SAFETY: elements of maps; this CPU's, and one whose changing word is not looked at here.
    let (wanted, paper) = unsafe { (&*shared, &mut *paper) };
    if !came.fits && !fits(packet, wanted) {
        return;
    }
    let reasons = counted(&paper.counters);
    if wanted.reasons != 0 && wanted.reasons & reasons == 0 {
        return;
    }
    let went = packet.length();
    let kept = paper.head.came_kept;
    let went_kept = keep(packet, &mut paper.bytes, kept, wanted.bytes, went);
    paper.head.action = action;
    paper.head.reasons = reasons;
    paper.head.went = went;
    paper.head.went_kept = went_kept;
    hand_on(shared, paper, kept, went_kept);
}

/// Copies the beginning of a frame; returns how many bytes.
#[inline(always)]
fn keep(
    packet: &impl Packet,
    into: &mut [u8; 2 * FRAME_MAX],
    at: u32,
    most: u32,
    length: u32,
) -> u32 {
    let count = length.min(most).min(FRAME_MAX as u32);
    let at = at.min(FRAME_MAX as u32);
    if count == 0 {
        return 0;
    }
    // SAFETY: both are at most half of what there is.
    let is_there = unsafe { packet.read(0, into.as_mut_ptr().add(at as usize), count) };
    if is_there { count } else { 0 }
}

/// Hands a packet on, unless as many as were wanted have been.
#[inline(always)]
fn hand_on(wanted: *mut Wanted, paper: &Paper, came: u32, went: u32) {
    // SAFETY: a word of a map, which programs write by this operation alone.
    let left =
        unsafe { atomic_xadd::<i64, i64, { AtomicOrdering::SeqCst }>(&raw mut (*wanted).left, -1) };
    if left <= 0 {
        return;
    }
    let most = FRAME_MAX as u32;
    let count = HEAD as u64 + u64::from(came.min(most)) + u64::from(went.min(most));
    let paper = core::ptr::from_ref(paper).cast_mut().cast::<c_void>();
    let ring = (&raw const TAKEN).cast_mut().cast::<c_void>();
    // SAFETY: the head and the bytes stand at the beginning of a paper, and are longer than that.
    if unsafe { bpf_ringbuf_output(ring, paper, count, 0) } != 0
        && let Some(lost) = LOST.get_ptr_mut(0)
    {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(lost, 1) };
    }
}

#[inline(always)]
fn counter(reason: u32) -> u64 {
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    match REASON_COUNTERS.get(cpu * REASONS + reason) {
        // SAFETY: a word that this CPU alone writes.
        Some(word) => unsafe { core::ptr::from_ref(word).cast::<u64>().read_volatile() },
        None => 0,
    }
}

#[inline(always)]
fn note_counters(counters: &mut [u64; REASONS as usize]) {
    let mut reason = 0;
    while reason < REASONS {
        counters[reason as usize] = counter(reason);
        reason += 1;
    }
}

/// Returns the reasons whose counters have moved, by bit.
#[inline(always)]
fn counted(counters: &[u64; REASONS as usize]) -> u32 {
    let (mut reason, mut bits) = (0, 0);
    while reason < REASONS {
        bits |= u32::from(counters[reason as usize] != counter(reason)) << reason;
        reason += 1;
    }
    bits
}

/// Tells whether a frame is one of those that are wanted. What is no IP is, if nothing is asked of it.
#[inline(always)]
fn fits(packet: &impl Packet, wanted: &Wanted) -> bool {
    let anything = wanted.kind | wanted.protocol | wanted.port == 0 && wanted.mask == [0; 4];
    anything || asked(packet, wanted).is_some()
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLANS: [u16; 2] = [0x8100, 0x88a8];

#[inline(always)]
fn asked(packet: &impl Packet, wanted: &Wanted) -> Option<()> {
    let mut at = 14;
    let mut kind = u16::from_be_bytes(packet.get(12)?);
    if VLANS.contains(&kind) {
        kind = u16::from_be_bytes(packet.get(16)?);
        at = 18;
    }
    if wanted.kind != 0 && wanted.kind != u32::from(kind) {
        return None;
    }
    let (protocol, from, to, ports) = match kind {
        IPV4 => {
            let header: [u32; 5] = words(packet.get::<20>(at)?);
            let [first, _, third, from, to] = header;
            let length = (u32::from_be(first) >> 24 & 0xf) * 4;
            (u32::from_be(third) >> 16 & 0xff, [from, 0, 0, 0], [to, 0, 0, 0], at + length)
        }
        IPV6 => {
            let header: [u32; 10] = words(packet.get::<40>(at)?);
            let [_, second, a, b, c, d, e, f, g, h] = header;
            (u32::from_be(second) >> 8 & 0xff, [a, b, c, d], [e, f, g, h], at + 40)
        }
        _ => return None,
    };
    if wanted.protocol != 0 && wanted.protocol != protocol {
        return None;
    }
    if !matches(wanted, &from) && !matches(wanted, &to) {
        return None;
    }
    if wanted.port != 0 {
        let [a, b, c, d] = packet.get(ports)?;
        let port = wanted.port;
        if u32::from(u16::from_be_bytes([a, b])) != port
            && u32::from(u16::from_be_bytes([c, d])) != port
        {
            return None;
        }
    }
    Some(())
}

#[inline(always)]
fn matches(wanted: &Wanted, address: &[u32; 4]) -> bool {
    let differs = |at: usize| (address[at] ^ wanted.host[at]) & wanted.mask[at];
    differs(0) | differs(1) | differs(2) | differs(3) == 0
}

/// Returns bytes as words in the order that they stand in.
#[inline(always)]
fn words<const N: usize, const M: usize>(bytes: [u8; N]) -> [u32; M] {
    const { assert!(N == 4 * M) };
    // SAFETY: of the same size, and any bytes are words.
    unsafe { bytes.as_ptr().cast::<[u32; M]>().read_unaligned() }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
