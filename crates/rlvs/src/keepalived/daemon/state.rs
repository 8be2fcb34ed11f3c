//! How the daemon is: one JSON document, for whoever connects to a Unix socket.
//!
//! The document is this file's types; docs/state.md has an example. A member may be added without
//! notice; [`SCHEMA`] is raised when one goes or changes its meaning.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use rlvs_linux::netns;
use serde::{Deserialize, Serialize};

/// Version of the document.
pub const SCHEMA: u32 = 1;
/// How long [`ask`] waits for the whole of it.
const PATIENCE: Duration = Duration::from_secs(3);
/// A document has no more bytes; a real server has about 600.
const BYTES_MAX: u64 = 1 << 28;
/// Where the sockets are.
pub(super) const FOLDER: &str = "/run/rlvs";

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, in milliseconds since 1970, as all members `…_unix_ms`.
    pub started_unix_ms: u64,
    /// Whose table it keeps: `rlvs` or `kernel`.
    pub backend: String,
    /// The file that it goes by.
    pub configuration: Configuration,
    /// Its virtual routers.
    pub instances: Vec<Instance>,
    /// Those of them that move together.
    pub groups: Vec<Group>,
    /// Scripts that virtual routers depend on.
    pub scripts: Vec<Script>,
    /// Its virtual servers.
    pub services: Vec<Service>,
    /// Changes that the table refused when it was last asked; they are tried again.
    pub refused: Vec<String>,
    /// How often each kind of thing has happened since the start, by its name.
    pub events: BTreeMap<String, u64>,
    /// What became of lines for the log.
    pub log: Log,
}

/// The file that the daemon goes by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// Its path.
    pub file: String,
    /// When what is in force was read.
    pub read_unix_ms: u64,
    /// Reloads that were carried out.
    pub reloads: u64,
    /// Reloads that were refused.
    pub reloads_refused: u64,
    /// Why the last reload was refused; `None` if it was carried out.
    pub refused: Option<String>,
}

/// States of a virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterState {
    /// Waiting for the first results of what it depends on.
    Init,
    /// Listening.
    Backup,
    /// Holding the addresses.
    Master,
    /// Something that it depends on fails.
    Fault,
    /// Ended.
    Stopped,
}

/// A virtual router (`vrrp_instance`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// The interface that it speaks on.
    pub interface: String,
    /// Number of the virtual router on its network.
    pub vrid: u8,
    /// Version of VRRP.
    pub version: u8,
    /// Time between its advertisements.
    pub interval_ms: u64,
    /// Its state.
    pub state: RouterState,
    /// Since when.
    pub since_unix_ms: u64,
    /// Why, as the log has it.
    pub why: String,
    /// Its priority before anything tracked.
    pub configured_priority: u8,
    /// Its priority with all weights.
    pub priority: u8,
    /// Who was last heard to be master, if it was another.
    pub master: Option<IpAddr>,
    /// Addresses that it advertises and holds as master.
    pub addresses: Vec<Address>,
    /// Addresses that it holds besides (`virtual_ipaddress_excluded`).
    pub excluded_addresses: Vec<Address>,
    /// What it has counted.
    pub counters: Counters,
}

/// An address that moves with the master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that name its network.
    pub bits: u8,
    /// The interface that it is on.
    pub interface: String,
}

/// What a virtual router has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Advertisements that counted.
    pub received: u64,
    /// Advertisements sent; with unicast one for each peer.
    pub sent: u64,
    /// How often it became master.
    pub became_master: u64,
    /// How often it ceased to be.
    pub released_master: u64,
    /// Changes of state.
    pub transitions: u64,
    /// Resignations received.
    pub resignations_received: u64,
    /// Resignations sent.
    pub resignations_sent: u64,
    /// Advertisements with another list of addresses, which counted.
    pub addresses_differ: u64,
    /// Gratuitous ARPs and neighbour advertisements sent.
    pub announcements: u64,
    /// Addresses put back that somebody took away.
    pub restored: u64,
    /// Packets that did not count, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// Virtual routers that move together (`vrrp_sync_group`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Names of its instances.
    pub instances: Vec<String>,
    /// Its state.
    pub state: RouterState,
    /// Since when.
    pub since_unix_ms: u64,
}

/// A script that virtual routers depend on (`vrrp_script`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Script {
    /// Its name.
    pub name: String,
    /// Whether it last succeeded; `None` before its first end.
    pub good: Option<bool>,
    /// What was last said of it.
    pub said: String,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name in the log.
    pub name: String,
    /// What it is in the table: one, or one for each member of its group.
    pub targets: Vec<Target>,
    /// Whether enough of its servers are good.
    pub quorum: Quorum,
    /// Who serves while they are not.
    pub sorry: Option<Sorry>,
    /// Whether its checks rest (`ha_suspend`).
    pub suspended: bool,
    /// Its servers.
    pub servers: Vec<Server>,
}

/// What a virtual server is in the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// A service by address.
    Address {
        /// `tcp`, `udp` or `sctp`.
        protocol: String,
        /// Virtual address.
        address: IpAddr,
        /// Virtual port.
        port: u16,
    },
    /// A service by firewall mark.
    Mark {
        /// The mark.
        mark: u32,
        /// `ipv4` or `ipv6`.
        family: String,
    },
}

/// The quorum of a virtual server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quorum {
    /// Whether it holds.
    pub held: bool,
    /// Since when.
    pub since_unix_ms: u64,
    /// The sum of weights of good servers.
    pub weight: u64,
    /// The sum at which it is gained.
    pub gained_at: u64,
    /// The sum below which it is lost.
    pub lost_below: u64,
    /// How often it was lost.
    pub losses: u64,
}

/// Serves while the quorum is lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sorry {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it serves.
    pub serves: bool,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its configured weight.
    pub configured_weight: u32,
    /// The weight that it has while it is good.
    pub weight: u32,
    /// Whether all its checks are good.
    pub up: bool,
    /// Since when.
    pub since_unix_ms: u64,
    /// Why it is down; `None` if it is up, or has not been up yet.
    pub why: Option<String>,
    /// How often it went down.
    pub downs: u64,
    /// It stays in the table with weight 0 when it is down (`inhibit_on_failure`).
    pub inhibit: bool,
    /// Its checks.
    pub checks: Vec<Check>,
}

/// A check of a real server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Its kind in the words of the configuration, such as `HTTP_GET`.
    pub kind: String,
    /// Whether the server is good, as far as this check can tell.
    pub up: bool,
    /// Since when.
    pub since_unix_ms: u64,
    /// Attempts that have ended.
    pub attempts: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Rounds in a row that have spoken for a change.
    pub rounds: u32,
    /// Rounds in a row that make the change: `fall` of a check that is up, else `rise`.
    pub rounds_needed: u32,
    /// The last attempt that has ended.
    pub last: Option<Attempt>,
}

/// An attempt of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub at_unix_ms: u64,
    /// How long it took.
    pub took_us: u64,
    /// What it came to.
    pub result: AttemptResult,
    /// What was seen, if it did not succeed.
    pub why: Option<String>,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttemptResult {
    /// The server serves.
    Good,
    /// It does not.
    Bad,
    /// It was not asked: this host lacks something.
    Unknown,
}

/// What became of lines for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Lines that there was no room for: whoever reads is too slow.
    pub lost: u64,
}

/// Asks the daemon of the calling thread's network namespace how it is; `None` if there is none, or
/// one of another [`SCHEMA`].
pub fn ask() -> Option<State> {
    let text = read(&path().ok()?).ok()?;
    let state: State = serde_json::from_slice(&text).ok()?;
    (state.schema == SCHEMA).then_some(state)
}

/// Returns where the daemon of the calling thread's network namespace answers.
pub(super) fn path() -> io::Result<PathBuf> {
    Ok(PathBuf::from(format!("{FOLDER}/keepalived-{}.sock", netns::cookie()?)))
}

fn read(path: &PathBuf) -> io::Result<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    let mut stream = connected(path)?;
    let mut text = Vec::new();
    let mut part = vec![0; 1 << 16];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => return Ok(text),
            read if text.len() as u64 + read as u64 > BYTES_MAX => {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            read => text.extend_from_slice(part.get(..read).unwrap_or_default()),
        }
    }
}

/// Connects, without waiting for longer than the whole may take if many are waiting already.
fn connected(path: &PathBuf) -> io::Result<UnixStream> {
    let to = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::new(PATIENCE.as_secs().try_into().unwrap_or(i64::MAX), 0);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    connect(socket.as_raw_fd(), &to)?;
    Ok(UnixStream::from(socket))
}
