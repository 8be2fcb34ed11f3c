//! The table kept by a thread of its own: whoever holds its lock does not hold up checks.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rlvs_control::model::{Destination, Service, ServiceId};
use rlvs_control::table::{Error, Table};
use rlvs_control::upkeep::{Report, Upkeep};

/// Opens the table for one batch of changes: whoever has it open keeps others out.
pub type Open = Box<dyn FnMut() -> Result<Box<dyn Table>, Error> + Send>;

/// How often the table is held against what it should be.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Looking at a large table takes no more than one part of the time in this many.
const LOOK_SHARE: u32 = 50;
/// When what the table has refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What a table should hold for a service; `None` is its absence.
pub(super) type Wish = (ServiceId, Option<(Service, Vec<Destination>)>);

/// Keeps a table until it is dropped.
pub(super) struct Keeper {
    wishes: Option<Sender<Vec<Wish>>>,
    reports: Receiver<Result<Report, Error>>,
    reported: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to keep the table of the calling thread's network namespace.
    pub(super) fn new(open: Open) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let reported = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (wishes, wished) = channel();
        let (report, reports) = channel();
        let upkeep = Upkeep::default();
        let look_at = Instant::now() + LOOK_INTERVAL;
        let event = reported.clone();
        let work = Work { upkeep, open, report, event, look_at, retry_at: None };
        let name = "table".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || work.run(&wished))?;
        Ok(Self { wishes: Some(wishes), reports, reported, thread: Some(thread) })
    }

    /// Asks for services, all in one batch.
    pub(super) fn wish(&self, wishes: Vec<Wish>) {
        if let Some(to) = &self.wishes {
            // The thread ends only after this end of the channel.
            to.send(wishes).ok();
        }
    }

    /// Returns what came of it.
    pub(super) fn poll_report(&self) -> Option<Result<Report, Error>> {
        self.reports.try_recv().ok()
    }

    /// Returns what is readable when there is a report. It must be read.
    pub(super) fn reported(&self) -> &EventFd {
        &self.reported
    }

    /// Carries out what was wished, and ends.
    pub(super) fn end(&mut self) {
        self.wishes = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been told already.
            thread.join().ok();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

struct Work {
    upkeep: Upkeep,
    open: Open,
    report: Sender<Result<Report, Error>>,
    event: Arc<EventFd>,
    look_at: Instant,
    retry_at: Option<Instant>,
}

impl Work {
    fn run(mut self, wished: &Receiver<Vec<Wish>>) {
        loop {
            let now = Instant::now();
            let next = self.retry_at.map_or(self.look_at, |at| at.min(self.look_at));
            match wished.recv_timeout(next.saturating_duration_since(now)) {
                Ok(wishes) => {
                    self.take(wishes);
                    wished.try_iter().for_each(|more| self.take(more));
                    self.maintain(false);
                }
                Err(RecvTimeoutError::Timeout) => self.maintain(self.look_at <= Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, wishes: Vec<Wish>) {
        for (id, service) in wishes {
            self.upkeep.want(id, service);
        }
    }

    /// Brings the table to what it should be, and if it is time to `look`, whatever may differ.
    fn maintain(&mut self, look: bool) {
        if !look && !self.upkeep.is_dirty() {
            return;
        }
        let before = Instant::now();
        let outcome = (self.open)().and_then(|mut table| {
            if look { self.upkeep.reconcile(&mut *table) } else { self.upkeep.apply(&mut *table) }
        });
        let after = Instant::now();
        if look {
            self.look_at = after + LOOK_INTERVAL.max((after - before) * LOOK_SHARE);
        }
        self.retry_at = self.upkeep.is_dirty().then_some(after + RETRY_INTERVAL);
        // Nobody listens at the end.
        self.report.send(outcome).ok();
        self.event.write(1).ok();
    }
}
