//! The host body: packets in byte vectors, maps on the heap, a routing table in a map.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rlvs_datapath::abi::{
    self, Connections4, Connections6, Counts, Destination, Endpoints4, Endpoints6, Errand,
    Estimate, FAVOURITES, FRAGMENT_BUCKETS, Favourites, Fragments, Hop, INTERFACE_BUCKETS,
    Interfaces, LOCK_KINDS, LOCKS, Limit, Line, MarkRules, OCCUPANCY_WORDS, OVERLOAD_WORDS,
    PRESENCE_WORDS, Pool, REASONS, ROUTES, RingLine, Route, Row, SOURCE_BUCKETS, Schedule, Scratch,
    Service, Settings, Sources, Tunnel, Wides, Word,
};
use rlvs_datapath::frame::{Answer, Frame, Growth, OFFSETS, Query, Verdict};
use rlvs_datapath::process::process;
use rlvs_datapath::stage::go_on;
use rlvs_datapath::tables::{self, Tables};
use rlvs_datapath::tunnel::{self, Brief};

/// Service and destination ids of a test's table; less than [`rlvs_datapath::abi::IDS`], so that
/// whole tables can be compared after every packet.
pub const IDS: u32 = 128;
/// Bytes of payload in each segment of a frame that the kernel will cut.
pub const SEGMENT: u32 = 1000;
/// Ring lines of a test's table.
pub const RING_LINES: u32 = 1024;

/// Where the routing table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To a neighbour whose MAC address is known.
    Hop {
        /// Interface index.
        interface: u32,
        /// The neighbour's MAC address.
        neighbour: [u8; 6],
        /// The interface's MAC address.
        own: [u8; 6],
        /// Largest IP packet.
        mtu: u32,
    },
    /// To a neighbour whose MAC address is not known: the address itself.
    Unresolved {
        /// Interface index.
        interface: u32,
    },
    /// Here, or nowhere.
    NotForwarded,
    /// Forbidden.
    Unreachable,
}

/// A routing table with its neighbours: the longest prefix decides.
#[derive(Clone, Debug, Default)]
pub struct Routes(BTreeMap<(IpAddr, u8), Way>);

impl Routes {
    /// Adds a way to all addresses that begin with the first `bits` of `address`.
    pub fn insert(&mut self, address: IpAddr, bits: u8, way: Way) {
        self.0.insert((network_of(address, bits), bits), way);
    }

    /// Returns the way to an address.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Way {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest)
            .rev()
            .find_map(|bits| self.0.get(&(network_of(address, bits), bits)))
            .copied()
            .unwrap_or(Way::NotForwarded)
    }
}

fn network_of(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

/// Reads an address as maps hold it.
#[must_use]
pub fn address_of(family: u32, bytes: &[u8; 16]) -> IpAddr {
    if family == 4 {
        let [a, b, c, d, ..] = *bytes;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(*bytes))
    }
}

/// A frame in a byte vector; `RESOLVES` as TC does, or not, as XDP does not.
#[derive(Clone, Debug)]
pub struct HostFrame<'a, const RESOLVES: bool> {
    /// The bytes from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Index of the interface it came in by.
    pub interface: u32,
    /// Whether the kernel will cut it into segments.
    pub segmented: bool,
    /// The mark that the packet has.
    pub mark: u32,
    /// Bytes that may be put before the first.
    pub headroom: usize,
    /// The routing table.
    pub routes: &'a Routes,
}

impl<'a, const RESOLVES: bool> HostFrame<'a, RESOLVES> {
    /// Makes a frame with plenty of room before it.
    #[must_use]
    pub fn new(bytes: &[u8], interface: u32, routes: &'a Routes) -> Self {
        Self { bytes: bytes.to_vec(), interface, segmented: false, mark: 0, headroom: 256, routes }
    }
}

impl<const R: bool> Frame for HostFrame<'_, R> {
    const RESOLVES: bool = R;

    fn interface(&self) -> u32 {
        self.interface
    }
    fn mark(&self) -> u32 {
        self.mark
    }
    fn length(&self) -> usize {
        self.bytes.len()
    }
    fn head<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.bytes.first_chunk_mut()
    }
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let bytes = self.bytes.get_mut(offset & (OFFSETS - 1)..)?;
        bytes.first_chunk_mut()
    }
    fn byte(&mut self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }
    fn reframe(&mut self, by: usize, length: usize) -> Option<()> {
        self.headroom = self.headroom.checked_sub(by)?;
        // What the kernel leaves there is not ours to rely on.
        self.bytes.splice(0..0, std::iter::repeat_n(0xa5, by));
        self.bytes.resize(length, 0xa5);
        Some(())
    }
    fn grow(&mut self, by: usize, _: Growth) -> Option<()> {
        self.headroom = self.headroom.checked_sub(by)?;
        // TC keeps the Ethernet header where XDP has old bytes.
        let at = if R { 14 } else { 0 };
        self.bytes.splice(at..at, std::iter::repeat_n(0xa5, by));
        Some(())
    }
    fn wrap(&mut self, tunnel: &Tunnel, inner: Brief) -> Option<()> {
        tunnel::wrap(self, tunnel, inner)
    }
    fn segment(&mut self, length: u32, headers: impl FnOnce(&mut Self) -> u32) -> u32 {
        if self.segmented { headers(self) + SEGMENT } else { length }
    }
    fn query(&mut self, query: &Query, hop: &Cell<Hop>) -> Answer {
        let address = address_of(query.family, &query.target);
        match self.routes.find(address) {
            Way::Hop { interface, neighbour, own, mtu } => {
                hop.set(Hop::new(interface, neighbour, own, mtu, query.now));
                Answer::Hop
            }
            Way::Unresolved { interface } => {
                let (words, _) = query.target.as_chunks::<4>();
                let mut address = [0; 4];
                for (word, bytes) in address.iter_mut().zip(words) {
                    *word = u32::from_ne_bytes(*bytes);
                }
                hop.set(Hop::unresolved(interface, query.family == 6, address));
                Answer::Unresolved
            }
            Way::NotForwarded => Answer::NotForwarded,
            Way::Unreachable => Answer::Unreachable,
        }
    }
}

/// A book of access on the heap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book(pub Vec<Line>);

impl tables::Book for Book {
    fn line(&self, index: u32) -> Option<&Line> {
        self.0.get(index as usize)
    }
}

/// What another CPU does while one is at work.
type Work = Box<dyn FnOnce(&HostTables)>;

/// What another CPU does between two steps of a packet's: before so many more compare-and-swaps.
#[derive(Default)]
pub struct Meanwhile(RefCell<Option<(u32, Work)>>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Meanwhile")
    }
}

impl Meanwhile {
    /// Has `work` done once, when `swaps` compare-and-swaps have been made and before the next.
    pub fn set(&self, swaps: u32, work: impl FnOnce(&HostTables) + 'static) {
        self.0.replace(Some((swaps, Box::new(work))));
    }

    /// Returns whether what was set has not been done, and forgets it.
    pub fn is_left(&self) -> bool {
        self.0.take().is_some()
    }

    /// Counts a compare-and-swap.
    fn step(&self, tables: &HostTables) {
        let work = match &mut *self.0.borrow_mut() {
            Some((left, _)) if *left > 0 => {
                *left -= 1;
                return;
            }
            due => due.take(),
        };
        if let Some((_, work)) = work {
            work(tables);
        }
    }
}

/// The maps on the heap. Endpoint buckets that hold nothing are not kept.
#[derive(Debug)]
pub struct HostTables {
    /// Map `settings`.
    pub settings: Settings,
    /// The clock.
    pub jiffies: Cell<u64>,
    /// The CPU.
    pub cpu: Cell<u32>,
    /// Map `connections4`.
    pub connections4: Vec<Connections4>,
    /// Map `connections6`.
    pub connections6: Vec<Connections6>,
    /// Map `wide`.
    pub wide: Vec<Wides>,
    /// Map `marks`.
    pub marks: MarkRules,
    /// Map `pools`.
    pub pools: Vec<Pool>,
    /// Map `scratch`.
    pub scratch: Vec<Scratch>,
    /// Map `endpoints4`.
    pub endpoints4: BTreeMap<u32, Endpoints4>,
    /// Map `endpoints6`.
    pub endpoints6: BTreeMap<u32, Endpoints6>,
    /// Map `presence`.
    pub presence: Vec<Word>,
    /// Map `services`.
    pub services: Vec<Service>,
    /// Map `schedules`.
    pub schedules: Vec<Schedule>,
    /// Map `rings`.
    pub rings: Vec<RingLine>,
    /// Map `destinations`.
    pub destinations: Vec<Destination>,
    /// Map `tunnels`.
    pub tunnels: Vec<Tunnel>,
    /// Map `counts`.
    pub counts: Vec<Counts>,
    /// Map `overloads`.
    pub overloads: Vec<Word>,
    /// Map `errands`.
    pub errands: Vec<Errand>,
    /// Map `favourites`.
    pub favourites: Vec<Favourites>,
    /// Map `rows`.
    pub rows: Vec<Row>,
    /// Map `routes`.
    pub routes: Vec<Route>,
    /// Map `interfaces`.
    pub interfaces: Vec<Interfaces>,
    /// Map `fragments`.
    pub fragments: Vec<Fragments>,
    /// Map `occupancy`.
    pub occupancy: Vec<Word>,
    /// Map `locks`.
    pub locks: Vec<Word>,
    /// Map `reasons`.
    pub reasons: Vec<Word>,
    /// Map `limits`.
    pub limits: Vec<Limit>,
    /// The book of access, if there is one.
    pub book: Option<Book>,
    /// Map `sources`.
    pub sources: Vec<Sources>,
    /// Map `estimates`.
    pub estimates: Vec<Estimate>,
    /// What another CPU does while one is at work.
    pub meanwhile: Meanwhile,
    /// How often destinations and lines of rings have been looked at.
    pub looks: Cell<u32>,
    empty4: Endpoints4,
    empty6: Endpoints6,
}

impl HostTables {
    /// Makes empty tables of the sizes that `settings` say.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        fn many<T: Default>(count: u32) -> Vec<T> {
            (0..count).map(|_| T::default()).collect()
        }
        Self {
            jiffies: Cell::new(0),
            cpu: Cell::new(0),
            connections4: many(settings.connections4_mask + 1),
            connections6: many(settings.connections6_mask + 1),
            wide: many(settings.wide_mask + 1),
            scratch: many(settings.cpus),
            marks: MarkRules::default(),
            pools: many(2),
            endpoints4: BTreeMap::new(),
            endpoints6: BTreeMap::new(),
            presence: many(PRESENCE_WORDS),
            services: many(IDS),
            schedules: many(IDS),
            rings: many(RING_LINES),
            destinations: many(IDS),
            tunnels: many(IDS),
            counts: many(IDS),
            overloads: many(OVERLOAD_WORDS),
            errands: many(settings.cpus),
            favourites: many(FAVOURITES),
            rows: many(IDS * settings.cpus),
            routes: many(ROUTES * settings.cpus),
            interfaces: many(INTERFACE_BUCKETS),
            fragments: many(FRAGMENT_BUCKETS),
            occupancy: many(3 * OCCUPANCY_WORDS),
            locks: many(LOCK_KINDS * LOCKS),
            reasons: many(REASONS * settings.cpus),
            limits: many(settings.cpus),
            book: None,
            sources: many(SOURCE_BUCKETS + 1),
            estimates: many(2 * IDS),
            meanwhile: Meanwhile::default(),
            looks: Cell::new(0),
            empty4: Endpoints4::default(),
            empty6: Endpoints6::default(),
            settings,
        }
    }
}

impl Tables for HostTables {
    type Book = Book;

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn jiffies(&self) -> u64 {
        self.jiffies.get()
    }
    fn cpu(&self) -> u32 {
        self.cpu.get()
    }
    fn connections4(&self, index: u32) -> Option<&Connections4> {
        self.connections4.get(index as usize)
    }
    fn connections6(&self, index: u32) -> Option<&Connections6> {
        self.connections6.get(index as usize)
    }
    fn wide(&self, index: u32) -> Option<&Wides> {
        self.wide.get(index as usize)
    }
    fn marks(&self) -> Option<&MarkRules> {
        Some(&self.marks)
    }
    fn pool(&self, index: u32) -> Option<&Pool> {
        self.pools.get(index as usize)
    }
    fn scratch(&self, cpu: u32) -> Option<&Scratch> {
        self.scratch.get(cpu as usize)
    }
    fn endpoints4(&self, index: u32) -> Option<&Endpoints4> {
        Some(self.endpoints4.get(&index).unwrap_or(&self.empty4))
    }
    fn endpoints6(&self, index: u32) -> Option<&Endpoints6> {
        Some(self.endpoints6.get(&index).unwrap_or(&self.empty6))
    }
    fn presence(&self, index: u32) -> Option<&Word> {
        self.presence.get(index as usize)
    }
    fn service(&self, id: u32) -> Option<&Service> {
        self.services.get(id as usize)
    }
    fn schedule(&self, id: u32) -> Option<&Schedule> {
        self.schedules.get(id as usize)
    }
    fn ring_line(&self, index: u32) -> Option<&RingLine> {
        self.looks.set(self.looks.get() + 1);
        self.rings.get(index as usize)
    }
    fn destination(&self, id: u32) -> Option<&Destination> {
        self.looks.set(self.looks.get() + 1);
        self.destinations.get(id as usize)
    }
    fn tunnel(&self, id: u32) -> Option<&Tunnel> {
        self.tunnels.get(id as usize)
    }
    fn all_counts(&self) -> Option<&[Counts]> {
        Some(&self.counts)
    }
    fn overload(&self, index: u32) -> Option<&Word> {
        self.overloads.get(index as usize)
    }
    fn errand(&self, cpu: u32) -> Option<&Errand> {
        self.errands.get(cpu as usize)
    }
    fn favourites(&self, index: u32) -> Option<&Favourites> {
        self.favourites.get(index as usize)
    }
    fn row(&self, index: u32) -> Option<&Row> {
        self.rows.get(index as usize)
    }
    fn route(&self, index: u32) -> Option<&Route> {
        self.routes.get(index as usize)
    }
    fn interfaces(&self, index: u32) -> Option<&Interfaces> {
        self.interfaces.get(index as usize)
    }
    fn fragments(&self, index: u32) -> Option<&Fragments> {
        self.fragments.get(index as usize)
    }
    fn occupancy(&self, index: u32) -> Option<&Word> {
        self.occupancy.get(index as usize)
    }
    fn lock(&self, index: u32) -> Option<&Word> {
        self.locks.get(index as usize)
    }
    fn reason(&self, index: u32) -> Option<&Word> {
        self.reasons.get(index as usize)
    }
    fn limit(&self, cpu: u32) -> Option<&Limit> {
        self.limits.get(cpu as usize)
    }
    fn book(&self) -> Option<&Book> {
        self.book.as_ref()
    }
    fn sources(&self, index: u32) -> Option<&Sources> {
        self.sources.get(index as usize)
    }
    fn estimate(&self, index: u32) -> Option<&Estimate> {
        // The tables of a test have fewer ids than the maps.
        let index = if index < abi::IDS { index } else { index - abi::IDS + IDS };
        self.estimates.get(index as usize)
    }
    fn read(&self, word: &Word) -> u64 {
        word.get()
    }
    fn write(&self, word: &Word, value: u64) {
        word.set(value);
    }
    fn swap(&self, word: &Word, old: u64, new: u64) -> bool {
        self.meanwhile.step(self);
        if word.get() != old {
            return false;
        }
        word.set(new);
        true
    }
    fn set_bits(&self, word: &Word, bits: u64) {
        word.set(word.get() | bits);
    }
    fn clear_bits(&self, word: &Word, bits: u64) {
        word.set(word.get() & !bits);
    }
    fn wait_to_swap(&self, word: &Word, old: u64, new: u64) -> bool {
        self.swap(word, old, new)
    }
    fn add(&self, word: &Word, value: u64) -> u64 {
        word.replace(word.get().wrapping_add(value))
    }
}

/// Runs every stage that a frame needs and that the body has.
pub fn decide<const R: bool>(frame: &mut HostFrame<'_, R>, tables: &HostTables) -> Verdict {
    let mut verdict = process(frame, tables);
    // As in the kernel, which lets programs hand on so often.
    for _ in 0..33 {
        match verdict {
            Verdict::Next(stage) if R || stage.is_on_xdp() => {
                verdict = go_on(stage, frame, tables);
            }
            done => return done,
        }
    }
    verdict
}
