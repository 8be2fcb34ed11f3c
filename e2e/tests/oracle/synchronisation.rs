//! Connection synchronisation between the kernel's IPVS and our own table: what either tells, the other
//! learns.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::lab::{Stage, connect, run, tcp_server, tool, wait_for, wait_until};
use nix::sys::socket::{setsockopt, sockopt};
use rlvs::lab::topology::{REAL_SERVERS, VIP, Wiring};
use rlvs_linux::netns::Namespace;
use rlvs_wire::sync::{Entry, GROUP, Message, PORT, flag};

use crate::{daemon, guest};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO: u16 = 7000;
const PERSISTENT: u16 = 7001;
const DATAGRAMS: u16 = 5300;
const SYNC_ID: &str = "9";
/// What begins the lines of messages, in hexadecimal digits.
const MESSAGE: &str = "message ";

/// The table, the same on both sides. The virtual address and the servers' outer ones are the lab's.
fn rules() -> Vec<String> {
    let vip = VIP.v4;
    let [one, two] = REAL_SERVERS.map(|server| server.outside.v4);
    let mut rules = Vec::new();
    for (service, method, port, more) in
        [("-t", "-m", ECHO, ""), ("-t", "-m", PERSISTENT, " -p 77"), ("-u", "-g", DATAGRAMS, "")]
    {
        rules.push(format!("-A {service} {vip}:{port} -s rr{more}"));
        for server in [one, two] {
            rules.push(format!("-a {service} {vip}:{port} -r {server}:{port} {method}"));
        }
    }
    rules
}

fn ipvsadm(namespace: &Namespace, backend: &[&str], arguments: &str) -> String {
    let words: Vec<&str> = ["ipvsadm"]
        .into_iter()
        .chain(backend.iter().copied())
        .chain(arguments.split_ascii_whitespace())
        .collect();
    run(namespace, Path::new(PROGRAM), &words).ok()
}

const KERNEL: &[&str] = &["--backend", "kernel"];

/// Makes the guest's two hosts, the director with the virtual address and the table.
fn guests() -> (Namespace, Namespace) {
    let director = Namespace::create("director").unwrap();
    let servers = Namespace::create("servers").unwrap();
    daemon::connect(&director, &servers);
    let ip = tool("ip").unwrap();
    let vip = format!("{}/32", VIP.v4);
    run(&director, &ip, &["addr", "add", &vip, "dev", "eth0"]).ok();
    for rule in rules() {
        ipvsadm(&director, KERNEL, &rule);
    }
    (director, servers)
}

/// Returns connections without their times, from a file in the words of the kernel's `ip_vs_conn`.
fn connections(text: &str) -> Vec<String> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().take(8).collect();
        (words.len() == 8).then(|| words.join(" "))
    };
    let mut rows: Vec<String> = text.lines().skip(1).filter_map(row).collect();
    rows.sort();
    rows
}

fn kernels(director: &Namespace) -> Vec<String> {
    let read = || fs::read_to_string("/proc/thread-self/net/ip_vs_conn").unwrap();
    connections(&director.run(read).unwrap())
}

fn ours(stage: &Stage) -> Vec<String> {
    connections(&stage.rlvs(&["proc", "ip_vs_conn"]).ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Joins the group in a namespace.
fn listener(namespace: &Namespace, at: Ipv4Addr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        socket.join_multicast_v4(&GROUP.into(), &at).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    };
    namespace.run(open).unwrap()
}

/// Says whether an entry is one that is waited for.
type Wanted = Box<dyn Fn(&Entry) -> bool>;

/// Hears messages until all that is wanted has been told; returns them.
fn hear(socket: &UdpSocket, mut wanted: Vec<Wanted>) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    let mut buffer = [0; 65_535];
    while !wanted.is_empty() {
        let received = socket.recv_from(&mut buffer);
        let (length, _) = received.unwrap_or_else(|error| panic!("{error} after {messages:?}"));
        let message = Message::parse(&buffer[..length]).unwrap();
        for entry in message.entries().map(Result::unwrap) {
            wanted.retain(|is_it| !is_it(&entry));
        }
        messages.push(buffer[..length].to_vec());
    }
    messages
}

fn of_port(port: u16, state: u16) -> Wanted {
    Box::new(move |entry| (entry.client_port, entry.state) == (port, state))
}

fn template() -> Wanted {
    Box::new(|entry| entry.flags & flag::TEMPLATE != 0)
}

/// Sends messages from a namespace.
fn tell(namespace: &Namespace, interface: &str, at: Ipv4Addr, messages: &[Vec<u8>]) {
    let send = || {
        let socket = UdpSocket::bind((at, 0)).unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &interface.into()).unwrap();
        socket.connect(SocketAddr::from((GROUP, PORT))).unwrap();
        for message in messages {
            socket.send(message).unwrap();
        }
    };
    namespace.run(send).unwrap();
}

const ESTABLISHED: u16 = 1;
const TIME_WAIT: u16 = 5;

/// What clients have open.
struct Traffic {
    held: Vec<TcpStream>,
    ended: u16,
    datagrams: UdpSocket,
}

/// Opens connections to every service, and ends one.
fn traffic() -> Traffic {
    let begin = |port: u16| {
        let mut greeted = connect((VIP.v4, port).into()).unwrap();
        // The kernel tells of a connection at its third packet.
        greeted.stream.write_all(b"more").unwrap();
        // Whoever closes with something unread resets.
        greeted.stream.read_exact(&mut [0; 4]).unwrap();
        greeted.stream
    };
    let held = [ECHO, ECHO, PERSISTENT].map(begin).into();
    let ended = begin(ECHO).local_addr().unwrap().port();
    let datagrams = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..4 {
        datagrams.send_to(b"datagram", (VIP.v4, DATAGRAMS)).unwrap();
    }
    Traffic { held, ended, datagrams }
}

impl Traffic {
    fn wanted(&self) -> Vec<Wanted> {
        let mut wanted: Vec<_> = self
            .held
            .iter()
            .map(|stream| of_port(stream.local_addr().unwrap().port(), ESTABLISHED))
            .collect();
        wanted.push(of_port(self.ended, TIME_WAIT));
        wanted.push(of_port(self.datagrams.local_addr().unwrap().port(), 0));
        wanted.push(template());
        wanted
    }
}

#[test]
fn what_the_kernel_tells_our_backup_learns() {
    if guest::is_guest() {
        let (director, servers) = guests();
        for port in [ECHO, PERSISTENT] {
            tcp_server(&servers, port, Some("server"));
        }
        let socket = listener(&servers, REAL_SERVERS[0].outside.v4);
        let start = format!("--start-daemon master --mcast-interface eth0 --syncid {SYNC_ID}");
        ipvsadm(&director, KERNEL, &start);
        let traffic = director.run(traffic).unwrap();
        let messages = hear(&socket, traffic.wanted());
        for message in &messages {
            guest::report(&format!("{MESSAGE}{}", hex(message)));
        }
        kernels(&director).iter().for_each(|line| guest::report(line));
        ipvsadm(&director, KERNEL, "--stop-daemon master");
        return;
    }
    let said = guest::run("synchronisation::what_the_kernel_tells_our_backup_learns");
    let (messages, expected): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.starts_with(MESSAGE));
    let messages: Vec<_> = messages.iter().map(|line| bytes(&line[MESSAGE.len()..])).collect();
    assert_eq!(expected.len(), 6, "{said}");
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for rule in rules() {
        stage.ipvsadm(&rule).ok();
    }
    stage.ipvsadm(&format!("--start-daemon backup --mcast-interface eth1 --syncid {SYNC_ID}")).ok();
    let _daemon = Daemon(&stage, "backup");
    let (first, inside) = (&stage.lab.real_servers()[0], REAL_SERVERS[0].inside.v4);
    tell(first, "eth1", inside, &messages);
    let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
    wait_until("the kernel's connections", &expected, || ours(&stage));
}

/// Ends a daemon with the test.
struct Daemon<'a>(&'a Stage, &'static str);

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        drop(self.0.ipvsadm(&format!("--stop-daemon {}", self.1)));
    }
}

/// Where the guest finds what it is to tell: it sees the host's files.
fn letter() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("synchronisation.txt")
}

#[test]
fn what_our_master_tells_the_kernels_backup_learns() {
    if guest::is_guest() {
        let text = fs::read_to_string(letter()).unwrap();
        let (messages, rest): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with(MESSAGE));
        let messages: Vec<_> = messages.iter().map(|line| bytes(&line[MESSAGE.len()..])).collect();
        let (director, servers) = guests();
        let start = format!("--start-daemon backup --mcast-interface eth0 --syncid {SYNC_ID}");
        ipvsadm(&director, KERNEL, &start);
        tell(&servers, "eth0", REAL_SERVERS[0].outside.v4, &messages);
        wait_for("as many connections", || {
            let there = kernels(&director);
            if there.len() >= rest.len() { Ok(()) } else { Err(there.join("\n")) }
        });
        kernels(&director).iter().for_each(|line| guest::report(line));
        guest::report(&ipvsadm(&director, KERNEL, "-L -n"));
        ipvsadm(&director, KERNEL, "--stop-daemon backup");
        return;
    }
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    // By NAT over the inner addresses there would be other servers than the guest has.
    for rule in rules() {
        stage.ipvsadm(&rule.replace(" -m", " -g")).ok();
    }
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        for port in [ECHO, PERSISTENT] {
            tcp_server(namespace, port, Some(server.title));
        }
    }
    let socket = listener(&stage.lab.real_servers()[0], REAL_SERVERS[0].inside.v4);
    stage.ipvsadm(&format!("--start-daemon master --mcast-interface eth1 --syncid {SYNC_ID}")).ok();
    let _daemon = Daemon(&stage, "master");
    let traffic = stage.as_client(traffic);
    let mut wanted = traffic.wanted();
    // Over direct routing the director sees one side of the end.
    wanted[3] = of_port(traffic.ended, 4);
    let messages = hear(&socket, wanted);
    let expected = ours(&stage);
    assert_eq!(expected.len(), 6, "{expected:?}");
    let lines = messages.iter().map(|message| format!("{MESSAGE}{}", hex(message)));
    let text: Vec<String> = lines.chain(expected.iter().cloned()).collect();
    fs::write(letter(), text.join("\n")).unwrap();
    let said = guest::run("synchronisation::what_our_master_tells_the_kernels_backup_learns");
    let (there, listing) = said.split_at(said.find("IP Virtual").unwrap());
    assert_eq!(there.lines().collect::<Vec<_>>(), expected);
    // Bound to its servers: two established, one with a client that persists, and those that are over.
    let counts = e2e::lab::counts(listing);
    let sums = counts.iter().fold((0, 0), |sum, row| (sum.0 + row.1, sum.1 + row.2));
    assert_eq!(sums, (3, 2), "{listing}");
}
