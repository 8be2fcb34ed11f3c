//! Datagrams longer than the way to the real server: cut for a tunnel, else dropped and counted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::lab::{Method, Random, Stage, run, udp_client, udp_server, wait_for, wait_until};
use nix::sys::socket::{SockaddrStorage, bind};
use rlvs::lab::topology::{GUE_PORT, OUTSIDE_INTERFACE, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::ethtool;
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::{Prefix, Rtnetlink};
use rlvs_wire::{gue, ipv4};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const WIRINGS: [Wiring; 2] = [Wiring::Plain, Wiring::Tuned];
const PORT: u16 = 4000;
/// MTU of all links, and of a narrow way.
const MTU: usize = 1500;
const NARROW: usize = 1400;
/// Bytes of headers before what a datagram carries.
const HEADERS: usize = 28;
/// An address of the first real server that the lab's decapsulator, which takes no fragments, does not
/// know.
const TUNNEL_END: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 111);

/// Lengths of the packets that came out of a tunnel.
type Lengths = Arc<Mutex<Vec<usize>>>;

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

/// Opens a socket of the calling thread's namespace for a protocol in IP.
#[expect(unsafe_code, reason = "nix does not know the protocols")]
fn socket_of(protocol: i32) -> io::Result<UdpSocket> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is handed over.
    let socket = answered(unsafe { libc::socket(libc::AF_INET, kind, protocol) })?;
    // SAFETY: it was just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((TUNNEL_END, 0))))?;
    Ok(UdpSocket::from(socket))
}

/// Says how much of what a socket gets comes before the packet inside.
type HeaderLength = fn(&[u8]) -> usize;

/// Returns how long the header of GRE is that follows one of IP.
fn gre_length(packet: &[u8]) -> usize {
    let has_checksum = packet[ipv4::LENGTH] & 0x80 != 0;
    if has_checksum { 8 } else { 4 }
}

/// Ends IP in IP, GRE and GUE at [`TUNNEL_END`] until the process ends: sockets, which get datagrams whole,
/// hand what is inside to the stack by a TUN device.
fn end_tunnels(namespace: &Namespace) -> Lengths {
    let mut rtnetlink = Rtnetlink::open_in(namespace).unwrap();
    let outside = rtnetlink.link(OUTSIDE_INTERFACE).unwrap().index;
    rtnetlink.add_address(outside, Prefix { address: TUNNEL_END.into(), bits: 32 }).unwrap();
    let device = namespace.run(|| tun("inner")).unwrap().unwrap();
    let index = rtnetlink.link("inner").unwrap().index;
    rtnetlink.set_up(index, true).unwrap();
    let of_gue = namespace.run(|| UdpSocket::bind((TUNNEL_END, GUE_PORT))).unwrap().unwrap();
    let [of_ipip, of_gre] = [libc::IPPROTO_IPIP, libc::IPPROTO_GRE]
        .map(|protocol| namespace.run(|| socket_of(protocol)).unwrap().unwrap());
    let lengths = Lengths::default();
    let ends: [(UdpSocket, HeaderLength); 3] = [
        (of_gue, |_| gue::LENGTH),
        (of_ipip, |_| ipv4::LENGTH),
        (of_gre, |packet| ipv4::LENGTH + gre_length(packet)),
    ];
    for (socket, header) in ends {
        let (lengths, mut device) = (lengths.clone(), device.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length) = socket.recv(&mut buffer) {
                let header = header(&buffer);
                lengths.lock().unwrap().push(length - header);
                device.write_all(&buffer[header..length]).unwrap();
            }
        });
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

const LENGTHS: [usize; 5] = [4000, 1, MTU - HEADERS, MTU - HEADERS + 1, 9000];
const FORMS: [&str; 5] = [
    "--tun-type ipip",
    "--tun-type gre --tun-nocsum",
    "--tun-type gre --tun-csum",
    "--tun-type gue --tun-port 6080 --tun-nocsum",
    "--tun-type gue --tun-port 6080 --tun-csum",
];

#[test]
fn long_datagrams_come_whole_through_tunnels_and_back() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        let server = &stage.lab.real_servers()[0];
        let inner = end_tunnels(server);
        let vip = SocketAddr::new(VIPS[2].of(Family::V4), PORT);
        strict_server(server, vip);
        // What sockets get of a tunnel has no card that completes it.
        stage.as_client(|| ethtool::tx_checksum_off(OUTSIDE_INTERFACE)).unwrap();
        for form in FORMS {
            stage.ipvsadm(&format!("-A -u {vip} -s rr")).ok();
            let real = SocketAddr::new(TUNNEL_END.into(), PORT);
            stage.ipvsadm(&format!("-a -u {vip} -r {real} -i {form}")).ok();
            stage.as_client(|| {
                let socket = udp_client(vip).unwrap();
                may_be_cut(&socket);
                let mut answer = vec![0; 1 << 16];
                for length in LENGTHS {
                    socket.send(&content(length)).unwrap();
                    let received = socket.recv(&mut answer);
                    let received = received.unwrap_or_else(|e| panic!("{form}, {length}: {e}"));
                    assert!(answer[..received] == content(length), "{wiring:?} {form} {length}");
                }
            });
            // The outer packets were longer than the way: their fragments were put together.
            let longest = std::mem::take(&mut *inner.lock().unwrap()).into_iter().max();
            assert_eq!(longest, Some(MTU), "{wiring:?} {form}");
            stage.ipvsadm("-C").ok();
        }
    }
}

/// What goes before an IPv6 packet nobody cuts but the director's stack, for packets of its own: the client
/// learns how long packets may be, as of every router.
#[test]
fn long_datagrams_come_whole_through_tunnels_over_ipv6() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        // No sum of what is inside can be right while that one is a card's work left to do.
        stage.as_client(|| ethtool::tx_checksum_off(OUTSIDE_INTERFACE)).unwrap();
        for family in [Family::V4, Family::V6] {
            let vip = SocketAddr::new(VIPS[2].of(family), PORT);
            strict_server(&stage.lab.real_servers()[0], vip);
            for form in FORMS {
                stage.ipvsadm(&format!("-A -u {vip} -s rr")).ok();
                let real = SocketAddr::new(REAL_SERVERS[0].outside.v6.into(), PORT);
                stage.ipvsadm(&format!("-a -u {vip} -r {real} -i {form}")).ok();
                stage.as_client(|| {
                    let socket = udp_client(vip).unwrap();
                    let what = format!("{wiring:?} {vip} {form}");
                    ask_until_answered(&socket, &content(4000), &what);
                    for length in LENGTHS {
                        // The way's MTU is known, and everything comes at once.
                        socket.send(&content(length)).unwrap();
                        let answer = answer(&socket);
                        let answer = answer.unwrap_or_else(|e| panic!("{what} {length}: {e}"));
                        assert!(answer == content(length), "{what} {length}");
                    }
                });
                stage.ipvsadm("-C").ok();
            }
        }
    }
}

fn answer(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut answer = vec![0; 1 << 16];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Sends a datagram again until its answer comes.
fn ask_until_answered(socket: &UdpSocket, datagram: &[u8], what: &str) {
    let patience = socket.read_timeout().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    wait_for(what, || {
        // Errors that have come meanwhile are read by either.
        let asked = socket.send(datagram).and_then(|_| answer(socket));
        let is_it = asked.as_ref().is_ok_and(|answer| answer == datagram);
        if is_it { Ok(()) } else { Err(format!("{asked:?}")) }
    });
    socket.set_read_timeout(patience).unwrap();
}

/// Lets the kernel send a socket's packets without the don't-fragment flag.
#[expect(unsafe_code, reason = "nix does not know the option")]
fn may_be_cut(socket: &UdpSocket) {
    let value = libc::IP_PMTUDISC_DONT;
    // SAFETY: the value is an integer as long as is said.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(status, 0);
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
