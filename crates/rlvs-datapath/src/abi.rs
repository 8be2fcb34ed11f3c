//! The layout of every map: what programs and control plane agree on.
//!
//! Integers are in host byte order; addresses and ports that go onto the wire are byte arrays in
//! network order. `Cell` marks what programs write; everything else only the control plane writes,
//! a record at a time. Words that several CPUs may change are 64 bits wide and change by
//! compare-and-swap or atomic addition only (see [`Tables`](crate::tables::Tables)).
//!
//! Each map's name, element type and size stand here once.

use core::cell::Cell;
use core::mem::size_of;

/// Version of this layout, part of the pins' path. A change of any type here changes it.
pub const LAYOUT: u32 = 15;

/// Identifiers of services and destinations that can be in use at once.
pub const IDS: u32 = 65_536;
/// Elements of the ring map, each an [`element`](crate::schedulers::element).
pub const RING_ELEMENTS: u32 = RING_LINES * RING_LINE;
/// Elements that are looked up together. Every ring begins a line of its own; what is left of its
/// last line is 0.
pub const RING_LINE: u32 = 16;
/// Lines of the ring map.
pub const RING_LINES: u32 = 1 << 17;
/// Entries of the map `favourites`.
pub const FAVOURITES: u32 = 1 << 10;
/// Destinations that one of them has room for.
pub const FAVOURITE_MEMBERS: usize = 28;
/// Words of the map `overloads`: a bit for each destination.
pub const OVERLOAD_WORDS: u32 = IDS / 64;
/// Buckets of the IPv4 endpoint map; with two choices of four slots each it holds [`IDS`] services
/// and as many reply endpoints at half its fill.
pub const ENDPOINT4_BUCKETS: u32 = 1 << 16;
/// Buckets of the IPv6 endpoint map.
pub const ENDPOINT6_BUCKETS: u32 = 1 << 16;
/// Words of the map `presence`: four bits for each endpoint that there can be.
pub const PRESENCE_WORDS: u32 = 1 << 13;
/// Slots of the client route cache of one CPU.
pub const ROUTES: u32 = 1 << 12;
/// Buckets of the interface map.
pub const INTERFACE_BUCKETS: u32 = 1 << 8;
/// Locks of one kind.
pub const LOCKS: u32 = 1 << 12;
/// Kinds of locks: request halves, reply halves, templates.
pub const LOCK_KINDS: u32 = 3;
/// Largest number of CPUs.
pub const CPUS: u32 = 1 << 10;
/// Pairs of connection buckets that one bit of the occupancy map stands for.
pub const GROUP: u32 = 64;
/// Words of the occupancy map for one table: a bit for each group of 2^26 places. The tables are
/// IPv4, IPv6, wide.
pub const OCCUPANCY_WORDS: u32 = (1 << 26) / GROUP / 64;
/// Buckets of the map `sources`, a power of two; a last one holds what is told of all.
pub const SOURCE_BUCKETS: u32 = 1 << 14;
/// Buckets of the fragment map.
pub const FRAGMENT_BUCKETS: u32 = 1 << 11;
/// Default number of bucket pairs of the IPv4 connection table (8 connections fit in one).
pub const CONNECTIONS4_DEFAULT: u32 = 1 << 18;
/// Default number of bucket pairs of the IPv6 connection table (4 connections fit in one).
pub const CONNECTIONS6_DEFAULT: u32 = 1 << 17;
/// Default number of buckets of the wide table (4 entries fit in one).
pub const WIDE_DEFAULT: u32 = 1 << 16;

/// A 64-bit word that several CPUs change.
pub type Word = Cell<u64>;

/// The one element of the map `settings`: written by the control plane, read by every packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Always [`LAYOUT`].
    pub layout: u32,
    /// Rows for each id in the maps that have one row a CPU.
    pub cpus: u32,
    /// Pairs of IPv4 connection buckets minus one.
    pub connections4_mask: u32,
    /// Pairs of IPv6 connection buckets minus one.
    pub connections6_mask: u32,
    /// Secrets of the connection and endpoint hashes.
    pub keys: [u64; 3],
    /// Coarse time is `jiffies >> clock_shift`, at least 256 ms a unit.
    pub clock_shift: u32,
    /// Added to coarse time, so that tests choose the hour.
    pub clock_offset: u32,
    /// [`settings_flag`] bits.
    pub flags: u32,
    /// Coarse units in one second, rounded up.
    pub second: u32,
    /// Time-out of each connection state in coarse units, by [`State`](crate::state::State).
    pub timeouts: [u32; 32],
    /// Service ids below this have been in use.
    pub services: u32,
    /// Destination ids below this have been in use.
    pub destinations: u32,
    /// Buckets of the wide table minus one.
    pub wide_mask: u32,
    /// The largest segment that ends of connections may announce, in bytes; 0 if they announce what
    /// they like.
    pub mss: u32,
    /// One of so many new connections is dropped; 0 for none. The sweep writes it too.
    pub drop_rate: u32,
    /// The number that `drop_rate` has in [`mode::ALWAYS`], as `am_droprate`.
    pub drop_rate_wanted: u32,
    /// The [`mode`] in which half-open connections are removed before their time.
    pub drop_entry: u32,
    /// The [`mode`] in which new connections are dropped.
    pub drop_packet: u32,
    /// The [`mode`] in which TCP has stricter states.
    pub secure_tcp: u32,
    /// Free memory of a connection table, in pages of 4 KiB, below which it is taken for full.
    pub amemthresh: u32,
    /// 1 if TCP has the stricter states of `secure_tcp`, else 0. The sweep writes it too.
    pub strict: u32,
    /// 1 if a connection table has too little room, else 0. The sweep writes it.
    pub scarce: u32,
    /// Seconds that lblc remembers an address unused.
    pub lblc_expiration: u32,
    /// Seconds that lblcr does, and after which it makes a set smaller that has not changed.
    pub lblcr_expiration: u32,
    /// Seconds after which other directors are told again of a connection in use; 0 for a part of its
    /// time-out. The daemons of synchronisation alone look at it, and at what follows.
    pub sync_refresh: u32,
    /// Bytes of messages that their sockets hold; 0 for what they choose.
    pub sync_buffer: u32,
}

/// When something is done about tables that run full.
pub mod mode {
    /// Never.
    pub const NEVER: u32 = 0;
    /// While there is too little room. The kernel shows this as 2, and as 1 while there is enough.
    pub const AUTOMATIC: u32 = 1;
    /// Always.
    pub const ALWAYS: u32 = 3;
}

/// Bits of [`Settings::flags`].
pub mod settings_flag {
    /// Serve a VIP that is not an address of this host.
    pub const ANY: u32 = 1;
    /// The loopback device did not forward IPv4 before we came.
    pub const CHANGED_FORWARDING4: u32 = 2;
    /// The loopback device did not forward IPv6 before we came.
    pub const CHANGED_FORWARDING6: u32 = 4;
    /// A SYN follows a connection that is over, as with `conn_reuse_mode` 0 of the kernel's IPVS.
    pub const FOLLOW_OVER: u32 = 8;
    /// A SYN opens a new connection where one over direct routing waits in FIN_WAIT, as with bit 1 of
    /// `conn_reuse_mode`.
    pub const REUSE_FIN_WAIT: u32 = 16;
    /// Connections of removed destinations are opened anew, as with `expire_nodest_conn`.
    pub const EXPIRE_REMOVED: u32 = 32;
    /// The loopback device did not take packets from addresses of this host before we came.
    pub const CHANGED_ACCEPT_LOCAL: u32 = 64;
    /// A NAT destination is, or was, this host: what leaves must be looked at.
    pub const LOCAL_SERVERS: u32 = 128;
    /// There is, or was, a NAT destination: clients on this host are served.
    pub const LOCAL_CLIENTS: u32 = 256;
    /// Rates are not estimated, as with `run_estimation` 0.
    pub const NO_ESTIMATION: u32 = 1 << 16;
    /// There is, or was, a service whose packets no endpoint names: what belongs to nothing may belong
    /// to it.
    pub const WIDE: u32 = 1 << 17;
    /// A template does not lead to a destination of weight 0, as with `expire_quiescent_template`.
    pub const EXPIRE_QUIESCENT: u32 = 1 << 18;
    /// The connections of a source are limited somewhere: the sweep counts them.
    pub const NUMBERED: u32 = 1 << 19;
    /// TCP connections are opened in the middle too, as with `sloppy_tcp`.
    pub const SLOPPY_TCP: u32 = 1 << 20;
    /// SCTP associations are, as with `sloppy_sctp`.
    pub const SLOPPY_SCTP: u32 = 1 << 21;
    /// An ICMP error about a packet of no connection may open one, as with `schedule_icmp`.
    pub const SCHEDULE_ERRORS: u32 = 1 << 22;
    /// Servers are told that a connection is not known, as with `nat_icmp_send`.
    pub const TELL_SERVERS: u32 = 1 << 23;
    /// Other directors are told of templates, and not of what these control, as with `sync_persist_mode`.
    pub const TELL_TEMPLATES: u32 = 1 << 24;
    /// No connection is opened: what would open one is dropped, while another version takes over.
    pub const HELD: u32 = 1 << 25;
}

/// What an endpoint is looked up for.
pub mod endpoint_kind {
    /// The virtual address and port of a service: requests.
    pub const SERVICE: u64 = 1;
    /// The address and port of a NAT destination: replies.
    pub const REPLY: u64 = 2;
    /// A firewall mark in place of the address: requests.
    pub const MARK: u64 = 3;
    /// The address and port of a NAT destination whose requests leave no entry: replies.
    pub const ONE_PACKET: u64 = 4;
}

/// A slot that is found by a key and holds a value: an IPv4 connection or endpoint.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Slot4 {
    /// The key; 0 while nothing is published here.
    pub key: Word,
    /// The value; 0 while the slot is free.
    pub value: Word,
}

/// A slot whose key holds an IPv6 address besides.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Slot6 {
    /// The key's first word; 0 while nothing is published here.
    pub key: Word,
    /// The value; 0 while the slot is free.
    pub value: Word,
    /// Upper half of the address.
    pub high: Word,
    /// Lower half of the address.
    pub low: Word,
}

/// Slots in a pair of IPv4 connection buckets.
pub const SLOTS4: usize = 8;
/// Slots in a pair of IPv6 connection buckets, and in every endpoint bucket.
pub const SLOTS6: usize = 4;

/// Slots that are searched together.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Bucket<S, const N: usize> {
    /// The slots; free ones are taken from the front.
    pub slots: [S; N],
}

impl<S: Default, const N: usize> Default for Bucket<S, N> {
    fn default() -> Self {
        Self { slots: core::array::from_fn(|_| S::default()) }
    }
}

/// Two neighbouring cache lines of IPv4 connections.
pub type Connections4 = Bucket<Slot4, SLOTS4>;
/// Two neighbouring cache lines of IPv6 connections.
pub type Connections6 = Bucket<Slot6, SLOTS6>;
/// One cache line of IPv4 endpoints.
pub type Endpoints4 = Bucket<Slot4, SLOTS6>;
/// Two cache lines of IPv6 endpoints.
pub type Endpoints6 = Bucket<Slot6, SLOTS6>;

/// One cache line of datagrams whose first fragment has come by: key and ports; see
/// [`fragment`](crate::fragment).
pub type Fragments = Bucket<Slot4, SLOTS6>;

/// A slot of the wide table, a cache line: a connection with all that names it, or a persistence
/// template; see [`wide`](crate::wide).
#[repr(C, align(64))]
#[derive(Clone, Debug, Default)]
pub struct WideSlot {
    /// What it is, with protocol and ports; 0 while nothing is published here.
    pub key: Word,
    /// As in the slots of the other tables; 0 while the slot is free.
    pub value: Word,
    /// Client address, upper and lower half.
    pub client: [Word; 2],
    /// The other end's address: the virtual one in requests, the real server's in replies. Of a
    /// template, its destination id in the lower half, and in the upper the hash of the Call-ID if it
    /// is for a call.
    pub peer: [Word; 2],
    /// Of a reply half, the virtual address; of either half of full NAT, the client of the other half.
    /// Of a template, its time-out and what it controls in the first word.
    pub other: [Word; 2],
}

/// Slots in a bucket of the wide table.
pub const WIDE_SLOTS: usize = 4;
/// Four cache lines of the wide table.
pub type Wides = Bucket<WideSlot, WIDE_SLOTS>;

/// What a stage leaves for the next on the same CPU, in the map `scratch`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Source address of the packet.
    pub source: [Word; 2],
    /// Destination address of the packet.
    pub target: [Word; 2],
    /// Its ports (32 bits), length (32).
    pub ports: Word,
    /// Its protocol, flags and time to live (8 bits each); the stage that carries it on (8).
    pub brief: Word,
    /// The service that it goes to; 0 if that is to be found out.
    pub service: Word,
    /// The destination that was chosen, as [`special`](crate::special) has it.
    pub chosen: Word,
    /// A connection that made way, of which its template has to be told.
    pub owed: Word,
    /// The same of one that did not come about.
    pub unborn: Word,
    /// The destination of this datagram alone; 0 for none.
    pub once: Word,
    /// Why no entries were made, with bit 31; 0 if they were.
    pub refused: Word,
    /// The place of the pool of full NAT that was found: address, port.
    pub lease: [Word; 3],
    /// Hash of the datagram's Call-ID; see [`sip`](crate::sip).
    pub call: Word,
    /// Where the parts of a packet with unusual headers stand; see [`strange`](crate::strange).
    pub place: Word,
    /// The hash by which a fragment's datagram is known.
    pub datagram: Word,
    /// What takes the place of an end of a packet that stays on this host; see
    /// [`local`](crate::local).
    pub stand_in: [Word; 3],
    /// So that no two CPUs share a cache line.
    pub reserved: [Word; 3],
}

/// Rules that give marks.
pub const MARK_RULES: u32 = 128;

/// A rule that gives a mark to packets by where they go. Addresses are two words in host order, an
/// IPv4 one in the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkRule {
    /// The address under the mask.
    pub network: [u64; 2],
    /// The mask.
    pub mask: [u64; 2],
    /// First and last port.
    pub ports: [u16; 2],
    /// IP protocol; 0 for any.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Makes the mark aligned.
    pub padding: [u8; 2],
    /// The mark.
    pub mark: u32,
    /// Makes the next rule aligned.
    pub reserved: u32,
}

/// The one element of the map `marks`: the rules, of which the first that fits decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRules {
    /// Number of rules.
    pub length: u32,
    /// Makes the rules aligned.
    pub reserved: u32,
    /// The rules.
    pub rules: [MarkRule; MARK_RULES as usize],
}

impl Default for MarkRules {
    fn default() -> Self {
        Self { length: 0, reserved: 0, rules: [MarkRule::default(); MARK_RULES as usize] }
    }
}

/// Addresses of full NAT of one IP version.
pub const POOL_ADDRESSES: u32 = 256;

/// An address that full NAT puts in place of clients', and the ports that go with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolAddress {
    /// The address as two words in host order, an IPv4 one in the second.
    pub address: [u64; 2],
    /// First port.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
    /// Makes the next aligned.
    pub reserved: u32,
}

/// The addresses of full NAT of one IP version, in the map `pools`: element 0 has those of IPv4, 1 those
/// of IPv6; see [`full`](crate::full).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Number of addresses.
    pub length: u32,
    /// Makes the addresses aligned.
    pub reserved: u32,
    /// The addresses.
    pub addresses: [PoolAddress; POOL_ADDRESSES as usize],
}

impl Default for Pool {
    fn default() -> Self {
        let addresses = [PoolAddress::default(); POOL_ADDRESSES as usize];
        Self { length: 0, reserved: 0, addresses }
    }
}

/// A virtual service, by service id. Service id 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Virtual address, an IPv4 one in the first four bytes.
    pub address: [u8; 16],
    /// Virtual port.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// 4 or 6; 0 while the id is free.
    pub family: u8,
    /// [`service_flag`] bits.
    pub flags: u32,
    /// [`scheduler`] number.
    pub scheduler: u32,
    /// First destination of the list, newest first; 0 for none.
    pub head: u32,
    /// Persistence: the mask of client addresses, an IPv4 one in the first four bytes.
    pub mask: [u8; 16],
    /// Persistence: coarse units that a template lives; 0 without persistence.
    pub persistence: u32,
    /// Firewall mark; 0 for a service with an address.
    pub mark: u32,
    /// Line of the book of access where its own rules are; 0 if it has none of its own.
    pub access: u32,
    /// Flags of the scheduler: flags 1 to 3 are bits 0 to 2.
    pub scheduler_flags: u32,
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// The service takes new connections; without it, it is remembered for those it has.
    pub const LIVE: u32 = 1;
    /// A destination of it is this host, reached by direct routing, so that another director may
    /// have sent a packet here.
    pub const PEERED: u32 = 2;
    /// Clients on this host are served: every destination is reached by NAT or is this host.
    pub const LOCAL_CLIENTS: u32 = 4;
    /// New connections need more than a destination and an entry: see
    /// [`special`](crate::special).
    pub const SPECIAL: u32 = 1 << 8;
    /// Each datagram is scheduled by itself.
    pub const ONE_PACKET: u32 = 1 << 9;
    /// Who may open connections is asked of the [`guard`](crate::guard).
    pub const GUARDED: u32 = 1 << 10;
    /// A destination replaces its clients' ends, or has: connections are in the wide table.
    pub const FULL: u32 = 1 << 11;
    /// Templates are for calls, by the persistence engine [`sip`](crate::sip).
    pub const SIP: u32 = 1 << 12;
}

/// Numbers of the schedulers.
pub mod scheduler {
    /// Round robin.
    pub const RR: u32 = 1;
    /// Weighted round robin.
    pub const WRR: u32 = 2;
    /// Least connections.
    pub const LC: u32 = 3;
    /// Weighted least connections.
    pub const WLC: u32 = 4;
    /// Shortest expected delay.
    pub const SED: u32 = 5;
    /// Never queue.
    pub const NQ: u32 = 6;
    /// Locality-based least connections.
    pub const LBLC: u32 = 7;
    /// The same with replication.
    pub const LBLCR: u32 = 8;
    /// Destination hashing.
    pub const DH: u32 = 9;
    /// Source hashing.
    pub const SH: u32 = 10;
    /// Maglev hashing.
    pub const MH: u32 = 11;
    /// Weighted failover.
    pub const FO: u32 = 12;
    /// Weighted overflow.
    pub const OVF: u32 = 13;
    /// Weighted random twos choice.
    pub const TWOS: u32 = 14;
    /// Two choices of the data plane's own: see [`schedulers`](crate::schedulers).
    pub const P2C: u32 = 15;
}

/// Bits of a service's scheduler flags.
pub mod scheduler_flag {
    /// sh and mh: where the server is not available another takes its place (flag-1).
    pub const FALLBACK: u32 = 1;
    /// sh and mh: the client's port counts too (flag-2).
    pub const PORT: u32 = 2;
}

/// What programs change while a service schedules, and what the control plane needs to go on where
/// they are. By service id.
///
/// Schedule 0 belongs to no service: its `position` counts the connection slots that are in their
/// second place, its `last` names the service that is being edited, its `base` is where the control
/// plane looks for room for the next ring.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Ring in force, as [`Ring`](crate::schedulers::Ring) reads it; the control plane replaces it in
    /// one store.
    pub ring: Word,
    /// Picks made; the next of rr and wrr is `ring[position % length]`.
    pub position: Word,
    /// Whether the VIP is local: coarse time of the look-up in the upper half, 1 or 0 in the lower.
    pub local: Word,
    /// Position at which the ring in force began.
    pub base: Word,
    /// Destination picked before the ring began; 0 for none (rr).
    pub last: Word,
    /// Level at which the ring began (wrr).
    pub level: Word,
    /// Kept for other schedulers.
    pub reserved: [Word; 2],
}

/// A destination, by destination id. Destination id 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Address of the real server, an IPv4 one in the first four bytes.
    pub address: [u8; 16],
    /// Port of the real server.
    pub port: [u8; 2],
    /// [`method`] number.
    pub method: u8,
    /// [`destination_flag`] bits.
    pub flags: u8,
    /// Its service.
    pub service: u32,
    /// Endpoint id under which its replies are found; 0 unless the method is NAT.
    pub reply: u32,
    /// Weight; 0 quiesces.
    pub weight: u32,
    /// Delta of replacing the virtual address by [`address`](Self::address).
    pub address_delta: u16,
    /// Delta of replacing the virtual port by [`port`](Self::port).
    pub port_delta: u16,
    /// Next destination of the service's list; 0 for none.
    pub next: u32,
    /// Upper threshold; 0 for none.
    pub upper: u32,
    /// Lower threshold.
    pub lower: u32,
    /// Its element of the map `tunnels`; 0 unless the method is a tunnel.
    pub tunnel: u32,
    /// Bytes that the tunnel puts before a packet, else 0.
    pub overhead: u16,
    /// Family of [`address`](Self::address): 4 or 6. Only a tunnel's may be another than its
    /// service's.
    pub family: u8,
    /// [`aside`] bits; control plane only.
    pub aside: u8,
    /// The last weight above 0 that it had, which mh goes by; control plane only.
    pub last_weight: u32,
    /// Second at which it was retired; 0 is that it is in its service's list.
    pub retired_at: u32,
}

/// What the outer headers of all packets in one tunnel have in common. By destination id; control
/// plane only.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source: the director's address on the way to the real server, an IPv4 one in the first
    /// four bytes.
    pub source: [u8; 16],
    /// Outer destination: the real server.
    pub target: [u8; 16],
    /// Sum of both addresses and the protocol.
    pub sum: u16,
    /// Length of the outer headers.
    pub overhead: u16,
    /// What is inside, in the words of the outer header: the type of GRE, the first two bytes of GUE.
    pub kind: [u8; 2],
    /// UDP port of GUE.
    pub port: [u8; 2],
    /// Family of the outer header: 4 or 6; 0 while no route is known that could tell the source.
    pub family: u8,
    /// [`tunnel_form`] number.
    pub form: u8,
    /// [`tunnel_checksum`] number.
    pub checksum: u8,
    /// IP protocol of what follows the outer IP header.
    pub protocol: u8,
    /// Makes a cache line.
    pub reserved: [u32; 5],
}

/// Numbers of the kinds of tunnel.
pub mod tunnel_form {
    /// IP in IP.
    pub const IPIP: u8 = 1;
    /// GRE.
    pub const GRE: u8 = 2;
    /// Generic UDP encapsulation.
    pub const GUE: u8 = 3;
}

/// Numbers of the ways to protect a tunnel's packets.
pub mod tunnel_checksum {
    /// Not at all.
    pub const NONE: u8 = 0;
    /// A checksum in the outer UDP or GRE header.
    pub const OUTER: u8 = 1;
    /// Remote checksum offload, which the kernel's IPVS uses for packets whose checksum hardware has
    /// yet to complete, and else a checksum in the outer UDP header.
    pub const REMOTE: u8 = 2;
}

/// Numbers of the forwarding methods, as the kernel numbers them.
pub mod method {
    /// Network address translation.
    pub const MASQUERADE: u8 = 0;
    /// Encapsulation.
    pub const TUNNEL: u8 = 2;
    /// Direct routing.
    pub const DIRECT: u8 = 3;
}

/// Bits of a destination that is drained: its weight is 0 until it is given back.
pub mod aside {
    /// It is drained.
    pub const DRAINED: u8 = 1;
    /// What it is given back is not the last weight above 0, but 0.
    pub const QUIESCED: u8 = 2;
}

/// Bits of [`Destination::flags`].
pub mod destination_flag {
    /// In its service's list, or out of it and its connections go on; without it, it is remembered for
    /// its connections, and they are silent.
    pub const AVAILABLE: u8 = 1;
    /// This host itself, when it was added.
    pub const LOCAL: u8 = 2;
    /// A neighbour, no gateway between, when it was added.
    pub const ADJACENT: u8 = 4;
    /// A neighbour to which packets are routed directly, of a service that has this host as well.
    pub const PEER: u8 = 8;
    /// The client's end is replaced too: full NAT.
    pub const FULL: u8 = 16;
}

/// Connections of a destination, by destination id.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Active connections in the lower half, inactive ones in the upper: one atomic addition moves
    /// a connection from one to the other.
    pub connections: Word,
    /// Persistence templates.
    pub persistent: Word,
}

/// The one element of the map `counts`: those of all destinations, so that a scheduler that looks at
/// many asks for them once.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct AllCounts {
    /// By destination id.
    pub of: [Counts; IDS as usize],
}

/// One line of the ring map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingLine {
    /// The elements.
    pub elements: [u64; RING_LINE as usize],
}

/// What a stage that opens connections and the stage that searches for a destination tell each other,
/// in the map `errands`. Row `cpu`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Errand {
    /// The flow that it is for; 0 for none.
    pub flow: Word,
    /// The service.
    pub service: Word,
    /// Destination that did not take the connection (32 bits), how many did not (8), and why (8).
    pub tried: Word,
    /// What sh and mh hash of the client.
    pub source: Word,
    /// The hash under which lblc and lblcr know the virtual address.
    pub target: Word,
    /// Destination found; 0 while there is no answer, and 32 ones if there is none.
    pub answer: Word,
    /// Number of the stage to go back to.
    pub back: Word,
    /// 1 if a destination must be searched for, 0 if another may be picked.
    pub search: Word,
}

/// Destinations that lblc and lblcr have chosen for an address, in the map `favourites`; see
/// [`favourites`](crate::schedulers::favourites).
#[repr(C, align(64))]
#[derive(Clone, Debug, Default)]
pub struct Favourites {
    /// Hash of service and address; 0 while the entry is free.
    pub key: Word,
    /// Service in the upper half, coarse time of the last use in the lower.
    pub used: Word,
    /// Coarse time of the last change.
    pub changed: Word,
    /// Lock of the bucket whose first entry this is.
    pub lock: Word,
    /// Destination ids, the last added first; 0 behind the last.
    pub members: [Word; FAVOURITE_MEMBERS],
}

/// Where frames for an address go: interface, and the Ethernet addresses as they stand in a frame.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Interface to send by; 0 while nothing is known.
    pub interface: u32,
    /// Coarse time of the look-up.
    pub checked: u32,
    /// First eight bytes of the frame: the neighbour's address, two bytes of the interface's.
    pub head: u64,
    /// Next four bytes of the frame.
    pub tail: u32,
    /// Largest IP packet.
    pub mtu: u32,
}

impl Hop {
    /// Returns the hop to a neighbour.
    #[inline(always)]
    pub const fn new(
        interface: u32,
        neighbour: [u8; 6],
        own: [u8; 6],
        mtu: u32,
        checked: u32,
    ) -> Self {
        let [a, b, c, d, e, f] = neighbour;
        let [g, h, i, j, k, l] = own;
        let head = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        Self { interface, checked, head, tail: u32::from_ne_bytes([i, j, k, l]), mtu }
    }

    /// Returns what is kept of a way whose neighbour has yet to be resolved: no hop, as its
    /// interface is 0, but the neighbour's address where the MAC addresses would be.
    #[inline(always)]
    pub const fn unresolved(interface: u32, is_v6: bool, address: [u32; 4]) -> Self {
        let head = address[0] as u64 | (address[1] as u64) << 32;
        let checked = interface | (is_v6 as u32) << 31;
        Self { interface: 0, checked, head, tail: address[2], mtu: address[3] }
    }

    /// Returns interface, version and address of an unresolved neighbour.
    #[inline(always)]
    pub const fn awaited(&self) -> (u32, bool, [u32; 4]) {
        let address = [self.head as u32, (self.head >> 32) as u32, self.tail, self.mtu];
        (self.checked & !(1 << 31), self.checked >> 31 != 0, address)
    }

    /// Returns the neighbour's MAC address.
    pub const fn neighbour(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.head.to_ne_bytes();
        [a, b, c, d, e, f]
    }
}

/// Traffic of a destination on one CPU, and that CPU's way to it: one cache line. Row
/// `id * cpus + cpu`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Connections scheduled.
    pub connections: Word,
    /// Packets from clients.
    pub in_packets: Word,
    /// Packets to clients.
    pub out_packets: Word,
    /// Bytes of IP from clients.
    pub in_bytes: Word,
    /// Bytes of IP to clients.
    pub out_bytes: Word,
    /// Way to the destination.
    pub hop: Cell<Hop>,
}

/// One CPU's way to a client. Row `cpu * ROUTES + hash(address)`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Upper half of an IPv6 address, else 0.
    pub high: Word,
    /// Lower half of an IPv6 address, or the IPv4 address.
    pub low: Word,
    /// The way.
    pub hop: Cell<Hop>,
    /// Makes a row a cache line.
    pub reserved: [Word; 3],
}

/// Totals of a service that no destination row holds any more. By service id; control plane only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Connections, packets in, packets out, bytes in, bytes out of freed destinations.
    pub retired: [u64; 5],
    /// Makes it a cache line.
    pub reserved: [u64; 3],
}

/// What the estimator keeps: of a destination by its id, of a service at [`IDS`] plus its id, of all
/// services together at [`IDS`]. Only the timer writes it, but for `zeroed`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Estimate {
    /// The counters of a destination when it was last looked at; for a service and for all, what
    /// their destinations have counted since they were.
    pub counted: [Word; COUNTERS],
    /// Averages in the fixed point of [`estimate`](crate::estimate).
    pub rates: [Word; COUNTERS],
    /// Not 0 if the control plane wants the rates to be 0; the timer does it with its next look.
    pub zeroed: Word,
    /// Makes records three to two cache lines.
    pub reserved: Word,
}

/// Counters of traffic: connections, packets in, packets out, bytes in, bytes out.
pub const COUNTERS: usize = 5;

/// Elements of the maps `estimates` and `bases`.
pub const ESTIMATES: u32 = 2 * IDS;

/// Where counters began when they were zeroed last, by the same index as [`Estimate`]. Control plane
/// only: so the programs' counters are never written over.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The counters then.
    pub counted: [u64; COUNTERS],
}

/// An interface that programs hang on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Interface index; 0 while the slot is free.
    pub index: u32,
    /// [`interface_flag`] bits.
    pub flags: u32,
    /// MAC address in the lower 48 bits, first byte most significant.
    pub mac: u64,
}

/// Bits of [`Interface::flags`].
pub mod interface_flag {
    /// XDP sees every frame before TC does and has counted what it passed.
    pub const XDP: u32 = 1;
}

/// Interfaces whose index has the same lower bits.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// The interfaces.
    pub slots: [Interface; 4],
}

/// Counters of one CPU in the map `reasons`, one for each [`Reason`](crate::reason::Reason). Row
/// `cpu * REASONS + reason`.
pub const REASONS: u32 = 32;

/// What one CPU has sent of its own, and what it asks its guard, in the map `limits`: a cache line.
/// Row `cpu`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Limit {
    /// Coarse time in the upper half, ICMP errors sent at that time in the lower.
    pub errors: Word,
    /// Source of the packet that the [`guard`](crate::guard) is asked about, upper and lower half.
    pub source: [Word; 2],
    /// Its service (32 bits) and its ports (32).
    pub asked: Word,
    /// Coarse time in the upper half, the guard's answer in the lower; 0 without one.
    pub answer: Word,
    /// Number of the stage to go back to (32 bits), and whether a refusal is told (bit 32).
    pub back: Word,
    /// New connections since one was dropped.
    pub admitted: Word,
    /// Makes a row a cache line.
    pub reserved: Word,
}

/// One line of the book of access: rules of a service, parts of a table, a node of a search tree, or text;
/// see [`book`](crate::book).
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// What it says.
    pub words: [u64; LINE_WORDS],
}

/// Words of a [`Line`].
pub const LINE_WORDS: usize = 16;

/// A network of clients whose new connections are limited, in the map `sources`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Hash of service and network; 0 while the slot is free.
    pub key: Word,
    /// Connections that it may open at once, in 2^-16 (39 bits), and when that was (25).
    pub rate: Word,
    /// Pass of the sweep (16 bits), connections there are (24), those of them opened in this pass (24).
    pub number: Word,
    /// Pass of the sweep (16 bits), and connections that it has come upon.
    pub found: Word,
}

/// Two cache lines of sources.
pub type Sources = Bucket<Source, SLOTS6>;

/// Where the sweep is. The BPF body puts its timer before it.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct SweepCursor {
    /// Next word of the occupancy map.
    pub word: Word,
    /// Passes completed over the whole table.
    pub passes: Word,
    /// Entries removed.
    pub removed: Word,
    /// Coarse time of the last tick: the programs' clock, for those who cannot read it.
    pub now: Word,
    /// Where the estimator is in its round; see [`estimate`](crate::estimate).
    pub estimated: Word,
    /// When its round began, in nanoseconds since the machine did.
    pub round_ns: Word,
    /// Entries that this pass has left so far in the tables of IPv4, IPv6 and the wide one.
    pub filled: [Word; 3],
}

/// Bytes of the timer before the cursor in the one element of the map `sweep`.
pub const TIMER_BYTES: usize = 16;

const _: () = {
    assert!(size_of::<Settings>() == 248);
    assert!(size_of::<WideSlot>() == 64);
    assert!(size_of::<Wides>() == 256);
    assert!(size_of::<Scratch>() == 192);
    assert!(size_of::<PoolAddress>() == 24);
    assert!(size_of::<Pool>() == 8 + 24 * POOL_ADDRESSES as usize);
    assert!(size_of::<MarkRule>() == 48);
    assert!(size_of::<MarkRules>() == 8 + 48 * MARK_RULES as usize);
    assert!(size_of::<Connections4>() == 128);
    assert!(size_of::<Connections6>() == 128);
    assert!(size_of::<Endpoints4>() == 64);
    assert!(size_of::<Endpoints6>() == 128);
    assert!(size_of::<Fragments>() == 64);
    assert!(size_of::<Service>() == 64);
    assert!(size_of::<Schedule>() == 64);
    assert!(size_of::<Destination>() == 64);
    assert!(size_of::<Tunnel>() == 64);
    assert!(size_of::<Counts>() == 16);
    assert!(size_of::<RingLine>() == 128);
    assert!(size_of::<Errand>() == 64);
    assert!(size_of::<Favourites>() == 256);
    assert!(size_of::<Hop>() == 24);
    assert!(size_of::<Row>() == 64);
    assert!(size_of::<Route>() == 64);
    assert!(size_of::<Totals>() == 64);
    assert!(size_of::<Estimate>() == 96);
    assert!(size_of::<Base>() == 40);
    assert!(size_of::<Interfaces>() == 64);
    assert!(size_of::<Limit>() == 64);
    assert!(size_of::<Line>() == 128);
    assert!(size_of::<Sources>() == 128);
};
