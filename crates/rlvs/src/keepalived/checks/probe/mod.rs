//! One attempt of a check, carried out step by step without waiting.

mod datagram;
mod http;
mod misc;
mod smtp;
mod socket;

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::SockType;
use rlvs_conf::desired::CheckerKind;
use rlvs_control::checks::Outcome;

use super::request::Request;
use datagram::{Ping, Udp};
use http::HttpGet;
use misc::Command;
use smtp::Smtp;

/// How far an attempt has come.
#[derive(Debug)]
pub(super) enum Progress {
    /// It waits for its descriptor.
    Waiting,
    /// It has another descriptor.
    Reopened,
    /// It has ended.
    Ended(Outcome),
}

/// An attempt that is under way.
#[derive(Debug)]
pub(super) enum Probe {
    /// Opens a connection.
    Tcp(TcpStream),
    /// Asks a web server.
    Http(Box<HttpGet>),
    /// Sends a datagram.
    Udp(Udp),
    /// Sends an ICMP echo request.
    Ping(Ping),
    /// Runs a command.
    Misc(Command),
    /// Talks to a mail server.
    Smtp(Smtp),
}

/// A command that was killed.
#[derive(Debug)]
pub(super) struct Dying(Command);

impl Dying {
    /// Returns whether nothing is left of it.
    pub(super) fn is_over(&mut self) -> bool {
        self.0.is_reaped()
    }
}

/// Tells whether checks of this kind are carried out.
pub(super) fn is_known(kind: &CheckerKind) -> bool {
    match kind {
        CheckerKind::Http(_)
        | CheckerKind::Tcp
        | CheckerKind::Misc(_)
        | CheckerKind::Ping
        | CheckerKind::Udp(_)
        | CheckerKind::Dns(_)
        | CheckerKind::Smtp { .. } => true,
        CheckerKind::Bfd { .. } | CheckerKind::File { .. } => false,
    }
}

impl Probe {
    /// Begins an attempt; `number` tells it from others.
    pub(super) fn begin(request: &Request, number: u64) -> Result<Self, Outcome> {
        Ok(match &request.kind {
            CheckerKind::Tcp => {
                Self::Tcp(TcpStream::from(socket::open(request, SockType::Stream, None)?))
            }
            CheckerKind::Http(_) => Self::Http(Box::new(HttpGet::begin(request)?)),
            CheckerKind::Udp(_) | CheckerKind::Dns(_) => Self::Udp(Udp::begin(request, number)?),
            CheckerKind::Smtp { .. } => Self::Smtp(Smtp::begin(request)?),
            CheckerKind::Ping => Self::Ping(Ping::begin(request, number)?),
            CheckerKind::Misc(misc) => Self::Misc(Command::begin(misc, request.user())?),
            CheckerKind::Bfd { .. } | CheckerKind::File { .. } => {
                return Err(Outcome::Unknown(format!("{request} is not carried out yet")));
            }
        })
    }

    /// Goes on after its descriptor has become ready, as `flags` say.
    pub(super) fn ready(&mut self, flags: EpollFlags) -> Progress {
        match self {
            Self::Tcp(_) if !flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) => {
                Progress::Ended(Outcome::Good)
            }
            // A connection that is being opened becomes ready when it stands or has failed.
            Self::Tcp(stream) => Progress::Ended(match stream.take_error() {
                Ok(None) => Outcome::Good,
                Ok(Some(error)) | Err(error) => socket::io_failed(&error),
            }),
            Self::Http(get) => get.ready(),
            Self::Udp(udp) => udp.ready(),
            Self::Ping(ping) => ping.ready(),
            Self::Misc(command) => command.ready(),
            Self::Smtp(smtp) => smtp.ready(),
        }
    }

    /// Begins to end what would not end by being dropped. Returns what has to be looked at again.
    pub(super) fn abandon(self) -> Option<Dying> {
        match self {
            Self::Misc(command) => {
                command.kill();
                Some(Dying(command))
            }
            _ => None,
        }
    }

    /// Concludes from nothing having happened for as long as an answer may take.
    pub(super) fn silent(&self, request: &Request) -> Outcome {
        match (self, &request.kind) {
            (Self::Udp(_), CheckerKind::Udp(udp)) if udp.reply.is_none() => Outcome::Good,
            _ => Outcome::Bad(format!("no answer within {:?}", request.patience())),
        }
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Http(get) => get.as_fd(),
            Self::Udp(udp) => udp.as_fd(),
            Self::Ping(ping) => ping.as_fd(),
            Self::Misc(command) => command.as_fd(),
            Self::Smtp(smtp) => smtp.as_fd(),
        }
    }
}

/// Tells whether a connection stands.
fn connected(stream: &TcpStream) -> Result<bool, Outcome> {
    if let Some(error) = stream.take_error().map_err(|error| socket::io_failed(&error))? {
        return Err(socket::io_failed(&error));
    }
    Ok(stream.peer_addr().is_ok())
}
