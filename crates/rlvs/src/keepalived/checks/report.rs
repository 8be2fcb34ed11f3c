//! How virtual servers are, for those who ask.

use std::time::Duration;

use rlvs_control::checks::{CheckReport, Last, Outcome, ServerReport, ServiceReport};
use rlvs_control::model::{Family, ServiceId};

use super::super::daemon::state::{
    Attempt, AttemptResult, Check, Quorum, Server, Service, Sorry, Target,
};
use super::super::daemon::unix_ms_of;
use super::Checks;
use super::request::Request;

impl Checks {
    /// Returns how every virtual server is.
    pub fn report(&self) -> Vec<Service> {
        self.health.report().map(|report| self.service(&report)).collect()
    }

    /// Returns what the table refused when it was last asked, as the log has it.
    pub fn refused(&self) -> impl Iterator<Item = &str> {
        self.refused.iter().map(String::as_str)
    }

    fn service(&self, report: &ServiceReport<'_, Request>) -> Service {
        let tables = self.known.get(report.name).map(|known| known.tables.as_slice());
        Service {
            name: report.name.to_owned(),
            targets: tables.unwrap_or_default().iter().map(|table| target(table.id)).collect(),
            quorum: Quorum {
                held: report.has_quorum,
                since_unix_ms: unix_ms_of(report.since),
                weight: report.weight,
                gained_at: report.gained_at,
                lost_below: report.quorum.lost_below(),
                losses: report.losses,
            },
            sorry: report.sorry.map(|sorry| Sorry {
                address: sorry.destination.id.address,
                port: sorry.destination.id.port,
                serves: !report.has_quorum,
            }),
            suspended: report.suspended,
            servers: report.servers.iter().map(server).collect(),
        }
    }
}

fn target(id: ServiceId) -> Target {
    match id {
        ServiceId::Address { protocol, address, port } => {
            Target::Address { protocol: protocol.to_string().to_lowercase(), address, port }
        }
        ServiceId::Mark { family, mark } => {
            let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
            Target::Mark { mark, family: family.to_owned() }
        }
    }
}

fn server(report: &ServerReport<'_, Request>) -> Server {
    Server {
        address: report.destination.id.address,
        port: report.destination.id.port,
        configured_weight: report.destination.weight,
        weight: report.weight,
        up: report.up,
        since_unix_ms: unix_ms_of(report.since),
        why: report.why.map(str::to_owned),
        downs: report.downs,
        inhibit: report.inhibit,
        checks: report.checks.iter().map(check).collect(),
    }
}

fn check(report: &CheckReport<'_, Request>) -> Check {
    Check {
        kind: report.request.to_string(),
        up: report.up,
        since_unix_ms: unix_ms_of(report.since),
        attempts: report.attempts,
        failures: report.failures,
        rounds: report.rounds,
        rounds_needed: if report.up { report.timing.fall } else { report.timing.rise },
        last: report.last.map(attempt),
    }
}

fn attempt(last: &Last) -> Attempt {
    let (result, why) = match &last.outcome {
        Outcome::Good | Outcome::Weight(_) => (AttemptResult::Good, None),
        Outcome::Bad(why) => (AttemptResult::Bad, Some(why.clone())),
        Outcome::Unknown(why) => (AttemptResult::Unknown, Some(why.clone())),
    };
    Attempt { at_unix_ms: unix_ms_of(last.at), took_us: micros(last.took), result, why }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
