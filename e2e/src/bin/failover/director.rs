//! A director: ours or the real keepalived.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::lab::tool;
use nix::sys::signal::Signal;
use rlvs_linux::process::{Guard, Handle, die_with_parent};

use crate::TIME_MAX;
use crate::network::{Network, log_name};
use crate::variant::Variant;

/// A program that can be a director.
#[derive(Debug)]
pub(crate) struct Product {
    program: PathBuf,
    /// Words before those of keepalived.
    words: &'static [&'static str],
    /// Processes besides the one that is started tell their numbers here.
    parts: &'static [&'static str],
    /// What the log says of a backup.
    backup: &'static str,
    /// What it says of a master.
    master: &'static str,
}

impl Product {
    /// Ours, built beside this program.
    pub(crate) fn ours() -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("rlvs-e2e");
        ensure!(program.is_file(), "{} is not built: use cargo xtask failover", program.display());
        Ok(Self {
            program,
            words: &["keepalived"],
            parts: &[],
            backup: "INIT to BACKUP",
            master: "to MASTER",
        })
    }

    /// The real one.
    pub(crate) fn theirs() -> Result<Self> {
        let program = tool("keepalived").context("no keepalived; --alone measures without it")?;
        Ok(Self {
            program,
            words: &[],
            parts: &["vrrp.pid"],
            backup: "Entering BACKUP STATE",
            master: "Entering MASTER STATE",
        })
    }

    /// Returns what it calls itself.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(&self.program).args(self.words).arg("--version").output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }
}

/// One that runs.
pub(crate) struct Director<'a> {
    product: &'a Product,
    guard: Guard,
    log: PathBuf,
    parts: Vec<PathBuf>,
}

impl<'a> Director<'a> {
    pub(crate) fn start(
        product: &'a Product,
        network: &Network,
        host: u8,
        variant: &Variant,
        priority: u8,
    ) -> Result<Self> {
        let file = |name: &str| network.directory().join(format!("{host}.{name}"));
        fs::write(file("conf"), variant.configuration(host, priority))?;
        let log = network.directory().join(log_name(host));
        File::create(&log)?;
        let guard = spawn(product, network, host)?;
        let parts = product.parts.iter().map(|name| file(name)).collect();
        Ok(Self { product, guard, log, parts })
    }

    /// Tells whether it is backup.
    pub(crate) fn is_backup(&self) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|said| said.contains(self.product.backup))
    }

    /// Tells whether it has become master more than once.
    pub(crate) fn is_master_again(&self) -> bool {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        said.matches(self.product.master).count() > 1
    }

    /// Asks it to end.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        Ok(self.main()?.signal(Signal::SIGTERM)?)
    }

    /// Kills all its processes, so that none can say anything.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let main = self.main()?;
        // A part that sees its parent end would end in order.
        main.signal(Signal::SIGSTOP)?;
        for part in &self.parts {
            part_of(part)?.signal(Signal::SIGKILL)?;
        }
        Ok(main.signal(Signal::SIGKILL)?)
    }

    /// Kills the process of the virtual router, and sees that there is another.
    pub(crate) fn crash(&mut self, network: &Network, host: u8) -> Result<()> {
        for part in &self.parts {
            // Its parent starts another.
            part_of(part)?.signal(Signal::SIGKILL)?;
        }
        if self.parts.is_empty() {
            self.main()?.signal(Signal::SIGKILL)?;
            self.guard.wait_for(TIME_MAX)?.context("it does not end")?;
            self.guard = spawn(self.product, network, host)?;
        }
        Ok(())
    }

    fn main(&self) -> Result<Handle> {
        Ok(Handle::open(self.guard.pid().context("it has ended")?)?)
    }
}

/// Starts one with the file that is there; its log is continued.
fn spawn(product: &Product, network: &Network, host: u8) -> Result<Guard> {
    let file = |name: &str| network.directory().join(format!("{host}.{name}"));
    let output = File::options().append(true).open(network.directory().join(log_name(host)))?;
    let mut command = Command::new(&product.program);
    command.args(product.words).args(["-n", "-l", "-D", "-P", "-f"]).arg(file("conf"));
    command.arg("-p").arg(file("pid")).arg("-r").arg(file("vrrp.pid"));
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    network.host(host).place(&mut command)?;
    die_with_parent(&mut command, Signal::SIGKILL);
    Ok(Guard::new(command.spawn().context("starting a director")?))
}

fn part_of(file: &Path) -> Result<Handle> {
    let number = fs::read_to_string(file)?.trim().parse()?;
    Ok(Handle::open(number)?)
}
