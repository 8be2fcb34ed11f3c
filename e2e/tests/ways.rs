//! Ways that change: neighbours, routes and interfaces come and go, no process of ours is there to
//! notice, and connections go on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::lab::{
    Method, Said, Stage, TIME_MAX, connect, inside, run, tcp_server, tool, udp_client, udp_server,
    wait_for,
};
use rlvs::lab::topology::{
    Addresses, CLIENT, DIRECTOR_INSIDE, INSIDE_INTERFACE, OUTSIDE_INTERFACE, REAL_SERVERS, VIPS,
    Wiring,
};
use rlvs_control::model::Family;
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::{Mac, Prefix, Rtnetlink};
use rlvs_linux::sysctl;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO_PORT: u16 = 7;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const WIRINGS: [Wiring; 2] = [Wiring::Plain, Wiring::Tuned];
/// A way is kept for a second of coarse time; the rest is what a busy machine takes.
const HEALED: Duration = Duration::from_millis(1800);
/// Before the first retransmission of a SYN, which comes after a second.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Runs `ip` in a namespace.
#[track_caller]
fn ip(namespace: &Namespace, arguments: &str) -> String {
    let words: Vec<&str> = arguments.split_ascii_whitespace().collect();
    run(namespace, &tool("ip").unwrap(), &words).ok()
}

/// Every combination of method and family, with a virtual address that none before has had.
fn combinations() -> impl Iterator<Item = (Method, Family, Addresses)> {
    let all = Method::ALL.into_iter().flat_map(|method| FAMILIES.map(|family| (method, family)));
    all.zip(VIPS).map(|((method, family), vip)| (method, family, vip))
}

/// Adds a service of one destination.
#[track_caller]
fn serve_one(stage: &Stage, protocol: &str, target: SocketAddr, method: Method, real: IpAddr) {
    stage.ipvsadm(&format!("-A {protocol} {target} -s rr")).ok();
    let real = SocketAddr::new(real, target.port());
    let option = method.option();
    stage.ipvsadm(&format!("-a {protocol} {target} -r {real} {option}")).ok();
}

fn start_echo(stage: &Stage) {
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, ECHO_PORT, Some(server.title));
    }
}

/// Sends bytes through a connection and reads them back.
#[track_caller]
fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"still there?").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still there?");
}

/// Forgets a neighbour of the director's.
fn forget(stage: &Stage, interface: &str, neighbour: IpAddr) {
    let mut rtnetlink = Rtnetlink::open_in(stage.lab.director()).unwrap();
    let index = rtnetlink.link(interface).unwrap().index;
    if rtnetlink.neighbour(index, neighbour).unwrap().is_some() {
        ip(stage.lab.director(), &format!("neigh del {neighbour} dev {interface}"));
    }
    assert_eq!(rtnetlink.neighbour(index, neighbour).unwrap(), None, "{neighbour}");
}

fn interface_of(method: Method) -> &'static str {
    match method {
        Method::Direct => OUTSIDE_INTERFACE,
        Method::Nat => INSIDE_INTERFACE,
    }
}

#[test]
fn the_first_packet_to_an_unresolved_neighbour_is_answered_at_once() {
    let Some(_) = tool("ip") else { return };
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        start_echo(&stage);
        for (method, family, vip) in combinations() {
            let target = SocketAddr::new(vip.of(family), ECHO_PORT);
            let real = method.address(&REAL_SERVERS[0], family);
            serve_one(&stage, "-t", target, method, real);
            // Both ends; the client's own way to the director is known.
            stage.as_client(|| TcpStream::connect(SocketAddr::new(target.ip(), 1)).unwrap_err());
            forget(&stage, interface_of(method), real);
            forget(&stage, OUTSIDE_INTERFACE, CLIENT.of(family));
            let (took, mut greeted) = stage.as_client(|| {
                let begin = Instant::now();
                let greeted = connect(target).unwrap();
                (begin.elapsed(), greeted)
            });
            assert!(took < AT_ONCE, "{wiring:?} {method:?} {target}: {took:?}");
            exchange(&mut greeted.stream);
        }
    }
}

/// Sends datagrams until one is answered, and returns how long that took.
#[track_caller]
fn time_to_answer(socket: &UdpSocket) -> Duration {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let begin = Instant::now();
    while begin.elapsed() < TIME_MAX {
        // A way that is gone may also be said to be gone.
        drop(socket.send(b"anybody?"));
        if socket.recv(&mut [0; 16]).is_ok() {
            return begin.elapsed();
        }
    }
    panic!("no answer in {TIME_MAX:?}");
}

fn start_datagrams(stage: &Stage, method: Method, vip: IpAddr) {
    let family = Family::of(vip);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        let at = match method {
            Method::Direct => vip,
            Method::Nat => server.inside.of(family),
        };
        udp_server(namespace, SocketAddr::new(at, ECHO_PORT), "");
    }
}

#[test]
fn a_real_server_whose_mac_address_changes_is_found_again_within_a_second() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        start_echo(&stage);
        let server = &stage.lab.real_servers()[0];
        // As hosts do that want to be found: it tells its neighbours.
        server
            .run(|| {
                for interface in [OUTSIDE_INTERFACE, INSIDE_INTERFACE] {
                    sysctl::write(&format!("net/ipv4/conf/{interface}/arp_notify"), "1").unwrap();
                    sysctl::write(&format!("net/ipv6/conf/{interface}/ndisc_notify"), "1").unwrap();
                }
            })
            .unwrap();
        let mut rtnetlink = Rtnetlink::open_in(server).unwrap();
        for ((method, family, vip), number) in combinations().zip(1..) {
            let target = SocketAddr::new(vip.of(family), ECHO_PORT);
            let real = method.address(&REAL_SERVERS[0], family);
            start_datagrams(&stage, method, target.ip());
            serve_one(&stage, "-u", target, method, real);
            serve_one(&stage, "-t", target, method, real);
            let (socket, mut held) = stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                time_to_answer(&socket);
                (socket, connect(target).unwrap().stream)
            });
            let index = rtnetlink.link(interface_of(method)).unwrap().index;
            rtnetlink.set_mac(index, Mac([2, 0xcc, 0, 0, 0, number])).unwrap();
            let took = time_to_answer(&socket);
            assert!(took < HEALED, "{wiring:?} {method:?} {target}: {took:?}");
            exchange(&mut held);
        }
    }
}

/// Returns how often status names a reason.
fn reason_count(stage: &Stage, name: &str) -> u64 {
    let status = stage.rlvs(&["status"]).ok();
    let mut lines = status.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines.find(|words| words.get(2) == Some(&name)).map_or(0, |words| words[1].parse().unwrap())
}

#[test]
fn a_real_server_without_a_route_is_served_again_when_it_has_one() {
    let Some(_) = tool("ip") else { return };
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        start_echo(&stage);
        let used = combinations().map(|(method, family, vip)| {
            let target = SocketAddr::new(vip.of(family), ECHO_PORT);
            let real = method.address(&REAL_SERVERS[0], family);
            start_datagrams(&stage, method, target.ip());
            serve_one(&stage, "-u", target, method, real);
            serve_one(&stage, "-t", target, method, real);
            stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                time_to_answer(&socket);
                (real, socket, connect(target).unwrap().stream)
            })
        });
        let mut used: Vec<_> = used.collect();
        let before = reason_count(&stage, "unreachable");
        for (real, _, _) in &used {
            ip(stage.lab.director(), &format!("route add unreachable {real}"));
        }
        // Each CPU keeps its way for a second.
        let (begin, mut last) = (Instant::now(), Duration::ZERO);
        while begin.elapsed() < HEALED + AT_ONCE {
            for (_, socket, _) in &used {
                drop(socket.send(b"anybody?"));
                if socket.recv(&mut [0; 16]).is_ok() {
                    last = begin.elapsed();
                }
            }
        }
        assert!(last < HEALED, "{wiring:?}: {last:?}");
        assert!(reason_count(&stage, "unreachable") > before);
        for (real, socket, held) in &mut used {
            ip(stage.lab.director(), &format!("route del unreachable {real}"));
            let took = time_to_answer(socket);
            assert!(took < AT_ONCE, "{wiring:?} {real}: {took:?}");
            exchange(held);
        }
    }
}

#[test]
fn connections_survive_a_flap_of_the_directors_interfaces() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        start_echo(&stage);
        let director = stage.lab.director();
        director
            .run(|| sysctl::write("net/ipv6/conf/all/keep_addr_on_down", "1").unwrap())
            .unwrap();
        let mut held: Vec<TcpStream> = combinations()
            .map(|(method, family, vip)| {
                let target = SocketAddr::new(vip.of(family), ECHO_PORT);
                serve_one(&stage, "-t", target, method, method.address(&REAL_SERVERS[0], family));
                stage.as_client(|| connect(target)).unwrap().stream
            })
            .collect();
        held.iter_mut().for_each(exchange);
        let mut rtnetlink = Rtnetlink::open_in(director).unwrap();
        for interface in [OUTSIDE_INTERFACE, INSIDE_INTERFACE] {
            let index = rtnetlink.link(interface).unwrap().index;
            for _ in 0..3 {
                rtnetlink.set_up(index, false).unwrap();
                rtnetlink.set_up(index, true).unwrap();
            }
            held.iter_mut().for_each(exchange);
        }
        for (method, family, vip) in combinations() {
            let target = SocketAddr::new(vip.of(family), ECHO_PORT);
            let mut greeted = stage.as_client(|| connect(target)).unwrap();
            exchange(&mut greeted.stream);
            assert_eq!(greeted.name, "Server 1", "{method:?}");
        }
    }
}

#[test]
fn an_interface_that_returns_under_its_name_is_attached_by_a_command() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        start_echo(&stage);
        let target = SocketAddr::new(VIPS[0].of(Family::V4), ECHO_PORT);
        let real = Method::Nat.address(&REAL_SERVERS[0], Family::V4);
        serve_one(&stage, "-t", target, Method::Nat, real);
        let mut held = stage.as_client(|| connect(target)).unwrap().stream;
        exchange(&mut held);
        let mut director = Rtnetlink::open_in(stage.lab.director()).unwrap();
        let old = director.link(INSIDE_INTERFACE).unwrap();
        director.delete_link(old.index).unwrap();
        let status = stage.rlvs(&["status"]).ok();
        let shown = if wiring == Wiring::Plain { "TC" } else { "native XDP" };
        let gone = format!("interface {} (gone)", old.index);
        assert!(status.contains(&gone), "{status}");

        // The same place, the same number even, as when a driver is loaded again.
        let name = format!("director-{INSIDE_INTERFACE}");
        let add = format!(
            "link add {INSIDE_INTERFACE} index {} address {} type veth peer name {name}",
            old.index,
            mac_text(old.mac.unwrap())
        );
        ip(stage.lab.director(), &add);
        ip(stage.lab.director(), &format!("link set {name} netns {}", stage.lab.switch().name()));
        ip(stage.lab.switch(), &format!("link set {name} master br1 up"));
        let new = director.link(INSIDE_INTERFACE).unwrap();
        assert_eq!(new.index, old.index);
        director
            .add_address(new.index, Prefix { address: DIRECTOR_INSIDE.of(Family::V4), bits: 24 })
            .unwrap();
        director.set_up(new.index, true).unwrap();
        let status = stage.rlvs(&["status"]).ok();
        let not_attached = format!("interface     {INSIDE_INTERFACE}: not attached");
        assert!(status.contains(&not_attached), "{status}");

        let mode = if wiring == Wiring::Plain { "tc" } else { "native" };
        if wiring == Wiring::Tuned {
            stage.lab.switch().run(|| prepare_peer(&name)).unwrap();
        }
        let said = stage.rlvs(&["attach", "--mode", mode]).ok();
        assert!(said.contains(&format!("rlvs: {INSIDE_INTERFACE} attached: {shown}\n")), "{said}");
        let status = stage.rlvs(&["status"]).ok();
        assert!(!status.contains("gone") && !status.contains("not attached"), "{status}");
        assert!(status.contains(&format!("{INSIDE_INTERFACE}: {shown}")), "{status}");
        exchange(&mut held);
        let mut greeted = stage.as_client(|| connect(target)).unwrap();
        exchange(&mut greeted.stream);
    }
}

fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac.0;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn prepare_peer(interface: &str) {
    rlvs_linux::ethtool::gro_on(interface).unwrap();
    let mut rtnetlink = Rtnetlink::open().unwrap();
    let index = rtnetlink.link(interface).unwrap().index;
    rlvs_linux::xdp_pass::attach_pass(&mut rtnetlink, index).unwrap();
}

#[test]
fn real_servers_behind_different_interfaces_share_a_service() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        start_echo(&stage);
        for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
            let target = SocketAddr::new(vip.of(family), ECHO_PORT);
            // Both hold the virtual address; one is reached directly, the other from inside.
            let ways = [REAL_SERVERS[0].outside, REAL_SERVERS[1].inside];
            stage.ipvsadm(&format!("-A -t {target} -s rr")).ok();
            for way in ways {
                let real = SocketAddr::new(way.of(family), ECHO_PORT);
                stage.ipvsadm(&format!("-a -t {target} -r {real} -g")).ok();
            }
            let mut held =
                stage.as_client(|| (0..4).map(|_| connect(target).unwrap()).collect::<Vec<_>>());
            let names: Vec<&str> = held.iter().map(|greeted| greeted.name.as_str()).collect();
            assert_eq!(names, ["Server 2", "Server 1", "Server 2", "Server 1"], "{target}");
            held.iter_mut().for_each(|greeted| exchange(&mut greeted.stream));
        }
    }
}

/// An address that the first real server has on no segment, so that two ways lead there.
const ELSEWHERE: &str = "172.16.0.1";

/// Returns the packets that have come to the first real server by an interface.
fn received_by(stage: &Stage, interface: &str) -> u64 {
    let file = format!("/sys/class/net/{interface}/statistics/rx_packets");
    let mut command = Command::new(tool("ip").unwrap());
    command.args(["netns", "exec", stage.lab.real_servers()[0].name(), "cat", &file]);
    let said = Said::from(command.output().unwrap()).ok();
    said.trim().parse().unwrap()
}

#[test]
fn a_route_that_changes_under_load_breaks_no_connection() {
    let (Some(wrk), Some(_), Some(_)) = (tool("wrk"), tool("nginx"), tool("ip")) else { return };
    for (wiring, method) in WIRINGS.into_iter().flat_map(|wiring| Method::ALL.map(|m| (wiring, m)))
    {
        let stage = Stage::attached(wiring, PROGRAM);
        let server = &stage.lab.real_servers()[0];
        ip(server, &format!("address add {ELSEWHERE}/32 dev lo"));
        ip(server, &format!("rule add from {ELSEWHERE} lookup 100"));
        let ways = [
            (OUTSIDE_INTERFACE, REAL_SERVERS[0].outside.v4),
            (INSIDE_INTERFACE, REAL_SERVERS[0].inside.v4),
        ];
        let lead = |way: usize| {
            let (interface, gateway) = ways[way];
            let route = format!("route replace {ELSEWHERE} via {gateway} dev {interface}");
            ip(stage.lab.director(), &route);
        };
        lead(0);
        let target = SocketAddr::new(VIPS[0].of(Family::V4), 80);
        serve_one(&stage, "-t", target, method, ELSEWHERE.parse().unwrap());
        let mut command = Command::new(&wrk);
        command.args(["-t1", "-c8", "-d4s", &format!("http://{target}/")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        inside(stage.lab.client(), &mut command);
        let mut load = command.spawn().unwrap();
        let mut changes = 0;
        while load.try_wait().unwrap().is_none() {
            let way = (changes + 1) % 2;
            let (interface, _) = ways[way];
            let begin = received_by(&stage, interface);
            lead(way);
            // Until the load has gone over to it, or is at its end.
            wait_for("packets on the new way", || {
                let come = received_by(&stage, interface).saturating_sub(begin);
                let is_over = load.try_wait().unwrap().is_some();
                if come > 500 || is_over { Ok(()) } else { Err(format!("{come} packets")) }
            });
            changes += 1;
        }
        let said = Said::from(load.wait_with_output().unwrap()).ok();
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        assert!(changes >= 3, "{wiring:?} {method:?}: {changes} changes");
    }
}
