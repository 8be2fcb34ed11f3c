//! A network namespace in which the routing table knows the way to clients and servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result};
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::route::{MAIN_TABLE, Mac, Prefix, Route, Rtnetlink};
use rlvs_linux::sysctl;

/// First IPv4 client; the others follow.
pub(crate) const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// First IPv6 client; the others follow.
pub(crate) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);
/// The virtual addresses.
pub(crate) const VIP4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Returns the address of a real server.
pub(crate) fn server(family: u8, number: u8) -> IpAddr {
    if family == 4 {
        Ipv4Addr::new(192, 0, 2, number).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into()).into()
    }
}

/// Number of the router behind which the clients are, as of a real server.
pub(crate) const ROUTER: u8 = 254;
/// Number of this host.
const DIRECTOR: u8 = 1;
/// Numbers of the real servers.
pub(crate) const SERVERS: [u8; 4] = [11, 12, 13, 14];

/// The interface that everything comes in and goes out by.
#[derive(Clone, Copy)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    /// MAC address of the clients' router.
    pub(crate) router: Mac,
}

/// A namespace that goes away with this value.
pub(crate) struct Stage(Namespace);

impl Stage {
    /// Makes the namespace.
    pub(crate) fn make() -> Result<Self> {
        // Of benchmarks that were killed, the namespaces stay: theirs go now.
        for name in netns::names()? {
            let process = name.strip_prefix("rlvs-bench-");
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                netns::delete(&name)?;
            }
        }
        let name = format!("rlvs-bench-{}", std::process::id());
        Ok(Self(Namespace::create(&name)?))
    }

    /// Does all the work in a thread within it.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce(Interface) -> Result<T> + Send,
    ) -> Result<T> {
        self.0.run(|| work(self.furnish().context("furnishing the network namespace")?))?
    }

    fn furnish(&self) -> Result<Interface> {
        let mut net = Rtnetlink::open()?;
        net.add_veth("bench0", "bench1", &self.0)?;
        let (link, peer, lo) = (net.link("bench0")?, net.link("bench1")?, net.link("lo")?);
        for index in [lo.index, link.index, peer.index] {
            net.set_up(index, true)?;
        }
        // The programs ask as if the packet had come in by lo.
        sysctl::write("net/ipv4/conf/lo/forwarding", "1")?;
        sysctl::write("net/ipv6/conf/lo/forwarding", "1")?;
        let router = Mac([2, 0, 0, 0, 0, ROUTER]);
        for (family, bits) in [(4, 24), (6, 64)] {
            net.add_address(link.index, Prefix { address: server(family, DIRECTOR), bits })?;
            for number in SERVERS {
                let mac = Mac([2, 0, 0, 0, 0, number]);
                net.set_neighbour(link.index, server(family, number), mac)?;
            }
            net.set_neighbour(link.index, server(family, ROUTER), router)?;
            net.add_route(&Route {
                destination: None,
                gateway: server(family, ROUTER),
                interface: link.index,
                onlink: false,
                table: MAIN_TABLE,
            })?;
        }
        net.add_virtual_address(link.index, Prefix { address: VIP4.into(), bits: 32 })?;
        net.add_virtual_address(link.index, Prefix { address: VIP6.into(), bits: 128 })?;
        let mac = link.mac.context("bench0 has no MAC address")?;
        Ok(Interface { index: link.index, mac, router })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = netns::delete(self.0.name()) {
            eprintln!("warning: {error}");
        }
    }
}
