//! From the desired state of a configuration to health and tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use rlvs_conf::desired::{
    self, AddressRange, Checker, CheckerKind, Desired, Member, RealServer, Script, Target,
    VirtualServer,
};
use rlvs_control::checks::{Check, Quorum, Server, Service, Sorry, Timing};
use rlvs_control::model::{self, Destination, DestinationId, Persistence, Protocol, ServiceId};
use rlvs_control::table::Removal;

use super::event::{Event, Kind};
use super::probe;
use super::reply::Wanted;
use super::request::{Found, Request};

/// Who runs scripts if nobody is named and this user exists.
const SCRIPT_USER: &str = "keepalived_script";
/// The weight of a sorry server that serves.
const SORRY_WEIGHT: u32 = 1;
/// The edge comes first: it knows better what did not come in time.
const GRACE: Duration = Duration::from_millis(50);

/// A configuration as health and tables need it.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// What is to be checked.
    pub(super) health: Vec<Service<Request>>,
    /// What else is known of each service, by name.
    pub(super) services: BTreeMap<String, Known>,
    /// What is not carried out.
    pub(super) events: Vec<Event>,
    /// When the last check that was read runs; most are like it.
    timing: Option<Arc<Timing>>,
}

/// What is known of a service besides its health.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The services of the table: one, or one for each member of a group.
    pub(super) tables: Vec<model::Service>,
    /// Transport protocol, for names.
    pub(super) protocol: Protocol,
    /// Run when the quorum is gained.
    pub(super) up: Option<Script>,
    /// Run when the quorum is lost.
    pub(super) down: Option<Script>,
    /// Addresses without which its checks rest (`ha_suspend`).
    pub(super) suspend: Vec<IpAddr>,
    /// Tell at stop too.
    pub(super) at_stop: bool,
    /// Mails about the quorum.
    pub(super) mail: bool,
    /// What is known of those of its servers that differ from [`ORDINARY`].
    servers: BTreeMap<DestinationId, KnownServer>,
    /// Its sorry server.
    pub(super) sorry: Option<DestinationId>,
}

/// What is known of a server besides its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownServer {
    /// Run when it is good.
    pub(super) up: Option<Box<Script>>,
    /// Run when it is bad.
    pub(super) down: Option<Box<Script>>,
    /// Mails about it.
    pub(super) mail: bool,
    /// It stays in the table when it is bad.
    pub(super) inhibit: bool,
}

/// A server of which nobody learns.
const ORDINARY: KnownServer = KnownServer { up: None, down: None, mail: false, inhibit: false };

impl Known {
    /// Returns what is known of a server.
    pub(super) fn server(&self, id: DestinationId) -> &KnownServer {
        self.servers.get(&id).unwrap_or(&ORDINARY)
    }
}

/// Reads what a configuration says about virtual servers.
pub(super) fn read(desired: &Desired) -> Config {
    let mut config = Config::default();
    for server in &desired.virtual_servers {
        let name = name(&server.target, server.protocol);
        if config.services.contains_key(&name) {
            config.say(&name, None, "it is configured twice", "the second is left out");
            continue;
        }
        let servers = server.real_servers.iter();
        let servers = servers.map(|real| config.server(desired, server, &name, real)).collect();
        let sorry = server.sorry_server.as_ref().map(|sorry| Sorry {
            destination: Destination {
                id: DestinationId { address: sorry.address, port: sorry.port },
                method: sorry.method,
                weight: SORRY_WEIGHT,
                upper_threshold: 0,
                lower_threshold: 0,
            },
            inhibit: sorry.inhibit,
        });
        let quorum = Quorum { weight: server.quorum.weight, hysteresis: server.quorum.hysteresis };
        config.services.insert(name.clone(), known(desired, server));
        config.health.push(Service { name, quorum, sorry, servers });
    }
    config
}

impl Config {
    fn say(&mut self, service: &str, server: Option<String>, cause: &str, consequence: &str) {
        self.events.push(Event {
            kind: Kind::Unsupported,
            service: service.to_owned(),
            server,
            cause: cause.to_owned(),
            consequence: consequence.to_owned(),
            script: None,
            mail: false,
        });
    }

    fn server(
        &mut self,
        desired: &Desired,
        service: &VirtualServer,
        name: &str,
        real: &RealServer,
    ) -> Server<Request> {
        let title = server_name(real.address, real.port, service.protocol);
        let mut checks = Vec::with_capacity(real.checkers.len());
        for checker in real.checkers.iter() {
            match request(desired, real, checker) {
                Ok(request) => checks.push(Check {
                    request,
                    timing: self.shared(timing(checker)),
                    starts_down: checker.starts_down,
                }),
                Err(why) => {
                    self.say(name, Some(title.clone()), &why, "the server is not checked so");
                }
            }
        }
        let destination = Destination {
            id: DestinationId { address: real.address, port: real.port },
            method: real.method,
            weight: real.weight,
            upper_threshold: real.upper_threshold,
            lower_threshold: real.lower_threshold,
        };
        Server { destination, inhibit: real.inhibit, checks }
    }

    fn shared(&mut self, timing: Timing) -> Arc<Timing> {
        if let Some(last) = self.timing.as_ref().filter(|last| ***last == timing) {
            return last.clone();
        }
        self.timing.insert(Arc::new(timing)).clone()
    }
}

fn known(desired: &Desired, server: &VirtualServer) -> Known {
    let servers = server.real_servers.iter().map(|real| {
        let id = DestinationId { address: real.address, port: real.port };
        let (up, down) = (real.up.clone(), real.down.clone());
        (id, KnownServer { up, down, mail: real.mail, inhibit: real.inhibit })
    });
    let tables = tables(desired, server);
    let address = |table: &model::Service| match table.id {
        ServiceId::Address { address, .. } if server.suspend => Some(address),
        _ => None,
    };
    Known {
        suspend: tables.iter().filter_map(address).collect(),
        tables,
        protocol: server.protocol,
        up: server.quorum.up.clone(),
        down: server.quorum.down.clone(),
        at_stop: server.notify_at_stop,
        mail: server.mail,
        servers: servers.filter(|(_, server)| *server != ORDINARY).collect(),
        sorry: server
            .sorry_server
            .as_ref()
            .map(|sorry| DestinationId { address: sorry.address, port: sorry.port }),
    }
}

/// Returns the services that a virtual server stands for in a table.
fn tables(desired: &Desired, server: &VirtualServer) -> Vec<model::Service> {
    let protocol = server.protocol;
    let of = |address, port| ServiceId::Address { protocol, address, port };
    let ids = match &server.target {
        Target::Address(address, port) => vec![of(*address, *port)],
        Target::Mark(mark, family) => vec![ServiceId::Mark { family: *family, mark: *mark }],
        Target::Group(name) => {
            let groups = desired.address_groups.iter();
            let members = groups.filter(|group| group.name == *name).flat_map(|it| &it.members);
            let mut ids = Vec::new();
            for member in members {
                match member {
                    Member::Addresses(range, port) => {
                        ids.extend(addresses(range).map(|address| of(address, *port)));
                    }
                    Member::Mark(mark, family) => {
                        ids.push(ServiceId::Mark { family: *family, mark: *mark });
                    }
                }
            }
            ids
        }
    };
    let persistence = server.persistence.as_ref();
    let service = |id| model::Service {
        id,
        scheduler: server.scheduler.clone(),
        scheduler_flags: server.scheduler_flags,
        one_packet: server.one_packet,
        persistence: persistence.map(|persistence| Persistence {
            timeout_s: u32::try_from(persistence.timeout.as_secs()).unwrap_or(u32::MAX),
            netmask: persistence.granularity,
        }),
        persistence_engine: persistence.and_then(|persistence| persistence.engine.clone()),
    };
    ids.into_iter().map(service).collect()
}

/// Returns every address of a range, which the configuration keeps short.
fn addresses(range: &AddressRange) -> Box<dyn Iterator<Item = IpAddr>> {
    match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Box::new((u32::from(first)..=u32::from(last)).map(|it| Ipv4Addr::from(it).into()))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Box::new((u128::from(first)..=u128::from(last)).map(|it| Ipv6Addr::from(it).into()))
        }
        _ => Box::new(std::iter::empty()),
    }
}

fn request(
    desired: &Desired,
    real: &RealServer,
    checker: &Arc<Checker>,
) -> Result<Request, String> {
    if !probe::is_known(&checker.kind) {
        return Err("its kind of check is not carried out yet".to_owned());
    }
    let mut wanted = Vec::new();
    if let CheckerKind::Http(http) = &checker.kind {
        for url in &http.urls {
            wanted.push(Wanted::of(url).map_err(|error| format!("{}: {error}", url.path))?);
        }
    }
    let user = match &checker.kind {
        CheckerKind::Misc(misc) => {
            user(misc.user.as_ref().or(desired.global.script_user.as_ref()))?
        }
        _ => None,
    };
    let own = SocketAddr::new(real.address, real.port);
    Ok(Request::new(checker.clone(), own, Found { user, wanted }))
}

/// Finds the user that a command is run as; `None` for that of this process.
fn user(named: Option<&desired::User>) -> Result<Option<(Uid, Gid)>, String> {
    let Some(named) = named else {
        let default = User::from_name(SCRIPT_USER).ok().flatten();
        let default = default.filter(|_| Uid::effective().is_root());
        return Ok(default.map(|user| (user.uid, user.gid)));
    };
    let missing = |name: &str| format!("there is no user or group {name}");
    let user = User::from_name(&named.user).ok().flatten().ok_or_else(|| missing(&named.user))?;
    let group = match &named.group {
        Some(name) => Group::from_name(name).ok().flatten().ok_or_else(|| missing(name))?.gid,
        None => user.gid,
    };
    let ours = user.uid == Uid::effective() && group == Gid::effective();
    Ok((!ours).then_some((user.uid, group)))
}

fn timing(checker: &Checker) -> Timing {
    let timing = &checker.timing;
    let (deadline, fast_recovery) = match &checker.kind {
        // Connecting and answering, for each URL.
        CheckerKind::Http(http) => {
            let urls = u32::try_from(http.urls.len()).unwrap_or(u32::MAX);
            (timing.connect_timeout.saturating_mul(2).saturating_mul(urls), http.fast_recovery)
        }
        CheckerKind::Misc(misc) => (misc.timeout, false),
        _ => (timing.connect_timeout, false),
    };
    Timing {
        delay_loop: timing.delay_loop,
        warmup: timing.warmup,
        retry: timing.retry,
        delay_before_retry: timing.delay_before_retry,
        deadline: timing.timeout.unwrap_or(deadline).saturating_add(GRACE),
        fall: timing.fall,
        rise: timing.rise,
        fast_recovery,
    }
}

/// Returns the time-outs of connections that are asked for; 0 keeps one.
pub(super) fn timeouts(desired: &Desired) -> model::Timeouts {
    let seconds = |time: Option<Duration>| {
        time.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX))
    };
    let desired::Timeouts { tcp, tcp_fin, udp } = desired.global.timeouts;
    model::Timeouts { tcp_s: seconds(tcp), tcp_fin_s: seconds(tcp_fin), udp_s: seconds(udp) }
}

/// Returns what becomes of the connections of servers that leave the table.
pub(super) fn removal(desired: &Desired) -> Removal {
    match desired.global.removed {
        desired::Removed::Keep => Removal::Keep,
        desired::Removed::Reset => Removal::Reset,
        desired::Removed::Silent => Removal::Silence,
    }
}

/// Returns the name of a service in the log.
pub(super) fn name(target: &Target, protocol: Protocol) -> String {
    match target {
        Target::Address(address, port) => server_name(*address, *port, protocol),
        Target::Mark(mark, _) => format!("FWM {mark}"),
        Target::Group(name) => format!("[{name}]:{}", protocol_name(protocol)),
    }
}

/// Returns the name of a server in the log.
pub(super) fn server_name(address: IpAddr, port: u16, protocol: Protocol) -> String {
    format!("[{address}]:{}:{port}", protocol_name(protocol))
}

fn protocol_name(protocol: Protocol) -> String {
    protocol.to_string().to_lowercase()
}

/// Returns the name of a service of a table in the log.
pub(super) fn service_name(id: ServiceId) -> String {
    match id {
        ServiceId::Address { protocol, address, port } => server_name(address, port, protocol),
        ServiceId::Mark { mark, .. } => format!("FWM {mark}"),
    }
}

/// Returns an address and port as text.
pub(super) fn end(id: DestinationId) -> String {
    SocketAddr::new(id.address, id.port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let read = rlvs_conf::read_text(text);
        assert!(!read.diagnostics.has_errors(), "{:#?}", read.diagnostics);
        super::read(&read.desired)
    }

    #[test]
    fn a_group_is_one_service_of_health_and_many_of_the_table() {
        let config = config(
            "virtual_server_group G {\n 10.0.0.1-3 80\n fd00::1 443\n fwmark 7\n}
             virtual_server group G {\n protocol TCP\n lb_kind TUN\n ha_suspend
             real_server 10.1.1.1 80 {\n TCP_CHECK {\n }\n }\n }",
        );
        assert_eq!(config.health.len(), 1);
        assert_eq!(config.health[0].name, "[G]:tcp");
        let known = &config.services["[G]:tcp"];
        let names: Vec<_> = known.tables.iter().map(|table| service_name(table.id)).collect();
        let first = ["[10.0.0.1]:tcp:80", "[10.0.0.2]:tcp:80", "[10.0.0.3]:tcp:80"];
        assert_eq!(names[..3], first);
        assert_eq!(names[3..], ["[fd00::1]:tcp:443", "FWM 7"]);
        assert_eq!(known.suspend.len(), 4);
    }

    #[test]
    fn an_attempt_has_a_deadline() {
        let check = |check: &str| {
            let text = format!(
                "virtual_server 10.0.0.1 80 {{\n protocol TCP\n lb_kind NAT
                 real_server 10.1.1.1 80 {{\n {check}\n }}\n }}"
            );
            let checks = config(&text).health.remove(0).servers.remove(0).checks;
            let check = checks.into_iter().next().unwrap();
            let deadline = check.timing.deadline - GRACE;
            (deadline.as_millis(), check.request.patience().as_millis())
        };
        assert_eq!(check("TCP_CHECK {\n connect_timeout 2\n }"), (2000, 2000));
        let url = "url {\n path /\n }\n";
        let http = |more: &str| format!("HTTP_GET {{\n {url} {more}\n }}");
        assert_eq!(check(&http("connect_timeout 2")), (4000, 2000));
        assert_eq!(check(&http(&format!("{url} connect_timeout 2"))), (8000, 2000));
        assert_eq!(check(&http("timeout 3")), (3000, 3000));
        let misc = "MISC_CHECK {\n misc_path /bin/true\n misc_timeout 4\n }";
        assert_eq!(check(misc).0, 4000);
    }

    #[test]
    fn what_is_not_carried_out_is_said() {
        let config = config(
            "bfd_instance B {\n neighbor_ip 10.1.1.2\n}
             virtual_server 10.0.0.1 80 {\n protocol TCP\n lb_kind NAT
             real_server 10.1.1.1 80 {\n BFD_CHECK {\n name B\n }\n TCP_CHECK {\n }\n }\n }",
        );
        assert_eq!(config.health[0].servers[0].checks.len(), 1);
        assert_eq!(config.events.len(), 1);
        assert_eq!(
            config.events[0].to_string(),
            "[10.1.1.1]:tcp:80 of VS [10.0.0.1]:tcp:80: its kind of check is not carried out yet: \
             the server is not checked so"
        );
    }
}
