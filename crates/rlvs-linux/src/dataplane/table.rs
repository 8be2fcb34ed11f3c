//! The virtual-server table in BPF maps, edited as IPVS edits its own.
//!
//! Destinations of a service are a list in the maps, newest first. An edit marks the service as
//! unsettled, changes records whole, relinks the list by one record, publishes a new ring in one
//! store, and clears the mark: whoever next takes the lock settles what a killed command left.
//!
//! A removed destination or service is *retired*: out of the list, but remembered with its id,
//! counts and counters as long as it has connections and for two minutes at least, so that added
//! again it finds them, as in the kernel's trash.

mod aside;
mod audit;
mod batch;
mod counters;
mod ends;
mod retire;
mod ring;
mod shown;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::atomic::Ordering;

use nix::fcntl::Flock;
use nix::time::{ClockId, clock_gettime};
use rlvs_control::check;
use rlvs_control::model::{
    Connection, Destination as Wanted, DestinationId, Drained, Service as WantedService,
    ServiceEntry, ServiceId, SyncDaemon, SyncRole, Timeouts,
};
use rlvs_control::ring::State;
use rlvs_control::table::{Error, Removal, Table};
use rlvs_datapath::abi::{Destination, IDS, Schedule, Service, destination_flag, service_flag};

use super::access::Guards;
use super::connections;
use super::endpoints::Endpoint;
use super::hold;
use super::load;
use super::maps::Maps;
use super::neighbours::Ways;
use super::pins::{self, Folder};
use super::pool;
use super::records::{
    self, address, associates, family, is_listed, octets, scheduler_number, service_id, set_deltas,
};
use super::stages::Group;
use super::sync;
pub use audit::{Fill, Miscount, Tally};
pub use batch::Work;
pub use counters::Total;
use ends::reply_endpoint;

/// The size that `ipvsadm -L` shows: the kernel's default, for which scripts may look.
const SHOWN_SIZE: u32 = 4096;

/// The table of the calling thread's network namespace.
#[derive(Debug)]
pub struct BpfTable {
    maps: Maps,
    _lock: Flock<File>,
    /// Every service, live or retired.
    services: BTreeMap<ServiceId, u32>,
    /// A bit for each IP version whose stages are known to be there.
    families: Cell<u8>,
    /// The same of those for clients on this host, and in the upper half for real servers here.
    local: Cell<u16>,
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
    /// What becomes of the connections of what is removed.
    removal: Removal,
    /// Removed destinations whose connections are still to be ended.
    resets: BTreeSet<u32>,
    ended: u64,
    published: u64,
    ways: Ways,
    /// Who is guarded, once a service is added.
    guards: Option<Guards>,
}

impl BpfTable {
    /// Opens the table and takes its lock; `None` if nothing is attached here.
    ///
    /// # Errors
    /// A missing capability, or pins of another layout.
    pub fn open() -> Result<Option<Self>, super::Error> {
        let Some(folder) = pins::open()? else { return Ok(None) };
        match Self::open_in(&folder) {
            // It has been detached meanwhile.
            Err(super::Error::NotAttached) => Ok(None),
            table => table.map(Some),
        }
    }

    /// Tells whether a new table would take a service.
    ///
    /// # Errors
    /// What [`Table::add_service`] would answer.
    pub fn accepts(service: &WantedService) -> Result<(), Error> {
        check::service(service)?;
        scheduler_number(&service.scheduler).map(drop)
    }

    fn open_in(folder: &Folder) -> Result<Self, super::Error> {
        let lock = folder.lock()?;
        let maps = Maps::open(folder)?;
        hold::settle(&maps)?;
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
            removal: Removal::default(),
            resets: BTreeSet::new(),
            ended: 0,
            published: 0,
            ways: Ways::default(),
            guards: None,
            services: BTreeMap::new(),
            families: Cell::default(),
            local: Cell::default(),
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
        if is_listed(&self.destination_record(found)) {
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

    /// Replaces a destination of a service's list by what is wanted of it.
    fn replace(&mut self, service: u32, id: u32, to: &Wanted, drained: bool) -> Result<(), Error> {
        let owner = self.service_record(service);
        let old = self.destination_record(id);
        let (upper, lower) = (to.upper_threshold, to.lower_threshold);
        let mut record = Destination { upper, lower, ..old };
        aside::set_weight(&mut record, &old, to.weight, drained);
        // Among many edits one of the weight alone asks for no way.
        let same_way = self.batched && self.destination_entry(id).destination.method == to.method;
        if !same_way {
            let place = self.ways.place(to.id.address);
            record.flags = destination_flag::AVAILABLE | place;
            pool::prepare(&self.maps, service, to, place)?;
            self.ensure_local(to, place)?;
        }
        self.begin_change(service)?;
        if !same_way {
            self.set_method(id, &owner, &mut record, to)?;
        }
        self.maps.destinations.update(id, &record)?;
        self.settle_overload(id, &old);
        self.end_change()
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
    record.flags &= !(service_flag::ONE_PACKET | service_flag::SIP);
    if service.persistence_engine.is_some() {
        record.flags |= service_flag::SIP;
    }
    if service.one_packet {
        record.flags |= service_flag::ONE_PACKET;
    }
    let port = u16::from_be_bytes(record.port);
    let is_full = record.flags & service_flag::FULL != 0;
    if service.persistence.is_some() || service.one_packet || port == 0 || is_full {
        record.flags |= service_flag::SPECIAL;
    }
    if record.flags & service_flag::SPECIAL != 0 {
        load::ensure_group(Group::Special)?;
    }
    if record.flags & service_flag::SIP != 0 {
        load::ensure_group(Group::Sip)?;
    }
    Ok(())
}

impl Table for BpfTable {
    fn add_service(&mut self, service: &WantedService) -> Result<(), Error> {
        check::service(service)?;
        if self.live(service.id).is_ok() {
            return Err(Error::ServiceExists);
        }
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
        let before = self.service_record(id);
        record.flags |= before.flags & service_flag::FULL;
        set_special(&mut record, service)?;
        self.set_guarded(&mut record, service.id)?;
        self.announce_apart(&record)?;
        if associates(&record) {
            load::ensure_group(Group::Associations)?;
        }
        self.ensure_family(record.family)?;
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
        let scheduler = scheduler_number(&service.scheduler)?;
        let mut record = self.service_record(id);
        let before = (record.scheduler, record.scheduler_flags);
        let after = (scheduler, u32::from(service.scheduler_flags));
        let state = (before.0 == after.0).then(|| self.state(id, &self.members(id))).flatten();
        if before.0 != after.0 {
            self.forget_favourites(id, None);
        }
        (record.scheduler, record.scheduler_flags) = after;
        let is_full = |to: u32| self.destination_record(to).flags & destination_flag::FULL != 0;
        if service.one_packet && self.list(id).into_iter().any(is_full) {
            return Err(pool::no_single_packets());
        }
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
        self.end_removal()
    }

    fn add_destination(&mut self, service: ServiceId, to: &Wanted) -> Result<(), Error> {
        let service_number = self.live(service)?;
        check::destination(service, to)?;
        check::real_server(to.id.address)?;
        if self.listed(service_number, to.id).is_ok() {
            return Err(Error::DestinationExists);
        }
        // What it had before ends, not what it is about to get.
        self.end_resets()?;
        self.forget(false)?;
        let place = self.ways.place(to.id.address);
        pool::prepare(&self.maps, service_number, to, place)?;
        self.ensure_local(to, place)?;
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
            upper: to.upper_threshold,
            lower: to.lower_threshold,
            next,
            ..Destination::default()
        };
        let drained = remembered.is_some() && old.aside & aside::DRAINED != 0;
        aside::set_weight(&mut record, &old, to.weight, drained);
        if !drained {
            // One that returns begins anew, as __ip_vs_update_dest().
            record.last_weight = to.weight;
        }
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
        let service_number = self.live(service)?;
        check::destination(service, to)?;
        let id = self.listed(service_number, to.id)?;
        let drained = self.destination_record(id).aside & aside::DRAINED != 0;
        self.replace(service_number, id, to, drained)
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
        self.end_removal()
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
        self.end_removal()
    }

    fn set_removal(&mut self, removal: Removal) {
        self.removal = removal;
    }

    fn batch(&mut self) {
        self.batched = true;
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.batched = false;
        self.put_in_force()?;
        Ok(self.end_resets()?)
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

    fn drain(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.set_aside(service, id)
    }

    fn undrain(&mut self, service: ServiceId, id: DestinationId) -> Result<(), Error> {
        self.give_back(service, id)
    }

    fn drained(&mut self) -> Result<Vec<Drained>, Error> {
        self.put_in_force()?;
        Ok(self.list_drained())
    }

    fn end_connections(&mut self, service: ServiceId, id: DestinationId) -> Result<u64, Error> {
        self.put_in_force()?;
        let id = self.known(service, id)?;
        Ok(connections::end(&self.maps, &BTreeSet::from([id]))?)
    }

    fn connection_table_size(&mut self) -> Result<u32, Error> {
        Ok(SHOWN_SIZE)
    }

    fn sync_daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        Ok(sync::list()?.into_iter().map(|running| running.daemon).collect())
    }

    fn start_sync_daemon(&mut self, wanted: &SyncDaemon) -> Result<(), Error> {
        sync::start(wanted)
    }

    fn stop_sync_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        sync::stop(role)
    }
}
