//! Everything that metrics are made of, read at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rlvs_control::model::{DestinationEntry, Family, ServiceEntry, ServiceId, Traffic as Counted};
use rlvs_control::table::Table;
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::look::{Look, Seen};
use rlvs_linux::dataplane::note::Running;
use rlvs_linux::dataplane::sync;
use rlvs_linux::ipvs::table::KernelTable;
use serde::Serialize;

use super::host::{self, Machine, Process};
use crate::ipvsadm::Backend;
use crate::json::SCHEMA;
use crate::keepalived::daemon::state::State;

/// Table, data plane, daemon, process and machine.
#[derive(Debug, Serialize)]
pub(crate) struct Reading {
    pub(super) schema: u32,
    pub(super) version: &'static str,
    /// Whose table it is: `rlvs` or `kernel`.
    pub(super) backend: &'static str,
    /// Why the table could not be read.
    pub(super) error: Option<String>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) services: Vec<Service>,
    pub(super) destinations: Vec<Destination>,
    pub(super) tables: Vec<Fill>,
    /// Packets that were not simply forwarded, by reason.
    pub(super) packets: BTreeMap<&'static str, u64>,
    pub(super) synchronisation: Vec<SyncDaemon>,
    pub(super) sweep: Option<Sweep>,
    pub(super) programs: Vec<Program>,
    /// Real servers with their health, as the daemon has it: one list for who wants no tree.
    pub(super) servers: Vec<Server>,
    pub(super) daemon: Option<Arc<State>>,
    pub(super) process: Process,
    pub(super) machine: Machine,
}

/// An interface on which programs hang.
#[derive(Debug, Serialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) mode: &'static str,
}

/// What names a virtual service.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Name {
    /// `TCP`, `UDP` or `SCTP`; of a service by mark `FWM`.
    pub(super) proto: String,
    pub(super) local_address: Option<IpAddr>,
    pub(super) local_port: Option<u16>,
    pub(super) local_mark: Option<u32>,
}

/// A real server and its health.
#[derive(Debug, Serialize)]
pub(super) struct Server {
    /// Names it among all.
    pub(super) id: String,
    pub(super) virtual_server: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) up: bool,
    pub(super) why: Option<String>,
    pub(super) downs: u64,
    pub(super) check_us: Option<u64>,
}

/// A virtual service.
#[derive(Debug, Serialize)]
pub(super) struct Service {
    /// Names it among all.
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) name: Name,
    pub(super) scheduler: String,
    pub(super) persistent: bool,
    pub(super) destinations: u64,
    pub(super) active: u64,
    pub(super) inactive: u64,
    pub(super) counters: Traffic,
    pub(super) rates: Traffic,
}

/// A destination of a virtual service.
#[derive(Debug, Serialize)]
pub(super) struct Destination {
    /// Names it among all.
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) service: Name,
    pub(super) remote_address: IpAddr,
    pub(super) remote_port: u16,
    pub(super) method: &'static str,
    pub(super) weight: u32,
    pub(super) upper_threshold: u32,
    pub(super) active: u32,
    pub(super) inactive: u32,
    pub(super) persistent: u32,
    pub(super) counters: Traffic,
    pub(super) rates: Traffic,
}

/// Traffic since the counters were zeroed, or in a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Traffic {
    pub(super) connections: u64,
    pub(super) in_packets: u64,
    pub(super) out_packets: u64,
    pub(super) in_bytes: u64,
    pub(super) out_bytes: u64,
}

/// How full a table of connections is.
#[derive(Debug, Serialize)]
pub(super) struct Fill {
    pub(super) name: &'static str,
    pub(super) slots: u64,
    pub(super) used: u64,
}

/// A daemon of connection synchronisation.
#[derive(Debug, Serialize)]
pub(super) struct SyncDaemon {
    /// `master` or `backup`.
    pub(super) role: &'static str,
    pub(super) interface: String,
    pub(super) sync_id: u32,
    /// Messages and entries, by what became of them.
    pub(super) counts: BTreeMap<String, u64>,
}

/// What the sweep has done.
#[derive(Debug, Serialize)]
pub(super) struct Sweep {
    pub(super) passes: u64,
    pub(super) removed: u64,
}

/// A program that hangs on interfaces.
#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) verified: u64,
    pub(super) runs: u64,
    pub(super) run_ns: u64,
}

impl Reading {
    /// Reads all, for the calling thread's network namespace.
    pub(crate) fn take(backend: Backend, daemon: Option<Arc<State>>) -> Self {
        let mut reading = Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            backend: backend.name(),
            error: None,
            interfaces: Vec::new(),
            services: Vec::new(),
            destinations: Vec::new(),
            tables: Vec::new(),
            packets: BTreeMap::new(),
            synchronisation: Vec::new(),
            sweep: None,
            programs: Vec::new(),
            servers: daemon.iter().flat_map(|state| servers(state)).collect(),
            daemon,
            process: Process::read(),
            machine: host::machine(),
        };
        reading.error = match backend {
            Backend::Rlvs => reading.look().err().map(|error| said(&error)),
            Backend::Kernel => reading.ask_kernel().err(),
        };
        reading
    }

    fn look(&mut self) -> Result<(), rlvs_linux::dataplane::Error> {
        let Some(look) = Look::open()? else { return Ok(()) };
        let attached = look.attached()?.into_iter();
        self.interfaces =
            attached.map(|one| Interface { name: one.name, mode: one.mode.name() }).collect();
        let (services, tables) = look.services();
        for Seen { entry, rates, destination_rates } in &services {
            self.take_service(entry, *rates, destination_rates);
        }
        let fill = |one: rlvs_linux::dataplane::look::Fill| {
            let (name, slots, used) = (one.name, one.slots, one.used);
            Fill { name, slots, used }
        };
        self.tables = tables.into_iter().map(fill).collect();
        let packets = Reason::ALL.into_iter();
        self.packets = packets.map(|one| (one.name(), look.reason(one as u32))).collect();
        let daemon = |one: Running| SyncDaemon {
            role: one.daemon.role.name(),
            interface: one.daemon.interface,
            sync_id: one.daemon.sync_id,
            counts: one.counts.into_iter().collect(),
        };
        // Without their counts the rest is told all the same.
        self.synchronisation = sync::list().unwrap_or_default().into_iter().map(daemon).collect();
        let sweep = look.sweep()?;
        self.sweep = Some(Sweep { passes: sweep.passes, removed: sweep.removed });
        let program = |one: rlvs_linux::dataplane::look::Program| Program {
            name: one.name,
            verified: one.verified,
            runs: one.runs,
            run_ns: one.run_ns,
        };
        self.programs = look.programs().into_iter().map(program).collect();
        Ok(())
    }

    fn ask_kernel(&mut self) -> Result<(), String> {
        let mut table = KernelTable::open().map_err(|error| error.to_string())?;
        let entries = table.services().map_err(|error| error.to_string())?;
        let rates = table.rates(None).map_err(|error| error.to_string())?;
        let rates: BTreeMap<ServiceId, ServiceEntry> =
            rates.into_iter().map(|entry| (entry.service.id, entry)).collect();
        for entry in &entries {
            let now = rates.get(&entry.service.id);
            let of = |to: &DestinationEntry| {
                let found = now.and_then(|now| {
                    now.destinations.iter().find(|one| one.destination.id == to.destination.id)
                });
                found.map(|found| found.traffic).unwrap_or_default()
            };
            let destinations: Vec<Counted> = entry.destinations.iter().map(of).collect();
            let rates = now.map(|now| now.traffic).unwrap_or_default();
            self.take_service(entry, rates, &destinations);
        }
        Ok(())
    }

    fn take_service(&mut self, entry: &ServiceEntry, rates: Counted, each: &[Counted]) {
        let name = Name::of(entry.service.id);
        let all = || entry.destinations.iter();
        let id = name.to_string();
        self.services.push(Service {
            id: id.clone(),
            name: name.clone(),
            scheduler: entry.service.scheduler.clone(),
            persistent: entry.service.persistence.is_some(),
            destinations: entry.destinations.len() as u64,
            active: all().map(|to| u64::from(to.active)).sum(),
            inactive: all().map(|to| u64::from(to.inactive)).sum(),
            counters: entry.traffic.into(),
            rates: rates.into(),
        });
        let destinations = all().zip(each).map(|(to, rates)| Destination {
            id: format!("{id} {}", end(to.destination.id.address, to.destination.id.port)),
            service: name.clone(),
            remote_address: to.destination.id.address,
            remote_port: to.destination.id.port,
            method: to.destination.method.name(),
            weight: to.destination.weight,
            upper_threshold: to.destination.upper_threshold,
            active: to.active,
            inactive: to.inactive,
            persistent: to.persistent,
            counters: to.traffic.into(),
            rates: (*rates).into(),
        });
        self.destinations.extend(destinations);
    }
}

impl Name {
    fn of(id: ServiceId) -> Self {
        match id {
            ServiceId::Address { protocol, address, port } => Self {
                proto: protocol.to_string(),
                local_address: Some(address),
                local_port: Some(port),
                local_mark: None,
            },
            ServiceId::Mark { family, mark } => Self {
                proto: if family == Family::V4 { "FWM" } else { "FWM6" }.to_owned(),
                local_address: None,
                local_port: None,
                local_mark: Some(mark),
            },
        }
    }
}

impl From<Counted> for Traffic {
    fn from(from: Counted) -> Self {
        let Counted { connections, in_packets, out_packets, in_bytes, out_bytes } = from;
        Self { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.local_address, self.local_port, self.local_mark) {
            (Some(address), Some(port), _) => write!(to, "{} {}", self.proto, end(address, port)),
            (_, _, mark) => write!(to, "{} {}", self.proto, mark.unwrap_or_default()),
        }
    }
}

fn end(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn servers(state: &State) -> impl Iterator<Item = Server> {
    state.services.iter().flat_map(|service| {
        service.servers.iter().map(|server| Server {
            id: format!("{} {}", service.name, end(server.address, server.port)),
            virtual_server: service.name.clone(),
            address: server.address,
            port: server.port,
            up: server.up,
            why: server.why.clone(),
            downs: server.downs,
            check_us: server.checks.iter().filter_map(|one| Some(one.last.as_ref()?.took_us)).max(),
        })
    })
}

fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
