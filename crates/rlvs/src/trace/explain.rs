//! What was seen of a packet, in words: a function of values.

use std::io::{self, Write};

use rlvs_control::model::{Connection, ServiceId};
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::shadow::{Answer, Chosen, Outcome, Server, Service};
use serde_json::{Value, json};

use super::packet::{Asked, Becomes};
use crate::drain::{destination_name, service_name};
use crate::json::SCHEMA;

/// All that is known of a packet.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The packet.
    pub asked: Asked,
    /// Name of the interface that it comes in by.
    pub interface: String,
    /// What the data plane did with it.
    pub answer: Answer,
    /// What is in the frame afterwards.
    pub becomes: Option<Becomes>,
    /// Name of the interface to the server, if there is a way.
    pub way: Option<String>,
    /// Whether the host has no route to the server.
    pub no_way: bool,
}

/// What becomes of a packet in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to a server.
    Forwarded,
    /// It is given to a server on this host.
    Local,
    /// The client gets an ICMP error.
    Answered,
    /// It is the stack's.
    Passed,
    /// It ends here, and nobody is told.
    Dropped,
}

impl Verdict {
    /// Returns its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Local => "local",
            Self::Answered => "answered",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Local => "given to the server on this host",
            Self::Answered => "not forwarded: the client is answered with an ICMP error",
            Self::Passed => "not forwarded: left to the stack of this host",
            Self::Dropped => "not forwarded: dropped",
        }
    }
}

impl Scene {
    /// Returns what becomes of the packet.
    pub fn verdict(&self) -> Verdict {
        let is_local = self.answer.reasons.contains(&Reason::Local)
            && self.answer.chosen.is_some()
            && !self.no_way;
        let is_error = self.becomes.as_ref().is_some_and(|becomes| becomes.icmp.is_some());
        match self.answer.outcome {
            Outcome::Sent if is_error => Verdict::Answered,
            _ if is_local => Verdict::Local,
            // The stack has no way for it either.
            _ if self.no_way => Verdict::Dropped,
            Outcome::Sent => Verdict::Forwarded,
            Outcome::Passed => Verdict::Passed,
            Outcome::Dropped => Verdict::Dropped,
        }
    }

    /// Returns whether a server gets it.
    pub fn is_forwarded(&self) -> bool {
        matches!(self.verdict(), Verdict::Forwarded | Verdict::Local)
    }

    fn server(&self) -> Option<(&Chosen, &Server)> {
        let chosen = self.answer.chosen.as_ref()?;
        Some((chosen, self.answer.servers.get(chosen.server)?))
    }

    /// Returns why this destination, or none: a sentence for each cause.
    pub fn why(&self) -> Vec<String> {
        let mut why = Vec::new();
        let Answer { service, servers, connection, reasons, .. } = &self.answer;
        match (service, self.server()) {
            (Some(service), Some((chosen, _))) if chosen.opened => {
                why.extend(of_new(service, chosen));
            }
            (Some(service), Some(_)) => why.push(of_old(service, connection.as_ref())),
            (None, _) if !reasons.contains(&Reason::NotLocal) => {
                let target = self.asked.target;
                why.push(format!("no service has {} {target}", self.asked.protocol));
            }
            _ => {}
        }
        let opens = self.answer.chosen.as_ref().is_some_and(|chosen| chosen.opened);
        if opens || reasons.contains(&Reason::NoDestination) {
            why.extend(of_servers(servers));
        }
        if self.no_way {
            why.push("there is no route to the server".to_owned());
        }
        let counted = reasons.iter().filter(|reason| !self.no_way || **reason != Reason::Local);
        why.extend(counted.map(|reason| format!("{}: {}", reason.name(), meaning(*reason))));
        why
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Asked { protocol, client, target, .. } = self.asked;
        let kind = self.asked.kind();
        writeln!(
            out,
            "packet   {protocol} {kind} from {client} to {target}, by {}",
            self.interface
        )?;
        match &self.answer.service {
            Some(service) => writeln!(out, "service  {}", of_service(service))?,
            None => writeln!(out, "service  none")?,
        }
        for (at, server) in self.answer.servers.iter().enumerate() {
            let is_chosen = self.answer.chosen.as_ref().is_some_and(|chosen| chosen.server == at);
            let arrow = if is_chosen { "->" } else { "  " };
            writeln!(out, "server   {arrow} {}", of_server(server))?;
        }
        for why in self.why() {
            writeln!(out, "why      {why}")?;
        }
        if let (Verdict::Forwarded | Verdict::Answered, Some(becomes)) =
            (self.verdict(), &self.becomes)
        {
            writeln!(out, "becomes  {}", of_packet(becomes))?;
        }
        if self.is_forwarded()
            && let (Some((chosen, _)), Some(way), Some(becomes)) =
                (self.server(), &self.way, &self.becomes)
        {
            let neighbour = match chosen.unresolved {
                true => "its neighbour's address, which the kernel has yet to ask for".to_owned(),
                false => becomes.mac.to_string(),
            };
            writeln!(out, "way      by {way} to {neighbour}")?;
        }
        writeln!(out, "verdict  {}", self.verdict().text())
    }

    /// Returns it as `--json` writes it.
    pub fn json(&self) -> Value {
        let Asked { protocol, client, target, .. } = self.asked;
        let Answer { service, servers, connection, reasons, .. } = &self.answer;
        let end = |end: &std::net::SocketAddr| json!({"address": end.ip(), "port": end.port()});
        let chosen = self.server().map(|(chosen, server)| {
            json!({
                "address": server.id.address,
                "port": server.id.port,
                "opened": chosen.opened,
                "template_made": chosen.template_made,
                "interface": self.way,
                "unresolved": chosen.unresolved,
            })
        });
        let becomes = self.becomes.as_ref().filter(|_| self.answer.outcome == Outcome::Sent);
        json!({
            "schema": SCHEMA,
            "packet": {
                "protocol": protocol.to_string().to_lowercase(),
                "kind": self.asked.kind(),
                "client": end(&client),
                "virtual": end(&target),
                "interface": self.interface,
            },
            "service": service.as_ref().map(service_json),
            "connection": connection.as_ref().map(|one| json!({
                "state": one.state,
                "expires_s": one.expires_s,
                "destination": end(&one.destination),
            })),
            "servers": servers.iter().map(server_json).collect::<Vec<_>>(),
            "chosen": chosen,
            "becomes": becomes.map(packet_json),
            "verdict": self.verdict().name(),
            "reasons": reasons.iter().map(|reason| reason.name()).collect::<Vec<_>>(),
            "why": self.why(),
        })
    }
}

/// Says why a new connection goes where it goes.
fn of_new(service: &Service, chosen: &Chosen) -> Vec<String> {
    let picks = format!("{}: {}", service.scheduler, picks(service.scheduler));
    match (service.persistent, chosen.template_made) {
        (true, false) => vec!["the client's persistence template leads there".to_owned()],
        (true, true) => {
            vec!["there is no persistence template of the client: one is made".to_owned(), picks]
        }
        (false, _) => vec![picks],
    }
}

/// Says why a packet that opens nothing goes where it goes.
fn of_old(service: &Service, connection: Option<&Connection>) -> String {
    match connection {
        Some(Connection { state, expires_s, .. }) => {
            format!("it belongs to a connection: {state}, which expires in {expires_s} s")
        }
        None if service.one_packet => "each datagram is scheduled by itself".to_owned(),
        None => "it opens no connection".to_owned(),
    }
}

/// Says what a scheduler goes by.
fn picks(scheduler: &str) -> &'static str {
    match scheduler {
        "rr" => "it is its turn, if no other connection comes before",
        "wrr" => "it is its turn by weight, if no other connection comes before",
        "lc" => "it has the fewest connections",
        "wlc" => "it has the fewest connections for its weight",
        "sed" => "it has the shortest expected delay",
        "nq" => "it has no connection, or the shortest expected delay",
        "lblc" | "lblcr" => "it serves this virtual address, or had the fewest connections for it",
        "dh" => "the virtual address leads there by its hash",
        "sh" => "the client leads there by its hash",
        "mh" => "the client leads there by its hash (Maglev)",
        "fo" => "it has the highest weight of those that take connections",
        "ovf" => "it has the highest weight of those that have room",
        "twos" | "p2c" => "it is the better one of two that are drawn; the next draw may differ",
        _ => "it was picked",
    }
}

/// Says which servers of a service take no connections.
fn of_servers(servers: &[Server]) -> Vec<String> {
    let listed: Vec<&Server> = servers.iter().filter(|server| server.listed).collect();
    if listed.is_empty() {
        return vec!["the service has no server".to_owned()];
    }
    let takes = |server: &&&Server| server.weight != 0 && !server.overloaded;
    let taking = listed.iter().filter(takes).count();
    vec![format!("{taking} of {} servers take new connections", listed.len())]
}

fn of_service(service: &Service) -> String {
    let mut text = format!("{}, {}", service_name(service.id), service.scheduler);
    for (is_so, word) in [
        (service.persistent, ", persistent"),
        (service.one_packet, ", one packet at a time"),
        (service.guarded, ", with rules of access"),
    ] {
        if is_so {
            text += word;
        }
    }
    text
}

fn of_server(server: &Server) -> String {
    let Server { weight, active, inactive, upper, lower, .. } = server;
    let mut text = format!(
        "{} {}, weight {weight}, {active} active, {inactive} inactive",
        destination_name(server.id),
        server.method.name(),
    );
    let state = match server {
        Server { listed: false, .. } => ": removed, has connections yet".to_owned(),
        Server { drained: true, .. } => ": drained".to_owned(),
        Server { weight: 0, .. } => ": weight 0 takes none".to_owned(),
        Server { overloaded: true, .. } => {
            format!(": overloaded, thresholds {upper} and {lower}")
        }
        _ => String::new(),
    };
    text += &state;
    text
}

fn of_packet(becomes: &Becomes) -> String {
    let Becomes { source, target, ports, ttl, icmp, outer, .. } = becomes;
    let inner = match (ports, icmp) {
        (_, Some((kind, code))) => {
            format!("ICMP type {kind} code {code} from {source} to {target}")
        }
        (Some((from, to)), _) => {
            let end = std::net::SocketAddr::new;
            format!("{} to {}, TTL {ttl}", end(*source, *from), end(*target, *to))
        }
        (None, _) => format!("{source} to {target}, TTL {ttl}"),
    };
    match outer {
        Some((from, to)) => format!("{inner}, in a tunnel from {from} to {to}"),
        None => inner,
    }
}

/// Says what a reason means to whoever wants the packet forwarded.
const fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::OtherProtocol => "it is neither TCP nor UDP, and nothing here takes its protocol",
        Reason::Malformed => "its headers contradict each other",
        Reason::Fragment => "a fragment whose first has not come by",
        Reason::Options => "options that are the stack's business",
        Reason::OtherHost => {
            "the frame is not addressed to the interface; `rlvs attach` tells its address anew"
        }
        Reason::NoService => "it is neither to a virtual service nor from a server of one",
        Reason::NoConnection => "there is no connection, and it does not begin one",
        Reason::NotLocal => {
            "the virtual address is not one of this host: another director may have it; `ip address add` or keepalived brings it, `--any` does without"
        }
        Reason::Unresolved => "the neighbour's address is not known yet",
        Reason::NoDestination => "no server takes new connections",
        Reason::Expired => "its time to live is used up",
        Reason::TableFull => "the connection table has no room",
        Reason::Stateless => "the connection table has no room: it is forwarded without an entry",
        Reason::ReplyTaken => "this client's port is in use with every server tried",
        Reason::Removed => "the server of its connection was removed",
        Reason::Unreachable => "there is no route to the server",
        Reason::TooBig => "it is longer than the way takes",
        Reason::Busy => {
            "another processor held the lock of this flow for too long, or took its place of the pool"
        }
        Reason::Inconsistent => {
            "the tables name something that is not there; `rlvs doctor` looks at them"
        }
        Reason::NoRoom => "the frame could not be made longer or shorter",
        Reason::IcmpLimited => "it deserves an ICMP error, and enough of them were sent",
        Reason::Local => "the server is this host itself",
        Reason::FromPeer => "another director sent it here, where it would only be sent on",
        Reason::Denied => "a rule of access denies the client; `rlvs acl list` shows it",
        Reason::NotAllowed => {
            "rules of access allow others, not this client; `rlvs acl list` shows them"
        }
        Reason::TooFast => "the client's network opens connections too fast",
        Reason::TooMany => "the client's network has as many connections as it may have",
        Reason::NoPort => "no address and port of full NAT is free; `rlvs snat` adds some",
        Reason::NoCallId => "the service persists by SIP's Call-ID, and it has none",
        Reason::Thinned => "`rlvs set drop_packet` drops one new connection of so many",
        Reason::UnknownReply => "a server's packet of which no connection is known",
    }
}

fn service_json(service: &Service) -> Value {
    let mut value = match service.id {
        ServiceId::Address { protocol, address, port } => json!({
            "protocol": protocol.to_string().to_lowercase(), "address": address, "port": port,
        }),
        ServiceId::Mark { mark, .. } => json!({"mark": mark}),
    };
    value["scheduler"] = service.scheduler.into();
    value["persistent"] = service.persistent.into();
    value["one_packet"] = service.one_packet.into();
    value["guarded"] = service.guarded.into();
    value
}

fn server_json(server: &Server) -> Value {
    json!({
        "address": server.id.address,
        "port": server.id.port,
        "method": server.method.name(),
        "weight": server.weight,
        "drained": server.drained,
        "listed": server.listed,
        "active": server.active,
        "inactive": server.inactive,
        "upper_threshold": server.upper,
        "lower_threshold": server.lower,
        "overloaded": server.overloaded,
    })
}

fn packet_json(becomes: &Becomes) -> Value {
    let Becomes { mac, outer, source, target, ports, ttl, icmp } = becomes;
    json!({
        "mac": mac.to_string(),
        "source": {"address": source, "port": ports.map(|(from, _)| from)},
        "destination": {"address": target, "port": ports.map(|(_, to)| to)},
        "ttl": ttl,
        "tunnel": outer.map(|(from, to)| json!({"source": from, "destination": to})),
        "icmp": icmp.map(|(kind, code)| json!({"type": kind, "code": code})),
    })
}

#[cfg(test)]
mod tests;
