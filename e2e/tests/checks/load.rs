//! nginx servers break in each way while clients and wrk ask: no request fails but those that
//! began on the broken server before it had to be found out.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::lab::{Stage, inside, run, tool, wait_for};
use nix::sys::signal::Signal;
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};

use crate::requests::{Clients, REQUEST_MAX};
use crate::stage::{PORT, Running, Web, row, wait_for_destinations};
use crate::{PROGRAM, configuration};

/// A round begins, its attempt takes its time and fails, and so does the other.
const DETECTION_MAX: Duration = Duration::from_millis(500 + 400 + 200 + 400);
/// Two rounds at most.
const RECOVERY_MAX: Duration = Duration::from_millis(2 * 500 + 400);
const CLIENTS: usize = 4;

/// How a server breaks.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// nginx is asked to end.
    Stopped,
    /// nginx stands still; the kernel takes connections for it.
    Hung,
    /// A byte of each answer comes each second.
    Dripping,
    /// Every answer is an error.
    Answers500,
    /// Every packet is answered by a reset.
    Refused,
    /// SYNs are lost on the way.
    SynsLost,
}

impl Way {
    fn break_it(self, stage: &Stage, web: &mut Web) {
        match self {
            Self::Stopped => web.stop(),
            Self::Hung => web.signal(Signal::SIGSTOP),
            Self::Dripping => web.set_dripping(true),
            Self::Answers500 => web.set_broken(true),
            Self::Refused => filter(stage, "reject with tcp reset"),
            Self::SynsLost => filter(stage, "tcp flags & (syn|ack) == syn drop"),
        }
    }

    fn mend_it(self, stage: &Stage, web: &mut Web) {
        match self {
            Self::Stopped => web.run(),
            Self::Hung => web.signal(Signal::SIGCONT),
            Self::Dripping => web.set_dripping(false),
            Self::Answers500 => web.set_broken(false),
            Self::Refused | Self::SynsLost => nft(stage, "delete table inet broken"),
        }
    }

    /// What the log says of why the server is taken out.
    fn reason(self) -> &'static str {
        match self {
            Self::Stopped | Self::Refused => "connection refused",
            Self::Hung | Self::SynsLost => "no answer within 400ms",
            Self::Dripping => "400ms",
            Self::Answers500 => "HTTP status 500",
        }
    }
}

/// Has a rule for all that comes to the first server.
fn filter(stage: &Stage, rule: &str) {
    nft(
        stage,
        &format!(
            "add table inet broken; add chain inet broken in {{ type filter hook input priority 0; }}; \
             add rule inet broken in tcp dport {PORT} {rule}"
        ),
    );
}

fn nft(stage: &Stage, words: &str) {
    run(&stage.lab.real_servers()[0], &tool("nft").unwrap(), &[words]).ok();
}

/// wrk, which asks by new connections for a while.
fn wrk(stage: &Stage, seconds: u32) -> Child {
    let mut command = Command::new(tool("wrk").unwrap());
    command.args(["-t1", "-c2", "--timeout", "1s", "-H", "Connection: close"]);
    command.arg(format!("-d{seconds}s")).arg(format!("http://{}/", VIPS[0].v4));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    inside(stage.lab.client(), &mut command);
    let wrk = command.spawn().unwrap();
    // It tries one connection before its thread begins, and gives up if there is none.
    wait_for("wrk asks", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", wrk.id())).unwrap().count();
        if tasks > 1 { Ok(()) } else { Err(format!("{tasks} threads")) }
    });
    wrk
}

/// Waits for wrk, and returns what it said.
fn said(wrk: Child) -> String {
    let output = wrk.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_no_failure(said: &str) {
    assert!(!said.contains("errors") && !said.contains("Non-2xx"), "{said}");
    let count = said.lines().find_map(|line| line.split_once(" requests in ")).unwrap().0;
    assert!(count.trim().parse::<u64>().unwrap() > 50, "{said}");
}

fn breaks(way: Way) {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let Some(mut first) = Web::start(&stage, 0) else { return };
    let Some(_second) = Web::start(&stage, 1) else { return };
    // MD5 of `healthy` and a line feed.
    let check = "HTTP_GET {\n timeout 0.4\n url {\n path /\n \
                 digest 3b1fb749c971d7a2c6a517b37f735df2\n }\n }";
    let running = Running::start(&stage, &configuration(PORT, check));
    let (one, two) = (row(0, PORT, 1), row(1, PORT, 1));
    let name = format!("[{}]:tcp:{PORT}", REAL_SERVERS[0].inside.v4);
    wait_for_destinations(&stage, &[&one, &two]);
    let vip = SocketAddr::new(VIPS[0].v4.into(), 80);
    let clients = Clients::start(stage.lab.client(), vip, CLIENTS);
    assert_no_failure(&said(wrk(&stage, 1)));

    let load = wrk(&stage, 2);
    let broken = Instant::now();
    way.break_it(&stage, &mut first);
    let words = [&*name, "Removing service", way.reason()];
    running.follows(&stage, broken, DETECTION_MAX, &words, &[&two]);
    let removed = Instant::now();
    eprintln!("wrk meanwhile: {}", said(load));
    assert_no_failure(&said(wrk(&stage, 1)));

    let mended = Instant::now();
    way.mend_it(&stage, &mut first);
    let words = [&*name, "Adding service"];
    running.follows(&stage, mended, RECOVERY_MAX, &words, &[&one, &two]);
    assert_no_failure(&said(wrk(&stage, 1)));
    let since = Instant::now();
    wait_for("a last request", || {
        if since.elapsed() > REQUEST_MAX { Ok(()) } else { Err("not yet".to_owned()) }
    });

    let requests = clients.end();
    let failed: Vec<_> = requests.iter().filter(|request| request.failure.is_some()).collect();
    let during = requests.iter().filter(|one| one.ended >= broken && one.begun <= removed).count();
    eprintln!(
        "{way:?}: {} of {} requests failed, {during} were under way in the {:?} until the table \
         followed",
        failed.len(),
        requests.len(),
        removed - broken
    );
    for request in &failed {
        let in_time = request.ended >= broken && request.begun <= removed;
        let after = request.begun.saturating_duration_since(broken);
        assert!(in_time, "{after:?} after the server broke: {request:?}");
    }
    // Every other connection goes to the other server; with wrk's in between these are not just half.
    assert!(failed.len() <= during * 3 / 4 + CLIENTS, "{} of {during}", failed.len());
    assert!(!failed.is_empty(), "nothing was broken");
}

#[test]
fn no_request_fails_behind_a_stopped_server() {
    breaks(Way::Stopped);
}

#[test]
fn no_request_fails_behind_a_hung_server() {
    breaks(Way::Hung);
}

#[test]
fn no_request_fails_behind_a_dripping_server() {
    breaks(Way::Dripping);
}

#[test]
fn no_request_fails_behind_a_server_that_answers_500() {
    breaks(Way::Answers500);
}

#[test]
fn no_request_fails_behind_a_server_that_refuses() {
    breaks(Way::Refused);
}

#[test]
fn no_request_fails_behind_a_server_whose_syns_are_lost() {
    breaks(Way::SynsLost);
}
