//! Virtual routers, their groups, and the scripts and files that they follow.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use rlvs_control::model::Family;
use rlvs_control::routing::{Route, Rule};

use super::{Script, Secret, Statement, User};

/// A virtual router on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name, for people and scripts.
    pub name: String,
    /// Interface that it speaks on; `None` only with unicast peers.
    pub interface: Option<String>,
    /// Number of the virtual router (VRID).
    pub router_id: NonZeroU8,
    /// Family of its addresses.
    pub family: Family,
    /// Version of the protocol.
    pub version: Version,
    /// State at start.
    pub state: State,
    /// Priority, 1 to 255; 255 is the owner of the addresses.
    pub priority: NonZeroU8,
    /// Time between advertisements: whole seconds in version 2, centiseconds in version 3.
    pub advert_interval: Duration,
    /// Missed advertisements until the master is taken for dead.
    pub down_timer_adverts: u8,
    /// Whether a master of lower priority is replaced, and how long after it was heard.
    pub preempt: Preempt,
    /// Hold it to the letter of the RFC.
    pub strict: bool,
    /// Whether the master takes packets to the addresses.
    pub accept: bool,
    /// Where advertisements go.
    pub transport: Transport,
    /// Source address of advertisements; the interface's if `None`.
    pub source: Option<IpAddr>,
    /// Fault while the source address is missing.
    pub track_source: bool,
    /// An interface with the virtual router's own hardware address.
    pub virtual_mac: Option<VirtualMac>,
    /// Authentication, of version 2 only.
    pub authentication: Option<Authentication>,
    /// Addresses that are advertised, of `family` all.
    pub addresses: Vec<VirtualAddress>,
    /// Addresses that are not advertised, of any family.
    pub excluded_addresses: Vec<VirtualAddress>,
    /// Routes of the master.
    pub routes: Vec<RouteEntry>,
    /// Rules of the master.
    pub rules: Vec<RuleEntry>,
    /// Other interfaces that must be up.
    pub track_interfaces: Vec<Tracked>,
    /// Scripts that must be good, by name.
    pub track_scripts: Vec<Tracked>,
    /// Files whose numbers count, by name.
    pub track_files: Vec<Tracked>,
    /// Processes that must run, by name.
    pub track_processes: Vec<Tracked>,
    /// The own interface may be down.
    pub ignore_own_interface: bool,
    /// Gratuitous ARPs and neighbour advertisements.
    pub garp: Garp,
    /// A master does not answer advertisements of lower priority.
    pub lower_priority_no_advert: bool,
    /// A master that yields advertises once more.
    pub higher_priority_send_advert: bool,
    /// Compare addresses only when the sender changes.
    pub skip_address_check: bool,
    /// Senders of unicast must be peers.
    pub check_unicast_source: bool,
    /// Send VRRPv3 sums without the pseudo header.
    pub checksum_without_pseudo_header: bool,
    /// Other addresses of a prefix stay when the first goes.
    pub promote_secondaries: bool,
    /// Programs that learn of changes.
    pub notify: Notify,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// A route, and what is said of it and not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// The route.
    pub route: Route,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// A rule that chooses a routing table, and what is said of it and not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    /// The rule.
    pub rule: Rule,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// What a host has whatever the state of its virtual routers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Addresses, each with its interface.
    pub addresses: Vec<VirtualAddress>,
    /// Routes.
    pub routes: Vec<RouteEntry>,
    /// Rules.
    pub rules: Vec<RuleEntry>,
}

/// Version of VRRP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 3768.
    V2,
    /// RFC 5798 and 9568.
    V3,
}

/// State at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `MASTER`.
    Master,
    /// `BACKUP`.
    Backup,
}

/// Whether a master of lower priority is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// It stays.
    Never,
    /// It is replaced so long after it was first heard.
    After(Duration),
}

/// Where advertisements go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// To a group.
    Multicast {
        /// The group.
        group: IpAddr,
    },
    /// To each of the other directors.
    Unicast {
        /// The others.
        peers: Vec<Peer>,
        /// Time to live of what we send.
        ttl: u8,
        /// Fault if there are no peers.
        fault_without_peers: bool,
    },
}

/// Another director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Least time to live of what it sends.
    pub ttl_min: Option<u8>,
    /// Largest time to live of what it sends.
    pub ttl_max: Option<u8>,
}

/// An interface with a virtual router's own hardware address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualMac {
    /// Its name, if not `vrrp.` (`vrrp6.`) and the number of the virtual router.
    pub name: Option<String>,
    /// Its hardware address, if not that of the standard.
    pub address: Option<[u8; 6]>,
}

/// Authentication of VRRPv2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// A password of at most eight bytes in every packet.
    Password(Secret),
    /// An IPsec authentication header.
    Header(Secret),
}

/// An address that moves with the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Interface that gets it; the instance's if `None`.
    pub interface: Option<String>,
    /// Broadcast address.
    pub broadcast: Broadcast,
    /// Where it is valid, by the kernel's name or number; global if `None`.
    pub scope: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Address of the other end, and the length of its prefix.
    pub peer: Option<(IpAddr, u8)>,
    /// IFA_F_HOMEADDRESS.
    pub home: bool,
    /// Whether duplicates of an IPv6 address are looked for.
    pub detect_duplicates: bool,
    /// IFA_F_MANAGETEMPADDR.
    pub manage_temporary: bool,
    /// No route to its prefix.
    pub no_prefix_route: bool,
    /// IFA_F_MCAUTOJOIN.
    pub autojoin: bool,
    /// Nobody minds if somebody removes it.
    pub untracked: bool,
    /// Time for which it is preferred; for ever if `None`.
    pub preferred: Option<Duration>,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// Broadcast address of a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// None.
    No,
    /// The prefix with all other bits set (`+`).
    Ones,
    /// The prefix with all other bits clear (`-`).
    Zeros,
    /// This one.
    Address(IpAddr),
}

/// Something that an instance follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Name of the interface or script.
    pub name: String,
    /// What it does to the priority; `None` takes the script's own.
    pub weight: Option<Weight>,
}

/// What something that is followed does to the priority, -253 to 253. Positive: more while it is good;
/// negative: less while it is bad; 0: fault while it is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// The change.
    pub change: i16,
    /// It has the other sign; with 0, good and bad are exchanged.
    pub reverse: bool,
}

/// Gratuitous ARPs and unsolicited neighbour advertisements of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garp {
    /// Wait before the second set; zero: there is none.
    pub delay: Duration,
    /// Packets for each address in a set.
    pub repeat: u32,
    /// Time between sets while master; zero: there are none.
    pub refresh: Duration,
    /// Packets for each address in such a set.
    pub refresh_repeat: u32,
    /// Wait before the second set after an advertisement of lower priority.
    pub lower_priority_delay: Duration,
    /// Packets for each address after an advertisement of lower priority.
    pub lower_priority_repeat: u32,
}

impl Default for Garp {
    fn default() -> Self {
        let delay = Duration::from_secs(5);
        Self {
            delay,
            repeat: 5,
            refresh: Duration::ZERO,
            refresh_repeat: 1,
            lower_priority_delay: delay,
            lower_priority_repeat: 5,
        }
    }
}

/// Programs that learn of changes of an instance or a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    /// It became master.
    pub master: Option<Script>,
    /// It became backup.
    pub backup: Option<Script>,
    /// It entered fault.
    pub fault: Option<Script>,
    /// It stops.
    pub stop: Option<Script>,
    /// Any of these: gets kind, name, state and priority.
    pub any: Option<Script>,
    /// A master heard an advertisement of lower priority.
    pub lower_priority: Option<Script>,
    /// Tell the pipes of every change of priority.
    pub priority_changes: bool,
    /// Mails about changes.
    pub mail: bool,
}

/// Instances that change together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncGroup {
    /// Its name.
    pub name: String,
    /// Names of its instances; at least one.
    pub members: Vec<String>,
    /// Interfaces that must be up.
    pub track_interfaces: Vec<Tracked>,
    /// Scripts that must be good.
    pub track_scripts: Vec<Tracked>,
    /// Files whose numbers count.
    pub track_files: Vec<Tracked>,
    /// Processes that must run, by name.
    pub track_processes: Vec<Tracked>,
    /// Programs that learn of changes.
    pub notify: Notify,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// A file with a number that instances follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedFile {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// What its number is multiplied with.
    pub weight: Weight,
    /// The number that is written to it at the start, if there is none or if it is `overwritten`.
    pub initial: Option<i32>,
    /// A number that is there is overwritten at the start.
    pub overwritten: bool,
}

/// Processes that instances follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedProcess {
    /// Its name.
    pub name: String,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// What of it is compared.
    pub compared: Compared,
    /// What it does to the priority.
    pub weight: Weight,
    /// Processes at least.
    pub quorum: u32,
    /// Processes at most.
    pub quorum_max: Option<u32>,
    /// How long it must last that there are more, until it counts.
    pub fork_delay: Duration,
    /// How long it must last that there are fewer, until it counts.
    pub terminate_delay: Duration,
}

/// What of a process is held against a [`TrackedProcess`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Its name, 15 bytes at most.
    Name,
    /// The first word of its command.
    Program,
    /// All words of its command.
    Command,
    /// As many words of its command, the last of which may be longer.
    Initial,
    /// As many words of its command.
    Partial,
}

/// A command that instances follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedScript {
    /// Its name.
    pub name: String,
    /// The command.
    pub command: Vec<String>,
    /// Who runs it, if not `script_user`.
    pub user: Option<User>,
    /// Time from run to run.
    pub interval: Duration,
    /// Longest run.
    pub timeout: Duration,
    /// What it does to the priority.
    pub weight: Weight,
    /// Successes in a row until it is good.
    pub rise: u32,
    /// Failures in a row until it is bad.
    pub fall: u32,
    /// It is bad until it was good.
    pub starts_bad: bool,
}
