//! Routes and rules that come and go with a master, and what is there whatever its state.

use std::net::IpAddr;
use std::sync::Arc;

use super::config::{Fixed, VirtualAddress};
use super::event::{Event, Output};
use super::instance::Outputs;
use crate::routing::Entry;

type Entries = [Arc<Entry>];

/// Adds entries, those that others may need first.
pub(super) fn add(about: &Arc<str>, entries: &Entries, out: &mut Outputs) {
    add_others(about, entries, &[], out);
}

/// Adds what was not wanted before.
pub(super) fn add_others(about: &Arc<str>, entries: &Entries, before: &Entries, out: &mut Outputs) {
    let new = entries.iter().filter(|entry| !before.contains(entry));
    out.extend(new.map(|entry| adding(about, entry, false)));
}

/// Puts those back that may be missing.
pub(super) fn restore(about: &Arc<str>, entries: &Entries, out: &mut Outputs) {
    let tracked = entries.iter().filter(|entry| entry.is_tracked());
    out.extend(tracked.map(|entry| adding(about, entry, true)));
}

/// Removes entries, in the order opposite to that in which they came.
pub(super) fn remove(about: &Arc<str>, entries: &Entries, out: &mut Outputs) {
    remove_others(about, entries, &[], out);
}

/// Removes what is not wanted any more.
pub(super) fn remove_others(
    about: &Arc<str>,
    entries: &Entries,
    wanted: &Entries,
    out: &mut Outputs,
) {
    let gone = entries.iter().rev().filter(|entry| !wanted.contains(entry));
    let remove =
        |entry: &Arc<Entry>| Output::RemoveRouting { about: about.clone(), entry: entry.clone() };
    out.extend(gone.map(remove));
}

fn adding(about: &Arc<str>, entry: &Arc<Entry>, again: bool) -> Output {
    Output::AddRouting { about: about.clone(), entry: entry.clone(), again }
}

impl Fixed {
    /// Changes what there is to something else; what is in both stays untouched.
    pub(super) fn become_other(&mut self, wanted: Self, out: &mut Outputs) {
        let nobody = Arc::from("");
        let old = std::mem::replace(self, wanted);
        remove_others(&nobody, &old.routing, &self.routing, out);
        for address in old.addresses.iter().filter(|one| !self.addresses.contains(one)) {
            out.extend(
                on_interface(address)
                    .map(|interface| Output::RemoveAddress { interface, address: address.clone() }),
            );
        }
        for address in self.addresses.iter().filter(|one| !old.addresses.contains(one)) {
            out.extend(add_address(address));
        }
        add_others(&nobody, &self.routing, &old.routing, out);
    }

    /// Puts an address back that somebody took away.
    pub(super) fn restore(&self, interface: &str, address: IpAddr, out: &mut Outputs) {
        let is_it = |one: &&VirtualAddress| {
            one.address == address && one.interface.as_deref() == Some(interface)
        };
        let missing = self.addresses.iter().filter(is_it);
        for found in missing.filter(|one| !one.attributes.untracked) {
            out.push_back(Output::Log { about: "".into(), event: Event::Restored { address } });
            out.extend(add_address(found));
        }
    }
}

fn on_interface(address: &VirtualAddress) -> Option<Arc<str>> {
    address.interface.clone()
}

fn add_address(address: &VirtualAddress) -> Option<Output> {
    let interface = on_interface(address)?;
    Some(Output::AddAddress { interface, address: address.clone() })
}
