//! Child processes that do not outlive their purpose, and waiting for them without spinning.

pub mod watch;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// From this size on a value has memory of its own; what the C library begins with.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 128 * 1024;

/// Gives memory that is free in this process back to the kernel, where the C library can.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes its own locks, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has large values given back to the kernel as soon as they are not used, where the C library can:
/// left alone, it raises the size from which it does so with each that it gives back.
pub fn return_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator, under its lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

/// Makes the kernel send `signal` to the command's process when its parent is gone.
///
/// The parent in the kernel's sense is the *thread* that spawns it: spawn from a thread that lives
/// as long as the child shall.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::Pid::this();
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
    // allowed: prctl and getppid are bare system calls, nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the request was in force.
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from(Errno::ESRCH));
            }
            Ok(())
        });
    }
}

/// A hold on a process that is not mistaken for another when its number is given out again.
#[derive(Debug)]
pub struct Handle {
    pidfd: OwnedFd,
}

impl AsFd for Handle {
    /// Returns the descriptor, which is readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Handle {
    /// Takes hold of a running process.
    ///
    /// # Errors
    /// No such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let Ok(descriptor) = i32::try_from(result) else {
            return Err(io::Error::from_raw_os_error(libc::EOVERFLOW));
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, so it is open and nobody else's.
        Ok(Self { pidfd: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// It has ended, or it is not ours to signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let information = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo is allowed and means what kill(2) would send.
        let status = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                information,
                0,
            )
        };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until the process has ended or the time is up, and tells whether it has ended.
    ///
    /// # Errors
    /// The kernel refused to wait.
    pub fn wait_for(&self, at_most: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + at_most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the wait does not end before the deadline.
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut readable = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut readable, timeout) {
                Ok(0) | Err(Errno::EINTR) if Instant::now() < deadline => {}
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks the process to end, and makes it if it has not after the time.
    ///
    /// # Errors
    /// It is not ours to signal.
    pub fn end(&self, grace: Duration) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if !self.wait_for(grace)? {
            self.signal(Signal::SIGKILL)?;
            self.wait_for(grace)?;
        }
        Ok(())
    }
}

/// Waits until the child has ended or the time is up, and returns its status if it has ended.
///
/// # Errors
/// The child cannot be waited for.
pub fn wait_for(child: &mut Child, at_most: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    Handle::open(child.id())?.wait_for(at_most)?;
    child.try_wait()
}

/// A child that is asked to end, then made to, when this is dropped.
#[derive(Debug)]
pub struct Guard {
    child: Option<Child>,
}

/// How long a child has to end of itself before it is killed.
const GRACE: Duration = Duration::from_secs(2);

impl Guard {
    /// Takes charge of a child.
    pub fn new(child: Child) -> Self {
        Self { child: Some(child) }
    }

    /// Gives the child up: it goes on when this is dropped.
    pub fn release(mut self) {
        self.child = None;
    }

    /// Returns the child's process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until the child has ended or the time is up, and returns its status if it has ended.
    ///
    /// # Errors
    /// The child cannot be waited for.
    pub fn wait_for(&mut self, at_most: Duration) -> io::Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => wait_for(child, at_most),
            None => Ok(None),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        // Not yet waited for, so the process id is still this child's.
        if let Ok(handle) = Handle::open(child.id()) {
            handle.end(GRACE).ok();
        }
        // Reaps it; if it could not be ended, there is nothing else to be done.
        child.try_wait().ok();
    }
}

/// A chain of parents is shorter than this.
const ANCESTORS_MAX: usize = 1024;

/// Returns the numbers of this process and its ancestors, the eldest first, as far as they are in view.
pub(crate) fn ancestors() -> Vec<u32> {
    let parent = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse().ok().filter(|pid| *pid > 0)
    };
    let mut ancestors: Vec<u32> =
        std::iter::successors(Some(std::process::id()), parent).take(ANCESTORS_MAX).collect();
    ancestors.reverse();
    ancestors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("60");
        command
    }

    #[test]
    fn waiting_ends_at_the_deadline_while_the_child_lives() {
        let mut guard = Guard::new(sleeper().spawn().unwrap());
        let begin = Instant::now();
        assert!(guard.wait_for(Duration::from_millis(50)).unwrap().is_none());
        assert!(begin.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn waiting_ends_when_the_child_does() {
        let mut guard = Guard::new(Command::new("true").spawn().unwrap());
        assert!(guard.wait_for(Duration::from_secs(10)).unwrap().unwrap().success());
    }

    #[test]
    fn a_dropped_guard_ends_its_child() {
        let guard = Guard::new(sleeper().spawn().unwrap());
        let pid = guard.pid().unwrap();
        drop(guard);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_child_dies_with_the_thread_that_made_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = sleeper();
            die_with_parent(&mut command, Signal::SIGTERM);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        let status = wait_for(&mut child, Duration::from_secs(10)).unwrap();
        assert!(status.is_some_and(|status| !status.success()));
    }
}
