//! A drained server while `keepalived` keeps the table.

use e2e::lab::{run, wait_until};
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{First, Web1, Web2};

use crate::site::{Daemon, PROGRAM, Site};

const ONE: &str = "192.168.1.101:80";
const TWO: &str = "192.168.1.102:80";

#[test]
fn a_drained_server_stays_drained_when_it_fails_and_recovers() {
    let site = Site::new();
    let (first, _second) = (site.web(Web1), site.web(Web2));
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3");
    let daemon = Daemon::start(&site, First, &quick);
    let table = |one| vec![(ONE.to_owned(), one), (TWO.to_owned(), 2)];
    wait_until("both servers", &table(3), || site.table(First));
    let rlvs = |words: &[&str]| run(site.host(First), PROGRAM.as_ref(), words);
    assert_eq!(rlvs(&["drain", "192.168.1.101"]).status, Some(0));
    daemon.wait_said(&format!("{ONE} of VS [192.168.1.200]:tcp:80: it is drained"), 1);
    assert_eq!(site.table(First), table(0));

    drop(first);
    let alone = vec![(TWO.to_owned(), 2)];
    wait_until("a stopped server is taken out", &alone, || site.table(First));
    let _first = site.web(Web1);
    wait_until("a server comes back", &table(0), || site.table(First));
    assert!(site.ask_often(10).contains_key("Server 2"));

    rlvs(&["undrain", ONE]).ok();
    assert_eq!(site.table(First), table(3));
    daemon.wait_said("it is drained no longer", 1);
    let said = daemon.said();
    assert_eq!(said.matches("it is drained:").count(), 1, "{said}");
    assert!(!said.contains("changed by somebody else"), "{said}");
    assert_eq!(site.table(First), table(3));
}
