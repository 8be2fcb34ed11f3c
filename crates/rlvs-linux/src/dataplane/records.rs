//! Between the model's types and the maps' records.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rlvs_control::check::NO_SCHEDULER;
use rlvs_control::model::{
    Family, ForwardingMethod, Netmask, Protocol, ServiceId, Tunnel, TunnelChecksum,
};
use rlvs_control::scheduler;
use rlvs_control::table::Error;
use rlvs_datapath::abi::{
    self, Destination, Service, destination_flag, method, service_flag, tunnel_checksum,
    tunnel_form,
};
use rlvs_datapath::ip::{V4, V6};
use rlvs_wire::{checksum, ipsec, sctp, udp};

/// Returns an address as the maps hold it, an IPv4 one in the first four bytes.
pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Returns whether a service takes SCTP, or what IPsec carries behind its key exchange.
pub(super) fn associates(record: &Service) -> bool {
    let port = u16::from_be_bytes(record.port);
    match record.protocol {
        _ if record.mark != 0 => true,
        sctp::PROTOCOL => true,
        udp::PROTOCOL => port == ipsec::KEY_EXCHANGE || port == 0,
        _ => false,
    }
}

/// Returns an address that the maps hold.
pub(super) fn address(family: u8, octets: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = octets;
    match family {
        4 => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(octets).into(),
    }
}

pub(super) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

/// Returns an IPv4 address as the data plane computes with it.
pub(super) fn v4(address: Ipv4Addr) -> V4 {
    V4(address.to_bits())
}

/// Returns an IPv6 address as the data plane computes with it.
pub(super) fn v6(address: Ipv6Addr) -> V6 {
    let bits = address.to_bits();
    V6((bits >> 64) as u64, bits as u64)
}

/// Returns the address of a client from its words.
pub(super) fn client(family: u8, high: u64, low: u64, port: u16) -> SocketAddr {
    let address = match family {
        4 => IpAddr::from(Ipv4Addr::from_bits(low as u32)),
        _ => IpAddr::from(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))),
    };
    SocketAddr::new(address, port)
}

pub(super) fn protocol_of(number: u8) -> Protocol {
    match number {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => Protocol::Sctp,
    }
}

/// Returns the identity that a service record has.
pub(super) fn service_id(record: &Service) -> ServiceId {
    if record.mark != 0 {
        let family = if record.family == 4 { Family::V4 } else { Family::V6 };
        return ServiceId::Mark { family, mark: record.mark };
    }
    ServiceId::Address {
        protocol: protocol_of(record.protocol),
        address: address(record.family, record.address),
        port: u16::from_be_bytes(record.port),
    }
}

/// The one persistence engine.
pub(super) const SIP: &str = "sip";

/// Returns the name of a service's persistence engine.
pub(super) fn engine(record: &Service) -> Option<String> {
    (record.flags & service_flag::SIP != 0).then(|| SIP.to_owned())
}

pub(super) fn scheduler_name(number: u32) -> &'static str {
    scheduler::name(number).unwrap_or(NO_SCHEDULER)
}

/// Returns the number of a scheduler that the data plane carries out.
pub(super) fn scheduler_number(name: &str) -> Result<u32, Error> {
    match name {
        NO_SCHEDULER => Ok(0),
        name => scheduler::number(name).ok_or_else(|| Error::UnknownScheduler(name.to_owned())),
    }
}

/// Returns a persistence mask as it is laid over addresses.
pub(super) fn mask(netmask: Netmask) -> [u8; 16] {
    match netmask {
        Netmask::V4(bytes) => octets(IpAddr::from(bytes)),
        Netmask::V6(length) => {
            u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0).to_be_bytes()
        }
    }
}

/// Returns the persistence mask of a service.
pub(super) fn netmask(record: &Service) -> Netmask {
    let [a, b, c, d, ..] = record.mask;
    match record.family {
        4 => Netmask::V4([a, b, c, d]),
        _ => Netmask::V6(u128::from_be_bytes(record.mask).leading_ones() as u8),
    }
}

/// Returns the record of a service that has nothing but its identity.
pub(super) fn service(id: ServiceId) -> Service {
    let flags = service_flag::LIVE;
    match id {
        ServiceId::Mark { family, mark } => {
            let family = if family == Family::V4 { 4 } else { 6 };
            Service { mark, family, flags, ..Service::default() }
        }
        ServiceId::Address { protocol, address, port } => Service {
            address: octets(address),
            port: port.to_be_bytes(),
            protocol: protocol.number(),
            family: family(address),
            flags,
            ..Service::default()
        },
    }
}

/// Returns the number of a forwarding method.
pub(super) fn method_number(method: ForwardingMethod) -> u8 {
    match method {
        ForwardingMethod::Masquerade | ForwardingMethod::FullNat => method::MASQUERADE,
        ForwardingMethod::DirectRoute => method::DIRECT,
        ForwardingMethod::Tunnel(_) => method::TUNNEL,
    }
}

/// Returns the forwarding method that records have.
pub(super) fn method_of(record: &Destination, tunnel: &abi::Tunnel) -> ForwardingMethod {
    match record.method {
        method::MASQUERADE if record.flags & destination_flag::FULL != 0 => {
            ForwardingMethod::FullNat
        }
        method::MASQUERADE => ForwardingMethod::Masquerade,
        method::TUNNEL => ForwardingMethod::Tunnel(tunnel_of(tunnel)),
        _ => ForwardingMethod::DirectRoute,
    }
}

fn tunnel_of(record: &abi::Tunnel) -> Tunnel {
    match record.form {
        tunnel_form::GRE => Tunnel::Gre { checksum: record.checksum != tunnel_checksum::NONE },
        tunnel_form::GUE => Tunnel::Gue {
            port: u16::from_be_bytes(record.port),
            checksum: match record.checksum {
                tunnel_checksum::OUTER => TunnelChecksum::Outer,
                tunnel_checksum::REMOTE => TunnelChecksum::Remote,
                _ => TunnelChecksum::None,
            },
        },
        _ => Tunnel::Ipip,
    }
}

/// Returns the record of a tunnel to a real server for packets of a family. Without a source it is
/// one that takes no packets.
pub(super) fn tunnel(
    tunnel: Tunnel,
    inner: u8,
    source: Option<IpAddr>,
    target: IpAddr,
) -> abi::Tunnel {
    let (form, checksum, port) = match tunnel {
        Tunnel::Ipip => (tunnel_form::IPIP, tunnel_checksum::NONE, 0),
        Tunnel::Gre { checksum: false } => (tunnel_form::GRE, tunnel_checksum::NONE, 0),
        Tunnel::Gre { checksum: true } => (tunnel_form::GRE, tunnel_checksum::OUTER, 0),
        Tunnel::Gue { port, checksum } => {
            let checksum = match checksum {
                TunnelChecksum::None => tunnel_checksum::NONE,
                TunnelChecksum::Outer => tunnel_checksum::OUTER,
                TunnelChecksum::Remote => tunnel_checksum::REMOTE,
            };
            (tunnel_form::GUE, checksum, port)
        }
    };
    let record = abi::Tunnel::new((source.unwrap_or(target), target), inner, form, checksum, port);
    if source.is_some() { record } else { abi::Tunnel { family: 0, ..record } }
}

/// Returns whether a destination is in its service's list, and not only there for its connections.
pub(super) fn is_listed(record: &Destination) -> bool {
    serves(record) && record.retired_at == 0
}

/// Returns whether packets go to a destination.
pub(super) fn serves(record: &Destination) -> bool {
    record.flags & destination_flag::AVAILABLE != 0
}

/// Fills in what translating the service's address and port into the destination's does to
/// checksums.
pub(super) fn set_deltas(record: &mut Destination, service: &Service) {
    let sum = |octets: &[u8; 16]| checksum::fold(checksum::sum(octets));
    record.address_delta = checksum::delta(sum(&service.address), sum(&record.address));
    let (old, new) = (u16::from_be_bytes(service.port), u16::from_be_bytes(record.port));
    record.port_delta = checksum::delta(old, new);
}

/// Returns the traffic that a row or totals hold, in the order of [`abi::Totals::retired`].
pub(super) fn traffic(counters: [u64; 5]) -> rlvs_control::model::Traffic {
    let [connections, in_packets, out_packets, in_bytes, out_bytes] = counters;
    rlvs_control::model::Traffic { connections, in_packets, out_packets, in_bytes, out_bytes }
}

/// Returns the counters of a row.
pub(super) fn counters(row: &abi::Row) -> [u64; 5] {
    [
        row.connections.get(),
        row.in_packets.get(),
        row.out_packets.get(),
        row.in_bytes.get(),
        row.out_bytes.get(),
    ]
}
