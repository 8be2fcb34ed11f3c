//! The words of LVS as types: virtual service, destination, scheduler, forwarding method.
//!
//! Everything here is plain data in host byte order. What the kernel's IPVS would refuse is
//! refused by the table, not by these types; what cannot be said in IPVS cannot be built.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

/// The transport protocols that a virtual service can balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
    /// Any other, by its IP protocol number: the kernel's IPVS lists what others put into it.
    Other(u8),
}

impl fmt::Display for Protocol {
    /// Writes the name that IPVS has for the protocol in `/proc/net/ip_vs_conn`.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(0) => to.pad("IP"),
            Self::Other(number) => to.pad(&format!("IP_{number}")),
            _ => to.pad(self.name().unwrap_or_default()),
        }
    }
}

impl Protocol {
    /// Returns the name that IPVS has for the protocol, if it has one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Tcp => Some("TCP"),
            Self::Udp => Some("UDP"),
            Self::Sctp => Some("SCTP"),
            Self::Other(_) => None,
        }
    }

    /// Returns the IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Other(number) => number,
        }
    }

    /// Returns the protocol with this IP protocol number.
    pub fn from_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            other => Self::Other(other),
        }
    }
}

/// The address family of a mark service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the family of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What identifies a virtual service, as in IPVS: the mark alone, else protocol, address, port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceId {
    /// Packets to this address and port. Port 0 stands for every port.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// Virtual address.
        address: IpAddr,
        /// Virtual port.
        port: u16,
    },
    /// Packets of this family that carry this firewall mark.
    Mark {
        /// Address family.
        family: Family,
        /// The mark, never 0.
        mark: u32,
    },
}

impl ServiceId {
    /// Returns the address family of the service.
    pub fn family(self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(address),
            Self::Mark { family, .. } => family,
        }
    }
}

/// Client persistence of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds that a template lives after its last new connection, 1 to 2,678,400.
    pub timeout_s: u32,
    /// Mask by which client addresses are grouped.
    pub netmask: Netmask,
}

/// Mask by which persistence groups clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netmask {
    /// Any 32 bits, contiguous or not, most significant address byte first.
    V4([u8; 4]),
    /// Prefix length, 1 to 128.
    V6(u8),
}

/// The configuration of a virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What identifies it.
    pub id: ServiceId,
    /// Scheduler name as the user typed it, at most 15 bytes; `none` schedules nothing.
    pub scheduler: String,
    /// Scheduler flags 1 to 3 as bits 0 to 2 (`-b`).
    pub scheduler_flags: u8,
    /// One-packet scheduling (`-o`).
    pub one_packet: bool,
    /// Persistence (`-p`, `-M`), if any.
    pub persistence: Option<Persistence>,
    /// Name of the persistence engine (`--pe`), if any.
    pub persistence_engine: Option<String>,
}

/// How a packet reaches a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardingMethod {
    /// Network address translation (`-m`).
    Masquerade,
    /// The same with an address of a pool in place of the client's (`-m --snat`), which IPVS has not.
    FullNat,
    /// Direct routing: only the frame's addresses change (`-g`).
    DirectRoute,
    /// Encapsulation (`-i`).
    Tunnel(Tunnel),
}

impl ForwardingMethod {
    /// Returns its name in JSON, metrics and on screens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::FullNat => "full-nat",
            Self::DirectRoute => "direct-route",
            Self::Tunnel(_) => "tunnel",
        }
    }
}

/// The encapsulation of a tunnelled destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation.
    Gue {
        /// UDP port of the decapsulator.
        port: u16,
        /// How the outer datagram is protected.
        checksum: TunnelChecksum,
    },
    /// GRE; remote checksum offload is not defined for it.
    Gre {
        /// Whether the GRE header carries a checksum.
        checksum: bool,
    },
}

/// Checksum option of a GUE tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelChecksum {
    /// None.
    None,
    /// Outer UDP checksum.
    Outer,
    /// Remote checksum offload.
    Remote,
}

/// What identifies a destination within its virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationId {
    /// Address of the real server.
    pub address: IpAddr,
    /// Port of the real server.
    pub port: u16,
}

/// The configuration of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What identifies it within its service.
    pub id: DestinationId,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// Share of new connections, 0 to 2,147,483,647; 0 quiesces.
    pub weight: u32,
    /// Number of connections at which it takes no more; 0 for no limit (`-x`).
    pub upper_threshold: u32,
    /// Number of connections below which it takes new ones again; 0 for 75 % of the upper (`-y`).
    pub lower_threshold: u32,
}

/// Counters as IPVS keeps them. Bytes are lengths of IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients that passed the director.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients that passed the director.
    pub out_bytes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.in_packets += other.in_packets;
        self.out_packets += other.out_packets;
        self.in_bytes += other.in_bytes;
        self.out_bytes += other.out_bytes;
    }
}

/// A virtual service as it is: configuration, counters, destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Configuration.
    pub service: Service,
    /// Totals, including what removed destinations had carried.
    pub traffic: Traffic,
    /// Destinations, newest first as the kernel keeps them.
    pub destinations: Vec<DestinationEntry>,
}

/// A destination as it is: configuration, connection counts, counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationEntry {
    /// Configuration.
    pub destination: Destination,
    /// Connections in an active state (`ActiveConn`).
    pub active: u32,
    /// All other connections (`InActConn`).
    pub inactive: u32,
    /// Persistence templates (`PersistConn`).
    pub persistent: u32,
    /// Totals.
    pub traffic: Traffic,
}

/// A destination that is set aside: it takes no new connections until it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Its service.
    pub service: ServiceId,
    /// Which it is.
    pub id: DestinationId,
    /// The weight that it is given back.
    pub weight: u32,
    /// Whether the service has it; one that was removed stays set aside for its return.
    pub listed: bool,
    /// Connections left in an active state.
    pub active: u32,
    /// Other connections left.
    pub inactive: u32,
    /// Persistence templates left: clients whose new connections still come.
    pub persistent: u32,
}

impl Drained {
    /// Returns whether nothing is left of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.active == 0 && self.inactive == 0 && self.persistent == 0
    }
}

/// The time-outs that `ipvsadm --set` changes, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp_s: u32,
    /// TCP connections after a FIN.
    pub tcp_fin_s: u32,
    /// UDP flows.
    pub udp_s: u32,
}

/// One tracked connection, as `ipvsadm -L -c` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Transport protocol.
    pub protocol: Protocol,
    /// State by its name in IPVS, such as `ESTABLISHED`.
    pub state: &'static str,
    /// Whole seconds until it expires.
    pub expires_s: u32,
    /// Client address and port.
    pub client: std::net::SocketAddr,
    /// Virtual address and port.
    pub virtual_address: std::net::SocketAddr,
    /// Address and port of the destination.
    pub destination: std::net::SocketAddr,
    /// What a persistence engine knows the client by, if one does.
    pub engine: Option<EngineData>,
    /// Whether another director told of it, and it has carried nothing here yet.
    pub is_learnt: bool,
}

/// One tracked connection in the words of `/proc/net/ip_vs_conn`, which has more than connections
/// of transport protocols: a template of a mark service is of protocol `IP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLine {
    /// Protocol by its name in IPVS.
    pub protocol: Cow<'static, str>,
    /// State by its name in IPVS.
    pub state: Cow<'static, str>,
    /// Whole seconds until it expires.
    pub expires_s: u32,
    /// Client address and port.
    pub client: std::net::SocketAddr,
    /// Virtual address and port.
    pub virtual_address: std::net::SocketAddr,
    /// Address and port of the destination.
    pub destination: std::net::SocketAddr,
    /// What a persistence engine knows the client by, if one does.
    pub engine: Option<EngineData>,
    /// Whether another director told of it, if that is known: `/proc/net/ip_vs_conn` does not say.
    pub is_learnt: Option<bool>,
}

/// What a persistence engine knows a client by, such as the `Call-ID` of `sip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineData {
    /// Name of the engine.
    pub engine: String,
    /// Its data as text.
    pub data: String,
}

impl From<Connection> for ConnectionLine {
    fn from(connection: Connection) -> Self {
        Self {
            protocol: match connection.protocol.name() {
                Some(name) => name.into(),
                None => connection.protocol.to_string().into(),
            },
            state: connection.state.into(),
            expires_s: connection.expires_s,
            client: connection.client,
            virtual_address: connection.virtual_address,
            destination: connection.destination,
            engine: connection.engine,
            is_learnt: Some(connection.is_learnt),
        }
    }
}

/// The version of IPVS whose behaviour a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// First number.
    pub major: u8,
    /// Second number.
    pub minor: u8,
    /// Third number.
    pub patch: u8,
}

impl Default for Version {
    /// Returns the version of the IPVS that our own table follows.
    fn default() -> Self {
        Self { major: 1, minor: 2, patch: 1 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The two sides of connection synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SyncRole {
    /// Tells of its connections.
    Master,
    /// Learns them.
    Backup,
}

impl SyncRole {
    /// Returns its word on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

impl fmt::Display for SyncRole {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

/// A daemon that synchronises connections. What is `None` the table chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncDaemon {
    /// Which side it is.
    pub role: SyncRole,
    /// Interface that it speaks on.
    pub interface: String,
    /// Number of the group of directors, 0 to 255.
    pub sync_id: u32,
    /// Longest message.
    pub message_bytes_max: Option<u16>,
    /// Multicast group.
    pub group: Option<IpAddr>,
    /// UDP port.
    pub port: Option<u16>,
    /// Hops that a message may make.
    pub ttl: Option<u8>,
}
