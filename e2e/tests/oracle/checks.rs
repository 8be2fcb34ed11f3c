//! `DNS_CHECK`, `UDP_CHECK` and `PING_CHECK` of the real keepalived and of ours, one after the other
//! with the same file on the kernel's table: what they send, and which servers they find good.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use e2e::lab::{inside, tool, wait_for};
use e2e::wire;
use nix::sys::signal::Signal;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::{Guard, Handle};
use rlvs_linux::route::Rtnetlink;
use rlvs_linux::sysctl;

use crate::daemon::connect;
use crate::guest;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 101);
/// Answers queries for names.
const NAMES: u16 = 53;
/// Answers `hi` by itself.
const ECHO: u16 = 5000;
/// Nobody answers, and nobody refuses either.
const SILENT: u16 = 5001;

/// Each virtual server, by its port, has one kind of check.
const CHECKS: [(u16, u16, &str); 6] = [
    (1, NAMES, "DNS_CHECK {\n type A\n name www.example.com\n }"),
    (2, NAMES, "DNS_CHECK {\n }"),
    (3, ECHO, "UDP_CHECK {\n payload 6869\n require_reply 686X\n }"),
    (4, ECHO, "UDP_CHECK {\n payload 6869\n require_reply 6a6X\n }"),
    (5, SILENT, "UDP_CHECK {\n }"),
    (6, 80, "PING_CHECK {\n }"),
];

/// Virtual servers whose server is good: all but the fourth, which asks for another answer; while
/// nobody answers queries; while nobody listens; while nobody answers pings.
const STATES: [(&str, &[u16]); 5] = [
    ("all is well", &[1, 2, 3, 5, 6]),
    ("names are refused", &[3, 5, 6]),
    ("nobody listens", &[6]),
    ("pings are ignored", &[]),
    ("all is well again", &[1, 2, 3, 5, 6]),
];

fn configuration() -> String {
    let server = |(number, port, check): (u16, u16, &str)| {
        format!(
            "virtual_server 10.9.9.9 {number} {{\n delay_loop 1\n lb_algo rr\n lb_kind NAT\n \
             protocol UDP\n warmup 0\n retry 1\n delay_before_retry 1\n connect_timeout 1\n \
             real_server {SERVER} {port} {{\n weight 1\n {check}\n }}\n}}\n"
        )
    };
    CHECKS.map(server).concat()
}

#[test]
fn datagrams_and_pings_are_those_of_keepalived() {
    if !guest::is_guest() {
        guest::run("checks::datagrams_and_pings_are_those_of_keepalived");
        return;
    }
    let director = Namespace::create("director").unwrap();
    let servers = Namespace::create("servers").unwrap();
    connect(&director, &servers);
    // Whoever sends to closed ports is always told.
    servers.run(|| sysctl::write("net/ipv4/icmp_ratelimit", "0")).unwrap().unwrap();
    let [theirs, ours] = commands().map(|command| play(&director, &servers, command));
    assert_eq!(theirs.len(), 5, "{theirs:#?}");
    assert_eq!(ours, theirs);
}

/// Returns the checks of the real keepalived and ours, of the kernel's table.
pub(crate) fn commands() -> [Command; 2] {
    let mut theirs = Command::new(tool("keepalived").unwrap());
    theirs.arg("-C");
    let mut ours = Command::new(PROGRAM);
    ours.args(["keepalived", "--backend", "kernel", "-C"]);
    [theirs, ours]
}

/// A daemon that checks.
pub(crate) struct Checking(Guard);

impl Checking {
    pub(crate) fn start(director: &Namespace, mut command: Command, configuration: &str) -> Self {
        fs::write("/run/checks.conf", configuration).unwrap();
        let log = File::create("/run/checks.log").unwrap();
        command.args(["-n", "-l", "-D", "-f", "/run/checks.conf", "-p", "/run/checks.pid"]);
        command.args(["-c", "/run/checkers.pid"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        inside(director, &mut command);
        Self(Guard::new(command.spawn().unwrap()))
    }

    /// Waits until these virtual servers alone have their server, with these weights.
    pub(crate) fn wait_served(&self, director: &Namespace, state: &str, good: &[(u16, u32)]) {
        wait_for(state, || {
            let seen = served(director);
            let said = || fs::read_to_string("/run/checks.log").unwrap_or_default();
            if seen == good { Ok(()) } else { Err(format!("{seen:?}\n{}", said())) }
        });
    }

    pub(crate) fn end(mut self) {
        Handle::open(self.0.pid().unwrap()).unwrap().signal(Signal::SIGTERM).unwrap();
        assert!(self.0.wait_for(Duration::from_secs(20)).unwrap().is_some());
    }
}

/// Has one of them check through all states; returns what it has sent.
fn play(director: &Namespace, servers: &Namespace, command: Command) -> BTreeSet<String> {
    let sniffer = Sniffer::start(servers);
    let mut answering = Some(Answering::start(servers));
    let checking = Checking::start(director, command, &configuration());
    for (state, good) in STATES {
        match state {
            "names are refused" => answering.as_ref().unwrap().refuse(),
            "nobody listens" => answering = None,
            "pings are ignored" => ignore_pings(servers, "1"),
            "all is well again" => {
                ignore_pings(servers, "0");
                answering = Some(Answering::start(servers));
            }
            _ => {}
        }
        let good: Vec<_> = good.iter().map(|&number| (number, 1)).collect();
        checking.wait_served(director, state, &good);
    }
    checking.end();
    sniffer.end()
}

fn ignore_pings(servers: &Namespace, value: &str) {
    servers.run(|| sysctl::write("net/ipv4/icmp_echo_ignore_all", value)).unwrap().unwrap();
}

/// Returns which virtual servers, by their ports, have their server, and with what weight, from the kernel's
/// own file: ports are hexadecimal there.
fn served(director: &Namespace) -> Vec<(u16, u32)> {
    let read = || fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap();
    let text = director.run(read).unwrap();
    let (mut service, mut served) = (0, Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let ["UDP" | "TCP", end, ..] = words[..] {
            let (_, port) = end.split_once(':').unwrap();
            service = u16::from_str_radix(port, 16).unwrap();
        } else if let ["->", _, _, weight, ..] = words[..]
            && service > 0
        {
            served.push((service, weight.parse().unwrap()));
        }
    }
    served.sort_unstable();
    served
}

/// The servers of names and of echoes, and a socket that says nothing; they end when it is dropped.
struct Answering {
    ends: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Answering {
    fn start(servers: &Namespace) -> Self {
        let (ends, refuses) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let spawn = |port: u16| {
            let socket = servers.run(|| UdpSocket::bind((SERVER, port)).unwrap()).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let (ends, refuses) = (ends.clone(), refuses.clone());
            std::thread::spawn(move || {
                let mut bytes = [0; 512];
                while !ends.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
                    if port == SILENT {
                        continue;
                    }
                    if port == NAMES {
                        // An answer without records, or a refusal.
                        bytes[2] |= 0x80;
                        bytes[3] = if refuses.load(Ordering::Relaxed) { 5 } else { 0 };
                    }
                    drop(socket.send_to(&bytes[..length], from));
                }
            })
        };
        let threads = [NAMES, ECHO, SILENT].map(spawn).into();
        Self { ends, refuses, threads }
    }

    fn refuse(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Notes what comes to the servers, without what differs from packet to packet.
struct Sniffer {
    ends: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    thread: JoinHandle<()>,
}

impl Sniffer {
    fn start(servers: &Namespace) -> Self {
        let index = Rtnetlink::open_in(servers).unwrap().link("eth0").unwrap().index;
        let socket = servers.run(|| wire::open(index).unwrap()).unwrap();
        let (ends, seen) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeMap<String, u32>>>::default());
        let (until, notes) = (ends.clone(), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let mut frame = [0; 2048];
            while !until.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut frame) else { continue };
                if let Some(line) = line(&frame[..length]) {
                    *notes.lock().unwrap().entry(line).or_insert(0) += 1;
                }
            }
        });
        Self { ends, seen, thread }
    }

    fn end(self) -> BTreeSet<String> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        eprintln!("{seen:#?}");
        seen.into_keys().collect()
    }
}

/// Returns what is the same in every check: the fields of IP and UDP that a check decides, and the
/// payload but for a query's number; of a ping its code and payload.
fn line(frame: &[u8]) -> Option<String> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let is_to_server = packet.get(16..20)? == SERVER.octets();
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let (header, payload) = packet.get(..length)?.split_at(usize::from(packet[0] & 15) * 4);
    let ip = format!("tos {} flags {} ttl {}", header[1], header[6] >> 5, header[8]);
    match header[9] {
        17 if is_to_server => {
            let port = u16::from_be_bytes([payload[2], payload[3]]);
            let data = if port == NAMES { &payload[10..] } else { &payload[8..] };
            Some(format!("UDP {port} {ip} {data:02x?}"))
        }
        1 if is_to_server && payload[0] == 8 => {
            Some(format!("ping {ip} code {} {:02x?}", payload[1], &payload[8..]))
        }
        _ => None,
    }
}
