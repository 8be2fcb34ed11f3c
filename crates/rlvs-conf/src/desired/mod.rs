//! The desired state: what a configuration means, with every default filled in.
//!
//! Nothing here refers to the text. What is inherited (from `global_defs`, from a virtual to its
//! real servers, from those to their checkers) is resolved, so every number stands where it counts.

mod service;
mod vrrp;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

pub use service::*;
pub use vrrp::*;

/// All that a configuration asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// `global_defs`.
    pub global: Global,
    /// Network namespace that all of it is for; that of whoever starts it if `None`.
    pub namespace: Option<String>,
    /// `vrrp_script` blocks; names differ.
    pub scripts: Vec<TrackedScript>,
    /// `track_file` blocks; names differ.
    pub files: Vec<TrackedFile>,
    /// `track_process` blocks; names differ.
    pub processes: Vec<TrackedProcess>,
    /// `static_ipaddress`, `static_routes`, `static_rules`.
    pub fixed: Fixed,
    /// `vrrp_instance` blocks; names differ, and so does the triple of interface, family and id.
    pub instances: Vec<Instance>,
    /// `vrrp_sync_group` blocks; their members exist, and each is in one group at most.
    pub sync_groups: Vec<SyncGroup>,
    /// `virtual_server_group` blocks.
    pub address_groups: Vec<AddressGroup>,
    /// `virtual_server` blocks.
    pub virtual_servers: Vec<VirtualServer>,
    /// Blocks of the top level that are not carried out.
    pub kept: Vec<Statement>,
}

/// A keyword that is known, and not carried out, with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The keyword; empty for an entry of a list.
    pub name: String,
    /// Its words, with the keywords of options among them.
    pub words: Vec<Word>,
    /// Its block, if it has one.
    pub block: Option<Vec<Statement>>,
}

/// A word of a [`Statement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// One that may be seen.
    Open(String),
    /// One that may not.
    Hidden(Secret),
}

/// A password. It is not shown when a value that holds it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the password itself, for the wire.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Secret(…)")
    }
}

/// Who runs a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name of the user.
    pub user: String,
    /// Name of the group, if not the user's own.
    pub group: Option<String>,
}

/// A program with its arguments. No shell runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The program's path, and its arguments; never empty.
    pub command: Vec<String>,
    /// Who runs it, if not `script_user`.
    pub user: Option<User>,
}

/// A program that is run once and waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// The program.
    pub script: Script,
    /// Longest run.
    pub timeout: Duration,
}

/// A named pipe that learns of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fifo {
    /// Path of the pipe.
    pub path: Option<String>,
    /// Owner of the pipe.
    pub owner: Option<User>,
    /// Program that reads it.
    pub script: Option<Script>,
}

/// `global_defs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Name in mails; the host's if `None`.
    pub router_id: Option<String>,
    /// Mails about changes.
    pub mail: Mail,
    /// Who runs scripts; `keepalived_script` if it exists, else root, if `None`.
    pub script_user: Option<User>,
    /// Refuse to run as root what others may write.
    pub script_security: bool,
    /// IPv4 group of advertisements.
    pub group4: IpAddr,
    /// IPv6 group of advertisements.
    pub group6: IpAddr,
    /// Pause between gratuitous ARPs of one interface.
    pub garp_interval: Duration,
    /// Pause between unsolicited neighbour advertisements of one interface.
    pub gna_interval: Duration,
    /// Wait before the instances start.
    pub startup_delay: Duration,
    /// Whether interfaces may be missing at start, and come later.
    pub dynamic_interfaces: DynamicInterfaces,
    /// Program that is run to its end before anything is done.
    pub startup: Option<Once>,
    /// Program that is run when all has been put in order at the end.
    pub shutdown: Option<Once>,
    /// Pipe that learns of instances.
    pub vrrp_fifo: Fifo,
    /// Pipe that learns of services.
    pub service_fifo: Fifo,
    /// Pipe that learns of both.
    pub fifo: Fifo,
    /// Connection synchronisation that follows an instance.
    pub sync_daemon: Option<SyncDaemon>,
    /// Remove foreign services at start.
    pub flush: bool,
    /// How services are removed at stop.
    pub flush_on_stop: FlushOnStop,
    /// What becomes of the connections of real servers that leave the table.
    pub removed: Removed,
    /// Time-outs of connections to set; `None` leaves one as it is.
    pub timeouts: Timeouts,
    /// Tell of real servers' state at start too.
    pub initial_notifies: bool,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            router_id: None,
            mail: Mail::default(),
            script_user: None,
            script_security: false,
            group4: IpAddr::from([224, 0, 0, 18]),
            group6: IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0x12]),
            garp_interval: Duration::ZERO,
            gna_interval: Duration::ZERO,
            startup_delay: Duration::ZERO,
            dynamic_interfaces: DynamicInterfaces::Off,
            startup: None,
            shutdown: None,
            vrrp_fifo: Fifo::default(),
            service_fifo: Fifo::default(),
            fifo: Fifo::default(),
            sync_daemon: None,
            flush: false,
            flush_on_stop: FlushOnStop::No,
            removed: Removed::Keep,
            timeouts: Timeouts::default(),
            initial_notifies: false,
            kept: Vec::new(),
        }
    }
}

/// Mails about changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Receivers.
    pub to: Vec<String>,
    /// Sender; `keepalived@` the host's name if `None`.
    pub from: Option<String>,
    /// Server and port.
    pub server: Option<(String, u16)>,
    /// Name given to the server; the host's if `None`.
    pub helo: Option<String>,
    /// Longest wait for the server.
    pub timeout: Duration,
    /// None when an instance or a group enters fault.
    pub no_faults: bool,
    /// None about services and real servers.
    pub no_services: bool,
}

impl Default for Mail {
    fn default() -> Self {
        Self {
            to: Vec::new(),
            from: None,
            server: None,
            helo: None,
            timeout: Duration::from_secs(30),
            no_faults: false,
            no_services: false,
        }
    }
}

/// `dynamic_interfaces`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicInterfaces {
    /// Interfaces must be there at start.
    Off,
    /// They may come later.
    On,
    /// They may come later, and as another kind of interface.
    AllowChanges,
}

/// `lvs_flush_on_stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushOnStop {
    /// One real server after the other.
    No,
    /// One service after the other.
    Services,
    /// All at once.
    All,
}

/// `lvs_removed`: what becomes of the connections of real servers that leave the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// They go on until they end.
    Keep,
    /// They end: the director answers a TCP client's next packet with a reset.
    Reset,
    /// Their packets are dropped until the server is back, as with IPVS.
    Silent,
}

/// `lvs_timeouts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: Option<Duration>,
    /// TCP connections after a FIN.
    pub tcp_fin: Option<Duration>,
    /// UDP flows.
    pub udp: Option<Duration>,
}

/// `lvs_sync_daemon`. What is `None` the table chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncDaemon {
    /// Interface that it speaks on.
    pub interface: String,
    /// Instance whose state it follows.
    pub instance: Option<String>,
    /// Number of the group of directors.
    pub id: Option<u8>,
    /// Longest message in bytes.
    pub message_bytes_max: Option<u16>,
    /// UDP port.
    pub port: Option<u16>,
    /// Hops that a message may make.
    pub ttl: Option<u8>,
    /// Multicast group.
    pub group: Option<IpAddr>,
}
