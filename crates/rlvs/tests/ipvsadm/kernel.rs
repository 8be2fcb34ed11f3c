//! The kernel's own IPVS behind our command, and the real `ipvsadm` 1.31 beside it.
//!
//! All of it runs inside a Linux 6.1 that `scripts/ipvs-oracle` boots, in one boot.

use std::env;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::machine::Machine;
use crate::{golden, observed};

const RLVS: &str = env!("CARGO_BIN_EXE_rlvs");
const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/ipvs-oracle");
/// Tells the guest from the host; the script sets it.
const IN_GUEST: &str = "ORACLE";
const NOBODY: u32 = 65534;

#[test]
fn the_kernels_table_is_driven_as_by_the_real_ipvsadm() {
    if env::var_os(IN_GUEST).is_none() {
        return boot();
    }
    let begin = Instant::now();
    let part = |name: &str, work: &dyn Fn()| {
        eprintln!("{:6.1} s: {name}", begin.elapsed().as_secs_f64());
        work();
    };
    part("what is missing is said", &what_is_missing_is_said);
    part("recorded", &|| golden::check(Machine::with_kernel, &[]));
    part("observed", &|| observed::check(Machine::with_kernel, 1));
    part("side by side", &|| SCENARIOS.iter().for_each(|scenario| both_do_the_same(scenario)));
    part("save and restore", &what_one_saves_the_other_restores);
    part("the binary", &the_binary_takes_its_back_end_from_words_and_environment);
    part("traffic", &counters_and_connections_after_traffic);
    eprintln!("{:6.1} s: the end", begin.elapsed().as_secs_f64());
}

/// Runs this very test in the guest.
fn boot() {
    let output = Command::new(ORACLE)
        .arg(env::current_exe().unwrap())
        .args(["--exact", "kernel::the_kernels_table_is_driven_as_by_the_real_ipvsadm"])
        .args(["--nocapture"])
        // The module is what a part of the test is about.
        .env("ORACLE_MODULES", "ipv6 veth")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    eprintln!("{stderr}");
    assert!(output.status.success(), "{}\n{stdout}", output.status);
    assert!(stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

/// What a command printed, and its exit status.
type Outcome = (u8, String);

fn outcome(command: &mut Command) -> (Outcome, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let status = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap();
    ((status, text(output.stdout)), text(output.stderr))
}

fn real(line: &str) -> Outcome {
    outcome(Command::new("ipvsadm").args(line.split_whitespace())).0
}

fn ours(line: &str) -> Outcome {
    let machine = Machine::with_kernel_as_it_is().with_system_names();
    let outcome = machine.run(line);
    (outcome.status, outcome.stdout)
}

fn what_is_missing_is_said() {
    let listing = || {
        let mut command = Command::new(RLVS);
        command.args(["ipvsadm", "--backend", "kernel", "-L", "-n"]);
        command
    };
    // Without its helper the kernel finds no module.
    let helper = module_helper(None);
    let ((status, stdout), stderr) = outcome(&mut listing());
    module_helper(Some(&helper));
    assert_eq!((status, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.contains("no IPVS") && stderr.contains("modprobe ip_vs"), "{stderr}");

    let ((status, stdout), stderr) = outcome(&mut listing());
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("IP Virtual Server version 1.2.1 (size=4096)\n"), "{stdout}");

    let ((status, stdout), stderr) = outcome(listing().uid(NOBODY));
    assert_eq!((status, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.contains("CAP_NET_ADMIN"), "{stderr}");
}

/// Replaces the program that finds modules for the kernel, and returns which it was.
fn module_helper(program: Option<&str>) -> String {
    const FILE: &str = "/proc/sys/kernel/modprobe";
    let before = std::fs::read_to_string(FILE).unwrap();
    std::fs::write(FILE, program.unwrap_or("/nonexistent")).unwrap();
    before
}

const SCENARIOS: [&[&str]; 5] = [&SERVICES, &DESTINATIONS, &DESTINATIONS_V6, &TIMEOUTS, &DAEMONS];

/// No address near 127.0.0.1: with 10.0.0.1 and 224.0.0.1 it makes upstream's comparison run in a
/// circle, and then the sorted order depends on the kernel's, which a restore may change.
const SERVICES: [&str; 52] = [
    "-A -t 10.0.0.1:80",
    "-A -t 10.0.0.1:80 -s rr",
    "-A -u 10.0.0.1:80 -s rr",
    "-A -t 10.0.0.1:81 -s rr -p",
    "-A -t 10.0.0.1:82 -s wrr -p 600 -M 255.255.255.0",
    "-A -t 10.0.0.1:83 -s lc -p 2678400 -M 255.0.255.0",
    "-A -t 10.0.0.1:84 -s lc -M 255.255.0.0",
    "-A -t 10.0.0.1:0 -s rr -p 5",
    "-A -u 10.0.0.1:53 -s rr -o",
    "-A -u 10.0.0.1:5060 -s rr -p 60 --pe sip",
    "-A -u 10.0.0.1:5061 -s rr --pe sip",
    "-A -u 10.0.0.1:5062 -s rr -p 60 --pe nosuch",
    "-A -t 10.0.0.1:85 -s nosuch",
    "-A -t 10.0.0.1:86 -s none",
    "-A --sctp-service 10.0.0.1:2905 -s lc",
    "-A -f 7 -s wrr",
    "-A -f 7 -6 -s wrr",
    "-A -f 8 -6 -s sh -b sh-fallback,sh-port -p -M 64",
    "-A -f 9 -o",
    "-A -f 4294967295",
    "-A -t [2001:db8::1]:80 -s mh -b mh-fallback,mh-port -p 120 -M 56",
    "-A -u [2001:db8::1]:53 -s lblcr",
    "-A -t 10.0.0.2:80 -s rr -b flag-1,flag-2,flag-3",
    "-A -t 10.0.0.2:81 -s dh",
    "-A -t 10.0.0.2:82 -s lblc",
    "-A -t 10.0.0.2:83 -s sed",
    "-A -t 10.0.0.2:84 -s nq",
    "-A -t 10.0.0.2:85 -s fo",
    "-A -t 10.0.0.2:86 -s ovf",
    "-A -t 224.0.0.1:80",
    "-A -t 172.16.0.1:80",
    "-A -t 10.0.0.3:22 -s rr",
    "-E -t 10.0.0.1:80 -s rr -p 30 -M 255.255.255.128",
    "-E -t 10.0.0.1:81 -s rr",
    "-E -u 10.0.0.1:5060 -s rr -p 61",
    "-E -u 10.0.0.1:80 -s wlc -o",
    "-E -f 8 -6 -s sh -b sh-port",
    "-E -t 10.0.0.1:82 -s nosuch",
    "-E -t 10.9.9.9:82 -s rr",
    "-E -t 10.0.0.1:84 -s none",
    "-Z",
    "-Z -t 10.0.0.1:80",
    "-Z -f 8 -6",
    "-Z -t 10.9.9.9:80",
    "-L -n -t 10.0.0.1:80",
    "-L -n -f 8 -6 --stats",
    "-L -n -f 8 -6 --rate",
    "-L -n -t 10.9.9.9:80",
    "-D -t 10.0.0.2:80",
    "-D -t 10.0.0.2:80",
    "-D -f 9",
    "-D -f 9 -6",
];

const DESTINATIONS: [&str; 48] = [
    "-A -t 10.0.0.1:80 -s rr",
    "-A -u 10.0.0.1:53 -s rr",
    "-A -f 7 -s wrr",
    "-a -t 10.0.0.1:80 -r 10.1.0.1",
    "-a -t 10.0.0.1:80 -r 10.1.0.2:8080",
    "-a -t 10.0.0.1:80 -r 10.1.0.3:8080 -m -w 5",
    "-a -t 10.0.0.1:80 -r 10.1.0.4 -i -w 0",
    "-a -t 10.0.0.1:80 -r 10.1.0.5 -g -w 2147483647",
    "-a -t 10.0.0.1:80 -r 10.1.0.6 -g -x 100 -y 50",
    "-a -t 10.0.0.1:80 -r 10.1.0.7 -g -x 2147483647 -y 2147483647",
    "-a -t 10.0.0.1:80 -r 10.1.0.8 -g -x 5 -y 6",
    "-a -t 10.0.0.1:80 -r 10.1.0.1",
    "-a -t 10.0.0.1:80 -r 10.1.0.10 -i --tun-type gue --tun-port 6080",
    "-a -t 10.0.0.1:80 -r 10.1.0.11 -i --tun-type gue --tun-port 6081 --tun-nocsum",
    "-a -t 10.0.0.1:80 -r 10.1.0.12 -i --tun-type gue --tun-port 6082 --tun-csum",
    "-a -t 10.0.0.1:80 -r 10.1.0.13 -i --tun-type gue --tun-port 65535 --tun-remcsum",
    "-a -t 10.0.0.1:80 -r 10.1.0.14 -i --tun-type gre",
    "-a -t 10.0.0.1:80 -r 10.1.0.15 -i --tun-type gre --tun-csum",
    "-a -t 10.0.0.1:80 -r 10.1.0.16 -i --tun-type ipip",
    "-a -t 10.0.0.1:80 -r [2001:db8::5]:80 -i",
    "-a -t 10.0.0.1:80 -r 224.0.0.1:80",
    "-a -t 10.0.0.1:80 -r 255.255.255.255:80",
    "-a -t 10.0.0.1:80 -r 0.0.0.0:80",
    "-a -t 10.0.0.1:80 -r 127.0.0.1:8080 -m",
    "-a -t 10.9.9.9:80 -r 10.1.0.1",
    "-a -u 10.0.0.1:53 -r 10.1.0.1",
    "-a -u 10.0.0.1:53 -r 10.1.0.1:5353 -m",
    "-a -f 7 -r 10.1.0.1",
    "-a -f 7 -r 10.1.0.1:99 -m -w 3",
    "-a -f 7 -r 10.1.0.2:99 -i",
    "-e -t 10.0.0.1:80 -r 10.1.0.1 -w 9",
    "-e -t 10.0.0.1:80 -r 10.1.0.3:8080 -m -w 6 -x 10 -y 5",
    "-e -t 10.0.0.1:80 -r 10.1.0.3:8080 -w 6",
    "-e -t 10.0.0.1:80 -r 10.1.0.4 -m",
    "-e -t 10.0.0.1:80 -r 10.1.0.6 -i --tun-type gue --tun-port 7 --tun-csum",
    "-e -t 10.0.0.1:80 -r 10.1.0.10 -i --tun-type gre --tun-csum",
    "-e -t 10.0.0.1:80 -r 10.1.0.15 -i",
    "-e -t 10.0.0.1:80 -r 10.1.0.5 -x 1 -y 2",
    "-e -t 10.0.0.1:80 -r 10.8.8.8",
    "-e -t 10.9.9.9:80 -r 10.1.0.1",
    "-L -n -t 10.0.0.1:80 --tun-info",
    "-L -n -t 10.0.0.1:80 --thresholds",
    "-d -t 10.0.0.1:80 -r 10.1.0.1",
    "-d -t 10.0.0.1:80 -r 10.1.0.1",
    "-d -t 10.9.9.9:80 -r 10.1.0.1",
    "-d -f 7 -r 10.1.0.1:99",
    "-a -t 10.0.0.1:80 -r 10.1.0.1 -w 3",
    "-Z",
];

const DESTINATIONS_V6: [&str; 16] = [
    "-A -t [2001:db8::1]:80 -s rr",
    "-A -f 7 -6 -s wrr",
    "-a -t [2001:db8::1]:80 -r [2001:db8::11]:80 -g -w 2",
    "-a -t [2001:db8::1]:80 -r [2001:db8::12]:8080 -m -x 9 -y 1",
    "-a -t [2001:db8::1]:80 -r [2001:db8::13]:80 -i",
    "-a -t [2001:db8::1]:80 -r 10.1.0.1 -i --tun-type gue --tun-port 6080 --tun-remcsum",
    "-a -t [2001:db8::1]:80 -r [fe80::1]:80 -m",
    "-a -t [2001:db8::1]:80 -r [ff02::1]:80 -m",
    "-a -t [2001:db8::1]:80 -r [::]:80 -m",
    "-a -t [2001:db8::1]:80 -r [::1]:80 -m",
    "-a -f 7 -6 -r [2001:db8::11]:0 -g",
    "-e -t [2001:db8::1]:80 -r [2001:db8::11]:80 -i --tun-type gre --tun-nocsum -w 7",
    "-e -t [2001:db8::1]:80 -r 10.1.0.1 -i",
    "-d -t [2001:db8::1]:80 -r [2001:db8::13]:80",
    "-d -t [2001:db8::1]:80 -r [2001:db8::13]:80",
    "-d -f 7 -6 -r [2001:db8::11]:0",
];

const TIMEOUTS: [&str; 5] =
    ["--set 100 200 300", "-L --timeout", "--set 0 7 0", "-L --timeout", "--set 2678400 1 1"];

const DAEMONS: [&str; 16] = [
    "-L --daemon",
    "--stop-daemon backup",
    "--start-daemon master",
    "--start-daemon master --mcast-interface nosuch0",
    "--start-daemon master --mcast-interface lo --syncid 5",
    "--start-daemon master --mcast-interface lo --syncid 6",
    "-L --daemon",
    "--start-daemon backup --mcast-interface lo --syncid 255 --sync-maxlen 1400 \
     --mcast-group 224.1.2.3 --mcast-port 9999 --mcast-ttl 7",
    "-L --daemon",
    "-L -n --daemon",
    "--stop-daemon master --syncid 5",
    "--stop-daemon master",
    "--start-daemon master --mcast-interface lo --mcast-group ff02::81 --mcast-ttl 2",
    "-L --daemon",
    "--stop-daemon backup",
    "-L --daemon",
];

/// Everything that can be listed in numbers.
const LISTS: [&str; 14] = [
    "-L -n",
    "-L -n --nosort",
    "-L -n --stats",
    "-L -n --stats --exact",
    "-L -n --rate",
    "-L -n --rate -X",
    "-L -n --thresholds",
    "-L -n --persistent-conn",
    "-L -n --tun-info",
    "-L -n -c",
    "-L -n -c --persistent-conn",
    "-L --timeout",
    "-L --daemon",
    "-S -n",
];

/// Carries the lines out with the real command, then with ours, and demands the same answers, the
/// same table, and that both list it alike.
fn both_do_the_same(scenario: &[&str]) {
    drop(Machine::with_kernel());
    let answers: Vec<_> = scenario.iter().map(|line| (*line, real(line))).collect();
    let listed = lists_of_the_real();
    assert_eq!(LISTS.map(|list| ours(list).1).concat(), listed);
    drop(Machine::with_kernel());
    for (line, answer) in answers {
        assert_eq!(ours(line), answer, "{line}");
    }
    assert_eq!(lists_of_the_real(), listed);
}

/// Returns everything that can be listed from one run of the real command, because starting
/// programs is what takes time in the guest.
fn lists_of_the_real() -> String {
    let mut child = restoring(&LISTS.map(|list| format!("{list}\n")).concat());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    text
}

/// Starts the real command with lines to restore.
fn restoring(lines: &str) -> Child {
    let mut command = Command::new("ipvsadm");
    command.arg("-R").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child
}

fn what_one_saves_the_other_restores() {
    for scenario in [&SERVICES[..], &DESTINATIONS[..], &DESTINATIONS_V6[..]] {
        drop(Machine::with_kernel());
        scenario.iter().for_each(|line| drop(ours(line)));
        // A mark above 2^31 is written in a way that nothing reads back.
        drop(ours("-D -f 4294967295"));
        let (_, saved) = real("-S -n");
        assert_eq!(ours("-S -n").1, saved);
        assert!(saved.lines().count() > 3, "{saved}");

        let restored = Machine::with_kernel().run_words(&["-R"], &saved);
        assert_eq!((restored.status, restored.stderr.as_str()), (0, ""));
        assert_eq!(real("-S -n").1, saved);

        drop(Machine::with_kernel());
        assert!(restoring(&saved).wait().unwrap().success());
        assert_eq!(ours("-S -n").1, saved);
    }
}

fn the_binary_takes_its_back_end_from_words_and_environment() {
    drop(Machine::with_kernel());
    assert_eq!(real("-A -t 127.0.0.1:22 -s rr").0, 0);
    assert!(real("-L").1.contains("localhost:ssh"), "{:?}", real("-L"));
    assert_eq!([ours("-L"), ours("-S")], [real("-L"), real("-S")]);
    let listed = real("-L -n");
    let run = |words: &[&str], variable: Option<&str>| {
        let mut command = Command::new(RLVS);
        command.arg0("ipvsadm").args(words);
        match variable {
            Some(name) => command.env("RLVS_BACKEND", name),
            None => command.env_remove("RLVS_BACKEND"),
        };
        outcome(&mut command)
    };
    assert_eq!(run(&["--backend", "kernel", "-Ln"], None).0, listed);
    assert_eq!(run(&["--backend=kernel", "-Ln"], Some("rlvs")).0, listed);
    assert_eq!(run(&["-Ln"], Some("kernel")).0, listed);
    let ((status, _), stderr) = run(&["-Ln"], Some("none"));
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("neither rlvs nor kernel"), "{stderr}");
    let ((status, _), stderr) = run(&["-L", "--backend", "kernel"], None);
    assert_eq!(status, 2, "{stderr}");
    let (refused, _) = run(&["--backend", "kernel", "-A", "-t", "127.0.0.1:22"], None);
    assert_eq!(refused, (255, String::new()));
}

const VIP: [&str; 2] = ["10.9.0.1", "fd09::1"];
const SERVER: [&str; 2] = ["10.9.0.11", "fd09::11"];

/// Sends traffic through the kernel's IPVS, which balances what this host itself sends too.
fn counters_and_connections_after_traffic() {
    drop(Machine::with_kernel());
    for address in [VIP, SERVER].concat() {
        let length = if address.contains(':') { 128 } else { 32 };
        let local = format!("addr add {address}/{length} dev lo nodad");
        let local = local.trim_end_matches(if length == 32 { " nodad" } else { "" }).to_owned();
        assert!(Command::new("ip").args(local.split(' ')).status().unwrap().success());
    }
    for line in [
        "-A -t 10.9.0.1:80 -s rr -p 720000",
        "-a -t 10.9.0.1:80 -r 10.9.0.11:8080 -m",
        "-A -t [fd09::1]:80 -s wlc",
        "-a -t [fd09::1]:80 -r [fd09::11]:8080 -m",
        "-A -u 10.9.0.1:5060 -s rr -p 60 --pe sip",
        "-a -u 10.9.0.1:5060 -r 10.9.0.11:5060 -m",
        "-A -f 7 -s rr -p",
        "-a -f 7 -r 10.9.0.11:0 -m",
    ] {
        assert_eq!(ours(line), (0, String::new()), "{line}");
    }
    let answering: Vec<_> = SERVER.map(|server| answer(server.parse().unwrap())).into();
    let held: Vec<_> = VIP.iter().flat_map(|vip| (0..3).map(move |_| ask(vip, 80, 0))).collect();
    let marked = ask(VIP[0], 8080, 7);
    let phone = call();
    // The kernel adds up every 2 s.
    let deadline = Instant::now() + Duration::from_secs(20);
    let counted = [
        "TCP 10.9.0.1:80 3 9 6 ",
        "TCP [fd09::1]:80 3 9 6 ",
        "UDP 10.9.0.1:5060 1 1 0 ",
        "FWM 7 1 3 2 ",
    ];
    loop {
        let stats = words(&ours("-L -n --stats").1);
        if counted.iter().all(|part| stats.contains(part)) {
            break;
        }
        assert!(Instant::now() < deadline, "{stats}");
    }
    LISTS.iter().for_each(|list| stands_still(list));
    let (_, connections) = ours("-L -n -c --persistent-conn");
    for part in ["ESTABLISHED", "0.0.0.7:0", "[fd09::1]:80", "sip", "4711@phone", "10.9.0.11:8080"]
    {
        assert!(connections.contains(part), "{part} in {connections}");
    }
    assert_eq!(ours("-Z"), (0, String::new()));
    stands_still("-L -n --stats");
    let stats = words(&ours("-L -n --stats").1);
    assert!(stats.contains("TCP 10.9.0.1:80 0 0 0 0 0 "), "{stats}");
    drop((answering, held, marked, phone));
}

/// Returns a text with one blank between two words.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Demands that ours lists what the real one does before and after it, once these two agree.
fn stands_still(list: &str) {
    let sorted = |(status, text): Outcome| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        // Connections come in no order.
        if list.contains("-c") {
            lines.sort();
        }
        (status, lines)
    };
    for _ in 0..20 {
        let (before, between, after) = (real(list), ours(list), real(list));
        if sorted(before.clone()) == sorted(after) {
            assert_eq!(sorted(between), sorted(before), "{list}");
            return;
        }
    }
    panic!("{list} never stands still");
}

/// Answers HTTP's first byte on port 8080 as long as the process lives.
fn answer(address: IpAddr) -> std::thread::JoinHandle<()> {
    let listener = TcpListener::bind((address, 8080)).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"H").unwrap();
            kept.push(stream);
        }
    })
}

/// Connects with a mark, waits for the answer and stays connected.
fn ask(address: &str, port: u16, mark: u32) -> TcpStream {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket =
        nix::sys::socket::socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
    nix::sys::socket::setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    let address = SockaddrStorage::from(to);
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// Opens a call by SIP, which its engine knows by the call's name.
fn call() -> UdpSocket {
    let server = UdpSocket::bind((SERVER[0], 5060)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    let text = "INVITE sip:a@b SIP/2.0\r\nCall-ID: 4711@phone\r\nContent-Length: 0\r\n\r\n";
    client.send_to(text.as_bytes(), (VIP[0], 5060)).unwrap();
    server.recv_from(&mut [0; 512]).unwrap();
    client
}
