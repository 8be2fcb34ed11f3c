//! Entries of routing that the control plane adds and removes: routes, and rules that choose tables.
//!
//! Plain data. A `Display` of them is the line of keepalived.conf that means them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::Family;

/// The table of ordinary routes (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;
/// Who made an entry, if nothing is said: keepalived (RTPROT_KEEPALIVED).
pub const PROTOCOL: u8 = 18;
/// Order of a rule of which nothing is said, as keepalived has it.
pub const RULE_PRIORITY: u32 = 16384;

/// An entry of routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A route.
    Route(Route),
    /// A rule.
    Rule(Rule),
}

impl Entry {
    /// Tells whether it is put back if somebody takes it away.
    pub fn is_tracked(&self) -> bool {
        match self {
            Self::Route(route) => !route.untracked,
            Self::Rule(rule) => !rule.untracked,
        }
    }

    /// Returns the interfaces that it names.
    pub fn interfaces(&self) -> Vec<&Arc<str>> {
        match self {
            Self::Route(route) => {
                route.hops.iter().filter_map(|hop| hop.interface.as_ref()).collect()
            }
            Self::Rule(rule) => rule.incoming.iter().chain(&rule.outgoing).collect(),
        }
    }

    /// Returns who made it, by the kernel's number.
    pub fn protocol(&self) -> u8 {
        match self {
            Self::Route(route) => route.protocol,
            Self::Rule(rule) => rule.protocol,
        }
    }

    /// Returns where it was asked for, if that is known.
    pub fn line(&self) -> Option<&str> {
        match self {
            Self::Route(route) => route.line.0.as_deref(),
            Self::Rule(rule) => rule.line.0.as_deref(),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => write!(to, "route {route}"),
            Self::Rule(rule) => write!(to, "rule {rule}"),
        }
    }
}

/// Where something was asked for, as `file:line`. It is no part of what is asked for: all are equal.
#[derive(Clone, Debug, Default)]
pub struct Line(pub Option<Arc<str>>);

impl PartialEq for Line {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Line {}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The first of them.
    pub address: IpAddr,
    /// Leading bits that count.
    pub bits: u8,
}

impl Network {
    /// Returns all addresses of a family.
    pub fn all(family: Family) -> Self {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { address, bits: 0 }
    }

    /// Returns the family of its addresses.
    pub fn family(self) -> Family {
        Family::of(self.address)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.address, self.bits)
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What becomes of packets.
    pub kind: RouteKind,
    /// Where it leads.
    pub destination: Network,
    /// The address that this host sends from.
    pub source: Option<IpAddr>,
    /// The table that it is in.
    pub table: u32,
    /// Order among routes to the same destination, the lowest first; the kernel's choice if `None`.
    pub metric: Option<u32>,
    /// Distance to the destination, by the kernel's number; 0 is anywhere. Of IPv4 only.
    pub scope: u8,
    /// Who made it, by the kernel's number.
    pub protocol: u8,
    /// The type of service that it is for; 0 is any.
    pub tos: u8,
    /// What connections begin with.
    pub metrics: BTreeMap<Metric, Bound>,
    /// The next hops; several share the traffic.
    pub hops: Vec<Hop>,
    /// It is not put back if somebody takes it away (`no_track`).
    pub untracked: bool,
    /// Where it was asked for.
    pub line: Line,
}

impl Route {
    /// Returns a route of the main table of which only the destination is said.
    pub fn to(destination: Network) -> Self {
        Self {
            kind: RouteKind::Unicast,
            destination,
            source: None,
            table: MAIN_TABLE,
            metric: None,
            scope: 0,
            protocol: PROTOCOL,
            tos: 0,
            metrics: BTreeMap::new(),
            hops: Vec::new(),
            untracked: false,
            line: Line::default(),
        }
    }
}

/// What becomes of packets by a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// They go on to a next hop.
    Unicast,
    /// They are dropped.
    Blackhole,
    /// They are answered: there is no way.
    Unreachable,
    /// They are answered: it is forbidden.
    Prohibit,
    /// The next table decides.
    Throw,
}

impl RouteKind {
    /// Those that have a word, with it.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("blackhole", Self::Blackhole),
        ("unreachable", Self::Unreachable),
        ("prohibit", Self::Prohibit),
        ("throw", Self::Throw),
    ];
}

/// A number that connections by a route begin with (RTAX_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Largest packet, in bytes.
    Mtu,
    /// Segment size that is told, in bytes.
    Advmss,
    /// Time to live.
    HopLimit,
    /// Largest window, in bytes.
    Window,
    /// Congestion window, in packets.
    Cwnd,
    /// Congestion window at first, in packets.
    InitCwnd,
    /// Receive window at first, in packets.
    InitRwnd,
    /// Slow-start threshold.
    Ssthresh,
    /// Reordering that is expected, in packets.
    Reordering,
    /// Acknowledge at once.
    QuickAck,
    /// TCP fast open without a cookie.
    FastOpenNoCookie,
}

impl Metric {
    /// All of them, with their words.
    pub const WORDS: [(&'static str, Self); 11] = [
        ("mtu", Self::Mtu),
        ("advmss", Self::Advmss),
        ("hoplimit", Self::HopLimit),
        ("window", Self::Window),
        ("cwnd", Self::Cwnd),
        ("initcwnd", Self::InitCwnd),
        ("initrwnd", Self::InitRwnd),
        ("ssthresh", Self::Ssthresh),
        ("reordering", Self::Reordering),
        ("quickack", Self::QuickAck),
        ("fastopen_no_cookie", Self::FastOpenNoCookie),
    ];
}

/// The value of a [`Metric`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The number.
    pub value: u32,
    /// Nothing learnt changes it (`lock`).
    pub locked: bool,
}

/// A next hop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// The neighbour; the destination itself if `None`.
    pub gateway: Option<IpAddr>,
    /// The interface to leave by; that of the neighbour's network if `None`.
    pub interface: Option<Arc<str>>,
    /// Share of the traffic, 1 to 256; 0 where it is the only one.
    pub weight: u16,
    /// The neighbour is taken to be on the link.
    pub onlink: bool,
}

impl fmt::Display for Route {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((word, _)) = RouteKind::WORDS.iter().find(|(_, kind)| *kind == self.kind) {
            write!(to, "{word} ")?;
        }
        write!(to, "{}", self.destination)?;
        if let [Hop { weight: 0, .. }] = self.hops.as_slice() {
            self.hops.iter().try_for_each(|hop| hop.fmt(to))?;
        }
        word(to, "src", self.source)?;
        word(to, "table", Some(self.table).filter(|table| *table != MAIN_TABLE))?;
        word(to, "metric", self.metric)?;
        word(to, "scope", Some(self.scope).filter(|scope| *scope != 0))?;
        word(to, "proto", Some(self.protocol).filter(|protocol| *protocol != PROTOCOL))?;
        word(to, "tos", Some(self.tos).filter(|tos| *tos != 0))?;
        for (name, metric) in Metric::WORDS {
            if let Some(Bound { value, locked }) = self.metrics.get(&metric) {
                write!(to, " {name}{} {value}", if *locked { " lock" } else { "" })?;
            }
        }
        flag(to, "no_track", self.untracked)?;
        for hop in self.hops.iter().filter(|hop| hop.weight > 0) {
            write!(to, " nexthop")?;
            hop.fmt(to)?;
        }
        Ok(())
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        word(to, "via", self.gateway)?;
        word(to, "dev", self.interface.as_ref())?;
        word(to, "weight", Some(self.weight).filter(|weight| *weight > 0))?;
        flag(to, "onlink", self.onlink)
    }
}

/// A rule: which packets look into which table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The family of packets that it is for.
    pub family: Family,
    /// It is for all packets but these.
    pub inverted: bool,
    /// Packets from here.
    pub from: Option<Network>,
    /// Packets to there.
    pub to: Option<Network>,
    /// Packets that came in by this interface.
    pub incoming: Option<Arc<str>>,
    /// Packets of sockets that are bound to this interface.
    pub outgoing: Option<Arc<str>>,
    /// Packets of this mark, and the bits of it that count.
    pub mark: Option<(u32, u32)>,
    /// Packets of this type of service; 0 is any.
    pub tos: u8,
    /// Packets of this protocol, by its number.
    pub ip_protocol: Option<u8>,
    /// Packets from these ports, the last included.
    pub source_ports: Option<(u16, u16)>,
    /// Packets to these ports, the last included.
    pub destination_ports: Option<(u16, u16)>,
    /// Packets of these users, the last included.
    pub users: Option<(u32, u32)>,
    /// Packets that came by the tunnel of this id.
    pub tunnel: Option<u64>,
    /// A route whose prefix is no longer than this does not count.
    pub suppressed_bits: Option<u32>,
    /// Order among rules, the lowest first.
    pub priority: u32,
    /// What becomes of the packets.
    pub action: Action,
    /// Who made it, by the kernel's number.
    pub protocol: u8,
    /// It is not put back if somebody takes it away (`no_track`).
    pub untracked: bool,
    /// Where it was asked for.
    pub line: Line,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look into this table.
    Table(u32),
    /// Look into the table of the packet's VRF.
    Vrf,
    /// Go on with the rule of this priority.
    Goto(u32),
    /// Nothing.
    Nop,
    /// Drop.
    Blackhole,
    /// Answer that there is no way.
    Unreachable,
    /// Answer that it is forbidden.
    Prohibit,
}

impl Action {
    /// Those that are one word, with it.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("l3mdev", Self::Vrf),
        ("nop", Self::Nop),
        ("blackhole", Self::Blackhole),
        ("unreachable", Self::Unreachable),
        ("prohibit", Self::Prohibit),
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", if self.family == Family::V4 { "inet" } else { "inet6" })?;
        flag(to, "not", self.inverted)?;
        word(to, "from", self.from)?;
        word(to, "to", self.to)?;
        word(to, "iif", self.incoming.as_ref())?;
        word(to, "oif", self.outgoing.as_ref())?;
        if let Some((mark, mask)) = self.mark {
            write!(to, " fwmark {mark:#x}/{mask:#x}")?;
        }
        word(to, "tos", Some(self.tos).filter(|tos| *tos != 0))?;
        word(to, "ipproto", self.ip_protocol)?;
        for (name, range) in [("sport", self.source_ports), ("dport", self.destination_ports)] {
            word(to, name, range.map(|(first, last)| format!("{first}-{last}")))?;
        }
        word(to, "uidrange", self.users.map(|(first, last)| format!("{first}-{last}")))?;
        word(to, "tun_id", self.tunnel)?;
        match self.action {
            Action::Table(table) => write!(to, " table {table}")?,
            Action::Goto(priority) => write!(to, " goto {priority}")?,
            other => {
                let found = Action::WORDS.iter().find(|(_, action)| *action == other);
                found.map_or(Ok(()), |(word, _)| write!(to, " {word}"))?;
            }
        }
        word(to, "suppress_prefixlength", self.suppressed_bits)?;
        write!(to, " priority {}", self.priority)?;
        word(to, "proto", Some(self.protocol).filter(|protocol| *protocol != PROTOCOL))?;
        flag(to, "no_track", self.untracked)
    }
}

fn word(to: &mut fmt::Formatter<'_>, name: &str, word: Option<impl fmt::Display>) -> fmt::Result {
    word.map_or(Ok(()), |word| write!(to, " {name} {word}"))
}

fn flag(to: &mut fmt::Formatter<'_>, name: &str, holds: bool) -> fmt::Result {
    if holds { write!(to, " {name}") } else { Ok(()) }
}
