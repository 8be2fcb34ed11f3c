//! A network of a client, a director and a server, each in a namespace.
//!
//! ```text
//!  client 192.0.2.254 ----- eth0 192.0.2.1 director 203.0.113.1 eth1 ----- 203.0.113.11 server
//! ```
//!
//! One-armed, the server is 192.0.2.11, in the client's namespace and behind the same interface.
//! Clients are behind 192.0.2.254. Neighbours are known beforehand and nobody has a socket: frames
//! are put into the wire, and counted where they come out, by BPF programs.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rlvs_control::model::{
    Destination, DestinationId, ForwardingMethod, Protocol, Service, ServiceId,
};
use rlvs_control::table::Table;
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::attach::{self, Mode, Options};
use rlvs_linux::dataplane::load::Sizes;
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::process;
use rlvs_linux::route::{MAIN_TABLE, Mac, Prefix, Route, Rtnetlink};
use rlvs_linux::sysctl;
use rlvs_linux::xdp_pass::attach_pass;

use super::paths::{Path, Traffic};
use super::wire::Wire;
use crate::frame::End;
use crate::stage::VIP4;

/// What the names of all namespaces begin with; the number of the process follows.
const PREFIX: &str = "rlvs-wire-";
const PORT: u16 = 80;
const REAL_PORT: u16 = 8080;
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const DIRECTOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ONE_ARMED_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const DIRECTOR_INSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);

/// What the director does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Director {
    /// Drops them, once counted.
    Dropping,
    /// Balances: the product, in native XDP.
    Ours,
    /// Translates addresses: nftables with connection tracking.
    Nftables,
    /// Forwards to the server, to which the virtual address is routed. No connection tracking.
    Router,
}

impl Director {
    /// Whether it has connections.
    pub(super) fn balances(self) -> bool {
        matches!(self, Self::Ours | Self::Nftables)
    }
}

/// The end of a wire at the client or at the server.
pub(super) struct Far<'a> {
    pub(super) namespace: &'a Namespace,
    /// Index and MAC address of its interface.
    pub(super) interface: u32,
    pub(super) mac: Mac,
    /// MAC address of the director's interface at the other end.
    pub(super) director: Mac,
}

/// A namespace that loses its name with this value.
struct Host(Namespace);

impl Host {
    fn make(director: Director, role: &str) -> Result<Self> {
        let process = std::process::id();
        let name = format!("{PREFIX}{process}-{director:?}-{role}");
        let host = Self(Namespace::create(&name.to_lowercase())?);
        host.0.run(|| write_all(HOST_PARAMETERS))??;
        Ok(host)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = netns::delete(self.0.name()) {
            eprintln!("warning: {error}");
        }
    }
}

/// A wire between a host and the director.
struct Link {
    interface: u32,
    mac: Mac,
    director: Mac,
}

/// The network.
pub(super) struct World {
    pub(super) director: Director,
    path: Path,
    attached: bool,
    host: Host,
    client: (Host, Link),
    server: Option<(Host, Link)>,
}

/// Of every host: no frames of its own, no dropping of what comes the other way.
const HOST_PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];
/// Of the director.
const DIRECTOR_PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

impl World {
    /// Builds a network for a path; `sink` counts at the far ends.
    pub(super) fn build(director: Director, path: &Path, sink: &OwnedFd) -> Result<Self> {
        let host = Host::make(director, "director")?;
        host.0.run(|| write_all(DIRECTOR_PARAMETERS))??;
        let client = Host::make(director, "client")?;
        let outside = connect(&client, &host, "eth0", 1, sink)?;
        let server = if path.one_armed {
            None
        } else {
            let server = Host::make(director, "server")?;
            let inside = connect(&server, &host, "eth1", 2, sink)?;
            Some((server, inside))
        };
        let mut world = Self {
            director,
            path: *path,
            attached: false,
            host,
            client: (client, outside),
            server,
        };
        world.address().context("giving the director its addresses")?;
        world.engage(sink)?;
        Ok(world)
    }

    /// Returns the end that a packet comes from, and the one that it goes to.
    pub(super) fn ends(&self, reply: bool) -> (Far<'_>, Far<'_>) {
        fn far((host, link): &(Host, Link)) -> Far<'_> {
            let Link { interface, mac, director } = *link;
            Far { namespace: &host.0, interface, mac, director }
        }
        let (client, server) =
            (far(&self.client), far(self.server.as_ref().unwrap_or(&self.client)));
        if reply { (server, client) } else { (client, server) }
    }

    /// Returns the end of a connection that is not the client's, as the one who sends knows it.
    pub(super) fn server_end(&self, reply: bool) -> End {
        if reply {
            End { address: self.server_address().into(), port: REAL_PORT }
        } else {
            End { address: VIP4.into(), port: PORT }
        }
    }

    /// Returns how a packet comes out of the far end.
    pub(super) fn expected(&self, reply: bool) -> Wire {
        let translated = self.path.traffic != Traffic::Direct;
        let as_sent = self.director == Director::Dropping;
        let real = (self.server_address(), REAL_PORT);
        let seen = if (as_sent || !translated) == reply { real } else { (VIP4, PORT) };
        let (address, port) = seen;
        let (from, to) = self.ends(reply);
        let Mac([a, b, c, d, e, f]) = if as_sent { from.director } else { to.mac };
        Wire {
            source: reply.into(),
            address: u32::from_ne_bytes(address.octets()),
            port: u16::from_ne_bytes(port.to_be_bytes()).into(),
            mac: u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]),
            ..Wire::default()
        }
    }

    /// Returns why packets got lost, as far as the director tells.
    pub(super) fn why(&self) -> String {
        let reasons = || -> Result<Vec<_>> {
            let table = BpfTable::open()?.context("nothing is attached")?;
            let counted = |reason: &Reason| (reason.name(), table.maps().reason(*reason as u32));
            Ok(Reason::ALL.iter().map(counted).filter(|(_, packets)| *packets > 0).collect())
        };
        if !self.attached {
            return String::new();
        }
        match self.host.0.run(reasons) {
            Ok(Ok(reasons)) => format!("; the director has counted {reasons:?}"),
            Ok(Err(error)) => format!("; {error:#}"),
            Err(error) => format!("; {error}"),
        }
    }

    fn server_address(&self) -> Ipv4Addr {
        if self.path.one_armed { ONE_ARMED_SERVER } else { SERVER }
    }

    /// Gives the director addresses, routes and neighbours.
    fn address(&self) -> Result<()> {
        let mut net = Rtnetlink::open_in(&self.host.0)?;
        let eth0 = net.link("eth0")?.index;
        net.add_address(eth0, Prefix { address: DIRECTOR.into(), bits: 24 })?;
        net.set_neighbour(eth0, ROUTER.into(), self.client.1.mac)?;
        let mut to_server = eth0;
        if let Some((_, link)) = &self.server {
            to_server = net.link("eth1")?.index;
            net.add_address(to_server, Prefix { address: DIRECTOR_INSIDE.into(), bits: 24 })?;
            net.set_neighbour(to_server, SERVER.into(), link.mac)?;
        } else {
            net.set_neighbour(eth0, ONE_ARMED_SERVER.into(), self.client.1.mac)?;
        }
        let route = |destination, gateway: Ipv4Addr, interface| Route {
            destination,
            gateway: gateway.into(),
            interface,
            onlink: false,
            table: MAIN_TABLE,
        };
        net.add_route(&route(None, ROUTER, eth0))?;
        let virtual_address = Prefix { address: VIP4.into(), bits: 32 };
        if self.director == Director::Router {
            net.add_route(&route(Some(virtual_address), self.server_address(), to_server))?;
        } else {
            net.add_virtual_address(eth0, virtual_address)?;
        }
        Ok(())
    }

    /// Makes the director do what it is for.
    fn engage(&mut self, sink: &OwnedFd) -> Result<()> {
        let interfaces: &[&str] = if self.path.one_armed { &["eth0"] } else { &["eth0", "eth1"] };
        match self.director {
            Director::Dropping => {
                let mut net = Rtnetlink::open_in(&self.host.0)?;
                for interface in interfaces {
                    let index = net.link(interface)?.index;
                    net.set_native_xdp(index, sink)?;
                }
            }
            Director::Ours => {
                self.attached = true;
                self.host.0.run(|| self.balance())??;
            }
            Director::Nftables | Director::Router => {
                // A veth end takes frames from XDP if it polls: that was dearer with GRO.
                let mut net = Rtnetlink::open_in(&self.host.0)?;
                for interface in interfaces {
                    let index = net.link(interface)?.index;
                    attach_pass(&mut net, index)?;
                }
                if self.director == Director::Nftables {
                    self.translate()?;
                }
            }
        }
        Ok(())
    }

    /// Attaches the product in the calling thread's namespace.
    fn balance(&self) -> Result<()> {
        let options = Options {
            mode: Some(Mode::Native),
            interfaces: Vec::new(),
            any: false,
            sizes: Some(Sizes::default()),
            ..Options::default()
        };
        let attached = attach::attach(&options)?;
        let mut table = BpfTable::open()?.context("nothing is attached")?;
        let interfaces = if self.path.one_armed { 1 } else { 2 };
        let native = attached.iter().filter(|one| one.mode == Mode::Native).count();
        ensure!(native == interfaces, "not all attached in native mode: {attached:?}");
        let id = ServiceId::Address { protocol: Protocol::Tcp, address: VIP4.into(), port: PORT };
        let (method, port) = if self.path.traffic == Traffic::Direct {
            (ForwardingMethod::DirectRoute, PORT)
        } else {
            (ForwardingMethod::Masquerade, REAL_PORT)
        };
        table.add_service(&Service {
            id,
            scheduler: "rr".to_owned(),
            scheduler_flags: 0,
            one_packet: false,
            persistence: None,
            persistence_engine: None,
        })?;
        let real = DestinationId { address: self.server_address().into(), port };
        table.add_destination(
            id,
            &Destination { id: real, method, weight: 1, upper_threshold: 0, lower_threshold: 0 },
        )?;
        Ok(())
    }

    /// Has nftables translate addresses.
    fn translate(&self) -> Result<()> {
        let server = self.server_address();
        let rules = format!(
            "table ip bench {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat
                    ip daddr {VIP4} tcp dport {PORT} dnat to {server}:{REAL_PORT}
                }}
            }}\n"
        );
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped());
        self.host.0.place(&mut command)?;
        process::die_with_parent(&mut command, Signal::SIGKILL);
        let mut child =
            command.spawn().context("running nft, which is in Debian's package nftables")?;
        child.stdin.take().context("nft takes no input")?.write_all(rules.as_bytes())?;
        let status = child.wait().context("waiting for nft")?;
        ensure!(status.success(), "nft: {status}");
        // A network card has checked the sum; the frames of the benchmark have none.
        self.host.0.run(|| sysctl::write("net/netfilter/nf_conntrack_checksum", "0"))??;
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.attached {
            return;
        }
        match self.host.0.run(attach::detach) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("warning: {error}"),
            Err(error) => eprintln!("warning: {error}"),
        }
    }
}

/// Connects a host to the director's interface of this name.
fn connect(host: &Host, director: &Host, name: &str, number: u8, sink: &OwnedFd) -> Result<Link> {
    let mut far = Rtnetlink::open_in(&host.0)?;
    let mut near = Rtnetlink::open_in(&director.0)?;
    far.add_veth("wire", name, &director.0)?;
    let (wire, port) = (far.link("wire")?.index, near.link(name)?.index);
    let macs = [Mac([2, 0, 0, 0, number, 2]), Mac([2, 0, 0, 0, number, 1])];
    far.set_mac(wire, macs[0])?;
    near.set_mac(port, macs[1])?;
    far.set_native_xdp(wire, sink)?;
    far.set_up(wire, true)?;
    near.set_up(port, true)?;
    Ok(Link { interface: wire, mac: macs[0], director: macs[1] })
}

/// Removes the namespaces of benchmarks that were killed.
pub(super) fn sweep() -> Result<()> {
    for name in netns::names()? {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !FilePath::new("/proc").join(process).exists()) {
            netns::delete(&name)?;
        }
    }
    attach::collect()?;
    Ok(())
}

fn write_all(parameters: &[(&str, &str)]) -> Result<()> {
    for (path, value) in parameters {
        sysctl::write(path, value)?;
    }
    Ok(())
}
