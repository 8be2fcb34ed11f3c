//! The table kept by a thread of its own: whoever holds its lock does not hold up checks.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use rlvs_control::model::{Destination, Service, ServiceId, Timeouts};
use rlvs_control::table::{Error, Removal, Table};
use rlvs_control::upkeep::{Report, Upkeep};
use rlvs_linux::process::trim_memory;

/// Opens the table for one batch of changes: whoever has it open keeps others out.
pub type Open = Box<dyn FnMut() -> Result<Box<dyn Table>, Error> + Send>;

/// How often the table is held against what it should be.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Looking at a large table takes no more than one part of a CPU's time in this many.
const LOOK_SHARE: u32 = 50;
/// When what the table has refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What a table should hold for a service; `None` is its absence.
pub(super) type Wish = (ServiceId, Option<(Service, Vec<Destination>)>);

/// What is asked for besides services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// Time-outs of connections; 0 keeps what is there (`lvs_timeouts`).
    pub(super) timeouts: Timeouts,
    /// Services that nobody asked for are removed, once (`lvs_flush`).
    pub(super) flush: bool,
}

/// What the thread is told.
enum Order {
    Wishes(Vec<Wish>),
    Manner(Manner),
    Removal(Removal),
}

/// Keeps a table until it is dropped.
pub(super) struct Keeper {
    wishes: Option<Sender<Order>>,
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
        let manner = Manner::default();
        let removal = Removal::default();
        let work = Work { upkeep, manner, removal, open, report, event, look_at, retry_at: None };
        let name = "table".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || work.run(&wished))?;
        Ok(Self { wishes: Some(wishes), reports, reported, thread: Some(thread) })
    }

    /// Asks for services, all in one batch.
    pub(super) fn wish(&self, wishes: Vec<Wish>) {
        self.order(Order::Wishes(wishes));
    }

    /// Asks for what is to be done with the next batch.
    pub(super) fn manner(&self, manner: Manner) {
        self.order(Order::Manner(manner));
    }

    /// Says what becomes of the connections of what is removed from now on.
    pub(super) fn removal(&self, removal: Removal) {
        self.order(Order::Removal(removal));
    }

    fn order(&self, order: Order) {
        if let Some(to) = &self.wishes {
            // The thread ends only after this end of the channel.
            to.send(order).ok();
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
    /// What is still to be done of it.
    manner: Manner,
    removal: Removal,
    open: Open,
    report: Sender<Result<Report, Error>>,
    event: Arc<EventFd>,
    look_at: Instant,
    retry_at: Option<Instant>,
}

impl Work {
    fn run(mut self, wished: &Receiver<Order>) {
        loop {
            let now = Instant::now();
            let next = self.retry_at.map_or(self.look_at, |at| at.min(self.look_at));
            match wished.recv_timeout(next.saturating_duration_since(now)) {
                Ok(order) => {
                    self.take(order);
                    wished.try_iter().for_each(|more| self.take(more));
                    self.maintain(false);
                }
                Err(RecvTimeoutError::Timeout) => self.maintain(self.look_at <= Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Wishes(wishes) => {
                for (id, service) in wishes {
                    self.upkeep.want(id, service);
                }
            }
            Order::Manner(manner) => self.manner = manner,
            Order::Removal(removal) => self.removal = removal,
        }
    }

    /// Does what is still to be done besides services.
    fn settle(&mut self, table: &mut dyn Table) -> Result<(), Error> {
        let Manner { timeouts, flush } = self.manner;
        if timeouts != Timeouts::default() {
            table.set_timeouts(timeouts)?;
            self.manner.timeouts = Timeouts::default();
        }
        if flush {
            self.upkeep.remove_others(table)?;
            self.manner.flush = false;
        }
        Ok(())
    }

    /// Brings the table to what it should be, and if it is time to `look`, whatever may differ.
    fn maintain(&mut self, look: bool) {
        let rests = self.manner == Manner::default();
        if !look && !self.upkeep.is_dirty() && rests {
            return;
        }
        let before = busy();
        let outcome = (self.open)().and_then(|mut table| {
            table.set_removal(self.removal);
            self.settle(&mut *table)?;
            if look { self.upkeep.reconcile(&mut *table) } else { self.upkeep.apply(&mut *table) }
        });
        let after = Instant::now();
        if look {
            // Not the time for which others had the CPU or the table's lock.
            let taken = busy().saturating_sub(before);
            self.look_at = after + LOOK_INTERVAL.max(taken * LOOK_SHARE);
            // What was read is forgotten until then.
            trim_memory();
        }
        let again = self.upkeep.is_dirty() || self.manner != Manner::default();
        self.retry_at = again.then_some(after + RETRY_INTERVAL);
        // Nobody listens at the end.
        self.report.send(outcome).ok();
        self.event.write(1).ok();
    }
}

/// Returns how long the calling thread has had a CPU.
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
