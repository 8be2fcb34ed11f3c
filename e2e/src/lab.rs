//! The lab's network with the product in it: commands on the director, clients, servers that echo.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rlvs::lab::topology::{
    Addresses, Lab, OUTSIDE_INTERFACE, Options, REAL_SERVERS, RealServer, WebServer, Wiring,
};
use rlvs_control::model::Family;
use rlvs_linux::netns::Namespace;
use rlvs_linux::process;
use rlvs_linux::route::{Prefix, Rtnetlink};

/// How long anything that must happen may take.
pub const TIME_MAX: Duration = Duration::from_secs(20);
/// How long to leave the processor to others before looking again.
const PAUSE: Duration = Duration::from_millis(10);

/// How packets get to the real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `-g`
    Direct,
    /// `-m`
    Nat,
}

impl Method {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Nat];

    /// Returns the option of `ipvsadm`.
    pub fn option(self) -> &'static str {
        match self {
            Self::Direct => "-g",
            Self::Nat => "-m",
        }
    }

    /// Returns the address at which the director reaches a real server.
    pub fn address(self, server: &RealServer, family: Family) -> IpAddr {
        match self {
            Self::Direct => server.outside.of(family),
            Self::Nat => server.inside.of(family),
        }
    }
}

/// What a command said, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Returns the output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.output
    }
}

/// A virtual address that no real server has.
pub const OWN_VIP: Addresses = Addresses {
    v4: Ipv4Addr::new(192, 168, 1, 250),
    v6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x250),
};

/// A standing lab and the program under test.
#[derive(Debug)]
pub struct Stage {
    /// The network.
    pub lab: Lab,
    program: PathBuf,
}

impl Stage {
    /// Builds a lab in which nothing is attached.
    #[track_caller]
    pub fn bare(wiring: Wiring, program: &str) -> Self {
        let program = PathBuf::from(program);
        let options = Options {
            wiring,
            web_server: WebServer::Installed,
            program: program.clone(),
            keep: false,
        };
        Self { lab: Lab::new(&options).expect("a lab"), program }
    }

    /// Builds a lab whose director is attached as the wiring allows.
    #[track_caller]
    pub fn attached(wiring: Wiring, program: &str) -> Self {
        let stage = Self::bare(wiring, program);
        let (mode, shown) = match wiring {
            Wiring::Plain => ("tc", "TC"),
            Wiring::Tuned => ("native", "native XDP"),
        };
        let said = stage.rlvs(&["attach", "--mode", mode]).ok();
        for interface in ["eth0", "eth1"] {
            let line = format!("rlvs: {interface} attached: {shown}\n");
            assert!(said.contains(&line), "{said}");
        }
        stage
    }

    /// Returns the program under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs `rlvs` on the director.
    #[track_caller]
    pub fn rlvs(&self, words: &[&str]) -> Said {
        run(self.lab.director(), &self.program, words)
    }

    /// Runs `ipvsadm` on the director, the arguments separated by blanks.
    #[track_caller]
    pub fn ipvsadm(&self, arguments: &str) -> Said {
        let words: Vec<&str> =
            ["ipvsadm"].into_iter().chain(arguments.split_ascii_whitespace()).collect();
        self.rlvs(&words)
    }

    /// Makes a command that runs `ipvsadm` on the director and ends with the calling thread.
    pub fn ipvsadm_command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("ipvsadm").args(arguments.split_ascii_whitespace());
        inside(self.lab.director(), &mut command);
        command
    }

    /// Adds a service with both real servers at `port`, and returns its address.
    #[track_caller]
    pub fn serve(
        &self,
        protocol: &str,
        virtual_address: SocketAddr,
        method: Method,
        port: u16,
    ) -> SocketAddr {
        self.ipvsadm(&format!("-A {protocol} {virtual_address} -s rr")).ok();
        let family = Family::of(virtual_address.ip());
        for server in &REAL_SERVERS {
            let real = SocketAddr::new(method.address(server, family), port);
            let option = method.option();
            self.ipvsadm(&format!("-a {protocol} {virtual_address} -r {real} {option}")).ok();
        }
        virtual_address
    }

    /// Returns what `ipvsadm -L -n` shows.
    #[track_caller]
    pub fn listing(&self) -> String {
        self.ipvsadm("-L -n").ok()
    }

    /// Returns active and inactive connections by destination, as `-L -n` of a service shows.
    #[track_caller]
    pub fn counts(&self, protocol: &str, service: SocketAddr) -> Vec<(String, u32, u32)> {
        counts(&self.ipvsadm(&format!("-L -n {protocol} {service}")).ok())
    }

    /// Gives the director [`OWN_VIP`].
    ///
    /// # Panics
    /// The kernel refuses it.
    pub fn hold_own_vip(&self) {
        let mut rtnetlink = Rtnetlink::open_in(self.lab.director()).expect("a socket");
        let index = rtnetlink.link(OUTSIDE_INTERFACE).expect("an interface").index;
        for address in OWN_VIP.both() {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let added = rtnetlink.add_virtual_address(index, Prefix { address, bits });
            added.unwrap_or_else(|error| panic!("{address}: {error}"));
        }
    }

    /// Runs `work` in the client's namespace.
    #[track_caller]
    pub fn as_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.lab.client().run(work).expect("the client's namespace")
    }

    /// Runs a command on the client and returns what it said.
    #[track_caller]
    pub fn client_command(&self, program: &Path, words: &[&str]) -> Said {
        run(self.lab.client(), program, words)
    }
}

/// Reads active and inactive connections by destination from a listing.
pub fn counts(listing: &str) -> Vec<(String, u32, u32)> {
    let row = |line: &str| {
        let mut words = line.trim().strip_prefix("-> ")?.split_ascii_whitespace();
        let (name, _forward, _weight) = (words.next()?, words.next()?, words.next()?);
        Some((name.to_owned(), words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    listing.lines().filter_map(row).collect()
}

/// Makes a command run in a namespace and end with the calling thread.
pub fn inside(namespace: &Namespace, command: &mut Command) {
    namespace.place(command).expect("a descriptor");
    process::die_with_parent(command, Signal::SIGKILL);
}

/// Runs a program in a namespace to its end.
#[track_caller]
pub fn run(namespace: &Namespace, program: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    inside(namespace, &mut command);
    command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display())).into()
}

/// Finds a tool that scripts/test-tools installs. Without it the test is skipped, or fails where
/// skipping is not allowed.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("RLVS_NO_SKIP").is_none_or(|value| value != "1"),
            "{name} is not installed; scripts/test-tools installs it"
        );
        eprintln!("skipped: {name} is not installed; scripts/test-tools installs it");
    }
    found
}

/// Sets a flag when it is dropped: the threads of a scope that run until then end also when the test fails.
#[derive(Debug)]
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until `look` returns something, and fails with what it saw last.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        std::thread::park_timeout(PAUSE);
    }
}

/// Waits until `look` returns `expected`.
#[track_caller]
pub fn wait_until<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    mut look: impl FnMut() -> T,
) {
    wait_for(what, || {
        let seen = look();
        if seen == *expected { Ok(()) } else { Err(format!("{seen:?} instead of {expected:?}")) }
    });
}

/// Serves TCP in a namespace until the process ends: each connection is first told `name`, or,
/// without one, where it arrived; then everything comes back.
pub fn tcp_server(namespace: &Namespace, port: u16, name: Option<&'static str>) {
    let listener = namespace
        .run(|| TcpListener::bind(("::", port)))
        .expect("a namespace")
        .unwrap_or_else(|error| panic!("listening on {port}: {error}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || greet_and_echo(stream, name));
        }
    });
}

fn greet_and_echo(mut stream: TcpStream, name: Option<&str>) -> io::Result<()> {
    let greeting = match name {
        Some(name) => name.to_owned(),
        None => {
            let at = stream.local_addr()?;
            SocketAddr::new(at.ip().to_canonical(), at.port()).to_string()
        }
    };
    stream.write_all(format!("{greeting}\n").as_bytes())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// Sends every datagram back, with `prefix` before it, until the process ends.
pub fn udp_server(namespace: &Namespace, at: SocketAddr, prefix: &'static str) {
    let socket = namespace
        .run(|| UdpSocket::bind(at))
        .expect("a namespace")
        .unwrap_or_else(|error| panic!("binding {at}: {error}"));
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        let start = prefix.len();
        buffer[..start].copy_from_slice(prefix.as_bytes());
        while let Ok((length, from)) = socket.recv_from(&mut buffer[start..]) {
            // Who asked may be gone by now.
            drop(socket.send_to(&buffer[..start + length], from));
        }
    });
}

/// A connection whose greeting has been read.
#[derive(Debug)]
pub struct Greeted {
    /// Who answered.
    pub name: String,
    /// The connection.
    pub stream: TcpStream,
}

/// Connects from the calling thread's namespace and reads who answers.
///
/// # Errors
/// No connection, or no greeting.
pub fn connect(to: SocketAddr) -> io::Result<Greeted> {
    let mut stream = connect_from_own_port(to)?;
    stream.set_read_timeout(Some(TIME_MAX))?;
    stream.set_write_timeout(Some(TIME_MAX))?;
    let mut name = Vec::new();
    let mut byte = [0];
    while name.len() < 100 {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            break;
        }
        name.push(byte[0]);
    }
    Ok(Greeted { name: String::from_utf8_lossy(&name).into_owned(), stream })
}

/// Connects from a port that no other socket has, be it to another virtual address: two services in
/// front of one server must not share a client's port.
fn connect_from_own_port(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let any: SocketAddr = any.parse().map_err(io::Error::other)?;
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let time_max = TimeVal::seconds(TIME_MAX.as_secs() as i64);
    setsockopt(&socket, sockopt::SendTimeout, &time_max)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(any))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// Makes a UDP socket of the calling thread's namespace that talks to one address.
///
/// # Errors
/// No such route.
pub fn udp_client(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(to)?;
    Ok(socket)
}

/// A small generator of numbers that look random and are the same in every run.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns the next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns that many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next_number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// A folder of objects that are others to the loader, although they do the same: a byte follows their
/// end.
#[derive(Debug)]
pub struct OtherObjects {
    folder: PathBuf,
    program: PathBuf,
}

impl OtherObjects {
    /// Makes them for a program, in a folder of this name.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn new(role: &str, program: &str) -> Self {
        let name = format!("rlvs-e2e-{}-{role}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).expect("a folder of its own");
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/rlvs-ebpf/object");
        for name in ["rlvs.bpf.o", "capture.bpf.o"] {
            let mut object = std::fs::read(built.join(name)).expect("an object");
            object.push(0);
            std::fs::write(folder.join(name), object).expect("a copy");
        }
        Self { folder, program: PathBuf::from(program) }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs the program with these objects.
    ///
    /// # Panics
    /// If it does not start.
    pub fn rlvs(&self, namespace: &Namespace, words: &[&str]) -> Said {
        let mut command = Command::new(&self.program);
        command.args(words).env("RLVS_BPF_OBJECT_DIR", &self.folder).stdin(Stdio::null());
        inside(namespace, &mut command);
        command.output().expect("the program").into()
    }
}

impl Drop for OtherObjects {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
