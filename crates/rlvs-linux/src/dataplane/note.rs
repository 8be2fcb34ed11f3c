//! What is noted of synchronisation daemons: a file for each, `/run/rlvs/sync-COOKIE-ROLE`, whose lock it
//! holds as long as it runs. A first line says which process it is and how it was started, a second one what
//! it has done since.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use rlvs_control::model::{SyncDaemon, SyncRole};
use rlvs_control::table::Error;

use super::pins;
use super::sync::{from_words, rest, system, words};

const FOLDER: &str = "/run/rlvs";
const PREFIX: &str = "sync-";
/// How long whoever only looks may hold the lock, and how often it is tried meanwhile.
const CLAIM: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(5);

/// A daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// How it was started, all of it chosen.
    pub daemon: SyncDaemon,
    /// What it has done, by name, up to a second ago; nothing at first.
    pub counts: Vec<(String, u64)>,
}

/// Returns where a daemon of this namespace is noted.
pub(super) fn path(role: SyncRole) -> Result<PathBuf, Error> {
    Ok(PathBuf::from(format!("{FOLDER}/{PREFIX}{}-{role}", pins::own_cookie()?)))
}

/// Returns a daemon of this namespace, if it runs.
///
/// # Errors
/// What is noted of it cannot be read.
pub fn running(role: SyncRole) -> Result<Option<Running>, Error> {
    let failed = system("reading what is noted of the synchronisation daemon");
    let file = match File::open(path(role)?) {
        Ok(file) => file,
        Err(error) => return absent(error).map(|()| None).map_err(failed),
    };
    // Whoever gets the lock knows that the daemon has ended without a word.
    let Err((file, _)) = Flock::lock(file, FlockArg::LockSharedNonblock) else { return Ok(None) };
    Ok(read(&io::read_to_string(file).map_err(failed)?))
}

fn read(text: &str) -> Option<Running> {
    let mut lines = text.lines();
    let (pid, rest) = lines.next()?.split_once(' ')?;
    let count = |word: &str| {
        let (name, number) = word.split_once('=')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    Some(Running {
        pid: pid.parse().ok()?,
        daemon: from_words(rest.split_ascii_whitespace())?,
        counts: lines.flat_map(str::split_ascii_whitespace).filter_map(count).collect(),
    })
}

/// Removes what was noted of a daemon of this namespace.
///
/// # Errors
/// It is there and cannot be removed.
pub(super) fn remove(role: SyncRole) -> Result<(), Error> {
    let removed = fs::remove_file(path(role)?).or_else(absent);
    removed.map_err(system("removing what is noted of the synchronisation daemon"))
}

/// Removes what daemons left that were killed, of any network namespace. What may not be removed stays.
pub fn collect() {
    let Ok(entries) = fs::read_dir(FOLDER) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) {
            collect_one(&path);
        }
    }
}

/// Removes one such file if no daemon holds it.
fn collect_one(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    // While the lock is held nobody begins by this file.
    if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        && is_at(&lock, path)
    {
        fs::remove_file(path).ok();
    }
}

/// Tells whether a file is the one that has this name.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// The daemon's own note.
pub(super) struct Note {
    lock: Flock<File>,
    /// Length of the first line.
    offset: u64,
    noted: String,
}

impl Note {
    /// Takes the lock of this namespace and role.
    ///
    /// # Errors
    /// Another daemon has it, or the file cannot be made.
    pub(super) fn claim(role: SyncRole) -> Result<Self, Error> {
        fs::create_dir_all(FOLDER).map_err(system("noting that the daemon runs"))?;
        Self::claim_at(&path(role)?, role)
    }

    fn claim_at(path: &Path, role: SyncRole) -> Result<Self, Error> {
        let failed = system("noting that the daemon runs");
        let until = Instant::now() + CLAIM;
        loop {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).write(true).open(path);
            match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if is_at(&lock, path) => {
                    return Ok(Self { lock, offset: 0, noted: String::new() });
                }
                // Collected between the two steps.
                Ok(_) => {}
                Err(_) if Instant::now() >= until => return Err(Error::SyncDaemonRuns(role)),
                Err(_) => rest(AGAIN),
            }
        }
    }

    /// Says that the daemon runs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn begin(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        let failed = system("noting that the daemon runs");
        let line = format!("{} {}\n", std::process::id(), words(daemon).join(" "));
        let written = self.lock.set_len(0).and_then(|()| self.lock.rewind());
        written.and_then(|()| self.lock.write_all(line.as_bytes())).map_err(failed)?;
        self.offset = line.len() as u64;
        Ok(())
    }

    /// Says what it has done, in words of one width, so that a line takes the place of the one before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn say(&mut self, counts: &impl Display) -> Result<(), Error> {
        let line = format!("{counts}\n");
        if line != self.noted {
            let written = self.lock.write_all_at(line.as_bytes(), self.offset);
            written.map_err(system("noting what the synchronisation daemon has done"))?;
            self.noted = line;
        }
        Ok(())
    }
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Times that a daemon begins while others collect.
    const ROUNDS: usize = 20_000;

    #[test]
    fn whoever_collects_keeps_no_daemon_from_beginning_and_takes_no_note_that_is_held() {
        let folder = std::env::temp_dir().join(format!("rlvs-note-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("sync-1-backup");
        let ended = AtomicBool::new(false);
        let lost = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        collect_one(&path);
                    }
                });
            }
            let lost = (0..ROUNDS)
                .map(|_| Note::claim_at(&path, SyncRole::Backup))
                .filter(|note| note.as_ref().map_or(true, |note| !is_at(&note.lock, &path)))
                .count();
            ended.store(true, Ordering::Relaxed);
            lost
        });
        fs::remove_dir_all(&folder).expect("the folder");
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_note_is_read_with_counts_and_without() {
        let line = "7 backup eth1 42 1472 224.0.0.81 8848 1\n";
        let begun = read(line).expect("a daemon");
        assert_eq!((begun.pid, begun.daemon.sync_id, begun.counts.len()), (7, 42, 0));
        let later = read(&format!("{line}messages=012 entered=0 \n")).expect("a daemon");
        assert_eq!(later.counts, [("messages".to_owned(), 12), ("entered".to_owned(), 0)]);
        for other in ["", "x", "7 guest eth1 42 1472 224.0.0.81 8848 1\n"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
