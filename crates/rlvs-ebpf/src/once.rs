//! Global functions: those that the verifier follows once for each program, however often they are
//! called. They take and return numbers, of which it knows nothing.
//!
//! Their names are not mangled: that is what makes them global. Each looks at all of its arguments, else
//! the compiler passes nothing for one, which the verifier refuses.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use rlvs_datapath::connection::{self, Context, Key, Value};
use rlvs_datapath::ip::{V4, V6};
use rlvs_datapath::schedulers;
use rlvs_datapath::sweep::Job;
use rlvs_datapath::wide;
use rlvs_wire::crc32c;

use crate::maps::Maps;

/// Defines global functions.
macro_rules! once {
    ($($name:ident as $symbol:literal ($($argument:ident),*) => $result:expr;)*) => {$(
        #[unsafe(export_name = $symbol)]
        #[inline(never)]
        pub extern "C" fn $name($($argument: u64),*) -> u64 {
            $result
        }
    )*};
}

once! {
    seek4 as "rlvs_seek4" (places, low, ends) =>
        connection::seek::<V4, Maps>(&Maps, &Key::from_numbers([places, 0, low, ends]));
    seek6 as "rlvs_seek6" (places, high, low, ends) =>
        connection::seek::<V6, Maps>(&Maps, &Key::from_numbers([places, high, low, ends]));
    put4 as "rlvs_put4" (places, low, ends, value) => {
        let key = Key::from_numbers([places, 0, low, ends]);
        connection::put::<V4, Maps>(&Maps, &key, Value(value))
    };
    put6 as "rlvs_put6" (places, high, low, ends, value) => {
        let key = Key::from_numbers([places, high, low, ends]);
        connection::put::<V6, Maps>(&Maps, &key, Value(value))
    };
    make_way4 as "rlvs_make_way4" (places, low, ends) =>
        with(|context| context.make_way::<V4>(&Key::from_numbers([places, 0, low, ends])));
    make_way6 as "rlvs_make_way6" (places, high, low, ends) =>
        with(|context| context.make_way::<V6>(&Key::from_numbers([places, high, low, ends])));
    make_way_wide as "rlvs_make_way_wide" (word, high, low, peer_high, peer_low) => {
        let (client, peer) = ((high, low), (peer_high, peer_low));
        let key = wide::Key { word: word & !0xff, client, peer };
        with(|context| context.make_way_wide(&key, word as u8))
    };
    release_template as "rlvs_release_template" (high, low, value) =>
        with(|context| context.release_template(high, low, Value(value)).into());
    consult as "rlvs_consult" (high, low, service) =>
        with(|context| context.judge(high, low, service as u32).into());
    note_source as "rlvs_note_source" (high, low, value) =>
        with(|context| context.note_source(high, low, Value(value)).into());
    sweep as "rlvs_sweep" (job, bit, slot) => with(|context| {
        let swept = context.sweep(Job::from_number(job), bit as u32, slot as u32);
        swept.removed | u64::from(swept.left) << 32
    });
    is_overloaded as "rlvs_is_overloaded" (id) =>
        schedulers::is_overloaded(&Maps, id as u32).into();
    look_for_peer as "rlvs_look_for_peer" (sender, first) =>
        with(|context| context.look_for_peer(sender, first as u32).into());
    unknown_peer as "rlvs_unknown_peer" (first) =>
        with(|context| context.unknown_peer(first as u32).into());
    follow_crc as "rlvs_follow_crc" (old, difference, bytes) =>
        old ^ multiply(difference, power(bytes as u32).into());
    multiply as "rlvs_multiply" (left, right) =>
        crc32c::product(left as u32, right as u32).into();
}

/// A power of x on its way.
#[repr(C)]
struct Power {
    power: u32,
    bytes: u32,
}

extern "C" fn step(index: u64, to: *mut Power) -> i64 {
    // SAFETY: bpf_loop hands on the power that `power` made.
    let to = unsafe { &mut *to };
    let square = multiply(to.power.into(), to.power.into());
    to.power = crc32c::step(square as u32, to.bytes as u16, index as u32);
    0
}

/// Computes a power of x. The verifier follows a callback few times, a loop at every turn.
#[inline(always)]
fn power(bytes: u32) -> u32 {
    let mut to = Power { power: crc32c::ONE, bytes };
    // SAFETY: the callback takes an index and a power.
    unsafe { bpf_loop(crc32c::STEPS, step as *mut c_void, (&raw mut to).cast(), 0) };
    to.power
}

#[inline(always)]
fn with(work: impl FnOnce(&Context<'_, Maps>) -> u64) -> u64 {
    Context::of(&Maps).map_or(0, |context| work(&context))
}
