//! The virtual-server table in BPF maps, edited as IPVS edits its own.
//!
//! Destinations of a service are a list in the maps, newest first. An edit marks the service as
//! unsettled, changes records whole, relinks the list by one record, publishes a new ring in one
//! store, and clears the mark: whoever next takes the lock settles what a killed command left.
//!
//! A removed destination or service is *retired*: out of the list, but remembered with its id,
//! counts and counters as long as it has connections and for two minutes at least, so that added
//! again it finds them, as in the kernel's trash.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::Ordering;

use nix::fcntl::Flock;
use nix::time::{ClockId, clock_gettime};
use rlvs_control::check;
use rlvs_control::model::{
    Connection, Destination as Wanted, DestinationEntry, DestinationId, ForwardingMethod,
    Service as WantedService, ServiceEntry, ServiceId, Timeouts,
};
use rlvs_control::ring::{self, Kind, Member, State, Stored};
use rlvs_control::table::{Error, Table};
use rlvs_datapath::abi::{
    Destination, IDS, RING_ELEMENTS, Row, Schedule, Service, destination_flag, endpoint_kind,
    method, scheduler, service_flag,
};

use super::connections;
use super::endpoints::{self, Endpoint};
use super::load;
use super::local;
use super::maps::Maps;
use super::neighbours;
use super::pins::{self, Folder};
use super::records::{
    self, address, associates, counters, family, is_available, method_number, method_of, octets,
    scheduler_name, scheduler_number, service_id, set_deltas, traffic,
};
use super::stages::Group;

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
    /// First ring element that the next ring may use: the allocator walks round, so that what a
    /// program may still be reading is not written over.
    ring_cursor: u32,
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
        let mut table = Self {
            maps,
            _lock: lock,
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

    fn members(&self, service: u32) -> Vec<Member> {
        let member = |id| Member { id, weight: self.destination_record(id).weight };
        self.list(service).into_iter().map(member).collect()
    }

    /// Returns where a service's scheduler stands; `None` if it has no ring.
    fn state(&self, id: u32, members: &[Member]) -> Option<State> {
        let kind = ring_kind(self.service_record(id).scheduler)?;
        let schedule = self.maps.schedules.read(id)?;
        let stored = Stored {
            base: schedule.base.get(),
            last: schedule.last.get() as u32,
            level: schedule.level.get() as u32,
        };
        Some(ring::resume(kind, members, stored, schedule.position.get()))
    }

    /// Builds a service's ring and puts it in force.
    fn publish(
        &mut self,
        id: u32,
        state: impl FnOnce(&[Member], Kind) -> State,
    ) -> Result<(), super::Error> {
        let members = self.members(id);
        let Some(kind) = ring_kind(self.service_record(id).scheduler) else {
            self.store(id, |record| &record.ring, 0);
            return Ok(());
        };
        let state = state(&members, kind);
        let position = self.maps.schedules.read(id).map_or(0, |schedule| schedule.position.get());
        let ring = ring::build(&members, state, position);
        let offset = self.allocate(ring.elements.len() as u32)?;
        for (index, element) in (offset..).zip(&ring.elements) {
            self.maps.rings.write(index, u64::from(*element));
        }
        self.store(id, |record| &record.base, ring.stored.base);
        self.store(id, |record| &record.last, ring.stored.last.into());
        self.store(id, |record| &record.level, ring.stored.level.into());
        let word = u64::from(offset) << 32 | ring.elements.len() as u64;
        self.store(id, |record| &record.ring, word);
        Ok(())
    }

    fn store(&self, id: u32, field: fn(&Schedule) -> &rlvs_datapath::abi::Word, value: u64) {
        if let Some(word) = self.maps.schedules.word(id, field) {
            word.store(value, Ordering::SeqCst);
        }
    }

    /// Finds room for a ring: the next gap between the rings in force, walking round.
    fn allocate(&mut self, length: u32) -> Result<u32, super::Error> {
        let mut used: Vec<(u32, u32)> = self
            .services
            .values()
            .filter_map(|&id| Some(self.maps.schedules.read(id)?.ring.get()))
            .map(|ring| ((ring >> 32) as u32, ring as u32))
            .filter(|&(_, length)| length > 0)
            .collect();
        used.sort_unstable();
        let offset = gap(&used, self.ring_cursor, length)
            .or_else(|| gap(&used, 0, length))
            .ok_or_else(|| super::Error::Load {
                what: "a scheduler's ring".to_owned(),
                reason: format!("the rings of all services hold at most {RING_ELEMENTS} entries"),
            })?;
        self.ring_cursor = offset + length;
        self.store(0, |record| &record.base, self.ring_cursor.into());
        Ok(offset)
    }

    /// Makes a service known to the programs.
    fn enter_service(&self, id: u32, record: &Service) -> Result<(), Error> {
        let endpoint = Endpoint {
            kind: endpoint_kind::SERVICE,
            protocol: record.protocol,
            address: address(record.family, record.address),
            port: u16::from_be_bytes(record.port),
        };
        endpoints::insert(&self.maps, &endpoint, id)
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
        record.reserved[RETIRED_AT] = seconds();
        self.maps.destinations.update(id, &record)
    }

    /// Takes a service and all its destinations out of service but remembers them.
    fn retire_service(&self, id: u32) -> Result<(), super::Error> {
        let list = self.list(id);
        let mut record = self.service_record(id);
        record.flags &= !service_flag::LIVE;
        record.head = 0;
        self.maps.services.update(id, &record)?;
        self.store(id, |record| &record.ring, 0);
        list.into_iter().try_for_each(|destination| self.retire(destination))
    }

    /// Forgets retired destinations without connections, those of the last two minutes only if
    /// `all`, and retired services without destinations.
    fn forget(&mut self, all: bool) -> Result<(), super::Error> {
        let now = seconds();
        let idle = |id: u32| {
            let record = self.destination_record(id);
            let age = now.saturating_sub(record.reserved[RETIRED_AT]);
            let connections = self.maps.counts.read(id).map_or(0, |c| c.connections.get());
            !is_available(&record) && connections == 0 && (all || age > REMEMBERED_S)
        };
        let gone: Vec<_> = self
            .destinations
            .iter()
            .filter(|&(_, &id)| idle(id))
            .map(|(&key, &id)| (key, id))
            .collect();
        for (key, id) in gone {
            self.destinations.remove(&key);
            self.free_destination(id)?;
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
            self.free_service(id)?;
        }
        Ok(())
    }

    fn free_destination(&mut self, id: u32) -> Result<(), super::Error> {
        let record = self.destination_record(id);
        let service = self.service_record(record.service);
        let mut totals = self.maps.totals.read(record.service).unwrap_or_default();
        for (total, more) in totals.retired.iter_mut().zip(self.rows(id)) {
            *total += more;
        }
        self.maps.totals.update(record.service, &totals)?;
        if record.reply != 0 {
            let endpoint = reply_endpoint(&service, &record);
            if let Some((_, users)) = self.replies.get_mut(&endpoint) {
                *users -= 1;
                if *users == 0 {
                    self.replies.remove(&endpoint);
                    endpoints::remove(&self.maps, &endpoint)?;
                }
            }
        }
        self.maps.destinations.update(id, &Destination::default())?;
        self.clear_rows(id)
    }

    fn free_service(&self, id: u32) -> Result<(), super::Error> {
        let record = self.service_record(id);
        let endpoint = Endpoint {
            kind: endpoint_kind::SERVICE,
            protocol: record.protocol,
            address: address(record.family, record.address),
            port: u16::from_be_bytes(record.port),
        };
        endpoints::remove(&self.maps, &endpoint)?;
        self.maps.services.update(id, &Service::default())?;
        self.maps.schedules.update(id, &Schedule::default())?;
        self.maps.totals.update(id, &rlvs_datapath::abi::Totals::default())
    }

    /// Sums the counters of a destination over all CPUs.
    fn rows(&self, id: u32) -> [u64; 5] {
        let cpus = self.maps.settings().cpus;
        let mut sum = [0; 5];
        for row in (0..cpus).filter_map(|cpu| self.maps.rows.read(id * cpus + cpu)) {
            for (total, more) in sum.iter_mut().zip(counters(&row)) {
                *total += more;
            }
        }
        sum
    }

    fn clear_rows(&self, id: u32) -> Result<(), super::Error> {
        let cpus = self.maps.settings().cpus;
        (0..cpus).try_for_each(|cpu| self.maps.rows.update(id * cpus + cpu, &Row::default()))
    }

    /// Finds an id that no service has.
    fn new_service_id(&mut self) -> Result<u32, Error> {
        let mut settings = self.maps.settings();
        let free =
            |table: &Self, below| (1..below).find(|&id| table.service_record(id).family == 0);
        if settings.services < IDS {
            settings.services += 1;
            self.maps.settings.update(0, &settings).map_err(Error::from)?;
            return Ok(settings.services - 1);
        }
        if let Some(id) = free(self, IDS) {
            return Ok(id);
        }
        self.forget(true)?;
        free(self, IDS).ok_or(Error::Full { what: "virtual services", limit: IDS as usize - 1 })
    }

    /// Finds an id that no destination has.
    fn new_destination_id(&mut self) -> Result<u32, Error> {
        let mut settings = self.maps.settings();
        let free =
            |table: &Self, below| (1..below).find(|&id| table.destination_record(id).service == 0);
        if settings.destinations < IDS {
            settings.destinations += 1;
            self.maps.settings.update(0, &settings).map_err(Error::from)?;
            return Ok(settings.destinations - 1);
        }
        if let Some(id) = free(self, IDS) {
            return Ok(id);
        }
        self.forget(true)?;
        free(self, IDS).ok_or(Error::Full { what: "real servers", limit: IDS as usize - 1 })
    }

    /// Returns the reply endpoint id of a NAT destination, making the endpoint known if need be.
    fn reply_id(&mut self, service: &Service, record: &Destination) -> Result<u32, Error> {
        let endpoint = reply_endpoint(service, record);
        if let Some((id, users)) = self.replies.get_mut(&endpoint) {
            *users += 1;
            return Ok(*id);
        }
        let used: std::collections::BTreeSet<u32> =
            self.replies.values().map(|&(id, _)| id).collect();
        let id = (REPLY_IDS + 1..).find(|id| !used.contains(id)).unwrap_or(REPLY_IDS);
        endpoints::insert(&self.maps, &endpoint, id)?;
        self.replies.insert(endpoint, (id, 1));
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
            ForwardingMethod::Masquerade if record.reply == 0 => {
                record.reply = self.reply_id(owner, record)?;
            }
            ForwardingMethod::Tunnel(tunnel) => {
                load::ensure_group(Group::Tunnels)?;
                let (source, target) = (neighbours::source(to.id.address), to.id.address);
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
        let totals = self.maps.totals.read(id).unwrap_or_default();
        let mut sum = traffic(totals.retired);
        for &destination in self.destinations.range(service_range(id)).map(|(_, id)| id) {
            sum += traffic(self.rows(destination));
        }
        let list = self.list(id);
        ServiceEntry {
            service: WantedService {
                id: service_id(&record),
                scheduler: scheduler_name(record.scheduler).to_owned(),
                scheduler_flags: 0,
                one_packet: false,
                persistence: None,
                persistence_engine: None,
            },
            traffic: sum,
            destinations: list.into_iter().map(|id| self.destination_entry(id)).collect(),
        }
    }

    fn destination_entry(&self, id: u32) -> DestinationEntry {
        let record = self.destination_record(id);
        let tunnel = self.maps.tunnels.read(record.tunnel).unwrap_or_default();
        let connections = self.maps.counts.read(id).map_or(0, |counts| counts.connections.get());
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
            persistent: 0,
            traffic: traffic(self.rows(id)),
        }
    }

    /// Returns the maps, for status.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }
}

/// Index into [`Destination::reserved`] of the second at which it was retired.
const RETIRED_AT: usize = 1;

/// Returns the seconds since boot.
fn seconds() -> u32 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.tv_sec() as u32)
}

fn ring_kind(number: u32) -> Option<Kind> {
    match number {
        scheduler::RR => Some(Kind::Rr),
        scheduler::WRR => Some(Kind::Wrr),
        _ => None,
    }
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

/// Finds `length` elements from `from` on that no ring has; `used` is sorted.
fn gap(used: &[(u32, u32)], from: u32, length: u32) -> Option<u32> {
    let mut start = from;
    for &(offset, used) in used {
        if offset + used <= start {
            continue;
        }
        if start + length <= offset {
            return Some(start);
        }
        start = offset + used;
    }
    (start + length <= RING_ELEMENTS).then_some(start)
}

/// Refuses what the model can say and the programs do not carry out.
fn carried_out(service: &WantedService) -> Result<(), Error> {
    let not_yet = |what: &str| Err(Error::NotYet(what.to_owned()));
    match service.id {
        ServiceId::Mark { .. } => return not_yet("a firewall-mark service (-f)"),
        ServiceId::Address { .. } => {}
    }
    if service.persistence.is_some() || service.persistence_engine.is_some() {
        return not_yet("persistence (-p)");
    }
    if service.one_packet {
        return not_yet("one-packet scheduling (-o)");
    }
    if service.scheduler_flags != 0 {
        return not_yet("scheduler flags (-b)");
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
        let scheduler = scheduler_number(&service.scheduler)?;
        let ServiceId::Address { protocol, address, port } = service.id else {
            return Err(Error::NoService);
        };
        self.forget(false)?;
        let id = match self.services.get(&service.id) {
            Some(&remembered) => remembered,
            None => self.new_service_id()?,
        };
        let record = Service {
            address: octets(address),
            port: port.to_be_bytes(),
            protocol: protocol.number(),
            family: family(address),
            flags: service_flag::LIVE,
            scheduler,
            ..Service::default()
        };
        if associates(&record) {
            load::ensure_group(Group::Associations)?;
        }
        self.unsettled(id);
        self.maps.services.update(id, &record)?;
        self.services.insert(service.id, id);
        self.publish(id, |members, kind| State::new(kind, members))?;
        self.enter_service(id, &record)?;
        self.settled();
        Ok(())
    }

    fn edit_service(&mut self, service: &WantedService) -> Result<(), Error> {
        check::service(service)?;
        let id = self.live(service.id)?;
        carried_out(service)?;
        let scheduler = scheduler_number(&service.scheduler)?;
        let mut record = self.service_record(id);
        if record.scheduler == scheduler {
            return Ok(());
        }
        record.scheduler = scheduler;
        self.unsettled(id);
        self.maps.services.update(id, &record)?;
        self.publish(id, |members, kind| State::new(kind, members))?;
        self.settled();
        Ok(())
    }

    fn delete_service(&mut self, id: ServiceId) -> Result<(), Error> {
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
        threshold_not_yet(to)?;
        self.forget(false)?;
        let place = local::place(to.id.address);
        local::prepare(&self.maps, to, place)?;
        let key = (service_number, to.id);
        let remembered = self.destinations.get(&key).copied();
        let id = match remembered {
            Some(id) => id,
            None => self.new_destination_id()?,
        };
        let mut owner = self.service_record(service_number);
        let before = self.members(service_number);
        let state = self.state(service_number, &before);
        self.unsettled(service_number);
        let old = self.destination_record(id);
        let mut record = Destination {
            address: octets(to.id.address),
            port: to.id.port.to_be_bytes(),
            family: family(to.id.address),
            flags: destination_flag::AVAILABLE | place,
            service: service_number,
            reply: if remembered.is_some() { old.reply } else { 0 },
            weight: to.weight,
            next: owner.head,
            ..Destination::default()
        };
        set_deltas(&mut record, &owner);
        self.set_method(id, &owner, &mut record, to)?;
        self.maps.destinations.update(id, &record)?;
        self.destinations.insert(key, id);
        owner.head = id;
        self.maps.services.update(service_number, &owner)?;
        self.mark_places(service_number)?;
        self.publish(service_number, |members, kind| match state {
            Some(state) => state.changed(members),
            None => State::new(kind, members),
        })?;
        self.settled();
        neighbours::keep_resolved(to.id.address);
        Ok(())
    }

    fn edit_destination(&mut self, service: ServiceId, to: &Wanted) -> Result<(), Error> {
        let service_number = self.live(service)?;
        check::destination(service, to)?;
        let id = self.listed(service_number, to.id)?;
        threshold_not_yet(to)?;
        let owner = self.service_record(service_number);
        let before = self.members(service_number);
        let state = self.state(service_number, &before);
        let mut record = self.destination_record(id);
        record.weight = to.weight;
        let place = local::place(to.id.address);
        record.flags = destination_flag::AVAILABLE | place;
        local::prepare(&self.maps, to, place)?;
        self.unsettled(service_number);
        self.set_method(id, &owner, &mut record, to)?;
        self.maps.destinations.update(id, &record)?;
        self.mark_places(service_number)?;
        self.publish(service_number, |members, kind| match state {
            Some(state) => state.changed(members),
            None => State::new(kind, members),
        })?;
        self.settled();
        Ok(())
    }

    fn delete_destination(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
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

    fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        let live = |&&id: &&u32| self.service_record(id).flags & service_flag::LIVE != 0;
        Ok(self.services.values().filter(live).map(|&id| self.entry(id)).collect())
    }

    fn service(&mut self, id: ServiceId) -> Result<ServiceEntry, Error> {
        Ok(self.entry(self.live(id)?))
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

    fn zero(&mut self, _: Option<ServiceId>) -> Result<(), Error> {
        Err(Error::NotYet("zeroing counters (-Z)".to_owned()))
    }

    fn connection_table_size(&mut self) -> Result<u32, Error> {
        Ok(SHOWN_SIZE)
    }
}

fn threshold_not_yet(to: &Wanted) -> Result<(), Error> {
    if to.upper_threshold != 0 || to.lower_threshold != 0 {
        return Err(Error::NotYet("connection thresholds (-x, -y)".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_between_rings_and_after_the_last() {
        let used = [(0, 10), (20, 5), (25, 5)];
        assert_eq!(gap(&used, 0, 10), Some(10));
        assert_eq!(gap(&used, 0, 11), Some(30));
        assert_eq!(gap(&used, 12, 9), Some(30));
        assert_eq!(gap(&used, 12, 8), Some(12));
        assert_eq!(gap(&[], 5, RING_ELEMENTS), None);
    }
}
