//! Many packets at once, from the lab's client or from others behind it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::net::if_::if_nametoindex;
use rlvs_wire::tcp::{ACK, SYN};

use crate::lab::{self, Stage};
use crate::packet::{Kind, Message, Packet};
use crate::{unusual, wire};

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
fn send(socket: &UdpSocket, frame: &[u8]) {
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

/// What a flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// SYNs to a service, of clients that do not go on.
    Syns,
    /// Datagrams to a service.
    Datagrams,
    /// First fragments of datagrams to a service, which nothing follows.
    Fragments,
    /// ICMP errors about connections that nobody has.
    Errors,
}

impl Flood {
    /// Makes so many frames of as many clients from a start number.
    #[must_use]
    pub fn frames(self, director: [u8; 6], target: SocketAddrV4, count: u32) -> Vec<Vec<u8>> {
        let frame = |number: u32| {
            let source = Ipv4Addr::from_bits(CLIENTS.to_bits() + number);
            let kind = if self == Self::Syns { Kind::Tcp(SYN) } else { Kind::Udp };
            let packet = Packet {
                from: [2, 0, 0, 0, 0, 1],
                to: director,
                source: (source, (FIRST_PORT + number % PORTS) as u16).into(),
                target: target.into(),
                kind,
                ttl: 64,
                payload: vec![0; if self == Self::Fragments { 64 } else { 0 }],
            };
            match self {
                Self::Syns | Self::Datagrams => packet.bytes(),
                Self::Fragments => unusual::fragments(&packet.bytes(), number, 32).swap_remove(0),
                Self::Errors => {
                    let said = Packet {
                        source: packet.target,
                        target: packet.source,
                        kind: Kind::Tcp(ACK),
                        ..packet.clone()
                    };
                    let message = Message {
                        from: packet.from,
                        to: packet.to,
                        source: source.into(),
                        target: (*target.ip()).into(),
                        ttl: 64,
                        kind: [3, 1],
                        rest: [0; 4],
                        payload: said.bytes().split_off(14),
                    };
                    message.bytes()
                }
            }
        };
        (0..count).map(frame).collect()
    }
}

/// Sends frames again and again until `stop`.
///
/// # Panics
/// They cannot be sent.
pub fn spray(socket: &UdpSocket, frames: &[Vec<u8>], stop: &AtomicBool) {
    for frame in frames.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        send(socket, frame);
    }
}
