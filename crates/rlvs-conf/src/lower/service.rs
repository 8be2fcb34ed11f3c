//! Services and real servers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rlvs_control::model::{Family, ForwardingMethod, Netmask, Protocol, Tunnel, TunnelChecksum};

use crate::desired::{
    Desired, Persistence, Quorum, RealServer, SorryServer, Target, VirtualServer,
};
use crate::diagnostic::{Diagnostic, Objection};
use crate::lower::{Lower, common};
use crate::tree::Node;
use crate::value::Meaning;

/// Seconds of persistence that nobody gave a number for.
const PERSISTENCE: Duration = Duration::from_secs(360);
/// Keywords of the forwarding method.
const METHOD: &[&str] = &["lvs_method", "lb_kind"];
/// Checkers that only TCP services have.
const OF_TCP: [&str; 4] = ["HTTP_GET", "SSL_GET", "TCP_CHECK", "SMTP_CHECK"];

impl Lower<'_> {
    pub(super) fn virtual_servers<'n>(
        &mut self,
        nodes: impl Iterator<Item = &'n Node>,
        desired: &mut Desired,
    ) {
        let mut met = BTreeSet::new();
        for node in nodes {
            let Some(target) = self.target(node, desired) else { continue };
            let Some(server) = self.virtual_server(node, target) else { continue };
            if !met.insert(format!("{:?} {}", server.target, server.protocol)) {
                let text = "there is a virtual server for this already; this one is left out";
                let found = Diagnostic::error(node.span.to(node.args[0].span), text);
                self.say(found.objection(Objection::None));
                continue;
            }
            desired.virtual_servers.push(server);
        }
    }

    fn virtual_server(&mut self, whole: &Node, target: Target) -> Option<VirtualServer> {
        let node = &without_real_servers(whole);
        let real: Vec<&Node> =
            whole.children.iter().filter(|child| child.row.name == "real_server").collect();
        let protocol = self.protocol(node, &real, &target);
        let method = self.method(node, METHOD).unwrap_or(ForwardingMethod::Masquerade);
        let persistence = self.persistence(node, &target);
        for (names, text) in [
            (["lb_algo", "lvs_sched"], "no `lb_algo`: `wlc` is used"),
            (["lb_kind", "lvs_method"], "no `lb_kind`: `NAT` is used"),
        ] {
            if !names.iter().any(|name| node.has(name)) {
                self.say(Diagnostic::note(node.span, text).objection(Objection::General));
            }
        }
        let mut server = VirtualServer {
            target,
            protocol,
            scheduler: node
                .text("lb_algo")
                .or_else(|| node.text("lvs_sched"))
                .unwrap_or_else(|| "wlc".into()),
            scheduler_flags: self.flags(node),
            one_packet: self.one_packet(node, protocol),
            persistence,
            method,
            sorry_server: self.sorry_server(node, method),
            quorum: Quorum {
                weight: node.number("quorum").unwrap_or(1),
                hysteresis: node.number("hysteresis").unwrap_or(0),
                up: self.script(node, "quorum_up"),
                down: self.script(node, "quorum_down"),
            },
            notify_at_stop: node.has("omega"),
            suspend: node.has("ha_suspend"),
            mail: node.switch("smtp_alert").unwrap_or(self.defaults.mail_checker.unwrap_or(false)),
            real_servers: Vec::new(),
            kept: common::kept(&node.children),
        };
        let mut met = BTreeSet::new();
        for real in real {
            let Some(real_server) = self.real_server(real, node, &server) else { continue };
            if !met.insert((real_server.address, real_server.port)) {
                let text = format!(
                    "{} port {} is there twice; the second is left out",
                    real_server.address, real_server.port
                );
                self.say(Diagnostic::error(real.span.to(real.args[0].span), text));
                continue;
            }
            server.real_servers.push(real_server);
        }
        server.real_servers.shrink_to_fit();
        if matches!(server.target, Target::Mark(..)) {
            // What is left of the checkers tells, not what was written.
            let tcp = server.real_servers.iter().any(RealServer::is_checked_by_tcp);
            server.protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        }
        if server.real_servers.is_empty() {
            let text = "a virtual server without real servers; it is left out";
            self.say(Diagnostic::error(node.span, text).expected("expected a `real_server` in it"));
            return None;
        }
        self.quorum(node, &mut server);
        Some(server)
    }

    /// Returns whether every datagram is scheduled for itself.
    fn one_packet(&mut self, node: &Node, protocol: Protocol) -> bool {
        let Some(child) = node.child("ops") else { return false };
        if protocol != Protocol::Udp {
            self.say(Diagnostic::error(child.span, "`ops` is for UDP only; it is left out"));
        }
        protocol == Protocol::Udp
    }

    fn protocol(&mut self, node: &Node, real: &[&Node], target: &Target) -> Protocol {
        let mark = matches!(target, Target::Mark(..));
        if let Some(child) = node.child("protocol").filter(|_| mark) {
            let text = "a mark is of every protocol: this has no effect";
            self.say(Diagnostic::warning(child.span, text).objection(Objection::General));
        }
        match node.text("protocol").filter(|_| !mark).as_deref() {
            Some("TCP") => return Protocol::Tcp,
            Some("UDP") => return Protocol::Udp,
            Some(_) => return Protocol::Sctp,
            None => {}
        }
        let mut checkers = real.iter().flat_map(|real| &real.children);
        let tcp = checkers.any(|child| OF_TCP.contains(&child.row.name));
        if !mark && !node.has("protocol") {
            let found = if tcp {
                Diagnostic::warning(
                    node.span,
                    "no `protocol`: TCP is used, as the checks are of TCP",
                )
                .help("keepalived would use UDP: write `protocol TCP`")
            } else {
                Diagnostic::warning(node.span, "no `protocol`: UDP is used")
                    .help("write `protocol TCP` or `protocol UDP`")
            };
            self.say(found.objection(Objection::General));
        }
        if tcp { Protocol::Tcp } else { Protocol::Udp }
    }

    fn persistence(&mut self, node: &Node, target: &Target) -> Option<Persistence> {
        let said = node.child("persistence_timeout");
        let timeout =
            match said.map(|child| child.args.first().map(|value| (value.meaning, value.span))) {
                Some(Some((Meaning::Number(0), span))) => {
                    let text = "keepalived takes no `persistence_timeout 0`; it means off here";
                    self.say(Diagnostic::warning(span, text).objection(Objection::Foreign));
                    None
                }
                Some(Some((Meaning::Number(seconds), _))) => {
                    Some(Duration::from_secs(seconds.unsigned_abs()))
                }
                Some(None) => Some(PERSISTENCE),
                Some(Some(_)) | None => None,
            };
        let every_port = matches!(target, Target::Address(_, 0));
        if every_port && timeout.is_none() {
            let text = "a service of every port keeps clients at their real server, here for 360 s";
            let found = Diagnostic::warning(node.span, text);
            let found = found.help("write a port, or `persistence_timeout`");
            self.say(found.objection(Objection::General));
        }
        let timeout = timeout.or(every_port.then_some(PERSISTENCE))?;
        let v6 = match target {
            Target::Address(address, _) => address.is_ipv6(),
            Target::Mark(_, family) => *family == Family::V6,
            Target::Group(_) => false,
        };
        let granularity = match node.word("persistence_granularity").map(|value| value.meaning) {
            Some(Meaning::Number(length)) if v6 => Netmask::V6(length as u8),
            Some(Meaning::Number(length @ 1..=32)) => {
                Netmask::V4((u32::MAX << (32 - length)).to_be_bytes())
            }
            Some(Meaning::Address(IpAddr::V4(mask))) => Netmask::V4(mask.octets()),
            _ if v6 => Netmask::V6(128),
            _ => Netmask::V4([255; 4]),
        };
        Some(Persistence { timeout, granularity, engine: node.text("persistence_engine") })
    }

    fn sorry_server(&mut self, node: &Node, default: ForwardingMethod) -> Option<SorryServer> {
        let place = |name: &str| node.children.iter().position(|child| child.row.name == name);
        let (address, port) = match node.child("sorry_server") {
            Some(child) => {
                let inhibit = place("sorry_server_inhibit");
                if inhibit.is_some_and(|inhibit| Some(inhibit) < place("sorry_server")) {
                    let text = "keepalived would ignore a `sorry_server_inhibit` before the `sorry_server`";
                    let found = Diagnostic::warning(child.span, text);
                    self.say(found.objection(Objection::Foreign));
                }
                end(child)?
            }
            None => {
                for child in
                    node.children.iter().filter(|child| child.row.name.starts_with("sorry_server"))
                {
                    let text = format!("`{}` without a `sorry_server`", child.row.name);
                    self.say(Diagnostic::error(child.span, text));
                }
                return None;
            }
        };
        Some(SorryServer {
            address,
            port,
            method: self.method(node, &["sorry_server_lvs_method"]).unwrap_or(default),
            inhibit: node.has("sorry_server_inhibit"),
        })
    }

    fn real_server(
        &mut self,
        node: &Node,
        service: &Node,
        server: &VirtualServer,
    ) -> Option<RealServer> {
        let (address, mut port) = end(node)?;
        let method = self.method(node, METHOD).unwrap_or(server.method);
        let tunnel = matches!(method, ForwardingMethod::Tunnel(_));
        if let Target::Address(virtual_address, virtual_port) = server.target {
            if virtual_address.is_ipv4() != address.is_ipv4() && !tunnel {
                let text = format!(
                    "{address} is of another family than the service, which only tunnels can cross"
                );
                self.say(Diagnostic::error(node.args[0].span, text));
                return None;
            }
            if method != ForwardingMethod::Masquerade && port != virtual_port {
                if let Some(value) = node.args.get(1) {
                    let text = format!("only NAT changes the port: {virtual_port} is used");
                    let found = Diagnostic::error(value.span, text);
                    self.say(found.expected(format!(
                        "expected {virtual_port}, the port of the virtual server"
                    )));
                }
                port = virtual_port;
            }
        }
        let mail = node.switch("smtp_alert").or(self.defaults.mail_checker);
        let mut real = RealServer {
            address,
            port,
            weight: node.number("weight").or_else(|| service.number("weight")).unwrap_or(1),
            method,
            upper_threshold: node.number("uthreshold").unwrap_or(0),
            lower_threshold: node.number("lthreshold").unwrap_or(0),
            inhibit: node.has("inhibit_on_failure") || service.has("inhibit_on_failure"),
            up: self.script(node, "notify_up").map(Box::new),
            down: self.script(node, "notify_down").map(Box::new),
            mail: mail.unwrap_or(self.defaults.mail_server),
            checkers: Arc::default(),
            kept: common::kept(&node.children),
        };
        real.checkers = self.checkers(node, service, &real);
        Some(real)
    }

    /// Returns the forwarding method that the first of these keywords says.
    fn method(&mut self, node: &Node, names: &[&str]) -> Option<ForwardingMethod> {
        let child = names.iter().find_map(|name| node.child(name))?;
        let value = child.args.first().filter(|value| value.meaning != Meaning::Wrong)?;
        Some(match &*value.text {
            "NAT" => ForwardingMethod::Masquerade,
            "DR" => ForwardingMethod::DirectRoute,
            _ => {
                let tunnel = tunnel(child);
                if matches!(tunnel, Tunnel::Gue { port: 0, .. }) && !child.has("port") {
                    let found =
                        Diagnostic::error(child.span, "a tunnel of type gue without a port");
                    self.say(found.expected("expected `port` and a number behind it"));
                }
                ForwardingMethod::Tunnel(tunnel)
            }
        })
    }

    /// Returns flags 1 to 3 as bits.
    fn flags(&mut self, node: &Node) -> u8 {
        let scheduler = node.text("lb_algo").or_else(|| node.text("lvs_sched"));
        let scheduler = scheduler.unwrap_or_default();
        let mut bits = 0;
        for child in &node.children {
            let (of, bit) = match child.row.name {
                "flag-1" => ("", 1),
                "flag-2" => ("", 2),
                "flag-3" => ("", 4),
                "sh-fallback" => ("sh", 1),
                "sh-port" => ("sh", 2),
                "hashed" => ("sh", 0),
                "mh-fallback" => ("mh", 1),
                "mh-port" => ("mh", 2),
                _ => continue,
            };
            if !of.is_empty() && scheduler != of {
                let text = format!("`{}` is for the scheduler `{of}` only", child.row.name);
                self.say(Diagnostic::error(child.span, text));
            } else {
                bits |= bit;
            }
        }
        bits
    }

    /// Holds the quorum to what the real servers can reach.
    fn quorum(&mut self, node: &Node, server: &mut VirtualServer) {
        let sum: u64 = server.real_servers.iter().map(|real| u64::from(real.weight)).sum();
        let quorum = &mut server.quorum;
        let at = |name| node.word(name).map_or(node.span, |value| value.span);
        if u64::from(quorum.weight) > sum {
            let text =
                format!("the weights of all real servers are {sum}, which is used as the quorum");
            self.say(Diagnostic::warning(at("quorum"), text).objection(Objection::General));
            quorum.weight = sum as u32;
        }
        if quorum.hysteresis > 0 && quorum.hysteresis >= quorum.weight {
            quorum.hysteresis = quorum.weight.saturating_sub(1);
            let text = format!(
                "the hysteresis must be less than the quorum: {} is used",
                quorum.hysteresis
            );
            self.say(Diagnostic::warning(at("hysteresis"), text).objection(Objection::General));
        }
    }
}

/// Returns a block without its real servers, so that looking into it for each of them is no work.
fn without_real_servers(node: &Node) -> Node {
    let own = node.children.iter().filter(|child| child.row.name != "real_server");
    Node {
        row: node.row,
        span: node.span,
        args: node.args.clone(),
        children: own.cloned().collect(),
    }
}

/// Returns address and port of a real server.
fn end(node: &Node) -> Option<(IpAddr, u16)> {
    let Meaning::Address(address) = node.args.first()?.meaning else { return None };
    let port = match node.args.get(1).map(|value| value.meaning) {
        None => 0,
        Some(Meaning::Number(port)) => port.try_into().ok()?,
        Some(_) => return None,
    };
    Some((address, port))
}

fn tunnel(node: &Node) -> Tunnel {
    match node.text("type").as_deref() {
        Some("gue") => Tunnel::Gue {
            port: node.child("type").and_then(|_| node.number("port")).unwrap_or(0),
            checksum: match (node.has("csum"), node.has("remcsum")) {
                (_, true) => TunnelChecksum::Remote,
                (true, false) => TunnelChecksum::Outer,
                (false, false) => TunnelChecksum::None,
            },
        },
        Some("gre") => Tunnel::Gre { checksum: node.has("csum") },
        _ => Tunnel::Ipip,
    }
}
