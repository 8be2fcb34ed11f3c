//! The BPF programs: verdicts carried out, nothing else. One program for what nearly every packet
//! is, and one for each stage that it may hand on to.
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
use rlvs_datapath::ip::{V4, V6};
use rlvs_datapath::{guard, local, process, schedulers};

use crate::frame::{TcFrame, XdpFrame};
use crate::maps::{Maps, STAGES_TC, STAGES_XDP};

#[inline(always)]
fn on_xdp(ctx: &XdpContext, decide: impl FnOnce(&mut XdpFrame, &Maps) -> Verdict) -> u32 {
    let mut frame = XdpFrame { ctx: ctx.ctx };
    match decide(&mut frame, &Maps) {
        Verdict::Pass(_) | Verdict::Resolve { .. } | Verdict::Arrive => xdp_action::XDP_PASS,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        Verdict::Transmit { interface } if interface == frame.interface() => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only.
        Verdict::Transmit { interface } => unsafe { bpf_redirect(interface, 0) as u32 },
        Verdict::Next(stage) => {
            // SAFETY: nothing is left to be dropped.
            unsafe { STAGES_XDP.tail_call(ctx, stage as u32) };
            // This kernel did not take the stage: the packet is the stack's.
            xdp_action::XDP_PASS
        }
    }
}

/// Makes a redirected frame come in by the interface.
const INGRESS: u64 = 1;

#[inline(always)]
fn on_tc(ctx: &TcContext, decide: impl FnOnce(&mut TcFrame, &Maps) -> Verdict) -> i32 {
    let mut frame = TcFrame { skb: ctx.as_ptr().cast() };
    match decide(&mut frame, &Maps) {
        // Whatever hangs there behind us sees it: TC_ACT_OK would end the chain.
        Verdict::Pass(_) => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        // SAFETY: the helper takes numbers only.
        Verdict::Transmit { interface } => unsafe { bpf_redirect(interface, 0) as i32 },
        Verdict::Resolve { .. } => TC_ACT_REDIRECT,
        // SAFETY: as above.
        Verdict::Arrive => unsafe { bpf_redirect(local::LOOPBACK, INGRESS) as i32 },
        Verdict::Next(stage) => {
            // SAFETY: nothing is left to be dropped.
            unsafe { STAGES_TC.tail_call(ctx, stage as u32) };
            TC_ACT_UNSPEC
        }
    }
}

/// Defines the programs of one step for both bodies, inlined into the frames that the macros of aya put
/// around them: see "BPF rules learned here" on the stack.
macro_rules! programs {
    ($($xdp:ident, $tc:ident: $decide:expr;)*) => {$(
        #[xdp(frags)]
        #[inline(always)]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            on_xdp(&ctx, $decide)
        }

        #[classifier]
        #[inline(always)]
        pub fn $tc(ctx: TcContext) -> i32 {
            on_tc(&ctx, $decide)
        }
    )*};
}

programs! {
    rlvs_xdp, rlvs_tc: process::process;
    rlvs_xdp_open4, rlvs_tc_open4: process::open::<V4, _, _>;
    rlvs_xdp_open6, rlvs_tc_open6: process::open::<V6, _, _>;
    rlvs_xdp_rest4, rlvs_tc_rest4: process::rest::<V4, _, _>;
    rlvs_xdp_rest6, rlvs_tc_rest6: process::rest::<V6, _, _>;
    rlvs_xdp_icmp4, rlvs_tc_icmp4: process::icmp::<V4, _, _>;
    rlvs_xdp_icmp6, rlvs_tc_icmp6: process::icmp::<V6, _, _>;
    rlvs_xdp_odd4, rlvs_tc_odd4: process::odd::<V4, _, _>;
    rlvs_xdp_odd6, rlvs_tc_odd6: process::odd::<V6, _, _>;
    rlvs_xdp_sctp4, rlvs_tc_sctp4: process::sctp::<V4, _, _>;
    rlvs_xdp_sctp6, rlvs_tc_sctp6: process::sctp::<V6, _, _>;
    rlvs_xdp_begin4, rlvs_tc_begin4: process::odd_open::<V4, _, _>;
    rlvs_xdp_begin6, rlvs_tc_begin6: process::odd_open::<V6, _, _>;
    rlvs_xdp_peers4, rlvs_tc_peers4: process::peers::<V4, _, _>;
    rlvs_xdp_peers6, rlvs_tc_peers6: process::peers::<V6, _, _>;
    rlvs_xdp_associate4, rlvs_tc_associate4: process::associate::<V4, _, _>;
    rlvs_xdp_special4, rlvs_tc_special4: process::special::<V4, _, _>;
    rlvs_xdp_special6, rlvs_tc_special6: process::special::<V6, _, _>;
    rlvs_xdp_join4, rlvs_tc_join4: process::join::<V4, _, _>;
    rlvs_xdp_join6, rlvs_tc_join6: process::join::<V6, _, _>;
    rlvs_xdp_apart4, rlvs_tc_apart4: process::apart::<V4, _, _>;
    rlvs_xdp_apart6, rlvs_tc_apart6: process::apart::<V6, _, _>;
    rlvs_xdp_back4, rlvs_tc_back4: process::back::<V4, _, _>;
    rlvs_xdp_back6, rlvs_tc_back6: process::back::<V6, _, _>;
    rlvs_xdp_associate6, rlvs_tc_associate6: process::associate::<V6, _, _>;
    rlvs_xdp_clamp4, rlvs_tc_clamp4: process::clamp::<V4, _, _>;
    rlvs_xdp_clamp6, rlvs_tc_clamp6: process::clamp::<V6, _, _>;
    rlvs_xdp_relay4, rlvs_tc_relay4: process::relay::<V4, _, _>;
    rlvs_xdp_relay6, rlvs_tc_relay6: process::relay::<V6, _, _>;
    rlvs_xdp_guard, rlvs_tc_guard: |_, maps| guard::guard(maps);
    rlvs_xdp_search, rlvs_tc_search: |_, maps| schedulers::search(maps);
}

/// Hangs where frames leave, if there are real servers on this host.
#[classifier]
#[inline(always)]
pub fn rlvs_out(ctx: TcContext) -> i32 {
    on_tc(&ctx, local::depart)
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
