//! Lines for the operator, written by a thread of their own: a slow reader delays nothing but them.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::options::Running;
use super::state;

/// Lines that wait for a slow reader; those beyond are counted.
const WAITING_MAX: usize = 4096;
/// Where syslog listens.
const SYSLOG: &str = "/dev/log";

/// How much a line matters, by the numbers of syslog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keepalived) enum Level {
    /// Somebody must act.
    Error = 3,
    /// Somebody should look.
    Warning = 4,
    /// The state of something changed.
    Notice = 5,
    /// What was done.
    Info = 6,
    /// For those who look for something (`-D`).
    Debug = 7,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Takes lines.
#[derive(Clone, Debug)]
pub(in crate::keepalived) struct Log {
    lines: SyncSender<Option<(Level, String)>>,
    lost: Arc<AtomicU64>,
    lost_ever: Arc<AtomicU64>,
    detail: bool,
}

impl Log {
    /// Starts the thread that writes.
    pub(super) fn start(sink: Sink, detail: bool) -> io::Result<(Self, JoinHandle<()>)> {
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer { sink, lost: lost.clone() };
        let thread = std::thread::Builder::new().name("log".to_owned());
        let thread = thread.spawn(move || writer.run(&waiting))?;
        Ok((Self { lines, lost, lost_ever: Arc::default(), detail }, thread))
    }

    /// Writes a line, unless too many wait.
    pub(in crate::keepalived) fn say(&self, level: Level, line: impl fmt::Display) {
        if level == Level::Debug && !self.detail {
            return;
        }
        if self.lines.try_send(Some((level, line.to_string()))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.lost_ever.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns what became of lines so far.
    pub(super) fn state(&self) -> state::Log {
        state::Log { lost: self.lost_ever.load(Ordering::Relaxed) }
    }

    /// Ends the thread behind what was said before.
    pub(super) fn end(self, thread: JoinHandle<()>) {
        // It fails only if the thread has ended.
        if self.lines.send(None).is_ok() {
            thread.join().ok();
        }
    }
}

/// Where lines go.
pub(super) enum Sink {
    /// Standard error, or a file.
    Stream(Box<dyn Write + Send>),
    /// The host's log, with a facility.
    Syslog(UnixDatagram, u8),
    /// Nobody wants them.
    Nowhere,
}

impl Sink {
    /// Opens what the command line asks for.
    pub(super) fn open(options: &Running) -> io::Result<Self> {
        if options.console {
            return Ok(Self::Stream(Box::new(io::stderr())));
        }
        if let Some(path) = &options.log_file {
            let file: File = OpenOptions::new().append(true).create(true).open(path)?;
            return Ok(Self::Stream(Box::new(file)));
        }
        let socket = UnixDatagram::unbound()?;
        match socket.connect(SYSLOG) {
            _ if !options.syslog => Ok(Self::Nowhere),
            Ok(()) => Ok(Self::Syslog(socket, options.facility)),
            Err(_) if options.foreground => Ok(Self::Stream(Box::new(io::stderr()))),
            Err(_) => Ok(Self::Nowhere),
        }
    }

    fn write(&mut self, level: Level, line: &str) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                writeln!(stream, "{} {}: {line}", timestamp(), level.word())?;
                stream.flush()
            }
            Self::Syslog(socket, facility) => {
                let priority = *facility * 8 + level as u8;
                let text = format!("<{priority}>Keepalived[{}]: {line}", std::process::id());
                socket.send(text.as_bytes()).map(drop)
            }
            Self::Nowhere => Ok(()),
        }
    }
}

struct Writer {
    sink: Sink,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Option<(Level, String)>>) {
        while let Ok(Some((level, line))) = waiting.recv() {
            // Whoever does not listen cannot be told so.
            self.sink.write(level, &line).ok();
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let line = format!("{lost} lines were lost: the log is too slow");
                self.sink.write(Level::Warning, &line).ok();
            }
        }
    }
}

/// Returns the time of now in UTC, to the millisecond.
fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = now.subsec_millis();
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Returns year, month and day of a day since 1970, by years that begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + later, month, day)
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(59), (1970, 3, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(20_779), (2026, 11, 22));
    }
}
