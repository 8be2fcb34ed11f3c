//! The XDP and TC bodies: the object in the kernel, its maps in this process's memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use aya::maps::{Map, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rlvs_datapath::abi::{
    self, AllCounts, Connections4, Connections6, Counts, Destination, ENDPOINT4_BUCKETS,
    ENDPOINT6_BUCKETS, Endpoints4, Endpoints6, Errand, Estimate, FAVOURITES, FRAGMENT_BUCKETS,
    Favourites, Fragments, INTERFACE_BUCKETS, Interfaces, LOCK_KINDS, LOCKS, Limit, Line,
    MarkRules, OCCUPANCY_WORDS, OVERLOAD_WORDS, PRESENCE_WORDS, Pool, REASONS, ROUTES, RingLine,
    Route, Row, SOURCE_BUCKETS, Schedule, Service, Settings, Sources, Tunnel, Wides, Word,
};

use rlvs_datapath::schedulers::{self, Ring};
use rlvs_linux::dataplane::access;
use rlvs_linux::dataplane::stages::{self, Group};

use crate::host::{Book, HostTables, IDS, RING_LINES, SEGMENT};

/// A type of the maps' layout.
///
/// # Safety
/// `repr(C)`, integers and cells of integers only, no padding, a multiple of 8 bytes long.
unsafe trait Plain {}
// SAFETY: `rlvs_datapath::abi` lays them out so; their sizes are asserted there.
unsafe impl Plain for Settings {}
// SAFETY: as above.
unsafe impl Plain for Connections4 {}
// SAFETY: as above.
unsafe impl Plain for Connections6 {}
// SAFETY: as above.
unsafe impl Plain for Wides {}
// SAFETY: as above.
unsafe impl Plain for MarkRules {}
// SAFETY: as above.
unsafe impl Plain for Pool {}
// SAFETY: as above; the buckets of fragments have the same type. The endpoints of IPv6 have the layout of its connections.
unsafe impl Plain for Endpoints4 {}
// SAFETY: as above.
unsafe impl Plain for Service {}
// SAFETY: as above.
unsafe impl Plain for Schedule {}
// SAFETY: as above.
unsafe impl Plain for Destination {}
// SAFETY: as above.
unsafe impl Plain for Tunnel {}
// SAFETY: as above.
unsafe impl Plain for Counts {}
// SAFETY: as above.
unsafe impl Plain for RingLine {}
// SAFETY: as above.
unsafe impl Plain for Errand {}
// SAFETY: as above.
unsafe impl Plain for Favourites {}
// SAFETY: as above.
unsafe impl Plain for Row {}
// SAFETY: as above.
unsafe impl Plain for Route {}
// SAFETY: as above.
unsafe impl Plain for Interfaces {}
// SAFETY: as above.
unsafe impl Plain for Limit {}
// SAFETY: as above.
unsafe impl Plain for Estimate {}
// SAFETY: as above.
unsafe impl Plain for Sources {}
// SAFETY: as above.
unsafe impl Plain for Line {}
// SAFETY: an integer in a cell.
unsafe impl Plain for Cell<u64> {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

const _: () = assert!(size_of::<Connections6>() == size_of::<Endpoints6>());

fn bytes_of<T: Plain>(items: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, so every byte is initialised; nothing changes a cell while
    // the bytes are looked at, as this process does so in one thread and reads only here.
    unsafe { std::slice::from_raw_parts(items.as_ptr().cast(), size_of_val(items)) }
}

fn items_of<T: Plain>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        // SAFETY: a chunk is as long as `T`, and every pattern of bits is a value of it.
        .map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() })
        .collect()
}

/// The memory of an array map.
#[derive(Debug)]
struct Memory {
    words: &'static [AtomicU64],
}

impl Memory {
    fn new(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let length =
            NonZeroUsize::new(bytes.next_multiple_of(4096)).expect("a map holds something");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        // SAFETY: the mapping is that long, aligned to a page, and stays until `drop`, which takes
        // `words` with it; the kernel and this process change it by words.
        let words = unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), bytes / 8) };
        Ok(Self { words })
    }

    /// Returns the bytes, for when no program runs.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the same memory; callers look while nothing changes it.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 8) }
    }

    /// Writes bytes, a page at a time, and pages that have them already not at all: tables are large,
    /// and an edit changes little.
    fn write(&self, at: usize, bytes: &[u8]) {
        const PAGE: usize = 4096;
        let there = self.bytes()[at..].chunks(PAGE);
        let pages = self.words[at / 8..].chunks(PAGE / 8).zip(bytes.chunks(PAGE));
        for ((to, from), _) in
            pages.zip(there).filter(|((_, from), there)| !there.starts_with(from))
        {
            for (to, from) in to.iter().zip(from.as_chunks::<8>().0) {
                to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let start = self.words.as_ptr().cast_mut().cast();
        if let Some(start) = std::ptr::NonNull::new(start) {
            // SAFETY: the mapping of `new`, which nothing refers to any more.
            unsafe { munmap(start, (self.words.len() * 8).next_multiple_of(4096)) }.ok();
        }
    }
}

pub use rlvs_linux::dataplane::stages::Body;

/// A frame and how it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The bytes from the Ethernet header on.
    pub frame: &'a [u8],
    /// Interface index.
    pub interface: u32,
    /// TC only: the kernel will cut it into segments.
    pub segmented: bool,
    /// TC only: the mark that a program before ours has given.
    pub mark: u32,
    /// XDP only: there is no room before the frame.
    pub cramped: bool,
    /// TC only: the hardware has summed the packet, and the kernel checks afterwards that what it
    /// knows of the sum is still true.
    pub summed: bool,
}

impl<'a> Input<'a> {
    /// A plain frame.
    #[must_use]
    pub fn new(frame: &'a [u8], interface: u32) -> Self {
        Self { frame, interface, segmented: false, mark: 0, cramped: false, summed: false }
    }
}

/// Returns the ids of all maps that the kernel has, without opening one: a map of programs that
/// loses its last opener twice in quick succession is leaked by the kernel (seen with 6.18).
#[must_use]
pub fn map_ids() -> Vec<u32> {
    const NEXT_MAP: libc::c_long = 12;
    let (mut ids, mut attribute) = (Vec::new(), [0_u32; 4]);
    // SAFETY: the command reads the first word and writes the second.
    while unsafe {
        libc::syscall(libc::SYS_bpf, NEXT_MAP, attribute.as_mut_ptr(), size_of_val(&attribute))
    } == 0
    {
        ids.push(attribute[1]);
        attribute = [attribute[1], 0, 0, 0];
    }
    ids
}

/// Copies what is in a pinned array map.
///
/// # Panics
/// It is none, or may not be mapped.
#[must_use]
pub fn map_bytes(pin: &Path) -> Vec<u8> {
    let at = pin.display();
    let map = MapData::from_pin(pin).unwrap_or_else(|error| panic!("{at}: {error}"));
    let info = map.info().unwrap_or_else(|error| panic!("{at}: {error}"));
    let element = (info.value_size() as usize).next_multiple_of(8);
    let bytes = info.max_entries() as usize * element;
    let memory =
        Memory::new(map.fd().as_fd(), bytes).unwrap_or_else(|error| panic!("{at}: {error}"));
    memory.bytes().to_vec()
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What it returned.
    pub code: u32,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
}

/// `XDP_DROP`, `XDP_PASS`, `XDP_TX`, `XDP_REDIRECT`.
pub const XDP_CODES: [u32; 4] = [1, 2, 3, 4];
/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
pub const TC_CODES: [u32; 3] = [u32::MAX, 2, 7];
const OUT: &str = "rlvs_out";
const ARM_TRIES: u32 = 1000;
/// Bytes of metadata that leave no room before an XDP frame.
const METADATA: usize = 216;

/// The object, loaded, with its maps.
pub struct Bpf {
    ebpf: RwLock<Ebpf>,
    body: Body,
    maps: BTreeMap<&'static str, Memory>,
    entered: Mutex<[Vec<u32>; 2]>,
    book: Mutex<Option<Book>>,
}

/// Returns where the object is: in the folder that `RLVS_BPF_OBJECT_DIR` names, else beside its
/// source.
fn object() -> PathBuf {
    let folder = std::env::var_os("RLVS_BPF_OBJECT_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/rlvs-ebpf/object"),
        PathBuf::from,
    );
    folder.join("rlvs.bpf.o")
}

impl Bpf {
    /// Loads the programs of a body, with maps of the sizes that `settings` say, all empty.
    #[must_use]
    pub fn load(settings: &Settings, body: Body) -> Self {
        let (connections4, connections6) =
            (settings.connections4_mask + 1, settings.connections6_mask + 1);
        // Name, elements, bytes an element: the kernel lays elements out at multiples of 8.
        let maps = [
            ("settings", 1, size_of::<Settings>()),
            ("connections4", connections4, size_of::<Connections4>()),
            ("connections6", connections6, size_of::<Connections6>()),
            ("wide", settings.wide_mask + 1, size_of::<Wides>()),
            ("marks", 1, size_of::<MarkRules>()),
            ("pools", 2, size_of::<Pool>()),
            ("endpoints4", ENDPOINT4_BUCKETS, size_of::<Endpoints4>()),
            ("endpoints6", ENDPOINT6_BUCKETS, size_of::<Endpoints6>()),
            ("presence", PRESENCE_WORDS, size_of::<Word>()),
            ("services", IDS, size_of::<Service>()),
            ("schedules", IDS, size_of::<Schedule>()),
            ("rings", RING_LINES, size_of::<RingLine>()),
            ("destinations", IDS, size_of::<Destination>()),
            ("tunnels", IDS, size_of::<Tunnel>()),
            ("counts", 1, size_of::<AllCounts>()),
            ("overloads", OVERLOAD_WORDS, size_of::<Word>()),
            ("errands", settings.cpus, size_of::<Errand>()),
            ("favourites", FAVOURITES, size_of::<Favourites>()),
            ("rows", IDS * settings.cpus, size_of::<Row>()),
            ("routes", ROUTES * settings.cpus, size_of::<Route>()),
            ("interfaces", INTERFACE_BUCKETS, size_of::<Interfaces>()),
            ("fragments", FRAGMENT_BUCKETS, size_of::<Fragments>()),
            ("occupancy", 3 * OCCUPANCY_WORDS, size_of::<Word>()),
            ("locks", LOCK_KINDS * LOCKS, size_of::<Word>()),
            ("reasons", REASONS * settings.cpus, size_of::<Word>()),
            ("limits", settings.cpus, size_of::<Limit>()),
            ("sources", SOURCE_BUCKETS + 1, size_of::<Sources>()),
            ("estimates", abi::ESTIMATES, size_of::<Estimate>()),
        ];
        let mut loader = EbpfLoader::new();
        for &(name, elements, _) in &maps {
            loader.map_max_entries(name, elements);
        }
        let path = object();
        let mut ebpf = loader
            .load_file(&path)
            .unwrap_or_else(|error| panic!("loading {}: {error:?}", path.display()));
        let others: &[&str] = if body == Body::Tc { &[OUT] } else { &[] };
        // The others are dear, and few tests need them.
        let groups = [Group::Ordinary, Group::Unusual, Group::Peers, Group::Clamps, Group::Tunnels];
        let all: Vec<_> = groups.into_iter().flat_map(Group::stages).collect();
        let missing = stages::load(&mut ebpf, &[body], &all, others);
        let missing = missing.unwrap_or_else(|error| panic!("loading {body:?}: {error}"));
        assert_eq!(missing, [""; 0], "stages that this kernel does not take");
        let maps = maps.map(|(name, elements, bytes)| {
            let map = ebpf.map(name).unwrap_or_else(|| panic!("no map {name}"));
            let Map::Array(data) = map else { panic!("{name} is not an array") };
            let memory = Memory::new(data.fd().as_fd(), elements as usize * bytes);
            (name, memory.unwrap_or_else(|error| panic!("mapping {name}: {error}")))
        });
        Self {
            ebpf: RwLock::new(ebpf),
            body,
            maps: maps.into(),
            entered: Mutex::default(),
            book: Mutex::default(),
        }
    }

    /// Loads a group of stages unless it is there.
    fn need(&self, group: Group) {
        let is_there = |ebpf: &Ebpf| stages::is_loaded(ebpf, self.body, group);
        if is_there(&self.ebpf.read().expect("no thread panicked")) {
            return;
        }
        let mut ebpf = self.ebpf.write().expect("no thread panicked");
        if !is_there(&ebpf) {
            let missing = stages::load_group(&mut ebpf, self.body, group);
            let missing = missing.unwrap_or_else(|error| panic!("loading {group:?}: {error}"));
            assert_eq!(missing, [""; 0], "stages that this kernel does not take");
        }
    }

    /// Loads what the control plane would load for such tables.
    fn need_for(&self, tables: &HostTables) {
        let special = |service: &Service| service.flags & abi::service_flag::SPECIAL != 0;
        let apart = tables.settings.flags & abi::settings_flag::WIDE != 0;
        let tells = tables.settings.flags & abi::settings_flag::TELL_SERVERS != 0;
        let adopts = tables.settings.flags & abi::settings_flag::SCHEDULE_ERRORS != 0;
        if apart || tells || adopts || tables.services.iter().any(special) {
            self.need(Group::Special);
        }
        if apart {
            self.need(Group::Strange);
        }
        // Others meet such packets too; see `run`.
        let associates =
            |service: &Service| service.protocol == rlvs_wire::sctp::PROTOCOL || service.mark != 0;
        if tables.services.iter().any(associates) {
            self.need(Group::Associations);
        }
        if adopts {
            self.need(Group::Adopt);
        }
        let guarded = |service: &Service| service.flags & abi::service_flag::GUARDED != 0;
        if tables.settings.drop_rate != 0 || tables.services.iter().any(guarded) {
            self.need(Group::Guard);
        }
        let sip = |service: &Service| service.flags & abi::service_flag::SIP != 0;
        if tables.services.iter().any(sip) {
            self.need(Group::Sip);
        }
        if tables.destinations.iter().any(|to| to.method == abi::method::MASQUERADE) {
            self.need(Group::Here);
        }
        let full = |service: &Service| service.flags & abi::service_flag::FULL != 0;
        if tables.services.iter().any(full) {
            self.need(Group::FullNat);
        }
        let searches = |schedule: &Schedule| {
            let ring = Ring(schedule.ring.get());
            ring.0 != 0 && schedulers::searches(ring.scheduler(), ring.flags())
        };
        if tables.schedules.iter().any(searches)
            || tables.destinations.iter().any(|to| to.upper != 0)
        {
            self.need(Group::Search);
        }
    }

    fn memory(&self, name: &str) -> &Memory {
        self.maps.get(name).unwrap_or_else(|| panic!("no map {name}"))
    }

    /// Makes every map equal to `tables`.
    pub fn push(&self, tables: &HostTables) {
        self.need_for(tables);
        self.push_book(tables);
        for (name, bytes) in dense(tables) {
            self.memory(name).write(0, bytes);
        }
        let (destinations, services) = tables.estimates.split_at(IDS as usize);
        let first = abi::IDS as usize * size_of::<Estimate>();
        self.memory("estimates").write(0, bytes_of(destinations));
        self.memory("estimates").write(first, bytes_of(services));
        let mut entered = self.entered.lock().expect("no thread panicked");
        let [four, six] = &mut *entered;
        let (memory4, memory6) = (self.memory("endpoints4"), self.memory("endpoints6"));
        for place in four.drain(..) {
            memory4.write(place as usize * 64, &[0; 64]);
        }
        for place in six.drain(..) {
            memory6.write(place as usize * 128, &[0; 128]);
        }
        for (&place, bucket) in &tables.endpoints4 {
            memory4.write(place as usize * 64, bytes_of(std::slice::from_ref(bucket)));
            four.push(place);
        }
        for (&place, bucket) in &tables.endpoints6 {
            memory6.write(place as usize * 128, bytes_of(std::slice::from_ref(bucket)));
            six.push(place);
        }
    }

    /// Puts the book of `tables` in force. A book stays the one that was pushed: only a new one is a
    /// new map.
    fn push_book(&self, tables: &HostTables) {
        let mut known = self.book.lock().expect("no thread panicked");
        if *known == tables.book {
            return;
        }
        known.clone_from(&tables.book);
        let lines =
            tables.book.as_ref().map_or_else(|| vec![Line::default()], |book| book.0.clone());
        let ebpf = self.ebpf.read().expect("no thread panicked");
        let Some(Map::ArrayOfMaps(books)) = ebpf.map("book") else { panic!("no map of books") };
        access::write_book(books.fd().as_fd(), &lines).expect("a book");
    }

    /// Makes `tables` equal to every map that programs write.
    pub fn pull(&self, tables: &mut HostTables) {
        fn read<T: Plain>(bpf: &Bpf, name: &str) -> Vec<T> {
            let words = bpf.memory(name).words.iter();
            let words: Vec<u64> = words.map(|word| word.load(Ordering::Relaxed)).collect();
            items_of(bytes_of(&words))
        }
        tables.connections4 = read(self, "connections4");
        tables.connections6 = read(self, "connections6");
        tables.wide = read(self, "wide");
        tables.schedules = read(self, "schedules");
        tables.counts = read(self, "counts");
        tables.counts.truncate(IDS as usize);
        tables.overloads = read(self, "overloads");
        tables.errands = read(self, "errands");
        tables.favourites = read(self, "favourites");
        tables.rows = read(self, "rows");
        tables.routes = read(self, "routes");
        tables.fragments = read(self, "fragments");
        tables.occupancy = read(self, "occupancy");
        tables.locks = read(self, "locks");
        tables.reasons = read(self, "reasons");
        tables.limits = read(self, "limits");
        tables.sources = read(self, "sources");
        let mut estimates: Vec<Estimate> = read(self, "estimates");
        let services = estimates.split_off(abi::IDS as usize);
        estimates.truncate(IDS as usize);
        estimates.extend(services.into_iter().take(IDS as usize));
        tables.estimates = estimates;
    }

    /// Returns the settings, which the sweep writes too.
    ///
    /// # Panics
    /// The map has another size.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let words = self.memory("settings").words.iter();
        let words: Vec<u64> = words.map(|word| word.load(Ordering::Relaxed)).collect();
        items_of(bytes_of(&words)).pop().expect("one element")
    }

    /// Writes the settings alone.
    pub fn set(&self, settings: &Settings) {
        self.memory("settings").write(0, bytes_of(std::slice::from_ref(settings)));
    }

    /// Says where a map that programs write differs from `tables`; `all` looks at the large ones
    /// too.
    #[must_use]
    pub fn difference(&self, tables: &HostTables, all: bool) -> Option<String> {
        // The occupancy map is long, the first words are all that a small table uses.
        let occupied = |from: u32| &tables.occupancy[from as usize..][..16];
        let mut pairs: Vec<(&str, usize, usize, &[u8])> = vec![
            ("connections4", 128, 0, bytes_of(&tables.connections4)),
            ("connections6", 128, 0, bytes_of(&tables.connections6)),
            ("wide", 64, 0, bytes_of(&tables.wide)),
            ("schedules", 64, 0, bytes_of(&tables.schedules)),
            ("counts", 16, 0, bytes_of(&tables.counts)),
            ("overloads", 8, 0, bytes_of(&tables.overloads)),
            ("errands", 64, 0, bytes_of(&tables.errands)),
            ("favourites", 256, 0, bytes_of(&tables.favourites)),
            ("rows", 64, 0, bytes_of(&tables.rows)),
            ("reasons", 8, 0, bytes_of(&tables.reasons)),
            ("limits", 64, 0, bytes_of(&tables.limits)),
            ("sources", 128, 0, bytes_of(&tables.sources)),
            ("fragments", 64, 0, bytes_of(&tables.fragments)),
            ("occupancy", 8, 0, bytes_of(occupied(0))),
            ("occupancy", 8, 8 * OCCUPANCY_WORDS as usize, bytes_of(occupied(OCCUPANCY_WORDS))),
            (
                "occupancy",
                8,
                16 * OCCUPANCY_WORDS as usize,
                bytes_of(occupied(2 * OCCUPANCY_WORDS)),
            ),
        ];
        if all {
            pairs.push(("routes", 64, 0, bytes_of(&tables.routes)));
            pairs.push(("locks", 8, 0, bytes_of(&tables.locks)));
            pairs.push(("occupancy", 8, 0, bytes_of(&tables.occupancy)));
        }
        pairs.into_iter().find_map(|(name, size, from, host)| {
            let kernel = &self.memory(name).bytes()[from..from + host.len()];
            if kernel == host {
                return None;
            }
            let element =
                kernel.chunks(size).zip(host.chunks(size)).position(|(one, other)| one != other)?;
            let range = element * size..(element + 1) * size;
            let (kernel, host) = (&kernel[range.clone()], &host[range]);
            Some(format!("{name}[{element}] is\n{kernel:02x?} in the kernel and\n{host:02x?} here"))
        })
    }

    /// Runs a program on a frame.
    ///
    /// # Errors
    /// The kernel does not run programs on such a frame.
    pub fn run(&self, body: Body, input: &Input<'_>) -> io::Result<Ran> {
        if is_association(input.frame) {
            self.need(Group::Associations);
        }
        if body == Body::Tc {
            return self.with("rlvs_tc", |program| run_tc(program, input));
        }
        let mut data = vec![0; if input.cramped { METADATA } else { 0 }];
        let metadata = data.len() as u32;
        data.extend_from_slice(input.frame);
        let mut out = vec![0; data.len() + 512];
        let context = xdp_context(input.interface, metadata, data.len() as u32);
        let options = TestRunOptions {
            data_in: Some(&data),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let ran = self.with("rlvs_xdp", |program: &Xdp| program.test_run(options));
        let ran = ran.map_err(io::Error::other)?;
        out.truncate(ran.data_size_out as usize);
        Ok(Ran { code: ran.return_value, bytes: out.split_off(metadata as usize) })
    }

    /// Runs the program for frames that leave, which is loaded with [`Body::Tc`].
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_out(&self, input: &Input<'_>) -> io::Result<Ran> {
        self.need(Group::Said);
        self.with(OUT, |program| run_tc(program, input))
    }

    /// Runs `rlvs_arm` once.
    pub fn arm(&mut self) {
        let ebpf = self.ebpf.get_mut().expect("no thread panicked");
        stages::load_program(ebpf, "rlvs_arm").expect("loading rlvs_arm");
        // As whoever loads it for use: Linux 6.18 may have no memory for a timer at once.
        let is_armed = (0..ARM_TRIES).any(|_| {
            let options = TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::default() };
            let ran = self.with("rlvs_arm", |program: &Xdp| program.test_run(options));
            ran.expect("running rlvs_arm").return_value == 2
        });
        assert!(is_armed, "rlvs_arm");
    }

    fn with<P, R>(&self, name: &str, work: impl FnOnce(&P) -> R) -> R
    where
        for<'a> &'a P: TryFrom<&'a aya::programs::Program>,
    {
        let ebpf = self.ebpf.read().expect("no thread panicked");
        let program = ebpf.program(name).unwrap_or_else(|| panic!("no program {name}"));
        work(<&P>::try_from(program).unwrap_or_else(|_| panic!("{name} is of another type")))
    }
}

/// Returns whether a frame is for the stages of associations.
fn is_association(frame: &[u8]) -> bool {
    let protocol = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23),
        Some([0x86, 0xdd]) => frame.get(20),
        _ => None,
    };
    protocol.is_some_and(|&protocol| {
        [rlvs_wire::sctp::PROTOCOL, rlvs_wire::ipsec::AH, rlvs_wire::ipsec::ESP].contains(&protocol)
    })
}

/// Runs a TC program on a frame.
///
/// # Errors
/// The kernel does not run programs on such a frame, or what it knows of the sum has become wrong.
pub fn run_tc(program: &SchedClassifier, input: &Input<'_>) -> io::Result<Ran> {
    let mut out = vec![0; input.frame.len() + 512];
    let context = tc_context(input.interface, input.mark, input.segmented);
    let (code, length) = if input.summed {
        run_summed(program, input.frame, &mut out, &context)?
    } else {
        let options = TestRunOptions {
            data_in: Some(input.frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let ran = program.test_run(options).map_err(io::Error::other)?;
        (ran.return_value, ran.data_size_out)
    };
    out.truncate(length as usize);
    Ok(Ran { code, bytes: out })
}

/// As `aya`'s test run, with a flag that it does not have.
fn run_summed(
    program: &SchedClassifier,
    data: &[u8],
    out: &mut [u8],
    context: &[u8],
) -> io::Result<(u32, u32)> {
    #[repr(C)]
    struct TestRunAttribute {
        program: u32,
        result: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;
    let program = program.fd().map_err(io::Error::other)?;
    let mut attribute = TestRunAttribute {
        program: program.as_fd().as_raw_fd() as u32,
        result: 0,
        data_size_in: data.len() as u32,
        data_size_out: out.len() as u32,
        data_in: data.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
        context_size_in: context.len() as u32,
        context_size_out: 0,
        context_in: context.as_ptr() as u64,
        context_out: 0,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        cpu: 0,
        batch_size: 0,
        padding: 0,
    };
    // SAFETY: the attribute of this command; the buffers it points to outlive the call and are
    // as long as it says.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attribute,
            size_of::<TestRunAttribute>(),
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((attribute.result, attribute.data_size_out))
}

/// Returns the maps but the endpoints as bytes.
fn dense(tables: &HostTables) -> Vec<(&'static str, &[u8])> {
    vec![
        ("settings", bytes_of(std::slice::from_ref(&tables.settings))),
        ("connections4", bytes_of(&tables.connections4)),
        ("connections6", bytes_of(&tables.connections6)),
        ("wide", bytes_of(&tables.wide)),
        ("marks", bytes_of(std::slice::from_ref(&tables.marks))),
        ("pools", bytes_of(&tables.pools)),
        ("presence", bytes_of(&tables.presence)),
        ("services", bytes_of(&tables.services)),
        ("schedules", bytes_of(&tables.schedules)),
        ("rings", bytes_of(&tables.rings)),
        ("destinations", bytes_of(&tables.destinations)),
        ("tunnels", bytes_of(&tables.tunnels)),
        ("counts", bytes_of(&tables.counts)),
        ("overloads", bytes_of(&tables.overloads)),
        ("errands", bytes_of(&tables.errands)),
        ("favourites", bytes_of(&tables.favourites)),
        ("rows", bytes_of(&tables.rows)),
        ("routes", bytes_of(&tables.routes)),
        ("interfaces", bytes_of(&tables.interfaces)),
        ("fragments", bytes_of(&tables.fragments)),
        ("occupancy", bytes_of(&tables.occupancy)),
        ("locks", bytes_of(&tables.locks)),
        ("reasons", bytes_of(&tables.reasons)),
        ("limits", bytes_of(&tables.limits)),
        ("sources", bytes_of(&tables.sources)),
    ]
}

/// Lays out `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, queue, egress_ifindex.
fn xdp_context(interface: u32, data: u32, data_end: u32) -> Vec<u8> {
    [data, data_end, 0, interface, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Lays out `struct __sk_buff`.
fn tc_context(interface: u32, mark: u32, segmented: bool) -> Vec<u8> {
    let mut context = vec![0; 192];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    let size = if segmented { SEGMENT } else { 0 };
    context[176..180].copy_from_slice(&size.to_ne_bytes());
    context
}
