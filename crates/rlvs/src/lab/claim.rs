//! Who owns which lab, and removing what nobody owns any more.
//!
//! A lab is a directory below /run/rlvs/lab with a file that the lab's process keeps locked, and
//! namespaces named `rlvs-lab-ID-ROLE`. The kernel drops the lock when the process is gone, however
//! it went; what is then left is removed by the next lab, unless it was left on purpose.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use rlvs_linux::netns::{self, Namespace};
use rlvs_linux::process::Handle;

/// Where labs keep what they need while they stand.
const DIRECTORY: &str = "/run/rlvs/lab";
/// What the names of all namespaces of labs begin with.
const PREFIX: &str = "rlvs-lab-";
/// In a lab's directory: locked as long as its process lives.
const LOCK: &str = "lock";
/// In a lab's directory: there if the lab was left standing on purpose.
const KEPT: &str = "kept";
/// In a lab's directory: numbers of the processes that may outlive the lab's own.
const PROCESSES: &str = "processes";
/// How long a process that is asked to end may take.
const GRACE: Duration = Duration::from_secs(2);

/// How many labs this process has made; it makes their names differ.
static MADE: AtomicU32 = AtomicU32::new(0);

/// The right to a lab's names; dropping it removes the lab's namespaces and its directory.
#[derive(Debug)]
pub struct Claim {
    id: String,
    directory: PathBuf,
    /// Held for the lock on it.
    _lock: File,
    kept: bool,
}

impl Claim {
    /// Claims names for a new lab.
    ///
    /// # Errors
    /// /run cannot be written to.
    pub fn new() -> anyhow::Result<Self> {
        let id = match MADE.fetch_add(1, Ordering::Relaxed) {
            0 => std::process::id().to_string(),
            again => format!("{}.{again}", std::process::id()),
        };
        // Without it a sweep could come between the file and the lock on it.
        let _guard = lock_all()?;
        let directory = Path::new(DIRECTORY).join(&id);
        if directory.exists() {
            // Of an earlier process with our number, for ours cannot have used it yet.
            remove(&id)?;
        }
        std::fs::create_dir(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let file = directory.join(LOCK);
        let lock = File::create_new(&file)
            .and_then(|lock| lock.lock().map(|()| lock))
            .with_context(|| format!("locking {}", file.display()))?;
        Ok(Self { id, directory, _lock: lock, kept: false })
    }

    /// Returns the id, by which a sweep finds the lab.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the name of the namespace that plays `role`.
    pub fn namespace_name(&self, role: &str) -> String {
        format!("{PREFIX}{}-{role}", self.id)
    }

    /// Returns the directory for the lab's files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes a process that may outlive this one, so that whoever removes the lab can end it.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn note_process(&self, pid: u32) -> anyhow::Result<()> {
        let path = self.directory.join(PROCESSES);
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{pid}"))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Gives the lab up without removing it.
    ///
    /// # Errors
    /// The mark cannot be written; the lab is then removed.
    pub fn keep(mut self) -> anyhow::Result<()> {
        let path = self.directory.join(KEPT);
        File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove(&self.id) {
            eprintln!("rlvs: {error:#}");
        }
    }
}

/// Which labs a sweep removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep<'a> {
    /// What crashed labs have left.
    Crashed,
    /// That, and the labs that were left standing on purpose.
    All,
    /// The lab of this id, whether it crashed or was left standing.
    Only(&'a str),
}

/// Removes labs whose process is gone, and returns their ids.
///
/// # Errors
/// A lab could not be removed; those before it are gone.
pub fn sweep(which: Sweep<'_>) -> anyhow::Result<Vec<String>> {
    let _guard = lock_all()?;
    let mut removed = Vec::new();
    for id in ids()? {
        let directory = Path::new(DIRECTORY).join(&id);
        let spared = match which {
            Sweep::Crashed => directory.join(KEPT).exists(),
            Sweep::All => false,
            Sweep::Only(wanted) => wanted != id,
        };
        if spared || is_owned(&id, &directory)? {
            continue;
        }
        remove(&id)?;
        removed.push(id);
    }
    Ok(removed)
}

/// Removes every lab that nobody is at, and if none is left the folder of labs.
///
/// # Errors
/// A lab could not be removed.
pub fn forget() -> anyhow::Result<()> {
    if !Path::new(DIRECTORY).exists() {
        return Ok(());
    }
    sweep(Sweep::All)?;
    let _guard = lock_all()?;
    if ids()?.is_empty() {
        std::fs::remove_dir_all(DIRECTORY).with_context(|| format!("removing {DIRECTORY}"))?;
    }
    Ok(())
}

/// Takes the lock under which labs are claimed and swept.
fn lock_all() -> anyhow::Result<File> {
    std::fs::create_dir_all(DIRECTORY)
        .with_context(|| format!("labs are root's (sudo): creating {DIRECTORY}"))?;
    let path = Path::new(DIRECTORY).join(LOCK);
    File::create(&path)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| format!("labs are root's (sudo): locking {}", path.display()))
}

/// Lists the ids of all labs of which there is a directory or a namespace.
fn ids() -> anyhow::Result<BTreeSet<String>> {
    let reading = || format!("listing {DIRECTORY}");
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir(DIRECTORY).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.file_type().with_context(reading)?.is_dir() {
            ids.extend(entry.file_name().into_string());
        }
    }
    for name in netns::names()? {
        if let Some((id, _role)) = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-'))
        {
            ids.insert(id.to_owned());
        }
    }
    Ok(ids)
}

/// Tells whether the process that made the lab is there.
fn is_owned(id: &str, directory: &Path) -> anyhow::Result<bool> {
    let path = directory.join(LOCK);
    match File::open(&path) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking {}", path.display()))
            }
        },
        // Someone has removed the directory: the number in the name has to do.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let pid = id.split('.').next().unwrap_or_default();
            Ok(pid.parse::<u32>().is_ok_and(|pid| Handle::open(pid).is_ok()))
        }
        Err(error) => Err(error).with_context(|| format!("opening {}", path.display())),
    }
}

/// Ends the noted processes of a lab, then removes its namespaces and its directory.
fn remove(id: &str) -> anyhow::Result<()> {
    let prefix = format!("{PREFIX}{id}-");
    let names: Vec<String> =
        netns::names()?.into_iter().filter(|name| name.starts_with(&prefix)).collect();
    let directory = Path::new(DIRECTORY).join(id);
    let noted = std::fs::read_to_string(directory.join(PROCESSES)).unwrap_or_default();
    for pid in noted.lines().filter_map(|line| line.parse().ok()) {
        end_if_inside(pid, &names)?;
    }
    for name in &names {
        netns::delete(name)?;
    }
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Ends a process if it runs in one of the namespaces; its number may be another's by now.
fn end_if_inside(pid: u32, names: &[String]) -> anyhow::Result<()> {
    let Ok(handle) = Handle::open(pid) else { return Ok(()) };
    let Ok(home) = Namespace::of_process(pid) else { return Ok(()) };
    for name in names {
        if Namespace::open(name)?.is_same(&home)? {
            return handle.end(GRACE).with_context(|| format!("ending process {pid} in {name}"));
        }
    }
    Ok(())
}
