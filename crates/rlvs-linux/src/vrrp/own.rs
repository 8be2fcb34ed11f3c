//! Interfaces with a virtual router's own hardware address.

use crate::route::{Link, Mac, Rtnetlink};
use crate::sysctl;

/// What went wrong with one.
type Failure = Box<dyn std::error::Error>;

/// What was made and changed, to be undone.
#[derive(Debug, Default)]
pub(super) struct OwnInterfaces {
    /// Indices of interfaces that are ours.
    made: Vec<u32>,
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
        self.made.push(index);
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
        let mut failures: Vec<Failure> = Vec::new();
        for index in self.made {
            match route.delete_link(index) {
                Err(error) if error.refusal() != Some(libc::ENODEV) => failures.push(error.into()),
                _ => {}
            }
        }
        for (path, value) in self.changed {
            if let Err(error) = sysctl::write(&path, &value) {
                failures.push(error.into());
            }
        }
        failures
    }
}
