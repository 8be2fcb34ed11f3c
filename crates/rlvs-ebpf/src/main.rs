//! The BPF programs: verdicts carried out, nothing else.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "compare-and-swap has no stable spelling on this target")]

mod frame;
mod maps;
mod sweep;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use rlvs_datapath::frame::{Frame, Verdict};
use rlvs_datapath::process::process;

use crate::frame::{TcFrame, XdpFrame};
use crate::maps::Maps;

/// The XDP body.
#[xdp]
pub fn rlvs_xdp(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame { ctx: ctx.ctx };
    match process(&mut frame, &Maps) {
        Verdict::Pass(_) | Verdict::Resolve => xdp_action::XDP_PASS,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        Verdict::Transmit { interface } if interface == frame.interface() => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only.
        Verdict::Transmit { interface } => unsafe { bpf_redirect(interface, 0) as u32 },
    }
}

/// The TC body. Inlined into the frame that the macro puts around it: see "BPF rules learned here" on
/// the stack.
#[classifier]
#[inline(always)]
pub fn rlvs_tc(ctx: TcContext) -> i32 {
    let mut frame = TcFrame { skb: ctx.as_ptr().cast() };
    match process(&mut frame, &Maps) {
        // Whatever hangs there behind us sees it: TC_ACT_OK would end the chain.
        Verdict::Pass(_) => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        // SAFETY: the helper takes numbers only.
        Verdict::Transmit { interface } => unsafe { bpf_redirect(interface, 0) as i32 },
        Verdict::Resolve => TC_ACT_REDIRECT,
    }
}

/// Arms the sweep; the loader runs it once. Arming again replaces the callback by this program's.
#[xdp]
pub fn rlvs_arm(_: XdpContext) -> u32 {
    if maps::Maps::keep() && sweep::arm() { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
