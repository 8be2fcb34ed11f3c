//! The how-to's network in network namespaces.
//!
//! ```text
//!  client .10 ---+--- br0 192.168.1.0/24, fd00:1::/64 ---+--- director .100, VIPs .200-.207
//!                |                                       |        |
//!  rs1 .101, rs2 .102, VIPs on lo (direct, tunnels) -----+       br1 10.0.1.0/24, fd00:2::/64
//!        |                                                        |
//!        +--- 10.0.1.101, .102 (NAT): answers go back by the director, 10.0.1.1
//! ```
//!
//! The real servers take packets out of tunnels to any of their addresses, as no kernel module does
//! it here. The bridges stand in a namespace of their own. [`Lab::new`] returns when every real server
//! answers; dropping the lab removes everything, and [`super::claim`] does so after a crash.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Context;
use rlvs_control::model::Family;
use rlvs_linux::decap::Decapsulator;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::Guard;
use rlvs_linux::route::{Mac, Prefix, Route, Rtnetlink};
use rlvs_linux::xdp_pass::attach_pass;
use rlvs_linux::{ethtool, sysctl};

use super::claim::Claim;
use super::webserver;

/// The address of one host in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Returns the address of one family.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Returns both addresses.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

const fn outside(v4: u8, v6: u16) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 1, v4),
        v6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, v6),
    }
}

const fn inside(v4: u8, v6: u16) -> Addresses {
    Addresses { v4: Ipv4Addr::new(10, 0, 1, v4), v6: Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, v6) }
}

/// The client.
pub const CLIENT: Addresses = outside(10, 0x10);
/// The director on the clients' side.
pub const DIRECTOR: Addresses = outside(100, 0x100);
/// The director on the side of the real servers that NAT reaches.
pub const DIRECTOR_INSIDE: Addresses = inside(1, 0x1);
/// The other director, if there is one.
pub const SECOND_DIRECTOR: Addresses = outside(99, 0x99);
/// The other director on the inner segment.
pub const SECOND_DIRECTOR_INSIDE: Addresses = inside(2, 0x2);
/// The virtual addresses. A table remembers a removed server as long as it has connections, also
/// for the next service at the same address: whoever wants to begin at 0 takes another one.
pub const VIPS: [Addresses; 8] = [
    outside(200, 0x200),
    outside(201, 0x201),
    outside(202, 0x202),
    outside(203, 0x203),
    outside(204, 0x204),
    outside(205, 0x205),
    outside(206, 0x206),
    outside(207, 0x207),
];
/// The how-to's virtual address.
pub const VIP: Addresses = VIPS[0];
/// Port of the web servers.
pub const HTTP_PORT: u16 = 80;
/// Port on which the real servers answer over UDP.
pub const UDP_PORT: u16 = 5300;
/// Port on which the real servers take packets out of GUE: the one that IANA has set aside for it.
pub const GUE_PORT: u16 = 6080;

/// A real server.
#[derive(Clone, Copy, Debug)]
pub struct RealServer {
    /// What its namespace's name ends in.
    pub role: &'static str,
    /// What it answers with.
    pub title: &'static str,
    /// Its addresses on the clients' segment, for direct routing.
    pub outside: Addresses,
    /// Its addresses on the inner segment, for NAT.
    pub inside: Addresses,
}

/// The real servers.
pub const REAL_SERVERS: [RealServer; 2] = [
    RealServer {
        role: "rs1",
        title: "Server 1",
        outside: outside(101, 0x101),
        inside: inside(101, 0x101),
    },
    RealServer {
        role: "rs2",
        title: "Server 2",
        outside: outside(102, 0x102),
        inside: inside(102, 0x102),
    },
];

const OUTSIDE_BRIDGE: &str = "br0";
const INSIDE_BRIDGE: &str = "br1";
/// Interface of every host on the clients' segment.
pub const OUTSIDE_INTERFACE: &str = "eth0";
/// Interface of the director and the real servers on the inner segment.
pub const INSIDE_INTERFACE: &str = "eth1";
/// Routing table of a real server for answers from its inner address.
const INSIDE_TABLE: u8 = 100;

/// How the veth pairs are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Wiring {
    /// As `ip link add … type veth` leaves them: checksums unfinished, the program goes to TC
    Plain,
    /// As network cards behave: checksums complete, peers ready for native XDP
    Tuned,
}

/// Which web server the real servers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebServer {
    /// nginx where it is installed, else ours.
    Installed,
    /// The small one of `rlvs lab-server`.
    Ours,
}

/// What lab to build.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the veth pairs are set up.
    pub wiring: Wiring,
    /// Which web server the real servers run.
    pub web_server: WebServer,
    /// The `rlvs` executable, for `rlvs lab-server`.
    pub program: PathBuf,
    /// Whether the real servers may outlive this process, for [`Lab::keep`].
    pub keep: bool,
}

/// A standing lab.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: the servers end before their namespaces lose their names.
    servers: Vec<Guard>,
    client: Namespace,
    director: Namespace,
    real_servers: Vec<Namespace>,
    decapsulators: Vec<Decapsulator>,
    switch: Namespace,
    claim: Claim,
}

impl Lab {
    /// Builds the network, starts the real servers and waits until they answer.
    ///
    /// The servers die with the *thread* that calls this, unless they are to be kept.
    ///
    /// # Errors
    /// A missing capability, or a real server that does not start.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        // From here on, dropping the claim removes whatever has been built.
        let claim = Claim::new()?;
        let id = claim.id().to_owned();
        Self::build(claim, options).with_context(|| format!("lab {id}"))
    }

    fn build(claim: Claim, options: &Options) -> anyhow::Result<Self> {
        let make = |role: &str| Namespace::create(&claim.namespace_name(role));
        let mut lab = Self {
            servers: Vec::new(),
            client: make("client")?,
            director: make("director")?,
            real_servers: REAL_SERVERS
                .iter()
                .map(|server| make(server.role))
                .collect::<Result<_, _>>()?,
            decapsulators: Vec::new(),
            switch: make("sw")?,
            claim,
        };
        lab.connect(options.wiring).context("building the network")?;
        lab.end_tunnels()?;
        for (server, namespace) in REAL_SERVERS.iter().zip(&lab.real_servers) {
            let started = webserver::start(server, namespace, lab.claim.directory(), options)
                .with_context(|| format!("starting {}", server.title))?;
            for pid in started.iter().filter_map(Guard::pid) {
                lab.claim.note_process(pid)?;
            }
            lab.servers.extend(started);
        }
        lab.await_servers()?;
        Ok(lab)
    }

    /// Returns the id, by which `rlvs lab --clean` finds a lab that was left standing.
    pub fn id(&self) -> &str {
        self.claim.id()
    }

    /// Returns the client's namespace.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Returns the director's namespace.
    pub fn director(&self) -> &Namespace {
        &self.director
    }

    /// Returns the namespaces of the real servers, in the order of [`REAL_SERVERS`].
    pub fn real_servers(&self) -> &[Namespace] {
        &self.real_servers
    }

    /// Returns what takes packets out of tunnels on the real servers, in their order.
    pub fn decapsulators(&self) -> &[Decapsulator] {
        &self.decapsulators
    }

    /// Returns the namespace of the bridges; a host's port is named `ROLE-INTERFACE` there.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Returns the directory for the lab's files, which goes with the lab.
    pub fn directory(&self) -> &std::path::Path {
        self.claim.directory()
    }

    /// Makes another director beside the first, [`SECOND_DIRECTOR`], which has no virtual address yet and
    /// goes with the lab.
    ///
    /// # Errors
    /// A missing capability, or there is one already.
    pub fn second_director(&self) -> anyhow::Result<Namespace> {
        let director = Namespace::create(&self.claim.namespace_name("director2"))?;
        prepare_parameters(&director, HOST_PARAMETERS)?;
        prepare_parameters(&director, DIRECTOR_PARAMETERS)?;
        let ports = [
            Port::outside("director2", SECOND_DIRECTOR),
            Port::inside("director2", SECOND_DIRECTOR_INSIDE),
        ];
        wire(&mut Rtnetlink::open_in(&self.switch)?, &director, &ports)?;
        Ok(director)
    }

    /// Leaves the lab standing, to be removed by a sweep of kept labs.
    ///
    /// # Errors
    /// The mark cannot be written; the lab is then removed.
    pub fn keep(self) -> anyhow::Result<()> {
        self.claim.keep()?;
        self.servers.into_iter().for_each(Guard::release);
        Ok(())
    }

    fn connect(&self, wiring: Wiring) -> anyhow::Result<()> {
        prepare_parameters(&self.switch, &[("net/ipv6/conf/default/disable_ipv6", "1")])?;
        let mut switch = Rtnetlink::open_in(&self.switch)?;
        for bridge in [OUTSIDE_BRIDGE, INSIDE_BRIDGE] {
            switch.add_bridge(bridge)?;
            let index = switch.link(bridge)?.index;
            switch.set_up(index, true)?;
        }
        prepare_parameters(&self.client, HOST_PARAMETERS)?;
        prepare_parameters(&self.director, HOST_PARAMETERS)?;
        prepare_parameters(&self.director, DIRECTOR_PARAMETERS)?;
        for namespace in &self.real_servers {
            prepare_parameters(namespace, HOST_PARAMETERS)?;
            prepare_parameters(namespace, REAL_SERVER_PARAMETERS)?;
        }
        let client = [Port::outside("client", CLIENT)];
        wire(&mut switch, &self.client, &client)?;
        let director =
            [Port::outside("director", DIRECTOR), Port::inside("director", DIRECTOR_INSIDE)];
        wire(&mut switch, &self.director, &director)?;
        hold_vips(&self.director, OUTSIDE_INTERFACE)?;
        for (server, namespace) in REAL_SERVERS.iter().zip(&self.real_servers) {
            let ports = [
                Port::outside(server.role, server.outside),
                Port::inside(server.role, server.inside),
            ];
            wire(&mut switch, namespace, &ports)?;
            hold_vips(namespace, "lo")?;
            answer_through_director(namespace, server)?;
        }
        match wiring {
            Wiring::Plain => Ok(()),
            Wiring::Tuned => self.tune(),
        }
    }

    /// Lets the real servers take packets out of tunnels, once they have their addresses.
    fn end_tunnels(&mut self) -> anyhow::Result<()> {
        for namespace in &self.real_servers {
            let interfaces = [OUTSIDE_INTERFACE, INSIDE_INTERFACE];
            let decapsulator = namespace.run(|| Decapsulator::attach(&interfaces, GUE_PORT))?;
            self.decapsulators.push(decapsulator.with_context(|| namespace.name().to_owned())?);
        }
        Ok(())
    }

    /// Makes the veth pairs behave as network cards do.
    fn tune(&self) -> anyhow::Result<()> {
        let both = [OUTSIDE_INTERFACE, INSIDE_INTERFACE].as_slice();
        finish_checksums(&self.client, &[OUTSIDE_INTERFACE])?;
        for namespace in &self.real_servers {
            finish_checksums(namespace, both)?;
        }
        for interface in both {
            let port = format!("director-{interface}");
            self.switch.run(|| prepare_native_peer(&port))??;
        }
        Ok(())
    }

    /// Waits until every real server answers on each address, from where it will be asked.
    fn await_servers(&mut self) -> anyhow::Result<()> {
        for server in &REAL_SERVERS {
            let views = [(&self.client, server.outside), (&self.director, server.inside)];
            for (from, addresses) in views {
                webserver::await_answers(from, addresses, server.title, &mut self.servers)
                    .with_context(|| {
                        let said = webserver::last_words(&self.claim.directory().join(server.role));
                        format!("waiting for {}{said}", server.title)
                    })?;
            }
        }
        Ok(())
    }
}

/// Of every host: no waiting for duplicate addresses, no dropping of what comes the other way.
const HOST_PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// Of the director: it forwards, and does not tell clients of shorter ways.
const DIRECTOR_PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// Of the real servers: they hold the virtual address and keep quiet about it.
const REAL_SERVER_PARAMETERS: &[(&str, &str)] =
    &[("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];

/// Writes kernel parameters; the defaults must be written before interfaces are made.
fn prepare_parameters(namespace: &Namespace, parameters: &[(&str, &str)]) -> anyhow::Result<()> {
    namespace.run(|| {
        for (path, value) in parameters {
            sysctl::write(path, value)?;
        }
        Ok(())
    })?
}

/// One end of a wire to a bridge.
struct Port {
    role: &'static str,
    interface: &'static str,
    bridge: &'static str,
    addresses: Addresses,
}

impl Port {
    fn outside(role: &'static str, addresses: Addresses) -> Self {
        Self { role, interface: OUTSIDE_INTERFACE, bridge: OUTSIDE_BRIDGE, addresses }
    }

    fn inside(role: &'static str, addresses: Addresses) -> Self {
        Self { role, interface: INSIDE_INTERFACE, bridge: INSIDE_BRIDGE, addresses }
    }

    /// Returns a hardware address that shows the IPv4 address: 02:00 and its four bytes.
    fn mac(&self) -> Mac {
        let [a, b, c, d] = self.addresses.v4.octets();
        Mac([2, 0, a, b, c, d])
    }
}

/// Connects a host to the bridges and sets its interfaces up.
fn wire(switch: &mut Rtnetlink, host: &Namespace, ports: &[Port]) -> anyhow::Result<()> {
    let mut rtnetlink = Rtnetlink::open_in(host)?;
    let loopback = rtnetlink.link("lo")?.index;
    rtnetlink.set_up(loopback, true)?;
    for port in ports {
        let name = format!("{}-{}", port.role, port.interface);
        switch.add_veth(&name, port.interface, host)?;
        let (here, bridge) = (switch.link(&name)?.index, switch.link(port.bridge)?.index);
        switch.set_controller(here, bridge)?;
        switch.set_up(here, true)?;
        let there = rtnetlink.link(port.interface)?.index;
        rtnetlink.set_mac(there, port.mac())?;
        for address in port.addresses.both() {
            rtnetlink.add_address(there, Prefix { address, bits: network_bits(address) })?;
        }
        rtnetlink.set_up(there, true)?;
    }
    Ok(())
}

fn hold_vips(host: &Namespace, interface: &str) -> anyhow::Result<()> {
    let mut rtnetlink = Rtnetlink::open_in(host)?;
    let index = rtnetlink.link(interface)?.index;
    for address in VIPS.into_iter().flat_map(Addresses::both) {
        rtnetlink.add_virtual_address(index, Prefix { address, bits: host_bits(address) })?;
    }
    Ok(())
}

/// Sends what a real server says from its inner address by way of the director, as NAT needs it.
fn answer_through_director(host: &Namespace, server: &RealServer) -> anyhow::Result<()> {
    let mut rtnetlink = Rtnetlink::open_in(host)?;
    let interface = rtnetlink.link(INSIDE_INTERFACE)?.index;
    for family in [Family::V4, Family::V6] {
        let address = server.inside.of(family);
        let gateway = DIRECTOR_INSIDE.of(family);
        rtnetlink.add_source_rule(Prefix { address, bits: host_bits(address) }, INSIDE_TABLE)?;
        let table = INSIDE_TABLE;
        rtnetlink.add_route(&Route {
            destination: None,
            gateway,
            interface,
            onlink: false,
            table,
        })?;
    }
    Ok(())
}

fn network_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

fn host_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn finish_checksums(host: &Namespace, interfaces: &[&str]) -> anyhow::Result<()> {
    host.run(|| {
        for interface in interfaces {
            ethtool::tx_checksum_off(interface)?;
        }
        Ok(())
    })?
}

/// Prepares the other end of a veth on which native XDP will run, in the calling thread's
/// namespace: frames that XDP redirects arrive if it polls (GRO), frames that XDP sends back
/// (`XDP_TX`) only if it runs a program of its own.
fn prepare_native_peer(interface: &str) -> anyhow::Result<()> {
    ethtool::gro_on(interface)?;
    let mut rtnetlink = Rtnetlink::open()?;
    let index = rtnetlink.link(interface)?.index;
    Ok(attach_pass(&mut rtnetlink, index)?)
}
