//! The site of the how-to's keepalived.conf: directors with web servers behind them, and a client
//! that comes by a router, which is the first director.
//!
//! ```text
//! client 10.9.9.10 --- 10.9.9.1 first 192.168.1.100 --+-- br0 --+-- Server 1 192.168.1.101
//!                              second 192.168.1.99 ---+         +-- Server 2 192.168.1.102
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use nix::sys::signal::Signal;
use rlvs_control::model::Protocol;
use rlvs_linux::dataplane::attach;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::{Guard, die_with_parent};
use rlvs_linux::route::{MAIN_TABLE, Prefix, Route, Rtnetlink};
use rlvs_linux::sysctl;

use super::claim::Claim;
use super::client;

/// The how-to's file, as it stands.
pub const HOW_TO: &str = include_str!("../../../rlvs-conf/tests/keepalived/how-to.conf");
/// The how-to's virtual address.
pub const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 200));
/// Port of the web servers.
const HTTP_PORT: u16 = 80;

/// A host of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// Has the bridge.
    Switch,
    /// Asks.
    Client,
    /// The director that is the client's router.
    First,
    /// The other director.
    Second,
    /// A web server.
    Web1,
    /// The other web server.
    Web2,
}

use Host::{Client, First, Second, Switch, Web1, Web2};

/// Hosts on the bridge, with the ends of their names and of their addresses.
const ON_BRIDGE: [(Host, &str, u8); 4] =
    [(First, "d1", 100), (Second, "d2", 99), (Web1, "w1", 101), (Web2, "w2", 102)];

/// A standing site.
#[derive(Debug)]
pub struct Site {
    hosts: BTreeMap<Host, Namespace>,
    program: PathBuf,
    started: AtomicU32,
    claim: Claim,
}

impl Drop for Site {
    /// Takes the data planes off before their namespaces go: nobody may come by to collect what is left
    /// of those.
    fn drop(&mut self) {
        for host in [First, Second] {
            // One without any is as it should be.
            self.host(host).run(attach::detach).ok();
        }
    }
}

impl Site {
    /// Builds the network; nothing runs in it yet.
    ///
    /// # Errors
    /// A missing capability.
    pub fn new(program: &Path) -> anyhow::Result<Self> {
        let claim = Claim::new()?;
        let mut hosts = BTreeMap::new();
        let others = [(Switch, "sw", 0), (Client, "client", 0)];
        for (host, role, _) in others.into_iter().chain(ON_BRIDGE) {
            let namespace = Namespace::create(&claim.namespace_name(role))?;
            namespace.run(prepare)??;
            hosts.insert(host, namespace);
        }
        let program = program.to_owned();
        let site = Self { hosts, program, started: AtomicU32::new(0), claim };
        site.connect().context("building the network")?;
        Ok(site)
    }

    fn connect(&self) -> anyhow::Result<()> {
        let mut switch = Rtnetlink::open_in(self.host(Switch))?;
        switch.add_bridge("br0")?;
        let bridge = switch.link("br0")?.index;
        switch.set_up(bridge, true)?;
        for (host, role, last) in ON_BRIDGE {
            switch.add_veth(role, "eth0", self.host(host))?;
            let port = switch.link(role)?.index;
            switch.set_controller(port, bridge)?;
            switch.set_up(port, true)?;
            self.address(host, "eth0", [192, 168, 1, last])?;
        }
        let mut client = Rtnetlink::open_in(self.host(Client))?;
        client.add_veth("eth0", "eth1", self.host(First))?;
        self.address(Client, "eth0", [10, 9, 9, 10])?;
        self.address(First, "eth1", [10, 9, 9, 1])?;
        self.default_route(Client, [10, 9, 9, 1])?;
        self.default_route(Web1, [192, 168, 1, 100])?;
        self.default_route(Web2, [192, 168, 1, 100])
    }

    fn address(&self, host: Host, interface: &str, address: [u8; 4]) -> anyhow::Result<()> {
        let mut route = Rtnetlink::open_in(self.host(host))?;
        let index = route.link(interface)?.index;
        route.add_address(index, Prefix { address: address.into(), bits: 24 })?;
        Ok(route.set_up(index, true)?)
    }

    fn default_route(&self, host: Host, gateway: [u8; 4]) -> anyhow::Result<()> {
        let mut route = Rtnetlink::open_in(self.host(host))?;
        let interface = route.link("eth0")?.index;
        let (gateway, table) = (gateway.into(), MAIN_TABLE);
        let route_to = Route { destination: None, gateway, interface, onlink: false, table };
        Ok(route.add_route(&route_to)?)
    }

    /// Returns the namespace of a host.
    #[expect(clippy::missing_panics_doc, reason = "every host was made at the beginning")]
    pub fn host(&self, host: Host) -> &Namespace {
        #[expect(clippy::unwrap_used, reason = "every host was made at the beginning")]
        self.hosts.get(&host).unwrap()
    }

    /// Returns the directory for files, which goes with the site.
    pub fn directory(&self) -> &Path {
        self.claim.directory()
    }

    /// Starts the program in a host; it ends with the calling thread. Returns it and the file that
    /// it writes to.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, host: Host, words: &[&str]) -> anyhow::Result<(Guard, PathBuf)> {
        self.start_program(host, &self.program, words)
    }

    /// The same with another program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_program(
        &self,
        host: Host,
        program: &Path,
        words: &[&str],
    ) -> anyhow::Result<(Guard, PathBuf)> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = self.directory().join(format!("{number}.log"));
        let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        self.host(host).place(&mut command)?;
        die_with_parent(&mut command, Signal::SIGKILL);
        let child = command.spawn().with_context(|| format!("running {words:?}"))?;
        Ok((Guard::new(child), path))
    }

    /// Starts the web server of a host.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn web_server(&self, host: Host) -> anyhow::Result<Guard> {
        let name = if host == Web1 { "Server 1" } else { "Server 2" };
        let at = format!("0.0.0.0:{HTTP_PORT}");
        let (guard, _) = self.start(host, &["lab-server", "--name", name, "--http", &at])?;
        Ok(guard)
    }

    /// Asks the web server of a host itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask_server(&self, host: Host) -> anyhow::Result<String> {
        let at = SocketAddr::from(([127, 0, 0, 1], HTTP_PORT));
        Ok(self.host(host).run(|| client::ask(Protocol::Tcp, at))??)
    }

    /// Asks the virtual address as the client, and returns who answered.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn ask(&self) -> anyhow::Result<String> {
        let at = SocketAddr::new(VIP, HTTP_PORT);
        Ok(self.host(Client).run(|| client::ask(Protocol::Tcp, at))??)
    }

    /// Tells whether a director has the virtual address.
    ///
    /// # Errors
    /// Netlink does not answer.
    pub fn has_vip(&self, host: Host) -> anyhow::Result<bool> {
        let link = Rtnetlink::open_in(self.host(host))?.link("eth0")?;
        Ok(link.addresses.iter().any(|prefix| prefix.address == VIP))
    }

    /// Runs a command of the program in a host to its end, and returns its output.
    ///
    /// # Errors
    /// It cannot be run, or fails.
    pub fn output(&self, host: Host, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::null());
        self.host(host).place(&mut command)?;
        let output = command.output().with_context(|| format!("running {words:?}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{words:?} failed: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the destinations that `ipvsadm -L -n` shows on a director, with their weights, in
    /// the order of their addresses.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn destinations(&self, host: Host) -> anyhow::Result<Vec<(String, u32)>> {
        let listing = self.output(host, &["ipvsadm", "-L", "-n"])?;
        let row = |line: &str| {
            let mut words = line.trim().strip_prefix("-> ")?.split_ascii_whitespace();
            let name = words.next()?.to_owned();
            Some((name, words.nth(1)?.parse().ok()?))
        };
        let mut rows: Vec<_> = listing.lines().filter_map(row).collect();
        rows.sort();
        Ok(rows)
    }
}

/// Prepares a host, before it has interfaces.
fn prepare() -> anyhow::Result<()> {
    for (path, value) in [
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
    ] {
        sysctl::write(path, value)?;
    }
    let mut route = Rtnetlink::open()?;
    let loopback = route.link("lo")?.index;
    Ok(route.set_up(loopback, true)?)
}
