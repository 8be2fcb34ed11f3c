//! What every table refuses, in the words and the order of IPVS.
//!
//! Pure functions of the value alone. What depends on what a table holds (is the service there?)
//! or on the machine it runs on (is this a broadcast address of one of its networks?) stays with
//! the table.

use std::net::{IpAddr, Ipv4Addr};

use crate::model::{Destination, ForwardingMethod, Netmask, Protocol, Service, ServiceId, Tunnel};
use crate::table::Error;

/// The schedulers that IPVS has, by the name that `-s` takes.
pub const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos"];

/// The schedulers that only the data plane of ours has.
pub const OWN_SCHEDULERS: [&str; 1] = ["p2c"];

/// The scheduler name that stands for no scheduler: nothing is scheduled.
pub const NO_SCHEDULER: &str = "none";

/// The persistence engines that IPVS has.
pub const PERSISTENCE_ENGINES: [&str; 1] = ["sip"];

/// The largest weight, the largest threshold: these are signed 32-bit numbers to IPVS.
pub const NUMBER_MAX: u32 = i32::MAX as u32;

/// Accepts a service whose scheduler, persistence engine and mask IPVS knows.
///
/// # Errors
/// [`Error::UnknownScheduler`] for a name, [`Error::Invalid`] for a mask.
pub fn service(service: &Service) -> Result<(), Error> {
    scheduler(&service.scheduler)?;
    if let Some(engine) = &service.persistence_engine {
        persistence_engine(engine)?;
    }
    service.persistence.map_or(Ok(()), |persistence| netmask(service.id, persistence.netmask))
}

/// Accepts the name of a scheduler of IPVS or of ours, or `none`.
///
/// # Errors
/// [`Error::UnknownScheduler`].
pub fn scheduler(name: &str) -> Result<(), Error> {
    let known = SCHEDULERS.contains(&name) || OWN_SCHEDULERS.contains(&name);
    if known || name == NO_SCHEDULER {
        return Ok(());
    }
    Err(Error::UnknownScheduler(name.to_owned()))
}

/// Accepts the name of a persistence engine of IPVS.
///
/// # Errors
/// [`Error::UnknownScheduler`], which stands for both as in the kernel.
pub fn persistence_engine(name: &str) -> Result<(), Error> {
    if PERSISTENCE_ENGINES.contains(&name) {
        return Ok(());
    }
    Err(Error::UnknownScheduler(name.to_owned()))
}

fn netmask(id: ServiceId, mask: Netmask) -> Result<(), Error> {
    use crate::model::Family;
    match (id.family(), mask) {
        (Family::V4, Netmask::V4(_)) | (Family::V6, Netmask::V6(1..=128)) => Ok(()),
        (Family::V6, Netmask::V6(length)) => {
            Err(Error::Invalid(format!("a persistence mask of {length} bits is not in 1 to 128")))
        }
        (Family::V4, Netmask::V6(_)) | (Family::V6, Netmask::V4(_)) => {
            Err(Error::Invalid("the persistence mask is of another address family".to_owned()))
        }
    }
}

/// Accepts a destination's numbers and tunnel, whether it is to be added or edited.
///
/// The address is looked at by [`real_server`], which IPVS asks only for a new destination.
///
/// # Errors
/// [`Error::Range`] for weight and thresholds, [`Error::Invalid`] for the rest.
pub fn destination(service: ServiceId, to: &Destination) -> Result<(), Error> {
    if to.weight > NUMBER_MAX {
        return Err(Error::Range(format!("weight {} is above {NUMBER_MAX}", to.weight)));
    }
    thresholds(to.upper_threshold, to.lower_threshold)?;
    if matches!(to.method, ForwardingMethod::Tunnel(Tunnel::Gue { port: 0, .. })) {
        return Err(Error::Invalid("a GUE tunnel needs a port other than 0".to_owned()));
    }
    if to.method == ForwardingMethod::FullNat {
        full_nat(service, to)?;
    }
    let tunnel = matches!(to.method, ForwardingMethod::Tunnel(_));
    if !tunnel && crate::model::Family::of(to.id.address) != service.family() {
        return Err(Error::Invalid(format!(
            "real server {} is of another address family than its service; only a tunnel can \
             reach it",
            to.id.address
        )));
    }
    Ok(())
}

/// Accepts full NAT for a TCP or UDP service with an address and a port of its own.
fn full_nat(service: ServiceId, to: &Destination) -> Result<(), Error> {
    let why = match service {
        ServiceId::Mark { .. } => "a service of a firewall mark",
        ServiceId::Address { port: 0, .. } => "a service of every port",
        ServiceId::Address { protocol: Protocol::Tcp | Protocol::Udp, .. } if to.id.port == 0 => {
            "a real server of every port"
        }
        ServiceId::Address { protocol: Protocol::Tcp | Protocol::Udp, .. } => return Ok(()),
        ServiceId::Address { .. } => "a service that is neither of TCP nor of UDP",
    };
    Err(Error::Invalid(format!(
        "full NAT (--snat) is for TCP and UDP services with an address and a port, not for {why}"
    )))
}

/// Accepts thresholds of which the lower is not above the upper.
///
/// # Errors
/// [`Error::Range`].
pub fn thresholds(upper: u32, lower: u32) -> Result<(), Error> {
    if let Some(large) = [upper, lower].into_iter().find(|&number| number > NUMBER_MAX) {
        return Err(Error::Range(format!("threshold {large} is above {NUMBER_MAX}")));
    }
    if lower > upper {
        return Err(Error::Range(format!(
            "the lower threshold {lower} is above the upper threshold {upper}"
        )));
    }
    Ok(())
}

/// Accepts the address of a real server: unicast, or local to the director.
///
/// # Errors
/// [`Error::Invalid`].
pub fn real_server(address: IpAddr) -> Result<(), Error> {
    let why = match address {
        IpAddr::V4(v4) if v4.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => "the unspecified address",
        IpAddr::V4(_) => return Ok(()),
        IpAddr::V6(v6) if v6.is_multicast() => "a multicast address",
        IpAddr::V6(v6) if v6.is_unspecified() => "the unspecified address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address mapped into IPv6",
        IpAddr::V6(_) => return Ok(()),
    };
    Err(Error::Invalid(format!("real server {address} is {why}, and must be a unicast address")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DestinationId, Family, Persistence, TunnelChecksum};

    #[test]
    fn real_servers_are_unicast() {
        let good = ["10.0.0.1", "127.0.0.1", "240.0.0.1", "0.0.0.1", "169.254.0.2"];
        let good = good.into_iter().chain(["::1", "fc00::1", "fec0::1", "::1.2.3.4"]);
        for address in good {
            assert!(real_server(address.parse().unwrap()).is_ok(), "{address}");
        }
        let bad = ["224.0.0.1", "239.255.255.255", "255.255.255.255", "0.0.0.0"];
        let bad = bad.into_iter().chain(["ff02::1", "fe80::1", "::", "::ffff:1.2.3.4"]);
        for address in bad {
            let refused = real_server(address.parse().unwrap());
            assert!(matches!(refused, Err(Error::Invalid(_))), "{address}");
        }
    }

    #[test]
    fn the_lower_threshold_is_not_above_the_upper() {
        assert!(thresholds(5, 5).is_ok());
        assert!(thresholds(NUMBER_MAX, 0).is_ok());
        assert!(matches!(thresholds(5, 6), Err(Error::Range(_))));
        assert!(matches!(thresholds(0, 6), Err(Error::Range(_))));
        assert!(matches!(thresholds(NUMBER_MAX + 1, 0), Err(Error::Range(_))));
    }

    #[test]
    fn names_that_ipvs_does_not_know_are_refused() {
        for name in SCHEDULERS.into_iter().chain([NO_SCHEDULER]) {
            assert!(scheduler(name).is_ok(), "{name}");
        }
        assert!(matches!(scheduler("RR"), Err(Error::UnknownScheduler(name)) if name == "RR"));
        assert!(matches!(scheduler(""), Err(Error::UnknownScheduler(_))));
        assert!(persistence_engine("sip").is_ok());
        assert!(matches!(persistence_engine("ftp"), Err(Error::UnknownScheduler(_))));
    }

    #[test]
    fn destinations_of_another_family_need_a_tunnel() {
        let id = ServiceId::Mark { family: Family::V6, mark: 1 };
        let mut to = Destination {
            id: DestinationId { address: "10.0.0.1".parse().unwrap(), port: 0 },
            method: ForwardingMethod::Tunnel(Tunnel::Ipip),
            weight: NUMBER_MAX,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        assert!(destination(id, &to).is_ok());
        to.method = ForwardingMethod::DirectRoute;
        assert!(matches!(destination(id, &to), Err(Error::Invalid(_))));
        let checksum = TunnelChecksum::None;
        to.method = ForwardingMethod::Tunnel(Tunnel::Gue { port: 0, checksum });
        assert!(matches!(destination(id, &to), Err(Error::Invalid(_))));
        to.weight += 1;
        assert!(matches!(destination(id, &to), Err(Error::Range(_))));
    }

    #[test]
    fn full_nat_is_for_services_with_a_port() {
        let address = "192.0.2.1".parse().unwrap();
        let of = |protocol, port| ServiceId::Address { protocol, address, port };
        let mut to = Destination {
            id: DestinationId { address: "10.0.0.1".parse().unwrap(), port: 80 },
            method: ForwardingMethod::FullNat,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        assert!(destination(of(Protocol::Tcp, 80), &to).is_ok());
        assert!(destination(of(Protocol::Udp, 80), &to).is_ok());
        let mark = ServiceId::Mark { family: Family::V4, mark: 1 };
        for id in [of(Protocol::Tcp, 0), of(Protocol::Sctp, 80), mark] {
            assert!(matches!(destination(id, &to), Err(Error::Invalid(_))), "{id:?}");
        }
        to.id.port = 0;
        assert!(matches!(destination(of(Protocol::Tcp, 80), &to), Err(Error::Invalid(_))));
    }

    #[test]
    fn masks_are_of_the_family_of_their_service() {
        let with = |family, netmask| {
            let persistence = Some(Persistence { timeout_s: 360, netmask });
            super::service(&Service {
                id: ServiceId::Mark { family, mark: 1 },
                scheduler: "rr".to_owned(),
                scheduler_flags: 0,
                one_packet: false,
                persistence,
                persistence_engine: None,
            })
        };
        assert!(with(Family::V4, Netmask::V4([255, 0, 255, 0])).is_ok());
        assert!(with(Family::V6, Netmask::V6(128)).is_ok());
        for (family, mask) in [
            (Family::V4, Netmask::V6(24)),
            (Family::V6, Netmask::V4([255; 4])),
            (Family::V6, Netmask::V6(0)),
            (Family::V6, Netmask::V6(129)),
        ] {
            assert!(matches!(with(family, mask), Err(Error::Invalid(_))), "{mask:?}");
        }
    }
}
