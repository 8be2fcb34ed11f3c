//! Reading the file, and what is said of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rlvs_conf::desired::{self, Desired};
use rlvs_conf::{Configuration, Severity, Surroundings, Unread, read};

use super::super::host::{self, Host};
use super::super::options::Running;
use super::log::Level;

/// Status of a file in which a word is missing, as `keepalived -t` has it.
const STATUS_PARAMETER: u8 = 2;
/// Status of a file that cannot be read.
const STATUS_FILE: u8 = 4;

/// What a file says.
#[derive(Debug)]
pub(super) struct Found {
    /// What it means, without the parts that the command line leaves out.
    pub(super) desired: Desired,
    /// What is wrong with it.
    pub(super) lines: Vec<(Level, String)>,
    /// Why nothing at all can be run by it; with the status to end with.
    pub(super) fatal: Option<(u8, String)>,
    /// How many errors it has.
    pub(super) errors: usize,
    /// It asks for nothing.
    pub(super) empty: bool,
    /// The files that it was read from.
    pub(super) files: BTreeSet<PathBuf>,
    /// Files that it includes and that cannot be read.
    pub(super) unread: Vec<PathBuf>,
}

/// Reads the file that the command line names.
pub(super) fn find(options: &Running) -> Found {
    let how = host::options(options.id.clone(), options.all);
    let found = read(&options.file, &mut Here(Host { asked: true }), &how);
    let mut lines: Vec<(Level, String)> = lines(&found);
    let errors = lines.iter().filter(|(level, _)| *level == Level::Error).count();
    let shown = options.file.display();
    let fatal = match found.diagnostics.status(false) {
        STATUS_PARAMETER => Some((STATUS_PARAMETER, format!("{shown}: a word is missing"))),
        STATUS_FILE => Some((6, format!("{shown} cannot be read"))),
        _ => None,
    };
    let mut desired = found.desired;
    let fixed = desired.fixed != desired::Fixed::default();
    let empty = desired.instances.is_empty() && desired.virtual_servers.is_empty() && !fixed;
    if !options.vrrp {
        desired.instances.clear();
        desired.sync_groups.clear();
        desired.scripts.clear();
        desired.files.clear();
        desired.processes.clear();
        desired.fixed = desired::Fixed::default();
    }
    if !options.services {
        desired.virtual_servers.clear();
    }
    // What is wrong with its name is told where the table is opened.
    let left_out = left_out(&desired);
    lines.extend(left_out.map(|what| (Level::Warning, format!("{what} is not carried out"))));
    let files = found.sources.paths().map(Path::to_owned).collect();
    let unread = found.sources.unread().to_owned();
    Found { desired, lines, fatal, errors, empty, files, unread }
}

/// Returns a line for each thing that is wrong.
fn lines(found: &Configuration) -> Vec<(Level, String)> {
    let line = |one: &rlvs_conf::Diagnostic| {
        let level = match one.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
            Severity::Note => Level::Debug,
        };
        let place = one.place(&found.sources).map_or(String::new(), |place| {
            format!("{}:{}:{}: ", place.path.display(), place.line, place.column)
        });
        let expected = one.expected.as_ref().map_or(String::new(), |text| format!("; {text}"));
        let help = one.help.as_ref().map_or(String::new(), |text| format!("; {text}"));
        (level, format!("{place}{}{expected}{help}", one.message))
    };
    found.diagnostics.iter().map(line).collect()
}

/// Returns what is asked for besides virtual routers, and not carried out.
fn left_out(desired: &Desired) -> Option<&'static str> {
    desired.virtual_servers.iter().any(|server| server.suspend).then_some("ha_suspend")
}

/// This host; but interfaces may come and go while a daemon runs, and so be missing now.
struct Here(Host);

impl Surroundings for Here {
    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unread> {
        self.0.read(path, bytes_max)
    }

    fn matching(&mut self, pattern: &str) -> Vec<PathBuf> {
        self.0.matching(pattern)
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.0.variable(name)
    }

    fn has_interface(&self, _name: &str) -> Option<bool> {
        None
    }

    fn has_program(&self, path: &str) -> Option<bool> {
        self.0.has_program(path)
    }

    fn has_user(&self, name: &str) -> Option<bool> {
        self.0.has_user(name)
    }

    fn routing_number(&self, table: &str, name: &str) -> Option<u32> {
        self.0.routing_number(table, name)
    }
}
