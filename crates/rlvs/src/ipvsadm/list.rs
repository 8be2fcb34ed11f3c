//! The tables that `-L` prints, byte for byte as upstream prints them.

use std::io::{self, Write};
use std::net::SocketAddr;

use rlvs_control::model::{
    ConnectionLine, Destination, DestinationEntry, Family, ForwardingMethod, Netmask, Protocol,
    Service, ServiceEntry, ServiceId, SyncDaemon, Timeouts, Traffic, Tunnel, TunnelChecksum,
    Version,
};

use super::address;
use super::names::Names;
use super::order;
use super::parse::{Columns, Listing, flag_names};

/// An IPv4 address and port is cut to so many letters; a host name may be longer.
const ENDPOINT_LETTERS_MAX: usize = 28;

/// Returns the first line of a list of all services.
pub(crate) fn banner(version: Version, size: u32) -> String {
    format!("IP Virtual Server version {version} (size={size})\n")
}

/// Returns the title and a line for each service and each of its destinations.
pub(crate) fn services(
    mut entries: Vec<ServiceEntry>,
    columns: Columns,
    listing: &Listing,
    names: &Names,
) -> String {
    let mut text = title(columns);
    if listing.sorted {
        entries = order::sort_services(entries);
    }
    for mut entry in entries {
        text.push_str(&service(&entry, columns, listing, names));
        if listing.sorted {
            entry.destinations = order::sort_destinations(entry.destinations);
        }
        for to in &entry.destinations {
            text.push_str(&destination(to, entry.service.id, columns, listing, names));
        }
    }
    text
}

fn title(columns: Columns) -> String {
    let wide = |names: [&str; 5]| {
        let [a, b, c, d, e] = names;
        format!("{:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}\n", "Prot LocalAddress:Port")
    };
    let (first, second) = match columns {
        Columns::Plain => (
            "Prot LocalAddress:Port Scheduler Flags\n".to_owned(),
            "           Forward Weight ActiveConn InActConn",
        ),
        Columns::TunInfo => (
            "Prot LocalAddress:Port Scheduler Flags\n".to_owned(),
            "           Forward TunnelInfo    Weight ActiveConn InActConn",
        ),
        Columns::Stats => (wide(["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]), ""),
        Columns::Rate => (wide(["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]), ""),
        Columns::Thresholds => (
            format!(
                "{:<33} {:<10} {:<10} {:<10} {:<10}\n",
                "Prot LocalAddress:Port", "Uthreshold", "Lthreshold", "ActiveConn", "InActConn"
            ),
            "",
        ),
        Columns::PersistentConn => (
            format!(
                "{:<33} {:<9} {:<11} {:<10} {:<10}\n",
                "Prot LocalAddress:Port", "Weight", "PersistConn", "ActiveConn", "InActConn"
            ),
            "",
        ),
    };
    format!("{first}  -> RemoteAddress:Port{second}\n")
}

fn service(entry: &ServiceEntry, columns: Columns, listing: &Listing, names: &Names) -> String {
    let Service { id, scheduler, persistence, .. } = &entry.service;
    let name = match *id {
        ServiceId::Address { protocol, address, port } => {
            let at = SocketAddr::new(address, port);
            let at = cut(names.endpoint(at, Some(protocol), listing.numeric), at);
            format!("{:<4} {at}", protocol_name(protocol))
        }
        ServiceId::Mark { mark, family: Family::V6 } => {
            format!("FWM  {} IPv6", mark.cast_signed())
        }
        ServiceId::Mark { mark, .. } => format!("FWM  {}", mark.cast_signed()),
    };
    match columns {
        Columns::Stats | Columns::Rate => {
            format!("{name:<33}{}\n", traffic(&entry.traffic, listing.exact))
        }
        Columns::Plain | Columns::Thresholds | Columns::PersistentConn | Columns::TunInfo => {
            let mut line = format!("{name} {scheduler}");
            if let Some(flags) = scheduler_flags(&entry.service) {
                line.push_str(&format!(" ({flags})"));
            }
            if let Some(persistence) = persistence {
                line.push_str(&format!(" persistent {}", persistence.timeout_s));
                if let Some(mask) = netmask(persistence.netmask) {
                    line.push_str(&format!(" mask {mask}"));
                }
                if let Some(engine) = &entry.service.persistence_engine {
                    line.push_str(&format!(" pe {engine}"));
                }
            }
            if entry.service.one_packet {
                line.push_str(" ops");
            }
            line + "\n"
        }
    }
}

fn destination(
    entry: &DestinationEntry,
    service: ServiceId,
    columns: Columns,
    listing: &Listing,
    names: &Names,
) -> String {
    let DestinationEntry { destination: to, active, inactive, persistent, .. } = entry;
    let Destination { weight, upper_threshold, lower_threshold, .. } = to;
    let at = SocketAddr::new(to.id.address, to.id.port);
    let at = cut(names.endpoint(at, protocol(service), listing.numeric), at);
    let rest = match columns {
        Columns::Plain => {
            format!(" {:<7} {weight:<6} {active:<10} {inactive:<10}", forward(to.method))
        }
        Columns::TunInfo => format!(
            " {:<7} {:<13} {weight:<6} {active:<10} {inactive:<10}",
            forward(to.method),
            tunnel(to.method)
        ),
        Columns::Stats => traffic(&entry.traffic, listing.exact),
        Columns::Rate => rates(&entry.traffic, listing.exact),
        Columns::Thresholds => {
            format!(" {upper_threshold:<10} {lower_threshold:<10} {active:<10} {inactive:<10}")
        }
        Columns::PersistentConn => {
            format!(" {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
        }
    };
    format!("  -> {at:<28}{rest}\n")
}

fn cut(text: String, at: SocketAddr) -> String {
    if at.is_ipv6() { text } else { text.chars().take(ENDPOINT_LETTERS_MAX).collect() }
}

fn traffic(traffic: &Traffic, exact: bool) -> String {
    let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = *traffic;
    let numbers = [connections, in_packets, out_packets, in_bytes, out_bytes];
    numbers.into_iter().map(|number| large(number, exact)).collect()
}

/// Returns the rates of a destination, of which upstream shortens only those of bytes.
fn rates(rates: &Traffic, exact: bool) -> String {
    let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = *rates;
    let bytes = large(in_bytes, exact) + &large(out_bytes, exact);
    format!(" {connections:>8} {in_packets:>8} {out_packets:>8}{bytes}")
}

/// Returns a number in nine columns, in units of thousand and more if it would not fit.
fn large(number: u64, exact: bool) -> String {
    match number {
        _ if exact => {
            let digits = number.to_string();
            format!("{digits:>width$}", width = (digits.len() + 1).max(9))
        }
        0..100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / 1_000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / 1_000_000_000),
        100_000_000_000_000.. => format!("{:>8}T", number / 1_000_000_000_000),
    }
}

/// Returns the word for a forwarding method in the column `Forward`.
pub(crate) fn forward(method: ForwardingMethod) -> &'static str {
    match method {
        ForwardingMethod::Masquerade | ForwardingMethod::FullNat => "Masq",
        ForwardingMethod::DirectRoute => "Route",
        ForwardingMethod::Tunnel(_) => "Tunnel",
    }
}

fn tunnel(method: ForwardingMethod) -> String {
    let ForwardingMethod::Tunnel(tunnel) = method else {
        return "n/a".to_owned();
    };
    match tunnel {
        Tunnel::Ipip => "ipip".to_owned(),
        Tunnel::Gue { port, checksum } => {
            let checksum = match checksum {
                TunnelChecksum::None => "-c",
                TunnelChecksum::Outer => "+c",
                TunnelChecksum::Remote => "r+c",
            };
            format!("gue:{port}:{checksum}")
        }
        Tunnel::Gre { checksum } => format!("gre:{}c", if checksum { '+' } else { '-' }),
    }
}

/// Returns the protocol whose names the ports of a service have.
pub(crate) fn protocol(service: ServiceId) -> Option<Protocol> {
    match service {
        ServiceId::Address { protocol, .. } => Some(protocol),
        ServiceId::Mark { .. } => None,
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        Protocol::Other(_) => "?",
    }
}

/// Returns the flags of a service's scheduler, if it has any.
pub(crate) fn scheduler_flags(service: &Service) -> Option<String> {
    let names = flag_names(&service.scheduler).into_iter().enumerate();
    let set = names.filter(|(bit, _)| service.scheduler_flags & 1 << bit != 0);
    let set: Vec<_> = set.map(|(_, name)| name).collect();
    (!set.is_empty()).then(|| set.join(","))
}

/// Returns a persistence mask, if it is not the one that leaves every client by itself.
pub(crate) fn netmask(mask: Netmask) -> Option<String> {
    match mask {
        Netmask::V4([255, 255, 255, 255]) | Netmask::V6(128) => None,
        Netmask::V4(bytes) => Some(std::net::Ipv4Addr::from(bytes).to_string()),
        Netmask::V6(length) => Some(length.to_string()),
    }
}

/// Writes the table of connections, with the columns of persistence engines or without.
pub(crate) fn connections(
    list: &[ConnectionLine],
    engines: bool,
    numeric: bool,
    names: &Names,
    to: &mut dyn Write,
) -> io::Result<()> {
    let rest = match engines {
        true => format!("{:<18} {:<16} {}", "destination", "pe name", "pe_data"),
        false => "destination".to_owned(),
    };
    writeln!(to, "IPVS connection entries")?;
    writeln!(to, "pro expire {:<11} {:<18} {:<18} {rest}", "state", "source", "virtual")?;
    let mut text = String::new();
    for line in list {
        text.clear();
        connection(line, engines, numeric, names, &mut text);
        to.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Appends the line of a connection. There may be millions: nothing here makes a string.
fn connection(line: &ConnectionLine, engines: bool, numeric: bool, names: &Names, to: &mut String) {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|known| known.name() == Some(&*line.protocol));
    column(to, 3, |to| to.push_str(&line.protocol));
    column(to, 6, |to| {
        address::push_padded(to, line.expires_s / 60);
        to.push(':');
        address::push_padded(to, line.expires_s % 60);
    });
    column(to, 11, |to| to.push_str(&line.state));
    for end in [line.client, line.virtual_address] {
        column(to, 18, |to| names.push_endpoint(end, protocol, numeric, to));
    }
    match &line.engine {
        Some(data) if engines => {
            column(to, 16, |to| names.push_endpoint(line.destination, protocol, numeric, to));
            column(to, 18, |to| to.push_str(&data.engine));
            to.push_str(&data.data);
        }
        _ => names.push_endpoint(line.destination, protocol, numeric, to),
    }
    to.push('\n');
}

/// Appends what `write` does, made as long as the column, and a blank.
fn column(to: &mut String, width: usize, write: impl FnOnce(&mut String)) {
    const BLANKS: &str = "                  ";
    let start = to.len();
    write(to);
    let written = to.get(start..).map_or(0, |text| text.chars().count());
    to.push_str(BLANKS.get(..width.saturating_sub(written)).unwrap_or(BLANKS));
    to.push(' ');
}

/// Returns a line for each synchronisation daemon.
pub(crate) fn sync_daemons(daemons: &[SyncDaemon]) -> String {
    daemons.iter().map(sync_daemon).collect()
}

fn sync_daemon(daemon: &SyncDaemon) -> String {
    let SyncDaemon { role, interface, sync_id, .. } = daemon;
    let mut text = format!("{role} sync daemon (mcast={interface}, syncid={sync_id}");
    if let Some(length) = daemon.message_bytes_max {
        text.push_str(&format!(", maxlen={length}"));
    }
    if let Some(group) = daemon.group {
        text.push_str(&format!(", group={}", address::text(group)));
    }
    if let Some(port) = daemon.port {
        text.push_str(&format!(", port={port}"));
    }
    if let Some(ttl) = daemon.ttl {
        text.push_str(&format!(", ttl={ttl}"));
    }
    text + ")\n"
}

/// Returns the line of `-L --timeout`.
pub(crate) fn timeouts(timeouts: Timeouts) -> String {
    let Timeouts { tcp_s, tcp_fin_s, udp_s } = timeouts;
    format!("Timeout (tcp tcpfin udp): {tcp_s} {tcp_fin_s} {udp_s}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_keep_nine_columns() {
        for (number, short, exact) in [
            (0, "        0", "        0"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (999_999_999, "  999999K", " 999999999"),
            (1_000_000_000, "    1000M", " 1000000000"),
            (99_999_999_999, "   99999M", " 99999999999"),
            (100_000_000_000, "     100G", " 100000000000"),
            (99_999_999_999_999, "   99999G", " 99999999999999"),
            (100_000_000_000_000, "     100T", " 100000000000000"),
            (u64::MAX, "18446744T", " 18446744073709551615"),
        ] {
            assert_eq!(large(number, false), short);
            assert_eq!(large(number, true), exact);
        }
    }
}
