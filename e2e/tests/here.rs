//! Connections with a real server or a client that is the director itself, by more than plain TCP and UDP of
//! services with an address and a port.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};

use e2e::association::{self, Speaker};
use e2e::lab::{
    Method, OWN_VIP, Random, Stage, connect, tcp_server, udp_client, udp_server, wait_until,
};
use rlvs::lab::topology::{CLIENT, DIRECTOR, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 7;
/// Port of the director's own server.
const OWN_PORT: u16 = 8007;
/// A port where nobody listens.
const CLOSED: u16 = 8999;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const WIRINGS: [Wiring; 2] = [Wiring::Plain, Wiring::Tuned];
/// Bytes of datagrams, of which the last ones come and go in fragments.
const LENGTHS: [usize; 4] = [1, 1400, 4000, 9000];

/// Sends datagrams and checks what comes back.
#[track_caller]
fn exchange(target: SocketAddr) {
    let socket = udp_client(target).unwrap();
    let mut buffer = [0; 16_384];
    for length in LENGTHS {
        let sent = Random(length as u64).bytes(length);
        socket.send(&sent).unwrap();
        let received = socket.recv(&mut buffer);
        let received = received.unwrap_or_else(|error| panic!("{target} {length}: {error}"));
        assert!(buffer[..received] == sent[..], "{target} {length}");
    }
}

/// Returns who answers on TCP, after some bytes to and fro.
#[track_caller]
fn echo(target: SocketAddr) -> String {
    let mut greeted = connect(target).unwrap_or_else(|error| panic!("{target}: {error}"));
    let sent = Random(target.port().into()).bytes(100_000);
    let mut received = vec![0; sent.len()];
    let mut writer = greeted.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        greeted.stream.read_exact(&mut received).unwrap();
    });
    assert!(received == sent, "{target}");
    greeted.name
}

/// Opens an association, sends bytes, and checks what comes back.
#[track_caller]
fn associate(speaker: &Speaker, port: u16, target: SocketAddr) {
    let chunks = [
        (association::INIT, association::INIT_ACK),
        (association::COOKIE_ECHO, association::COOKIE_ACK),
        (association::DATA, association::SACK),
    ];
    for (chunk, answer) in chunks {
        let payload = Random(chunk.into()).bytes(333);
        speaker.say(port, target, chunk, &payload).unwrap();
        let heard = speaker.hear().unwrap_or_else(|error| panic!("{target} {chunk}: {error}"));
        assert_eq!((heard.from, heard.source, heard.target), (target.ip(), target.port(), port));
        assert!(heard.chunk == answer && heard.payload == payload, "{target} {chunk}");
    }
}

/// Fragments and SCTP, whose ports NAT changes.
#[test]
fn fragments_and_associations_reach_a_nat_server_that_is_the_director() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
            let target = SocketAddr::new(vip.of(family), PORT);
            let own = SocketAddr::new(DIRECTOR.of(family), OWN_PORT);
            udp_server(stage.lab.director(), own, "");
            association::server(stage.lab.director(), own);
            for protocol in ["-u", "--sctp-service"] {
                stage.ipvsadm(&format!("-A {protocol} {target} -s rr")).ok();
                stage.ipvsadm(&format!("-a {protocol} {target} -r {own} -m")).ok();
            }
            stage.as_client(|| exchange(target));
            let speaker = stage.as_client(|| Speaker::open(CLIENT.of(family))).unwrap();
            associate(&speaker, 4001, target);
            let counts = stage.counts("--sctp-service", target);
            assert_eq!(counts[0].1, 1, "{wiring:?} {target} {}", stage.listing());
        }
    }
}

#[test]
fn a_nat_server_that_is_the_director_serves_every_port_and_marks() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        tcp_server(stage.lab.director(), OWN_PORT, Some("Director"));
        for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
            let own = SocketAddr::new(DIRECTOR.of(family), OWN_PORT);
            udp_server(stage.lab.director(), own, "");
            let address = vip.of(family);
            let (any, real) = (SocketAddr::new(address, 0), SocketAddr::new(own.ip(), 0));
            let target = SocketAddr::new(address, OWN_PORT);
            for protocol in ["-t", "-u"] {
                stage.ipvsadm(&format!("-A {protocol} {any} -s rr -p 60")).ok();
                stage.ipvsadm(&format!("-a {protocol} {any} -r {real} -m")).ok();
            }
            stage.as_client(|| {
                assert_eq!(echo(target), "Director");
                exchange(target);
                refused(SocketAddr::new(address, CLOSED));
            });
            stage.ipvsadm("-C").ok();
            let version = if family == Family::V6 { "-6" } else { "" };
            let to = address.to_string();
            stage.rlvs(&["mark", "add", "77", "--to", &to]).ok();
            stage.ipvsadm(&format!("-A -f 77 {version} -s rr")).ok();
            stage.ipvsadm(&format!("-a -f 77 {version} -r {real} -m")).ok();
            stage.as_client(|| {
                assert_eq!(echo(target), "Director");
                exchange(target);
                refused(SocketAddr::new(address, CLOSED));
            });
            stage.ipvsadm("-C").ok();
            stage.rlvs(&["mark", "del", "77", "--to", &to]).ok();
        }
    }
}

/// Asserts that nobody is there, and says so.
#[track_caller]
fn refused(target: SocketAddr) {
    let socket = udp_client(target).unwrap();
    socket.send(b"anybody?").unwrap();
    let kind = socket.recv(&mut [0; 16]).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::ConnectionRefused, "{target}");
}

/// Sends each datagram back so many times as long, until the process ends.
fn loud_server(stage: &Stage, at: SocketAddr, times: usize) {
    let bind = || UdpSocket::bind(at).unwrap();
    let socket = stage.lab.real_servers()[0].run(bind).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..length].repeat(times), from));
        }
    });
}

/// Answers that come in fragments, associations, and what a real server's stack says of a closed port.
#[test]
fn a_client_on_the_director_gets_fragments_associations_and_errors() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        let director = stage.lab.director();
        stage.hold_own_vip();
        for family in FAMILIES {
            let target = SocketAddr::new(OWN_VIP.of(family), PORT);
            let real = SocketAddr::new(Method::Nat.address(&REAL_SERVERS[0], family), OWN_PORT);
            loud_server(&stage, real, 40);
            association::server(&stage.lab.real_servers()[0], real);
            for protocol in ["-u", "--sctp-service"] {
                stage.ipvsadm(&format!("-A {protocol} {target} -s rr")).ok();
                stage.ipvsadm(&format!("-a {protocol} {target} -r {real} -m")).ok();
            }
            let closed = SocketAddr::new(target.ip(), PORT + 1);
            let nobody = SocketAddr::new(real.ip(), CLOSED);
            stage.ipvsadm(&format!("-A -u {closed} -s rr")).ok();
            stage.ipvsadm(&format!("-a -u {closed} -r {nobody} -m")).ok();
            let every = SocketAddr::new(target.ip(), 0);
            stage.ipvsadm(&format!("-A -u {every} -s rr -p 60")).ok();
            stage.ipvsadm(&format!("-a -u {every} -r {} -m", SocketAddr::new(real.ip(), 0))).ok();
            let own = DIRECTOR.of(family);
            let work = || {
                let socket = udp_client(target).unwrap();
                let sent = Random(3).bytes(100);
                socket.send(&sent).unwrap();
                let mut buffer = [0; 16_384];
                let received = socket.recv(&mut buffer);
                let received = received.unwrap_or_else(|error| panic!("{target}: {error}"));
                assert!(buffer[..received] == sent.repeat(40)[..], "{wiring:?} {target}");
                refused(closed);
                refused(SocketAddr::new(target.ip(), CLOSED));
                Speaker::open(own).unwrap()
            };
            let speaker = director.run(work).unwrap();
            associate(&speaker, 4001, target);
        }
    }
}

/// XDP, which leaves to TC what stays here, has picked for it already: of either method and IP version.
#[test]
fn single_datagrams_go_to_this_host_and_another_in_turn() {
    for wiring in WIRINGS {
        let stage = Stage::attached(wiring, PROGRAM);
        for method in [Method::Direct, Method::Nat] {
            for (family, vip) in FAMILIES.into_iter().zip(VIPS) {
                let target = SocketAddr::new(vip.of(family), PORT);
                let other = SocketAddr::new(method.address(&REAL_SERVERS[0], family), PORT);
                let own = SocketAddr::new(DIRECTOR.of(family), OWN_PORT);
                let own = if method == Method::Nat { own } else { SocketAddr::new(own.ip(), PORT) };
                stage.ipvsadm(&format!("-A -u {target} -s rr -o")).ok();
                for real in [own, other] {
                    let option = method.option();
                    stage.ipvsadm(&format!("-a -u {target} -r {real} {option}")).ok();
                }
                stage.as_client(|| {
                    let socket = udp_client(target).unwrap();
                    for length in 0..10 {
                        // Nobody may listen: what comes back of one is no error of the next.
                        while socket.send(&vec![7; length]).is_err() {}
                    }
                });
                let picked = || -> Vec<Vec<u32>> {
                    let stats = stage.ipvsadm(&format!("-L -n --stats -u {target}")).ok();
                    let rows = stats.lines().filter(|line| line.trim().starts_with("->"));
                    let words = rows.map(|line| line.split_ascii_whitespace().skip(2).take(2));
                    let numbers = words.map(|words| words.map(|word| word.parse().ok()).collect());
                    // The heading has none.
                    numbers
                        .filter_map(|row: Option<Vec<u32>>| row.filter(|row| !row.is_empty()))
                        .collect()
                };
                let said = format!("{wiring:?} {method:?} {target}: connections and packets");
                wait_until(&said, &vec![vec![5, 5]; 2], picked);
                stage.ipvsadm("-C").ok();
            }
        }
    }
}
