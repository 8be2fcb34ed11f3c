//! Datagrams longer than the way to the real server: cut for a tunnel, else dropped and counted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use e2e::lab::{Method, Random, Stage, run, udp_client, udp_server, wait_until};
use nix::sys::socket::{SockaddrStorage, bind};
use rlvs::lab::topology::{GUE_PORT, OUTSIDE_INTERFACE, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::ethtool;
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::{Prefix, Rtnetlink};
use rlvs_wire::{checksum, gre, gue, ipip, ipv4, udp};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const WIRINGS: [Wiring; 2] = [Wiring::Plain, Wiring::Tuned];
const PORT: u16 = 4000;
/// MTU of all links, and of a narrow way.
const MTU: usize = 1500;
const NARROW: usize = 1400;
/// Bytes of headers before what a datagram carries.
const HEADERS: usize = 28;
/// The option of UDP sockets to take datagrams of IPv6 without checksum, as the kernel has it.
const UDP_NO_CHECK6_RX: libc::c_int = 102;
/// Addresses of the first real server that the lab's decapsulator, which takes no fragments, does not
/// know.
const TUNNEL_END_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 111));
const TUNNEL_END_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x111));
/// Another port of GUE there.
const PORT_WITH_CHECKSUM: u16 = 6081;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Forms of tunnels, with the bytes that they put between the outer IP header and the packet.
const FORMS: [(&str, usize); 5] = [
    ("ipip", 0),
    ("gre --tun-nocsum", gre::LENGTH),
    ("gre --tun-csum", gre::LENGTH_WITH_CHECKSUM),
    ("gue --tun-port 6080 --tun-nocsum", udp::LENGTH + gue::LENGTH),
    ("gue --tun-port 6081 --tun-csum", udp::LENGTH + gue::LENGTH),
];

/// Lengths of the packets that came out of a tunnel.
type Lengths = Arc<Mutex<Vec<usize>>>;

fn tunnel_end(outer: Family) -> IpAddr {
    match outer {
        Family::V4 => TUNNEL_END_V4,
        Family::V6 => TUNNEL_END_V6,
    }
}

fn answered(status: i32) -> io::Result<RawFd> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

/// Makes a TUN device in the calling thread's namespace.
#[expect(unsafe_code, reason = "nix does not know the request")]
fn tun(name: &str) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: numbers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the request is what the kernel reads.
    answered(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw const request) })?;
    Ok(device)
}

/// Opens a socket of the calling thread's namespace for a protocol.
#[expect(unsafe_code, reason = "nix does not know the protocols")]
fn raw_socket(at: IpAddr, protocol: u8) -> io::Result<UdpSocket> {
    let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is handed over.
    let socket = answered(unsafe { libc::socket(family, kind, protocol.into()) })?;
    // SAFETY: it was just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(at, 0)))?;
    Ok(UdpSocket::from(socket))
}

/// Sets an option of a socket, which is an integer.
#[expect(unsafe_code, reason = "nix does not know the options")]
fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the value is an integer as long as is said.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

/// Returns whether what has its checksum in it sums up to nothing (RFC 1071).
fn is_summed(bytes: &[u8]) -> bool {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    checksum::fold(bytes.chunks(2).map(word).sum()) == 0xffff
}

/// Returns the packet in what a socket got of a tunnel. What cannot be read is empty.
fn unwrapped(protocol: u8, is_v4: bool, got: &[u8]) -> &[u8] {
    // Raw sockets get the header of IPv4.
    let ip = if is_v4 && protocol != udp::PROTOCOL { ipv4::LENGTH } else { 0 };
    let behind = &got[ip.min(got.len())..];
    let between = match protocol {
        udp::PROTOCOL => gue::LENGTH,
        gre::PROTOCOL if behind.first() == Some(&0x80) => {
            if !is_summed(behind) {
                return &[];
            }
            gre::LENGTH_WITH_CHECKSUM
        }
        gre::PROTOCOL => gre::LENGTH,
        _ => 0,
    };
    behind.get(between..).unwrap_or_default()
}

/// Ends all tunnels at [`tunnel_end`]s until the process ends: sockets, which get datagrams whole, hand
/// what is inside to the stack by a TUN device.
fn end_tunnels(namespace: &Namespace) -> Lengths {
    let mut rtnetlink = Rtnetlink::open_in(namespace).unwrap();
    let outside = rtnetlink.link(OUTSIDE_INTERFACE).unwrap().index;
    let device = namespace.run(|| tun("inner")).unwrap().unwrap();
    let index = rtnetlink.link("inner").unwrap().index;
    rtnetlink.set_up(index, true).unwrap();
    let lengths = Lengths::default();
    for outer in FAMILIES {
        let address = tunnel_end(outer);
        let bits = if outer == Family::V4 { 32 } else { 128 };
        rtnetlink.add_address(outside, Prefix { address, bits }).unwrap();
        let mut sockets = Vec::new();
        for protocol in [ipip::PROTOCOL_V4, ipip::PROTOCOL_V6, gre::PROTOCOL] {
            let socket = namespace.run(|| raw_socket(address, protocol)).unwrap().unwrap();
            sockets.push((socket, protocol));
        }
        for port in [GUE_PORT, PORT_WITH_CHECKSUM] {
            let socket = namespace.run(|| UdpSocket::bind((address, port))).unwrap().unwrap();
            // As Linux' own end of such tunnels: pieces have no outer checksum.
            if outer == Family::V6 {
                set_option(&socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, 1);
            }
            sockets.push((socket, udp::PROTOCOL));
        }
        for (socket, protocol) in sockets {
            let (lengths, mut device) = (lengths.clone(), device.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length) = socket.recv(&mut buffer) {
                    let packet = unwrapped(protocol, outer == Family::V4, &buffer[..length]);
                    lengths.lock().unwrap().push(packet.len());
                    if !packet.is_empty() {
                        device.write_all(packet).unwrap();
                    }
                }
            });
        }
    }
    lengths
}

/// What a datagram of a length carries.
fn content(length: usize) -> Vec<u8> {
    Random(length as u64 + 1).bytes(length)
}

/// Sends back every datagram that carries what it should, and says so of every other.
fn strict_server(namespace: &Namespace, at: SocketAddr) {
    let socket = namespace.run(|| UdpSocket::bind(at)).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let is_right = buffer[..length] == content(length);
            let answer = if is_right { &buffer[..length] } else { b"wrong" };
            socket.send_to(answer, from).unwrap();
        }
    });
}

/// Sends datagrams of lengths one by one until each has come back whole, and returns how often one had
/// to be sent again.
fn sent_again(socket: &UdpSocket, lengths: &[usize], said: &str) -> usize {
    let (mut answer, mut again) = (vec![0; 1 << 16], 0);
    for &length in lengths {
        let mut came = 0;
        for attempt in 0..3 {
            again += usize::from(attempt != 0);
            // The second time whoever was told a length has no error left.
            let received = socket.send(&content(length)).and_then(|_| socket.recv(&mut answer));
            if let Ok(received) = received {
                came = received;
                break;
            }
        }
        assert!(answer[..came] == content(length), "{said}, {length} bytes: {came} came");
    }
    again
}

fn serve_by_tunnel(stage: &Stage, inner: Family, outer: Family, form: &str) -> SocketAddr {
    let vip = SocketAddr::new(VIPS[2].of(inner), PORT);
    stage.ipvsadm(&format!("-A -u {vip} -s rr")).ok();
    let real = SocketAddr::new(tunnel_end(outer), PORT);
    stage.ipvsadm(&format!("-a -u {vip} -r {real} -i --tun-type {form}")).ok();
    vip
}

/// A real server that ends every tunnel, and serves datagrams of both IP versions.
fn stage_of_tunnels(wiring: Wiring) -> (Stage, Lengths) {
    let stage = Stage::attached(wiring, PROGRAM);
    let server = &stage.lab.real_servers()[0];
    let inner = end_tunnels(server);
    for family in FAMILIES {
        strict_server(server, SocketAddr::new(VIPS[2].of(family), PORT));
    }
    // What sockets get of a tunnel has no card that completes it.
    stage.as_client(|| ethtool::tx_checksum_off(OUTSIDE_INTERFACE)).unwrap();
    (stage, inner)
}

/// IPv4 in IPv4: nobody is told anything, each piece is wrapped, and cut behind its outer header.
#[test]
fn long_datagrams_come_whole_through_tunnels_and_back() {
    const LENGTHS: [usize; 5] = [4000, 1, MTU - HEADERS, MTU - HEADERS + 1, 9000];
    for wiring in WIRINGS {
        let (stage, inner) = stage_of_tunnels(wiring);
        for (form, _) in FORMS {
            let vip = serve_by_tunnel(&stage, Family::V4, Family::V4, form);
            let said = format!("{wiring:?} {form}");
            let again = stage.as_client(|| {
                let socket = udp_client(vip).unwrap();
                may_be_cut(&socket);
                sent_again(&socket, &LENGTHS, &said)
            });
            assert_eq!(again, 0, "{said}");
            // The outer packets were longer than the way: their fragments were put together.
            let longest = std::mem::take(&mut *inner.lock().unwrap()).into_iter().max();
            assert_eq!(longest, Some(MTU), "{said}");
            stage.ipvsadm("-C").ok();
        }
    }
}

/// Where IPv6 is inside or outside nobody cuts for the sender: he is told once what the tunnel takes, and
/// all comes whole from then on.
#[test]
fn senders_of_long_datagrams_are_told_what_tunnels_of_ipv6_take() {
    let ways = [(Family::V6, Family::V6), (Family::V6, Family::V4), (Family::V4, Family::V6)];
    for wiring in WIRINGS {
        let (stage, lengths) = stage_of_tunnels(wiring);
        for (inner, outer) in ways {
            for (form, between) in FORMS {
                let vip = serve_by_tunnel(&stage, inner, outer, form);
                let said = format!("{wiring:?} {form}, {inner:?} in {outer:?}");
                let takes = MTU - between - if outer == Family::V4 { 20 } else { 40 };
                let one = takes - HEADERS - if inner == Family::V4 { 0 } else { 20 };
                let again = stage.as_client(|| {
                    let socket = udp_client(vip).unwrap();
                    sent_again(&socket, &[4000, 1, one, one + 1, 9000], &said)
                });
                assert_eq!(again, 1, "{said}");
                // The longest that came had just room.
                let longest = std::mem::take(&mut *lengths.lock().unwrap()).into_iter().max();
                assert_eq!(longest, Some(takes), "{said}");
                let ip = |words: &[&str]| stage.client_command(Path::new("ip"), words).ok();
                let address = vip.ip().to_string();
                let route = ip(&["route", "get", &address]);
                assert!(route.contains(&format!("mtu {takes}")), "{said}: {route}");
                let version = if inner == Family::V4 { "-4" } else { "-6" };
                let _ = ip(&[version, "route", "flush", "cache"]);
                stage.ipvsadm("-C").ok();
            }
        }
    }
}

/// Lets the kernel send a socket's packets of IPv4 without the don't-fragment flag.
fn may_be_cut(socket: &UdpSocket) {
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
}

/// Connections and packets of each destination.
fn picked(stage: &Stage, service: SocketAddr) -> Vec<(u32, u32)> {
    let stats = stage.ipvsadm(&format!("-L -n --stats -u {service}")).ok();
    let rows = stats.lines().filter(|line| line.trim().starts_with("-> 1"));
    let words = rows.map(|line| line.split_ascii_whitespace().skip(2).take(2));
    words
        .map(|mut words| [words.next(), words.next()].map(|word| word.unwrap().parse().unwrap()))
        .map(|[connections, packets]| (connections, packets))
        .collect()
}

/// XDP, which leaves them to TC, has picked for them already.
#[test]
fn single_datagrams_that_are_cut_go_to_each_server_in_turn() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        let vip = SocketAddr::new(VIPS[2].of(Family::V4), PORT);
        stage.ipvsadm(&format!("-A -u {vip} -s rr -o")).ok();
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            udp_server(namespace, vip, "");
            let real = SocketAddr::new(server.outside.of(Family::V4), PORT);
            stage.ipvsadm(&format!("-a -u {vip} -r {real} -i")).ok();
        }
        let send = |length: usize, times: usize| {
            stage.as_client(|| {
                let socket = udp_client(vip).unwrap();
                may_be_cut(&socket);
                for _ in 0..times {
                    socket.send(&vec![7; length]).unwrap();
                }
            });
        };
        // The ways are known then.
        send(1, 4);
        wait_until("small ones", &4, || picked(&stage, vip).iter().map(|(_, in_)| in_).sum());
        stage.ipvsadm("-Z").ok();
        send(MTU - HEADERS, 10);
        wait_until("long ones", &vec![(5, 5), (5, 5)], || picked(&stage, vip));
    }
}

fn count_of_too_big(stage: &Stage) -> u64 {
    let status = stage.rlvs(&["status"]).ok();
    let mut lines = status.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines
        .find(|words| words.get(2) == Some(&"too_big"))
        .map_or(0, |words| words[1].parse().unwrap())
}

#[test]
fn what_is_too_long_without_a_tunnel_is_dropped_and_counted() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        let ip = |words: &str| {
            let words: Vec<&str> = words.split_ascii_whitespace().collect();
            run(stage.lab.director(), Path::new("ip"), &words).ok();
        };
        ip(&format!("link set eth1 mtu {NARROW}"));
        for server in &REAL_SERVERS {
            ip(&format!("route add {} dev eth0 mtu lock {NARROW}", server.outside.v4));
        }
        for (method, vip) in Method::ALL.into_iter().zip(VIPS) {
            let target = SocketAddr::new(IpAddr::V4(vip.v4), PORT);
            for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
                let at = match method {
                    Method::Direct => target,
                    Method::Nat => SocketAddr::new(server.inside.v4.into(), PORT),
                };
                udp_server(namespace, at, "");
            }
            stage.serve("-u", target, method, PORT);
            let before = count_of_too_big(&stage);
            stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                may_be_cut(&socket);
                for _ in 0..3 {
                    socket.send(&[7; MTU - HEADERS]).unwrap();
                }
                // Nobody is told, and what fits goes on.
                socket.send(&[8; NARROW - HEADERS]).unwrap();
                let mut answer = [0; MTU];
                let received = socket.recv(&mut answer).unwrap();
                let is_right = answer[..received] == [8; NARROW - HEADERS];
                assert!(is_right, "{wiring:?} {method:?}: {received} bytes of {}", answer[0]);
            });
            wait_until("as many counted", &(before + 3), || count_of_too_big(&stage));
        }
    }
}
