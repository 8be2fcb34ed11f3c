//! Gathers the facts: of the kernel, of the table, of the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rlvs_control::model::{DestinationId, Protocol, ServiceEntry, ServiceId, Traffic};
use rlvs_control::table::Table;
use rlvs_datapath::abi::settings_flag;
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::attach::{self, Mode, Placed};
use rlvs_linux::dataplane::pins;
use rlvs_linux::dataplane::table::BpfTable;
use rlvs_linux::dataplane::upgrade;
use rlvs_linux::features;
use rlvs_linux::probe::{self, ChecksumWatch};
use rlvs_linux::route::{Link, Mac, Rtnetlink};
use rlvs_linux::sysctl;

use super::facts::{Claim, Facts, Interface, Server, Service, Way};
use super::filters;
use crate::keepalived::daemon::state::{self, RouterState};

/// How long reasons and rates are watched, and answers to ARP waited for.
const WATCH: Duration = Duration::from_secs(1);
/// How long a server may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Servers that are connected to, and how many at once.
const SERVERS_MAX: usize = 1024;
const AT_ONCE: usize = 64;

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What the kernel and the table say at once.
    Quick,
    /// Also what packets, time and other programs tell.
    Whole,
}

/// Gathers the facts of the calling thread's network namespace; `None` if nothing is attached.
///
/// # Errors
/// A missing capability.
pub fn gather(depth: Depth) -> Result<Option<Facts>> {
    attach::collect()?;
    let Some(folder) = pins::open()? else { return Ok(None) };
    let placed = attach::placed(&folder)?;
    let gone = attach::attached(&folder)?.into_iter().map(|one| one.name);
    let gone = gone.filter(|name| name.ends_with("(gone)")).collect();
    let mut facts = Facts {
        outdated: !upgrade::is_current(&folder)?,
        interfaces: placed.iter().map(interface).collect(),
        gone,
        forwarding: ["ipv4", "ipv6"].map(|family| {
            let value = sysctl::read(&format!("net/{family}/conf/lo/forwarding"));
            value.ok().map(|value| value != "0")
        }),
        ..of_kernel(depth)
    };
    let Some(mut before) = Reading::take(depth)? else { return Ok(None) };
    facts.services =
        before.services.iter().map(|entry| service(entry, &before.overheads)).collect();
    facts.elsewhere = elsewhere();
    facts.any = before.any;
    facts.mss = before.mss;
    facts.drained = std::mem::take(&mut before.drained);
    facts.fill = before.table_fill();
    if depth == Depth::Whole {
        // All take about the same time. A thread that panicked has said so.
        let (connected, answers, change) = std::thread::scope(|scope| {
            let connected = scope.spawn(|| connect_all(&facts, &placed));
            let answers = scope.spawn(|| ask_for_vips(&facts, &placed));
            let change = watch(&before);
            let connected = connected.join().unwrap_or_else(|_| Ok(Connected::default()));
            (connected, answers.join().unwrap_or_else(|_| Ok(Vec::new())), change)
        });
        connected?.put(&mut facts);
        note_claims(&mut facts, &placed, answers?)?;
        change?.put(&mut facts);
        facts.miscounts = BpfTable::open()?.map(|table| table.audit()).unwrap_or_default();
        let vips = facts.services.iter().filter_map(|service| service.vip).collect();
        facts.rules = filters::rules(&vips);
    }
    find_ways(&mut facts)?;
    Ok(Some(facts))
}

/// Gathers the facts of the kernel, which are known where nothing is attached, too.
pub(super) fn of_kernel(depth: Depth) -> Facts {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Facts {
        kernel: release.trim_end().to_owned(),
        jit: sysctl::read("net/core/bpf_jit_enable").ok().map(|value| value != "0"),
        features: if depth == Depth::Whole { features::ask() } else { features::Answer::default() },
        ..Facts::default()
    }
}

/// Asks the daemon which addresses another director has.
fn elsewhere() -> BTreeSet<IpAddr> {
    let instances = state::ask().map(|daemon| daemon.instances).unwrap_or_default();
    instances
        .into_iter()
        .filter(|one| one.state != RouterState::Master)
        .flat_map(|one| one.addresses.into_iter().chain(one.excluded_addresses))
        .map(|one| one.address)
        .collect()
}

fn interface(placed: &Placed) -> Interface {
    let Placed { link, mode, serves, foreign_xdp } = placed;
    let filter = |name: &str| -> u32 {
        let value = sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter"));
        value.ok().and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    Interface {
        name: link.name.clone(),
        kind: link.kind.clone(),
        mtu: link.mtu_bytes,
        mode: *mode,
        why: mode.map_or("", |mode| attach::why(link, mode)),
        serves: *serves,
        foreign_xdp: *foreign_xdp,
        // As the kernel's IN_DEV_RPFILTER().
        rp_filter: filter("all").max(filter(&link.name)),
        unfinished: BTreeSet::new(),
    }
}

/// What the table says at one instant.
struct Reading {
    services: Vec<ServiceEntry>,
    rates: BTreeMap<(ServiceId, DestinationId), Traffic>,
    overheads: BTreeMap<(ServiceId, DestinationId), u16>,
    drained: Vec<rlvs_control::model::Drained>,
    any: bool,
    mss: u32,
    reasons: Vec<(Reason, u64)>,
    swept: (u64, u64),
    fill: Vec<rlvs_linux::dataplane::table::Fill>,
}

impl Reading {
    fn take(depth: Depth) -> Result<Option<Self>> {
        let Some(mut table) = BpfTable::open()? else { return Ok(None) };
        let services = table.services()?;
        let mut rates = BTreeMap::new();
        for entry in table.rates(None)? {
            let of = |to: &rlvs_control::model::DestinationEntry| {
                ((entry.service.id, to.destination.id), to.traffic)
            };
            rates.extend(entry.destinations.iter().map(of));
        }
        let ids = rates.keys().map(|&(service, id)| ((service, id), table.overhead(service, id)));
        let overheads = ids.collect();
        let drained = table.drained()?;
        let settings = table.maps().settings();
        let cursor = table.maps().sweep()?;
        Ok(Some(Self {
            services,
            rates,
            overheads,
            drained,
            any: settings.flags & settings_flag::ANY != 0,
            mss: settings.mss,
            reasons: Reason::ALL.map(|one| (one, table.maps().reason(one as u32))).to_vec(),
            swept: (cursor.word.get(), cursor.passes.get()),
            fill: if depth == Depth::Whole { table.fill() } else { Vec::new() },
        }))
    }

    fn table_fill(&mut self) -> Vec<rlvs_linux::dataplane::table::Fill> {
        std::mem::take(&mut self.fill)
    }
}

fn service(entry: &ServiceEntry, overheads: &BTreeMap<(ServiceId, DestinationId), u16>) -> Service {
    let id = entry.service.id;
    let server = |to: &rlvs_control::model::DestinationEntry| Server {
        entry: *to,
        rates: Traffic::default(),
        way: Way::None,
        overhead: overheads.get(&(id, to.destination.id)).copied().unwrap_or(0),
        connected: None,
    };
    Service {
        id,
        vip: match id {
            ServiceId::Address { address, .. } => Some(address),
            ServiceId::Mark { .. } => None,
        },
        local: false,
        claims: Vec::new(),
        servers: entry.destinations.iter().map(server).collect(),
    }
}

/// What has changed in a while.
struct Change {
    watched: Duration,
    growth: Vec<(Reason, u64)>,
    sweeps: bool,
    rates: BTreeMap<(ServiceId, DestinationId), Traffic>,
}

/// Waits, and returns what has changed.
fn watch(before: &Reading) -> Result<Change> {
    let begun = Instant::now();
    let then = Reading::take(Depth::Quick)?.context("the table was removed meanwhile")?.reasons;
    while begun.elapsed() < WATCH {
        std::thread::park_timeout(WATCH.saturating_sub(begun.elapsed()));
    }
    let after = Reading::take(Depth::Quick)?.context("the table was removed meanwhile")?;
    let grown = after.reasons.iter().zip(then);
    Ok(Change {
        watched: begun.elapsed(),
        growth: grown.map(|(now, then)| (now.0, now.1.saturating_sub(then.1))).collect(),
        sweeps: after.swept != before.swept,
        rates: after.rates,
    })
}

impl Change {
    fn put(self, facts: &mut Facts) {
        facts.watched = self.watched;
        facts.growth = self.growth;
        facts.sweeps = Some(self.sweeps);
        for service in &mut facts.services {
            for server in &mut service.servers {
                let key = (service.id, server.entry.destination.id);
                server.rates = self.rates.get(&key).copied().unwrap_or_default();
            }
        }
    }
}

/// What came of connecting to servers.
#[derive(Default)]
struct Connected {
    outcomes: BTreeMap<SocketAddr, Result<(), String>>,
    /// By interface, whose packets came in with unfinished checksums.
    unfinished: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Connected {
    fn put(mut self, facts: &mut Facts) {
        for service in &mut facts.services {
            for server in &mut service.servers {
                let id = server.entry.destination.id;
                server.connected =
                    self.outcomes.get(&SocketAddr::new(id.address, id.port)).cloned();
            }
        }
        for one in &mut facts.interfaces {
            one.unfinished = self.unfinished.remove(&one.name).unwrap_or_default();
        }
    }
}

/// Connects to every server that should take connections, and listens how their answers come in.
fn connect_all(facts: &Facts, placed: &[Placed]) -> Result<Connected> {
    let is_xdp = |one: &&Placed| matches!(one.mode, Some(Mode::Native | Mode::Generic));
    let mut watches = Vec::new();
    for one in placed.iter().filter(is_xdp) {
        let watch = ChecksumWatch::begin(one.link.index)
            .with_context(|| format!("listening on {}", one.link.name))?;
        watches.push((one.link.name.clone(), watch));
    }
    let ends: Vec<SocketAddr> = ends(facts).into_iter().collect();
    let connect = |end: &SocketAddr| match TcpStream::connect_timeout(end, CONNECT_MAX) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    let mut outcomes = BTreeMap::new();
    for some in ends.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let asked = some.iter().map(|end| (*end, scope.spawn(move || connect(end))));
            let asked: Vec<_> = asked.collect();
            for (end, thread) in asked {
                // A thread that panicked has said so.
                outcomes.extend(thread.join().ok().map(|outcome| (end, outcome)));
            }
        });
    }
    let unfinished = watches.into_iter().map(|(name, watch)| (name, watch.end())).collect();
    Ok(Connected { outcomes, unfinished })
}

/// Returns the TCP servers that should take connections.
fn ends(facts: &Facts) -> BTreeSet<SocketAddr> {
    let tcp = facts
        .services
        .iter()
        .filter(|one| matches!(one.id, ServiceId::Address { protocol: Protocol::Tcp, .. }));
    tcp.flat_map(|service| &service.servers)
        .map(|server| &server.entry.destination)
        .filter(|to| to.weight > 0 && to.id.port != 0)
        .map(|to| SocketAddr::new(to.id.address, to.id.port))
        .take(SERVERS_MAX)
        .collect()
}

/// An answer by ARP: the interface that it came by, the address, who has it.
type Answer = (String, Ipv4Addr, Mac);

/// Asks on every attached interface who has the virtual addresses of IPv4. (A host with one of IPv6 on
/// its loopback device does not answer for it.)
fn ask_for_vips(facts: &Facts, placed: &[Placed]) -> Result<Vec<Answer>> {
    let vip = |service: &Service| match service.vip {
        Some(IpAddr::V4(vip)) => Some(vip),
        _ => None,
    };
    let vips: BTreeSet<Ipv4Addr> = facts.services.iter().filter_map(vip).collect();
    if vips.is_empty() {
        return Ok(Vec::new());
    }
    let asked = placed.iter().filter(|one| one.mode.is_some() && one.link.up);
    let asked = asked.filter_map(|one| Some((&one.link, one.link.mac?)));
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        let vips = &vips;
        let ask = |(link, mac): (&'_ Link, Mac)| {
            let index = link.index;
            (link.name.clone(), scope.spawn(move || probe::who_has(index, mac, vips, WATCH)))
        };
        let threads: Vec<_> = asked.map(ask).collect();
        for (name, thread) in threads {
            // A thread that panicked has said so.
            let answer = thread.join().unwrap_or_else(|_| Ok(BTreeSet::new()));
            let answer = answer.with_context(|| format!("asking by ARP on {name}"))?;
            answers.extend(answer.into_iter().map(|(address, mac)| (name.clone(), address, mac)));
        }
        Ok(answers)
    })
}

/// Notes who else has the virtual addresses.
fn note_claims(facts: &mut Facts, placed: &[Placed], answers: Vec<Answer>) -> Result<()> {
    let mut servers = BTreeMap::new();
    let mut rtnetlink = Rtnetlink::open()?;
    for server in facts.services.iter().flat_map(|service| &service.servers) {
        let address = server.entry.destination.id.address;
        for one in placed {
            let entry = rtnetlink.neighbour(one.link.index, address).ok().flatten();
            servers.extend(entry.and_then(|entry| entry.mac).map(|mac| (mac, address)));
        }
    }
    let own: BTreeSet<Mac> = placed.iter().filter_map(|one| one.link.mac).collect();
    for (interface, address, mac) in answers.into_iter().filter(|answer| !own.contains(&answer.2)) {
        let claim = Claim { mac, interface, server: servers.get(&mac).copied() };
        let concerned = facts.services.iter_mut();
        for service in concerned.filter(|one| one.vip == Some(address.into())) {
            service.claims.push(claim.clone());
        }
    }
    Ok(())
}

/// Asks the kernel for the ways to virtual addresses and servers.
fn find_ways(facts: &mut Facts) -> Result<()> {
    let mut rtnetlink = Rtnetlink::open()?;
    let links: BTreeMap<u32, Link> =
        rtnetlink.links()?.into_iter().map(|link| (link.index, link)).collect();
    for service in &mut facts.services {
        if let Some(vip) = service.vip {
            service.local = rtnetlink.way(vip).ok().flatten().is_some_and(|way| way.local);
        }
        for server in &mut service.servers {
            server.way = way(&mut rtnetlink, &links, server.entry.destination.id.address);
        }
    }
    Ok(())
}

fn way(rtnetlink: &mut Rtnetlink, links: &BTreeMap<u32, Link>, address: IpAddr) -> Way {
    // What the kernel refuses is no way: unreachable, prohibited.
    let Some(found) = rtnetlink.way(address).ok().flatten() else { return Way::None };
    if found.local {
        return Way::Local;
    }
    let Some((index, neighbour)) = found.hop else { return Way::None };
    let entry = rtnetlink.neighbour(index, neighbour).ok().flatten();
    let link = links.get(&index);
    // A device without hardware addresses has no neighbours to ask for.
    let resolved = link.is_some_and(|link| link.mac.is_none())
        || entry.is_some_and(|entry| entry.mac.is_some());
    Way::By {
        interface: link.map_or_else(|| index.to_string(), |link| link.name.clone()),
        mtu: link.map_or(0, |link| link.mtu_bytes),
        neighbour,
        resolved,
    }
}
