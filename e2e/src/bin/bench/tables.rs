//! The tables of the object under test, written straight into its maps.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use aya::Ebpf;
use rlvs_control::scheduler::{Candidate, lay_out};
use rlvs_datapath::abi::{
    self, Bucket, Connections4, Counts, Destination, IDS, INTERFACE_BUCKETS, Pool, PoolAddress,
    REASONS, RING_LINE, Row, Service, Settings, Tunnel, WIDE_DEFAULT, destination_flag,
    endpoint_kind, interface_flag, method, scheduler, service_flag, settings_flag, tunnel_checksum,
};
use rlvs_datapath::connection::Value;
use rlvs_datapath::endpoint;
use rlvs_datapath::ip::{V4, V6};
use rlvs_datapath::reason::Reason;
use rlvs_datapath::schedulers::Ring;
use rlvs_datapath::state::State;
use rlvs_wire::{checksum, gue};

use crate::maps::Mapped;
use crate::stage::{Interface, ROUTER};

/// A slot of a connection table, as plain words.
#[repr(C)]
#[derive(Clone, Copy)]
struct Slot4([u64; 2]);
#[repr(C)]
#[derive(Clone, Copy)]
struct Slot6([u64; 4]);

/// The first virtual port, and the real one.
pub(crate) const PORT: u16 = 80;
pub(crate) const REAL_PORT: u16 = 8080;
const TCP: u8 = 6;
/// Lines of the ring map that a service has.
const LINES: u32 = 512;

/// The maps that the benchmark writes or reads.
pub(crate) struct Tables {
    pub(crate) cpus: u32,
    cpu: u32,
    settings: Mapped<Settings>,
    interfaces: Mapped<abi::Interfaces>,
    services: Mapped<Service>,
    schedules: Mapped<[u64; 8]>,
    rings: Mapped<u64>,
    destinations: Mapped<Destination>,
    endpoints4: Mapped<[Slot4; 4]>,
    endpoints6: Mapped<[Slot6; 4]>,
    presence: Mapped<u64>,
    tunnels: Mapped<Tunnel>,
    pools: Mapped<Pool>,
    wide: Mapped<[u64; 8]>,
    rows: Mapped<[u64; 8]>,
    counts: Mapped<[u64; 2]>,
    reasons: Mapped<u64>,
    occupancy: Mapped<u64>,
    connections4: Mapped<[Slot4; abi::SLOTS4]>,
    connections6: Mapped<[Slot6; abi::SLOTS6]>,
}

/// One service with its destinations, all of one forwarding method.
pub(crate) struct Virtual {
    pub(crate) id: u32,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) method: u8,
    /// Kind of tunnel, if the method is one.
    pub(crate) form: u8,
    /// Whether both ends are translated.
    pub(crate) is_full: bool,
    pub(crate) destinations: Vec<(u32, IpAddr)>,
}

const _: () = {
    assert!(size_of::<Bucket<Slot4, 8>>() == size_of::<Connections4>());
    assert!(size_of::<Row>() == 64 && size_of::<Counts>() == 16);
};

impl Tables {
    /// Maps all of them.
    pub(crate) fn new(ebpf: &Ebpf, cpus: u32, cpu: u32) -> Result<Self> {
        Ok(Self {
            cpus,
            cpu,
            settings: Mapped::new(ebpf, "settings")?,
            interfaces: Mapped::new(ebpf, "interfaces")?,
            services: Mapped::new(ebpf, "services")?,
            schedules: Mapped::new(ebpf, "schedules")?,
            rings: Mapped::new(ebpf, "rings")?,
            destinations: Mapped::new(ebpf, "destinations")?,
            endpoints4: Mapped::new(ebpf, "endpoints4")?,
            endpoints6: Mapped::new(ebpf, "endpoints6")?,
            presence: Mapped::new(ebpf, "presence")?,
            tunnels: Mapped::new(ebpf, "tunnels")?,
            pools: Mapped::new(ebpf, "pools")?,
            wide: Mapped::new(ebpf, "wide")?,
            rows: Mapped::new(ebpf, "rows")?,
            counts: Mapped::new(ebpf, "counts")?,
            reasons: Mapped::new(ebpf, "reasons")?,
            occupancy: Mapped::new(ebpf, "occupancy")?,
            connections4: Mapped::new(ebpf, "connections4")?,
            connections6: Mapped::new(ebpf, "connections6")?,
        })
    }

    /// Writes the settings; `hz` is the kernel's.
    pub(crate) fn set_settings(&mut self, hz: u32) {
        // Units of 256 ms or more.
        let clock_shift = (hz * 256).div_ceil(1000).next_power_of_two().ilog2();
        let units = |seconds: u32| (seconds * hz).div_ceil(1 << clock_shift);
        let mut timeouts = [units(2); 32];
        for (units_of_state, seconds) in timeouts.iter_mut().zip(State::TIMEOUTS_S) {
            *units_of_state = units(seconds);
        }
        let settings = Settings {
            layout: abi::LAYOUT,
            cpus: self.cpus,
            keys: [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0],
            clock_shift,
            second: units(1),
            timeouts,
            services: 16,
            destinations: 16,
            ..Settings::default()
        };
        self.settings.set(0, settings);
    }

    /// Enters an interface.
    pub(crate) fn add_interface(&mut self, interface: &Interface) {
        let place = interface.index & (INTERFACE_BUCKETS - 1);
        let mut bucket = self.interfaces.get(place);
        let [a, b, c, d, e, f] = interface.mac.0;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        bucket.slots[0] =
            abi::Interface { index: interface.index, flags: interface_flag::XDP, mac };
        self.interfaces.set(place, bucket);
    }

    /// Enters a service, its destinations, its ring and its endpoints.
    pub(crate) fn add_service(&mut self, service: &Virtual) -> Result<()> {
        let Virtual { id, address, port, method, is_full, .. } = *service;
        let family = if address.is_ipv4() { 4 } else { 6 };
        let virtual_octets = octets(address);
        self.services.set(
            id,
            Service {
                address: virtual_octets,
                port: port.to_be_bytes(),
                protocol: TCP,
                family,
                flags: service_flag::LIVE
                    | if is_full { service_flag::SPECIAL | service_flag::FULL } else { 0 },
                scheduler: scheduler::RR,
                ..Service::default()
            },
        );
        self.add_endpoint(endpoint_kind::SERVICE, address, port, id)?;
        if is_full {
            self.fill_pool(family);
        }
        let translates = method == method::MASQUERADE && !is_full;
        for &(destination, real) in &service.destinations {
            let reply = if translates { IDS + destination } else { 0 };
            let sum = |octets: &[u8; 16]| checksum::fold(checksum::sum(octets));
            let wraps = method == method::TUNNEL;
            let tunnel = if wraps {
                let source = crate::stage::server(family, ROUTER);
                let none = tunnel_checksum::NONE;
                Tunnel::new((source, real), family, service.form, none, gue::PORT)
            } else {
                Tunnel::default()
            };
            self.tunnels.set(destination, tunnel);
            self.destinations.set(
                destination,
                Destination {
                    address: octets(real),
                    port: REAL_PORT.to_be_bytes(),
                    method,
                    flags: destination_flag::AVAILABLE
                        | if is_full { destination_flag::FULL } else { 0 },
                    service: id,
                    reply,
                    weight: 1,
                    address_delta: checksum::delta(sum(&virtual_octets), sum(&octets(real))),
                    port_delta: checksum::delta(port, REAL_PORT),
                    tunnel: if wraps { destination } else { 0 },
                    overhead: tunnel.overhead,
                    family,
                    ..Destination::default()
                },
            );
            if translates {
                self.add_endpoint(endpoint_kind::REPLY, real, REAL_PORT, reply)?;
            }
        }
        self.set_ring(service, scheduler::RR, service.destinations.len());
        Ok(())
    }

    /// Gives full NAT the address of the director among the servers, and room for its connections.
    fn fill_pool(&mut self, family: u8) {
        let mut settings = self.settings.get(0);
        settings.wide_mask = WIDE_DEFAULT - 1;
        self.settings.set(0, settings);
        let number = u32::from(family != 4);
        let mut pool = self.pools.get(number);
        let address = match crate::stage::server(family, ROUTER) {
            IpAddr::V4(address) => [0, address.to_bits().into()],
            IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
        };
        pool.length = 1;
        pool.addresses[0] = PoolAddress { address, first: 1024, last: 65535, reserved: 0 };
        self.pools.set(number, pool);
    }

    /// Has packets that no endpoint names looked up in the wide table, or not.
    pub(crate) fn set_wide(&mut self, is_wide: bool) {
        let mut settings = self.settings.get(0);
        settings.flags = if is_wide { settings_flag::WIDE } else { 0 };
        self.settings.set(0, settings);
    }

    /// Has the guard asked about new connections of a service, or not.
    pub(crate) fn set_guarded(&mut self, id: u32, is_guarded: bool) {
        let mut service = self.services.get(id);
        service.flags &= !service_flag::GUARDED;
        service.flags |= if is_guarded { service_flag::GUARDED } else { 0 };
        self.services.set(id, service);
    }

    /// Lets a service schedule to its first destinations only, all of one weight.
    pub(crate) fn set_ring(&mut self, service: &Virtual, scheduler: u32, destinations: usize) {
        let candidate = |&(id, address)| Candidate {
            id,
            weight: 1,
            last_weight: 1,
            limited: false,
            address,
            port: REAL_PORT + id as u16,
        };
        let list: Vec<_> = service.destinations.iter().take(destinations).map(candidate).collect();
        let mut elements = lay_out(scheduler, &list, None, 0).elements;
        let ring = Ring::new(scheduler, 0, service.id * LINES, elements.len() as u32);
        elements.resize(elements.len().next_multiple_of(RING_LINE as usize), 0);
        for (at, element) in (service.id * LINES * RING_LINE..).zip(elements) {
            self.rings.set(at, element);
        }
        self.schedules.set(service.id, [ring.0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Returns how many connection slots are said to be in their second place, for
    /// [`set_elsewhere`](Self::set_elsewhere).
    pub(crate) fn elsewhere(&self) -> u64 {
        self.schedules.get(0)[1]
    }

    /// Sets that number: whoever changes connections by hand must.
    pub(crate) fn set_elsewhere(&mut self, number: u64) {
        self.schedules.set(0, [0, number, 0, 0, 0, 0, 0, 0]);
    }

    fn announce(&mut self, (word, bit): (u32, u64)) {
        self.presence.set(word, self.presence.get(word) | bit);
    }

    fn add_endpoint(&mut self, kind: u64, address: IpAddr, port: u16, id: u32) -> Result<()> {
        let settings = self.settings.get(0);
        match address {
            IpAddr::V4(address) => {
                let address = V4(u32::from(address));
                let key = endpoint::Key::new(&settings, kind, address, port, TCP);
                self.announce(key.presence);
                let mut bucket = self.endpoints4.get(key.places.first);
                let free = bucket.iter_mut().find(|slot| slot.0[1] == 0);
                ensure!(free.is_some(), "no room for an endpoint");
                free.into_iter().for_each(|slot| *slot = Slot4([key.word, id.into()]));
                self.endpoints4.set(key.places.first, bucket);
            }
            IpAddr::V6(address) => {
                let whole = u128::from(address);
                let (high, low) = ((whole >> 64) as u64, whole as u64);
                let key = endpoint::Key::new(&settings, kind, V6(high, low), port, TCP);
                self.announce(key.presence);
                let mut bucket = self.endpoints6.get(key.places.first);
                let free = bucket.iter_mut().find(|slot| slot.0[1] == 0);
                ensure!(free.is_some(), "no room for an endpoint");
                free.into_iter().for_each(|slot| *slot = Slot6([key.word, id.into(), high, low]));
                self.endpoints6.set(key.places.first, bucket);
            }
        }
        Ok(())
    }

    /// Empties the connection table of a family and makes it as large as `pairs` pairs of buckets.
    pub(crate) fn clear(&mut self, family: u8, pairs: u32) {
        let mut settings = self.settings.get(0);
        if family == 4 {
            settings.connections4_mask = pairs - 1;
        } else {
            settings.connections6_mask = pairs - 1;
        }
        self.settings.set(0, settings);
        self.connections(family, pairs).fill(0);
        self.wide.bytes().fill(0);
        self.occupancy.bytes().fill(0);
        self.set_elsewhere(0);
        self.counts.bytes().fill(0);
    }

    /// Returns the memory of a connection table's first `pairs` pairs of buckets.
    pub(crate) fn connections(&mut self, family: u8, pairs: u32) -> &mut [u8] {
        let all = if family == 4 { self.connections4.bytes() } else { self.connections6.bytes() };
        &mut all[..pairs as usize * PAIR_BYTES]
    }

    /// Returns how many slots of a connection table are in use.
    pub(crate) fn used(&self, family: u8, pairs: u32) -> u64 {
        let live = |value: u64| u64::from(Value(value).is_live());
        let used = |at| -> u64 {
            if family == 4 {
                self.connections4.get(at).iter().map(|slot| live(slot.0[1])).sum()
            } else {
                self.connections6.get(at).iter().map(|slot| live(slot.0[1])).sum()
            }
        };
        (0..pairs).map(used).sum()
    }

    /// Returns how many connections the destinations of a service have.
    pub(crate) fn counted(&self, service: &Virtual) -> u64 {
        let of = |&(id, _): &(u32, IpAddr)| {
            let connections = self.counts.get(id)[0];
            (connections & 0xffff_ffff) + (connections >> 32)
        };
        service.destinations.iter().map(of).sum()
    }

    /// Returns how many packets this CPU has forwarded for a service, both ways.
    pub(crate) fn forwarded(&self, service: &Virtual) -> u64 {
        let of = |&(id, _): &(u32, IpAddr)| {
            let [_, requests, replies, ..] = self.rows.get(id * self.cpus + self.cpu);
            requests + replies
        };
        service.destinations.iter().map(of).sum()
    }

    /// Returns the reasons for which packets were not simply forwarded, with their numbers.
    pub(crate) fn reasons(&self) -> Vec<(&'static str, u64)> {
        let of = |reason: &Reason| {
            (reason.name(), self.reasons.get(self.cpu * REASONS + *reason as u32))
        };
        Reason::ALL.iter().map(of).filter(|(_, number)| *number > 0).collect()
    }

    /// Forgets the reasons.
    pub(crate) fn forget_reasons(&mut self) {
        self.reasons.bytes().fill(0);
    }
}

/// Bytes of a pair of connection buckets, of either family.
pub(crate) const PAIR_BYTES: usize = size_of::<Connections4>();

/// Returns an address as maps hold it.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}
