//! What the judges of `rlvs doctor` go by: values, gathered by `gather` and made up by tests.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use rlvs_control::model::{DestinationEntry, Drained, ServiceId, Traffic};
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::attach::Mode;
use rlvs_linux::dataplane::table::{Fill, Miscount};
use rlvs_linux::features::Answer;
use rlvs_linux::route::Mac;

/// All that is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Release of the running kernel.
    pub kernel: String,
    /// Whether the kernel compiles BPF programs (`net.core.bpf_jit_enable`); `None` where this
    /// namespace does not show it.
    pub jit: Option<bool>,
    /// What the kernel said when it was asked for what the programs need.
    pub features: Answer,
    /// Whether the programs that are attached are another version's.
    pub outdated: bool,
    /// Interfaces but loopback.
    pub interfaces: Vec<Interface>,
    /// Interfaces that were removed with our programs on them.
    pub gone: Vec<String>,
    /// Whether the loopback device forwards IPv4 and IPv6; `None` without that family.
    pub forwarding: [Option<bool>; 2],
    /// Whether virtual addresses need not be addresses of this host (`rlvs attach --any`).
    pub any: bool,
    /// The largest segment that ends of connections may announce; 0 for any.
    pub mss: u32,
    /// Addresses of virtual routers here that are not master: another director has them.
    pub elsewhere: BTreeSet<IpAddr>,
    /// Services.
    pub services: Vec<Service>,
    /// Destinations that are drained.
    pub drained: Vec<Drained>,
    /// How full the tables of connections are.
    pub fill: Vec<Fill>,
    /// Destinations whose counts are not what the tables have.
    pub miscounts: Vec<Miscount>,
    /// Whether the sweep went on meanwhile; `None` if nobody waited for it.
    pub sweeps: Option<bool>,
    /// Packets counted under each reason while we looked.
    pub growth: Vec<(Reason, u64)>,
    /// How long that was.
    pub watched: Duration,
    /// Rules of packet filters that name a virtual address.
    pub rules: Vec<Rule>,
}

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Kind of a virtual interface.
    pub kind: Option<String>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// How our programs hang on it.
    pub mode: Option<Mode>,
    /// Why so.
    pub why: &'static str,
    /// Whether it is up and has an address, so that it would be attached to.
    pub serves: bool,
    /// The XDP program of somebody else on it.
    pub foreign_xdp: Option<u32>,
    /// What the kernel checks of sources: 0 nothing, 1 the way back, 2 that there is a way.
    pub rp_filter: u32,
    /// Whose packets came in with unfinished checksums.
    pub unfinished: BTreeSet<IpAddr>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Which it is.
    pub id: ServiceId,
    /// Its virtual address, unless it goes by a mark.
    pub vip: Option<IpAddr>,
    /// Whether that is an address of this host.
    pub local: bool,
    /// Who else says that it has the virtual address.
    pub claims: Vec<Claim>,
    /// Its destinations.
    pub servers: Vec<Server>,
}

/// Somebody's answer for a virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Hardware address.
    pub mac: Mac,
    /// Interface by which the answer came.
    pub interface: String,
    /// The real server that has this hardware address.
    pub server: Option<IpAddr>,
}

/// A destination.
#[derive(Clone, Debug)]
pub struct Server {
    /// As the table has it.
    pub entry: DestinationEntry,
    /// Its traffic in a second.
    pub rates: Traffic,
    /// The way to it.
    pub way: Way,
    /// Bytes that the tunnel to it puts before packets.
    pub overhead: u16,
    /// What came of connecting to it, if that was tried.
    pub connected: Option<Result<(), String>>,
}

/// The way to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is this host.
    Local,
    /// There is none.
    None,
    /// By a neighbour.
    By {
        /// Name of the interface.
        interface: String,
        /// Largest packet of the interface, bytes.
        mtu: u32,
        /// The neighbour.
        neighbour: IpAddr,
        /// Whether it has said which hardware address it has.
        resolved: bool,
    },
}

/// A rule of a packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands: program, table, chain.
    pub place: String,
    /// The virtual address that it names.
    pub vip: IpAddr,
    /// The rule.
    pub text: String,
}
