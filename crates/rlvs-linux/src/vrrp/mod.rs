//! The edge of VRRP: a thread that carries out what [`rlvs_control::vrrp::Router`] wants.
//!
//! The thread owns every socket and decides nothing. Others talk to it by [`Vrrp`]'s methods, which
//! never wait for the network, and hear from it by a channel without limit, so that a slow listener
//! delays no advertisement. It works in the namespace of the thread that started it.

mod channel;
mod memory;
mod own;
mod routing;
mod run;
pub(crate) mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rlvs_control::vrrp::config::{Config, Refusal};
use rlvs_control::vrrp::{Event, Input, Router, State, Status, Who};

use crate::route;

/// Why VRRP cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is wrong.
    #[error("the VRRP configuration is wrong: {}", list(.0))]
    Refused(Vec<Refusal>),
    /// Routing netlink cannot be opened.
    #[error(transparent)]
    Route(#[from] route::Error),
    /// A system call failed.
    #[error("{operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What the thread tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// An instance or a group is in another state.
    State {
        /// Whose.
        who: Who,
        /// The state.
        state: State,
        /// The priority of an instance; 0 of a group.
        priority: u8,
    },
    /// Something for the log.
    Log {
        /// The instance that it is about; empty for all.
        about: Arc<str>,
        /// What it is.
        event: Event,
    },
    /// Something that was to be done has failed.
    Failed {
        /// What was tried, on what, and why it failed.
        what: String,
    },
    /// Something that would be good to have is not to be had.
    Without {
        /// What it is, what follows, and why.
        what: String,
    },
    /// The thread has ended: everything was put in order.
    Ended,
}

/// What the thread is asked for.
#[derive(Debug)]
enum Command {
    Input(Input),
    Status(Sender<Vec<Status>>),
}

/// VRRP, running.
///
/// Dropping it is an orderly end, as [`Vrrp::stop`].
#[derive(Debug)]
pub struct Vrrp {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Removes what masters of this host have noted about when they spoke. For `rlvs uninstall`.
///
/// # Errors
/// The files cannot be removed.
pub fn forget_all() -> io::Result<()> {
    memory::forget_all()
}

impl Vrrp {
    /// Starts a thread in the calling thread's namespace, and returns where to hear from it.
    ///
    /// # Errors
    /// The configuration is wrong, or a missing capability.
    pub fn start(config: Config) -> Result<(Self, Receiver<Told>), Error> {
        Self::start_with(config, [])
    }

    /// As [`start`](Self::start), with what is known before anything is done.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        config: Config,
        known: impl IntoIterator<Item = Input>,
    ) -> Result<(Self, Receiver<Told>), Error> {
        let failed = |operation| move |source| Error::System { operation, source };
        let now = Instant::now();
        let mut router = Router::new(config, now).map_err(Error::Refused)?;
        for input in known {
            router.handle(input, now);
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)
            .map_err(|error| failed("making an event descriptor")(error.into()))?;
        let wake = Arc::new(wake);
        let (commands, orders) = mpsc::channel();
        let (teller, told) = mpsc::channel();
        let runner = run::Runner::new(router, wake.clone(), orders, teller)?;
        let thread = std::thread::Builder::new()
            .name("vrrp".to_owned())
            .spawn(move || runner.run())
            .map_err(failed("starting the VRRP thread"))?;
        Ok((Self { commands, wake, thread: Some(thread) }, told))
    }

    /// Moves to another configuration; if it is wrong the old one stays, and the log says why.
    pub fn reload(&self, config: Config) {
        self.input(Input::Reload(config));
    }

    /// Reports how a tracked script ended.
    pub fn script(&self, name: &str, good: bool) {
        self.input(Input::Script { name: name.into(), good });
    }

    /// Reports a tracked number.
    pub fn value(&self, name: &str, value: i32) {
        self.input(Input::Value { name: name.into(), value });
    }

    /// Reports whether as many tracked processes run as shall.
    pub fn process(&self, name: &str, good: bool) {
        self.input(Input::Process { name: name.into(), good });
    }

    /// Returns how each instance is; nothing if the thread has ended.
    pub fn status(&self) -> Vec<Status> {
        let (sender, receiver) = mpsc::channel();
        self.command(Command::Status(sender));
        receiver.recv().unwrap_or_default()
    }

    /// Ends in order: masters resign, addresses go. Returns when that is done.
    pub fn stop(self) {
        drop(self);
    }

    fn input(&self, input: Input) {
        self.command(Command::Input(input));
    }

    fn command(&self, command: Command) {
        // Both fail only if the thread has ended, or is awake with much to do.
        let sent = self.commands.send(command).is_ok();
        let _awake = sent && self.wake.write(1).is_ok();
    }
}

impl Drop for Vrrp {
    fn drop(&mut self) {
        self.input(Input::Stop);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Opens the socket that frames are sent by; it receives nothing.
fn frame_socket() -> Result<OwnedFd, Error> {
    sys::raw_socket(libc::AF_PACKET, 0)
        .map_err(|source| Error::System { operation: "opening a packet socket", source })
}

/// Takes all wake-ups.
fn rest(wake: &EventFd) {
    let _rested = wake.read().is_ok();
}
