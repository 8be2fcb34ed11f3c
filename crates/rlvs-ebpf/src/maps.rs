//! The maps of one namespace as BPF maps, and memory operations as BPF has them.

use core::arch::asm;
use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd};

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, ProgramArray};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_loop};
use aya_ebpf::macros::btf_map;
use rlvs_datapath::abi::{
    AllCounts, Base, CONNECTIONS4_DEFAULT, CONNECTIONS6_DEFAULT, CPUS, Connections4, Connections6,
    Counts, Destination, ENDPOINT4_BUCKETS, ENDPOINT6_BUCKETS, ESTIMATES, Endpoints4, Endpoints6,
    Errand, Estimate, FAVOURITES, FRAGMENT_BUCKETS, Favourites, Fragments, IDS, INTERFACE_BUCKETS,
    Interfaces, LOCK_KINDS, LOCKS, Limit, Line, MarkRules, OCCUPANCY_WORDS, OVERLOAD_WORDS,
    PRESENCE_WORDS, Pool, REASONS, RING_LINES, ROUTES, RingLine, Route, Row, SOURCE_BUCKETS,
    Schedule, Scratch, Service, Settings, Sources, SweepCursor, TIMER_BYTES, Totals, Tunnel,
    WIDE_DEFAULT, Wides, Word,
};
use rlvs_datapath::connection::{Key, Value};
use rlvs_datapath::defence::Levels;
use rlvs_datapath::ip::{V4, V6};
use rlvs_datapath::stage::Stage;
use rlvs_datapath::tables::{self, SPINS, Step, Tables};
use rlvs_datapath::wide;

use crate::once;

/// BPF_F_MMAPABLE: commands read and write through memory.
const MAPPED: usize = 1 << 10;
/// BPF_F_INNER_MAP: each book has as many lines as it needs.
const OF_ANY_LENGTH: usize = 1 << 12;

/// The sweep's timer with its cursor.
#[repr(C)]
pub struct Sweep {
    pub timer: bpf_timer,
    pub cursor: SweepCursor,
}

const _: () = assert!(core::mem::offset_of!(Sweep, cursor) == TIMER_BYTES);

// Sizes that depend on the machine (connections, CPUs) are set by the loader.
#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1, MAPPED> = Array::new();
#[btf_map(name = "connections4")]
static CONNECTIONS4: Array<Connections4, { CONNECTIONS4_DEFAULT as usize }, MAPPED> = Array::new();
#[btf_map(name = "connections6")]
static CONNECTIONS6: Array<Connections6, { CONNECTIONS6_DEFAULT as usize }, MAPPED> = Array::new();
#[btf_map(name = "wide")]
static WIDE: Array<Wides, { WIDE_DEFAULT as usize }, MAPPED> = Array::new();
#[btf_map(name = "marks")]
static MARKS: Array<MarkRules, 1, MAPPED> = Array::new();
#[btf_map(name = "pools")]
static POOLS: Array<Pool, 2, MAPPED> = Array::new();
#[btf_map(name = "scratch")]
static SCRATCH: Array<Scratch, { CPUS as usize }, MAPPED> = Array::new();
#[btf_map(name = "endpoints4")]
static ENDPOINTS4: Array<Endpoints4, { ENDPOINT4_BUCKETS as usize }, MAPPED> = Array::new();
#[btf_map(name = "endpoints6")]
static ENDPOINTS6: Array<Endpoints6, { ENDPOINT6_BUCKETS as usize }, MAPPED> = Array::new();
#[btf_map(name = "presence")]
static PRESENCE: Array<Word, { PRESENCE_WORDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "services")]
static SERVICES: Array<Service, { IDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "schedules")]
static SCHEDULES: Array<Schedule, { IDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "totals")]
static TOTALS: Array<Totals, { IDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "rings")]
static RINGS: Array<RingLine, { RING_LINES as usize }, MAPPED> = Array::new();
#[btf_map(name = "destinations")]
static DESTINATIONS: Array<Destination, { IDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "tunnels")]
static TUNNELS: Array<Tunnel, { IDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "counts")]
static COUNTS: Array<AllCounts, 1, MAPPED> = Array::new();
#[btf_map(name = "overloads")]
static OVERLOADS: Array<Word, { OVERLOAD_WORDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "errands")]
static ERRANDS: Array<Errand, { CPUS as usize }, MAPPED> = Array::new();
#[btf_map(name = "favourites")]
static FAVOURITE_ENTRIES: Array<Favourites, { FAVOURITES as usize }, MAPPED> = Array::new();
#[btf_map(name = "rows")]
static ROWS: Array<Row, { IDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "routes")]
static ROUTE_CACHE: Array<Route, { ROUTES as usize }, MAPPED> = Array::new();
#[btf_map(name = "interfaces")]
static INTERFACES: Array<Interfaces, { INTERFACE_BUCKETS as usize }, MAPPED> = Array::new();
#[btf_map(name = "fragments")]
static FRAGMENTS: Array<Fragments, { FRAGMENT_BUCKETS as usize }, MAPPED> = Array::new();
#[btf_map(name = "occupancy")]
static OCCUPANCY: Array<Word, { 3 * OCCUPANCY_WORDS as usize }, MAPPED> = Array::new();
#[btf_map(name = "locks")]
static LOCK_WORDS: Array<Word, { (LOCK_KINDS * LOCKS) as usize }, MAPPED> = Array::new();
#[btf_map(name = "reasons")]
static REASON_COUNTERS: Array<Word, { (CPUS * REASONS) as usize }, MAPPED> = Array::new();
#[btf_map(name = "limits")]
static LIMITS: Array<Limit, { CPUS as usize }, MAPPED> = Array::new();
#[btf_map(name = "sources")]
static SOURCES: Array<Sources, { SOURCE_BUCKETS as usize + 1 }, MAPPED> = Array::new();
/// The book in force, once there is one.
#[btf_map(name = "book")]
static BOOK: ArrayOfMaps<Book, 1> = ArrayOfMaps::new();
#[btf_map(name = "estimates")]
static ESTIMATED: Array<Estimate, { ESTIMATES as usize }, MAPPED> = Array::new();
#[btf_map(name = "bases")]
static BASES: Array<Base, { ESTIMATES as usize }, MAPPED> = Array::new();
#[btf_map(name = "sweep")]
pub static SWEEP: Array<Sweep, 1> = Array::new();

/// A map of stages.
pub type Stages = ProgramArray<{ Stage::ALL.len() }>;

/// The programs of the stages, by [`Stage`](rlvs_datapath::stage::Stage).
#[btf_map(name = "stages_xdp")]
pub static STAGES_XDP: Stages = ProgramArray::new();
#[btf_map(name = "stages_tc")]
pub static STAGES_TC: Stages = ProgramArray::new();

/// A book of access.
type Book = Array<Line, 1, { MAPPED | OF_ANY_LENGTH }>;

/// The maps. Keeps [`TOTALS`] and [`BASES`] too, which only the control plane uses.
#[derive(Clone, Copy)]
pub struct Maps;

impl Maps {
    /// Touches the maps that no packet needs, so that the loader makes them.
    #[inline(always)]
    pub fn keep() -> bool {
        TOTALS.get(0).is_some() && BASES.get(0).is_some()
    }
}

/// A word that somebody else must change first.
#[repr(C)]
struct Wait<'a> {
    word: &'a Word,
    old: u64,
    new: u64,
    done: u64,
}

extern "C" fn try_swap(_index: u64, wait: *mut Wait<'_>) -> i64 {
    // SAFETY: bpf_loop hands on the wait that `wait_to_swap` made.
    let wait = unsafe { &mut *wait };
    wait.done = Maps.swap(wait.word, wait.old, wait.new) as u64;
    wait.done as i64
}

extern "C" fn take_step<S: Step>(index: u64, state: *mut S) -> i64 {
    // SAFETY: bpf_loop hands on the state that `repeat` was given.
    let state = unsafe { &mut *state };
    i64::from(state.step(&Maps, index as u32))
}

/// A book, as a map is not ours to have traits.
#[repr(transparent)]
pub struct Pages(Book);

impl tables::Book for Pages {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        self.0.get(index)
    }
}

/// Puts in force what follows from how full the tables are.
#[inline(always)]
pub fn set_levels(levels: Levels) {
    let Some(settings) = SETTINGS.get_ptr_mut(0) else { return };
    // SAFETY: the element of a map, whose words commands write too while programs read them.
    unsafe {
        (&raw mut (*settings).drop_rate).write_volatile(levels.drop_rate);
        (&raw mut (*settings).strict).write_volatile(levels.strict);
        (&raw mut (*settings).scarce).write_volatile(levels.scarce);
    }
}

impl Tables for Maps {
    type Book = Pages;

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }
    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: the helper takes nothing and only reads.
        unsafe { bpf_jiffies64() }
    }
    #[inline(always)]
    fn cpu(&self) -> u32 {
        // SAFETY: the helper takes nothing and only reads.
        unsafe { bpf_get_smp_processor_id() as u32 }
    }
    #[inline(always)]
    fn connections4(&self, index: u32) -> Option<&Connections4> {
        CONNECTIONS4.get(index)
    }
    #[inline(always)]
    fn connections6(&self, index: u32) -> Option<&Connections6> {
        CONNECTIONS6.get(index)
    }
    #[inline(always)]
    fn wide(&self, index: u32) -> Option<&Wides> {
        WIDE.get(index)
    }
    #[inline(always)]
    fn scratch(&self, cpu: u32) -> Option<&Scratch> {
        SCRATCH.get(cpu)
    }
    #[inline(always)]
    fn marks(&self) -> Option<&MarkRules> {
        MARKS.get(0)
    }
    #[inline(always)]
    fn pool(&self, index: u32) -> Option<&Pool> {
        POOLS.get(index)
    }
    #[inline(always)]
    fn endpoints4(&self, index: u32) -> Option<&Endpoints4> {
        ENDPOINTS4.get(index)
    }
    #[inline(always)]
    fn endpoints6(&self, index: u32) -> Option<&Endpoints6> {
        ENDPOINTS6.get(index)
    }
    #[inline(always)]
    fn presence(&self, index: u32) -> Option<&Word> {
        PRESENCE.get(index)
    }
    #[inline(always)]
    fn service(&self, id: u32) -> Option<&Service> {
        SERVICES.get(id)
    }
    #[inline(always)]
    fn schedule(&self, id: u32) -> Option<&Schedule> {
        SCHEDULES.get(id)
    }
    #[inline(always)]
    fn ring_line(&self, index: u32) -> Option<&RingLine> {
        RINGS.get(index)
    }
    #[inline(always)]
    fn destination(&self, id: u32) -> Option<&Destination> {
        DESTINATIONS.get(id)
    }
    #[inline(always)]
    fn tunnel(&self, id: u32) -> Option<&Tunnel> {
        TUNNELS.get(id)
    }
    #[inline(always)]
    fn all_counts(&self) -> Option<&[Counts]> {
        Some(&COUNTS.get(0)?.of)
    }
    #[inline(always)]
    fn overload(&self, index: u32) -> Option<&Word> {
        OVERLOADS.get(index)
    }
    #[inline(always)]
    fn errand(&self, cpu: u32) -> Option<&Errand> {
        ERRANDS.get(cpu)
    }
    #[inline(always)]
    fn favourites(&self, index: u32) -> Option<&Favourites> {
        FAVOURITE_ENTRIES.get(index)
    }
    #[inline(always)]
    fn row(&self, index: u32) -> Option<&Row> {
        ROWS.get(index)
    }
    #[inline(always)]
    fn route(&self, index: u32) -> Option<&Route> {
        ROUTE_CACHE.get(index)
    }
    #[inline(always)]
    fn interfaces(&self, index: u32) -> Option<&Interfaces> {
        INTERFACES.get(index)
    }
    #[inline(always)]
    fn fragments(&self, index: u32) -> Option<&Fragments> {
        FRAGMENTS.get(index)
    }
    #[inline(always)]
    fn occupancy(&self, index: u32) -> Option<&Word> {
        OCCUPANCY.get(index)
    }
    #[inline(always)]
    fn lock(&self, index: u32) -> Option<&Word> {
        LOCK_WORDS.get(index)
    }
    #[inline(always)]
    fn reason(&self, index: u32) -> Option<&Word> {
        REASON_COUNTERS.get(index)
    }
    #[inline(always)]
    fn limit(&self, cpu: u32) -> Option<&Limit> {
        LIMITS.get(cpu)
    }
    #[inline(always)]
    fn book(&self) -> Option<&Pages> {
        let book = BOOK.get(0)?;
        // SAFETY: the wrapper has the layout of what it wraps.
        Some(unsafe { &*core::ptr::from_ref(book).cast() })
    }
    #[inline(always)]
    fn sources(&self, index: u32) -> Option<&Sources> {
        SOURCES.get(index)
    }
    #[inline(always)]
    fn estimate(&self, index: u32) -> Option<&Estimate> {
        ESTIMATED.get(index)
    }

    #[inline(always)]
    fn read(&self, word: &Word) -> u64 {
        // SAFETY: a reference to a word of a map is valid and aligned.
        unsafe { core::ptr::read_volatile(word.as_ptr()) }
    }
    #[inline(always)]
    fn write(&self, word: &Word, value: u64) {
        // SAFETY: as in `read`.
        unsafe { core::ptr::write_volatile(word.as_ptr(), value) }
    }
    #[inline(always)]
    fn swap(&self, word: &Word, old: u64, new: u64) -> bool {
        // SAFETY: as in `read`; the BPF instruction is fully ordered whatever is asked for.
        let (_, done) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                word.as_ptr(),
                old,
                new,
            )
        };
        done
    }
    #[inline(always)]
    fn set_bits(&self, word: &Word, bits: u64) {
        // SAFETY: as in `swap`.
        unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word.as_ptr(), bits) };
    }
    #[inline(always)]
    fn clear_bits(&self, word: &Word, bits: u64) {
        // SAFETY: as in `swap`.
        unsafe { atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(word.as_ptr(), !bits) };
    }
    #[inline(never)]
    fn wait_to_swap(&self, word: &Word, old: u64, new: u64) -> bool {
        let mut wait = Wait { word, old, new, done: 0 };
        // SAFETY: the callback takes an index and a wait. The verifier follows it once, however
        // often it runs.
        unsafe { bpf_loop(SPINS, try_swap as *mut c_void, (&raw mut wait).cast(), 0) };
        wait.done != 0
    }
    #[inline(always)]
    fn repeat<S: Step>(&self, times: u32, state: &mut S) {
        let step: extern "C" fn(u64, *mut S) -> i64 = take_step::<S>;
        // SAFETY: the callback takes an index and a state.
        unsafe { bpf_loop(times, step as *mut c_void, (&raw mut *state).cast(), 0) };
    }
    #[inline(always)]
    fn is_set(&self, mut word: u64) -> u64 {
        // SAFETY: arithmetic on two registers.
        unsafe {
            asm!(
                "{negative} = {word}",
                "{negative} = -{negative}",
                "{word} |= {negative}",
                "{word} >>= 63",
                word = inout(reg) word,
                negative = out(reg) _,
                options(pure, nomem, nostack)
            );
        }
        word
    }
    #[inline(always)]
    fn forget(&self, mut word: u64) -> u64 {
        // SAFETY: arithmetic on two registers, one of which may hold anything.
        unsafe {
            asm!(
                "{word} += {anything}",
                "{word} -= {anything}",
                word = inout(reg) word,
                anything = in(reg) self.jiffies(),
                options(pure, nomem, nostack)
            );
        }
        word
    }
    #[inline(always)]
    fn add(&self, word: &Word, value: u64) -> u64 {
        // SAFETY: as in `swap`. A relaxed addition becomes an instruction that returns nothing.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word.as_ptr(), value) }
    }

    #[inline(always)]
    fn halves(&self, word: &Word) -> (u64, u64) {
        let halves = word.as_ptr().cast::<u32>();
        // SAFETY: a word of a map; volatile, so that loads stay where they are. BPF is little-endian here,
        // and a load of 32 bits needs no instruction to clear the others.
        unsafe { (halves.read_volatile().into(), halves.add(1).read_volatile().into()) }
    }
    #[inline(always)]
    fn seek4(&self, key: &Key<V4>) -> u64 {
        let [places, _, low, ends] = key.numbers();
        once::seek4(places, low, ends)
    }
    #[inline(always)]
    fn seek6(&self, key: &Key<V6>) -> u64 {
        let [places, high, low, ends] = key.numbers();
        once::seek6(places, high, low, ends)
    }
    #[inline(always)]
    fn put4(&self, key: &Key<V4>, value: Value) -> u64 {
        let [places, _, low, ends] = key.numbers();
        once::put4(places, low, ends, value.0)
    }
    #[inline(always)]
    fn put6(&self, key: &Key<V6>, value: Value) -> u64 {
        let [places, high, low, ends] = key.numbers();
        once::put6(places, high, low, ends, value.0)
    }
    #[inline(always)]
    fn make_way4(&self, key: &Key<V4>) -> u64 {
        let [places, _, low, ends] = key.numbers();
        once::make_way4(places, low, ends)
    }
    #[inline(always)]
    fn make_way6(&self, key: &Key<V6>) -> u64 {
        let [places, high, low, ends] = key.numbers();
        once::make_way6(places, high, low, ends)
    }
    #[inline(always)]
    fn make_way_wide(&self, key: &wide::Key, flags: u8) -> u64 {
        let wide::Key { word, client, peer } = *key;
        // Of a request's key these bits are free.
        once::make_way_wide(word | u64::from(flags), client.0, client.1, peer.0, peer.1)
    }
    #[inline(always)]
    fn release_template(&self, high: u64, low: u64, value: u64) -> bool {
        once::release_template(high, low, value) != 0
    }
    #[inline(always)]
    fn consult(&self, high: u64, low: u64, service: u32) -> u32 {
        once::consult(high, low, service.into()) as u32
    }
    #[inline(always)]
    fn note_source(&self, high: u64, low: u64, value: Value) -> bool {
        once::note_source(high, low, value.0) != 0
    }
    #[inline(always)]
    fn is_overloaded(&self, id: u32) -> bool {
        once::is_overloaded(id.into()) != 0
    }
    #[inline(always)]
    fn look_for_peer(&self, sender: u64, first: u32) -> u32 {
        once::look_for_peer(sender, first.into()) as u32
    }
    #[inline(always)]
    fn unknown_peer(&self, first: u32) -> u32 {
        once::unknown_peer(first.into()) as u32
    }
}
