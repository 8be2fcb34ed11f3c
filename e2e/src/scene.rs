//! The scene that most tests play in: virtual address 100 with two services of each family on port
//! 80, TCP and UDP.

use rlvs_datapath::abi::{
    PoolAddress, Tunnel, destination_flag, method, scheduler, service_flag, settings_flag,
};

use crate::host::HostTables;
use crate::network::{self, Network};
use crate::packet::{Kind, Packet};
use crate::table::{Description, Server, Virtual, address_words};

/// IP protocol number of TCP.
pub const TCP: u8 = rlvs_wire::tcp::PROTOCOL;
/// IP protocol number of UDP.
pub const UDP: u8 = rlvs_wire::udp::PROTOCOL;
/// IP protocol number of SCTP.
pub const SCTP: u8 = rlvs_wire::sctp::PROTOCOL;
/// Port of the services.
pub const PORT: u16 = 80;
/// UDP port to which GUE goes.
pub const TUNNEL_PORT: u16 = 6080;
/// Port of NAT destinations.
pub const REAL_PORT: u16 = 8080;
/// First port of the pool of full NAT.
pub const POOL_FIRST: u16 = 5000;

/// Returns a destination; NAT changes the port, direct routing cannot.
#[must_use]
pub fn destination(family: u8, number: u8, method: u8) -> Server {
    let port = if method == method::MASQUERADE { REAL_PORT } else { PORT };
    Server {
        address: network::server(family, number),
        port,
        method,
        weight: 1,
        upper: 0,
        lower: 0,
        tunnel: Tunnel::default(),
    }
}

/// Returns a destination that [`translate_fully`] makes one of full NAT: it has no endpoint for its
/// answers.
#[must_use]
pub fn full(family: u8, number: u8) -> Server {
    Server { port: REAL_PORT, ..destination(family, number, method::DIRECT) }
}

/// Has [`full`] destinations, and their services, do full NAT, with a pool of so many ports at the
/// director's addresses among the servers.
pub fn translate_fully(tables: &mut HostTables, ports: u16) {
    for to in &mut tables.destinations {
        if to.service != 0 && to.method == method::DIRECT && to.port == REAL_PORT.to_be_bytes() {
            (to.method, to.flags) = (method::MASQUERADE, to.flags | destination_flag::FULL);
            let service = &mut tables.services[to.service as usize];
            service.flags |= service_flag::SPECIAL | service_flag::FULL;
            tables.settings.flags |= settings_flag::WIDE;
        }
    }
    for (family, pool) in [4, 6].into_iter().zip(&mut tables.pools) {
        let (first, last) = (POOL_FIRST, POOL_FIRST + ports - 1);
        let address = address_words(network::server(family, 1));
        pool.length = 1;
        pool.addresses[0] = PoolAddress { address, first, last, reserved: 0 };
    }
}

/// Returns a destination at the end of a tunnel for packets of a family.
#[must_use]
pub fn tunnelled(family: u8, outer: u8, number: u8, form: u8, checksum: u8) -> Server {
    let ends = (network::server(outer, 1), network::server(outer, number));
    let tunnel = Tunnel::new(ends, family, form, checksum, TUNNEL_PORT);
    let address = network::server(outer, number);
    Server { address, tunnel, ..destination(outer, number, method::TUNNEL) }
}

/// Returns a round-robin service on virtual address 100.
#[must_use]
pub fn service(family: u8, protocol: u8, servers: Vec<Server>) -> Virtual {
    let address = network::vip(family, 100);
    Virtual { address, port: PORT, protocol, scheduler: scheduler::RR, scheduler_flags: 0, servers }
}

/// Returns tables with these services on both sides of the network.
#[must_use]
pub fn description(network: &Network, services: Vec<Virtual>) -> Description {
    Description {
        services,
        interfaces: vec![network.inside.interface(0), network.outside.interface(0)],
        buckets: 64,
        flags: 0,
        mss: 0,
        cpus: network.cpus,
        clock: 1000,
    }
}

/// Returns tables with service 1 for TCP and service 2 for UDP, each with its own destination, of
/// the same number, on server 11.
#[must_use]
pub fn plain(network: &Network, family: u8, method: u8) -> Description {
    let of = |protocol| service(family, protocol, vec![destination(family, 11, method)]);
    description(network, vec![of(TCP), of(UDP)])
}

/// Returns a packet from client 7, port 4242, to the service.
#[must_use]
pub fn request(network: &Network, family: u8, kind: Kind) -> Packet {
    Packet {
        from: network::GATEWAY_MAC,
        to: network.inside.mac,
        source: (network::client(family, 7), 4242).into(),
        target: (network::vip(family, 100), PORT).into(),
        kind,
        ttl: 64,
        payload: b"what the client says".to_vec(),
    }
}

/// Returns a packet from server 11 to that client.
#[must_use]
pub fn reply(network: &Network, family: u8, kind: Kind) -> Packet {
    Packet {
        from: network::server_mac(11),
        to: network.outside.mac,
        source: (network::server(family, 11), REAL_PORT).into(),
        target: (network::client(family, 7), 4242).into(),
        kind,
        ttl: 64,
        payload: b"what the server says!".to_vec(),
    }
}

/// Returns the lines of a test's expectation in order; empty ones are left out.
#[must_use]
pub fn lines<const N: usize>(lines: [String; N]) -> Vec<String> {
    let mut lines: Vec<String> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    lines.sort();
    lines
}
