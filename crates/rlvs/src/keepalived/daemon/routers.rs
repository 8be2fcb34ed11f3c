//! From the desired state to the virtual routers of the control plane.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rlvs_conf::desired::{
    self, Authentication, Broadcast, Desired, Instance, SyncGroup, TrackedScript, Transport, Weight,
};
use rlvs_control::model::Family;
use rlvs_control::vrrp::config::{
    Announce, Attributes, Config, Delivery, GroupConfig, InstanceConfig, Peer, Preempt,
    ScriptConfig, Track, Tracked, Version, VirtualAddress,
};

use super::routing::{self, Routing};

/// Virtual routers, and what of them is not carried out.
#[derive(Debug, Default)]
pub(super) struct Routers {
    pub(super) config: Config,
    /// Lines for the log.
    pub(super) left_out: Vec<String>,
}

/// Returns the virtual routers that are desired.
pub(super) fn of(desired: &Desired) -> Routers {
    let mut routers = Routers::default();
    (routers.config.fixed, routers.left_out) = routing::fixed(&desired.fixed);
    for wanted in &desired.instances {
        let Some(interface) = &wanted.interface else {
            let name = &wanted.name;
            routers.left_out.push(format!("{name}: without `interface` it is not carried out"));
            continue;
        };
        routers.left_out.extend(left_out(wanted).map(|what| {
            format!("{}: {what} is not carried out; the instance runs without", wanted.name)
        }));
        let Routing { entries, left_out } = Routing::of(&wanted.routes, &wanted.rules);
        routers.left_out.extend(left_out.iter().map(|line| format!("{}: {line}", wanted.name)));
        let mut config = instance(desired, wanted, interface);
        config.routing = entries;
        config.track.extend(routing::needed(wanted, &config));
        routers.config.instances.push(config);
    }
    let is_there = |name: &Arc<str>| routers.config.instances.iter().any(|one| one.name == *name);
    let group = |group: &SyncGroup| GroupConfig {
        name: name(&group.name),
        members: group.members.iter().map(|member| name(member)).filter(is_there).collect(),
        track: tracks(
            desired,
            [
                &group.track_interfaces,
                &group.track_scripts,
                &group.track_files,
                &group.track_processes,
            ],
        ),
    };
    routers.config.groups = desired.sync_groups.iter().map(group).collect();
    let script = |script: &TrackedScript| ScriptConfig {
        name: name(&script.name),
        rise: script.rise,
        fall: script.fall,
        init_fail: script.starts_bad,
    };
    routers.config.scripts = desired.scripts.iter().map(script).collect();
    routers
}

fn instance(desired: &Desired, wanted: &Instance, interface: &str) -> InstanceConfig {
    let mut config = InstanceConfig::new(&wanted.name, interface, wanted.router_id.get());
    config.version = match wanted.version {
        desired::Version::V2 => Version::V2,
        desired::Version::V3 => Version::V3,
    };
    config.family = wanted.family;
    config.priority = wanted.priority.get();
    config.interval = wanted.advert_interval;
    config.down_adverts = u32::from(wanted.down_timer_adverts);
    config.preempt = match wanted.preempt {
        desired::Preempt::Never => Preempt::Never,
        desired::Preempt::After(delay) => Preempt::After(delay),
    };
    config.addresses = wanted.addresses.iter().map(address).collect();
    config.excluded = wanted.excluded_addresses.iter().map(address).collect();
    config.delivery = delivery(wanted);
    config.source = wanted.source;
    config.group = match wanted.transport {
        Transport::Multicast { group } if !is_default_group(group) => Some(group),
        Transport::Multicast { .. } | Transport::Unicast { .. } => None,
    };
    config.virtual_mac = wanted.virtual_mac.as_ref().map(|made| {
        let kind = if wanted.family == Family::V6 { "6" } else { "" };
        let usual = || format!("vrrp{kind}.{}", wanted.router_id);
        name(&made.name.clone().unwrap_or_else(usual))
    });
    config.hardware = wanted.virtual_mac.as_ref().and_then(|made| made.address);
    config.ignore_link = wanted.ignore_own_interface;
    config.track_source = wanted.track_source;
    config.bare_sum = wanted.checksum_without_pseudo_header;
    config.password = match &wanted.authentication {
        Some(Authentication::Password(secret)) => Some(password(secret.reveal())),
        Some(Authentication::Header(_)) | None => None,
    };
    config.announce = announce(desired, wanted);
    config.track = tracks(
        desired,
        [
            &wanted.track_interfaces,
            &wanted.track_scripts,
            &wanted.track_files,
            &wanted.track_processes,
        ],
    );
    config.answer_lower = !wanted.lower_priority_no_advert;
    config.answer_higher = wanted.higher_priority_send_advert;
    config
}

fn name(text: &str) -> Arc<str> {
    text.into()
}

pub(super) fn address(wanted: &desired::VirtualAddress) -> VirtualAddress {
    let interface = wanted.interface.as_deref().map(name);
    let attributes = attributes(wanted);
    VirtualAddress { address: wanted.address, bits: wanted.prefix, interface, attributes }
}

fn attributes(wanted: &desired::VirtualAddress) -> Attributes {
    let bits = match wanted.address {
        IpAddr::V4(address) => Some((
            u32::from(address),
            !u32::MAX.checked_shl(32 - u32::from(wanted.prefix)).unwrap_or(0),
        )),
        IpAddr::V6(_) => None,
    };
    let broadcast = match (wanted.broadcast, bits) {
        (Broadcast::Ones, Some((address, host))) => Some(Ipv4Addr::from(address | host)),
        (Broadcast::Zeros, Some((address, host))) => Some(Ipv4Addr::from(address & !host)),
        (Broadcast::Address(IpAddr::V4(address)), _) => Some(address),
        _ => None,
    };
    let preferred = wanted.preferred.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    Attributes {
        label: wanted.label.as_deref().map(name),
        scope: wanted.scope.as_deref().and_then(scope).unwrap_or(0),
        broadcast,
        peer: wanted.peer,
        home: wanted.home,
        detect_duplicates: wanted.detect_duplicates,
        manage_temporary: wanted.manage_temporary,
        no_prefix_route: wanted.no_prefix_route,
        autojoin: wanted.autojoin,
        preferred_s: preferred,
        untracked: wanted.untracked,
    }
}

/// Returns the kernel's number of a scope.
fn scope(text: &str) -> Option<u8> {
    match text {
        "global" => Some(0),
        "site" => Some(200),
        "link" => Some(253),
        "host" => Some(254),
        "nowhere" => Some(255),
        number => number.parse().ok(),
    }
}

fn is_default_group(group: IpAddr) -> bool {
    let usual = desired::Global::default();
    group == usual.group4 || group == usual.group6
}

fn delivery(wanted: &Instance) -> Delivery {
    match &wanted.transport {
        Transport::Multicast { .. } => Delivery::Multicast,
        Transport::Unicast { peers, ttl, .. } => {
            let peer = |peer: &desired::Peer| Peer {
                address: peer.address,
                hops: (peer.ttl_min.unwrap_or(0), peer.ttl_max.unwrap_or(u8::MAX)),
            };
            Delivery::Unicast {
                peers: peers.iter().map(peer).collect(),
                hops: *ttl,
                only_peers: wanted.check_unicast_source,
            }
        }
    }
}

/// Fills a password up with zeros; what is longer was cut and told before.
fn password(text: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

fn announce(desired: &Desired, wanted: &Instance) -> Announce {
    let count = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Announce {
        repeat: count(wanted.garp.repeat),
        delay: wanted.garp.delay,
        refresh: wanted.garp.refresh,
        refresh_repeat: count(wanted.garp.refresh_repeat),
        lower_repeat: count(wanted.garp.lower_priority_repeat),
        arp_pace: desired.global.garp_interval,
        neighbour_pace: desired.global.gna_interval,
    }
}

fn tracks(
    desired: &Desired,
    [interfaces, scripts, files, processes]: [&[desired::Tracked]; 4],
) -> Vec<Track> {
    let track =
        |what, weight: Weight| Track { what, weight: weight.change, reverse: weight.reverse };
    let interfaces = interfaces
        .iter()
        .map(|one| track(Tracked::Interface(name(&one.name)), one.weight.unwrap_or_default()));
    let scripts = scripts.iter().map(|one| {
        let own = desired.scripts.iter().find(|script| script.name == one.name);
        let weight = one.weight.or(own.map(|script| script.weight)).unwrap_or_default();
        track(Tracked::Script(name(&one.name)), weight)
    });
    let files = files.iter().map(|one| {
        let own = desired.files.iter().find(|file| file.name == one.name);
        let weight = one.weight.or(own.map(|file| file.weight)).unwrap_or_default();
        track(Tracked::Value(name(&one.name)), weight)
    });
    let processes = processes.iter().map(|one| {
        let own = desired.processes.iter().find(|process| process.name == one.name);
        let weight = one.weight.or(own.map(|process| process.weight)).unwrap_or_default();
        track(Tracked::Process(name(&one.name)), weight)
    });
    interfaces.chain(scripts).chain(files).chain(processes).collect()
}

/// Returns what an instance asks for and does not get.
fn left_out(wanted: &Instance) -> impl Iterator<Item = &'static str> {
    let header = matches!(wanted.authentication, Some(Authentication::Header(_)));
    let mut all = wanted.addresses.iter().chain(&wanted.excluded_addresses);
    let odd = all.any(|one| one.scope.as_deref().is_some_and(|text| scope(text).is_none()));
    [
        (header, "auth_type AH"),
        (!wanted.accept, "no_accept"),
        (odd, "a scope of an address that is neither known nor a number"),
    ]
    .into_iter()
    .filter_map(|(asked, what)| asked.then_some(what))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_how_to_is_one_router() {
        let text = "vrrp_script chk {\n script /bin/true\n weight 2\n}\n\
            vrrp_instance VI_1 {\n state MASTER\n interface eth0\n virtual_router_id 51\n\
            priority 100\n advert_int 1\n authentication {\n auth_type PASS\n auth_pass 1234\n }\n\
            track_script {\n chk\n }\n virtual_ipaddress {\n 192.168.1.200\n }\n}\n";
        let routers = of(&rlvs_conf::read_text(text).desired);
        assert!(routers.left_out.is_empty(), "{:?}", routers.left_out);
        assert_eq!(routers.config.refusals(), []);
        let mut expected = InstanceConfig::new("VI_1", "eth0", 51);
        expected.password = Some(*b"1234\0\0\0\0");
        let address = [192, 168, 1, 200].into();
        expected.addresses.push(VirtualAddress::new(address, 32));
        let what = Tracked::Script("chk".into());
        expected.track.push(Track { what, weight: 2, reverse: false });
        expected.interval = Duration::from_secs(1);
        assert_eq!(routers.config.instances, [expected]);
    }
}
