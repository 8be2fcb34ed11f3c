//! Many packets at once, from the lab's client or from others behind it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;

use nix::net::if_::if_nametoindex;

use crate::lab::{self, Stage};
use crate::packet::{Kind, Packet};
use crate::wire;

/// Ports of one client.
const PORTS: u32 = 50_000;
/// The first port.
const FIRST_PORT: u32 = 10_000;
/// The first address of clients that are none.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Returns the address of an interface of the director.
///
/// # Panics
/// There is no such interface.
#[must_use]
pub fn address_of(stage: &Stage, interface: &str) -> [u8; 6] {
    let words = ["-j", "link", "show", interface];
    let links = lab::run(stage.lab.director(), Path::new("ip"), &words).ok();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    let octets = links[0]["address"].as_str().unwrap().split(':');
    let octets: Vec<u8> = octets.map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// Opens a packet socket on the client's interface.
///
/// # Panics
/// There is none, or no right to see what is on it.
#[must_use]
pub fn wire_of_client(stage: &Stage) -> UdpSocket {
    let open = || wire::open(if_nametoindex("eth0").unwrap()).unwrap();
    stage.lab.client().run(open).unwrap()
}

/// Sends a frame, when there is room for it.
///
/// # Panics
/// It cannot be sent at all.
pub fn send(socket: &UdpSocket, frame: &[u8]) {
    while let Err(error) = socket.send(frame) {
        let is_full =
            error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS);
        assert!(is_full, "{error}");
        std::thread::yield_now();
    }
}

/// Sends the first packet of so many flows to a service of the director.
///
/// # Panics
/// They cannot be sent.
pub fn open(stage: &Stage, target: SocketAddrV4, kind: Kind, flows: u32) {
    let (to, socket) = (address_of(stage, "eth0"), wire_of_client(stage));
    for flow in 0..flows {
        let source = Ipv4Addr::from_bits(CLIENTS.to_bits() + flow / PORTS);
        let packet = Packet {
            from: [2, 0, 0, 0, 0, 1],
            to,
            source: SocketAddr::new(source.into(), (FIRST_PORT + flow % PORTS) as u16),
            target: target.into(),
            kind,
            ttl: 64,
            payload: Vec::new(),
        };
        send(&socket, &packet.bytes());
    }
}
