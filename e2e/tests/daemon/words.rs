//! Words of the file that change what is done: addresses with attributes, virtual MACs, groups of
//! their own, delays, time-outs. The real keepalived is asked where it has an opinion.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use e2e::lab::{TIME_MAX, connect, inside, run, tcp_server, tool, wait_for, wait_until};
use nix::sys::signal::Signal;
use rlvs::lab::site::Host::{self, First, Second, Web1, Web2};
use rlvs::lab::site::{HOW_TO, VIP};
use rlvs_linux::process::{Guard, Handle};

use crate::site::{Daemon, Site};
use crate::{router, when};

/// Starts the real keepalived, as VRRP alone.
pub(crate) fn real(site: &Site, host: Host, text: &str) -> Guard {
    let file = |name: &str| site.directory().join(format!("real-{host:?}.{name}"));
    fs::write(file("conf"), text).unwrap();
    let log = File::create(file("log")).unwrap();
    let mut command = Command::new(tool("keepalived").unwrap());
    command.args(["-n", "-l", "-D", "-P", "-f"]).arg(file("conf"));
    command.arg("-p").arg(file("pid")).arg("-r").arg(file("vrrp.pid"));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    inside(site.host(host), &mut command);
    Guard::new(command.spawn().unwrap())
}

/// Ends the real keepalived in order, which takes a second.
pub(crate) fn end(mut guard: Guard) {
    Handle::open(guard.pid().unwrap()).unwrap().signal(Signal::SIGTERM).unwrap();
    assert!(guard.wait_for(TIME_MAX).unwrap().is_some());
}

pub(crate) fn ip(site: &Site, host: Host, words: &str) -> String {
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    run(site.host(host), &tool("ip").unwrap(), &words).ok()
}

/// What `ip` says of a host's virtual addresses, without what differs between hosts.
fn addresses(site: &Site, host: Host) -> Vec<String> {
    let said = ip(site, host, "-o addr show dev eth0");
    let mine = |line: &&str| line.contains(" 10.77.") || line.contains(" fd77:");
    let words = |line: &str| line.split_ascii_whitespace().skip(2).collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = said.lines().filter(mine).map(words).collect();
    lines.sort();
    lines
}

#[test]
fn addresses_are_as_the_real_one_makes_them() {
    let site = Site::new();
    let text = |vrid: u8| {
        format!(
            "vrrp_instance VI_1 {{\n state MASTER\n interface eth0\n virtual_router_id {vrid}\n \
             priority 255\n virtual_ipaddress {{\n 10.77.0.1/24 label eth0:one\n \
             10.77.1.1/24 scope link\n 10.77.2.1/24 brd + scope site\n \
             10.77.4.1/24 noprefixroute\n \
             10.77.5.1/24 brd 10.77.5.254\n }}\n virtual_ipaddress_excluded {{\n \
             fd77::1/64 noprefixroute preferred_lft 400\n \
             fd77::2/64 preferred_lft 500 -nodad\n fd77::3/64 home preferred_lft 600\n }}\n}}\n"
        )
    };
    let there = real(&site, First, &text(51));
    wait_for("those of the real one", || {
        let seen = addresses(&site, First);
        if seen.len() == 8 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let mut daemon = Daemon::start(&site, Second, &text(52));
    wait_until("ours", &8, || addresses(&site, Second).len());
    // A tentative address becomes whole, and a life time passes.
    let without_time = |lines: Vec<String>| -> Vec<String> {
        let word = |word: &str| {
            let time = word.ends_with("sec") && word != "0sec";
            if time { "SOME".to_owned() } else { word.to_owned() }
        };
        let line = |line: String| {
            let words = line.split(' ').filter(|word| *word != "tentative");
            words.map(word).collect::<Vec<_>>().join(" ")
        };
        lines.into_iter().map(line).collect()
    };
    assert_eq!(without_time(addresses(&site, Second)), without_time(addresses(&site, First)));
    // The real one makes no other end of it, and prefers IPv6 addresses of less than 128 bits.
    let more = "10.77.4.1/24 noprefixroute\n 10.77.3.1/32 peer 10.77.3.2/32";
    fs::write(&daemon.file, text(52).replace("10.77.4.1/24 noprefixroute", more)).unwrap();
    daemon.signal(Signal::SIGHUP);
    let peer = |line: &String| line.contains("inet 10.77.3.1 peer 10.77.3.2/32");
    wait_until("the one with another end", &true, || addresses(&site, Second).iter().any(peer));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(addresses(&site, Second), Vec::<String>::new(), "{}", daemon.said());
    end(there);
}

#[test]
fn a_virtual_mac_is_made_found_again_and_removed() {
    let site = Site::new();
    let plain = router(200);
    let own = plain.replace("interface eth0", "interface eth0\n use_vmac");
    let links = || ip(&site, First, "-o link show");
    let mut daemon = Daemon::start(&site, First, &own);
    daemon.wait_said("to MASTER", 1);
    wait_for("the interface", || {
        let said = links();
        when(said.contains("vrrp.51@eth0") && said.contains("00:00:5e:00:01:33"))
    });
    let holds = |name: &str| ip(&site, First, &format!("-o addr show dev {name}"));
    assert!(holds("vrrp.51").contains("192.168.1.200"));
    assert!(!holds("eth0").contains("192.168.1.200"));
    // Whoever comes after one that was killed takes it for its own.
    daemon.end(Signal::SIGKILL);
    assert!(links().contains("vrrp.51"));
    let mut daemon = Daemon::start(&site, First, &own);
    daemon.wait_said("INIT to MASTER: going on where an earlier process was cut off", 1);
    // Without the word it goes, and the address moves.
    fs::write(&daemon.file, &plain).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("no such interface", &false, || links().contains("vrrp.51"));
    wait_until("the address", &true, || site.vip_is_at(First));
    fs::write(&daemon.file, own.replace("use_vmac", "use_vmac mine 02:00:00:00:77:01")).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_for("another name and address", || {
        let said = links();
        when(said.contains("mine@eth0") && said.contains("02:00:00:00:77:01"))
    });
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!links().contains("mine@"), "{}", links());
    assert!(!daemon.said().contains(" error: "), "{}", daemon.said());
}

#[test]
fn a_group_of_its_own_is_shared_with_the_real_one() {
    let site = Site::new();
    let group = "global_defs {\n vrrp_mcast_group4 224.0.0.99\n}\n";
    let text = |priority| format!("{group}{}", router(priority));
    let there = real(&site, Second, &text(200));
    wait_until("the real one", &true, || site.vip_is_at(Second));
    let mut daemon = Daemon::start(&site, First, &text(100));
    daemon.wait_said("INIT to BACKUP", 1);
    // It hears the other: otherwise it would take over 3.6 s after it began.
    let silence = Instant::now() + Duration::from_secs(5);
    wait_for("the time of a master to pass", || {
        assert!(!site.vip_is_at(First), "{}", daemon.said());
        when(Instant::now() > silence)
    });
    end(there);
    wait_until("it takes over", &true, || site.vip_is_at(First));
    assert!(daemon.said().contains("192.168.1.99 resigns"), "{}", daemon.said());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// Two instances of which one needs an interface that has nothing to do with the other.
fn group_of_two(priority: u8) -> String {
    let one = router(priority);
    let two = one.replace("VI_1", "VI_2").replace("virtual_router_id 51", "virtual_router_id 52");
    let two = two.replace("192.168.1.200", "192.168.1.201");
    let two = two.replace("interface eth0", "interface eth0\n track_interface {\n other\n }");
    assert!(two.contains("router_id 52") && two.contains(".201") && two.contains("other"));
    let group = "vrrp_sync_group BOTH {\n group {\n VI_1\n VI_2\n }\n}\n";
    format!("{one}{two}{group}")
}

#[test]
fn a_group_moves_as_one_beside_the_real_one() {
    let site = Site::new();
    for host in [First, Second] {
        ip(&site, host, "link add other type veth peer name end");
        ip(&site, host, "link set other up");
        ip(&site, host, "link set end up");
    }
    let holds = |host: Host| {
        let said = ip(&site, host, "-o addr show dev eth0");
        ["192.168.1.200/", "192.168.1.201/"].map(|address| said.contains(address))
    };
    let wait_held = |what: &str, first: bool| {
        wait_until(what, &([first; 2], [!first; 2]), || (holds(First), holds(Second)));
    };
    let there = real(&site, Second, &group_of_two(100));
    let mut daemon = Daemon::start(&site, First, &group_of_two(200));
    wait_held("ours has both", true);
    // One of ours fails: the other gives up too, and the real one takes both over.
    ip(&site, First, "link set other down");
    wait_held("the real one has both", false);
    ip(&site, First, "link set other up");
    wait_held("ours has both again", true);
    // As before, but now it is one of the real one's that fails, where it is master.
    ip(&site, First, "link set other down");
    wait_held("the real one has both", false);
    ip(&site, Second, "link set other down");
    wait_until("nobody has any", &([false; 2], [false; 2]), || (holds(First), holds(Second)));
    ip(&site, First, "link set other up");
    wait_held("ours has both at last", true);
    end(there);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

#[test]
fn virtual_routers_wait_for_their_delay() {
    let site = Site::new();
    let text = format!("global_defs {{\n vrrp_startup_delay 2\n}}\n{}", router(255));
    let begun = Instant::now();
    let mut daemon = Daemon::start(&site, First, &text);
    daemon.wait_said("the virtual routers start in 2s", 1);
    daemon.wait_said("INIT to MASTER", 1);
    assert!(begun.elapsed().as_secs_f64() >= 2.0, "{:?}", begun.elapsed());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

#[test]
fn time_outs_are_set_and_foreign_services_removed() {
    let site = Site::new();
    let _servers = [site.web(Web1), site.web(Web2)];
    let ipvsadm = |words: &str| {
        let words: Vec<&str> =
            ["ipvsadm"].into_iter().chain(words.split_ascii_whitespace()).collect();
        site.output(First, &words).unwrap()
    };
    ipvsadm("-A -t 192.168.1.200:8080 -s rr");
    ipvsadm("-A -t 192.168.1.200:80 -s wrr");
    let text =
        |words: &str| format!("global_defs {{\n lvs_timeouts {words}\n lvs_flush\n}}\n{HOW_TO}");
    let mut daemon = Daemon::start(&site, First, &text("tcp 700 tcpfin 70"));
    let timeouts = || ipvsadm("-L --timeout");
    wait_for("the time-outs", || {
        let said = timeouts();
        if said.contains(": 700 70 300") { Ok(()) } else { Err(said) }
    });
    wait_until("the foreign service", &false, || ipvsadm("-L -n").contains(":8080"));
    wait_until("both servers", &2, || site.table(First).len());
    // What somebody adds later is theirs.
    ipvsadm("-A -t 192.168.1.200:8081 -s rr");
    fs::write(&daemon.file, text("udp 200")).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_for("the other time-out", || {
        let said = timeouts();
        if said.contains(": 700 70 200") { Ok(()) } else { Err(said) }
    });
    assert!(ipvsadm("-L -n").contains(":8081"));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// Sends a word through a connection, and tells whether it comes back in time.
fn comes_back(stream: &mut TcpStream, time: Duration) -> bool {
    stream.set_read_timeout(Some(time)).unwrap();
    stream.write_all(b"word").unwrap();
    stream.read_exact(&mut [0; 4]).is_ok()
}

/// Connects until a server of this name answers.
fn connect_to(site: &Site, name: &str) -> TcpStream {
    let to = SocketAddr::new(VIP, 80);
    wait_for(name, || {
        let found = site.host(Host::Client).run(|| connect(to)).unwrap();
        let found = found.map_err(|error| error.to_string())?;
        if found.name == name { Ok(found.stream) } else { Err(found.name) }
    })
}

#[test]
fn connections_of_a_server_that_leaves() {
    let site = Site::new();
    tcp_server(site.host(Web1), 80, Some("one"));
    tcp_server(site.host(Web2), 80, Some("two"));
    let good = site.directory().join("good");
    fs::write(&good, "").unwrap();
    let check = format!(
        "MISC_CHECK {{\n misc_path \"/usr/bin/test -e {}\"\n delay_loop 0.2\n }}",
        good.display()
    );
    let server = |last: u8, words: &str| {
        format!("real_server 192.168.1.{last} 80 {{\n weight 1\n {words}\n }}")
    };
    let text = |one: &str| {
        let (virtual_router, two) = (router(255), server(102, ""));
        format!(
            "{virtual_router}virtual_server 192.168.1.200 80 {{\n lb_algo rr\n lb_kind NAT\n \
             protocol TCP\n {one}\n {two}\n}}\n"
        )
    };
    let vip = SocketAddr::new(VIP, 80);
    let both = |weight: u32| {
        vec![("192.168.1.101:80".to_owned(), weight), ("192.168.1.102:80".to_owned(), 1)]
    };
    let inhibited = server(101, &format!("inhibit_on_failure\n {check}"));
    let mut daemon = Daemon::start(&site, First, &text(&inhibited));
    wait_until("both servers", &both(1), || site.table(First));
    let mut stream = connect_to(&site, "one");
    assert!(comes_back(&mut stream, TIME_MAX));

    // A failed check with inhibit_on_failure: what there is goes on, nothing new comes.
    fs::remove_file(&good).unwrap();
    wait_until("the weight", &both(0), || site.table(First));
    assert!(comes_back(&mut stream, TIME_MAX));
    fs::write(&good, "").unwrap();
    wait_until("the weight", &both(1), || site.table(First));

    // Removed by a reload or a failed check it goes on, and with the server there again as well.
    let change = |words: &str, one: &str, expected: &[(String, u32)]| {
        fs::write(&daemon.file, format!("{words}{}", text(one))).unwrap();
        daemon.signal(Signal::SIGHUP);
        wait_until("the table", &expected.to_vec(), || site.table(First));
    };
    change("", "", &both(1)[1..]);
    let mut download = Download::start(stream);
    download.goes_on();
    for _ in 0..4 {
        assert_eq!(site.host(Host::Client).run(|| connect(vip)).unwrap().unwrap().name, "two");
    }
    change("", &server(101, &check), &both(1));
    download.goes_on();
    fs::remove_file(&good).unwrap();
    wait_until("the table", &both(1)[1..].to_vec(), || site.table(First));
    download.goes_on();
    fs::write(&good, "").unwrap();
    wait_until("the table", &both(1), || site.table(First));
    let mut stream = download.end();

    // As IPVS, where that is asked for: nothing is lost when it is there again.
    let silent = "global_defs {\n lvs_removed silent\n}\n";
    change(silent, "", &both(1)[1..]);
    assert!(!comes_back(&mut stream, Duration::from_millis(300)));
    change(silent, &server(101, &check), &both(1));
    stream.set_read_timeout(Some(TIME_MAX)).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    assert!(comes_back(&mut stream, TIME_MAX));

    // Reset, where that is.
    change(&silent.replace("silent", "reset"), "", &both(1)[1..]);
    wait_until("a reset", &Some(ErrorKind::ConnectionReset), || {
        let read = stream.write_all(b"word").and_then(|()| stream.read_exact(&mut [0; 4]));
        read.err().map(|error| error.kind()).filter(|&kind| kind != ErrorKind::WouldBlock)
    });

    // The service itself leaves, then the daemon: what there is goes on.
    let mut stream = connect_to(&site, "two");
    let file = router(255);
    fs::write(&daemon.file, file).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the table", &Vec::new(), || site.table(First));
    assert!(comes_back(&mut stream, TIME_MAX));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// Words that go through a connection and back all the time.
struct Download {
    thread: JoinHandle<TcpStream>,
    words: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
}

impl Download {
    fn start(mut stream: TcpStream) -> Self {
        let (words, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (words.clone(), ends.clone());
        let thread = spawn(move || {
            while !end.load(Ordering::SeqCst) {
                assert!(comes_back(&mut stream, TIME_MAX), "the download stands still");
                count.fetch_add(1, Ordering::SeqCst);
            }
            stream
        });
        Self { thread, words, ends }
    }

    /// Waits until many more words have come back.
    fn goes_on(&mut self) {
        let from = self.words.load(Ordering::SeqCst);
        wait_for("the download", || {
            let now = self.words.load(Ordering::SeqCst);
            if now > from + 50 { Ok(()) } else { Err(format!("{} words", now - from)) }
        });
    }

    fn end(self) -> TcpStream {
        self.ends.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn the_dump_tells_how_servers_are() {
    let site = Site::new();
    let _first = site.web(Web1);
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3").replace("200 {", "77 {");
    let quick = quick.replace("192.168.1.200 80", "192.168.1.177 80");
    let daemon = Daemon::start(&site, First, &quick);
    daemon.wait_said("[192.168.1.102]:tcp:80 of VS [192.168.1.177]:tcp:80", 1);
    // Everybody's daemon writes the same file.
    wait_for("the dump", || {
        daemon.signal(Signal::SIGUSR1);
        let said = fs::read_to_string("/tmp/keepalived.data").unwrap_or_default();
        let lines = [
            "# VS [192.168.1.177]:tcp:80: has its quorum\n",
            "# RS [192.168.1.101]:tcp:80 of VS [192.168.1.177]:tcp:80: up, weight 3\n",
            "# RS [192.168.1.102]:tcp:80 of VS [192.168.1.177]:tcp:80: down, not in the table\n",
        ];
        if lines.iter().all(|line| said.contains(line)) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn programs_are_run_before_all_else_and_after() {
    let site = Site::new();
    let out = site.directory().join("out");
    let shown = out.display();
    let script = |what: &str, status: u8| {
        format!(
            "\"/bin/sh -c '(echo {what}; ip -o addr show dev eth0 | grep -c 192.168.1.200) >> {shown}; \
             exit {status}'\""
        )
    };
    let text = |start: &str, stop: &str| {
        format!(
            "global_defs {{\n script_user root\n startup_script {start}\n startup_script_timeout 1\n \
             shutdown_script {stop}\n}}\n{}",
            router(255)
        )
    };
    // The real one and ours, each one after the other on the same host.
    let told = || std::mem::take(&mut fs::read_to_string(&out).unwrap());
    let good = text(&script("start", 0), &script("stop", 3));
    let there = real(&site, First, &good);
    wait_until("the address", &true, || site.vip_is_at(First));
    end(there);
    let theirs = told();
    assert_eq!(theirs, "start\n0\nstop\n0\n");
    fs::remove_file(&out).unwrap();
    let mut daemon = Daemon::start(&site, First, &good);
    wait_until("the address", &true, || site.vip_is_at(First));
    assert_eq!(told(), "start\n0\n");
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert_eq!(told(), theirs);
    let said = daemon.said();
    assert!(said.contains("startup_script: it succeeds"), "{said}");
    assert!(said.contains("it ended with exit status: 3; all goes on"), "{said}");
    // One that does not end is ended, and all goes on.
    let mut daemon = Daemon::start(&site, First, &text("\"/bin/sleep 600\"", "/bin/true"));
    daemon.wait_said("it took longer than 1s and was ended; all goes on", 1);
    wait_until("the address", &true, || site.vip_is_at(First));
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}
