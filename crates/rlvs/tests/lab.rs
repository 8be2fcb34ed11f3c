//! The lab itself: its network does what the how-to needs of it, and nothing is left behind.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rlvs::lab::client;
use rlvs::lab::topology::{
    DIRECTOR_INSIDE, HTTP_PORT, INSIDE_INTERFACE, Lab, OUTSIDE_INTERFACE, Options, REAL_SERVERS,
    UDP_PORT, VIP, VIPS, WebServer, Wiring,
};
use rlvs_control::model::{Family, Protocol};
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::process::{self, Handle};
use rlvs_linux::route::{Mac, Prefix, Route, Rtnetlink};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs");
const TIME_MAX: Duration = Duration::from_secs(20);
const SERVICES: [(Protocol, u16); 2] = [(Protocol::Tcp, HTTP_PORT), (Protocol::Udp, UDP_PORT)];

fn lab(wiring: Wiring, web_server: WebServer) -> Lab {
    let options = Options { wiring, web_server, program: PathBuf::from(PROGRAM), keep: false };
    Lab::new(&options).unwrap()
}

fn mac_of(namespace: &Namespace, interface: &str) -> Mac {
    Rtnetlink::open_in(namespace).unwrap().link(interface).unwrap().mac.unwrap()
}

fn received_packets(namespace: &Namespace, interface: &str) -> u64 {
    let path = "/proc/thread-self/net/dev";
    let text = namespace.run(|| std::fs::read_to_string(path).unwrap()).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn names_of_lab(id: &str) -> Vec<String> {
    let prefix = format!("rlvs-lab-{id}-");
    netns::names().unwrap().into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

fn directory_of_lab(id: &str) -> PathBuf {
    Path::new("/run/rlvs/lab").join(id)
}

#[test]
fn each_real_server_answers_from_the_virtual_address_and_only_the_director_claims_it() {
    let lab = lab(Wiring::Plain, WebServer::Ours);
    let mut rtnetlink = Rtnetlink::open_in(lab.client()).unwrap();
    let index = rtnetlink.link(OUTSIDE_INTERFACE).unwrap().index;
    for family in [Family::V4, Family::V6] {
        // The last one is asked by nobody else: the client has to find out whose it is.
        let quiet = VIPS[7].of(family);
        let target = SocketAddr::new(quiet, UDP_PORT);
        lab.client().run(|| assert!(client::ask(Protocol::Udp, target).is_err())).unwrap();
        let neighbour = rtnetlink.neighbour(index, quiet).unwrap().unwrap();
        assert_eq!(neighbour.mac, Some(mac_of(lab.director(), OUTSIDE_INTERFACE)), "{quiet}");
        for (server, namespace) in REAL_SERVERS.iter().zip(lab.real_servers()) {
            // What direct routing does to a frame, done to the client's neighbour table.
            let mac = mac_of(namespace, OUTSIDE_INTERFACE);
            rtnetlink.set_neighbour(index, VIP.of(family), mac).unwrap();
            for (protocol, port) in SERVICES {
                let target = SocketAddr::new(VIP.of(family), port);
                let name = lab.client().run(|| client::ask(protocol, target)).unwrap();
                assert_eq!(name.unwrap(), server.title, "{protocol:?} {target}");
            }
        }
    }
}

#[test]
fn what_a_real_server_says_from_its_inner_address_passes_the_director() {
    let lab = lab(Wiring::Tuned, WebServer::Installed);
    let mut rtnetlink = Rtnetlink::open_in(lab.client()).unwrap();
    let interface = rtnetlink.link(OUTSIDE_INTERFACE).unwrap().index;
    for server in &REAL_SERVERS {
        for address in server.inside.both() {
            let family = Family::of(address);
            let gateway = rlvs::lab::topology::DIRECTOR.of(family);
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let destination = Some(Prefix { address, bits });
            let route = Route { destination, gateway, interface, onlink: false, table: 254 };
            rtnetlink.add_route(&route).unwrap();
            for (protocol, port) in SERVICES {
                let before = received_packets(lab.director(), "eth1:");
                let target = SocketAddr::new(address, port);
                let name = lab.client().run(|| client::ask(protocol, target)).unwrap();
                assert_eq!(name.unwrap(), server.title, "{protocol:?} {target}");
                let passed = received_packets(lab.director(), "eth1:") - before;
                // SYN-ACK, data, FIN; or the datagram.
                let expected = if protocol == Protocol::Tcp { 3 } else { 1 };
                assert!(passed >= expected, "{passed} packets for {protocol:?} {target}");
            }
        }
    }
    assert_eq!(DIRECTOR_INSIDE.of(Family::V4), IpAddr::from([10, 0, 1, 1]));
}

#[test]
fn tuned_wires_finish_checksums_and_poll() {
    let lab = lab(Wiring::Tuned, WebServer::Ours);
    let says = |namespace: &Namespace, words: &[&str]| {
        let mut command = Command::new("ip");
        let output = command.args(["netns", "exec", namespace.name()]).args(words).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    for namespace in lab.real_servers().iter().chain([lab.client()]) {
        let features = says(namespace, &["ethtool", "-k", OUTSIDE_INTERFACE]);
        assert!(features.contains("tx-checksumming: off"), "{features}");
    }
    for interface in [OUTSIDE_INTERFACE, INSIDE_INTERFACE] {
        let port = format!("director-{interface}");
        let features = says(lab.switch(), &["ethtool", "-k", &port]);
        assert!(features.contains("generic-receive-offload: on"), "{features}");
        assert!(says(lab.switch(), &["ip", "link", "show", &port]).contains("prog/xdp"));
    }
}

#[test]
fn a_dropped_lab_leaves_nothing_and_two_labs_stand_side_by_side() {
    let (one, other) = (lab(Wiring::Plain, WebServer::Ours), lab(Wiring::Plain, WebServer::Ours));
    let ids = [one.id().to_owned(), other.id().to_owned()];
    for id in &ids {
        assert_eq!(names_of_lab(id).len(), 5);
    }
    drop((one, other));
    for id in &ids {
        assert_eq!(names_of_lab(id), Vec::<String>::new());
        assert!(!directory_of_lab(id).exists());
    }
}

#[test]
fn a_lab_whose_server_cannot_start_says_so_and_leaves_nothing() {
    let program = PathBuf::from("/bin/false");
    let options =
        Options { wiring: Wiring::Plain, web_server: WebServer::Ours, program, keep: false };
    let error = format!("{:#}", Lab::new(&options).unwrap_err());
    assert!(error.contains("Server 1") && error.contains("has ended"), "{error}");
    let id = error.strip_prefix("lab ").unwrap().split(':').next().unwrap();
    assert_eq!(names_of_lab(id), Vec::<String>::new());
    assert!(!directory_of_lab(id).exists());
}

/// Waits for the end of a process that is not a child of ours.
fn has_ended(pid: &str) -> bool {
    Handle::open(pid.parse().unwrap()).map_or(true, |handle| handle.wait_for(TIME_MAX).unwrap())
}

/// An `rlvs lab` of its own, past the point where its servers answer.
fn running_lab(arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = Command::new(PROGRAM);
    command.arg("lab").args(arguments).stdout(Stdio::piped());
    process::die_with_parent(&mut command, Signal::SIGTERM);
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("the real servers answer") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the lab ended early");
    }
    (child, output)
}

fn rlvs(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[test]
fn what_a_killed_lab_leaves_is_removed_by_the_next() {
    let (mut child, _output) = running_lab(&["--only", "plain"]);
    child.kill().unwrap();
    assert!(process::wait_for(&mut child, TIME_MAX).unwrap().is_some());
    let id = child.id().to_string();
    assert_eq!(names_of_lab(&id).len(), 5);
    let noted = std::fs::read_to_string(directory_of_lab(&id).join("processes")).unwrap();
    assert!(noted.lines().count() >= 2);
    for pid in noted.lines() {
        assert!(has_ended(pid), "server {pid} outlives the lab");
    }
    let next = rlvs(&["lab", "--only", "plain", "--quick", "--requests", "2"]);
    let said = String::from_utf8(next.stdout).unwrap();
    // Another test's lab may have come first.
    let removed = said.contains(&format!("removed what the lab {id} had left"));
    assert!(removed || names_of_lab(&id).is_empty(), "{said}");
    assert_eq!(names_of_lab(&id), Vec::<String>::new());
    assert!(!directory_of_lab(&id).exists());
}

#[test]
fn an_interrupted_lab_removes_itself() {
    let (mut child, _output) = running_lab(&["--requests", "1000000"]);
    Handle::open(child.id()).unwrap().signal(Signal::SIGINT).unwrap();
    let status = process::wait_for(&mut child, TIME_MAX).unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    let id = child.id().to_string();
    assert_eq!(names_of_lab(&id), Vec::<String>::new());
    assert!(!directory_of_lab(&id).exists());
}

#[test]
fn a_kept_lab_answers_until_it_is_cleaned() {
    let (mut child, mut output) =
        running_lab(&["--keep", "--only", "plain", "--quick", "--requests", "4"]);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut output, &mut said).unwrap();
    assert!(process::wait_for(&mut child, TIME_MAX).unwrap().is_some());
    let id = child.id().to_string();
    assert!(said.contains(&format!("lab --clean {id}")), "{said}");
    let client = Namespace::open(&format!("rlvs-lab-{id}-client")).unwrap();
    let target = SocketAddr::new(REAL_SERVERS[0].outside.of(Family::V4), HTTP_PORT);
    let name = client.run(|| client::ask(Protocol::Tcp, target)).unwrap();
    let noted = std::fs::read_to_string(directory_of_lab(&id).join("processes")).unwrap();
    let cleaned = rlvs(&["lab", "--clean", &id]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(name.unwrap(), "Server 1");
    assert_eq!(names_of_lab(&id), Vec::<String>::new());
    assert!(!directory_of_lab(&id).exists());
    for pid in noted.lines() {
        assert!(has_ended(pid), "server {pid} is left");
    }
    assert!(!rlvs(&["lab", "--clean", &id]).status.success());
}
