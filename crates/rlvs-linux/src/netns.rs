//! Named network namespaces, in the layout of iproute2.
//!
//! A namespace is a bind mount below /run/netns, so that `ip netns exec NAME …` finds what is made
//! here and the other way round. No function here moves the calling thread: what runs inside a
//! namespace runs in a thread or a process of its own.
//! Invariant: a [`Namespace`] holds the namespace open, whatever becomes of its name.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces are mounted.
const DIRECTORY: &str = "/run/netns";
/// The calling thread's own namespace; /proc/self would be the first thread's.
const OWN: &str = "/proc/thread-self/ns/net";
/// Longest name, as a file name.
const NAME_BYTES_MAX: usize = 255;

/// Why a namespace could not be made, opened or entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process lacks a capability.
    #[error("{operation} needs {capability}: run this as root (sudo), or add the capability")]
    Capability {
        /// What was tried.
        operation: String,
        /// The capability's name.
        capability: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name is not one that a file in /run/netns can have.
    #[error("`{0}` cannot name a network namespace: 1 to 255 bytes, no slash")]
    Name(String),
    /// The operating system refused.
    #[error("{operation}")]
    System {
        /// What was tried, and on what.
        operation: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    fn new(operation: String, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        // EPERM is the missing capability; EACCES would be a file's mode.
        if source.raw_os_error() == Some(libc::EPERM) {
            return Self::Capability { operation, capability: "CAP_SYS_ADMIN", source };
        }
        Self::System { operation, source }
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace and gives it a name, as `ip netns add` does.
    ///
    /// # Errors
    /// A name that is taken or impossible, or a missing capability.
    pub fn create(name: &str) -> Result<Self, Error> {
        let path = path_of(name)?;
        prepare_directory()?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|source| Error::new(format!("creating {}", path.display()), source))?;
        let mounted = std::thread::scope(|scope| {
            let thread = scope.spawn(|| mount_new_namespace(&path));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Err(error) = mounted {
            // The name must not stay behind without a namespace; the first error is the one told.
            std::fs::remove_file(&path).ok();
            return Err(error);
        }
        Self::open(name)
    }

    /// Opens a namespace by its name.
    ///
    /// # Errors
    /// No such namespace, or an impossible name.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_path(name.to_owned(), &path_of(name)?)
    }

    /// Opens the namespace in which a process runs.
    ///
    /// # Errors
    /// No such process, or no right to look at it.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        Self::open_path(format!("of process {pid}"), &path)
    }

    /// Opens the calling thread's namespace.
    ///
    /// # Errors
    /// No /proc.
    pub fn current() -> Result<Self, Error> {
        Self::open_path("of this thread".to_owned(), Path::new(OWN))
    }

    fn open_path(name: String, path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| {
            Error::new(format!("opening the network namespace {}", path.display()), source)
        })?;
        Ok(Self { name, file })
    }

    /// Returns the name, or words that say which namespace it is if it was not opened by name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` in a thread of its own that has entered this namespace, and waits for it.
    ///
    /// A panic in `work` goes on in the caller.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no thread can be made.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("namespace".to_owned())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    Ok(work())
                })
                .map_err(|source| Error::new("starting a thread".to_owned(), source))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn enter(&self) -> Result<(), Error> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|source| {
            Error::new(format!("entering the network namespace {}", self.name), source)
        })
    }

    /// Makes `command` run in this namespace once it is spawned.
    ///
    /// Only the network namespace changes: /sys stays the caller's, unlike under `ip netns exec`.
    ///
    /// # Errors
    /// No file descriptor left to hold the namespace for the command.
    pub fn place(&self, command: &mut Command) -> Result<(), Error> {
        let file = self.file.try_clone().map_err(|source| {
            Error::new(format!("holding the network namespace {}", self.name), source)
        })?;
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
        // allowed: it makes one system call on a descriptor that it owns, and allocates nothing.
        unsafe {
            command
                .pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        Ok(())
    }

    /// Returns the cookie of this namespace, which no later namespace will have again.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel is older than 5.14.
    pub fn cookie(&self) -> Result<u64, Error> {
        self.run(cookie)?.map_err(|source| {
            Error::new(format!("reading the cookie of network namespace {}", self.name), source)
        })
    }

    /// Tells whether both are open on the same namespace.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn is_same(&self, other: &Self) -> Result<bool, Error> {
        let identity = |namespace: &Self| {
            let metadata = namespace.file.metadata().map_err(|source| {
                Error::new(format!("looking at network namespace {}", namespace.name), source)
            })?;
            Ok((metadata.dev(), metadata.ino()))
        };
        Ok(identity(self)? == identity(other)?)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes the name away from a namespace; it ends when nothing uses it any more.
///
/// # Errors
/// No such namespace, or a missing capability.
pub fn delete(name: &str) -> Result<(), Error> {
    let path = path_of(name)?;
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a file that was never mounted upon, left by a process that was killed.
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(source) => {
            return Err(Error::new(format!("unmounting {}", path.display()), source));
        }
    }
    std::fs::remove_file(&path)
        .map_err(|source| Error::new(format!("removing {}", path.display()), source))
}

/// Returns the names of all named namespaces, in order.
///
/// # Errors
/// /run/netns is there and cannot be read.
pub fn names() -> Result<Vec<String>, Error> {
    let failed = |source| Error::new(format!("listing {DIRECTORY}"), source);
    let entries = match std::fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Returns the cookie of the calling thread's namespace (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// The kernel is older, or no socket can be made.
pub fn cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length_bytes: libc::socklen_t = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value pointer is to 8 writable bytes, the length says so, both outlive the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length_bytes,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Returns the cookies of all namespaces that have a name or a process. What cannot be entered is
/// left out, as are namespaces held by nothing but a descriptor.
pub fn live_cookies() -> BTreeSet<u64> {
    live().map(|(cookie, _)| cookie).collect()
}

/// Opens the namespace of a cookie, if it has a name or a process and can be entered.
pub fn of_cookie(wanted: u64) -> Option<Namespace> {
    live().find(|(cookie, _)| *cookie == wanted).map(|(_, namespace)| namespace)
}

/// Runs `work` in the namespace of a cookie; `None` if that is gone, or held by nothing but a descriptor.
///
/// # Errors
/// As [`Namespace::run`].
pub fn run_in<T: Send>(wanted: u64, work: impl FnOnce() -> T + Send) -> Result<Option<T>, Error> {
    if cookie().is_ok_and(|own| own == wanted) {
        return Ok(Some(work()));
    }
    of_cookie(wanted).map(|namespace| namespace.run(work)).transpose()
}

fn live() -> impl Iterator<Item = (u64, Namespace)> {
    let named = names().unwrap_or_default().into_iter().map(|name| Namespace::open(&name));
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut seen = BTreeSet::new();
    named.chain(pids.map(Namespace::of_process)).flatten().filter_map(move |namespace| {
        let data = namespace.file.metadata().ok()?;
        if !seen.insert((data.dev(), data.ino())) {
            return None;
        }
        namespace.cookie().ok().map(|cookie| (cookie, namespace))
    })
}

fn path_of(name: &str) -> Result<PathBuf, Error> {
    let usable = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0']);
    if usable { Ok(Path::new(DIRECTORY).join(name)) } else { Err(Error::Name(name.to_owned())) }
}

/// Makes /run/netns a shared mount point, so that every mount namespace sees what is made in it.
fn prepare_directory() -> Result<(), Error> {
    let failed = |what: &str, source| Error::new(format!("{what} {DIRECTORY}"), source);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIRECTORY)
        .map_err(|source| failed("creating", source))?;
    let directory = File::open(DIRECTORY).map_err(|source| failed("opening", source))?;
    // Two makers at once would mount it twice; iproute2 takes the same lock.
    directory.lock().map_err(|source| failed("locking", source))?;
    let none = None::<&str>;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet: bind it on itself.
        Err(nix::Error::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(DIRECTORY), DIRECTORY, none, bind, none)
                .and_then(|()| share())
                .map_err(|source| failed("mounting", source.into()))
        }
        Err(source) => Err(failed("sharing", source.into())),
    }
}

/// Leaves the calling thread's namespace for a new one and mounts that on `path`.
fn mount_new_namespace(path: &Path) -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|source| Error::new("making a network namespace".to_owned(), source))?;
    let none = None::<&str>;
    mount(Some(OWN), path, none, MsFlags::MS_BIND, none).map_err(|source| {
        Error::new(format!("mounting a network namespace on {}", path.display()), source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ethtool, sysctl};

    /// A namespace that goes away with the test, also when it fails.
    struct Fixture(Namespace);

    impl Fixture {
        fn new(test: &str) -> Self {
            let name = format!("rlvs-test-{}-{test}", std::process::id());
            Self(Namespace::create(&name).unwrap())
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            delete(self.0.name()).ok();
        }
    }

    fn output(command: &str, arguments: &[&str]) -> String {
        let output = Command::new(command).args(arguments).output().unwrap();
        assert!(output.status.success(), "{command} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn iproute2_knows_our_namespace_and_enters_it() {
        let fixture = Fixture::new("iproute2");
        assert!(output("ip", &["netns", "list"]).contains(fixture.0.name()));
        let links = output("ip", &["netns", "exec", fixture.0.name(), "ip", "-o", "link"]);
        assert_eq!(links.lines().count(), 1, "only lo: {links}");
        assert!(names().unwrap().contains(&fixture.0.name().to_owned()));
    }

    #[test]
    fn we_open_what_iproute2_made() {
        let name = format!("rlvs-test-{}-made", std::process::id());
        output("ip", &["netns", "add", &name]);
        let opened = Namespace::open(&name);
        output("ip", &["netns", "delete", &name]);
        assert!(!opened.unwrap().is_same(&Namespace::current().unwrap()).unwrap());
    }

    #[test]
    fn the_caller_stays_where_it_is() {
        let fixture = Fixture::new("stays");
        let before = Namespace::current().unwrap();
        let inside = fixture.0.run(|| Namespace::current().unwrap()).unwrap();
        assert!(inside.is_same(&fixture.0).unwrap());
        assert!(before.is_same(&Namespace::current().unwrap()).unwrap());
        assert!(!before.is_same(&inside).unwrap());
    }

    #[test]
    fn a_command_runs_inside() {
        let fixture = Fixture::new("command");
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        let outside = command.output().unwrap().stdout;
        fixture.0.place(&mut command).unwrap();
        let inside = command.output().unwrap().stdout;
        assert_ne!(inside, outside);
        let name = fixture.0.name();
        let expected = output("ip", &["netns", "exec", name, "readlink", "/proc/self/ns/net"]);
        assert_eq!(inside, expected.into_bytes());
    }

    #[test]
    fn the_namespace_of_a_process_can_be_opened() {
        let of_us = Namespace::of_process(std::process::id()).unwrap();
        assert!(of_us.is_same(&Namespace::current().unwrap()).unwrap());
    }

    #[test]
    fn cookies_tell_namespaces_apart() {
        let (one, other) = (Fixture::new("cookie1"), Fixture::new("cookie2"));
        assert_ne!(one.0.cookie().unwrap(), other.0.cookie().unwrap());
        assert_eq!(one.0.cookie().unwrap(), one.0.cookie().unwrap());
        assert_ne!(cookie().unwrap(), one.0.cookie().unwrap());
    }

    #[test]
    fn a_taken_or_impossible_name_is_refused() {
        let fixture = Fixture::new("taken");
        assert!(matches!(Namespace::create(fixture.0.name()), Err(Error::System { .. })));
        for name in ["", ".", "..", "a/b", "a\0b", &"a".repeat(256)] {
            assert!(matches!(Namespace::create(name), Err(Error::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn a_deleted_namespace_has_no_name() {
        let fixture = Fixture::new("deleted");
        delete(fixture.0.name()).unwrap();
        assert!(!output("ip", &["netns", "list"]).contains(fixture.0.name()));
        assert!(Namespace::open(fixture.0.name()).is_err());
    }

    #[test]
    fn parameters_are_those_of_the_namespace() {
        let fixture = Fixture::new("sysctl");
        let before = sysctl::read("net/ipv4/ip_forward").unwrap();
        let name = fixture.0.name();
        fixture.0.run(|| sysctl::write("net/ipv4/ip_forward", "1").unwrap()).unwrap();
        let inside = output("ip", &["netns", "exec", name, "cat", "/proc/sys/net/ipv4/ip_forward"]);
        assert_eq!(inside, "1\n");
        assert_eq!(sysctl::read("net/ipv4/ip_forward").unwrap(), before);
        assert!(matches!(sysctl::read("net/../kernel/ostype"), Err(sysctl::Error::Path(_))));
    }

    #[test]
    fn offloads_of_a_veth_end_are_switched() {
        let fixture = Fixture::new("ethtool");
        let name = fixture.0.name();
        let mut rtnetlink = crate::route::Rtnetlink::open_in(&fixture.0).unwrap();
        rtnetlink.add_veth("one", "two", &fixture.0).unwrap();
        fixture
            .0
            .run(|| {
                assert!(ethtool::is_tx_checksum_on("one").unwrap());
                assert!(!ethtool::is_gro_on("one").unwrap());
                ethtool::tx_checksum_off("one").unwrap();
                ethtool::gro_on("one").unwrap();
                assert!(!ethtool::is_tx_checksum_on("one").unwrap());
                assert!(ethtool::is_gro_on("one").unwrap());
                assert!(matches!(ethtool::gro_on("three"), Err(ethtool::Error::System { .. })));
            })
            .unwrap();
        let features = output("ip", &["netns", "exec", name, "ethtool", "-k", "one"]);
        assert!(features.contains("tx-checksumming: off"), "{features}");
        assert!(features.contains("generic-receive-offload: on"), "{features}");
    }
}
