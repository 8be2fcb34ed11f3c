//! `keepalived` as it is started: the how-to's file, directors that end and that are killed, files
//! that change, scripts.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod crash;
mod drain;
mod log;
mod mails;
mod metrics;
mod reload;
mod rights;
mod routing;
mod site;
mod state;
mod succession;
mod synchronisation;
mod tracks;
mod words;
mod zabbix;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use e2e::lab::{Stop, inside, wait_for, wait_until};
use nix::sys::signal::Signal;

use rlvs::keepalived::daemon::state::ask;
use rlvs::lab::site::Host::{First, Second, Web1, Web2};
use rlvs::lab::site::{HOW_TO, VIP};
use rlvs_linux::process::{Guard, Handle};

use site::{Daemon, PROGRAM, Site};

/// Of the how-to's check: a round begins, its attempt fails in its time, and so does the next.
const OUT_MAX: Duration = Duration::from_secs(2 * (6 + 3));
/// Two good rounds.
const BACK_MAX: Duration = Duration::from_secs(2 * (6 + 3));
/// How much later than due something may be seen on a busy machine.
const LATE: Duration = Duration::from_secs(1);
const ONE: &str = "192.168.1.101:80";
const TWO: &str = "192.168.1.102:80";

/// The how-to's virtual router alone.
fn router(priority: u8) -> String {
    let (router, _) = HOW_TO.split_once("virtual_server").unwrap();
    router.replace("priority 100", &format!("priority {priority}"))
}

fn both() -> Vec<(String, u32)> {
    vec![(ONE.to_owned(), 3), (TWO.to_owned(), 2)]
}

#[track_caller]
fn within<T>(most: Duration, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    let found = wait_for(what, look);
    let took = begun.elapsed();
    assert!(took <= most + LATE, "{what} took {took:?}, {most:?} is allowed");
    found
}

fn when(is_so: bool) -> Result<(), String> {
    if is_so { Ok(()) } else { Err("not yet".to_owned()) }
}

#[test]
fn the_how_to_runs_as_it_stands() {
    let site = Site::new();
    let _first = site.web(Web1);
    let second = site.web(Web2);
    let mut daemon = Daemon::start(&site, First, HOW_TO);
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    daemon.wait_said("eth0 attached", 1);
    wait_until("both servers", &both(), || site.table(First));
    site.wait_answer();
    let counts = site.ask_often(50);
    let expected = BTreeMap::from([("Server 1".to_owned(), 30), ("Server 2".to_owned(), 20)]);
    assert_eq!(counts, expected);

    drop(second);
    let alone = vec![(ONE.to_owned(), 3)];
    within(OUT_MAX, "a stopped server is taken out", || when(site.table(First) == alone));
    assert_eq!(site.ask_often(20), BTreeMap::from([("Server 1".to_owned(), 20)]));
    let said = daemon.said();
    assert!(said.contains("[192.168.1.102]:tcp:80 of VS [192.168.1.200]:tcp:80"), "{said}");

    let _second = site.web(Web2);
    within(BACK_MAX, "a server comes back", || when(site.table(First) == both()));
    assert_eq!(site.ask_often(50), expected);

    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!site.vip_is_at(First));
    assert_eq!(site.table(First), []);
}

#[test]
fn a_server_that_was_out_stays_out_over_a_crash() {
    let site = Site::new();
    let _first = site.web(Web1);
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3");
    let mut daemon = Daemon::start(&site, First, &quick);
    let alone = vec![(ONE.to_owned(), 3)];
    wait_until("only one server", &alone, || site.table(First));
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    daemon.end(Signal::SIGKILL);
    assert_eq!(site.table(First), alone, "the table needs no process");
    site.wait_answer();
    let daemon = Daemon::start(&site, First, &quick);
    daemon.wait_said("INIT to MASTER", 1);
    for _ in 0..50 {
        assert_eq!(site.ask().unwrap(), "Server 1");
        assert_eq!(site.table(First), alone);
    }
    assert!(site.vip_is_at(First));
    assert!(!daemon.said().contains("Adding service"), "{}", daemon.said());
}

#[test]
fn a_master_that_ends_hands_over() {
    let site = Site::new();
    let mut master = Daemon::start(&site, First, &router(200));
    let backup = Daemon::start(&site, Second, &router(100));
    wait_until("the master", &true, || site.vip_is_at(First));
    assert!(!site.vip_is_at(Second));
    let end = Instant::now();
    assert_eq!(master.end(Signal::SIGTERM), Some(0));
    // Its end waits for nothing; the real one takes a second.
    assert!(end.elapsed() < Duration::from_millis(700), "{:?}", end.elapsed());
    assert!(!site.vip_is_at(First));
    // 156/256 s.
    let skew = Duration::from_millis(610);
    within(skew, "the backup takes over", || when(site.vip_is_at(Second)));
    assert!(backup.said().contains("192.168.1.100 resigns"), "{}", backup.said());
    let state = site.host(Second).run(ask).unwrap().unwrap();
    let counters = &state.instances[0].counters;
    assert_eq!(counters.resignations_received, 1, "priority 0 exactly once");
    assert!(!master.pid_file.exists());
}

#[test]
fn a_master_that_is_killed_is_replaced_and_comes_back() {
    let site = Site::new();
    let mut master = Daemon::start(&site, First, &router(200));
    let backup = Daemon::start(&site, Second, &router(100));
    wait_until("the master", &true, || site.vip_is_at(First));
    master.end(Signal::SIGKILL);
    assert!(site.vip_is_at(First), "nobody is there to remove it");
    let master_down = Duration::from_millis(3610);
    within(master_down, "the backup takes over", || when(site.vip_is_at(Second)));
    let _master = Daemon::start(&site, First, &router(200));
    // It hears that another is master, lets go, and takes over in order.
    wait_until("it lets go", &false, || site.vip_is_at(First));
    backup.wait_said("MASTER to BACKUP", 1);
    wait_until("one has it", &(true, false), || (site.vip_is_at(First), site.vip_is_at(Second)));
}

#[test]
fn a_master_that_is_restarted_at_once_stays_master() {
    let site = Site::new();
    let mut master = Daemon::start(&site, First, &router(200));
    let backup = Daemon::start(&site, Second, &router(100));
    wait_until("the master", &true, || site.vip_is_at(First));
    master.end(Signal::SIGKILL);
    let again = Daemon::start(&site, First, &router(200));
    again.wait_said("INIT to MASTER: going on where an earlier process was cut off", 1);
    assert!(site.vip_is_at(First));
    // It speaks: the other would have taken over by now.
    let silence = Instant::now() + Duration::from_secs(5);
    wait_for("the time of a master to pass", || {
        assert!(site.vip_is_at(First) && !site.vip_is_at(Second));
        when(Instant::now() > silence)
    });
    assert!(!backup.said().contains("to MASTER"), "{}", backup.said());
}

#[test]
fn a_director_that_is_killed_and_restarted_under_load_changes_nothing() {
    let site = Site::new();
    let _servers = [site.web(Web1), site.web(Web2)];
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3");
    let first = quick.replace("priority 100", "priority 200");
    let mut master = Daemon::start(&site, First, &first);
    let backup = Daemon::start(&site, Second, &quick);
    wait_until("the master", &(true, both()), || (site.vip_is_at(First), site.table(First)));
    site.wait_answer();
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let client = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = answers.load(Ordering::Relaxed);
                site.ask().unwrap_or_else(|error| panic!("request {number}: {error:#}"));
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..5 {
            master.end(Signal::SIGKILL);
            master = Daemon::start(&site, First, &first);
            master.wait_said("INIT to MASTER: going on where an earlier process was cut off", 1);
            let seen = answers.load(Ordering::Relaxed);
            wait_for("answers, and checks", || {
                let more = answers.load(Ordering::Relaxed) > seen + 20;
                assert_eq!(site.table(First), both(), "{}", master.said());
                assert!(site.vip_is_at(First) && !site.vip_is_at(Second));
                let state = site.host(First).run(ask).unwrap();
                let servers =
                    state.into_iter().flat_map(|it| it.services).flat_map(|it| it.servers);
                let checked = servers.filter(|server| server.checks[0].attempts > 0).count() == 2;
                when((more && checked) || client.is_finished())
            });
            for word in ["Removing service", "Adding service", "to BACKUP", "changes by others"] {
                assert!(!master.said().contains(word), "{word}: {}", master.said());
            }
        }
        drop(stopping);
        client.join().unwrap();
    });
    assert!(!backup.said().contains("to MASTER"), "{}", backup.said());
}

#[test]
fn a_reload_changes_what_differs_and_an_error_nothing() {
    let site = Site::new();
    let _servers = [site.web(Web1), site.web(Web2)];
    let whole = HOW_TO;
    let (before, second) = whole.split_at(whole.find("    real_server 192.168.1.102").unwrap());
    let daemon = Daemon::start(&site, First, &format!("{before}}}\n"));
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    site.wait_answer();
    let alone = vec![(ONE.to_owned(), 3)];
    assert_eq!(site.table(First), alone);

    let remove = || fs::remove_file(&daemon.file).unwrap();
    let wrong = [format!("{whole}vrrp_instance VI_2 {{\n prioritty 3\n}}\n"), String::new()];
    for (number, text) in wrong.iter().enumerate() {
        fs::write(&daemon.file, text).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.wait_said("not reloaded", number + 1);
        assert_eq!(site.table(First), alone);
    }
    remove();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said("not reloaded", wrong.len() + 1);
    assert_eq!(site.table(First), alone);
    assert!(daemon.said().contains("prioritty"), "{}", daemon.said());

    let counted = site.output(First, &["ipvsadm", "-L", "-n", "--stats"]).unwrap();
    fs::write(&daemon.file, format!("{before}{second}")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 1);
    wait_until("both servers", &both(), || site.table(First));
    let row = |listing: &str| {
        let row = listing.lines().find(|line| line.contains(ONE)).unwrap().to_owned();
        row.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let now = site.output(First, &["ipvsadm", "-L", "-n", "--stats"]).unwrap();
    assert_eq!(row(&now), row(&counted), "the first server is as it was");
    assert!(site.vip_is_at(First));
    let said = daemon.said();
    assert_eq!(said.matches(" to MASTER").count(), 1, "{said}");
    assert_eq!(said.matches("to BACKUP").count(), 1, "{said}");
    site.ask_often(10);
}

#[test]
fn scripts_decide_and_are_told() {
    let site = Site::new();
    let folder = site.directory().display();
    let good = site.directory().join("good");
    fs::write(&good, "").unwrap();
    let text = format!(
        "global_defs {{\n script_user root\n vrrp_notify_fifo {folder}/pipe\n}}\n\
         vrrp_script chk {{\n script \"/usr/bin/test -e {folder}/good\"\n interval 0.1\n fall 2\n rise 2\n}}\n{}",
        router(200).replace(
            "advert_int 1",
            &format!(
                "advert_int 1\n track_script {{\n chk\n }}\n\
                 notify \"/bin/sh -c 'echo $0 $1 $2 $3 >> {folder}/notified'\"\n\
                 notify_fault \"/usr/bin/touch {folder}/fault\""
            )
        )
    );
    let mut daemon = Daemon::start(&site, First, &text);
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    fs::remove_file(&good).unwrap();
    wait_until("the fault", &false, || site.vip_is_at(First));
    daemon.wait_said("MASTER to FAULT: script chk fails", 1);
    wait_until("notify_fault", &true, || site.directory().join("fault").exists());
    fs::write(&good, "").unwrap();
    daemon.wait_said("FAULT to BACKUP", 1);
    let lines = ["BACKUP", "MASTER", "FAULT", "BACKUP"];
    wait_for("notify", || {
        let said = fs::read_to_string(site.directory().join("notified")).unwrap_or_default();
        when(lines.iter().all(|state| said.contains(&format!("INSTANCE VI_1 {state} 200"))))
    });
    let mut pipe = fs::File::open(site.directory().join("pipe")).unwrap();
    let mut bytes = [0; 4096];
    let read = std::io::Read::read(&mut pipe, &mut bytes).unwrap();
    let expected: String =
        lines.iter().map(|state| format!("INSTANCE \"VI_1\" {state} 200\n")).collect();
    assert_eq!(String::from_utf8_lossy(&bytes[..read]), expected);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_tracked_interface_is_followed() {
    let site = Site::new();
    let text = router(200)
        .replace("advert_int 1", "advert_int 1\n track_interface {\n eth1 weight -150\n }");
    let daemon = Daemon::start(&site, First, &text);
    let _backup = Daemon::start(&site, Second, &router(100));
    wait_until("the master", &true, || site.vip_is_at(First));
    site.ip(First, "link set eth1 down");
    daemon.wait_said("priority 200 to 50", 1);
    wait_until("the other", &(false, true), || (site.vip_is_at(First), site.vip_is_at(Second)));
    site.ip(First, "link set eth1 up");
    wait_until("the master again", &(true, false), || {
        (site.vip_is_at(First), site.vip_is_at(Second))
    });
}

#[test]
fn a_second_daemon_and_one_without_rights_are_refused() {
    let site = Site::new();
    let daemon = Daemon::start(&site, First, &router(200));
    daemon.wait_said("INIT to BACKUP", 1);
    let (file, pid) = (daemon.file.clone(), daemon.pid_file.clone());
    let mut second = Daemon::start_with(&site, First, file, pid);
    assert_eq!(second.ended(), Some(1));
    assert!(second.said().contains("is running and has"), "{}", second.said());

    // As nobody, who comes no further than that.
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all", PROGRAM, "keepalived"])
        .args(["-n", "-l", "-p", "/nowhere", "-f"])
        .arg(&daemon.file)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("CAP_NET_ADMIN") && errors.contains("CAP_NET_RAW"), "{errors}");
}

#[test]
fn in_the_background_it_is_found_by_its_pid_file() {
    let site = Site::new();
    let (file, pid) = (site.directory().join("a.conf"), site.directory().join("a.pid"));
    fs::write(&file, router(255)).unwrap();
    let log = site.directory().join("daemon.log");
    // From outside of its namespace, and by a name that is relative.
    let status = Command::new(PROGRAM)
        .args(["keepalived", "-s", site.host(First).name(), "-f", "a.conf", "-p", "a.pid"])
        .arg(format!("-g{}", log.display()))
        .current_dir(site.directory())
        .status();
    assert!(status.unwrap().success());
    wait_until("the virtual address", &true, || site.vip_is_at(First));
    let number: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    let handle = Handle::open(number).unwrap();
    fs::remove_file(&file).unwrap();
    handle.signal(Signal::SIGHUP).unwrap();
    wait_until("the reload", &true, || {
        fs::read_to_string(&log).unwrap_or_default().contains("not reloaded")
    });
    handle.signal(Signal::SIGTERM).unwrap();
    assert!(handle.wait_for(e2e::lab::TIME_MAX).unwrap());
    assert!(!site.vip_is_at(First) && !pid.exists());
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains(&VIP.to_string()) && said.contains("stopped"), "{said}");
}

#[test]
fn the_service_manager_is_told() {
    let site = Site::new();
    let path = site.directory().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(e2e::lab::TIME_MAX)).unwrap();
    let file = site.directory().join("a.conf");
    fs::write(&file, router(200)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["keepalived", "-n", "-l", "-f"]).arg(&file);
    command.arg("-p").arg(site.directory().join("a.pid")).stderr(Stdio::null());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    inside(site.host(First), &mut command);
    let mut guard = Guard::new(command.spawn().unwrap());
    let said = |text: &str| {
        wait_for(text, || {
            let mut bytes = [0; 512];
            let length = socket.recv(&mut bytes).map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    };
    let handle = Handle::open(guard.pid().unwrap()).unwrap();
    said("READY=1");
    said("WATCHDOG=1");
    handle.signal(Signal::SIGHUP).unwrap();
    said("RELOADING=1\nMONOTONIC_USEC=");
    said("READY=1");
    handle.signal(Signal::SIGTERM).unwrap();
    said("STOPPING=1");
    assert!(guard.wait_for(e2e::lab::TIME_MAX).unwrap().is_some_and(|status| status.success()));
}
