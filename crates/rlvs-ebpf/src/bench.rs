#![no_std]
#![no_main]
//! The floor that the benchmark measures against: nothing but a verdict.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Passes a frame on.
#[xdp]
pub fn floor_xdp(_frame: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
