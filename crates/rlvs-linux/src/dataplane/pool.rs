//! The addresses that full NAT puts in place of clients'.
//!
//! They belong to the network namespace and not to a service. Each is this host's own, so that servers'
//! answers come back, with a range of ports, which should be none that the host gives to connections of
//! its own: both would look alike to a server.

use std::fmt;
use std::net::IpAddr;

use rlvs_control::model::{Destination, ForwardingMethod};
use rlvs_control::table::Error as TableError;
use rlvs_datapath::abi::{
    POOL_ADDRESSES, Pool, PoolAddress, destination_flag, service_flag, settings_flag,
};
use rlvs_datapath::ip::Ip;

use super::error::Error;
use super::load;
use super::maps::Maps;
use super::pins;
use super::records::{client, v4, v6};
use super::stages::Group;
use crate::route::Rtnetlink;
use crate::sysctl;

/// The ports of an address if none are named: below those that Linux gives to connections of its own.
pub const PORTS: (u16, u16) = (1024, 32767);

/// An address of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The address.
    pub address: IpAddr,
    /// First and last port.
    pub ports: (u16, u16),
}

impl fmt::Display for Member {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.ports;
        write!(to, "{} ports {first}-{last}", self.address)
    }
}

impl Member {
    fn record(&self) -> PoolAddress {
        let (high, low) = match self.address {
            IpAddr::V4(address) => v4(address).words(),
            IpAddr::V6(address) => v6(address).words(),
        };
        let (first, last) = self.ports;
        PoolAddress { address: [high, low], first, last, reserved: 0 }
    }
}

/// The element of the map that has the addresses of a version.
fn element(is_v4: bool) -> u32 {
    u32::from(!is_v4)
}

/// Lists the pool, IPv4 first.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn list() -> Result<Vec<Member>, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let maps = Maps::open(&folder)?;
    let mut members = Vec::new();
    for is_v4 in [true, false] {
        let pool = maps.pools.read(element(is_v4)).unwrap_or_default();
        let of = |record: &PoolAddress| {
            let ([high, low], family) = (record.address, if is_v4 { 4 } else { 6 });
            let address = client(family, high, low, 0).ip();
            Member { address, ports: (record.first, record.last) }
        };
        members.extend(pool.addresses.iter().take(pool.length as usize).map(of));
    }
    Ok(members)
}

/// Adds addresses of one version; of one that is there the ports change. Returns whether there was room
/// for all; if not, nothing has changed.
///
/// # Errors
/// As [`list`].
pub fn add(members: &[Member]) -> Result<bool, Error> {
    edit(members, |pool, record| {
        let length = pool.length as usize;
        let known = pool.addresses.iter().take(length);
        let at = known.into_iter().position(|other| other.address == record.address);
        match pool.addresses.get_mut(at.unwrap_or(length)) {
            Some(place) => *place = record,
            None => return false,
        }
        pool.length += u32::from(at.is_none());
        true
    })
}

/// Removes addresses of one version. Their connections go on. Returns whether all were there; if not,
/// nothing has changed.
///
/// # Errors
/// As [`list`].
pub fn delete(members: &[Member]) -> Result<bool, Error> {
    edit(members, |pool, record| {
        let length = pool.length as usize;
        let known = pool.addresses.iter().take(length);
        let at = known.into_iter().position(|other| other.address == record.address);
        let Some(at) = at else { return false };
        pool.addresses.copy_within(at + 1..length, at);
        pool.length -= 1;
        true
    })
}

fn edit(
    members: &[Member],
    mut change: impl FnMut(&mut Pool, PoolAddress) -> bool,
) -> Result<bool, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    let maps = Maps::open(&folder)?;
    let Some(element) = members.first().map(|member| element(member.address.is_ipv4())) else {
        return Ok(true);
    };
    let mut pool = maps.pools.read(element).unwrap_or_default();
    if !members.iter().all(|member| change(&mut pool, member.record())) {
        return Ok(false);
    }
    maps.pools.update(element, &pool)?;
    Ok(true)
}

/// Addresses that a pool has room for, of each version.
pub const ADDRESSES_MAX: u32 = POOL_ADDRESSES;

/// Returns whether an address is this host's own.
///
/// # Errors
/// The kernel cannot be asked.
pub fn is_local(address: IpAddr) -> Result<bool, Error> {
    Ok(Rtnetlink::open()?.way(address)?.is_some_and(|way| way.local))
}

/// Returns the ports that this host gives to connections of its own.
///
/// # Errors
/// The kernel does not tell.
pub fn host_ports() -> Result<(u16, u16), Error> {
    let text = sysctl::read("net/ipv4/ip_local_port_range")?;
    let mut ports = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
    Ok((ports.next().unwrap_or(0), ports.next().unwrap_or(0)))
}

/// Gets everything ready for a destination of full NAT, or says why it is refused. From here on all
/// connections of its service are in the wide table.
pub(super) fn prepare(
    maps: &Maps,
    service: u32,
    to: &Destination,
    place: u8,
) -> Result<(), TableError> {
    if to.method != ForwardingMethod::FullNat {
        return Ok(());
    }
    let address = to.id.address;
    let mut record = maps.services.read(service).unwrap_or_default();
    if record.flags & service_flag::ONE_PACKET != 0 {
        return Err(no_single_packets());
    }
    if place & destination_flag::LOCAL != 0 {
        return Err(TableError::Invalid(format!(
            "{address} is this host itself, which answers clients directly: leave out --snat"
        )));
    }
    let pool = maps.pools.read(element(address.is_ipv4())).unwrap_or_default();
    if pool.length == 0 {
        let version = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        return Err(TableError::Invalid(format!(
            "full NAT (--snat) needs an {version} address of this host to put in place of the \
             client's: `rlvs snat add ADDRESS` gives it one"
        )));
    }
    load::ensure_group(Group::Special)?;
    load::ensure_group(Group::Strange)?;
    load::ensure_group(Group::FullNat)?;
    let mut settings = maps.settings();
    settings.flags |= settings_flag::WIDE;
    maps.settings.update(0, &settings)?;
    record.flags |= service_flag::SPECIAL | service_flag::FULL;
    Ok(maps.services.update(service, &record)?)
}

/// A service of single packets has no entry that could remember the client.
pub(super) fn no_single_packets() -> TableError {
    let text = "full NAT (--snat) does not go with a service of single packets (-o), which remembers \
                no client";
    TableError::Invalid(text.to_owned())
}
