//! Reads a command line into a [`Request`], which is complete and makes sense by itself.
//!
//! Options take effect from left to right, and the order matters as it does upstream: a mask
//! before an IPv6 address is lost, a real server before its service does not know its port.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use rlvs_control::model::{
    Destination, DestinationId, Family, ForwardingMethod, Netmask, Persistence, Protocol, Service,
    ServiceId, SyncDaemon, SyncRole, Timeouts, Tunnel, TunnelChecksum,
};

use super::Backend;
use super::address::{Endpoint, endpoint, host_v4, leading_number, number};
use super::failure::Failure;
use super::flags::FLAGS;
use super::grammar::{Command, Flag, Given, Meaning, Method, Opt, TunnelKind, spellings};
use super::names::Names;
use super::words::Words;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Help,
    Version,
    AddService(Service),
    EditService(Service),
    DeleteService(ServiceId),
    AddDestination(ServiceId, Destination),
    EditDestination(ServiceId, Destination),
    DeleteDestination(ServiceId, DestinationId),
    Flush,
    Zero(Option<ServiceId>),
    SetTimeouts(Timeouts),
    List(Listing),
    Save(Form),
    Restore {
        /// All lines or none.
        atomic: bool,
    },
    StartSyncDaemon(SyncDaemon),
    StopSyncDaemon(SyncRole),
}

/// How a table is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// Numbers for names (`-n`).
    pub(crate) numeric: bool,
    /// With what upstream's lines leave out (`--full`).
    pub(crate) full: bool,
}

/// What to list, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) what: What,
    /// Numbers for names (`-n`).
    pub(crate) numeric: bool,
    /// Large numbers in full (`--exact`).
    pub(crate) exact: bool,
    /// Not in the table's own order (`--nosort`).
    pub(crate) sorted: bool,
    /// As JSON (`--json`).
    pub(crate) json: bool,
}

/// What to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// All services, or one of them.
    Services {
        only: Option<ServiceId>,
        columns: Columns,
    },
    /// Connections, with the columns of persistence engines or without.
    Connections {
        engines: bool,
    },
    Timeouts,
    Daemons,
}

/// The columns of a list of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Columns {
    Plain,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    TunInfo,
}

/// The longest name of a scheduler or persistence engine; what is longer is cut.
const NAME_BYTES_MAX: usize = 15;
const DEFAULT_SCHEDULER: &str = "wlc";
const DEFAULT_PERSISTENCE_S: u32 = 360;
/// 31 days.
const TIMEOUT_S_MAX: i64 = 2_678_400;
const ANY_V4: Netmask = Netmask::V4([255; 4]);
const ANY_V6: Netmask = Netmask::V6(128);
const NUMBER: RangeInclusive<i64> = 0..=i32::MAX as i64;
const PORT: RangeInclusive<i64> = 1..=65535;
const DEFAULT_INTERFACE: &str = "eth0";

/// Takes the words before the command, which say whose table it is for; `otherwise` is the name of
/// that if they do not.
///
/// # Errors
/// [`Failure::Usage`] for a name that is none.
pub(crate) fn backend<'a>(
    mut words: &'a [String],
    otherwise: Option<&str>,
) -> Result<(Backend, &'a [String]), Failure> {
    let flag = FLAGS.iter().find(|flag| flag.meaning == Meaning::Backend);
    let spelling = flag.map_or(String::new(), Flag::spelling);
    let named = |name: &str| {
        Backend::from_name(name).ok_or_else(|| {
            Failure::Usage(format!("{spelling}: {name:?} is neither rlvs nor kernel"))
        })
    };
    let mut found = otherwise.filter(|name| !name.is_empty()).map(named).transpose()?;
    while let [word, rest @ ..] = words {
        let Some(tail) = word.strip_prefix(&spelling) else { break };
        let (name, rest) = match (tail.strip_prefix('='), rest) {
            (Some(name), rest) => (name, rest),
            (None, [name, rest @ ..]) if tail.is_empty() => (name.as_str(), rest),
            (None, _) => break,
        };
        (found, words) = (Some(named(name)?), rest);
    }
    Ok((found.unwrap_or_default(), words))
}

/// Reads the words after the program's name. `program` is for the advice that a message gives.
///
/// # Errors
/// [`Failure::NoCommand`], [`Failure::BadOption`] and [`Failure::Usage`].
pub(crate) fn request(words: &[String], program: &str, names: &Names) -> Result<Request, Failure> {
    if words.is_empty() {
        return Draft::new(Command::List, names).request(&[]);
    }
    let mut words = Words::new(words);
    let advice = |what: &str| {
        Failure::NoCommand(format!("{what}; a command comes first, `{program} --help` shows them"))
    };
    let (flag, value) = match words.next() {
        Some(Ok(first)) => first,
        Some(Err(wrong)) => return Err(advice(&wrong.to_string())),
        None => return Err(advice("there is no command")),
    };
    let command = match flag.meaning {
        Meaning::Help => return Ok(Request::Help),
        Meaning::Version => return Ok(Request::Version),
        Meaning::Command(command) => command,
        _ => return Err(advice(&format!("{} is no command", flag.spelling()))),
    };
    let mut draft = Draft::new(command, names);
    if let Some(role) = value {
        draft.daemon.role = match role {
            "master" => SyncRole::Master,
            "backup" => SyncRole::Backup,
            _ => return Err(wrong(flag, role, "is neither master nor backup")),
        };
    }
    while let Some(next) = words.next() {
        let (flag, value) = next?;
        draft.take(flag, value)?;
    }
    draft.request(words.plain())
}

fn wrong(flag: &Flag, value: &str, what: &str) -> Failure {
    Failure::Usage(format!("{}: {value:?} {what}", flag.spelling()))
}

/// A command line read up to some word.
struct Draft<'a> {
    names: &'a Names,
    command: Command,
    given: Given,
    protocol: Option<Protocol>,
    address: Option<IpAddr>,
    port: u16,
    mark: u32,
    family: Family,
    netmask: Netmask,
    scheduler: &'a str,
    scheduler_flags: &'a str,
    persistence_s: u32,
    persistence_engine: &'a str,
    server: Option<DestinationId>,
    method: Method,
    tunnel: TunnelKind,
    tunnel_port: u16,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    daemon: SyncDaemon,
}

impl<'a> Draft<'a> {
    fn new(command: Command, names: &'a Names) -> Self {
        Self {
            names,
            command,
            given: Given::default(),
            protocol: None,
            address: None,
            port: 0,
            mark: 0,
            family: Family::V4,
            netmask: ANY_V4,
            scheduler: "",
            scheduler_flags: "",
            persistence_s: DEFAULT_PERSISTENCE_S,
            persistence_engine: "",
            server: None,
            method: Method::DirectRoute,
            tunnel: TunnelKind::Ipip,
            tunnel_port: 0,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            daemon: SyncDaemon {
                role: SyncRole::Master,
                interface: DEFAULT_INTERFACE.to_owned(),
                sync_id: 0,
                message_bytes_max: None,
                group: None,
                port: None,
                ttl: None,
            },
        }
    }

    fn take(&mut self, flag: &Flag, value: Option<&'a str>) -> Result<(), Failure> {
        if let Some(option) = flag.meaning.option()
            && !self.given.insert(option)
        {
            return Err(Failure::Usage(format!("{} is given twice", spellings(option))));
        }
        let text = value.unwrap_or("");
        match flag.meaning {
            Meaning::Help | Meaning::Version | Meaning::Command(_) => {
                let text = format!("{} stands behind another command", flag.spelling());
                return Err(Failure::Usage(text));
            }
            Meaning::Backend => {
                let text = format!("{} stands before the command", flag.spelling());
                return Err(Failure::Usage(text));
            }
            Meaning::Sort => {}
            Meaning::MarkIsV6 if self.mark == 0 => {
                return Err(Failure::Usage(format!("{} follows -f MARK", flag.spelling())));
            }
            Meaning::MarkIsV6 => (self.family, self.netmask) = (Family::V6, ANY_V6),
            Meaning::Method(method) => self.method = method,
            Meaning::Mark => {
                self.mark = whole(flag, text, 1..=i64::from(u32::MAX))?;
                // Names of ports behind a mark are those of TCP.
                self.protocol = Some(Protocol::Tcp);
            }
            Meaning::Address(protocol) => {
                self.protocol = Some(protocol);
                let at = self.endpoint(flag, text)?;
                (self.address, self.port) = (Some(at.address), at.port.unwrap_or(0));
                self.family = Family::of(at.address);
                if self.family == Family::V6 {
                    self.netmask = ANY_V6;
                }
            }
            Meaning::Plain(option) => self.take_plain(option, flag, value)?,
        }
        Ok(())
    }

    fn take_plain(
        &mut self,
        option: Opt,
        flag: &Flag,
        value: Option<&'a str>,
    ) -> Result<(), Failure> {
        let text = value.unwrap_or("");
        match option {
            Opt::Server => {
                let at = self.endpoint(flag, text)?;
                let port = at.port.unwrap_or(self.port);
                self.server = Some(DestinationId { address: at.address, port });
            }
            Opt::Netmask => self.netmask = self.netmask(flag, text)?,
            Opt::Scheduler => self.scheduler = cut(text),
            Opt::PersistenceEngine => self.persistence_engine = cut(text),
            Opt::SchedulerFlags => self.scheduler_flags = text,
            Opt::Persistent if value.is_some() => {
                self.persistence_s = whole(flag, text, 1..=TIMEOUT_S_MAX)?;
            }
            Opt::Weight => self.weight = whole(flag, text, NUMBER)?,
            Opt::UpperThreshold => self.upper_threshold = whole(flag, text, NUMBER)?,
            Opt::LowerThreshold => self.lower_threshold = whole(flag, text, NUMBER)?,
            Opt::TunType => {
                self.tunnel = TunnelKind::from_name(text)
                    .ok_or_else(|| wrong(flag, text, "is none of ipip, gue and gre"))?;
            }
            Opt::TunPort => self.tunnel_port = whole(flag, text, PORT)?,
            Opt::McastInterface => self.daemon.interface = text.to_owned(),
            Opt::SyncId => self.daemon.sync_id = whole(flag, text, 0..=255)?,
            Opt::SyncMaxlen => {
                self.daemon.message_bytes_max = Some(whole(flag, text, 1..=65507)?);
            }
            Opt::McastPort => self.daemon.port = Some(whole(flag, text, PORT)?),
            Opt::McastTtl => self.daemon.ttl = Some(whole(flag, text, 1..=255)?),
            Opt::McastGroup => self.daemon.group = Some(multicast(flag, text)?),
            // The others say all by being there.
            _ => {}
        }
        Ok(())
    }

    fn endpoint(&self, flag: &Flag, text: &str) -> Result<Endpoint, Failure> {
        endpoint(text, self.protocol, self.names).ok_or_else(|| {
            wrong(flag, text, "is no address with a port, as 192.0.2.1:80 or [2001:db8::1]:80")
        })
    }

    fn netmask(&self, flag: &Flag, text: &str) -> Result<Netmask, Failure> {
        match self.family {
            Family::V4 => host_v4(text, self.names)
                .map(|mask| Netmask::V4(mask.octets()))
                .ok_or_else(|| wrong(flag, text, "is no IPv4 mask, as 255.255.255.0")),
            Family::V6 => u8::try_from(leading_number(text))
                .ok()
                .filter(|length| (1..=128).contains(length))
                .map(Netmask::V6)
                .ok_or_else(|| wrong(flag, text, "is no prefix length from 1 to 128")),
        }
    }

    /// Completes the request when the last word is read.
    fn request(mut self, plain: &[&str]) -> Result<Request, Failure> {
        let (values, more) = match (self.command, plain.split_at_checked(3)) {
            (Command::Set, Some(split)) => split,
            (Command::Set, None) => {
                return Err(Failure::Usage("--set takes three numbers of seconds".to_owned()));
            }
            _ => (&[][..], plain),
        };
        let timeouts = values.iter().map(|text| timeout(text)).collect::<Result<Vec<_>, _>>()?;
        if let Some(word) = more.first() {
            return Err(Failure::Usage(format!("{word:?} is one word too many")));
        }
        self.command.check(self.given)?;
        Ok(match self.command {
            Command::AddService => Request::AddService(self.service()?),
            Command::EditService => Request::EditService(self.service()?),
            Command::DeleteService => Request::DeleteService(self.id()?),
            Command::AddServer => Request::AddDestination(self.id()?, self.destination()?),
            Command::EditServer => Request::EditDestination(self.id()?, self.destination()?),
            Command::DeleteServer => Request::DeleteDestination(self.id()?, self.server()?),
            Command::Flush => Request::Flush,
            Command::Zero => Request::Zero(self.id().ok()),
            Command::Set => match timeouts[..] {
                [tcp_s, tcp_fin_s, udp_s] => {
                    Request::SetTimeouts(Timeouts { tcp_s, tcp_fin_s, udp_s })
                }
                _ => return Err(Failure::Usage("--set takes three numbers".to_owned())),
            },
            Command::List => Request::List(self.listing()),
            Command::Save => Request::Save(Form {
                numeric: self.given.has(Opt::Numeric),
                full: self.given.has(Opt::Full),
            }),
            Command::Restore => Request::Restore { atomic: self.given.has(Opt::Atomic) },
            Command::StartDaemon => Request::StartSyncDaemon(self.daemon),
            Command::StopDaemon => Request::StopSyncDaemon(self.daemon.role),
        })
    }

    fn id(&self) -> Result<ServiceId, Failure> {
        match (self.protocol, self.address) {
            (Some(protocol), Some(address)) => {
                Ok(ServiceId::Address { protocol, address, port: self.port })
            }
            _ if self.mark != 0 => Ok(ServiceId::Mark { family: self.family, mark: self.mark }),
            _ => Err(Failure::Usage("no service is named".to_owned())),
        }
    }

    fn service(&self) -> Result<Service, Failure> {
        let id = self.id()?;
        let persistent = self.given.has(Opt::Persistent);
        let one_packet = self.given.has(Opt::OnePacket);
        if let ServiceId::Address { protocol, port, .. } = id {
            if port == 0 && !persistent {
                let text = "port 0, which stands for every port, goes only with -p";
                return Err(Failure::Usage(text.to_owned()));
            }
            if one_packet && protocol != Protocol::Udp {
                let text = "-o goes only with a UDP service or a firewall mark";
                return Err(Failure::Usage(text.to_owned()));
            }
        }
        let scheduler = match self.scheduler {
            "" => DEFAULT_SCHEDULER,
            name => name,
        };
        let persistence = Persistence { timeout_s: self.persistence_s, netmask: self.netmask };
        let engine = self.persistence_engine;
        Ok(Service {
            id,
            scheduler: scheduler.to_owned(),
            scheduler_flags: scheduler_flags(self.scheduler_flags, scheduler)?,
            one_packet,
            persistence: persistent.then_some(persistence),
            persistence_engine: Some(engine).filter(|name| !name.is_empty()).map(str::to_owned),
        })
    }

    fn server(&self) -> Result<DestinationId, Failure> {
        self.server.ok_or_else(|| Failure::Usage("no real server is named".to_owned()))
    }

    fn destination(&mut self) -> Result<Destination, Failure> {
        let mut id = self.server()?;
        let method = self.forwarding()?;
        if self.method != Method::Masquerade && self.mark == 0 {
            // Only translation can change the port.
            id.port = self.port;
        }
        if self.method != Method::Tunnel && Family::of(id.address) != self.family {
            return Err(Failure::Usage(format!(
                "real server {} is not of the service's address family; only -i can reach it",
                id.address
            )));
        }
        Ok(Destination {
            id,
            method,
            weight: self.weight,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
        })
    }

    fn forwarding(&self) -> Result<ForwardingMethod, Failure> {
        if self.method != Method::Tunnel
            && let Some(option) = self.given.first_of(&super::grammar::TUNNEL_OPTIONS)
        {
            return Err(Failure::Usage(format!("{} goes only with -i", spellings(option))));
        }
        let full = self.given.has(Opt::Snat);
        if full && self.method != Method::Masquerade {
            return Err(Failure::Usage(format!("{} goes only with -m", spellings(Opt::Snat))));
        }
        let tunnel = match (self.method, self.tunnel) {
            (Method::DirectRoute, _) => return Ok(ForwardingMethod::DirectRoute),
            (Method::Masquerade, _) if full => return Ok(ForwardingMethod::FullNat),
            (Method::Masquerade, _) => return Ok(ForwardingMethod::Masquerade),
            (Method::Tunnel, TunnelKind::Ipip) => Tunnel::Ipip,
            (Method::Tunnel, TunnelKind::Gre) => {
                Tunnel::Gre { checksum: self.given.has(Opt::TunCsum) }
            }
            (Method::Tunnel, TunnelKind::Gue) => Tunnel::Gue {
                port: self.tunnel_port,
                checksum: match self.given.first_of(&[Opt::TunCsum, Opt::TunRemcsum]) {
                    Some(Opt::TunCsum) => TunnelChecksum::Outer,
                    Some(_) => TunnelChecksum::Remote,
                    None => TunnelChecksum::None,
                },
            },
        };
        self.tunnel.check(self.given)?;
        Ok(ForwardingMethod::Tunnel(tunnel))
    }

    fn listing(&self) -> Listing {
        let columns = [
            (Opt::Stats, Columns::Stats),
            (Opt::Rate, Columns::Rate),
            (Opt::Thresholds, Columns::Thresholds),
            (Opt::PersistentConn, Columns::PersistentConn),
            (Opt::TunInfo, Columns::TunInfo),
        ];
        let columns = columns.into_iter().find(|&(option, _)| self.given.has(option));
        let columns = columns.map_or(Columns::Plain, |(_, columns)| columns);
        let what = match self.given.first_of(&[Opt::Connection, Opt::Timeout, Opt::Daemon]) {
            Some(Opt::Connection) => {
                What::Connections { engines: self.given.has(Opt::PersistentConn) }
            }
            Some(Opt::Timeout) => What::Timeouts,
            Some(_) => What::Daemons,
            None => What::Services { only: self.id().ok(), columns },
        };
        Listing {
            what,
            numeric: self.given.has(Opt::Numeric),
            exact: self.given.has(Opt::Exact),
            sorted: !self.given.has(Opt::NoSort),
            json: self.given.has(Opt::Json),
        }
    }
}

fn whole<T: TryFrom<i64>>(
    flag: &Flag,
    text: &str,
    range: RangeInclusive<i64>,
) -> Result<T, Failure> {
    let what = format!("is no whole number from {} to {}", range.start(), range.end());
    number(text, range)
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| wrong(flag, text, &what))
}

fn timeout(text: &str) -> Result<u32, Failure> {
    let value = number(text, 0..=TIMEOUT_S_MAX).and_then(|value| u32::try_from(value).ok());
    value.ok_or_else(|| {
        let what = format!("--set: {text:?} is no whole number of seconds from 0 to");
        Failure::Usage(format!("{what} {TIMEOUT_S_MAX}"))
    })
}

fn multicast(flag: &Flag, text: &str) -> Result<IpAddr, Failure> {
    match text.parse::<IpAddr>() {
        Ok(group) if group.is_multicast() => Ok(group),
        _ => Err(wrong(flag, text, "is no multicast address")),
    }
}

/// Cuts a name to the length that IPVS has room for.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or(name)
}

/// Returns the names of a scheduler's three flags.
pub(crate) fn flag_names(scheduler: &str) -> [&'static str; 3] {
    match scheduler {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    }
}

fn scheduler_flags(text: &str, scheduler: &str) -> Result<u8, Failure> {
    let flags = FLAGS.iter().find(|flag| flag.meaning == Meaning::Plain(Opt::SchedulerFlags));
    let spelling = flags.map_or(String::new(), Flag::spelling);
    let refuse = |what: String| Err(Failure::Usage(format!("{spelling}: {what}")));
    let mut bits = 0;
    let mut met = false;
    for word in text.split(',').filter(|word| !word.is_empty()) {
        met = true;
        let of = |names: [&str; 3]| names.iter().position(|&name| name == word);
        match of(flag_names(scheduler)).or_else(|| of(flag_names(""))) {
            Some(bit) => bits |= 1 << bit,
            None if of(flag_names("sh")).or_else(|| of(flag_names("mh"))).is_some() => {
                return refuse(format!("{word:?} does not go with scheduler {scheduler}"));
            }
            None => {
                return refuse(format!(
                    "{word:?} is no flag; {}",
                    flag_names(scheduler).join(", ")
                ));
            }
        }
    }
    if !met && !text.is_empty() {
        return refuse(format!("{text:?} names no flag"));
    }
    Ok(bits)
}
