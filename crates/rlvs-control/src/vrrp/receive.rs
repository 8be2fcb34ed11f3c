//! What is checked of a packet before it counts, and what is counted of those that do not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use rlvs_wire::vrrp::{
    Advertisement, Ends, GROUP_V4, GROUP_V6, HOPS, Malformed, NO_AUTHENTICATION, PASSWORD, Version,
};

use super::config::{Delivery, InstanceConfig};
use super::event::Received;
use crate::model::Family;

/// Why a packet does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// Shorter than a header, or its count of addresses does not fit its length.
    Length,
    /// Another version.
    Version,
    /// Not an advertisement.
    Type,
    /// Wrong checksum.
    Checksum,
    /// Time to live: a router has forwarded it.
    Hops,
    /// Not sent to where this instance listens.
    Destination,
    /// One of our own has come back.
    Own,
    /// No peer of ours.
    Stranger,
    /// Another authentication type.
    AuthenticationType,
    /// Another password.
    Password,
    /// Another interval in version 2, where all must have the same; or 0.
    Interval,
    /// A resignation by one that is not the master.
    Resignation,
}

impl Rejection {
    /// Returns its name in the daemon's state and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Version => "version",
            Self::Type => "type",
            Self::Checksum => "checksum",
            Self::Hops => "hops",
            Self::Destination => "destination",
            Self::Own => "own",
            Self::Stranger => "stranger",
            Self::AuthenticationType => "authentication_type",
            Self::Password => "password",
            Self::Interval => "interval",
            Self::Resignation => "resignation",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Self::Length => "wrong length",
            Self::Version => "another version",
            Self::Type => "not an advertisement",
            Self::Checksum => "wrong checksum",
            Self::Hops => "wrong time to live",
            Self::Destination => "not sent to us",
            Self::Own => "our own packet",
            Self::Stranger => "not a peer",
            Self::AuthenticationType => "another authentication type",
            Self::Password => "wrong password",
            Self::Interval => "wrong advertisement interval",
            Self::Resignation => "resignation by one that is not the master",
        })
    }
}

/// What an instance has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Advertisements that counted.
    pub received: u64,
    /// Advertisements sent; with unicast one for each peer.
    pub sent: u64,
    /// How often it became master.
    pub became_master: u64,
    /// How often it ceased to be.
    pub released_master: u64,
    /// Resignations received.
    pub resignations_received: u64,
    /// Resignations sent.
    pub resignations_sent: u64,
    /// Advertisements with another list of addresses, which counted.
    pub addresses_differ: u64,
    /// Gratuitous ARPs and neighbour advertisements sent.
    pub announcements: u64,
    /// Addresses put back that somebody took away.
    pub restored: u64,
    /// Packets that did not count.
    pub rejected: BTreeMap<Rejection, u64>,
}

/// Returns both ends, if they are of one family.
pub(super) fn ends(source: IpAddr, destination: IpAddr) -> Option<Ends> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Some(Ends::V4 { source: source.octets(), destination: destination.octets() })
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Some(Ends::V6 { source: source.octets(), destination: destination.octets() })
        }
        _ => None,
    }
}

/// Returns the group of all VRRP routers.
pub(super) fn group(family: Family) -> IpAddr {
    match family {
        Family::V4 => GROUP_V4.into(),
        Family::V6 => GROUP_V6.into(),
    }
}

/// Checks a packet for an instance that speaks from `own`.
///
/// The order is keepalived's (`vrrp_check_packet`), but what depends on the content comes behind
/// the checksum.
pub(super) fn check<'a>(
    config: &InstanceConfig,
    own: Option<IpAddr>,
    packet: &'a Received,
) -> Result<Advertisement<'a>, Rejection> {
    let ends = ends(packet.source, packet.destination).ok_or(Rejection::Destination)?;
    if own == Some(packet.source) {
        return Err(Rejection::Own);
    }
    check_way(config, own, packet)?;
    let advertisement =
        Advertisement::parse(&packet.payload, &ends).map_err(|malformed| match malformed {
            Malformed::Truncated | Malformed::Length => Rejection::Length,
            Malformed::Version => Rejection::Version,
            Malformed::Type => Rejection::Type,
            Malformed::Checksum => Rejection::Checksum,
        })?;
    if advertisement.version != config.version {
        return Err(Rejection::Version);
    }
    check_content(config, &advertisement)?;
    Ok(advertisement)
}

/// Checks who sent it where, and how far away.
fn check_way(
    config: &InstanceConfig,
    own: Option<IpAddr>,
    packet: &Received,
) -> Result<(), Rejection> {
    let Delivery::Unicast { only_peers, .. } = config.delivery else {
        // RFC 9568 §7.1: both MUST be so.
        return match packet {
            _ if packet.destination != group(config.family) => Err(Rejection::Destination),
            _ if packet.hops != HOPS => Err(Rejection::Hops),
            _ => Ok(()),
        };
    };
    if own.is_some_and(|own| own != packet.destination) {
        return Err(Rejection::Destination);
    }
    match config.peers().find(|peer| peer.address == packet.source) {
        Some(peer) if !(peer.hops.0..=peer.hops.1).contains(&packet.hops) => Err(Rejection::Hops),
        None if only_peers => Err(Rejection::Stranger),
        _ => Ok(()),
    }
}

fn check_content(
    config: &InstanceConfig,
    advertisement: &Advertisement<'_>,
) -> Result<(), Rejection> {
    if config.version == Version::V2 {
        let expected = if config.password.is_some() { PASSWORD } else { NO_AUTHENTICATION };
        if advertisement.authentication != expected {
            return Err(Rejection::AuthenticationType);
        }
        if config.password.is_some_and(|password| password != advertisement.data) {
            return Err(Rejection::Password);
        }
        // RFC 3768 §7.1: all routers of a virtual router MUST have one interval.
        if advertisement.interval_cs != config.interval_cs() {
            return Err(Rejection::Interval);
        }
    }
    // keepalived takes 0 for an interval, and becomes master many times a second.
    if advertisement.interval_cs == 0 {
        return Err(Rejection::Interval);
    }
    Ok(())
}
