//! The scenes of the lab with keepalived in them: the how-to's file with a web server that stops, and
//! two directors of whom the master ends and is killed.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rlvs_linux::process::{Guard, Handle};

use super::site::Host::{First, Second, Web1, Web2};
use super::site::{HOW_TO, Host, Site};

/// How long anything that must happen may take: more than the how-to's checks allow.
const TIME_MAX: Duration = Duration::from_secs(25);
/// How long to leave the processor to others before looking again.
const PAUSE: Duration = Duration::from_millis(20);
/// How much later than due something may be seen.
const LATE: Duration = Duration::from_secs(1);

/// A site, where to show what happens, and what was wrong so far.
pub(super) struct Scene<'a> {
    site: Site,
    screen: &'a mut dyn Write,
    interrupted: &'a AtomicBool,
    problems: Vec<String>,
}

impl<'a> Scene<'a> {
    /// Builds a site.
    pub(super) fn new(
        program: &Path,
        screen: &'a mut dyn Write,
        interrupted: &'a AtomicBool,
    ) -> anyhow::Result<Self> {
        Ok(Self { site: Site::new(program)?, screen, interrupted, problems: Vec::new() })
    }

    /// Plays the how-to's file, and returns what was not as it must be.
    pub(super) fn how_to(mut self, requests: u32) -> anyhow::Result<Vec<String>> {
        writeln!(self.screen, "\n--- keepalived: the how-to's file, a web server stops")?;
        let _first = self.site.web_server(Web1)?;
        let second = self.site.web_server(Web2)?;
        for web in [Web1, Web2] {
            self.wait("a web server", TIME_MAX, |site| Ok(site.ask_server(web).is_ok()))?;
        }
        let (_daemon, log) = self.daemon(First, HOW_TO)?;
        self.wait("first has 192.168.1.200", TIME_MAX, |site| site.has_vip(First))?;
        self.wait("the first answer", TIME_MAX, |site| Ok(site.ask().is_ok()))?;
        self.distribution("before", requests, [3, 2])?;

        writeln!(self.screen, "  (the web server of Server 2 is stopped)")?;
        drop(second);
        self.during(|site| Ok(site.destinations(First)?.len() == 1))?;
        self.distribution("after", requests, [1, 0])?;

        writeln!(self.screen, "  (it is started again)")?;
        let _second = self.site.web_server(Web2)?;
        let is_back = |site: &Site| Ok(site.destinations(First)?.len() == 2);
        self.wait("Server 2 is back", TIME_MAX, is_back)?;
        self.distribution("again", requests, [3, 2])?;
        self.show_log(&log)?;
        self.verdict()
    }

    /// Plays two directors, and returns what was not as it must be.
    pub(super) fn two_directors(mut self) -> anyhow::Result<Vec<String>> {
        writeln!(self.screen, "\n--- keepalived: two directors, the master ends")?;
        let router = HOW_TO.split("virtual_server").next().unwrap_or_default();
        let other = router.replace("priority 100", "priority 50").replace("MASTER", "BACKUP");
        let (master, _) = self.daemon(First, router)?;
        let (_backup, log) = self.daemon(Second, &other)?;
        self.wait("first has 192.168.1.200", TIME_MAX, |site| site.has_vip(First))?;
        writeln!(self.screen, "first# kill -TERM keepalived")?;
        signal(&master, Signal::SIGTERM)?;
        // 206/256 s, and three seconds more if nothing was said.
        let skew = Duration::from_millis(805);
        self.wait("second has it", skew + LATE, |site| site.has_vip(Second))?;
        let (master, _) = self.daemon(First, router)?;
        let is_first = |site: &Site| Ok(site.has_vip(First)? && !site.has_vip(Second)?);
        self.wait("first has it again", TIME_MAX, is_first)?;
        writeln!(self.screen, "first# kill -KILL keepalived")?;
        signal(&master, Signal::SIGKILL)?;
        let down = Duration::from_secs(3) + skew;
        self.wait("second has it", down + LATE, |site| site.has_vip(Second))?;
        let (_master, _) = self.daemon(First, router)?;
        self.wait("first has it again", TIME_MAX, is_first)?;
        self.show_log(&log)?;
        self.verdict()
    }

    fn daemon(&mut self, host: Host, text: &str) -> anyhow::Result<(Guard, PathBuf)> {
        let role = format!("{host:?}").to_lowercase();
        let [file, pid] =
            ["conf", "pid"].map(|end| self.site.directory().join(format!("{role}.{end}")));
        std::fs::write(&file, text)?;
        writeln!(self.screen, "{role}# keepalived -n -l -f keepalived.conf")?;
        let (file, pid) = (file.to_string_lossy(), pid.to_string_lossy());
        self.site.start(host, &["keepalived", "-n", "-l", "-f", &file, "-p", &pid])
    }

    /// Waits until something is so, and shows how long it took.
    fn wait(
        &mut self,
        what: &str,
        most: Duration,
        is_so: impl Fn(&Site) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !is_so(&self.site)? {
            if begun.elapsed() > TIME_MAX || self.interrupted.load(Ordering::Relaxed) {
                self.problems.push(format!("{what}: not within {TIME_MAX:?}"));
                return Ok(());
            }
            std::thread::park_timeout(PAUSE);
        }
        let took = begun.elapsed();
        writeln!(self.screen, "  {what}: after {:.2} s", took.as_secs_f64())?;
        if took > most {
            self.problems.push(format!("{what} took {took:?}, {most:?} is allowed"));
        }
        Ok(())
    }

    /// Asks while something is not so yet, and shows who answered.
    fn during(&mut self, is_so: impl Fn(&Site) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (mut counts, mut failed) = (BTreeMap::<String, u32>::new(), 0);
        while !is_so(&self.site)? && begun.elapsed() < TIME_MAX {
            match self.site.ask() {
                Ok(name) => *counts.entry(name).or_default() += 1,
                Err(_) => failed += 1,
            }
            std::thread::park_timeout(PAUSE);
        }
        let took = begun.elapsed().as_secs_f64();
        writeln!(
            self.screen,
            "  taken out after {took:.2} s; until then {counts:?}, {failed} failed"
        )?;
        Ok(())
    }

    /// Asks, and compares who answered with the weights.
    fn distribution(&mut self, when: &str, requests: u32, weights: [u32; 2]) -> anyhow::Result<()> {
        let round: u32 = weights.iter().sum();
        let requests = requests.div_ceil(round) * round;
        let mut counts = BTreeMap::<String, u32>::new();
        for number in 1..=requests {
            match self.site.ask() {
                Ok(name) => *counts.entry(name).or_default() += 1,
                Err(error) => self.problems.push(format!("{when}: request {number}: {error:#}")),
            }
        }
        for (name, weight) in ["Server 1", "Server 2"].into_iter().zip(weights) {
            let expected = requests / round * weight;
            let count = counts.get(name).copied().unwrap_or(0);
            writeln!(self.screen, "  {when:<8} {name:<12} {count:>8} {expected:>8}")?;
            if count != expected {
                let problem =
                    format!("{when}: {name} answered {count} times instead of {expected}");
                self.problems.push(problem);
            }
        }
        Ok(())
    }

    fn show_log(&mut self, path: &Path) -> anyhow::Result<()> {
        for line in std::fs::read_to_string(path)?.lines() {
            writeln!(self.screen, "  {line}")?;
        }
        Ok(())
    }

    fn verdict(self) -> anyhow::Result<Vec<String>> {
        for problem in &self.problems {
            writeln!(self.screen, "WRONG: {problem}")?;
        }
        if self.problems.is_empty() {
            writeln!(self.screen, "right")?;
        }
        Ok(self.problems)
    }
}

fn signal(guard: &Guard, signal: Signal) -> anyhow::Result<()> {
    let pid = guard.pid().ok_or_else(|| anyhow::anyhow!("the daemon is gone"))?;
    Ok(Handle::open(pid)?.signal(signal)?)
}
