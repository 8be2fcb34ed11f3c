//! Virtual routers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use rlvs_control::model::Family;

use crate::desired::{
    Authentication, Desired, Garp, Instance, Peer, Preempt, Secret, State, Transport, Version,
    VirtualMac,
};
use crate::diagnostic::{Diagnostic, Objection};
use crate::lower::address::family_without;
use crate::lower::{Lower, common, track};
use crate::source::Span;
use crate::tree::Node;
use crate::value::{Meaning, Value};

/// Bytes of a password that are sent.
const PASSWORD_BYTES_MAX: usize = 8;
/// The longest interval that VRRPv3 can tell of: 4095 centiseconds.
const V3_INTERVAL_MAX: Duration = Duration::from_millis(40_950);

impl Lower<'_> {
    /// Lowers all instances. No two have the same number on the same interface.
    pub(super) fn instances<'n>(
        &mut self,
        nodes: impl Iterator<Item = &'n Node>,
        desired: &mut Desired,
    ) {
        let mut names = BTreeMap::new();
        let mut numbers: BTreeMap<_, (Span, String)> = BTreeMap::new();
        for node in nodes {
            let name = node.name();
            if names.insert(name.clone(), node.span).is_some() {
                self.is_new(node, [&*name].into_iter());
                continue;
            }
            let Some(instance) = self.instance(node, desired) else { continue };
            let v6 = instance.family == Family::V6;
            let key = (instance.interface.clone(), v6, instance.router_id);
            let span = node.word("virtual_router_id").map_or(node.span, |value| value.span);
            if let Some((first, other)) = numbers.get(&key) {
                let text = format!(
                    "{name} has the virtual_router_id of {other} on the same interface; it is left out"
                );
                let found = Diagnostic::error(span, text).expected("expected another number");
                self.say(found.related(*first, "it is used here"));
                continue;
            }
            numbers.insert(key, (span, name));
            desired.instances.push(instance);
        }
    }

    fn instance(&mut self, node: &Node, desired: &Desired) -> Option<Instance> {
        let addresses = self.addresses(node);
        let native = node.has("native_ipv6");
        let first = addresses.first().map(|address| Family::of(address.address));
        let family =
            if native { Some(Family::V6) } else { first }.unwrap_or_else(|| family_without(node));
        self.check_tracked(node);
        let router_id = self.router_id(node);
        let interface = self.interface(node);
        let strict = node.switch("strict_mode").unwrap_or(self.defaults.strict);
        let version = self.version(node, family);
        let priority = node.number::<u8>("priority").and_then(NonZeroU8::new);
        let priority = priority.unwrap_or(NonZeroU8::MIN.saturating_add(99));
        let state = self.state(node, strict, priority);
        let own = interface.clone().flatten();
        Some(Instance {
            name: node.name(),
            interface: interface?,
            router_id: router_id?,
            family,
            version,
            state,
            priority,
            advert_interval: self.advert_interval(node, version),
            down_timer_adverts: node
                .number("down_timer_adverts")
                .unwrap_or(self.defaults.down_timer_adverts),
            preempt: self.preempt(node, state, strict),
            strict,
            accept: self.accept(node, strict, priority),
            transport: self.transport(node, family, strict),
            source: self.source(node, family),
            track_source: node.has("track_src_ip"),
            virtual_mac: node.child("use_vmac").map(virtual_mac),
            authentication: self.authentication(node, version, strict),
            addresses: self.same_family(node, addresses, family, version)?,
            excluded_addresses: self.entries_to_addresses(node, "virtual_ipaddress_excluded"),
            routes: self.routes(node.entries("virtual_routes")),
            rules: self.rules(node.entries("virtual_rules")),
            track_interfaces: self.track_interfaces(node, own.as_deref()),
            track_scripts: self.track_scripts(node, &desired.scripts),
            track_files: self.track_known(node, "track_file", track::FILES),
            track_processes: self.track_known(node, "track_process", track::PROCESSES),
            ignore_own_interface: node.has("dont_track_primary"),
            garp: self.garp(node),
            lower_priority_no_advert: node
                .switch("lower_prio_no_advert")
                .unwrap_or(self.defaults.lower_priority_no_advert || strict),
            higher_priority_send_advert: node
                .switch("higher_prio_send_advert")
                .unwrap_or(self.defaults.higher_priority_send_advert),
            skip_address_check: node
                .switch("skip_check_adv_addr")
                .unwrap_or(self.defaults.skip_address_check),
            check_unicast_source: node.has("check_unicast_src")
                || self.defaults.check_unicast_source,
            checksum_without_pseudo_header: node
                .switch("v3_checksum_as_v2")
                .unwrap_or(self.defaults.checksum_without_pseudo_header),
            promote_secondaries: node.has("promote_secondaries"),
            notify: self.notify(node),
            kept: common::kept(&node.children),
        })
    }

    /// Returns the number, or says that there is none, unless what stands there was wrong.
    fn router_id(&mut self, node: &Node) -> Option<NonZeroU8> {
        let number = node.number::<u8>("virtual_router_id").and_then(NonZeroU8::new);
        if number.is_none() && !node.has("virtual_router_id") {
            let text = format!("{} has no `virtual_router_id`; it is left out", node.name());
            self.say(
                Diagnostic::error(node.span, text).expected("expected a `virtual_router_id` in it"),
            );
        }
        number
    }

    /// Returns the interface. `Some(None)`: none is needed.
    fn interface(&mut self, node: &Node) -> Option<Option<String>> {
        if let Some(value) = node.word("interface") {
            if !self.defaults.dynamic_interfaces {
                self.check_interface(value);
            }
            return Some(Some(value.text.clone()));
        }
        if node.entries("unicast_peer").next().is_some() {
            let text = "no `interface`: it speaks by any; keepalived 2.2 demands one";
            self.say(Diagnostic::warning(node.span, text).objection(Objection::General));
            return Some(None);
        }
        if !node.has("interface") {
            let text = format!("{} has no `interface`; it is left out", node.name());
            self.say(Diagnostic::error(node.span, text).expected("expected an `interface` in it"));
        }
        None
    }

    fn version(&mut self, node: &Node, family: Family) -> Version {
        let said = node.number::<u8>("version");
        if family == Family::V6 {
            if let (Some(2), Some(value)) = (said, node.word("version")) {
                let text = "VRRPv2 has no IPv6 addresses; version 3 is used";
                self.say(Diagnostic::error(value.span, text));
            }
            return Version::V3;
        }
        match said {
            Some(3) => Version::V3,
            Some(_) => Version::V2,
            None => self.defaults.version,
        }
    }

    fn state(&mut self, node: &Node, strict: bool, priority: NonZeroU8) -> State {
        let Some(value) = node.word("state") else { return State::Backup };
        if value.text == "BACKUP" {
            return State::Backup;
        }
        if strict && priority != NonZeroU8::MAX {
            let text =
                "in strict mode only the owner of the addresses (priority 255) starts as master";
            self.say(Diagnostic::error(value.span, text));
            return State::Backup;
        }
        State::Master
    }

    fn advert_interval(&mut self, node: &Node, version: Version) -> Duration {
        let interval = node.time("advert_int").unwrap_or(Duration::from_secs(1));
        let span = node.word("advert_int").map_or(node.span, |value| value.span);
        let micros = interval.as_micros() as u64;
        match version {
            Version::V2 if !micros.is_multiple_of(1_000_000) => {
                let rounded =
                    Duration::from_secs((micros.saturating_add(500_000) / 1_000_000).max(1));
                let text =
                    format!("VRRPv2 knows whole seconds only: {} s are used", rounded.as_secs());
                let found = Diagnostic::warning(span, text).help("`version 3` knows hundredths");
                self.say(found.objection(Objection::General));
                rounded
            }
            Version::V2 => interval,
            Version::V3 if interval > V3_INTERVAL_MAX => {
                let text = "VRRPv3 knows intervals up to 40.95 s, which is used";
                self.say(Diagnostic::error(span, text));
                V3_INTERVAL_MAX
            }
            Version::V3 if !micros.is_multiple_of(10_000) => {
                let text = "VRRPv3 knows hundredths of seconds only";
                self.say(Diagnostic::warning(span, text).objection(Objection::General));
                Duration::from_micros(micros / 10_000 * 10_000)
            }
            Version::V3 => interval,
        }
    }

    fn preempt(&mut self, node: &Node, state: State, strict: bool) -> Preempt {
        let delay = node.time("preempt_delay").unwrap_or_default();
        let at = |name| node.child(name).map_or(node.span, |child| child.span);
        let master = state == State::Master;
        if !delay.is_zero() && node.has("nopreempt") && !master {
            let text = "`preempt_delay` has no effect with `nopreempt`";
            self.say(Diagnostic::warning(at("preempt_delay"), text).objection(Objection::General));
        }
        if !delay.is_zero() && (master || strict) {
            let why = if strict { "strict mode" } else { "`state MASTER`" };
            let text = format!("`preempt_delay` has no effect with {why}");
            self.say(Diagnostic::warning(at("preempt_delay"), text).objection(Objection::General));
        }
        if !node.has("nopreempt") {
            return Preempt::After(if master || strict { Duration::ZERO } else { delay });
        }
        if master {
            let text = "`nopreempt` has no effect with `state MASTER`";
            let found =
                Diagnostic::warning(at("nopreempt"), text).help("`state BACKUP` on both directors");
            self.say(found.objection(Objection::General));
            return Preempt::After(Duration::ZERO);
        }
        Preempt::Never
    }

    fn accept(&mut self, node: &Node, strict: bool, priority: NonZeroU8) -> bool {
        if node.has("no_accept") || node.has("accept") {
            return !node.has("no_accept");
        }
        let refuses = strict && priority != NonZeroU8::MAX;
        if refuses {
            let text = "in strict mode nobody can reach the addresses themselves, not even by ping";
            self.say(
                Diagnostic::warning(node.span, text).help("`accept` lets the master take packets"),
            );
        }
        !refuses
    }

    fn transport(&mut self, node: &Node, family: Family, strict: bool) -> Transport {
        let Some(block) = node.child("unicast_peer") else {
            let words = ["unicast_src_ip", "check_unicast_src"];
            for child in words.iter().filter_map(|name| node.child(name)) {
                let text = "no `unicast_peer`: multicast is used, and this has no effect";
                self.say(Diagnostic::warning(child.span, text).objection(Objection::General));
            }
            let default =
                if family == Family::V4 { self.defaults.group4 } else { self.defaults.group6 };
            let group = node.address("mcast_dst_ip").filter(|group| Family::of(*group) == family);
            return Transport::Multicast { group: group.unwrap_or(default) };
        };
        let mut peers = Vec::new();
        for entry in node.entries("unicast_peer") {
            peers.extend(self.peer(entry, family));
        }
        if strict {
            self.say(Diagnostic::error(
                block.span,
                "strict mode knows no unicast; it is used anyway",
            ));
        }
        let said = node.has("unicast_fault_no_peer");
        if peers.is_empty() && !said {
            let text = "no peer is named: nothing is sent, and the instance is in fault";
            let found = Diagnostic::error(block.span, text);
            self.say(found.help(
                "keepalived would silently use multicast; leave `unicast_peer` out for that",
            ));
        }
        let fault_without_peers = said || peers.is_empty();
        Transport::Unicast {
            peers,
            ttl: node.number("unicast_ttl").unwrap_or(255),
            fault_without_peers,
        }
    }

    fn peer(&mut self, entry: &Node, family: Family) -> Option<Peer> {
        let address = self.of_family(entry.args.first()?, family)?;
        Some(Peer { address, ttl_min: entry.number("min_ttl"), ttl_max: entry.number("max_ttl") })
    }

    fn source(&mut self, node: &Node, family: Family) -> Option<IpAddr> {
        let name = if node.has("unicast_peer") { "unicast_src_ip" } else { "mcast_src_ip" };
        let value = node.word(name)?;
        self.of_family(value, family)
    }

    /// Returns an address, if it is of this family, or says that it is not.
    fn of_family(&mut self, value: &Value, family: Family) -> Option<IpAddr> {
        let Meaning::Address(address) = value.meaning else { return None };
        if Family::of(address) != family {
            let text = format!("{address} is of another family than the instance; it is left out");
            self.say(Diagnostic::error(value.span, text));
            return None;
        }
        Some(address)
    }

    fn authentication(
        &mut self,
        node: &Node,
        version: Version,
        strict: bool,
    ) -> Option<Authentication> {
        let block = node.child("authentication")?;
        let kind = block.word("auth_type");
        if version == Version::V3 || strict {
            let why = if strict { "strict mode" } else { "VRRPv3" };
            self.say(Diagnostic::error(
                block.span,
                format!("{why} has no authentication; it is left out"),
            ));
            return None;
        }
        let Some(password) = block.word("auth_pass") else {
            if !block.has("auth_pass") {
                let found = Diagnostic::error(block.span, "authentication without a password");
                self.say(found.expected("expected an `auth_pass` in it"));
            }
            return None;
        };
        let mut length = password.text.len().min(PASSWORD_BYTES_MAX);
        while !password.text.is_char_boundary(length) {
            length -= 1;
        }
        if length < password.text.len() {
            let text = "the password is longer than eight characters; the first eight are used";
            self.say(Diagnostic::warning(password.span, text).objection(Objection::General));
        }
        let secret = Secret::new(&password.text[..length]);
        Some(match kind.is_some_and(|kind| kind.text == "AH") {
            true => Authentication::Header(secret),
            false => Authentication::Password(secret),
        })
    }

    fn garp(&self, node: &Node) -> Garp {
        let global = &self.defaults;
        let delay = node.whole_seconds("garp_master_delay").unwrap_or(global.garp.delay);
        let repeat = node.number("garp_master_repeat").unwrap_or(global.garp.repeat);
        let lower_delay = node.whole_seconds("garp_lower_prio_delay").or(global.lower_delay);
        let lower_repeat = node.number("garp_lower_prio_repeat").or(global.lower_repeat);
        Garp {
            delay,
            repeat,
            refresh: node.whole_seconds("garp_master_refresh").unwrap_or(global.garp.refresh),
            refresh_repeat: node
                .number("garp_master_refresh_repeat")
                .unwrap_or(global.garp.refresh_repeat),
            lower_priority_delay: lower_delay.unwrap_or(delay),
            lower_priority_repeat: lower_repeat.unwrap_or(repeat),
        }
    }
}

/// Reads the words of `use_vmac`: a name and an address, each if it is there.
fn virtual_mac(node: &Node) -> VirtualMac {
    let mut made = VirtualMac { name: node.text("name"), address: None };
    for word in &node.args {
        match hardware_address(&word.text) {
            Some(address) => made.address = Some(address),
            None => made.name = Some(word.text.clone()),
        }
    }
    made
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':').map(|part| u8::from_str_radix(part, 16));
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        *byte = parts.next()?.ok()?;
    }
    parts.next().is_none().then_some(bytes)
}
