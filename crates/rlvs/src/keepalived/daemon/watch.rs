//! The thread that answers those who look: whoever connects to the daemon's socket gets its state,
//! and Prometheus its metrics.
//!
//! It asks the main thread, which asks the virtual routers and hands on to the checks; so nobody who
//! looks is ever waited for, and however many look, the daemon is asked ten times a second at most.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::timeout;

use super::Happening;
use super::state::{self, State};
use crate::ipvsadm::Backend;
use crate::metrics::server::{self, Source as Scraped};

/// An answer that is younger is given again.
const FRESH: Duration = Duration::from_millis(100);
/// How long the daemon may take to say how it is.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a client may take to read.
const CLIENT_MAX: Duration = Duration::from_secs(5);
/// Clients served at once; others wait.
const CLIENTS_MAX: usize = 16;
/// Connections that wait.
const WAITING_MAX: i32 = 64;

/// The thread, until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    path: Option<PathBuf>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to answer for the calling thread's network namespace, and to serve metrics of a table
    /// where that is asked for. What cannot be had is left out, with a line that says so.
    ///
    /// # Errors
    /// The system has no thread for us.
    pub(super) fn start(
        to: Sender<Happening>,
        metrics: Option<SocketAddr>,
        backend: Backend,
    ) -> io::Result<(Self, Vec<String>)> {
        let mut lines = Vec::new();
        let (path, listener) = state_socket()
            .map(|(path, socket)| (Some(path), Some(socket)))
            .unwrap_or_else(|error| {
                lines.push(format!("nobody can ask how this daemon is: {error}"));
                (None, None)
            });
        let metrics = metrics.and_then(|address| match TcpListener::bind(address) {
            Ok(listener) => Some(listener),
            Err(error) => {
                lines.push(format!("no metrics: listening on {address}: {error}"));
                None
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("watch".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(async move {
                let source = Arc::new(Source { to, last: Mutex::new(None) });
                if let Some(listener) = listener {
                    tokio::spawn(serve(listener, source.clone()));
                }
                if let Some(listener) = metrics {
                    tokio::spawn(server::serve(listener, Arc::new(scraped(source, backend))));
                }
                // An end that was dropped is an end too.
                ended.await.ok();
            });
        })?;
        Ok((Self { path, end: Some(end), thread: Some(thread) }, lines))
    }
}

/// Returns what is scraped.
fn scraped(source: Arc<Source>, backend: Backend) -> Scraped {
    let ask = move || -> server::Asked {
        let source = source.clone();
        Box::pin(async move { source.state().await })
    };
    Scraped { backend, daemon: Box::new(ask) }
}

/// Makes the socket of the state.
fn state_socket() -> io::Result<(PathBuf, StdListener)> {
    let path = state::path()?;
    fs::create_dir_all(state::FOLDER)?;
    remove_stale_sockets();
    let socket = bound(&path)?;
    Ok((path, socket))
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone already.
            fs::remove_file(path).ok();
        }
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was told already, and has ended nothing else.
            thread.join().ok();
        }
    }
}

/// Where the state comes from.
struct Source {
    to: Sender<Happening>,
    last: Mutex<Option<(Instant, Arc<State>)>>,
}

impl Source {
    /// Returns how the daemon is; `None` if it does not say.
    async fn state(&self) -> Option<Arc<State>> {
        let mut last = self.last.lock().await;
        if let Some((at, state)) = &*last
            && at.elapsed() < FRESH
        {
            return Some(state.clone());
        }
        let (answer, answered) = oneshot::channel();
        self.to.send(Happening::Asked(answer)).ok()?;
        let state: Arc<State> = Arc::new(*timeout(ANSWER_MAX, answered).await.ok()?.ok()?);
        *last = Some((Instant::now(), state.clone()));
        Some(state)
    }
}

async fn serve(listener: StdListener, source: Arc<Source>) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        // Nobody closes it.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            // No descriptors: some will be free later.
            tokio::time::sleep(FRESH).await;
            continue;
        };
        let source = source.clone();
        tokio::spawn(async move {
            // Whoever goes or does not read gets no more.
            timeout(CLIENT_MAX, answer(client, &source)).await.ok();
            drop(place);
        });
    }
}

async fn answer(mut client: UnixStream, source: &Source) -> io::Result<()> {
    let Some(state) = source.state().await else { return Ok(()) };
    let mut text = serde_json::to_vec(&*state)?;
    text.push(b'\n');
    client.write_all(&text).await?;
    client.shutdown().await
}

/// Makes the socket, which only its owner may connect to from its first moment on.
fn bound(path: &Path) -> io::Result<StdListener> {
    let address = UnixAddr::new(path)?;
    if !is_stale(&address) && path.exists() {
        let text = format!("another daemon answers at {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // Under its name it listens, so that nobody takes it for one that was left.
    let unfinished = path.with_extension("new");
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let socket = unix_socket()?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&unfinished)?)?;
    listen(&socket, Backlog::new(WAITING_MAX)?)?;
    fs::rename(&unfinished, path)?;
    Ok(StdListener::from(socket))
}

/// Removes the sockets of daemons that were killed, in all network namespaces.
pub fn remove_stale_sockets() {
    let Ok(entries) = fs::read_dir(state::FOLDER) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_ours = name.starts_with("keepalived-") && name.ends_with(".sock");
        if is_ours && UnixAddr::new(&path).is_ok_and(|address| is_stale(&address)) {
            // Another may have removed it.
            fs::remove_file(&path).ok();
        }
    }
}

/// Tells whether nobody listens, as far as can be known: who may not connect knows nothing.
fn is_stale(address: &UnixAddr) -> bool {
    let Ok(socket) = unix_socket() else { return false };
    connect(socket.as_raw_fd(), address) == Err(Errno::ECONNREFUSED)
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}
