//! Checks of real servers that are broken in every way: the table follows in the time that the
//! configuration allows.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod kinds;
mod load;
mod requests;
mod stage;

use std::time::{Duration, Instant};

use e2e::lab::{Stage, run, tool};
use nix::sys::signal::Signal;
use rlvs::lab::topology::{INSIDE_INTERFACE, REAL_SERVERS, VIPS, Wiring};

use stage::{PORT, Running, TLS_PORT, Web, row, wait_for_destinations};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
/// Of the configurations below: a round begins, its attempt fails, and so does the other.
const REFUSED_MAX: Duration = Duration::from_millis(500 + 200);
/// The same, each attempt waiting for its time.
const SILENT_MAX: Duration = Duration::from_millis(500 + 2 * 400 + 200);
/// Two rounds at most.
const RECOVERY_MAX: Duration = Duration::from_millis(2 * 500 + 400);

/// A service with both real servers, each with this check.
fn configuration(port: u16, check: &str) -> String {
    let servers = REAL_SERVERS.map(|server| {
        format!("real_server {} {port} {{\n weight 1\n {check}\n}}\n", server.inside.v4)
    });
    format!(
        "virtual_server {} 80 {{
           delay_loop 0.5
           lb_algo rr
           lb_kind NAT
           protocol TCP
           retry 1
           delay_before_retry 0.2
           connect_timeout 0.4
           {}
         }}",
        VIPS[0].v4,
        servers.concat()
    )
}

/// Breaks and mends the first server in every way.
fn follows(port: u16, check: &str, serves_content: bool) {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let Some(mut first) = Web::start(&stage, 0) else { return };
    let Some(_second) = Web::start(&stage, 1) else { return };
    let running = Running::start(&stage, &configuration(port, check));
    let (one, two) = (row(0, port, 1), row(1, port, 1));
    let name = format!("[{}]:tcp:{port}", REAL_SERVERS[0].inside.v4);
    wait_for_destinations(&stage, &[&one, &two]);
    let falls = |since, most, why| {
        running.follows(&stage, since, most, &[&name, "Removing service", why], &[&two]);
    };
    let rises = |since| {
        let words = [&*name, "Adding service"];
        running.follows(&stage, since, RECOVERY_MAX, &words, &[&one, &two]);
    };

    let now = Instant::now();
    first.end();
    falls(now, REFUSED_MAX, "connection refused");
    first.run();
    rises(Instant::now());

    let servers = stage.lab.real_servers();
    let ip = tool("ip").unwrap();
    // What is sent to it is lost: the director has its MAC address.
    let link = |state| {
        run(&servers[0], &ip, &["link", "set", INSIDE_INTERFACE, state]).ok();
        Instant::now()
    };
    falls(link("down"), SILENT_MAX, "no answer within 400ms");
    rises(link("up"));
    if !serves_content {
        return;
    }
    first.set_broken(true);
    falls(Instant::now(), REFUSED_MAX, "HTTP status 500");
    first.set_broken(false);
    rises(Instant::now());

    first.signal(Signal::SIGSTOP);
    falls(Instant::now(), SILENT_MAX, "no answer within 400ms");
    first.signal(Signal::SIGCONT);
    rises(Instant::now());
}

#[test]
fn a_tcp_check_follows_a_server() {
    follows(PORT, "TCP_CHECK {\n }", false);
}

#[test]
fn an_http_check_follows_a_server() {
    // MD5 of `healthy` and a line feed.
    let check = "HTTP_GET {\n url {\n path /\n digest DIGEST\n }\n }";
    follows(PORT, &check.replace("DIGEST", "3b1fb749c971d7a2c6a517b37f735df2"), true);
}

#[test]
fn an_https_check_follows_a_server() {
    follows(TLS_PORT, "SSL_GET {\n url {\n path /\n status_code 200\n }\n }", true);
}

/// Sorry server, quorum, hand edits, reload, stop: one service, the first server broken and mended.
#[test]
fn the_table_is_kept_as_the_configuration_says() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let Some(mut first) = Web::start(&stage, 0) else { return };
    let text = |weight: u32, more: &str| {
        format!(
            "virtual_server {} 80 {{
               delay_loop 0.5
               lb_algo wrr
               lb_kind NAT
               protocol TCP
               sorry_server {} {PORT}
               {more}
               real_server {} {PORT} {{
                 weight {weight}
                 TCP_CHECK {{
                   retry 1
                   delay_before_retry 0.2
                   connect_timeout 0.4
                 }}
               }}
             }}",
            VIPS[0].v4, REAL_SERVERS[1].inside.v4, REAL_SERVERS[0].inside.v4
        )
    };
    let mut running = Running::start(&stage, &text(3, ""));
    let (one, sorry) = (row(0, PORT, 3), row(1, PORT, 1));
    wait_for_destinations(&stage, &[&one]);

    let now = Instant::now();
    first.end();
    running.follows(&stage, now, REFUSED_MAX, &["Lost quorum", "Adding sorry"], &[&sorry]);
    running.reload(&text(4, ""));
    first.run();
    let words = ["Gained quorum", "Removing sorry"];
    running.follows(&stage, Instant::now(), RECOVERY_MAX, &words, &[&row(0, PORT, 4)]);

    stage.ipvsadm(&format!("-d -t {}:80 -r {}:{PORT}", VIPS[0].v4, REAL_SERVERS[0].inside.v4)).ok();
    stage.ipvsadm(&format!("-a -t {}:80 -r 10.0.1.77:1 -m", VIPS[0].v4)).ok();
    stage.ipvsadm("-A -t 192.168.1.250:99 -s rr").ok();
    running.wait_for_event(&["by somebody else", "remove 10.0.1.77:1"]);
    wait_for_destinations(&stage, &[&row(0, PORT, 4)]);

    running.reload(&text(5, "inhibit_on_failure"));
    wait_for_destinations(&stage, &[&row(0, PORT, 5)]);
    first.end();
    wait_for_destinations(&stage, &[&row(0, PORT, 0), &sorry]);
    running.stop();
    assert_eq!(stage.ipvsadm("-S -n").ok(), "-A -t 192.168.1.250:99 -s rr\n");
}
