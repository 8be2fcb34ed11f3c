//! Routes and rules as the control plane asks for them.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType,
};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange, RuleUidRange,
};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use rlvs_control::model::Family;
use rlvs_control::routing::{Action, Bound, Entry, Hop, Metric, Network, Route, RouteKind, Rule};

use super::{Error, Rtnetlink};

impl Rtnetlink {
    /// Adds a route or a rule. A route comes before another to the same destination, as keepalived
    /// has it, and leaves that alone.
    ///
    /// # Errors
    /// [`Error::NoLink`] if `index` does not know an interface, `EEXIST` if it is there, or the
    /// kernel refused.
    pub fn add_entry(
        &mut self,
        entry: &Entry,
        index: impl Fn(&str) -> Option<u32>,
    ) -> Result<(), Error> {
        let operation = || format!("adding {entry}");
        match entry {
            Entry::Route(route) => {
                let message = RouteNetlinkMessage::NewRoute(route_message(route, index)?);
                self.change(message, NLM_F_CREATE, operation)
            }
            Entry::Rule(rule) => {
                let message = RouteNetlinkMessage::NewRule(rule_message(rule));
                self.change(message, NLM_F_CREATE | NLM_F_EXCL, operation)
            }
        }
    }

    /// Removes a route or a rule, if it is as it would be added.
    ///
    /// # Errors
    /// As [`Self::add_entry`]; `ESRCH` for a route and `ENOENT` for a rule that is not there.
    pub fn delete_entry(
        &mut self,
        entry: &Entry,
        index: impl Fn(&str) -> Option<u32>,
    ) -> Result<(), Error> {
        let message = match entry {
            Entry::Route(route) => RouteNetlinkMessage::DelRoute(route_message(route, index)?),
            Entry::Rule(rule) => RouteNetlinkMessage::DelRule(rule_message(rule)),
        };
        self.change(message, 0, || format!("removing {entry}"))
    }
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn route_message(
    route: &Route,
    index: impl Fn(&str) -> Option<u32>,
) -> Result<RouteMessage, Error> {
    let mut message = RouteMessage::default();
    let Network { address, bits } = route.destination;
    message.header.address_family = family(route.destination.family());
    message.header.destination_prefix_length = bits;
    message.header.tos = route.tos;
    // A table of more than eight bits stands in the attribute alone.
    message.header.table = u8::try_from(route.table).unwrap_or(0);
    message.header.protocol = route.protocol.into();
    message.header.scope = route.scope.into();
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Throw => RouteType::Throw,
    };
    let attributes = &mut message.attributes;
    if bits > 0 {
        attributes.push(RouteAttribute::Destination(address.into()));
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    if !route.metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics(route)));
    }
    match route.hops.as_slice() {
        [hop] if hop.weight == 0 => {
            attributes.extend(gateway(hop));
            attributes.extend(interface(hop, &index)?.map(RouteAttribute::Oif));
            if hop.onlink {
                message.header.flags = RouteFlags::Onlink;
            }
        }
        [] => {}
        hops => {
            let hops: Result<_, Error> = hops.iter().map(|hop| next_hop(hop, &index)).collect();
            attributes.push(RouteAttribute::MultiPath(hops?));
        }
    }
    Ok(message)
}

fn gateway(hop: &Hop) -> Option<RouteAttribute> {
    hop.gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway)))
}

fn interface(hop: &Hop, index: impl Fn(&str) -> Option<u32>) -> Result<Option<u32>, Error> {
    let of = |name: &str| index(name).ok_or_else(|| Error::NoLink(name.to_owned()));
    hop.interface.as_deref().map(of).transpose()
}

fn next_hop(hop: &Hop, index: impl Fn(&str) -> Option<u32>) -> Result<RouteNextHop, Error> {
    let mut next = RouteNextHop::default();
    next.interface_index = interface(hop, index)?.unwrap_or(0);
    // The kernel counts from 0.
    next.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    if hop.onlink {
        next.flags = RouteNextHopFlags::Onlink;
    }
    next.attributes = gateway(hop).into_iter().collect();
    Ok(next)
}

fn metrics(route: &Route) -> Vec<RouteMetric> {
    let mut locked = 0;
    let mut metrics = Vec::new();
    for (metric, bound) in &route.metrics {
        let Bound { value, .. } = *bound;
        let made = match metric {
            Metric::Mtu => RouteMetric::Mtu(value),
            Metric::Advmss => RouteMetric::Advmss(value),
            Metric::HopLimit => RouteMetric::Hoplimit(value),
            Metric::Window => RouteMetric::Window(value),
            Metric::Cwnd => RouteMetric::Cwnd(value),
            Metric::InitCwnd => RouteMetric::InitCwnd(value),
            Metric::InitRwnd => RouteMetric::InitRwnd(value),
            Metric::Ssthresh => RouteMetric::SsThresh(value),
            Metric::Reordering => RouteMetric::Reordering(value),
            Metric::QuickAck => RouteMetric::QuickAck(value),
            Metric::FastOpenNoCookie => RouteMetric::FastopenNoCookie(value),
        };
        if bound.locked {
            locked |= 1 << netlink_packet_core::Nla::kind(&made);
        }
        metrics.push(made);
    }
    if locked != 0 {
        metrics.push(RouteMetric::Lock(locked));
    }
    metrics
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    message.header.tos = rule.tos;
    message.header.flags.set(RuleFlags::Invert, rule.inverted);
    message.attributes = selectors(rule);
    let attributes = &mut message.attributes;
    if let Some(Network { address, bits }) = rule.from.filter(|from| from.bits > 0) {
        message.header.src_len = bits;
        attributes.push(RuleAttribute::Source(address));
    }
    if let Some(Network { address, bits }) = rule.to.filter(|to| to.bits > 0) {
        message.header.dst_len = bits;
        attributes.push(RuleAttribute::Destination(address));
    }
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(rule.protocol.into()));
    attributes.extend(rule.suppressed_bits.map(RuleAttribute::SuppressPrefixLen));
    message.header.action = match rule.action {
        Action::Table(table) => {
            message.header.table = u8::try_from(table).unwrap_or(0);
            attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Action::Vrf => {
            attributes.push(RuleAttribute::L3MDev(true));
            RuleAction::ToTable
        }
        Action::Goto(priority) => {
            attributes.push(RuleAttribute::Goto(priority));
            RuleAction::Goto
        }
        Action::Nop => RuleAction::Nop,
        Action::Blackhole => RuleAction::Blackhole,
        Action::Unreachable => RuleAction::Unreachable,
        Action::Prohibit => RuleAction::Prohibit,
    };
    message
}

/// Returns what a rule selects packets by, besides their addresses.
fn selectors(rule: &Rule) -> Vec<RuleAttribute> {
    let mut attributes = Vec::new();
    let name = |name: &std::sync::Arc<str>| name.to_string();
    attributes.extend(rule.incoming.as_ref().map(name).map(RuleAttribute::Iifname));
    attributes.extend(rule.outgoing.as_ref().map(name).map(RuleAttribute::Oifname));
    if let Some((mark, mask)) = rule.mark {
        attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
    }
    let protocol = |number: u8| RuleAttribute::IpProtocol(IpProtocol::from(i32::from(number)));
    attributes.extend(rule.ip_protocol.map(protocol));
    let range = |(start, end): (u16, u16)| RulePortRange { start, end };
    attributes.extend(rule.source_ports.map(range).map(RuleAttribute::SourcePortRange));
    attributes.extend(rule.destination_ports.map(range).map(RuleAttribute::DestinationPortRange));
    let users = |(start, end): (u32, u32)| RuleAttribute::UidRange(RuleUidRange { start, end });
    attributes.extend(rule.users.map(users));
    attributes.extend(rule.tunnel.map(RuleAttribute::TunId));
    attributes
}
