//! The loop: wait, read everything, let the router know, carry out what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use rlvs_control::model::Family;
use rlvs_control::vrrp::config::VirtualAddress;
use rlvs_control::vrrp::{Input, LinkState, Output, Received, Router, State, Who};

use super::channel::Channel;
use super::memory::Memory;
use super::own::OwnInterfaces;
use super::routing::Routing;
use super::{Command, Error, Told, frame_socket, rest};
use crate::route::{self, Link, Mac, Monitor, Prefix, Rtnetlink};

/// Packets of one socket that are read before others have their turn: more than wait in its buffer.
const PACKETS_AT_ONCE: usize = 1024;

/// Everything that the thread has.
pub(super) struct Runner {
    router: Router,
    route: Rtnetlink,
    monitor: Monitor,
    frames: OwnedFd,
    channels: BTreeMap<(Arc<str>, Family), Channel>,
    links: BTreeMap<Arc<str>, Link>,
    own: OwnInterfaces,
    routing: Routing,
    memory: Memory,
    wake: Arc<EventFd>,
    orders: Receiver<Command>,
    told: Sender<Told>,
    /// The interfaces were listed.
    has_looked: bool,
    /// An orderly end was asked for.
    ending: bool,
}

impl Runner {
    pub(super) fn new(
        router: Router,
        wake: Arc<EventFd>,
        orders: Receiver<Command>,
        told: Sender<Told>,
    ) -> Result<Self, Error> {
        Ok(Self {
            router,
            // First, so that no change is missed behind the first listing.
            monitor: Monitor::open()?,
            route: Rtnetlink::open()?,
            frames: frame_socket()?,
            channels: BTreeMap::new(),
            links: BTreeMap::new(),
            own: OwnInterfaces::default(),
            routing: Routing::default(),
            memory: Memory::open(),
            wake,
            orders,
            told,
            has_looked: false,
            ending: false,
        })
    }

    pub(super) fn run(mut self) {
        if let Err(error) = super::sys::be_real_time() {
            let what = format!("without real-time priority advertisements may be late: {error}");
            self.tell(Told::Without { what });
        }
        if let Some(what) = Memory::hindrance() {
            self.tell(Told::Without { what });
        }
        self.look_at_links();
        while !self.ending {
            self.wait();
            // Packets come first: whoever has slept must hear before it speaks.
            self.read_packets();
            let lost = self.routing.has_lost();
            if self.monitor.has_changed() {
                self.look_at_links();
            } else if lost {
                self.input(Input::RoutingChanged);
            }
            self.obey();
            self.router.handle_timeout(Instant::now());
            self.carry_out();
        }
        for error in std::mem::take(&mut self.own).undo(&mut self.route) {
            self.failed("", &*error);
        }
        self.tell(Told::Ended);
    }

    /// Sleeps until something happens or is due.
    fn wait(&self) {
        let due = self.router.poll_timeout().map(|(due, _)| due);
        let time = due.map(|due| due.saturating_duration_since(Instant::now()));
        let mut descriptors = vec![
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
        ];
        descriptors.extend(self.routing.as_fd().map(|one| PollFd::new(one, PollFlags::POLLIN)));
        let channels = self.channels.values();
        let channels = channels.filter(|channel| channel.hears());
        descriptors.extend(channels.map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN)));
        // Interrupted or not: the caller looks at everything.
        let _ready = ppoll(&mut descriptors, time.map(TimeSpec::from_duration), None).is_ok();
    }

    fn read_packets(&mut self) {
        for packet in self.waiting_packets() {
            self.input(Input::Packet(packet));
        }
    }

    fn waiting_packets(&self) -> Vec<Received> {
        let of_one = |channel: &Channel| -> Vec<Received> {
            std::iter::from_fn(|| channel.receive()).take(PACKETS_AT_ONCE).collect()
        };
        self.channels.values().flat_map(of_one).collect()
    }

    /// Does what was asked for.
    fn obey(&mut self) {
        rest(&self.wake);
        loop {
            match self.orders.try_recv() {
                Ok(Command::Input(input)) => {
                    self.ending |= input == Input::Stop;
                    let reload = matches!(input, Input::Reload(_));
                    self.input(input);
                    if reload {
                        self.look_at_links();
                    }
                }
                Ok(Command::Status(to)) => {
                    // Whoever asked may have gone.
                    let _heard = to.send(self.router.status()).is_ok();
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.ending = true;
                    return self.input(Input::Stop);
                }
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.router.handle(input, Instant::now());
        self.carry_out();
    }

    /// Lists the interfaces, and lets the router know of them and of addresses that are missing.
    fn look_at_links(&mut self) {
        let links = match self.route.links() {
            Ok(links) => links,
            Err(error) => return self.failed("listing the interfaces", &error),
        };
        self.links = links.into_iter().map(|link| (link.name.as_str().into(), link)).collect();
        self.make_virtual_macs();
        self.open_channels();
        let watched = self.routing.watch(&self.router);
        self.check(watched, &[]);
        if !std::mem::replace(&mut self.has_looked, true) {
            self.remember();
        }
        let states = self.links.iter().map(|(name, link)| (name.clone(), state_of(link)));
        self.input(Input::Links(states.collect()));
        for (interface, address) in self.missing() {
            self.input(Input::AddressRemoved { interface, address });
        }
        // The kernel drops routes with the interface or the address that they need.
        self.input(Input::RoutingChanged);
    }

    /// Lets the router know whose addresses an earlier process has left behind as master.
    fn remember(&mut self) {
        let missing = self.missing();
        let mut left = Vec::new();
        for config in self.router.instances() {
            let is_there = |address: &VirtualAddress| {
                let interface = address.interface.as_ref().unwrap_or(config.outward());
                !missing.contains(&(interface.clone(), address.address))
            };
            if let Some(silent) = self.memory.silence(config)
                && config.held().all(is_there)
            {
                left.push(Input::Resume { name: config.name.clone(), silent });
            }
        }
        for input in left {
            self.input(input);
        }
    }

    fn forget(&mut self, who: &Who, state: State) {
        let Who::Instance(name) = who else { return };
        let config = self.router.instances().find(|config| config.name == *name);
        if let Some(config) = config.filter(|_| state != State::Master) {
            self.memory.forget(config);
        }
    }

    /// Returns the addresses, fixed and of all instances, that are not where they would be. Only a master's
    /// and fixed ones are put back, which is the router's decision.
    fn missing(&self) -> Vec<(Arc<str>, IpAddr)> {
        let of_instances = self.router.instances().flat_map(|config| {
            let place =
                |one: &VirtualAddress| one.interface.as_ref().unwrap_or(config.outward()).clone();
            config.held().map(move |one| (place(one), one.address))
        });
        let fixed = self.router.fixed().addresses.iter();
        let fixed = fixed.filter_map(|one| Some((one.interface.clone()?, one.address)));
        let is_missing = |(interface, address): &(Arc<str>, IpAddr)| {
            let link = self.links.get(interface);
            link.is_some_and(|link| link.addresses.iter().all(|one| one.address != *address))
        };
        of_instances.chain(fixed).filter(is_missing).collect()
    }

    /// Makes the interfaces that have a virtual router's own hardware address; the kernel's notice
    /// of them brings us here again.
    fn make_virtual_macs(&mut self) {
        let (mut wanted, mut all) = (Vec::new(), BTreeSet::new());
        for config in self.router.instances() {
            let Some(name) = &config.virtual_mac else { continue };
            all.insert(name.clone());
            let Some(lower) = self.links.get(&config.interface) else { continue };
            match self.links.get(name) {
                // Left by an earlier process.
                Some(link) => self.own.adopt(link, lower, Mac(config.mac())),
                None => wanted.push((name.clone(), lower.clone(), Mac(config.mac()))),
            }
        }
        for error in self.own.retain(&mut self.route, |name| all.contains(name)) {
            self.failed("", &*error);
        }
        for (name, lower, mac) in wanted {
            match self.own.make(&mut self.route, &name, &lower, mac) {
                Ok(link) => drop(self.links.insert(name, link)),
                Err(error) => self.failed("", &*error),
            }
        }
    }

    /// Opens the sockets that the instances need, and closes those of interfaces that are gone.
    fn open_channels(&mut self) {
        let mut wanted: BTreeMap<_, (u32, BTreeSet<IpAddr>)> = BTreeMap::new();
        for config in self.router.instances() {
            for interface in [config.outward(), &config.interface] {
                let Some(link) = self.links.get(interface) else { continue };
                let key = (interface.clone(), config.family);
                let (_, groups) = wanted.entry(key).or_insert((link.index, BTreeSet::new()));
                // What is heard is heard on the instance's interface.
                groups.extend((*interface == config.interface).then(|| config.group()));
            }
        }
        let is_wanted = |channel: &Channel, (index, groups): &(u32, BTreeSet<IpAddr>)| {
            channel.index == *index && channel.groups == *groups
        };
        self.channels.retain(|key, channel| {
            wanted.get(key).is_some_and(|wanted| is_wanted(channel, wanted))
        });
        for ((interface, family), (index, groups)) in wanted {
            let key = (interface.clone(), family);
            if self.channels.contains_key(&key) {
                continue;
            }
            match Channel::open(&interface, index, family, groups) {
                Ok(channel) => drop(self.channels.insert(key, channel)),
                Err(error) => self.failed(&format!("opening a socket on {interface}"), &error),
            }
        }
    }

    /// Carries out everything that the router wants.
    fn carry_out(&mut self) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::SendAdvert { interface, destination, packet, .. } => {
                    self.send_advert(&interface, destination, &packet);
                    self.memory.note(&interface, Family::of(destination), &packet);
                }
                Output::SendFrame { interface, frame } => self.send_frame(&interface, &frame),
                Output::AddAddress { interface, address } => self.add(&interface, &address),
                Output::RemoveAddress { interface, address } => self.remove(&interface, &address),
                Output::AddRouting { about, entry, again } => {
                    let added = self.routing.add(&mut self.route, &self.links, about, entry, again);
                    added.into_iter().for_each(|told| self.tell(told));
                }
                Output::RemoveRouting { entry, .. } => {
                    let removed = self.routing.remove(&mut self.route, &self.links, &entry);
                    self.check(removed, &[libc::ESRCH, libc::ENOENT, libc::ENODEV]);
                }
                Output::ReadFirst => {
                    let packets = self.waiting_packets();
                    let now = Instant::now();
                    for packet in packets {
                        self.router.handle(Input::Packet(packet), now);
                    }
                    self.router.handle(Input::AllRead, now);
                }
                Output::Notify { who, state, priority } => {
                    self.forget(&who, state);
                    self.tell(Told::State { who, state, priority });
                }
                Output::Log { about, event } => self.tell(Told::Log { about, event }),
            }
        }
    }

    fn send_advert(&self, interface: &Arc<str>, destination: IpAddr, packet: &[u8]) {
        let key = (interface.clone(), Family::of(destination));
        let sent = match self.channels.get(&key) {
            Some(channel) => channel.send(packet, destination),
            None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        };
        if let Err(error) = sent {
            self.failed(&format!("sending an advertisement by {interface}"), &error);
        }
    }

    fn send_frame(&self, interface: &Arc<str>, frame: &[u8]) {
        let Some(link) = self.links.get(interface) else { return };
        if let Err(error) = super::sys::send_frame(&self.frames, link.index, frame) {
            self.failed(&format!("announcing an address on {interface}"), &error);
        }
    }

    fn add(&mut self, interface: &Arc<str>, address: &VirtualAddress) {
        let Some(link) = self.links.get(interface) else {
            let error = io::Error::from_raw_os_error(libc::ENODEV);
            let what = format!("giving {interface} the address {}", address.address);
            return self.failed(&what, &error);
        };
        let added = self.route.add_virtual_address(link.index, address.clone());
        if self.check(added, &[libc::EEXIST])
            && let Some(link) = self.links.get_mut(interface)
        {
            // What is known of the interface may be from before.
            link.addresses.push(prefix(address));
        }
    }

    fn remove(&mut self, interface: &Arc<str>, address: &VirtualAddress) {
        let Some(link) = self.links.get(interface) else { return };
        let removed = self.route.delete_virtual_address(link.index, address);
        self.check(removed, &[libc::EADDRNOTAVAIL, libc::ENODEV]);
    }

    /// Reports a failure, unless it says that all is as wanted; returns whether it is.
    fn check(&self, result: Result<(), route::Error>, fine: &[i32]) -> bool {
        match result {
            Err(error) if !error.refusal().is_some_and(|number| fine.contains(&number)) => {
                self.failed("", &error);
                false
            }
            _ => true,
        }
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) {
        let separator = if what.is_empty() { "" } else { ": " };
        let mut text = format!("{what}{separator}{error}");
        if let Some(source) = error.source() {
            text = format!("{text}: {source}");
        }
        self.tell(Told::Failed { what: text });
    }

    fn tell(&self, told: Told) {
        // Nobody may be listening.
        let _heard = self.told.send(told).is_ok();
    }
}

fn prefix(address: &VirtualAddress) -> Prefix {
    Prefix { address: address.address, bits: address.bits }
}

fn state_of(link: &Link) -> LinkState {
    LinkState {
        running: link.up && link.carrier,
        mac: link.mac.map(|mac| mac.0),
        addresses: link.addresses.iter().map(|prefix| prefix.address).collect(),
    }
}
