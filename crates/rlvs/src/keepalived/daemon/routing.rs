//! Routes, rules and fixed addresses, from the desired state to those of the control plane.

use std::sync::Arc;

use rlvs_conf::desired::{self, Instance, RouteEntry, RuleEntry, Statement};
use rlvs_control::routing::Entry;
use rlvs_control::vrrp::config::{Fixed, InstanceConfig, Track, Tracked};

use super::routers;

/// Routes and rules that can be carried out, and lines about what cannot.
#[derive(Debug, Default)]
pub(super) struct Routing {
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) left_out: Vec<String>,
}

impl Routing {
    /// Returns what these entries are, routes first: a rule may lead to their table.
    pub(super) fn of(routes: &[RouteEntry], rules: &[RuleEntry]) -> Self {
        let mut routing = Self::default();
        for RouteEntry { route, kept } in routes {
            // Without its encapsulation a packet would not be what the other end takes.
            routing.add(Entry::Route(route.clone()), kept, |word| word == "encap");
        }
        for RuleEntry { rule, kept } in rules {
            // Without one of its words a rule would be for more packets than are meant.
            routing.add(Entry::Rule(rule.clone()), kept, |word| word != "track_group");
        }
        routing
    }

    fn add(&mut self, entry: Entry, kept: &[Statement], is_needed: impl Fn(&str) -> bool) {
        for word in kept {
            let done = if is_needed(&word.name) { "it is left out" } else { "it is without" };
            let place = entry.line().map_or(String::new(), |place| format!("{place}: "));
            self.left_out
                .push(format!("{place}{entry}: `{}` is not carried out; {done}", word.name));
        }
        if !kept.iter().any(|word| is_needed(&word.name)) {
            self.entries.push(Arc::new(entry));
        }
    }
}

/// Returns what is there whatever the state of the virtual routers.
pub(super) fn fixed(desired: &desired::Fixed) -> (Fixed, Vec<String>) {
    let Routing { entries, left_out } = Routing::of(&desired.routes, &desired.rules);
    let address = |wanted: &desired::VirtualAddress| {
        let mut address = routers::address(wanted);
        // Unlike one that moves, it may be chosen as a source, but where it is all of its prefix.
        if wanted.address.is_ipv6() && wanted.prefix < 128 {
            address.attributes.preferred_s.get_or_insert(u32::MAX);
        }
        address
    };
    let addresses = desired.addresses.iter().map(address).collect();
    (Fixed { addresses, routing: entries }, left_out)
}

/// Returns the interfaces that a master's addresses, routes and rules need besides its own, as what
/// must be up.
pub(super) fn needed(wanted: &Instance, config: &InstanceConfig) -> Vec<Track> {
    let addresses = config.held().filter(|one| !one.attributes.untracked);
    let of_addresses = addresses.filter_map(|one| one.interface.as_ref());
    let entries = config.routing.iter().filter(|entry| entry.is_tracked());
    let mut needed: Vec<Track> = Vec::new();
    for name in of_addresses.chain(entries.flat_map(|entry| entry.interfaces())) {
        let what = Tracked::Interface(name.clone());
        let own = *name == config.interface || config.virtual_mac.as_ref() == Some(name);
        let followed = wanted.track_interfaces.iter().any(|one| *one.name == **name);
        if !own && !followed && needed.iter().all(|one| one.what != what) {
            needed.push(Track { what, weight: 0, reverse: false });
        }
    }
    needed
}
