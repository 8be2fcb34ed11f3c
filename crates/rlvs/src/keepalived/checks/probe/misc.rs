//! `MISC_CHECK`: a command whose exit status is the result.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid};
use rlvs_conf::desired::Misc;
use rlvs_control::checks::Outcome;
use rlvs_linux::process::Handle;

use super::{Progress, socket};

/// A command that runs, in a process group of its own.
#[derive(Debug)]
pub(in crate::keepalived::checks) struct Command {
    child: Child,
    handle: Handle,
    dynamic: bool,
    ended: bool,
}

impl Command {
    pub(super) fn begin(misc: &Misc, user: Option<(Uid, Gid)>) -> Result<Self, Outcome> {
        let Some((program, arguments)) = misc.command.split_first() else {
            return Err(Outcome::Unknown("no command".into()));
        };
        let mut command = std::process::Command::new(program);
        command.args(arguments).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = user {
            command.uid(user.as_raw()).gid(group.as_raw());
        }
        let child = command.spawn().map_err(|error| match socket::io_failed(&error) {
            Outcome::Bad(why) => Outcome::Bad(format!("{program}: {why}")),
            other => other,
        })?;
        let handle = Handle::open(child.id()).map_err(|error| socket::io_failed(&error))?;
        Ok(Self { child, handle, dynamic: misc.dynamic, ended: false })
    }

    pub(super) fn ready(&mut self) -> Progress {
        match self.child.try_wait() {
            Ok(None) => Progress::Waiting,
            Ok(Some(status)) => {
                self.ended = true;
                Progress::Ended(match status.code() {
                    Some(code) => judge(code, self.dynamic),
                    None => Outcome::Bad(format!("the command ended by {status}")),
                })
            }
            Err(error) => Progress::Ended(socket::io_failed(&error)),
        }
    }

    /// Ends the command if it still runs, and all that it has started.
    pub(super) fn kill(&self) {
        // Until the child is reaped the number is its own, and that of its group.
        if let Ok(group) = i32::try_from(self.child.id())
            && !self.ended
        {
            // It may have ended by itself.
            killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
        }
    }

    /// Returns whether the command has ended and nothing is left of it.
    pub(super) fn is_reaped(&mut self) -> bool {
        self.ended = self.ended || !matches!(self.child.try_wait(), Ok(None));
        self.ended
    }
}

/// Reads an exit status, as keepalived.conf(5) has it under `misc_dynamic`.
fn judge(code: i32, dynamic: bool) -> Outcome {
    match u32::try_from(code) {
        Ok(0) => Outcome::Good,
        Ok(code @ 2..) if dynamic => Outcome::Weight(code - 2),
        _ => Outcome::Bad(format!("exit status {code}")),
    }
}

impl AsFd for Command {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Command {
    /// Ends a command that still runs, and all that it has started.
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_mean_what_the_manual_says() {
        assert_eq!(judge(0, true), Outcome::Good);
        assert_eq!(judge(1, true), Outcome::Bad("exit status 1".into()));
        assert_eq!(judge(2, true), Outcome::Weight(0));
        assert_eq!(judge(255, true), Outcome::Weight(253));
        assert_eq!(judge(2, false), Outcome::Bad("exit status 2".into()));
    }
}
