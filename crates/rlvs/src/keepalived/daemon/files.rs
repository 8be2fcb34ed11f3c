//! Files whose numbers virtual routers follow: one thread reads each when it changes.
//!
//! What is watched are their folders, so that a file may come, go, and be put in place of another.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use rlvs_conf::desired::TrackedFile;

use super::Happening;

/// The longest text of a number that is read.
const NUMBER_BYTES_MAX: u64 = 127;
/// How often it is looked for folders that are not there.
const LOOK_MS: u16 = 1000;

/// The files that are watched; the thread ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: Vec<TrackedFile>,
    numbers: BTreeMap<String, i32>,
    end: Option<Arc<EventFd>>,
}

impl Files {
    /// Watches these, and no others; returns the numbers that they have now, and what failed.
    pub(super) fn update(
        &mut self,
        files: &[TrackedFile],
        to: &Sender<Happening>,
    ) -> (Vec<(String, i32)>, Vec<String>) {
        if self.files == files {
            return (Vec::new(), Vec::new());
        }
        let mut failed = Vec::new();
        let new = files.iter().filter(|file| !self.files.contains(file));
        for file in new {
            if let Err(error) = initialise(file) {
                failed.push(format!("track_file {}: writing {}: {error}", file.name, file.path));
            }
        }
        self.stop();
        self.files = files.to_vec();
        if files.is_empty() {
            self.numbers.clear();
            return (Vec::new(), failed);
        }
        match begin(files.to_vec(), to.clone()) {
            Ok((end, numbers)) => (self.end, self.numbers) = (Some(end), numbers),
            Err(error) => {
                failed.push(format!("tracked files cannot be watched: {error}"));
                self.numbers = read_all(files);
            }
        }
        let numbers = self.numbers.iter().map(|(name, number)| (name.clone(), *number));
        (numbers.collect(), failed)
    }

    /// Returns what the files said when they were last updated.
    pub(super) fn numbers(&self) -> impl Iterator<Item = (&str, i32)> {
        self.numbers.iter().map(|(name, number)| (&**name, *number))
    }

    fn stop(&mut self) {
        if let Some(end) = self.end.take() {
            // Its counter is far from full.
            end.write(1).ok();
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes the number that a file has at the start.
fn initialise(file: &TrackedFile) -> io::Result<()> {
    let Some(initial) = file.initial else { return Ok(()) };
    let path = Path::new(&file.path);
    if file.overwritten || !path.try_exists()? {
        std::fs::write(path, format!("{initial}\n"))?;
    }
    Ok(())
}

/// Starts the thread; returns what ends it, and what the files say.
fn begin(
    files: Vec<TrackedFile>,
    to: Sender<Happening>,
) -> io::Result<(Arc<EventFd>, BTreeMap<String, i32>)> {
    let end = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let numbers = BTreeMap::new();
    let mut watcher = Watcher { files, numbers, inotify, folders: BTreeMap::new(), to };
    // First, so that no change is missed behind the first reading.
    watcher.watch_folders();
    watcher.numbers = read_all(&watcher.files);
    let (numbers, ended) = (watcher.numbers.clone(), end.clone());
    std::thread::Builder::new().name("files".to_owned()).spawn(move || watcher.run(&ended))?;
    Ok((end, numbers))
}

fn read_all(files: &[TrackedFile]) -> BTreeMap<String, i32> {
    files.iter().map(|file| (file.name.clone(), number(Path::new(&file.path)))).collect()
}

/// Returns the number that a file says; 0 if it says none.
fn number(path: &Path) -> i32 {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(NUMBER_BYTES_MAX).read_to_end(&mut text));
    read.map_or(0, |_| leading_number(&text))
}

/// Returns the number that a text begins with, whatever follows it, as `strtol()` with base 0: `0x`
/// and `0` mean what they mean in C. 0 if there is none.
fn leading_number(text: &[u8]) -> i32 {
    let text = text.trim_ascii_start();
    let (sign, digits) = match text {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    let (base, digits) = match digits {
        [b'0', b'x' | b'X', digits @ ..] => (16, digits),
        [b'0', digits @ ..] => (8, digits),
        digits => (10, digits),
    };
    let digits = digits.iter().map_while(|&byte| char::from(byte).to_digit(base));
    let value = digits
        .fold(0_i64, |value, digit| value.saturating_mul(base.into()).saturating_add(digit.into()));
    let value = (sign * value).clamp(i32::MIN.into(), i32::MAX.into());
    i32::try_from(value).unwrap_or_default()
}

struct Watcher {
    files: Vec<TrackedFile>,
    numbers: BTreeMap<String, i32>,
    inotify: Inotify,
    /// Folders by their watch.
    folders: BTreeMap<WatchDescriptor, PathBuf>,
    to: Sender<Happening>,
}

impl Watcher {
    fn run(mut self, end: &EventFd) {
        loop {
            let wanted = self.wanted().count();
            let time = if self.folders.len() < wanted {
                PollTimeout::from(LOOK_MS)
            } else {
                PollTimeout::NONE
            };
            let mut ready = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(end.as_fd(), PollFlags::POLLIN),
            ];
            // Interrupted or not: all is looked at.
            poll(&mut ready, time).ok();
            if ready[1].any() == Some(true) {
                return;
            }
            let changed = self.changed();
            let fresh = self.watch_folders();
            if !self.look(&changed, &fresh) {
                return;
            }
        }
    }

    /// Returns the folders of all files, each once.
    fn wanted(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let folders: BTreeSet<PathBuf> = self.files.iter().map(folder).collect();
        folders.into_iter()
    }

    /// Watches the folders that are not watched; returns which could be.
    fn watch_folders(&mut self) -> Vec<PathBuf> {
        let missing: Vec<PathBuf> =
            self.wanted().filter(|path| self.folders.values().all(|known| known != path)).collect();
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut fresh = Vec::new();
        for path in missing {
            if let Ok(watch) = self.inotify.add_watch(&path, what) {
                self.folders.insert(watch, path.clone());
                fresh.push(path);
            }
        }
        fresh
    }

    /// Takes all events; returns the names that they are about, and forgets folders that are gone.
    fn changed(&mut self) -> BTreeSet<OsString> {
        let mut names = BTreeSet::new();
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                let gone = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF;
                if event.mask.intersects(gone) {
                    self.folders.remove(&event.wd);
                    // It may be gone already.
                    self.inotify.rm_watch(event.wd).ok();
                }
                names.extend(event.name);
            }
        }
        names
    }

    /// Reads the files of these names, and all whose folder is missing or was so far; returns whether
    /// somebody listens.
    fn look(&mut self, changed: &BTreeSet<OsString>, fresh: &[PathBuf]) -> bool {
        for file in &self.files {
            let path = Path::new(&file.path);
            let folder = folder(file);
            let is_watched = self.folders.values().any(|known| *known == folder);
            let is_known = is_watched && !fresh.contains(&folder);
            if is_known && !path.file_name().is_some_and(|name| changed.contains(name)) {
                continue;
            }
            let number = number(path);
            if self.numbers.insert(file.name.clone(), number) == Some(number) {
                continue;
            }
            let happening = Happening::Number { name: file.name.clone(), number };
            if self.to.send(happening).is_err() {
                return false;
            }
        }
        true
    }
}

/// Returns the folder that a file is in.
fn folder(file: &TrackedFile) -> PathBuf {
    match Path::new(&file.path).parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::leading_number;

    #[test]
    fn a_number_is_what_a_text_begins_with() {
        let cases: [(&str, i32); 11] = [
            ("", 0),
            ("12\n", 12),
            (" -3", -3),
            ("+7 apples", 7),
            ("apples", 0),
            ("-", 0),
            ("0x1F", 31),
            ("-010", -8),
            ("0", 0),
            ("99999999999999999999", i32::MAX),
            ("-99999999999999999999", i32::MIN),
        ];
        for (text, number) in cases {
            assert_eq!(leading_number(text.as_bytes()), number, "{text}");
        }
    }
}
