//! What the programs would do with a packet, found out without doing it.
//!
//! A *shadow* is the same object loaded once more, in the same network namespace, attached to nothing,
//! with maps of its own into which the content of the live ones is copied. A packet is run through its
//! TC body, and what changed in its maps says what happened. The program reaches no live map but the
//! rules of access, so nothing live changes: no entry, no count, no turn of a scheduler.
//!
//! What is not copied is what a CPU remembers for a second (next hops, whether an address is here): the
//! shadow asks the routing table anew. The rules of access programs only read. A shadow takes as much
//! memory as the tables do, for as long as it lives.

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use aya::maps::Map;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use rlvs_control::model::{Connection, DestinationId, ForwardingMethod, ServiceId};
use rlvs_datapath::abi::{
    self, Destination, REASONS, ROUTES, Settings, aside, destination_flag, interface_flag, method,
    service_flag, settings_flag,
};
use rlvs_datapath::reason::Reason;
use rlvs_datapath::schedulers::is_overloaded_after;

use super::connections;
use super::error::Error;
use super::load;
use super::maps::{self, Maps, reason};
use super::marks;
use super::pins::{self, Folder};
use super::records::{address, is_listed, method_of, scheduler_name, service_id};
use super::stages::{self, Body};
use super::sys::{Element, Memory};

/// Maps whose content is copied as it is, besides the connections of the packet's family.
const COPIED: [&str; 16] = [
    "services",
    "schedules",
    "rings",
    "destinations",
    "tunnels",
    "counts",
    "overloads",
    "favourites",
    "endpoints4",
    "endpoints6",
    "presence",
    "wide",
    "marks",
    "pools",
    "interfaces",
    "sources",
];

/// The packet to ask about.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The whole frame, addressed to the interface that it comes in by.
    pub frame: &'a [u8],
    /// Number of that interface.
    pub interface: u32,
    /// Its source.
    pub client: SocketAddr,
    /// Its destination, of the same family.
    pub target: SocketAddr,
    /// Its IP protocol.
    pub protocol: u8,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is left to the host's stack.
    Passed,
    /// It ends here.
    Dropped,
    /// What is in the frame now leaves, or goes to this host's own server.
    Sent,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What identifies it.
    pub id: ServiceId,
    /// Name of its scheduler.
    pub scheduler: &'static str,
    /// Whether its clients come back to their server.
    pub persistent: bool,
    /// Whether each datagram is scheduled by itself.
    pub one_packet: bool,
    /// Whether rules of access say who may open connections.
    pub guarded: bool,
}

/// A server of the service, before the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address and port.
    pub id: DestinationId,
    /// How packets are sent to it.
    pub method: ForwardingMethod,
    /// The weight in force.
    pub weight: u32,
    /// Whether `rlvs drain` has set it aside.
    pub drained: bool,
    /// Whether it is in the service's list; else it was removed and has connections yet.
    pub listed: bool,
    /// Active connections.
    pub active: u32,
    /// Inactive connections.
    pub inactive: u32,
    /// Connections at which it takes no more; 0 for any number.
    pub upper: u32,
    /// Connections below which it takes some again; 0 for three quarters of the upper threshold.
    pub lower: u32,
    /// Whether it has reached the upper threshold, and not come below the lower one since.
    pub overloaded: bool,
}

/// What the packet did to a server's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Place of the server in [`Answer::servers`].
    pub server: usize,
    /// Whether it opened a connection.
    pub opened: bool,
    /// Whether it made a persistence template.
    pub template_made: bool,
    /// Number of the interface to the server; `None` if the routing table was not asked or had no answer.
    pub interface: Option<u32>,
    /// Whether the neighbour's address is yet to be resolved: the kernel does it with the first packet.
    pub unresolved: bool,
}

/// All that is known of what the packet met.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What became of it.
    pub outcome: Outcome,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// What was counted, in the order of the list of reasons.
    pub reasons: Vec<Reason>,
    /// The service that it is for, if there is one.
    pub service: Option<Service>,
    /// The service's servers, and who is remembered for the packet's connection.
    pub servers: Vec<Server>,
    /// Who got it.
    pub chosen: Option<Chosen>,
    /// The connection that it belongs to, if there is one.
    pub connection: Option<Connection>,
}

/// Asks what the programs of the calling thread's network namespace would do with a packet.
///
/// # Errors
/// Nothing is attached, a missing capability, or no memory for a second set of maps.
pub fn ask(question: &Question<'_>) -> Result<Answer, Error> {
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    // So that nobody edits what is copied.
    let lock = folder.lock()?;
    let live = Maps::open(&folder)?;
    let shadow = Shadow::new(&folder, live.settings(), question.target.is_ipv4())?;
    let connection = known(&live, question)?;
    let service = service_of(&live, question)?;
    let before = Before { live, connection, service };
    drop(lock);
    shadow.run(&before, question)
}

/// What there was before the packet.
struct Before {
    live: Maps,
    connection: Option<Connection>,
    service: Option<u32>,
}

/// The object once more, with maps of its own.
struct Shadow {
    bpf: Ebpf,
    settings: Settings,
}

impl Shadow {
    /// Loads what the folder has for TC, and copies what is in its maps.
    fn new(folder: &Folder, live: Settings, is_v4: bool) -> Result<Self, Error> {
        let present = stages::present(folder)?;
        // The other family's connections are not asked for: two places stand for them.
        let settings = match is_v4 {
            true => Settings { connections6_mask: 1, ..live },
            false => Settings { connections4_mask: 1, ..live },
        };
        let bytes = load::object()?;
        let mut bpf = loader(folder, &settings)
            .load(&bytes)
            .map_err(|error| load::load_error("the shadow's maps", &error))?;
        let shadow = |bpf: &Ebpf| -> Result<(), Error> {
            typed::<Settings>(bpf, "settings", 1)?.write(0, settings);
            let connections = if is_v4 { "connections4" } else { "connections6" };
            for name in COPIED.into_iter().chain([connections]) {
                copy(folder, bpf, name)?;
            }
            forget_what_was_asked(bpf, &settings)
        };
        shadow(&bpf)?;
        // What this kernel does not take is not in the live object either.
        stages::load_for_packets(&mut bpf, &present, if is_v4 { 4 } else { 6 })?;
        Ok(Self { bpf, settings })
    }

    fn run(self, before: &Before, question: &Question<'_>) -> Result<Answer, Error> {
        const CONTEXT_BYTES: usize = 192;
        /// Offset of the interface in `struct __sk_buff`.
        const INTERFACE: usize = 40;
        /// Room for outer headers or an ICMP error.
        const ROOM: usize = 512;
        const DROP: u32 = 2;
        const REDIRECT: u32 = 7;
        let mut frame = vec![0; question.frame.len() + ROOM];
        let mut context = [0; CONTEXT_BYTES];
        context[INTERFACE..INTERFACE + 4].copy_from_slice(&question.interface.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(question.frame),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let program = self.bpf.program(Body::Tc.program());
        let program: &SchedClassifier = program
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| failed("the TC program", "the object does not have it".to_owned()))?;
        let ran = program
            .test_run(options)
            .map_err(|error| failed("running the packet", reason(&error)))?;
        frame.truncate(ran.data_size_out as usize);
        let outcome = match ran.return_value {
            DROP => Outcome::Dropped,
            REDIRECT => Outcome::Sent,
            _ => Outcome::Passed,
        };
        let touched = self.touched()?;
        let service = touched.as_ref().map(|touched| touched.service).or(before.service);
        let (servers, ids) = servers(before, service, touched.as_ref());
        let chosen = touched.and_then(|touched| {
            let server = ids.iter().position(|id| *id == touched.id)?;
            let Touched { opened, interface, unresolved, persistent, .. } = touched;
            let counts = before.live.counts.read(touched.id).unwrap_or_default();
            let template_made = persistent > counts.persistent.get();
            Some(Chosen { server, opened, template_made, interface, unresolved })
        });
        Ok(Answer {
            outcome,
            frame,
            reasons: self.reasons()?,
            service: service.and_then(|id| shown_service(&before.live, id)),
            servers,
            chosen,
            connection: before.connection.clone(),
        })
    }

    /// Returns the reasons that were counted.
    fn reasons(&self) -> Result<Vec<Reason>, Error> {
        let counters = typed::<Cell<u64>>(&self.bpf, "reasons", self.settings.cpus * REASONS)?;
        let is_counted = |reason: &Reason| {
            let of = |cpu| counters.read((cpu * REASONS + *reason as u32) as usize);
            (0..self.settings.cpus).filter_map(of).any(|count| count.get() != 0)
        };
        Ok(Reason::ALL.into_iter().filter(is_counted).collect())
    }

    /// Returns the destination whose row the packet changed.
    fn touched(&self) -> Result<Option<Touched>, Error> {
        let Settings { destinations, cpus, .. } = self.settings;
        let rows = typed::<abi::Row>(&self.bpf, "rows", destinations * cpus)?;
        let records = typed::<Destination>(&self.bpf, "destinations", abi::IDS)?;
        let counts = typed::<abi::Counts>(&self.bpf, "counts", abi::IDS)?;
        let touched = |(index, row): (u32, abi::Row)| {
            let (id, hop) = (index / cpus, row.hop.get());
            let is_touched = row.connections.get() | row.in_packets.get() != 0 || hop.head != 0;
            let unresolved = hop.interface == 0 && hop.head != 0;
            let interface = if unresolved { hop.awaited().0 } else { hop.interface };
            is_touched.then(|| Touched {
                id,
                service: records.read(id as usize).map_or(0, |record| record.service),
                opened: row.connections.get() != 0,
                sent: row.in_packets.get() != 0,
                persistent: counts.read(id as usize).map_or(0, |counts| counts.persistent.get()),
                interface: (interface != 0).then_some(interface),
                unresolved,
            })
        };
        let all = (0..destinations * cpus).filter_map(|at| Some((at, rows.read(at as usize)?)));
        // One that was tried in vain has no connection.
        Ok(all.filter_map(touched).max_by_key(|touched| (touched.opened, touched.sent)))
    }
}

/// A destination whose row changed.
struct Touched {
    id: u32,
    service: u32,
    opened: bool,
    sent: bool,
    persistent: u64,
    interface: Option<u32>,
    unresolved: bool,
}

/// Returns the loader of a shadow: nothing is pinned, what no packet reads is as small as can be.
fn loader(folder: &Folder, settings: &Settings) -> EbpfLoader<'static> {
    let cpus = settings.cpus;
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries("connections4", settings.connections4_mask + 1)
        .map_max_entries("connections6", settings.connections6_mask + 1)
        .map_max_entries("wide", settings.wide_mask + 1)
        .map_max_entries("scratch", cpus)
        .map_max_entries("rows", settings.destinations.max(1) * cpus)
        .map_max_entries("routes", ROUTES * cpus)
        .map_max_entries("reasons", REASONS * cpus)
        .map_max_entries("limits", cpus)
        .map_max_entries("errands", cpus)
        .map_max_entries("totals", 1)
        .map_max_entries("estimates", 1)
        .map_max_entries("bases", 1)
        .map_pin_path("book", folder.path("book"));
    loader
}

/// Copies what is in a live map.
fn copy(folder: &Folder, bpf: &Ebpf, name: &str) -> Result<(), Error> {
    let map = maps::pinned(folder, name)?;
    let info = map.info().map_err(|error| failed(&pins::shown(folder, name), reason(&error)))?;
    let words = info.max_entries() as usize * (info.value_size() as usize).div_ceil(8);
    let from = Memory::<u64>::look(map.fd().as_fd(), words)
        .map_err(Error::io(format!("mapping {}", pins::shown(folder, name))))?;
    let to = typed::<u64>(bpf, name, words as u32)?;
    from.copy_into_zeros(&to);
    Ok(())
}

/// Makes the shadow ask the routing table whether addresses are here, and count what TC passes.
fn forget_what_was_asked(bpf: &Ebpf, settings: &Settings) -> Result<(), Error> {
    let schedules = typed::<abi::Schedule>(bpf, "schedules", abi::IDS)?;
    for id in 1..settings.services as usize {
        if let Some(schedule) = schedules.read(id) {
            schedule.local.set(0);
            schedules.write(id, schedule);
        }
    }
    let interfaces = typed::<abi::Interfaces>(bpf, "interfaces", abi::INTERFACE_BUCKETS)?;
    for at in 0..abi::INTERFACE_BUCKETS as usize {
        if let Some(mut bucket) = interfaces.read(at) {
            for slot in &mut bucket.slots {
                slot.flags &= !interface_flag::XDP;
            }
            interfaces.write(at, bucket);
        }
    }
    Ok(())
}

/// Maps one of the shadow's maps.
fn typed<T: Element>(bpf: &Ebpf, name: &str, elements: u32) -> Result<Memory<T>, Error> {
    let Some(Map::Array(map)) = bpf.map(name) else {
        return Err(failed(name, "the object has no such array".to_owned()));
    };
    Memory::map(map.fd().as_fd(), elements as usize)
        .map_err(Error::io(format!("mapping the shadow's {name}")))
}

fn failed(what: &str, reason: String) -> Error {
    Error::Load { what: what.to_owned(), reason }
}

/// Returns the connection that has the packet's ends.
fn known(live: &Maps, question: &Question<'_>) -> Result<Option<Connection>, Error> {
    let is_it = |one: &Connection| {
        one.client == question.client
            && one.virtual_address == question.target
            && one.protocol.number() == question.protocol
            && one.expires_s != 0
    };
    Ok(connections::list(live)?.into_iter().find(is_it))
}

/// Returns the number of the service that the packet is for by its destination, whether it opens
/// anything or not: that of its address and port, else that of its mark, else that of its address.
fn service_of(live: &Maps, question: &Question<'_>) -> Result<Option<u32>, Error> {
    let target = question.target;
    let services: Vec<(u32, abi::Service)> = (1..live.settings().services)
        .filter_map(|id| Some((id, live.services.read(id)?)))
        .filter(|(_, record)| record.flags & service_flag::LIVE != 0)
        .filter(|(_, record)| record.family == if target.is_ipv4() { 4 } else { 6 })
        .collect();
    let at = |port: u16| {
        let is_it = |record: &abi::Service| {
            record.mark == 0
                && record.protocol == question.protocol
                && address(record.family, record.address) == target.ip()
                && u16::from_be_bytes(record.port) == port
        };
        services.iter().find(|(_, record)| is_it(record)).map(|(id, _)| *id)
    };
    let marked = |mark| services.iter().find(|(_, record)| record.mark == mark).map(|(id, _)| *id);
    let by_mark = match live.settings().flags & settings_flag::WIDE {
        0 => None,
        _ => marks::mark_of(live, target, question.protocol).and_then(marked),
    };
    Ok(at(target.port()).or(by_mark).or_else(|| at(0)))
}

fn shown_service(live: &Maps, id: u32) -> Option<Service> {
    let record = live.services.read(id).filter(|record| record.family != 0)?;
    Some(Service {
        id: service_id(&record),
        scheduler: scheduler_name(record.scheduler),
        persistent: record.persistence != 0,
        one_packet: record.flags & service_flag::ONE_PACKET != 0,
        guarded: record.flags & service_flag::GUARDED != 0,
    })
}

/// Returns the servers of a service with their numbers: those in its list, the one that the packet got
/// to, and the one that its connection has.
fn servers(
    before: &Before,
    service: Option<u32>,
    touched: Option<&Touched>,
) -> (Vec<Server>, Vec<u32>) {
    let live = &before.live;
    let Some(service) = service else { return Default::default() };
    let connected = before.connection.as_ref().map(|connection| connection.destination);
    let wanted = |id: u32, record: &Destination| {
        let place = (address(record.family, record.address), u16::from_be_bytes(record.port));
        record.service == service
            && (is_listed(record)
                || touched.is_some_and(|touched| touched.id == id)
                || connected == Some(place.into()))
    };
    (1..live.settings().destinations)
        .filter_map(|id| Some((id, live.destinations.read(id)?)))
        .filter(|(id, record)| wanted(*id, record))
        .map(|(id, record)| (shown_server(live, id, &record), id))
        .unzip()
}

fn shown_server(live: &Maps, id: u32, record: &Destination) -> Server {
    let tunnel = match record.method {
        method::TUNNEL => live.tunnels.read(record.tunnel).unwrap_or_default(),
        _ => Default::default(),
    };
    let counts = live.counts.read(id).unwrap_or_default().connections.get();
    let (active, inactive) = (counts as u32, (counts >> 32) as u32);
    let marked = live.overloads.read(id / 64).is_some_and(|word| word.get() >> (id % 64) & 1 != 0);
    Server {
        id: DestinationId {
            address: address(record.family, record.address),
            port: u16::from_be_bytes(record.port),
        },
        method: method_of(record, &tunnel),
        weight: record.weight,
        drained: record.aside & aside::DRAINED != 0,
        listed: record.flags & destination_flag::AVAILABLE != 0,
        active,
        inactive,
        upper: record.upper,
        lower: record.lower,
        overloaded: is_overloaded_after(counts, marked, record, record),
    }
}
