//! What the main thread has seen happen, for those who ask how the daemon is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rlvs_control::vrrp::config::{Config, InstanceConfig, Version, VirtualAddress};
use rlvs_control::vrrp::{self, Event, Status, Who};
use rlvs_linux::vrrp::Told;

use super::super::checks::Event as ServiceEvent;
use super::state::{self, Address, Configuration, Counters, Group, Instance, RouterState, Script};

/// What has happened so far.
#[derive(Debug)]
pub(super) struct Chronicle {
    started_unix_ms: u64,
    pub(super) configuration: Configuration,
    changes: BTreeMap<Who, Change>,
    scripts: BTreeMap<String, (bool, String)>,
    events: BTreeMap<&'static str, u64>,
}

/// The last change of state of an instance or group.
#[derive(Clone, Debug)]
struct Change {
    state: vrrp::State,
    at_unix_ms: u64,
    why: String,
    /// How many there have been.
    count: u64,
}

impl Chronicle {
    pub(super) fn new(file: &std::path::Path) -> Self {
        let now = unix_ms();
        let file = file.display().to_string();
        Self {
            started_unix_ms: now,
            configuration: Configuration { file, read_unix_ms: now, ..Configuration::default() },
            changes: BTreeMap::new(),
            scripts: BTreeMap::new(),
            events: BTreeMap::new(),
        }
    }

    /// Takes note of a reload, and why it was refused if it was.
    pub(super) fn reloaded(&mut self, outcome: Result<&Config, &str>) {
        let configuration = &mut self.configuration;
        match outcome {
            Ok(config) => {
                configuration.reloads += 1;
                configuration.read_unix_ms = unix_ms();
                configuration.refused = None;
                self.changes.retain(|who, _| is_in(config, who));
                self.scripts.retain(|name, _| config.scripts.iter().any(|one| *one.name == **name));
            }
            Err(why) => {
                configuration.reloads_refused += 1;
                configuration.refused = Some(why.to_owned());
            }
        }
    }

    /// Takes note of what the virtual routers tell.
    pub(super) fn told(&mut self, told: &Told) {
        match told {
            Told::State { who: who @ Who::Group(_), state, .. } => {
                self.changed(who.clone(), *state, String::new());
            }
            Told::Log { about, event } => {
                self.count(name_of(event));
                if let Event::Transition { to, why, .. } = event {
                    self.changed(Who::Instance(about.clone()), *to, why.to_string());
                }
            }
            Told::Failed { .. } => self.count("vrrp_failed"),
            Told::State { .. } | Told::Without { .. } | Told::Ended => {}
        }
    }

    fn changed(&mut self, who: Who, state: vrrp::State, why: String) {
        let count = self.changes.get(&who).map_or(1, |before| before.count + 1);
        self.changes.insert(who, Change { state, at_unix_ms: unix_ms(), why, count });
    }

    /// Takes note of what a virtual server tells.
    pub(super) fn service(&mut self, event: &ServiceEvent) {
        self.count(event.kind.name());
    }

    /// Takes note of the end of a tracked script.
    pub(super) fn script(&mut self, name: &str, good: bool, news: Option<&str>) {
        let said = match (news, self.scripts.get(name)) {
            (Some(news), _) => news.to_owned(),
            (None, before) => before.map(|(_, said)| said.clone()).unwrap_or_default(),
        };
        self.scripts.insert(name.to_owned(), (good, said));
    }

    fn count(&mut self, name: &'static str) {
        *self.events.entry(name).or_default() += 1;
    }

    /// Returns how the daemon is, but for its virtual servers.
    pub(super) fn state(&self, config: &Config, status: &[Status]) -> state::State {
        let instance = |status: &Status| {
            let config = config.instances.iter().find(|one| one.name == status.name)?;
            Some(self.instance(config, status))
        };
        let events = self.events.iter().map(|(name, count)| ((*name).to_owned(), *count));
        state::State {
            schema: state::SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            backend: String::new(),
            configuration: self.configuration.clone(),
            instances: status.iter().filter_map(instance).collect(),
            groups: config.groups.iter().map(|group| self.group(group)).collect(),
            scripts: config.scripts.iter().map(|script| self.script_state(&script.name)).collect(),
            services: Vec::new(),
            refused: Vec::new(),
            events: events.collect(),
            log: state::Log::default(),
        }
    }

    fn instance(&self, config: &InstanceConfig, status: &Status) -> Instance {
        let change = self.changes.get(&Who::Instance(status.name.clone()));
        let addresses = |list: &[VirtualAddress]| -> Vec<Address> {
            list.iter().map(|one| address(config, one)).collect()
        };
        Instance {
            name: status.name.to_string(),
            interface: config.interface.to_string(),
            vrid: config.vrid,
            version: if config.version == Version::V2 { 2 } else { 3 },
            interval_ms: millis(config.interval),
            // State, time and reason are of one moment; the router itself may be ahead.
            state: router_state(change.map_or(status.state, |change| change.state)),
            since_unix_ms: change.map_or(self.started_unix_ms, |change| change.at_unix_ms),
            why: change.map(|change| change.why.clone()).unwrap_or_default(),
            configured_priority: config.priority,
            priority: status.priority,
            master: status.master,
            addresses: addresses(&config.addresses),
            excluded_addresses: addresses(&config.excluded),
            counters: counters(status, change.map_or(0, |change| change.count)),
        }
    }

    fn group(&self, config: &vrrp::config::GroupConfig) -> Group {
        let change = self.changes.get(&Who::Group(config.name.clone()));
        Group {
            name: config.name.to_string(),
            instances: config.members.iter().map(ToString::to_string).collect(),
            state: router_state(change.map_or(vrrp::State::Initialize, |change| change.state)),
            since_unix_ms: change.map_or(self.started_unix_ms, |change| change.at_unix_ms),
        }
    }

    fn script_state(&self, name: &str) -> Script {
        let known = self.scripts.get(name);
        Script {
            name: name.to_owned(),
            good: known.map(|(good, _)| *good),
            said: known.map(|(_, said)| said.clone()).unwrap_or_default(),
        }
    }
}

fn is_in(config: &Config, who: &Who) -> bool {
    match who {
        Who::Instance(name) => config.instances.iter().any(|one| one.name == *name),
        Who::Group(name) => config.groups.iter().any(|one| one.name == *name),
    }
}

fn address(config: &InstanceConfig, one: &VirtualAddress) -> Address {
    let interface = one.interface.as_ref().unwrap_or(config.outward());
    Address { address: one.address, bits: one.bits, interface: interface.to_string() }
}

fn counters(status: &Status, transitions: u64) -> Counters {
    let from = &status.counters;
    Counters {
        received: from.received,
        sent: from.sent,
        became_master: from.became_master,
        released_master: from.released_master,
        transitions,
        resignations_received: from.resignations_received,
        resignations_sent: from.resignations_sent,
        addresses_differ: from.addresses_differ,
        announcements: from.announcements,
        restored: from.restored,
        rejected: from.rejected.iter().map(|(kind, count)| (kind.name().into(), *count)).collect(),
    }
}

fn router_state(state: vrrp::State) -> RouterState {
    match state {
        vrrp::State::Initialize => RouterState::Init,
        vrrp::State::Backup => RouterState::Backup,
        vrrp::State::Master => RouterState::Master,
        vrrp::State::Fault => RouterState::Fault,
        vrrp::State::Stopped => RouterState::Stopped,
    }
}

/// Returns the name of an event in the state and in the log.
pub(super) fn name_of(event: &Event) -> &'static str {
    match event {
        Event::Transition { .. } => "transition",
        Event::Priority { .. } => "priority",
        Event::IntervalLearned { .. } => "interval_learned",
        Event::AddressesDiffer { .. } => "addresses_differ",
        Event::Rejected { .. } => "rejected",
        Event::LowerPriority { .. } => "lower_priority",
        Event::Resigned { .. } => "resigned",
        Event::TwoOwners { .. } => "two_owners",
        Event::Restored { .. } => "restored",
        Event::RoutingRestored { .. } => "routing_restored",
        Event::ReloadRefused(_) => "reload_refused",
    }
}

/// Returns the time of now.
fn unix_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Returns a moment as the time of day, as the clock goes now.
pub(in crate::keepalived) fn unix_ms_of(moment: Instant) -> u64 {
    let now = Instant::now();
    let (ago, ahead) =
        (now.saturating_duration_since(moment), moment.saturating_duration_since(now));
    (unix_ms() + millis(ahead)).saturating_sub(millis(ago))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
