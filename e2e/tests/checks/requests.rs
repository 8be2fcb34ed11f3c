//! Clients that ask all the time and know the fate of each request.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rlvs_linux::netns::Namespace;

/// How long a client waits for the whole of an answer.
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(1);
/// How long it rests after each.
const PAUSE: Duration = Duration::from_millis(5);

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
    pub(crate) failure: Option<String>,
}

/// Clients that ask until they are ended.
pub(crate) struct Clients {
    threads: Vec<JoinHandle<Vec<Request>>>,
    ends: Arc<AtomicBool>,
}

impl Clients {
    /// Starts some in a namespace; each request is a connection of its own.
    pub(crate) fn start(namespace: &Namespace, to: SocketAddr, count: usize) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let one = |_| {
            let (namespace, ends) = (Namespace::open(namespace.name()).unwrap(), ends.clone());
            std::thread::spawn(move || namespace.run(|| ask_on(to, &ends)).unwrap())
        };
        let threads = (0..count).map(one).collect();
        Self { threads, ends }
    }

    /// Ends them, and returns all requests in the order in which they began.
    pub(crate) fn end(self) -> Vec<Request> {
        self.ends.store(true, Ordering::Relaxed);
        let results = self.threads.into_iter().flat_map(|thread| thread.join().unwrap());
        let mut requests: Vec<Request> = results.collect();
        requests.sort_by_key(|request| request.begun);
        requests
    }
}

fn ask_on(to: SocketAddr, ends: &AtomicBool) -> Vec<Request> {
    let mut requests = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let failure = ask(to, begun + REQUEST_MAX).err().map(|error| error.to_string());
        requests.push(Request { begun, ended: Instant::now(), failure });
        std::thread::park_timeout(PAUSE);
    }
    requests
}

fn ask(to: SocketAddr, until: Instant) -> io::Result<()> {
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut stream = TcpStream::connect_timeout(&to, left()?)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    loop {
        stream.set_read_timeout(Some(left()?))?;
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes)? {
            0 => break,
            length => answer.extend(&bytes[..length]),
        }
    }
    let is_good = answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\nhealthy\n");
    let text = String::from_utf8_lossy(&answer);
    if is_good { Ok(()) } else { Err(io::Error::other(format!("the answer is {text:?}"))) }
}
