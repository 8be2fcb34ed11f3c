//! What goes into a router and what comes out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::config::{Config, Refusal, VirtualAddress};
use super::receive::Rejection;
use crate::routing::Entry;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A packet of protocol 112 came in.
    Packet(Received),
    /// These are all the interfaces, by name; sent at the start and whenever one changes.
    Links(BTreeMap<Arc<str>, LinkState>),
    /// Somebody took an address away.
    AddressRemoved {
        /// The interface that it was on.
        interface: Arc<str>,
        /// The address.
        address: IpAddr,
    },
    /// Somebody may have taken a route or a rule away.
    RoutingChanged,
    /// A script has ended.
    Script {
        /// Its name.
        name: Arc<str>,
        /// Whether it was content.
        good: bool,
    },
    /// A tracked number is this.
    Value {
        /// Its name.
        name: Arc<str>,
        /// The number.
        value: i32,
    },
    /// As many tracked processes run as shall, or not.
    Process {
        /// Their name.
        name: Arc<str>,
        /// Whether it is so.
        good: bool,
    },
    /// An earlier process ended without order while an instance was master, and its addresses are
    /// all there; sent before the first [`Input::Links`].
    Resume {
        /// The instance.
        name: Arc<str>,
        /// How long ago it last advertised.
        silent: Duration,
    },
    /// Answer to [`Output::ReadFirst`]: all packets that had come in were handed over.
    AllRead,
    /// Another configuration is wanted.
    Reload(Config),
    /// An orderly end is wanted.
    Stop,
}

/// A packet as it came in, without its IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The interface that it came in by.
    pub interface: Arc<str>,
    /// Who sent it.
    pub source: IpAddr,
    /// Where it was sent to.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub hops: u8,
    /// What followed the IP header.
    pub payload: Vec<u8>,
}

/// An interface as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// Its hardware address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<IpAddr>,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send an IP packet, header included.
    SendAdvert {
        /// The interface to send it by.
        interface: Arc<str>,
        /// Its source address.
        source: IpAddr,
        /// Where it goes.
        destination: IpAddr,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Send an Ethernet frame that tells neighbours where an address is.
    SendFrame {
        /// The interface to send it by.
        interface: Arc<str>,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Give an interface an address; that it has it is no error.
    AddAddress {
        /// The interface.
        interface: Arc<str>,
        /// The address.
        address: VirtualAddress,
    },
    /// Take an address from an interface; that it is not there is no error.
    RemoveAddress {
        /// The interface.
        interface: Arc<str>,
        /// The address.
        address: VirtualAddress,
    },
    /// Add a route or a rule; that it is there is no error.
    AddRouting {
        /// The instance whose it is; empty if it is there whatever their state.
        about: Arc<str>,
        /// What is added.
        entry: Arc<Entry>,
        /// It was added before: if it is missing, somebody has taken it away.
        again: bool,
    },
    /// Remove a route or a rule; that it is not there is no error.
    RemoveRouting {
        /// The instance whose it was; empty if it was there whatever their state.
        about: Arc<str>,
        /// What is removed.
        entry: Arc<Entry>,
    },
    /// Too much time has passed unnoticed: hand over every packet that has come in, then
    /// [`Input::AllRead`]. Nothing is done before.
    ReadFirst,
    /// The state of an instance or a group is now this: run scripts, tell others.
    Notify {
        /// Whose.
        who: Who,
        /// The state.
        state: State,
        /// The priority of an instance; 0 of a group.
        priority: u8,
    },
    /// Something that an operator may want to read.
    Log {
        /// The instance or group that it is about; empty for the router itself.
        about: Arc<str>,
        /// What it is.
        event: Event,
    },
}

/// Whose state changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// An instance, by name.
    Instance(Arc<str>),
    /// A group, by name.
    Group(Arc<str>),
}

/// States of a virtual router (RFC 9568 §6.4), with those that keepalived adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waiting for the first results of what it depends on.
    Initialize,
    /// Listening.
    Backup,
    /// Holding the addresses.
    Master,
    /// Something that it depends on fails.
    Fault,
    /// Ended.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Self::Initialize => "INIT",
            Self::Backup => "BACKUP",
            Self::Master => "MASTER",
            Self::Fault => "FAULT",
            Self::Stopped => "STOP",
        })
    }
}

/// Why a state changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It starts.
    Start,
    /// No advertisement for too long.
    Silence,
    /// Another has a higher priority, or an equal one and a higher address.
    Outranked(IpAddr),
    /// It was not running for so long that another has taken over.
    Overslept(IpAddr),
    /// It owns the addresses.
    Owner,
    /// The others of its group.
    Group,
    /// An interface is down or gone.
    LinkDown(Arc<str>),
    /// The interface has no address to speak from.
    NoSource,
    /// A script fails.
    Script(Arc<str>),
    /// A tracked number is not 0.
    Value(Arc<str>),
    /// Tracked processes do not run, or too many of them.
    Process(Arc<str>),
    /// What failed is well again.
    Recovered,
    /// An earlier process was master until just now, so nobody else can be.
    Resumed,
    /// An orderly end.
    Stop,
    /// It is not configured any more.
    Removed,
}

impl fmt::Display for Why {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => to.write_str("starting"),
            Self::Silence => to.write_str("no advertisement for too long"),
            Self::Outranked(by) => write!(to, "{by} has the higher priority"),
            Self::Overslept(by) => write!(to, "{by} took over while this process did not run"),
            Self::Owner => to.write_str("it owns the addresses"),
            Self::Group => to.write_str("the group"),
            Self::LinkDown(name) => write!(to, "interface {name} is down"),
            Self::NoSource => to.write_str("the interface has no address to speak from"),
            Self::Script(name) => write!(to, "script {name} fails"),
            Self::Value(name) => write!(to, "{name} is not 0"),
            Self::Process(name) => write!(to, "process {name} does not run as it shall"),
            Self::Resumed => to.write_str("going on where an earlier process was cut off"),
            Self::Recovered => to.write_str("all is well again"),
            Self::Stop => to.write_str("stopping"),
            Self::Removed => to.write_str("not configured any more"),
        }
    }
}

/// Something that an operator may want to read.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The state changed.
    Transition {
        /// What it was.
        from: State,
        /// What it is.
        to: State,
        /// Why.
        why: Why,
    },
    /// The effective priority changed.
    Priority {
        /// What it was.
        from: u8,
        /// What it is.
        to: u8,
    },
    /// A backup adopts its master's interval (version 3).
    IntervalLearned {
        /// The master's interval.
        interval: Duration,
        /// The master.
        from: IpAddr,
    },
    /// Another announces other addresses; said once for each list.
    AddressesDiffer {
        /// Who.
        from: IpAddr,
    },
    /// Packets of a kind are refused; said at the 1st, 2nd, 4th, 8th…
    Rejected {
        /// Why.
        kind: Rejection,
        /// Who sent the last one.
        from: IpAddr,
        /// How many so far.
        count: u64,
    },
    /// A master of lower priority speaks.
    LowerPriority {
        /// Who.
        from: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// The master says that it goes.
    Resigned {
        /// Who.
        from: IpAddr,
    },
    /// Another claims to own the addresses too.
    TwoOwners {
        /// Who.
        from: IpAddr,
    },
    /// An address that somebody took away was put back.
    Restored {
        /// The address.
        address: IpAddr,
    },
    /// A route or a rule that somebody took away was put back.
    RoutingRestored {
        /// What it is.
        entry: Arc<Entry>,
    },
    /// A new configuration is refused; the old one goes on.
    ReloadRefused(Vec<Refusal>),
}

impl fmt::Display for Event {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transition { from, to: next, why } => write!(to, "{from} to {next}: {why}"),
            Self::Priority { from, to: next } => write!(to, "priority {from} to {next}"),
            Self::IntervalLearned { interval, from } => {
                write!(to, "advertisement interval {interval:?}, as {from} has it")
            }
            Self::AddressesDiffer { from } => write!(to, "{from} advertises other addresses"),
            Self::Rejected { kind, from, count } => {
                write!(to, "refused from {from}: {kind} ({count} so far)")
            }
            Self::LowerPriority { from, priority } => {
                write!(to, "{from} advertises the lower priority {priority}")
            }
            Self::Resigned { from } => write!(to, "{from} resigns"),
            Self::TwoOwners { from } => write!(to, "{from} claims to own the addresses too"),
            Self::Restored { address } => write!(to, "{address} was taken away; it is back"),
            Self::RoutingRestored { entry } => write!(to, "{entry} was taken away; it is back"),
            Self::ReloadRefused(refusals) => {
                to.write_str("the new configuration is refused")?;
                refusals.iter().try_for_each(|refusal| write!(to, "; {refusal}"))
            }
        }
    }
}
