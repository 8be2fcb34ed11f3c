//! Who may open connections, as an administrator says it and clients meet it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use e2e::lab::{Method, Random, Stage, TIME_MAX, inside, tcp_server, wait_for};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rlvs::lab::topology::{CLIENT, VIPS, Wiring};
use rlvs_control::model::Family;
use rlvs_linux::route::{Prefix, Rtnetlink};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
/// How long a client waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A lab with a service that echoes, and a client with two addresses of each family.
fn stage(wiring: Wiring, family: Family) -> (Stage, SocketAddr, [IpAddr; 2]) {
    let stage = Stage::attached(wiring, PROGRAM);
    for namespace in stage.lab.real_servers() {
        tcp_server(namespace, 9000, None);
    }
    let service = SocketAddr::new(VIPS[1].of(family), 9000);
    stage.serve("-t", service, Method::Nat, 9000);
    let first = CLIENT.of(family);
    let other = neighbour(first);
    stage.as_client(|| {
        let mut net = Rtnetlink::open().unwrap();
        let interface = net.links().unwrap().into_iter().find(|link| link.name != "lo").unwrap();
        let bits = if family == Family::V4 { 24 } else { 64 };
        net.add_virtual_address(interface.index, Prefix { address: other, bits }).unwrap();
    });
    (stage, service, [first, other])
}

/// Returns another address of the same network.
fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() ^ 1).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() ^ 1).into()),
    }
}

/// Connects from an address of the calling thread's namespace.
fn connect(from: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = TimeVal::milliseconds(patience.as_millis() as i64);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

fn json(stage: &Stage) -> Value {
    serde_json::from_str(&stage.rlvs(&["acl", "list", "--json"]).ok()).unwrap()
}

fn refused(stage: &Stage, reason: &str) -> u64 {
    json(stage)["refused"][reason].as_u64().unwrap()
}

/// Asserts that a client gets through.
#[track_caller]
fn passes(stage: &Stage, from: IpAddr, to: SocketAddr) -> TcpStream {
    stage.as_client(|| connect(from, to, TIME_MAX)).unwrap()
}

/// Asserts that a client hears nothing, for this reason.
#[track_caller]
fn silenced(stage: &Stage, from: IpAddr, to: SocketAddr, reason: &str) {
    let before = refused(stage, reason);
    let error = stage.as_client(|| connect(from, to, SILENCE)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
    assert!(refused(stage, reason) > before, "not for {reason}");
}

/// A file in the lab's folder.
fn file(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let path = stage.lab.directory().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[track_caller]
fn acl(stage: &Stage, words: &str) -> String {
    let words: Vec<&str> = ["acl"].into_iter().chain(words.split_ascii_whitespace()).collect();
    stage.rlvs(&words).ok()
}

#[test]
fn clients_are_let_in_and_kept_out() {
    for (wiring, family) in [(Wiring::Plain, Family::V4), (Wiring::Tuned, Family::V6)] {
        let (stage, service, [one, other]) = stage(wiring, family);
        let of = format!("-t {service}");
        drop(passes(&stage, other, service));
        let held = passes(&stage, other, service);
        acl(&stage, &format!("deny {of} {other}"));
        silenced(&stage, other, service, "denied");
        drop(passes(&stage, one, service));
        // Who is connected stays so.
        assert_eq!(echo(&held), "still here");
        // An allow list denies all others.
        acl(&stage, &format!("del {of} {other}"));
        acl(&stage, &format!("allow {of} {one}"));
        silenced(&stage, other, service, "not_allowed");
        drop(passes(&stage, one, service));
        // Whoever is refused may be told.
        acl(&stage, &format!("refuse {of} reject"));
        let error = stage.as_client(|| connect(other, service, TIME_MAX)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{error}");
        let listed = acl(&stage, "list");
        assert!(listed.contains("  refuse  reject\n  allow   "), "{listed}");
        let status = stage.rlvs(&["status"]).ok();
        assert!(status.contains("access        1 network, 0 limits, 1 service with"), "{status}");
        // The rules are there before the service is, and after.
        stage.ipvsadm("-C").ok();
        stage.serve("-t", service, Method::Nat, 9000);
        let error = stage.as_client(|| connect(other, service, TIME_MAX)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{error}");
        acl(&stage, "clear");
        drop(passes(&stage, other, service));
        assert_eq!(acl(&stage, "list"), "");
        // So are those of all services.
        acl(&stage, &format!("deny {other}"));
        stage.ipvsadm("-C").ok();
        stage.serve("-t", service, Method::Nat, 9000);
        silenced(&stage, other, service, "denied");
    }
}

fn echo(stream: &TcpStream) -> String {
    use std::io::{BufRead, BufReader, Write};
    stream.set_read_timeout(Some(TIME_MAX)).unwrap();
    let mut lines = BufReader::new(stream).lines();
    lines.next().unwrap().unwrap();
    (&*stream).write_all(b"still here\n").unwrap();
    lines.next().unwrap().unwrap()
}

#[test]
fn the_end_of_a_connection_makes_room_for_another() {
    let (stage, service, [one, other]) = stage(Wiring::Plain, Family::V4);
    acl(&stage, &format!("limit -t {service} --number 2"));
    let held = [passes(&stage, one, service), passes(&stage, one, service)];
    silenced(&stage, one, service, "number_limited");
    drop(passes(&stage, other, service));
    // The sweep counts again and again what there is: two stay two.
    let passes_of_the_sweep = Duration::from_secs(2);
    let begin = Instant::now();
    while begin.elapsed() < passes_of_the_sweep {
        silenced(&stage, one, service, "number_limited");
    }
    drop(held);
    wait_for("room for another connection", || {
        stage
            .as_client(|| connect(one, service, SILENCE))
            .map(drop)
            .map_err(|error| error.to_string())
    });
    // A limit counts connections that were there before it.
    acl(&stage, "clear");
    let held = [passes(&stage, one, service), passes(&stage, one, service)];
    acl(&stage, &format!("limit -t {service} --number 1"));
    wait_for("two connections counted", || {
        match stage.as_client(|| connect(one, service, SILENCE)) {
            Ok(_) => Err("a third was opened".to_owned()),
            Err(_) => Ok(()),
        }
    });
    silenced(&stage, one, service, "number_limited");
    drop(held);
}

#[test]
fn rules_are_replaced_under_load_without_a_wrong_verdict() {
    let (stage, service, [one, other]) = stage(Wiring::Plain, Family::V4);
    // Each alone says the same, parts of both together do not.
    let lists = [
        format!("[[acl.service]]\ntcp = '{service}'\nallow = ['{one}']\n"),
        format!("[acl]\nallow = ['0.0.0.0/0']\ndeny = ['{other}']\n"),
    ];
    let files = [file(&stage, "one", &lists[0]), file(&stage, "other", &lists[1])];
    let load = |at: usize| stage.rlvs(&["acl", "load", files[at % 2].to_str().unwrap()]).ok();
    load(0);
    let (over, tried) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let welcome = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                drop(passes(&stage, one, service));
                tried.fetch_add(1, Ordering::Relaxed);
            }
        });
        let unwelcome = scope.spawn(|| {
            stage.as_client(|| {
                while !over.load(Ordering::Relaxed) {
                    let error = connect(other, service, Duration::from_millis(5)).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
                }
            });
        });
        for at in 1..40 {
            load(at);
            if welcome.is_finished() || unwelcome.is_finished() {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(tried.load(Ordering::Relaxed) > 20, "{tried:?} connections");
}

/// So many networks, a line each.
fn many(count: u32, seed: u64) -> String {
    let mut random = Random(seed);
    let mut text = String::new();
    for number in 0..count {
        // All differ.
        let address = std::net::Ipv4Addr::from_bits(0x1000_0000 + (number << 8));
        let length = 24 + random.next_number() % 9;
        writeln!(text, "{address}/{length}").unwrap();
    }
    text
}

/// A file that denies the networks of another one.
fn denying(stage: &Stage, name: &str, networks: &str) -> PathBuf {
    file(stage, name, networks);
    file(stage, &format!("{name}.toml"), &format!("[acl]\ndeny_files = ['{name}']\n"))
}

#[test]
fn a_hundred_thousand_networks_are_loaded() {
    let (stage, service, [one, other]) = stage(Wiring::Plain, Family::V4);
    let networks = many(99_999, 1) + &format!("{other}\n");
    let path = denying(&stage, "networks", &networks);
    let begin = Instant::now();
    let said = stage.rlvs(&["acl", "load", path.to_str().unwrap()]).ok();
    eprintln!("100,000 networks were loaded in {:?}", begin.elapsed());
    assert_eq!(said, "rlvs: 100000 networks, 0 limits, 0 services with rules of its own\n");
    silenced(&stage, other, service, "denied");
    drop(passes(&stage, one, service));
}

#[test]
fn whoever_kills_a_load_finds_the_old_rules_or_the_new_ones() {
    let (stage, service, [one, _]) = stage(Wiring::Plain, Family::V4);
    let files = [1, 2].map(|seed| denying(&stage, &format!("networks-{seed}"), &many(3_000, seed)));
    let mut known = Vec::new();
    let mut time = Duration::ZERO;
    for path in &files {
        let begin = Instant::now();
        stage.rlvs(&["acl", "load", path.to_str().unwrap()]).ok();
        time = begin.elapsed();
        known.push(acl(&stage, "list"));
    }
    assert_ne!(known[0], known[1]);
    let mut random = Random(88_172_645_463_325_252);
    let (mut killed, mut tried, mut now) = (0, 0, 1);
    while killed < 8 {
        tried += 1;
        assert!(tried < 100, "{killed} of {tried} died");
        let mut command = std::process::Command::new(stage.program());
        command.args(["acl", "load"]).arg(&files[1 - now]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        inside(stage.lab.director(), &mut command);
        let begin = Instant::now();
        let mut child = command.spawn().unwrap();
        let at = time.mul_f64((random.next_number() % 1100) as f64 / 1000.0);
        while begin.elapsed() < at {
            std::thread::park_timeout(Duration::from_micros(50));
        }
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().code().is_none());
        let listed = acl(&stage, "list");
        now = known.iter().position(|whole| *whole == listed).expect("a whole set of rules");
    }
    drop(passes(&stage, one, service));
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    let (stage, service, [_, other]) = stage(Wiring::Plain, Family::V4);
    acl(&stage, &format!("deny {other}"));
    let before = acl(&stage, "list");
    let wrong = file(&stage, "wrong", "[acl]\ndeny = ['10.0.0.0/8', '10.0.0.0/33']\n");
    let said = stage.rlvs(&["acl", "load", wrong.to_str().unwrap()]);
    assert_eq!(said.status, Some(1));
    let expected =
        format!("rlvs: {}:2:23: the length in `10.0.0.0/33` is not in 0 to 32\n", wrong.display());
    assert_eq!(said.errors, expected);
    let said = stage.rlvs(&["acl", "del", &other.to_string(), "10.0.0.0/8"]);
    assert_eq!(said.status, Some(1));
    assert_eq!(said.errors, "rlvs: 10.0.0.0/8 is in no list of all services; nothing is changed\n");
    assert_eq!(acl(&stage, "list"), before);
    silenced(&stage, other, service, "denied");
}
