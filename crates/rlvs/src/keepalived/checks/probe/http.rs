//! `HTTP_GET` and `SSL_GET`: one connection for each URL, one after the other.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::SockType;
use rlvs_conf::desired::{CheckerKind, Http};
use rlvs_control::checks::Outcome;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::{Progress, connected, socket};
use crate::keepalived::checks::reply::{self, Reply, State, Verdict};
use crate::keepalived::checks::request::Request;

/// Bytes read at once.
const PIECE: usize = 8 * 1024;

/// Asks a web server for its URLs.
#[derive(Debug)]
pub(in crate::keepalived::checks) struct HttpGet {
    request: Request,
    /// Which URL is asked for.
    url: usize,
    connection: Connection,
    connected: bool,
    text: Vec<u8>,
    written: usize,
    reply: State,
}

#[derive(Debug)]
enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl HttpGet {
    pub(super) fn begin(request: &Request) -> Result<Self, Outcome> {
        let (connection, text) = open(request, 0)?;
        Ok(Self {
            request: request.clone(),
            url: 0,
            connection,
            connected: false,
            text,
            written: 0,
            reply: State::default(),
        })
    }

    pub(super) fn ready(&mut self) -> Progress {
        match self.go_on() {
            Ok(None) => Progress::Waiting,
            Ok(Some(Ok(()))) => self.next(),
            Ok(Some(Err(why))) => Progress::Ended(Outcome::Bad(self.name(&why))),
            Err(outcome) => Progress::Ended(match outcome {
                Outcome::Bad(why) => Outcome::Bad(self.name(&why)),
                other => other,
            }),
        }
    }

    /// Goes on to the next URL.
    fn next(&mut self) -> Progress {
        self.url += 1;
        if self.url == self.request.wanted().len() {
            return Progress::Ended(Outcome::Good);
        }
        match open(&self.request, self.url) {
            Ok((connection, text)) => {
                (self.connection, self.text) = (connection, text);
                (self.connected, self.written, self.reply) = (false, 0, State::default());
                Progress::Reopened
            }
            Err(outcome) => Progress::Ended(outcome),
        }
    }

    fn go_on(&mut self) -> Result<Option<Verdict>, Outcome> {
        if !self.connected {
            self.connected = connected(self.connection.socket())?;
            if !self.connected {
                return Ok(None);
            }
        }
        while let Some(rest) = self.text.get(self.written..).filter(|rest| !rest.is_empty()) {
            match waits(self.connection.write(rest))? {
                Some(length) => self.written += length,
                None => return Ok(None),
            }
        }
        // Records of TLS may wait for the socket behind what was written.
        waits(self.connection.flush())?;
        self.read()
    }

    fn read(&mut self) -> Result<Option<Verdict>, Outcome> {
        let Some(wanted) = self.request.wanted().get(self.url) else { return Ok(Some(Ok(()))) };
        let mut reply = Reply::resume(wanted, std::mem::take(&mut self.reply));
        let mut piece = [0; PIECE];
        let verdict = loop {
            let length = match self.connection.read(&mut piece) {
                // Many servers end TLS by closing the connection.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
                result => match waits(result)? {
                    Some(length) => length,
                    None => break None,
                },
            };
            let Some(got) = piece.get(..length).filter(|got| !got.is_empty()) else {
                break Some(reply.end());
            };
            if let Some(verdict) = reply.take(got) {
                break Some(verdict);
            }
        };
        self.reply = reply.pause();
        Ok(verdict)
    }

    /// Adds the URL to what was wrong with it, if there are several.
    fn name(&self, why: &str) -> String {
        match &self.request.kind {
            CheckerKind::Http(http) if http.urls.len() > 1 => match http.urls.get(self.url) {
                Some(url) => format!("{}: {why}", url.path),
                None => why.to_owned(),
            },
            _ => why.to_owned(),
        }
    }
}

impl AsFd for HttpGet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket().as_fd()
    }
}

fn open(request: &Request, url: usize) -> Result<(Connection, Vec<u8>), Outcome> {
    let CheckerKind::Http(http) = &request.kind else {
        return Err(Outcome::Unknown("not a check of a web server".into()));
    };
    let Some(wanted) = http.urls.get(url) else {
        return Err(Outcome::Unknown("no URL to check".into()));
    };
    let stream = TcpStream::from(socket::open(request, SockType::Stream, None)?);
    let text = reply::request(http, wanted, request.at());
    let connection =
        if http.tls { secure(http, request, stream)? } else { Connection::Plain(stream) };
    Ok((connection, text))
}

fn secure(http: &Http, request: &Request, stream: TcpStream) -> Result<Connection, Outcome> {
    let name = match &http.server_name {
        Some(name) => ServerName::try_from(name.clone())
            .map_err(|_| Outcome::Unknown(format!("`{name}` is no name of a server")))?,
        // An address is not sent: without a name there is none in the handshake.
        None => ServerName::IpAddress(request.at().ip().into()),
    };
    let session = ClientConnection::new(Request::tls(), name)
        .map_err(|error| Outcome::Unknown(error.to_string()))?;
    Ok(Connection::Tls(Box::new(StreamOwned::new(session, stream))))
}

/// Returns `None` for what has to wait.
fn waits<T>(result: io::Result<T>) -> Result<Option<T>, Outcome> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(socket::io_failed(&error)),
    }
}

impl Connection {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Connection {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(to),
            Self::Tls(stream) => stream.read(to),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(from),
            Self::Tls(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
