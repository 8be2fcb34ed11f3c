//! Where lines go, and what they look like there.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::super::options::{LogFormat, Running};
use super::Line;
use super::time::timestamp;

/// Where syslog listens.
const SYSLOG: &str = "/dev/log";
/// How long a line waits for a syslog that does not read, once; those behind it do not wait.
const PATIENCE_MS: u16 = 500;

/// Where lines go.
pub(in crate::keepalived::daemon) struct Sink {
    to: To,
    format: LogFormat,
}

enum To {
    /// Standard error, or a file.
    Stream(Box<dyn Write + Send>),
    /// The host's log.
    Syslog(Syslog),
    /// Nobody wants them.
    Nowhere,
}

/// The host's log.
struct Syslog {
    socket: UnixDatagram,
    facility: u8,
    /// It did not read for too long.
    is_stuck: bool,
}

impl Sink {
    /// Opens what the command line asks for.
    pub(in crate::keepalived::daemon) fn open(options: &Running) -> io::Result<Self> {
        let to = if options.console {
            To::Stream(Box::new(io::stderr()))
        } else if let Some(path) = &options.log_file {
            To::Stream(Box::new(OpenOptions::new().append(true).create(true).open(path)?))
        } else if !options.syslog {
            To::Nowhere
        } else {
            match connected() {
                Ok(socket) => {
                    To::Syslog(Syslog { socket, facility: options.facility, is_stuck: false })
                }
                Err(_) if options.foreground => To::Stream(Box::new(io::stderr())),
                Err(_) => To::Nowhere,
            }
        };
        Ok(Self { to, format: options.log_format })
    }

    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        let json = (self.format == LogFormat::Json).then(|| json(line));
        match &mut self.to {
            To::Stream(stream) => {
                match json {
                    Some(json) => writeln!(stream, "{json}")?,
                    None => {
                        let level = line.level.word();
                        writeln!(stream, "{} {level}: {}", timestamp(), line.text)?;
                    }
                }
                stream.flush()
            }
            To::Syslog(syslog) => {
                let priority = syslog.facility * 8 + line.level as u8;
                let text = json.as_deref().unwrap_or(&line.text);
                let process = std::process::id();
                syslog.send(format!("<{priority}>Keepalived[{process}]: {text}").as_bytes())
            }
            To::Nowhere => Ok(()),
        }
    }
}

impl Syslog {
    fn send(&mut self, text: &[u8]) -> io::Result<()> {
        let mut sent = self.socket.send(text);
        if let Err(error) = &sent
            && error.kind() != io::ErrorKind::WouldBlock
        {
            // It was started anew.
            self.socket = connected()?;
            sent = self.socket.send(text);
        }
        if is_full(&sent) && !self.is_stuck {
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            // Ready or not: the next attempt tells.
            poll(&mut ready, PollTimeout::from(PATIENCE_MS)).ok();
            sent = self.socket.send(text);
        }
        self.is_stuck = is_full(&sent);
        sent.map(drop)
    }
}

fn is_full(sent: &io::Result<usize>) -> bool {
    matches!(sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn connected() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Returns a line as JSON: time, level and text, then what it is about.
fn json(line: &Line) -> String {
    let mut members = serde_json::Map::new();
    members.insert("time".to_owned(), timestamp().into());
    members.insert("level".to_owned(), line.level.word().into());
    members.insert("message".to_owned(), line.text.as_str().into());
    for (name, value) in line.fields.iter().filter(|(_, value)| !value.is_empty()) {
        members.insert((*name).to_owned(), value.as_str().into());
    }
    serde_json::Value::Object(members).to_string()
}
