//! What a master tells other directors of the connection tables: whatever is new, has changed its state,
//! or has gone on for a good part of its time-out since it was told of.
//!
//! The tables are only looked at, by a mapping that cannot be written. The kernel tells by counting a
//! connection's packets, which our slots do not.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use rlvs_datapath::abi::{
    self, Connections4, Connections6, Destination, Service, WideSlot, Wides, method, settings_flag,
};
use rlvs_datapath::connection::Value;
use rlvs_datapath::ip::Slot;
use rlvs_datapath::state::State;
use rlvs_datapath::tables::{TIME_MASK, Time};
use rlvs_datapath::template::ASSURED;
use rlvs_datapath::wide;
use rlvs_wire::sync::{Addresses, Entry, flag};
use rlvs_wire::{sctp, tcp, udp};

use super::error::Error;
use super::load;
use super::maps::{self, Mapped};
use super::pins::{self, Folder};
use super::records::octets;

/// A connection in use is told of again when this part of its time-out has gone by, unless
/// `sync_refresh_period` says otherwise: then after that, half the time-out, or these seconds at most.
const REFRESHES: u32 = 3;
const REFRESH_S: u32 = 10;

/// States of TCP that others are told of, by bit: as the kernel, not before the handshake is over.
const TOLD_TCP: u64 = 1 << State::ESTABLISHED.0
    | 1 << State::FIN_WAIT.0
    | 1 << State::TIME_WAIT.0
    | 1 << State::CLOSE.0
    | 1 << State::CLOSE_WAIT.0;

/// What was told of the entry at a place of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    /// Its key and the value without the time, which say which connection it is and in what state.
    key: u64,
    value: u64,
    /// When it was told of.
    at: Time,
}

/// Knows what has been told.
#[derive(Debug, Default)]
pub(super) struct Teller {
    told: HashMap<u64, Told>,
}

impl Teller {
    /// Goes over all tables and has `tell` tell what is due. Returns whether there are tables.
    ///
    /// # Errors
    /// Maps of another layout, or that cannot be read.
    pub(super) fn pass(&mut self, mut tell: impl FnMut(&Entry)) -> Result<bool, Error> {
        let Some(folder) = pins::open()? else { return Ok(false) };
        let look = Look::open(&folder)?;
        let before = std::mem::take(&mut self.told);
        look.each(|place, key, value, timeout, entry| {
            let now = look.now;
            let what = value.with(Time(0), value.state()).0;
            let known = before.get(&place).filter(|told| (told.key, told.value) == (key, what));
            let is_due = known.is_none_or(|told| {
                let since = now.since(told.at.0);
                // It has had packets since.
                now.since(value.time()) < since && since >= look.refresh(timeout)
            });
            if is_due {
                tell(&entry);
            }
            let at = if is_due { now } else { known.map_or(now, |told| told.at) };
            self.told.insert(place, Told { key, value: what, at });
        });
        Ok(true)
    }
}

/// The maps that are looked at.
struct Look {
    settings: abi::Settings,
    services: Mapped<Service>,
    destinations: Mapped<Destination>,
    connections4: Mapped<Connections4>,
    connections6: Mapped<Connections6>,
    wide: Mapped<Wides>,
    now: Time,
    unit_ns: u64,
    /// Destinations and clients, as their templates have them, that have had an established connection.
    assured: RefCell<HashSet<(u32, (u64, u64))>>,
}

/// Bits of a place below the number of its bucket: the slot, and above it the table.
const TABLE_SHIFT: u32 = 60;
const SLOT_BITS: u32 = 4;

impl Look {
    fn open(folder: &Folder) -> Result<Self, Error> {
        let settings = Mapped::<abi::Settings>::look(folder, "settings")?;
        let settings = settings.read(0).unwrap_or_default();
        if settings.layout != pins::layout() {
            return Err(Error::Layout { found: settings.layout, known: pins::layout() });
        }
        let (_, unit_ns) = load::clock()?;
        let now = maps::sweep(&maps::open_sweep(folder)?)?.now.get() as u32;
        Ok(Self {
            settings,
            services: Mapped::look(folder, "services")?,
            destinations: Mapped::look(folder, "destinations")?,
            connections4: Mapped::look(folder, "connections4")?,
            connections6: Mapped::look(folder, "connections6")?,
            wide: Mapped::look(folder, "wide")?,
            now: Time(now & TIME_MASK),
            unit_ns,
            assured: RefCell::default(),
        })
    }

    /// Calls `found` for every entry that others are told of, with its place, key, value and time-out.
    fn each(&self, mut found: impl FnMut(u64, u64, Value, u32, Entry)) {
        let place = |table: u64, bucket: u32, slot: usize| {
            table << TABLE_SHIFT | u64::from(bucket) << SLOT_BITS | slot as u64
        };
        for index in 0..self.connections4.len() {
            let Some(bucket) = self.connections4.read(index) else { break };
            for (at, slot) in bucket.slots.iter().enumerate() {
                let client = (0, slot.key.get() >> 32);
                if let Some((value, timeout, entry)) = self.ordinary(slot, client) {
                    found(place(0, index, at), slot.key.get(), value, timeout, entry);
                }
            }
        }
        for index in 0..self.connections6.len() {
            let Some(bucket) = self.connections6.read(index) else { break };
            for (at, slot) in bucket.slots.iter().enumerate() {
                let client = (slot.high.get(), slot.low.get());
                if let Some((value, timeout, entry)) = self.ordinary(slot, client) {
                    found(place(1, index, at), slot.key.get(), value, timeout, entry);
                }
            }
        }
        // Templates come last: what they control says whether they are assured.
        for templates in [false, true] {
            for index in 0..self.wide.len() {
                let Some(bucket) = self.wide.read(index) else { break };
                for (at, slot) in bucket.slots.iter().enumerate() {
                    let is_template = wide::kind_of(slot.key.get()) >= wide::kind::TEMPLATE;
                    if is_template == templates
                        && let Some((value, timeout, entry)) = self.wide(slot)
                    {
                        found(place(2, index, at), slot.key.get(), value, timeout, entry);
                    }
                }
            }
        }
    }

    /// Notes a connection that has been established and that a template controls.
    fn assure(&self, value: Value, service: &Service, client: (u64, u64)) {
        if value.is_controlled() && value.state().was_established() {
            let mask = wide::words_of(service.family, &service.mask);
            let client = (client.0 & mask.0, client.1 & mask.1);
            self.assured.borrow_mut().insert((value.destination(), client));
        }
    }

    /// Describes a connection of the tables of IPv4 and IPv6.
    fn ordinary(&self, slot: &impl Slot, client: (u64, u64)) -> Option<(Value, u32, Entry)> {
        let (key, value) = (slot.key().get(), Value(slot.value().get()));
        // What was learnt the others know.
        if key == 0 || !value.is_live() || value.is_reply() || value.is_learnt() {
            return None;
        }
        let destination = self.destinations.read(value.destination())?;
        let service = self.services.read(destination.service)?;
        let timeout = self.timeout(value)?;
        self.assure(value, &service, client);
        if self.is_left_to_template(value) {
            return None;
        }
        let entry = Entry {
            protocol: service.protocol,
            flags: flags(&destination, value),
            state: number(service.protocol, value.state())?,
            client_port: Value::port(key),
            service_port: u16::from_be_bytes(service.port),
            destination_port: u16::from_be_bytes(destination.port),
            mark: service.mark,
            timeout_s: self.seconds(timeout),
            addresses: addresses(&service, client, service.address, &destination)?,
        };
        Some((value, timeout, entry))
    }

    /// Describes an entry of the wide table: a connection or a template. What only our own tables can
    /// have, connections of full NAT and templates of calls, is left out.
    fn wide(&self, slot: &WideSlot) -> Option<(Value, u32, Entry)> {
        let (key, value) = (slot.key.get(), Value(slot.value.get()));
        let kind = wide::kind_of(key);
        if key == 0 || !value.is_live() || value.is_substituted() || value.is_learnt() {
            return None;
        }
        let client = (slot.client[0].get(), slot.client[1].get());
        let destination = self.destinations.read(value.destination())?;
        let service = self.services.read(destination.service)?;
        if kind == wide::kind::REQUEST {
            let protocol = wide::protocol_of(key);
            let (client_port, service_port, destination_port) = wide::ports_of(key);
            let timeout = self.timeout(value)?;
            self.assure(value, &service, client);
            if self.is_left_to_template(value) {
                return None;
            }
            let family = wide::family_of(key);
            let virtual_address = octets_of(family, (slot.peer[0].get(), slot.peer[1].get()));
            let entry = Entry {
                protocol,
                flags: flags(&destination, value),
                state: number(protocol, value.state())?,
                client_port,
                service_port,
                destination_port,
                mark: service.mark,
                timeout_s: self.seconds(timeout),
                addresses: addresses(&service, client, virtual_address, &destination)?,
            };
            return Some((value, timeout, entry));
        }
        if kind != wide::kind::TEMPLATE || slot.peer[0].get() >> 32 != 0 {
            return None;
        }
        let timeout = (slot.other[0].get() >> 32) as u32;
        let is_assured = self.assured.borrow().contains(&(value.destination(), client));
        let value = if is_assured { value.with_state(ASSURED) } else { value };
        let service_port = u16::from_be_bytes(service.port);
        let (protocol, virtual_address) = match service.mark {
            0 => (service.protocol, service.address),
            mark => (0, octets(Ipv4Addr::from_bits(mark).into())),
        };
        let of_port = if service_port == 0 { 0 } else { u16::from_be_bytes(destination.port) };
        let entry = Entry {
            protocol,
            flags: (flags(&destination, value) | flag::TEMPLATE | flag::INACTIVE),
            state: u16::from(value.state() == ASSURED),
            client_port: 0,
            service_port,
            destination_port: of_port,
            mark: service.mark,
            timeout_s: self.seconds(timeout),
            addresses: addresses(&service, client, virtual_address, &destination)?,
        };
        Some((value, timeout, entry))
    }

    /// Returns the time-out of a connection's state; `None` for one whose time has run out.
    fn timeout(&self, value: Value) -> Option<u32> {
        let timeout = self.settings.timeouts.get(value.state().0 as usize).copied()?;
        (self.now.since(value.time()) <= timeout).then_some(timeout)
    }

    /// Returns how long after it was told of a connection in use is told of again.
    // As ip_vs_sync_conn_needed(), but for the default.
    fn refresh(&self, timeout: u32) -> u32 {
        let units = |seconds: u32| seconds.saturating_mul(self.settings.second);
        match self.settings.sync_refresh {
            0 => timeout / REFRESHES,
            period => units(period).min((timeout / 2).max(units(REFRESH_S))),
        }
    }

    /// Returns whether its template alone is told of.
    fn is_left_to_template(&self, value: Value) -> bool {
        self.settings.flags & settings_flag::TELL_TEMPLATES != 0 && value.is_controlled()
    }

    fn seconds(&self, units: u32) -> u32 {
        (u64::from(units) * self.unit_ns).div_euclid(1_000_000_000) as u32
    }
}

fn flags(destination: &Destination, value: Value) -> u32 {
    let method = match destination.method {
        method::MASQUERADE => 0,
        other => u32::from(other) | flag::NO_OUTPUT,
    };
    method | if value.state().is_active() { 0 } else { flag::INACTIVE }
}

/// Returns the number of a state among those of its protocol, if others are told of it.
fn number(protocol: u8, state: State) -> Option<u16> {
    match protocol {
        tcp::PROTOCOL => (TOLD_TCP >> (state.0 & 31) & 1 != 0).then_some(state.0 as u16),
        udp::PROTOCOL => Some(0),
        sctp::PROTOCOL if state.was_established() => {
            Some(state.0.checked_sub(State::ASSOCIATIONS)? as u16)
        }
        _ => None,
    }
}

fn octets_of(family: u8, (high, low): (u64, u64)) -> [u8; 16] {
    match family {
        4 => octets(Ipv4Addr::from_bits(low as u32).into()),
        _ => (u128::from(high) << 64 | u128::from(low)).to_be_bytes(),
    }
}

/// Returns the addresses of a connection, unless its destination is of another version than its service.
fn addresses(
    service: &Service,
    client: (u64, u64),
    virtual_address: [u8; 16],
    destination: &Destination,
) -> Option<Addresses> {
    if service.family != destination.family {
        return None;
    }
    let client = octets_of(service.family, client);
    let short = |octets: [u8; 16]| octets.first_chunk().copied();
    Some(match service.family {
        4 => Addresses::V4 {
            client: short(client)?,
            service: short(virtual_address)?,
            destination: short(destination.address)?,
        },
        _ => Addresses::V6 { client, service: virtual_address, destination: destination.address },
    })
}
