//! Routes and rules that move with a master, and what is there from the start to the end: ours beside
//! the real keepalived, in hosts that are alike.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use e2e::lab::{inside, tool, wait_for, wait_until};
use nix::sys::signal::Signal;
use rlvs::lab::site::Host::{self, First, Second};
use rlvs_linux::process::Guard;

use crate::site::{Daemon, Site};
use crate::words::{end, ip, real};
use crate::{router, when};

/// Routes of the master, by a neighbour that both directors have and an interface that both get.
const ROUTES: &str = "virtual_routes {
    10.1.0.0/24 via 192.168.1.101 dev eth0
    to 10.1.1.0/24 gw 192.168.1.101 dev eth0 metric 50
    10.1.2.0/24 dev other
    10.1.3.0/24 dev other scope link src 192.168.1.200
    src 192.168.1.200 10.1.4.0/24 via 192.168.1.101 table 1200
    default via 192.168.1.101 metric 900
    0.0.0.0/0 via 192.168.1.101 metric 901 table default
    10.1.5.0/24 via 192.168.1.101 mtu 1400 advmss 1360
    10.1.6.0/24 via 192.168.1.101 mtu lock 1300 tos 0x10
    10.1.7.0/24 via 10.200.0.1 dev eth0 onlink
    blackhole 10.1.8.0/24
    unreachable 10.1.9.0/24 priority 5
    prohibit 10.1.10.0/24 table 202
    throw 10.1.11.0/24 table 202
    10.1.12.0/24 nexthop via 192.168.1.101 dev eth0 weight 2 nexthop via 192.168.1.102 weight 256
    10.1.13.0/24 via 192.168.1.101 or 192.168.1.102
    10.1.14.0/24 dev other scope host hoplimit 3 window 1000 cwnd 9 initcwnd 10 initrwnd 11
    10.1.15.0/24 dev other ssthresh 12 reordering 13 quickack 1 fastopen_no_cookie 1
    fd03::/64 via fd01::9 dev other metric 33
    fd04::/64 dev other
    blackhole fd05::/64
    fd06::/64 nexthop via fd01::9 dev other weight 2 nexthop via fd01::8 dev other
    default via fd01::9 dev other metric 44
}
";

/// Rules of the master.
const RULES: &str = "virtual_rules {
    from 10.1.1.0/24 to 10.2.0.0/16 table 201 priority 101
    to 10.3.0.0/16 lookup main preference 102
    iif other fwmark 5/0xff table 200 priority 104
    oif eth0 fwmark 7 tos 0x10 table 1200 priority 105
    not from 10.5.0.0/16 table 200 priority 106
    from 10.6.0.0/16 blackhole priority 107
    from 10.6.1.0/24 unreachable priority 108
    from 10.6.2.0/24 prohibit priority 109
    from 10.6.3.0/24 goto 200 priority 110
    from 10.6.4.0/24 nop priority 111
    ipproto tcp dport 80-90 table 200 priority 112
    ipproto 17 sport 100-200 table 200 priority 113
    uidrange 100-200 table 200 priority 114
    table main suppress_prefixlength 0 priority 115
    from fd07::/64 table 200 priority 116
    from all table 200 priority 118
    to default table 201 priority 119
    nop priority 200
}
";

/// The site, with an interface more on both directors, which has an IPv6 address.
fn site() -> Site {
    let site = Site::new();
    for host in [First, Second] {
        ip(&site, host, "link add other type veth peer name end");
        ip(&site, host, "link set end up");
        ip(&site, host, "link set other up");
        ip(&site, host, "-6 addr add fd01::1/64 dev other nodad");
    }
    site
}

/// The how-to's virtual router with more in it.
fn with(priority: u8, more: &str) -> String {
    router(priority).replace("advert_int 1", &format!("advert_int 1\n{more}"))
}

/// What `ip` says of the routes and rules of a host that keepalived has made, either of them.
fn routing(site: &Site, host: Host) -> Vec<String> {
    let mut lines = Vec::new();
    for version in ["-4", "-6"] {
        let said = ip(site, host, &format!("{version} -d -o route show table all"));
        let rules = ip(site, host, &format!("{version} -d rule"));
        let ours = said.lines().chain(rules.lines()).filter(|line| line.contains("keepalived"));
        lines.extend(ours.map(|line| line.trim().to_owned()));
    }
    lines.sort();
    lines
}

/// The site's addresses besides those that it came with.
fn addresses(site: &Site, host: Host) -> Vec<String> {
    let said = ip(site, host, "-o addr");
    let mine = |line: &&str| line.contains(" 10.99.") || line.contains(" fd99:");
    let words = |line: &str| line.split_once(": ").unwrap().1.to_owned();
    let mut lines: Vec<String> = said.lines().filter(mine).map(words).collect();
    lines.sort();
    lines
}

fn has(site: &Site, host: Host, words: &str) -> bool {
    !ip(site, host, words).is_empty()
}

#[test]
fn routes_and_rules_are_as_the_real_one_sets_them() {
    let site = site();
    let text = with(255, &format!("{ROUTES}{RULES}"));
    let there = real(&site, First, &text.replace("router_id 51", "router_id 52"));
    let wanted = ROUTES.lines().count() - 2 + RULES.lines().count() - 2;
    wait_for("those of the real one", || {
        let seen = routing(&site, First);
        if seen.len() >= wanted { Ok(()) } else { Err(format!("{wanted}: {seen:#?}")) }
    });
    let mut daemon = Daemon::start(&site, Second, &text);
    wait_until("ours", &routing(&site, First), || routing(&site, Second));
    // Less, another, and one more.
    let less = text.replace("    blackhole 10.1.8.0/24\n", "").replace("metric 50", "metric 51");
    let less =
        less.replace("    nop priority 200\n", "    nop priority 201\n    nop priority 200\n");
    fs::write(&daemon.file, &less).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the other rule", &true, || has(&site, Second, "rule show priority 201"));
    let said = routing(&site, Second).join("\n");
    assert!(!said.contains("10.1.8.0") && !said.contains("metric 50 "), "{said}");
    assert!(said.contains("10.1.1.0/24 via 192.168.1.101") && said.contains("metric 51"), "{said}");
    assert_eq!(routing(&site, Second).len(), routing(&site, First).len());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(routing(&site, Second), Vec::<String>::new(), "{}", daemon.said());
    assert!(!daemon.said().contains(" error: "), "{}", daemon.said());
    end(there);
}

#[test]
fn routes_move_with_the_master_beside_the_real_one() {
    let site = site();
    let words = "virtual_routes {\n 10.1.0.0/24 via 192.168.1.101 dev eth0\n }\n virtual_rules {\n \
                 from 10.1.0.0/24 table 200 priority 100\n }\n";
    let holds = |host| (site.vip_is_at(host), routing(&site, host).len());
    let both = || (holds(First), holds(Second));
    let there = real(&site, First, &with(200, words));
    wait_until("the real one has all", &((true, 2), (false, 0)), both);
    // Somebody else's route to the same destination is left alone, also by a backup that begins.
    ip(&site, Second, "route add 10.1.0.0/24 via 192.168.1.101 dev eth0");
    let mut daemon = Daemon::start(&site, Second, &with(100, words));
    daemon.wait_said("INIT to BACKUP", 1);
    assert_eq!(ip(&site, Second, "route show 10.1.0.0/24").lines().count(), 1);
    end(there);
    wait_until("ours has all", &((false, 0), (true, 2)), both);
    let there = real(&site, First, &with(200, words));
    wait_until("the real one has all again", &((true, 2), (false, 0)), both);
    end(there);
    wait_until("ours has all again", &((false, 0), (true, 2)), both);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(both(), ((false, 0), (false, 0)));
    assert_eq!(ip(&site, Second, "route show 10.1.0.0/24").lines().count(), 1);
}

#[test]
fn what_somebody_takes_away_is_put_back() {
    let site = site();
    let words = "virtual_routes {\n 10.1.0.0/24 via 192.168.1.101\n 10.1.1.0/24 dev other proto 99\n \
                 10.1.2.0/24 dev eth0 no_track\n 10.1.3.0/24 dev other src 10.202.0.1\n \
                 fd03::/64 dev other\n }\n virtual_rules {\n \
                 from 10.1.0.0/24 table 200 priority 100\n \
                 from 10.1.1.0/24 table 200 priority 101 no_track\n }\n";
    ip(&site, First, "addr add 10.202.0.1/24 dev other");
    let mut daemon = Daemon::start(&site, First, &with(255, words));
    daemon.wait_said("to MASTER", 1);
    let there = |words: &str| has(&site, First, words);
    for (remove, show) in [
        ("route del 10.1.0.0/24", "route show 10.1.0.0/24"),
        ("route del 10.1.1.0/24", "route show 10.1.1.0/24"),
        ("-6 route del fd03::/64", "-6 route show fd03::/64"),
        ("rule del priority 100", "rule show priority 100"),
    ] {
        wait_until(show, &true, || there(show));
        ip(&site, First, remove);
        wait_until(show, &true, || there(show));
    }
    daemon.wait_said("was taken away; it is back", 4);
    // What nobody minds about stays away, also when something else is put back after it.
    ip(&site, First, "route del 10.1.2.0/24");
    ip(&site, First, "rule del priority 101");
    ip(&site, First, "route del 10.1.0.0/24");
    daemon.wait_said("was taken away; it is back", 5);
    assert!(!there("route show 10.1.2.0/24") && !there("rule show priority 101"));
    // The kernel takes a route with its source, and tells nobody: it comes back with the address.
    ip(&site, First, "addr del 10.202.0.1/24 dev other");
    daemon.wait_said("route 10.1.3.0/24 dev other src 10.202.0.1 is not there", 1);
    assert!(!there("route show 10.1.3.0/24"));
    ip(&site, First, "addr add 10.202.0.1/24 dev other");
    wait_until("the route", &true, || there("route show 10.1.3.0/24"));
    assert_eq!(daemon.said().matches("to MASTER").count(), 1, "{}", daemon.said());
    // As with the real one, a master needs the interfaces of its routes.
    ip(&site, First, "link set other down");
    daemon.wait_said("MASTER to FAULT: interface other is down", 1);
    wait_until("nothing", &Vec::new(), || routing(&site, First));
    ip(&site, First, "link set other up");
    wait_until("the route", &true, || there("route show 10.1.1.0/24"));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!there("route show 10.1.1.0/24"));
}

#[test]
fn what_the_kernel_refuses_is_said_once_and_tried_again() {
    let site = site();
    let words = "virtual_routes {\n 10.1.0.0/24 via 10.200.0.1\n 10.1.1.0/24 dev eth0\n }\n";
    let mut daemon = Daemon::start(&site, First, &with(255, words));
    daemon.wait_said("to MASTER", 1);
    wait_until("the other", &true, || has(&site, First, "route show 10.1.1.0/24"));
    let line = with(255, words).lines().position(|line| line.contains("10.200.0.1")).unwrap() + 1;
    let place = format!("{}:{line}: ", daemon.file.display());
    let refused =
        "VI_1: route 10.1.0.0/24 via 10.200.0.1 is not there: Nexthop has invalid gateway";
    let said = format!("{place}{refused}");
    daemon.wait_said(&said, 1);
    // Something changes, and it is tried again in silence.
    ip(&site, First, "addr add 10.201.0.1/24 dev other");
    ip(&site, First, "route del 10.1.1.0/24");
    daemon.wait_said("route 10.1.1.0/24 dev eth0 was taken away; it is back", 1);
    ip(&site, First, "addr add 10.200.0.2/24 dev other");
    wait_until("the route", &true, || has(&site, First, "route show 10.1.0.0/24"));
    assert_eq!(daemon.said().matches("is not there").count(), 1, "{}", daemon.said());
    assert!(site.vip_is_at(First));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(routing(&site, First), Vec::<String>::new());
}

#[test]
fn routes_stay_with_the_address_of_a_master_that_is_killed() {
    let site = site();
    let words = "virtual_routes {\n 10.1.0.0/24 via 192.168.1.101 dev eth0\n fd03::/64 dev other\n }\n \
                 virtual_rules {\n from 10.1.0.0/24 table 200 priority 100\n }\n";
    let text = with(200, words);
    let mut daemon = Daemon::start(&site, First, &text);
    wait_until("all", &(true, 3), || (site.vip_is_at(First), routing(&site, First).len()));
    let (mut watcher, seen) = watch(&site, First);
    daemon.end(Signal::SIGKILL);
    assert_eq!((site.vip_is_at(First), routing(&site, First).len()), (true, 3));
    let mut daemon = Daemon::start(&site, First, &text);
    daemon.wait_said("INIT to MASTER: going on where an earlier process was cut off", 1);
    // It is the next one's now: put back by it, and nothing was gone meanwhile.
    ip(&site, First, "rule del priority 100");
    daemon.wait_said("was taken away; it is back", 1);
    let told = seen();
    assert_eq!(told.matches("Deleted").count(), 1, "{told}");
    drop(watcher.take());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(routing(&site, First), Vec::<String>::new());

    // But where another has taken over meanwhile, they go as soon as it is heard.
    let mut daemon = Daemon::start(&site, First, &text);
    wait_until("all", &(true, 3), || (site.vip_is_at(First), routing(&site, First).len()));
    daemon.end(Signal::SIGKILL);
    let there = real(&site, Second, &with(100, ""));
    wait_until("the real one", &true, || site.vip_is_at(Second));
    let lower = with(50, words);
    let mut daemon = Daemon::start(&site, First, &lower);
    wait_until("nothing", &(false, 0), || (site.vip_is_at(First), routing(&site, First).len()));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    end(there);
}

/// Lets `ip monitor` write down what becomes of routes and rules from here on.
fn watch(site: &Site, host: Host) -> (Option<Guard>, impl Fn() -> String) {
    let path = site.directory().join("monitor");
    let log = File::create(&path).unwrap();
    let mut command = Command::new(tool("ip").unwrap());
    command.args(["monitor", "route", "rule"]).stdin(Stdio::null()).stdout(log);
    inside(site.host(host), &mut command);
    let guard = Guard::new(command.spawn().unwrap());
    let seen = move || fs::read_to_string(&path).unwrap();
    // A route that is there already is told of to nobody.
    let mut tried = 0;
    wait_for("the monitor", || {
        tried += 1;
        ip(site, host, &format!("route add 10.111.{tried}.0/24 dev eth0 table 111"));
        when(seen().contains("10.111."))
    });
    (Some(guard), seen)
}

/// The static blocks beside a virtual router that never becomes master here.
fn fixed(addresses: &str, routes: &str, rules: &str) -> String {
    let defaults = "global_defs {\n default_interface other\n}\n";
    let backup = with(100, "track_interface {\n nowhere\n }\n");
    let dynamic = defaults.replace("default_interface", "dynamic_interfaces\n default_interface");
    format!(
        "{dynamic}static_ipaddress {{\n{addresses}}}\nstatic_routes {{\n{routes}}}\n\
         static_rules {{\n{rules}}}\n{backup}"
    )
}

#[test]
fn static_blocks_are_as_the_real_one_has_them() {
    let site = site();
    let text = fixed(
        "10.99.0.1/24\n10.99.1.1/24 dev eth0 brd + label eth0:x\n10.99.2.1 dev eth0\n\
         fd99::1/64 dev eth0\nfd99:1::1 dev other\n",
        "10.98.0.0/24 via 10.99.0.9 dev other\n10.98.1.0/24 dev eth0 src 10.99.1.1\n",
        "from 10.98.0.0/24 table 300 priority 3000\n",
    );
    let all = |host| (addresses(&site, host), routing(&site, host));
    let there = real(&site, First, &text);
    wait_until("those of the real one", &(5, 3), || {
        let (addresses, routing) = all(First);
        (addresses.len(), routing.len())
    });
    let mut daemon = Daemon::start(&site, Second, &text);
    wait_until("ours", &all(First), || all(Second));
    assert!(!daemon.said().contains("to MASTER"), "{}", daemon.said());
    // Put back; the kernel takes the second route with its source, and says nothing of it.
    for (remove, show) in [
        ("route del 10.98.0.0/24", "route show 10.98.0.0/24"),
        ("rule del priority 3000", "rule show priority 3000"),
        ("addr del 10.99.1.1/24 dev eth0", "route show 10.98.1.0/24"),
    ] {
        ip(&site, Second, remove);
        wait_until(show, &true, || has(&site, Second, show));
    }
    assert_eq!(all(Second), all(First));
    let other = fixed(
        "10.99.0.2/24\n10.99.1.1/24 dev eth0 brd + label eth0:x\n",
        "10.98.0.0/24 via 10.99.0.9 dev other metric 7\n",
        "from 10.98.0.0/24 table 301 priority 3000\n",
    );
    fs::write(&daemon.file, &other).unwrap();
    fs::write(site.directory().join("real-First.conf"), &other).unwrap();
    daemon.signal(Signal::SIGHUP);
    rlvs_linux::process::Handle::open(there.pid().unwrap())
        .unwrap()
        .signal(Signal::SIGHUP)
        .unwrap();
    wait_until("the real one's others", &(2, 2), || (all(First).0.len(), all(First).1.len()));
    wait_until("our others", &all(First), || all(Second));
    // All of it goes at the end, and stays where the daemon is killed, for the next.
    daemon.end(Signal::SIGKILL);
    assert_eq!(all(Second), all(First));
    let mut daemon = Daemon::start(&site, Second, &other);
    daemon.wait_said("INIT to FAULT", 1);
    assert_eq!(all(Second), all(First));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!daemon.said().contains(" error: "), "{}", daemon.said());
    end(there);
    assert_eq!((all(Second), all(First)), ((vec![], vec![]), (vec![], vec![])));
}

#[test]
fn static_blocks_need_no_virtual_router_and_wait_for_no_delay() {
    let site = site();
    let (text, _) = fixed("10.99.0.1/24\n", "10.98.0.0/24 dev later\n", "nop priority 3000\n")
        .split_once("vrrp_instance")
        .map(|(head, tail)| (head.to_owned(), tail.to_owned()))
        .unwrap();
    let delayed = text.replace("global_defs {", "global_defs {\n vrrp_startup_delay 600");
    for (text, more) in [(text, String::new()), (delayed, router(255))] {
        let mut daemon = Daemon::start(&site, First, &format!("{text}{more}"));
        wait_until("the address", &1, || addresses(&site, First).len());
        wait_until("the rule", &true, || has(&site, First, "rule show priority 3000"));
        daemon.wait_said(
            "route 10.98.0.0/24 dev later is not there: no interface is named `later`",
            1,
        );
        ip(&site, First, "link add later type veth peer name later-end");
        ip(&site, First, "link set later-end up");
        ip(&site, First, "link set later up");
        wait_until("its route", &true, || has(&site, First, "route show 10.98.0.0/24"));
        ip(&site, First, "link del later");
        assert!(!site.vip_is_at(First));
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
        assert_eq!((addresses(&site, First), routing(&site, First)), (vec![], vec![]));
    }
}
