//! Traffic through tunnels: every byte arrives, in the encapsulation that was asked for.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::path::Path;

use e2e::lab::{Random, Stage, connect, tcp_server, udp_client, udp_server};
use rlvs::lab::topology::{GUE_PORT, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::decap::{Encapsulation, Kind};
use rlvs_linux::netns::Namespace;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO_PORT: u16 = 7;
const FILE_PORT: u16 = 8000;
const ECHO_BYTES: usize = 1 << 20;
const FILE_BYTES: usize = 5 << 20;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A kind of tunnel, as it is asked for and as it arrives.
type Form = (&'static str, Encapsulation);

const PLAIN: [Form; 3] = [
    ("--tun-type ipip", Encapsulation::Ipip),
    ("--tun-type gre --tun-nocsum", Encapsulation::Gre),
    ("--tun-type gue --tun-port 6080 --tun-nocsum", Encapsulation::Gue),
];
const WITH_CHECKSUM: [Form; 3] = [
    ("--tun-type gre --tun-csum", Encapsulation::GreChecksum),
    ("--tun-type gue --tun-port 6080 --tun-csum", Encapsulation::GueChecksum),
    ("--tun-type gue --tun-port 6080 --tun-remcsum", Encapsulation::GueChecksum),
];

/// Sends a file to everyone who connects, until the process ends.
fn file_server(namespace: &Namespace) {
    let listener = namespace.run(|| TcpListener::bind(("::", FILE_PORT))).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.write_all(&Random(7).bytes(FILE_BYTES)).ok();
        }
    });
}

/// Sends bytes through a connection and checks what comes back, both at once.
fn echo(to: SocketAddr) {
    let mut greeted = connect(to).unwrap();
    let sent = Random(3).bytes(ECHO_BYTES);
    let mut writer = greeted.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        greeted.stream.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{to}: other bytes came back");
    });
}

fn datagrams(to: SocketAddr) {
    let socket = udp_client(to).unwrap();
    let mut buffer = [0; 2048];
    for length in [0, 1, 100, 1001, 1300] {
        let sent = Random(5).bytes(length);
        socket.send(&sent).unwrap();
        let received = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert!(buffer[..received] == sent[..], "{to}, {length} bytes");
    }
}

fn download(to: SocketAddr) {
    let mut stream = std::net::TcpStream::connect(to).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == Random(7).bytes(FILE_BYTES), "{to}: {} bytes", received.len());
}

/// Returns how many packets each kind of tunnel brought to the real servers, and how many were
/// refused.
fn taken_out(stage: &Stage) -> (BTreeMap<Kind, u64>, u64) {
    let (mut all, mut refused) = (BTreeMap::new(), 0);
    for decapsulator in stage.lab.decapsulators() {
        let counters = decapsulator.counters().unwrap();
        for (kind, count) in counters.taken_out {
            *all.entry(kind).or_insert(0) += count;
        }
        refused += counters.refused.values().sum::<u64>();
    }
    (all, refused)
}

fn every_byte(wiring: Wiring, forms: &[Form]) {
    let stage = Stage::attached(wiring, PROGRAM);
    for namespace in stage.lab.real_servers() {
        tcp_server(namespace, ECHO_PORT, Some("echo"));
        file_server(namespace);
        for family in FAMILIES {
            let at = SocketAddr::new(VIPS[2].of(family), ECHO_PORT);
            udp_server(namespace, at, "");
        }
    }
    // What a client sends has to leave room for the outer headers.
    for family in FAMILIES {
        let vip = VIPS[2].of(family).to_string();
        let words = ["route", "replace", &vip, "dev", "eth0", "mtu", "1400"];
        stage.client_command(Path::new("ip"), &words).ok();
    }
    // A bridge's port that takes segments together would leave the outer checksum of the first.
    for interface in ["eth0", "eth1"] {
        let port = format!("director-{interface}");
        let words = ["-K", &port, "gro", "off"];
        e2e::lab::run(stage.lab.switch(), Path::new("ethtool"), &words).ok();
    }
    assert_eq!(GUE_PORT, 6080);
    for inner in FAMILIES {
        for outer in FAMILIES {
            for &(options, encapsulation) in forms {
                through(&stage, inner, outer, options, encapsulation);
            }
        }
    }
}

fn through(
    stage: &Stage,
    inner: Family,
    outer: Family,
    options: &str,
    encapsulation: Encapsulation,
) {
    let vip: IpAddr = VIPS[2].of(inner);
    let at = |port| SocketAddr::new(vip, port);
    let (before, _) = taken_out(stage);
    for (protocol, port) in [("-t", ECHO_PORT), ("-t", FILE_PORT), ("-u", ECHO_PORT)] {
        let service = at(port);
        stage.ipvsadm(&format!("-A {protocol} {service} -s rr")).ok();
        for server in &REAL_SERVERS {
            let real = SocketAddr::new(server.outside.of(outer), port);
            stage.ipvsadm(&format!("-a {protocol} {service} -r {real} -i {options}")).ok();
        }
    }
    // The second goes to the other server.
    stage.as_client(|| {
        for _ in 0..2 {
            echo(at(ECHO_PORT));
            download(at(FILE_PORT));
            datagrams(at(ECHO_PORT));
        }
    });
    let (after, refused) = taken_out(stage);
    let came: Vec<Kind> = after
        .iter()
        .filter(|&(kind, count)| before.get(kind) != Some(count))
        .map(|(&kind, _)| kind)
        .collect();
    let is_v6 = |family| family == Family::V6;
    let wanted = Kind { encapsulation, outer_v6: is_v6(outer), inner_v6: is_v6(inner) };
    assert_eq!((came, refused), (vec![wanted], 0), "{options} {inner:?} in {outer:?}");
    stage.ipvsadm("-C").ok();
}

#[test]
fn every_byte_comes_through_tunnels_by_tc() {
    every_byte(Wiring::Plain, &PLAIN);
}

#[test]
fn every_byte_comes_through_tunnels_by_native_xdp() {
    every_byte(Wiring::Tuned, &PLAIN);
    every_byte(Wiring::Tuned, &WITH_CHECKSUM);
}

/// What is typed is what is listed, saved and restored.
#[test]
fn tunnels_are_listed_and_saved_as_typed() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let lines = [
        "-A -t 192.168.1.202:80 -s rr",
        "-a -t 192.168.1.202:80 -r 192.168.1.101:80 -i -w 1 --tun-type ipip",
        "-a -t 192.168.1.202:80 -r 192.168.1.102:80 -i -w 2 --tun-type gue --tun-port 6080 --tun-remcsum",
        "-a -t 192.168.1.202:80 -r [fd00:1::101]:80 -i -w 1 --tun-type gre --tun-csum",
        "-a -t 192.168.1.202:80 -r [fd00:1::102]:80 -i -w 1 --tun-type gue --tun-port 7 --tun-nocsum",
    ];
    for line in lines {
        stage.ipvsadm(line).ok();
    }
    let saved = stage.ipvsadm("-S -n").ok();
    let mut expected = vec![lines[0]];
    // In the order of addresses, as ipvsadm saves.
    expected.extend(&lines[1..]);
    assert_eq!(saved.lines().collect::<Vec<_>>(), expected);
    let listing = stage.ipvsadm("-L -n").ok();
    assert!(
        listing
            .contains("  -> 192.168.1.101:80             Tunnel  1      0          0         \n")
    );
    let info = stage.ipvsadm("-L -n --tun-info").ok();
    for word in ["ipip ", "gue:6080:r+c ", "gre:+c ", "gue:7:-c "] {
        assert!(info.contains(&format!("Tunnel  {word}")), "{info}");
    }
    // One destination after the other changes its way, and back.
    stage.ipvsadm("-e -t 192.168.1.202:80 -r 192.168.1.101:80 -i --tun-type gre --tun-nocsum").ok();
    assert!(
        stage
            .ipvsadm("-S -n")
            .ok()
            .contains("192.168.1.101:80 -i -w 1 --tun-type gre --tun-nocsum\n")
    );
    stage.ipvsadm("-e -t 192.168.1.202:80 -r 192.168.1.101:80 -g").ok();
    assert!(stage.ipvsadm("-S -n").ok().contains("192.168.1.101:80 -g -w 1\n"));
    stage.ipvsadm("-e -t 192.168.1.202:80 -r 192.168.1.101:80 -i").ok();
    assert_eq!(stage.ipvsadm("-S -n").ok(), saved);
}
