//! A small real server: a page over HTTP, and its name over UDP.
//!
//! The lab starts it for UDP always, and for HTTP where nginx is not installed. It answers from
//! the address that was asked, as a real server that holds the virtual address must.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

/// Threads that answer HTTP requests, one request at a time each.
const HTTP_THREADS: usize = 8;
/// Longest request that is read.
const REQUEST_BYTES_MAX: usize = 8192;
/// How long a client may keep a thread waiting.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(2);

/// What to answer, and where.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Name to answer with, such as "Server 1"
    #[arg(long)]
    pub name: String,
    /// Address and port for HTTP; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Vec<SocketAddr>,
    /// Address and port for UDP, of a single address; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub udp: Vec<SocketAddr>,
}

/// Answers until the process is ended.
///
/// # Errors
/// An address cannot be bound.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut threads = Vec::new();
    for address in &arguments.http {
        let listener =
            TcpListener::bind(address).with_context(|| format!("listening on TCP {address}"))?;
        for _ in 0..HTTP_THREADS {
            let listener = listener.try_clone().context("sharing a listening socket")?;
            threads.push(start(&arguments.name, move |name| serve_http(&listener, name))?);
        }
    }
    for address in &arguments.udp {
        let socket =
            UdpSocket::bind(address).with_context(|| format!("listening on UDP {address}"))?;
        threads.push(start(&arguments.name, move |name| serve_udp(&socket, name))?);
    }
    for thread in threads {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    Ok(ExitCode::SUCCESS)
}

fn start(name: &str, serve: impl FnOnce(&str) + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let name = name.to_owned();
    std::thread::Builder::new().spawn(move || serve(&name)).context("starting a thread")
}

fn serve_http(listener: &TcpListener, name: &str) {
    loop {
        // A client that goes away is the client's business; the next one is served.
        if let Ok((stream, _)) = listener.accept() {
            answer_http(stream, name).ok();
        }
    }
}

fn answer_http(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIME_MAX))?;
    stream.set_write_timeout(Some(CLIENT_TIME_MAX))?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let read_bytes = stream.read(&mut chunk)?;
        request.extend(chunk.iter().take(read_bytes));
        if read_bytes == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let body = if request.starts_with(b"GET /health_check ") {
        "ok\n".to_owned()
    } else {
        format!("Hello from {name}\n")
    };
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut question = [0; 2048];
    loop {
        // An ICMP error for an earlier answer comes back here; the next question is served.
        if let Ok((_, client)) = socket.recv_from(&mut question) {
            socket.send_to(name.as_bytes(), client).ok();
        }
    }
}
