//! Interfaces with a virtual router's own hardware address.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::route::{Link, Mac, Rtnetlink};
use crate::sysctl;

/// What went wrong with one.
type Failure = Box<dyn std::error::Error>;

/// What was made and changed, to be undone.
#[derive(Debug, Default)]
pub(super) struct OwnInterfaces {
    /// Names and indices of interfaces that are ours.
    made: BTreeMap<Arc<str>, u32>,
    /// Parameters of others, with what they were.
    changed: Vec<(String, String)>,
}

impl OwnInterfaces {
    /// Makes an interface on top of another, and sets it up.
    ///
    /// Neither answers ARP for addresses of the other, and nothing is dropped because the way back
    /// is by the other.
    pub(super) fn make(
        &mut self,
        route: &mut Rtnetlink,
        name: &str,
        lower: &Link,
        mac: Mac,
    ) -> Result<Link, Failure> {
        route.add_macvlan(name, lower.index, mac)?;
        let index = route.link(name)?.index;
        self.made.insert(name.into(), index);
        sysctl::write(&format!("net/ipv4/conf/{name}/arp_ignore"), "1")?;
        sysctl::write(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        // All routers would have the same address of the link. Without IPv6 there is none.
        let _without = sysctl::write(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1").is_err();
        // The other would tell neighbours its own hardware address for the virtual one, when it
        // answers and when it asks.
        self.change(format!("net/ipv4/conf/{}/arp_ignore", lower.name), "1")?;
        self.change(format!("net/ipv4/conf/{}/arp_announce", lower.name), "2")?;
        route.set_up(index, true)?;
        Ok(route.link(name)?)
    }

    /// Takes an interface for ours that an earlier process has made and could not remove.
    pub(super) fn adopt(&mut self, link: &Link, lower: &Link, mac: Mac) {
        let same = link.kind.as_deref() == Some("macvlan")
            && link.lower == Some(lower.index)
            && link.mac == Some(mac);
        if same {
            self.made.insert(link.name.as_str().into(), link.index);
        }
    }

    /// Removes what was made and is not wanted any more.
    pub(super) fn retain(
        &mut self,
        route: &mut Rtnetlink,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Vec<Failure> {
        let all = std::mem::take(&mut self.made);
        let (wanted, gone) = all.into_iter().partition(|(name, _)| is_wanted(name));
        self.made = wanted;
        delete(route, gone)
    }

    fn change(&mut self, path: String, value: &str) -> Result<(), Failure> {
        let before = sysctl::read(&path)?;
        if before != value {
            sysctl::write(&path, value)?;
            self.changed.push((path, before));
        }
        Ok(())
    }

    /// Removes what was made, and sets back what was changed.
    pub(super) fn undo(self, route: &mut Rtnetlink) -> Vec<Failure> {
        let mut failures = delete(route, self.made);
        for (path, value) in self.changed {
            if let Err(error) = sysctl::write(&path, &value) {
                failures.push(error.into());
            }
        }
        failures
    }
}

/// Removes interfaces; one that is gone is no failure.
fn delete(route: &mut Rtnetlink, interfaces: BTreeMap<Arc<str>, u32>) -> Vec<Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    for index in interfaces.into_values() {
        match route.delete_link(index) {
            Err(error) if error.refusal() != Some(libc::ENODEV) => failures.push(error.into()),
            _ => {}
        }
    }
    failures
}
