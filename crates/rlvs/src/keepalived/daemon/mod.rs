//! The daemon: carries out a configuration until it is asked to end.
//!
//! One thread decides what is done with a signal, an event, a new configuration; all others only tell
//! it (`Happening`): the virtual routers, each tracked script, the tracked files, the tracked processes, the signals. The log has a thread of
//! its own, so that nothing waits for whoever reads it.

mod capability;
mod chronicle;
mod configuration;
mod dump;
mod files;
mod log;
mod mail;
mod manager;
mod notify;
mod pid;
mod processes;
mod program;
mod routers;
mod routing;
mod run;
mod scripts;
mod services;
mod signals;
pub mod state;
mod sync;
mod watch;

use std::path::PathBuf;

use rlvs_conf::{Secrets, print};
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::return_large_memory;
use rlvs_linux::vrrp::Told;

use super::checks::Event as ServiceEvent;
use super::options::Running;
pub(super) use chronicle::unix_ms_of;
use configuration::Found;
use log::{Level, Log};
use pid::PidFile;
use run::Daemon;
use signals::Wish;
pub use watch::remove_stale_sockets;

/// Status of a daemon that could not begin.
const STATUS_FATAL: u8 = 1;
/// Status of a configuration that cannot be carried out.
const STATUS_CONFIGURATION: u8 = 2;
/// Status of a process that may not do what it must.
const STATUS_RIGHTS: u8 = 4;
/// Status of a part that ended of itself.
const STATUS_SOFTWARE: u8 = 70;

/// Something that the main thread is told.
#[derive(Debug)]
enum Happening {
    /// A signal came.
    Wish(Wish),
    /// The virtual routers tell.
    Routers(Told),
    /// The virtual routers have waited long enough.
    RoutersDue,
    /// The virtual routers have ended without being asked.
    RoutersLost,
    /// A virtual server tells.
    Service(ServiceEvent),
    /// The checks have ended without being asked.
    ServicesLost(String),
    /// A tracked script has ended; with what is new about it.
    Script { name: String, good: bool, news: Option<String> },
    /// A tracked file says another number.
    Number { name: String, number: i32 },
    /// As many tracked processes run as shall, or not; and how many that are.
    Processes { name: String, good: bool, count: usize },
    /// Somebody wants to know how the daemon is.
    Asked(Asker),
}

/// Who wants to know how the daemon is.
type Asker = tokio::sync::oneshot::Sender<Box<state::State>>;

/// Why the daemon does not run: a status, and lines that say why.
type Refusal = (u8, String);

/// Runs the daemon, and returns the status to end with.
pub(super) fn run(options: Running) -> u8 {
    begin(options).unwrap_or_else(|(status, why)| {
        eprintln!("keepalived: {why}");
        status
    })
}

/// Does what can fail in the foreground, goes to the background if that is wanted, and runs.
fn begin(mut options: Running) -> Result<u8, Refusal> {
    return_large_memory();
    let failed = |error: std::io::Error| (STATUS_FATAL, error.to_string());
    // In the background all is relative to /.
    options.file = std::path::absolute(&options.file).map_err(failed)?;
    let found = configuration::find(&options);
    if options.namespace.is_none() {
        options.enter(found.desired.namespace.clone());
    }
    let namespace = options.namespace.as_deref().map(Namespace::open).transpose();
    let namespace = namespace.map_err(|error| (STATUS_FATAL, error.to_string()))?;
    if let Some((status, why)) = &found.fatal {
        found.lines.iter().for_each(|(_, line)| eprintln!("keepalived: {line}"));
        return Err((*status, why.clone()));
    }
    if options.dump {
        eprint!("{}", print(&found.desired, Secrets::Hidden));
    }
    if let Some(why) = capability::lacking(&found, options.backend.as_deref()) {
        return Err((STATUS_RIGHTS, why));
    }
    let take =
        |path: &PathBuf| PidFile::take(&std::path::absolute(path).map_err(|e| e.to_string())?);
    let files: Result<Vec<PidFile>, String> = options.pid_files.iter().map(take).collect();
    let mut files = files.map_err(|why| (STATUS_FATAL, why))?;
    let sink = log::Sink::open(&options).map_err(failed)?;
    if !options.foreground {
        // No thread has been started yet: none is lost.
        nix::unistd::daemon(false, false).map_err(|error| failed(error.into()))?;
    }
    files.iter_mut().try_for_each(PidFile::write).map_err(failed)?;
    let work = || carry_out(&options, found, sink);
    match namespace {
        None => work(),
        Some(namespace) => {
            namespace.run(work).unwrap_or_else(|error| Err((STATUS_FATAL, error.to_string())))
        }
    }
}

/// Runs in the calling thread's namespace until the end.
fn carry_out(options: &Running, found: Found, sink: log::Sink) -> Result<u8, Refusal> {
    let (log, writer) =
        Log::start(sink, options.detail).map_err(|error| (STATUS_FATAL, error.to_string()))?;
    let ended = Daemon::start(options, found, &log).map(|(mut daemon, happenings)| {
        let status = daemon.serve(&happenings);
        daemon.stop(&happenings);
        status
    });
    if let Err((_, why)) = &ended {
        log.say(Level::Error, why);
    }
    log.end(writer);
    ended
}
