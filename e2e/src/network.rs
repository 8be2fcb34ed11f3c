//! A network namespace with a known routing table.
//!
//! Clients are behind `in0`, servers behind `out0`; the other ends of both lie idle in the same
//! namespace. No packet travels here: the programs only ask the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use rlvs_datapath::abi::Interface;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::route::{MAIN_TABLE, Mac, Prefix, Route, Rtnetlink};
use rlvs_linux::sysctl;

use crate::host::{Routes, Way};

/// An interface of the namespace.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Interface index.
    pub index: u32,
    /// MAC address.
    pub mac: [u8; 6],
}

impl Port {
    /// Returns the interface as the map holds it.
    #[must_use]
    pub fn interface(&self, flags: u32) -> Interface {
        let [a, b, c, d, e, f] = self.mac;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        Interface { index: self.index, flags, mac }
    }
}

/// The namespace.
#[derive(Debug)]
pub struct Network {
    /// The clients' side.
    pub inside: Port,
    /// The servers' side.
    pub outside: Port,
    /// What the namespace's routing table says.
    pub routes: Routes,
    /// The CPU on which the calling thread stays.
    pub cpu: u32,
    /// CPUs of the machine.
    pub cpus: u32,
}

/// MAC address of the gateway to the clients.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0xfe];
/// Servers whose neighbour entry is known: the last byte of their addresses.
pub const SERVERS: std::ops::RangeInclusive<u8> = 11..=18;
/// The director's own addresses on the clients' side: the last byte.
const OWN_VIPS: [u8; 5] = [1, 100, 101, 102, 103];
const MTU: u32 = 1500;

/// Returns the MAC address of a server.
#[must_use]
pub fn server_mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// Returns a server's address: `number` 99 is not resolved.
#[must_use]
pub fn server(family: u8, number: u8) -> IpAddr {
    address(family, [10, 0, 0, number], [2, number.into()])
}

/// Returns an address to which the way is forbidden.
#[must_use]
pub fn forbidden(family: u8) -> IpAddr {
    address(family, [203, 0, 113, 1], [0xdead, 1])
}

/// Returns a client's address.
#[must_use]
pub fn client(family: u8, number: u8) -> IpAddr {
    address(family, [198, 51, 100, number], [0xc, number.into()])
}

/// Returns the address of a client on the director's own link, which is not resolved.
#[must_use]
pub fn unresolved_client(family: u8) -> IpAddr {
    address(family, [192, 0, 2, 50], [1, 0x50])
}

/// Returns a virtual address: from 100 on the director has them, from 200 on it has not.
#[must_use]
pub fn vip(family: u8, number: u8) -> IpAddr {
    address(family, [192, 0, 2, number], [1, number.into()])
}

/// Tells whether an address is the director's own.
#[must_use]
pub fn is_own(address: IpAddr) -> bool {
    let family = if address.is_ipv4() { 4 } else { 6 };
    address == server(family, 1)
        || OWN_VIPS.into_iter().any(|number| address == vip(family, number))
}

fn address(family: u8, four: [u8; 4], [net, host]: [u16; 2]) -> IpAddr {
    if family == 4 {
        IpAddr::V4(four.into())
    } else {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host))
    }
}

/// Ends the namespace's name also when a test fails.
struct Named(Namespace);

impl Drop for Named {
    fn drop(&mut self) {
        netns::delete(self.0.name()).ok();
    }
}

/// Runs a test inside a new namespace, in a thread that stays on one CPU.
///
/// Without the right to make one the test is skipped and says so; with `RLVS_NO_SKIP=1` in the
/// environment it fails.
///
/// # Panics
/// The namespace cannot be set up, or the test panics.
pub fn run(test: &str, work: impl FnOnce(&Network) + Send) {
    let Some(namespace) = named(test) else { return };
    let inner = || {
        let cpu = sched_getcpu().expect("the number of this CPU");
        stay_on(cpu as u32);
        work(&set_up(&namespace.0, &namespace.0, cpu as u32));
    };
    namespace.0.run(inner).unwrap_or_else(|error| panic!("{error}"));
}

/// Runs a test as [`run`] does, with the other ends of both interfaces in a namespace of their own,
/// where nobody hears or says anything of itself.
///
/// # Panics
/// As [`run`].
pub fn run_between(test: &str, work: impl FnOnce(&Network, &Namespace) + Send) {
    let (Some(namespace), Some(outside)) = (named(test), named(&format!("{test}-out"))) else {
        return;
    };
    let mute = || {
        for which in ["all", "default"] {
            sysctl::write(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
    };
    outside.0.run(mute).unwrap_or_else(|error| panic!("{error}"));
    let inner = || {
        let cpu = sched_getcpu().expect("the number of this CPU");
        stay_on(cpu as u32);
        work(&set_up(&namespace.0, &outside.0, cpu as u32), &outside.0);
    };
    namespace.0.run(inner).unwrap_or_else(|error| panic!("{error}"));
}

/// Makes a namespace; `None`, and says so, where that is not allowed and tests may be skipped.
fn named(test: &str) -> Option<Named> {
    match Namespace::create(&format!("rlvs-e2e-{}-{test}", std::process::id())) {
        Ok(namespace) => Some(Named(namespace)),
        Err(error @ netns::Error::Capability { .. }) => {
            let forced = std::env::var_os("RLVS_NO_SKIP").is_some_and(|value| value == "1");
            assert!(!forced, "{error}");
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Keeps the calling thread on one CPU.
///
/// # Panics
/// There is no such CPU.
pub fn stay_on(cpu: u32) {
    let mut set = CpuSet::new();
    set.set(cpu as usize).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("staying on one CPU");
}

/// Returns the number of CPUs that the machine can have.
///
/// # Panics
/// The kernel does not tell.
#[must_use]
pub fn possible_cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").expect("the CPUs");
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    last.expect("a range of CPUs") + 1
}

fn set_up(namespace: &Namespace, outside: &Namespace, cpu: u32) -> Network {
    let mut rtnetlink = Rtnetlink::open().expect("routing netlink");
    let mut others = Rtnetlink::open_in(outside).expect("routing netlink");
    let mut port = |name: &str, peer: &str, last: u8| {
        let mac = [2, 0, 0, 0, 0, last];
        rtnetlink.add_veth(name, peer, outside).unwrap();
        let index = rtnetlink.link(name).unwrap().index;
        rtnetlink.set_mac(index, Mac(mac)).unwrap();
        rtnetlink.set_up(index, true).unwrap();
        let peer = others.link(peer).unwrap().index;
        others.set_up(peer, true).unwrap();
        Port { index, mac }
    };
    let (inside, outside) = (port("in0", "in0p", 1), port("out0", "out0p", 2));
    rtnetlink.set_up(1, true).unwrap();
    for parameter in ["net/ipv4/conf/lo/forwarding", "net/ipv6/conf/lo/forwarding"] {
        sysctl::write(parameter, "1").unwrap();
    }
    let mut routes = Routes::default();
    for family in [4, 6] {
        let (all, network) = if family == 4 { (32, 24) } else { (128, 64) };
        let own = |rtnetlink: &mut Rtnetlink, routes: &mut Routes, port: &Port, address, bits| {
            rtnetlink.add_address(port.index, Prefix { address, bits }).unwrap();
            routes.insert(address, all, Way::NotForwarded);
            if bits != all {
                routes.insert(address, bits, Way::Unresolved { interface: port.index });
            }
        };
        own(&mut rtnetlink, &mut routes, &outside, server(family, 1), network);
        for number in OWN_VIPS {
            let bits = if number == 1 { network } else { all };
            own(&mut rtnetlink, &mut routes, &inside, vip(family, number), bits);
        }
        let hop = |port: &Port, neighbour| Way::Hop {
            interface: port.index,
            neighbour,
            own: port.mac,
            mtu: MTU,
        };
        for number in SERVERS {
            let (address, mac) = (server(family, number), server_mac(number));
            rtnetlink.set_neighbour(outside.index, address, Mac(mac)).unwrap();
            routes.insert(address, all, hop(&outside, mac));
        }
        let gateway = vip(family, 254);
        rtnetlink.set_neighbour(inside.index, gateway, Mac(GATEWAY_MAC)).unwrap();
        routes.insert(gateway, all, hop(&inside, GATEWAY_MAC));
        let clients = Prefix { address: client(family, 0), bits: network };
        let route = Route {
            destination: Some(clients),
            gateway,
            interface: inside.index,
            onlink: false,
            table: MAIN_TABLE,
        };
        rtnetlink.add_route(&route).unwrap();
        routes.insert(clients.address, network, hop(&inside, GATEWAY_MAC));
        // The one kind of route that rlvs-linux has no use for.
        let mut command = Command::new("ip");
        let forbidden = forbidden(family);
        command.args(["route", "add", "unreachable", &forbidden.to_string()]);
        namespace.place(&mut command).unwrap();
        assert!(command.status().expect("running ip").success(), "{command:?}");
        routes.insert(forbidden, all, Way::Unreachable);
    }
    let broadcast = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    for address in [broadcast(192, 0, 2, 255), broadcast(10, 0, 0, 255)] {
        routes.insert(address, 32, Way::NotForwarded);
    }
    Network { inside, outside, routes, cpu, cpus: possible_cpus() }
}
