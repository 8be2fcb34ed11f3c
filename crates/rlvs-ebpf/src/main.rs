//! The BPF programs: verdicts carried out, nothing else. One program for what nearly every packet
//! is, and one for each stage that it may hand on to.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics, macro_metavar_expr_concat)]
#![allow(internal_features, reason = "compare-and-swap has no stable spelling on this target")]

mod frame;
mod maps;
mod once;
mod sweep;

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use rlvs_datapath::frame::{Frame, Verdict};
use rlvs_datapath::ip::{V4, V6};
use rlvs_datapath::process::{process, settle};
use rlvs_datapath::stage::Stage;
use rlvs_datapath::{
    adopt, apart, association, cut, errors, fragment, full, guard, learn, local, mss, opening,
    quoted, refuse, relay, rest, schedulers, sip, special, strange,
};

use crate::frame::{TcFrame, XdpFrame};
use crate::maps::{Maps, STAGES_TC, STAGES_XDP, Stages};

/// Calls the program of a stage; comes back if there is none. A number that the verifier knows makes it a
/// plain jump, any other an indirect one, which no processor that avoids Spectre foretells: the stage
/// would not begin before the line of the table is there in which the connection is not.
///
/// # Safety
///
/// As of `ProgramArray::tail_call`; `map` is a map of stages.
#[inline(always)]
unsafe fn jump<const STAGE: u32>(ctx: *mut c_void, map: *const Stages) {
    // SAFETY: the helper number 12 takes these three.
    unsafe {
        asm!(
            "r3 = {stage}",
            "call 12",
            stage = const STAGE,
            inout("r1") ctx => _,
            inout("r2") map => _,
            out("r0") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
        );
    }
}

/// Hands a packet that is not steady on to the stage that it nearly always is for.
///
/// # Safety
///
/// As of [`jump`].
#[inline(always)]
unsafe fn jump_to(stage: Stage, ctx: *mut c_void, map: *const Stages) {
    // SAFETY: as above.
    unsafe {
        match stage {
            Stage::Open4 => jump::<{ Stage::Open4 as u32 }>(ctx, map),
            Stage::Open6 => jump::<{ Stage::Open6 as u32 }>(ctx, map),
            Stage::Rest4 => jump::<{ Stage::Rest4 as u32 }>(ctx, map),
            Stage::Rest6 => jump::<{ Stage::Rest6 as u32 }>(ctx, map),
            _ => {}
        }
    }
}

/// Carries out a verdict; `FIRST` says that no stage has come to it.
#[inline(always)]
fn on_xdp<const FIRST: bool>(
    ctx: &XdpContext,
    decide: impl FnOnce(&mut XdpFrame, &Maps) -> Verdict,
) -> u32 {
    let mut frame = XdpFrame { ctx: ctx.ctx };
    match decide(&mut frame, &Maps) {
        Verdict::Pass(_) | Verdict::Resolve { .. } | Verdict::Arrive => xdp_action::XDP_PASS,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        Verdict::Transmit { interface } if interface == frame.interface() => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only.
        Verdict::Transmit { interface } => unsafe { bpf_redirect(interface, 0) as u32 },
        Verdict::Next(stage) => {
            // SAFETY: nothing is left to be dropped.
            unsafe {
                if FIRST {
                    jump_to(stage, ctx.as_ptr(), &raw const STAGES_XDP);
                }
                STAGES_XDP.tail_call(ctx, stage as u32);
            }
            // This kernel did not take the stage: the packet is the stack's.
            xdp_action::XDP_PASS
        }
    }
}

/// Makes a redirected frame come in by the interface.
const INGRESS: u64 = 1;

/// As [`on_xdp`].
#[inline(always)]
fn on_tc<const FIRST: bool>(
    ctx: &TcContext,
    decide: impl FnOnce(&mut TcFrame, &Maps) -> Verdict,
) -> i32 {
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
            unsafe {
                if FIRST {
                    jump_to(stage, ctx.as_ptr(), &raw const STAGES_TC);
                }
                STAGES_TC.tail_call(ctx, stage as u32);
            }
            TC_ACT_UNSPEC
        }
    }
}

/// Defines the programs of one step for both bodies, or `Tc` alone, inlined into the frames that the
/// macros of aya put around them: see "BPF rules learned here" on the stack.
macro_rules! programs {
    ($xdp:ident, $tc:ident: $first:literal, $decide:expr) => {
        #[xdp(frags)]
        #[inline(always)]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            on_xdp::<$first>(&ctx, $decide)
        }

        programs! { Only $xdp, $tc: $first, $decide }
    };
    ($only:ident $xdp:ident, $tc:ident: $first:literal, $decide:expr) => {
        #[classifier]
        #[inline(always)]
        pub fn $tc(ctx: TcContext) -> i32 {
            on_tc::<$first>(&ctx, $decide)
        }
    };
}

/// Names what a stage's work is handed to.
macro_rules! begin {
    (Out) => {
        local::leaving
    };
    ($($only:ident)?) => {
        settle::<false, _, _>
    };
}

/// Defines the programs of all stages.
macro_rules! stage_programs {
    (
        once {$(
            $(#[$about_one:meta])*
            $one:ident $one_name:ident = $one_module:ident::$one_work:ident, $one_group:ident;
        )*}
        each {$(
            $(#[$about:meta])*
            $stage:ident: $four:ident $name4:ident, $six:ident $name6:ident
                = $module:ident::$work:ident, $group:ident $(, only $only:ident)?;
        )*}
    ) => {
        $(programs! {
            ${concat(rlvs_xdp_, $one_name)}, ${concat(rlvs_tc_, $one_name)}:
            false, |_, maps| $one_module::$one_work(maps)
        })*
        $(
            programs! {
                $($only)? ${concat(rlvs_xdp_, $name4)}, ${concat(rlvs_tc_, $name4)}:
                false, |frame, maps| begin!($($only)?)(frame, maps, |context, frame, _| {
                    $module::$work::<V4, _, _>(context, frame)
                })
            }
            programs! {
                $($only)? ${concat(rlvs_xdp_, $name6)}, ${concat(rlvs_tc_, $name6)}:
                false, |frame, maps| begin!($($only)?)(frame, maps, |context, frame, _| {
                    $module::$work::<V6, _, _>(context, frame)
                })
            }
        )*
    };
}

programs! { rlvs_xdp, rlvs_tc: true, process }

rlvs_datapath::stages!(stage_programs);

/// Hangs where frames leave, if there are real servers on this host.
#[classifier]
#[inline(always)]
pub fn rlvs_out(ctx: TcContext) -> i32 {
    on_tc::<false>(&ctx, local::depart)
}

/// Carries out `work` for the record that the frame consists of; see [`learn`].
#[inline(always)]
fn on_record(ctx: &XdpContext, work: impl FnOnce(&Maps, &[u64; learn::WORDS]) -> u32) -> u32 {
    let mut frame = XdpFrame { ctx: ctx.ctx };
    let Some(bytes) = frame.head::<{ learn::WORDS * 8 }>() else { return 0 };
    // SAFETY: as many bytes; a frame of a test run begins at a multiple of 8.
    work(&Maps, unsafe { &*(&raw const *bytes).cast() })
}

/// Defines programs that learn. User space runs them, no packet does.
macro_rules! learners {
    ($($name:ident: $work:expr;)*) => {$(
        #[xdp]
        #[inline(always)]
        pub fn $name(ctx: XdpContext) -> u32 {
            on_record(&ctx, $work)
        }
    )*};
}

learners! {
    rlvs_learn4: learn::connection::<V4, Maps, false>;
    rlvs_learn6: learn::connection::<V6, Maps, false>;
    rlvs_learn_wide4: learn::connection::<V4, Maps, true>;
    rlvs_learn_wide6: learn::connection::<V6, Maps, true>;
    rlvs_learn_for: learn::template::<Maps>;
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
