//! Which processes run: the kernel's notices of them, and what /proc says of one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ancestors;
use crate::netns::Namespace;

// linux/connector.h, linux/cn_proc.h; libc does not have all of them.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_FORK: u32 = 1;
const PROC_EVENT_EXEC: u32 = 2;
const PROC_EVENT_COMM: u32 = 0x200;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
/// NLMSG_DONE, which every message of the connector is.
const NLMSG_DONE: u16 = 3;
/// Length of `struct nlmsghdr` and `struct cn_msg`.
const HEADERS_BYTES: usize = 16 + 20;
/// Where the data of an event begin in `struct proc_event`.
const DATA_BYTES: usize = 16;
/// How long the kernel may take to say that it listens: it does so in the system call.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Notices that are read in one turn.
const NOTICES_AT_ONCE: usize = 4096;
/// The longest command line that is compared.
const COMMAND_BYTES_MAX: usize = 128 * 1024;

/// Something that happened to a process. Threads do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It has a child, which is as it is.
    Forked {
        /// Its number.
        parent: u32,
        /// The child's number.
        child: u32,
    },
    /// It runs another program, or has another name.
    Changed(u32),
    /// It has ended.
    Ended(u32),
}

/// The kernel's notices of processes (CONFIG_PROC_EVENTS), of those that came after it was opened.
#[derive(Debug)]
pub struct Notices {
    socket: netlink_sys::Socket,
}

impl Notices {
    /// Begins to listen. The kernel tells in the first network namespace only: it is entered for that,
    /// where the process or an ancestor of it is there.
    ///
    /// # Errors
    /// The kernel does not tell: it was built without, or nobody here is in its first namespaces.
    pub fn open() -> io::Result<Self> {
        let own = Self::open_here();
        if own.is_ok() {
            return own;
        }
        let elsewhere = ancestors().into_iter().filter_map(|pid| Namespace::of_process(pid).ok());
        let opened = elsewhere.filter_map(|one| one.run(Self::open_here).ok()?.ok()).next();
        opened.map_or(own, Ok)
    }

    fn open_here() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_CONNECTOR)?;
        socket.bind(&netlink_sys::SocketAddr::new(0, CN_IDX_PROC))?;
        socket.set_non_blocking(true)?;
        let request = request();
        socket.send_to(&request, &netlink_sys::SocketAddr::new(0, 0), 0)?;
        let notices = Self { socket };
        notices.wait_for_answer()?;
        Ok(notices)
    }

    /// Waits until the kernel has said that it tells. To processes in other namespaces of processes or
    /// users it says nothing.
    fn wait_for_answer(&self) -> io::Result<()> {
        let end = Instant::now() + ANSWER_MAX;
        loop {
            while let Ok((bytes, _)) = self.socket.recv_from_full() {
                match event(&bytes) {
                    Some((PROC_EVENT_NONE, data)) => {
                        let error = word(data, 0).unwrap_or_default().cast_signed();
                        return match error {
                            0 => Ok(()),
                            error => Err(io::Error::from_raw_os_error(error.saturating_abs())),
                        };
                    }
                    _ => continue,
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"));
            }
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut ready, left)?;
        }
    }

    /// Takes what has come, some thousand notices at most; `None` if some were lost.
    pub fn take(&self) -> Option<Vec<Notice>> {
        let mut notices = Vec::new();
        for _ in 0..NOTICES_AT_ONCE {
            match self.socket.recv_from_full() {
                // What anybody but the kernel sends is no notice.
                Ok((bytes, from)) if from.port_number() == 0 => notices.extend(notice(&bytes)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(notices)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns the message that asks for notices.
fn request() -> Vec<u8> {
    let length = u32::try_from(HEADERS_BYTES + 4).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(NLMSG_DONE.to_ne_bytes());
    bytes.extend([0; 2 + 4 + 4]);
    for word in [CN_IDX_PROC, CN_VAL_PROC, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(4_u16.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(PROC_CN_MCAST_LISTEN.to_ne_bytes());
    bytes
}

/// Returns the kind of a notice, and its data.
fn event(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let event = bytes.get(HEADERS_BYTES..)?;
    Some((word(event, 0)?, event.get(DATA_BYTES..)?))
}

fn notice(bytes: &[u8]) -> Option<Notice> {
    let (kind, data) = event(bytes)?;
    let (pid, group) = (word(data, 0)?, word(data, 1)?);
    match kind {
        PROC_EVENT_FORK => {
            let (child, child_group) = (word(data, 2)?, word(data, 3)?);
            (child == child_group).then_some(Notice::Forked { parent: group, child })
        }
        PROC_EVENT_EXEC => Some(Notice::Changed(group)),
        PROC_EVENT_COMM => (pid == group).then_some(Notice::Changed(group)),
        PROC_EVENT_EXIT => (pid == group).then_some(Notice::Ended(group)),
        _ => None,
    }
}

fn word(bytes: &[u8], number: usize) -> Option<u32> {
    let bytes = bytes.get(number * 4..)?;
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

/// A process as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name, 15 bytes at most.
    pub name: Vec<u8>,
    /// The command that it was started with; empty in the kernel's own.
    pub command: Vec<Vec<u8>>,
}

/// Returns how a process is; nothing if it has ended, be it that its parent did not notice yet.
pub fn look_at(pid: u32) -> Option<Running> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses.
    let start = stat.iter().position(|byte| *byte == b'(')? + 1;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let name = stat.get(start..end)?.to_vec();
    if matches!(stat.get(end + 2)?, b'Z' | b'X') {
        return None;
    }
    let mut command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    command.truncate(COMMAND_BYTES_MAX);
    let command = command.strip_suffix(b"\0").unwrap_or(&command);
    let words = command.split(|byte| *byte == 0).map(<[u8]>::to_vec);
    let command = if command.is_empty() { Vec::new() } else { words.collect() };
    Some(Running { name, command })
}

/// Returns the numbers of all processes.
///
/// # Errors
/// /proc cannot be read.
pub fn all() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_as_it_is() {
        let own = look_at(std::process::id()).unwrap();
        let name = std::env::current_exe().unwrap();
        let name = name.file_name().unwrap().as_encoded_bytes();
        assert_eq!(own.name, name[..name.len().min(15)]);
        assert!(own.command[0].ends_with(name), "{own:?}");
        assert!(all().unwrap().contains(&std::process::id()));
        assert!(ancestors().ends_with(&[std::process::id()]));
    }

    #[test]
    fn what_is_no_notice_is_passed_over() {
        let message = |kind: u32, data: [u32; 4]| {
            let mut bytes = vec![0xa5; HEADERS_BYTES];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0xa5; DATA_BYTES - 4]);
            bytes.extend(data.iter().flat_map(|word| word.to_ne_bytes()));
            bytes
        };
        for (kind, data, expected) in [
            (PROC_EVENT_FORK, [7, 7, 9, 9], Some(Notice::Forked { parent: 7, child: 9 })),
            (PROC_EVENT_FORK, [8, 7, 9, 9], Some(Notice::Forked { parent: 7, child: 9 })),
            // A thread.
            (PROC_EVENT_FORK, [7, 7, 9, 7], None),
            (PROC_EVENT_EXEC, [7, 7, 0, 0], Some(Notice::Changed(7))),
            (PROC_EVENT_COMM, [7, 7, 0, 0], Some(Notice::Changed(7))),
            (PROC_EVENT_COMM, [8, 7, 0, 0], None),
            (PROC_EVENT_EXIT, [7, 7, 0, 0], Some(Notice::Ended(7))),
            (PROC_EVENT_EXIT, [8, 7, 0, 0], None),
            (4, [7, 7, 0, 0], None),
        ] {
            let bytes = message(kind, data);
            assert_eq!(notice(&bytes), expected, "{kind:#x} {data:?}");
            for length in 0..HEADERS_BYTES + DATA_BYTES + 8 {
                assert_eq!(notice(&bytes[..length]), None);
            }
        }
    }
}
