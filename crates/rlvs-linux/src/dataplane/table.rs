//! The virtual-server table in BPF maps, edited as IPVS edits its own.
//!
//! Destinations of a service are a list in the maps, newest first. An edit marks the service as
//! unsettled, changes records whole, relinks the list by one record, publishes a new ring in one
//! store, and clears the mark: whoever next takes the lock settles what a killed command left.
//!
//! A removed destination or service is *retired*: out of the list, but remembered with its id,
//! counts and counters as long as it has connections and for two minutes at least, so that added
//! again it finds them, as in the kernel's trash.

mod batch;
mod counters;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::atomic::Ordering;

use nix::fcntl::Flock;
use nix::time::{ClockId, clock_gettime};
use rlvs_control::check;
use rlvs_control::model::{
    Connection, Destination as Wanted, DestinationEntry, DestinationId, ForwardingMethod,
    Persistence, Protocol, Service as WantedService, ServiceEntry, ServiceId, Timeouts,
};
use rlvs_control::ring::{self, Kind, Member, State, Stored};
use rlvs_control::scheduler::{self, Candidate};
use rlvs_control::table::{Error, Table};
use rlvs_datapath::abi::{
    Counts, Destination, IDS, RING_LINE, Schedule, Service, destination_flag, endpoint_kind,
    method, service_flag, settings_flag,
};
use rlvs_datapath::schedulers::{Ring, is_overloaded_after, searches};

use super::connections;
use super::endpoints::{self, Endpoint};
use super::load;
use super::local;
use super::maps::Maps;
use super::neighbours::Ways;
use super::pins::{self, Folder};
use super::records::{
    self, address, associates, family, is_available, method_number, method_of, octets,
    scheduler_name, scheduler_number, service_id, set_deltas,
};
use super::stages::Group;
pub use batch::Work;
pub use counters::Total;

/// The size that `ipvsadm -L` shows: the kernel's default, for which scripts may look.
const SHOWN_SIZE: u32 = 4096;
/// How long a destination without connections is remembered, as the kernel's trash.
const REMEMBERED_S: u32 = 120;
/// Reply endpoint ids begin here: services have those below.
const REPLY_IDS: u32 = IDS;

/// The table of the calling thread's network namespace.
#[derive(Debug)]
pub struct BpfTable {
    maps: Maps,
    _lock: Flock<File>,
    /// Every service, live or retired.
    services: BTreeMap<ServiceId, u32>,
    /// Every destination by its service, in the list or retired.
    destinations: BTreeMap<(u32, DestinationId), u32>,
    /// Reply endpoints in use, with the number of destinations that use each.
    replies: BTreeMap<Endpoint, (u32, u32)>,
    /// First line that the next ring may use: the allocator walks round, so that what a
    /// program may still be reading is not written over.
    ring_cursor: u32,
    /// Offset and length of the rings that are or were in force; `None` before they are looked up.
    rings: Option<BTreeMap<u32, u32>>,
    /// Reply endpoint ids in use.
    reply_ids: BTreeSet<u32>,
    /// No service has an id below these that is free, nor a destination.
    free_service_from: u32,
    free_destination_from: u32,
    /// Rows for each destination.
    cpus: u32,
    /// Additions that wait, and whether they may.
    pending: Option<batch::Pending>,
    batched: bool,
    /// Whether what is old has been forgotten since the table was opened.
    forgotten: bool,
    published: u64,
    ways: Ways,
}

impl BpfTable {
    /// Opens the table and takes its lock; `None` if nothing is attached here.
    ///
    /// # Errors
    /// A missing capability, or pins of another layout.
    pub fn open() -> Result<Option<Self>, super::Error> {
        let Some(folder) = pins::open()? else { return Ok(None) };
        Self::open_in(&folder).map(Some)
    }

    /// Tells whether a new table would take a service.
    ///
    /// # Errors
    /// What [`Table::add_service`] would answer.
    pub fn accepts(service: &WantedService) -> Result<(), Error> {
        check::service(service)?;
        carried_out(service)?;
        scheduler_number(&service.scheduler).map(drop)
    }

    fn open_in(folder: &Folder) -> Result<Self, super::Error> {
        let lock = folder.lock()?;
        let maps = Maps::open(folder)?;
        let cpus = maps.settings().cpus;
        let mut table = Self {
            maps,
            _lock: lock,
            rings: None,
            reply_ids: BTreeSet::new(),
            free_service_from: 1,
            free_destination_from: 1,
            cpus,
            pending: None,
            batched: false,
            forgotten: false,
            published: 0,
            ways: Ways::default(),
            services: BTreeMap::new(),
            destinations: BTreeMap::new(),
            replies: BTreeMap::new(),
            ring_cursor: 0,
        };
        table.index();
        table.settle()?;
        Ok(table)
    }

    /// Reads which ids stand for what.
    fn index(&mut self) {
        let settings = self.maps.settings();
        for id in 1..settings.services {
            let record = self.service_record(id);
            if record.family != 0 {
                self.services.insert(service_id(&record), id);
            }
        }
        for id in 1..settings.destinations {
            let record = self.destination_record(id);
            if record.service == 0 {
                continue;
            }
            let service = self.service_record(record.service);
            let key = DestinationId {
                address: address(record.family, record.address),
                port: u16::from_be_bytes(record.port),
            };
            self.destinations.insert((record.service, key), id);
            if record.reply != 0 {
                let endpoint = reply_endpoint(&service, &record);
                self.reply_ids.insert(record.reply);
                let entry = self.replies.entry(endpoint).or_insert((record.reply, 0));
                entry.1 += 1;
            }
        }
        self.ring_cursor = self.bookkeeping(|record| &record.base) as u32;
    }

    /// Settles what a command that was killed left unsettled.
    fn settle(&mut self) -> Result<(), super::Error> {
        let id = self.bookkeeping(|record| &record.last) as u32;
        if id == 0 {
            return Ok(());
        }
        let listed = self.list(id);
        let lost: Vec<u32> = self
            .destinations
            .range(service_range(id))
            .map(|(_, &destination)| destination)
            .filter(|destination| !listed.contains(destination))
            .collect();
        for destination in lost {
            self.retire(destination)?;
        }
        let service = self.service_record(id);
        if service.flags & service_flag::LIVE == 0 {
            self.retire_service(id)?;
        } else {
            self.enter_service(id, &service).map_err(|error| super::Error::Load {
                what: "the service that a killed command left".to_owned(),
                reason: error.to_string(),
            })?;
            self.publish(id, |members, kind| State::new(kind, members))?;
        }
        self.settled();
        Ok(())
    }

    // Schedule 0 belongs to no service: `last` is the unsettled service, `base` the ring cursor.

    fn bookkeeping(&self, field: fn(&Schedule) -> &rlvs_datapath::abi::Word) -> u64 {
        self.maps.schedules.word(0, field).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    fn unsettled(&self, service: u32) {
        if let Some(word) = self.maps.schedules.word(0, |record| &record.last) {
            word.store(service.into(), Ordering::SeqCst);
        }
    }

    fn settled(&self) {
        self.unsettled(0);
    }

    fn service_record(&self, id: u32) -> Service {
        self.maps.services.read(id).unwrap_or_default()
    }

    fn destination_record(&self, id: u32) -> Destination {
        self.maps.destinations.read(id).unwrap_or_default()
    }

    /// Returns the id of a live service.
    fn live(&self, id: ServiceId) -> Result<u32, Error> {
        let found = self.services.get(&id).copied().ok_or(Error::NoService)?;
        let live = self.service_record(found).flags & service_flag::LIVE != 0;
        if live { Ok(found) } else { Err(Error::NoService) }
    }

    /// Returns the id of a destination in a service's list.
    fn listed(&self, service: u32, id: DestinationId) -> Result<u32, Error> {
        let found = self.destinations.get(&(service, id)).copied().ok_or(Error::NoDestination)?;
        if is_available(&self.destination_record(found)) {
            Ok(found)
        } else {
            Err(Error::NoDestination)
        }
    }

    /// Returns the destination ids of a service, newest first.
    fn list(&self, service: u32) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut next = self.service_record(service).head;
        while next != 0 && ids.len() < IDS as usize {
            ids.push(next);
            next = self.destination_record(next).next;
        }
        ids
    }

    /// Returns the destinations of a service as its scheduler sees them.
    fn candidates(&self, service: u32) -> Vec<Candidate> {
        let candidate = |id| {
            let record = self.destination_record(id);
            Candidate {
                id,
                weight: record.weight,
                last_weight: record.last_weight,
                limited: record.upper != 0,
                address: address(record.family, record.address),
                port: u16::from_be_bytes(record.port),
            }
        };
        self.list(service).into_iter().map(candidate).collect()
    }

    fn members(&self, service: u32) -> Vec<Member> {
        scheduler::members(&self.candidates(service))
    }

    /// Returns where a service's scheduler stands; `None` if it does not stand anywhere.
    fn state(&self, id: u32, members: &[Member]) -> Option<State> {
        let kind = scheduler::kind(self.service_record(id).scheduler)?;
        let schedule = self.maps.schedules.read(id)?;
        let stored = Stored {
            base: schedule.base.get(),
            last: schedule.last.get() as u32,
            level: schedule.level.get() as u32,
        };
        Some(ring::resume(kind, members, stored, schedule.position.get()))
    }

    /// Lays out what a service's scheduler goes by and puts it in force.
    fn publish(
        &mut self,
        id: u32,
        state: impl FnOnce(&[Member], Kind) -> State,
    ) -> Result<(), super::Error> {
        self.published += 1;
        let list = self.candidates(id);
        let record = self.service_record(id);
        let kind = scheduler::kind(record.scheduler);
        let state = kind.map(|kind| state(&scheduler::members(&list), kind));
        let position = self.maps.schedules.read(id).map_or(0, |schedule| schedule.position.get());
        let layout = scheduler::lay_out(record.scheduler, &list, state, position);
        let limited = list.iter().any(|one| one.limited);
        if limited || searches(record.scheduler, record.scheduler_flags) && record.scheduler != 0 {
            load::ensure_group(Group::Search)?;
        }
        let length = layout.elements.len() as u32;
        let line = self.allocate(length.div_ceil(RING_LINE))?;
        let mut elements = layout.elements;
        elements.resize(length.next_multiple_of(RING_LINE) as usize, 0);
        for (index, element) in (line * RING_LINE..).zip(elements) {
            self.maps.rings.write(index, element);
        }
        self.store(id, |record| &record.base, layout.stored.base);
        self.store(id, |record| &record.last, layout.stored.last.into());
        self.store(id, |record| &record.level, layout.stored.level.into());
        let ring = Ring::new(record.scheduler, record.scheduler_flags, line, length);
        self.store(id, |record| &record.ring, ring.0);
        Ok(())
    }

    fn store(&self, id: u32, field: fn(&Schedule) -> &rlvs_datapath::abi::Word, value: u64) {
        if let Some(word) = self.maps.schedules.word(id, field) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// Makes the thresholds of a destination hold for the connections that it has.
    fn settle_overload(&self, id: u32, before: &Destination) {
        let Some(word) = self.maps.overloads.word(id / 64, |word| word) else { return };
        let bit = 1 << (id % 64);
        let connections = self.maps.counts.read(id).map_or(0, |counts| counts.connections.get());
        let after = self.destination_record(id);
        let marked = word.load(Ordering::SeqCst) & bit != 0;
        if is_overloaded_after(connections, marked, before, &after) {
            word.fetch_or(bit, Ordering::SeqCst);
        } else {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Makes lblc and lblcr forget what they have chosen for a service, or only where that is one
    /// destination.
    fn forget_favourites(&self, service: u32, only: Option<u32>) {
        use rlvs_datapath::abi::scheduler::{LBLC, LBLCR};
        if ![LBLC, LBLCR].contains(&self.service_record(service).scheduler) {
            return;
        }
        for index in 0..self.maps.favourites.len() {
            let Some(entry) = self.maps.favourites.read(index) else { break };
            let named = |id: u32| entry.members.iter().any(|member| member.get() == id.into());
            if (entry.used.get() >> 32) as u32 == service
                && only.is_none_or(named)
                && let Some(key) = self.maps.favourites.word(index, |entry| &entry.key)
            {
                key.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Makes a service known to the programs.
    fn enter_service(&self, id: u32, record: &Service) -> Result<(), Error> {
        endpoints::insert(&self.maps, &service_endpoint(record), id)
    }

    /// Has packets that no endpoint names looked at more closely, for a service that may have some: of
    /// any port, of a mark, of FTP's data, of single packets.
    fn announce_apart(&self, record: &Service) -> Result<(), super::Error> {
        const FTP: u16 = 21;
        let port = u16::from_be_bytes(record.port);
        let is_apart = port == 0 || port == FTP && record.protocol == Protocol::Tcp.number();
        if !is_apart && record.flags & service_flag::ONE_PACKET == 0 {
            return Ok(());
        }
        let mut settings = self.maps.settings();
        settings.flags |= settings_flag::WIDE;
        self.maps.settings.update(0, &settings)?;
        load::ensure_group(Group::Special)
    }

    /// Marks a service by where its destinations are, and its neighbours if one is this host: they may
    /// be directors too.
    fn mark_places(&self, service: u32) -> Result<(), super::Error> {
        let list: Vec<_> =
            self.list(service).into_iter().map(|id| (id, self.destination_record(id))).collect();
        let is = |record: &Destination, flag| record.flags & flag != 0;
        let direct = |record: &Destination| record.method == method::DIRECT;
        let peered = list.iter().any(|(_, to)| direct(to) && is(to, destination_flag::LOCAL));
        let serves_own = list
            .iter()
            .all(|(_, to)| to.method == method::MASQUERADE || is(to, destination_flag::LOCAL));
        if peered {
            load::ensure_group(Group::Peers)?;
        }
        for (id, before) in list {
            let mut record = before;
            record.flags &= !destination_flag::PEER;
            if peered && direct(&record) && is(&record, destination_flag::ADJACENT) {
                record.flags |= destination_flag::PEER;
            }
            if record != before {
                self.maps.destinations.update(id, &record)?;
            }
        }
        let mut owner = self.service_record(service);
        owner.flags &= !(service_flag::PEERED | service_flag::LOCAL_CLIENTS);
        owner.flags |= if peered { service_flag::PEERED } else { 0 };
        owner.flags |= if serves_own { service_flag::LOCAL_CLIENTS } else { 0 };
        self.maps.services.update(service, &owner)
    }

    /// Takes a destination out of service but remembers it. It must be out of the list already, or
    /// its whole list gone.
    fn retire(&self, id: u32) -> Result<(), super::Error> {
        let mut record = self.destination_record(id);
        if !is_available(&record) {
            return Ok(());
        }
        record.flags &= !destination_flag::AVAILABLE;
        record.next = 0;
        record.retired_at = seconds();
        // It is out of the list, and leads its connections where it led.
        self.maps.destinations.write(id, record);
        Ok(())
    }

    /// Takes a service and all its destinations out of service but remembers them.
    fn retire_service(&self, id: u32) -> Result<(), super::Error> {
        let list = self.list(id);
        let mut record = self.service_record(id);
        self.forget_favourites(id, None);
        record.flags &= !service_flag::LIVE;
        record.head = 0;
        self.maps.services.update(id, &record)?;
        self.store(id, |record| &record.ring, 0);
        list.into_iter().try_for_each(|destination| self.retire(destination))
    }

    /// Forgets retired destinations without connections, those of the last two minutes only if
    /// `all`, and retired services without destinations.
    fn forget(&mut self, all: bool) -> Result<(), super::Error> {
        if std::mem::replace(&mut self.forgotten, true) && !all {
            return Ok(());
        }
        let now = seconds();
        let idle = |id: u32| {
            let record = self.destination_record(id);
            let age = now.saturating_sub(record.retired_at);
            let in_use = |counts: Counts| counts.connections.get() | counts.persistent.get() != 0;
            let in_use = self.maps.counts.read(id).is_some_and(in_use);
            !is_available(&record) && !in_use && (all || age > REMEMBERED_S)
        };
        let gone: Vec<_> = self
            .destinations
            .iter()
            .filter(|&(_, &id)| idle(id))
            .map(|(&key, &id)| (key, id))
            .collect();
        for (key, id) in gone {
            self.destinations.remove(&key);
            self.free_destination(id);
        }
        let empty: Vec<(ServiceId, u32)> = self
            .services
            .iter()
            .map(|(&key, &id)| (key, id))
            .filter(|&(_, id)| {
                self.service_record(id).flags & service_flag::LIVE == 0
                    && self.destinations.range(service_range(id)).next().is_none()
            })
            .collect();
        for (key, id) in empty {
            self.services.remove(&key);
            self.free_service(id);
        }
        Ok(())
    }

    fn free_destination(&mut self, id: u32) {
        let record = self.destination_record(id);
        let service = self.service_record(record.service);
        let mut totals = self.maps.totals.read(record.service).unwrap_or_default();
        for (total, more) in totals.retired.iter_mut().zip(self.rows(id)) {
            *total += more;
        }
        self.maps.totals.write(record.service, totals);
        if record.reply != 0 {
            let endpoint = reply_endpoint(&service, &record);
            if let Some((_, users)) = self.replies.get_mut(&endpoint) {
                *users -= 1;
                if *users == 0 {
                    self.replies.remove(&endpoint);
                    self.reply_ids.remove(&record.reply);
                    endpoints::remove(&self.maps, &endpoint);
                }
            }
        }
        if service.flags & service_flag::ONE_PACKET != 0 {
            endpoints::remove(&self.maps, &once_endpoint(&service, &record));
        }
        self.forget_favourites(record.service, Some(id));
        self.maps.destinations.write(id, Destination::default());
        self.settle_overload(id, &record);
        self.clear_counters(id);
        self.free_destination_from = self.free_destination_from.min(id);
    }

    fn free_service(&mut self, id: u32) {
        let record = self.service_record(id);
        endpoints::remove(&self.maps, &service_endpoint(&record));
        // No packet leads to it any more.
        self.retire_counters(id);
        self.maps.services.write(id, Service::default());
        self.maps.schedules.write(id, Schedule::default());
        self.free_service_from = self.free_service_from.min(id);
    }

    /// Returns the reply endpoint id of a NAT destination, making the endpoint known if need be.
    fn reply_id(&mut self, service: &Service, record: &Destination) -> Result<u32, Error> {
        let endpoint = reply_endpoint(service, record);
        if let Some((id, users)) = self.replies.get_mut(&endpoint) {
            *users += 1;
            return Ok(*id);
        }
        let after = self.reply_ids.last().map_or(REPLY_IDS + 1, |id| id + 1);
        let id = match after {
            _ if after < 2 * REPLY_IDS => after,
            _ => (REPLY_IDS + 1..).find(|id| !self.reply_ids.contains(id)).unwrap_or(REPLY_IDS),
        };
        endpoints::insert(&self.maps, &endpoint, id)?;
        self.replies.insert(endpoint, (id, 1));
        self.reply_ids.insert(id);
        Ok(id)
    }

    /// Fills in how packets get to a destination: NAT needs an endpoint for replies, a tunnel its
    /// headers, which are there before any packet is led to them.
    fn set_method(
        &mut self,
        id: u32,
        owner: &Service,
        record: &mut Destination,
        to: &Wanted,
    ) -> Result<(), Error> {
        record.method = method_number(to.method);
        (record.tunnel, record.overhead) = (0, 0);
        match to.method {
            ForwardingMethod::Masquerade if owner.flags & service_flag::ONE_PACKET != 0 => {
                endpoints::insert(&self.maps, &once_endpoint(owner, record), id)?;
            }
            // Without a port the wide table has it.
            ForwardingMethod::Masquerade if record.reply == 0 && to.id.port != 0 => {
                record.reply = self.reply_id(owner, record)?;
            }
            ForwardingMethod::Tunnel(tunnel) => {
                load::ensure_group(Group::Tunnels)?;
                let (source, target) = (self.ways.source(to.id.address), to.id.address);
                let headers = records::tunnel(tunnel, owner.family, source, target);
                self.maps.tunnels.update(id, &headers)?;
                (record.tunnel, record.overhead) = (id, headers.overhead);
            }
            ForwardingMethod::Masquerade | ForwardingMethod::DirectRoute => {}
        }
        Ok(())
    }

    fn entry(&self, id: u32) -> ServiceEntry {
        let record = self.service_record(id);
        let list = self.list(id);
        ServiceEntry {
            service: WantedService {
                id: service_id(&record),
                scheduler: scheduler_name(record.scheduler).to_owned(),
                scheduler_flags: record.scheduler_flags as u8,
                one_packet: record.flags & service_flag::ONE_PACKET != 0,
                persistence: self.persistence(&record),
                persistence_engine: None,
            },
            traffic: self.service_traffic(id),
            destinations: list.into_iter().map(|id| self.destination_entry(id)).collect(),
        }
    }

    fn persistence(&self, record: &Service) -> Option<Persistence> {
        let timeout_s = load::seconds(record.persistence);
        let netmask = records::netmask(record);
        (record.persistence != 0).then_some(Persistence { timeout_s, netmask })
    }

    fn destination_entry(&self, id: u32) -> DestinationEntry {
        let record = self.destination_record(id);
        let tunnel = self.maps.tunnels.read(record.tunnel).unwrap_or_default();
        let counts = self.maps.counts.read(id).unwrap_or_default();
        let connections = counts.connections.get();
        DestinationEntry {
            destination: Wanted {
                id: DestinationId {
                    address: address(record.family, record.address),
                    port: u16::from_be_bytes(record.port),
                },
                method: method_of(record.method, &tunnel),
                weight: record.weight,
                upper_threshold: record.upper,
                lower_threshold: record.lower,
            },
            active: connections as u32,
            inactive: (connections >> 32) as u32,
            persistent: counts.persistent.get() as u32,
            traffic: self.destination_traffic(id),
        }
    }

    /// Returns the maps, for status.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }
}

/// Returns the seconds since boot.
fn seconds() -> u32 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.tv_sec() as u32)
}

fn service_endpoint(record: &Service) -> Endpoint {
    if record.mark != 0 {
        let mark = match record.family {
            4 => std::net::Ipv4Addr::from_bits(record.mark).into(),
            _ => std::net::Ipv6Addr::from_bits(record.mark.into()).into(),
        };
        return Endpoint { kind: endpoint_kind::MARK, protocol: 0, address: mark, port: 0 };
    }
    Endpoint {
        kind: endpoint_kind::SERVICE,
        protocol: record.protocol,
        address: address(record.family, record.address),
        port: u16::from_be_bytes(record.port),
    }
}

/// The endpoint by which a datagram is known that answers one which left no entry.
fn once_endpoint(service: &Service, record: &Destination) -> Endpoint {
    Endpoint { kind: endpoint_kind::ONE_PACKET, ..reply_endpoint(service, record) }
}

fn reply_endpoint(service: &Service, record: &Destination) -> Endpoint {
    Endpoint {
        kind: endpoint_kind::REPLY,
        protocol: service.protocol,
        address: address(service.family, record.address),
        port: u16::from_be_bytes(record.port),
    }
}

/// The keys of all destinations of a service.
fn service_range(id: u32) -> std::ops::Range<(u32, DestinationId)> {
    use std::net::{IpAddr, Ipv4Addr};
    let first = DestinationId { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: 0 };
    (id, first)..(id + 1, first)
}

/// Fills in what a service has beside its scheduler. Its stage stays with one that was special: its
/// connections may have templates.
fn set_special(record: &mut Service, service: &WantedService) -> Result<(), Error> {
    (record.mask, record.persistence) = match service.persistence {
        Some(persistence) => {
            (records::mask(persistence.netmask), load::units(persistence.timeout_s)?)
        }
        None => ([0; 16], 0),
    };
    record.flags &= !service_flag::ONE_PACKET;
    if service.one_packet {
        record.flags |= service_flag::ONE_PACKET;
    }
    let port = u16::from_be_bytes(record.port);
    if service.persistence.is_some() || service.one_packet || port == 0 {
        record.flags |= service_flag::SPECIAL;
    }
    if record.flags & service_flag::SPECIAL != 0 {
        load::ensure_group(Group::Special)?;
    }
    Ok(())
}

/// Refuses what the model can say and the programs do not carry out.
fn carried_out(service: &WantedService) -> Result<(), Error> {
    let not_yet = |what: &str| Err(Error::NotYet(what.to_owned()));
    match service.id {
        ServiceId::Address { protocol: Protocol::Sctp, port: 0, .. } => {
            return not_yet("a service of SCTP without a port");
        }
        ServiceId::Mark { .. } | ServiceId::Address { .. } => {}
    }
    if service.persistence_engine.is_some() {
        return not_yet("a persistence engine (--pe)");
    }
    Ok(())
}

impl Table for BpfTable {
    fn add_service(&mut self, service: &WantedService) -> Result<(), Error> {
        check::service(service)?;
        if self.live(service.id).is_ok() {
            return Err(Error::ServiceExists);
        }
        carried_out(service)?;
        self.put_in_force()?;
        let scheduler = scheduler_number(&service.scheduler)?;
        self.forget(false)?;
        let remembered = self.services.get(&service.id).copied();
        let id = match remembered {
            Some(id) => id,
            None => self.new_service_id()?,
        };
        let mut record = Service {
            scheduler,
            scheduler_flags: service.scheduler_flags.into(),
            ..records::service(service.id)
        };
        set_special(&mut record, service)?;
        self.announce_apart(&record)?;
        if associates(&record) {
            load::ensure_group(Group::Associations)?;
        }
        self.unsettled(id);
        if remembered.is_some() {
            let known: Vec<u32> =
                self.destinations.range(service_range(id)).map(|(_, &id)| id).collect();
            self.zero_service(id, &known)?;
            self.maps.services.update(id, &record)?;
        } else {
            // Nobody reads it yet. A command that is killed here leaves one that is not live.
            self.maps.services.write(id, Service { flags: 0, ..record });
            self.maps.services.write(id, record);
        }
        self.services.insert(service.id, id);
        self.publish(id, |members, kind| State::new(kind, members))?;
        self.enter_service(id, &record)?;
        self.settled();
        Ok(())
    }

    fn edit_service(&mut self, service: &WantedService) -> Result<(), Error> {
        check::service(service)?;
        self.put_in_force()?;
        let id = self.live(service.id)?;
        carried_out(service)?;
        let scheduler = scheduler_number(&service.scheduler)?;
        let mut record = self.service_record(id);
        let before = (record.scheduler, record.scheduler_flags);
        let after = (scheduler, u32::from(service.scheduler_flags));
        let state = (before.0 == after.0).then(|| self.state(id, &self.members(id))).flatten();
        if before.0 != after.0 {
            self.forget_favourites(id, None);
        }
        (record.scheduler, record.scheduler_flags) = after;
        set_special(&mut record, service)?;
        self.announce_apart(&record)?;
        self.unsettled(id);
        self.maps.services.update(id, &record)?;
        if before != after {
            self.publish(id, |members, kind| state.unwrap_or_else(|| State::new(kind, members)))?;
        }
        self.settled();
        Ok(())
    }

    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
        self.put_in_force()?;
        let id = self.live(id)?;
        self.unsettled(id);
        self.retire_service(id)?;
        self.settled();
        Ok(self.forget(false)?)
    }

    fn add_destination(&mut self, service: ServiceId, to: &Wanted) -> Result<(), Error> {
        let service_number = self.live(service)?;
        check::destination(service, to)?;
        check::real_server(to.id.address)?;
        if self.listed(service_number, to.id).is_ok() {
            return Err(Error::DestinationExists);
        }
        self.forget(false)?;
        let place = self.ways.place(to.id.address);
        local::prepare(&self.maps, to, place)?;
        let key = (service_number, to.id);
        let remembered = self.destinations.get(&key).copied();
        let next = self.begin_addition(service_number)?;
        let id = match remembered {
            Some(id) => id,
            None => self.new_destination_id()?,
        };
        let owner = self.service_record(service_number);
        let old = self.destination_record(id);
        let mut record = Destination {
            address: octets(to.id.address),
            port: to.id.port.to_be_bytes(),
            family: family(to.id.address),
            flags: destination_flag::AVAILABLE | place,
            service: service_number,
            reply: if remembered.is_some() { old.reply } else { 0 },
            weight: to.weight,
            // One that returns begins anew, as __ip_vs_update_dest().
            last_weight: to.weight,
            upper: to.upper_threshold,
            lower: to.lower_threshold,
            next,
            ..Destination::default()
        };
        set_deltas(&mut record, &owner);
        self.set_method(id, &owner, &mut record, to)?;
        let same_way =
            (old.method, old.tunnel, old.reply) == (record.method, record.tunnel, record.reply);
        if remembered.is_some() && !same_way {
            self.maps.destinations.update(id, &record)?;
        } else {
            // Nobody reads it yet, or it leads where it led; and until it is in the list whoever takes
            // the lock forgets it.
            self.maps.destinations.write(id, record);
        }
        self.settle_overload(id, &old);
        self.destinations.insert(key, id);
        self.end_addition(id, to.id.address)
    }

    fn edit_destination(&mut self, service: ServiceId, to: &Wanted) -> Result<(), Error> {
        self.put_in_force()?;
        let service_number = self.live(service)?;
        check::destination(service, to)?;
        let id = self.listed(service_number, to.id)?;
        let owner = self.service_record(service_number);
        let before = self.members(service_number);
        let state = self.state(service_number, &before);
        let old = self.destination_record(id);
        let mut record = Destination {
            weight: to.weight,
            last_weight: if to.weight != 0 { to.weight } else { old.last_weight },
            upper: to.upper_threshold,
            lower: to.lower_threshold,
            ..old
        };
        let place = self.ways.place(to.id.address);
        record.flags = destination_flag::AVAILABLE | place;
        local::prepare(&self.maps, to, place)?;
        self.unsettled(service_number);
        self.set_method(id, &owner, &mut record, to)?;
        self.maps.destinations.update(id, &record)?;
        self.settle_overload(id, &old);
        self.mark_places(service_number)?;
        self.publish(service_number, |members, kind| match state {
            Some(state) => state.changed(members),
            None => State::new(kind, members),
        })?;
        self.settled();
        Ok(())
    }

    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.put_in_force()?;
        let service_number = self.live(service)?;
        let id = self.listed(service_number, id)?;
        let before = self.members(service_number);
        let state = self.state(service_number, &before).map(|state| state.removed(&before, id));
        let next = self.destination_record(id).next;
        self.unsettled(service_number);
        let previous = before.windows(2).find(|pair| pair[1].id == id).map(|pair| pair[0].id);
        match previous {
            Some(previous) => {
                let mut record = self.destination_record(previous);
                record.next = next;
                self.maps.destinations.update(previous, &record)?;
            }
            None => {
                let mut record = self.service_record(service_number);
                record.head = next;
                self.maps.services.update(service_number, &record)?;
            }
        }
        self.mark_places(service_number)?;
        self.publish(service_number, |members, kind| {
            state.unwrap_or_else(|| State::new(kind, members))
        })?;
        self.retire(id)?;
        self.settled();
        Ok(self.forget(false)?)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.put_in_force()?;
        let live: Vec<u32> = self.services.values().copied().collect();
        for id in live {
            if self.service_record(id).flags & service_flag::LIVE != 0 {
                self.unsettled(id);
                self.retire_service(id)?;
            }
        }
        self.settled();
        Ok(self.forget(false)?)
    }

    fn batch(&mut self) {
        self.batched = true;
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.batched = false;
        self.put_in_force()
    }

    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        self.put_in_force()?;
        let live = |&&id: &&u32| self.service_record(id).flags & service_flag::LIVE != 0;
        Ok(self.services.values().filter(live).map(|&id| self.entry(id)).collect())
    }

    fn service(&mut self, id: ServiceId) -> Result<ServiceEntry, Error> {
        self.put_in_force()?;
        Ok(self.entry(self.live(id)?))
    }

    fn rates(&mut self, only: Option<ServiceId>) -> Result<Vec<ServiceEntry>, Error> {
        let mut entries = match only {
            Some(id) => vec![self.service(id)?],
            None => self.services()?,
        };
        for entry in &mut entries {
            let id = self.live(entry.service.id)?;
            self.put_rates(id, entry);
        }
        Ok(entries)
    }

    fn connections(&mut self) -> Result<Vec<Connection>, Error> {
        Ok(connections::list(&self.maps)?)
    }

    fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let (_, unit_ns) = load::clock()?;
        let timeouts = self.maps.settings().timeouts;
        let of = |state: rlvs_datapath::state::State| {
            let units = timeouts.get(state.0 as usize).copied().unwrap_or_default();
            (u64::from(units) * unit_ns / 1_000_000_000) as u32
        };
        use rlvs_datapath::state::State as S;
        Ok(Timeouts { tcp_s: of(S::ESTABLISHED), tcp_fin_s: of(S::FIN_WAIT), udp_s: of(S::UDP) })
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        let (_, unit_ns) = load::clock()?;
        let mut settings = self.maps.settings();
        use rlvs_datapath::state::State as S;
        let changes = [
            (S::ESTABLISHED, timeouts.tcp_s),
            (S::FIN_WAIT, timeouts.tcp_fin_s),
            (S::UDP, timeouts.udp_s),
        ];
        for (state, seconds) in changes {
            if let Some(timeout) = settings.timeouts.get_mut(state.0 as usize)
                && seconds != 0
            {
                *timeout = (u64::from(seconds) * 1_000_000_000).div_ceil(unit_ns) as u32;
            }
        }
        Ok(self.maps.settings.update(0, &settings)?)
    }

    fn zero(&mut self, service: Option<ServiceId>) -> Result<(), Error> {
        self.put_in_force()?;
        if let Some(id) = service {
            let id = self.live(id)?;
            return Ok(self.zero_service(id, &self.list(id))?);
        }
        for &id in self.services.values() {
            if self.service_record(id).flags & service_flag::LIVE != 0 {
                self.zero_service(id, &self.list(id))?;
            }
        }
        Ok(self.zero_all()?)
    }

    fn connection_table_size(&mut self) -> Result<u32, Error> {
        Ok(SHOWN_SIZE)
    }
}
