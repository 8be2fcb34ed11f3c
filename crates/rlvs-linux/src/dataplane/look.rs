//! The table and its counters as they are, read beside whoever edits: without the lock, without a
//! change, without a step of the packet path.
//!
//! A record that is just being written is read again; services and destinations that come or go
//! meanwhile are in the picture or not.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::MapData;
use aya::programs::ProgramInfo;
use rlvs_control::model::{
    Destination as Wanted, DestinationEntry, DestinationId, Persistence, Service as WantedService,
    ServiceEntry, Traffic,
};
use rlvs_datapath::abi::{
    self, Base, COUNTERS, Destination, IDS, SLOTS4, SLOTS6, Service, WIDE_SLOTS, method,
    service_flag,
};
use rlvs_datapath::estimate;

use super::attach::{self, Attached};
use super::capture;
use super::error::Error;
use super::load;
use super::maps::{self, Mapped};
use super::pins::{self, Folder};
use super::records::{self, address, counters, is_listed, method_of, scheduler_name, service_id};

/// How often a record that changes while it is read is read again.
const READS_MAX: usize = 8;

/// The data plane of the calling thread's network namespace.
#[derive(Debug)]
pub struct Look {
    folder: Folder,
    maps: Maps,
}

/// What is read: the kernel maps whole maps, so the large tables of connections are left alone.
#[derive(Debug)]
struct Maps {
    settings: Mapped<abi::Settings>,
    services: Mapped<Service>,
    totals: Mapped<abi::Totals>,
    estimates: Mapped<abi::Estimate>,
    bases: Mapped<Base>,
    destinations: Mapped<Destination>,
    tunnels: Mapped<abi::Tunnel>,
    counts: Mapped<abi::Counts>,
    rows: Mapped<abi::Row>,
    reasons: Mapped<Cell<u64>>,
    sweep: MapData,
}

impl Maps {
    fn open(folder: &Folder) -> Result<Self, Error> {
        Ok(Self {
            settings: Mapped::open(folder, "settings")?,
            services: Mapped::open(folder, "services")?,
            totals: Mapped::open(folder, "totals")?,
            estimates: Mapped::open(folder, "estimates")?,
            bases: Mapped::open(folder, "bases")?,
            destinations: Mapped::open(folder, "destinations")?,
            tunnels: Mapped::open(folder, "tunnels")?,
            counts: Mapped::open(folder, "counts")?,
            rows: Mapped::open(folder, "rows")?,
            reasons: Mapped::open(folder, "reasons")?,
            sweep: maps::open_sweep(folder)?,
        })
    }

    fn settings(&self) -> abi::Settings {
        self.settings.read(0).unwrap_or_default()
    }
}

/// A service as it is.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The service with its destinations, in the order of their ids.
    pub entry: ServiceEntry,
    /// What it carries in a second.
    pub rates: Traffic,
    /// What each destination carries in a second.
    pub destination_rates: Vec<Traffic>,
}

/// How full a table of connections is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// `ipv4`, `ipv6` or `wide`.
    pub name: &'static str,
    /// Slots that it has.
    pub slots: u64,
    /// Slots in use: one for a connection, a second one for NAT, one for a template.
    pub used: u64,
}

/// A program that hangs on interfaces, with those that it hands on to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// `xdp`, `tc` or `out`.
    pub name: &'static str,
    /// The kernel's number of it.
    pub id: u64,
    /// Instructions that the verifier walked when it was loaded.
    pub verified: u64,
    /// Times that it ran, if the kernel counts (`kernel.bpf_stats_enabled`).
    pub runs: u64,
    /// Nanoseconds that it ran for, likewise.
    pub run_ns: u64,
}

/// What the sweep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Passes over all tables.
    pub passes: u64,
    /// Entries removed.
    pub removed: u64,
}

impl Look {
    /// Opens the maps, and tidies up after a capture that was killed; `None` if nothing is attached here.
    ///
    /// # Errors
    /// A missing capability, or pins of another layout.
    pub fn open() -> Result<Option<Self>, Error> {
        let Some(folder) = pins::open()? else { return Ok(None) };
        capture::collect(&folder)?;
        match Maps::open(&folder) {
            // It has been detached meanwhile.
            Err(Error::NotAttached) => Ok(None),
            maps => Ok(Some(Self { maps: maps?, folder })),
        }
    }

    /// Returns where programs hang.
    ///
    /// # Errors
    /// The interfaces cannot be listed.
    pub fn attached(&self) -> Result<Vec<Attached>, Error> {
        attach::attached(&self.folder)
    }

    /// Returns how many packets were counted under a reason.
    pub fn reason(&self, reason: u32) -> u64 {
        maps::counted(&self.maps.reasons, self.maps.settings().cpus, reason)
    }

    /// Returns what the sweep has done.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn sweep(&self) -> Result<Sweep, Error> {
        let cursor = maps::sweep(&self.maps.sweep)?;
        Ok(Sweep { passes: cursor.passes.get(), removed: cursor.removed.get() })
    }

    /// Returns every service that takes connections, and how full the tables are.
    pub fn services(&self) -> (Vec<Seen>, [Fill; 3]) {
        let settings = self.maps.settings();
        let (_, unit_ns) = load::clock().unwrap_or((0, 0));
        let mut seen: BTreeMap<u32, (Service, Seen, [u64; COUNTERS])> = (1..settings.services)
            .map(|id| (id, stable(|| self.maps.services.read(id))))
            .filter(|(_, record)| record.family != 0)
            .map(|(id, record)| {
                let retired = self.maps.totals.read(id).unwrap_or_default().retired;
                (id, (record, self.seen(id, &record, unit_ns), retired))
            })
            .collect();
        let mut used = [0; 3];
        for id in 1..settings.destinations {
            let record = stable(|| self.maps.destinations.read(id));
            let Some((service, seen, sum)) = seen.get_mut(&record.service) else { continue };
            let counted = self.rows(id, settings.cpus);
            let entry = self.destination(id, &record, counted);
            add(&mut used, service, &record, &entry);
            sum.iter_mut().zip(counted).for_each(|(sum, more)| *sum = sum.wrapping_add(more));
            if is_listed(&record) {
                seen.entry.destinations.push(entry);
                seen.destination_rates.push(self.rates(id));
            }
        }
        let live =
            seen.into_iter().filter(|(_, (record, ..))| record.flags & service_flag::LIVE != 0);
        let services = live.map(|(id, (_, mut seen, sum))| {
            seen.entry.traffic = self.since_zero(IDS + id, sum);
            seen
        });
        let services = services.collect();
        let sizes = [
            (u64::from(settings.connections4_mask) + 1) * SLOTS4 as u64,
            (u64::from(settings.connections6_mask) + 1) * SLOTS6 as u64,
            (u64::from(settings.wide_mask) + 1) * WIDE_SLOTS as u64,
        ];
        let fill = |at: usize, name| Fill { name, slots: sizes[at], used: used[at] };
        (services, [fill(0, "ipv4"), fill(1, "ipv6"), fill(2, "wide")])
    }

    /// Returns the programs that hang on interfaces.
    pub fn programs(&self) -> Vec<Program> {
        let known = [("xdp", load::XDP), ("tc", load::TC), ("out", load::OUT)];
        known.into_iter().filter_map(|(name, pin)| self.program(name, pin)).collect()
    }

    fn seen(&self, id: u32, record: &Service, unit_ns: u64) -> Seen {
        let timeout_s = (u64::from(record.persistence) * unit_ns / 1_000_000_000) as u32;
        let persistence = Persistence { timeout_s, netmask: records::netmask(record) };
        let service = WantedService {
            id: service_id(record),
            scheduler: scheduler_name(record.scheduler).to_owned(),
            scheduler_flags: record.scheduler_flags as u8,
            one_packet: record.flags & service_flag::ONE_PACKET != 0,
            persistence: (record.persistence != 0).then_some(persistence),
            persistence_engine: records::engine(record),
        };
        let entry = ServiceEntry { service, traffic: Traffic::default(), destinations: Vec::new() };
        Seen { entry, rates: self.rates(IDS + id), destination_rates: Vec::new() }
    }

    fn destination(
        &self,
        id: u32,
        record: &Destination,
        counted: [u64; COUNTERS],
    ) -> DestinationEntry {
        let tunnel = match record.method {
            method::TUNNEL => self.maps.tunnels.read(record.tunnel).unwrap_or_default(),
            _ => Default::default(),
        };
        let counts = self.maps.counts.read(id).unwrap_or_default();
        let connections = counts.connections.get();
        DestinationEntry {
            destination: Wanted {
                id: DestinationId {
                    address: address(record.family, record.address),
                    port: u16::from_be_bytes(record.port),
                },
                method: method_of(record, &tunnel),
                weight: record.weight,
                upper_threshold: record.upper,
                lower_threshold: record.lower,
            },
            active: connections as u32,
            inactive: (connections >> 32) as u32,
            persistent: counts.persistent.get() as u32,
            traffic: self.since_zero(id, counted),
        }
    }

    fn rows(&self, id: u32, cpus: u32) -> [u64; COUNTERS] {
        let mut sum = [0_u64; COUNTERS];
        for row in (0..cpus).filter_map(|cpu| self.maps.rows.read(id * cpus + cpu)) {
            sum.iter_mut()
                .zip(counters(&row))
                .for_each(|(sum, more)| *sum = sum.wrapping_add(more));
        }
        sum
    }

    fn since_zero(&self, index: u32, mut sum: [u64; COUNTERS]) -> Traffic {
        let Base { counted } = self.maps.bases.read(index).unwrap_or_default();
        sum.iter_mut().zip(counted).for_each(|(sum, base)| *sum = sum.saturating_sub(base));
        records::traffic(sum)
    }

    fn rates(&self, index: u32) -> Traffic {
        records::traffic(estimate::shown(&self.maps.estimates.read(index).unwrap_or_default()))
    }

    fn program(&self, name: &'static str, pin: &str) -> Option<Program> {
        let info = ProgramInfo::from_pin(self.folder.path(pin)).ok()?;
        let fd = info.fd().ok()?;
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = fs::read_to_string(path).ok()?;
        let number = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        Some(Program {
            name,
            id: number("prog_id"),
            verified: number("verified_insns"),
            runs: number("run_cnt"),
            run_ns: number("run_time_ns"),
        })
    }
}

/// Reads until two reads agree.
fn stable<T: PartialEq + Default>(read: impl Fn() -> Option<T>) -> T {
    let mut last = read();
    for _ in 0..READS_MAX {
        let again = read();
        if again == last {
            break;
        }
        last = again;
    }
    last.unwrap_or_default()
}

/// Adds the slots that a destination's connections and templates take.
fn add(used: &mut [u64; 3], service: &Service, record: &Destination, entry: &DestinationEntry) {
    let connections = u64::from(entry.active) + u64::from(entry.inactive);
    let halves = if record.method == method::MASQUERADE { 2 } else { 1 };
    let is_wide = service.mark != 0 || service.port == [0; 2];
    let table = if is_wide { 2 } else { usize::from(service.family == 6) };
    used[table] += connections * halves;
    used[2] += u64::from(entry.persistent);
}
