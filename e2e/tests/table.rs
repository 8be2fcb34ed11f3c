//! The virtual-server table as administrators meet it, several of them and killed ones too.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::lab::{
    Method, Random, Said, Stage, connect, counts, tcp_server, udp_client, udp_server, wait_until,
};
use rlvs::lab::topology::{REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");

fn golden(text: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    let plays = |case: &Value| {
        let name = case["name"].as_str().unwrap();
        let later = ["persist", "tun", "-ops"];
        case["kernel"].as_str().unwrap().starts_with("6.1.")
            && !later.iter().any(|word| name.contains(word))
    };
    let cases: Vec<Value> = cases.into_iter().filter(plays).collect();
    assert!(cases.len() >= 7, "only {} cases", cases.len());
    cases
}

/// A recorded case, played on the lab's addresses.
struct Play<'a> {
    stage: &'a Stage,
    case: &'a Value,
    method: Method,
    port: u16,
    held: Vec<TcpStream>,
    sockets: Vec<UdpSocket>,
}

/// With direct routing the third server needs a machine of its own: these are played with NAT.
const ADDS: &str = "-add";
/// The recorded third server, which the lab does not have: another port of the first.
const THIRD: u16 = 10_000;

impl<'a> Play<'a> {
    fn new(stage: &'a Stage, case: &'a Value, method: Method) -> Self {
        let port = u16::try_from(case["port"].as_u64().unwrap()).unwrap();
        Self { stage, case, method, port, held: Vec::new(), sockets: Vec::new() }
    }

    fn service(&self) -> SocketAddr {
        let vip = if self.method == Method::Direct { VIPS[0] } else { VIPS[1] };
        SocketAddr::new(vip.of(Family::V4), self.port)
    }

    fn protocol(&self) -> &'static str {
        if self.case["proto"] == "udp" { "-u" } else { "-t" }
    }

    /// Puts the lab's address in the place of a recorded real server.
    fn real(&self, recorded: &str) -> SocketAddr {
        let server = |index: usize| self.method.address(&REAL_SERVERS[index], Family::V4);
        match recorded.split_once(':').unwrap().0.rsplit_once('.').unwrap().1 {
            "101" => SocketAddr::new(server(0), self.port),
            "102" => SocketAddr::new(server(1), self.port),
            "103" => SocketAddr::new(server(0), self.port + THIRD),
            other => panic!("server {other}"),
        }
    }

    /// Starts the servers; those of TCP serve every address of their machine.
    fn serve(&self) {
        let added = self.case["name"].as_str().unwrap().ends_with(ADDS);
        if self.protocol() == "-t" && self.method == Method::Nat && !added {
            return;
        }
        let names = ["r1", "r2", "r3"];
        let spaces = self.stage.lab.real_servers();
        for (index, name) in names.into_iter().enumerate() {
            let (namespace, port) = (&spaces[index % 2], self.port + THIRD * (index as u16 / 2));
            if self.protocol() == "-t" {
                tcp_server(namespace, port, Some(name));
                continue;
            }
            let ip = match self.method {
                Method::Direct => self.service().ip(),
                Method::Nat => REAL_SERVERS[index % 2].inside.of(Family::V4),
            };
            udp_server(namespace, SocketAddr::new(ip, port), name);
        }
    }

    /// Types a recorded command with the lab's addresses and this play's method.
    fn type_in(&self, recorded: &str) {
        let words: Vec<String> = {
            let mut previous = "";
            let replace = |word: &'a str, previous: &str| match previous {
                "-t" | "-u" => self.service().to_string(),
                "-r" => self.real(word).to_string(),
                _ if word == "-g" || word == "-m" => self.method.option().to_owned(),
                _ => word.to_owned(),
            };
            let recorded: &'a str = Box::leak(recorded.to_owned().into_boxed_str());
            recorded
                .split_ascii_whitespace()
                .map(|word| replace(word, std::mem::replace(&mut previous, word)))
                .collect()
        };
        self.stage.ipvsadm(&words.join(" ")).ok();
    }

    fn picks(&mut self, operation: &str, count: usize) -> Vec<String> {
        let service = self.service();
        let ask = |socket: &UdpSocket| {
            socket.send(b"").unwrap();
            let mut answer = [0; 16];
            let length = socket.recv(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        self.stage.as_client(|| {
            (0..count)
                .map(|number| match operation {
                    "short" | "hold" => match connect(service) {
                        Ok(greeted) => {
                            if operation == "hold" {
                                self.held.push(greeted.stream);
                            }
                            greeted.name
                        }
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                            "ECONNREFUSED".to_owned()
                        }
                        Err(error) => error.to_string(),
                    },
                    "udp1" | "udpn" => {
                        if operation == "udpn" || number == 0 {
                            self.sockets.push(udp_client(service).unwrap());
                        }
                        ask(self.sockets.last().unwrap())
                    }
                    other => panic!("operation {other}"),
                })
                .collect()
        })
    }

    /// Makes short connections, each when those before it are over for the director too: schedulers
    /// that count ask how many are active.
    fn short_picks(&mut self, count: usize) -> Vec<String> {
        let counts = !["rr", "wrr"].contains(&self.case["sched"].as_str().unwrap());
        let mut picks = Vec::new();
        for _ in 0..if counts { count } else { 1 } {
            picks.extend(self.picks("short", if counts { 1 } else { count }));
            if counts {
                wait_until("the end of a short connection", &(self.held.len() as u32), || {
                    let rows = self.stage.counts(self.protocol(), self.service());
                    rows.into_iter().map(|(_, active, _)| active).sum()
                });
            }
        }
        picks
    }

    fn play(mut self) {
        let label = format!("{} {:?}", self.case["name"], self.method);
        self.serve();
        for command in self.case["setup"].as_array().unwrap() {
            self.type_in(command.as_str().unwrap());
        }
        for (number, step) in self.case["steps"].as_array().unwrap().iter().enumerate() {
            let operation = step["op"].as_str().unwrap();
            match operation {
                "adm" => {
                    for command in step["ipvsadm"].as_array().unwrap() {
                        self.type_in(command.as_str().unwrap());
                    }
                }
                "close" => {
                    let count = step["n"].as_u64().unwrap() as usize;
                    drop(self.held.drain(..count.min(self.held.len())));
                }
                _ => {
                    let expected: Vec<&str> = step["picks"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|pick| pick.as_str().unwrap())
                        .collect();
                    // A refusal takes a second on veth; one of each says as much as three.
                    let expected = match expected[0] {
                        "ECONNREFUSED" => &expected[..1],
                        _ => &expected[..],
                    };
                    let picks = match operation {
                        "short" => self.short_picks(expected.len()),
                        _ => self.picks(operation, expected.len()),
                    };
                    assert_eq!(picks, expected, "{label}, step {number} ({operation})");
                }
            }
            let Some(after) = step["after"].as_object() else { continue };
            let expected: BTreeMap<String, (u64, u64)> = after
                .iter()
                .map(|(real, row)| {
                    let count = |name: &str| row[name].as_u64().unwrap();
                    (self.real(real).to_string(), (count("active"), count("inact")))
                })
                .collect();
            wait_until(&format!("{label}, step {number} ({operation})"), &expected, || {
                let rows = self.stage.counts(self.protocol(), self.service());
                rows.into_iter()
                    .map(|(name, active, idle)| (name, (active.into(), idle.into())))
                    .collect()
            });
        }
    }
}

fn play_all(text: &str) {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let cases = golden(text);
    for method in Method::ALL {
        let possible = |case: &&Value| {
            method == Method::Nat || !case["name"].as_str().unwrap().ends_with(ADDS)
        };
        let mut played = BTreeSet::new();
        for case in cases.iter().filter(possible) {
            if played.insert(case["port"].as_u64()) {
                Play::new(&stage, case, method).play();
            }
        }
        assert!(played.len() >= 7, "{method:?}: {played:?}");
    }
}

#[test]
fn round_robin_picks_and_counts_as_the_kernel_was_seen_to() {
    play_all(include_str!("../../crates/rlvs-control/tests/golden/sched/rr.json"));
}

#[test]
fn weighted_round_robin_picks_and_counts_as_the_kernel_was_seen_to() {
    play_all(include_str!("../../crates/rlvs-control/tests/golden/sched/wrr.json"));
}

#[test]
fn weighted_least_connections_picks_and_counts_as_the_kernel_was_seen_to() {
    play_all(include_str!("../../crates/rlvs-control/tests/golden/sched/wlc.json"));
}

#[test]
fn locality_with_replication_picks_and_counts_as_the_kernel_was_seen_to() {
    play_all(include_str!("../../crates/rlvs-control/tests/golden/sched/lblcr.json"));
}

#[test]
fn overflow_picks_and_counts_as_the_kernel_was_seen_to() {
    play_all(include_str!("../../crates/rlvs-control/tests/golden/sched/ovf.json"));
}

/// Every scheduler is taken, shown, saved and changed with its flags; thresholds are shown.
#[test]
fn schedulers_flags_and_thresholds_are_shown_as_they_were_set() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let mut expected = String::new();
    for (number, (name, _)) in rlvs_control::scheduler::ALL.iter().enumerate() {
        let flags = match *name {
            "sh" => " -b sh-fallback,sh-port",
            "mh" => " -b mh-port",
            "lc" => " -b flag-3",
            _ => "",
        };
        let service = format!("-t 192.168.1.200:{}", 101 + number);
        let real = format!("-r 10.0.1.101:{}", 101 + number);
        stage.ipvsadm(&format!("-A {service} -s rr")).ok();
        stage.ipvsadm(&format!("-a {service} {real} -m -w 2 -x 7 -y 3")).ok();
        stage.ipvsadm(&format!("-E {service} -s {name}{flags}")).ok();
        expected += &format!("-A {service} -s {name}{flags}\n-a {service} {real} -m -w 2\n");
    }
    assert_eq!(stage.ipvsadm("-S -n").ok(), expected);
    let listing = stage.ipvsadm("-L -n").ok();
    assert!(listing.contains(" sh (sh-fallback,sh-port)\n"), "{listing}");
    let thresholds = stage.ipvsadm("-L -n --thresholds").ok();
    let rows = thresholds.lines().filter(|line| line.starts_with("  -> 10."));
    for row in rows {
        let words: Vec<&str> = row.split_ascii_whitespace().collect();
        assert_eq!(words[2..4], ["7", "3"], "{row}");
    }
    // Without -b the flags go.
    stage.ipvsadm("-E -t 192.168.1.200:110 -s sh").ok();
    assert!(!stage.ipvsadm("-S -n").ok().contains("sh-fallback"));
}

#[test]
fn the_table_is_the_same_inside_and_outside_of_ip_netns_exec() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let name = stage.lab.director().name();
    let by_ip = |arguments: &str| -> Said {
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", name, PROGRAM, "ipvsadm"]);
        command.args(arguments.split_ascii_whitespace()).output().unwrap().into()
    };
    // Made by one, filled by the other, made the other way round.
    by_ip("-A -t 192.168.1.200:80 -s rr").ok();
    stage.ipvsadm("-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g").ok();
    by_ip("-a -t 192.168.1.200:80 -r 192.168.1.102:80 -g -w 3").ok();
    stage.ipvsadm("-A -u [fd00:1::200]:53 -s wrr").ok();
    by_ip("-a -u [fd00:1::200]:53 -r [fd00:2::101]:53 -m").ok();
    let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  192.168.1.200:80 rr
  -> 192.168.1.101:80             Route   1      0          0         
  -> 192.168.1.102:80             Route   3      0          0         
UDP  [fd00:1::200]:53 wrr
  -> [fd00:2::101]:53             Masq    1      0          0         
";
    assert_eq!(stage.listing(), expected);
    assert_eq!(by_ip("-L -n").ok(), expected);
    by_ip("-C").ok();
    assert_eq!(stage.ipvsadm("-S -n").ok(), "");
    stage.rlvs(&["detach"]).ok();
    assert_eq!(stage.ipvsadm("-S -n").ok(), "");
}

#[test]
fn administrators_at_the_same_time_lose_nothing() {
    // Also not when it is they who bring the table into being.
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let administrators = 4_u16;
    std::thread::scope(|scope| {
        for administrator in 0..administrators {
            let stage = &stage;
            scope.spawn(move || {
                for number in 0..4 {
                    let service = format!("-t 192.168.1.200:{}", 100 * administrator + number + 1);
                    stage.ipvsadm(&format!("-A {service} -s wrr")).ok();
                    for weight in 1..=3 {
                        let real = format!("10.0.1.{}:{}", 101 + number % 2, 8000 + weight);
                        stage.ipvsadm(&format!("-a {service} -r {real} -m -w {weight}")).ok();
                    }
                    if number == 3 {
                        stage.ipvsadm(&format!("-D {service}")).ok();
                    }
                }
            });
        }
    });
    let mut expected = String::new();
    for administrator in 0..administrators {
        for number in 0..3 {
            let service = format!("-t 192.168.1.200:{}", 100 * administrator + number + 1);
            expected += &format!("-A {service} -s wrr\n");
            for weight in 1..=3 {
                let real = format!("10.0.1.{}:{}", 101 + number % 2, 8000 + weight);
                expected += &format!("-a {service} -r {real} -m -w {weight}\n");
            }
        }
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let saved = stage.ipvsadm("-S -n").ok();
    assert_eq!(saved.lines().count(), expected.lines().count());
    assert_eq!(lines(&saved), lines(&expected));
    let attached = stage.rlvs(&["status"]).ok();
    // Both, and the loopback device, as there is NAT.
    assert_eq!(attached.matches("interface ").count(), 3, "{attached}");
}

#[test]
fn what_is_refused_says_so_and_changes_nothing() {
    let stage = Stage::bare(Wiring::Plain, PROGRAM);
    let new_services = [
        ("-A -u 192.168.1.201:80 -s rr -p 300 --pe rtp", "persistence engine"),
        ("-A -t 192.168.1.201:80 -s least", "least"),
    ];
    let refuse = |commands: &[(&str, &str)]| {
        for (command, word) in commands {
            let said = stage.ipvsadm(command);
            assert_eq!(said.status, Some(255), "{command}: {said:?}");
            assert!(said.errors.contains(word), "{command}: {said:?}");
            assert_eq!(said.output, "", "{command}");
        }
    };
    refuse(&new_services);
    assert!(stage.rlvs(&["status"]).output.starts_with("not attached"), "a refusal attached");
    stage.ipvsadm("-A -t 192.168.1.200:80 -s wrr").ok();
    stage.ipvsadm("-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g -w 3").ok();
    let before = stage.ipvsadm("-S -n").ok();
    refuse(&new_services);
    refuse(&[
        ("-e -t 192.168.1.200:80 -r 192.168.1.102:80 -g", "no such destination"),
        ("-a -t 192.168.1.200:80 -r 192.168.1.101:80 -g", "destination exists already"),
        ("-A -t 192.168.1.200:80 -s rr", "service exists already"),
        ("-E -t 192.168.1.200:80 -s least", "least"),
        ("-D -t 192.168.1.200:81", "no such virtual service"),
        ("-a -t 192.168.1.200:81 -r 192.168.1.102:80 -g", "no such virtual service"),
        ("-d -t 192.168.1.200:80 -r 192.168.1.102:80", "no such destination"),
    ]);
    assert_eq!(stage.ipvsadm("-S -n").ok(), before);
}

/// Runs a command and kills it after a time, without a look at where it is.
fn kill_after(stage: &Stage, arguments: &str, time: Duration) -> bool {
    let mut command = stage.ipvsadm_command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = command.spawn().unwrap();
    // The kernel's timers are coarser than the steps of the command: at most a run's length.
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

/// Runs `ipvsadm -R` on a text.
fn restore(stage: &Stage, text: &str) {
    let mut command = stage.ipvsadm_command("-R");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Said::from(child.wait_with_output().unwrap()).ok();
}

#[test]
fn a_hundred_killed_administrators_leave_a_whole_table() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let ports: Vec<u16> = (1..=4).collect();
    for namespace in stage.lab.real_servers() {
        for port in &ports {
            tcp_server(namespace, 9000 + port, None);
        }
    }
    let full: String = (1..=3)
        .flat_map(|service| {
            let service = format!("-t 192.168.1.200:{service}");
            let real = format!("-a {service} -r 10.0.1.101:900");
            [
                format!("-A {service} -s wrr\n"),
                format!("{real}1 -m -w 3\n"),
                format!("{real}2 -m -w 1\n"),
            ]
        })
        .collect();
    restore(&stage, &full);
    let run_time = (0..5)
        .map(|_| {
            let begin = Instant::now();
            stage.ipvsadm("-E -t 192.168.1.200:1 -s wrr").ok();
            begin.elapsed()
        })
        .min()
        .unwrap();
    let mut random = Random(2_463_534_242);
    let mut killed = 0;
    for _ in 0..120 {
        let mut pick = |below: u64| random.next_number() % below;
        let service = format!("-t 192.168.1.200:{}", 1 + pick(3));
        let real = format!("-r 10.0.1.{}:{}", 101 + pick(2), 9001 + pick(4));
        let command = match pick(32) {
            0..4 => format!("-A {service} -s rr"),
            4..8 => format!("-A {service} -s wrr"),
            8..12 => format!("-E {service} -s rr"),
            12 => format!("-D {service}"),
            13..22 => format!("-a {service} {real} -m -w {}", pick(4)),
            22..28 => format!("-e {service} {real} -m -w {}", pick(4)),
            _ => format!("-d {service} {real}"),
        };
        // The first part of a run is the program's own start.
        let time = run_time.mul_f64(0.25 + pick(1000) as f64 / 1100.0);
        killed += u32::from(kill_after(&stage, &command, time));
    }
    assert!(killed >= 60, "only {killed} died at work, of which one takes {run_time:?}");
    stage.listing();
    let saved = stage.ipvsadm("-S -n").ok();
    assert!(saved.lines().count() > 3, "the seed should leave something to look at:\n{saved}");
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines(&saved).len(), saved.lines().count(), "something is there twice:\n{saved}");
    everybody_serves(&stage, &saved);
    stage.ipvsadm("-C").ok();
    assert_eq!(stage.ipvsadm("-S -n").ok(), "");
    restore(&stage, &saved);
    assert_eq!(stage.ipvsadm("-S -n").ok(), saved);
    everybody_serves(&stage, &saved);
}

/// Connects to every service until each has gone round: the shares must be those of its scheduler.
fn everybody_serves(stage: &Stage, saved: &str) {
    let mut services: BTreeMap<&str, (&str, BTreeMap<&str, usize>)> = BTreeMap::new();
    for line in saved.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[0] {
            "-A" => drop(services.insert(words[2], (words[4], BTreeMap::new()))),
            "-a" => {
                let weight = words[7].parse().unwrap();
                services.get_mut(words[2]).unwrap().1.insert(words[4], weight);
            }
            _ => panic!("{line}"),
        }
    }
    for (service, (scheduler, weights)) in services {
        let share = |weight: usize| match scheduler {
            "rr" => weight.min(1),
            _ => weight,
        };
        let round: usize = weights.values().map(|&weight| share(weight)).sum();
        let target: SocketAddr = service.parse().unwrap();
        if round == 0 {
            let error = stage.as_client(|| connect(target)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{service}");
            continue;
        }
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        // Full rounds, so that it does not matter where the scheduler stood.
        let full = (1..=3).product::<usize>();
        stage.as_client(|| {
            for _ in 0..round * full {
                *seen.entry(connect(target).unwrap().name).or_default() += 1;
            }
        });
        let expected: BTreeMap<String, usize> = weights
            .iter()
            .map(|(&name, &weight)| (name.to_owned(), share(weight) * full))
            .filter(|&(_, count)| count > 0)
            .collect();
        assert_eq!(seen, expected, "{service} {scheduler} in\n{saved}");
        let listed = counts(&stage.ipvsadm(&format!("-L -n -t {service}")).ok());
        assert_eq!(listed.len(), weights.len());
    }
}
