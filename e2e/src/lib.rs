//! Tests of the whole, and the benchmark of the packet path: what they have in common.
//!
//! [`lab`] has the network of the tests that send real traffic. The others run the bodies of the
//! forwarding function side by side:
//! [`host`] is its host body, [`bpf`] its XDP and TC bodies in the kernel, [`table`] fills the maps
//! of all from one description, [`packet`] makes frames with an independent library, [`network`] is
//! the namespace whose routing table the programs ask, [`scene`] what most tests begin with,
//! [`director`] edits a service as the control plane does, [`unusual`] adds options and cuts frames
//! into fragments, [`world`] runs a frame through all bodies, holds them against each other and tells
//! what changed. [`bare`] is a director without a network. [`flood`] is many packets at once. [`crossing`] is a director on real wires, ours or the kernel's IPVS, [`pinger`] a client that sees fail-overs, [`schema`] docs/json.md as a test, [`versions`] two programs with maps of their own, [`fuzz`], [`fuzz_vrrp`] and [`restore`] are one run of a fuzzer each.

#[expect(unsafe_code, reason = "the standard library opens no raw socket")]
pub mod association;
#[expect(clippy::unwrap_used, reason = "a test whose machine cannot be looked at has failed")]
pub mod bare;
#[expect(unsafe_code, reason = "maps are memory shared with the kernel")]
pub mod bpf;
#[expect(clippy::unwrap_used, reason = "a test whose network cannot be set up has failed")]
pub mod crossing;
pub mod director;
#[expect(clippy::unwrap_used, reason = "a test whose packets cannot be sent has failed")]
pub mod flood;
#[expect(clippy::indexing_slicing, reason = "an index out of range is a bug to be found")]
pub mod fuzz;
#[expect(clippy::indexing_slicing, reason = "an index out of range is a bug to be found")]
pub mod fuzz_vrrp;
pub mod guarded;
pub mod host;
pub mod lab;
#[expect(clippy::unwrap_used, reason = "a test whose network cannot be set up has failed")]
pub mod network;
pub mod packet;
pub mod pinger;
pub mod replies;
pub mod restore;
pub mod scene;
pub mod schema;
pub mod snapshot;
pub mod table;
pub mod unusual;
pub mod versions;
#[expect(unsafe_code, reason = "the standard library opens no packet socket")]
pub mod wire;
pub mod world;
