//! What an administrator waits for: tables of ten thousand, lists of a million connections.
//!
//! Needs root. `docs/performance.md` has its figures.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use e2e::flood;
use e2e::lab::{self, Stage, Stop};
use e2e::packet::Kind;
use e2e::versions::Versions;
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};

/// Measures what commands take, as root.
#[derive(Parser)]
#[command(name = "cargo xtask administration", disable_version_flag = true)]
struct Arguments {
    /// Services, and servers of one service
    #[arg(long, default_value_t = 10_000)]
    many: u32,
    /// Connections that are listed, up to a million
    #[arg(long, default_value_t = 1_000_000)]
    connections: u32,
    /// How often each command is measured
    #[arg(long, default_value_t = 5)]
    times: usize,
    /// Fail if a bound is missed
    #[arg(long)]
    check: bool,
}

/// Port of the service that connections are opened to.
const PORT: u16 = 5300;
/// Port of the service that answers.
const ECHO_PORT: u16 = 7;
/// The ports from which the client asks there, and how long it waits for the next.
const FLOW_PORTS: RangeInclusive<u16> = 10_000..=65_000;
const FLOW_EVERY: Duration = Duration::from_millis(2);
/// How long an answer may take before it is taken for lost.
const ANSWER_MAX: Duration = Duration::from_millis(50);
/// How long the last connections may take to be there.
const TIME_MAX: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let program = std::env::current_exe().unwrap().with_file_name("rlvs-e2e");
    let stage = Stage::attached(Wiring::Plain, program.to_str().unwrap());
    // The programs that the first service needs are loaded with it.
    stage.ipvsadm("-A -t 198.18.0.1:80 -s wrr").ok();
    stage.ipvsadm("-a -t 198.18.0.1:80 -r 10.0.1.101:80 -m").ok();
    let mut table = Table { stage: &stage, times: arguments.times, missed: 0 };
    println!("| command | s, median | lowest to highest | bound |\n| --- | --- | --- | --- |");
    table.measure_many("services", &services(arguments.many));
    table.measure_many("servers, `-g`", &servers(arguments.many, 'g'));
    table.measure_many("servers, `-m`", &servers(arguments.many, 'm'));
    let there = open(&stage, arguments.connections.min(1_000_000));
    let what = format!("`-L -n -c` of {there} connections");
    table.measure(&what, "-L -n -c", "", 2.0);
    measure_hold(&stage, program.to_str().unwrap(), there);
    if arguments.check && table.missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What is measured, a line each.
struct Table<'a> {
    stage: &'a Stage,
    times: usize,
    missed: u32,
}

impl Table<'_> {
    /// Measures how long a table takes to be restored and to be listed.
    fn measure_many(&mut self, what: &str, lines: &str) {
        let count = lines.lines().filter(|line| !line.starts_with('#')).count();
        self.measure(&format!("`-R` of {count} lines: {what}"), "-R", lines, 0.3);
        self.measure("`-L -n` of them", "-L -n", "", 0.1);
        self.stage.ipvsadm("-C").ok();
    }

    /// Measures a command several times; before each `-R` the table is empty.
    fn measure(&mut self, what: &str, arguments: &str, text: &str, bound_s: f64) {
        let mut seconds: Vec<f64> = Vec::new();
        for _ in 0..self.times {
            if arguments == "-R" {
                self.stage.ipvsadm("-C").ok();
            }
            let mut command = self.stage.ipvsadm_command(arguments);
            // A reader of its own would be measured too.
            let output = tempfile();
            command.stdin(Stdio::piped()).stdout(output);
            let start = Instant::now();
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{what}");
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let (low, high) = (seconds[0], seconds[seconds.len() - 1]);
        let median = seconds[seconds.len() / 2];
        let verdict = if median <= bound_s { "" } else { ", missed" };
        self.missed += u32::from(median > bound_s);
        println!("| {what} | {median:.3} | {low:.3}–{high:.3} | {bound_s}{verdict} |");
    }
}

/// Upgrades to maps of another layout, and tells how long it takes and for how long new flows got no answer
/// meanwhile: each is of one datagram to a server that sends it back.
fn measure_hold(stage: &Stage, program: &str, connections: u32) {
    let versions = Versions::new("administration", program, stage.lab.directory());
    let [old, new] = versions.of.each_ref().map(|version| version.program.to_str().unwrap());
    let service = SocketAddr::new(VIPS[1].v4.into(), ECHO_PORT);
    let server = SocketAddr::new(REAL_SERVERS[0].inside.v4.into(), ECHO_PORT);
    lab::udp_server(&stage.lab.real_servers()[0], server, "");
    stage.ipvsadm(&format!("-A -u {service} -s rr")).ok();
    stage.ipvsadm(&format!("-a -u {service} -r {server} -m")).ok();
    let over = AtomicBool::new(false);
    let (took, longest) = std::thread::scope(|scope| {
        let stop = Stop(&over);
        let client = scope.spawn(|| stage.as_client(|| longest_silence(service, &over)));
        let start = Instant::now();
        let director = stage.lab.director();
        lab::run(director, Path::new(new), &["upgrade", "--from", old]).ok();
        let took = start.elapsed();
        drop(stop);
        (took, client.join().unwrap())
    });
    lab::run(stage.lab.director(), Path::new(new), &["detach"]).ok();
    println!(
        "\n`upgrade --from` with {connections} connections: {:.1} s, of which no connection is opened for {:.1} s",
        took.as_secs_f64(),
        longest.as_secs_f64()
    );
}

/// Opens flows one after the other until it is over, and returns the longest time without an answer.
fn longest_silence(service: SocketAddr, over: &AtomicBool) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    // A port that was had before would be a flow that is there.
    for port in FLOW_PORTS {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) else { continue };
        socket.connect(service).unwrap();
        socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        socket.send(b"is there anybody?").unwrap();
        if socket.recv(&mut [0; 32]).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        std::thread::park_timeout(FLOW_EVERY);
    }
    longest.max(last.elapsed())
}

/// Returns a file without a name.
fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("rlvs-administration-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

fn services(count: u32) -> String {
    let first = Ipv4Addr::new(198, 18, 0, 0).to_bits();
    let line = |number| format!("-A -t {}:80 -s rr\n", Ipv4Addr::from_bits(first + number));
    (0..count).map(line).collect()
}

fn servers(count: u32, method: char) -> String {
    let service = "-t 198.18.0.1:80";
    let first = Ipv4Addr::new(10, 0, 1, 101).to_bits();
    let line = |number: u32| {
        let address = Ipv4Addr::from_bits(first + number % 100);
        // By direct routing all have the service's port.
        let to = match method {
            'm' => format!("{address}:{}", 1000 + number / 100),
            _ => format!("{}:80", Ipv4Addr::from_bits(first + 0x0001_0000 + number)),
        };
        format!("-a {service} -r {to} -{method} -w {}\n", number % 7 + 1)
    };
    format!("-A {service} -s wrr\n") + &(0..count).map(line).collect::<String>()
}

/// Opens connections by datagrams of so many flows, and returns how many there are.
fn open(stage: &Stage, count: u32) -> u32 {
    let SocketAddr::V4(target) = SocketAddr::new(VIPS[0].v4.into(), PORT) else { unreachable!() };
    stage.ipvsadm(&format!("-A -u {target} -s rr")).ok();
    stage.ipvsadm(&format!("-a -u {target} -r 10.0.1.101:{PORT} -g")).ok();
    flood::open(stage, target, Kind::Udp, count);
    let start = Instant::now();
    loop {
        let listed = stage.ipvsadm("-L -n").ok();
        let inactive = listed.split_whitespace().last().unwrap().parse().unwrap();
        // Some may have found both their places taken.
        if inactive >= count - count / 100 || start.elapsed() > TIME_MAX {
            return inactive;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
