//! Connection synchronisation (`lvs_sync_daemon`), by the kernel's IPVS or our own table: who is master
//! tells of its connections, all others learn them.

use std::collections::BTreeSet;

use rlvs_conf::desired::{self, Desired};
use rlvs_control::model::{SyncDaemon, SyncRole};
use rlvs_control::table::{Error, Table};
use rlvs_control::vrrp::State;

use crate::face;
use crate::ipvsadm::Backend;

/// What runs for us.
#[derive(Debug)]
pub(super) struct Synchronisation {
    backend: Backend,
    wanted: Option<desired::SyncDaemon>,
    /// Number of the group of directors.
    id: u8,
    runs: BTreeSet<SyncRole>,
}

impl Synchronisation {
    /// Makes one of a table, that does nothing yet.
    pub(super) fn new(backend: Backend) -> Self {
        Self { backend, wanted: None, id: 0, runs: BTreeSet::new() }
    }

    /// Takes what a configuration says; the instance that is followed is `master` or not. Returns
    /// what failed.
    pub(super) fn reload(&mut self, desired: &Desired, master: bool) -> Vec<Error> {
        let wanted = desired.global.sync_daemon.clone();
        let followed = wanted.as_ref().and_then(|wanted| wanted.instance.as_ref());
        let instance = desired.instances.iter().find(|one| Some(&one.name) == followed);
        let said = wanted.as_ref().and_then(|wanted| wanted.id);
        // As the real one: without a number that of the virtual router.
        let id = said.unwrap_or(instance.map_or(0, |instance| instance.router_id.get()));
        if (&self.wanted, self.id) == (&wanted, id) {
            return Vec::new();
        }
        let mut failed = self.run(BTreeSet::new());
        (self.wanted, self.id) = (wanted, id);
        failed.extend(self.run(self.roles(master)));
        failed
    }

    /// Returns the instance that is followed.
    pub(super) fn instance(&self) -> Option<&str> {
        self.wanted.as_ref().and_then(|wanted| wanted.instance.as_deref())
    }

    /// Takes the new state of an instance; returns what failed.
    pub(super) fn follow(&mut self, instance: &str, state: State) -> Vec<Error> {
        if self.instance() != Some(instance) {
            return Vec::new();
        }
        self.run(self.roles(state == State::Master))
    }

    /// Ends what runs; returns what failed.
    pub(super) fn stop(&mut self) -> Vec<Error> {
        self.run(BTreeSet::new())
    }

    /// Returns what shall run: who follows nobody tells and learns.
    fn roles(&self, master: bool) -> BTreeSet<SyncRole> {
        let Some(wanted) = &self.wanted else { return BTreeSet::new() };
        match (&wanted.instance, master) {
            (None, _) => [SyncRole::Master, SyncRole::Backup].into(),
            (Some(_), true) => [SyncRole::Master].into(),
            (Some(_), false) => [SyncRole::Backup].into(),
        }
    }

    fn run(&mut self, roles: BTreeSet<SyncRole>) -> Vec<Error> {
        if roles == self.runs {
            return Vec::new();
        }
        let mut table = match face::open_table(self.backend) {
            Ok(table) => table,
            Err(error) => return vec![error],
        };
        let mut failed = Vec::new();
        for &role in self.runs.difference(&roles) {
            match table.stop_sync_daemon(role) {
                // Somebody else has stopped it.
                Ok(()) | Err(Error::NoSyncDaemon(_)) => {}
                Err(error) => failed.push(error),
            }
        }
        let new = roles.difference(&self.runs);
        failed.extend(new.filter_map(|&role| self.start(role, &mut *table).err()));
        self.runs = roles;
        failed
    }

    fn start(&self, role: SyncRole, table: &mut dyn Table) -> Result<(), Error> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let daemon = SyncDaemon {
            role,
            interface: wanted.interface.clone(),
            sync_id: self.id.into(),
            message_bytes_max: wanted.message_bytes_max,
            group: wanted.group,
            port: wanted.port,
            ttl: wanted.ttl,
        };
        match table.start_sync_daemon(&daemon) {
            // One that an earlier process has left may differ.
            Err(Error::SyncDaemonRuns(_)) => {
                table.stop_sync_daemon(role)?;
                table.start_sync_daemon(&daemon)
            }
            done => done,
        }
    }
}
