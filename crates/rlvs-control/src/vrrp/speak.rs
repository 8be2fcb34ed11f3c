//! What an instance sends, and the addresses that it puts and takes away.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rlvs_wire::checksum;
use rlvs_wire::vrrp::{
    Advertisement, Ends, HOPS, LENGTH_MAX, NO_AUTHENTICATION, PASSWORD, Version, announcement,
    ipv4_header, ipv6_header,
};

use super::config::{Delivery, VirtualAddress};
use super::event::{Event, Output, State};
use super::instance::{Instance, Outputs};
use super::receive;

impl Instance {
    /// Returns the advertised addresses, one after the other.
    pub(super) fn advertised(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for address in &self.config.addresses {
            match address.address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes
    }

    /// Sends an advertisement with this priority to everyone whom it concerns.
    pub(super) fn send_advert(&mut self, priority: u8, now: Instant, out: &mut Outputs) {
        let Some(source) = self.source else { return };
        self.last_advert = Some(now);
        let (destinations, hops): (Vec<IpAddr>, u8) = match &self.config.delivery {
            Delivery::Multicast => (vec![self.config.group()], HOPS),
            Delivery::Unicast { peers, hops, .. } => {
                (peers.iter().map(|peer| peer.address).collect(), *hops)
            }
        };
        for destination in destinations {
            // keepalived counts from 1; the kernel would fill in a 0.
            self.identification = self.identification.checked_add(1).unwrap_or(1);
            let Some(packet) = self.packet_to(source, destination, hops, priority) else {
                continue;
            };
            let interface = self.config.outward().clone();
            out.push_back(Output::SendAdvert { interface, source, destination, packet });
            self.counters.sent += 1;
        }
    }

    fn packet_to(
        &self,
        source: IpAddr,
        destination: IpAddr,
        hops: u8,
        priority: u8,
    ) -> Option<Vec<u8>> {
        let ends = receive::ends(source, destination)?;
        let password = self.config.password;
        let advertisement = Advertisement {
            version: self.config.version,
            vrid: self.config.vrid,
            priority,
            interval_cs: self.config.interval_cs(),
            authentication: if password.is_some() { PASSWORD } else { NO_AUTHENTICATION },
            data: password.unwrap_or_default(),
            addresses: &self.advertised(),
        };
        let mut bytes = [0; LENGTH_MAX];
        let length = advertisement.emit(&ends, &mut bytes)?;
        if self.config.bare_sum && self.config.version == Version::V3 {
            sum_alone(&ends, bytes.get_mut(..length)?);
        }
        let payload = bytes.get(..length)?;
        match ends {
            Ends::V4 { source, destination } => {
                let header = ipv4_header(source, destination, self.identification, hops, length)?;
                Some([header.as_slice(), payload].concat())
            }
            Ends::V6 { source, destination } => {
                let header = ipv6_header(source, destination, hops, length)?;
                Some([header.as_slice(), payload].concat())
            }
        }
    }

    /// Gives the interface addresses, each with its first announcement right behind, and the other
    /// announcements behind all.
    pub(super) fn add_addresses(
        &mut self,
        addresses: &[VirtualAddress],
        repeat: u16,
        now: Instant,
        out: &mut Outputs,
    ) {
        self.announcer.burst(addresses.iter(), repeat);
        let mut announcements = Outputs::new();
        self.announce(now, &mut announcements);
        for address in addresses {
            let interface = self.interface_of(address);
            out.push_back(Output::AddAddress { interface, address: address.clone() });
            // The first of each stands in order at the head of its queue, if it may go yet.
            if repeat > 0
                && let Some(position) = announcements
                    .iter()
                    .position(|one| self.frame_of(address).as_ref() == Some(one))
            {
                out.extend(announcements.remove(position));
            }
        }
        out.append(&mut announcements);
    }

    /// Sends the announcements that are due.
    pub(super) fn announce(&mut self, now: Instant, out: &mut Outputs) {
        if self.state != State::Master {
            return;
        }
        let announce = self.config.announce;
        self.announcer.plan(&announce, self.config.held(), now);
        while let Some(address) = self.announcer.next(&announce, now) {
            if let Some(output) = self.frame_of(&address) {
                self.counters.announcements += 1;
                out.push_back(output);
            }
        }
    }

    /// Returns the frame that announces an address; none on an interface without such frames.
    fn frame_of(&self, address: &VirtualAddress) -> Option<Output> {
        let interface = self.interface_of(address);
        let mac = self.mac_of(&interface)?;
        let frame = match address.address {
            IpAddr::V4(address) => announcement::arp(mac, address.octets()).to_vec(),
            IpAddr::V6(address) => announcement::neighbour(mac, address.octets()).to_vec(),
        };
        Some(Output::SendFrame { interface, frame })
    }

    fn mac_of(&self, interface: &Arc<str>) -> Option<[u8; 6]> {
        if self.config.virtual_mac.as_ref() != Some(interface) {
            return self.macs.get(interface).copied();
        }
        Some(self.config.mac())
    }

    pub(super) fn interface_of(&self, address: &VirtualAddress) -> Arc<str> {
        address.interface.as_ref().unwrap_or(self.config.outward()).clone()
    }

    pub(super) fn remove_address(&self, address: &VirtualAddress, out: &mut Outputs) {
        let interface = self.interface_of(address);
        out.push_back(Output::RemoveAddress { interface, address: address.clone() });
    }

    /// Puts an address back that somebody took away.
    pub(super) fn restore(
        &mut self,
        interface: &str,
        address: IpAddr,
        now: Instant,
        out: &mut Outputs,
    ) {
        if self.state != State::Master {
            return;
        }
        let is_it =
            |one: &&VirtualAddress| one.address == address && *self.interface_of(one) == *interface;
        let Some(address) = self.config.held().find(is_it).cloned() else { return };
        if address.attributes.untracked {
            return;
        }
        self.counters.restored += 1;
        self.log(Event::Restored { address: address.address }, out);
        self.add_addresses(&[address], self.config.announce.repeat, now, out);
    }
}

/// Sums a packet of version 3 without the pseudo header of IPv4, as some routers want it.
fn sum_alone(ends: &Ends, packet: &mut [u8]) {
    let Ends::V4 { .. } = ends else { return };
    let Some([high, low]) = packet.get_mut(6..8) else { return };
    (*high, *low) = (0, 0);
    let words = packet.chunks(2).map(|pair| match *pair {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [last, ..] => u64::from(last) << 8,
        [] => 0,
    });
    let sum = !checksum::fold(words.sum());
    if let Some(field) = packet.get_mut(6..8) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}
