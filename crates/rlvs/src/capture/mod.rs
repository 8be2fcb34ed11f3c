//! `rlvs capture`: packets as the balancer had them: what came, what went, what was decided and why.
//!
//! What the balancer sends by XDP no tcpdump on this host sees. `show` puts a packet into a line,
//! `file` into a file that Wireshark reads; the looking itself is
//! [`rlvs_linux::dataplane::capture`].

mod file;
mod show;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use rlvs_datapath::abi::REASONS;
use rlvs_datapath::reason::Reason;
use rlvs_linux::dataplane::capture::{Capture, FRAME_MAX, Taken, Wanted};
use rlvs_linux::route::{Link, Rtnetlink};
use signal_hook::consts::{SIGINT, SIGTERM};

use file::CaptureFile;
use show::Names;

/// Longest that it waits before it looks whether it is to end.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Arguments of `rlvs capture`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Interfaces; all that are attached if none is named
    #[arg(short, long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Write packets to a pcapng file instead of telling of them; - is standard output
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many packets
    #[arg(short, long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// End after so many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Keep so many bytes of each frame
    #[arg(long, value_name = "BYTES", default_value_t = FRAME_MAX as u32, value_parser = clap::value_parser!(u32).range(14..=FRAME_MAX as i64))]
    snaplen: u32,
    /// Only packets from or to an address, or a prefix such as 192.0.2.0/24
    #[arg(long, value_name = "ADDRESS")]
    host: Option<Prefix>,
    /// Only packets from or to a port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Only packets of a protocol
    #[arg(long, value_enum)]
    proto: Option<Proto>,
    /// Only packets for which a reason was counted, such as no_service; any for each that was not
    /// simply forwarded
    #[arg(long, value_name = "NAME", value_parser = reasons)]
    reason: Option<u32>,
    /// Print JSON, a line for each packet
    #[arg(long, conflicts_with = "write")]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Proto {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
    Esp,
    Ah,
}

impl Proto {
    const fn number(self) -> u32 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Esp => 50,
            Self::Ah => 51,
            Self::Icmpv6 => 58,
            Self::Sctp => 132,
        }
    }
}

/// An address with the number of its bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    address: IpAddr,
    bits: u32,
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let no = || format!("`{text}` is neither an address nor a prefix, such as 192.0.2.0/24");
        let address: IpAddr = address.parse().map_err(|_| no())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| no()))?;
        if bits > most {
            return Err(format!("`{text}`: a prefix of this family has 0 to {most} bits"));
        }
        Ok(Self { address, bits })
    }
}

impl Prefix {
    /// Returns the address and the mask in words of network order.
    fn words(self) -> ([u32; 4], [u32; 4]) {
        let words = |bytes: [u8; 16]| {
            let (words, _) = bytes.as_chunks::<4>();
            std::array::from_fn(|at| words.get(at).map_or(0, |word| u32::from_ne_bytes(*word)))
        };
        let mut bytes = [0; 16];
        match self.address {
            IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes = address.octets(),
        }
        let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
        (words(bytes), words(mask.to_be_bytes()))
    }

    const fn kind(self) -> u32 {
        if self.address.is_ipv4() { 0x0800 } else { 0x86dd }
    }
}

/// Reads the name of a reason; returns its bit, or all of them.
fn reasons(text: &str) -> Result<u32, String> {
    if text == "any" {
        return Ok(u32::MAX);
    }
    let mut all = (0..REASONS).map(|number| (number, Reason::from_number(number)));
    let found = all.find(|(number, reason)| reason.name() == text && *reason as u32 == *number);
    found.map(|(number, _)| 1 << number).ok_or_else(|| {
        let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        format!("there is no reason `{text}`; there are: any, {}", names.join(", "))
    })
}

impl Arguments {
    /// Says to the programs what is wanted.
    fn wanted(&self, now_ns: u64) -> Wanted {
        let (host, mask) = self.host.map_or(([0; 4], [0; 4]), Prefix::words);
        Wanted {
            until_ns: now_ns + u64::from(self.seconds) * 1_000_000_000,
            host,
            mask,
            kind: self.host.map_or(0, Prefix::kind),
            protocol: self.proto.map_or(0, Proto::number),
            port: self.port.map_or(0, u32::from),
            reasons: self.reason.unwrap_or(0),
            bytes: self.snaplen,
            padding: 0,
            left: i64::from(self.count),
        }
    }
}

/// Where packets go.
enum Sink {
    Lines(Names),
    Json(Names),
    File(CaptureFile),
}

impl Sink {
    fn write(&mut self, out: &mut dyn Write, taken: &Taken, at: Duration) -> Result<()> {
        match self {
            Self::Lines(names) => writeln!(out, "{}", show::line(names, taken, at))?,
            Self::Json(names) => writeln!(out, "{}", show::json(names, taken, at))?,
            Self::File(file) => file.write(taken, at)?,
        }
        Ok(())
    }
}

/// Runs `rlvs capture`.
///
/// # Errors
/// Nothing is attached, another capture runs, a missing capability, a file that cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let links = Rtnetlink::open()?.links()?;
    for name in &arguments.interfaces {
        ensure!(links.iter().any(|link| &link.name == name), "there is no interface {name}");
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("catching signals")?;
    }
    let mut sink = sink(arguments, links)?;
    let now_ns = monotonic_ns()?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let began = wall.saturating_sub(Duration::from_nanos(now_ns));
    let wanted = arguments.wanted(now_ns);
    let mut capture = Capture::begin(&wanted, &arguments.interfaces)?;
    for name in &capture.unseen {
        eprintln!(
            "rlvs: {name}: TC is a filter there (a kernel before 6.6), which cannot be looked into"
        );
    }
    eprintln!(
        "rlvs: looking for up to {} s and {} packets; Ctrl-C ends it",
        arguments.seconds, arguments.count
    );
    let out = &mut io::stdout().lock();
    let mut seen = 0;
    while seen < arguments.count {
        let last = ended.load(Ordering::Relaxed) || monotonic_ns()? >= wanted.until_ns;
        while seen < arguments.count
            && let Some(taken) = capture.read()
        {
            seen += 1;
            sink.write(out, &taken, began + Duration::from_nanos(taken.time_ns))?;
        }
        out.flush()?;
        if last {
            break;
        }
        wait(&capture)?;
    }
    let lost = capture.lost()?;
    drop(capture);
    if let Sink::File(file) = sink {
        file.end()?;
    }
    eprintln!("rlvs: {seen} packets{}", lost_text(lost));
    Ok(ExitCode::SUCCESS)
}

fn sink(arguments: &Arguments, links: Vec<Link>) -> Result<Sink> {
    let names = Names::of(&links);
    let Some(path) = &arguments.write else {
        return Ok(if arguments.json { Sink::Json(names) } else { Sink::Lines(names) });
    };
    let is_output = path.as_os_str() == "-";
    let out: Box<dyn Write> = if is_output {
        if io::stdout().is_terminal() {
            bail!("packets are no text for a terminal: name a file, or a program behind |");
        }
        Box::new(io::stdout())
    } else {
        Box::new(File::create(path).with_context(|| format!("writing {}", path.display()))?)
    };
    let name = (!is_output).then(|| path.display().to_string());
    let out = Box::new(BufWriter::new(out));
    Ok(Sink::File(CaptureFile::begin(name, out, names, arguments.snaplen)?))
}

fn lost_text(lost: u64) -> String {
    match lost {
        0 => String::new(),
        _ => format!(", and {lost} that came faster than they could be written"),
    }
}

fn wait(capture: &Capture) -> Result<()> {
    let timeout = PollTimeout::try_from(WAIT_MAX)?;
    match poll(&mut [PollFd::new(capture.readable(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for packets"),
    }
}

fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    Ok(Duration::from(now).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_becomes_words_of_network_order() {
        let prefix: Prefix = "192.0.2.128/25".parse().expect("a prefix");
        let (host, mask) = prefix.words();
        assert_eq!(host[0].to_ne_bytes(), [192, 0, 2, 128]);
        assert_eq!(mask[0].to_ne_bytes(), [255, 255, 255, 128]);
        assert_eq!(mask[1..], [0; 3]);
        let (_, all) = "2001:db8::1".parse::<Prefix>().expect("an address").words();
        assert_eq!(all, [u32::MAX; 4]);
        let (_, none) = "0.0.0.0/0".parse::<Prefix>().expect("a prefix").words();
        assert_eq!(none, [0; 4]);
        assert!("192.0.2.0/33".parse::<Prefix>().is_err());
        assert!("web".parse::<Prefix>().is_err());
    }

    #[test]
    fn every_reason_is_known_by_its_name_and_no_other() {
        for reason in Reason::ALL {
            assert_eq!(reasons(reason.name()), Ok(1 << reason as u32));
        }
        assert!(reasons("nonsense").is_err());
    }
}
