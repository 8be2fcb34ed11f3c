//! Lines for the operator, written by a thread of their own: a slow or stuck reader delays nothing but
//! them. One line an event; a line that comes again and again is held back and counted.

mod limit;
mod sink;
pub(super) mod time;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::state;
use limit::Limiter;
pub(super) use sink::Sink;

/// Lines that wait for a slow reader; those beyond are counted.
const WAITING_MAX: usize = 4096;
/// How long what was said may take to be written at the end.
const END_MAX: Duration = Duration::from_secs(2);
/// How soon a full queue is looked at again, at the end.
const PAUSE: Duration = Duration::from_millis(10);

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

/// What a line is about, for those who read it by program (`--log-format json`).
pub(in crate::keepalived) type Fields = Vec<(&'static str, String)>;

/// A line.
#[derive(Clone, Debug)]
struct Line {
    level: Level,
    text: String,
    fields: Fields,
}

/// Takes lines.
#[derive(Clone, Debug)]
pub(in crate::keepalived) struct Log {
    lines: SyncSender<Option<Line>>,
    counts: Arc<Counts>,
    detail: bool,
}

/// What became of lines.
#[derive(Debug, Default)]
struct Counts {
    /// Of which nobody has been told yet.
    lost: AtomicU64,
    lost_ever: AtomicU64,
    held_back: AtomicU64,
}

impl Counts {
    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.lost_ever.fetch_add(1, Ordering::Relaxed);
    }
}

impl Log {
    /// Starts the thread that writes.
    pub(super) fn start(sink: Sink, detail: bool) -> io::Result<(Self, End)> {
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let (done, ended) = sync_channel(1);
        let counts = Arc::new(Counts::default());
        let writer = Writer { sink, counts: counts.clone(), limiter: Limiter::default() };
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            writer.run(&waiting);
            // Whoever waited for the end may have given up.
            done.send(()).ok();
        })?;
        Ok((Self { lines, counts, detail }, End { ended, thread }))
    }

    /// Writes a line, unless too many wait.
    pub(in crate::keepalived) fn say(&self, level: Level, line: impl fmt::Display) {
        self.tell(level, Fields::new(), line);
    }

    /// Writes a line about something.
    pub(in crate::keepalived) fn tell(
        &self,
        level: Level,
        fields: Fields,
        line: impl fmt::Display,
    ) {
        if level == Level::Debug && !self.detail {
            return;
        }
        if self.lines.try_send(Some(Line { level, text: line.to_string(), fields })).is_err() {
            self.counts.lose();
        }
    }

    /// Returns what became of lines so far.
    pub(super) fn state(&self) -> state::Log {
        state::Log {
            lost: self.counts.lost_ever.load(Ordering::Relaxed),
            held_back: self.counts.held_back.load(Ordering::Relaxed),
        }
    }

    /// Ends behind what was said before, or without it if nobody reads.
    pub(super) fn end(self, end: End) {
        let deadline = Instant::now() + END_MAX;
        while let Err(TrySendError::Full(_)) = self.lines.try_send(None) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::park_timeout(PAUSE);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if end.ended.recv_timeout(left).is_ok() {
            // It has nothing to do any more; a panic there was told already.
            end.thread.join().ok();
        }
    }
}

/// The end of the thread that writes.
#[derive(Debug)]
pub(super) struct End {
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

struct Writer {
    sink: Sink,
    counts: Arc<Counts>,
    limiter: Limiter,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Option<Line>>) {
        loop {
            let due = self.limiter.poll_timeout();
            let next = match due {
                None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => waiting.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            let now = Instant::now();
            self.limiter.due(now).iter().for_each(|line| self.write(line));
            match next {
                Ok(Some(line)) if self.limiter.admits(&line, now) => self.write(&line),
                Ok(Some(_)) => {
                    self.counts.held_back.fetch_add(1, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(None) | Err(RecvTimeoutError::Disconnected) => {
                    self.limiter.finish().iter().for_each(|line| self.write(line));
                    return;
                }
            }
        }
    }

    fn write(&mut self, line: &Line) {
        if self.sink.write(line).is_err() {
            return self.counts.lose();
        }
        let lost = self.counts.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("{lost} lines were lost: the log is too slow");
            let told = Line { level: Level::Warning, text, fields: Fields::new() };
            if self.sink.write(&told).is_err() {
                self.counts.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }
}
