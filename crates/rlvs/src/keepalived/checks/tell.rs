//! What has happened, as the log, scripts and mails are told.

use std::collections::BTreeSet;

use rlvs_control::checks::{self, What};
use rlvs_control::model::{DestinationId, Protocol, ServiceId};
use rlvs_control::plan::Change;
use rlvs_control::table::Error;
use rlvs_control::upkeep::Report;

use super::config::{KnownServer, end, server_name, service_name};
use super::{Checks, Event, Kind};

/// Returns the name of a server in the log.
pub(super) fn server_of(id: DestinationId, protocol: Protocol) -> String {
    server_name(id.address, id.port, protocol)
}

/// An event about a service, of which only what it is about is known yet.
fn about(kind: Kind, service: &str, cause: String, consequence: String) -> Event {
    let service = service.to_owned();
    Event { kind, service, server: None, cause, consequence, script: None, mail: false }
}

impl Checks {
    /// Makes an event of what health tells, if it is worth telling.
    pub(super) fn tell(&mut self, event: checks::Event) {
        let made = match (&event.server, &event.what) {
            (Some(server), what) => self.of_server(&event.service, *server, what),
            (None, what) => self.of_service(&event.service, what),
        };
        self.events.extend(made);
    }

    fn of_server(&self, service: &str, id: DestinationId, what: &What) -> Option<Event> {
        let known = self.known.get(service)?;
        let server = known.server(id);
        let waits = known.sorry.is_some() && !self.health.has_quorum(service);
        let (kind, cause, consequence) = match what {
            What::Up => (Kind::ServerUp, "checks succeed".to_owned(), comes(server, waits)),
            What::Down(why) => (Kind::ServerDown, why.clone(), goes(server).to_owned()),
            What::Weight(weight) => (
                Kind::Weight,
                "a check asks for it".to_owned(),
                format!("Changing weight to {weight}"),
            ),
            What::Failed(check, why) => {
                let request =
                    self.health.request(*check).filter(|request| request.log_all_failures)?;
                (Kind::Failed, format!("{request} failed: {why}"), String::new())
            }
            What::NotAsked(check, why) => {
                let request = self.health.request(*check)?;
                let cause = format!("{request} could not be made: {why}");
                (Kind::NotAsked, cause, "the server keeps its state".to_owned())
            }
            What::QuorumGained { .. } | What::QuorumLost { .. } => return None,
        };
        let mut event = about(kind, service, cause, consequence);
        event.server = Some(server_name(id.address, id.port, known.protocol));
        event.script = match kind {
            Kind::ServerUp => server.up.as_deref().cloned(),
            Kind::ServerDown => server.down.as_deref().cloned(),
            _ => None,
        };
        event.mail = server.mail && matches!(kind, Kind::ServerUp | Kind::ServerDown);
        Some(event)
    }

    fn of_service(&self, service: &str, what: &What) -> Option<Event> {
        let known = self.known.get(service)?;
        let sorry = known.sorry.map(|id| server_name(id.address, id.port, known.protocol));
        let (kind, cause, consequence, script) = match what {
            What::QuorumGained { sum, needed } => (
                Kind::QuorumUp,
                format!("Gained quorum {needed} <= {sum}"),
                sorry.map(|sorry| format!("Removing sorry server {sorry}")),
                &known.up,
            ),
            What::QuorumLost { sum, needed } => (
                Kind::QuorumDown,
                format!("Lost quorum {needed} > {sum}"),
                sorry.map(|sorry| format!("Adding sorry server {sorry}")),
                &known.down,
            ),
            _ => return None,
        };
        let mut event = about(kind, service, cause, consequence.unwrap_or_default());
        (event.script, event.mail) = (script.clone(), known.mail);
        Some(event)
    }

    /// Tells scripts what holds at the start.
    pub(super) fn tell_start(&mut self, servers: bool) {
        for (name, known) in &self.known {
            for id in self.health.servers(name).filter(|_| servers) {
                if self.health.is_up(name, id) == Some(true) {
                    let server = known.server(id);
                    let mut event =
                        about(Kind::ServerUp, name, "starts".into(), comes(server, false));
                    event.server = Some(server_name(id.address, id.port, known.protocol));
                    event.script = server.up.as_deref().cloned();
                    self.events.push_back(event);
                }
            }
            if self.health.has_quorum(name) {
                let cause = "starts with its quorum".to_owned();
                let mut event = about(Kind::QuorumUp, name, cause, String::new());
                event.script = known.up.clone();
                self.events.push_back(event);
            }
        }
    }

    /// Tells scripts of the end, where they want to know (`omega`).
    pub(super) fn tell_stop(&mut self) {
        for (name, known) in self.known.iter().filter(|(_, known)| known.at_stop) {
            for id in self.health.servers(name) {
                if self.health.is_up(name, id) == Some(true) {
                    let server = known.server(id);
                    let mut event =
                        about(Kind::ServerDown, name, "stop".into(), goes(server).into());
                    event.server = Some(server_name(id.address, id.port, known.protocol));
                    event.script = server.down.as_deref().cloned();
                    self.events.push_back(event);
                }
            }
            if self.health.has_quorum(name) {
                let mut event = about(Kind::QuorumDown, name, "stop".into(), String::new());
                event.script = known.down.clone();
                self.events.push_back(event);
            }
        }
    }

    /// Tells that somebody else has changed services of ours. A service that is gone is told once, and
    /// not once for each server.
    pub(super) fn tell_foreign(&mut self, changes: &[Change]) {
        let added = |change: &Change| match change {
            Change::AddService(service) => Some(service.id),
            _ => None,
        };
        let gone: BTreeSet<ServiceId> = changes.iter().filter_map(added).collect();
        for change in changes {
            let (id, what) = in_words(change);
            if matches!(change, Change::AddDestination(id, _) if gone.contains(id)) {
                continue;
            }
            let cause = "the table was changed by somebody else".to_owned();
            let consequence = format!("put right: {what}");
            self.events.push_back(about(Kind::Foreign, &service_name(id), cause, consequence));
        }
    }
}

impl Checks {
    /// Tells what somebody has drained or given back: once each.
    pub(super) fn tell_drained(&mut self, report: &Report) {
        let drained = report.drained.iter().map(|one| (one, true));
        let undrained = report.undrained.iter().map(|one| (one, false));
        for ((service, id), is_drained) in drained.chain(undrained) {
            let (cause, consequence) = if is_drained {
                ("it is drained", "it takes no new connections until `rlvs undrain`")
            } else {
                ("it is drained no longer", "it takes connections by its checks again")
            };
            let (service, cause) = (service_name(*service), cause.to_owned());
            let mut event = about(Kind::Drained, &service, cause, consequence.to_owned());
            event.server = Some(end(*id));
            self.events.push_back(event);
        }
    }
}

fn comes(server: &KnownServer, waits: bool) -> String {
    match (waits, server.inhibit) {
        (true, _) => "waits for the quorum",
        (false, true) => "Enabling service",
        (false, false) => "Adding service",
    }
    .to_owned()
}

fn goes(server: &KnownServer) -> &'static str {
    if server.inhibit { "Disabling service" } else { "Removing service" }
}

/// Makes an event of a change that the table refused.
pub(super) fn refused(change: &Change, error: &Error) -> Event {
    let (id, what) = in_words(change);
    let cause = format!("the table refused to {what}: {error}");
    about(Kind::Refused, &service_name(id), cause, "tried again every second".into())
}

/// Makes an event of changes that are in force.
pub(super) fn carried(changes: usize) -> Event {
    let cause = format!("{changes} change(s) of the table in force");
    about(Kind::Carried, "(all)", cause, String::new())
}

/// Makes an event of a table that cannot be opened or read.
pub(super) fn unreadable(error: &Error) -> Event {
    let cause = format!("the table cannot be read: {error}");
    about(Kind::Refused, "(all)", cause, "tried again every second".into())
}

fn in_words(change: &Change) -> (ServiceId, String) {
    match change {
        Change::AddService(service) => (service.id, "add the service".to_owned()),
        Change::EditService(service) => (service.id, "set the service".to_owned()),
        Change::DeleteService(id) => (*id, "remove the service".to_owned()),
        Change::AddDestination(id, to) => {
            (*id, format!("add {}, weight {}", end(to.id), to.weight))
        }
        Change::EditDestination(id, to) => {
            (*id, format!("set {}, weight {}", end(to.id), to.weight))
        }
        Change::DeleteDestination(id, to) => (*id, format!("remove {}", end(*to))),
    }
}
