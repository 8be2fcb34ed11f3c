//! What a check says to a web server, and what it makes of the answer: no socket.

use std::net::SocketAddr;

use md5::{Digest, Md5};
use regex::bytes::Regex;
use rlvs_conf::desired::{Http, HttpVersion, Url};

/// Status line and header together are at most this long.
pub const HEAD_MAX: usize = 16 * 1024;
/// A body that is looked at is at most this long.
pub const BODY_MAX: usize = 4 * 1024 * 1024;

/// Returns the bytes of a request, as keepalived writes them.
pub fn request(http: &Http, url: &Url, at: SocketAddr) -> Vec<u8> {
    let (version, close) = match http.version {
        HttpVersion::V10 => ("1.0", ""),
        HttpVersion::V10Close => ("1.0", "Connection: close\r\n"),
        HttpVersion::V11 => ("1.1", "Connection: close\r\n"),
    };
    let host = url.host.clone().unwrap_or_else(|| at.to_string());
    let path = &url.path;
    format!(
        "GET {path} HTTP/{version}\r\nUser-Agent: KeepAliveClient\r\n{close}Host: {host}\r\n\r\n"
    )
    .into_bytes()
}

/// What an answer must be like.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Good status codes, from the first to the second.
    pub status: Vec<(u16, u16)>,
    /// MD5 of the body.
    pub digest: Option<[u8; 16]>,
    /// What the body must hold, or with `false` must not.
    pub regex: Option<(Regex, bool)>,
}

impl Wanted {
    /// Returns what a URL asks for.
    ///
    /// # Errors
    /// Its regular expression is none.
    pub fn of(url: &Url) -> Result<Self, regex::Error> {
        let regex = match &url.regex {
            Some((text, holds)) => Some((Regex::new(text)?, *holds)),
            None => None,
        };
        Ok(Self { status: url.status.clone(), digest: url.digest, regex })
    }

    fn body_matters(&self) -> bool {
        self.digest.is_some() || self.regex.is_some()
    }
}

/// Whether an answer is good, or what is wrong with it.
pub type Verdict = Result<(), String>;

/// An answer as it comes in.
#[derive(Debug)]
pub struct Reply<'w> {
    wanted: &'w Wanted,
    state: State,
}

/// An answer as it comes in, apart from what it must be like.
#[derive(Debug, Default)]
pub struct State {
    head: Vec<u8>,
    in_body: bool,
    body: Vec<u8>,
    hash: Md5,
    received: usize,
    length: Option<usize>,
}

impl<'w> Reply<'w> {
    /// Returns an answer of which nothing has come yet.
    pub fn new(wanted: &'w Wanted) -> Self {
        Self { wanted, state: State::default() }
    }

    /// Goes on with an answer.
    pub fn resume(wanted: &'w Wanted, state: State) -> Self {
        Self { wanted, state }
    }

    /// Leaves it for later.
    pub fn pause(self) -> State {
        self.state
    }

    /// Takes what has come, and returns the verdict when there is one.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Verdict> {
        if self.state.in_body {
            return self.take_body(bytes);
        }
        let searched = self.state.head.len().saturating_sub(3);
        let room = (HEAD_MAX + 1).saturating_sub(self.state.head.len());
        self.state.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let end = end_of_head(&self.state.head, searched).filter(|&end| end <= HEAD_MAX);
        let Some(end) = end else {
            let long = self.state.head.len() > HEAD_MAX;
            return long.then(|| Err(format!("header longer than {HEAD_MAX} bytes")));
        };
        let before = self.state.head.len() - bytes.len().min(room);
        self.state.in_body = true;
        let head = self.state.head.get(..end).unwrap_or_default();
        if let Err(why) = status(head).and_then(|code| self.check_status(code)) {
            return Some(Err(why));
        }
        if !self.wanted.body_matters() {
            return Some(Ok(()));
        }
        self.state.length = content_length(head);
        let rest = bytes.get(end.saturating_sub(before)..).unwrap_or_default();
        self.take_body(rest)
    }

    /// Takes the end of the connection.
    pub fn end(&mut self) -> Verdict {
        if !self.state.in_body {
            let got = self.state.head.len();
            return Err(format!("connection closed after {got} bytes of header"));
        }
        if let Some(length) = self.state.length
            && self.state.received < length
        {
            return Err(format!(
                "connection closed after {} of {length} bytes",
                self.state.received
            ));
        }
        self.check_body()
    }

    fn take_body(&mut self, bytes: &[u8]) -> Option<Verdict> {
        let left = self.state.length.map_or(usize::MAX, |length| length - self.state.received);
        let bytes = &bytes[..bytes.len().min(left)];
        self.state.received += bytes.len();
        if self.state.received > BODY_MAX {
            return Some(Err(format!("body longer than {BODY_MAX} bytes")));
        }
        if self.wanted.digest.is_some() {
            self.state.hash.update(bytes);
        }
        if self.wanted.regex.is_some() {
            self.state.body.extend_from_slice(bytes);
        }
        (self.state.length == Some(self.state.received)).then(|| self.check_body())
    }

    fn check_status(&self, code: u16) -> Verdict {
        let good = self.wanted.status.iter().any(|&(first, last)| (first..=last).contains(&code));
        if good { Ok(()) } else { Err(format!("HTTP status {code}")) }
    }

    fn check_body(&mut self) -> Verdict {
        if let Some(wanted) = self.wanted.digest {
            let seen: [u8; 16] = self.state.hash.finalize_reset().into();
            if seen != wanted {
                return Err(format!("digest of the body is {}", hexadecimal(&seen)));
            }
        }
        match &self.wanted.regex {
            Some((regex, holds)) if regex.is_match(&self.state.body) != *holds => {
                let how = if *holds { "does not match" } else { "matches" };
                Err(format!("the body {how} {regex}"))
            }
            _ => Ok(()),
        }
    }
}

/// Returns where the body begins: behind the first empty line.
fn end_of_head(head: &[u8], from: usize) -> Option<usize> {
    (from..head.len()).find_map(|at| {
        let rest = &head[at..];
        [&b"\r\n\r\n"[..], b"\n\n"]
            .into_iter()
            .find(|end| rest.starts_with(end))
            .map(|end| at + end.len())
    })
}

/// Reads the code of a status line.
fn status(head: &[u8]) -> Result<u16, String> {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let (name, code) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let code = std::str::from_utf8(code).ok().filter(|text| text.len() == 3);
    let code = code.and_then(|text| text.parse().ok());
    match code {
        Some(code) if name.starts_with(b"HTTP/") => Ok(code),
        _ => Err(format!("no HTTP status in `{}`", line.trim_ascii().escape_ascii())),
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (name, value) = line.split_at(colon);
        if !name.trim_ascii().eq_ignore_ascii_case(b"content-length") {
            return None;
        }
        std::str::from_utf8(value[1..].trim_ascii()).ok()?.parse().ok()
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "HTTP/1.0 200 OK\r\n\r\n";

    fn wanted() -> Wanted {
        Wanted { status: vec![(200, 299)], digest: None, regex: None }
    }

    /// Feeds an answer in pieces of every size, and holds the verdict against what is expected.
    fn check(wanted: &Wanted, answer: &str, expected: &Verdict) {
        for size in 1..=answer.len().max(1) {
            let mut reply = Reply::new(wanted);
            let verdict = answer.as_bytes().chunks(size).find_map(|piece| reply.take(piece));
            let verdict = verdict.unwrap_or_else(|| reply.end());
            assert_eq!(verdict, *expected, "in pieces of {size}: {answer:?}");
        }
    }

    fn no(why: &str) -> Verdict {
        Err(why.to_owned())
    }

    #[test]
    fn the_status_decides() {
        check(&wanted(), OK, &Ok(()));
        check(&wanted(), "HTTP/1.1 204 \n\n", &Ok(()));
        check(&wanted(), "HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", &no("HTTP status 302"));
        check(&wanted(), "HTTP/1.1 500\r\n\r\n", &no("HTTP status 500"));
        let either = Wanted { status: vec![(200, 200), (500, 503)], ..wanted() };
        check(&either, "HTTP/1.1 502 Bad\r\n\r\n", &Ok(()));
        check(&either, "HTTP/1.1 201 Made\r\n\r\n", &no("HTTP status 201"));
    }

    #[test]
    fn what_is_not_http_is_bad() {
        check(&wanted(), "SSH-2.0-x\r\n\r\n", &no("no HTTP status in `SSH-2.0-x`"));
        check(&wanted(), "HTTP/1.0 2000 OK\n\n", &no("no HTTP status in `HTTP/1.0 2000 OK`"));
        check(&wanted(), "\r\n\r\n", &no("no HTTP status in ``"));
        check(&wanted(), "", &no("connection closed after 0 bytes of header"));
        check(&wanted(), "HTTP/1.0 200", &no("connection closed after 12 bytes of header"));
    }

    #[test]
    fn the_digest_is_that_of_the_body() {
        let digest = Md5::digest(b"hello\n").into();
        let wanted = Wanted { digest: Some(digest), ..wanted() };
        check(&wanted, &format!("{OK}hello\n"), &Ok(()));
        check(&wanted, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\nmore", &Ok(()));
        let empty = no("digest of the body is d41d8cd98f00b204e9800998ecf8427e");
        check(&wanted, OK, &empty);
        let short = "HTTP/1.1 200 OK\r\ncontent-length:  6\r\n\r\nhel";
        check(&wanted, short, &no("connection closed after 3 of 6 bytes"));
    }

    #[test]
    fn a_pattern_must_or_must_not_be_there() {
        let regex = |holds| Some((Regex::new("up+|ok").unwrap(), holds));
        let (with, without) =
            (Wanted { regex: regex(true), ..wanted() }, Wanted { regex: regex(false), ..wanted() });
        check(&with, &format!("{OK}is upp"), &Ok(()));
        check(&with, &format!("{OK}is down"), &no("the body does not match up+|ok"));
        check(&without, &format!("{OK}is upp"), &no("the body matches up+|ok"));
        check(&without, OK, &Ok(()));
    }

    #[test]
    fn an_answer_has_limits() {
        let mut reply = Reply { wanted: &wanted(), state: State::default() };
        let long = [b'x'; 1000];
        let verdict = (0..17).find_map(|_| reply.take(&long));
        assert_eq!(verdict, Some(no("header longer than 16384 bytes")));
        let wanted = Wanted { digest: Some([0; 16]), ..wanted() };
        let mut reply = Reply::new(&wanted);
        assert_eq!(reply.take(OK.as_bytes()), None);
        let verdict = (0..=BODY_MAX / 1000).find_map(|_| reply.take(&long));
        assert_eq!(verdict, Some(no("body longer than 4194304 bytes")));
    }

    #[test]
    fn requests_are_those_that_keepalived_was_seen_to_write() {
        let http = |version| Http {
            tls: false,
            urls: Vec::new(),
            version,
            fast_recovery: false,
            server_name: None,
        };
        let url = |path: &str, host: Option<&str>| Url {
            path: path.to_owned(),
            host: host.map(str::to_owned),
            status: Vec::new(),
            digest: None,
            regex: None,
            kept: Vec::new(),
        };
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 80);
        let check = |version, url, address: &str, expected: &str| {
            let seen = request(&http(version), &url, at(address));
            assert_eq!(seen.escape_ascii().to_string(), expected);
        };
        check(
            HttpVersion::V10,
            url("/a", None),
            "10.8.0.11",
            r"GET /a HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nHost: 10.8.0.11:80\r\n\r\n",
        );
        check(
            HttpVersion::V10Close,
            url("/bad", None),
            "10.8.0.13",
            r"GET /bad HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nConnection: close\r\nHost: 10.8.0.13:80\r\n\r\n",
        );
        check(
            HttpVersion::V11,
            url("/v", Some("www.example.com")),
            "10.8.0.13",
            r"GET /v HTTP/1.1\r\nUser-Agent: KeepAliveClient\r\nConnection: close\r\nHost: www.example.com\r\n\r\n",
        );
        check(
            HttpVersion::V10,
            url("/", None),
            "fd08::1",
            r"GET / HTTP/1.0\r\nUser-Agent: KeepAliveClient\r\nHost: [fd08::1]:80\r\n\r\n",
        );
    }
}
