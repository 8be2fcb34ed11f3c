//! Running a scenario in a standing lab, and showing it as a user would see it.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use rlvs_control::model::Protocol;
use rlvs_linux::process::{self, Guard};

use super::client::{self, Answers};
use super::scenario::Case;
use super::topology::{HTTP_PORT, Lab, REAL_SERVERS, UDP_PORT};

/// How long a command of ours may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);

/// A standing lab, the program under test, and where to show what happens.
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    pub(super) program: &'a Path,
    pub(super) screen: &'a mut dyn Write,
    pub(super) interrupted: &'a AtomicBool,
}

/// What a command has said.
struct Said {
    success: bool,
    output: String,
}

impl Stage<'_> {
    /// Sets a service up, asks it, and returns what was not as it must be.
    pub(super) fn play(&mut self, case: Case, requests: u32) -> anyhow::Result<Vec<String>> {
        writeln!(self.screen, "\n--- {case}")?;
        let mut problems = self.set_up(case)?;
        // Without the service there is nothing to ask, and each question would wait in vain.
        if problems.is_empty() {
            problems = self.ask_and_judge(case, requests)?;
        }
        self.ipvsadm(&["-C"], &mut problems)?;
        self.show_problems(&problems)?;
        Ok(problems)
    }

    fn ask_and_judge(&mut self, case: Case, requests: u32) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        let before = self.ipvsadm(&["-L", "-n"], &mut problems)?;
        if before.output != case.listing() {
            problems.push(format!("the listing should be\n{}", case.listing()));
        }
        let answers = self.ask(case, requests)?;
        problems.extend(case.judge_answers(requests, &answers));
        let after = self.ipvsadm(&["-L", "-n"], &mut problems)?;
        problems.extend(case.judge_listing(&after.output, &answers));
        Ok(problems)
    }

    /// Types the commands of a case, and returns what was refused.
    pub(super) fn set_up(&mut self, case: Case) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        if let Some(words) = case.preparation() {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            problems = self.rlvs(&words)?;
        }
        for words in case.commands() {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.ipvsadm(&words, &mut problems)?;
        }
        Ok(problems)
    }

    /// Runs an `rlvs` command on the director, and returns what was refused.
    pub(super) fn rlvs(&mut self, words: &[&str]) -> anyhow::Result<Vec<String>> {
        let typed = format!("rlvs {}", words.join(" "));
        let said = self.command(&typed, words)?;
        let problems = if said.success { Vec::new() } else { vec![format!("`{typed}` failed")] };
        self.show_problems(&problems)?;
        Ok(problems)
    }

    /// Asks every real server directly, so that what fails later is not a server's fault.
    pub(super) fn ask_servers(&mut self) -> anyhow::Result<Vec<String>> {
        writeln!(self.screen, "\n--- the real servers answer")?;
        let mut problems = Vec::new();
        for server in &REAL_SERVERS {
            let views = [
                ("client", self.lab.client(), server.outside),
                ("director", self.lab.director(), server.inside),
            ];
            for (role, namespace, addresses) in views {
                for address in addresses.both() {
                    for (protocol, port) in [(Protocol::Tcp, HTTP_PORT), (Protocol::Udp, UDP_PORT)]
                    {
                        let target = SocketAddr::new(address, port);
                        let answer = match namespace.run(|| client::ask(protocol, target))? {
                            Ok(name) => name,
                            Err(error) => error.to_string(),
                        };
                        let question = question(protocol, target);
                        writeln!(self.screen, "{role}# {question}: {answer}")?;
                        if answer != server.title {
                            problems.push(format!("{question}: {answer}"));
                        }
                    }
                }
            }
        }
        self.show_problems(&problems)?;
        Ok(problems)
    }

    fn ask(&mut self, case: Case, requests: u32) -> anyhow::Result<Answers> {
        let (protocol, target) = (case.protocol, case.target());
        writeln!(self.screen, "client# {requests} times {}", question(protocol, target))?;
        let interrupted = self.interrupted;
        let work = || client::ask_often(protocol, target, requests, interrupted);
        let answers = self.lab.client().run(work)?;
        let failed = answers.failures.len();
        writeln!(self.screen, "  {:<12} {:>8} {:>8}", "who", "answers", "expected")?;
        for (name, share) in case.shares(requests) {
            let count = answers.counts.get(&name).copied().unwrap_or(0);
            writeln!(self.screen, "  {name:<12} {count:>8} {share:>8}")?;
        }
        writeln!(self.screen, "  {:<12} {failed:>8} {:>8}", "nobody", 0)?;
        Ok(answers)
    }

    fn ipvsadm(&mut self, words: &[&str], problems: &mut Vec<String>) -> anyhow::Result<Said> {
        let typed = format!("ipvsadm {}", words.join(" "));
        let arguments: Vec<&str> = ["ipvsadm"].iter().chain(words).copied().collect();
        let said = self.command(&typed, &arguments)?;
        if !said.success {
            problems.push(format!("`{typed}` failed"));
        }
        Ok(said)
    }

    /// Runs the program under test on the director, and shows it as `typed` with what it says.
    fn command(&mut self, typed: &str, arguments: &[&str]) -> anyhow::Result<Said> {
        writeln!(self.screen, "director# {typed}")?;
        let [output, errors] =
            ["command.out", "command.err"].map(|name| self.lab.directory().join(name));
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("creating {}", path.display()))
        };
        let mut command = Command::new(self.program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(create(&output)?).stderr(create(&errors)?);
        self.lab.director().place(&mut command)?;
        process::die_with_parent(&mut command, Signal::SIGKILL);
        let child = command.spawn().with_context(|| format!("running `{typed}`"))?;
        let status = Guard::new(child)
            .wait_for(COMMAND_TIME_MAX)
            .with_context(|| format!("waiting for `{typed}`"))?;
        let read = |path: &Path| -> anyhow::Result<String> {
            let bytes =
                std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let said =
            Said { success: status.is_some_and(|status| status.success()), output: read(&output)? };
        write!(self.screen, "{}{}", said.output, read(&errors)?)?;
        match status {
            Some(status) if !status.success() => writeln!(self.screen, "  ({status})")?,
            Some(_) => {}
            None => writeln!(self.screen, "  (stopped after {COMMAND_TIME_MAX:?})")?,
        }
        Ok(said)
    }

    fn show_problems(&mut self, problems: &[String]) -> std::io::Result<()> {
        for problem in problems {
            writeln!(self.screen, "WRONG: {problem}")?;
        }
        if problems.is_empty() {
            writeln!(self.screen, "right")?;
        }
        Ok(())
    }
}

/// Returns a request as a user would type or say it.
fn question(protocol: Protocol, target: SocketAddr) -> String {
    match protocol {
        // The port of HTTP is left out, as people do.
        Protocol::Tcp if target.port() == 80 && target.is_ipv6() => {
            format!("curl http://[{}]/", target.ip())
        }
        Protocol::Tcp if target.port() == 80 => format!("curl http://{}/", target.ip()),
        Protocol::Tcp => format!("curl http://{target}/"),
        Protocol::Udp => format!("a datagram to {target}"),
        Protocol::Sctp | Protocol::Other(_) => format!("a message to {target}"),
    }
}
