//! The how-to's site: directors, web servers behind them, a client in another network.
//!
//! ```text
//! client 10.9.9.10 --- 10.9.9.1 d1 192.168.1.100 --+-- br0 --+-- w1 192.168.1.101
//!                               d2 192.168.1.99 ---+         +-- w2 192.168.1.102
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use e2e::lab::{Said, inside, run, tool, wait_for};
use nix::sys::signal::Signal;
use rlvs::lab::client;
use rlvs_control::model::Protocol;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::process::{Guard, Handle};
use rlvs_linux::route::Rtnetlink;
use rlvs_linux::sysctl;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
/// The how-to's virtual address.
pub(crate) const VIP: &str = "192.168.1.200";

/// A host of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Switch,
    Client,
    First,
    Second,
    Web1,
    Web2,
}

use Host::{Client, First, Second, Switch, Web1, Web2};

/// Hosts on the bridge, with their addresses.
const ON_BRIDGE: [(Host, &str, &str); 4] = [
    (First, "d1", "192.168.1.100/24"),
    (Second, "d2", "192.168.1.99/24"),
    (Web1, "w1", "192.168.1.101/24"),
    (Web2, "w2", "192.168.1.102/24"),
];

/// The standing site.
pub(crate) struct Site {
    hosts: BTreeMap<Host, Namespace>,
    pub(crate) folder: PathBuf,
    started: AtomicU32,
}

impl Site {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("rlvs-daemon-{}-{number}", std::process::id());
        let make = |host, role: &str| (host, Namespace::create(&format!("{id}-{role}")).unwrap());
        let mut hosts = BTreeMap::from([make(Switch, "sw"), make(Client, "cl")]);
        hosts.extend(ON_BRIDGE.map(|(host, role, _)| make(host, role)));
        let folder = std::env::temp_dir().join(&id);
        fs::create_dir(&folder).unwrap();
        let site = Self { hosts, folder, started: AtomicU32::new(0) };
        for namespace in site.hosts.values() {
            namespace.run(parameters).unwrap();
        }
        site.wire();
        site
    }

    fn wire(&self) {
        self.ip(Switch, "link add br0 type bridge");
        self.ip(Switch, "link set br0 up");
        for (host, role, address) in ON_BRIDGE {
            let mut route = Rtnetlink::open_in(self.host(Switch)).unwrap();
            route.add_veth(role, "eth0", self.host(host)).unwrap();
            self.ip(Switch, &format!("link set {role} master br0 up"));
            self.ip(host, &format!("addr add {address} dev eth0"));
            self.ip(host, "link set eth0 up");
        }
        let mut route = Rtnetlink::open_in(self.host(Client)).unwrap();
        route.add_veth("eth0", "eth1", self.host(First)).unwrap();
        for (host, interface, address) in
            [(Client, "eth0", "10.9.9.10/24"), (First, "eth1", "10.9.9.1/24")]
        {
            self.ip(host, &format!("addr add {address} dev {interface}"));
            self.ip(host, &format!("link set {interface} up"));
        }
        self.ip(Client, "route add default via 10.9.9.1");
        self.ip(Web1, "route add default via 192.168.1.100");
        self.ip(Web2, "route add default via 192.168.1.100");
    }

    pub(crate) fn host(&self, host: Host) -> &Namespace {
        &self.hosts[&host]
    }

    pub(crate) fn ip(&self, host: Host, words: &str) {
        let words: Vec<&str> = words.split_ascii_whitespace().collect();
        run(self.host(host), &tool("ip").unwrap(), &words).ok();
    }

    /// Runs a command of the program in a host.
    pub(crate) fn program(&self, host: Host, words: &str) -> Said {
        let words: Vec<&str> = words.split_ascii_whitespace().collect();
        run(self.host(host), Path::new(PROGRAM), &words)
    }

    /// Starts a program in a host, and returns it and the file that it writes to.
    pub(crate) fn start(&self, host: Host, words: &[&str]) -> (Guard, PathBuf) {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{number}.log"));
        let log = File::create(&path).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(words).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        inside(self.host(host), &mut command);
        (Guard::new(command.spawn().unwrap()), path)
    }

    /// Starts the web server of a host, and waits until it answers.
    pub(crate) fn web(&self, host: Host) -> Guard {
        let number = if host == Web1 { 1 } else { 2 };
        let name = format!("Server {number}");
        let (guard, _) = self.start(host, &["lab-server", "--name", &name, "--http", "0.0.0.0:80"]);
        let at = SocketAddr::from(([127, 0, 0, 1], 80));
        wait_for("a web server", || {
            let said = self.host(host).run(|| client::ask(Protocol::Tcp, at)).unwrap();
            said.map_err(|error| error.to_string())
        });
        guard
    }

    /// Asks the virtual address, and returns who answered.
    pub(crate) fn ask(&self) -> Result<String, String> {
        let at: SocketAddr = format!("{VIP}:80").parse().unwrap();
        let said = self.host(Client).run(|| client::ask(Protocol::Tcp, at)).unwrap();
        said.map_err(|error| error.to_string())
    }

    /// Asks often; every request must succeed. Returns how often each server answered.
    pub(crate) fn ask_often(&self, times: u32) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for number in 0..times {
            let name = self.ask().unwrap_or_else(|error| panic!("request {number}: {error}"));
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    pub(crate) fn has_vip(&self, host: Host) -> bool {
        let link = Rtnetlink::open_in(self.host(host)).unwrap().link("eth0").unwrap();
        link.addresses.iter().any(|prefix| prefix.address.to_string() == VIP)
    }

    /// Returns the rows of `ipvsadm -L -n` that name destinations: address and weight.
    pub(crate) fn destinations(&self, host: Host) -> Vec<(String, u32)> {
        let listing = self.program(host, "ipvsadm -L -n").ok();
        let row = |line: &str| {
            let mut words = line.trim().strip_prefix("-> ")?.split_ascii_whitespace();
            let name = words.next()?.to_owned();
            Some((name, words.nth(1)?.parse().ok()?))
        };
        listing.lines().filter_map(row).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs are left in {}", self.folder.display());
        } else {
            fs::remove_dir_all(&self.folder).ok();
        }
        for namespace in self.hosts.values() {
            netns::delete(namespace.name()).ok();
        }
    }
}

fn parameters() {
    for (path, value) in [
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
    ] {
        sysctl::write(path, value).unwrap();
    }
    let mut route = Rtnetlink::open().unwrap();
    let lo = route.link("lo").unwrap().index;
    route.set_up(lo, true).unwrap();
}

/// A daemon on a director.
pub(crate) struct Daemon {
    guard: Guard,
    log: PathBuf,
    pub(crate) file: PathBuf,
    pub(crate) pid_file: PathBuf,
}

impl Daemon {
    /// Starts `keepalived` with a configuration in the foreground.
    pub(crate) fn start(site: &Site, host: Host, configuration: &str) -> Self {
        let file = site.folder.join(format!("{host:?}.conf"));
        fs::write(&file, configuration).unwrap();
        let pid_file = site.folder.join(format!("{host:?}.pid"));
        let (name, pid) = (file.to_str().unwrap(), pid_file.to_str().unwrap());
        let words = ["keepalived", "-n", "-l", "-D", "-f", name, "-p", pid];
        let (guard, log) = site.start(host, &words);
        Self { guard, log, file, pid_file }
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log has a text this often.
    pub(crate) fn wait_said(&self, text: &str, times: usize) {
        wait_for(text, || {
            let said = self.said();
            if said.matches(text).count() >= times { Ok(()) } else { Err(said) }
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        Handle::open(self.guard.pid().unwrap()).unwrap().signal(signal).unwrap();
    }

    /// Sends a signal and waits for the end; returns the status.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let status = self.guard.wait_for(e2e::lab::TIME_MAX).unwrap();
        status.expect("it has ended").code()
    }
}
