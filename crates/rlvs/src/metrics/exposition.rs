//! Which things metrics are of, with their labels.

use std::collections::BTreeMap;

use super::families::*;
use super::reading::{Name, Reading};
use super::text::{Family, Kind, Text, labels};
use crate::keepalived::daemon::state::{AttemptResult, Check, Instance, RouterState, State};

/// Bytes of the text of one destination, about.
const DESTINATION_BYTES: usize = 2048;
/// Longest text of a reason in a label.
const WHY_MAX: usize = 120;

/// Writes every metric.
pub(super) fn write(reading: &Reading) -> String {
    let mut text = Text::with_capacity((1 << 16) + reading.destinations.len() * DESTINATION_BYTES);
    let none = String::new;
    text.families(BUILDS, &[(labels(&BUILD, [reading.version, reading.backend]), reading)]);
    text.families(WHOLE, &[(none(), reading)]);
    table(&mut text, reading);
    if let Some(state) = &reading.daemon {
        daemon(&mut text, state);
    }
    text.families(PROCESS, &[(none(), &reading.process)]);
    text.families(MACHINE, &[(none(), &reading.machine)]);
    let modes = reading.machine.cpu_seconds.iter();
    let modes: Vec<_> = modes.map(|(mode, time)| (labels(&MODE, [mode]), time)).collect();
    text.families(MACHINE_CPU, &modes);
    text.end()
}

fn table(text: &mut Text, reading: &Reading) {
    let interfaces = reading.interfaces.iter();
    let interfaces: Vec<_> =
        interfaces.map(|one| (labels(&INTERFACE, [&one.name, one.mode]), one)).collect();
    text.families(INTERFACES, &interfaces);
    let scheduled = reading.services.iter().map(|one| {
        let [proto, address, port, mark] = words(&one.name);
        (labels(&SERVICE_SCHEDULER, [&proto, &address, &port, &mark, &one.scheduler]), one)
    });
    text.families(SERVICE_INFOS, &scheduled.collect::<Vec<_>>());
    let services = reading.services.iter().map(|one| {
        let [proto, address, port, mark] = words(&one.name);
        (labels(&SERVICE, [&proto, &address, &port, &mark]), one)
    });
    text.families(SERVICES, &services.collect::<Vec<_>>());
    let destinations = reading.destinations.iter().map(|one| {
        let [proto, address, port, mark] = words(&one.service);
        let (to, to_port) = (one.remote_address.to_string(), one.remote_port.to_string());
        (labels(&DESTINATION, [&proto, &address, &port, &mark, &to, &to_port]), one)
    });
    text.families(DESTINATIONS, &destinations.collect::<Vec<_>>());
    let tables: Vec<_> =
        reading.tables.iter().map(|one| (labels(&TABLE, [one.name]), one)).collect();
    text.families(TABLES, &tables);
    text.families(PACKETS, &numbers(&REASON, &reading.packets));
    synchronisation(text, reading);
    let sweep: Vec<_> = reading.sweep.iter().map(|sweep| (String::new(), sweep)).collect();
    text.families(SWEEPS, &sweep);
    let programs: Vec<_> =
        reading.programs.iter().map(|one| (labels(&PROGRAM, [one.name]), one)).collect();
    text.families(PROGRAMS, &programs);
}

fn synchronisation(text: &mut Text, reading: &Reading) {
    let all = || reading.synchronisation.iter();
    let daemons = all().map(|one| {
        (labels(&SYNC_DAEMON, [one.role, &one.interface, &one.sync_id.to_string()]), one)
    });
    text.families(SYNC_DAEMONS, &daemons.collect::<Vec<_>>());
    let events = all().flat_map(|one| {
        one.counts.iter().map(|(name, count)| (labels(&SYNC_EVENT, [one.role, name]), count))
    });
    text.families(SYNC_EVENTS, &events.collect::<Vec<_>>());
}

fn words(name: &Name) -> [String; 4] {
    let Name { proto, local_address, local_port, local_mark } = name;
    let text = |port: &Option<u16>| port.map(|port| port.to_string()).unwrap_or_default();
    let address = local_address.map(|address| address.to_string()).unwrap_or_default();
    let mark = local_mark.map(|mark| mark.to_string()).unwrap_or_default();
    [proto.clone(), address, text(local_port), mark]
}

fn numbers<'a, K: AsRef<str>>(
    name: &Labels<1>,
    of: &'a BTreeMap<K, u64>,
) -> Vec<(String, &'a u64)> {
    of.iter().map(|(key, number)| (labels(name, [key.as_ref()]), number)).collect()
}

fn daemon(text: &mut Text, state: &State) {
    text.families(DAEMON, &[(String::new(), state)]);
    text.families(EVENTS, &numbers(&EVENT, &state.events));
    routers(text, state);
    let virtual_servers = state.services.iter();
    let virtual_servers: Vec<_> =
        virtual_servers.map(|one| (labels(&VIRTUAL_SERVER, [&one.name]), one)).collect();
    text.families(VIRTUAL_SERVERS, &virtual_servers);
    let (mut servers, mut checks, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for service in &state.services {
        for server in &service.servers {
            let (address, port) = (server.address.to_string(), server.port.to_string());
            servers.push((labels(&SERVER, [&service.name, &address, &port]), server));
            for (check, title) in server.checks.iter().zip(titles(&server.checks)) {
                let names = labels(&CHECK, [&service.name, &address, &port, &title]);
                checks.push((names, check));
                let Some(last) = &check.last else { continue };
                if last.result != AttemptResult::Good {
                    let why: String =
                        last.why.iter().flat_map(|why| why.chars()).take(WHY_MAX).collect();
                    let names = [&service.name, &address, &port, &title, &*why];
                    failures.push((labels(&CHECK_WHY, names), last));
                }
            }
        }
    }
    text.families(SERVERS, &servers);
    text.families(CHECKS, &checks);
    text.families(CHECK_FAILURES, &failures);
}

/// Returns a title for each check of a server: its kind, with a number from the second of a kind on.
fn titles(checks: &[Check]) -> impl Iterator<Item = String> {
    let mut seen = BTreeMap::new();
    checks.iter().map(move |check| {
        let number = seen.entry(check.kind.as_str()).or_insert(0);
        *number += 1;
        if *number == 1 { check.kind.clone() } else { format!("{} {number}", check.kind) }
    })
}

fn routers(text: &mut Text, state: &State) {
    let named = |one: &Instance| [one.name.clone(), one.interface.clone(), one.vrid.to_string()];
    let all = || state.instances.iter();
    let of = |one: &Instance| {
        let [name, interface, vrid] = named(one);
        labels(&ROUTER, [&name, &interface, &vrid])
    };
    text.families(ROUTERS, &all().map(|one| (of(one), one)).collect::<Vec<_>>());
    let whys = all().map(|one| {
        let [name, interface, vrid] = named(one);
        let master = one.master.map(|master| master.to_string()).unwrap_or_default();
        let state = match one.state {
            RouterState::Init => "init",
            RouterState::Backup => "backup",
            RouterState::Master => "master",
            RouterState::Fault => "fault",
            RouterState::Stopped => "stopped",
        };
        (labels(&ROUTER_WHY, [&name, &interface, &vrid, state, &master, &one.why]), one)
    });
    text.families(ROUTER_INFOS, &whys.collect::<Vec<_>>());
    let mut refused = Vec::new();
    for one in all() {
        let [name, interface, vrid] = named(one);
        let reasons = one.counters.rejected.iter();
        refused.extend(reasons.map(|(reason, count)| {
            (labels(&ROUTER_REASON, [&name, &interface, &vrid, reason]), count)
        }));
    }
    text.families(REJECTED, &refused);
    let groups = state.groups.iter();
    let groups: Vec<_> = groups.map(|one| (labels(&GROUP, [&one.name]), one)).collect();
    text.families(GROUPS, &groups);
    text.families(KNOWN, &all().map(|one| (of(one), &one.counters)).collect::<Vec<_>>());
    let (mut held, mut excluded) = (Vec::new(), Vec::new());
    for one in all() {
        let [name, _, vrid] = named(one);
        for (list, addresses) in
            [(&mut held, &one.addresses), (&mut excluded, &one.excluded_addresses)]
        {
            list.extend(addresses.iter().map(|to| {
                let address = to.address.to_string();
                (labels(&ROUTER_ADDRESS, [&name, &to.interface, &vrid, &address]), one)
            }));
        }
    }
    text.families(KNOWN_STATES, &held);
    text.families(KNOWN_EXCLUDED, &excluded);
    let scripts = state.scripts.iter();
    let scripts: Vec<_> = scripts.map(|one| (labels(&NAME, [&one.name]), one)).collect();
    text.families(SCRIPTS, &scripts);
}

/// A part of the reference.
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) labels: Vec<&'static str>,
    /// Name, type, text.
    pub(super) rows: Vec<(&'static str, Kind, &'static str)>,
}

/// Returns the reference: every metric.
pub(super) fn sections() -> Vec<Section> {
    vec![
        section("Everything", &BUILD, BUILDS),
        section("Everything", &NONE, WHOLE),
        section("Virtual services", &SERVICE_SCHEDULER, SERVICE_INFOS),
        section("Virtual services", &SERVICE, SERVICES),
        section("Destinations", &DESTINATION, DESTINATIONS),
        section("Data plane", &INTERFACE, INTERFACES),
        section("Data plane", &TABLE, TABLES),
        section("Data plane", &REASON, PACKETS),
        section("Data plane", &SYNC_DAEMON, SYNC_DAEMONS),
        section("Data plane", &SYNC_EVENT, SYNC_EVENTS),
        section("Data plane", &NONE, SWEEPS),
        section("Data plane", &PROGRAM, PROGRAMS),
        section("Virtual routers", &ROUTER, ROUTERS),
        section("Virtual routers", &ROUTER_WHY, ROUTER_INFOS),
        section("Virtual routers", &ROUTER_REASON, REJECTED),
        section("Virtual routers", &GROUP, GROUPS),
        section("Virtual routers, under the names of keepalived's exporters", &ROUTER, KNOWN),
        section(
            "Virtual routers, under the names of keepalived's exporters",
            &ROUTER_ADDRESS,
            KNOWN_STATES,
        ),
        section(
            "Virtual routers, under the names of keepalived's exporters",
            &ROUTER_ADDRESS,
            KNOWN_EXCLUDED,
        ),
        section("Virtual routers, under the names of keepalived's exporters", &NAME, SCRIPTS),
        section("Virtual servers and their checks", &VIRTUAL_SERVER, VIRTUAL_SERVERS),
        section("Virtual servers and their checks", &SERVER, SERVERS),
        section("Virtual servers and their checks", &CHECK, CHECKS),
        section("Virtual servers and their checks", &CHECK_WHY, CHECK_FAILURES),
        section("The daemon", &NONE, DAEMON),
        section("The daemon", &EVENT, EVENTS),
        section("Process and machine", &NONE, PROCESS),
        section("Process and machine", &NONE, MACHINE),
        section("Process and machine", &MODE, MACHINE_CPU),
    ]
}

fn section<T>(title: &'static str, labels: &[&'static str], families: &[Family<T>]) -> Section {
    let row = |family: &Family<T>| (family.name, family.kind, family.help);
    Section { title, labels: labels.to_vec(), rows: families.iter().map(row).collect() }
}
