//! `keepalived --backend kernel`: the how-to's file, and the kernel's own table.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use e2e::lab::{inside, run, tool, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use rlvs::face;
use rlvs::ipvsadm::Backend;
use rlvs::lab::site::HOW_TO;
use rlvs_control::model::SyncRole;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::{Guard, Handle};
use rlvs_linux::route::Rtnetlink;

use crate::guest;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ONE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 101);
const TWO: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 102);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 200);

#[test]
fn the_how_to_runs_on_the_kernels_table() {
    if !guest::is_guest() {
        guest::run("daemon::the_how_to_runs_on_the_kernels_table");
        return;
    }
    let director = Namespace::create("director").unwrap();
    let servers = Namespace::create("servers").unwrap();
    connect(&director, &servers);
    let _first = Web::start(&servers, ONE);
    let second = Web::start(&servers, TWO);
    let (mut daemon, log) = start(&director);
    let both = vec![(ONE, 3), (TWO, 2)];
    let said = || fs::read_to_string(&log).unwrap();
    wait_until("both servers", &(both.clone(), String::new()), || seen(&director, &both, said));
    let master = vec![(SyncRole::Master, "eth0".to_owned(), 51)];
    wait_until("a master tells of its connections", &master, || synchronisation(&director));
    // The director is a client too.
    wait_until("an answer", &true, || director.run(|| ask().is_ok()).unwrap());
    let answers: Vec<String> = (0..10).map(|_| director.run(|| ask().unwrap()).unwrap()).collect();
    let of_first = answers.iter().filter(|answer| **answer == ONE.to_string()).count();
    assert_eq!((of_first, answers.len()), (6, 10), "{answers:?}");

    drop(second);
    let alone = vec![(ONE, 3)];
    wait_until("one server", &(alone.clone(), String::new()), || seen(&director, &alone, said));
    for _ in 0..5 {
        assert_eq!(director.run(|| ask().unwrap()).unwrap(), ONE.to_string());
    }
    let _second = Web::start(&servers, TWO);
    wait_until("both again", &(both.clone(), String::new()), || seen(&director, &both, said));

    Handle::open(daemon.pid().unwrap()).unwrap().signal(Signal::SIGTERM).unwrap();
    let status = daemon.wait_for(e2e::lab::TIME_MAX).unwrap().unwrap();
    assert_eq!((status.code(), table(&director)), (Some(0), vec![]), "{}", said());
    assert_eq!(synchronisation(&director), []);
}

/// Returns which daemons of connection synchronisation run: role, interface, number.
fn synchronisation(director: &Namespace) -> Vec<(SyncRole, String, u32)> {
    let list = || face::open_table(Backend::Kernel).unwrap().sync_daemons().unwrap();
    let running = director.run(list).unwrap();
    running.into_iter().map(|one| (one.role, one.interface, one.sync_id)).collect()
}

/// Returns the table, and what the daemon said where it is another than expected.
fn seen(
    director: &Namespace,
    expected: &[(Ipv4Addr, u32)],
    said: impl Fn() -> String,
) -> (Vec<(Ipv4Addr, u32)>, String) {
    let table = table(director);
    let said = if table == expected { String::new() } else { said() };
    (table, said)
}

pub(crate) fn connect(director: &Namespace, servers: &Namespace) {
    Rtnetlink::open_in(director).unwrap().add_veth("eth0", "eth0", servers).unwrap();
    let ip = tool("ip").unwrap();
    for (namespace, words) in [
        (director, "addr add 192.168.1.100/24 dev eth0"),
        (director, "link set eth0 up"),
        (director, "link set lo up"),
        (servers, "addr add 192.168.1.101/24 dev eth0"),
        (servers, "addr add 192.168.1.102/24 dev eth0"),
        (servers, "link set eth0 up"),
        (servers, "link set lo up"),
    ] {
        let words: Vec<&str> = words.split_ascii_whitespace().collect();
        run(namespace, &ip, &words).ok();
    }
}

/// Starts the daemon; the second is the path of its log.
fn start(director: &Namespace) -> (Guard, String) {
    // As the how-to has it, but for the pace and the connection synchronisation.
    let text = HOW_TO.replace("delay_loop 6", "delay_loop 0.3");
    let sync = "global_defs {\n lvs_sync_daemon eth0 VI_1\n}\n";
    fs::write("/run/how-to.conf", format!("{sync}{text}")).unwrap();
    let log = "/run/keepalived.log".to_owned();
    let output = fs::File::create(&log).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["keepalived", "--backend", "kernel", "-n", "-l", "-D"]);
    command.args(["-f", "/run/how-to.conf", "-p", "/run/keepalived.pid"]);
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    inside(director, &mut command);
    (Guard::new(command.spawn().unwrap()), log)
}

/// Reads the real servers with their weights from the kernel's own file, which has numbers in
/// hexadecimal.
fn table(director: &Namespace) -> Vec<(Ipv4Addr, u32)> {
    let read = || fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap();
    let text = director.run(read).unwrap();
    let server = |line: &str| {
        let mut words = line.trim_start().strip_prefix("-> ")?.split_ascii_whitespace();
        let (address, _) = words.next()?.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?;
        Some((Ipv4Addr::from_bits(address), words.nth(1)?.parse().ok()?))
    };
    let mut servers: Vec<_> = text.lines().filter_map(server).collect();
    servers.sort_unstable();
    servers
}

/// Asks the virtual server who answers.
fn ask() -> std::io::Result<String> {
    let mut stream = TcpStream::connect((VIP, 80))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.rsplit_once("\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

/// A web server that says its address; it ends when it is dropped.
struct Web {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    fn start(servers: &Namespace, at: Ipv4Addr) -> Self {
        let listener = servers.run(|| TcpListener::bind((at, 80)).unwrap()).unwrap();
        let socket = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = socket.accept() {
                let mut request = [0; 1024];
                if stream.read(&mut request).is_ok() {
                    // Whoever asked may have gone.
                    write!(stream, "HTTP/1.0 200 OK\r\n\r\n{at}").ok();
                }
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // Whoever waits in accept() is told so.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
