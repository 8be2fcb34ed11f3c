//! Programs of the configuration: who runs them, and that nobody else could have written them.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Group, Pid, Uid, User};
use rlvs_conf::desired::{self, Global, Once, Script};
use rlvs_linux::process::{die_with_parent, wait_for};

use super::log::{Level, Log};

/// Who runs scripts if nobody is named and this user exists.
const SCRIPT_USER: &str = "keepalived_script";

/// How long a program that is asked to end may take before it is killed.
const GRACE: Duration = Duration::from_millis(500);

/// Makes a command of a program in a process group of its own.
///
/// # Errors
/// A user that is missing, or a program that others could change.
pub(super) fn command(
    words: &[String],
    user: Option<&desired::User>,
    global: &Global,
) -> Result<Command, String> {
    let (program, arguments) = words.split_first().ok_or("no program is named")?;
    let ids = ids(user.or(global.script_user.as_ref()))?;
    let is_root = ids.map_or_else(Uid::effective, |(uid, _)| uid).is_root();
    if global.script_security && is_root {
        check_safe(&find(program))?;
    }
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0);
    if let Some((uid, gid)) = ids {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    Ok(command)
}

/// Runs a program to its end, with which it must be content.
///
/// # Errors
/// What is wrong with it; also that it took longer than `time`, for which it is ended.
pub(super) fn run(
    words: &[String],
    user: Option<&desired::User>,
    global: &Global,
    time: Duration,
) -> Result<(), String> {
    let mut command = command(words, user, global)?;
    die_with_parent(&mut command, Signal::SIGKILL);
    let mut child = command.spawn().map_err(|error| format!("it cannot be run: {error}"))?;
    let wait = |child: &mut _, time| wait_for(child, time).map_err(|error| error.to_string());
    if let Some(status) = wait(&mut child, time)? {
        return if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) };
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if let Ok(group) = i32::try_from(child.id()) {
            // It may end in this moment.
            killpg(Pid::from_raw(group), signal).ok();
        }
        if wait(&mut child, GRACE)?.is_some() {
            break;
        }
    }
    Err(format!("it took longer than {time:?} and was ended"))
}

/// Runs a program at the start or the end. Whatever comes of it is logged, and all goes on.
pub(super) fn run_once(once: Option<&Once>, when: &str, global: &Global, log: &Log) {
    let Some(Once { script, timeout }) = once else { return };
    let shown = script.command.join(" ");
    log.say(Level::Info, format!("{when}: {shown} is run"));
    let (words, user) = (&script.command, script.user.as_ref());
    match run(words, user, global, *timeout) {
        Ok(()) => log.say(Level::Info, format!("{when}: it succeeds")),
        Err(why) => log.say(Level::Warning, format!("{when}: {shown}: {why}; all goes on")),
    }
}

/// Starts a program and lets it run; what comes of it is logged.
pub(super) fn start(script: &Script, more: &[String], global: &Global, log: &Log) {
    let shown = script.command.join(" ");
    let mut child = match command(&script.command, script.user.as_ref(), global) {
        Ok(mut command) => match command.args(more).spawn() {
            Ok(child) => child,
            Err(error) => return log.say(Level::Error, format!("{shown} cannot be run: {error}")),
        },
        Err(why) => return log.say(Level::Error, format!("{shown} is not run: {why}")),
    };
    let log_of_end = log.clone();
    let waiter = std::thread::Builder::new().name("notify".to_owned()).spawn(move || {
        if let Ok(status) = child.wait()
            && !status.success()
        {
            log_of_end.say(Level::Warning, format!("{shown} ended with {status}"));
        }
    });
    if let Err(error) = waiter {
        log.say(Level::Warning, format!("nobody waits for the end of a program: {error}"));
    }
}

/// Returns whose rights a program gets, if not ours.
fn ids(named: Option<&desired::User>) -> Result<Option<(Uid, Gid)>, String> {
    let missing = |name: &str| format!("there is no user or group {name}");
    let find = |name: &str| User::from_name(name).ok().flatten();
    let Some(named) = named else {
        let default = find(SCRIPT_USER).filter(|_| Uid::effective().is_root());
        return Ok(default.map(|user| (user.uid, user.gid)));
    };
    let user = find(&named.user).ok_or_else(|| missing(&named.user))?;
    let gid = match &named.group {
        Some(name) => Group::from_name(name).ok().flatten().ok_or_else(|| missing(name))?.gid,
        None => user.gid,
    };
    let is_ours = user.uid == Uid::effective() && gid == Gid::effective();
    Ok((!is_ours).then_some((user.uid, gid)))
}

fn find(program: &str) -> PathBuf {
    if program.contains('/') {
        return program.into();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&folders).map(|folder| folder.join(program));
    paths.find(|path| path.is_file()).unwrap_or_else(|| program.into())
}

/// Refuses what others than root could write (`enable_script_security`).
fn check_safe(path: &Path) -> Result<(), String> {
    let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    for part in path.ancestors() {
        let data = part.metadata().map_err(|error| format!("{}: {error}", part.display()))?;
        let is_sticky = data.is_dir() && data.mode() & 0o1000 != 0;
        if data.uid() != 0 || (data.mode() & 0o022 != 0 && !is_sticky) {
            let part = part.display();
            return Err(format!(
                "others than root may write {part}, and enable_script_security is set"
            ));
        }
    }
    Ok(())
}
