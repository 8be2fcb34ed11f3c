//! What the kernel answers, taken out of attributes. Whatever the bytes are, nothing here panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rlvs_control::model::{
    Destination, DestinationEntry, DestinationId, Family, ForwardingMethod, Netmask, Persistence,
    Protocol, Service, ServiceId, SyncDaemon, SyncRole, Timeouts, Traffic, Tunnel, TunnelChecksum,
    Version,
};

use super::message::{Attributes, Malformed, optional};
use super::uapi::{
    Attribute, control, daemon, destination as dest, info, service as svc, stats, top,
};

/// Which of its figures a [`Traffic`] shall hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figures {
    /// Counters.
    Totals,
    /// How fast they grow, per second.
    Rates,
}

/// What the kernel says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Version of IPVS.
    pub version: Version,
    /// Buckets of the connection table.
    pub connection_table_size: u32,
}

/// Returns the number of a family that was asked for.
///
/// # Errors
/// The answer cannot be read.
pub fn family_id(attributes: &[u8]) -> Result<u16, Malformed> {
    Attributes::parse(attributes)?.u16(control::FAMILY_ID)
}

/// Returns what the kernel says of itself.
///
/// # Errors
/// The answer cannot be read.
pub fn info(attributes: &[u8]) -> Result<Info, Malformed> {
    let read = Attributes::parse(attributes)?;
    let [_, major, minor, patch] = read.u32(info::VERSION)?.to_be_bytes();
    let connection_table_size = read.u32(info::CONN_TAB_SIZE)?;
    Ok(Info { version: Version { major, minor, patch }, connection_table_size })
}

/// Returns a service and its figures.
///
/// # Errors
/// The answer cannot be read.
pub fn service(attributes: &[u8], figures: Figures) -> Result<(Service, Traffic), Malformed> {
    let read = Attributes::parse(attributes)?.nest(top::SERVICE)?;
    let id = identity(&read)?;
    // Flags, then a mask that says which of them count.
    let [a, b, c, d, ..] = read.array::<8>(svc::FLAGS)?;
    let flags = u32::from_ne_bytes([a, b, c, d]);
    let persistence = match flags & svc::FLAG_PERSISTENT {
        0 => None,
        _ => Some(Persistence {
            timeout_s: read.u32(svc::TIMEOUT)?,
            netmask: netmask(&read, id.family())?,
        }),
    };
    let engine = optional(read.text(svc::PE_NAME))?;
    let service = Service {
        id,
        scheduler: read.text(svc::SCHED_NAME)?,
        // Three bits.
        scheduler_flags: (flags >> svc::FLAG_SCHEDULER_SHIFT & 7) as u8,
        one_packet: flags & svc::FLAG_ONE_PACKET != 0,
        persistence,
        persistence_engine: engine.filter(|name| !name.is_empty()),
    };
    Ok((service, traffic(&read, svc::STATS64, svc::STATS, figures)?))
}

fn identity(read: &Attributes<'_>) -> Result<ServiceId, Malformed> {
    let family = family(svc::AF, read.u16(svc::AF)?)?;
    // A mark of 0 is none.
    if let Some(mark) = optional(read.u32(svc::FWMARK))?.filter(|&mark| mark != 0) {
        return Ok(ServiceId::Mark { family, mark });
    }
    let number = read.u16(svc::PROTOCOL)?;
    let protocol = u8::try_from(number).map_err(|_| wrong(svc::PROTOCOL, number.into()))?;
    Ok(ServiceId::Address {
        protocol: Protocol::from_number(protocol),
        address: address(read, svc::ADDR, family)?,
        port: read.port(svc::PORT)?,
    })
}

fn netmask(read: &Attributes<'_>, family: Family) -> Result<Netmask, Malformed> {
    match family {
        Family::V4 => read.array(svc::NETMASK).map(Netmask::V4),
        Family::V6 => {
            let length = read.u32(svc::NETMASK)?;
            let length = u8::try_from(length).map_err(|_| wrong(svc::NETMASK, length))?;
            Ok(Netmask::V6(length))
        }
    }
}

/// Returns a destination of a service of the family `of`, and its figures.
///
/// # Errors
/// The answer cannot be read.
pub fn destination(
    attributes: &[u8],
    of: Family,
    figures: Figures,
) -> Result<DestinationEntry, Malformed> {
    let read = Attributes::parse(attributes)?.nest(top::DEST)?;
    let family = match optional(read.u16(dest::ADDR_FAMILY))? {
        Some(number) => family(dest::ADDR_FAMILY, number)?,
        None => of,
    };
    let address = address(&read, dest::ADDR, family)?;
    let destination = Destination {
        id: DestinationId { address, port: read.port(dest::PORT)? },
        method: method(&read)?,
        weight: read.u32(dest::WEIGHT)?,
        upper_threshold: read.u32(dest::U_THRESH)?,
        lower_threshold: read.u32(dest::L_THRESH)?,
    };
    Ok(DestinationEntry {
        destination,
        active: read.u32(dest::ACTIVE_CONNS)?,
        inactive: read.u32(dest::INACT_CONNS)?,
        persistent: read.u32(dest::PERSIST_CONNS)?,
        traffic: traffic(&read, dest::STATS64, dest::STATS, figures)?,
    })
}

/// The methods that no `ipvsadm` asks for (local node, bypass) are taken for direct routing.
fn method(read: &Attributes<'_>) -> Result<ForwardingMethod, Malformed> {
    Ok(match read.u32(dest::FWD_METHOD)? & dest::METHOD_MASK {
        dest::METHOD_MASQUERADE => ForwardingMethod::Masquerade,
        dest::METHOD_TUNNEL => ForwardingMethod::Tunnel(tunnel(read)?),
        _ => ForwardingMethod::DirectRoute,
    })
}

fn tunnel(read: &Attributes<'_>) -> Result<Tunnel, Malformed> {
    let flags = optional(read.u16(dest::TUN_FLAGS))?.unwrap_or(0);
    let sums = flags & dest::TUNNEL_CHECKSUM != 0;
    match optional(read.u8(dest::TUN_TYPE))?.unwrap_or(dest::TUNNEL_IPIP) {
        dest::TUNNEL_IPIP => Ok(Tunnel::Ipip),
        dest::TUNNEL_GRE => Ok(Tunnel::Gre { checksum: sums }),
        dest::TUNNEL_GUE => {
            let checksum = match flags & dest::TUNNEL_REMOTE_CHECKSUM {
                0 if sums => TunnelChecksum::Outer,
                0 => TunnelChecksum::None,
                _ => TunnelChecksum::Remote,
            };
            Ok(Tunnel::Gue { port: read.port(dest::TUN_PORT)?, checksum })
        }
        other => Err(wrong(dest::TUN_TYPE, other.into())),
    }
}

/// Reads figures of 64 bits if the kernel has them, of 32 bits otherwise (before 4.1).
fn traffic(
    read: &Attributes<'_>,
    wide: Attribute,
    narrow: Attribute,
    figures: Figures,
) -> Result<Traffic, Malformed> {
    let nest = match optional(read.nest(wide))? {
        Some(nest) => nest,
        None => read.nest(narrow)?,
    };
    let [connections, in_packets, out_packets, in_bytes, out_bytes] = match figures {
        Figures::Totals => stats::TOTALS,
        Figures::Rates => stats::RATES,
    };
    Ok(Traffic {
        connections: nest.u32_or_u64(connections)?,
        in_packets: nest.u32_or_u64(in_packets)?,
        out_packets: nest.u32_or_u64(out_packets)?,
        in_bytes: nest.u32_or_u64(in_bytes)?,
        out_bytes: nest.u32_or_u64(out_bytes)?,
    })
}

/// Returns the time-outs.
///
/// # Errors
/// The answer cannot be read.
pub fn timeouts(attributes: &[u8]) -> Result<Timeouts, Malformed> {
    let read = Attributes::parse(attributes)?;
    Ok(Timeouts {
        tcp_s: read.u32(top::TIMEOUT_TCP)?,
        tcp_fin_s: read.u32(top::TIMEOUT_TCP_FIN)?,
        udp_s: read.u32(top::TIMEOUT_UDP)?,
    })
}

/// Returns a synchronisation daemon.
///
/// # Errors
/// The answer cannot be read.
pub fn sync_daemon(attributes: &[u8]) -> Result<SyncDaemon, Malformed> {
    let read = Attributes::parse(attributes)?.nest(top::DAEMON)?;
    let role = match read.u32(daemon::STATE)? {
        daemon::STATE_MASTER => SyncRole::Master,
        daemon::STATE_BACKUP => SyncRole::Backup,
        other => return Err(wrong(daemon::STATE, other)),
    };
    let v4 = optional(read.array(daemon::MCAST_GROUP))?.map(|group: [u8; 4]| group.into());
    let v6 = optional(read.array(daemon::MCAST_GROUP6))?.map(|group: [u8; 16]| group.into());
    Ok(SyncDaemon {
        role,
        interface: read.text(daemon::MCAST_IFN)?,
        sync_id: read.u32(daemon::SYNC_ID)?,
        message_bytes_max: optional(read.u16(daemon::SYNC_MAXLEN))?.filter(|&length| length != 0),
        group: v4.or(v6),
        port: optional(read.u16(daemon::MCAST_PORT))?.filter(|&port| port != 0),
        ttl: optional(read.u8(daemon::MCAST_TTL))?.filter(|&ttl| ttl != 0),
    })
}

fn family(attribute: Attribute, number: u16) -> Result<Family, Malformed> {
    match i32::from(number) {
        libc::AF_INET => Ok(Family::V4),
        libc::AF_INET6 => Ok(Family::V6),
        _ => Err(wrong(attribute, number.into())),
    }
}

fn address(
    read: &Attributes<'_>,
    attribute: Attribute,
    family: Family,
) -> Result<IpAddr, Malformed> {
    match family {
        Family::V4 => read.array::<4>(attribute).map(|octets| Ipv4Addr::from(octets).into()),
        Family::V6 => read.array::<16>(attribute).map(|octets| Ipv6Addr::from(octets).into()),
    }
}

fn wrong(attribute: Attribute, value: u32) -> Malformed {
    Malformed::Value { name: attribute.name, value }
}
