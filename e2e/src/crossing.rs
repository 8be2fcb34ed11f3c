//! A director between two wires, its commands and its packets: ours, or the kernel's IPVS.
//!
//! The scene is that of [`network`]: clients and servers are nobody, only frames. What is sent in
//! by one wire comes out by the other, by the same, or not at all; which of these is known without
//! waiting, for a question to the director's own stack follows each frame, on the same processor.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rlvs::ipvsadm::{Environment, Names, run as ipvsadm};
use rlvs_control::model::{
    Connection, ConnectionLine, Destination, DestinationId, Service, ServiceEntry, ServiceId,
    Timeouts,
};
use rlvs_control::table::{Error, Table};
use rlvs_linux::dataplane::attach::{self, Mode, Options};
use rlvs_linux::dataplane::load::Sizes;
use rlvs_linux::dataplane::marks::{self, Rule};
use rlvs_linux::dataplane::parameters::Parameter;
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::ethtool;
use rlvs_linux::ipvs::table::KernelTable;
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::Rtnetlink;
use rlvs_linux::sysctl;

use crate::network::{self, Network};
use crate::packet::{Message, transport};
use crate::wire;

/// Who balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// The IPVS of the kernel that this runs on.
    Kernel,
    /// Our programs, on TC.
    Ours,
}

/// Which wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// That to the clients.
    Clients,
    /// That to the servers.
    Servers,
}

/// The director and its wires.
#[derive(Debug)]
pub struct Crossing<'a> {
    /// The director's network.
    pub network: &'a Network,
    balancer: Balancer,
    table: Option<Shared>,
    is_marked: bool,
    clients: UdpSocket,
    servers: UdpSocket,
    question: u16,
}

/// How long the director may take to answer.
const TIME_MAX: Duration = Duration::from_secs(20);
/// How many connections ours has room for: listing them reads the whole table.
const CONNECTIONS: u32 = 20_000;
/// What a director that is a router has set, and what makes errors depend on time otherwise.
const PARAMETERS: [(&str, &str); 8] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/in0/rp_filter", "0"),
    ("net/ipv4/conf/out0/rp_filter", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    // Labels of packets that the stack makes are random otherwise.
    ("net/ipv6/auto_flowlabels", "0"),
];
/// What makes ICMP errors depend on those before.
const UNLIMITED: [(&str, &str); 2] =
    [("net/ipv4/icmp_msgs_per_sec", "1000000"), ("net/ipv4/icmp_msgs_burst", "1000000")];

/// Runs a test with a director of its own.
///
/// # Panics
/// It cannot be set up, or the test panics.
pub fn run(test: &str, balancer: Balancer, work: impl FnOnce(Crossing<'_>) + Send) {
    if balancer == Balancer::Kernel {
        // Linux 6.1 has one limit for all namespaces.
        for (path, value) in UNLIMITED {
            sysctl::write(path, value).unwrap();
        }
    }
    network::run_between(test, |network, outside| {
        for (path, value) in PARAMETERS {
            sysctl::write(path, value).unwrap();
        }
        for interface in ["in0", "out0"] {
            // Frames come out with their checksums, not with a card's work left to do.
            ethtool::tx_checksum_off(interface).unwrap();
        }
        if balancer == Balancer::Ours {
            let interfaces = vec!["in0".to_owned(), "out0".to_owned()];
            let (mode, sizes) = (Some(Mode::Tc), Some(Sizes::for_connections(CONNECTIONS)));
            attach::attach(&Options { mode, interfaces, sizes, ..Options::default() }).unwrap();
        }
        work(Crossing {
            network,
            balancer,
            table: None,
            is_marked: false,
            clients: listen(outside, "in0p"),
            servers: listen(outside, "out0p"),
            question: 0,
        });
        if balancer == Balancer::Ours {
            attach::detach().unwrap();
        }
    });
}

fn listen(namespace: &Namespace, interface: &str) -> UdpSocket {
    let index = Rtnetlink::open_in(namespace).unwrap().link(interface).unwrap().index;
    namespace.run(|| wire::open(index).unwrap()).unwrap()
}

/// A table that outlives the commands that use it: opening ours takes a test longer than they do.
#[derive(Clone)]
pub struct Shared(Rc<RefCell<Box<dyn Table>>>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

macro_rules! shared {
    ($(fn $name:ident($($argument:ident: $of:ty),*) -> $answer:ty;)*) => {
        impl Table for Shared {
            $(fn $name(&mut self, $($argument: $of),*) -> Result<$answer, Error> {
                self.0.borrow_mut().$name($($argument),*)
            })*
        }
    };
}

shared! {
    fn add_service(service: &Service) -> ();
    fn edit_service(service: &Service) -> ();
    fn delete_service(id: ServiceId) -> ();
    fn add_destination(service: ServiceId, to: &Destination) -> ();
    fn edit_destination(service: ServiceId, to: &Destination) -> ();
    fn delete_destination(service: ServiceId, id: DestinationId) -> ();
    fn flush() -> ();
    fn services() -> Vec<ServiceEntry>;
    fn service(id: ServiceId) -> ServiceEntry;
    fn rates(only: Option<ServiceId>) -> Vec<ServiceEntry>;
    fn connections() -> Vec<Connection>;
    fn connection_lines() -> Vec<ConnectionLine>;
    fn timeouts() -> Timeouts;
    fn set_timeouts(timeouts: Timeouts) -> ();
    fn zero(service: Option<ServiceId>) -> ();
    fn connection_table_size() -> u32;
}

impl Crossing<'_> {
    /// Returns the director's table, which stays open.
    ///
    /// # Panics
    /// It cannot be opened.
    pub fn table(&mut self) -> Shared {
        let balancer = self.balancer;
        let open = || Shared(Rc::new(RefCell::new(open(balancer).unwrap())));
        self.table.get_or_insert_with(open).clone()
    }

    /// Runs `ipvsadm` on the director, the words separated by blanks; returns its exit status and what
    /// it printed.
    ///
    /// # Panics
    /// It printed no text.
    pub fn ipvsadm(&mut self, line: &str) -> (u8, String) {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let table = self.table();
        let environment = Environment {
            open: &mut |_| Ok(Box::new(table.clone())),
            backend: None,
            names: &Names::fixed("", &[]),
            stdin: &mut &b""[..],
            stdout: &mut stdout,
            stderr: &mut stderr,
        };
        let status = ipvsadm(&words, "ipvsadm", environment);
        (status, String::from_utf8(stdout).unwrap())
    }

    /// Sets one of the parameters below `net.ipv4.vs`.
    ///
    /// # Panics
    /// There is no such parameter, or it is not carried out.
    pub fn set(&mut self, name: &str, value: u32) {
        // Its lock is needed.
        self.table = None;
        match self.balancer {
            Balancer::Kernel => {
                sysctl::write(&format!("net/ipv4/vs/{name}"), &value.to_string()).unwrap();
            }
            Balancer::Ours => {
                let parameter = Parameter::named(name).unwrap();
                assert_eq!(parameter.unheeded(), None, "{name}");
                parameter.write(value).unwrap();
            }
        }
    }

    /// Has packets from clients to an address get a firewall mark, until [`unmark`](Self::unmark).
    ///
    /// # Panics
    /// It is refused.
    pub fn mark(&mut self, address: IpAddr, mark: u32) {
        let is_v4 = address.is_ipv4();
        match self.balancer {
            Balancer::Kernel => {
                // Its mark need not come from netfilter, which the oracle's kernel has not all of.
                let protocol = if is_v4 { "ip" } else { "ipv6" };
                tc("qdisc add dev in0 ingress");
                tc(&format!(
                    "filter add dev in0 ingress protocol {protocol} flower dst_ip {address} \
                     action skbedit mark {mark}"
                ));
            }
            Balancer::Ours => {
                let prefix = if is_v4 { 32 } else { 128 };
                let rule = Rule { address, prefix, protocol: 0, ports: (0, u16::MAX), mark };
                self.table = None;
                assert!(marks::add(&rule).unwrap());
            }
        }
        self.is_marked = true;
    }

    /// Takes all marks back.
    ///
    /// # Panics
    /// It is refused.
    pub fn unmark(&mut self) {
        if !std::mem::take(&mut self.is_marked) {
            return;
        }
        match self.balancer {
            Balancer::Kernel => tc("qdisc del dev in0 ingress"),
            Balancer::Ours => {
                self.table = None;
                for rule in marks::list().unwrap() {
                    assert!(marks::delete(&rule).unwrap());
                }
            }
        }
    }

    /// Sends a frame in and returns all that came out for it, in the order of each wire.
    ///
    /// # Panics
    /// The director does not answer.
    pub fn step(&mut self, from: Side, frame: &[u8]) -> Vec<(Side, Vec<u8>)> {
        let socket = if from == Side::Clients { &self.clients } else { &self.servers };
        let sent = socket.send(frame).unwrap();
        assert_eq!(sent, frame.len());
        self.question = self.question.wrapping_add(1);
        self.clients.send(&self.ask()).unwrap();
        let mut out = Vec::new();
        let deadline = Instant::now() + TIME_MAX;
        loop {
            match receive(&self.clients) {
                Some(frame) if self.answers(&frame) => break,
                Some(frame) => out.push((Side::Clients, frame)),
                None => assert!(Instant::now() < deadline, "the director does not answer"),
            }
        }
        // All of it is there: it came before the answer.
        self.servers.set_nonblocking(true).unwrap();
        while let Some(frame) = receive(&self.servers) {
            out.push((Side::Servers, frame));
        }
        self.servers.set_nonblocking(false).unwrap();
        out.retain(|(_, frame)| !is_chatter(frame));
        out
    }

    /// Makes an echo request for the director's own address.
    fn ask(&self) -> Vec<u8> {
        let [high, low] = self.question.to_be_bytes();
        let message = Message {
            from: network::GATEWAY_MAC,
            to: self.network.inside.mac,
            source: network::vip(4, 254),
            target: network::vip(4, 1),
            ttl: 64,
            kind: [8, 0],
            rest: [0x6c, 0x76, high, low],
            payload: Vec::new(),
        };
        message.bytes()
    }

    fn answers(&self, frame: &[u8]) -> bool {
        let [high, low] = self.question.to_be_bytes();
        let IpAddr::V4(own) = network::vip(4, 1) else { return false };
        frame.get(26..30) == Some(&own.octets())
            && frame.get(34..36) == Some(&[0, 0])
            && frame.get(38..42) == Some(&[0x6c, 0x76, high, low])
    }
}

/// Runs `tc`.
fn tc(line: &str) {
    let status = Command::new("tc").args(line.split_whitespace()).status().unwrap();
    assert!(status.success(), "tc {line}");
}

fn open(balancer: Balancer) -> Result<Box<dyn Table>, Error> {
    match balancer {
        Balancer::Kernel => Ok(Box::new(KernelTable::open()?)),
        Balancer::Ours => {
            let table = BpfTable::open().map_err(|error| Error::System(error.to_string()))?;
            Ok(Box::new(table.ok_or_else(|| Error::System("nothing is attached".to_owned()))?))
        }
    }
}

/// Returns the next frame; `None` if there is none for a moment.
fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 65_536];
    match socket.recv(&mut bytes) {
        Ok(length) => {
            bytes.truncate(length);
            Some(bytes)
        }
        Err(error) => {
            let kinds = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted];
            assert!(kinds.contains(&error.kind()), "{error}");
            None
        }
    }
}

/// Tells whether a frame is one of those that hosts send of themselves: ARP, and neighbours, routers
/// and groups of IPv6.
fn is_chatter(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(30).is_some_and(|first| *first >= 224),
        Some([0x86, 0xdd]) => {
            let chats = |kind: &u8| (130..=143).contains(kind);
            let hops = frame.get(20) == Some(&0);
            hops || (frame.get(20) == Some(&58) && frame.get(transport(frame)).is_some_and(chats))
        }
        _ => true,
    }
}
