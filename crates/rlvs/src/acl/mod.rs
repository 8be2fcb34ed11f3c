//! `rlvs acl`: who may open connections to which service. docs/acl.md tells how it is used.

pub(crate) mod file;
mod show;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use rlvs_control::access::{Access, LIMIT_MAX, Limit, Prefix, Rules, Verdict};
use rlvs_control::model::{Family, Protocol, ServiceId};
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::access;
use rlvs_linux::dataplane::maps::Maps;
use rlvs_linux::dataplane::pins;

use crate::configuration::{self, File};
use crate::json::{self, Json};
use crate::words;
pub(crate) use show::counted;

/// Reasons for which the guard refuses.
const REFUSALS: [Reason; 4] =
    [Reason::Denied, Reason::NotAllowed, Reason::TooFast, Reason::TooMany];

/// Arguments of `rlvs acl`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    json: Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Lets networks open connections, and nobody else who is not allowed
    Allow(Networks),
    /// Keeps networks from opening connections
    Deny(Networks),
    /// Takes networks off both lists
    Del(Networks),
    /// Limits the connections of each network of clients, in place of the limits there are
    Limit(LimitArguments),
    /// Says whether those who are refused are told so, by ICMP
    Refuse(RefuseArguments),
    /// Forgets the rules of a service, or all rules if none is named
    Clear(Of),
    /// Lists the rules
    List(Of),
    /// Replaces all rules by those of a file, at once
    Load {
        /// The file; /etc/rlvs/rlvs.toml, or that of RLVS_CONFIG, if none is named
        file: Option<PathBuf>,
    },
}

impl Command {
    /// Returns whose rules it is about.
    fn of(&self) -> &Of {
        const ALL: &Of = &Of {
            tcp_service: None,
            udp_service: None,
            sctp_service: None,
            fwmark_service: None,
            ipv6: false,
        };
        match self {
            Self::Allow(Networks { of, .. })
            | Self::Deny(Networks { of, .. })
            | Self::Del(Networks { of, .. })
            | Self::Limit(LimitArguments { of, .. })
            | Self::Refuse(RefuseArguments { of, .. })
            | Self::Clear(of)
            | Self::List(of) => of,
            Self::Load { .. } => ALL,
        }
    }
}

/// Which service; all if none is named.
#[derive(Args, Debug)]
struct Of {
    /// The rules of this TCP service alone
    #[arg(short = 't', long, value_name = "ADDRESS:PORT", group = "service", value_parser = words::end)]
    tcp_service: Option<SocketAddr>,
    /// The rules of this UDP service alone
    #[arg(short = 'u', long, value_name = "ADDRESS:PORT", group = "service", value_parser = words::end)]
    udp_service: Option<SocketAddr>,
    /// The rules of this SCTP service alone
    #[arg(long, value_name = "ADDRESS:PORT", group = "service", value_parser = words::end)]
    sctp_service: Option<SocketAddr>,
    /// The rules of the service of this firewall mark alone
    #[arg(short = 'f', long, value_name = "MARK", group = "service",
        value_parser = clap::value_parser!(u32).range(1..))]
    fwmark_service: Option<u32>,
    /// The mark's service is of IPv6
    #[arg(short = '6', long, requires = "fwmark_service")]
    ipv6: bool,
}

impl Of {
    fn service(&self) -> Option<ServiceId> {
        let addresses = [
            (Protocol::Tcp, self.tcp_service),
            (Protocol::Udp, self.udp_service),
            (Protocol::Sctp, self.sctp_service),
        ];
        let named = addresses.into_iter().find_map(|(protocol, end)| Some((protocol, end?)));
        if let Some((protocol, end)) = named {
            return Some(ServiceId::Address { protocol, address: end.ip(), port: end.port() });
        }
        let family = if self.ipv6 { Family::V6 } else { Family::V4 };
        self.fwmark_service.map(|mark| ServiceId::Mark { family, mark })
    }
}

#[derive(Args, Debug)]
struct Networks {
    #[command(flatten)]
    of: Of,
    /// Who is refused is told so, by ICMP, from now on
    #[arg(long)]
    reject: bool,
    /// Addresses, or networks such as 10.0.0.0/8 and 2001:db8::/32
    #[arg(required = true, value_name = "ADDRESS[/LENGTH]")]
    networks: Vec<Prefix>,
}

#[derive(Args, Debug)]
struct LimitArguments {
    #[command(flatten)]
    of: Of,
    /// New connections a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    rate: Option<u32>,
    /// New connections at once, before the rate counts; as many as the rate if not given
    #[arg(long, value_name = "N", requires = "rate",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    burst: Option<u32>,
    /// Connections at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    number: Option<u32>,
    /// Prefix length of what counts as one client, over IPv4
    #[arg(long, value_name = "LENGTH", default_value_t = 32,
        value_parser = clap::value_parser!(u8).range(0..=32))]
    per4: u8,
    /// The same over IPv6
    #[arg(long, value_name = "LENGTH", default_value_t = 64,
        value_parser = clap::value_parser!(u8).range(0..=128))]
    per6: u8,
    /// No limits
    #[arg(long, conflicts_with_all = ["rate", "number"])]
    none: bool,
    /// Who is refused is told so, by ICMP, from now on
    #[arg(long)]
    reject: bool,
}

impl LimitArguments {
    fn limit(&self) -> Result<Option<Limit>> {
        if self.none {
            return Ok(None);
        }
        ensure!(
            self.rate.is_some() || self.number.is_some(),
            "a limit has --rate or --number or both; --none takes it away"
        );
        Ok(Some(Limit {
            rate: self.rate,
            burst: self.burst.or(self.rate).unwrap_or(1),
            number: self.number,
            length4: self.per4,
            length6: self.per6,
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Refusal {
    /// Nothing is said
    Drop,
    /// ICMP port unreachable
    Reject,
}

#[derive(Args, Debug)]
struct RefuseArguments {
    #[command(flatten)]
    of: Of,
    /// What becomes of packets that are refused
    #[arg(value_enum)]
    how: Refusal,
}

/// Runs `rlvs acl`.
///
/// # Errors
/// Nothing is attached, a missing capability, or words or a file that are no rules.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let json = arguments.json.json;
    match &arguments.command {
        Command::Allow(networks) => put(networks, Verdict::Allow)?,
        Command::Deny(networks) => put(networks, Verdict::Deny)?,
        Command::Del(networks) => remove(networks)?,
        Command::Limit(arguments) => {
            let limit = arguments.limit()?;
            change(&arguments.of, |rules| {
                rules.limit = limit;
                rules.reject |= arguments.reject;
                Ok(())
            })?;
        }
        Command::Refuse(RefuseArguments { of, how }) => change(of, |rules| {
            rules.reject = *how == Refusal::Reject;
            Ok(())
        })?,
        Command::Clear(of) => {
            let of = of.service();
            access::edit(|access| {
                match of {
                    Some(id) => drop(access.services.remove(&id)),
                    None => *access = Access::default(),
                }
                Ok(())
            })?;
        }
        Command::List(of) => return list(of, json),
        Command::Load { file } => {
            let file = file.clone().unwrap_or_else(configuration::default_path);
            let new = File::read(&file)?.access()?.unwrap_or_default();
            let counted = show::counted(&new);
            access::edit(|access| {
                *access = new;
                Ok(())
            })
            .with_context(|| format!("loading {}", file.display()))?;
            if !json {
                writeln!(io::stdout(), "rlvs: {counted}")?;
            }
        }
    }
    if json { list(arguments.command.of(), json) } else { Ok(ExitCode::SUCCESS) }
}

fn change(of: &Of, change: impl FnOnce(&mut Rules) -> Result<(), String>) -> Result<()> {
    let of = of.service();
    Ok(access::edit(|access| change(access.rules_mut(of)))?)
}

fn put(Networks { of, reject, networks }: &Networks, verdict: Verdict) -> Result<()> {
    change(of, |rules| {
        rules.prefixes.extend(networks.iter().map(|network| (*network, verdict)));
        rules.reject |= *reject;
        Ok(())
    })
}

fn remove(Networks { of, networks, .. }: &Networks) -> Result<()> {
    change(of, |rules| {
        for network in networks {
            if rules.prefixes.remove(network).is_none() {
                let of = show::name(of.service());
                return Err(format!("{network} is in no list of {of}; nothing is changed"));
            }
        }
        Ok(())
    })
}

/// Lists the rules of a service, or all.
fn list(of: &Of, json: bool) -> Result<ExitCode> {
    let mut access = access::get()?;
    if let Some(id) = of.service() {
        let own = access.services.remove(&id);
        access = Access::default();
        access.services.extend(own.map(|rules| (id, rules)));
    }
    if json {
        json::print(show::json(&access, &refused()?))?;
    } else {
        let out = &mut io::BufWriter::new(io::stdout().lock());
        show::text(&access, out)?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns how many packets were refused, by reason.
fn refused() -> Result<Vec<(&'static str, u64)>> {
    let folder = pins::open()?.context("nothing is attached")?;
    let maps = Maps::open(&folder)?;
    Ok(REFUSALS.map(|reason| (reason.name(), maps.reason(reason as u32))).to_vec())
}

/// Returns what `rlvs status` says of the rules; `None` if there are none.
///
/// # Errors
/// As [`run`].
pub fn status() -> Result<Option<String>> {
    let access = access::get()?;
    Ok((access != Access::default()).then(|| show::counted(&access)))
}
