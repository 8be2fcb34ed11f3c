//! Real traffic through the balancer: every byte arrives, and what is not ours is left alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::association::{self, Speaker};
use e2e::lab::{
    Method, Random, Said, Stage, TIME_MAX, connect, inside, run, tcp_server, tool, udp_client,
    udp_server, wait_for, wait_until,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, getsockopt, socket, sockopt,
};
use rlvs::lab::topology::{CLIENT, DIRECTOR, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::route::Rtnetlink;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO_PORT: u16 = 7;
const ECHO_BYTES: usize = 8 << 20;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A virtual address for each method, so that both stand in one table.
fn vip(method: Method, family: Family, port: u16) -> SocketAddr {
    let vip = match method {
        Method::Direct => VIPS[0],
        Method::Nat => VIPS[1],
    };
    SocketAddr::new(vip.of(family), port)
}

fn combinations() -> impl Iterator<Item = (Method, Family)> {
    Method::ALL.into_iter().flat_map(|method| FAMILIES.map(|family| (method, family)))
}

/// Sends bytes through a connection and checks what comes back, both at once.
fn echo_all(to: SocketAddr, seed: u64) -> String {
    let mut greeted = connect(to).unwrap();
    let sent = Random(seed).bytes(ECHO_BYTES);
    let mut writer = greeted.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::with_capacity(ECHO_BYTES);
        greeted.stream.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), sent.len(), "{to}");
        assert!(received == sent, "{to}: other bytes came back");
    });
    greeted.name
}

fn every_byte_over_tcp(wiring: Wiring) {
    let stage = Stage::attached(wiring, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, ECHO_PORT, Some(server.title));
    }
    for (method, family) in combinations() {
        let target = stage.serve("-t", vip(method, family, ECHO_PORT), method, ECHO_PORT);
        let names = stage.as_client(|| [echo_all(target, 88_172), echo_all(target, 645_463)]);
        assert_eq!(names, ["Server 2", "Server 1"], "{method:?} {family:?}");
    }
}

#[test]
fn every_byte_of_a_tcp_echo_comes_back_through_tc() {
    every_byte_over_tcp(Wiring::Plain);
}

#[test]
fn every_byte_of_a_tcp_echo_comes_back_through_native_xdp() {
    every_byte_over_tcp(Wiring::Tuned);
}

/// Echoes datagrams of many sizes up to what the MTU takes whole, and some that it does not.
fn every_datagram(stage: &Stage, mtu: usize, step: usize) {
    for (method, family) in combinations() {
        let target = vip(method, family, ECHO_PORT);
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            let at = match method {
                Method::Direct => target,
                Method::Nat => SocketAddr::new(server.inside.of(family), ECHO_PORT),
            };
            udp_server(namespace, at, "");
        }
        stage.serve("-u", target, method, ECHO_PORT);
        let largest = mtu - if family == Family::V4 { 28 } else { 48 };
        stage.as_client(|| {
            let mut random = Random(48_271);
            let mut buffer = [0; 65536];
            let (plain, unusual) = (udp_client(target).unwrap(), udp_client(target).unwrap());
            add_options(&unusual, family);
            // Two sockets, so that each server has its share.
            for socket in [plain, unusual] {
                let fragmented = [largest + 1, 4000, 4001, 9000, 60_000];
                for length in (0..=largest).step_by(step).chain([largest]).chain(fragmented) {
                    let sent = random.bytes(length);
                    socket.send(&sent).unwrap();
                    let received = socket.recv(&mut buffer).unwrap_or_else(|error| {
                        panic!("{method:?} {target}, {length} bytes: {error}")
                    });
                    assert!(buffer[..received] == sent[..], "{method:?} {target}, {length} bytes");
                }
            }
        });
        let counts: Vec<_> = stage
            .counts("-u", target)
            .into_iter()
            .map(|(_, active, idle)| (active, idle))
            .collect();
        assert_eq!(counts, [(0, 1), (0, 1)], "{method:?} {family:?}");
    }
}

/// Makes every packet of a socket carry a record route, or hop-by-hop and destination options.
#[expect(unsafe_code, reason = "no safe wrapper knows these options")]
fn add_options(socket: &UdpSocket, family: Family) {
    let padding: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    let record_route: &[u8] = &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let options = match family {
        Family::V4 => vec![(libc::IPPROTO_IP, libc::IP_OPTIONS, record_route)],
        Family::V6 => vec![
            (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, padding),
            (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, padding),
        ],
    };
    for (level, name, value) in options {
        // SAFETY: the value is as long as it is said to be, and only read.
        let status = unsafe {
            let length = value.len() as libc::socklen_t;
            libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length)
        };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn datagrams_of_every_size_come_back_through_tc() {
    every_datagram(&Stage::attached(Wiring::Plain, PROGRAM), 1500, 7);
}

#[test]
fn datagrams_of_every_size_come_back_through_native_xdp() {
    every_datagram(&Stage::attached(Wiring::Tuned, PROGRAM), 1500, 7);
}

/// Frames that lie in several buffers, of which the program sees the first.
#[test]
fn jumbo_frames_come_back_through_native_xdp() {
    const MTU: usize = 9000;
    let Some(ip) = tool("ip") else { return };
    let stage = Stage::bare(Wiring::Tuned, PROGRAM);
    let lab = &stage.lab;
    let hosts = [lab.switch(), lab.client(), lab.director()].into_iter().chain(lab.real_servers());
    for namespace in hosts {
        for link in Rtnetlink::open_in(namespace).unwrap().links().unwrap() {
            if !link.loopback {
                run(namespace, &ip, &["link", "set", "dev", &link.name, "mtu", &MTU.to_string()])
                    .ok();
            }
        }
    }
    stage.rlvs(&["attach", "--mode", "native"]).ok();
    every_datagram(&stage, MTU, 411);
}

fn url(to: SocketAddr) -> String {
    format!("http://{to}/")
}

#[test]
fn curl_gets_the_two_pages_in_turn() {
    let (Some(curl), Some(_)) = (tool("curl"), tool("nginx")) else { return };
    for wiring in [Wiring::Plain, Wiring::Tuned] {
        let stage = Stage::attached(wiring, PROGRAM);
        for (method, family) in combinations() {
            let target = stage.serve("-t", vip(method, family, 80), method, 80);
            let pages: Vec<String> = (0..6)
                .map(|_| stage.client_command(&curl, &["-sS", "-m", "5", &url(target)]).ok())
                .collect();
            let expected: Vec<&str> =
                (0..3).flat_map(|_| ["Hello from Server 2\n", "Hello from Server 1\n"]).collect();
            assert_eq!(pages, expected, "{wiring:?} {method:?} {target}");
        }
    }
}

/// Runs wrk against an address while `meanwhile` happens, and returns how many requests it made.
fn under_load(stage: &Stage, target: SocketAddr, seconds: u32, meanwhile: impl FnOnce()) -> u64 {
    let wrk = tool("wrk").unwrap();
    let mut command = Command::new(wrk);
    let time = format!("-d{seconds}s");
    command.args(["-t1", "-c16", &time, &url(target)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    inside(stage.lab.client(), &mut command);
    let child = command.spawn().unwrap();
    meanwhile();
    let said = Said::from(child.wait_with_output().unwrap()).ok();
    // wrk says these only when there were some.
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let line = said.lines().find(|line| line.contains("requests in")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn active(stage: &Stage, target: SocketAddr) -> u32 {
    stage.counts("-t", target).iter().map(|(_, active, _)| active).sum()
}

#[test]
fn sixteen_busy_connections_have_no_error_and_are_counted() {
    let (Some(_), Some(_)) = (tool("wrk"), tool("nginx")) else { return };
    for (wiring, method) in [(Wiring::Plain, Method::Direct), (Wiring::Tuned, Method::Nat)] {
        let stage = Stage::attached(wiring, PROGRAM);
        let target = stage.serve("-t", vip(method, Family::V4, 80), method, 80);
        let requests = under_load(&stage, target, 2, || {
            wait_until("active connections under load", &16, || active(&stage, target));
        });
        assert!(requests > 1000, "{wiring:?} {method:?}: {requests} requests");
        wait_until("active connections afterwards", &0, || active(&stage, target));
    }
}

#[test]
fn changing_weights_under_load_cuts_nobody_off() {
    let (Some(_), Some(_)) = (tool("wrk"), tool("nginx")) else { return };
    for method in Method::ALL {
        let stage = Stage::attached(Wiring::Plain, PROGRAM);
        let target = stage.serve("-t", vip(method, Family::V4, 80), method, 80);
        let mut edits = 0;
        let requests = under_load(&stage, target, 3, || {
            wait_until("active connections under load", &16, || active(&stage, target));
            let deadline = Instant::now() + Duration::from_secs(2);
            for weight in [0, 5, 1, 100, 3] {
                let real = method.address(&REAL_SERVERS[weight % 2], Family::V4);
                let option = method.option();
                stage.ipvsadm(&format!("-e -t {target} -r {real}:80 {option} -w {weight}")).ok();
                // Only what was edited under load counts, on however slow a machine.
                if Instant::now() > deadline {
                    break;
                }
                edits += 1;
            }
        });
        assert!(edits > 0 && requests > 1000, "{edits} edits, {requests} requests");
    }
}

/// Listens for what ICMP tells the client.
fn icmp_socket(family: Family) -> UdpSocket {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::Inet, SockProtocol::Icmp),
        Family::V6 => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(TIME_MAX)).unwrap();
    socket
}

/// Waits for "port unreachable" and returns who sent it.
fn port_unreachable_from(socket: &UdpSocket, family: Family) -> IpAddr {
    let mut buffer = [0; 2048];
    // Neighbour discovery and the like come by too.
    for _ in 0..100 {
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        let packet = &buffer[..length];
        let found = match family {
            Family::V4 => packet.get(usize::from(packet[0] & 15) * 4..).map(|icmp| &icmp[..2]),
            Family::V6 => packet.get(..2),
        };
        let expected: &[u8] = if family == Family::V4 { &[3, 3] } else { &[1, 4] };
        if found == Some(expected) {
            return from.ip();
        }
    }
    panic!("a hundred packets, and none says that the port is unreachable");
}

fn refuses_at_once(wiring: Wiring) {
    let stage = Stage::attached(wiring, PROGRAM);
    for family in FAMILIES {
        let target = vip(Method::Direct, family, 4711);
        stage.ipvsadm(&format!("-A -t {target} -s rr")).ok();
        stage.ipvsadm(&format!("-A -u {target} -s wrr")).ok();
        // Another kind of nobody: a server of weight 0.
        let drained = vip(Method::Nat, family, 4711);
        let real = SocketAddr::new(REAL_SERVERS[0].inside.of(family), 80);
        stage.ipvsadm(&format!("-A -t {drained} -s rr")).ok();
        stage.ipvsadm(&format!("-a -t {drained} -r {real} -m -w 0")).ok();
        for target in [target, drained] {
            // On veth the answer comes while the system call that asks still holds the socket, and
            // the kernel leaves it for the next SYN, a second later: the answer is what is timed.
            let (kind, took, source) = stage.as_client(|| {
                let icmp = icmp_socket(family);
                std::thread::scope(|scope| {
                    let begin = Instant::now();
                    let asking = scope.spawn(|| connect(target).unwrap_err().kind());
                    let source = port_unreachable_from(&icmp, family);
                    let took = begin.elapsed();
                    (asking.join().unwrap(), took, source)
                })
            });
            assert_eq!(kind, ErrorKind::ConnectionRefused, "{wiring:?} {target}");
            assert_eq!(source, target.ip(), "{wiring:?} {target}");
            assert!(took < Duration::from_millis(500), "{wiring:?} {target} took {took:?}");
        }
        let (kind, source) = stage.as_client(|| {
            let icmp = icmp_socket(family);
            let socket = udp_client(target).unwrap();
            socket.send(b"anybody?").unwrap();
            let error = socket.recv(&mut [0; 16]).unwrap_err();
            (error.kind(), port_unreachable_from(&icmp, family))
        });
        assert_eq!(kind, ErrorKind::ConnectionRefused, "{wiring:?} UDP {target}");
        assert_eq!(source, target.ip(), "{wiring:?} UDP {target}");
    }
}

#[test]
fn a_service_with_nobody_behind_it_refuses_at_once_through_tc() {
    refuses_at_once(Wiring::Plain);
}

#[test]
fn a_service_with_nobody_behind_it_refuses_at_once_through_native_xdp() {
    refuses_at_once(Wiring::Tuned);
}

/// Talks to the director as an administrator does, past the balancer.
fn talk_to_the_director(stage: &Stage, connections: &mut [std::net::TcpStream]) {
    for connection in connections {
        connection.write_all(b"still there?").unwrap();
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"still there?");
    }
    let Some(ping) = tool("ping") else { return };
    for address in [DIRECTOR, VIPS[0]].iter().flat_map(|addresses| addresses.both()) {
        let said =
            stage.client_command(&ping, &["-n", "-c3", "-i0.02", "-W2", &address.to_string()]).ok();
        assert!(said.contains(" 3 received"), "{said}");
    }
}

#[test]
fn what_is_not_for_a_service_goes_on_as_before() {
    for wiring in [Wiring::Plain, Wiring::Tuned] {
        let stage = Stage::bare(wiring, PROGRAM);
        tcp_server(stage.lab.director(), 2222, Some("director"));
        // Opened before, used while it comes and when it is gone.
        let open = |stage: &Stage| -> Vec<std::net::TcpStream> {
            let targets = [DIRECTOR, VIPS[0]].iter().flat_map(|addresses| addresses.both());
            targets
                .map(|address| {
                    let to = SocketAddr::new(address, 2222);
                    let greeted = stage.as_client(|| connect(to)).unwrap();
                    assert_eq!(greeted.name, "director");
                    greeted.stream
                })
                .collect()
        };
        let mut connections = open(&stage);
        talk_to_the_director(&stage, &mut connections);
        let mode = if wiring == Wiring::Plain { "tc" } else { "native" };
        stage.rlvs(&["attach", "--mode", mode]).ok();
        for family in FAMILIES {
            stage.serve("-t", vip(Method::Direct, family, 80), Method::Direct, 80);
        }
        connections.extend(open(&stage));
        talk_to_the_director(&stage, &mut connections);
        stage.rlvs(&["detach"]).ok();
        connections.extend(open(&stage));
        talk_to_the_director(&stage, &mut connections);
    }
}

#[test]
fn held_and_closed_connections_are_counted_exactly() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, ECHO_PORT, Some(server.title));
    }
    for (method, family) in combinations() {
        let target = stage.serve("-t", vip(method, family, ECHO_PORT), method, ECHO_PORT);
        let now = || -> Vec<(u32, u32)> {
            stage.counts("-t", target).into_iter().map(|(_, active, idle)| (active, idle)).collect()
        };
        let mut held =
            stage.as_client(|| (0..9).map(|_| connect(target).unwrap()).collect::<Vec<_>>());
        // The handshake is over on the client's side before its last packet has passed.
        wait_until("nine held", &vec![(4, 0), (5, 0)], now);
        drop(held.drain(..3));
        wait_until("three closed", &vec![(3, 1), (3, 2)], now);
        stage.as_client(|| held.extend((0..2).map(|_| connect(target).unwrap())));
        wait_until("two more", &vec![(4, 1), (4, 2)], now);
        drop(held);
        wait_until("all closed", &vec![(0, 5), (0, 6)], now);
        let listed = wait_for("the connections themselves", || {
            let listing = stage.ipvsadm("-L -n -c").ok();
            let count = listing.lines().filter(|line| line.contains(&target.to_string())).count();
            if count == 11 { Ok(count) } else { Err(listing) }
        });
        assert_eq!(listed, 11);
    }
}

fn associations(wiring: Wiring) {
    const REAL: u16 = 9009;
    let stage = Stage::attached(wiring, PROGRAM);
    for (method, family) in combinations() {
        let target = vip(method, family, ECHO_PORT);
        let real_port = if method == Method::Nat { REAL } else { ECHO_PORT };
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            let at = match method {
                Method::Direct => target,
                Method::Nat => SocketAddr::new(server.inside.of(family), real_port),
            };
            association::server(namespace, at);
        }
        stage.serve("--sctp-service", target, method, real_port);
        let own = SocketAddr::new(CLIENT.of(family), 0).ip();
        let speaker = stage.as_client(|| Speaker::open(own)).unwrap();
        let talk = |port: u16, chunk: u8, payload: &[u8]| {
            speaker.say(port, target, chunk, payload).unwrap();
            let heard = speaker.hear().unwrap();
            assert_eq!((heard.from, heard.source, heard.target), (target.ip(), ECHO_PORT, port));
            assert!(heard.payload == payload, "{method:?} {target} {chunk}");
            heard.chunk
        };
        let listed = |port: u16| {
            let listing = stage.ipvsadm("-L -n -c").ok();
            let source = SocketAddr::new(own, port).to_string();
            let line = listing
                .lines()
                .find(|line| line.contains(&source) && line.contains(&target.to_string()));
            let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
            words.get(..3).map_or(String::new(), |words| format!("{} {}", words[0], words[2]))
        };
        let counts = || -> Vec<(u32, u32)> {
            let counts = stage.counts("--sctp-service", target);
            counts.into_iter().map(|(_, active, idle)| (active, idle)).collect()
        };
        for port in [4001, 4002] {
            assert_eq!(talk(port, association::INIT, b"hello"), association::INIT_ACK);
            let cookie = talk(port, association::COOKIE_ECHO, b"cookie");
            assert_eq!(cookie, association::COOKIE_ACK);
            assert_eq!(listed(port), "SCTP ESTABLISHED");
        }
        assert_eq!(counts(), [(1, 0), (1, 0)], "{method:?} {target}");
        let mut random = Random(16_807);
        for length in (0..=1400).step_by(37) {
            assert_eq!(talk(4001, association::DATA, &random.bytes(length)), association::SACK);
        }
        assert_eq!(talk(4001, association::SHUTDOWN, b""), association::SHUTDOWN_ACK);
        speaker.say(4001, target, association::SHUTDOWN_COMPLETE, b"").unwrap();
        wait_until("the end of an association", &"SCTP CLOSED".to_owned(), || listed(4001));
        assert_eq!(counts().iter().map(|(active, idle)| active + 10 * idle).sum::<u32>(), 11);
        let saved = stage.ipvsadm("-S -n").ok();
        assert!(saved.contains(&format!("-A --sctp-service {target} -s rr\n")), "{saved}");
        let shown = stage.listing();
        assert!(shown.contains(&format!("SCTP {target} rr\n")), "{shown}");
    }
}

/// The kernel here may have no SCTP: raw sockets speak it.
#[test]
fn associations_open_talk_and_close_through_tc() {
    associations(Wiring::Plain);
}

#[test]
fn associations_open_talk_and_close_through_native_xdp() {
    associations(Wiring::Tuned);
}

/// What the kernels at both ends make of the segments that they are told of, with 12 bytes of
/// timestamps in each.
#[test]
fn segments_are_as_short_as_asked() {
    const LIMIT: u32 = 1000;
    for wiring in [Wiring::Plain, Wiring::Tuned] {
        let stage = Stage::attached(wiring, PROGRAM);
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            tcp_server(namespace, ECHO_PORT, Some(server.title));
        }
        for family in FAMILIES {
            let nat = vip(Method::Nat, family, ECHO_PORT);
            let target = stage.serve("-t", nat, Method::Nat, ECHO_PORT);
            for limit in [0, LIMIT] {
                stage.rlvs(&["set", "tcp_mss", &limit.to_string()]).ok();
                let held = stage.as_client(|| connect(target)).unwrap();
                let segment = getsockopt(&held.stream, sockopt::TcpMaxSeg).unwrap();
                let expected = LIMIT - 12;
                assert_eq!(segment == expected, limit == LIMIT, "{wiring:?} {family:?} {segment}");
            }
        }
    }
}
