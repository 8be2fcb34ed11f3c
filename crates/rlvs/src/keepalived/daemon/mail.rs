//! Mails about changes (`smtp_alert`): a thread hands them to the mail server, one after the other
//! (RFC 5321, without extensions, as keepalived does).

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use rlvs_conf::desired::{Global, Mail};

use super::log::{Level, Log, time};

/// Mails that may wait.
const WAITING_MAX: usize = 100;
/// The longest line that a mail server may answer.
const LINE_BYTES_MAX: u64 = 2048;
/// Lines of one answer.
const LINES_MAX: usize = 100;

/// Takes mails; the thread ends when this is dropped, and what waits is not sent.
#[derive(Debug)]
pub(super) struct Mailer {
    letters: Option<SyncSender<Letter>>,
    log: Log,
}

/// A mail, and who takes it.
#[derive(Debug)]
struct Letter {
    mail: Mail,
    subject: String,
    text: String,
    date: String,
}

impl Mailer {
    /// Starts the thread.
    pub(super) fn start(log: &Log) -> Self {
        let (letters, waiting) = sync_channel(WAITING_MAX);
        let its = log.clone();
        let work = move || send_all(&waiting, &its);
        let letters = match std::thread::Builder::new().name("mail".to_owned()).spawn(work) {
            Ok(_thread) => Some(letters),
            Err(error) => {
                log.say(Level::Error, format!("no mails are sent: {error}"));
                None
            }
        };
        Self { letters, log: log.clone() }
    }

    /// Sends a mail, if there is a server and somebody to send it to; waits for nothing.
    pub(super) fn send(&self, global: &Global, subject: &str, text: &str) {
        let (mail, Some(letters)) = (&global.mail, &self.letters) else { return };
        if mail.server.is_none() || mail.to.is_empty() {
            return;
        }
        let name = global.router_id.clone().unwrap_or_else(host);
        let letter = Letter {
            mail: mail.clone(),
            subject: line(&format!("[{name}] {subject}")),
            text: text.to_owned(),
            date: time::of_mail(),
        };
        if let Err(TrySendError::Full(letter)) = letters.try_send(letter) {
            let what = format!("a mail is not sent, for {WAITING_MAX} wait: {}", letter.subject);
            self.log.say(Level::Warning, what);
        }
    }
}

fn send_all(waiting: &Receiver<Letter>, log: &Log) {
    for letter in waiting {
        if let Err(error) = letter.send() {
            let (host, port) = letter.mail.server.clone().unwrap_or_default();
            let subject = &letter.subject;
            let text = format!("the mail server {host}:{port} has not taken `{subject}`: {error}");
            log.say(Level::Warning, text);
        }
    }
}

impl Letter {
    fn send(&self) -> io::Result<()> {
        let Some((host, port)) = &self.mail.server else { return Ok(()) };
        let mut session = Session::open(host, *port, self.mail.timeout)?;
        session.expect(2)?;
        session.say(&format!("HELO {}", line(&self.helo())), 2)?;
        session.say(&format!("MAIL FROM:<{}>", address(&self.from())), 2)?;
        for to in &self.mail.to {
            session.say(&format!("RCPT TO:<{}>", address(to)), 2)?;
        }
        session.say("DATA", 3)?;
        session.say(&self.message(), 2)?;
        session.say("QUIT", 2)
    }

    /// Returns the message with the dot that ends it.
    fn message(&self) -> String {
        let to: Vec<String> = self.mail.to.iter().map(|to| line(to)).collect();
        let mut message = format!(
            "Date: {}\r\nFrom: {}\r\nSubject: {}\r\nX-Mailer: Keepalived\r\nTo: {}\r\n\r\n",
            self.date,
            line(&self.from()),
            self.subject,
            to.join(", ")
        );
        for text in self.text.lines() {
            // A dot at the begin would end it.
            let dot = if text.starts_with('.') { "." } else { "" };
            message.push_str(&format!("{dot}{}\r\n", line(text)));
        }
        message.push_str("\r\n.");
        message
    }

    fn from(&self) -> String {
        self.mail.from.clone().unwrap_or_else(|| format!("keepalived@{}", host()))
    }

    fn helo(&self) -> String {
        self.mail.helo.clone().unwrap_or_else(host)
    }
}

/// Returns a text as one line.
fn line(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}

/// Returns the address of a sender or a receiver, who may have a name before it.
fn address(text: &str) -> String {
    let inner = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    line(inner.map_or(text, |(address, _)| address).trim())
}

/// Returns this host's name.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// A conversation with a mail server.
struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    /// Connects to the first of a host's addresses that takes it.
    fn open(host: &str, port: u16, timeout: Duration) -> io::Result<Self> {
        let mut last = io::Error::other("it has no address");
        for at in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&at, timeout) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(timeout))?;
                    stream.set_write_timeout(Some(timeout))?;
                    return Ok(Self { stream: BufReader::new(stream) });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Says something, and demands an answer of this class.
    fn say(&mut self, text: &str, class: u8) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{text}\r\n").as_bytes())?;
        self.expect(class)
    }

    /// Reads an answer, of which only the last line has no dash behind its code (RFC 5321 §4.2.1).
    fn expect(&mut self, class: u8) -> io::Result<()> {
        for _ in 0..LINES_MAX {
            let mut answer = Vec::new();
            self.stream.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut answer)?;
            if answer.get(3) == Some(&b'-') {
                continue;
            }
            if answer.first() == Some(&(b'0' + class)) {
                return Ok(());
            }
            let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
            return Err(io::Error::other(format!("it answers `{}`", line(&answer))));
        }
        Err(io::Error::other("its answer does not end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_stays_within_its_line() {
        let mail =
            Mail { to: vec!["Bob <bob@a>".into(), "x@b\r\nBcc: y".into()], ..Mail::default() };
        let (subject, date) = (line("VI\r\n.\r\nQUIT"), "today".to_owned());
        let letter = Letter { mail, subject, text: ".one\ntwo".into(), date };
        let message = letter.message();
        let (head, body) = message.split_once("\r\n\r\n").unwrap();
        let head: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(
            head[2..],
            ["Subject: VI  .  QUIT", "X-Mailer: Keepalived", "To: Bob <bob@a>, x@b  Bcc: y"]
        );
        assert_eq!(body, "..one\r\ntwo\r\n\r\n.");
        assert_eq!(address("Bob <bob@a>"), "bob@a");
        assert_eq!(address("bob@a"), "bob@a");
    }
}
