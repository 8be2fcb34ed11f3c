//! What instances depend on: whether they may run, and with what priority.

use std::collections::BTreeMap;
use std::sync::Arc;

use rlvs_wire::vrrp::OWNER;

use super::config::{InstanceConfig, ScriptConfig, Track, Tracked};
use super::event::{LinkState, Why};

/// A product of a tracked number and its weight from which on it is a fault (as keepalived).
const VALUE_FAULT: i64 = -254;

/// What is known of the world outside.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) links: BTreeMap<Arc<str>, LinkState>,
    pub(super) scripts: BTreeMap<Arc<str>, Script>,
    pub(super) values: BTreeMap<Arc<str>, i32>,
    pub(super) processes: BTreeMap<Arc<str>, bool>,
}

/// The results of a script so far.
#[derive(Debug)]
pub(super) struct Script {
    config: ScriptConfig,
    /// Results in a row that differ from `good`.
    row: u32,
    /// `None` before the first verdict.
    good: Option<bool>,
}

impl Script {
    pub(super) fn new(config: ScriptConfig) -> Self {
        let good = config.init_fail.then_some(false);
        Self { config, row: 0, good }
    }

    /// Takes another configuration and keeps the verdict.
    pub(super) fn reconfigure(&mut self, config: ScriptConfig) {
        self.config = config;
    }

    pub(super) fn result(&mut self, good: bool) {
        if self.good == Some(good) {
            self.row = 0;
            return;
        }
        self.row += 1;
        // The first failure counts at once: nothing was well before.
        let enough = match (good, self.good) {
            (true, _) => self.config.rise,
            (false, None) => 1,
            (false, Some(_)) => self.config.fall,
        };
        if self.row >= enough {
            (self.good, self.row) = (Some(good), 0);
        }
    }
}

/// Whether an instance may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ability {
    /// It may.
    Able,
    /// Something that it depends on is not known yet.
    Waiting,
    /// It may not.
    Faulty(Why),
}

impl Ability {
    /// Returns the worse of both, the first of two faults.
    pub(super) fn and(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Faulty(_), _) | (_, Self::Able) => self,
            (_, Self::Faulty(_) | Self::Waiting) => other,
        }
    }
}

impl Facts {
    /// Tells whether something tracked is well; `None` if that is not known.
    fn is_well(&self, track: &Track) -> Option<bool> {
        Some(match &track.what {
            Tracked::Interface(name) => self.links.get(name).is_some_and(|link| link.running),
            Tracked::Script(name) => self.scripts.get(name)?.good?,
            Tracked::Value(name) => self.value(name) == 0,
            Tracked::Process(name) => *self.processes.get(name)?,
        })
    }

    fn value(&self, name: &Arc<str>) -> i64 {
        self.values.get(name).copied().unwrap_or(0).into()
    }

    /// Returns what the tracked number adds to the priority.
    fn product(&self, track: &Track, name: &Arc<str>) -> i64 {
        let weight = i64::from(if track.reverse { -track.weight } else { track.weight });
        self.value(name) * weight
    }

    /// Tells whether what these tracks say lets an instance run.
    pub(super) fn ability(&self, tracks: &[Track]) -> Ability {
        tracks.iter().fold(Ability::Able, |so_far, track| so_far.and(self.ability_of(track)))
    }

    fn ability_of(&self, track: &Track) -> Ability {
        let why = match &track.what {
            Tracked::Interface(name) => Why::LinkDown(name.clone()),
            Tracked::Script(name) => Why::Script(name.clone()),
            Tracked::Process(name) => Why::Process(name.clone()),
            Tracked::Value(name) => {
                if track.weight != 0 && self.product(track, name) <= VALUE_FAULT {
                    return Ability::Faulty(Why::Value(name.clone()));
                }
                Why::Value(name.clone())
            }
        };
        match self.is_well(track).map(|well| well != track.reverse) {
            _ if track.weight != 0 => Ability::Able,
            Some(true) => Ability::Able,
            Some(false) => Ability::Faulty(why),
            None => Ability::Waiting,
        }
    }

    /// Returns what something tracked adds to the priority. `reverse` changes the sign, not when it
    /// counts (as keepalived).
    fn added(&self, track: &Track) -> i64 {
        let weight = i64::from(track.weight);
        let added = match (&track.what, self.is_well(track)) {
            (Tracked::Value(name), _) => return self.product(track, name),
            (_, Some(true)) => weight.max(0),
            (_, Some(false)) => weight.min(0),
            (_, None) => 0,
        };
        if track.reverse { -added } else { added }
    }

    /// Returns the priority of an instance with all weights, 1 to 254 unless it is an owner.
    pub(super) fn priority(&self, config: &InstanceConfig, of_group: &[Track]) -> u8 {
        if config.is_owner() {
            return OWNER;
        }
        let added: i64 = config.track.iter().chain(of_group).map(|track| self.added(track)).sum();
        let priority = (i64::from(config.priority) + added).clamp(1, i64::from(OWNER) - 1);
        u8::try_from(priority).unwrap_or(config.priority)
    }
}
