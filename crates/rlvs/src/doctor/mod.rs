//! `rlvs doctor`: what is wrong here, and what to do about it.
//!
//! Facts are gathered first (`gather`), then judged (`judge`): a check is a function of the facts.

pub mod facts;
mod filters;
mod gather;
pub mod judge;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use gather::of_kernel;
pub use gather::{Depth, gather};
use judge::{CHECKS, Finding, Severity};

use crate::json::SCHEMA;
use crate::keepalived::daemon::state;

/// Arguments of `rlvs doctor`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `rlvs doctor`. The exit status is 1 if anything is wrong.
///
/// # Errors
/// A missing capability.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let findings = match gather(Depth::Whole)? {
        Some(facts) => judge::judge(&facts),
        None => {
            let mut findings = judge::judge(&of_kernel(Depth::Whole));
            // A host that has virtual routers alone needs nothing attached.
            let routers_alone = state::ask().is_some_and(|daemon| daemon.services.is_empty());
            findings.extend((!routers_alone).then(detached));
            findings
        }
    };
    let out = &mut io::stdout().lock();
    if arguments.json {
        let findings: Vec<Value> = findings.iter().map(finding_json).collect();
        let checks = CHECKS.map(|check| check.name);
        writeln!(out, "{}", json!({ "schema": SCHEMA, "checks": checks, "findings": findings }))?;
    } else {
        write_findings(out, &findings)?;
        let errors = findings.iter().filter(|one| one.severity == Severity::Error).count();
        let warnings = findings.len() - errors;
        writeln!(out, "{} checks: {errors} errors, {warnings} warnings", CHECKS.len())?;
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn detached() -> Finding {
    Finding {
        check: "interface",
        severity: Severity::Warning,
        about: "this network namespace".to_owned(),
        what: "no interface balances".to_owned(),
        remedy: "rlvs attach, or ipvsadm -A, which attaches to all".to_owned(),
    }
}

/// Writes findings, each with its remedy.
///
/// # Errors
/// What the writer says.
pub fn write_findings(out: &mut dyn Write, findings: &[Finding]) -> io::Result<()> {
    for Finding { check, severity, about, what, remedy } in findings {
        writeln!(out, "{:<8} {check}: {about}: {what}", severity.name())?;
        writeln!(out, "{:<8}   do: {remedy}", "")?;
    }
    Ok(())
}

/// Returns a finding as `--json` writes it.
pub fn finding_json(finding: &Finding) -> Value {
    json!({
        "check": finding.check,
        "severity": finding.severity.name(),
        "about": finding.about,
        "what": finding.what,
        "remedy": finding.remedy,
    })
}
