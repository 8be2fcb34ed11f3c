//! What is configured: plain data, and what is refused of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

pub use rlvs_wire::vrrp::Version;
use rlvs_wire::vrrp::{ADDRESSES_MAX, INTERVAL_CS_MAX, OWNER, virtual_mac};

use super::receive;
use crate::model::Family;
use crate::routing::Entry;

/// The longest interval that version 2 can tell.
const INTERVAL_V2_MAX: Duration = Duration::from_secs(255);
/// The finest interval, and the unit of version 3.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// The largest weight either way: more could not change what a priority is.
const WEIGHT_MAX: i16 = 254;

/// Everything that one [`Router`](super::Router) does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Its virtual routers.
    pub instances: Vec<InstanceConfig>,
    /// Those of them that move together.
    pub groups: Vec<GroupConfig>,
    /// The scripts that instances or groups track.
    pub scripts: Vec<ScriptConfig>,
    /// What this host has whatever the state of its virtual routers.
    pub fixed: Fixed,
}

/// Addresses, routes and rules that are there from the start to the end (`static_ipaddress`,
/// `static_routes`, `static_rules`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fixed {
    /// The addresses; each has its interface.
    pub addresses: Vec<VirtualAddress>,
    /// Routes and rules, in the order in which they are added.
    pub routing: Vec<Arc<Entry>>,
}

/// One virtual router (`vrrp_instance`).
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceConfig {
    /// Name, unique among instances.
    pub name: Arc<str>,
    /// The interface that it speaks on (`interface`).
    pub interface: Arc<str>,
    /// Number of the virtual router on its network, 1 to 255 (`virtual_router_id`).
    pub vrid: u8,
    /// Version of the protocol.
    pub version: Version,
    /// Family of its packets and of `addresses`.
    pub family: Family,
    /// Priority before anything tracked, 1 to 255; 255 owns the addresses.
    pub priority: u8,
    /// Time between advertisements (`advert_int`).
    pub interval: Duration,
    /// Missed advertisements after which a master counts as gone (`down_timer_adverts`).
    pub down_adverts: u32,
    /// What to do about a master of lower priority.
    pub preempt: Preempt,
    /// The addresses that it advertises and holds (`virtual_ipaddress`).
    pub addresses: Vec<VirtualAddress>,
    /// The addresses of any family that it holds besides (`virtual_ipaddress_excluded`).
    pub excluded: Vec<VirtualAddress>,
    /// The routes and rules that the master has, in the order in which they are added
    /// (`virtual_routes`, `virtual_rules`).
    pub routing: Vec<Arc<Entry>>,
    /// To whom it speaks.
    pub delivery: Delivery,
    /// The address to speak from, if not the interface's own.
    pub source: Option<IpAddr>,
    /// The password of version 2, filled up with zeros (`auth_pass`).
    pub password: Option<[u8; 8]>,
    /// The group of its advertisements, if not that of all VRRP routers (`mcast_dst_ip`).
    pub group: Option<IpAddr>,
    /// The interface that has the virtual router's own hardware address (`use_vmac`).
    pub virtual_mac: Option<Arc<str>>,
    /// That address, if not the one that the standard gives it.
    pub hardware: Option<[u8; 6]>,
    /// Whether its own interface may be down (`dont_track_primary`).
    pub ignore_link: bool,
    /// Whether it is in fault while the interface does not have `source` (`track_src_ip`).
    pub track_source: bool,
    /// Whether sums of version 3 over IPv4 are sent without pseudo header (`v3_checksum_as_v2`).
    pub bare_sum: bool,
    /// How neighbours are told of the addresses.
    pub announce: Announce,
    /// What it depends on besides its own interface.
    pub track: Vec<Track>,
    /// Whether a master answers lower priorities with an advertisement (`lower_prio_no_advert`).
    pub answer_lower: bool,
    /// Whether a master that yields advertises once more (`higher_prio_send_advert`).
    pub answer_higher: bool,
}

impl InstanceConfig {
    /// Returns an instance with keepalived's defaults and no address.
    pub fn new(name: &str, interface: &str, vrid: u8) -> Self {
        Self {
            name: name.into(),
            interface: interface.into(),
            vrid,
            version: Version::V2,
            family: Family::V4,
            priority: 100,
            interval: Duration::from_secs(1),
            down_adverts: 3,
            preempt: Preempt::After(Duration::ZERO),
            addresses: Vec::new(),
            excluded: Vec::new(),
            routing: Vec::new(),
            delivery: Delivery::Multicast,
            source: None,
            password: None,
            group: None,
            virtual_mac: None,
            hardware: None,
            ignore_link: false,
            track_source: false,
            bare_sum: false,
            announce: Announce::default(),
            track: Vec::new(),
            answer_lower: true,
            answer_higher: false,
        }
    }

    /// Returns all addresses that it holds, the advertised ones first.
    pub fn held(&self) -> impl Iterator<Item = &VirtualAddress> + Clone {
        self.addresses.iter().chain(&self.excluded)
    }

    /// Returns the interface that its packets leave by, and its addresses are on by default.
    pub fn outward(&self) -> &Arc<str> {
        self.virtual_mac.as_ref().unwrap_or(&self.interface)
    }

    /// Returns the virtual router's own hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.hardware.unwrap_or(virtual_mac(self.vrid, self.family == Family::V6))
    }

    /// Returns the group that its advertisements go to, unless it has peers.
    pub fn group(&self) -> IpAddr {
        self.group.unwrap_or(receive::group(self.family))
    }

    /// Tells whether it owns its addresses: then nothing lowers its priority.
    pub fn is_owner(&self) -> bool {
        self.priority == OWNER
    }

    /// Returns its interval as version 3 counts it.
    pub(super) fn interval_cs(&self) -> u16 {
        let units = self.interval.as_millis() / INTERVAL_MIN.as_millis();
        u16::try_from(units).unwrap_or(u16::MAX)
    }

    /// Tells whether `other` is the same virtual router, so that its state carries over.
    pub(super) fn continues(&self, other: &Self) -> bool {
        let identity = |one: &Self| {
            let unicast = matches!(one.delivery, Delivery::Unicast { .. });
            let interfaces = (one.interface.clone(), one.virtual_mac.clone(), one.hardware);
            (one.name.clone(), interfaces, one.vrid, one.version, one.family, unicast, one.group)
        };
        identity(self) == identity(other)
    }
}

/// An address that moves with the master.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that name its network.
    pub bits: u8,
    /// The interface that it goes to, if not the instance's (`dev`).
    pub interface: Option<Arc<str>>,
    /// What else the kernel is told about it.
    pub attributes: Attributes,
}

impl VirtualAddress {
    /// Returns an address of which nothing else is said.
    pub fn new(address: IpAddr, bits: u8) -> Self {
        Self { address, bits, interface: None, attributes: Attributes::default() }
    }
}

/// What the kernel is told about an address besides its network.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes {
    /// Name of an IPv4 address.
    pub label: Option<Arc<str>>,
    /// Where it is valid, by the kernel's number; 0 is everywhere.
    pub scope: u8,
    /// Broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// Address of the other end, and the bits of its network.
    pub peer: Option<(IpAddr, u8)>,
    /// Home address of mobile IPv6.
    pub home: bool,
    /// Duplicates of an IPv6 address are looked for.
    pub detect_duplicates: bool,
    /// Temporary addresses are made from it.
    pub manage_temporary: bool,
    /// No route to its network.
    pub no_prefix_route: bool,
    /// The kernel joins the group that it is.
    pub autojoin: bool,
    /// Seconds for which it is preferred; the kernel's choice if `None`.
    pub preferred_s: Option<u32>,
    /// It is not put back if somebody takes it away (`no_track`).
    pub untracked: bool,
}

/// What a backup does about a master of lower priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// Lets it be (`nopreempt`).
    Never,
    /// Takes over, this long after it first heard it (`preempt_delay`).
    After(Duration),
}

/// To whom advertisements go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To the group of all VRRP routers on the network.
    Multicast,
    /// To each of these (`unicast_peer`).
    Unicast {
        /// The others.
        peers: Vec<Peer>,
        /// Time to live (`unicast_ttl`).
        hops: u8,
        /// Whether nobody else is listened to (`check_unicast_src`).
        only_peers: bool,
    },
}

/// Another router that is spoken to by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The least and the most time to live that its packets may have left.
    pub hops: (u8, u8),
}

/// How neighbours are told of the addresses: gratuitous ARP, unsolicited neighbour advertisements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Packets for each address at once (`garp_master_repeat`).
    pub repeat: u16,
    /// Time to a second burst; zero for none (`garp_master_delay`).
    pub delay: Duration,
    /// Time between further ones while master; zero for none (`garp_master_refresh`).
    pub refresh: Duration,
    /// Packets for each address at a refresh (`garp_master_refresh_repeat`).
    pub refresh_repeat: u16,
    /// Packets for each address when a lower priority was heard (`garp_lower_prio_repeat`).
    pub lower_repeat: u16,
    /// Least time between two gratuitous ARPs (`garp_interval`).
    pub arp_pace: Duration,
    /// Least time between two neighbour advertisements (`gna_interval`).
    pub neighbour_pace: Duration,
}

impl Default for Announce {
    fn default() -> Self {
        Self {
            repeat: 5,
            delay: Duration::from_secs(5),
            refresh: Duration::ZERO,
            refresh_repeat: 1,
            lower_repeat: 5,
            arp_pace: Duration::ZERO,
            neighbour_pace: Duration::ZERO,
        }
    }
}

/// Something that an instance or a group depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    /// What it is.
    pub what: Tracked,
    /// 0: failing is a fault. Above: added while it is well. Below: added while it fails.
    pub weight: i16,
    /// The weight has the other sign, and failing at weight 0 is being well (`reverse`).
    pub reverse: bool,
}

/// Kinds of what is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// An interface, by name (`track_interface`).
    Interface(Arc<str>),
    /// A script, by name (`track_script`).
    Script(Arc<str>),
    /// A number from outside, by name, times the weight (`track_file`).
    Value(Arc<str>),
    /// Whether as many processes run as shall, by name (`track_process`).
    Process(Arc<str>),
}

/// A script whose results come in as [`Input::Script`](super::Input::Script) (`vrrp_script`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptConfig {
    /// Name, unique among scripts.
    pub name: Arc<str>,
    /// Successes in a row that make it well.
    pub rise: u32,
    /// Failures in a row that make it fail.
    pub fall: u32,
    /// Whether it fails until it has risen (`init_fail`).
    pub init_fail: bool,
}

/// Instances that are master together or not at all (`vrrp_sync_group`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Name, unique among groups.
    pub name: Arc<str>,
    /// Names of its instances.
    pub members: Vec<Arc<str>>,
    /// What all of them depend on.
    pub track: Vec<Track>,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Two of one name.
    #[error("there are two of the name {0}")]
    DoubleName(Arc<str>),
    /// Two virtual routers that would take each other's packets.
    #[error("{0}: virtual_router_id {1} is taken on {2} by another instance of its family")]
    DoubleVrid(Arc<str>, u8, Arc<str>),
    /// A number outside its range.
    #[error("{0}: {1} is out of range")]
    Range(Arc<str>, &'static str),
    /// Version 2 with IPv6.
    #[error("{0}: version 2 has no IPv6")]
    Family(Arc<str>),
    /// An address of the wrong family, or with too long a prefix.
    #[error("{0}: the address {1} does not fit")]
    Address(Arc<str>, IpAddr),
    /// No address to hold.
    #[error("{0}: no virtual_ipaddress")]
    NoAddress(Arc<str>),
    /// Unicast to nobody.
    #[error("{0}: unicast_peer names nobody")]
    NoPeer(Arc<str>),
    /// A password in version 3.
    #[error("{0}: version 3 has no authentication")]
    Authentication(Arc<str>),
    /// A name that nothing has.
    #[error("{0}: there is no {1}")]
    Unknown(Arc<str>, Arc<str>),
    /// An instance in two groups.
    #[error("{0} is in two groups")]
    TwoGroups(Arc<str>),
}

impl Config {
    /// Returns everything that is wrong; a router takes only a configuration without.
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut found = Vec::new();
        doubles(self.instances.iter().map(|one| &one.name), &mut found);
        doubles(self.groups.iter().map(|one| &one.name), &mut found);
        doubles(self.scripts.iter().map(|one| &one.name), &mut found);
        let mut routers = BTreeSet::new();
        for instance in &self.instances {
            let key = (instance.interface.clone(), instance.family, instance.vrid);
            if !routers.insert(key) && instance.delivery == Delivery::Multicast {
                let (name, interface) = (instance.name.clone(), instance.interface.clone());
                found.push(Refusal::DoubleVrid(name, instance.vrid, interface));
            }
            instance.refusals(&mut found);
            self.track_refusals(&instance.name, &instance.track, &mut found);
        }
        let mut grouped = BTreeSet::new();
        for group in &self.groups {
            self.track_refusals(&group.name, &group.track, &mut found);
            for member in &group.members {
                if !self.instances.iter().any(|one| one.name == *member) {
                    found.push(Refusal::Unknown(group.name.clone(), member.clone()));
                }
                if !grouped.insert(member) {
                    found.push(Refusal::TwoGroups(member.clone()));
                }
            }
        }
        found
    }

    fn track_refusals(&self, who: &Arc<str>, tracks: &[Track], found: &mut Vec<Refusal>) {
        for track in tracks {
            if !(-WEIGHT_MAX..=WEIGHT_MAX).contains(&track.weight) {
                found.push(Refusal::Range(who.clone(), "weight"));
            }
            let Tracked::Script(name) = &track.what else { continue };
            if !self.scripts.iter().any(|script| script.name == *name) {
                found.push(Refusal::Unknown(who.clone(), name.clone()));
            }
        }
    }
}

fn doubles<'a>(names: impl Iterator<Item = &'a Arc<str>>, found: &mut Vec<Refusal>) {
    let mut seen = BTreeSet::new();
    found.extend(names.filter(|name| !seen.insert(*name)).cloned().map(Refusal::DoubleName));
}

impl InstanceConfig {
    fn refusals(&self, found: &mut Vec<Refusal>) {
        let mut refuse = |wrong: bool, refusal: Refusal| {
            if wrong {
                found.push(refusal);
            }
        };
        let name = || self.name.clone();
        let v2 = self.version == Version::V2;
        refuse(self.vrid == 0, Refusal::Range(name(), "virtual_router_id"));
        refuse(self.priority == 0, Refusal::Range(name(), "priority"));
        refuse(!self.interval_fits(), Refusal::Range(name(), "advert_int"));
        let adverts = 1..=100;
        refuse(!adverts.contains(&self.down_adverts), Refusal::Range(name(), "down_timer_adverts"));
        refuse(v2 && self.family == Family::V6, Refusal::Family(name()));
        refuse(!v2 && self.password.is_some(), Refusal::Authentication(name()));
        refuse(self.held().next().is_none(), Refusal::NoAddress(name()));
        refuse(self.addresses.len() > ADDRESSES_MAX, Refusal::Range(name(), "virtual_ipaddress"));
        for address in &self.addresses {
            let foreign = Family::of(address.address) != self.family;
            refuse(foreign, Refusal::Address(name(), address.address));
        }
        for VirtualAddress { address, bits, .. } in self.held() {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            refuse(*bits > longest, Refusal::Address(name(), *address));
        }
        let group = self.group;
        if let Some(group) = group {
            let fits = Family::of(group) == self.family && group.is_multicast();
            refuse(!fits, Refusal::Address(name(), group));
        }
        for address in self.source.iter().chain(self.peers().map(|peer| &peer.address)) {
            let foreign = Family::of(*address) != self.family;
            refuse(foreign, Refusal::Address(name(), *address));
        }
        let unicast = matches!(self.delivery, Delivery::Unicast { .. });
        refuse(unicast && self.peers().next().is_none(), Refusal::NoPeer(name()));
    }

    /// Returns the peers, none with multicast.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        let peers = match &self.delivery {
            Delivery::Multicast => [].as_slice(),
            Delivery::Unicast { peers, .. } => peers,
        };
        peers.iter()
    }

    fn interval_fits(&self) -> bool {
        let (unit, longest) = match self.version {
            Version::V2 => (Duration::from_secs(1), INTERVAL_V2_MAX),
            Version::V3 => (INTERVAL_MIN, INTERVAL_MIN * u32::from(INTERVAL_CS_MAX)),
        };
        let whole = self.interval.as_nanos().is_multiple_of(unit.as_nanos());
        whole && self.interval >= unit && self.interval <= longest
    }
}
