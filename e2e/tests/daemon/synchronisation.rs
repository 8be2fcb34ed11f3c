//! `lvs_sync_daemon` on our own table: who is master tells of its connections, the others learn them.

use std::net::{SocketAddr, TcpStream};

use e2e::lab::{wait_for, wait_until};
use nix::sys::signal::Signal;
use rlvs::lab::site::Host::{Client, First, Second, Web1, Web2};
use rlvs::lab::site::{HOW_TO, Host, VIP};

use crate::site::{Daemon, Site};

/// The how-to's file with connection synchronisation.
fn configuration(priority: u8) -> String {
    let priority = format!("priority {priority}");
    let text = HOW_TO.replace("priority 100", &priority).replace("delay_loop 6", "delay_loop 0.3");
    format!("global_defs {{\n lvs_sync_daemon eth0 VI_1\n}}\n{text}")
}

/// Returns which daemons run: their roles, interfaces and numbers.
fn daemons(site: &Site, host: Host) -> Vec<String> {
    let said = site.output(host, &["ipvsadm", "-L", "--daemon"]).unwrap();
    said.lines()
        .filter_map(|line| line.split_once(", maxlen"))
        .map(|(line, _)| line.to_owned())
        .collect()
}

fn role(name: &str) -> Vec<String> {
    // Without a number it is the virtual router's.
    vec![format!("{name} sync daemon (mcast=eth0, syncid=51")]
}

#[test]
fn who_is_master_tells_and_who_is_backup_learns() {
    let site = Site::new();
    let (_one, _two) = (site.web(Web1), site.web(Web2));
    let mut first = Daemon::start(&site, First, &configuration(200));
    let mut second = Daemon::start(&site, Second, &configuration(100));
    for (host, name) in [(First, "master"), (Second, "backup")] {
        wait_until(name, &role(name), || daemons(&site, host));
        wait_until("both servers", &2, || site.table(host).len());
    }
    assert!(!first.said().contains("lvs_sync_daemon"), "{}", first.said());
    site.wait_answer();
    let held = site.host(Client).run(|| TcpStream::connect(SocketAddr::new(VIP, 80))).unwrap();
    let port = format!(":{} ", held.as_ref().unwrap().local_addr().unwrap().port());
    wait_for("the connection on the other director", || {
        let said = site.output(Second, &["ipvsadm", "-L", "-n", "-c"]).unwrap();
        // In whatever state: the server closes a connection on which nothing is asked.
        if said.contains(&port) { Ok(()) } else { Err(said) }
    });

    assert_eq!(first.end(Signal::SIGTERM), Some(0));
    assert_eq!(daemons(&site, First), Vec::<String>::new());
    wait_until("the other is master", &role("master"), || daemons(&site, Second));
    first.start_again(&site, First);
    wait_until("master again", &role("master"), || daemons(&site, First));
    wait_until("backup again", &role("backup"), || daemons(&site, Second));
    for daemon in [&mut first, &mut second] {
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    }
}
