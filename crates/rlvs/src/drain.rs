//! `rlvs drain` and `rlvs undrain`: a real server runs empty and comes back.
//!
//! That a server is drained is remembered in the table, not here: this process may end at any time.

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rlvs_control::model::{DestinationId, Drained, Protocol, ServiceEntry, ServiceId};
use rlvs_control::table::Table;
use serde_json::{Value, json};

use crate::configuration;
use crate::face;
use crate::json::SCHEMA;

/// How often connections are counted.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the sweep may take to remove what was ended, a pass of the largest table included.
const SWEEP_MAX: Duration = Duration::from_secs(60);
/// Exit status if connections were left at the deadline.
const LEFT: u8 = 3;

/// What becomes of connections that are left at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Then {
    /// They go on
    Keep,
    /// They end: the director answers a TCP client's next packet with a reset
    Reset,
}

/// Arguments of `rlvs drain`.
#[derive(Args, Debug)]
pub struct DrainArguments {
    #[command(flatten)]
    which: Which,
    /// How long to wait until it is empty, such as 90s, 5m or 1h; 0s does not wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    deadline: Duration,
    /// What becomes of connections that are left then
    #[arg(long, value_enum, default_value = "keep")]
    then: Then,
}

/// Arguments of `rlvs undrain`.
#[derive(Args, Debug)]
pub struct UndrainArguments {
    #[command(flatten)]
    which: Which,
}

/// Which destinations are meant.
#[derive(Args, Debug)]
struct Which {
    /// The real server, of every service that has it: ADDRESS or ADDRESS:PORT
    server: Server,
    /// Only of this service: [tcp:|udp:|sctp:]ADDRESS:PORT or mark:N
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceName>,
    /// Print JSON, a line for each change
    #[arg(long)]
    json: bool,
}

/// A real server as it was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { address, port: None });
        }
        match text.parse::<std::net::SocketAddr>() {
            Ok(end) => Ok(Self { address: end.ip(), port: Some(end.port()) }),
            Err(_) => Err("a real server is ADDRESS or ADDRESS:PORT, with [ ] around an IPv6 \
                           address before a port"
                .to_owned()),
        }
    }
}

/// A service as it was typed; without a protocol every one of that address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServiceName {
    Address(Option<Protocol>, std::net::SocketAddr),
    Mark(u32),
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "a service is [tcp:|udp:|sctp:]ADDRESS:PORT or mark:N";
        if let Some(mark) = text.strip_prefix("mark:") {
            return mark.parse().map(Self::Mark).map_err(|_| wrong.to_owned());
        }
        let protocols =
            [("tcp:", Protocol::Tcp), ("udp:", Protocol::Udp), ("sctp:", Protocol::Sctp)];
        let found = protocols
            .into_iter()
            .find_map(|(prefix, protocol)| Some((protocol, text.strip_prefix(prefix)?)));
        let (protocol, end) = match found {
            Some((protocol, end)) => (Some(protocol), end),
            None => (None, text),
        };
        end.parse().map(|end| Self::Address(protocol, end)).map_err(|_| wrong.to_owned())
    }
}

/// Reads a time such as `90s`, `5m`, `1h` or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    const MAX_S: u64 = 31 * 24 * 3600;
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let unit_s = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("a time is a number with s, m or h, such as 5m".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "a time is a number with s, m or h".to_owned())?;
    let seconds = number.checked_mul(unit_s).filter(|&seconds| seconds <= MAX_S);
    seconds.map(Duration::from_secs).ok_or_else(|| "at most 31 days".to_owned())
}

impl Which {
    fn is(&self, service: ServiceId, id: DestinationId) -> bool {
        self.server.address == id.address
            && self.server.port.is_none_or(|port| port == id.port)
            && self.names(service)
    }

    fn names(&self, service: ServiceId) -> bool {
        match (self.service, service) {
            (None, _) => true,
            (Some(ServiceName::Mark(wanted)), ServiceId::Mark { mark, .. }) => wanted == mark,
            (
                Some(ServiceName::Address(wanted, end)),
                ServiceId::Address { protocol, address, port },
            ) => {
                wanted.is_none_or(|wanted| wanted == protocol)
                    && (end.ip(), end.port()) == (address, port)
            }
            _ => false,
        }
    }

    fn shown(&self) -> String {
        match self.server.port {
            Some(port) => std::net::SocketAddr::new(self.server.address, port).to_string(),
            None => self.server.address.to_string(),
        }
    }

    fn drained(&self, table: &mut dyn Table) -> Result<Vec<Drained>> {
        let mut drained = table.drained()?;
        drained.retain(|one| self.is(one.service, one.id));
        Ok(drained)
    }
}

/// Returns a service's name as this face of the program writes it.
pub fn service_name(id: ServiceId) -> String {
    match id {
        ServiceId::Address { protocol, address, port } => {
            format!("{protocol} {}", std::net::SocketAddr::new(address, port))
        }
        ServiceId::Mark { mark, .. } => format!("FWM {mark}"),
    }
}

/// Returns a destination's name.
pub fn destination_name(id: DestinationId) -> String {
    std::net::SocketAddr::new(id.address, id.port).to_string()
}

/// Opens the table that the environment chooses.
///
/// # Errors
/// An unknown back end, or a table that cannot be opened.
pub fn open() -> Result<Box<dyn Table>> {
    Ok(face::open_table(configuration::backend(None)?)?)
}

/// Runs `rlvs drain`.
///
/// # Errors
/// No such server, or the table refused.
pub fn drain(arguments: &DrainArguments) -> Result<ExitCode> {
    let which = &arguments.which;
    let deadline = Instant::now() + arguments.deadline;
    begin(which)?;
    let mut progress = Progress::new(which.json);
    let left = wait(which, deadline, &mut progress)?;
    if left == 0 {
        progress.end("empty", "no connection is left; `rlvs undrain` gives it back")?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.then == Then::Keep {
        let text = format!("{left} connections are left and go on; it stays drained");
        progress.end("left", &text)?;
        return Ok(ExitCode::from(LEFT));
    }
    let ended = end(which)?;
    let last = Instant::now() + SWEEP_MAX;
    // A template that still had connections lives for a while after them, unless it is ended again.
    while wait(which, Instant::now() + LOOK_INTERVAL, &mut progress)? > 0 {
        ensure!(Instant::now() < last, "connections are still there, although {ended} were ended");
        end(which)?;
    }
    progress.end("reset", &format!("{ended} connections were ended; it stays drained"))?;
    Ok(ExitCode::SUCCESS)
}

/// Ends what the servers have left, and returns how much that was.
fn end(which: &Which) -> Result<u64> {
    let mut table = open()?;
    let mut ended = 0;
    for one in which.drained(&mut *table)? {
        ended += table.end_connections(one.service, one.id)?;
    }
    Ok(ended)
}

/// Sets the servers aside, and says what follows.
fn begin(which: &Which) -> Result<()> {
    let mut table = open()?;
    let entries = table.services()?;
    let mut chosen = Vec::new();
    for entry in &entries {
        let service = entry.service.id;
        let ids = entry.destinations.iter().map(|to| to.destination.id);
        chosen.extend(ids.filter(|&id| which.is(service, id)).map(|id| (service, id)));
    }
    if chosen.is_empty() && which.drained(&mut *table)?.is_empty() {
        let named: Vec<&ServiceEntry> =
            entries.iter().filter(|entry| which.names(entry.service.id)).collect();
        match which.service {
            Some(_) if named.is_empty() => {
                bail!("there is no such service; `ipvsadm -L -n` lists them")
            }
            Some(_) => bail!("the service has no real server {}: {}", which.shown(), known(&named)),
            None => bail!("no service has a real server {}: {}", which.shown(), known(&named)),
        }
    }
    for &(service, id) in &chosen {
        let what = || format!("draining {} of {}", destination_name(id), service_name(service));
        table.drain(service, id).with_context(what)?;
    }
    for entry in table.services()? {
        let concerned = chosen.iter().any(|(service, _)| *service == entry.service.id);
        if concerned && entry.destinations.iter().all(|to| to.destination.weight == 0) {
            eprintln!(
                "rlvs: warning: {} has no other real server with a weight: new connections to it \
                 are refused",
                service_name(entry.service.id)
            );
        }
    }
    Ok(())
}

/// Names the real servers that there are, as many as fit.
fn known(entries: &[&ServiceEntry]) -> String {
    const SHOWN: usize = 8;
    let all = entries.iter().flat_map(|entry| &entry.destinations);
    let names: std::collections::BTreeSet<_> =
        all.map(|to| destination_name(to.destination.id)).collect();
    match names.len() {
        0 => "there is none at all".to_owned(),
        count if count > SHOWN => format!("there are {count} others"),
        _ => format!("there are {}", names.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// Waits until the servers are empty or time is up. Returns the connections that are left, with the
/// clients that would bring more.
fn wait(which: &Which, deadline: Instant, progress: &mut Progress) -> Result<u64> {
    loop {
        // The table is closed in between: it keeps others out.
        let drained = which.drained(&mut *open()?)?;
        ensure!(
            !drained.is_empty(),
            "{} is drained no longer: somebody undrained it",
            which.shown()
        );
        progress.show(&drained)?;
        let left = |one: &Drained| u64::from(one.active) + u64::from(one.inactive);
        let sum: u64 = drained.iter().map(|one| left(one) + u64::from(one.persistent)).sum();
        let now = Instant::now();
        if sum == 0 || now >= deadline {
            return Ok(sum);
        }
        std::thread::park_timeout(LOOK_INTERVAL.min(deadline - now));
    }
}

/// Shows how many connections are left: a line that changes on a terminal, else one for each change.
struct Progress {
    json: bool,
    live: bool,
    shown: Option<String>,
}

impl Progress {
    fn new(json: bool) -> Self {
        Self { json, live: !json && io::stdout().is_terminal(), shown: None }
    }

    fn show(&mut self, drained: &[Drained]) -> io::Result<()> {
        let text = if self.json {
            let servers: Vec<Value> = drained.iter().map(drained_json).collect();
            json!({ "schema": SCHEMA, "drained": servers }).to_string()
        } else {
            drained.iter().map(in_words).collect::<Vec<_>>().join("; ")
        };
        if self.shown.as_deref() == Some(&text) {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.live {
            write!(out, "\r\x1b[K{text}")?
        } else {
            writeln!(out, "{text}")?
        }
        self.shown = Some(text);
        out.flush()
    }

    fn end(&mut self, outcome: &str, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.live {
            writeln!(out)?;
        }
        if self.json {
            writeln!(out, "{}", json!({ "schema": SCHEMA, "outcome": outcome, "text": text }))
        } else {
            writeln!(out, "{text}")
        }
    }
}

fn in_words(one: &Drained) -> String {
    let Drained { active, inactive, persistent, .. } = one;
    let clients = match persistent {
        0 => String::new(),
        _ => format!(", {persistent} persistent clients"),
    };
    let (name, service) = (destination_name(one.id), service_name(one.service));
    format!("{name} of {service}: {active} active, {inactive} inactive connections{clients}")
}

/// Returns a drained destination as status and drain write it.
pub fn drained_json(one: &Drained) -> Value {
    json!({
        "service": service_name(one.service),
        "server": destination_name(one.id),
        "weight": one.weight,
        "listed": one.listed,
        "active": one.active,
        "inactive": one.inactive,
        "persistent": one.persistent,
    })
}

/// Runs `rlvs undrain`.
///
/// # Errors
/// No such server is drained, or the table refused.
pub fn undrain(arguments: &UndrainArguments) -> Result<ExitCode> {
    let which = &arguments.which;
    let mut table = open()?;
    let drained = which.drained(&mut *table)?;
    if drained.is_empty() {
        let others: Vec<String> =
            table.drained()?.iter().map(|one| destination_name(one.id)).collect();
        let others = if others.is_empty() {
            "no server is".to_owned()
        } else {
            format!("drained: {}", others.join(", "))
        };
        bail!("{} is not drained; {others}", which.shown());
    }
    let out = &mut io::stdout();
    for one in drained {
        let (name, service) = (destination_name(one.id), service_name(one.service));
        table.undrain(one.service, one.id).with_context(|| format!("{name} of {service}"))?;
        let weight = one.weight;
        if which.json {
            writeln!(out, "{}", json!({ "schema": SCHEMA, "undrained": drained_json(&one) }))?;
        } else if one.listed {
            writeln!(out, "{name} of {service}: weight {weight} again")?;
        } else {
            writeln!(out, "{name} of {service}: not drained when it is added again")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h", 3600), ("7", 7), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "5d", "-1s", "99999999999999999999s", "9999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_is_found_by_what_was_typed() {
        let service = |port| ServiceId::Address {
            protocol: Protocol::Tcp,
            address: [192, 0, 2, 1].into(),
            port,
        };
        let id = DestinationId { address: [10, 0, 0, 1].into(), port: 8080 };
        let mark = ServiceId::Mark { family: rlvs_control::model::Family::V4, mark: 7 };
        for (server, of, found) in [
            ("10.0.0.1", None, [true, true, true]),
            ("10.0.0.1:8080", None, [true, true, true]),
            ("10.0.0.1:80", None, [false; 3]),
            ("10.0.0.2", None, [false; 3]),
            ("10.0.0.1", Some("192.0.2.1:80"), [true, false, false]),
            ("10.0.0.1", Some("tcp:192.0.2.1:443"), [false, true, false]),
            ("10.0.0.1", Some("udp:192.0.2.1:80"), [false; 3]),
            ("10.0.0.1", Some("mark:7"), [false, false, true]),
        ] {
            let which = Which {
                server: server.parse().unwrap(),
                service: of.map(|text| text.parse().unwrap()),
                json: false,
            };
            let is = [service(80), service(443), mark].map(|service| which.is(service, id));
            assert_eq!(is, found, "{server} {of:?}");
        }
        assert!("10.0.0.1:x".parse::<Server>().is_err());
        assert!("192.0.2.1".parse::<ServiceName>().is_err());
    }
}
