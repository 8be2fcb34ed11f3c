//! `rlvs status`: everything on one screen.

mod json;
pub mod snapshot;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use rlvs_control::model::Traffic;
use rlvs_linux::dataplane::note::Running;

use crate::doctor::write_findings;
use crate::drain::{destination_name, service_name};
use crate::ipvsadm::forward;
use crate::keepalived::daemon::state::{self, Instance, State};
use snapshot::{Defence, Health, Server, Service, Snapshot};

/// Lines about services and servers; more do not fit on a screen.
const LINES_MAX: usize = 40;

/// Arguments of `rlvs status`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `rlvs status`.
///
/// # Errors
/// A missing capability.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let snapshot = Snapshot::take(true)?;
    let out = &mut io::stdout().lock();
    match (&snapshot, arguments.json) {
        (Some(snapshot), true) => writeln!(out, "{}", json::status(snapshot))?,
        (None, true) => writeln!(out, "{}", json::detached(state::ask().as_ref()))?,
        (Some(snapshot), false) => write(out, snapshot)?,
        (None, false) => {
            writeln!(out, "not attached: no interface of this network namespace balances")?;
            // Virtual routers need no table.
            for line in state::ask().iter().flat_map(of_daemon) {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(if snapshot.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(out: &mut dyn Write, snapshot: &Snapshot) -> io::Result<()> {
    writeln!(out, "pins          {}", snapshot.pins)?;
    for one in &snapshot.interfaces {
        let why = if one.why.is_empty() { String::new() } else { format!(" ({})", one.why) };
        writeln!(out, "interface     {}: {}{why}", one.name, one.mode.name())?;
    }
    for name in &snapshot.unattached {
        writeln!(out, "interface     {name}: not attached; `rlvs attach` does it")?;
    }
    for line in snapshot.daemon.iter().flat_map(of_daemon) {
        writeln!(out, "{line}")?;
    }
    let (active, inactive, persistent) = snapshot.connections();
    let servers: usize = snapshot.services.iter().map(|service| service.servers.len()).sum();
    writeln!(out, "services      {}", snapshot.services.len())?;
    writeln!(out, "destinations  {servers}")?;
    let templates = match persistent {
        0 => String::new(),
        _ => format!(", {persistent} persistent clients"),
    };
    writeln!(out, "connections   {active} active, {inactive} inactive{templates}")?;
    writeln!(out, "rates         {}", in_a_second(&snapshot.total.rates))?;
    let lines: Vec<String> = snapshot.services.iter().flat_map(of_service).collect();
    for line in lines.iter().take(LINES_MAX) {
        writeln!(out, "{line}")?;
    }
    if lines.len() > LINES_MAX {
        writeln!(out, "  and {} lines more: rlvs top, or --json", lines.len() - LINES_MAX)?;
    }
    for one in &snapshot.drained {
        let (name, service) = (destination_name(one.id), service_name(one.service));
        let place = if one.listed { "" } else { ", not in the table" };
        writeln!(
            out,
            "drained       {name} of {service}: {} active, {} inactive, weight {} when undrained{place}",
            one.active, one.inactive, one.weight
        )?;
    }
    for one in &snapshot.synchronisation {
        writeln!(out, "sync          {}", of_synchronisation(one))?;
    }
    if let Some(access) = &snapshot.access {
        writeln!(out, "access        {access}")?;
    }
    if let Some(defence) = of_defence(snapshot.defence) {
        writeln!(out, "defence       {defence}")?;
    }
    for (reason, packets) in &snapshot.reasons {
        writeln!(out, "packets       {packets} {}", reason.name())?;
    }
    write_findings(out, &snapshot.findings)
}

fn of_daemon(daemon: &State) -> Vec<String> {
    let mut lines =
        vec![format!("keepalived    process {}, {}", daemon.pid, daemon.configuration.file)];
    if let Some(why) = &daemon.configuration.refused {
        lines.push(format!("keepalived    the last reload was refused: {why}"));
    }
    lines.extend(daemon.instances.iter().map(of_instance));
    lines
}

/// Says what is in force against floods; nothing where there is room and nothing is.
fn of_defence(defence: Defence) -> Option<String> {
    let Defence { scarce, ends_half_open, drop_rate, strict } = defence;
    let dropped = format!("one of {drop_rate} new connections is dropped");
    let measures = [
        (ends_half_open, "half-open connections are ended"),
        (drop_rate > 0, dropped.as_str()),
        (strict, "states are the strict ones"),
    ];
    let measures: Vec<&str> = measures
        .into_iter()
        .filter(|(is_in_force, _)| *is_in_force)
        .map(|(_, what)| what)
        .collect();
    match (scarce, measures.is_empty()) {
        (false, true) => None,
        (false, false) => Some(measures.join(", ")),
        (true, false) => Some(format!("a table has little room: {}", measures.join(", "))),
        (true, true) => Some(
            "a table has little room, and drop_entry, drop_packet, secure_tcp are off".to_owned(),
        ),
    }
}

/// Says what a synchronisation daemon has done, as far as it is not 0.
fn of_synchronisation(Running { daemon, counts, .. }: &Running) -> String {
    let done: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let done = if done.is_empty() { "nothing yet".to_owned() } else { done.join(", ") };
    format!("{} on {}, syncid {}: {done}", daemon.role, daemon.interface, daemon.sync_id)
}

fn of_instance(instance: &Instance) -> String {
    let Instance { name, interface, priority, why, .. } = instance;
    let state = format!("{:?}", instance.state).to_uppercase();
    let master = match instance.master {
        Some(master) if state != "MASTER" => format!(", master is {master}"),
        _ => String::new(),
    };
    format!("vrrp          {name} on {interface}: {state}, priority {priority}{master}: {why}")
}

fn of_service(service: &Service) -> Vec<String> {
    let entry = &service.entry.service;
    let mut lines = vec![format!(
        "{} {}, {}",
        service_name(entry.id),
        entry.scheduler,
        in_a_second(&service.rates)
    )];
    lines.extend(service.servers.iter().map(of_server));
    let absent = |(id, why): &(_, String)| format!("  {:<24} out: {why}", destination_name(*id));
    lines.extend(service.absent.iter().map(absent));
    lines
}

fn of_server(server: &Server) -> String {
    let to = &server.entry.destination;
    let health = match &server.health {
        Health::Unchecked => String::new(),
        Health::Up => ", up".to_owned(),
        Health::Down(why) => format!(", down: {why}"),
    };
    let drained = if server.drained { ", drained" } else { "" };
    format!(
        "  {:<24} {} weight {}, {} active, {} inactive, {}{drained}{health}",
        destination_name(to.id),
        forward(to.method),
        to.weight,
        server.entry.active,
        server.entry.inactive,
        in_a_second(&server.rates),
    )
}

fn in_a_second(rates: &Traffic) -> String {
    format!(
        "{} conn/s, in {} packets/s {}B/s, out {} packets/s {}B/s",
        rates.connections,
        short(rates.in_packets),
        short(rates.in_bytes),
        short(rates.out_packets),
        short(rates.out_bytes)
    )
}

/// Writes a number in at most five characters: 999, 1.2k, 340k, 5.6M.
pub fn short(number: u64) -> String {
    let (mut scaled, mut units) = (number as f64, ["", "k", "M", "G", "T"].into_iter());
    let mut unit = units.next().unwrap_or_default();
    while scaled >= 999.5
        && let Some(next) = units.next()
    {
        scaled /= 1000.0;
        unit = next;
    }
    match unit {
        "" => number.to_string(),
        _ if scaled < 9.95 => format!("{scaled:.1}{unit}"),
        _ => format!("{scaled:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (9_949, "9.9k"),
            (9_999, "10k"),
            (999_499, "999k"),
            (999_999, "1.0M"),
            (5_600_000_000, "5.6G"),
            (u64::MAX, "18446744T"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
