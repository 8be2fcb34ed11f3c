#![no_std]
#![no_main]
//! A stand-in for the data plane: it counts frames and lets them pass.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::Array,
    macros::{btf_map, xdp},
    programs::XdpContext,
};

#[btf_map]
static FRAMES: Array<u64, 1> = Array::new();

/// Counts a frame and passes it on.
#[xdp]
pub fn rlvs_xdp(_frame: XdpContext) -> u32 {
    if let Some(count) = FRAMES.get_ptr_mut(0) {
        // SAFETY: the pointer is to the value of an array map, which lives as long as the map.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
