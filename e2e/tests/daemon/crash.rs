//! The process of a master is killed on a host that lives, and started again by a service manager.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::lab::{tool, wait_for, wait_until};
use e2e::pinger::Pinger;
use nix::sys::signal::Signal;
use nix::unistd::gettid;
use rlvs::lab::site::Host::{Client, First, Second};
use rlvs::lab::site::{HOW_TO, VIP};

use crate::site::{Daemon, Site};
use crate::words::{end, real};
use crate::{router, when};

const CRASHES: u32 = 8;
const UNIT: &str = include_str!("../../../packaging/systemd/keepalived.service");

/// Returns how long the service manager of the package waits before it starts the daemon again.
fn restart_delay() -> Duration {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("RestartSec="));
    let time = line.and_then(|time| time.strip_suffix("ms")).unwrap();
    Duration::from_millis(time.parse().unwrap())
}

fn pause(time: Duration) {
    let until = Instant::now() + time;
    wait_for("the time to pass", || when(Instant::now() >= until));
}

/// Puts this thread and what it starts before other tests' and builds' processes: how long those hold up
/// a start is not what is asked.
fn go_first() {
    let mut chrt = Command::new(tool("chrt").unwrap());
    chrt.args(["--rr", "--pid", "1"]).arg(gettid().to_string()).stdout(Stdio::null());
    assert!(chrt.status().unwrap().success());
}

#[test]
fn a_crash_is_not_seen_by_clients_nor_by_the_real_backup() {
    go_first();
    let site = Site::new();
    let tenth = |priority| {
        let text = router(priority).replace("advert_int 1", "advert_int 0.1\n version 3");
        assert!(text.contains("version 3"));
        // What version 3 does not have.
        let (before, behind) = text.split_once("authentication").unwrap();
        format!("{before}{}", behind.split_once('}').unwrap().1)
    };
    let backup = real(&site, Second, &tenth(100));
    // With virtual servers, as directors are.
    let (_, services) = HOW_TO.split_once("virtual_server").unwrap();
    let text = format!("{}virtual_server{services}", tenth(200));
    let mut master = Daemon::start(&site, First, &text);
    wait_until("the master", &(true, false), || (site.vip_is_at(First), site.vip_is_at(Second)));
    let backup_log = site.directory().join("real-Second.log");
    let taken_over = || {
        let said = fs::read_to_string(&backup_log).unwrap();
        said.matches("Entering MASTER STATE").count()
    };
    // It may have been there first.
    let before = taken_over();
    let pinger = Pinger::start(site.host(Client), VIP).unwrap();
    wait_until("answers", &true, || pinger.is_answered());
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for number in 0..CRASHES {
        // At all moments between two advertisements.
        pause(Duration::from_millis(400 + 100 * u64::from(number) / u64::from(CRASHES)));
        let killed = Instant::now();
        master.end(Signal::SIGKILL);
        pause(restart_delay().saturating_sub(killed.elapsed()));
        master.start_again(&site, First);
        master.wait_said("INIT to MASTER: going on where an earlier process was cut off", 1);
        longest = longest.max(killed.elapsed());
        assert_eq!(taken_over(), before, "crash {number}, over in {:?}", killed.elapsed());
    }
    pause(Duration::from_millis(400));
    wait_until("answers", &true, || pinger.is_answered());
    eprintln!("{CRASHES} crashes; the log says MASTER within {longest:?}");
    assert_eq!(pinger.unanswered(begun), Duration::ZERO);
    assert_eq!(taken_over(), before);
    assert!(!site.vip_is_at(Second));
    assert_eq!(master.end(Signal::SIGTERM), Some(0));
    end(backup);
}
