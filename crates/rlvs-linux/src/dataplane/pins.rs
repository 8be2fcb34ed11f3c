//! Where things are pinned: a BPF file system of our own at /run/rlvs/bpf, a folder for each network
//! namespace by its cookie, a layout version in the folder's name.
//!
//! The file system is mounted in the root mount namespace: `ip netns exec` gives its command a
//! mount namespace of its own, in which a mount would end with the command. It is entered by a
//! thread that opens the folder; everything else goes through that folder's descriptor, so that no
//! path depends on who sees which mounts.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rlvs_datapath::abi::LAYOUT;

use super::error::{Error, MOUNTING};
use super::{clsact, sysctls};
use crate::netns;
use crate::process::ancestors;

/// Where the file system is mounted.
pub const ROOT: &str = "/run/rlvs/bpf";

/// A folder of pins, by descriptor.
#[derive(Debug)]
pub struct Folder {
    fd: File,
    name: String,
}

impl Folder {
    /// Returns a path to something in the folder that any thread of this process can use.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Returns the same folder once more.
    pub(super) fn again(&self) -> Result<Self, Error> {
        let failed = |error| Error::io(format!("opening {}", self.shown()))(error);
        Ok(Self { fd: self.fd.try_clone().map_err(failed)?, name: self.name.clone() })
    }

    /// Returns the path as an operator would see it.
    pub fn shown(&self) -> String {
        if self.name.is_empty() { ROOT.to_owned() } else { format!("{ROOT}/{}", self.name) }
    }

    /// Lists what is in the folder, sorted.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let failed = |error| Error::io(format!("listing {}", self.shown()))(error);
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path("")).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Takes the folder's lock, waiting for whoever has it.
    ///
    /// # Errors
    /// [`Error::NotAttached`] if the folder has been removed by then.
    pub fn lock(&self) -> Result<Flock<File>, Error> {
        let failed = |error| Error::io(format!("locking {}", self.shown()))(error);
        // A new description: locks belong to descriptions, and `self` stays without one.
        let file = File::open(self.path("")).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| failed(io::Error::from(error)))?;
        if self.is_removed() { Err(Error::NotAttached) } else { Ok(lock) }
    }

    /// Returns whether there is no folder of this name any more, or another one.
    pub(super) fn is_removed(&self) -> bool {
        if self.name.is_empty() {
            return false;
        }
        let number = |path: PathBuf| fs::metadata(path).ok().map(|about| about.ino());
        number(self.path("")) != number(self.path(&format!("../{}", self.name)))
    }

    fn open(&self, name: &str) -> Result<Option<Self>, Error> {
        match File::open(self.path(name)) {
            Ok(fd) => Ok(Some(Self { fd, name: name.to_owned() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("opening {ROOT}/{name}"))(error)),
        }
    }
}

/// Opens the file system; `None` if it is not mounted.
///
/// # Errors
/// A missing capability.
pub fn root() -> Result<Option<Folder>, Error> {
    in_root_mounts(|| if is_mounted() { File::open(ROOT).map(Some) } else { Ok(None) })
        .map(|fd| fd.map(|fd| Folder { fd, name: String::new() }))
        .map_err(Error::io(format!("opening {ROOT}")))
}

/// Opens the file system, mounting it first if need be.
///
/// # Errors
/// A missing capability, or a kernel without a BPF file system.
pub fn root_or_mount() -> Result<Folder, Error> {
    in_root_mounts(|| {
        fs::create_dir_all(ROOT)?;
        if !is_mounted() {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("rlvs"), ROOT, Some("bpf"), flags, Some("mode=0700"))?;
        }
        File::open(ROOT)
    })
    .map(|fd| Folder { fd, name: String::new() })
    .map_err(|source| {
        let operation = format!("mounting a BPF file system at {ROOT}");
        let refused = matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        let refused = refused.then(|| Error::refused(&operation, MOUNTING)).flatten();
        refused.unwrap_or(Error::Io { operation, source })
    })
}

fn is_mounted() -> bool {
    statfs(ROOT).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Unmounts the file system and removes its folder, if nothing is left in it.
///
/// # Errors
/// A missing capability.
pub fn unmount() -> Result<(), Error> {
    in_root_mounts(|| {
        if is_mounted() {
            umount2(ROOT, MntFlags::MNT_DETACH)?;
        }
        for folder in [ROOT, "/run/rlvs"] {
            match fs::remove_dir(folder) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    })
    .map_err(Error::io(format!("unmounting {ROOT}")))
}

/// Runs `work` in a thread of its own whose mounts are those of process 1, or, where that may not be
/// looked at, of the eldest ancestor that may.
fn in_root_mounts<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let own = fs::read_link("/proc/thread-self/ns/mnt")?;
            if let Some((mounts, name)) = eldest_mounts()
                && name != own
            {
                // A mount namespace cannot be entered while others share the working folder.
                unshare(CloneFlags::CLONE_FS)?;
                setns(OwnedFd::from(mounts), CloneFlags::CLONE_NEWNS)?;
            }
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of ours panicked")))
    })
}

/// Opens the mount namespace of process 1 or of the eldest ancestor whose may be opened.
fn eldest_mounts() -> Option<(File, PathBuf)> {
    let mounts_of = |pid: u32| {
        let path = format!("/proc/{pid}/ns/mnt");
        Some((File::open(&path).ok()?, fs::read_link(&path).ok()?))
    };
    mounts_of(1).or_else(|| ancestors().into_iter().find_map(mounts_of))
}

pub(super) fn own_cookie() -> Result<u64, Error> {
    let operation = "asking for the network namespace's cookie (SO_NETNS_COOKIE, since Linux 5.14)";
    netns::cookie().map_err(Error::io(operation))
}

const PREFIX: &str = "ns-";
const UNFINISHED: &str = "-new";

/// Makes a program that is not for release pretend another layout, for tests of what follows from one.
#[cfg(debug_assertions)]
const PRETENDED: &str = "RLVS_TEST_LAYOUT";

/// The version of the layout of this program's maps.
pub(super) fn layout() -> u32 {
    #[cfg(debug_assertions)]
    if let Some(pretended) = std::env::var(PRETENDED).ok().and_then(|text| text.parse().ok()) {
        return pretended;
    }
    LAYOUT
}

/// The name of a namespace's folder.
fn folder_name(cookie: u64) -> String {
    format!("{PREFIX}{cookie}-v{}", layout())
}

thread_local! {
    /// Whether this thread works on the unfinished folder of its namespace.
    static FILLING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on the calling thread with the namespace's unfinished folder for its folder.
pub(super) fn filling<T>(work: impl FnOnce() -> T) -> T {
    FILLING.set(true);
    let done = work();
    FILLING.set(false);
    done
}

/// Returns the folder of the calling thread's network namespace that another program has made, with its
/// layout.
pub(super) fn other() -> Result<Option<(Folder, u32)>, Error> {
    let Some(root) = root()? else { return Ok(None) };
    other_in(&root, own_cookie()?)
}

fn other_in(root: &Folder, cookie: u64) -> Result<Option<(Folder, u32)>, Error> {
    let mine = format!("{PREFIX}{cookie}-v");
    for name in root.names()? {
        let found = name.strip_prefix(&mine).and_then(|layout| layout.parse().ok());
        if let Some(found) = found.filter(|found| *found != layout()) {
            return Ok(root.open(&name)?.map(|folder| (folder, found)));
        }
    }
    Ok(None)
}

/// Opens the folder of this program's layout, whether or not there is one of another layout.
pub(super) fn open_own() -> Result<Option<Folder>, Error> {
    let Some(root) = root()? else { return Ok(None) };
    root.open(&folder_name(own_cookie()?))
}

/// Removes a folder with all that is pinned in it. The caller holds the lock of the file system.
pub(super) fn remove_folder(folder: &Folder) -> Result<(), Error> {
    let Some(root) = root()? else { return Ok(()) };
    remove(&root, &folder.name)
}

/// Opens the folder of the calling thread's network namespace; `None` if it has none.
///
/// # Errors
/// A folder of another layout, or a missing capability.
pub fn open() -> Result<Option<Folder>, Error> {
    let Some(root) = root()? else { return Ok(None) };
    let cookie = own_cookie()?;
    let known = folder_name(cookie);
    if FILLING.get() {
        return root.open(&(known + UNFINISHED));
    }
    match other_in(&root, cookie)? {
        Some((_, found)) => Err(Error::Layout { found, known: layout() }),
        None => root.open(&known),
    }
}

/// A folder that becomes its namespace's when it is complete, and vanishes otherwise.
#[derive(Debug)]
pub struct Unfinished {
    root: Folder,
    folder: Folder,
    finished: bool,
    _lock: Flock<File>,
}

impl Unfinished {
    /// Begins a folder for the calling thread's network namespace. The lock of the file system is
    /// held until it is finished or dropped.
    ///
    /// # Errors
    /// A missing capability.
    pub fn begin() -> Result<Self, Error> {
        let root = root_or_mount()?;
        let lock = root.lock()?;
        let cookie = own_cookie()?;
        let name = folder_name(cookie) + UNFINISHED;
        remove(&root, &name)?;
        fs::create_dir(root.path(&name)).map_err(Error::io(format!("creating {ROOT}/{name}")))?;
        let folder = root.open(&name)?.ok_or(Error::NotAttached)?;
        Ok(Self { root, folder, finished: false, _lock: lock })
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// The file system refused.
    pub fn finish(mut self) -> Result<Folder, Error> {
        let name = self.folder.name.trim_end_matches(UNFINISHED).to_owned();
        fs::rename(self.root.path(&self.folder.name), self.root.path(&name))
            .map_err(Error::io(format!("renaming {ROOT}/{}", self.folder.name)))?;
        self.finished = true;
        self.root.open(&name)?.ok_or(Error::NotAttached)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = remove(&self.root, &self.folder.name)
        {
            eprintln!("rlvs: {error}");
        }
    }
}

/// Removes a folder with all that is pinned in it: filters and links are detached, what was changed of the
/// host's settings is put back, maps and programs are freed. It has another name first, which no command opens:
/// whoever is killed on the way leaves nothing that could be taken for a table, and the next to
/// [collect](collect) ends what it began.
fn remove(root: &Folder, name: &str) -> Result<(), Error> {
    let gone = rename_gone(root, name)?;
    let Some(folder) = root.open(&gone)? else { return Ok(()) };
    let names = folder.names()?;
    if let Some(cookie) = cookie_of(&gone) {
        clsact::detach_all(&folder, cookie)?;
        // No packet may meet half a table.
        names
            .iter()
            .filter(|name| name.starts_with(LINK))
            .try_for_each(|name| unpin(&folder, name))?;
        // Where another version's programs run on they need these.
        if !root.names()?.iter().any(|other| is_finished(other) && cookie_of(other) == Some(cookie))
        {
            sysctls::restore(&folder, cookie)?;
        }
    }
    for name in names.iter().filter(|name| !name.starts_with(LINK)) {
        // What a capture has pinned is in a folder.
        if folder.path(name).is_dir() {
            let Some(inner) = folder.open(name)? else { continue };
            inner.names()?.iter().try_for_each(|pin| unpin(&inner, pin))?;
            fs::remove_dir(folder.path(name))
                .map_err(Error::io(format!("removing {}", shown(&folder, name))))?;
        } else {
            unpin(&folder, name)?;
        }
    }
    fs::remove_dir(root.path(&gone)).map_err(Error::io(format!("removing {ROOT}/{gone}")))
}

/// Gives a folder the name of one that is unfinished, and returns that.
fn rename_gone(root: &Folder, name: &str) -> Result<String, Error> {
    if !is_finished(name) {
        return Ok(name.to_owned());
    }
    let gone = name.to_owned() + UNFINISHED;
    remove(root, &gone)?;
    match fs::rename(root.path(name), root.path(&gone)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("renaming {ROOT}/{name}"))(error))
        }
        _ => Ok(gone),
    }
}

fn is_finished(name: &str) -> bool {
    !name.ends_with(UNFINISHED)
}

fn unpin(folder: &Folder, name: &str) -> Result<(), Error> {
    match fs::remove_file(folder.path(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", shown(folder, name)))(error))
        }
        _ => Ok(()),
    }
}

/// Prefix of pinned links.
pub const LINK: &str = "link_";

/// Removes the folder of the calling thread's network namespace.
///
/// # Errors
/// A missing capability.
pub fn remove_own() -> Result<(), Error> {
    let Some(folder) = open()? else { return Err(Error::NotAttached) };
    let Some(root) = root()? else { return Err(Error::NotAttached) };
    let _lock = root.lock()?;
    remove(&root, &folder.name)
}

/// Removes every folder. For `rlvs uninstall`.
///
/// # Errors
/// A missing capability.
pub fn remove_all() -> Result<usize, Error> {
    let Some(root) = root()? else { return Ok(0) };
    let lock = root.lock()?;
    let names: Vec<_> = root.names()?.into_iter().filter(|name| name.starts_with(PREFIX)).collect();
    for name in &names {
        remove(&root, name)?;
    }
    drop(lock);
    drop(root);
    unmount()?;
    Ok(names.len())
}

/// Removes the folders of network namespaces that are gone, which `has_links` recognises: a link
/// whose interface is gone no longer has one, and an interface goes with its namespace. Folders
/// without a live link are kept if a process or a name still holds a namespace of that cookie.
///
/// # Errors
/// A missing capability.
pub fn collect(has_live_links: impl Fn(&Folder) -> bool) -> Result<usize, Error> {
    let Some(root) = root()? else { return Ok(0) };
    let _lock = root.lock()?;
    let own = own_cookie()?;
    let mut removed = 0;
    let mut alive = None;
    for name in root.names()? {
        let Some(cookie) = cookie_of(&name) else { continue };
        let Some(folder) = root.open(&name)? else { continue };
        let unfinished = !is_finished(&name);
        if !unfinished && (cookie == own || has_live_links(&folder)) {
            continue;
        }
        let alive = alive.get_or_insert_with(netns::live_cookies);
        if unfinished || !alive.contains(&cookie) {
            match remove(&root, &name) {
                Ok(()) => removed += 1,
                Err(error) if cookie == own => return Err(error),
                // Commands there say what is in the way.
                Err(_) => {}
            }
        }
    }
    Ok(removed)
}

/// Returns the cookies of the namespaces that have a folder.
pub(super) fn cookies() -> Result<BTreeSet<u64>, Error> {
    let Some(root) = root()? else { return Ok(BTreeSet::new()) };
    Ok(root.names()?.iter().filter_map(|name| cookie_of(name)).collect())
}

fn cookie_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Returns the path of something pinned, as text for messages.
pub fn shown(folder: &Folder, name: &str) -> String {
    Path::new(&folder.shown()).join(name).display().to_string()
}
