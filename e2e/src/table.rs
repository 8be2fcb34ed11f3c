//! Tables from a description, laid out as the control plane will.
//!
//! Services get ids from 1 in the order given, destinations likewise; reply endpoints get ids from
//! [`FIRST_REPLY`], which does not fit in 16 bits, so that the upper bits of an owner are at work.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rlvs_control::scheduler::{self, Candidate};
use rlvs_datapath::abi::{
    Destination, INTERFACE_BUCKETS, Interface, LAYOUT, RING_LINE, Service, Settings, Slot4, Slot6,
    Tunnel, destination_flag, endpoint_kind, method, service_flag,
};
use rlvs_datapath::endpoint::Key;
use rlvs_datapath::ip::{Ip, V4, V6};
use rlvs_datapath::schedulers::Ring;
use rlvs_datapath::schedulers::favourites::EXPIRATION_S;
use rlvs_datapath::state::State;
use rlvs_wire::checksum;

use crate::host::HostTables;
use crate::network;

/// Id of the first reply endpoint.
pub const FIRST_REPLY: u32 = 0x0002_0001;
/// With this shift the clock stands still: jiffies reach the next unit after months, and tests move
/// the clock by its offset.
pub const FROZEN_SHIFT: u32 = 31;
/// Coarse units in a second, as with 250 jiffies a second and 64 jiffies a unit.
pub const SECOND: u32 = 4;

/// A destination of a service.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// A [`method`] number.
    pub method: u8,
    /// Its weight.
    pub weight: u32,
    /// Its upper threshold.
    pub upper: u32,
    /// Its lower threshold.
    pub lower: u32,
    /// Its tunnel, if the method is one.
    pub tunnel: Tunnel,
}

/// A virtual service with its destinations.
#[derive(Clone, Debug)]
pub struct Virtual {
    /// Virtual address.
    pub address: IpAddr,
    /// Virtual port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// A [`scheduler`](rlvs_datapath::abi::scheduler) number.
    pub scheduler: u32,
    /// Flags of the scheduler.
    pub scheduler_flags: u32,
    /// Its destinations, newest first: in the order in which rr picks them.
    pub servers: Vec<Server>,
}

/// Everything that a table is made from.
#[derive(Clone, Debug)]
pub struct Description {
    /// The services.
    pub services: Vec<Virtual>,
    /// Interfaces that are served.
    pub interfaces: Vec<Interface>,
    /// Pairs of connection buckets, IPv4 and IPv6 alike; a power of two.
    pub buckets: u32,
    /// Bits of [`Settings::flags`].
    pub flags: u32,
    /// [`Settings::mss`].
    pub mss: u32,
    /// CPUs.
    pub cpus: u32,
    /// [`Settings::clock_offset`].
    pub clock: u32,
}

impl Description {
    /// Returns the settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let mut timeouts = [0; 32];
        for (units, seconds) in timeouts.iter_mut().zip(State::TIMEOUTS_S) {
            *units = seconds * SECOND;
        }
        let destinations: usize = self.services.iter().map(|service| service.servers.len()).sum();
        Settings {
            layout: LAYOUT,
            cpus: self.cpus,
            connections4_mask: self.buckets - 1,
            connections6_mask: self.buckets - 1,
            keys: [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb],
            clock_shift: FROZEN_SHIFT,
            clock_offset: self.clock,
            flags: self.flags,
            mss: self.mss,
            drop_rate: 0,
            drop_rate_wanted: 0,
            drop_entry: 0,
            drop_packet: 0,
            secure_tcp: 0,
            amemthresh: 0,
            strict: 0,
            scarce: 0,
            lblc_expiration: EXPIRATION_S,
            lblcr_expiration: EXPIRATION_S,
            sync_refresh: 0,
            sync_buffer: 0,
            second: SECOND,
            timeouts,
            services: self.services.len() as u32 + 1,
            destinations: destinations as u32 + 1,
            wide_mask: self.buckets - 1,
        }
    }

    /// Builds the tables.
    #[must_use]
    pub fn build(&self) -> HostTables {
        let mut tables = HostTables::new(self.settings());
        for interface in &self.interfaces {
            let bucket =
                &mut tables.interfaces[(interface.index & (INTERFACE_BUCKETS - 1)) as usize];
            let slot = bucket.slots.iter_mut().find(|slot| slot.index == 0);
            *slot.expect("room for an interface") = *interface;
        }
        let mut replies = BTreeMap::new();
        let (mut destination_id, mut ring_start) = (0, 0);
        for (service, service_id) in self.services.iter().zip(1u32..) {
            let (address, port) = (service.address, service.port);
            enter(&mut tables, endpoint_kind::SERVICE, address, port, service.protocol, service_id);
            tables.services[service_id as usize] = Service {
                address: octets(address),
                port: port.to_be_bytes(),
                protocol: service.protocol,
                family: if address.is_ipv4() { 4 } else { 6 },
                flags: service_flag::LIVE,
                scheduler: service.scheduler,
                scheduler_flags: service.scheduler_flags,
                ..Service::default()
            };
            let first = destination_id + 1;
            for server in &service.servers {
                destination_id += 1;
                let mut reply = 0;
                if server.method == method::MASQUERADE {
                    let key = (server.address, server.port, service.protocol);
                    let next = FIRST_REPLY + replies.len() as u32;
                    reply = *replies.entry(key).or_insert(next);
                    if reply == next {
                        let kind = endpoint_kind::REPLY;
                        enter(&mut tables, kind, server.address, server.port, key.2, reply);
                    }
                }
                let sum = |address| checksum::fold(checksum::sum(&octets(address)));
                tables.destinations[destination_id as usize] = Destination {
                    address: octets(server.address),
                    port: server.port.to_be_bytes(),
                    method: server.method,
                    flags: destination_flag::AVAILABLE | place(server.address),
                    service: service_id,
                    reply,
                    weight: server.weight,
                    last_weight: server.weight,
                    upper: server.upper,
                    lower: server.lower,
                    address_delta: checksum::delta(sum(address), sum(server.address)),
                    port_delta: checksum::delta(port, server.port),
                    tunnel: if server.method == method::TUNNEL { destination_id } else { 0 },
                    overhead: server.tunnel.overhead,
                    family: if server.address.is_ipv4() { 4 } else { 6 },
                    ..Destination::default()
                };
            }
            for (id, server) in (first as usize..).zip(&service.servers) {
                tables.tunnels[id] = server.tunnel;
            }
            let list: Vec<Candidate> = (first..).zip(&service.servers).map(candidate).collect();
            let layout = scheduler::lay_out(service.scheduler, &list, None, 0);
            let lines = layout.elements.chunks(RING_LINE as usize);
            for (line, elements) in tables.rings[ring_start..].iter_mut().zip(lines.clone()) {
                line.elements[..elements.len()].copy_from_slice(elements);
            }
            let (start, length) = (ring_start as u32, layout.elements.len() as u32);
            let ring = Ring::new(service.scheduler, service.scheduler_flags, start, length);
            tables.schedules[service_id as usize].ring.set(ring.0);
            ring_start += lines.len();
        }
        tables
    }
}

fn candidate((id, server): (u32, &Server)) -> Candidate {
    let Server { address, port, weight, upper, .. } = *server;
    Candidate { id, weight, last_weight: weight, limited: upper != 0, address, port }
}

/// Enters an endpoint.
///
/// # Panics
/// There is no room.
pub fn enter(
    tables: &mut HostTables,
    kind: u64,
    address: IpAddr,
    port: u16,
    protocol: u8,
    id: u32,
) {
    match address {
        IpAddr::V4(address) => {
            let address = V4(address.to_bits());
            let key = Key::new(&tables.settings, kind, address, port, protocol);
            announce(tables, key.presence);
            for place in [key.places.first, key.places.second] {
                let bucket = tables.endpoints4.entry(place).or_default();
                if let Some(slot) = bucket.slots.iter_mut().find(|slot| slot.value.get() == 0) {
                    *slot = Slot4 { key: key.word.into(), value: u64::from(id).into() };
                    return;
                }
            }
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let address = V6((bits >> 64) as u64, bits as u64);
            let key = Key::new(&tables.settings, kind, address, port, protocol);
            announce(tables, key.presence);
            let (high, low) = address.words();
            for place in [key.places.first, key.places.second] {
                let bucket = tables.endpoints6.entry(place).or_default();
                if let Some(slot) = bucket.slots.iter_mut().find(|slot| slot.value.get() == 0) {
                    let (key, value) = (key.word.into(), u64::from(id).into());
                    *slot = Slot6 { key, value, high: high.into(), low: low.into() };
                    return;
                }
            }
        }
    }
    panic!("no room for an endpoint");
}

fn announce(tables: &HostTables, (word, bit): (u32, u64)) {
    let word = &tables.presence[word as usize];
    word.set(word.get() | bit);
}

/// Writes an address as maps hold it.
#[must_use]
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96).to_be_bytes(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Writes an address as the wide table and pools hold it.
#[must_use]
pub fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, address.to_bits().into()],
        IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
    }
}

/// Returns what the control plane finds of a destination's place.
fn place(address: IpAddr) -> u8 {
    if network::is_own(address) { destination_flag::LOCAL } else { 0 }
}
