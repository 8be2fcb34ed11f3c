//! The timer: expiry and the estimator.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_loop, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start,
};
use rlvs_datapath::abi::{COUNTERS, IDS, SweepCursor};
use rlvs_datapath::connection::Context;
use rlvs_datapath::defence::{Levels, is_thinned};
use rlvs_datapath::sweep::{Job, SLOTS, WORD};
use rlvs_datapath::tables::{Tables, Time, bump};

use crate::maps::{self, Maps, SWEEP, Sweep};
use crate::once;

/// Time between two slices of work.
const TICK_NS: u64 = 8_000_000;
/// CLOCK_MONOTONIC.
const MONOTONIC: u64 = 1;

/// What the callbacks of one slice share.
#[repr(C)]
struct Slice {
    word: u32,
    family: u32,
    bit: u32,
    left: u32,
    /// Which groups are thinned out, as `Context::thinned` says.
    thinned: u32,
    kept: u32,
    groups: u64,
    removed: u64,
}

impl Slice {
    #[inline(always)]
    fn job(&self) -> Job {
        let thins = is_thinned(self.bit, self.thinned);
        Job { word: self.word, family: self.family as u8, thins }
    }
}

#[inline(always)]
fn with_context(work: impl FnOnce(&Context<'_, Maps>)) {
    if let Some(settings) = Maps.settings() {
        work(&Context { tables: &Maps, settings, now: Time::now(&Maps, settings) });
    }
}

extern "C" fn slot(index: u64, slice: *mut Slice) -> i64 {
    // SAFETY: bpf_loop hands on the slice that `group` was given.
    let slice = unsafe { &mut *slice };
    let swept = once::sweep(slice.job().number(), slice.bit.into(), index);
    slice.removed += swept & 0xffff_ffff;
    slice.left += (swept >> 32) as u32;
    0
}

extern "C" fn group(index: u64, slice: *mut Slice) -> i64 {
    let pointer = slice;
    // SAFETY: bpf_loop hands on the slice that `tick` made.
    let slice = unsafe { &mut *slice };
    let bit = index as u32 & (WORD - 1);
    if slice.groups >> bit & 1 == 0 {
        return 0;
    }
    slice.bit = bit;
    slice.left = 0;
    with_context(|context| context.begin_group(slice.job(), bit));
    // SAFETY: the callback takes an index and a slice.
    unsafe { bpf_loop(SLOTS, slot as *mut c_void, pointer.cast(), 0) };
    with_context(|context| context.end_group(slice.job(), bit, slice.left != 0));
    slice.kept += slice.left;
    0
}

/// What the callbacks of one look at a destination share.
#[repr(C)]
struct Sum {
    id: u64,
    counters: [u64; COUNTERS],
}

extern "C" fn row(index: u64, sum: *mut Sum) -> i64 {
    // SAFETY: bpf_loop hands on the sum that `look` made.
    let sum = unsafe { &mut *sum };
    with_context(|context| context.add_row(sum.id as u32, index as u32, &mut sum.counters));
    0
}

extern "C" fn look(index: u64, first: *mut u64) -> i64 {
    // SAFETY: bpf_loop hands on the number that `tick` made.
    let index = (unsafe { *first } as u32).wrapping_add(index as u32);
    with_context(|context| {
        if index >= IDS {
            context.estimate_service(index);
            return;
        }
        let mut sum = Sum { id: index.into(), counters: [0; COUNTERS] };
        let cpus = context.settings.cpus;
        // SAFETY: the callback takes an index and a sum.
        unsafe { bpf_loop(cpus, row as *mut c_void, (&raw mut sum).cast(), 0) };
        context.estimate_destination(index, &sum.counters);
    });
    0
}

/// Puts in force what follows from the pass that has ended, and begins to count anew.
#[inline(always)]
fn settle(context: &Context<'_, Maps>, cursor: &SweepCursor) {
    let levels = context.levels(cursor);
    // Every packet reads the settings: they are left alone while nothing changes.
    if levels != Levels::of(context.settings) {
        maps::set_levels(levels);
    }
    for filled in &cursor.filled {
        filled.set(0);
    }
}

extern "C" fn tick(_map: *mut c_void, _key: *mut u32, sweep: *mut Sweep) -> i32 {
    // SAFETY: the kernel hands on the element that holds the timer.
    let sweep = unsafe { &mut *sweep };
    with_context(|context| {
        sweep.cursor.now.set(context.now.0 as u64);
        if sweep.cursor.word.get() == 0 {
            settle(context, &sweep.cursor);
        }
        let job = context.next_job(&sweep.cursor);
        let mut slice = Slice {
            word: job.word,
            family: job.family as u32,
            bit: 0,
            left: 0,
            thinned: context.thinned(&sweep.cursor),
            kept: 0,
            groups: context.groups(job),
            removed: 0,
        };
        if slice.groups != 0 {
            // SAFETY: the callback takes an index and a slice.
            unsafe { bpf_loop(WORD, group as *mut c_void, (&raw mut slice).cast(), 0) };
            bump(&sweep.cursor.removed, slice.removed);
            let [of4, of6, of_wide] = &sweep.cursor.filled;
            let filled = match job.family {
                4 => of4,
                6 => of6,
                _ => of_wide,
            };
            bump(filled, slice.kept.into());
        }
        // SAFETY: the helper takes nothing and only reads.
        let share = context.next_share(&sweep.cursor, unsafe { bpf_ktime_get_ns() });
        let mut first = u64::from(share.first);
        // SAFETY: the callback takes an index and a number.
        unsafe { bpf_loop(share.count, look as *mut c_void, (&raw mut first).cast(), 0) };
    });
    // SAFETY: the timer of a map element that is there.
    unsafe { bpf_timer_start(&raw mut sweep.timer, TICK_NS, 0) };
    0
}

/// Starts the timer with this program's callback.
#[inline(always)]
pub fn arm() -> bool {
    let Some(sweep) = SWEEP.get_ptr_mut(0) else { return false };
    // SAFETY: the timer of a map element that is there. A timer that was initialised stays so.
    unsafe {
        let timer = &raw mut (*sweep).timer;
        bpf_timer_init(timer, (&raw const SWEEP).cast_mut().cast(), MONOTONIC);
        bpf_timer_set_callback(timer, tick as *mut c_void) == 0
            && bpf_timer_start(timer, TICK_NS, 0) == 0
    }
}
