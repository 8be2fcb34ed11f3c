//! Carries attempts out: one epoll for all, nothing waits but [`Runner::wait`].

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rlvs_conf::desired::CheckerKind;
use rlvs_control::checks::{AttemptId, CheckId, Outcome};

use super::probe::{Dying, Probe, Progress};
use super::request::Request;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// How soon a killed command is looked at again.
const REAP_INTERVAL: Duration = Duration::from_millis(100);

/// How an attempt ended.
pub type Finished = (CheckId, AttemptId, Outcome);

/// Attempts that are under way.
#[derive(Debug)]
pub struct Runner {
    epoll: Epoll,
    running: HashMap<CheckId, Running>,
    /// Connections that were just begun, and may stand already.
    fresh: Vec<(CheckId, Running)>,
    timers: BTreeSet<(Instant, CheckId)>,
    dying: Vec<Dying>,
    finished: Vec<Finished>,
    events: Vec<EpollEvent>,
}

#[derive(Debug)]
struct Running {
    attempt: AttemptId,
    request: Request,
    probe: Probe,
    /// When nothing having happened is a result.
    silent_at: Option<Instant>,
}

impl Runner {
    /// Returns one without attempts, and lets this process open as many files as it may.
    ///
    /// # Errors
    /// No epoll descriptor is to be had.
    pub fn new() -> io::Result<Self> {
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // Without it fewer checks run at once; those that cannot say so.
            setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
        }
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            running: HashMap::new(),
            fresh: Vec::new(),
            timers: BTreeSet::new(),
            dying: Vec::new(),
            finished: Vec::new(),
            events: vec![EpollEvent::empty(); EVENTS_MAX],
        })
    }

    /// Makes [`Self::wait`] return when something else is readable.
    ///
    /// # Errors
    /// The kernel has no room for it.
    pub fn wake_by(&self, descriptor: impl AsFd) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(descriptor, EpollEvent::new(flags, u64::MAX))?)
    }

    /// Begins an attempt. After some of them [`Self::look`] must be called.
    pub fn start(&mut self, id: CheckId, attempt: AttemptId, request: Request, now: Instant) {
        match Probe::begin(&request, attempt.0) {
            Ok(probe) => {
                let running = Running { attempt, request, probe, silent_at: None };
                if let Probe::Tcp(_) = running.probe {
                    self.fresh.push((id, running));
                } else {
                    self.await_events(id, running, now);
                }
            }
            Err(outcome) => self.finished.push((id, attempt, outcome)),
        }
    }

    /// Looks at the connections that were just begun, all by one call: a near server has answered,
    /// and those that have not are waited for.
    pub fn look(&mut self, now: Instant) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let mut descriptors: Vec<PollFd<'_>> = fresh
            .iter()
            .map(|(_, running)| PollFd::new(running.probe.as_fd(), PollFlags::POLLOUT))
            .collect();
        // Where it fails, nothing is known yet.
        let looked = poll(&mut descriptors, PollTimeout::ZERO).is_ok();
        let seen: Vec<PollFlags> =
            descriptors.iter().map(|one| one.revents().unwrap_or(PollFlags::empty())).collect();
        for ((id, mut running), seen) in fresh.into_iter().zip(seen) {
            let flags = EpollFlags::from_bits_truncate(seen.bits().into());
            if looked
                && !flags.is_empty()
                && let Progress::Ended(outcome) = running.probe.ready(flags)
            {
                self.finished.push((id, running.attempt, outcome));
            } else {
                self.await_events(id, running, now);
            }
        }
    }

    fn await_events(&mut self, id: CheckId, running: Running, now: Instant) {
        if let Err(error) = self.watch(id, &running.probe) {
            let why = Outcome::Unknown(error.desc().to_lowercase());
            return self.finished.push((id, running.attempt, why));
        }
        self.running.insert(id, running);
        self.set_timer(id, now);
    }

    /// Ends an attempt without a result.
    pub fn cancel(&mut self, id: CheckId) {
        self.fresh.retain(|&(fresh, _)| fresh != id);
        let Some(running) = self.running.remove(&id) else { return };
        if let Some(at) = running.silent_at {
            self.timers.remove(&(at, id));
        }
        self.dying.extend(running.probe.abandon());
    }

    /// Waits until an attempt has ended or the moment has come, and returns those that have ended.
    ///
    /// # Errors
    /// The kernel refused to wait.
    pub fn wait(&mut self, until: Option<Instant>) -> io::Result<Vec<Finished>> {
        let at = [until, self.poll_timeout()].into_iter().flatten().min();
        let timeout = timeout(Instant::now(), at);
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        for at in 0..count {
            let event = self.events[at];
            if let Ok(id) = u32::try_from(event.data()) {
                self.go_on(CheckId(id), event.events(), now);
            }
        }
        self.end_silent(now);
        self.dying.retain_mut(|dying| !dying.is_over());
        Ok(std::mem::take(&mut self.finished))
    }

    /// Returns when [`Self::wait`] must be called, if its descriptor is not ready before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.finished.is_empty() {
            return Some(Instant::now());
        }
        let silent = self.timers.first().map(|&(at, _)| at);
        let reap = (!self.dying.is_empty()).then(|| Instant::now() + REAP_INTERVAL);
        silent.into_iter().chain(reap).min()
    }

    /// Returns how many attempts are under way.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Returns whether no attempt is under way.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    fn watch(&self, id: CheckId, probe: &Probe) -> nix::Result<()> {
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        if let Probe::Misc(_) = probe {
            flags = EpollFlags::EPOLLIN;
        }
        self.epoll.add(probe, EpollEvent::new(flags, u64::from(id.0)))
    }

    fn go_on(&mut self, id: CheckId, flags: EpollFlags, now: Instant) {
        let Some(running) = self.running.get_mut(&id) else { return };
        match running.probe.ready(flags) {
            Progress::Waiting => {}
            Progress::Reopened => {
                let watched = self.running.get(&id).map(|it| self.watch(id, &it.probe));
                if let Some(Err(error)) = watched {
                    return self.end(id, Outcome::Unknown(error.desc().to_lowercase()));
                }
            }
            Progress::Ended(outcome) => return self.end(id, outcome),
        }
        self.set_timer(id, now);
    }

    fn end(&mut self, id: CheckId, outcome: Outcome) {
        let Some(running) = self.running.get(&id) else { return };
        self.finished.push((id, running.attempt, outcome));
        self.cancel(id);
    }

    /// Gives an attempt its time from now on.
    fn set_timer(&mut self, id: CheckId, now: Instant) {
        let Some(running) = self.running.get_mut(&id) else { return };
        // A command says nothing until it ends: only its deadline counts.
        let endless = matches!(running.request.kind, CheckerKind::Misc(_));
        let at = (!endless).then(|| now + running.request.patience());
        let before = std::mem::replace(&mut running.silent_at, at);
        if let Some(before) = before {
            self.timers.remove(&(before, id));
        }
        self.timers.extend(at.map(|at| (at, id)));
    }

    fn end_silent(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(running) = self.running.get_mut(&id) else { continue };
            running.silent_at = None;
            let outcome = running.probe.silent(&running.request);
            self.end(id, outcome);
        }
    }
}

impl AsFd for Runner {
    /// Returns the descriptor that is readable when an attempt can go on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// Returns the time until a moment in whole milliseconds, not ending before it.
fn timeout(now: Instant, at: Option<Instant>) -> EpollTimeout {
    let Some(at) = at else { return EpollTimeout::NONE };
    let left = at.saturating_duration_since(now);
    if left.is_zero() {
        return EpollTimeout::ZERO;
    }
    EpollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX)
}
