//! A switch with two directors and a client, each in a network namespace.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use rlvs::lab::claim::{Claim, Sweep, sweep};
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::{Mac, Prefix, Rtnetlink};
use rlvs_linux::sysctl;

use crate::interrupt;
use crate::variant::Variant;

/// The first director, the last byte of its address and of its hardware address.
pub(crate) const A: u8 = 1;
/// The second one.
pub(crate) const B: u8 = 2;
/// Who asks.
pub(crate) const CLIENT: u8 = 3;
/// How long an advertisement may take to come.
const ADVERT_MS_MAX: u16 = 10_000;
/// Protocol number of VRRP.
const VRRP: u8 = 112;

/// A standing network; it goes when it is dropped.
pub(crate) struct Network {
    switch: Namespace,
    hosts: [Namespace; 3],
    /// Hears every frame on the switch.
    frames: OwnedFd,
    claim: Claim,
}

impl Network {
    pub(crate) fn new(variant: &Variant) -> Result<Self> {
        sweep(Sweep::Crashed)?;
        let claim = Claim::new()?;
        let make = |role: &str| Namespace::create(&claim.namespace_name(role));
        let switch = make("sw")?;
        let hosts = [make("a")?, make("b")?, make("client")?];
        let all = || {
            let protocol = SockProtocol::EthAll;
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        };
        let mut wires = Rtnetlink::open_in(&switch)?;
        wires.add_bridge("br0")?;
        let bridge = wires.link("br0")?.index;
        wires.set_up(bridge, true)?;
        for (number, host) in (1..).zip(&hosts) {
            let name = port(number);
            wires.add_veth(&name, "eth0", host)?;
            let index = wires.link(&name)?.index;
            wires.set_controller(index, bridge)?;
            wires.set_up(index, true)?;
            host.run(|| address(number, variant.v6))??;
        }
        let frames = switch.run(all)?.context("opening a packet socket")?;
        Ok(Self { switch, hosts, frames, claim })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.claim.directory()
    }

    /// Returns the namespace of a host.
    pub(crate) fn host(&self, host: u8) -> &Namespace {
        let [a, b, client] = &self.hosts;
        match host {
            A => a,
            B => b,
            _ => client,
        }
    }

    /// Tells whether a director has the virtual address.
    pub(crate) fn has_vip(&self, host: u8, variant: &Variant) -> Result<bool> {
        let link = Rtnetlink::open_in(self.host(host))?.link("eth0")?;
        Ok(link.addresses.iter().any(|prefix| prefix.address == variant.vip()))
    }

    /// Waits for the next advertisement on the wire.
    pub(crate) fn wait_advert(&self) -> Result<()> {
        let mut bytes = [0; 128];
        // What waits has been there before.
        while recv(self.frames.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).is_ok() {}
        loop {
            interrupt::check()?;
            let mut ready = [PollFd::new(self.frames.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut ready, PollTimeout::from(ADVERT_MS_MAX))? > 0, "nobody advertises");
            recv(self.frames.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            let protocol = match bytes[12..14] {
                [8, 0] => bytes[23],
                [0x86, 0xdd] => bytes[20],
                _ => 0,
            };
            if protocol == VRRP && bytes[11] == A {
                return Ok(());
            }
        }
    }

    /// Pulls a host's plug at the switch: the host itself sees its carrier go, as one that is dead
    /// does not.
    pub(crate) fn cut_off(&self, host: u8) -> Result<()> {
        let mut wires = Rtnetlink::open_in(&self.switch)?;
        let index = wires.link(&port(host))?.index;
        Ok(wires.set_up(index, false)?)
    }

    /// Sets a host's interface down.
    pub(crate) fn set_down(&self, host: u8) -> Result<()> {
        let mut route = Rtnetlink::open_in(self.host(host))?;
        let index = route.link("eth0")?.index;
        Ok(route.set_up(index, false)?)
    }

    /// Returns what the directors have said.
    pub(crate) fn logs(&self) -> String {
        let read = |host| fs::read_to_string(self.directory().join(log_name(host)));
        let texts = [A, B].map(|host| read(host).unwrap_or_default());
        format!("the first director says:\n{}the second:\n{}", texts[0], texts[1])
    }
}

/// Returns the name of a director's log.
pub(crate) fn log_name(host: u8) -> String {
    format!("{host}.log")
}

fn port(host: u8) -> String {
    format!("p{host}")
}

fn address(host: u8, v6: bool) -> Result<()> {
    // No waiting for duplicates of link-local addresses.
    sysctl::write("net/ipv6/conf/eth0/accept_dad", "0")?;
    let mut route = Rtnetlink::open()?;
    let index = route.link("eth0")?.index;
    route.set_mac(index, Mac([2, 0, 0, 0, 9, host]))?;
    route.set_up(index, true)?;
    route.add_address(index, Prefix { address: [10, 9, 0, host].into(), bits: 24 })?;
    if v6 {
        let address = IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, u16::from(host)]);
        route.add_address(index, Prefix { address, bits: 64 })?;
    }
    Ok(())
}
