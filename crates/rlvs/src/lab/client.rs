//! The client: real requests, each a new connection, each with a bounded wait.
//!
//! The functions ask from the calling thread's namespace; run them by `Namespace::run`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rlvs_control::model::Protocol;

/// How long each step of a request may take: connecting, sending, each read.
const STEP_TIME_MAX: Duration = Duration::from_secs(3);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// After how many failed requests the rest is not tried; each may take seconds.
const FAILURES_MAX: usize = 4;
/// Ports that datagrams are sent from: below those that the kernel gives out.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// What precedes a server's name on its page.
const GREETING: &str = "Hello from ";

/// Who answered how often, and what went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answers by the name of the server.
    pub counts: BTreeMap<String, u32>,
    /// What each failed request failed of.
    pub failures: Vec<String>,
}

/// Asks `requests` times, and stops early when `interrupted` is set or too much has failed.
pub fn ask_often(
    protocol: Protocol,
    target: SocketAddr,
    requests: u32,
    interrupted: &AtomicBool,
) -> Answers {
    let mut answers = Answers::default();
    for number in 1..=requests {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        match ask(protocol, target) {
            Ok(name) => *answers.counts.entry(name).or_default() += 1,
            Err(error) => answers.failures.push(format!("request {number}: {error}")),
        }
        if answers.failures.len() >= FAILURES_MAX && number < requests {
            answers.failures.push(format!("given up after request {number} of {requests}"));
            break;
        }
    }
    answers
}

/// Asks once, over a new connection or from a new port, and returns the server's name.
///
/// # Errors
/// No answer in time, or one that is not a real server's.
pub fn ask(protocol: Protocol, target: SocketAddr) -> io::Result<String> {
    let answer = match protocol {
        Protocol::Tcp => ask_http(target),
        Protocol::Udp => ask_udp(target),
        Protocol::Sctp | Protocol::Other(_) => Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    answer.map_err(|error| match error.kind() {
        // What the kernel calls a read that ran out of time.
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {STEP_TIME_MAX:?}"))
        }
        _ => error,
    })
}

fn ask_http(target: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, STEP_TIME_MAX)?;
    stream.set_read_timeout(Some(STEP_TIME_MAX))?;
    stream.set_write_timeout(Some(STEP_TIME_MAX))?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {target}\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let strange = || io::Error::other(format!("not a real server's answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(strange)?;
    let mut words = head.split_ascii_whitespace();
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    if !is_http || words.next() != Some("200") {
        return Err(strange());
    }
    body.trim().strip_prefix(GREETING).map(str::to_owned).ok_or_else(strange)
}

/// Binds a port that no earlier request of this process had: the kernel draws ports at random, and a
/// datagram from one that was used before belongs to the connection of then.
fn bind_new_port(any: IpAddr) -> io::Result<UdpSocket> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let drawn = NEXT.fetch_add(1, Ordering::Relaxed) as usize % PORTS.len();
        let port = PORTS.start + drawn as u16;
        match UdpSocket::bind((any, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

fn ask_udp(target: SocketAddr) -> io::Result<String> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = bind_new_port(any)?;
    socket.set_read_timeout(Some(STEP_TIME_MAX))?;
    // Connected, so that only an answer from the address that was asked is taken.
    socket.connect(target)?;
    socket.send(b"who is it?")?;
    let mut answer = [0; 256];
    let length_bytes = socket.recv(&mut answer)?;
    let bytes = answer.get(..length_bytes).unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answer_of(reply: &'static str) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                stream.write_all(reply.as_bytes()).unwrap();
            });
            ask(Protocol::Tcp, target)
        })
    }

    #[test]
    fn the_name_is_taken_from_the_page() {
        let reply = "HTTP/1.1 200 OK\r\nServer: x\r\n\r\nHello from Server 1\n";
        assert_eq!(answer_of(reply).unwrap(), "Server 1");
    }

    #[test]
    fn an_error_or_a_strange_page_is_no_answer() {
        for reply in [
            "HTTP/1.1 503 No\r\n\r\nHello from Server 1\n",
            "HTTP/1.1 200 OK\r\n\r\nSomething else\n",
            "HTTP/1.1 200 OK\r\nHello from Server 1\n",
            "",
        ] {
            assert!(answer_of(reply).is_err(), "{reply:?}");
        }
    }
}
