//! The `ipvsadm` command: the grammar, the tables and the exit statuses of the real one.
//!
//! What it does not do: forward packets, or know which table it edits. It reads words, asks a
//! [`Table`], and writes text. Standard output is an interface and equals upstream's byte for
//! byte; messages on standard error are our own.

mod address;
mod atomic;
mod failure;
mod flags;
mod grammar;
mod json;
mod list;
pub mod man;
mod names;
mod order;
mod parse;
mod restore;
mod save;
mod scripts;
mod snapshot;
mod words;

use std::ffi::OsString;
use std::io::{BufRead, ErrorKind, Write};

use rlvs_control::model::{DestinationEntry, ServiceEntry, ServiceId};
use rlvs_control::table::{Error, Table};

use failure::Failure;
pub(crate) use json::daemon as sync_daemon_json;
pub(crate) use list::forward;
pub use names::Names;
pub(crate) use parse::{Columns, What};
use parse::{Form, Listing, Request};
pub use scripts::{run_restore, run_save};
use snapshot::{Snapshot, Snapshots};

/// Returns the command line for completions.
#[must_use]
pub fn command() -> clap::Command {
    flags::shown()
}

/// Whose table a command is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Our own.
    #[default]
    Rlvs,
    /// The kernel's IPVS.
    Kernel,
}

/// Returns a list as `-L --json` prints it.
///
/// # Errors
/// The table cannot be read.
pub(crate) fn as_json(table: &mut dyn Table, what: What) -> Result<String, Error> {
    let listing = Listing { what, numeric: true, exact: true, sorted: true, json: true };
    Ok(json::text(&table.snapshot(listing)?))
}

/// Returns the lines that `-S -n --full` prints.
pub(crate) fn saved(entries: Vec<ServiceEntry>) -> String {
    save::services(entries, Form { numeric: true, full: true }, &Names::system())
}

/// Returns the line that adds a destination.
pub(crate) fn added(service: ServiceId, entry: &DestinationEntry) -> String {
    save::added(service, entry, &Names::system())
}

impl Backend {
    /// Returns the one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "rlvs" => Some(Self::Rlvs),
            "kernel" => Some(Self::Kernel),
            _ => None,
        }
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rlvs => "rlvs",
            Self::Kernel => "kernel",
        }
    }
}

/// Opens the virtual-server table.
pub type Open<'a> = dyn FnMut(Backend) -> Result<Box<dyn Table>, Error> + 'a;

/// What the command works with.
pub struct Environment<'a> {
    /// Opens the table. Called at most once, and not before a command line needs a table.
    pub open: &'a mut Open<'a>,
    /// Name of the back end to use if the command line does not say: `rlvs` or `kernel`.
    pub backend: Option<String>,
    /// Names of hosts and ports.
    pub names: &'a Names,
    /// The lines of `-R`.
    pub stdin: &'a mut dyn BufRead,
    /// Tables, saved lines, help, version.
    pub stdout: &'a mut dyn Write,
    /// Messages.
    pub stderr: &'a mut dyn Write,
}

/// Carries out one command line, whose words after the program's name are `args`.
///
/// Returns the exit status: 0, 1 when the table cannot be read, 2 for a command line that makes
/// no sense or a table that cannot be opened, 255 for an edit that is refused or an unknown word.
pub fn run<'a>(args: &[OsString], program: &'a str, environment: Environment<'a>) -> u8 {
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let named = parse::backend(&words, environment.backend.as_deref());
    let mut session =
        Session { program, environment, backend: Backend::default(), table: None, restores: false };
    let status = match named {
        Ok((backend, words)) => {
            session.backend = backend;
            session.line(words)
        }
        Err(failure) => session.report(&failure, None),
    };
    match session.environment.stdout.flush().map_err(Failure::Output) {
        Ok(()) => status,
        Err(failure) => session.report(&failure, None),
    }
}

/// One run of the program, which with `-R` is many command lines.
struct Session<'a> {
    program: &'a str,
    environment: Environment<'a>,
    backend: Backend,
    table: Option<Box<dyn Table>>,
    /// Whether many command lines follow each other.
    restores: bool,
}

impl Session<'_> {
    fn line(&mut self, words: &[String]) -> u8 {
        let result = match parse::request(words, self.program, self.environment.names) {
            Ok(Request::Restore { atomic: false }) => return self.restore(),
            Ok(Request::Restore { atomic: true }) => return self.restore_whole(),
            Ok(request) => self.carry_out(request),
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => 0,
            Err(failure) => self.report(&failure, None),
        }
    }

    /// Carries out any request but to restore.
    fn carry_out(&mut self, request: Request) -> Result<(), Failure> {
        let table = match request {
            Request::Help => return self.print(&flags::help(self.program)),
            Request::Version => return self.print(flags::VERSION),
            _ => self.table()?,
        };
        let edited = match request {
            Request::Save(form) => {
                let entries = table.services().map_err(Failure::Unreadable)?;
                self.table = None;
                return self.print(&save::services(entries, form, self.environment.names));
            }
            Request::List(listing) => return self.list(listing),
            request => edit(table.as_mut(), &request),
        };
        edited.map_err(|error| Failure::Refused(error.to_string()))
    }

    /// Lists what there is. The table is read at once and closed, so that whoever reads the list
    /// slowly keeps nobody from it.
    fn list(&mut self, listing: Listing) -> Result<(), Failure> {
        let snapshot = self.table()?.as_mut().snapshot(listing).map_err(Failure::Unreadable)?;
        self.table = None;
        let Environment { names, stdout, .. } = &mut self.environment;
        let text = match snapshot {
            snapshot if listing.json => json::text(&snapshot),
            Snapshot::Services { banner, entries, .. } => {
                let columns = match listing.what {
                    What::Services { columns, .. } => columns,
                    _ => Columns::Plain,
                };
                banner.map_or(String::new(), |(version, size)| list::banner(version, size))
                    + &list::services(entries, columns, &listing, names)
            }
            Snapshot::Connections(lines) => {
                let engines = listing.what == What::Connections { engines: true };
                return list::connections(&lines, engines, listing.numeric, names, *stdout)
                    .map_err(Failure::Output);
            }
            Snapshot::Timeouts(timeouts) => list::timeouts(timeouts),
            Snapshot::Daemons(daemons) => list::sync_daemons(&daemons),
        };
        self.print(&text)
    }

    fn table(&mut self) -> Result<&mut Box<dyn Table>, Failure> {
        if self.table.is_none() {
            let mut table = (self.environment.open)(self.backend).map_err(Failure::Unavailable)?;
            if self.restores {
                table.batch();
            }
            self.table = Some(table);
        }
        let nothing = || Failure::Unavailable(Error::System("no table was opened".to_owned()));
        self.table.as_mut().ok_or_else(nothing)
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.environment.stdout.write_all(text.as_bytes()).map_err(Failure::Output)
    }

    /// Says what went wrong, in which line of a restore, and returns the exit status.
    fn report(&mut self, failure: &Failure, line: Option<usize>) -> u8 {
        let broken_pipe =
            matches!(failure, Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe);
        if !broken_pipe {
            let program = self.program;
            let text = match line {
                Some(line) => format!("{program}: line {line}: {failure}\n"),
                None => format!("{program}: {failure}\n"),
            };
            // There is nowhere left to say that this failed; the status says enough.
            drop(self.environment.stderr.write_all(text.as_bytes()));
        }
        failure.status()
    }
}

/// Carries out what changes a table; anything else changes nothing.
fn edit(table: &mut dyn Table, request: &Request) -> Result<(), Error> {
    match request {
        Request::AddService(service) => table.add_service(service),
        Request::EditService(service) => table.edit_service(service),
        Request::DeleteService(id) => table.delete_service(*id),
        Request::AddDestination(id, to) => table.add_destination(*id, to),
        Request::EditDestination(id, to) => table.edit_destination(*id, to),
        Request::DeleteDestination(id, to) => table.delete_destination(*id, *to),
        Request::Flush => table.flush(),
        Request::Zero(service) => table.zero(*service),
        Request::SetTimeouts(timeouts) => table.set_timeouts(*timeouts),
        Request::StartSyncDaemon(wanted) => table.start_sync_daemon(wanted),
        Request::StopSyncDaemon(role) => table.stop_sync_daemon(*role),
        Request::Help | Request::Version | Request::Restore { .. } => Ok(()),
        Request::Save(_) | Request::List(_) => Ok(()),
    }
}
