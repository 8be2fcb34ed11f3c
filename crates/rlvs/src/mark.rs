//! `rlvs mark`: which packets get which firewall mark. They meet the balancer before netfilter, which
//! gives marks elsewhere.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use rlvs_datapath::abi::MARK_RULES;
use rlvs_linux::dataplane::marks::{self, Rule};
use serde_json::{Value, json};

use crate::json::{self, Json};

/// Arguments of `rlvs mark`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    json: Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Adds a rule; the first that fits a packet decides
    Add(RuleArguments),
    /// Removes a rule
    Del(RuleArguments),
    /// Lists the rules
    List,
}

#[derive(Args, Debug)]
struct RuleArguments {
    /// The mark, as `ipvsadm -f` takes it
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    mark: u32,
    /// Destination address, or network such as 10.0.0.0/24
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    to: String,
    /// tcp, udp or a number; any if not given
    #[arg(long)]
    protocol: Option<String>,
    /// Destination port, or ports such as 80-443; all if not given
    #[arg(long, value_name = "PORT[-PORT]")]
    port: Option<String>,
}

impl RuleArguments {
    fn rule(&self) -> Result<Rule> {
        let (address, prefix) = match self.to.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (self.to.as_str(), None),
        };
        let address: IpAddr =
            address.parse().with_context(|| format!("`{address}` is not an address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix.map(str::parse) {
            None => longest,
            Some(Ok(prefix)) if prefix <= longest => prefix,
            Some(_) => bail!("the prefix in `{}` is not in 0 to {longest}", self.to),
        };
        let protocol = match self.protocol.as_deref() {
            None => 0,
            Some("tcp") => rlvs_wire::tcp::PROTOCOL,
            Some("udp") => rlvs_wire::udp::PROTOCOL,
            Some(other) => other.parse().with_context(|| format!("`{other}` is not a protocol"))?,
        };
        Ok(Rule { address, prefix, protocol, ports: self.ports()?, mark: self.mark })
    }

    fn ports(&self) -> Result<(u16, u16)> {
        let Some(ports) = self.port.as_deref() else { return Ok((0, u16::MAX)) };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let parse = |port: &str| -> Result<u16> {
            port.parse().with_context(|| format!("`{port}` is not a port"))
        };
        let (first, last) = (parse(first)?, parse(last)?);
        if first > last {
            bail!("port {first} is above {last}");
        }
        Ok((first, last))
    }
}

/// Runs `rlvs mark`.
///
/// # Errors
/// Nothing is attached, a missing capability, or words that are no rule.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Add(rule) => {
            if !marks::add(&rule.rule()?)? {
                bail!("there are {MARK_RULES} rules already");
            }
        }
        Command::Del(rule) => {
            if !marks::delete(&rule.rule()?)? {
                bail!("there is no such rule");
            }
        }
        Command::List => {}
    }
    if arguments.json.json {
        let rules: Vec<Value> = marks::list()?.iter().map(as_json).collect();
        json::print(json!({ "rules": rules }))?;
    } else if matches!(arguments.command, Command::List) {
        let mut out = io::stdout().lock();
        for rule in marks::list()? {
            writeln!(out, "{rule}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(rule: &Rule) -> Value {
    let Rule { address, prefix, protocol, ports: (first, last), mark } = rule;
    let protocol = (*protocol != 0).then_some(protocol);
    json!({
        "mark": mark, "to": format!("{address}/{prefix}"), "protocol": protocol,
        "first_port": first, "last_port": last,
    })
}
