//! `rlvs snat`: the addresses that full NAT (`ipvsadm -m --snat`) puts in place of clients'.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use rlvs_linux::dataplane::pool::{self, ADDRESSES_MAX, Member, PORTS};
use serde_json::{Value, json};

use crate::json::{self, Json};

/// Arguments of `rlvs snat`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    json: Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Adds addresses of this host; of those that are there, the ports change
    Add {
        /// An address, or the first and the last of several
        #[arg(value_name = "ADDRESS[-ADDRESS]")]
        addresses: String,
        /// Ports that clients' connections get, 1024-32767 if not given
        #[arg(long, value_name = "PORT-PORT")]
        ports: Option<String>,
        /// Take addresses that are not here, or not yet
        #[arg(long)]
        force: bool,
    },
    /// Removes addresses; connections that have them go on
    Del {
        /// An address, or the first and the last of several
        #[arg(value_name = "ADDRESS[-ADDRESS]")]
        addresses: String,
    },
    /// Lists the addresses with their ports
    List,
}

/// Runs `rlvs snat`.
///
/// # Errors
/// Nothing is attached, a missing capability, words that are no addresses, or addresses that are not
/// here.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Add { addresses, ports, force } => {
            let ports = ports.as_deref().map_or(Ok(PORTS), port_range)?;
            let members = members(addresses, ports)?;
            for Member { address, .. } in &members {
                ensure!(
                    *force || pool::is_local(*address)?,
                    "{address} is not an address of this host, so answers to it would not come \
                     here: add it to an interface first (`ip address add {address} dev …`), or say \
                     --force"
                );
            }
            let (first, last) = pool::host_ports()?;
            if ports.0 <= last && first <= ports.1 {
                eprintln!(
                    "rlvs: this host gives the ports {first}-{last} to connections of its own \
                     (net.ipv4.ip_local_port_range); one of them to the same server may collide"
                );
            }
            ensure!(
                pool::add(&members)?,
                "the pool has room for {ADDRESSES_MAX} addresses of each IP version"
            );
        }
        Command::Del { addresses } => {
            let gone = pool::delete(&members(addresses, PORTS)?)?;
            ensure!(gone, "not all of {addresses} are in the pool; nothing is removed");
        }
        Command::List => {}
    }
    if arguments.json.json {
        let addresses: Vec<Value> = pool::list()?.iter().map(as_json).collect();
        json::print(json!({ "addresses": addresses }))?;
    } else if matches!(arguments.command, Command::List) {
        let mut out = io::stdout().lock();
        for member in pool::list()? {
            writeln!(out, "{member}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns an address of the pool as JSON.
pub(crate) fn as_json(Member { address, ports: (first, last) }: &Member) -> Value {
    json!({ "address": address, "first_port": first, "last_port": last })
}

/// Reads an address, or the first and the last of several.
pub(crate) fn members(text: &str, ports: (u16, u16)) -> Result<Vec<Member>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parse = |word: &str| -> Result<IpAddr> {
        word.parse().with_context(|| format!("`{word}` is not an address"))
    };
    let (first, last) = (parse(first)?, parse(last)?);
    ensure!(!first.is_unspecified() && !first.is_multicast(), "{first} is no unicast address");
    let addresses: Vec<IpAddr> = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            range(first.to_bits().into(), last.to_bits().into())
                .map(|bits| Ipv4Addr::from_bits(bits as u32).into())
                .collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => range(first.to_bits(), last.to_bits())
            .map(|bits| Ipv6Addr::from_bits(bits).into())
            .collect(),
        _ => bail!("{first} and {last} are of two IP versions"),
    };
    ensure!(!addresses.is_empty(), "{last} is before {first}");
    ensure!(
        addresses.len() <= ADDRESSES_MAX as usize,
        "`{text}` are more than the {ADDRESSES_MAX} addresses that the pool has room for"
    );
    Ok(addresses.into_iter().map(|address| Member { address, ports }).collect())
}

/// Counts from one number to another, at most one step further than the pool has room for.
fn range(first: u128, last: u128) -> impl Iterator<Item = u128> {
    (first..=last).take(ADDRESSES_MAX as usize + 1)
}

/// Reads a port, or the first and the last of several.
pub(crate) fn port_range(text: &str) -> Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parse = |port: &str| -> Result<u16> {
        port.parse()
            .ok()
            .filter(|&port| port != 0)
            .with_context(|| format!("`{port}` is not a port"))
    };
    let (first, last) = (parse(first)?, parse(last)?);
    ensure!(first <= last, "port {first} is above {last}");
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Option<usize> {
        members(text, PORTS).ok().map(|members| members.len())
    }

    #[test]
    fn ranges_of_addresses_are_of_one_version_and_in_order() {
        assert_eq!(count("10.0.0.1"), Some(1));
        assert_eq!(count("10.0.0.250-10.0.1.5"), Some(12));
        assert_eq!(count("2001:db8::1-2001:db8::10"), Some(16));
        assert_eq!(count("10.0.0.0-10.0.0.255"), Some(256));
        for wrong in [
            "10.0.0.0-10.0.1.0",
            "10.0.0.2-10.0.0.1",
            "10.0.0.1-2001:db8::1",
            "10.0.0.1-",
            "ten",
            "0.0.0.0",
            "224.0.0.1",
            "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            assert_eq!(count(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranges_of_ports_have_no_port_0() {
        assert_eq!(port_range("1-65535").unwrap(), (1, 65535));
        assert_eq!(port_range("7").unwrap(), (7, 7));
        for wrong in ["0-5", "6-5", "65536", "", "-", "a-b"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }
}
