//! Files that change while the daemon runs: what vanishes, what stays, what it costs in memory.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::lab::{wait_for, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};
use rlvs::keepalived::daemon::state::{self, RouterState, State};
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{First, Second, Web1};
use rlvs_linux::process::{Guard, die_with_parent};

use crate::site::{Daemon, PROGRAM, Site};
use crate::{ONE, router, when};

/// How the daemon of the first director is.
fn ask(site: &Site) -> State {
    site.host(First).run(state::ask).unwrap().unwrap()
}

#[test]
fn an_interface_that_vanishes_disturbs_nobody() {
    let site = Site::new();
    let appear = || {
        site.ip(First, "link add spare type veth peer name other");
        site.ip(First, "addr add 10.7.7.1/24 dev spare");
        site.ip(First, "link set spare up");
        site.ip(First, "link set other up");
    };
    appear();
    let second = "vrrp_instance VI_2 {\n interface spare\n virtual_router_id 52\n priority 255\n \
                  virtual_ipaddress {\n 10.7.7.7/24\n }\n}\n";
    let daemon = Daemon::start(&site, First, &format!("{}{second}", router(200)));
    daemon.wait_said("to MASTER", 2);
    site.ip(First, "link del spare");
    daemon.wait_said("VI_2: MASTER to FAULT", 1);
    let sent = || ask(&site).instances[0].counters.sent;

    // Its own instance waits for it; the other is as it was, also over a reload of what is not there.
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 1);
    let before = sent();
    wait_for("advertisements that go on", || when(sent() > before));
    assert!(site.vip_is_at(First));
    let said = daemon.said();
    assert_eq!(said.matches("VI_1: ").count(), 2, "{said}");
    assert_eq!(said.matches("spare").count(), 1, "it is said, and once: {said}");

    // And it is taken up again when it is back.
    appear();
    daemon.wait_said("VI_2: FAULT to ", 1);
    assert_eq!(daemon.said().matches("VI_1: ").count(), 2);
}

#[test]
fn an_included_file_that_is_gone_changes_nothing() {
    let site = Site::new();
    let _first = site.web(Web1);
    let (alone, services) = HOW_TO.split_at(HOW_TO.find("virtual_server").unwrap());
    let included = site.directory().join("services.conf");
    fs::write(&included, services).unwrap();
    // The second has never been there, and is missed by nobody.
    let text = format!("{alone}\ninclude services.conf\ninclude more.conf\n");
    let daemon = Daemon::start(&site, First, &text);
    let table = || site.table(First).len();
    wait_until("the table", &true, || table() > 0);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 1);
    let aside = site.directory().join("aside");
    fs::rename(&included, &aside).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said("services.conf, which it includes, cannot be read any more", 1);
    assert!(table() > 0, "{}", daemon.said());
    fs::rename(&aside, &included).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 2);
    // Who takes the line away means it.
    fs::write(&daemon.file, alone).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 3);
    wait_until("an empty table", &0, table);
}

#[test]
fn what_is_the_same_goes_on_over_a_reload() {
    let site = Site::new();
    let _first = site.web(Web1);
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3");
    let daemon = Daemon::start(&site, First, &quick);
    let alone = vec![(ONE.to_owned(), 3)];
    wait_until("only one server", &alone, || site.table(First));
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    wait_for("checks of the good one", || {
        let state = ask(&site);
        let good = &state.services[0].servers[0];
        // Counters are of the moment, the state is what the main thread has heard of.
        when(good.checks[0].attempts >= 3 && state.instances[0].state == RouterState::Master)
    });
    let before = ask(&site);
    for number in 1..=3 {
        // Another weight of the one that has failed changes nothing for anybody else.
        let text = quick.replace("weight 2", &format!("weight {}", 10 + number));
        fs::write(&daemon.file, text).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.wait_said(" reloaded: ", number);
        assert_eq!(site.table(First), alone, "a failed server stays out");
    }
    let after = ask(&site);
    // The host's clock may be read some milliseconds apart.
    let seconds = |unix_ms: u64| (unix_ms + 500) / 1000;
    let history = |state: &State| {
        let servers = state.services[0].servers.iter();
        servers.map(|it| (it.up, seconds(it.since_unix_ms), it.downs)).collect::<Vec<_>>()
    };
    assert_eq!(history(&after), history(&before));
    let instance = |state: &State| {
        let one = &state.instances[0];
        (one.state, seconds(one.since_unix_ms), one.counters.became_master)
    };
    assert_eq!(instance(&after), instance(&before));
    let (was, is) = (&before.instances[0].counters, &after.instances[0].counters);
    assert!(is.sent >= was.sent, "{} after {}", is.sent, was.sent);
    let attempts = |state: &State| state.services[0].servers[0].checks[0].attempts;
    assert!(attempts(&after) >= attempts(&before), "it was not begun anew");
    assert_eq!(site.ask().unwrap(), "Server 1");
}

#[test]
fn a_file_names_the_network_namespace() {
    let site = Site::new();
    let (file, pid) = (site.directory().join("a.conf"), site.directory().join("a.pid"));
    let name = site.host(First).name();
    let text = format!("{}net_namespace {name}\n", router(255));
    fs::write(&file, &text).unwrap();
    let log = site.directory().join("a.log");
    let to = fs::File::create(&log).unwrap();
    // From outside of it.
    let mut command = Command::new(PROGRAM);
    command.args(["keepalived", "-n", "-l", "-D", "-f"]).arg(&file).arg("-p").arg(&pid);
    command.stdin(Stdio::null()).stdout(to.try_clone().unwrap()).stderr(to);
    die_with_parent(&mut command, Signal::SIGKILL);
    let guard = Guard::new(command.spawn().unwrap());
    let mut daemon = Daemon::of(guard, log, file, pid);
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    fs::write(&daemon.file, text.replace(name, site.host(Second).name())).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said("another net_namespace, which only a restart enters", 1);
    assert!(site.vip_is_at(First) && !site.vip_is_at(Second));
    fs::write(&daemon.file, &text).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!site.vip_is_at(First));
}

/// Real servers of the test of memory.
const SERVERS: u32 = 4000;
/// What one may take after reloads, on a machine that may be busy: `cargo xtask burden` measures, this finds
/// what each reload leaves behind.
const BYTES_MAX: u64 = 1280;
const RELOADS: u32 = 9;

fn many(servers: u32, weight: u32) -> String {
    let mut text = String::new();
    for number in 0..servers {
        let (high, low) = (number / 250, number % 250);
        if number % 100 == 0 {
            let close = if number == 0 { "" } else { "}\n" };
            let last = number / 100;
            writeln!(
                text,
                "{close}virtual_server 10.8.0.{last} 80 {{\n delay_loop 2\n lb_algo wrr\n lb_kind NAT\n \
                 protocol TCP"
            )
            .unwrap();
        }
        writeln!(
            text,
            "real_server 10.64.{high}.{low} 80 {{\n weight {weight}\n TCP_CHECK {{\n connect_timeout 3\n \
             }}\n }}"
        )
        .unwrap();
    }
    text + "}\n"
}

/// Returns the memory that is a process' own, in bytes.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Returns the least that it is while what was in use for a configuration is given back: two seconds
/// after it is in force, and when the table is looked at.
fn least_memory(pid: u32) -> u64 {
    let end = Instant::now() + Duration::from_secs(6);
    let mut least = u64::MAX;
    wait_for("memory to be given back", || {
        least = least.min(memory(pid));
        when(Instant::now() > end)
    });
    least
}

#[test]
fn a_real_server_takes_little_memory_after_reloads_too() {
    let site = Site::new();
    site.ip(Web1, "route add local 10.64.0.0/16 dev lo");
    site.ip(First, "route add 10.64.0.0/16 via 192.168.1.101");
    let listener = site.host(Web1).run(|| TcpListener::bind("0.0.0.0:80")).unwrap().unwrap();
    listen(&listener, Backlog::new(4096).unwrap()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let daemon = Daemon::start(&site, First, &many(1, 1));
    daemon.wait_said("change(s) of the table in force", 1);
    let base = least_memory(daemon.process());
    for weight in 1..=RELOADS {
        // Not as many each time: lines of the log that say the same are held back after a few.
        fs::write(&daemon.file, many(SERVERS - weight, weight)).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.wait_said("change(s) of the table in force", weight as usize + 1);
    }
    let each = (least_memory(daemon.process()) - base) / u64::from(SERVERS);
    eprintln!("the memory of a real server: {each} bytes");
    // Less would mean that nothing was measured.
    assert!((400..BYTES_MAX).contains(&each), "{each} bytes");
}
