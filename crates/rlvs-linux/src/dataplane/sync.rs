//! Connection synchronisation of our own table: the daemons that tell other directors of connections and
//! learn of theirs.
//!
//! Packets need no process, so this is one of its own, one for each role and network namespace, of which
//! [`note`] has a file. Its state is soft: killed and started again a master tells of everything once more.
//! It ends when nothing is attached here any more.

use std::fmt::{self, Display, Formatter};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::unistd::setsid;
use rlvs_control::model::{SyncDaemon, SyncRole};
use rlvs_control::table::Error;
use rlvs_datapath::abi;
use rlvs_wire::sync::{Entry, GROUP, PORT, Writer};

use super::learn::Learner;
use super::maps::Mapped;
use super::note::{self, Note, Running, running};
use super::pins;
use super::tell::Teller;
use crate::process::Handle;
use crate::vrrp::sys;

/// First word of the command line that the daemon is started with; the words of
/// [`words`] follow.
pub const COMMAND: &str = "sync-daemon";

/// What the daemon says when it has begun.
const READY: &str = "ready";
/// Payload of a datagram on Ethernet.
const MTU: u16 = 1500;
const HEADERS_V4: u16 = 28;
const HEADERS_V6: u16 = 48;
/// Time between two looks at the tables.
const INTERVAL: Duration = Duration::from_secs(1);
/// A look that takes long is followed by a rest of so many times its length.
const REST: u32 = 9;
/// Messages that a receiver's socket has room for by default, with some to spare, and the time that it
/// is given for them, in which a backup of ours enters the connections of so many.
const BURST: u32 = 32;
const PAUSE: Duration = Duration::from_millis(4);
/// Bytes of memory for messages that a backup's socket is asked for: nobody tells of a connection twice
/// because somebody was too slow, so 200,000 of them may wait while the machine does something else.
const RECEIVE_BYTES: usize = 8 << 20;
/// Time that a daemon is given to end.
const GRACE: Duration = Duration::from_secs(2);

/// Lists the daemons of the calling thread's network namespace, the master first.
///
/// # Errors
/// What is noted of them cannot be read.
pub fn list() -> Result<Vec<Running>, Error> {
    let mut daemons = Vec::new();
    for role in [SyncRole::Master, SyncRole::Backup] {
        daemons.extend(running(role)?);
    }
    Ok(daemons)
}

/// Starts a daemon. The caller holds the lock of the table.
///
/// # Errors
/// One of that role runs, there is no such interface, or it cannot be started.
pub(super) fn start(wanted: &SyncDaemon) -> Result<(), Error> {
    let SyncDaemon { role, interface, .. } = wanted;
    if running(*role)?.is_some() {
        return Err(Error::SyncDaemonRuns(*role));
    }
    if if_nametoindex(interface.as_str()).is_err() {
        return Err(Error::System(format!("there is no interface `{interface}`")));
    }
    let failed = system("starting the synchronisation daemon");
    let mut child = Command::new("/proc/self/exe")
        .arg0("rlvs")
        .arg(COMMAND)
        .args(words(&complete(wanted)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut answer = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut answer).map_err(failed)?;
    }
    match answer.trim_end() {
        READY => Ok(()),
        text => {
            // It has ended, or is about to.
            drop(child.wait());
            let text = if text.is_empty() { "it ended at once" } else { text };
            Err(Error::System(format!("the synchronisation daemon: {text}")))
        }
    }
}

/// Ends a daemon. The caller holds the lock of the table.
///
/// # Errors
/// None of that role runs, or it cannot be ended.
pub(super) fn stop(role: SyncRole) -> Result<(), Error> {
    let Some(Running { pid, .. }) = running(role)? else { return Err(Error::NoSyncDaemon(role)) };
    let failed = system("ending the synchronisation daemon");
    match Handle::open(pid).and_then(|daemon| daemon.end(GRACE)) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        done => done.map_err(failed)?,
    }
    note::remove(role)
}

pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> Error + Copy {
    move |error| Error::System(format!("{what}: {error}"))
}

/// Fills in what the table chooses, as the kernel does.
fn complete(wanted: &SyncDaemon) -> SyncDaemon {
    let group = wanted.group.unwrap_or(IpAddr::V4(GROUP.into()));
    let headers = if group.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    SyncDaemon {
        message_bytes_max: Some(wanted.message_bytes_max.unwrap_or(MTU - headers)),
        group: Some(group),
        port: Some(wanted.port.unwrap_or(PORT)),
        ttl: Some(wanted.ttl.unwrap_or(1)),
        ..wanted.clone()
    }
}

/// Returns the words that describe a daemon, all of which is chosen.
#[must_use]
pub fn words(daemon: &SyncDaemon) -> [String; 7] {
    let SyncDaemon { role, interface, sync_id, .. } = daemon;
    [
        role.to_string(),
        interface.clone(),
        sync_id.to_string(),
        daemon.message_bytes_max.unwrap_or_default().to_string(),
        daemon.group.unwrap_or(Ipv4Addr::UNSPECIFIED.into()).to_string(),
        daemon.port.unwrap_or_default().to_string(),
        daemon.ttl.unwrap_or_default().to_string(),
    ]
}

/// Reads such [`words`]; `None` if that is not what they are.
pub fn from_words<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<SyncDaemon> {
    let role = match words.next()? {
        "master" => SyncRole::Master,
        "backup" => SyncRole::Backup,
        _ => return None,
    };
    Some(SyncDaemon {
        role,
        interface: words.next()?.to_owned(),
        sync_id: words.next()?.parse().ok()?,
        message_bytes_max: Some(words.next()?.parse().ok()?),
        group: Some(words.next()?.parse().ok()?),
        port: Some(words.next()?.parse().ok()?),
        ttl: Some(words.next()?.parse().ok()?),
    })
}

/// Is the daemon: returns when nothing is attached here any more. Whoever started it is told on standard
/// output that it has begun, or why not.
///
/// # Errors
/// It cannot begin, or the tables cannot be read any more.
pub fn run(daemon: &SyncDaemon) -> Result<(), Error> {
    // A process that leads its group already stays where it is.
    setsid().ok();
    let begun = begin(daemon);
    let mut output = io::stdout();
    let said = match &begun {
        Ok(_) => writeln!(output, "{READY}"),
        Err(error) => writeln!(output, "{error}"),
    };
    said.map_err(system("answering whoever started the daemon"))?;
    let (mut note, begun) = begun?;
    let result = match begun {
        Begun::Master(socket) => tell(daemon, &socket, &mut note),
        Begun::Backup(socket, learner) => learn(daemon, &socket, *learner, &mut note),
    };
    // Before the lock is given back, so that it is not another's.
    note::remove(daemon.role)?;
    result
}

/// What a daemon begins with.
enum Begun {
    Master(UdpSocket),
    Backup(UdpSocket, Box<Learner>),
}

fn begin(daemon: &SyncDaemon) -> Result<(Note, Begun), Error> {
    let mut note = Note::claim(daemon.role)?;
    let no_socket = |error| Error::System(format!("a socket on {}: {error}", daemon.interface));
    let folder = pins::open()?.ok_or(super::error::Error::NotAttached)?;
    let settings = Mapped::<abi::Settings>::look(&folder, "settings")?.read(0);
    let buffer = settings.unwrap_or_default().sync_buffer as usize;
    let begun = match daemon.role {
        SyncRole::Master => Begun::Master(sending(daemon, buffer).map_err(no_socket)?),
        SyncRole::Backup => {
            // The socket first: what comes while the programs are loaded waits there.
            let socket = receiving(daemon, buffer).map_err(no_socket)?;
            let learner = Learner::open()?.ok_or(super::error::Error::NotAttached)?;
            Begun::Backup(socket, Box::new(learner))
        }
    };
    note.begin(daemon)?;
    Ok((note, begun))
}

/// Opens the socket that a master sends by.
fn sending(daemon: &SyncDaemon, buffer: usize) -> io::Result<UdpSocket> {
    let group = daemon.group.unwrap_or(IpAddr::V4(GROUP.into()));
    let port = daemon.port.unwrap_or(PORT);
    let ttl = daemon.ttl.unwrap_or(1);
    let any: IpAddr = match group {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    if buffer != 0 {
        setsockopt(&socket, sockopt::SndBufForce, &buffer)?;
    }
    // So that no route is needed, and the source is an address of this interface.
    setsockopt(&socket, sockopt::BindToDevice, &daemon.interface.clone().into())?;
    let to: SocketAddr = match group {
        IpAddr::V4(group) => {
            socket.set_multicast_ttl_v4(ttl.into())?;
            socket.set_multicast_loop_v4(false)?;
            (group, port).into()
        }
        IpAddr::V6(group) => {
            setsockopt(&socket, sockopt::Ipv6MulticastHops, &ttl.into())?;
            socket.set_multicast_loop_v6(false)?;
            let index = if_nametoindex(daemon.interface.as_str())?;
            SocketAddrV6::new(group, port, 0, index).into()
        }
    };
    socket.connect(to)?;
    Ok(socket)
}

/// Opens the socket that a backup hears by: what is sent to the group and the port, and comes in by the
/// interface.
fn receiving(daemon: &SyncDaemon, buffer: usize) -> io::Result<UdpSocket> {
    let group = daemon.group.unwrap_or(IpAddr::V4(GROUP.into()));
    let port = daemon.port.unwrap_or(PORT);
    let index = if_nametoindex(daemon.interface.as_str())?;
    let (family, at) = match group {
        IpAddr::V4(group) => (AddressFamily::Inet, SocketAddr::from((group, port))),
        IpAddr::V6(group) => {
            (AddressFamily::Inet6, SocketAddrV6::new(group, port, 0, index).into())
        }
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // As the kernel's, which leaves the port to others too.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &daemon.interface.clone().into())?;
    // As the kernel's, beyond what other sockets may have.
    let bytes = if buffer == 0 { RECEIVE_BYTES } else { buffer };
    setsockopt(&socket, sockopt::RcvBufForce, &bytes)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    let socket = UdpSocket::from(socket);
    match group {
        // By its number: the interface may have no address.
        IpAddr::V4(group) => sys::join_v4(&socket, group, index)?,
        IpAddr::V6(group) => socket.join_multicast_v6(&group, index)?,
    }
    socket.set_read_timeout(Some(INTERVAL))?;
    Ok(socket)
}

/// Learns what others tell as long as there are tables.
fn learn(
    daemon: &SyncDaemon,
    socket: &UdpSocket,
    mut learner: Learner,
    note: &mut Note,
) -> Result<(), Error> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut looked = Instant::now();
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let datagram = buffer.get(..length).unwrap_or_default();
                learner.hear(datagram, daemon.sync_id as u8)?;
            }
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(system("hearing other directors")(error)),
        }
        if looked.elapsed() < INTERVAL {
            continue;
        }
        looked = Instant::now();
        match learner.is_current()? {
            None => return Ok(()),
            Some(true) => {}
            Some(false) => {
                let heard = learner.heard;
                let Some(new) = Learner::open()? else { return Ok(()) };
                learner = new;
                learner.heard = heard;
            }
        }
        note.say(&learner.heard)?;
    }
}

/// Returns whether nothing came for a while, or the interface is down: it may come up again.
fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, NetworkDown, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | NetworkDown | TimedOut | WouldBlock)
}

/// Tells of connections as long as there are tables.
fn tell(daemon: &SyncDaemon, socket: &UdpSocket, note: &mut Note) -> Result<(), Error> {
    let mut outbox = Outbox::new(daemon);
    let mut teller = Teller::default();
    loop {
        let begin = Instant::now();
        let there = teller.pass(|entry| outbox.add(socket, entry))?;
        if !there {
            return Ok(());
        }
        outbox.flush(socket);
        if std::mem::take(&mut outbox.failed) {
            // Who missed something hears of everything.
            teller = Teller::default();
        }
        note.say(&outbox.told)?;
        rest(INTERVAL.max(begin.elapsed() * REST));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells of a change: time is what is waited for"
)]
pub(super) fn rest(time: Duration) {
    thread::sleep(time);
}

/// What a master has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    messages: u64,
    /// Connections and templates in them.
    entries: u64,
    /// Messages that could not be sent.
    failed: u64,
}

impl Display for Told {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { messages, entries, failed } = self;
        write!(f, "messages={messages:020} entries={entries:020} failed={failed:020}")
    }
}

/// Entries that wait until a message is full.
struct Outbox {
    buffer: Vec<u8>,
    waiting: Vec<Entry>,
    bytes: usize,
    sync_id: u8,
    in_burst: u32,
    failed: bool,
    told: Told,
}

impl Outbox {
    fn new(daemon: &SyncDaemon) -> Self {
        let longest = daemon.message_bytes_max.unwrap_or(MTU - HEADERS_V6);
        Self {
            buffer: vec![0; longest.into()],
            waiting: Vec::new(),
            bytes: rlvs_wire::sync::HEADER_LENGTH,
            sync_id: daemon.sync_id as u8,
            in_burst: 0,
            failed: false,
            told: Told::default(),
        }
    }

    fn add(&mut self, socket: &UdpSocket, entry: &Entry) {
        let is_full = self.waiting.len() >= rlvs_wire::sync::ENTRIES_MAX.into()
            || self.bytes + entry.length() > self.buffer.len();
        if is_full {
            self.flush(socket);
        }
        self.waiting.push(*entry);
        self.bytes += entry.length();
    }

    fn flush(&mut self, socket: &UdpSocket) {
        let mut writer = Writer::new(&mut self.buffer, self.sync_id);
        let mut entries = 0;
        for entry in self.waiting.drain(..) {
            // A message that has no room for a single one says nothing, as the kernel's.
            entries += u64::from(writer.push(&entry));
        }
        self.bytes = rlvs_wire::sync::HEADER_LENGTH;
        let Some(message) = writer.finish() else { return };
        if socket.send(message).is_ok() {
            self.told.messages += 1;
            self.told.entries += entries;
        } else {
            self.told.failed += 1;
            self.failed = true;
        }
        self.in_burst += 1;
        if self.in_burst >= BURST {
            self.in_burst = 0;
            rest(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_a_daemon_is_read_again() {
        let wanted = SyncDaemon {
            role: SyncRole::Master,
            interface: "eth7".to_owned(),
            sync_id: 42,
            message_bytes_max: None,
            group: None,
            port: None,
            ttl: None,
        };
        let full = complete(&wanted);
        assert_eq!(full.message_bytes_max, Some(1472));
        let words = words(&full);
        assert_eq!(from_words(words.iter().map(String::as_str)), Some(full));
        assert_eq!(from_words(words.iter().take(6).map(String::as_str)), None);
        let group = Some("ff02::1:3".parse().expect("an address"));
        assert_eq!(complete(&SyncDaemon { group, ..wanted }).message_bytes_max, Some(1452));
    }
}
