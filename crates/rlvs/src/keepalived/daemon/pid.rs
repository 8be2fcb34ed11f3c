//! Files that say who runs, and keep a second from running.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A file with the number of this process. It is locked while this lives, and gone after.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: Flock<File>,
}

impl PidFile {
    /// Takes the file.
    ///
    /// # Errors
    /// Another has it, or it cannot be made.
    pub(super) fn take(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let failed = |error: io::Error| format!("the pid file {shown}: {error}");
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        if let Some(pid) = runner(path) {
            return Err(format!("{shown} says that process {pid} is running; it must end first"));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(_) => {
                let pid = fs::read_to_string(path).unwrap_or_default();
                let pid = pid.trim();
                Err(format!("process {pid} is running and has {shown}; `-p` names another file"))
            }
        }
    }

    /// Writes the number of this process.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        writeln!(&mut *self.file, "{}", std::process::id())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

/// Returns the process in the file if it is a keepalived that locks nothing: the real one.
fn runner(path: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.starts_with("keepalived") && pid != std::process::id()).then_some(pid)
}
