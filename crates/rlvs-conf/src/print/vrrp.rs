//! Instances, groups, scripts, files.

use rlvs_control::model::Family;

use crate::desired::{
    Authentication, Broadcast, Compared, Fixed, Instance, Notify, Preempt, RouteEntry, RuleEntry,
    State, Statement, SyncGroup, Tracked, TrackedFile, TrackedProcess, TrackedScript, Transport,
    Version, VirtualAddress, VirtualMac, Weight,
};
use crate::print::{Printer, in_seconds, quoted};

impl Printer {
    pub(super) fn tracked_script(&mut self, script: &TrackedScript) {
        self.block(format!("vrrp_script {}", quoted(&script.name)), |to| {
            to.command("script", &script.command, script.user.as_ref());
            to.time("interval", script.interval);
            to.time("timeout", script.timeout);
            to.line(weight_words(script.weight));
            to.number("rise", script.rise);
            to.number("fall", script.fall);
            to.flag("init_fail", script.starts_bad);
        });
    }

    pub(super) fn tracked_file(&mut self, file: &TrackedFile) {
        self.block(format!("track_file {}", quoted(&file.name)), |to| {
            to.word("file", Some(&file.path));
            to.line(weight_words(file.weight));
            if let Some(initial) = file.initial {
                let overwrite = if file.overwritten { " overwrite" } else { "" };
                to.line(format!("init_file {initial}{overwrite}"));
            }
        });
    }

    pub(super) fn tracked_process(&mut self, process: &TrackedProcess) {
        self.block(format!("track_process {}", quoted(&process.name)), |to| {
            let words: Vec<String> = process.command.iter().map(|word| quoted(word)).collect();
            to.line(format!("process {}", words.join(" ")));
            match process.compared {
                Compared::Name | Compared::Command => {}
                Compared::Program => to.line("full_command"),
                Compared::Initial => to.line("param_match initial"),
                Compared::Partial => to.line("param_match partial"),
            }
            to.line(weight_words(process.weight));
            if process.quorum > 0 {
                to.number("quorum", process.quorum);
            }
            if let Some(most) = process.quorum_max {
                to.number("quorum_max", most);
            }
            let delays =
                [("fork_delay", process.fork_delay), ("terminate_delay", process.terminate_delay)];
            for (name, delay) in delays.into_iter().filter(|(_, delay)| !delay.is_zero()) {
                to.time(name, delay);
            }
        });
    }

    pub(super) fn instance(&mut self, instance: &Instance) {
        self.block(format!("vrrp_instance {}", quoted(&instance.name)), |to| {
            to.word("interface", instance.interface.as_deref());
            to.number("virtual_router_id", instance.router_id.get());
            let master = instance.state == State::Master;
            to.line(if master { "state MASTER" } else { "state BACKUP" });
            to.number("priority", instance.priority.get());
            to.number("version", if instance.version == Version::V3 { 3u8 } else { 2 });
            to.time("advert_int", instance.advert_interval);
            to.number("down_timer_adverts", instance.down_timer_adverts);
            match instance.preempt {
                Preempt::Never => to.line("nopreempt"),
                Preempt::After(delay) => to.time("preempt_delay", delay),
            }
            to.switch("strict_mode", instance.strict);
            to.line(if instance.accept { "accept" } else { "no_accept" });
            to.transport(instance);
            to.flag("track_src_ip", instance.track_source);
            to.virtual_mac(instance.virtual_mac.as_ref());
            to.authentication(instance.authentication.as_ref());
            to.behaviour(instance);
            to.addresses(instance);
            to.routes("virtual_routes", &instance.routes);
            to.rules("virtual_rules", &instance.rules);
            to.tracked("track_interface", &instance.track_interfaces);
            to.tracked("track_script", &instance.track_scripts);
            to.tracked("track_file", &instance.track_files);
            to.tracked("track_process", &instance.track_processes);
            to.notify(&instance.notify);
            to.script("notify_master_rx_lower_pri", instance.notify.lower_priority.as_ref());
            to.statements(&instance.kept);
        });
    }

    fn transport(&mut self, instance: &Instance) {
        let source = instance.source.map(|source| source.to_string());
        match &instance.transport {
            Transport::Multicast { group } => {
                self.word("mcast_src_ip", source.as_deref());
                self.line(format!("mcast_dst_ip {group}"));
            }
            Transport::Unicast { peers, ttl, fault_without_peers } => {
                self.word("unicast_src_ip", source.as_deref());
                self.number("unicast_ttl", *ttl);
                self.flag("unicast_fault_no_peer", *fault_without_peers);
                self.block("unicast_peer", |to| {
                    for peer in peers {
                        let least = peer.ttl_min.map(|ttl| format!(" min_ttl {ttl}"));
                        let most = peer.ttl_max.map(|ttl| format!(" max_ttl {ttl}"));
                        let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
                        to.line(format!("{}{least}{most}", peer.address));
                    }
                });
            }
        }
    }

    fn virtual_mac(&mut self, made: Option<&VirtualMac>) {
        let Some(VirtualMac { name, address }) = made else { return };
        let mut words = vec!["use_vmac".to_owned()];
        words.extend(name.as_deref().map(quoted));
        words.extend(
            address.map(|[a, b, c, d, e, f]| {
                format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
            }),
        );
        self.line(words.join(" "));
    }

    fn authentication(&mut self, authentication: Option<&Authentication>) {
        let (kind, secret) = match authentication {
            None => return,
            Some(Authentication::Password(secret)) => ("PASS", secret),
            Some(Authentication::Header(secret)) => ("AH", secret),
        };
        let secret = self.secret(secret);
        self.block("authentication", |to| {
            to.line(format!("auth_type {kind}"));
            to.line(format!("auth_pass {secret}"));
        });
    }

    fn behaviour(&mut self, instance: &Instance) {
        let garp = instance.garp;
        self.time("garp_master_delay", garp.delay);
        self.number("garp_master_repeat", garp.repeat);
        self.time("garp_master_refresh", garp.refresh);
        self.number("garp_master_refresh_repeat", garp.refresh_repeat);
        self.time("garp_lower_prio_delay", garp.lower_priority_delay);
        self.number("garp_lower_prio_repeat", garp.lower_priority_repeat);
        self.switch("lower_prio_no_advert", instance.lower_priority_no_advert);
        self.switch("higher_prio_send_advert", instance.higher_priority_send_advert);
        self.switch("skip_check_adv_addr", instance.skip_address_check);
        self.flag("check_unicast_src", instance.check_unicast_source);
        self.switch("v3_checksum_as_v2", instance.checksum_without_pseudo_header);
        self.flag("promote_secondaries", instance.promote_secondaries);
        self.flag("dont_track_primary", instance.ignore_own_interface);
    }

    fn addresses(&mut self, instance: &Instance) {
        if instance.addresses.is_empty() {
            self.line("no_virtual_ipaddress");
        } else {
            self.address_list("virtual_ipaddress", &instance.addresses);
        }
        if !instance.excluded_addresses.is_empty() {
            self.address_list("virtual_ipaddress_excluded", &instance.excluded_addresses);
        }
    }

    fn address_list(&mut self, name: &str, addresses: &[VirtualAddress]) {
        self.block(name, |to| {
            for address in addresses {
                to.address(address);
            }
        });
    }

    pub(super) fn fixed(&mut self, fixed: &Fixed) {
        if !fixed.addresses.is_empty() {
            self.address_list("static_ipaddress", &fixed.addresses);
        }
        self.routes("static_routes", &fixed.routes);
        self.rules("static_rules", &fixed.rules);
    }

    fn routes(&mut self, name: &str, routes: &[RouteEntry]) {
        let quoted_names = |entry: &RouteEntry| {
            let mut route = entry.route.clone();
            let names = route.hops.iter_mut().filter_map(|hop| hop.interface.as_mut());
            names.for_each(|name| *name = quoted(name).into());
            (route.to_string(), entry.kept.clone())
        };
        self.lines(name, routes.iter().map(quoted_names).collect());
    }

    fn rules(&mut self, name: &str, rules: &[RuleEntry]) {
        let quoted_names = |entry: &RuleEntry| {
            let mut rule = entry.rule.clone();
            let names = rule.incoming.as_mut().into_iter().chain(&mut rule.outgoing);
            names.for_each(|name| *name = quoted(name).into());
            (rule.to_string(), entry.kept.clone())
        };
        self.lines(name, rules.iter().map(quoted_names).collect());
    }

    /// Writes a block of lines, each with what is kept of it.
    fn lines(&mut self, name: &str, lines: Vec<(String, Vec<Statement>)>) {
        if lines.is_empty() {
            return;
        }
        self.block(name, |to| {
            for (mut line, kept) in lines {
                for words in to.kept_words(&kept) {
                    line.push_str(&format!(" {words}"));
                }
                to.line(line);
            }
        });
    }

    /// Returns what is kept of an entry, to stand on its line.
    fn kept_words(&mut self, kept: &[Statement]) -> Vec<String> {
        let start = self.out.len();
        self.statements(kept);
        self.out.split_off(start).lines().map(|line| line.trim().to_owned()).collect()
    }

    fn address(&mut self, address: &VirtualAddress) {
        let kept = self.kept_words(&address.kept);
        let mut line = format!("{}/{}", address.address, address.prefix);
        let mut add = |name: &str, word: Option<String>| {
            if let Some(word) = word {
                line.push_str(&format!(" {name} {word}"));
            }
        };
        add("dev", address.interface.as_deref().map(quoted));
        add(
            "brd",
            match address.broadcast {
                Broadcast::No => None,
                Broadcast::Ones => Some("+".into()),
                Broadcast::Zeros => Some("-".into()),
                Broadcast::Address(address) => Some(address.to_string()),
            },
        );
        add("scope", address.scope.as_deref().map(quoted));
        add("label", address.label.as_deref().map(quoted));
        add("peer", address.peer.map(|(address, length)| format!("{address}/{length}")));
        add("preferred_lft", address.preferred.map(in_seconds));
        for (name, holds) in [
            ("home", address.home),
            ("-nodad", address.detect_duplicates),
            ("mngtmpaddr", address.manage_temporary),
            ("noprefixroute", address.no_prefix_route),
            ("autojoin", address.autojoin),
            ("no_track", address.untracked),
        ] {
            if holds {
                line.push_str(&format!(" {name}"));
            }
        }
        for words in kept {
            line.push_str(&format!(" {words}"));
        }
        self.line(line);
    }

    fn tracked(&mut self, name: &str, all: &[Tracked]) {
        if all.is_empty() {
            return;
        }
        self.block(name, |to| {
            for tracked in all {
                let weight = tracked.weight.map(|weight| format!(" {}", weight_words(weight)));
                to.line(format!("{}{}", quoted(&tracked.name), weight.unwrap_or_default()));
            }
        });
    }

    fn notify(&mut self, notify: &Notify) {
        self.script("notify_master", notify.master.as_ref());
        self.script("notify_backup", notify.backup.as_ref());
        self.script("notify_fault", notify.fault.as_ref());
        self.script("notify_stop", notify.stop.as_ref());
        self.script("notify", notify.any.as_ref());
        self.switch("notify_priority_changes", notify.priority_changes);
        self.switch("smtp_alert", notify.mail);
    }

    pub(super) fn sync_group(&mut self, group: &SyncGroup) {
        self.block(format!("vrrp_sync_group {}", quoted(&group.name)), |to| {
            to.block("group", |to| {
                for member in &group.members {
                    to.line(quoted(member));
                }
            });
            to.tracked("track_interface", &group.track_interfaces);
            to.tracked("track_script", &group.track_scripts);
            to.tracked("track_file", &group.track_files);
            to.tracked("track_process", &group.track_processes);
            to.notify(&group.notify);
            to.statements(&group.kept);
        });
    }
}

fn weight_words(weight: Weight) -> String {
    format!("weight {}{}", weight.change, if weight.reverse { " reverse" } else { "" })
}

/// Returns the keyword for a family.
pub(super) fn family_word(family: Family) -> &'static str {
    if family == Family::V6 { "inet6" } else { "inet" }
}
