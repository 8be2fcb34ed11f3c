//! Full NAT with real clients and servers: in one network, and where no route leads back to the client.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use e2e::lab::{Random, Stage, TIME_MAX, connect, run, tool, udp_client, udp_server, wait_until};
use rlvs::lab::topology::{DIRECTOR, DIRECTOR_INSIDE, REAL_SERVERS, RealServer, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::netns::Namespace;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 4700;
const ECHO_BYTES: usize = 1 << 20;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Where real servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the client's own network.
    OneArm,
    /// Behind the director, without a route to the client.
    TwoArms,
}

impl Place {
    const ALL: [Self; 2] = [Self::OneArm, Self::TwoArms];

    /// Returns the director's address there.
    fn pool(self, family: Family) -> IpAddr {
        match self {
            Self::OneArm => DIRECTOR.of(family),
            Self::TwoArms => DIRECTOR_INSIDE.of(family),
        }
    }

    fn server(self, server: &RealServer, family: Family) -> IpAddr {
        match self {
            Self::OneArm => server.outside.of(family),
            Self::TwoArms => server.inside.of(family),
        }
    }

    fn vip(self, family: Family) -> SocketAddr {
        SocketAddr::new(VIPS[self as usize].of(family), PORT)
    }
}

/// Returns a lab whose real servers know nothing beyond their inner network.
fn stage(wiring: Wiring) -> Stage {
    let stage = Stage::attached(wiring, PROGRAM);
    for namespace in stage.lab.real_servers() {
        for (version, network) in [("-4", "10.0.1.0/24"), ("-6", "fd00:2::/64")] {
            let ip = |words: &str| {
                let words: Vec<&str> = words.split(' ').collect();
                run(namespace, Path::new("ip"), &words).ok();
            };
            ip(&format!("{version} route add {network} dev eth1 table 100"));
            ip(&format!("{version} route replace unreachable default table 100"));
        }
    }
    stage
}

/// Makes a service of full NAT with both real servers.
fn serve(stage: &Stage, protocol: &str, place: Place, family: Family) -> SocketAddr {
    let vip = place.vip(family);
    stage.rlvs(&["snat", "add", &place.pool(family).to_string()]).ok();
    stage.ipvsadm(&format!("-A {protocol} {vip} -s rr")).ok();
    for server in &REAL_SERVERS {
        let real = SocketAddr::new(place.server(server, family), PORT);
        stage.ipvsadm(&format!("-a {protocol} {vip} -r {real} -m --snat")).ok();
    }
    vip
}

/// Serves TCP: each connection is told whom it seems to come from, then everything comes back.
fn tcp_server(namespace: &Namespace) {
    let listener = namespace.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let peer = stream.peer_addr()?.ip().to_canonical();
                stream.write_all(format!("{peer}\n").as_bytes())?;
                std::io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
}

fn echo_all(to: SocketAddr, seed: u64) -> IpAddr {
    let mut greeted = connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let sent = Random(seed).bytes(ECHO_BYTES);
    let mut writer = greeted.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::with_capacity(ECHO_BYTES);
        greeted.stream.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{to}: other bytes came back");
    });
    greeted.name.parse().unwrap()
}

fn every_byte(wiring: Wiring) {
    let stage = stage(wiring);
    for namespace in stage.lab.real_servers() {
        tcp_server(namespace);
    }
    for (place, family) in Place::ALL.into_iter().flat_map(|p| FAMILIES.map(|f| (p, f))) {
        let vip = serve(&stage, "-t", place, family);
        let seen = stage.as_client(|| [echo_all(vip, 88_172), echo_all(vip, 645_463)]);
        assert!(
            seen.iter().all(|&who| who == DIRECTOR.of(family) || who == DIRECTOR_INSIDE.of(family)),
            "{place:?} {family:?}: {seen:?}"
        );
        wait_until("both are counted", &[(0, 1), (0, 1)].as_slice().to_vec(), || {
            stage.counts("-t", vip).into_iter().map(|(_, active, idle)| (active, idle)).collect()
        });
        stage.rlvs(&["snat", "del", &place.pool(family).to_string()]).ok();
    }
    let status = stage.rlvs(&["status"]).ok();
    assert!(!status.contains("no_port"), "{status}");
}

#[test]
fn every_byte_of_a_tcp_echo_comes_back_through_tc() {
    every_byte(Wiring::Plain);
}

#[test]
fn every_byte_of_a_tcp_echo_comes_back_through_native_xdp() {
    every_byte(Wiring::Tuned);
}

/// Datagrams, a web page, and what ordinary NAT does with such servers.
#[test]
fn datagrams_and_web_pages_come_back_where_ordinary_nat_brings_nothing() {
    let stage = stage(Wiring::Plain);
    for (place, family) in Place::ALL.into_iter().flat_map(|p| FAMILIES.map(|f| (p, f))) {
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            udp_server(namespace, SocketAddr::new(place.server(server, family), PORT), "");
        }
        let vip = serve(&stage, "-u", place, family);
        let largest = 1500 - if family == Family::V4 { 28 } else { 48 };
        stage.as_client(|| {
            let mut random = Random(48_271);
            let mut buffer = [0; 2048];
            for socket in [udp_client(vip).unwrap(), udp_client(vip).unwrap()] {
                for length in (0..=largest).step_by(61).chain([largest]) {
                    let sent = random.bytes(length);
                    socket.send(&sent).unwrap();
                    let received = socket
                        .recv(&mut buffer)
                        .unwrap_or_else(|error| panic!("{place:?} {vip}, {length} bytes: {error}"));
                    assert!(buffer[..received] == sent[..], "{vip}, {length} bytes");
                }
            }
        });
        // Nobody listens there: the error comes from the virtual address.
        let closed = SocketAddr::new(place.server(&REAL_SERVERS[0], family), PORT + 1);
        let at = SocketAddr::new(vip.ip(), PORT + 1);
        stage.ipvsadm(&format!("-A -u {at} -s rr")).ok();
        stage.ipvsadm(&format!("-a -u {at} -r {closed} -m --snat")).ok();
        let error = stage.as_client(|| {
            let socket = udp_client(at).unwrap();
            socket.send(b"anybody?").unwrap();
            socket.recv(&mut [0; 8]).unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{place:?} {at}: {error}");
        let web = SocketAddr::new(vip.ip(), 80);
        stage.ipvsadm(&format!("-A -t {web} -s rr")).ok();
        let real = SocketAddr::new(place.server(&REAL_SERVERS[0], family), 80);
        stage.ipvsadm(&format!("-a -t {web} -r {real} -m")).ok();
        let Some(curl) = tool("curl") else { return };
        let url = format!("http://{web}/");
        let ask = |time: &str| stage.client_command(&curl, &["-s", "-g", "-m", time, &url]);
        assert_ne!(ask("0.5").status, Some(0), "{place:?} {family:?}");
        stage.ipvsadm(&format!("-e -t {web} -r {real} -m --snat")).ok();
        assert!(ask("10").ok().contains("Server 1"), "{place:?} {family:?}");
        stage.ipvsadm("-C").ok();
        // From there no route leads to an address of the other network.
        stage.rlvs(&["snat", "del", &place.pool(family).to_string()]).ok();
    }
}

/// One address of the pool has room for many; each client port is another connection.
#[test]
fn ten_thousand_connections_share_an_address() {
    const CONNECTIONS: u16 = 10_000;
    let stage = stage(Wiring::Plain);
    let place = Place::OneArm;
    let real = SocketAddr::new(place.server(&REAL_SERVERS[0], Family::V4), PORT);
    udp_server(&stage.lab.real_servers()[0], real, "");
    let vip = place.vip(Family::V4);
    let pool = place.pool(Family::V4).to_string();
    stage.rlvs(&["snat", "add", &pool]).ok();
    stage.ipvsadm(&format!("-A -u {vip} -s rr")).ok();
    stage.ipvsadm(&format!("-a -u {vip} -r {real} -m --snat")).ok();
    stage.as_client(|| {
        for port in 20_000..20_000 + CONNECTIONS {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(TIME_MAX)).unwrap();
            socket.connect(vip).unwrap();
            socket.send(&port.to_be_bytes()).unwrap();
            let mut received = [0; 8];
            let length = socket.recv(&mut received).unwrap_or_else(|error| {
                panic!("the connection from port {port}: {error}");
            });
            assert_eq!(received[..length], port.to_be_bytes());
        }
    });
    assert_eq!(stage.counts("-u", vip), [(real.to_string(), 0, CONNECTIONS.into())]);
    let status = stage.rlvs(&["status"]).ok();
    assert!(!status.contains("no_port"), "{status}");
    let connections = stage.ipvsadm("-L -c -n").ok();
    let of = |port: u16| format!("192.168.1.10:{port}");
    let line = connections.lines().find(|line| line.contains(&of(20_000))).unwrap();
    assert!(line.contains(&vip.to_string()) && line.ends_with(&real.to_string()), "{line}");
}

#[test]
fn a_pool_without_a_free_port_is_told_to_the_client_and_counted() {
    let stage = stage(Wiring::Tuned);
    let place = Place::TwoArms;
    tcp_server(&stage.lab.real_servers()[0]);
    let real = SocketAddr::new(place.server(&REAL_SERVERS[0], Family::V4), PORT);
    let vip = place.vip(Family::V4);
    let pool = place.pool(Family::V4).to_string();
    stage.rlvs(&["snat", "add", &pool, "--ports", "5000-5003"]).ok();
    stage.ipvsadm(&format!("-A -t {vip} -s rr")).ok();
    stage.ipvsadm(&format!("-a -t {vip} -r {real} -m --snat")).ok();
    stage.as_client(|| {
        let open: Vec<_> = (0..4).map(|_| connect(vip).unwrap()).collect();
        let refused = connect(vip).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        drop(open);
    });
    let status = stage.rlvs(&["status"]).ok();
    assert!(status.contains(" no_port"), "{status}");
    // With more ports there is room at once.
    stage.rlvs(&["snat", "add", &pool, "--ports", "5000-5007"]).ok();
    assert_eq!(stage.rlvs(&["snat", "list"]).ok(), format!("{pool} ports 5000-5007\n"));
    stage.as_client(|| connect(vip).map(|greeted| assert_eq!(greeted.name, pool)).unwrap());
    // What is removed is silent, and goes on when it is back.
    let mut greeted = stage.as_client(|| connect(vip).unwrap());
    stage.ipvsadm(&format!("-d -t {vip} -r {real}")).ok();
    greeted.stream.write_all(b"still").unwrap();
    greeted.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(greeted.stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    stage.ipvsadm(&format!("-a -t {vip} -r {real} -m --snat")).ok();
    greeted.stream.set_read_timeout(Some(TIME_MAX)).unwrap();
    let mut back = [0; 5];
    greeted.stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"still");
}

#[test]
fn what_is_saved_is_restored_and_what_makes_no_sense_refused() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let (vip, real) = (Place::OneArm.vip(Family::V4), "192.168.1.101:80");
    stage.ipvsadm(&format!("-A -t {vip} -s rr")).ok();
    let refused = |said: e2e::lab::Said, why: &str| {
        assert_ne!(said.status, Some(0), "{said:?}");
        assert!(said.errors.contains(why), "{why}: {said:?}");
    };
    let add = format!("-a -t {vip} -r {real} -m --snat");
    refused(stage.ipvsadm(&add), "rlvs snat add");
    refused(stage.rlvs(&["snat", "add", "192.168.1.101"]), "not an address of this host");
    refused(stage.rlvs(&["snat", "add", "192.168.1.100-"]), "not an address");
    refused(stage.rlvs(&["snat", "del", "192.168.1.100"]), "not all of");
    stage.rlvs(&["snat", "add", "192.168.1.100"]).ok();
    stage.rlvs(&["snat", "add", "192.168.1.7-192.168.1.8", "--force"]).ok();
    stage.rlvs(&["snat", "del", "192.168.1.7-192.168.1.8"]).ok();
    refused(stage.ipvsadm(&format!("-a -t {vip} -r {real} -g --snat")), "goes only with -m");
    refused(stage.ipvsadm(&format!("-a -t {vip} -r 192.168.1.100:80 -m --snat")), "itself");
    stage.ipvsadm("-A -f 7 -s rr").ok();
    refused(stage.ipvsadm(&format!("-a -f 7 -r {real} -m --snat")), "not for a service of a");
    stage.ipvsadm("-D -f 7").ok();
    stage.ipvsadm("-A -u 192.168.1.200:53 -s rr -o").ok();
    let single = "-u 192.168.1.200:53 -r 192.168.1.101:53 -m --snat";
    refused(stage.ipvsadm(&format!("-a {single}")), "single packets");
    stage.ipvsadm("-E -u 192.168.1.200:53 -s rr").ok();
    stage.ipvsadm(&format!("-a {single}")).ok();
    refused(stage.ipvsadm("-E -u 192.168.1.200:53 -s rr -o"), "single packets");
    stage.ipvsadm("-D -u 192.168.1.200:53").ok();
    stage.ipvsadm(&add).ok();
    let saved = stage.ipvsadm("-S -n").ok();
    let expected = format!("-A -t {vip} -s rr\n-a -t {vip} -r {real} -m --snat -w 1\n");
    assert_eq!(saved.replace(" -w 1 --snat", " --snat -w 1"), expected);
    assert!(stage.listing().contains("Masq    1"), "{}", stage.listing());
    assert!(stage.ipvsadm("-L --json").ok().contains("\"method\":\"full-nat\""));
    stage.ipvsadm("-C").ok();
    for line in saved.lines() {
        stage.ipvsadm(line).ok();
    }
    assert_eq!(stage.ipvsadm("-S -n").ok(), saved);
}
