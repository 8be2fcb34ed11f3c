//! Virtual addresses.

use std::time::Duration;

use rlvs_control::model::Family;

use crate::desired::{Broadcast, Version, VirtualAddress};
use crate::diagnostic::{Diagnostic, Objection};
use crate::lower::{Lower, common};
use crate::tree::Node;
use crate::value::{Meaning, Value};

impl Lower<'_> {
    pub(super) fn addresses(&mut self, node: &Node) -> Vec<VirtualAddress> {
        self.entries_to_addresses(node, "virtual_ipaddress")
    }

    /// Returns the addresses of this family; nothing, if the instance cannot be without any.
    pub(super) fn same_family(
        &mut self,
        node: &Node,
        all: Vec<VirtualAddress>,
        family: Family,
        version: Version,
    ) -> Option<Vec<VirtualAddress>> {
        if all.is_empty() && !node.has("no_virtual_ipaddress") {
            return self.no_address(node, version).then(Vec::new);
        }
        let mut spans = node.entries("virtual_ipaddress").filter_map(|entry| entry.args.first());
        let mut of_family = Vec::new();
        for address in all {
            if Family::of(address.address) == family {
                of_family.push(address);
                continue;
            }
            let same = |value: &&Value| matches!(value.meaning, Meaning::Prefix(other, _) if other == address.address);
            let span = spans.find(same).map_or(node.span, |value| value.span);
            let other = address.address;
            let text = format!("{other} is of another family than the instance; it is left out");
            let found = Diagnostic::error(span, text).expected("expected addresses of one family");
            self.say(found.help("`virtual_ipaddress_excluded` takes addresses of the other"));
        }
        Some(of_family)
    }

    /// Says that an instance has no address, and returns whether it can be without.
    fn no_address(&mut self, node: &Node, version: Version) -> bool {
        let name = node.name();
        let found = match version {
            Version::V2 => Diagnostic::warning(node.span, format!("{name} has no virtual address"))
                .help("`no_virtual_ipaddress` says that it is meant"),
            Version::V3 => {
                let text = format!("{name} has no virtual address; it is left out");
                let found = Diagnostic::error(node.span, text);
                found.expected("expected a `virtual_ipaddress` in it")
            }
        };
        self.say(found.objection(Objection::General));
        version == Version::V2
    }

    pub(super) fn entries_to_addresses(&mut self, node: &Node, name: &str) -> Vec<VirtualAddress> {
        self.read_addresses(node.entries(name))
    }

    /// Lowers entries of addresses.
    pub(super) fn read_addresses<'n>(
        &mut self,
        entries: impl Iterator<Item = &'n Node>,
    ) -> Vec<VirtualAddress> {
        let mut addresses: Vec<VirtualAddress> = Vec::new();
        let mut met = std::collections::BTreeSet::new();
        for entry in entries {
            let Some(mut address) = virtual_address(entry) else { continue };
            let made = matches!(address.broadcast, Broadcast::Ones | Broadcast::Zeros);
            if made && address.prefix > 30 && address.address.is_ipv4() {
                let text = "a prefix of this length has no broadcast address";
                self.say(Diagnostic::error(entry.span, text));
                address.broadcast = Broadcast::No;
            }
            if !met.insert((address.address, address.interface.clone())) {
                let text = format!("{} is there twice", address.address);
                self.say(Diagnostic::warning(entry.span, text));
                continue;
            }
            if let Some(interface) = entry.word("dev").filter(|_| !self.defaults.dynamic_interfaces)
            {
                self.check_interface(interface);
            }
            addresses.push(address);
        }
        addresses
    }
}

/// Returns the family of an instance without addresses.
pub(super) fn family_without(node: &Node) -> Family {
    let source = node.address("unicast_src_ip").or_else(|| node.address("mcast_src_ip"));
    let excluded = node.entries("virtual_ipaddress_excluded").filter_map(virtual_address).next();
    let peer = node.entries("unicast_peer").find_map(|entry| match entry.args.first()?.meaning {
        Meaning::Address(address) => Some(address),
        _ => None,
    });
    let source = source.or(peer);
    let any =
        source.or_else(|| node.address("mcast_dst_ip")).or(excluded.map(|address| address.address));
    any.map_or(Family::V4, Family::of)
}

fn virtual_address(entry: &Node) -> Option<VirtualAddress> {
    let Meaning::Prefix(address, prefix) = entry.args.first()?.meaning else { return None };
    let peer = entry.word("peer").and_then(|peer| match peer.meaning {
        Meaning::Prefix(address, length) => Some((address, length)),
        _ => None,
    });
    let broadcast = match entry.text("brd").or_else(|| entry.text("broadcast")).as_deref() {
        Some("+") => Broadcast::Ones,
        Some("-") => Broadcast::Zeros,
        Some(text) => text.parse().map_or(Broadcast::No, Broadcast::Address),
        None => Broadcast::No,
    };
    let lifetime = entry.text("preferred_lft").and_then(|text| text.parse::<u32>().ok());
    Some(VirtualAddress {
        address,
        prefix,
        interface: entry.text("dev"),
        broadcast,
        scope: entry.text("scope"),
        label: entry.text("label"),
        peer,
        home: entry.has("home"),
        detect_duplicates: entry.has("-nodad"),
        manage_temporary: entry.has("mngtmpaddr"),
        no_prefix_route: entry.has("noprefixroute"),
        autojoin: entry.has("autojoin"),
        untracked: entry.has("no_track"),
        preferred: lifetime.map(|seconds| Duration::from_secs(seconds.into())),
        kept: common::kept(&entry.children),
    })
}
