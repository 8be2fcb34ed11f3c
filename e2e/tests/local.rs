//! Connections that begin or end on the director itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use e2e::lab::{
    Method, OWN_VIP, Random, Stage, connect, counts, run, tcp_server, udp_client, udp_server,
    wait_until,
};
use rlvs::lab::topology::{Addresses, DIRECTOR, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::netns::Namespace;
use rlvs_linux::sysctl;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 7;
/// Port of the director's own server, where NAT reaches it.
const OWN_PORT: u16 = 8007;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const WIRINGS: [Wiring; 2] = [Wiring::Plain, Wiring::Tuned];

fn combinations() -> impl Iterator<Item = (Method, Family, Addresses)> {
    let all = Method::ALL.into_iter().flat_map(|method| FAMILIES.map(|family| (method, family)));
    all.zip(VIPS).map(|((method, family), vip)| (method, family, vip))
}

/// Sends bytes through a connection, checks what comes back, and returns who answered.
#[track_caller]
fn echo(to: SocketAddr) -> String {
    let mut greeted = connect(to).unwrap();
    let sent = Random(to.port().into()).bytes(1 << 20);
    let mut writer = greeted.stream.try_clone().unwrap();
    let mut received = Vec::with_capacity(sent.len());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        greeted.stream.read_to_end(&mut received).unwrap();
    });
    assert!(received == sent, "{to}: {} other bytes came back", received.len());
    greeted.name
}

fn reason_count(namespace: &Namespace, name: &str) -> u64 {
    let status = run(namespace, std::path::Path::new(PROGRAM), &["status"]).ok();
    let mut lines = status.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines.find(|words| words.get(2) == Some(&name)).map_or(0, |words| words[1].parse().unwrap())
}

#[test]
fn a_real_server_that_is_the_director_is_served_beside_others() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            tcp_server(namespace, PORT, Some(server.title));
        }
        tcp_server(stage.lab.director(), PORT, Some("Director"));
        tcp_server(stage.lab.director(), OWN_PORT, Some("Director"));
        for (method, family, vip) in combinations() {
            let target = SocketAddr::new(vip.of(family), PORT);
            let (option, port) = match method {
                Method::Direct => ("-g", PORT),
                Method::Nat => ("-m", OWN_PORT),
            };
            let own = SocketAddr::new(DIRECTOR.of(family), port);
            let other = SocketAddr::new(method.address(&REAL_SERVERS[0], family), PORT);
            stage.ipvsadm(&format!("-A -t {target} -s rr")).ok();
            stage.ipvsadm(&format!("-a -t {target} -r {other} {option}")).ok();
            stage.ipvsadm(&format!("-a -t {target} -r {own} {option}")).ok();
            let names: Vec<String> = stage.as_client(|| (0..4).map(|_| echo(target)).collect());
            assert_eq!(
                names,
                ["Director", "Server 1", "Director", "Server 1"],
                "{wiring:?} {method:?} {target}"
            );
            let mut held = stage.as_client(|| connect(target)).unwrap();
            assert_eq!(held.name, "Director");
            let now = || -> Vec<(u32, u32)> {
                stage.counts("-t", target).into_iter().map(|(_, a, i)| (a, i)).collect()
            };
            wait_until("one held at the director", &vec![(1, 2), (0, 2)], now);
            // Another connection from outside to the director's own server is none of ours.
            assert_eq!(stage.as_client(|| echo(own)), "Director");
            held.stream.write_all(b"x").unwrap();
            held.stream.read_exact(&mut [0]).unwrap();
            drop(held);
            wait_until("none held", &vec![(0, 3), (0, 2)], now);
        }
    }
}

#[test]
fn datagrams_reach_a_real_server_that_is_the_director() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        for (method, family, vip) in combinations() {
            let target = SocketAddr::new(vip.of(family), PORT);
            let own = match method {
                Method::Direct => SocketAddr::new(DIRECTOR.of(family), PORT),
                Method::Nat => SocketAddr::new(DIRECTOR.of(family), OWN_PORT),
            };
            let at = if method == Method::Direct { target } else { own };
            udp_server(stage.lab.director(), at, "");
            stage.ipvsadm(&format!("-A -u {target} -s rr")).ok();
            stage.ipvsadm(&format!("-a -u {target} -r {own} {}", method.option())).ok();
            stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                let mut buffer = [0; 2048];
                for length in [0, 1, 100, 1400] {
                    let sent = vec![length as u8; length];
                    socket.send(&sent).unwrap();
                    let received = socket.recv(&mut buffer).unwrap();
                    assert!(buffer[..received] == sent[..], "{method:?} {target} {length}");
                }
            });
            // Each packet is counted once, whichever body has seen it.
            let stats = stage.ipvsadm(&format!("-L -n --stats -u {target}")).ok();
            let row = stats.lines().last().unwrap().split_ascii_whitespace().collect::<Vec<_>>();
            let out = if method == Method::Nat { "4" } else { "0" };
            assert_eq!(row[2..5], ["1", "4", out], "{stats}");
        }
    }
}

#[test]
fn a_closed_port_of_a_real_server_that_is_the_director_refuses_at_once() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
            let target = SocketAddr::new(vip.of(family), PORT);
            let own = SocketAddr::new(DIRECTOR.of(family), OWN_PORT);
            stage.ipvsadm(&format!("-A -u {target} -s rr")).ok();
            stage.ipvsadm(&format!("-a -u {target} -r {own} -m")).ok();
            let kind = stage.as_client(|| {
                let socket = udp_client(target).unwrap();
                socket.send(b"anybody?").unwrap();
                socket.recv(&mut [0; 16]).unwrap_err().kind()
            });
            assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{wiring:?} {target}");
        }
    }
}

#[test]
fn two_directors_that_are_the_real_servers_too_do_not_send_in_circles() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        let director = stage.lab.director();
        let backup = &stage.lab.real_servers()[0];
        tcp_server(director, PORT, Some("Director"));
        tcp_server(backup, PORT, Some("Backup"));
        for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
            let target = SocketAddr::new(vip.of(family), PORT);
            for namespace in [director, backup] {
                let ipvsadm = |arguments: String| {
                    let words = ["ipvsadm"].into_iter().chain(arguments.split_ascii_whitespace());
                    run(namespace, stage.program(), &words.collect::<Vec<_>>()).ok()
                };
                ipvsadm(format!("-A -t {target} -s rr"));
                for address in [DIRECTOR, REAL_SERVERS[0].outside] {
                    let real = SocketAddr::new(address.of(family), PORT);
                    ipvsadm(format!("-a -t {target} -r {real} -g"));
                }
            }
            let names: Vec<String> = stage.as_client(|| (0..8).map(|_| echo(target)).collect());
            assert_eq!(names, [["Backup", "Director"]; 4].concat(), "{wiring:?} {target}");
            let listing = run(backup, stage.program(), &["ipvsadm", "-L", "-n"]).ok();
            let kept: u32 = counts(&listing).iter().map(|(_, active, idle)| active + idle).sum();
            assert_eq!(kept, 0, "the backup has scheduled what it was sent:\n{listing}");
        }
        assert!(reason_count(backup, "from_peer") >= 8);
        for namespace in [director, backup] {
            assert_eq!(reason_count(namespace, "ttl_expired"), 0);
        }
    }
}

#[test]
fn a_client_on_the_director_is_served_by_nat() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        let director = stage.lab.director();
        stage.hold_own_vip();
        for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
            tcp_server(namespace, PORT, Some(server.title));
        }
        tcp_server(director, OWN_PORT, Some("Director"));
        for strict in ["0", "1"] {
            director.run(|| sysctl::write("net/ipv4/conf/all/rp_filter", strict).unwrap()).unwrap();
            for family in FAMILIES {
                let target = SocketAddr::new(OWN_VIP.of(family), PORT);
                let own = SocketAddr::new(DIRECTOR.of(family), OWN_PORT);
                if strict == "0" {
                    stage.serve("-t", target, Method::Nat, PORT);
                    stage.ipvsadm(&format!("-a -t {target} -r {own} -m")).ok();
                }
                let mut names = director.run(|| [(); 3].map(|()| echo(target))).unwrap();
                names.sort();
                assert_eq!(names, ["Director", "Server 1", "Server 2"], "{wiring:?} {target}");
                // Who comes from elsewhere is served as ever.
                let mut names = stage.as_client(|| [(); 3].map(|()| echo(target)));
                names.sort();
                assert_eq!(names, ["Director", "Server 1", "Server 2"], "{wiring:?} {target}");
            }
        }
        assert!(stage.rlvs(&["status"]).ok().contains("interface     lo: TC ("));
        // Direct routing cannot serve it: whoever listens here does.
        tcp_server(director, PORT, Some("Listener"));
        for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
            let target = SocketAddr::new(vip.of(family), PORT);
            stage.serve("-t", target, Method::Direct, PORT);
            assert_eq!(director.run(|| echo(target)).unwrap(), "Listener");
        }
        stage.rlvs(&["detach"]).ok();
        let accept = director.run(|| sysctl::read("net/ipv4/conf/lo/accept_local")).unwrap();
        assert_eq!(accept.unwrap().trim(), "0");
    }
}

#[test]
fn the_loopback_device_is_left_alone_without_nat() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let target = SocketAddr::new(VIPS[0].of(Family::V4), PORT);
    stage.serve("-t", target, Method::Direct, PORT);
    let status = stage.rlvs(&["status"]).ok();
    assert!(!status.contains("lo:"), "{status}");
    tcp_server(stage.lab.director(), PORT, Some("Director"));
    assert_eq!(stage.lab.director().run(|| echo(target)).unwrap(), "Director");
}
