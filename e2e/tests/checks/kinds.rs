//! Every kind of check tells good from bad, and many of them cost little.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::Backlog;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use rlvs::keepalived::checks::{Checks, Event, Kind};
use rlvs_control::memory::MemoryTable;
use rlvs_control::model::DestinationId;
use rlvs_linux::netns::Namespace;

use e2e::lab::{TIME_MAX, inside};

const SERVICE: &str = "[10.9.9.9]:tcp:80";
/// A port on which nobody listens.
const CLOSED: u16 = 9;

/// Runs work in a namespace that has nothing but its loopback interface.
fn alone<T: Send>(role: &str, work: impl FnOnce() -> T + Send) -> T {
    let name = format!("rlvs-e2e-{}-{role}", std::process::id());
    let namespace = Namespace::create(&name).unwrap();
    let mut command = std::process::Command::new(e2e::lab::tool("ip").unwrap());
    command.args(["link", "set", "lo", "up"]);
    inside(&namespace, &mut command);
    assert!(command.status().unwrap().success());
    let result = namespace.run(work).unwrap();
    rlvs_linux::netns::delete(&name).unwrap();
    result
}

fn checks(servers: &str, delay_loop: f32) -> Checks {
    let text = format!(
        "virtual_server 10.9.9.9 80 {{\n delay_loop {delay_loop}\n lb_kind NAT\n protocol TCP\n \
         connect_timeout 0.3\n warmup 0\n {servers}\n }}"
    );
    let read = rlvs_conf::read_text(&text);
    assert!(!read.diagnostics.has_errors(), "{:#?}", read.diagnostics);
    Checks::new(&read.desired, Box::new(|| Ok(Box::new(MemoryTable::default()))), 7).unwrap()
}

/// Returns whether the server with this last octet is good.
fn is_up(checks: &Checks, last: u8, port: u16) -> bool {
    let id = DestinationId { address: [127, 0, 0, last].into(), port };
    checks.health().is_up(SERVICE, id).unwrap()
}

/// Turns until the condition holds.
#[track_caller]
fn turn_until(checks: &mut Checks, holds: impl Fn(&Checks) -> bool) {
    let deadline = Instant::now() + TIME_MAX;
    while !holds(checks) {
        checks.turn(Some(deadline)).unwrap();
        let mut events = Vec::new();
        events.extend(std::iter::from_fn(|| checks.poll_event()).map(|it| it.to_string()));
        assert!(Instant::now() < deadline, "{events:#?}");
    }
}

/// Runs one server with this check from its start (`alpha`, so that it must succeed to be up) and
/// returns whether it comes up.
fn comes_up(check: &str, port: u16) -> bool {
    let server = |last: u8, check: &str| {
        format!("real_server 127.0.0.{last} {port} {{\n alpha\n {check}\n }}\n")
    };
    // The third tells when every check has been made twice.
    let misc = "MISC_CHECK {\n misc_path \"/bin/sleep 0.7\"\n misc_timeout 5\n }";
    let mut checks = checks(&(server(1, check) + &server(3, misc)), 0.2);
    turn_until(&mut checks, |checks| is_up(checks, 3, port));
    is_up(&checks, 1, port)
}

#[test]
fn datagrams_tell_good_from_bad() {
    alone("udp", || {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        assert!(comes_up("UDP_CHECK {\n }", port), "silence is good");
        assert!(!comes_up("UDP_CHECK {\n }", CLOSED), "nobody listens");
        let reply = "UDP_CHECK {\n payload 6869\n require_reply 686X\n }";
        assert!(!comes_up(reply, port), "an answer is asked for");
        let echo = silent.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                drop(echo.send_to(&buffer[..length], from));
            }
        });
        assert!(comes_up(reply, port), "the answer fits");
        assert!(!comes_up(&reply.replace("686X", "6a6X"), port), "another answer is asked for");
    });
}

#[test]
fn name_servers_and_mail_servers_tell_good_from_bad() {
    alone("talk", || {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut query) {
                // An answer to whoever asks for addresses, and `no such name` to others.
                let kind = query[length - 3];
                query[2] |= 0x80;
                query[3] = if kind == 1 { 0 } else { 3 };
                drop(server.send_to(&query[..length], from));
            }
        });
        let dns = |kind: &str| format!("DNS_CHECK {{\n type {kind}\n name a.b\n retry 0\n }}");
        assert!(comes_up(&dns("A"), port));
        assert!(!comes_up(&dns("MX"), port));
        assert!(!comes_up(&dns("A"), CLOSED));

        let (port, said) = mail_server("220-hello\r\n220 there\r\n");
        let smtp = "SMTP_CHECK {\n helo_name lb.example.com\n }";
        assert!(comes_up(smtp, port));
        assert_eq!(said.recv().unwrap(), "HELO lb.example.com\r\nQUIT\r\n");
        assert!(!comes_up(smtp, mail_server("421 busy\r\n").0));
    });
}

/// Greets everybody, agrees to all, and tells what it heard.
fn mail_server(greeting: &'static str) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = String::new();
            let mut talk = || -> std::io::Result<()> {
                stream.write_all(greeting.as_bytes())?;
                let mut lines = BufReader::new(stream.try_clone()?);
                for answer in ["250 well met\r\n", "221 bye\r\n"] {
                    lines.read_line(&mut heard)?;
                    stream.write_all(answer.as_bytes())?;
                }
                Ok(())
            };
            // Who hears 421 may leave.
            drop(talk());
            drop(tell.send(heard));
        }
    });
    (port, told)
}

#[test]
fn pings_tell_good_from_bad() {
    alone("ping", || {
        assert!(comes_up("PING_CHECK {\n }", 80));
        assert!(!comes_up("PING_CHECK {\n connect_ip 10.1.1.1\n }", 80));
    });
}

#[test]
fn commands_tell_good_from_bad_and_do_not_outlive_their_time() {
    alone("misc", || {
        let misc = |command: &str, more: &str| {
            format!("MISC_CHECK {{\n misc_path \"{command}\"\n misc_timeout 1\n {more}\n }}")
        };
        assert!(comes_up(&misc("/bin/true", ""), 80));
        assert!(!comes_up(&misc("/bin/false", ""), 80));
        assert!(!comes_up(&misc("/no/such/program", ""), 80));
        let weighted = "real_server 127.0.0.1 80 {\n CHECK\n }\n"
            .replace("CHECK", &misc("/bin/sh -c 'exit 22'", "misc_dynamic"));
        let mut checks = checks(&weighted, 0.2);
        turn_until(&mut checks, |checks| checks.health().destinations(SERVICE)[0].weight == 20);

        // The number of seconds tells this command from any other.
        let seconds = format!("{}.25", 10_000 + std::process::id());
        let hung = misc(&format!("/bin/sh -c 'sleep {seconds}; true'"), "");
        let server = format!("real_server 127.0.0.1 80 {{\n {hung}\n }}\n");
        let mut checks = self::checks(&server, 0.2);
        turn_until(&mut checks, |_| runs(&seconds));
        turn_until(&mut checks, |checks| !is_up(checks, 1, 80));
        drop(checks);
        e2e::lab::wait_until("no command is left", &false, || runs(&seconds));
    });
}

/// Returns whether a process has this word on its command line.
fn runs(word: &str) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.into_iter().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|it| it == word.as_bytes())
    })
}

/// 2,000 checks each second, as 10,000 every 5 s are.
#[test]
fn ten_thousand_checks_every_five_seconds_cost_little() {
    const SERVERS: usize = 2000;
    const MEASURED: Duration = Duration::from_secs(3);
    alone("many", || {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        nix::sys::socket::listen(&listener, Backlog::new(4096).unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let servers: String = (0..SERVERS)
            .map(|n| {
                let (third, last) = (n / 250, n % 250 + 1);
                format!("real_server 127.1.{third}.{last} {port} {{\n TCP_CHECK {{\n }}\n }}\n")
            })
            .collect();
        let mut checks = checks(&servers, 1.0);
        let spent = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let (begin, before) = (Instant::now(), spent());
        while begin.elapsed() < MEASURED {
            checks.turn(Some(begin + MEASURED)).unwrap();
        }
        let share = (spent() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        let ours =
            usage.user_time().num_microseconds() as f64 / 1e6 / begin.elapsed().as_secs_f64();
        // The kernel's part has the other side of each connection in it.
        eprintln!(
            "2,000 checks a second take {:.1} % of a core, {:.1} % of it not in the kernel",
            share * 100.0,
            ours / share * 100.0
        );
        let down = |event: &Event| event.kind == Kind::ServerDown;
        let events: Vec<_> = std::iter::from_fn(|| checks.poll_event()).filter(down).collect();
        assert!(events.is_empty(), "{events:#?}");
        // Without optimisation, on a machine that does other things: far from what a release takes.
        assert!(share < 0.8, "{share}");
    });
}
