//! `SMTP_CHECK`: a greeting, and farewell (RFC 5321 §4.1.1, §4.2).

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::SockType;
use rlvs_conf::desired::CheckerKind;
use rlvs_control::checks::Outcome;

use super::{Progress, connected, socket};
use crate::keepalived::checks::request::Request;

/// More than this a server does not say at once.
const ANSWER_MAX: usize = 4096;
/// What is waited for, one after the other. Any answer to the farewell is as good, as to keepalived.
const CODES: [Option<u16>; 3] = [Some(220), Some(250), None];

/// Talks to a mail server.
#[derive(Debug)]
pub(in crate::keepalived::checks) struct Smtp {
    stream: TcpStream,
    connected: bool,
    /// What is said after the first and the second answer.
    words: [String; 2],
    /// Answers that have come.
    answers: usize,
    line: Vec<u8>,
}

impl Smtp {
    pub(super) fn begin(request: &Request) -> Result<Self, Outcome> {
        let CheckerKind::Smtp { helo } = &request.kind else {
            return Err(Outcome::Unknown("not a check of a mail server".into()));
        };
        let stream = TcpStream::from(socket::open(request, SockType::Stream, None)?);
        let words = [format!("HELO {helo}\r\n"), "QUIT\r\n".to_owned()];
        Ok(Self { stream, connected: false, words, answers: 0, line: Vec::new() })
    }

    pub(super) fn ready(&mut self) -> Progress {
        match self.go_on() {
            Ok(true) => Progress::Ended(Outcome::Good),
            Ok(false) => Progress::Waiting,
            Err(outcome) => Progress::Ended(outcome),
        }
    }

    fn go_on(&mut self) -> Result<bool, Outcome> {
        self.connected = self.connected || connected(&self.stream)?;
        let mut piece = [0; 512];
        while self.connected {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Outcome::Bad("connection closed".into())),
                Ok(length) => self.line.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(socket::io_failed(&error)),
            }
            if self.take_answers()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes whole lines, and returns whether the last answer has come.
    fn take_answers(&mut self) -> Result<bool, Outcome> {
        while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            // A hyphen behind the code: another line of the same answer follows.
            if line.get(3) == Some(&b'-') {
                continue;
            }
            let code = line.get(..3).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
            if let Some(&Some(wanted)) = CODES.get(self.answers)
                && code != Some(wanted)
            {
                let line = line.trim_ascii().escape_ascii();
                return Err(Outcome::Bad(format!("`{line}` instead of {wanted}")));
            }
            let Some(words) = self.words.get(self.answers) else { return Ok(true) };
            self.stream.write_all(words.as_bytes()).map_err(|error| socket::io_failed(&error))?;
            self.answers += 1;
        }
        if self.line.len() > ANSWER_MAX {
            return Err(Outcome::Bad(format!("an answer of more than {ANSWER_MAX} bytes")));
        }
        Ok(false)
    }
}

impl AsFd for Smtp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
