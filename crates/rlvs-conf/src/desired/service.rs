//! Services, real servers, checkers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rlvs_control::model::{Family, ForwardingMethod, Netmask, Protocol};

use super::{Script, Statement, User};

/// What a virtual server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Packets to this address and port; 0 stands for every port.
    Address(IpAddr, u16),
    /// Packets with this mark.
    Mark(u32, Family),
    /// Packets to any address and mark of a group.
    Group(String),
}

/// `virtual_server_group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressGroup {
    /// Its name.
    pub name: String,
    /// What belongs to it.
    pub members: Vec<Member>,
}

/// A part of an address group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// Addresses, all with the same port.
    Addresses(AddressRange, u16),
    /// A mark.
    Mark(u32, Family),
}

/// Addresses from one to another of the same family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first.
    pub first: IpAddr,
    /// The last, not before the first.
    pub last: IpAddr,
}

/// More addresses than this nobody means.
const RANGE_MAX: u128 = 1 << 16;

impl AddressRange {
    /// Reads `A`, `A-B`, `A-N` (the last part of the last address, hexadecimal for IPv6) or
    /// `A/LENGTH` (every address of the prefix).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some((address, length)) = text.split_once('/') {
            return Self::of_prefix(address.parse().ok()?, length.parse().ok()?);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: IpAddr = first.parse().ok()?;
        let last = match last.parse() {
            Ok(last) => last,
            Err(_) => with_last_part(first, last)?,
        };
        let same = first.is_ipv4() == last.is_ipv4();
        let count = number(last).checked_sub(number(first))?;
        (same && count < RANGE_MAX).then_some(Self { first, last })
    }

    fn of_prefix(address: IpAddr, length: u32) -> Option<Self> {
        let bits: u32 = if address.is_ipv4() { 32 } else { 128 };
        let free = bits.checked_sub(length)?;
        if free > 16 {
            return None;
        }
        let mask = (1u128 << free) - 1;
        let at = |number: u128| match address {
            IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpAddr::V6(_) => Ipv6Addr::from(number).into(),
        };
        Some(Self { first: at(number(address) & !mask), last: at(number(address) | mask) })
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn with_last_part(first: IpAddr, part: &str) -> Option<IpAddr> {
    match first {
        IpAddr::V4(first) => {
            let [a, b, c, _] = first.octets();
            Some(Ipv4Addr::new(a, b, c, part.parse().ok()?).into())
        }
        IpAddr::V6(first) => {
            let mut parts = first.segments();
            parts[7] = u16::from_str_radix(part, 16).ok()?;
            Some(IpAddr::from(parts))
        }
    }
}

/// A service and who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// What it serves.
    pub target: Target,
    /// Transport protocol. A mark carries any: it is what checks and scripts are told.
    pub protocol: Protocol,
    /// Scheduler by its name in IPVS.
    pub scheduler: String,
    /// Flags 1 to 3 of the scheduler as bits 0 to 2.
    pub scheduler_flags: u8,
    /// Every datagram is scheduled for itself.
    pub one_packet: bool,
    /// Clients keep their real server.
    pub persistence: Option<Persistence>,
    /// How packets reach real servers that do not say it themselves.
    pub method: ForwardingMethod,
    /// Takes all while the quorum is lost.
    pub sorry_server: Option<SorryServer>,
    /// Sum of weights that must be good, and what happens when it is not.
    pub quorum: Quorum,
    /// Notify at stop too (`omega`).
    pub notify_at_stop: bool,
    /// No checks while the address is on another host.
    pub suspend: bool,
    /// Mails about the quorum.
    pub mail: bool,
    /// The real servers; no two have the same address and port.
    pub real_servers: Vec<RealServer>,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// Persistence of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Time for which a client keeps its real server, in whole seconds.
    pub timeout: Duration,
    /// Mask by which clients count as one.
    pub granularity: Netmask,
    /// What tells clients apart, if not their address.
    pub engine: Option<String>,
}

/// The quorum of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Sum of weights, at most that of all real servers if there are any.
    pub weight: u32,
    /// Distance from it before it is lost or gained; less than `weight`, or 0.
    pub hysteresis: u32,
    /// Run when it is gained.
    pub up: Option<Script>,
    /// Run when it is lost.
    pub down: Option<Script>,
}

/// Takes all while the quorum is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SorryServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 for that of the packet.
    pub port: u16,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// It stays, with weight 0, while it is not needed.
    pub inhibit: bool,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 for that of the packet.
    pub port: u16,
    /// Share of new connections; 0: none.
    pub weight: u32,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// Connections at which it takes no more; 0 for any number.
    pub upper_threshold: u32,
    /// Connections below which it takes new ones again.
    pub lower_threshold: u32,
    /// When it has failed it stays, with weight 0.
    pub inhibit: bool,
    /// Run when it is good.
    pub up: Option<Box<Script>>,
    /// Run when it is bad.
    pub down: Option<Box<Script>>,
    /// Mails about it.
    pub mail: bool,
    /// Its checkers; all must be good. Whoever carries them out shares them, and so do servers that
    /// are checked alike.
    pub checkers: Arc<[Arc<Checker>]>,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

impl RealServer {
    /// Returns whether a checker opens TCP connections to it.
    pub fn is_checked_by_tcp(&self) -> bool {
        self.checkers.iter().any(|checker| {
            let kind = &checker.kind;
            matches!(kind, CheckerKind::Http(_) | CheckerKind::Tcp | CheckerKind::Smtp { .. })
        })
    }
}

/// Looks whether a real server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checker {
    /// What it does.
    pub kind: CheckerKind,
    /// When it does it, and what it concludes. Most checkers have the same numbers.
    pub timing: Arc<Timing>,
    /// Where it looks, if not at the real server's own address and port.
    pub at: Option<Box<SocketAddr>>,
    /// How its packets begin; few checkers say it.
    pub origin: Option<Box<Origin>>,
    /// The real server is down until it succeeds.
    pub starts_down: bool,
    /// Log every failure, not only the one that changes something.
    pub log_all_failures: bool,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// When a checker runs and what it concludes.
///
/// A *round* begins every `delay_loop`. It is one attempt, and after a failure while the real server is
/// up at most `retry` more with `delay_before_retry` between them; the first that succeeds makes it a
/// good round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time from the end of a round to the next.
    pub delay_loop: Duration,
    /// The first round begins somewhere within this time.
    pub warmup: Duration,
    /// Attempts more in a round.
    pub retry: u32,
    /// Time before another attempt.
    pub delay_before_retry: Duration,
    /// Longest wait for one answer.
    pub connect_timeout: Duration,
    /// Longest time of a whole attempt, whatever comes meanwhile.
    pub timeout: Option<Duration>,
    /// Failed rounds in a row until the real server is down; at least 1.
    pub fall: u32,
    /// Good rounds in a row until it is up; at least 1.
    pub rise: u32,
}

impl Default for Timing {
    /// Returns the numbers that checkers have of which nothing is said, and those have that only follow
    /// something.
    fn default() -> Self {
        let delay_loop = Duration::from_secs(60);
        Self {
            delay_loop,
            warmup: delay_loop,
            retry: 1,
            delay_before_retry: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(5),
            timeout: None,
            fall: 1,
            rise: 1,
        }
    }
}

/// How a checker's packets begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Source address.
    pub address: Option<IpAddr>,
    /// Source port.
    pub port: Option<u16>,
    /// Interface that they leave by.
    pub interface: Option<String>,
    /// Their mark; 0 for none.
    pub mark: u32,
}

/// What a checker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckerKind {
    /// Asks a web server.
    Http(Box<Http>),
    /// Opens a connection.
    Tcp,
    /// Runs a command.
    Misc(Box<Misc>),
    /// Sends an ICMP echo request.
    Ping,
    /// Sends a datagram.
    Udp(Box<Udp>),
    /// Asks a name server.
    Dns(Box<Dns>),
    /// Greets a mail server.
    Smtp {
        /// Name in the greeting.
        helo: String,
    },
    /// Follows a BFD session.
    Bfd {
        /// Name of the session.
        session: String,
    },
    /// Takes the weight from a file.
    File {
        /// Name of the `track_file`.
        file: String,
        /// Factor of its number.
        weight: i32,
        /// The number counts with the other sign.
        reverse: bool,
    },
}

/// `HTTP_GET` and `SSL_GET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// TLS (`SSL_GET`).
    pub tls: bool,
    /// What is asked for; at least one.
    pub urls: Vec<Url>,
    /// Version of the request.
    pub version: HttpVersion,
    /// No pauses between the checks of a recovery.
    pub fast_recovery: bool,
    /// Name in the TLS handshake.
    pub server_name: Option<String>,
}

/// `http_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0.
    V10,
    /// HTTP/1.0 with `Connection: close`.
    V10Close,
    /// HTTP/1.1 with `Connection: close`.
    V11,
}

/// Something that a checker asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Path, with the query.
    pub path: String,
    /// Host in the request; address and port of the check if `None`.
    pub host: Option<String>,
    /// Good status codes, from the first to the second.
    pub status: Vec<(u16, u16)>,
    /// MD5 of the body.
    pub digest: Option<[u8; 16]>,
    /// What the body must hold, or with `false` must not.
    pub regex: Option<(String, bool)>,
    /// What is not carried out.
    pub kept: Vec<Statement>,
}

/// `MISC_CHECK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misc {
    /// The command.
    pub command: Vec<String>,
    /// Who runs it, if not `script_user`.
    pub user: Option<User>,
    /// Longest run.
    pub timeout: Duration,
    /// Its status sets the weight.
    pub dynamic: bool,
}

/// `UDP_CHECK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// What is sent.
    pub payload: Vec<u8>,
    /// What must come back; `None` if silence is good.
    pub reply: Option<Reply>,
}

/// `DNS_CHECK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Type of record.
    pub record: String,
    /// Name.
    pub name: String,
}

/// An answer to a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Halves of bytes that must be the same; `None` may be any. Empty: anything is good.
    pub nibbles: Vec<Option<u8>>,
    /// Least length.
    pub length_min: u16,
    /// Largest length.
    pub length_max: u16,
}
