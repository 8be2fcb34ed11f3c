//! What is asked of the kernel, as attributes.

use std::net::IpAddr;

use rlvs_control::model::{
    Destination, DestinationId, Family, ForwardingMethod, Netmask, Service, ServiceId, SyncDaemon,
    SyncRole, Timeouts, Tunnel, TunnelChecksum,
};

use super::message::Writer;
use super::uapi::{daemon, destination as dest, service as svc, top};

/// Returns what names a service.
pub fn service_id(id: ServiceId) -> Vec<u8> {
    Writer::default().nest(top::SERVICE, identity(id)).finish()
}

/// Returns all of a service.
pub fn service(service: &Service) -> Vec<u8> {
    let mut nest = identity(service.id).text(svc::SCHED_NAME, &service.scheduler);
    if let Some(engine) = &service.persistence_engine {
        nest = nest.text(svc::PE_NAME, engine);
    }
    let mut flags = u32::from(service.scheduler_flags & 7) << svc::FLAG_SCHEDULER_SHIFT;
    if service.one_packet {
        flags |= svc::FLAG_ONE_PACKET;
    }
    if service.persistence.is_some() {
        flags |= svc::FLAG_PERSISTENT;
    }
    let every = u32::MAX;
    let both = [flags.to_ne_bytes(), every.to_ne_bytes()].concat();
    let timeout_s = service.persistence.map_or(0, |persistence| persistence.timeout_s);
    let mask = service.persistence.map(|persistence| persistence.netmask);
    let mask = match mask.unwrap_or(each_client_by_itself(service.id.family())) {
        Netmask::V4(bytes) => bytes,
        Netmask::V6(length) => u32::from(length).to_ne_bytes(),
    };
    let nest =
        nest.bytes(svc::FLAGS, &both).u32(svc::TIMEOUT, timeout_s).bytes(svc::NETMASK, &mask);
    Writer::default().nest(top::SERVICE, nest).finish()
}

fn each_client_by_itself(family: Family) -> Netmask {
    match family {
        Family::V4 => Netmask::V4([255; 4]),
        Family::V6 => Netmask::V6(128),
    }
}

fn identity(id: ServiceId) -> Writer {
    let writer = Writer::default().u16(svc::AF, family(id.family()));
    match id {
        ServiceId::Address { protocol, address, port } => writer
            .u16(svc::PROTOCOL, protocol.number().into())
            .bytes(svc::ADDR, &octets(address))
            .port(svc::PORT, port),
        ServiceId::Mark { mark, .. } => writer.u32(svc::FWMARK, mark),
    }
}

fn family(family: Family) -> u16 {
    // Both are small positive numbers.
    match family {
        Family::V4 => libc::AF_INET as u16,
        Family::V6 => libc::AF_INET6 as u16,
    }
}

/// Returns an address as `union nf_inet_addr`.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Returns what names a destination.
pub fn destination_id(service: ServiceId, id: DestinationId) -> Vec<u8> {
    with_destination(service, endpoint(id))
}

/// Returns all of a destination.
pub fn destination(service: ServiceId, to: &Destination) -> Vec<u8> {
    let method = match to.method {
        ForwardingMethod::Masquerade | ForwardingMethod::FullNat => dest::METHOD_MASQUERADE,
        ForwardingMethod::DirectRoute => dest::METHOD_DIRECT_ROUTE,
        ForwardingMethod::Tunnel(_) => dest::METHOD_TUNNEL,
    };
    let nest = endpoint(to.id)
        .u32(dest::FWD_METHOD, method)
        .u32(dest::WEIGHT, to.weight)
        .u32(dest::U_THRESH, to.upper_threshold)
        .u32(dest::L_THRESH, to.lower_threshold);
    let (kind, port, flags) = match to.method {
        ForwardingMethod::Tunnel(tunnel) => parts(tunnel),
        ForwardingMethod::Masquerade
        | ForwardingMethod::FullNat
        | ForwardingMethod::DirectRoute => (dest::TUNNEL_IPIP, 0, 0),
    };
    let nest = nest.u8(dest::TUN_TYPE, kind).port(dest::TUN_PORT, port).u16(dest::TUN_FLAGS, flags);
    with_destination(service, nest)
}

/// Returns the type, port and flags of a tunnel.
fn parts(tunnel: Tunnel) -> (u8, u16, u16) {
    match tunnel {
        Tunnel::Ipip => (dest::TUNNEL_IPIP, 0, 0),
        Tunnel::Gue { port, checksum } => {
            let flags = match checksum {
                TunnelChecksum::None => 0,
                TunnelChecksum::Outer => dest::TUNNEL_CHECKSUM,
                TunnelChecksum::Remote => dest::TUNNEL_REMOTE_CHECKSUM,
            };
            (dest::TUNNEL_GUE, port, flags)
        }
        Tunnel::Gre { checksum } => {
            (dest::TUNNEL_GRE, 0, if checksum { dest::TUNNEL_CHECKSUM } else { 0 })
        }
    }
}

fn endpoint(id: DestinationId) -> Writer {
    Writer::default()
        .u16(dest::ADDR_FAMILY, family(Family::of(id.address)))
        .bytes(dest::ADDR, &octets(id.address))
        .port(dest::PORT, id.port)
}

fn with_destination(service: ServiceId, nest: Writer) -> Vec<u8> {
    Writer::default().nest(top::SERVICE, identity(service)).nest(top::DEST, nest).finish()
}

/// Returns time-outs; the kernel keeps what it has for those of 0.
pub fn timeouts(timeouts: Timeouts) -> Vec<u8> {
    Writer::default()
        .u32(top::TIMEOUT_TCP, timeouts.tcp_s)
        .u32(top::TIMEOUT_TCP_FIN, timeouts.tcp_fin_s)
        .u32(top::TIMEOUT_UDP, timeouts.udp_s)
        .finish()
}

/// Returns all of a synchronisation daemon; the kernel chooses what is left open.
pub fn sync_daemon(wanted: &SyncDaemon) -> Vec<u8> {
    let mut nest = Writer::default()
        .u32(daemon::STATE, state(wanted.role))
        .text(daemon::MCAST_IFN, &wanted.interface)
        .u32(daemon::SYNC_ID, wanted.sync_id);
    if let Some(length) = wanted.message_bytes_max {
        nest = nest.u16(daemon::SYNC_MAXLEN, length);
    }
    nest = match wanted.group {
        Some(IpAddr::V4(group)) => nest.bytes(daemon::MCAST_GROUP, &group.octets()),
        Some(IpAddr::V6(group)) => nest.bytes(daemon::MCAST_GROUP6, &group.octets()),
        None => nest,
    };
    if let Some(port) = wanted.port {
        nest = nest.u16(daemon::MCAST_PORT, port);
    }
    if let Some(ttl) = wanted.ttl {
        nest = nest.u8(daemon::MCAST_TTL, ttl);
    }
    Writer::default().nest(top::DAEMON, nest).finish()
}

/// Returns what names a synchronisation daemon.
pub fn sync_role(role: SyncRole) -> Vec<u8> {
    let nest = Writer::default().u32(daemon::STATE, state(role));
    Writer::default().nest(top::DAEMON, nest).finish()
}

fn state(role: SyncRole) -> u32 {
    match role {
        SyncRole::Master => daemon::STATE_MASTER,
        SyncRole::Backup => daemon::STATE_BACKUP,
    }
}
