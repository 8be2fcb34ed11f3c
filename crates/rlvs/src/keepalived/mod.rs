//! The face of `keepalived`: its command line, its test of a configuration, and the daemon.

pub mod checks;
pub mod daemon;
pub mod host;
mod options;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rlvs_conf::{Configuration, read};

use crate::check::report;
use options::Command;

/// The configuration that is read if none is named.
pub const DEFAULT_FILE: &str = "/etc/keepalived/keepalived.conf";
/// Status of a command line that is not understood, and of a daemon that cannot run.
const FATAL: u8 = 1;

/// Runs `keepalived` with these arguments and returns its exit status.
pub fn run(args: &[OsString], stdout: &mut dyn Write) -> u8 {
    let outcome = match options::parse(args) {
        Ok(Command::Help) => stdout.write_all(options::help().as_bytes()).map(|()| 0),
        Ok(Command::Version) => {
            writeln!(stdout, "keepalived of rlvs {}", env!("CARGO_PKG_VERSION")).map(|()| 0)
        }
        Ok(Command::Signal(number)) => writeln!(stdout, "{number}").map(|()| 0),
        Ok(Command::Test { file, log, id, all, strict }) => {
            let found =
                read(Path::new(&file), &mut host::Host { asked: true }, &host::options(id, all));
            tell(&found, log.as_deref(), stdout).map(|()| found.diagnostics.status(strict))
        }
        Ok(Command::Run(options)) => Ok(daemon::run(*options)),
        Err(wrong) => {
            eprintln!("keepalived: {wrong}; `--help` lists the options");
            Ok(FATAL)
        }
    };
    // Nobody is there to be told that nobody listens.
    outcome.unwrap_or(FATAL)
}

/// Returns the options for completions and the manual page.
#[must_use]
pub fn command() -> clap::Command {
    options::command()
}

/// Writes what was found to a file, or to standard output if none is named.
fn tell(found: &Configuration, log: Option<&str>, stdout: &mut dyn Write) -> io::Result<()> {
    match log {
        Some(path) => report(found, &mut File::create(path)?, false),
        None => report(found, stdout, false),
    }
}
