//! `rlvs check`: what is wrong with a keepalived.conf, and what it means; what is wrong with a rlvs.toml.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use rlvs_conf::{Configuration, Diagnostic, Secrets, Severity, Sources, print, read};
use serde_json::{Value, json};

use crate::configuration::File;
use crate::json::SCHEMA;
use crate::keepalived::DEFAULT_FILE;
use crate::keepalived::host::{Host, options};

/// Arguments of `rlvs check`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// A keepalived.conf; a name that ends in .toml is that of a rlvs.toml
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
    /// Print what the configuration means, with every default, without passwords
    #[arg(long)]
    effective: bool,
    /// Ask this host for interfaces, programs and users too
    #[arg(long)]
    here: bool,
    /// Name that `@name` in the configuration is compared with; the host's if not given
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
}

/// Runs `rlvs check`. It fails if something is not carried out as written.
///
/// # Errors
/// The output cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.file.extension().is_some_and(|extension| extension == "toml") {
        return machine(arguments);
    }
    let mut host = Host { asked: arguments.here };
    let options = options(arguments.id.clone(), false);
    let found = read(&arguments.file, &mut host, &options);
    let to = &mut io::stdout().lock();
    if arguments.json {
        let effective = arguments.effective.then(|| print(&found.desired, Secrets::Hidden));
        serde_json::to_writer_pretty(&mut *to, &as_json(&found, effective))?;
        writeln!(to)?;
    } else if arguments.effective {
        report(&found, &mut io::stderr().lock(), io::stderr().is_terminal())?;
        write!(to, "{}", print(&found.desired, Secrets::Hidden))?;
    } else {
        report(&found, to, io::stdout().is_terminal())?;
        writeln!(to, "{}", summary(&found))?;
    }
    let failed = found.diagnostics.has_errors();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Looks at a rlvs.toml.
fn machine(arguments: &Arguments) -> Result<ExitCode> {
    let found = File::read(&arguments.file).and_then(|file| file.check());
    let to = &mut io::stdout().lock();
    let message = found.as_ref().err().map(|error| format!("{error:#}"));
    if arguments.json {
        let diagnostic = |message| json!({"severity": "error", "message": message});
        let diagnostics: Vec<Value> = message.iter().map(diagnostic).collect();
        writeln!(
            to,
            "{:#}",
            json!({"schema": SCHEMA, "ok": found.is_ok(), "diagnostics": diagnostics})
        )?;
    } else {
        match message {
            Some(message) => writeln!(to, "error: {message}")?,
            None => writeln!(to, "{} is right", arguments.file.display())?,
        }
    }
    Ok(if found.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes what was found for people.
///
/// # Errors
/// The output cannot be written.
pub fn report(found: &Configuration, to: &mut dyn Write, colour: bool) -> io::Result<()> {
    for diagnostic in found.diagnostics.iter() {
        writeln!(to, "{}\n", diagnostic.render(&found.sources, colour))?;
    }
    if found.diagnostics.left_out() > 0 {
        writeln!(to, "{} more are not shown\n", found.diagnostics.left_out())?;
    }
    Ok(())
}

fn count(found: &Configuration, severity: Severity) -> usize {
    found.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
}

fn summary(found: &Configuration) -> String {
    let desired = &found.desired;
    let real = desired.virtual_servers.iter().map(|server| server.real_servers.len());
    format!(
        "{} error(s), {} warning(s); {} instance(s), {} virtual server(s), {} real server(s)",
        count(found, Severity::Error),
        count(found, Severity::Warning),
        desired.instances.len(),
        desired.virtual_servers.len(),
        real.sum::<usize>(),
    )
}

fn as_json(found: &Configuration, effective: Option<String>) -> Value {
    let diagnostics = found.diagnostics.iter().map(|one| diagnostic(one, &found.sources));
    let mut value = json!({
        "schema": SCHEMA,
        "ok": !found.diagnostics.has_errors(),
        "diagnostics": diagnostics.collect::<Vec<_>>(),
        "left_out": found.diagnostics.left_out(),
    });
    if let Some(effective) = effective {
        value["effective"] = effective.into();
    }
    value
}

fn diagnostic(found: &Diagnostic, sources: &Sources) -> Value {
    let mut value = json!({
        "severity": match found.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        },
        "message": found.message,
        "expected": found.expected,
        "help": found.help,
    });
    if let Some(place) = found.place(sources) {
        value["file"] = place.path.display().to_string().into();
        value["line"] = place.line.into();
        value["column"] = place.column.into();
    }
    value
}
