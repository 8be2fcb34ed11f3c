//! The thread of the virtual servers: it checks, and keeps the table.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rlvs_conf::desired::{Checker, Desired, Target, VirtualServer};
use rlvs_control::model::{DestinationId, ServiceEntry, ServiceId};
use rlvs_linux::process::trim_memory;

use super::super::checks::{Checks, Open};
use super::state::State;
use super::{Asker, Happening};

/// How long the thread may take to tell how all is.
const STATUS_MAX: Duration = Duration::from_secs(2);

/// How long after another configuration memory is given back: the table has followed by then, and
/// what was in use for that is free.
const SETTLED: Duration = Duration::from_secs(2);

/// What the thread is asked for.
#[derive(Debug)]
enum Order {
    Reload(Arc<Desired>),
    Stop { keep: bool },
    Status(Sender<Vec<String>>),
    Answer(Box<State>, Asker),
}

/// The virtual servers, running.
#[derive(Debug)]
pub(super) struct Services {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl Services {
    /// Begins. What an earlier process has left in the table is gone on with.
    ///
    /// # Errors
    /// The kernel has no descriptor or thread for us.
    pub(super) fn start(
        desired: &Desired,
        mut open: Open,
        to: Sender<Happening>,
    ) -> io::Result<Self> {
        let mut desired = desired.clone();
        if let Ok(left) = open().and_then(|mut table| table.services()) {
            let servers = desired.virtual_servers.iter_mut();
            servers.for_each(|server| distrust_missing(server, &left));
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (orders, received) = channel();
        let checks = Checks::new(&desired, open, u64::from(std::process::id()))?;
        let trim_at = Some(Instant::now() + SETTLED);
        let runner = Runner { checks, wake: wake.clone(), orders: received, to, trim_at };
        let thread = std::thread::Builder::new().name("services".to_owned());
        let lost = runner.to.clone();
        let thread = thread.spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| runner.run())).is_err() {
                // The main thread may have ended.
                lost.send(Happening::ServicesLost("a fault in the program".to_owned())).ok();
            }
        })?;
        Ok(Self { orders, wake, thread })
    }

    /// Moves to another configuration.
    pub(super) fn reload(&self, desired: Arc<Desired>) {
        self.order(Order::Reload(desired));
    }

    /// Returns a line for each virtual and each real server; none if the thread has ended.
    pub(super) fn status(&self) -> Vec<String> {
        let (to, lines) = channel();
        self.order(Order::Status(to));
        lines.recv_timeout(STATUS_MAX).unwrap_or_default()
    }

    /// Completes the daemon's state with the virtual servers', and hands it to who asked.
    pub(super) fn answer(&self, state: Box<State>, to: Asker) {
        self.order(Order::Answer(state, to));
    }

    /// Ends, and removes the services unless they are to be kept. Returns when that is done.
    pub(super) fn stop(self, keep: bool) {
        self.order(Order::Stop { keep });
        // A panic there was told as the end of the thread.
        self.thread.join().ok();
    }

    fn order(&self, order: Order) {
        // Both fail only if the thread has ended, or is awake with much to do.
        let sent = self.orders.send(order).is_ok();
        let _awake = sent && self.wake.write(1).is_ok();
    }
}

/// Lets a server that an earlier process had taken out of the table wait for a good check.
fn distrust_missing(server: &mut VirtualServer, left: &[ServiceEntry]) {
    let id = match server.target {
        Target::Address(address, port) => {
            ServiceId::Address { protocol: server.protocol, address, port }
        }
        Target::Mark(mark, family) => ServiceId::Mark { family, mark },
        Target::Group(_) => return,
    };
    let Some(entry) = left.iter().find(|entry| entry.service.id == id) else { return };
    for real in &mut server.real_servers {
        let id = DestinationId { address: real.address, port: real.port };
        let serves = entry.destinations.iter().map(|there| &there.destination);
        let mut serves = serves.filter(|there| there.weight > 0);
        if !serves.any(|there| there.id == id) {
            let down = |one: &Arc<Checker>| Checker { starts_down: true, ..(**one).clone() };
            real.checkers = real.checkers.iter().map(|one| Arc::new(down(one))).collect();
        }
    }
}

struct Runner {
    checks: Checks,
    wake: Arc<EventFd>,
    orders: Receiver<Order>,
    to: Sender<Happening>,
    /// When free memory is given back.
    trim_at: Option<Instant>,
}

impl Runner {
    fn run(mut self) {
        let why = loop {
            self.tell();
            if let Err(error) = self.wait() {
                break error.to_string();
            }
            match self.obey() {
                Ok(()) => self.trim(),
                Err(keep) => {
                    self.checks.stop(keep);
                    self.tell();
                    return;
                }
            }
            if let Err(error) = self.checks.turn(Some(Instant::now())) {
                break error.to_string();
            }
        };
        // The main thread may have ended.
        self.to.send(Happening::ServicesLost(why)).ok();
    }

    fn tell(&mut self) {
        while let Some(event) = self.checks.poll_event() {
            self.to.send(Happening::Service(event)).ok();
        }
    }

    fn trim(&mut self) {
        if self.trim_at.take_if(|at| *at <= Instant::now()).is_some() {
            trim_memory();
        }
    }

    /// Sleeps until something happens or is due.
    fn wait(&self) -> io::Result<()> {
        let due = self.checks.poll_timeout().into_iter().chain(self.trim_at).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        // Rounded up: the last millisecond is not spent spinning.
        let millis = left.map(|left| left.as_micros().div_ceil(1000));
        let timeout =
            millis.map(|millis| PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX));
        let timeout = timeout.unwrap_or(PollTimeout::NONE);
        let mut descriptors = [
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.checks.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Does what was asked for; an error is the end, with whether services are kept.
    fn obey(&mut self) -> Result<(), bool> {
        let _rested = self.wake.read().is_ok();
        loop {
            match self.orders.try_recv() {
                Ok(Order::Reload(desired)) => {
                    self.checks.reload(&desired);
                    self.trim_at = Some(Instant::now() + SETTLED);
                }
                Ok(Order::Answer(mut state, to)) => {
                    state.services = self.checks.report();
                    state.refused = self.checks.refused().map(str::to_owned).collect();
                    // Whoever asked may have gone.
                    to.send(state).ok();
                }
                Ok(Order::Stop { keep }) => return Err(keep),
                Ok(Order::Status(to)) => {
                    // Whoever asked may have gone.
                    to.send(self.checks.status()).ok();
                }
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rlvs_control::memory::MemoryTable;
    use rlvs_control::model::{Destination, ForwardingMethod, Service};
    use rlvs_control::table::Table;

    use super::*;

    #[test]
    fn a_server_that_was_out_waits_for_a_check() {
        let text = "virtual_server 10.0.0.1 80 {\n lb_algo rr\n lb_kind NAT\n protocol TCP\n\
            real_server 10.0.0.2 80 {\n TCP_CHECK\n }\n real_server 10.0.0.3 80 {\n TCP_CHECK\n }\n}\n";
        let mut desired = rlvs_conf::read_text(text).desired;
        let server = desired.virtual_servers.first_mut().expect("a virtual server");
        let id = ServiceId::Address {
            protocol: server.protocol,
            address: [10, 0, 0, 1].into(),
            port: 80,
        };
        let mut table = MemoryTable::default();
        let service = Service {
            id,
            scheduler: "rr".to_owned(),
            scheduler_flags: 0,
            one_packet: false,
            persistence: None,
            persistence_engine: None,
        };
        let destination = Destination {
            id: DestinationId { address: [10, 0, 0, 2].into(), port: 80 },
            method: ForwardingMethod::Masquerade,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        distrust_missing(server, &table.services().expect("memory"));
        let down = |server: &VirtualServer| -> Vec<bool> {
            let checkers = server.real_servers.iter().flat_map(|real| &*real.checkers);
            checkers.map(|checker| checker.starts_down).collect()
        };
        assert_eq!(down(server), [false, false], "nothing is left: as at a first start");
        table.add_service(&service).expect("a new service");
        table.add_destination(id, &destination).expect("a new destination");
        distrust_missing(server, &table.services().expect("memory"));
        assert_eq!(down(server), [false, true]);
    }
}
