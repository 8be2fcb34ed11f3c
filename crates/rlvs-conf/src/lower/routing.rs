//! Routes, rules, and what a host has whatever the state of its virtual routers.

use std::net::IpAddr;
use std::sync::Arc;

use rlvs_control::model::Family;
use rlvs_control::routing::{
    Action, Bound, Hop, Line, MAIN_TABLE, Metric, Network, PROTOCOL, RULE_PRIORITY, Route,
    RouteKind, Rule,
};

use crate::desired::{Fixed, RouteEntry, RuleEntry};
use crate::diagnostic::{Diagnostic, Objection};
use crate::grammar::Arg;
use crate::lower::{Lower, common};
use crate::source::Span;
use crate::tree::Node;
use crate::value::{self, Meaning, Value};

/// Numbers that the kernel knows, and what they are called, in a file of iproute2.
struct Names {
    file: &'static str,
    what: &'static str,
    known: &'static [(&'static str, u32)],
    most: u32,
}

const TABLES: Names = Names {
    file: "rt_tables",
    what: "routing table",
    known: &[("default", 253), ("main", MAIN_TABLE), ("local", 255)],
    most: u32::MAX,
};
const PROTOCOLS: Names = Names {
    file: "rt_protos",
    what: "maker of routes",
    known: &[
        ("redirect", 1),
        ("kernel", 2),
        ("boot", 3),
        ("static", 4),
        ("keepalived", PROTOCOL as u32),
    ],
    most: 255,
};
const SCOPES: Names = Names {
    file: "rt_scopes",
    what: "scope",
    known: &[("global", 0), ("universe", 0), ("site", 200), ("link", 253), ("host", 254)],
    most: 255,
};
const SERVICES: Names =
    Names { file: "rt_dsfield", what: "type of service", known: &[], most: 255 };
const IP_PROTOCOLS: Names = Names {
    file: "",
    what: "IP protocol",
    known: &[
        ("icmp", 1),
        ("igmp", 2),
        ("ipip", 4),
        ("tcp", 6),
        ("udp", 17),
        ("dccp", 33),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("icmpv6", 58),
        ("ipv6-icmp", 58),
        ("sctp", 132),
        ("udplite", 136),
    ],
    most: 255,
};

impl Lower<'_> {
    /// Lowers the static blocks.
    pub(super) fn fixed(&mut self, nodes: &[Node], fixed: &mut Fixed) {
        let entries = |name: &'static str| {
            let blocks = nodes.iter().filter(move |node| node.row.name == name);
            blocks.flat_map(|node| node.children.iter().filter(|child| child.is_entry()))
        };
        fixed.addresses = self.read_addresses(entries("static_ipaddress"));
        for address in &mut fixed.addresses {
            address.interface.get_or_insert_with(|| self.defaults.interface.clone());
        }
        fixed.routes = self.routes(entries("static_routes"));
        fixed.rules = self.rules(entries("static_rules"));
    }

    /// Lowers entries of routes. One that is wrong is left out.
    pub(super) fn routes<'n>(
        &mut self,
        entries: impl Iterator<Item = &'n Node>,
    ) -> Vec<RouteEntry> {
        let mut routes: Vec<RouteEntry> = Vec::new();
        for entry in entries {
            let Some(route) = self.route(entry) else { continue };
            if routes.iter().any(|known| known.route == route) {
                self.say(Diagnostic::warning(entry.span, "this route is there twice"));
                continue;
            }
            routes.push(RouteEntry { route, kept: common::kept(&entry.children) });
        }
        routes
    }

    fn route(&mut self, entry: &Node) -> Option<Route> {
        let mut route = Route {
            source: entry.address("src"),
            untracked: entry.has("no_track"),
            line: self.line(entry.span),
            ..Route::to(Network::all(Family::V4))
        };
        for word in &entry.children {
            self.route_word(word, &mut route)?;
        }
        route.hops = self.hops(entry)?;
        let gateway = route.hops.iter().find_map(|hop| hop.gateway);
        let family = gateway.or(route.source).map_or(Family::V4, Family::of);
        let Some(to) = entry.word("to").or_else(|| entry.args.first()) else {
            let found = Diagnostic::error(entry.span, "a route without a destination");
            self.say(found.expected("expected an address, such as 192.0.2.0/24, or `default`"));
            return None;
        };
        let family = if entry.has("inet6") { Family::V6 } else { family };
        route.destination = self.destination(to, family)?;
        let gateways = route.hops.iter().filter_map(|hop| hop.gateway);
        let family = route.destination.family();
        if gateways.chain(route.source).any(|address| Family::of(address) != family) {
            self.say(Diagnostic::error(entry.span, "a route of IPv4 and of IPv6 addresses"));
            return None;
        }
        self.check_way(entry, &route);
        Some(route)
    }

    /// Reads a word of a route that is not about next hops; nothing, if it is wrong.
    fn route_word(&mut self, word: &Node, route: &mut Route) -> Option<()> {
        let name = word.row.name;
        if let Some((_, kind)) = RouteKind::WORDS.iter().find(|(known, _)| *known == name) {
            route.kind = *kind;
            return Some(());
        }
        if let Some((_, metric)) = Metric::WORDS.iter().find(|(known, _)| *known == name) {
            route.metrics.insert(*metric, self.bound(word)?);
            return Some(());
        }
        let Some(value) = word.args.first() else { return Some(()) };
        match name {
            "table" => route.table = self.named(value, &TABLES)?,
            "metric" | "priority" | "preference" => route.metric = Some(number(value)?),
            "scope" => route.scope = byte(self.named(value, &SCOPES)?),
            "proto" | "protocol" => route.protocol = byte(self.named(value, &PROTOCOLS)?),
            "tos" | "dsfield" => route.tos = byte(self.named(value, &SERVICES)?),
            _ => {}
        }
        Some(())
    }

    /// Reads the value of a metric, with or without `lock` before it.
    fn bound(&mut self, word: &Node) -> Option<Bound> {
        let first = word.args.first()?;
        let locked = first.text == "lock" && word.args.len() > 1;
        let value = word.args.last()?;
        match integer(&value.text).filter(|_| locked || word.args.len() == 1) {
            Some(value) => Some(Bound { value, locked }),
            None => {
                let text = format!("`{}` is no number", value.text);
                self.say(Diagnostic::error(value.span, text).expected("expected a whole number"));
                None
            }
        }
    }

    /// Reads the next hops of a route, in their order; nothing, if one is wrong.
    fn hops(&mut self, entry: &Node) -> Option<Vec<Hop>> {
        let (mut first, mut others) = (Hop::default(), Vec::<Hop>::new());
        for word in &entry.children {
            let hop = others.last_mut().unwrap_or(&mut first);
            match word.row.name {
                "nexthop" => others.push(Hop { weight: 1, ..Hop::default() }),
                "or" => {
                    let gateway = address_in(word.args.first()?);
                    others.push(Hop { gateway, weight: 1, ..Hop::default() });
                }
                "via" | "gw" => hop.gateway = Some(self.gateway(word)?),
                "dev" | "oif" => {
                    let value = word.args.first()?;
                    if !self.defaults.dynamic_interfaces {
                        self.check_interface(value);
                    }
                    hop.interface = Some(Arc::from(&*value.text));
                }
                "onlink" => hop.onlink = true,
                "weight" if hop.weight > 0 => {
                    let weight = number(word.args.first()?)?;
                    hop.weight = u16::try_from(weight).unwrap_or(u16::MAX);
                }
                "weight" => {
                    let found = Diagnostic::error(word.span, "a `weight` without a `nexthop`");
                    self.say(found.expected("expected it behind a `nexthop`"));
                    return None;
                }
                _ => {}
            }
        }
        if first != Hop::default() {
            first.weight = if others.is_empty() { 0 } else { 1 };
            others.insert(0, first);
        }
        Some(others)
    }

    fn gateway(&mut self, word: &Node) -> Option<IpAddr> {
        let value = word.args.last()?;
        let said = word.args.first().filter(|_| word.args.len() > 1);
        let right = said.is_none_or(|family| ["inet", "inet6"].contains(&&*family.text));
        let address = value.text.parse().ok().filter(|_| right);
        if address.is_none() {
            let text = format!("`{}` is no IP address", value.text);
            self.say(Diagnostic::error(value.span, text).expected("expected an IP address"));
        }
        address
    }

    /// Reads where a route leads.
    fn destination(&mut self, value: &Value, family: Family) -> Option<Network> {
        match &*value.text {
            "default" => return Some(Network::all(family)),
            "default6" => return Some(Network::all(Family::V6)),
            _ => {}
        }
        match value::read(Arg::Prefix, &value.text) {
            Ok(Meaning::Prefix(address, bits)) => Some(Network { address, bits }),
            Ok(_) => None,
            Err(wrong) => {
                let found = Diagnostic::error(value.span, wrong);
                self.say(found.expected("expected an address, such as 192.0.2.0/24, or `default`"));
                None
            }
        }
    }

    /// Says what is odd about the way of a route.
    fn check_way(&mut self, entry: &Node, route: &Route) {
        if route.kind == RouteKind::Unicast && route.hops.is_empty() {
            let found = Diagnostic::warning(entry.span, "a route that leads nowhere");
            self.say(
                found.help("`via` or `dev` says where it leads").objection(Objection::General),
            );
        } else if route.kind != RouteKind::Unicast && !route.hops.is_empty() {
            let found = Diagnostic::warning(entry.span, "no packet takes a next hop of this route");
            self.say(found.objection(Objection::General));
        }
        let named = route.hops.first().is_some_and(|hop| hop.interface.is_some());
        if !named && !route.untracked {
            let text = "keepalived does not put back a route that names no interface; rlvs does";
            self.say(Diagnostic::note(entry.span, text).objection(Objection::Foreign));
        }
    }

    /// Lowers entries of rules. One that is wrong is left out.
    pub(super) fn rules<'n>(&mut self, entries: impl Iterator<Item = &'n Node>) -> Vec<RuleEntry> {
        let mut rules: Vec<RuleEntry> = Vec::new();
        for entry in entries {
            let Some(rule) = self.rule(entry) else { continue };
            if rules.iter().any(|known| known.rule == rule) {
                self.say(Diagnostic::warning(entry.span, "this rule is there twice"));
                continue;
            }
            rules.push(RuleEntry { rule, kept: common::kept(&entry.children) });
        }
        rules
    }

    fn rule(&mut self, entry: &Node) -> Option<Rule> {
        if let Some(value) = entry.args.first() {
            let text = format!("`{}` is not known here", value.text);
            self.say(Diagnostic::error(value.span, text).expected("expected `from` or `to`"));
            return None;
        }
        let mut rule = Rule {
            family: Family::V4,
            inverted: entry.has("not"),
            from: None,
            to: None,
            incoming: None,
            outgoing: None,
            mark: None,
            tos: 0,
            ip_protocol: None,
            source_ports: None,
            destination_ports: None,
            users: None,
            tunnel: None,
            suppressed_bits: None,
            priority: RULE_PRIORITY,
            action: Action::Nop,
            protocol: PROTOCOL,
            untracked: entry.has("no_track"),
            line: self.line(entry.span),
        };
        let mut action = None;
        for word in &entry.children {
            self.rule_word(word, &mut rule)?;
            action = self.action(word)?.or(action);
        }
        let Some(action) = action else {
            let found = Diagnostic::error(entry.span, "a rule that does nothing");
            self.say(found.expected("expected a `table`, or `goto`, `nop`, `blackhole`…"));
            return None;
        };
        rule.action = action;
        let ends = || rule.from.into_iter().chain(rule.to).map(Network::family);
        let family = if entry.has("inet6") { Some(Family::V6) } else { ends().next() };
        rule.family = family.unwrap_or(Family::V4);
        if ends().any(|end| end != rule.family) {
            self.say(Diagnostic::error(entry.span, "a rule of IPv4 and of IPv6 addresses"));
            return None;
        }
        let said = |name: &&str| entry.has(name);
        if !["preference", "priority", "pref"].iter().any(said) {
            let text = format!("a rule without a `priority`: it gets {RULE_PRIORITY}");
            let found = Diagnostic::warning(entry.span, text);
            self.say(found.objection(Objection::General));
        }
        Some(rule)
    }

    /// Reads a word of a rule; nothing, if it is wrong.
    fn rule_word(&mut self, word: &Node, rule: &mut Rule) -> Option<()> {
        let Some(value) = word.args.first() else { return Some(()) };
        let interface = || Some(Arc::from(&*value.text));
        match word.row.name {
            "from" => rule.from = self.end(value)?,
            "to" => rule.to = self.end(value)?,
            "iif" | "dev" => rule.incoming = interface(),
            "oif" => rule.outgoing = interface(),
            "fwmark" => {
                let (mark, mask) =
                    value.text.split_once('/').unwrap_or((&value.text, "0xffffffff"));
                rule.mark = self.whole(value, integer(mark).zip(integer(mask)))?;
            }
            "tos" | "dsfield" => rule.tos = byte(self.named(value, &SERVICES)?),
            "ipproto" => rule.ip_protocol = Some(byte(self.named(value, &IP_PROTOCOLS)?)),
            "sport" => rule.source_ports = self.ports(value)?,
            "dport" => rule.destination_ports = self.ports(value)?,
            "uidrange" => rule.users = self.whole(value, range(&value.text))?,
            "tun_id" => rule.tunnel = Some(number(value)?.into()),
            "suppress_prefixlength" => rule.suppressed_bits = Some(number(value)?),
            "priority" | "preference" | "pref" => rule.priority = number(value)?,
            "proto" | "protocol" => rule.protocol = byte(self.named(value, &PROTOCOLS)?),
            _ => {}
        }
        Some(())
    }

    /// Reads what a rule does, if a word says it; nothing, if it is wrong.
    fn action(&mut self, word: &Node) -> Option<Option<Action>> {
        let name = word.row.name;
        if let Some((_, action)) = Action::WORDS.iter().find(|(known, _)| *known == name) {
            return Some(Some(*action));
        }
        Some(match name {
            "table" | "lookup" => Some(Action::Table(self.named(word.args.first()?, &TABLES)?)),
            "goto" => Some(Action::Goto(number(word.args.first()?)?)),
            _ => None,
        })
    }

    /// Reads an end of a rule: `Some(None)` is any.
    fn end(&mut self, value: &Value) -> Option<Option<Network>> {
        match &*value.text {
            "all" | "any" | "default" => Some(None),
            _ => self.destination(value, Family::V4).map(Some),
        }
    }

    fn ports(&mut self, value: &Value) -> Option<Option<(u16, u16)>> {
        let narrow = |(first, last)| Some((u16::try_from(first).ok()?, u16::try_from(last).ok()?));
        let ports = self.whole(value, range(&value.text).and_then(narrow))?;
        if !value.text.contains('-') {
            let text = "keepalived 2.2 takes a range of ports only, and would set a rule for any";
            let found = Diagnostic::warning(value.span, text).objection(Objection::Foreign);
            self.say(found.help(format!("`{0}-{0}` means the same to both", value.text)));
        }
        Some(ports)
    }

    /// Says if nothing could be read from a word.
    fn whole<T>(&mut self, value: &Value, read: Option<T>) -> Option<Option<T>> {
        if read.is_none() {
            let text = format!("`{}` is no number or range that fits here", value.text);
            self.say(Diagnostic::error(value.span, text));
            return None;
        }
        Some(read)
    }

    /// Reads a number, or a name that stands for one.
    fn named(&mut self, value: &Value, names: &Names) -> Option<u32> {
        let known = || names.known.iter().find(|(name, _)| *name == value.text).map(|one| one.1);
        let asked = || self.surroundings.routing_number(names.file, &value.text);
        let number = integer(&value.text).or_else(known).or_else(asked);
        let number = number.filter(|number| *number <= names.most);
        if number.is_none() {
            let text = format!("there is no {} `{}`", names.what, value.text);
            self.say(Diagnostic::error(value.span, text).expected("expected a number or a name"));
        }
        number
    }

    /// Returns where an entry is written.
    fn line(&self, span: Span) -> Line {
        let place = self.sources.place(span);
        Line(Some(format!("{}:{}", place.path.display(), place.line).into()))
    }
}

fn number(value: &Value) -> Option<u32> {
    match value.meaning {
        Meaning::Number(number) => number.try_into().ok(),
        _ => None,
    }
}

fn address_in(value: &Value) -> Option<IpAddr> {
    match value.meaning {
        Meaning::Address(address) => Some(address),
        _ => None,
    }
}

/// Narrows a number that was held against 255.
fn byte(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Reads a whole number, decimal or with `0x` hexadecimal.
fn integer(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?,
    }
}

/// Reads `N` or `N-M`.
fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    integer(first).zip(integer(last)).filter(|(first, last)| first <= last)
}
