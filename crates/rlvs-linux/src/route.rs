//! Links, addresses, routes, rules and neighbours of one network namespace, by rtnetlink.
//!
//! The one module that knows `netlink-packet-route`; `ingress` has the filters. Everything is asked
//! of the kernel at the moment it is wanted; nothing is cached.

mod entry;
mod ingress;
mod monitor;
mod virtual_address;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoMacVlan, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, LinkXdp, MacVlanMode,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

pub use monitor::{Monitor, RoutingMonitor};

use crate::netlink;
use crate::netns::{self, Namespace};

// linux/if_link.h; libc does not have them.
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1 << 0;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Why a question or a change failed, with what it was about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel or the socket refused.
    #[error("{operation}{}", hint(.source))]
    Netlink {
        /// What was tried, and on what.
        operation: String,
        /// Why it failed.
        source: netlink::Error,
    },
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// There is no interface of that name here.
    #[error("no interface is named `{0}`")]
    NoLink(String),
}

impl Error {
    /// Returns the error number with which the kernel refused, if it did.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } => source.refusal(),
            Self::Namespace(_) | Self::NoLink(_) => None,
        }
    }
}

fn hint(error: &netlink::Error) -> &'static str {
    match error.refusal() {
        Some(libc::EPERM) => " needs CAP_NET_ADMIN: run this as root (sudo)",
        _ => "",
    }
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The address, host part included.
    pub address: IpAddr,
    /// Leading bits that name the network.
    pub bits: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.bits)
    }
}

/// An interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Largest packet it carries.
    pub mtu_bytes: u32,
    /// Whether it was set up.
    pub up: bool,
    /// Whether the driver sees a carrier.
    pub carrier: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Kind of a virtual interface, such as `veth`, `bridge`, `vlan`, `bond`.
    pub kind: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Index of the interface it sits on (VLAN, macvlan), or of the other end (veth), if that is in
    /// this namespace.
    pub lower: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// The XDP programs that it runs.
    pub xdp: XdpPrograms,
}

/// Ids of the XDP programs that an interface runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpPrograms {
    /// In the driver, or on the card.
    pub native: Option<u32>,
    /// In the stack.
    pub generic: Option<u32>,
}

/// A route to add to a table.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Where it leads; `None` is the default route of the gateway's family.
    pub destination: Option<Prefix>,
    /// The next hop.
    pub gateway: IpAddr,
    /// Index of the interface to leave by.
    pub interface: u32,
    /// Whether the gateway is taken to be on the link without a route to it.
    pub onlink: bool,
    /// Routing table; [`MAIN_TABLE`] is the ordinary one.
    pub table: u8,
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The address is this host's own.
    pub local: bool,
    /// Index of the interface to leave by, and the neighbour that takes the packet; `None` for an
    /// address of this host or one that is not to be reached.
    pub hop: Option<(u32, IpAddr)>,
    /// The address that this host sends from.
    pub source: Option<IpAddr>,
}

/// The ordinary routing table.
pub const MAIN_TABLE: u8 = RouteHeader::RT_TABLE_MAIN;

/// A neighbour entry as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Hardware address, if it is known.
    pub mac: Option<Mac>,
    /// Whether it was set by hand and never changes.
    pub permanent: bool,
    /// Whether the kernel keeps it resolved of its own accord.
    pub managed: bool,
}

/// Routing netlink of one namespace.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: netlink::Socket,
}

impl Rtnetlink {
    /// Opens the routing netlink of the calling thread's namespace.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn open() -> Result<Self, Error> {
        let socket =
            netlink::Socket::open(netlink_sys::protocols::NETLINK_ROUTE).map_err(|source| {
                Error::Netlink { operation: "opening routing netlink".to_owned(), source }
            })?;
        Ok(Self { socket })
    }

    /// Opens the routing netlink of another namespace; it is used from where the caller is.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Lists the interfaces with their addresses, by index.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let failed = |source| Error::Netlink { operation: "listing interfaces".to_owned(), source };
        let links = self
            .socket
            .list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .map_err(failed)?;
        let addresses = self
            .socket
            .list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .map_err(failed)?;
        let mut links: Vec<Link> = links
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => link_from(message),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        for answer in addresses {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            let index = message.header.index;
            if let Ok(position) = links.binary_search_by_key(&index, |link| link.index)
                && let Some(link) = links.get_mut(position)
            {
                link.addresses.extend(address_from(&message));
            }
        }
        Ok(links)
    }

    /// Returns one interface by its name.
    ///
    /// # Errors
    /// [`Error::NoLink`], or the kernel refused.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let found = self.links()?.into_iter().find(|link| link.name == name);
        found.ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// Makes a veth pair: `name` in this namespace, `peer` in `peer_namespace`, both down.
    ///
    /// # Errors
    /// A name that is taken, or a missing capability.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_namespace: &Namespace,
    ) -> Result<(), Error> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::NetNsFd(peer_namespace.as_fd().as_raw_fd()),
        ];
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ];
        let operation =
            || format!("making veth pair {name}, {peer} in namespace {}", peer_namespace.name());
        self.add_link(name, info, operation)
    }

    /// Makes a bridge without spanning tree and without multicast snooping: a plain wire.
    ///
    /// # Errors
    /// A name that is taken, or a missing capability.
    pub fn add_bridge(&mut self, name: &str) -> Result<(), Error> {
        let info = vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
        ];
        self.add_link(name, info, || format!("making bridge {name}"))
    }

    /// Makes a second interface on top of `lower`, with a hardware address of its own, which hears
    /// others of its kind on the wire only (macvlan, private).
    ///
    /// # Errors
    /// A name that is taken, or a missing capability.
    pub fn add_macvlan(&mut self, name: &str, lower: u32, mac: Mac) -> Result<(), Error> {
        let mode = InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Private)]);
        let info = vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(mode)];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(lower),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(info),
        ];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let operation = || format!("making interface {name} with the address {mac}");
        self.change(RouteNetlinkMessage::NewLink(message), flags, operation)
    }

    fn add_link(
        &mut self,
        name: &str,
        info: Vec<LinkInfo>,
        operation: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.change(RouteNetlinkMessage::NewLink(message), flags, operation)
    }

    /// Removes an interface.
    ///
    /// # Errors
    /// It is gone, or cannot be removed.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelLink(link_message(index, Vec::new()));
        self.change(message, 0, || format!("removing interface {index}"))
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// It is gone, or a missing capability.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), Error> {
        let mut message = link_message(index, Vec::new());
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change(RouteNetlinkMessage::SetLink(message), 0, || {
            format!("setting interface {index} {}", if up { "up" } else { "down" })
        })
    }

    /// Renames an interface, which must be down on kernels before 6.2.
    ///
    /// # Errors
    /// A name that is taken or impossible, or the interface is gone.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), Error> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let message = RouteNetlinkMessage::SetLink(link_message(index, attributes));
        self.change(message, 0, || format!("renaming interface {index} to {name}"))
    }

    /// Sets the hardware address of an interface.
    ///
    /// # Errors
    /// The driver refuses it, or the interface is gone.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), Error> {
        let attributes = vec![LinkAttribute::Address(mac.0.to_vec())];
        let message = RouteNetlinkMessage::SetLink(link_message(index, attributes));
        self.change(message, 0, || format!("giving interface {index} the address {mac}"))
    }

    /// Makes an interface a port of the bridge or bond `controller`.
    ///
    /// # Errors
    /// One of them is gone or does not fit the other.
    pub fn set_controller(&mut self, index: u32, controller: u32) -> Result<(), Error> {
        let attributes = vec![LinkAttribute::Controller(controller)];
        let message = RouteNetlinkMessage::SetLink(link_message(index, attributes));
        self.change(message, 0, || format!("making interface {index} a port of {controller}"))
    }

    /// Attaches an XDP program in native mode to an interface that has none.
    ///
    /// # Errors
    /// The driver has no native XDP, or another program is there.
    pub fn set_native_xdp(&mut self, index: u32, program: &OwnedFd) -> Result<(), Error> {
        let flags = XDP_FLAGS_UPDATE_IF_NOEXIST | XDP_FLAGS_DRV_MODE;
        let xdp = vec![LinkXdp::Fd(program.as_raw_fd()), LinkXdp::Flags(flags)];
        let attributes = vec![LinkAttribute::Xdp(xdp)];
        let message = RouteNetlinkMessage::SetLink(link_message(index, attributes));
        self.change(message, 0, || format!("attaching an XDP program to interface {index}"))
    }

    /// Gives an interface an address, usable at once: an IPv6 address without duplicate detection.
    ///
    /// # Errors
    /// The address is there, or the interface is gone.
    pub fn add_address(&mut self, index: u32, prefix: Prefix) -> Result<(), Error> {
        let mut message = address_message(index, prefix);
        if prefix.address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("giving interface {index} the address {prefix}")
        })
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// The address is not there.
    pub fn delete_address(&mut self, index: u32, prefix: Prefix) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, prefix));
        self.change(message, 0, || format!("taking the address {prefix} from interface {index}"))
    }

    /// Adds a route by way of a gateway.
    ///
    /// # Errors
    /// The route is there, or the gateway cannot be reached.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(route.gateway);
        message.header.table = route.table;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::from(route.gateway)),
            RouteAttribute::Oif(route.interface),
        ];
        if let Some(destination) = route.destination {
            message.header.destination_prefix_length = destination.bits;
            message
                .attributes
                .push(RouteAttribute::Destination(RouteAddress::from(destination.address)));
        }
        if route.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, || {
            let to = route.destination.map_or("default".to_owned(), |prefix| prefix.to_string());
            format!("adding route {to} via {} on interface {}", route.gateway, route.interface)
        })
    }

    /// Makes packets from `source` look up routing table `table` before the ordinary one.
    ///
    /// # Errors
    /// The rule is there, or a missing capability.
    pub fn add_source_rule(&mut self, source: Prefix, table: u8) -> Result<(), Error> {
        let mut message = RuleMessage::default();
        message.header.family = family_of(source.address);
        message.header.src_len = source.bits;
        message.header.table = table;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Source(source.address)];
        self.change(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("adding rule from {source} lookup {table}")
        })
    }

    /// Returns the way to an address; `None` if nothing leads there.
    ///
    /// # Errors
    /// The kernel refused the question.
    pub fn way(&mut self, address: IpAddr) -> Result<Option<Way>, Error> {
        let Some(route) = self.route_to(address)? else { return Ok(None) };
        let (mut interface, mut gateway, mut source) = (None, address, None);
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(index),
                RouteAttribute::Gateway(RouteAddress::Inet(next)) => gateway = next.into(),
                RouteAttribute::Gateway(RouteAddress::Inet6(next)) => gateway = next.into(),
                RouteAttribute::PrefSource(RouteAddress::Inet(own)) => source = Some(own.into()),
                RouteAttribute::PrefSource(RouteAddress::Inet6(own)) => source = Some(own.into()),
                _ => {}
            }
        }
        let unicast = route.header.kind == RouteType::Unicast;
        Ok(Some(Way {
            local: route.header.kind == RouteType::Local,
            hop: interface.filter(|_| unicast).map(|index| (index, gateway)),
            source,
        }))
    }

    fn route_to(&mut self, address: IpAddr) -> Result<Option<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(address))];
        match self.socket.ask(RouteNetlinkMessage::GetRoute(message)) {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(Some(route)),
            Ok(_) => Ok(None),
            Err(error) if error.refusal() == Some(libc::ENETUNREACH) => Ok(None),
            Err(source) => {
                let operation = format!("asking for the route to {address}");
                Err(Error::Netlink { operation, source })
            }
        }
    }

    /// Sets a neighbour entry that never changes.
    ///
    /// # Errors
    /// The interface is gone, or a missing capability.
    pub fn set_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let mut message = neighbour_message(index, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.change(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("setting neighbour {address} on interface {index} to {mac}"),
        )
    }

    /// Returns the neighbour entry of an address, if there is one.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn neighbour(&mut self, index: u32, address: IpAddr) -> Result<Option<Neighbour>, Error> {
        let question = RouteNetlinkMessage::GetNeighbour(neighbour_message(index, address));
        match self.socket.change(question, 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Some(neighbour_from(&message)),
                _ => None,
            })),
            Err(error) if error.refusal() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(Error::Netlink {
                operation: format!("asking for neighbour {address} on interface {index}"),
                source,
            }),
        }
    }

    /// Makes the kernel resolve an address and keep it resolved (`NTF_EXT_MANAGED`, Linux 5.16).
    ///
    /// An entry that someone has set permanently is left as it is: the kernel would make it
    /// forget, as `__neigh_update()` takes `NUD_PERMANENT` away from an entry that is managed.
    ///
    /// # Errors
    /// The interface is gone or down, or a missing capability.
    pub fn ensure_managed_neighbour(&mut self, index: u32, address: IpAddr) -> Result<(), Error> {
        if self.neighbour(index, address)?.is_some_and(|entry| entry.permanent || entry.managed) {
            return Ok(());
        }
        let mut message = neighbour_message(index, address);
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE, || {
            format!("keeping neighbour {address} on interface {index} resolved")
        })
    }

    fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        match self.socket.change(message, flags) {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Netlink { operation: operation(), source }),
        }
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn address_message(index: u32, prefix: Prefix) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(prefix.address);
    message.header.prefix_len = prefix.bits;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Local(prefix.address), AddressAttribute::Address(prefix.address)];
    message
}

fn neighbour_message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn xdp_from(attributes: &[LinkXdp]) -> XdpPrograms {
    let mut programs = XdpPrograms::default();
    for attribute in attributes {
        match attribute {
            LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => programs.native = Some(*id),
            LinkXdp::SkbProgId(id) => programs.generic = Some(*id),
            _ => {}
        }
    }
    programs
}

fn link_from(message: LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu_bytes: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        kind: None,
        controller: None,
        lower: None,
        addresses: Vec::new(),
        xdp: XdpPrograms::default(),
    };
    // An index of another namespace means nothing here.
    let elsewhere =
        message.attributes.iter().any(|one| matches!(one, LinkAttribute::LinkNetNsId(_)));
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Xdp(programs) => link.xdp = xdp_from(&programs),
            LinkAttribute::Mtu(mtu_bytes) => link.mtu_bytes = mtu_bytes,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) if !elsewhere && index != 0 => link.lower = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn address_from(message: &AddressMessage) -> Option<Prefix> {
    let bits = message.header.prefix_len;
    // The local address is the interface's own where a point-to-point link has both.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let either = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    local.or_else(either).map(|address| Prefix { address, bits })
}

fn neighbour_from(message: &NeighbourMessage) -> Neighbour {
    let mut neighbour = Neighbour {
        mac: None,
        permanent: message.header.state == NeighbourState::Permanent,
        managed: false,
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                neighbour.mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            NeighbourAttribute::ExtFlags(flags) => {
                neighbour.managed = flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    neighbour
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A namespace with a veth pair, both ends in it, that goes away with the test.
    struct Fixture {
        namespace: Namespace,
        rtnetlink: Rtnetlink,
    }

    impl Fixture {
        fn new(test: &str) -> Self {
            let name = format!("rlvs-test-{}-{test}", std::process::id());
            let namespace = Namespace::create(&name).unwrap();
            let rtnetlink = Rtnetlink::open_in(&namespace).unwrap();
            let mut fixture = Self { namespace, rtnetlink };
            fixture.rtnetlink.add_veth("one", "two", &fixture.namespace).unwrap();
            fixture
        }

        fn index(&mut self, name: &str) -> u32 {
            self.rtnetlink.link(name).unwrap().index
        }

        /// What `ip` says, which is the kernel's view and not ours.
        fn ip(&self, arguments: &str) -> String {
            let output = Command::new("ip")
                .args(["-n", self.namespace.name()])
                .args(arguments.split(' '))
                .output()
                .unwrap();
            assert!(output.status.success(), "ip {arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            netns::delete(self.namespace.name()).ok();
        }
    }

    fn prefix(text: &str) -> Prefix {
        let (address, bits) = text.split_once('/').unwrap();
        Prefix { address: address.parse().unwrap(), bits: bits.parse().unwrap() }
    }

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x2a]);

    #[test]
    fn a_fresh_namespace_has_a_loopback_that_is_down() {
        let mut fixture = Fixture::new("loopback");
        let link = fixture.rtnetlink.link("lo").unwrap();
        assert_eq!((link.index, link.loopback, link.up), (1, true, false));
        assert_eq!((link.kind, link.addresses), (None, Vec::new()));
    }

    #[test]
    fn a_veth_pair_is_made_across_namespaces() {
        let mut here = Fixture::new("here");
        let there = Fixture::new("there");
        here.rtnetlink.add_veth("left", "right", &there.namespace).unwrap();
        assert!(here.ip("-d link show left").contains("veth"));
        assert!(there.ip("-d link show right").contains("veth"));
        let left = here.rtnetlink.link("left").unwrap();
        assert_eq!((left.kind.as_deref(), left.lower), (Some("veth"), None));
        let (one, two) = (here.rtnetlink.link("one").unwrap(), here.index("two"));
        assert_eq!(one.lower, Some(two));
    }

    #[test]
    fn links_are_listed_as_they_are() {
        let mut fixture = Fixture::new("links");
        let index = fixture.index("one");
        fixture.rtnetlink.set_mac(index, MAC).unwrap();
        fixture.rtnetlink.add_address(index, prefix("192.0.2.1/24")).unwrap();
        fixture.rtnetlink.add_address(index, prefix("2001:db8::1/64")).unwrap();
        let link = fixture.rtnetlink.link("one").unwrap();
        assert_eq!((link.mac, link.mtu_bytes, link.up), (Some(MAC), 1500, false));
        assert_eq!(link.addresses, [prefix("192.0.2.1/24"), prefix("2001:db8::1/64")]);
        fixture.rtnetlink.set_up(index, true).unwrap();
        let two = fixture.index("two");
        fixture.rtnetlink.set_up(two, true).unwrap();
        let link = fixture.rtnetlink.link("one").unwrap();
        assert_eq!((link.up, link.carrier), (true, true));
        let text = fixture.ip("addr show one");
        assert!(text.contains(&MAC.to_string()), "{text}");
        assert!(text.contains("inet 192.0.2.1/24 scope global one"), "{text}");
        assert!(text.contains("inet6 2001:db8::1/64 scope global nodad"), "{text}");
        assert!(!text.contains("tentative 2001"), "{text}");
        fixture.rtnetlink.delete_address(index, prefix("192.0.2.1/24")).unwrap();
        assert!(!fixture.ip("addr show one").contains("192.0.2.1"));
    }

    #[test]
    fn a_virtual_address_is_not_chosen_as_a_source() {
        let mut fixture = Fixture::new("virtual");
        let index = fixture.index("one");
        fixture.rtnetlink.add_address(index, prefix("2001:db8::100/64")).unwrap();
        fixture.rtnetlink.add_address(index, prefix("192.0.2.100/24")).unwrap();
        fixture.rtnetlink.add_virtual_address(index, prefix("2001:db8::200/128")).unwrap();
        fixture.rtnetlink.add_virtual_address(index, prefix("192.0.2.200/32")).unwrap();
        fixture.rtnetlink.set_up(index, true).unwrap();
        assert!(fixture.ip("route get 2001:db8::201").contains("src 2001:db8::100"));
        assert!(fixture.ip("route get 192.0.2.201").contains("src 192.0.2.100"));
    }

    #[test]
    fn a_link_is_renamed_set_down_and_removed() {
        let mut fixture = Fixture::new("rename");
        let index = fixture.index("one");
        fixture.rtnetlink.rename(index, "three").unwrap();
        assert!(fixture.ip("-o link show three").contains("three@two"));
        fixture.rtnetlink.set_up(index, true).unwrap();
        fixture.rtnetlink.set_up(index, false).unwrap();
        assert!(!fixture.ip("-o link show three").contains("UP"));
        fixture.rtnetlink.delete_link(index).unwrap();
        assert!(matches!(fixture.rtnetlink.link("three"), Err(Error::NoLink(_))));
        assert!(matches!(fixture.rtnetlink.link("two"), Err(Error::NoLink(_))));
    }

    #[test]
    fn a_bridge_takes_ports() {
        let mut fixture = Fixture::new("bridge");
        fixture.rtnetlink.add_bridge("br0").unwrap();
        let (bridge, port) = (fixture.index("br0"), fixture.index("one"));
        fixture.rtnetlink.set_controller(port, bridge).unwrap();
        assert!(fixture.ip("link show one").contains("master br0"));
        assert!(fixture.ip("-d link show br0").contains("mcast_snooping 0"));
        assert_eq!(fixture.rtnetlink.link("one").unwrap().controller, Some(bridge));
        assert_eq!(fixture.rtnetlink.link("br0").unwrap().kind.as_deref(), Some("bridge"));
    }

    #[test]
    fn a_program_that_passes_is_attached_in_native_mode_once() {
        let mut fixture = Fixture::new("xdp");
        let index = fixture.index("one");
        crate::xdp_pass::attach_pass(&mut fixture.rtnetlink, index).unwrap();
        let text = fixture.ip("-d link show one");
        assert!(text.contains("prog/xdp id"), "{text}");
        assert!(crate::xdp_pass::attach_pass(&mut fixture.rtnetlink, index).is_err());
    }

    #[test]
    fn routes_and_rules_reach_the_kernel() {
        let mut fixture = Fixture::new("routes");
        let index = fixture.index("one");
        fixture.rtnetlink.add_address(index, prefix("192.0.2.1/24")).unwrap();
        fixture.rtnetlink.add_address(index, prefix("2001:db8::1/64")).unwrap();
        fixture.rtnetlink.set_up(index, true).unwrap();
        let mut route = Route {
            destination: None,
            gateway: "192.0.2.254".parse().unwrap(),
            interface: index,
            onlink: false,
            table: MAIN_TABLE,
        };
        fixture.rtnetlink.add_route(&route).unwrap();
        route.destination = Some(prefix("198.51.100.0/24"));
        route.gateway = "203.0.113.1".parse().unwrap();
        let unreachable = fixture.rtnetlink.add_route(&route).unwrap_err();
        let said = format!("{:#}", Chain(&unreachable));
        assert!(said.contains("198.51.100.0/24 via 203.0.113.1") && said.contains("gateway"));
        route.onlink = true;
        fixture.rtnetlink.add_route(&route).unwrap();
        let text = fixture.ip("route show");
        assert!(text.contains("default via 192.0.2.254 dev one"), "{text}");
        assert!(text.contains("198.51.100.0/24 via 203.0.113.1 dev one"), "{text}");
        route = Route { destination: None, gateway: "2001:db8::fe".parse().unwrap(), ..route };
        route.table = 100;
        fixture.rtnetlink.add_route(&route).unwrap();
        fixture.rtnetlink.add_source_rule(prefix("2001:db8::1/128"), 100).unwrap();
        fixture.rtnetlink.add_source_rule(prefix("192.0.2.1/32"), 100).unwrap();
        assert!(fixture.ip("-6 route show table 100").contains("default via 2001:db8::fe"));
        assert!(fixture.ip("-6 rule").contains("from 2001:db8::1 lookup 100"));
        assert!(fixture.ip("rule").contains("from 192.0.2.1 lookup 100"));
    }

    #[test]
    fn a_managed_neighbour_is_kept_resolved_and_a_permanent_one_left_alone() {
        let mut fixture = Fixture::new("neighbour");
        let index = fixture.index("one");
        fixture.rtnetlink.add_address(index, prefix("192.0.2.1/24")).unwrap();
        fixture.rtnetlink.add_address(index, prefix("2001:db8::1/64")).unwrap();
        fixture.rtnetlink.set_up(index, true).unwrap();
        for text in ["192.0.2.2", "2001:db8::2"] {
            let address = text.parse().unwrap();
            assert_eq!(fixture.rtnetlink.neighbour(index, address).unwrap(), None);
            fixture.rtnetlink.ensure_managed_neighbour(index, address).unwrap();
            fixture.rtnetlink.ensure_managed_neighbour(index, address).unwrap();
            let entry = fixture.rtnetlink.neighbour(index, address).unwrap().unwrap();
            assert!(entry.managed && !entry.permanent);
            assert!(fixture.ip(&format!("neigh show {text} dev one")).contains("managed"));
        }
        let address = "192.0.2.3".parse().unwrap();
        fixture.rtnetlink.set_neighbour(index, address, MAC).unwrap();
        fixture.rtnetlink.ensure_managed_neighbour(index, address).unwrap();
        let expected = Neighbour { mac: Some(MAC), permanent: true, managed: false };
        assert_eq!(fixture.rtnetlink.neighbour(index, address).unwrap(), Some(expected));
        let text = fixture.ip("neigh show 192.0.2.3 dev one");
        assert!(text.contains("PERMANENT") && text.contains(&MAC.to_string()), "{text}");
    }

    /// An error with its causes, as the program prints it.
    struct Chain<'a>(&'a dyn std::error::Error);

    impl std::fmt::Display for Chain<'_> {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let mut error = Some(self.0);
            while let Some(one) = error {
                write!(formatter, "{one}: ")?;
                error = one.source();
            }
            Ok(())
        }
    }
}
