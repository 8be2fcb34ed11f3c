//! Addresses that move with a virtual router.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use rlvs_control::vrrp::config::{Attributes, VirtualAddress};

use super::{Error, Prefix, Rtnetlink, address_message};

impl Rtnetlink {
    /// Gives an interface a virtual address: one that the kernel does not choose as the source of
    /// this host's own connections.
    ///
    /// Linux prefers an IPv6 address of prefix 128 over that of the network, so that a real server
    /// which holds the same address would answer itself; deprecated, it is left out. keepalived
    /// does the same.
    ///
    /// # Errors
    /// The address is there, or the interface is gone.
    pub fn add_virtual_address(
        &mut self,
        index: u32,
        address: impl Into<VirtualAddress>,
    ) -> Result<(), Error> {
        let address = &address.into();
        let mut message = message(index, address);
        let Attributes { label, broadcast, preferred_s, .. } = &address.attributes;
        let attributes = &mut message.attributes;
        attributes.extend(label.as_ref().map(|label| AddressAttribute::Label(label.to_string())));
        attributes.extend(broadcast.map(AddressAttribute::Broadcast));
        // An IPv4 address is only chosen for a destination within its prefix.
        let deprecated = address.address.is_ipv6().then_some(0);
        if let Some(preferred) = preferred_s.or(deprecated) {
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_preferred = preferred;
            lifetime.ifa_valid = u32::MAX;
            attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        let flags = flags(address);
        if !flags.is_empty() {
            attributes.push(AddressAttribute::Flags(flags));
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("giving interface {index} the address {}", shown(address))
        })
    }

    /// Takes a virtual address from an interface.
    ///
    /// # Errors
    /// The address is not there.
    pub fn delete_virtual_address(
        &mut self,
        index: u32,
        address: &VirtualAddress,
    ) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(message(index, address));
        self.change(message, 0, || {
            format!("taking the address {} from interface {index}", shown(address))
        })
    }
}

impl From<Prefix> for VirtualAddress {
    fn from(prefix: Prefix) -> Self {
        Self::new(prefix.address, prefix.bits)
    }
}

fn message(index: u32, address: &VirtualAddress) -> AddressMessage {
    let bits = address.attributes.peer.map_or(address.bits, |(_, bits)| bits);
    let mut message = address_message(index, Prefix { address: address.address, bits });
    message.header.scope = address.attributes.scope.into();
    if let Some((peer, _)) = address.attributes.peer {
        message.attributes =
            vec![AddressAttribute::Local(address.address), AddressAttribute::Address(peer)];
    }
    message
}

fn flags(address: &VirtualAddress) -> AddressFlags {
    let IpAddr::V6(_) = address.address else { return flags_of_any(&address.attributes) };
    let attributes = &address.attributes;
    let mut flags = flags_of_any(attributes);
    flags.set(AddressFlags::Nodad, !attributes.detect_duplicates);
    flags.set(AddressFlags::Homeaddress, attributes.home);
    flags.set(AddressFlags::Managetempaddr, attributes.manage_temporary);
    flags
}

fn flags_of_any(attributes: &Attributes) -> AddressFlags {
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, attributes.no_prefix_route);
    flags.set(AddressFlags::Mcautojoin, attributes.autojoin);
    flags
}

fn shown(address: &VirtualAddress) -> Prefix {
    Prefix { address: address.address, bits: address.bits }
}
