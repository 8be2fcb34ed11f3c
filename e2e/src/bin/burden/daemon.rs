//! The daemon under test, and what it uses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rlvs_linux::process::{Guard, Handle, die_with_parent};

use crate::network::Network;
use crate::{TIME_MAX, interrupt};

/// One that runs until it is dropped.
pub(crate) struct Daemon {
    guard: Guard,
    pid: u32,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn start(program: &Path, network: &Network, file: &Path) -> Result<Self> {
        let log = file.with_extension("log");
        let output = File::create(&log)?;
        let mut command = Command::new(program);
        command.args(["keepalived", "-n", "-l", "-D", "-f"]).arg(file);
        command.arg("-p").arg(file.with_extension("pid"));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        network.director.place(&mut command)?;
        die_with_parent(&mut command, Signal::SIGKILL);
        let guard = Guard::new(command.spawn().context("starting the daemon")?);
        let pid = guard.pid().context("it has ended")?;
        Ok(Self { guard, pid, log })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(Handle::open(self.pid)?.signal(signal)?)
    }

    /// Returns how often the log has a text.
    pub(crate) fn count_said(&self, text: &str) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().matches(text).count()
    }

    /// Waits until the log has a text so often.
    pub(crate) fn wait_said(&self, text: &str, times: usize) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        while self.count_said(text) < times {
            interrupt::check()?;
            let late = || fs::read_to_string(&self.log).unwrap_or_default();
            ensure!(Instant::now() < deadline, "waiting for `{text}`: {}", late());
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Returns the CPU time of all its threads, to the nanosecond.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.cpu_of(|_| true)
    }

    /// Returns the CPU time of the threads with some names.
    pub(crate) fn cpu_of(&self, is_meant: impl Fn(&str) -> bool) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let task = task?.path();
            if !is_meant(fs::read_to_string(task.join("comm"))?.trim_end()) {
                continue;
            }
            let text = fs::read_to_string(task.join("schedstat"))?;
            let first = text.split_ascii_whitespace().next().context("an empty schedstat")?;
            nanoseconds += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Returns the memory that is its own: not that of the table and of the program's file.
    pub(crate) fn memory_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next());
        Ok(kilobytes.context("no RssAnon")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The next one begins with what it finds.
        if self.signal(Signal::SIGTERM).is_ok() {
            self.guard.wait_for(TIME_MAX).ok();
        }
    }
}
