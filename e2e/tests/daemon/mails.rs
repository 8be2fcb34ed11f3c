//! Mails about changes, as a mail server gets them from the real one and from ours.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use e2e::lab::{wait_for, wait_until};
use nix::sys::signal::Signal;
use rlvs::lab::site::HOW_TO;
use rlvs::lab::site::Host::{self, First, Second, Web1};

use crate::site::{Daemon, Site};
use crate::words::{end, ip, real};
use crate::{ONE, router};

/// What a mail client said, line by line.
type Talk = Vec<String>;

/// A mail server on a host's loopback interface; it takes everything.
fn mail_server(site: &Site, host: Host) -> Arc<Mutex<Vec<Talk>>> {
    let listener = site.host(host).run(|| TcpListener::bind("127.0.0.1:2525").unwrap()).unwrap();
    let talks: Arc<Mutex<Vec<Talk>>> = Arc::default();
    let heard = talks.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut talk = Talk::new();
            // Who leaves has said enough.
            drop(stream.write_all(b"220-hello\r\n220 there\r\n"));
            let mut in_message = false;
            for line in lines.map_while(Result::ok) {
                in_message &= line != ".";
                let answer: &[u8] = match &*line {
                    "DATA" => b"354 go on\r\n",
                    _ if in_message => b"",
                    _ => b"250-so\r\n250 be it\r\n",
                };
                in_message |= line == "DATA";
                drop(stream.write_all(answer));
                let is_end = line == "QUIT";
                talk.push(line);
                if is_end {
                    break;
                }
            }
            heard.lock().unwrap().push(talk);
        }
    });
    talks
}

/// Returns talks without time and text, which differ, in order of their subjects.
fn comparable(talks: &Mutex<Vec<Talk>>) -> Vec<Talk> {
    let mut talks = talks.lock().unwrap().clone();
    // The real one is cut off when it ends.
    talks.retain(|talk| talk.last().is_some_and(|line| line == "QUIT"));
    let form = "^Date: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [+-][0-9]{4}$";
    let form = regex::Regex::new(form).unwrap();
    for talk in &mut talks {
        let date = talk.iter_mut().find(|line| line.starts_with("Date: ")).unwrap();
        assert!(form.is_match(date), "{date}");
        *date = "Date: SOME".to_owned();
        let begin = talk.iter().position(String::is_empty).unwrap() + 1;
        let end = talk.iter().position(|line| line == ".").unwrap();
        assert!(begin + 1 < end, "{talk:#?}");
        talk.drain(begin..end - 1);
    }
    talks.sort_by_key(|talk| talk.iter().find(|line| line.starts_with("Subject: ")).cloned());
    talks
}

const MAIL: &str = "router_id R1\n notification_email {\n ops@example.com\n noc@example.com\n }\n \
    notification_email_from lb@example.com\n smtp_server 127.0.0.1 2525\n \
    smtp_helo_name lb.example.com\n smtp_connect_timeout 5\n";

#[test]
fn mails_about_virtual_routers_are_those_of_the_real_one() {
    let site = Site::new();
    let text = |vrid: u8| {
        let instance = router(100).replace("router_id 51", &format!("router_id {vrid}"));
        let instance = instance.replace("192.168.1.200", &format!("192.168.1.2{vrid}"));
        format!(
            "global_defs {{\n {MAIL} smtp_alert_vrrp on\n}}\n{instance}\
             vrrp_sync_group G {{\n group {{\n VI_1\n }}\n}}\n"
        )
    };
    let (of_theirs, of_ours) = (mail_server(&site, Second), mail_server(&site, First));
    let there = real(&site, Second, &text(52));
    let mut daemon = Daemon::start(&site, First, &text(51));
    let wait_both = |what: &str, count: usize| {
        wait_for(what, || {
            let counts = [&of_theirs, &of_ours].map(|talks| comparable(talks).len());
            if counts == [count; 2] { Ok(()) } else { Err(format!("{counts:?}")) }
        });
    };
    wait_both("mails of two masters", 4);
    for host in [First, Second] {
        ip(&site, host, "link set eth0 down");
    }
    wait_both("mails of faults", 6);
    for host in [First, Second] {
        ip(&site, host, "link set eth0 up");
    }
    wait_both("mails of their end", 8);
    assert_eq!(comparable(&of_ours), comparable(&of_theirs));
    end(there);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

#[test]
fn mails_tell_of_real_servers_and_quorums() {
    let site = Site::new();
    let talks = mail_server(&site, First);
    let first = site.web(Web1);
    let quick = HOW_TO.replace("delay_loop 6", "delay_loop 0.3\n smtp_alert on");
    let mut daemon = Daemon::start(&site, First, &format!("global_defs {{\n {MAIL}}}\n{quick}"));
    wait_until("one server", &vec![(ONE.to_owned(), 3)], || site.table(First));
    drop(first);
    let service = "[192.168.1.200]:tcp:80";
    let server =
        |last: u8| format!("Realserver [192.168.1.{last}]:tcp:80 of virtual server {service}");
    let mut expected = vec![
        format!("Subject: [R1] {} - DOWN", server(101)),
        format!("Subject: [R1] {} - DOWN", server(102)),
        format!("Subject: [R1] Virtualserver {service} - DOWN"),
    ];
    let subjects = || {
        let talks = comparable(&talks).into_iter().flatten();
        talks.filter(|line| line.starts_with("Subject: ")).collect::<Vec<_>>()
    };
    wait_until("mails", &expected, subjects);
    let first = site.web(Web1);
    expected.insert(1, format!("Subject: [R1] {} - UP", server(101)));
    expected.push(format!("Subject: [R1] Virtualserver {service} - UP"));
    wait_until("mails of the end", &expected, subjects);
    // A mail server that is not there holds up nothing.
    let text = format!("global_defs {{\n {MAIL}}}\n{quick}").replace("2525", "2526");
    std::fs::write(&daemon.file, text).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_said(" reloaded: ", 1);
    drop(first);
    daemon.wait_said("127.0.0.1:2526 has not taken", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}
