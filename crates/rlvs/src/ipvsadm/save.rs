//! The lines that `-S` writes and `-R` reads.

use std::net::SocketAddr;

use rlvs_control::model::{
    DestinationEntry, Family, ForwardingMethod, Protocol, Service, ServiceEntry, ServiceId, Tunnel,
    TunnelChecksum,
};

use super::list::{netmask, protocol, scheduler_flags};
use super::names::Names;
use super::order;
use super::parse::Form;

/// Returns a line for each service and each of its destinations, sorted.
///
/// Thresholds have no place in this format unless it is `full`, time-outs have none, and a mark of 2^31 or more is written
/// in a way that cannot be read back; both are so upstream.
pub(crate) fn services(entries: Vec<ServiceEntry>, form: Form, names: &Names) -> String {
    let Form { numeric, full } = form;
    let mut text = String::new();
    for entry in order::sort_services(entries) {
        let id = identity(entry.service.id, numeric, names);
        text.push_str(&format!("-A {id} -s {}{}\n", entry.service.scheduler, rest(&entry.service)));
        for to in order::sort_destinations(entry.destinations) {
            text.push_str(&destination(&to, entry.service.id, &id, numeric, names));
            if full {
                text.push_str(&thresholds(&to));
            }
            text.push('\n');
        }
    }
    text
}

/// Returns the line of a destination.
pub(crate) fn added(service: ServiceId, entry: &DestinationEntry, names: &Names) -> String {
    let id = identity(service, true, names);
    destination(entry, service, &id, true, names) + &thresholds(entry)
}

fn identity(id: ServiceId, numeric: bool, names: &Names) -> String {
    match id {
        ServiceId::Address { protocol, address, port } => {
            let flag = match protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
                // Upstream's word, which nothing reads back.
                Protocol::Other(_) => "--xxx-service",
            };
            let at = SocketAddr::new(address, port);
            format!("{flag} {}", names.endpoint(at, Some(protocol), numeric))
        }
        ServiceId::Mark { family: Family::V4, mark } => format!("-f {}", mark.cast_signed()),
        ServiceId::Mark { family: Family::V6, mark } => format!("-f {} -6", mark.cast_signed()),
    }
}

fn rest(service: &Service) -> String {
    let mut text = String::new();
    if let Some(persistence) = service.persistence {
        text.push_str(&format!(" -p {}", persistence.timeout_s));
        if let Some(mask) = netmask(persistence.netmask) {
            text.push_str(&format!(" -M {mask}"));
        }
    }
    if let Some(engine) = &service.persistence_engine {
        text.push_str(&format!(" --pe {engine}"));
    }
    if service.one_packet {
        text.push_str(" -o");
    }
    if let Some(flags) = scheduler_flags(service) {
        text.push_str(&format!(" -b {flags}"));
    }
    text
}

fn destination(
    entry: &DestinationEntry,
    service: ServiceId,
    id: &str,
    numeric: bool,
    names: &Names,
) -> String {
    let to = &entry.destination;
    let at = SocketAddr::new(to.id.address, to.id.port);
    let at = names.endpoint(at, protocol(service), numeric);
    let (method, tunnel) = match to.method {
        ForwardingMethod::DirectRoute => ("-g", String::new()),
        ForwardingMethod::Masquerade => ("-m", String::new()),
        ForwardingMethod::FullNat => ("-m", " --snat".to_owned()),
        ForwardingMethod::Tunnel(tunnel) => ("-i", tunnel_options(tunnel)),
    };
    format!("-a {id} -r {at} {method} -w {}{tunnel}", to.weight)
}

fn thresholds(entry: &DestinationEntry) -> String {
    let mut text = String::new();
    for (flag, value) in
        [("-x", entry.destination.upper_threshold), ("-y", entry.destination.lower_threshold)]
    {
        if value != 0 {
            text.push_str(&format!(" {flag} {value}"));
        }
    }
    text
}

fn tunnel_options(tunnel: Tunnel) -> String {
    match tunnel {
        Tunnel::Ipip => " --tun-type ipip".to_owned(),
        Tunnel::Gue { port, checksum } => {
            let checksum = match checksum {
                TunnelChecksum::None => "--tun-nocsum",
                TunnelChecksum::Outer => "--tun-csum",
                TunnelChecksum::Remote => "--tun-remcsum",
            };
            format!(" --tun-type gue --tun-port {port} {checksum}")
        }
        Tunnel::Gre { checksum: true } => " --tun-type gre --tun-csum".to_owned(),
        Tunnel::Gre { checksum: false } => " --tun-type gre --tun-nocsum".to_owned(),
    }
}
