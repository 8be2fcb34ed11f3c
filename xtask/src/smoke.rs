//! The lab on Debian 12's own kernel, Linux 6.1, in an emulator.
//!
//! That kernel is older than the one that development happens on: its verifier accepts less, it has
//! no TCX. The guest is an initramfs of busybox, the kernel's modules and `rlvs`; nothing of this
//! machine is visible in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// What `cargo xtask smoke` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seconds after which the guest is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 420)]
    limit: u64,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The guest's first process.
const INIT: &str = include_str!("smoke.init");
/// What it says at the end, before the exit status.
const STATUS: &str = "smoke: status ";

/// Builds the guest, boots it and demands that the lab in it succeeds.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let tools = run::stage("smoke tools", || {
        let script = run::workspace()?.join("scripts/smoke-tools");
        Ok(PathBuf::from(run::output(&mut Command::new(script))?.trim()))
    })?;
    let program = run::stage("static build", build)?;
    let initramfs = run::stage("initramfs", || pack(&tools, &program))?;
    run::stage("guest", || boot(&tools, &initramfs, Duration::from_secs(arguments.limit)))
}

/// Builds `rlvs` without shared libraries, of which the guest has none.
fn build() -> Result<PathBuf> {
    let mut cargo = run::cargo()?;
    cargo.args(["build", "--quiet", "--release", "--package", "rlvs", "--target", TARGET]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run::run(&mut cargo)?;
    Ok(run::target()?.join(TARGET).join("release/rlvs"))
}

/// Puts the guest's files together, and packs them with its own busybox.
fn pack(tools: &Path, program: &Path) -> Result<PathBuf> {
    let folder = run::target()?.join("smoke");
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    for name in ["bin", "dev", "modules", "proc", "run", "sys", "tmp"] {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    copy(&tools.join("busybox"), &root.join("bin/busybox"))?;
    copy(program, &root.join("bin/rlvs"))?;
    let modules = tools.join("modules");
    for entry in modules.read_dir().with_context(|| format!("listing {}", modules.display()))? {
        let entry = entry?;
        copy(&entry.path(), &root.join("modules").join(entry.file_name()))?;
    }
    let init = root.join("init");
    fs::write(&init, INIT).with_context(|| format!("writing {}", init.display()))?;
    let archive = folder.join("initramfs.cpio");
    let mut command = Command::new("sh");
    command.args(["-euc", r#"chmod 755 init; find . | "$1" cpio -o -H newc"#, "pack"]);
    command.arg(tools.join("busybox")).current_dir(&root);
    let file = File::create(&archive).with_context(|| format!("creating {}", archive.display()))?;
    run::run(command.stdout(file))?;
    Ok(archive)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Boots the guest, and demands the lab's success within the time.
fn boot(tools: &Path, initramfs: &Path, limit: Duration) -> Result<()> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-smp", "2", "-m", "2048"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    // A warning of the kernel ends the guest, and with it the test.
    command.args(["-append", "console=ttyS0 quiet panic=-1 panic_on_warn=1"]);
    command.arg("-kernel").arg(tools.join("vmlinuz")).arg("-initrd").arg(initramfs);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guest = Guest(command.spawn().context("starting qemu-system-x86_64")?);
    let output = guest.0.stdout.take().context("no pipe from the guest")?;
    let status = watch(&lines(output), limit)?;
    match status.as_deref() {
        Some("0") => Ok(()),
        Some(status) => bail!("the lab or the backup in the guest: exit status {status}"),
        None => bail!("the guest ended before the lab did: a panic, or the emulator's end"),
    }
}

/// The emulator, which ends with this.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    lines
}

/// Shows what the guest says until it ends. Returns the lab's exit status if it said one.
fn watch(lines: &Receiver<String>, limit: Duration) -> Result<Option<String>> {
    let deadline = Instant::now() + limit;
    let mut status = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                println!("{line}");
                if let Some(said) = line.strip_prefix(STATUS) {
                    status = Some(said.to_owned());
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(status),
            Err(RecvTimeoutError::Timeout) => {
                ensure!(status.is_some(), "the lab was not done after {} s", limit.as_secs());
                return Ok(status);
            }
        }
    }
}
