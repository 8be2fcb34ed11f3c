//! The machine's own configuration, rlvs.toml: to what to attach, settings, addresses of full NAT, who may
//! open connections, whose table it is. One reader for all of it; `load` carries it out.
//!
//! The file is the machine's: without being told to, commands go by it only in the network namespace of
//! process 1, or where [`VARIABLE`] names one.

mod load;
mod read;

use std::path::PathBuf;

use anyhow::{Context, Result};
use rlvs_linux::dataplane::attach::{self, Attached, Options};
use rlvs_linux::dataplane::{Error, pins};
use rlvs_linux::netns::Namespace;

use crate::ipvsadm::Backend;
pub use load::{Arguments, run};
pub use read::File;
pub(crate) use read::{CONNECTIONS_MAX, Text};

/// Where the machine's file is.
pub const DEFAULT_FILE: &str = "/etc/rlvs/rlvs.toml";
/// Names another file, in any network namespace.
pub const VARIABLE: &str = "RLVS_CONFIG";
/// Names the back end for tests and scripts.
pub const BACKEND_VARIABLE: &str = "RLVS_BACKEND";

/// Reads the file that commands go by, if there is one.
///
/// # Errors
/// It cannot be read, or something in it is wrong.
pub fn machine() -> Result<Option<File>> {
    let Some(path) = machine_path() else { return Ok(None) };
    File::read(&path).map(Some)
}

fn machine_path() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
        return Some(named.into());
    }
    let path = PathBuf::from(DEFAULT_FILE);
    let machine = || Namespace::of_process(1)?.is_same(&Namespace::current()?);
    (path.exists() && machine().unwrap_or(false)).then_some(path)
}

/// What to attach to, and who says so.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// What to attach to.
    pub options: Options,
    /// The file that says so; `None` if it is typed, or nobody does.
    pub file: Option<PathBuf>,
}

impl Attachment {
    /// Attaches so. What an interface does not take is told with the file that names it.
    ///
    /// # Errors
    /// A missing capability, or what an interface did not take.
    pub fn attach(&self) -> Result<Vec<Attached>, Error> {
        attach::attach(&self.options).map_err(|error| match (error, &self.file) {
            (Error::Attach { interface, reason }, Some(file)) => {
                let reason = format!("{reason}, and {} asks for it", file.display());
                Error::Attach { interface, reason }
            }
            (error, _) => error,
        })
    }
}

/// Returns what to attach to, as the machine's file says.
///
/// # Errors
/// As [`machine`].
pub fn attachment() -> Result<Attachment> {
    let Some(file) = machine()? else { return Ok(Attachment::default()) };
    let options = file.attachment()?;
    let said_by = options.is_some().then(|| file.path().to_owned());
    Ok(Attachment { options: options.unwrap_or_default(), file: said_by })
}

/// Returns the file that a command loads if none is named.
pub(crate) fn default_path() -> PathBuf {
    let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
    named.map_or_else(|| DEFAULT_FILE.into(), PathBuf::from)
}

/// Returns whose table it is: as named, else as the environment says, else the machine's file, else ours.
/// A file that is wrong stops nobody from getting at a table of ours that is there.
///
/// # Errors
/// There is no such back end, or the file cannot be read and nothing is attached.
pub fn backend(named: Option<&str>) -> Result<Backend> {
    let variable = || std::env::var(BACKEND_VARIABLE).ok().filter(|name| !name.is_empty());
    if let Some(name) = named.map(str::to_owned).or_else(variable) {
        return Backend::from_name(&name)
            .with_context(|| format!("there is no backend {name}; rlvs and kernel are"));
    }
    match machine() {
        Ok(file) => Ok(file.and_then(|file| file.backend()).unwrap_or_default()),
        Err(error) if pins::open()?.is_some() => {
            eprintln!("rlvs: {error:#}; going on with what is attached");
            Ok(Backend::Rlvs)
        }
        Err(error) => Err(error),
    }
}
