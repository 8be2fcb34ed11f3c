//! All virtual routers of a host: who gets which input, and who moves with whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::config::{Config, Delivery, Fixed, GroupConfig, InstanceConfig, Refusal, Track};
use super::event::{Event, Input, LinkState, Output, Received, State, Who, Why};
use super::instance::{Instance, Outputs, Situation};
use super::receive::Counters;
use super::routing;
use super::track::{Ability, Facts, Script};
use crate::model::Family;

/// The virtual routers of a host.
#[derive(Debug)]
pub struct Router {
    instances: Vec<Instance>,
    groups: Vec<Group>,
    /// What is there whatever their state.
    fixed: Fixed,
    facts: Facts,
    outputs: Outputs,
    /// [`Output::ReadFirst`] is out and not answered.
    reading: bool,
    stopped: bool,
    /// Packets for virtual routers that are not here.
    strangers: u64,
}

/// Instances that move together.
#[derive(Debug)]
struct Group {
    config: GroupConfig,
    /// What was last told of it.
    state: State,
}

/// How an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub name: Arc<str>,
    /// Its state.
    pub state: State,
    /// Its priority, with all weights.
    pub priority: u8,
    /// Who was last heard to be master, if it was another.
    pub master: Option<IpAddr>,
    /// What it has counted.
    pub counters: Counters,
}

impl Router {
    /// Makes a router that waits to hear of its interfaces.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration.
    pub fn new(config: Config, now: Instant) -> Result<Self, Vec<Refusal>> {
        let mut router = Self {
            instances: Vec::new(),
            groups: Vec::new(),
            fixed: Fixed::default(),
            facts: Facts::default(),
            outputs: Outputs::new(),
            reading: false,
            stopped: false,
            strangers: 0,
        };
        router.configure(config, now)?;
        Ok(router)
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if self.stopped {
            return;
        }
        match input {
            Input::Packet(packet) => self.packet(&packet, now),
            Input::Links(links) => {
                self.facts.links = links;
                self.settle(now);
            }
            Input::AddressRemoved { interface, address } => {
                for instance in &mut self.instances {
                    instance.restore(&interface, address, now, &mut self.outputs);
                }
                self.fixed.restore(&interface, address, &mut self.outputs);
            }
            Input::RoutingChanged => {
                let masters = self.instances.iter().filter(|one| one.state == State::Master);
                let of_masters = masters.map(|one| (&one.config.name, &one.config.routing));
                let nobody = Arc::from("");
                for (about, entries) in
                    [(&nobody, &self.fixed.routing)].into_iter().chain(of_masters)
                {
                    routing::restore(about, entries, &mut self.outputs);
                }
            }
            Input::Script { name, good } => {
                if let Some(script) = self.facts.scripts.get_mut(&name) {
                    script.result(good);
                    self.settle_if_begun(now);
                }
            }
            Input::Value { name, value } => {
                self.facts.values.insert(name, value);
                self.settle_if_begun(now);
            }
            Input::Process { name, good } => {
                self.facts.processes.insert(name, good);
                self.settle_if_begun(now);
            }
            Input::Resume { name, silent } => {
                for instance in self.instances.iter_mut().filter(|one| one.config.name == name) {
                    instance.left_behind(silent, now);
                }
            }
            Input::AllRead => {
                self.reading = false;
                self.expire(now);
            }
            Input::Reload(config) => self.reload(config, now),
            Input::Stop => self.stop(now),
        }
        self.tell_groups();
    }

    /// Does what is due; called too early it does nothing.
    ///
    /// Called so late that the process cannot have run, it asks for all packets first.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.reading {
            return;
        }
        if self.instances.iter().any(|instance| instance.is_late(now)) {
            self.reading = true;
            self.outputs.push_back(Output::ReadFirst);
            return;
        }
        self.expire(now);
        self.tell_groups();
    }

    /// Returns the next moment at which to call [`Router::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.instances.iter().filter_map(Instance::due).min()
    }

    /// Returns the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns how each instance is.
    pub fn status(&self) -> Vec<Status> {
        let status = |instance: &Instance| Status {
            name: instance.config.name.clone(),
            state: instance.state,
            priority: instance.priority,
            master: instance.master,
            counters: instance.counters.clone(),
        };
        self.instances.iter().map(status).collect()
    }

    /// Returns how many packets came for virtual routers that are not here.
    pub fn strangers(&self) -> u64 {
        self.strangers
    }

    /// Returns the configurations in force.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceConfig> {
        self.instances.iter().map(|instance| &instance.config)
    }

    /// Returns what is there whatever the state of the instances.
    pub fn fixed(&self) -> &Fixed {
        &self.fixed
    }

    fn packet(&mut self, packet: &Received, now: Instant) {
        let Some(index) = self.addressee(packet) else {
            self.strangers += 1;
            return;
        };
        self.act(index, now, |instance, out| instance.packet(packet, now, out));
    }

    /// Returns whom a packet is for. Several may have one number, if they have other peers.
    fn addressee(&self, packet: &Received) -> Option<usize> {
        let vrid = *packet.payload.get(1)?;
        let matches = |instance: &Instance| {
            let config = &instance.config;
            config.vrid == vrid
                && config.family == Family::of(packet.source)
                && config.interface == packet.interface
        };
        let is_peer = |instance: &Instance| match &instance.config.delivery {
            Delivery::Multicast => packet.destination.is_multicast(),
            Delivery::Unicast { peers, .. } => {
                peers.iter().any(|peer| peer.address == packet.source)
            }
        };
        let found = || self.instances.iter().enumerate().filter(|(_, one)| matches(one));
        let best = found().find(|(_, instance)| is_peer(instance));
        best.or_else(|| found().next()).map(|(index, _)| index)
    }

    /// Lets one instance act, and its group follow.
    fn act(
        &mut self,
        index: usize,
        now: Instant,
        action: impl FnOnce(&mut Instance, &mut Outputs),
    ) {
        let Some(instance) = self.instances.get_mut(index) else { return };
        let before = instance.state;
        action(instance, &mut self.outputs);
        let (after, name) = (instance.state, instance.config.name.clone());
        let follows = match (before, after) {
            (_, State::Master) | (State::Master, State::Backup) => before != after,
            _ => false,
        };
        if !follows {
            return;
        }
        for other in self.companions(&name) {
            if let Some(other) = self.instances.get_mut(other)
                && matches!(other.state, State::Master | State::Backup)
            {
                other.transition(after, Why::Group, now, &mut self.outputs);
            }
        }
    }

    /// Returns the other members of an instance's group.
    fn companions(&self, name: &Arc<str>) -> Vec<usize> {
        let Some(group) = self.groups.iter().find(|group| group.config.members.contains(name))
        else {
            return Vec::new();
        };
        let members = &group.config.members;
        let is_companion =
            |one: &Instance| one.config.name != *name && members.contains(&one.config.name);
        let found = self.instances.iter().enumerate().filter(|(_, one)| is_companion(one));
        found.map(|(index, _)| index).collect()
    }

    fn expire(&mut self, now: Instant) {
        for index in 0..self.instances.len() {
            self.act(index, now, |instance, out| instance.expire(now, out));
        }
    }

    /// As [`Self::settle`], but while no interface is known nothing follows from anything.
    fn settle_if_begun(&mut self, now: Instant) {
        if !self.facts.links.is_empty() {
            self.settle(now);
        }
    }

    /// Lets every instance know what it depends on.
    fn settle(&mut self, now: Instant) {
        let situations: Vec<Situation> =
            self.instances.iter().map(|instance| self.situation(instance)).collect();
        for (index, mut situation) in situations.iter().cloned().enumerate() {
            let Some(instance) = self.instances.get(index) else { continue };
            for companion in self.companions(&instance.config.name) {
                let others = situations.get(companion).map(|other| &other.ability);
                situation.ability = situation.ability.and(match others {
                    Some(Ability::Faulty(_)) => Ability::Faulty(Why::Group),
                    Some(Ability::Waiting) => Ability::Waiting,
                    Some(Ability::Able) | None => Ability::Able,
                });
            }
            self.act(index, now, |instance, out| instance.settle(situation, now, out));
        }
    }

    fn situation(&self, instance: &Instance) -> Situation {
        let config = &instance.config;
        let link = self.facts.links.get(&config.interface).cloned().unwrap_or_default();
        let source = self.source(config, &link);
        let of_group = self.group_tracks(&config.name);
        let own = match source {
            _ if !link.running && !config.ignore_link => {
                Ability::Faulty(Why::LinkDown(config.interface.clone()))
            }
            None => Ability::Faulty(Why::NoSource),
            Some(source) if config.track_source && !link.addresses.contains(&source) => {
                Ability::Faulty(Why::NoSource)
            }
            Some(_) => Ability::Able,
        };
        let tracked = self.facts.ability(&config.track).and(self.facts.ability(of_group));
        let priority = self.facts.priority(config, of_group);
        let interfaces = config.held().map(|address| instance.interface_of(address));
        let mac = |name: Arc<str>| Some((name.clone(), self.facts.links.get(&name)?.mac?));
        let macs: BTreeMap<_, _> = interfaces.filter_map(mac).collect();
        Situation { ability: own.and(tracked), priority, link, source, macs }
    }

    fn group_tracks(&self, name: &Arc<str>) -> &[Track] {
        let group = self.groups.iter().find(|group| group.config.members.contains(name));
        group.map_or(&[], |group| &group.config.track)
    }

    /// Returns the address to speak from: the first that does not move. In IPv6 it is one of the
    /// link, unless a peer is further away.
    fn source(&self, config: &InstanceConfig, link: &LinkState) -> Option<IpAddr> {
        if config.source.is_some() {
            return config.source;
        }
        let is_on_link = |address: &IpAddr| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let on_link = config.peers().all(|peer| is_on_link(&peer.address));
        let virtual_addresses: BTreeSet<IpAddr> = self
            .instances
            .iter()
            .flat_map(|instance| instance.config.held())
            .map(|address| address.address)
            .collect();
        let fits = |address: &&IpAddr| {
            Family::of(**address) == config.family
                && (config.family == Family::V4 || is_on_link(address) == on_link)
        };
        let own = link.addresses.iter().filter(fits);
        let fixed = own.clone().find(|address| !virtual_addresses.contains(address));
        // An owner may have no other.
        fixed.or_else(|| own.clone().find(|_| config.is_owner())).copied()
    }

    fn reload(&mut self, config: Config, now: Instant) {
        if let Err(refusals) = self.configure(config, now) {
            let event = Event::ReloadRefused(refusals);
            self.outputs.push_back(Output::Log { about: "".into(), event });
        }
    }

    /// Moves to another configuration: what is not in it ends, what is in both goes on.
    fn configure(&mut self, config: Config, now: Instant) -> Result<(), Vec<Refusal>> {
        let refusals = config.refusals();
        if !refusals.is_empty() {
            return Err(refusals);
        }
        self.fixed.become_other(config.fixed, &mut self.outputs);
        let mut old = std::mem::take(&mut self.instances);
        let mut kept = Vec::new();
        for wanted in &config.instances {
            let position = old.iter().position(|one| one.config.continues(wanted));
            kept.push(position.map(|position| old.remove(position)));
        }
        for mut gone in old {
            gone.transition(State::Stopped, Why::Removed, now, &mut self.outputs);
        }
        for (kept, wanted) in kept.into_iter().zip(config.instances) {
            let instance = match kept {
                Some(mut instance) => {
                    instance.reconfigure(wanted, now, &mut self.outputs);
                    instance
                }
                None => Instance::new(wanted),
            };
            self.instances.push(instance);
        }
        let mut scripts = std::mem::take(&mut self.facts.scripts);
        for script in config.scripts {
            let mut kept =
                scripts.remove(&script.name).unwrap_or_else(|| Script::new(script.clone()));
            kept.reconfigure(script.clone());
            self.facts.scripts.insert(script.name, kept);
        }
        let states: BTreeMap<Arc<str>, State> =
            self.groups.drain(..).map(|group| (group.config.name, group.state)).collect();
        self.groups.extend(config.groups.into_iter().map(|config| {
            let state = states.get(&config.name).copied().unwrap_or(State::Initialize);
            Group { config, state }
        }));
        self.settle_if_begun(now);
        Ok(())
    }

    fn stop(&mut self, now: Instant) {
        for instance in &mut self.instances {
            instance.transition(State::Stopped, Why::Stop, now, &mut self.outputs);
        }
        self.fixed.become_other(Fixed::default(), &mut self.outputs);
        self.stopped = true;
    }

    /// Tells of every group whose state changed.
    fn tell_groups(&mut self) {
        for group in &mut self.groups {
            let members = &group.config.members;
            let states: BTreeSet<State> = self
                .instances
                .iter()
                .filter(|instance| members.contains(&instance.config.name))
                .map(|instance| instance.state)
                .collect();
            let state = match states.iter().next_back() {
                Some(State::Master) if states.len() > 1 => State::Backup,
                Some(state) => *state,
                None => continue,
            };
            if state != std::mem::replace(&mut group.state, state) {
                let who = Who::Group(group.config.name.clone());
                self.outputs.push_back(Output::Notify { who, state, priority: 0 });
            }
        }
    }
}
