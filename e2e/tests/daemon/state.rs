//! How the daemon is, for whoever asks.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, io::Read};

use e2e::lab::{run, wait_for, wait_until};
use e2e::schema;
use nix::sys::signal::Signal;
use rlvs::keepalived::daemon::state::{self, AttemptResult, RouterState, Server, State, Target};
use rlvs::lab::site::Host::{First, Second, Web1};
use rlvs::lab::site::{HOW_TO, VIP};

use crate::site::{Daemon, PROGRAM, Site};

/// The how-to's file with quick rounds, and a script.
fn quick() -> String {
    let script = "vrrp_script chk {\n script /bin/true\n interval 0.1\n rise 1\n}\n\
        vrrp_sync_group G {\n group {\n VI_1\n }\n}\n";
    let tracked = "advert_int 1\n track_script {\n chk\n }";
    format!("{script}{}", HOW_TO.replace("delay_loop 6", "delay_loop 0.2"))
        .replace("advert_int 1", tracked)
}

fn ask(site: &Site) -> Option<State> {
    site.host(First).run(state::ask).unwrap()
}

/// Asks until the answer is as wanted.
fn wait_state(site: &Site, what: &str, is_so: impl Fn(&State) -> bool) -> State {
    wait_for(what, || match ask(site) {
        Some(state) if is_so(&state) => Ok(state),
        other => Err(format!("{other:#?}")),
    })
}

fn server(state: &State, number: usize) -> &Server {
    &state.services[0].servers[number]
}

fn socket(site: &Site) -> PathBuf {
    let cookie = site.host(First).cookie().unwrap();
    PathBuf::from(format!("/run/rlvs/keepalived-{cookie}.sock"))
}

#[test]
fn whoever_asks_learns_how_it_is() {
    let site = Site::new();
    let _first = site.web(Web1);
    let mut daemon = Daemon::start(&site, First, &quick());
    let state = wait_state(&site, "a master and a server that is down", |state| {
        let is_master = state.instances[0].state == RouterState::Master
            && state.groups[0].state == RouterState::Master;
        let has_looked = |server: &Server| server.checks[0].attempts > 2;
        let servers = &state.services[0].servers;
        let has_run = state.scripts[0].good == Some(true);
        is_master && has_run && !servers[1].up && servers.iter().all(has_looked)
    });
    assert_eq!(state.configuration.file, daemon.file.display().to_string());
    assert_eq!((state.backend.as_str(), state.refused.len()), ("rlvs", 0));
    let instance = &state.instances[0];
    assert_eq!((&*instance.name, &*instance.interface, instance.vrid), ("VI_1", "eth0", 51));
    assert_eq!((instance.priority, instance.master, instance.version), (100, None, 2));
    assert_eq!(instance.why, "no advertisement for too long");
    assert!(state.started_unix_ms <= instance.since_unix_ms);
    assert_eq!(instance.addresses[0].address, VIP);
    assert_eq!((instance.counters.became_master, instance.counters.transitions), (1, 2));
    assert_eq!((&*state.groups[0].name, state.groups[0].state), ("G", RouterState::Master));
    assert_eq!(state.events["server_down"], 1);

    let service = &state.services[0];
    let target = Target::Address { protocol: "tcp".to_owned(), address: VIP, port: 80 };
    assert_eq!(service.targets, [target]);
    assert!(service.quorum.held && service.quorum.weight == 3, "{:?}", service.quorum);
    let (good, bad) = (&server(&state, 0).checks[0], &server(&state, 1).checks[0]);
    assert!(server(&state, 0).up && good.up && good.failures == 0);
    assert_eq!(good.last.as_ref().unwrap().result, AttemptResult::Good);
    assert_eq!((bad.kind.as_str(), bad.rounds, bad.rounds_needed), ("HTTP_GET", 0, 2));
    assert_eq!((bad.up, bad.attempts, server(&state, 1).downs), (false, bad.failures, 1));
    let seen = bad.last.as_ref().unwrap().why.clone();
    assert!(seen.is_some() && server(&state, 1).why == seen, "{bad:?}");

    // The end of one that was good moves nothing else.
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!socket(&site).exists() && ask(&site).is_none());
}

#[test]
fn virtual_routers_are_shown_where_nothing_is_balanced() {
    let site = Site::new();
    let (router, _) = HOW_TO.split_once("virtual_server").unwrap();
    let _daemon = Daemon::start(&site, First, router);
    wait_state(&site, "a master", |state| state.instances[0].state == RouterState::Master);
    let rlvs = |words: &[&str]| run(site.host(First), Path::new(PROGRAM), words);
    let said = rlvs(&["status"]);
    assert_eq!(said.status, Some(1), "{said:?}");
    for text in [
        "not attached: ",
        "keepalived    process ",
        "vrrp          VI_1 on eth0: MASTER, priority 100",
    ] {
        assert!(said.output.contains(text), "{said:?}");
    }
    let said = rlvs(&["status", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&said.output).unwrap();
    schema::check("status", &value);
    assert_eq!(value["daemon"]["instances"][0]["state"], "master", "{value}");
    // Nothing is missing: no virtual server is asked for.
    let said = rlvs(&["doctor"]);
    assert!(!said.output.contains("no interface balances"), "{said:?}");
}

#[test]
fn a_server_that_nobody_asks_is_not_shown_as_up() {
    let site = Site::new();
    let text = format!(
        "virtual_server {VIP} 80 {{\n lb_kind NAT\n protocol TCP\n real_server 192.168.1.102 80 {{\n }}\n}}\n"
    );
    let daemon = Daemon::start(&site, First, &text);
    daemon.wait_said("starts with its quorum", 1);
    let server = wait_for("the server", || {
        let said = run(site.host(First), Path::new(PROGRAM), &["status", "--json"]);
        let value: serde_json::Value = serde_json::from_str(&said.output).unwrap();
        let server = &value["services"][0]["destinations"][0];
        if server.is_null() { Err(said.output) } else { Ok(server.clone()) }
    });
    assert_eq!(server["health"], "unchecked", "{server}");
    let said = run(site.host(First), Path::new(PROGRAM), &["status"]).ok();
    let line = said.lines().find(|line| line.contains("192.168.1.102:80")).unwrap();
    assert!(!line.ends_with(", up"), "{said}");
}

#[test]
fn who_does_not_read_holds_nobody_up() {
    let site = Site::new();
    let mut daemon = Daemon::start(&site, First, &quick());
    let before = wait_state(&site, "an answer", |_| true);
    let meta = fs::metadata(socket(&site)).unwrap();
    assert!(meta.file_type().is_socket() && meta.mode() & 0o777 == 0o600, "{meta:?}");
    let idle: Vec<UnixStream> =
        (0..40).map(|_| UnixStream::connect(socket(&site)).unwrap()).collect();
    wait_state(&site, "advertisements that go on", |state| {
        state.instances[0].counters.sent > before.instances[0].counters.sent + 1
    });
    let mut text = String::new();
    (&idle[0]).read_to_string(&mut text).unwrap();
    assert!(text.ends_with("}\n") && text.contains("VI_1"), "{text}");

    // One that was killed leaves its socket to whoever of all namespaces starts next.
    daemon.end(Signal::SIGKILL);
    assert!(ask(&site).is_none());
    let second = Daemon::start(&site, Second, &quick());
    second.wait_said("INIT to BACKUP", 1);
    wait_until("nothing of who was killed", &false, || socket(&site).exists());
    let _again = Daemon::start(&site, First, &quick());
    let state = wait_state(&site, "the next one", |_| true);
    assert_ne!(state.pid, before.pid);
}
