//! Real sockets at both ends of each kind of tunnel; the kernel's own stack judges the checksums.
//!
//! What the client sends to the virtual address goes to a gateway that does not exist. The test
//! picks it up on the wire, wraps it and sends it to the server, whose answers come back as they
//! are.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::lab::{Random, connect, tcp_server, udp_client, udp_server, wait_until};
use e2e::packet::{Kind as Transport, Packet};
use e2e::wire;
use rlvs_linux::decap::{Decapsulator, Encapsulation, Kind};
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::route::{Mac, Prefix, Rtnetlink};
use rlvs_linux::{ethtool, sysctl};
use rlvs_wire::tcp::SYN;

use crate::wrap::{ETHERNET, GUE_PORT, Wrap, kinds, transport};

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const ECHO_PORT: u16 = 7;
const ECHO_BYTES: usize = 100_000;
/// Longest inner packet: with the longest outer headers it fits the wire.
const INNER_MTU: &str = "1400";

fn address(is_v6: bool, last: u8) -> IpAddr {
    if is_v6 {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last.into()])
    } else {
        IpAddr::from([192, 168, 7, last])
    }
}

const CLIENT: u8 = 1;
const SERVER: u8 = 2;
const GATEWAY: u8 = 9;

fn vip(is_v6: bool) -> IpAddr {
    if is_v6 { IpAddr::from([0xfd00, 7, 0, 0, 0, 0, 0, 1]) } else { IpAddr::from([10, 7, 0, 1]) }
}

/// A client and a server with a wire between them.
struct Pair {
    client: Namespace,
    server: Namespace,
    client_index: u32,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.server] {
            netns::delete(namespace.name()).ok();
        }
    }
}

impl Pair {
    fn new(test: &str) -> Self {
        let make = |role: &str| {
            let name = format!("rlvs-e2e-{}-{test}-{role}", std::process::id());
            Namespace::create(&name).unwrap()
        };
        let mut pair = Self { client: make("client"), server: make("server"), client_index: 0 };
        for namespace in [&pair.client, &pair.server] {
            let parameters = [
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
            ];
            let write = || parameters.map(|(path, value)| sysctl::write(path, value).unwrap());
            namespace.run(write).unwrap();
        }
        let mut client = Rtnetlink::open_in(&pair.client).unwrap();
        let mut server = Rtnetlink::open_in(&pair.server).unwrap();
        client.add_veth("eth0", "eth0", &pair.server).unwrap();
        pair.client_index = set_up(&mut client, CLIENT_MAC, CLIENT);
        set_up(&mut server, SERVER_MAC, SERVER);
        for namespace in [&pair.client, &pair.server] {
            namespace.run(|| ethtool::tx_checksum_off("eth0").unwrap()).unwrap();
        }
        for is_v6 in [false, true] {
            let address_of_vip = vip(is_v6);
            let bits = if is_v6 { 128 } else { 32 };
            let prefix = Prefix { address: address_of_vip, bits };
            server.add_virtual_address(1, prefix).unwrap();
            let gateway = address(is_v6, GATEWAY);
            client.set_neighbour(pair.client_index, gateway, Mac(GATEWAY_MAC)).unwrap();
            let route = format!("route add {address_of_vip} via {gateway} mtu {INNER_MTU}");
            let mut command = Command::new("ip");
            command.args(route.split(' '));
            pair.client.place(&mut command).unwrap();
            assert!(command.status().unwrap().success(), "{command:?}");
        }
        pair
    }

    fn wrap(&self, kind: Kind) -> Wrap {
        Wrap {
            encapsulation: kind.encapsulation,
            from: CLIENT_MAC,
            to: SERVER_MAC,
            source: address(kind.outer_v6, CLIENT),
            target: address(kind.outer_v6, SERVER),
        }
    }

    fn attach(&self) -> Decapsulator {
        self.server.run(|| Decapsulator::attach(&["eth0"], GUE_PORT).unwrap()).unwrap()
    }

    fn wire(&self) -> UdpSocket {
        self.client.run(|| wire::open(self.client_index).unwrap()).unwrap()
    }
}

fn set_up(rtnetlink: &mut Rtnetlink, mac: [u8; 6], last: u8) -> u32 {
    let index = rtnetlink.link("eth0").unwrap().index;
    rtnetlink.set_mac(index, Mac(mac)).unwrap();
    for (is_v6, bits) in [(false, 24), (true, 64)] {
        let address = address(is_v6, last);
        rtnetlink.add_address(index, Prefix { address, bits }).unwrap();
    }
    rtnetlink.set_up(1, true).unwrap();
    rtnetlink.set_up(index, true).unwrap();
    index
}

/// Ends the forwarding, also when a test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Wraps what goes to the gateway, as `wrap` says, until told to end.
fn forward(wire: &UdpSocket, wrap: &Mutex<Wrap>, end: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !end.load(Ordering::Relaxed) {
        let Ok(length) = wire.recv(&mut buffer) else { continue };
        if length > ETHERNET && buffer[..6] == GATEWAY_MAC {
            let frame = wrap.lock().unwrap().frame(&buffer[ETHERNET..length]);
            wire.send(&frame).unwrap();
        }
    }
}

fn echo_over_tcp(to: SocketAddr, bytes: &[u8]) {
    let mut greeted = connect(to).unwrap();
    assert_eq!(greeted.name, "server");
    greeted.stream.write_all(bytes).unwrap();
    greeted.stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    greeted.stream.read_to_end(&mut received).unwrap();
    assert!(received == bytes, "{} bytes instead of {}", received.len(), bytes.len());
}

fn echo_over_udp(to: SocketAddr, bytes: &[u8]) {
    let socket = udp_client(to).unwrap();
    let mut buffer = [0; 2048];
    for length in [0, 1, 100, 1001, 1352] {
        socket.send(&bytes[..length]).unwrap();
        let received = socket.recv(&mut buffer).unwrap();
        assert!(buffer[..received] == bytes[..length], "{length} bytes");
    }
}

#[test]
fn real_sockets_talk_through_every_kind_of_tunnel() {
    let pair = Pair::new("talk");
    let decapsulator = pair.attach();
    tcp_server(&pair.server, ECHO_PORT, Some("server"));
    for is_v6 in [false, true] {
        udp_server(&pair.server, SocketAddr::new(vip(is_v6), ECHO_PORT), "");
    }
    let wire = pair.wire();
    let first = kinds().next().unwrap();
    let (wrap, end) = (Mutex::new(pair.wrap(first)), AtomicBool::new(false));
    let sent = Random(88_172).bytes(ECHO_BYTES);
    std::thread::scope(|scope| {
        let _ended = Ended(&end);
        scope.spawn(|| forward(&wire, &wrap, &end));
        for kind in kinds() {
            // The last acknowledgement of the connection before may be wrapped as this kind's.
            let count = || decapsulator.counters().unwrap().taken_out.get(&kind).copied();
            let before = count().unwrap_or(0);
            *wrap.lock().unwrap() = pair.wrap(kind);
            let target = SocketAddr::new(vip(kind.inner_v6), ECHO_PORT);
            let talk = || {
                echo_over_udp(target, &sent);
                echo_over_tcp(target, &sent);
            };
            pair.client.run(talk).unwrap();
            let packets = count().unwrap_or(0) - before;
            // Datagrams, the handshake, and segments with the bytes.
            let expected = 5 + 2 + (ECHO_BYTES / 1400) as u64;
            assert!(packets >= expected, "{kind:?}: {packets} packets");
        }
        let counters = decapsulator.counters().unwrap();
        assert_eq!(counters.taken_out.len(), kinds().count(), "{counters:?}");
        assert!(counters.refused.is_empty(), "{counters:?}");
    });
}

/// Reads a counter of the server's stack, of /proc/net/snmp or snmp6.
fn stack_counter(pair: &Pair, is_v6: bool, protocol: &str) -> u64 {
    let read = |path| pair.server.run(|| std::fs::read_to_string(path).unwrap()).unwrap();
    // TCP counts both families in one place.
    if is_v6 && protocol == "Udp" {
        let text = read("/proc/thread-self/net/snmp6");
        let line = text.lines().find(|line| line.starts_with("Udp6InCsumErrors")).unwrap();
        return line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    }
    let text = read("/proc/thread-self/net/snmp");
    let prefix = format!("{protocol}:");
    let mut rows = text.lines().filter(|line| line.starts_with(&prefix));
    let names = rows.next().unwrap().split_ascii_whitespace();
    let values = rows.next().unwrap().split_ascii_whitespace();
    let (_, value) = names.zip(values).find(|(name, _)| *name == "InCsumErrors").unwrap();
    value.parse().unwrap()
}

#[test]
fn the_servers_stack_still_refuses_a_wrong_inner_checksum() {
    let pair = Pair::new("wrong");
    let decapsulator = pair.attach();
    let wire = pair.wire();
    let (mut taken_out, mut wrong) = (0, BTreeMap::new());
    for kind in kinds() {
        // There the far end makes the checksum.
        if matches!(kind.encapsulation, Encapsulation::GueRemote | Encapsulation::GueRemoteChecksum)
        {
            continue;
        }
        for (protocol, inner) in [("Udp", Transport::Udp), ("Tcp", Transport::Tcp(SYN))] {
            let packet = Packet {
                from: CLIENT_MAC,
                to: SERVER_MAC,
                source: SocketAddr::new(address(kind.inner_v6, CLIENT), 40_000),
                target: SocketAddr::new(vip(kind.inner_v6), ECHO_PORT),
                kind: inner,
                ttl: 63,
                payload: vec![1, 2, 3],
            };
            let mut inner = packet.bytes().split_off(ETHERNET);
            let at = transport(&inner).1;
            inner[at] ^= 0x40;
            wire.send(&pair.wrap(kind).frame(&inner)).unwrap();
            taken_out += 1;
            wait_until("packets taken out", &taken_out, || {
                decapsulator.counters().unwrap().taken_out.values().sum::<u64>()
            });
            let is_apart = kind.inner_v6 && protocol == "Udp";
            let expected = wrong.entry((protocol, is_apart)).or_insert(0);
            *expected += 1;
            wait_until(&format!("{kind:?} {protocol}"), expected, || {
                stack_counter(&pair, kind.inner_v6, protocol)
            });
        }
    }
}

#[test]
fn the_program_stays_on_the_interface_when_its_holder_goes() {
    let pair = Pair::new("stays");
    let kind = kinds().next().unwrap();
    drop(pair.attach());
    let target = SocketAddr::new(vip(false), ECHO_PORT);
    udp_server(&pair.server, target, "");
    let wire = pair.wire();
    let (wrap, end) = (Mutex::new(pair.wrap(kind)), AtomicBool::new(false));
    let received = std::thread::scope(|scope| {
        let _ended = Ended(&end);
        scope.spawn(|| forward(&wire, &wrap, &end));
        let ask = || {
            let socket = udp_client(target).unwrap();
            socket.send(b"still there?").unwrap();
            socket.recv(&mut [0; 64])
        };
        pair.client.run(ask).unwrap()
    });
    assert_eq!(received.unwrap(), 12);
}
