//! The decapsulator: takes packets out of the tunnels that end at this host.
//!
//! It serves real servers whose kernel has no tunnel devices, and is strict so that tests can trust
//! what it counts: whatever can be checked is, and a tunnel packet with a flaw is dropped. It runs
//! at TC ingress, before reassembly. The inner packet goes up the stack as if it had come without a
//! tunnel; what is no tunnel packet, or not for this host, passes untouched.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic addition has no stable spelling on this target")]

mod tunnel;

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, TC_ACT_SHOT,
    TC_ACT_UNSPEC,
};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::helpers::generated::{
    bpf_loop, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use rlvs_wire::checksum::fold;
use rlvs_wire::{ethernet, gre, gue, ipip, ipv4, ipv6, tcp, u8_at, u16_at, u32_at, udp};

use crate::tunnel::{ADDRESSES_MAX, COUNTERS, Encapsulation, Kind, Refusal};

/// The UDP port of GUE.
#[btf_map(name = "port")]
static PORT: Array<u64, 1> = Array::new();
/// The addresses of this host, as IPv6 ones in network order.
#[btf_map(name = "addresses")]
static ADDRESSES: HashMap<[u32; 4], u64, ADDRESSES_MAX> = HashMap::new();
/// What was taken out, and what was refused.
#[btf_map(name = "counters")]
static COUNTS: Array<u64, COUNTERS> = Array::new();

/// A sum under way.
#[btf_map(name = "total")]
static TOTAL: PerCpuArray<u64, 1> = PerCpuArray::new();

const PACKET_HOST: u32 = 0;
const ADJUST_BEHIND_MAC: u32 = 1;
const RECOMPUTE: u64 = 1;
/// What a sum is that has all words and their checksum in it, if that is right.
const RIGHT: u16 = 0xffff;

/// The program.
#[classifier]
pub fn decap(ctx: TcContext) -> i32 {
    let skb = Skb(ctx.as_ptr().cast());
    let Some(outer) = outer(&skb) else { return TC_ACT_UNSPEC };
    match check(&skb, &outer).and_then(|tunnel| take_out(&skb, &outer, &tunnel)) {
        Ok(kind) => {
            count(kind.counter());
            TC_ACT_UNSPEC
        }
        Err(refusal) => {
            count(refusal.counter());
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(count) = COUNTS.get_ptr_mut(counter) {
        // SAFETY: an element of a map, aligned.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(count, 1) };
    }
}

/// Bytes on the stack, where wider accesses must be aligned.
#[repr(C, align(8))]
struct Header<const N: usize>([u8; N]);

#[derive(Clone, Copy)]
struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn length(self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn load<const N: usize>(self, at: u32) -> Option<Header<N>> {
        let mut header = Header([0; N]);
        let into = header.0.as_mut_ptr().cast();
        // SAFETY: valid context; the helper writes N bytes to the stack.
        let done = unsafe { bpf_skb_load_bytes(self.0.cast(), at, into, N as u32) };
        if done == 0 { Some(header) } else { None }
    }

    #[inline(always)]
    fn store(self, at: u32, word: u16, flags: u64) -> bool {
        let bytes = word.to_be();
        // SAFETY: valid context; the helper reads two bytes from the stack.
        unsafe { bpf_skb_store_bytes(self.0, at, (&raw const bytes).cast(), 2, flags) == 0 }
    }

    /// Returns the sum of the bytes of a range; of one that is not there, a wrong one.
    #[inline(always)]
    fn sum(self, from: u32, end: u32) -> u64 {
        sum(self.0, from, end)
    }
}

/// A tunnel packet to this host. Places are counted from the frame's first byte.
struct Outer {
    is_v6: bool,
    is_fragment: bool,
    protocol: u8,
    /// Where the header's IPv4 part ends, or the IPv6 headers.
    payload: u32,
    /// What the header says of the packet's end.
    end: u32,
    /// Sum of the addresses.
    addresses: u64,
}

const START: u32 = ethernet::LENGTH as u32;

/// Reads the outer headers, or returns nothing if the packet is not for the decapsulator.
#[inline(always)]
fn outer(skb: &Skb) -> Option<Outer> {
    // SAFETY: as in `length`.
    let (kind, protocol) = unsafe { ((*skb.0).pkt_type, (*skb.0).protocol) };
    if kind != PACKET_HOST {
        return None;
    }
    let outer = match u16::from_be(protocol as u16) {
        ethernet::IPV4 => outer_v4(skb)?,
        ethernet::IPV6 => outer_v6(skb)?,
        _ => return None,
    };
    match outer.protocol {
        ipip::PROTOCOL_V4 | ipip::PROTOCOL_V6 | gre::PROTOCOL => Some(outer),
        udp::PROTOCOL => {
            let port = *PORT.get(0)?;
            let ports = skb.load::<4>(outer.payload)?;
            let is_gue = u64::from(u16_at(&ports.0, rlvs_wire::DESTINATION_PORT)) == port;
            if is_gue { Some(outer) } else { None }
        }
        _ => None,
    }
}

#[inline(always)]
fn outer_v4(skb: &Skb) -> Option<Outer> {
    const OFFSET_MASK: u16 = 0x1fff;
    let header = skb.load::<{ ipv4::LENGTH }>(START)?;
    let length = 4 * u32::from(u8_at(&header.0, 0) & 0x0f);
    let protocol = u8_at(&header.0, ipv4::PROTOCOL);
    let fragment = u16_at(&header.0, ipv4::FRAGMENT) & ipv4::FRAGMENT_MASK;
    let address = u32_at(&header.0, ipv4::DESTINATION);
    let is_ours = is_ours([0, 0, 0xffff_u32.to_be(), address.to_be()]);
    // Only the first fragment of a datagram shows its port.
    let is_later = protocol == udp::PROTOCOL && fragment & OFFSET_MASK != 0;
    if u8_at(&header.0, 0) >> 4 != 4 || length < ipv4::LENGTH as u32 || !is_ours || is_later {
        return None;
    }
    Some(Outer {
        is_v6: false,
        is_fragment: fragment != 0,
        protocol,
        payload: START + length,
        end: START + u32::from(u16_at(&header.0, ipv4::TOTAL_LENGTH)),
        addresses: u64::from(u32_at(&header.0, ipv4::SOURCE)) + u64::from(address),
    })
}

#[inline(always)]
fn outer_v6(skb: &Skb) -> Option<Outer> {
    const FRAGMENT_LENGTH: u32 = 8;
    const OFFSET_MASK: u16 = 0xfff8;
    let header = skb.load::<{ ipv6::LENGTH }>(START)?;
    let word = |at| u32_at(&header.0, at);
    let [a, b, c, d] = [0, 4, 8, 12].map(|at| word(ipv6::DESTINATION + at).to_be());
    if u8_at(&header.0, 0) >> 4 != 6 || !is_ours([a, b, c, d]) {
        return None;
    }
    let mut outer = Outer {
        is_v6: true,
        is_fragment: false,
        protocol: u8_at(&header.0, ipv6::NEXT_HEADER),
        payload: START + ipv6::LENGTH as u32,
        end: START + ipv6::LENGTH as u32 + u32::from(u16_at(&header.0, ipv6::PAYLOAD_LENGTH)),
        addresses: addresses_v6(&header.0),
    };
    if outer.protocol == ipv6::FRAGMENT {
        let fragment = skb.load::<4>(outer.payload)?;
        outer.is_fragment = true;
        outer.protocol = u8_at(&fragment.0, 0);
        outer.payload += FRAGMENT_LENGTH;
        if outer.protocol == udp::PROTOCOL && u16_at(&fragment.0, 2) & OFFSET_MASK != 0 {
            return None;
        }
    }
    Some(outer)
}

#[inline(always)]
fn is_ours(address: [u32; 4]) -> bool {
    ADDRESSES.get_ptr(address).is_some()
}

#[inline(always)]
fn addresses_v6(header: &[u8; ipv6::LENGTH]) -> u64 {
    let mut sum = 0;
    let mut at = ipv6::SOURCE;
    while at < ipv6::LENGTH {
        sum += u64::from(u32_at(header, at));
        at += 4;
    }
    sum
}

/// What lies between the outer header and the inner packet, found to be right.
struct Tunnel {
    encapsulation: Encapsulation,
    inner_v6: bool,
    /// Where the inner packet starts and ends.
    inner: u32,
    end: u32,
    /// Of the inner packet's first byte: where the bytes to sum start, and the checksum.
    remote: Option<(u32, u32)>,
}

#[inline(always)]
fn check(skb: &Skb, outer: &Outer) -> Result<Tunnel, Refusal> {
    if !outer.is_v6 && fold(skb.sum(START, outer.payload)) != RIGHT {
        return Err(Refusal::HeaderChecksum);
    }
    if outer.is_fragment {
        return Err(Refusal::Fragment);
    }
    if outer.end < outer.payload || outer.end > skb.length() {
        return Err(Refusal::Truncated);
    }
    match outer.protocol {
        gre::PROTOCOL => check_gre(skb, outer),
        udp::PROTOCOL => check_gue(skb, outer),
        protocol => Ok(Tunnel {
            encapsulation: Encapsulation::Ipip,
            inner_v6: protocol == ipip::PROTOCOL_V6,
            inner: outer.payload,
            end: outer.end,
            remote: None,
        }),
    }
}

#[inline(always)]
fn check_gre(skb: &Skb, outer: &Outer) -> Result<Tunnel, Refusal> {
    let (at, end) = (outer.payload, outer.end);
    let header = part::<{ gre::LENGTH }>(skb, at, end)?;
    let (encapsulation, length) = match u16_at(&header.0, gre::FLAGS) {
        0 => (Encapsulation::Gre, gre::LENGTH),
        gre::CHECKSUM_PRESENT => (Encapsulation::GreChecksum, gre::LENGTH_WITH_CHECKSUM),
        _ => return Err(Refusal::GreFlags),
    };
    let inner = at + length as u32;
    if inner > end {
        return Err(Refusal::Truncated);
    }
    if length != gre::LENGTH && fold(skb.sum(at, end)) != RIGHT {
        return Err(Refusal::GreChecksum);
    }
    let inner_v6 = match u16_at(&header.0, gre::TYPE) {
        ethernet::IPV4 => false,
        ethernet::IPV6 => true,
        _ => return Err(Refusal::Protocol),
    };
    Ok(Tunnel { encapsulation, inner_v6, inner, end, remote: None })
}

#[inline(always)]
fn check_gue(skb: &Skb, outer: &Outer) -> Result<Tunnel, Refusal> {
    let at = outer.payload;
    let datagram = part::<{ udp::LENGTH }>(skb, at, outer.end)?;
    let length = u32::from(u16_at(&datagram.0, udp::DATAGRAM_LENGTH));
    let (start, end) = (at + udp::LENGTH as u32, at + length);
    if end > outer.end {
        return Err(Refusal::Truncated);
    }
    let header = part::<{ gue::LENGTH }>(skb, start, end)?;
    let summed = u16_at(&datagram.0, udp::CHECKSUM) != 0;
    let pseudo = outer.addresses + u64::from(udp::PROTOCOL) + u64::from(length);
    if summed && fold(pseudo + skb.sum(at, end)) != RIGHT {
        return Err(Refusal::UdpChecksum);
    }
    let remote = check_gue_header(skb, &header, start, end)?;
    let inner_v6 = match u8_at(&header.0, gue::NEXT_PROTOCOL) {
        ipip::PROTOCOL_V4 => false,
        ipip::PROTOCOL_V6 => true,
        _ => return Err(Refusal::Protocol),
    };
    let (encapsulation, length) = match (remote.is_some(), summed) {
        (false, false) => (Encapsulation::Gue, gue::LENGTH),
        (false, true) => (Encapsulation::GueChecksum, gue::LENGTH),
        (true, false) => (Encapsulation::GueRemote, gue::LENGTH_WITH_REMOTE_CHECKSUM),
        (true, true) => (Encapsulation::GueRemoteChecksum, gue::LENGTH_WITH_REMOTE_CHECKSUM),
    };
    Ok(Tunnel { encapsulation, inner_v6, inner: start + length as u32, end, remote })
}

/// Checks version and flags, and returns what the remote checksum option says if it is there.
#[inline(always)]
fn check_gue_header(
    skb: &Skb,
    header: &Header<{ gue::LENGTH }>,
    start: u32,
    end: u32,
) -> Result<Option<(u32, u32)>, Refusal> {
    const VERSION: u8 = 0xc0;
    const REMOTE_WORDS: u8 = ((gue::LENGTH_WITH_REMOTE_CHECKSUM - gue::LENGTH) / 4) as u8;
    let first = u8_at(&header.0, gue::VERSION);
    if first & VERSION != 0 {
        return Err(Refusal::GueVersion);
    }
    if first & gue::VERSION_MASK != 0 {
        return Err(Refusal::GueControl);
    }
    match (u16_at(&header.0, gue::FLAGS), first & gue::OPTIONS_MASK) {
        (0, 0) => Ok(None),
        (gue::PRIVATE, REMOTE_WORDS) => {
            let whole = part::<{ gue::LENGTH_WITH_REMOTE_CHECKSUM }>(skb, start, end)?;
            if u32_at(&whole.0, gue::PRIVATE_FLAGS) != gue::REMOTE_CHECKSUM {
                return Err(Refusal::GueFlags);
            }
            let place = |at| u32::from(u16_at(&whole.0, at));
            Ok(Some((place(gue::REMOTE_START), place(gue::REMOTE_OFFSET))))
        }
        _ => Err(Refusal::GueFlags),
    }
}

/// Loads a header that must lie inside what holds it.
#[inline(always)]
fn part<const N: usize>(skb: &Skb, at: u32, end: u32) -> Result<Header<N>, Refusal> {
    if at + N as u32 > end {
        return Err(Refusal::Truncated);
    }
    match skb.load::<N>(at) {
        Some(header) => Ok(header),
        None => Err(Refusal::Truncated),
    }
}

/// The inner packet's header.
struct Inner {
    length: u32,
    protocol: u8,
    /// Sum of the pseudo header that a transport checksum covers.
    pseudo: u64,
}

#[inline(always)]
fn inner(skb: &Skb, tunnel: &Tunnel) -> Option<Inner> {
    let space = tunnel.end - tunnel.inner;
    let (first, length, total, protocol, addresses) = if tunnel.inner_v6 {
        let header = part::<{ ipv6::LENGTH }>(skb, tunnel.inner, tunnel.end).ok()?;
        let total = ipv6::LENGTH as u32 + u32::from(u16_at(&header.0, ipv6::PAYLOAD_LENGTH));
        let protocol = u8_at(&header.0, ipv6::NEXT_HEADER);
        (u8_at(&header.0, 0) >> 4 == 6, 40, total, protocol, addresses_v6(&header.0))
    } else {
        let header = part::<{ ipv4::LENGTH }>(skb, tunnel.inner, tunnel.end).ok()?;
        let length = 4 * u32::from(u8_at(&header.0, 0) & 0x0f);
        let is_v4 = u8_at(&header.0, 0) >> 4 == 4 && length >= ipv4::LENGTH as u32;
        let total = u32::from(u16_at(&header.0, ipv4::TOTAL_LENGTH));
        let addresses = u64::from(u32_at(&header.0, ipv4::SOURCE))
            + u64::from(u32_at(&header.0, ipv4::DESTINATION));
        (is_v4, length, total, u8_at(&header.0, ipv4::PROTOCOL), addresses)
    };
    if !first || total != space || length > space {
        return None;
    }
    let pseudo = addresses + u64::from(protocol) + u64::from(total - length);
    Some(Inner { length, protocol, pseudo })
}

/// Takes the headers off a packet whose tunnel is right.
#[inline(always)]
fn take_out(skb: &Skb, outer: &Outer, tunnel: &Tunnel) -> Result<Kind, Refusal> {
    let Some(inner) = inner(skb, tunnel) else { return Err(Refusal::Inner) };
    if let Some((start, offset)) = tunnel.remote
        && complete(skb, tunnel, &inner, start, offset).is_none()
    {
        return Err(Refusal::RemoteChecksum);
    }
    let kind = if tunnel.inner_v6 { ethernet::IPV6 } else { ethernet::IPV4 };
    // Kernels before 6.3 take no such flag, and need none where the version stays.
    let decap = match (outer.is_v6, tunnel.inner_v6) {
        (true, false) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        (false, true) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        _ => 0,
    };
    let by = START as i32 - tunnel.inner as i32;
    // SAFETY: valid context; no pointer into the packet is held.
    let done = unsafe { bpf_skb_adjust_room(skb.0, by, ADJUST_BEHIND_MAC, decap.into()) == 0 };
    if !done || !skb.store(ethernet::TYPE as u32, kind, 0) {
        return Err(Refusal::Room);
    }
    let Tunnel { encapsulation, inner_v6, .. } = *tunnel;
    Ok(Kind { encapsulation, outer_v6: outer.is_v6, inner_v6 })
}

/// Completes the inner packet's transport checksum, in whose place the sum of the pseudo header
/// stands (remote checksum offload).
#[inline(always)]
fn complete(skb: &Skb, tunnel: &Tunnel, inner: &Inner, start: u32, offset: u32) -> Option<()> {
    let checksum = match inner.protocol {
        tcp::PROTOCOL => tcp::CHECKSUM,
        udp::PROTOCOL => udp::CHECKSUM,
        _ => return None,
    };
    let at = tunnel.inner + offset;
    if start != inner.length || offset != start + checksum as u32 || at + 2 > tunnel.end {
        return None;
    }
    let stands = u16_at(&skb.load::<2>(at)?.0, 0);
    // SAFETY: as in `length`. What is cut into segments later has each one's length summed then.
    let is_whole = unsafe { (*skb.0).gso_size == 0 };
    if is_whole && stands != fold(inner.pseudo) {
        return None;
    }
    let completed = match !fold(skb.sum(tunnel.inner + start, tunnel.end)) {
        0 if inner.protocol == udp::PROTOCOL => 0xffff,
        completed => completed,
    };
    if skb.store(at, completed, RECOMPUTE) { Some(()) } else { None }
}

/// Bytes summed at once, on the stack.
const CHUNK: usize = 128;
/// Chunks of the longest packet.
const CHUNKS_MAX: u32 = (1_u32 << 16).div_ceil(CHUNK as u32) + 1;

/// A sum under way. What changes is in a map: the verifier would follow every value on the stack.
#[repr(C)]
struct Sum {
    skb: *mut __sk_buff,
    from: u64,
    end: u64,
    total: *mut u64,
}

extern "C" fn add_chunk(index: u64, sum: *mut Sum) -> i64 {
    // SAFETY: bpf_loop hands on the sum that the function below made.
    let sum = unsafe { &mut *sum };
    let from = sum.from + CHUNK as u64 * index;
    let left = sum.end.wrapping_sub(from) as i64;
    if left < 1 {
        return 1;
    }
    let length = if left < CHUNK as i64 { left } else { CHUNK as i64 };
    let mut words = MaybeUninit::<[u64; CHUNK / 8]>::uninit();
    let start = words.as_mut_ptr().cast::<u64>();
    // SAFETY: valid context; the helper writes at most the chunk's size to the stack. The words are
    // zeroed one by one, as the compiler would call a function that does it by bytes.
    let words = unsafe {
        for at in 0..CHUNK / 8 {
            start.add(at).write_volatile(0);
        }
        if bpf_skb_load_bytes(sum.skb.cast(), from as u32, start.cast(), length as u32) != 0 {
            return 1;
        }
        words.assume_init()
    };
    let mut total = 0;
    for word in words {
        total += (word & 0xffff_ffff) + (word >> 32);
    }
    // SAFETY: this CPU's element of the map.
    unsafe { *sum.total += total };
    0
}

/// As [`Skb::sum`].
#[inline(never)]
fn sum(skb: *mut __sk_buff, from: u32, end: u32) -> u64 {
    let Some(total) = TOTAL.get_ptr_mut(0) else { return 0 };
    let mut sum = Sum { skb, from: from.into(), end: end.into(), total };
    // SAFETY: this CPU's element of the map, which no other run of the program shares before this
    // one ends; the callback takes an index and a sum.
    let total = unsafe {
        total.write_volatile(0);
        bpf_loop(CHUNKS_MAX, add_chunk as *mut c_void, (&raw mut sum).cast(), 0);
        total.read_volatile()
    };
    // The sum of words in this machine's order is that of the others with its bytes swapped.
    u64::from(u16::from_be(fold(total)))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
