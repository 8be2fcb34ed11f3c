//! A packet in a line.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice};
use rlvs_linux::dataplane::capture::{Action, Taken};
use rlvs_linux::route::Link;
use serde_json::{Value, json};

use crate::json::SCHEMA;

/// The interfaces of the host, by number and by address.
#[derive(Debug)]
pub(super) struct Names {
    by_index: BTreeMap<u32, String>,
    by_mac: BTreeMap<[u8; 6], u32>,
}

impl Names {
    pub(super) fn of(links: &[Link]) -> Self {
        let macs = links.iter().filter_map(|link| Some((link.mac?.0, link.index)));
        Self {
            by_index: links.iter().map(|link| (link.index, link.name.clone())).collect(),
            by_mac: macs.collect(),
        }
    }

    /// Returns all, by number.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &str)> {
        self.by_index.iter().map(|(index, name)| (*index, name.as_str()))
    }

    pub(super) fn name(&self, index: u32) -> String {
        self.by_index.get(&index).cloned().unwrap_or_else(|| format!("interface {index}"))
    }

    /// Returns the interface that a frame leaves by, as the address that it comes from tells. The
    /// kernel puts it in behind us where it has yet to ask for the neighbour's.
    pub(super) fn way_out(&self, taken: &Taken) -> Option<u32> {
        if taken.action == Action::Back {
            return Some(taken.interface);
        }
        let mac: [u8; 6] = *taken.went.bytes.get(6..)?.first_chunk()?;
        self.by_mac.get(&mac).copied()
    }
}

/// What became of a packet, and why.
pub(super) fn verdict(names: &Names, taken: &Taken) -> String {
    let reasons: Vec<&str> = taken.reasons.iter().map(|reason| reason.name()).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let way = match names.way_out(taken) {
        Some(index) if taken.action.is_sent() => format!(" to {}", names.name(index)),
        _ => String::new(),
    };
    format!("{}{way}{why}", taken.action.name())
}

/// Returns whether what went is worth telling: it was sent, or changed before it was left to others.
pub(super) fn went(taken: &Taken) -> bool {
    taken.action.is_sent() || taken.action == Action::Pass && taken.came != taken.went
}

/// A line for a packet: when, where, what came, what was decided, what went.
pub(super) fn line(names: &Names, taken: &Taken, at: Duration) -> String {
    let came = describe(&taken.came.bytes);
    let day_s = at.as_secs() % 86_400;
    let clock = format!(
        "{:02}:{:02}:{:02}.{:06}",
        day_s / 3600,
        day_s / 60 % 60,
        day_s % 60,
        at.subsec_micros()
    );
    let mut line = format!(
        "{clock} {} {} {came} len {}: {}",
        names.name(taken.interface),
        taken.place.name(),
        taken.came.length,
        verdict(names, taken)
    );
    if went(taken) {
        line += &format!(": {} len {}", describe(&taken.went.bytes), taken.went.length);
    }
    line
}

/// The same as `--json` prints it.
pub(super) fn json(names: &Names, taken: &Taken, at: Duration) -> Value {
    let frame = |bytes: &[u8], length: u32| json!({"packet": describe(bytes), "length": length});
    let out = names.way_out(taken).filter(|_| taken.action.is_sent());
    json!({
        "schema": SCHEMA,
        "time_s": at.as_secs_f64(),
        "interface": names.name(taken.interface),
        "place": taken.place.name(),
        "came": frame(&taken.came.bytes, taken.came.length),
        "verdict": taken.action.name(),
        "reasons": taken.reasons.iter().map(|reason| reason.name()).collect::<Vec<_>>(),
        "went": went(taken).then(|| frame(&taken.went.bytes, taken.went.length)),
        "out": out.map(|index| names.name(index)),
    })
}

/// A frame in words: protocol, ends, flags; of a tunnel's both headers.
pub(super) fn describe(frame: &[u8]) -> String {
    match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => of_packet(&packet),
        Err(_) => "not whole".to_owned(),
    }
}

fn of_packet(packet: &SlicedPacket<'_>) -> String {
    let (from, to, payload) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let ends = (IpAddr::from(header.source_addr()), header.destination_addr().into());
            (ends.0, ends.1, ip.payload())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let ends = (IpAddr::from(header.source_addr()), header.destination_addr().into());
            (ends.0, ends.1, ip.payload())
        }
        Some(NetSlice::Arp(_)) => return "ARP".to_owned(),
        None => return "no IP".to_owned(),
    };
    let ends = |ports: (u16, u16)| {
        format!("{} > {}", SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1))
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [
                (tcp.syn(), "SYN"),
                (tcp.fin(), "FIN"),
                (tcp.rst(), "RST"),
                (tcp.psh(), "PSH"),
                (tcp.ack(), "ACK"),
            ];
            let set: Vec<&str> =
                flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
            format!("TCP {} {}", ends((tcp.source_port(), tcp.destination_port())), set.join(","))
        }
        Some(TransportSlice::Udp(udp)) => {
            format!("UDP {}", ends((udp.source_port(), udp.destination_port())))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            format!("ICMP {from} > {to} type {} code {}", icmp.type_u8(), icmp.code_u8())
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            format!("ICMPv6 {from} > {to} type {} code {}", icmp.type_u8(), icmp.code_u8())
        }
        None => of_other(from, to, payload),
    }
}

fn of_other(from: IpAddr, to: IpAddr, payload: &etherparse::IpPayloadSlice<'_>) -> String {
    let inside = SlicedPacket::from_ip(payload.payload);
    match (payload.ip_number, payload.payload.first_chunk(), inside) {
        _ if payload.fragmented => format!("fragment {from} > {to}"),
        (IpNumber::IPV4 | IpNumber::IPV6, _, Ok(inside)) => {
            format!("IPIP {from} > {to} [{}]", of_packet(&inside))
        }
        (IpNumber::SCTP, Some([a, b, c, d]), _) => {
            let [source, target] = [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])];
            format!("SCTP {} > {}", SocketAddr::new(from, source), SocketAddr::new(to, target))
        }
        (number, _, _) => {
            let name = number.keyword_str().map_or_else(|| number.0.to_string(), str::to_owned);
            format!("{name} {from} > {to}")
        }
    }
}
