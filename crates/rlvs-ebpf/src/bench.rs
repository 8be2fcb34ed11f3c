//! The programs of the benchmark that are not under test.
//!
//! A test run does not put back the frame between two repetitions: `wrap` does, chooses the flow it
//! belongs to, and calls the program in the first place of the map `programs`. The least that such
//! a program can do is `floor`, or `floor_tunnel` for one that wraps packets; one that has a table
//! does no less than `floor_line`. In its place, `send` puts the frame into a wire, at whose far end
//! `sink` counts what comes out.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod course;
mod wire;

use core::arch::asm;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use rlvs_datapath::hash;

use crate::course::{Course, FRAME, TABLE_LINES, WORDS};
use crate::wire::Wire;

/// BPF_F_MMAPABLE.
const MAPPED: usize = 1 << 10;

#[btf_map(name = "course")]
static COURSE: Array<Course, 1, MAPPED> = Array::new();
#[btf_map(name = "programs")]
static PROGRAMS: ProgramArray<1> = ProgramArray::new();
/// Cache lines of a table: [`TABLE_LINES`], where the benchmark makes it.
#[btf_map(name = "lines")]
static LINES: Array<[u64; 8], 1> = Array::new();
#[btf_map(name = "wire")]
static WIRE: Array<Wire, 1, MAPPED> = Array::new();

/// Restores the frame and calls the program under test.
#[xdp(frags)]
pub fn wrap(ctx: XdpContext) -> u32 {
    if take_off(&ctx).is_some()
        && let Some(course) = COURSE.get_ptr_mut(0)
        && let Some(frame) = head::<FRAME>(&ctx)
    {
        // SAFETY: an element of a map, which nothing else holds while this runs.
        restore(frame, unsafe { &mut *course });
        // SAFETY: nothing is left to be dropped.
        unsafe { PROGRAMS.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Parses Ethernet, IP and TCP, and sends the frame back.
#[xdp(frags)]
pub fn floor(ctx: XdpContext) -> u32 {
    if send_back(&ctx).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
}

/// As `floor`, with an outer IPv4 header that is the same for all before the packet.
#[xdp(frags)]
pub fn floor_tunnel(ctx: XdpContext) -> u32 {
    if send_back(&ctx).is_some() && wrap_up(&ctx).is_some() {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_PASS
    }
}

/// As `floor`, with one line of a table read, which the packet's flow chooses and what the packet
/// before has read there: packets of a wire do not wait for their lines at the same time either.
#[xdp(frags)]
pub fn floor_line(ctx: XdpContext) -> u32 {
    if send_back(&ctx).is_some() && note_line(&ctx).is_some() {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_PASS
    }
}

/// Puts the frame into the wire, at the end where it is.
#[xdp(frags)]
pub fn send(_: XdpContext) -> u32 {
    let Some(wire) = WIRE.get_ptr(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: an element of a map; the helper takes two numbers.
    unsafe { bpf_redirect((*wire).interface, 0) as u32 }
}

/// Counts the IPv4 packets that come out of the wire, and drops them.
#[xdp(frags)]
pub fn sink(ctx: XdpContext) -> u32 {
    let Some(wire) = WIRE.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    let Some(frame) = head::<54>(&ctx) else { return xdp_action::XDP_PASS };
    if u16::from_be_bytes(get(frame, 12)) != 0x0800 {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: an element of a map; all frames come out on one CPU.
    let wire = unsafe { &mut *wire };
    let (address, port) = if wire.source == 0 {
        (get(frame, 30), get(frame, 36))
    } else {
        (get(frame, 26), get(frame, 34))
    };
    let mac = u64::from(u32::from_ne_bytes(get(frame, 0)))
        | u64::from(u16::from_ne_bytes(get(frame, 4))) << 32;
    let right = mac == wire.mac
        && u32::from_ne_bytes(address) == wire.address
        && u32::from(u16::from_ne_bytes(port)) == wire.port;
    if right {
        wire.right += 1;
    } else {
        wire.wrong += 1;
    }
    xdp_action::XDP_DROP
}

/// Tells the time.
#[xdp(frags)]
pub fn clock(_: XdpContext) -> u32 {
    let Some(course) = COURSE.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: an element of a map; the helper takes nothing and only reads.
    unsafe { (*course).jiffies = bpf_jiffies64() };
    xdp_action::XDP_PASS
}

/// Takes off what the program under test has put before the frame.
#[inline(always)]
fn take_off(ctx: &XdpContext) -> Option<()> {
    let more = length(ctx).wrapping_sub(FRAME);
    // SAFETY: a valid context; pointers into the frame are read anew by every `head`.
    if more == 0 || unsafe { bpf_xdp_adjust_head(ctx.ctx, more as i32) } == 0 {
        Some(())
    } else {
        None
    }
}

#[inline(always)]
fn wrap_up(ctx: &XdpContext) -> Option<()> {
    let ethernet: [u8; 12] = get(head::<14>(ctx)?, 0);
    let words = [0, 4, 8].map(|at| u32::from_ne_bytes(get(&ethernet, at)));
    // SAFETY: as in `take_off`.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -20) } != 0 {
        return None;
    }
    let frame = head::<34>(ctx)?;
    put(frame, 0, words[0].to_ne_bytes());
    put(frame, 4, words[1].to_ne_bytes());
    put(frame, 8, words[2].to_ne_bytes());
    put(frame, 12, 0x0800_4500_u32.to_be_bytes());
    put(frame, 16, (FRAME as u16 + 6).to_be_bytes());
    put(frame, 18, 0x0000_4000_u32.to_be_bytes());
    put(frame, 22, 0x4004_0000_u32.to_be_bytes());
    put(frame, 26, 0x0a00_0001_0a00_0002_u64.to_be_bytes());
    Some(())
}

#[inline(always)]
fn note_line(ctx: &XdpContext) -> Option<()> {
    let frame = head::<74>(ctx)?;
    let (addresses, ports): (u64, u32) = if u16::from_be_bytes(get(frame, 12)) == 0x0800 {
        let address = |at| u64::from(u32::from_be_bytes(get(frame, at)));
        (address(26) << 32 | address(30), u32::from_be_bytes(get(frame, 34)))
    } else {
        let address = |at| u64::from_be_bytes(get(frame, at));
        (address(30) ^ address(46), u32::from_be_bytes(get(frame, 54)))
    };
    let course = COURSE.get_ptr_mut(0)?;
    // SAFETY: an element of a map, which nothing else holds while this runs.
    let read = unsafe { &mut (*course).read };
    let keys = [*read, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
    let hash = hash::mix(&keys, addresses, ports.into());
    let line = LINES.get(hash::places(hash, TABLE_LINES - 1).first)?;
    *read = line[0];
    Some(())
}

#[inline(always)]
fn restore(frame: &mut [u8; FRAME], course: &mut Course) {
    let mut at = 0;
    while at < WORDS.len() {
        put(frame, WORDS[at], course.words[at].to_ne_bytes());
        at += 1;
    }
    let counter = course.counter;
    course.counter = counter.wrapping_add(1);
    let (client, port) = course.client(course.flow(counter));
    let to_client = course.to_client != 0;
    let ports = course.ports | if to_client { port } else { port << 16 };
    if course.family == 4 {
        let client = client as u32;
        let mut sum = course.sum + (client >> 16) + (client & 0xffff);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        let checked = course.before_sum << 16 | !sum & 0xffff;
        put(frame, 22, checked.to_be_bytes());
        put(frame, if to_client { 30 } else { 26 }, client.to_be_bytes());
        put(frame, 34, ports.to_be_bytes());
    } else {
        put(frame, if to_client { 46 } else { 30 }, client.to_be_bytes());
        put(frame, 54, ports.to_be_bytes());
    }
}

#[inline(always)]
fn send_back(ctx: &XdpContext) -> Option<()> {
    let start = head::<34>(ctx)?;
    let kind = u16::from_be_bytes(get(start, 12));
    let (protocol, port) = if kind == 0x0800 {
        if start[14] != 0x45 || u16::from_be_bytes(get(start, 20)) & 0x3fff != 0 {
            return None;
        }
        (start[23], get(head::<54>(ctx)?, 36))
    } else if kind == 0x86dd {
        (start[20], get(head::<74>(ctx)?, 56))
    } else {
        return None;
    };
    if protocol != 6 || u16::from_be_bytes(port) == 0 {
        return None;
    }
    // In pieces that are numbers: of six bytes the compiler would make a loop.
    let (to, from) = (u32::from_ne_bytes(get(start, 0)), u32::from_ne_bytes(get(start, 6)));
    let (to_end, from_end) =
        (u16::from_ne_bytes(get(start, 4)), u16::from_ne_bytes(get(start, 10)));
    put(start, 0, from.to_ne_bytes());
    put(start, 4, from_end.to_ne_bytes());
    put(start, 6, to.to_ne_bytes());
    put(start, 10, to_end.to_ne_bytes());
    Some(())
}

#[inline(always)]
fn length(ctx: &XdpContext) -> usize {
    let (start, end) = bounds(ctx);
    end - start
}

#[inline(always)]
fn bounds(ctx: &XdpContext) -> (usize, usize) {
    let (start, end): (usize, usize);
    // SAFETY: a valid context. The loads are spelt out so that the compiler does not treat the
    // pointers as the 32-bit fields they are declared as.
    unsafe {
        asm!("{0} = *(u32 *)({1} + 0)", out(reg) start, in(reg) ctx.ctx);
        asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) ctx.ctx);
    }
    (start, end)
}

#[inline(always)]
fn head<const N: usize>(ctx: &XdpContext) -> Option<&mut [u8; N]> {
    let (start, end) = bounds(ctx);
    if start + N > end {
        return None;
    }
    // SAFETY: the comparison above proves to the verifier that N bytes are there.
    Some(unsafe { &mut *(start as *mut [u8; N]) })
}

#[inline(always)]
fn get<const N: usize, const M: usize>(from: &[u8; N], at: usize) -> [u8; M] {
    // SAFETY: every place is a constant that leaves M bytes.
    unsafe { from.as_ptr().add(at).cast::<[u8; M]>().read_unaligned() }
}

#[inline(always)]
fn put<const N: usize, const M: usize>(into: &mut [u8; N], at: usize, bytes: [u8; M]) {
    // SAFETY: as in `get`.
    unsafe { into.as_mut_ptr().add(at).cast::<[u8; M]>().write_unaligned(bytes) }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
