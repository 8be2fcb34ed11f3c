//! `global_defs`.

use std::net::IpAddr;
use std::time::Duration;

use crate::desired::{
    DynamicInterfaces, Fifo, FlushOnStop, Garp, Global, Once, Removed, SyncDaemon, Timeouts,
    Version,
};
use crate::diagnostic::Diagnostic;
use crate::lower::{Lower, common};
use crate::tree::Node;
use crate::value::Meaning;

/// Longest run of a program at the start or the end.
const ONCE: Duration = Duration::from_secs(10);

/// What instances and services take from `global_defs`.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) version: Version,
    pub(super) strict: bool,
    pub(super) skip_address_check: bool,
    pub(super) check_unicast_source: bool,
    pub(super) garp: Garp,
    /// The second sets after a lower priority, where they are said.
    pub(super) lower_delay: Option<Duration>,
    pub(super) lower_repeat: Option<u32>,
    pub(super) lower_priority_no_advert: bool,
    pub(super) higher_priority_send_advert: bool,
    pub(super) down_timer_adverts: u8,
    pub(super) priority_changes: bool,
    pub(super) checksum_without_pseudo_header: bool,
    pub(super) group4: IpAddr,
    pub(super) group6: IpAddr,
    pub(super) mail_vrrp: bool,
    /// Mails about services and real servers, where it is said.
    pub(super) mail_checker: Option<bool>,
    pub(super) mail_server: bool,
    pub(super) log_all_failures: bool,
    pub(super) dynamic_interfaces: bool,
    /// The interface of static addresses that name none.
    pub(super) interface: String,
}

impl Default for Defaults {
    fn default() -> Self {
        let global = Global::default();
        Self {
            version: Version::V2,
            strict: false,
            skip_address_check: false,
            check_unicast_source: false,
            garp: Garp::default(),
            lower_delay: None,
            lower_repeat: None,
            lower_priority_no_advert: false,
            higher_priority_send_advert: false,
            down_timer_adverts: 3,
            priority_changes: false,
            checksum_without_pseudo_header: false,
            group4: global.group4,
            group6: global.group6,
            mail_vrrp: false,
            mail_checker: None,
            mail_server: false,
            log_all_failures: false,
            dynamic_interfaces: false,
            interface: "eth0".to_owned(),
        }
    }
}

/// Takes a value, if it is said.
fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

impl Lower<'_> {
    pub(super) fn global(&mut self, node: &Node, global: &mut Global) {
        let startup = self.once(node, "startup_script", "startup_script_timeout");
        set(&mut global.startup, startup.map(Some));
        let shutdown = self.once(node, "shutdown_script", "shutdown_script_timeout");
        set(&mut global.shutdown, shutdown.map(Some));
        set(&mut global.router_id, node.text("router_id").map(Some));
        if let Some(user) = node.child("script_user") {
            global.script_user = user.user(0);
            self.check_user(user, 0);
        }
        global.script_security |= node.has("enable_script_security");
        self.mail(node, global);
        set(&mut global.group4, self.group(node, "vrrp_mcast_group4", IpAddr::is_ipv4));
        set(&mut global.group6, self.group(node, "vrrp_mcast_group6", IpAddr::is_ipv6));
        set(&mut global.garp_interval, node.time("vrrp_garp_interval"));
        set(&mut global.gna_interval, node.time("vrrp_gna_interval"));
        set(&mut global.startup_delay, node.time("vrrp_startup_delay"));
        set(&mut global.dynamic_interfaces, dynamic_interfaces(node));
        self.fifo(node, "vrrp_notify_fifo", &mut global.vrrp_fifo);
        self.fifo(node, "lvs_notify_fifo", &mut global.service_fifo);
        self.fifo(node, "notify_fifo", &mut global.fifo);
        set(&mut global.sync_daemon, node.child("lvs_sync_daemon").and_then(sync_daemon).map(Some));
        global.flush |= node.has("lvs_flush");
        if let Some(flush) = node.child("lvs_flush_on_stop") {
            let all = flush.args.is_empty();
            global.flush_on_stop = if all { FlushOnStop::All } else { FlushOnStop::Services };
        }
        let removed = node.word("lvs_removed").map(|word| match &*word.text {
            "reset" => Removed::Reset,
            "silent" => Removed::Silent,
            _ => Removed::Keep,
        });
        set(&mut global.removed, removed);
        if let Some(timeouts) = node.child("lvs_timeouts") {
            if timeouts.children.is_empty() {
                let found = Diagnostic::error(timeouts.span, "`lvs_timeouts` without a time-out");
                self.say(found.expected("expected `tcp`, `tcpfin` or `udp` and seconds"));
            }
            let seconds = |name| timeouts.whole_seconds(name).filter(|time| !time.is_zero());
            let (tcp, tcp_fin, udp) = (seconds("tcp"), seconds("tcpfin"), seconds("udp"));
            global.timeouts = Timeouts { tcp, tcp_fin, udp };
        }
        global.initial_notifies |= node.has("rs_init_notifies");
        global.kept.extend(common::kept(&node.children));
        self.remember(node, global);
    }

    /// Returns a multicast group of a family.
    fn group(&mut self, node: &Node, name: &str, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let (address, value) = (node.address(name)?, node.word(name)?);
        let good = family(&address) && address.is_multicast();
        if !good {
            let text = format!("{address} is no group of this family");
            self.say(Diagnostic::error(value.span, text).expected("expected a multicast address"));
        }
        good.then_some(address)
    }

    fn mail(&mut self, node: &Node, global: &mut Global) {
        let mail = &mut global.mail;
        mail.to.extend(node.entries("notification_email").map(Node::name));
        set(&mut mail.from, node.text("notification_email_from").map(Some));
        set(&mut mail.helo, node.text("smtp_helo_name").map(Some));
        set(&mut mail.timeout, node.time("smtp_connect_timeout"));
        mail.no_faults |= node.has("no_email_faults");
        mail.no_services |= node.has("no_checker_emails");
        if let Some(server) = node.child("smtp_server") {
            let port = server.args.get(1).and_then(|port| match port.meaning {
                Meaning::Number(port) => u16::try_from(port).ok(),
                _ => None,
            });
            mail.server = server.args.first().map(|host| (host.text.clone(), port.unwrap_or(25)));
        }
    }

    fn fifo(&mut self, node: &Node, name: &str, fifo: &mut Fifo) {
        if let Some(child) = node.child(name) {
            fifo.path = child.args.first().map(|value| value.text.clone());
            fifo.owner = child.user(1);
        }
        let script = self.script(node, &format!("{name}_script"));
        set(&mut fifo.script, script.map(Some));
    }

    /// Notes what others take from here.
    fn remember(&mut self, node: &Node, global: &Global) {
        let to = &mut self.defaults;
        let version = node.number::<u8>("vrrp_version");
        set(
            &mut to.version,
            version.map(|number| if number == 3 { Version::V3 } else { Version::V2 }),
        );
        set(&mut to.strict, node.switch("vrrp_strict"));
        set(&mut to.skip_address_check, node.switch("vrrp_skip_check_adv_addr"));
        to.check_unicast_source |= node.has("vrrp_check_unicast_src");
        let garp = &mut to.garp;
        set(&mut garp.delay, node.whole_seconds("vrrp_garp_master_delay"));
        set(&mut garp.repeat, node.number("vrrp_garp_master_repeat"));
        set(&mut garp.refresh, node.whole_seconds("vrrp_garp_master_refresh"));
        set(&mut garp.refresh_repeat, node.number("vrrp_garp_master_refresh_repeat"));
        set(&mut to.lower_delay, node.whole_seconds("vrrp_garp_lower_prio_delay").map(Some));
        set(&mut to.lower_repeat, node.number("vrrp_garp_lower_prio_repeat").map(Some));
        set(&mut to.lower_priority_no_advert, node.switch("vrrp_lower_prio_no_advert"));
        set(&mut to.higher_priority_send_advert, node.switch("vrrp_higher_prio_send_advert"));
        set(&mut to.down_timer_adverts, node.number("vrrp_down_timer_adverts"));
        set(&mut to.priority_changes, node.switch("vrrp_notify_priority_changes"));
        set(&mut to.checksum_without_pseudo_header, node.switch("v3_checksum_as_v2"));
        (to.group4, to.group6) = (global.group4, global.group6);
        let alert = node.switch("smtp_alert");
        set(&mut to.mail_vrrp, node.switch("smtp_alert_vrrp").or(alert));
        set(&mut to.mail_checker, node.switch("smtp_alert_checker").or(alert).map(Some));
        to.mail_server = global.mail.server.is_some();
        set(&mut to.log_all_failures, node.switch("checker_log_all_failures"));
        if let Some(interface) = node.text("default_interface") {
            to.interface = interface;
        }
        to.dynamic_interfaces = global.dynamic_interfaces != DynamicInterfaces::Off;
    }
}

impl Lower<'_> {
    /// Returns a program that is run once.
    fn once(&mut self, node: &Node, name: &str, timeout: &str) -> Option<Once> {
        let timeout = node.whole_seconds(timeout).unwrap_or(ONCE);
        self.script(node, name).map(|script| Once { script, timeout })
    }
}

fn dynamic_interfaces(node: &Node) -> Option<DynamicInterfaces> {
    let child = node.child("dynamic_interfaces")?;
    Some(if child.args.is_empty() {
        DynamicInterfaces::On
    } else {
        DynamicInterfaces::AllowChanges
    })
}

fn sync_daemon(node: &Node) -> Option<SyncDaemon> {
    let second = node.args.get(1).map(|value| value.text.clone());
    Some(SyncDaemon {
        interface: node.args.first()?.text.clone(),
        instance: node.text("inst").or(second),
        id: node.number("id"),
        message_bytes_max: node.number("maxlen"),
        port: node.number("port"),
        ttl: node.number("ttl"),
        group: node.address("group"),
    })
}
