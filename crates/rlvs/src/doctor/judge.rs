//! The checks: each looks at the facts and finds nothing, or what is wrong and what to do.

use rlvs_control::model::{ForwardingMethod, Protocol, ServiceId};
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::attach::Mode;
use rlvs_linux::features::{Answer, Feature};

use super::facts::{Facts, Server, Service, Way};
use crate::drain::{destination_name, service_name};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Packets are lost, or will be.
    Error,
    /// It works, but not as it could or not for long.
    Warning,
}

impl Severity {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: an interface, a service, a server.
    pub about: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// A check, which is silent about what it has no facts of.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it makes of the facts.
    look: fn(&Facts, &mut Findings),
}

/// Every check.
pub const CHECKS: [Check; 20] = [
    Check { name: "kernel", look: kernel },
    Check { name: "version", look: version },
    Check { name: "interface", look: interfaces },
    Check { name: "foreign-xdp", look: foreign_xdp },
    Check { name: "checksum", look: checksums },
    Check { name: "forwarding", look: forwarding },
    Check { name: "rp-filter", look: rp_filter },
    Check { name: "vip", look: vip },
    Check { name: "vip-elsewhere", look: vip_elsewhere },
    Check { name: "arp", look: arp },
    Check { name: "next-hop", look: next_hop },
    Check { name: "mtu", look: mtu },
    Check { name: "health", look: health },
    Check { name: "return-route", look: return_route },
    Check { name: "no-server", look: no_server },
    Check { name: "fill", look: fill },
    Check { name: "counts", look: counts },
    Check { name: "sweep", look: sweep },
    Check { name: "filter", look: filter },
    Check { name: "reason", look: reasons },
];

/// Makes all checks.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    for check in CHECKS {
        let mut findings = Findings { check: check.name, list: Vec::new() };
        (check.look)(facts, &mut findings);
        all.extend(findings.list);
    }
    all.sort_by_key(|finding| finding.severity);
    all
}

/// What a check has found.
struct Findings {
    check: &'static str,
    list: Vec<Finding>,
}

impl Findings {
    fn error(
        &mut self,
        about: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Error, about.into(), what.into(), remedy.into());
    }

    fn warn(
        &mut self,
        about: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Severity::Warning, about.into(), what.into(), remedy.into());
    }

    fn add(&mut self, severity: Severity, about: String, what: String, remedy: String) {
        self.list.push(Finding { check: self.check, severity, about, what, remedy });
    }
}

/// Oldest kernel that has what the programs need.
const KERNEL_MIN: (u32, u32) = (6, 1);

fn kernel(facts: &Facts, to: &mut Findings) {
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse().ok());
    if let (Some(major), Some(minor)) = (number(), number())
        && (major, minor) < KERNEL_MIN
    {
        let what = format!("Linux {} lacks BPF features that the programs need", facts.kernel);
        to.error("kernel", what, "run Linux 6.1 or newer");
    }
    if facts.jit == Some(false) {
        to.warn(
            "kernel",
            "BPF programs are interpreted, not compiled: packets take many times as long",
            "sysctl -w net.core.bpf_jit_enable=1, then rlvs detach and attach",
        );
    }
    features(&facts.features, to);
}

fn features(answer: &Answer, to: &mut Findings) {
    if !answer.missing.is_empty() {
        let name = |one: &Feature| format!("{} (Linux {})", one.name, one.since);
        let names: Vec<String> = answer.missing.iter().map(name).collect();
        to.error(
            "kernel",
            format!("it lacks what the programs need: {}", names.join(", ")),
            "run Linux 6.1 or newer, built with CONFIG_BPF_SYSCALL and CONFIG_NET",
        );
    }
    if let Some(error) = &answer.refused {
        to.error(
            "kernel",
            format!(
                "it lets no programs and maps be made ({error}): what is attached goes on, but \
                 rlvs attach and upgrade will fail"
            ),
            "look for who forbids bpf(2): a seccomp filter of the container or the service \
             (SystemCallFilter=), kernel lockdown, a limit of the security module",
        );
    }
}

fn version(facts: &Facts, to: &mut Findings) {
    if facts.outdated {
        to.warn(
            "the attached programs",
            "they are another version's than this command: what it mends or adds is not in force",
            "rlvs upgrade; packets and connections go on",
        );
    }
}

fn interfaces(facts: &Facts, to: &mut Findings) {
    for name in &facts.gone {
        to.warn(name, "was attached and has been removed", "rlvs attach forgets it");
    }
    for one in &facts.interfaces {
        match one.mode {
            None if one.serves => to.warn(
                &one.name,
                "is up and has an address, but nothing that comes in by it is balanced",
                format!("rlvs attach {}", one.name),
            ),
            Some(Mode::Generic) => to.warn(
                &one.name,
                "runs generic XDP, which is slower than TC and copies packets",
                format!("rlvs attach --mode tc {}", one.name),
            ),
            Some(_) if !one.serves => to.warn(
                &one.name,
                "is attached, but is down or has no address",
                format!("ip link set {} up", one.name),
            ),
            _ => {}
        }
    }
}

fn foreign_xdp(facts: &Facts, to: &mut Findings) {
    for one in &facts.interfaces {
        if let Some(id) = one.foreign_xdp {
            to.warn(
                &one.name,
                format!("another XDP program (id {id}) sees packets before us and may take them"),
                format!(
                    "`bpftool prog show id {id}` names it; `ip link set {} xdp off` removes it",
                    one.name
                ),
            );
        }
    }
}

fn checksums(facts: &Facts, to: &mut Findings) {
    for one in &facts.interfaces {
        let is_xdp = matches!(one.mode, Some(Mode::Native | Mode::Generic));
        if is_xdp && let Some(sender) = one.unfinished.first() {
            to.error(
                &one.name,
                format!(
                    "packets of {sender} come in with unfinished checksums; XDP forwards them so, \
                     and whoever gets them throws them away"
                ),
                format!(
                    "ethtool -K DEVICE tx off on {sender}, where it sends; or rlvs attach --mode tc {}",
                    one.name
                ),
            );
        }
    }
}

fn forwarding(facts: &Facts, to: &mut Findings) {
    let families =
        [("IPv4", "net.ipv4.conf.lo.forwarding"), ("IPv6", "net.ipv6.conf.lo.forwarding")];
    for ((family, key), state) in families.into_iter().zip(facts.forwarding) {
        let is_used = facts.services.iter().any(|service| {
            (service.id.family() == rlvs_control::model::Family::V4) == (family == "IPv4")
        });
        if state == Some(false) && is_used {
            to.error(
                "lo",
                format!(
                    "does not forward {family}: the kernel gives the programs no way to any server \
                     (net.ipv4.ip_forward=0 does this too)"
                ),
                format!("sysctl -w {key}=1, or rlvs attach"),
            );
        }
    }
}

fn rp_filter(facts: &Facts, to: &mut Findings) {
    let attached = facts.interfaces.iter().filter(|one| one.mode.is_some());
    for one in attached.filter(|one| one.rp_filter == 1) {
        to.warn(
            &one.name,
            "checks that answers would go back the same way (rp_filter 1): packets that are left to \
             the kernel may be dropped, such as those of a server or client reached by another way",
            format!("sysctl -w net.ipv4.conf.{}.rp_filter=2 (and .all.)", one.name),
        );
    }
}

fn vip(facts: &Facts, to: &mut Findings) {
    for service in facts.services.iter().filter(|_| !facts.any) {
        if let Some(vip) = service.vip
            && !service.local
            && !facts.elsewhere.contains(&vip)
        {
            to.warn(
                service_name(service.id),
                format!("{vip} is not an address of this host: nothing to it is balanced here"),
                format!(
                    "right on a backup director; else ip addr add {vip}/{} dev INTERFACE, or rlvs \
                     attach --any",
                    if vip.is_ipv4() { 32 } else { 128 }
                ),
            );
        }
    }
}

fn vip_elsewhere(facts: &Facts, to: &mut Findings) {
    for service in facts.services.iter().filter(|service| service.local) {
        for claim in service.claims.iter().filter(|claim| claim.server.is_none()) {
            to.error(
                service_name(service.id),
                format!("{} answers for its address too, on {}", claim.mac, claim.interface),
                "find who has it (`ip neigh`, the switch's table) and take it away there; two masters \
                 do not hear each other's VRRP",
            );
        }
    }
}

fn arp(facts: &Facts, to: &mut Findings) {
    for service in facts.services.iter().filter(|service| service.local) {
        for claim in &service.claims {
            let Some(server) = claim.server else { continue };
            to.error(
                service_name(service.id),
                format!(
                    "the real server {server} answers ARP for the virtual address on {}: clients \
                     that hear it first pass by the director",
                    claim.interface
                ),
                format!(
                    "on {server}: sysctl -w net.ipv4.conf.all.arp_ignore=1 \
                     net.ipv4.conf.all.arp_announce=2, and the virtual address on lo"
                ),
            );
        }
    }
}

/// Every server with its service.
fn servers(facts: &Facts) -> impl Iterator<Item = (&Service, &Server)> {
    facts.services.iter().flat_map(|service| service.servers.iter().map(move |to| (service, to)))
}

fn name(service: &Service, server: &Server) -> String {
    let id = server.entry.destination.id;
    format!("{} of {}", destination_name(id), service_name(service.id))
}

fn next_hop(facts: &Facts, to: &mut Findings) {
    for (service, server) in servers(facts) {
        match &server.way {
            Way::Local | Way::By { resolved: true, .. } => {}
            Way::None => to.error(
                name(service, server),
                "there is no route to it",
                format!(
                    "ip route get {} says what the kernel thinks",
                    server.entry.destination.id.address
                ),
            ),
            Way::By { interface, neighbour, .. } => to.error(
                name(service, server),
                format!("{neighbour} does not say its hardware address on {interface}"),
                "is it up, on this segment, with this address? `ip neigh`, the cable, the VLAN",
            ),
        }
    }
}

/// Bytes of an IP and a TCP header without options.
fn headers(service: &Service) -> u32 {
    if service.id.family() == rlvs_control::model::Family::V4 { 40 } else { 60 }
}

fn mtu(facts: &Facts, to: &mut Findings) {
    let attached = facts.interfaces.iter().filter(|one| one.mode.is_some());
    let clients = attached.map(|one| one.mtu).max().unwrap_or(0);
    for (service, server) in servers(facts) {
        let Way::By { interface, mtu, .. } = &server.way else { continue };
        let room = mtu.saturating_sub(server.overhead.into());
        let segment = room.saturating_sub(headers(service));
        if room >= clients || facts.mss != 0 && facts.mss <= segment {
            continue;
        }
        to.warn(
            name(service, server),
            format!(
                "packets of {clients} bytes come in, and {room} fit on {interface} ({mtu} less {} of \
                 the tunnel): longer ones are answered with ICMP, which firewalls like to drop",
                server.overhead
            ),
            format!(
                "an MTU of {} on the whole way to it, or rlvs set tcp_mss {segment}",
                clients + u32::from(server.overhead)
            ),
        );
    }
}

fn health(facts: &Facts, to: &mut Findings) {
    for (service, server) in servers(facts) {
        let Some(Err(why)) = &server.connected else { continue };
        to.error(
            name(service, server),
            format!(
                "has weight {}, but connecting to it fails: {why}",
                server.entry.destination.weight
            ),
            "start it, or take it out with weight 0; with direct routing and tunnels it should \
             listen on all addresses, so that it can be asked",
        );
    }
}

fn is_tcp(service: &Service) -> bool {
    matches!(service.id, ServiceId::Address { protocol: Protocol::Tcp, .. })
}

/// Packets in a second below which the other direction's may have been rounded to none.
const RATE_MIN: u64 = 3;

fn return_route(facts: &Facts, to: &mut Findings) {
    for (service, server) in servers(facts) {
        let is_nat = server.entry.destination.method == ForwardingMethod::Masquerade;
        if !is_nat || !is_tcp(service) || server.way == Way::Local {
            continue;
        }
        let silent =
            |in_packets: u64, out_packets: u64, least| in_packets >= least && out_packets == 0;
        let (ever, now) = (server.entry.traffic, server.rates);
        let at_all = ever.connections > 0 && silent(ever.in_packets, ever.out_packets, 1);
        let here = matches!(server.connected, None | Some(Ok(())));
        if here && (at_all || silent(now.in_packets, now.out_packets, RATE_MIN)) {
            to.error(
                name(service, server),
                format!(
                    "{} packets went to it, and none come back by this director, although it answers \
                     when asked from here: its answers go to clients another way",
                    ever.in_packets
                ),
                "on it: the route to the clients must lead through this director (default gateway, or \
                 a rule for its address); or change to -g or -i",
            );
        }
    }
}

fn no_server(facts: &Facts, to: &mut Findings) {
    for service in &facts.services {
        if service.servers.iter().all(|one| one.entry.destination.weight == 0) {
            let is_drained = facts.drained.iter().any(|one| one.service == service.id);
            let remedy =
                if is_drained { "rlvs undrain" } else { "ipvsadm -a, or a weight above 0" };
            let what = "no real server takes new connections: clients are refused";
            to.error(service_name(service.id), what, remedy);
        }
    }
}

/// Part of a table's slots above which it is called full, percent.
const FULL_PERCENT: u64 = 75;

fn fill(facts: &Facts, to: &mut Findings) {
    for table in &facts.fill {
        let percent = table.used * 100 / table.slots.max(1);
        if percent < FULL_PERCENT {
            continue;
        }
        let about = format!("table of {}", table.name);
        let what = format!(
            "{percent} % of {} slots are in use: new connections will find no room",
            table.slots
        );
        if table.half_open * 2 > table.used {
            let half_open = table.half_open * 100 / table.used;
            to.error(
                about,
                format!("{what}. {half_open} % of these are half open, as in a flood of SYNs"),
                "rlvs set drop_entry 2 ends half-open ones while there is little room; rlvs acl limit \
                 bounds what a network of clients may open; rlvs detach, rlvs attach --connections N makes a \
                 larger table",
            );
        } else {
            to.error(
                about,
                what,
                "rlvs detach, rlvs attach --connections N makes a larger one; shorter time-outs \
                 (ipvsadm --set) empty it sooner",
            );
        }
    }
}

fn counts(facts: &Facts, to: &mut Findings) {
    for one in &facts.miscounts {
        to.error(
            format!("{} of {}", destination_name(one.id), service_name(one.service)),
            format!("counts {:?}, but the tables have {:?}", one.counted, one.found),
            "this must not happen: please report it; schedulers that go by connections are misled \
             until rlvs detach and attach",
        );
    }
}

fn sweep(facts: &Facts, to: &mut Findings) {
    if facts.sweeps == Some(false) {
        to.error(
            "sweep",
            "the timer that removes what has expired does not run",
            "this must not happen: please report it; rlvs detach and attach start it anew",
        );
    }
}

fn filter(facts: &Facts, to: &mut Findings) {
    for rule in &facts.rules {
        to.warn(
            rule.place.clone(),
            format!(
                "names {}, but does not see what is balanced: it is taken before packet filters: {}",
                rule.vip, rule.text
            ),
            "filter on the real servers, or before this director",
        );
    }
}

fn reasons(facts: &Facts, to: &mut Findings) {
    for &(reason, packets) in facts.growth.iter().filter(|(_, packets)| *packets > 0) {
        let Some((what, remedy)) = bad(reason) else { continue };
        let seconds = facts.watched.as_secs_f64();
        let text = format!("{packets} packets in {seconds:.1} s: {what}");
        to.warn(reason.name(), text, remedy);
    }
}

/// Says what a reason means, if it should not grow, and what to do. What NAT servers answer to checks
/// from here is counted as without a connection, so that one says nothing.
fn bad(reason: Reason) -> Option<(&'static str, &'static str)> {
    Some(match reason {
        Reason::NotLocal => (
            "packets to a virtual address that this host does not have",
            "ip addr add VIP dev INTERFACE, or rlvs attach --any",
        ),
        Reason::NoDestination => {
            ("new connections found no real server", "see the findings about servers")
        }
        Reason::TableFull => ("the connection table has no room", "rlvs attach --connections N"),
        Reason::Stateless => (
            "the connection table has no room; connections are forwarded without an entry",
            "rlvs attach --connections N",
        ),
        Reason::ReplyTaken => (
            "a client's port is in use with every real server tried",
            "more real servers, or shorter time-outs",
        ),
        Reason::Removed => (
            "connections of a real server that was removed",
            "rlvs set expire_nodest_conn 1 opens them anew; next time rlvs drain",
        ),
        Reason::Unreachable => ("no route to a server or a client", "ip route get ADDRESS"),
        Reason::TooBig => {
            ("longer than the next hop takes", "raise the MTU, or rlvs set tcp_mss N")
        }
        Reason::Expired => ("the time to live is used up", "look for a loop with traceroute"),
        Reason::Busy | Reason::Inconsistent | Reason::NoRoom => {
            ("the programs could not go on", "this must not happen: please report it")
        }
        Reason::IcmpLimited => (
            "more packets deserve an ICMP error than are sent",
            "see the other reasons for what is wrong with them",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
