//! The site of `rlvs lab` with a daemon on it, for tests.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use e2e::lab::{TIME_MAX, run, tool, wait_for};
use nix::sys::signal::Signal;
use rlvs::lab::site::{self, Host};
use rlvs_linux::process::{Guard, Handle};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

/// The standing site.
pub(crate) struct Site(site::Site);

impl Deref for Site {
    type Target = site::Site;

    fn deref(&self) -> &site::Site {
        &self.0
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self(site::Site::new(Path::new(PROGRAM)).unwrap())
    }

    pub(crate) fn ip(&self, host: Host, words: &str) {
        let words: Vec<&str> = words.split_ascii_whitespace().collect();
        run(self.host(host), &tool("ip").unwrap(), &words).ok();
    }

    /// Starts the web server of a host, and waits until it answers.
    pub(crate) fn web(&self, host: Host) -> Guard {
        let guard = self.web_server(host).unwrap();
        wait_for("a web server", || self.ask_server(host).map_err(|error| error.to_string()));
        guard
    }

    /// Asks often; every request must succeed. Returns how often each server answered.
    pub(crate) fn ask_often(&self, times: u32) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for number in 0..times {
            let name = self.ask().unwrap_or_else(|error| panic!("request {number}: {error:#}"));
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    /// Asks once more until somebody answers.
    pub(crate) fn wait_answer(&self) -> String {
        wait_for("an answer", || self.ask().map_err(|error| error.to_string()))
    }

    pub(crate) fn vip_is_at(&self, host: Host) -> bool {
        self.has_vip(host).unwrap()
    }

    pub(crate) fn table(&self, host: Host) -> Vec<(String, u32)> {
        self.destinations(host).unwrap()
    }
}

/// A daemon on a director.
pub(crate) struct Daemon {
    guard: Guard,
    log: PathBuf,
    pub(crate) file: PathBuf,
    pub(crate) pid_file: PathBuf,
}

impl Daemon {
    /// Starts `keepalived` with a configuration in the foreground.
    pub(crate) fn start(site: &Site, host: Host, configuration: &str) -> Self {
        Self::start_more(site, host, configuration, &[])
    }

    /// Starts `keepalived` with a configuration and more options.
    pub(crate) fn start_more(site: &Site, host: Host, configuration: &str, more: &[&str]) -> Self {
        let file = site.directory().join(format!("{host:?}.conf"));
        fs::write(&file, configuration).unwrap();
        let pid_file = site.directory().join(format!("{host:?}.pid"));
        Self::start_as(site, host, file, pid_file, more)
    }

    /// Starts the `keepalived` of another version of the program.
    pub(crate) fn start_other(
        site: &Site,
        host: Host,
        configuration: &str,
        program: &Path,
    ) -> Self {
        let at = |kind: &str| site.directory().join(format!("{host:?}.{kind}"));
        let (file, pid_file) = (at("conf"), at("pid"));
        fs::write(&file, configuration).unwrap();
        let words = Self::words(&file, &pid_file);
        let (guard, log) = site.start_program(host, program, &words).unwrap();
        Self { guard, log, file, pid_file }
    }

    fn words<'a>(file: &'a Path, pid_file: &'a Path) -> Vec<&'a str> {
        let (file, pid_file) = (file.to_str().unwrap(), pid_file.to_str().unwrap());
        vec!["keepalived", "-n", "-l", "-D", "-f", file, "-p", pid_file]
    }

    /// Starts `keepalived` with these files.
    pub(crate) fn start_with(site: &Site, host: Host, file: PathBuf, pid_file: PathBuf) -> Self {
        Self::start_as(site, host, file, pid_file, &[])
    }

    fn start_as(site: &Site, host: Host, file: PathBuf, pid_file: PathBuf, more: &[&str]) -> Self {
        let mut words = Self::words(&file, &pid_file);
        words.extend(more);
        let (guard, log) = site.start(host, &words).unwrap();
        Self { guard, log, file, pid_file }
    }

    /// Takes a daemon that was started in another way, with its files.
    pub(crate) fn of(guard: Guard, log: PathBuf, file: PathBuf, pid_file: PathBuf) -> Self {
        Self { guard, log, file, pid_file }
    }

    /// Returns the process that was started.
    pub(crate) fn process(&self) -> u32 {
        self.guard.pid().unwrap()
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log has a text this often.
    pub(crate) fn wait_said(&self, text: &str, times: usize) {
        wait_for(text, || {
            let said = self.said();
            if said.matches(text).count() >= times { Ok(()) } else { Err(said) }
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        Handle::open(self.guard.pid().unwrap()).unwrap().signal(signal).unwrap();
    }

    /// Waits for the end, and returns the status.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let status = self.guard.wait_for(TIME_MAX).unwrap();
        status.unwrap_or_else(|| panic!("it runs: {}", self.said())).code()
    }

    /// Starts it again with its files; its log begins anew.
    pub(crate) fn start_again(&mut self, site: &Site, host: Host) {
        *self = Self::start_with(site, host, self.file.clone(), self.pid_file.clone());
    }

    /// Sends a signal and waits for the end; returns the status.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.ended()
    }
}
