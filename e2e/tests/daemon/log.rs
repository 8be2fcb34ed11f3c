//! The log: lines for programs, and a syslog that does not read.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::lab::{TIME_MAX, inside, wait_for, wait_until};
use nix::sys::signal::Signal;
use rlvs::keepalived::daemon::state;
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{First, Web1};
use rlvs_linux::process::{Guard, Handle};
use serde_json::Value;

use crate::site::{Daemon, PROGRAM, Site};

/// More than a socket that nobody reads holds.
const LINES: usize = 2000;

#[test]
fn programs_read_what_happened_to_what_and_why() {
    let site = Site::new();
    let _first = site.web(Web1);
    let text = HOW_TO.replace("delay_loop 6", "delay_loop 0.2");
    let daemon = Daemon::start_more(&site, First, &text, &["--log-format", "json"]);
    daemon.wait_said("\"server_down\"", 1);
    daemon.wait_said("to MASTER", 1);
    // What the table's thread says of attaching anew is a line as all others.
    site.output(First, &["detach"]).unwrap();
    daemon.wait_said("the table was changed by somebody else", 1);
    let said = daemon.said();
    assert_eq!(said.matches("\"rlvs: eth0 attached: TC\"").count(), 2, "{said}");
    let lines: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(
        lines
            .iter()
            .all(|line| { ["time", "level", "message"].iter().all(|key| line[key].is_string()) })
    );
    let of = |event: &str, text: &str| {
        let mut found = lines.iter().filter(|line| line["event"] == event);
        found.find(|line| line["message"].as_str().unwrap().contains(text)).expect(&said)
    };
    let down = of("server_down", "");
    assert_eq!(down["service"], "[192.168.1.200]:tcp:80");
    assert_eq!(down["server"], "[192.168.1.102]:tcp:80");
    assert_eq!(
        (&down["level"], &down["consequence"]),
        (&"warning".into(), &"Removing service".into())
    );
    assert!(down["cause"].as_str().unwrap().contains("refused"), "{down}");
    let master = of("transition", "to MASTER");
    assert_eq!(master["router"], "VI_1");
    assert_eq!(master["cause"], "BACKUP to MASTER: no advertisement for too long");
    assert_eq!(master["consequence"], "it takes 192.168.1.200");
}

/// Starts the daemon where `/dev/log` is this socket.
fn start(site: &Site, socket: &Path, file: &Path) -> Guard {
    let dev = site.directory().join("dev");
    fs::create_dir(&dev).unwrap();
    let (dev, socket) = (dev.display(), socket.display());
    let script = format!(
        "set -e; mount -t tmpfs none {dev}; ln -s {socket} {dev}/log; \
         for node in null urandom; do touch {dev}/$node; mount --bind /dev/$node {dev}/$node; done; \
         mount --rbind {dev} /dev; exec {PROGRAM} keepalived -n -D -f {} -p {}/pid",
        file.display(),
        site.directory().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.stdin(Stdio::null());
    inside(site.host(First), &mut command);
    Guard::new(command.spawn().unwrap())
}

fn receive(socket: &UnixDatagram) -> Option<String> {
    let mut bytes = [0; 4096];
    let length = socket.recv(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[test]
fn a_syslog_that_does_not_read_holds_up_nothing() {
    let site = Site::new();
    let (path, file) = (site.directory().join("log"), site.directory().join("a.conf"));
    let socket = UnixDatagram::bind(&path).unwrap();
    let (router, _) = HOW_TO.split_once("virtual_server").unwrap();
    let unknown: String = (0..LINES).map(|number| format!("unknown_{number} 1\n")).collect();
    fs::write(&file, format!("{router}{unknown}")).unwrap();
    let mut daemon = start(&site, &path, &file);
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    let ask = || site.host(First).run(state::ask).unwrap().ok_or("nobody answers".to_owned());
    let before = wait_for("lines that are lost", || {
        let state = ask()?;
        if state.log.lost > 0 { Ok(state) } else { Err(format!("{:?}", state.log)) }
    });
    wait_for("advertisements that go on", || {
        let sent = ask()?.instances[0].counters.sent;
        if sent > before.instances[0].counters.sent { Ok(()) } else { Err(sent.to_string()) }
    });

    // It reads again, and is told what it has missed.
    fs::write(&file, "").unwrap();
    let handle = Handle::open(daemon.pid().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    handle.signal(Signal::SIGHUP).unwrap();
    wait_for("a line about what is lost", || match receive(&socket) {
        Some(line) if line.contains("lines were lost") => Ok(()),
        Some(line) => Err(line),
        None => {
            handle.signal(Signal::SIGHUP).unwrap();
            Err("nothing".to_owned())
        }
    });

    // It is started anew: lines come to the new one.
    drop(socket);
    fs::remove_file(&path).unwrap();
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIME_MAX)).unwrap();
    handle.signal(Signal::SIGHUP).unwrap();
    let line = receive(&socket).expect("a line");
    assert!(line.starts_with("<27>Keepalived[") || line.starts_with("<28>Keepalived["), "{line}");

    // Nobody reads at the end.
    fs::write(&file, format!("{router}{unknown}")).unwrap();
    handle.signal(Signal::SIGHUP).unwrap();
    wait_for("a refused reload", || match ask()?.configuration.refused {
        Some(why) if why.contains("error(s)") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    handle.signal(Signal::SIGTERM).unwrap();
    let status = daemon.wait_for(TIME_MAX).unwrap().expect("an end");
    assert_eq!(status.code(), Some(0));
    assert!(!site.vip_is_at(First));
}
