//! Frames as XDP and TC have them.

use core::arch::asm;
use core::cell::Cell;
use core::ffi::c_void;
use core::mem::{MaybeUninit, offset_of, size_of};

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_GRE, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    bpf_fib_lookup, bpf_redir_neigh, xdp_md,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_fib_lookup as fib_lookup, bpf_l4_csum_replace, bpf_redirect_neigh,
    bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_pull_data, bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
    bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use rlvs_datapath::abi::{Hop, Tunnel, tunnel_form};
use rlvs_datapath::frame::{Answer, Deltas, Frame, Growth, OFFSETS, Query};
use rlvs_datapath::local::LOOPBACK;
use rlvs_datapath::tunnel::{self, Brief};

use crate::once;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A frame in an XDP program.
pub struct XdpFrame {
    pub ctx: *mut xdp_md,
}

impl XdpFrame {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        const { assert!(offset_of!(xdp_md, data) == 0 && offset_of!(xdp_md, data_end) == 4) };
        let (start, end): (usize, usize);
        // SAFETY: the kernel hands a valid context to the program. The loads are spelt out so that
        // the compiler does not treat the pointers as the 32-bit fields they are declared as.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) start, in(reg) self.ctx);
            asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) self.ctx);
        }
        (start, end)
    }
}

impl Frame for XdpFrame {
    const RESOLVES: bool = false;

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.ctx).ingress_ifindex }
    }
    /// Of all its buffers: in a jumbo frame the first is not all of it.
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: as in `bounds`.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }
    #[inline(always)]
    fn holds(&self, length: usize) -> bool {
        let (start, end) = self.bounds();
        end - start >= length || self.length() >= length
    }
    #[inline(always)]
    fn head<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let (start, end) = self.bounds();
        if start + N > end {
            return None;
        }
        // SAFETY: the comparison above proves to the verifier that N bytes are there.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }
    #[inline(always)]
    fn follow_crc(old: u32, difference: u32, bytes: u16) -> u32 {
        once::follow_crc(old.into(), difference.into(), bytes.into()) as u32
    }
    #[inline(always)]
    fn byte(&mut self, at: usize) -> Option<u8> {
        let mut byte = 0_u64;
        let to = (&raw mut byte).cast::<c_void>();
        // SAFETY: valid context; one byte is written to the stack.
        let read = unsafe { bpf_xdp_load_bytes(self.ctx, at as u32, to, 1) == 0 };
        if read { Some(byte as u8) } else { None }
    }
    #[inline(always)]
    fn reframe(&mut self, by: usize, length: usize) -> Option<()> {
        // SAFETY: valid context; pointers into the packet are read anew by every `head`.
        unsafe {
            if bpf_xdp_adjust_head(self.ctx, -(by as i32)) != 0 {
                return None;
            }
            let cut = length as i32 - self.length() as i32;
            if cut != 0 && bpf_xdp_adjust_tail(self.ctx, cut) != 0 {
                return None;
            }
        }
        Some(())
    }
    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let (start, end) = self.bounds();
        bytes_within(start, offset, end)
    }
    #[inline(always)]
    fn grow(&mut self, by: usize, _: Growth) -> Option<()> {
        // SAFETY: as in `reframe`.
        if unsafe { bpf_xdp_adjust_head(self.ctx, -(by as i32)) } == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn wrap(&mut self, tunnel: &Tunnel, inner: Brief) -> Option<()> {
        if wrap_xdp(self.ctx, tunnel, inner.0, inner.1) { Some(()) } else { None }
    }
    #[inline(always)]
    fn query(&mut self, query: &Query, hop: &Cell<Hop>) -> Answer {
        ask(self.ctx.cast(), query, hop)
    }
}

/// Returns `N` bytes at an offset, if they lie before `end`.
#[inline(always)]
fn bytes_within<'a, const N: usize>(
    start: usize,
    offset: usize,
    end: usize,
) -> Option<&'a mut [u8; N]> {
    const MASK: usize = OFFSETS - 1;
    const { assert!(OFFSETS.is_power_of_two()) };
    let (mut at, mut offset) = (start, offset);
    // SAFETY: arithmetic on two registers, spelt out so that the verifier knows how large the offset
    // may be, and that what is compared with the end is what is read from.
    unsafe {
        asm!(
            "{offset} &= {mask}",
            "{at} += {offset}",
            at = inout(reg) at,
            offset = inout(reg) offset,
            mask = const MASK,
            options(pure, nomem, nostack)
        );
    }
    let _ = offset;
    if at + N > end {
        return None;
    }
    // SAFETY: the comparison above proves to the verifier that N bytes are there.
    Some(unsafe { &mut *(at as *mut [u8; N]) })
}

#[inline(never)]
fn wrap_xdp(ctx: *mut xdp_md, tunnel: &Tunnel, first: u64, second: u64) -> bool {
    tunnel::wrap(&mut XdpFrame { ctx }, tunnel, Brief(first, second)).is_some()
}

/// A frame in a TC program.
pub struct TcFrame {
    pub skb: *mut __sk_buff,
}

impl TcFrame {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        const { assert!(offset_of!(__sk_buff, data) == 76 && offset_of!(__sk_buff, data_end) == 80) };
        let (start, end): (usize, usize);
        // SAFETY: as in `XdpFrame::bounds`.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 76)", out(reg) start, in(reg) self.skb);
            asm!("{0} = *(u32 *)({1} + 80)", out(reg) end, in(reg) self.skb);
        }
        (start, end)
    }
}

/// Longest headers of an IPv4 packet without options: Ethernet, IP, TCP.
const IPV4_HEADERS: usize = 54;
/// bpf_skb_adjust_room() between the Ethernet header and the packet.
const BEHIND_MAC: u32 = 1;
const PSEUDO_HEADER: u64 = 1 << 4;
const MANGLED_ZERO: u64 = 1 << 5;
const RECOMPUTE: u64 = 1;

impl Frame for TcFrame {
    const RESOLVES: bool = true;

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.skb).ifindex }
    }
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.skb).mark }
    }
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: as in `bounds`.
        unsafe { (*self.skb).len as usize }
    }
    #[inline(always)]
    fn head<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let (start, end) = self.bounds();
        if start + N <= end {
            // SAFETY: as in `XdpFrame::head`.
            return Some(unsafe { &mut *(start as *mut [u8; N]) });
        }
        // SAFETY: valid context; the bytes may lie in fragments that the helper pulls together.
        if self.length() < N || unsafe { bpf_skb_pull_data(self.skb, N as u32) } != 0 {
            return None;
        }
        let (start, end) = self.bounds();
        if start + N > end {
            return None;
        }
        // SAFETY: as in `XdpFrame::head`.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }
    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let (start, end) = self.bounds();
        let needed = (offset & (OFFSETS - 1)) + N;
        if end - start >= needed {
            return bytes_within(start, offset, end);
        }
        // SAFETY: as in `head`.
        if self.length() < needed || unsafe { bpf_skb_pull_data(self.skb, needed as u32) } != 0 {
            return None;
        }
        let (start, end) = self.bounds();
        bytes_within(start, offset, end)
    }
    #[inline(always)]
    fn follow_crc(old: u32, difference: u32, bytes: u16) -> u32 {
        once::follow_crc(old.into(), difference.into(), bytes.into()) as u32
    }
    #[inline(always)]
    fn byte(&mut self, at: usize) -> Option<u8> {
        let mut byte = 0_u64;
        let to = (&raw mut byte).cast::<c_void>();
        // SAFETY: valid context; one byte is written to the stack.
        let read = unsafe { bpf_skb_load_bytes(self.skb.cast(), at as u32, to, 1) == 0 };
        if read { Some(byte as u8) } else { None }
    }
    #[inline(always)]
    fn reframe(&mut self, by: usize, length: usize) -> Option<()> {
        // SAFETY: valid context; pointers into the packet are read anew by every `head`.
        unsafe {
            if bpf_skb_change_tail(self.skb, (length - by) as u32, 0) != 0
                || bpf_skb_change_head(self.skb, by as u32, 0) != 0
            {
                return None;
            }
        }
        Some(())
    }
    #[inline(always)]
    fn grow(&mut self, by: usize, growth: Growth) -> Option<()> {
        // The kernel is told what it is, so that it can cut it into segments.
        let outer =
            if growth.is_v6 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 };
        let between = match growth.form {
            tunnel_form::GRE => BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
            tunnel_form::GUE => BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
            _ => 0,
        };
        // Segments of TCP are made shorter by the headers, datagrams are left as they are.
        let fixed = if growth.is_datagram { BPF_F_ADJ_ROOM_FIXED_GSO } else { 0 };
        let flags = u64::from(outer | between | fixed);
        // SAFETY: as in `reframe`.
        let done = unsafe { bpf_skb_adjust_room(self.skb, by as i32, BEHIND_MAC, flags) };
        if done == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn wrap(&mut self, tunnel: &Tunnel, inner: Brief) -> Option<()> {
        if wrap_tc(self.skb, tunnel, inner.0, inner.1) { Some(()) } else { None }
    }
    #[inline(always)]
    fn add_to_sum(&mut self, sum: u16) {
        // SAFETY: valid context; refused, and rightly so, unless hardware has summed the frame.
        unsafe { bpf_csum_update(self.skb, sum.to_be().into()) };
    }
    #[inline(always)]
    fn segment(&mut self, length: u32, headers: impl FnOnce(&mut Self) -> u32) -> u32 {
        // SAFETY: as in `bounds`.
        match unsafe { (*self.skb).gso_size } {
            0 => length,
            size => headers(self) + size,
        }
    }
    #[inline(always)]
    fn query(&mut self, query: &Query, hop: &Cell<Hop>) -> Answer {
        ask(self.skb.cast(), query, hop)
    }
    #[inline(always)]
    fn follow<const N: usize>(&mut self, at: usize, udp: bool, by: Deltas) -> Option<()> {
        let deltas = u64::from(by.address.to_be()) << 16 | u64::from(by.port.to_be());
        let zero = if udp { MANGLED_ZERO } else { 0 };
        if replace(self.skb, at as u32, deltas, zero, N > IPV4_HEADERS) { Some(()) } else { None }
    }
    #[inline(always)]
    fn follow_at(&mut self, at: usize, udp: bool, is_v6: bool, by: Deltas) -> Option<()> {
        let deltas = u64::from(by.address.to_be()) << 16 | u64::from(by.port.to_be());
        let zero = if udp { MANGLED_ZERO } else { 0 };
        if replace(self.skb, at as u32, deltas, zero, is_v6) { Some(()) } else { None }
    }
    #[inline(always)]
    fn follow_bare(&mut self, is_v6: bool, by: Deltas) {
        // The header checksum of IPv4 makes up for the address.
        if is_v6 {
            // SAFETY: valid context; the helper takes numbers.
            unsafe { bpf_csum_update(self.skb, u32::from(by.address.to_be())) };
        }
    }
    #[inline(always)]
    fn resolve(&mut self, hop: &Cell<Hop>) {
        redirect_neighbour(hop);
    }
    #[inline(always)]
    fn lower_hop_limit(&mut self) -> Option<()> {
        let limit = self.head::<22>()?[21].wrapping_sub(1);
        let from = (&raw const limit).cast::<c_void>();
        // SAFETY: valid context; one byte is read from the stack.
        let done = unsafe { bpf_skb_store_bytes(self.skb, 21, from, 1, RECOMPUTE) == 0 };
        if done { Some(()) } else { None }
    }
}

#[inline(never)]
fn wrap_tc(skb: *mut __sk_buff, tunnel: &Tunnel, first: u64, second: u64) -> bool {
    tunnel::wrap(&mut TcFrame { skb }, tunnel, Brief(first, second)).is_some()
}

/// Lets a transport checksum follow an address (upper half of `deltas`) and a port. The helper knows
/// whether the checksum is complete or yet to be finished by hardware.
#[inline(never)]
fn replace(skb: *mut __sk_buff, at: u32, deltas: u64, zero: u64, is_v6: bool) -> bool {
    let (address, port) = (deltas >> 16, deltas & 0xffff);
    // SAFETY: valid context; the helpers check the offset. What the second does to the hardware's
    // sum: the first takes the address out of it, which is right for IPv4, whose own header checksum
    // has changed the other way, and not for IPv6.
    unsafe {
        if bpf_l4_csum_replace(skb, at, 0, address, PSEUDO_HEADER | zero) != 0 {
            return false;
        }
        if is_v6 {
            bpf_csum_update(skb, address as u32);
        }
        bpf_l4_csum_replace(skb, at, 0, port, zero) == 0
    }
}

/// A C structure on the stack, where 8-byte accesses must be aligned.
#[repr(C, align(8))]
struct Aligned<T>(T);

impl<T> Aligned<T> {
    /// Makes all of it 0, word by word: a loop over bytes takes the verifier and the processor their
    /// time, and what is returned by value is there twice.
    ///
    /// # Safety
    /// Zero is a value of `T`.
    #[inline(always)]
    unsafe fn zeroed<const WORDS: usize>(place: &mut MaybeUninit<Self>) -> &mut T {
        const { assert!(size_of::<Self>() == WORDS * 8) };
        let words = place.as_mut_ptr().cast::<u64>();
        for word in 0..WORDS {
            // SAFETY: within the structure, aligned to words.
            unsafe { words.add(word).write_volatile(0) };
        }
        // SAFETY: all of it was written, and the caller says that zero is a value.
        unsafe { &mut place.assume_init_mut().0 }
    }
}

const SUCCESS: i64 = 0;
const NOT_FORWARDED: i64 = 4;
const NO_NEIGHBOUR: i64 = 7;

/// Asks the routing table.
#[inline(always)]
fn ask(ctx: *mut c_void, query: &Query, hop: &Cell<Hop>) -> Answer {
    let mut place = MaybeUninit::uninit();
    // SAFETY: a plain C structure for which zero is a value.
    let params = unsafe { Aligned::<bpf_fib_lookup>::zeroed::<8>(&mut place) };
    params.family = if query.family == 4 { AF_INET } else { AF_INET6 };
    // As if it had come from there, which makes the look-up that of a packet the host itself sends,
    // as with the kernel's IPVS, and does not depend on forwarding being enabled on the interface that
    // the client's packet came in by.
    params.ifindex = LOOPBACK;
    params.__bindgen_anon_1.tot_len = 1; // makes the answer tell the MTU
    params.__bindgen_anon_4.ipv6_dst = words(&query.target);
    // SAFETY: valid context and parameters of the size given; every variant of the unions is plain
    // integers.
    unsafe {
        match fib_lookup(ctx, params, size_of::<bpf_fib_lookup>() as i32, 0) {
            SUCCESS => {
                let mtu = params.__bindgen_anon_1.mtu_result as u32;
                let (neighbour, own) = (mac(&params.dmac), mac(&params.smac));
                hop.set(Hop::new(params.ifindex, neighbour, own, mtu, query.now));
                Answer::Hop
            }
            NO_NEIGHBOUR => {
                let is_v6 = params.family != AF_INET;
                let address = params.__bindgen_anon_4.ipv6_dst;
                hop.set(Hop::unresolved(params.ifindex, is_v6, address));
                Answer::Unresolved
            }
            NOT_FORWARDED => Answer::NotForwarded,
            _ => Answer::Unreachable,
        }
    }
}

/// Copies a MAC address from the stack in pieces that are aligned there.
#[inline(always)]
fn mac(bytes: &[u8; 6]) -> [u8; 6] {
    let at = bytes.as_ptr().cast::<u16>();
    // SAFETY: both addresses of bpf_fib_lookup stand at even offsets, and are 6 bytes long.
    let [a, b, c] =
        unsafe { [at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile()] };
    let ([a, b], [c, d], [e, f]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    [a, b, c, d, e, f]
}

/// Has the frame sent to a neighbour that the kernel resolves, if the verdict is TC_ACT_REDIRECT. It is
/// what the helper returns, as its arguments are in order.
#[inline(never)]
fn redirect_neighbour(hop: &Cell<Hop>) -> i64 {
    let (interface, is_v6, address) = hop.get().awaited();
    let mut place = MaybeUninit::uninit();
    // SAFETY: a plain C structure for which zero is a value.
    let params = unsafe { Aligned::<bpf_redir_neigh>::zeroed::<3>(&mut place) };
    params.nh_family = if is_v6 { AF_INET6 as u32 } else { AF_INET as u32 };
    let at = (&raw mut params.__bindgen_anon_1.ipv6_nh).cast::<u32>();
    // SAFETY: four words at an offset of 4, written one by one, as wider stores are not aligned;
    // parameters of the size given.
    unsafe {
        at.write_volatile(address[0]);
        at.add(1).write_volatile(address[1]);
        at.add(2).write_volatile(address[2]);
        at.add(3).write_volatile(address[3]);
        bpf_redirect_neigh(interface, params, size_of::<bpf_redir_neigh>() as i32, 0)
    }
}

#[inline(always)]
fn words(address: &[u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
