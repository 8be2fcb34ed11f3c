//! One service as the control plane edits it while packets come, on tables in memory: what it lays out
//! is what the product's table does.

use std::net::IpAddr;

use rlvs_control::ring::{self, State, Stored};
use rlvs_control::scheduler::{self, Candidate};
use rlvs_datapath::abi::{Destination, RING_LINE, RingLine, destination_flag};
use rlvs_datapath::schedulers::{Ring, is_overloaded_after};

use crate::host::HostTables;
use crate::table::{Server, octets};

/// The control plane of service 1, whose destinations are there already, each with its id, but may
/// not be in its list.
#[derive(Clone, Debug)]
pub struct Director {
    /// A scheduler's number.
    pub scheduler: u32,
    /// Flags of the scheduler.
    pub flags: u32,
    list: Vec<Candidate>,
}

const SERVICE: usize = 1;

impl Director {
    /// Takes over a service whose list is empty, or empties it.
    pub fn new(scheduler: u32, flags: u32, tables: &mut HostTables) -> Self {
        let director = Self { scheduler, flags, list: Vec::new() };
        for to in &mut tables.destinations {
            to.flags = 0;
        }
        director.publish(tables, None);
        director
    }

    /// Adds a destination.
    pub fn add(&mut self, tables: &mut HostTables, id: u32, server: &Server) {
        let state = self.state(tables);
        let candidate = Candidate {
            id,
            weight: server.weight,
            last_weight: server.weight,
            limited: server.upper != 0,
            address: server.address,
            port: server.port,
        };
        self.list.insert(0, candidate);
        self.write(tables, &candidate, server);
        let state = state.map(|state| state.changed(&scheduler::members(&self.list)));
        self.publish(tables, state);
    }

    /// Edits a destination.
    ///
    /// # Panics
    /// It is not in the list.
    pub fn edit(&mut self, tables: &mut HostTables, id: u32, server: &Server) {
        let state = self.state(tables);
        let one = self.list.iter_mut().find(|one| one.id == id).expect("it is in the list");
        one.weight = server.weight;
        one.last_weight = if server.weight != 0 { server.weight } else { one.last_weight };
        one.limited = server.upper != 0;
        let candidate = *one;
        self.write(tables, &candidate, server);
        let state = state.map(|state| state.changed(&scheduler::members(&self.list)));
        self.publish(tables, state);
    }

    /// Removes a destination.
    pub fn remove(&mut self, tables: &mut HostTables, id: u32) {
        let before = scheduler::members(&self.list);
        let state = self.state(tables).map(|state| state.removed(&before, id));
        self.list.retain(|one| one.id != id);
        tables.destinations[id as usize].flags = 0;
        self.publish(tables, state);
    }

    /// Returns the ids in the list, newest first.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.list.iter().map(|one| one.id)
    }

    fn write(&self, tables: &mut HostTables, one: &Candidate, server: &Server) {
        let (at, bit) = (one.id as usize, 1 << (one.id % 64));
        let before = tables.destinations[at];
        let after = Destination {
            address: octets(server.address),
            port: server.port.to_be_bytes(),
            flags: destination_flag::AVAILABLE | before.flags & destination_flag::LOCAL,
            weight: one.weight,
            last_weight: one.last_weight,
            upper: server.upper,
            lower: server.lower,
            ..before
        };
        let word = &tables.overloads[at / 64];
        let (marked, connections) = (word.get() & bit != 0, tables.counts[at].connections.get());
        let overloaded = is_overloaded_after(connections, marked, &before, &after);
        word.set(if overloaded { word.get() | bit } else { word.get() & !bit });
        tables.destinations[at] = after;
    }

    fn state(&self, tables: &HostTables) -> Option<State> {
        let kind = scheduler::kind(self.scheduler)?;
        let schedule = &tables.schedules[SERVICE];
        let stored = Stored {
            base: schedule.base.get(),
            last: schedule.last.get() as u32,
            level: schedule.level.get() as u32,
        };
        let members = scheduler::members(&self.list);
        Some(ring::resume(kind, &members, stored, schedule.position.get()))
    }

    fn publish(&self, tables: &mut HostTables, state: Option<State>) {
        let position = tables.schedules[SERVICE].position.get();
        let layout = scheduler::lay_out(self.scheduler, &self.list, state, position);
        for (line, elements) in
            tables.rings.iter_mut().zip(layout.elements.chunks(RING_LINE as usize))
        {
            *line = RingLine::default();
            line.elements[..elements.len()].copy_from_slice(elements);
        }
        let schedule = &tables.schedules[SERVICE];
        schedule.base.set(layout.stored.base);
        schedule.last.set(layout.stored.last.into());
        schedule.level.set(layout.stored.level.into());
        let length = layout.elements.len() as u32;
        schedule.ring.set(Ring::new(self.scheduler, self.flags, 0, length).0);
    }
}

/// Returns the last byte of an address, by which tests tell servers apart.
#[must_use]
pub fn last_byte(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}
