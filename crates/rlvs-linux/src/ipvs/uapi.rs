//! The numbers of `linux/ip_vs.h`: commands, attributes and flags of the family `IPVS`.

/// An attribute: its number, and its name in `linux/ip_vs.h` for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// The number, unique within its nest.
    pub number: u16,
    /// The name.
    pub name: &'static str,
}

const fn attribute(number: u16, name: &'static str) -> Attribute {
    Attribute { number, name }
}

/// `IPVS_GENL_NAME`.
pub const FAMILY_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
pub const FAMILY_VERSION: u8 = 1;

/// Generic netlink's own family, which knows the numbers of the others (`linux/genetlink.h`).
pub mod control {
    use super::{Attribute, attribute};
    /// `GENL_ID_CTRL`.
    pub const FAMILY: u16 = 0x10;
    /// The version of its interface.
    pub const VERSION: u8 = 1;
    /// `CTRL_CMD_GETFAMILY`.
    pub const GET_FAMILY: u8 = 3;
    /// `CTRL_ATTR_FAMILY_ID`, u16.
    pub const FAMILY_ID: Attribute = attribute(1, "CTRL_ATTR_FAMILY_ID");
    /// `CTRL_ATTR_FAMILY_NAME`, text.
    pub const FAMILY_NAME: Attribute = attribute(2, "CTRL_ATTR_FAMILY_NAME");
}

/// Commands, `IPVS_CMD_*`.
pub mod command {
    /// Adds a service.
    pub const NEW_SERVICE: u8 = 1;
    /// Replaces its attributes.
    pub const SET_SERVICE: u8 = 2;
    /// Removes it.
    pub const DEL_SERVICE: u8 = 3;
    /// Asks for one or all.
    pub const GET_SERVICE: u8 = 4;
    /// Adds a destination.
    pub const NEW_DEST: u8 = 5;
    /// Replaces its attributes.
    pub const SET_DEST: u8 = 6;
    /// Removes it.
    pub const DEL_DEST: u8 = 7;
    /// Lists those of a service.
    pub const GET_DEST: u8 = 8;
    /// Starts a synchronisation daemon.
    pub const NEW_DAEMON: u8 = 9;
    /// Stops it.
    pub const DEL_DAEMON: u8 = 10;
    /// Lists them.
    pub const GET_DAEMON: u8 = 11;
    /// Sets time-outs.
    pub const SET_CONFIG: u8 = 12;
    /// Asks for them.
    pub const GET_CONFIG: u8 = 13;
    /// Asks for version and table size.
    pub const GET_INFO: u8 = 15;
    /// Starts counters again from 0.
    pub const ZERO: u8 = 16;
    /// Removes every service.
    pub const FLUSH: u8 = 17;
}

/// Attributes of a message, `IPVS_CMD_ATTR_*`.
pub mod top {
    use super::{Attribute, attribute};
    /// Nest of [`super::service`].
    pub const SERVICE: Attribute = attribute(1, "IPVS_CMD_ATTR_SERVICE");
    /// Nest of [`super::destination`].
    pub const DEST: Attribute = attribute(2, "IPVS_CMD_ATTR_DEST");
    /// Nest of [`super::daemon`].
    pub const DAEMON: Attribute = attribute(3, "IPVS_CMD_ATTR_DAEMON");
    /// Seconds, u32.
    pub const TIMEOUT_TCP: Attribute = attribute(4, "IPVS_CMD_ATTR_TIMEOUT_TCP");
    /// Seconds, u32.
    pub const TIMEOUT_TCP_FIN: Attribute = attribute(5, "IPVS_CMD_ATTR_TIMEOUT_TCP_FIN");
    /// Seconds, u32.
    pub const TIMEOUT_UDP: Attribute = attribute(6, "IPVS_CMD_ATTR_TIMEOUT_UDP");
}

/// Attributes of a service, `IPVS_SVC_ATTR_*`.
pub mod service {
    use super::{Attribute, attribute};
    /// Address family, u16.
    pub const AF: Attribute = attribute(1, "IPVS_SVC_ATTR_AF");
    /// Transport protocol, u16.
    pub const PROTOCOL: Attribute = attribute(2, "IPVS_SVC_ATTR_PROTOCOL");
    /// 16 bytes, of which IPv4 has the first 4.
    pub const ADDR: Attribute = attribute(3, "IPVS_SVC_ATTR_ADDR");
    /// Two bytes in network order.
    pub const PORT: Attribute = attribute(4, "IPVS_SVC_ATTR_PORT");
    /// u32, in place of protocol, address and port.
    pub const FWMARK: Attribute = attribute(5, "IPVS_SVC_ATTR_FWMARK");
    /// Text of at most 15 bytes.
    pub const SCHED_NAME: Attribute = attribute(6, "IPVS_SVC_ATTR_SCHED_NAME");
    /// `struct ip_vs_flags`: u32 of flags, u32 of those that count.
    pub const FLAGS: Attribute = attribute(7, "IPVS_SVC_ATTR_FLAGS");
    /// Seconds of persistence, u32.
    pub const TIMEOUT: Attribute = attribute(8, "IPVS_SVC_ATTR_TIMEOUT");
    /// IPv4: four bytes in network order. IPv6: a prefix length, u32.
    pub const NETMASK: Attribute = attribute(9, "IPVS_SVC_ATTR_NETMASK");
    /// Nest of [`super::stats`] with numbers of 32 bits.
    pub const STATS: Attribute = attribute(10, "IPVS_SVC_ATTR_STATS");
    /// Text of at most 15 bytes.
    pub const PE_NAME: Attribute = attribute(11, "IPVS_SVC_ATTR_PE_NAME");
    /// Nest of [`super::stats`] with numbers of 64 bits.
    pub const STATS64: Attribute = attribute(12, "IPVS_SVC_ATTR_STATS64");

    /// `IP_VS_SVC_F_PERSISTENT`.
    pub const FLAG_PERSISTENT: u32 = 1;
    /// `IP_VS_SVC_F_ONEPACKET`.
    pub const FLAG_ONE_PACKET: u32 = 4;
    /// `IP_VS_SVC_F_SCHED1` is this bit, the other two follow.
    pub const FLAG_SCHEDULER_SHIFT: u32 = 3;
}

/// Attributes of a destination, `IPVS_DEST_ATTR_*`.
pub mod destination {
    use super::{Attribute, attribute};
    /// 16 bytes, of which IPv4 has the first 4.
    pub const ADDR: Attribute = attribute(1, "IPVS_DEST_ATTR_ADDR");
    /// Two bytes in network order.
    pub const PORT: Attribute = attribute(2, "IPVS_DEST_ATTR_PORT");
    /// One of the methods below, u32.
    pub const FWD_METHOD: Attribute = attribute(3, "IPVS_DEST_ATTR_FWD_METHOD");
    /// u32 that is signed to the kernel.
    pub const WEIGHT: Attribute = attribute(4, "IPVS_DEST_ATTR_WEIGHT");
    /// u32.
    pub const U_THRESH: Attribute = attribute(5, "IPVS_DEST_ATTR_U_THRESH");
    /// u32.
    pub const L_THRESH: Attribute = attribute(6, "IPVS_DEST_ATTR_L_THRESH");
    /// u32.
    pub const ACTIVE_CONNS: Attribute = attribute(7, "IPVS_DEST_ATTR_ACTIVE_CONNS");
    /// u32.
    pub const INACT_CONNS: Attribute = attribute(8, "IPVS_DEST_ATTR_INACT_CONNS");
    /// u32.
    pub const PERSIST_CONNS: Attribute = attribute(9, "IPVS_DEST_ATTR_PERSIST_CONNS");
    /// Nest of [`super::stats`] with numbers of 32 bits.
    pub const STATS: Attribute = attribute(10, "IPVS_DEST_ATTR_STATS");
    /// Address family, u16; absent in old kernels, which have no other than the service's.
    pub const ADDR_FAMILY: Attribute = attribute(11, "IPVS_DEST_ATTR_ADDR_FAMILY");
    /// Nest of [`super::stats`] with numbers of 64 bits.
    pub const STATS64: Attribute = attribute(12, "IPVS_DEST_ATTR_STATS64");
    /// One of the tunnels below, u8; absent in kernels that have only one.
    pub const TUN_TYPE: Attribute = attribute(13, "IPVS_DEST_ATTR_TUN_TYPE");
    /// Two bytes in network order.
    pub const TUN_PORT: Attribute = attribute(14, "IPVS_DEST_ATTR_TUN_PORT");
    /// u16.
    pub const TUN_FLAGS: Attribute = attribute(15, "IPVS_DEST_ATTR_TUN_FLAGS");

    /// `IP_VS_CONN_F_MASQ`.
    pub const METHOD_MASQUERADE: u32 = 0;
    /// `IP_VS_CONN_F_TUNNEL`.
    pub const METHOD_TUNNEL: u32 = 2;
    /// `IP_VS_CONN_F_DROUTE`.
    pub const METHOD_DIRECT_ROUTE: u32 = 3;
    /// `IP_VS_CONN_F_FWD_MASK`.
    pub const METHOD_MASK: u32 = 7;

    /// `IP_VS_CONN_F_TUNNEL_TYPE_IPIP`.
    pub const TUNNEL_IPIP: u8 = 0;
    /// `IP_VS_CONN_F_TUNNEL_TYPE_GUE`.
    pub const TUNNEL_GUE: u8 = 1;
    /// `IP_VS_CONN_F_TUNNEL_TYPE_GRE`.
    pub const TUNNEL_GRE: u8 = 2;

    /// `IP_VS_TUNNEL_ENCAP_FLAG_CSUM`.
    pub const TUNNEL_CHECKSUM: u16 = 1;
    /// `IP_VS_TUNNEL_ENCAP_FLAG_REMCSUM`.
    pub const TUNNEL_REMOTE_CHECKSUM: u16 = 2;
}

/// Attributes of a synchronisation daemon, `IPVS_DAEMON_ATTR_*`.
pub mod daemon {
    use super::{Attribute, attribute};
    /// u32, one of the two below.
    pub const STATE: Attribute = attribute(1, "IPVS_DAEMON_ATTR_STATE");
    /// Text.
    pub const MCAST_IFN: Attribute = attribute(2, "IPVS_DAEMON_ATTR_MCAST_IFN");
    /// u32.
    pub const SYNC_ID: Attribute = attribute(3, "IPVS_DAEMON_ATTR_SYNC_ID");
    /// u16.
    pub const SYNC_MAXLEN: Attribute = attribute(4, "IPVS_DAEMON_ATTR_SYNC_MAXLEN");
    /// Four bytes.
    pub const MCAST_GROUP: Attribute = attribute(5, "IPVS_DAEMON_ATTR_MCAST_GROUP");
    /// Sixteen bytes.
    pub const MCAST_GROUP6: Attribute = attribute(6, "IPVS_DAEMON_ATTR_MCAST_GROUP6");
    /// u16 in the order of the host.
    pub const MCAST_PORT: Attribute = attribute(7, "IPVS_DAEMON_ATTR_MCAST_PORT");
    /// u8.
    pub const MCAST_TTL: Attribute = attribute(8, "IPVS_DAEMON_ATTR_MCAST_TTL");

    /// `IP_VS_STATE_MASTER`.
    pub const STATE_MASTER: u32 = 1;
    /// `IP_VS_STATE_BACKUP`.
    pub const STATE_BACKUP: u32 = 2;
}

/// Attributes of counters, `IPVS_STATS_ATTR_*`. Bytes have 64 bits in both nests, all else as the
/// nest says.
pub mod stats {
    use super::{Attribute, attribute};
    /// Totals: connections, packets in and out, bytes in and out.
    pub const TOTALS: [Attribute; 5] = [
        attribute(1, "IPVS_STATS_ATTR_CONNS"),
        attribute(2, "IPVS_STATS_ATTR_INPKTS"),
        attribute(3, "IPVS_STATS_ATTR_OUTPKTS"),
        attribute(4, "IPVS_STATS_ATTR_INBYTES"),
        attribute(5, "IPVS_STATS_ATTR_OUTBYTES"),
    ];
    /// The same per second.
    pub const RATES: [Attribute; 5] = [
        attribute(6, "IPVS_STATS_ATTR_CPS"),
        attribute(7, "IPVS_STATS_ATTR_INPPS"),
        attribute(8, "IPVS_STATS_ATTR_OUTPPS"),
        attribute(9, "IPVS_STATS_ATTR_INBPS"),
        attribute(10, "IPVS_STATS_ATTR_OUTBPS"),
    ];
}

/// Attributes of the answer to [`command::GET_INFO`], `IPVS_INFO_ATTR_*`.
pub mod info {
    use super::{Attribute, attribute};
    /// u32 of three bytes: major, minor, patch.
    pub const VERSION: Attribute = attribute(1, "IPVS_INFO_ATTR_VERSION");
    /// Buckets of the connection table, u32.
    pub const CONN_TAB_SIZE: Attribute = attribute(2, "IPVS_INFO_ATTR_CONN_TAB_SIZE");
}
