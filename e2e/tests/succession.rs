//! A version whose maps have another layout takes over what the one before has made.
//!
//! The other version pretends another layout, or has one: see [`e2e::versions`].
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use e2e::lab::{
    Greeted, Method, Said, Stage, Stop, TIME_MAX, connect, inside, tcp_server, wait_until,
};
use rlvs::lab::topology::{DIRECTOR_INSIDE, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::{DestinationId, Family, Protocol, ServiceId};
use rlvs_control::table::{Removal, Table};
use rlvs_linux::dataplane::pins;
use rlvs_linux::dataplane::table::BpfTable;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
/// A network, and two versions of the program.
struct Versions {
    stage: Stage,
    two: e2e::versions::Versions,
}

impl Versions {
    fn new(role: &str, wiring: Wiring) -> Self {
        // Small, as a program that is not for release searches large tables for seconds.
        Self::of_size(role, wiring, "1000")
    }

    fn of_size(role: &str, wiring: Wiring, connections: &str) -> Self {
        let stage = Stage::bare(wiring, PROGRAM);
        let mode = if wiring == Wiring::Tuned { "native" } else { "tc" };
        stage.rlvs(&["attach", "--mode", mode, "--connections", connections]).ok();
        let two = e2e::versions::Versions::new(role, PROGRAM, stage.lab.directory());
        Self { stage, two }
    }

    fn program(&self, version: usize) -> &Path {
        &self.two.of[version].program
    }

    fn command(&self, version: usize, words: &[&str]) -> Command {
        let mut command = Command::new(self.program(version));
        command.args(words).stdin(Stdio::null());
        inside(self.stage.lab.director(), &mut command);
        command
    }

    fn run(&self, version: usize, words: &[&str]) -> Said {
        self.command(version, words).output().unwrap().into()
    }

    fn ipvsadm(&self, version: usize, words: &str) -> String {
        let words: Vec<&str> = ["ipvsadm"].into_iter().chain(words.split_whitespace()).collect();
        self.run(version, &words).ok()
    }

    /// Lets a version take over from the other one.
    fn upgrade(&self, to: usize) -> Said {
        let from = self.program(1 - to).display().to_string();
        self.run(to, &["upgrade", "--from", &from])
    }

    fn drained(&self, version: usize) -> String {
        let status = self.run(version, &["status", "--json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["drained"].as_array().unwrap().len(), 1, "{status}");
        status["drained"].to_string()
    }

    /// Connections as they are listed, but their times.
    fn connections(&self, version: usize) -> String {
        let without_times = |line: &str| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            if words.len() == 6 {
                words.remove(1);
            }
            words.join(" ")
        };
        let listed = self.ipvsadm(version, "-L -n -c");
        let connections: BTreeSet<String> = listed.lines().map(without_times).collect();
        format!("{connections:#?}")
    }

    /// What commands say of everything that is to be carried, but times. All are asked at the same time, as
    /// each of them waits most of the time.
    fn told(&self, version: usize) -> Vec<String> {
        let ipvsadm = ["-L -n", "-S -n --full", "-L -n --persistent-conn", "-L --timeout"];
        let others = [&["set"][..], &["mark", "list"], &["snat", "list"], &["acl", "list"]];
        std::thread::scope(|scope| {
            let mut threads = vec![
                scope.spawn(|| self.connections(version)),
                scope.spawn(|| self.drained(version)),
            ];
            threads.extend(ipvsadm.map(|words| scope.spawn(move || self.ipvsadm(version, words))));
            threads.extend(others.map(|words| scope.spawn(move || self.run(version, words).ok())));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

fn ping(connection: &mut Greeted) {
    connection.stream.write_all(b"ping").unwrap();
    let mut said = [0; 4];
    connection.stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ping");
}

/// Services of every kind of entry, and connections over them.
fn fill(versions: &Versions) -> Vec<Greeted> {
    let stage = &versions.stage;
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, 7, Some(server.title));
    }
    let [v4, v6] = [Family::V4, Family::V6].map(|family| VIPS[1].of(family));
    stage.ipvsadm("--set 900 60 50").ok();
    let mut targets = Vec::new();
    for (port, address, method, persistent) in [
        (7, v4, Method::Direct, false),
        (7, v6, Method::Direct, false),
        (1007, v4, Method::Nat, false),
        (1007, v6, Method::Nat, false),
        (2007, v4, Method::Nat, true),
    ] {
        let target = SocketAddr::new(address, port);
        stage.serve("-t", target, method, 7);
        if persistent {
            stage.ipvsadm(&format!("-E -t {target} -s rr -p 600 -M 255.255.255.0")).ok();
        }
        targets.push(target);
    }
    let mut held: Vec<Greeted> = Vec::new();
    for target in targets {
        held.extend(
            stage.as_client(|| (0..3).map(|_| connect(target).unwrap()).collect::<Vec<_>>()),
        );
    }
    // Full NAT, and a server that was removed and has its connections still.
    stage.rlvs(&["snat", "add", &DIRECTOR_INSIDE.v4.to_string(), "--ports", "9000-9999"]).ok();
    let target = SocketAddr::new(v4, 3007);
    stage.ipvsadm(&format!("-A -t {target} -s rr")).ok();
    let full = SocketAddr::new(REAL_SERVERS[0].inside.v4.into(), 7);
    stage.ipvsadm(&format!("-a -t {target} -r {full} -m --snat")).ok();
    held.push(stage.as_client(|| connect(target).unwrap()));
    let removed = SocketAddr::new(v6, 7);
    let service =
        ServiceId::Address { protocol: Protocol::Tcp, address: removed.ip(), port: removed.port() };
    let id = DestinationId { address: REAL_SERVERS[1].outside.v6.into(), port: 7 };
    let remove = || {
        let mut table = BpfTable::open().unwrap().unwrap();
        table.set_removal(Removal::Keep);
        table.delete_destination(service, id).unwrap();
    };
    stage.lab.director().run(remove).unwrap();
    let drained = REAL_SERVERS[0].outside.v4.to_string();
    stage.rlvs(&["drain", &drained, "--service", &format!("{v4}:7"), "--deadline", "0s"]);
    stage.rlvs(&["set", "tcp_mss", "1300"]).ok();
    stage.rlvs(&["mark", "add", "9", "--to", "10.77.0.0/16", "--protocol", "udp"]).ok();
    stage.rlvs(&["acl", "deny", "203.0.113.0/24", "2001:db8:77::/48"]).ok();
    held
}

#[test]
fn another_layout_takes_over_and_no_connection_notices() {
    let versions = Versions::new("takes-over", Wiring::Tuned);
    let mut held = fill(&versions);
    held.iter_mut().for_each(ping);
    let mut before = versions.told(0);
    let (stop, pings) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let busy = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                held.iter_mut().for_each(ping);
                pings.fetch_add(1, Ordering::Relaxed);
            }
        });
        for to in [1, 0] {
            let refused = versions.run(to, &["upgrade"]);
            assert!(refused.errors.contains("`rlvs upgrade --from`"), "{refused:?}");
            let said = versions.upgrade(to).ok();
            assert!(said.contains("runs this version's programs from now on"), "{said}");
            let after = versions.told(to);
            for (before, after) in before.iter().zip(&after) {
                assert_eq!(before, after, "version {to}");
            }
            before = after;
            let now = pings.load(Ordering::Relaxed);
            wait_until("traffic after it", &true, || pings.load(Ordering::Relaxed) > now + 1);
        }
        drop(stopping);
        busy.join().unwrap();
    });
    drop(held);
    versions.run(0, &["detach"]).ok();
    let director = versions.stage.lab.director();
    assert!(director.run(|| pins::open().unwrap().is_none()).unwrap());
}

#[test]
fn what_comes_about_meanwhile_is_taken_over_too() {
    let versions = Versions::new("meanwhile", Wiring::Plain);
    let stage = &versions.stage;
    let mut held = fill(&versions);
    let (hold, told) = (stage.lab.directory().join("hold"), stage.lab.directory().join("told"));
    // A version before that is slow: what it has told is old when it is read.
    let slow = stage.lab.directory().join("slow");
    let script = format!(
        "#!/bin/sh\n{before} \"$@\" || exit\nif rm {hold} 2>/dev/null; then\n> {told}\n\
         while [ -e {told} ]; do sleep 0.01; done\nfi\n",
        before = versions.program(0).display(),
        hold = hold.display(),
        told = told.display(),
    );
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&hold, "").unwrap();
    let words = ["upgrade", "--from", slow.to_str().unwrap()];
    let mut upgrade = versions.command(1, &words).spawn().unwrap();
    wait_until("the first answer", &true, || told.exists());
    let target = SocketAddr::new(VIPS[1].of(Family::V4), 1007);
    held.push(stage.as_client(|| connect(target).unwrap()));
    let added = SocketAddr::new(VIPS[2].of(Family::V4), 7);
    stage.serve("-t", added, Method::Nat, 7);
    held.push(stage.as_client(|| connect(added).unwrap()));
    let before = versions.told(0);
    fs::remove_file(&told).unwrap();
    assert!(upgrade.wait().unwrap().success());
    assert_eq!(versions.told(1), before);
    held.iter_mut().for_each(ping);
    drop(held);
    versions.run(1, &["detach"]).ok();
}

/// Opens connections until told to stop, and returns how many. Each is used when it is opened, once more when
/// it is old enough, and then closed.
fn keep_opening(target: SocketAddr, stop: &AtomicBool) -> u64 {
    const HELD: usize = 50;
    let (mut held, mut opened) = (VecDeque::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let mut one = connect(target).unwrap();
        ping(&mut one);
        held.push_back(one);
        opened += 1;
        if held.len() > HELD {
            ping(&mut held.pop_front().unwrap());
        }
    }
    held.iter_mut().for_each(ping);
    opened
}

#[test]
fn a_table_without_room_names_the_size_that_has_it() {
    // Half of what a table for 64 has places for, by its design.
    const OPENED: u32 = 128;
    let versions = Versions::of_size("larger", Wiring::Plain, "64");
    let stage = &versions.stage;
    let service = SocketAddr::new(VIPS[1].of(Family::V4), 9);
    let server = SocketAddr::new(REAL_SERVERS[0].outside.v4.into(), 9);
    stage.ipvsadm(&format!("-A -u {service}")).ok();
    stage.ipvsadm(&format!("-a -u {service} -r {server} -g")).ok();
    // Held, as each needs a port of its own.
    let opened = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"one more", service).unwrap();
        socket
    };
    let _held: Vec<_> = stage.as_client(|| (0..OPENED).map(|_| opened()).collect());
    let there = || stage.counts("-u", service)[0].2;
    wait_until("connections", &OPENED, there);
    let before = versions.connections(0);
    let from = versions.program(0).display().to_string();
    let made_for =
        |words: &[&str]| versions.run(1, &[&["upgrade", "--from", &from], words].concat());
    // They would fit as before. Less is asked for, so that some surely find no room.
    let refused = made_for(&["--connections", "16"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.errors.contains(&format!("of {OPENED} halves")), "{refused:?}");
    let remedy =
        refused.errors.split_once("`--connections ").and_then(|(_, rest)| rest.split_once('`'));
    let (remedy, _) = remedy.unwrap_or_else(|| panic!("{refused:?}"));
    assert_eq!((there(), versions.connections(0)), (OPENED, before.clone()));
    let said = made_for(&["--connections", remedy]).ok();
    assert!(said.contains("runs this version's programs from now on"), "{said}");
    assert_eq!(versions.connections(1), before);
    versions.run(1, &["detach"]).ok();
}

#[test]
fn connections_that_are_opened_all_the_time_live_on() {
    // Room for all that are opened meanwhile, of which none has run out at the end.
    let versions = Versions::of_size("opening", Wiring::Tuned, "100000");
    let stage = &versions.stage;
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, 7, Some(server.title));
    }
    let targets = [
        (Family::V4, 7, Method::Direct),
        (Family::V6, 7, Method::Direct),
        (Family::V4, 1007, Method::Nat),
        (Family::V6, 1007, Method::Nat),
    ];
    let serve = |(family, port, method)| {
        stage.serve("-t", SocketAddr::new(VIPS[1].of(family), port), method, 7)
    };
    let targets = targets.map(serve);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let (stage, stop) = (&*stage, &stop);
        let clients = targets
            .map(|target| scope.spawn(move || stage.as_client(|| keep_opening(target, stop))));
        for to in [1, 0, 1] {
            let from = versions.program(1 - to).display().to_string();
            let said = versions.run(to, &["upgrade", "--from", &from, "--json"]).ok();
            let said: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["namespaces"][0]["outcome"], "exchanged", "{said}");
        }
        drop(stopping);
        let opened = clients.map(|client| client.join().unwrap());
        assert!(opened.iter().all(|opened| *opened > 50), "{opened:?}");
        eprintln!("opened: {opened:?}");
    });
    versions.run(1, &["detach"]).ok();
}

#[test]
fn a_hold_ends_with_its_holder_or_with_the_next_edit() {
    let versions = Versions::new("hold", Wiring::Plain);
    let stage = &versions.stage;
    tcp_server(&stage.lab.real_servers()[0], 7, None);
    let target = SocketAddr::new(VIPS[1].of(Family::V4), 7);
    let server = SocketAddr::new(REAL_SERVERS[0].outside.v4.into(), 7);
    stage.ipvsadm(&format!("-A -t {target}")).ok();
    stage.ipvsadm(&format!("-a -t {target} -r {server} -g")).ok();
    let mut old = stage.as_client(|| connect(target).unwrap());
    for is_killed in [false, true] {
        let mut command = versions.command(0, &["export", "--hold"]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(holder.stdout.take().unwrap());
        // Its first line comes when nothing is opened any more.
        told.read_line(&mut String::new()).unwrap();
        let address = std::net::SocketAddrV4::new(VIPS[1].v4, 7).into();
        let soon = std::time::Duration::from_millis(300);
        let refused = stage.as_client(|| TcpStream::connect_timeout(&address, soon));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        ping(&mut old);
        if is_killed {
            holder.kill().unwrap();
            holder.wait().unwrap();
            stage.ipvsadm("-L -n").ok();
        } else {
            drop(holder.stdin.take());
            assert!(holder.wait().unwrap().success());
        }
        assert_eq!(stage.rlvs(&["set", "drop_packet"]).ok().trim(), "drop_packet = 0");
        let begun = Instant::now();
        ping(&mut stage.as_client(|| connect(target).unwrap()));
        assert!(begun.elapsed() < TIME_MAX / 4, "{:?}", begun.elapsed());
    }
    versions.run(0, &["detach"]).ok();
}

#[test]
fn an_upgrade_that_is_killed_leaves_what_runs_whole() {
    let versions = Versions::new("killed", Wiring::Plain);
    let mut held = fill(&versions);
    let told = versions.told(0);
    let root = pins::root().unwrap().unwrap();
    let cookie = versions.stage.lab.director().cookie().unwrap();
    // Killed when its folder is begun, and when it is finished: then interfaces go over at once.
    for (turn, part) in ["-new", "", "", ""].iter().enumerate() {
        let (at, to) = (turn % 2, 1 - turn % 2);
        let from = versions.program(at).display().to_string();
        let folder = format!("ns-{cookie}-v{}{part}", versions.two.of[to].layout);
        let mut child = versions.command(to, &["upgrade", "--from", &from]).spawn().unwrap();
        let deadline = Instant::now() + TIME_MAX;
        while !root.path(&folder).exists() {
            assert!(Instant::now() < deadline, "no folder {folder}");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        held.iter_mut().for_each(ping);
        let said = versions.upgrade(to);
        assert_eq!(said.status, Some(0), "turn {turn}: {said:?}");
        assert_eq!(versions.told(to), told, "turn {turn}");
        held.iter_mut().for_each(ping);
    }
    drop(held);
    versions.run(0, &["detach"]).ok();
    assert!(!root.names().unwrap().iter().any(|name| name.starts_with(&format!("ns-{cookie}-"))));
}
