//! How packets find services and destinations: endpoints, methods, places.

use rlvs_control::model::{Destination as Wanted, ForwardingMethod, Protocol, ServiceId};
use rlvs_control::table::Error;
use rlvs_datapath::abi::{
    Destination, IDS, Service, destination_flag, endpoint_kind, method, service_flag, settings_flag,
};

use super::BpfTable;
use crate::dataplane::access::Guards;
use crate::dataplane::endpoints::{self, Endpoint};
use crate::dataplane::records::{self, address, method_number};
use crate::dataplane::stages::Group;
use crate::dataplane::{load, local};

/// Reply endpoint ids begin here: services have those below.
const REPLY_IDS: u32 = IDS;

impl BpfTable {
    /// Makes a service known to the programs.
    pub(super) fn enter_service(&self, id: u32, record: &Service) -> Result<(), Error> {
        endpoints::insert(&self.maps, &service_endpoint(record), id)
    }

    /// Has the guard asked for a service that is added, if there are rules for it.
    pub(super) fn set_guarded(
        &mut self,
        record: &mut Service,
        id: ServiceId,
    ) -> Result<(), crate::dataplane::Error> {
        let guards = match self.guards.take() {
            Some(guards) => guards,
            None => Guards::of(&self.maps)?,
        };
        self.guards.insert(guards).mark(record, id);
        Ok(())
    }

    /// Has packets that no endpoint names looked at more closely, for a service that may have some: of
    /// any port, of a mark, of FTP's data, of single packets.
    pub(super) fn announce_apart(&self, record: &Service) -> Result<(), crate::dataplane::Error> {
        const FTP: u16 = 21;
        let port = u16::from_be_bytes(record.port);
        let is_apart = port == 0 || port == FTP && record.protocol == Protocol::Tcp.number();
        if !is_apart && record.flags & service_flag::ONE_PACKET == 0 {
            return Ok(());
        }
        let mut settings = self.maps.settings();
        settings.flags |= settings_flag::WIDE;
        self.maps.settings.update(0, &settings)?;
        load::ensure_group(Group::Special)?;
        load::ensure_group(Group::Strange)
    }

    /// Loads what every service of an IP version (4 or 6) needs, if this is the first of it.
    pub(super) fn ensure_family(&self, family: u8) -> Result<(), crate::dataplane::Error> {
        if self.families.get() & 1 << family != 0 {
            return Ok(());
        }
        if !self.services.values().any(|&id| self.service_record(id).family == family) {
            load::ensure_family(family)?;
        }
        self.families.set(self.families.get() | 1 << family);
        Ok(())
    }

    /// Puts there what a destination's connections need that begin or end on this host, if it is the first.
    pub(super) fn ensure_local(
        &self,
        to: &Wanted,
        place: u8,
    ) -> Result<(), crate::dataplane::Error> {
        local::prepare(&self.maps, to, place)?;
        if to.method != ForwardingMethod::Masquerade {
            return Ok(());
        }
        let family = if to.id.address.is_ipv4() { 4 } else { 6 };
        let groups = [(Group::Here, true), (Group::Said, place & destination_flag::LOCAL != 0)];
        for (shift, (group, is_needed)) in (0..).zip(groups) {
            let bit = 1 << (family + shift * 8);
            if is_needed && self.local.get() & bit == 0 {
                load::ensure_group_of(group, family)?;
                self.local.set(self.local.get() | bit);
            }
        }
        Ok(())
    }

    /// Marks a service by where its destinations are, and its neighbours if one is this host: they may
    /// be directors too.
    pub(super) fn mark_places(&self, service: u32) -> Result<(), crate::dataplane::Error> {
        let list: Vec<_> =
            self.list(service).into_iter().map(|id| (id, self.destination_record(id))).collect();
        let is = |record: &Destination, flag| record.flags & flag != 0;
        let direct = |record: &Destination| record.method == method::DIRECT;
        let peered = list.iter().any(|(_, to)| direct(to) && is(to, destination_flag::LOCAL));
        // The pool's address would be that of the client's own host.
        let is_full = |to: &Destination| is(to, destination_flag::FULL);
        let serves_own = list.iter().all(|(_, to)| {
            to.method == method::MASQUERADE && !is_full(to) || is(to, destination_flag::LOCAL)
        });
        if peered {
            load::ensure_group(Group::Peers)?;
        }
        for (id, before) in list {
            let mut record = before;
            record.flags &= !destination_flag::PEER;
            if peered && direct(&record) && is(&record, destination_flag::ADJACENT) {
                record.flags |= destination_flag::PEER;
            }
            if record != before {
                self.maps.destinations.update(id, &record)?;
            }
        }
        let mut owner = self.service_record(service);
        owner.flags &= !(service_flag::PEERED | service_flag::LOCAL_CLIENTS);
        owner.flags |= if peered { service_flag::PEERED } else { 0 };
        owner.flags |= if serves_own { service_flag::LOCAL_CLIENTS } else { 0 };
        self.maps.services.update(service, &owner)
    }

    /// Returns the reply endpoint id of a NAT destination, making the endpoint known if need be.
    fn reply_id(&mut self, service: &Service, record: &Destination) -> Result<u32, Error> {
        let endpoint = reply_endpoint(service, record);
        if let Some((id, users)) = self.replies.get_mut(&endpoint) {
            *users += 1;
            return Ok(*id);
        }
        let after = self.reply_ids.last().map_or(REPLY_IDS + 1, |id| id + 1);
        let id = match after {
            _ if after < 2 * REPLY_IDS => after,
            _ => (REPLY_IDS + 1..).find(|id| !self.reply_ids.contains(id)).unwrap_or(REPLY_IDS),
        };
        endpoints::insert(&self.maps, &endpoint, id)?;
        self.replies.insert(endpoint, (id, 1));
        self.reply_ids.insert(id);
        Ok(id)
    }

    /// Fills in how packets get to a destination: NAT needs an endpoint for replies, a tunnel its
    /// headers, which are there before any packet is led to them.
    pub(super) fn set_method(
        &mut self,
        id: u32,
        owner: &Service,
        record: &mut Destination,
        to: &Wanted,
    ) -> Result<(), Error> {
        record.method = method_number(to.method);
        record.flags &= !destination_flag::FULL;
        (record.tunnel, record.overhead) = (0, 0);
        match to.method {
            ForwardingMethod::Masquerade if owner.flags & service_flag::ONE_PACKET != 0 => {
                endpoints::insert(&self.maps, &once_endpoint(owner, record), id)?;
            }
            ForwardingMethod::FullNat => record.flags |= destination_flag::FULL,
            // Without a port the wide table has it.
            ForwardingMethod::Masquerade if record.reply == 0 && to.id.port != 0 => {
                record.reply = self.reply_id(owner, record)?;
            }
            ForwardingMethod::Tunnel(tunnel) => {
                load::ensure_group(Group::Tunnels)?;
                // Errors about the outer packets come by its IP version.
                self.ensure_family(if to.id.address.is_ipv4() { 4 } else { 6 })?;
                let (source, target) = (self.ways.source(to.id.address), to.id.address);
                let headers = records::tunnel(tunnel, owner.family, source, target);
                self.maps.tunnels.update(id, &headers)?;
                (record.tunnel, record.overhead) = (id, headers.overhead);
            }
            ForwardingMethod::Masquerade | ForwardingMethod::DirectRoute => {}
        }
        Ok(())
    }
}

pub(super) fn service_endpoint(record: &Service) -> Endpoint {
    if record.mark != 0 {
        let mark = match record.family {
            4 => std::net::Ipv4Addr::from_bits(record.mark).into(),
            _ => std::net::Ipv6Addr::from_bits(record.mark.into()).into(),
        };
        return Endpoint { kind: endpoint_kind::MARK, protocol: 0, address: mark, port: 0 };
    }
    Endpoint {
        kind: endpoint_kind::SERVICE,
        protocol: record.protocol,
        address: address(record.family, record.address),
        port: u16::from_be_bytes(record.port),
    }
}

/// The endpoint by which a datagram is known that answers one which left no entry.
pub(super) fn once_endpoint(service: &Service, record: &Destination) -> Endpoint {
    Endpoint { kind: endpoint_kind::ONE_PACKET, ..reply_endpoint(service, record) }
}

pub(super) fn reply_endpoint(service: &Service, record: &Destination) -> Endpoint {
    Endpoint {
        kind: endpoint_kind::REPLY,
        protocol: service.protocol,
        address: address(service.family, record.address),
        port: u16::from_be_bytes(record.port),
    }
}
