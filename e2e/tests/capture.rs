//! `rlvs capture`: what it tells is what came and went, and it leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::lab::{Method, Stage, connect, inside, tcp_server, tool, wait_until};
use e2e::schema;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rlvs::lab::topology::{CLIENT, REAL_SERVERS, VIPS, Wiring};
use rlvs_control::model::Family;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const PORT: u16 = 7000;

fn echo_stage(wiring: Wiring) -> (Stage, SocketAddr) {
    let stage = Stage::attached(wiring, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, PORT, Some(server.title));
    }
    let vip = SocketAddr::new(VIPS[0].of(Family::V4), PORT);
    let vip = stage.serve("-t", vip, Method::Nat, PORT);
    (stage, vip)
}

/// A capture that runs in the director.
struct Running {
    child: Child,
}

impl Running {
    /// Begins one, and waits until it looks.
    fn begin(stage: &Stage, words: &[&str]) -> Self {
        let mut command = Command::new(stage.program());
        command.arg("capture").args(words).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        inside(stage.lab.director(), &mut command);
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.as_mut().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("looking for"), "{line}");
        Self { child }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it as Ctrl-C does; returns what it has told.
    fn end(mut self) -> Vec<Value> {
        self.signal(Signal::SIGINT);
        let mut told = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(self.child.wait().unwrap().success());
        let told: Vec<Value> =
            told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        told.iter().for_each(|line| schema::check("capture", line));
        told
    }
}

/// Connects once, and reads the greeting.
#[track_caller]
fn visit(stage: &Stage, vip: SocketAddr) {
    stage.as_client(|| connect(vip)).unwrap();
}

/// The packets of which one end is the client's, as "what came -> what went".
fn told(packets: &[Value]) -> Vec<String> {
    let text = |value: &Value| value["packet"].as_str().unwrap_or("nothing").to_owned();
    packets
        .iter()
        .map(|packet| {
            format!(
                "{} {} {}: {} -> {}",
                packet["interface"].as_str().unwrap(),
                packet["verdict"].as_str().unwrap(),
                packet["reasons"],
                text(&packet["came"]),
                text(&packet["went"])
            )
        })
        .collect()
}

/// Ids of the programs that pinned links of the director run.
fn programs(stage: &Stage) -> Vec<u32> {
    let said = stage.lab.director().run(|| {
        let folder = rlvs_linux::dataplane::pins::open().unwrap().unwrap();
        rlvs_linux::dataplane::attach::programs(&folder).unwrap()
    });
    said.unwrap()
}

fn both_ways_are_seen(wiring: Wiring) {
    let (stage, vip) = echo_stage(wiring);
    // The neighbours are known from now on, so that XDP sends by itself.
    (0..2).for_each(|_| visit(&stage, vip));
    let before = programs(&stage);
    let running = Running::begin(&stage, &["--json", "--port", "7000"]);
    assert_ne!(programs(&stage), before);
    visit(&stage, vip);
    let told = told(&running.end());
    let client = CLIENT.of(Family::V4);
    let is_syn = |line: &&String| {
        line.contains(&format!("TCP {client}:"))
            && line.contains(&format!("> {vip} SYN ->"))
            && REAL_SERVERS.iter().any(|server| {
                line.ends_with(&format!("> {}:{PORT} SYN", server.inside.of(Family::V4)))
            })
    };
    assert_eq!(told.iter().filter(is_syn).count(), 1, "{told:#?}");
    // The answer comes from a real server and goes in the name of the service.
    let is_answer = |line: &&String| {
        line.contains(&format!("-> TCP {vip} > {client}:")) && line.ends_with(" SYN,ACK")
    };
    assert_eq!(told.iter().filter(is_answer).count(), 1, "{told:#?}");
    let is_sent = |line: &String| line.contains(" redirect []: ") || line.contains(" tx []: ");
    assert!(told.iter().all(is_sent), "{told:#?}");
    // Nothing is left of it.
    assert_eq!(programs(&stage), before);
    visit(&stage, vip);
}

#[test]
fn both_ways_are_seen_at_native_xdp() {
    both_ways_are_seen(Wiring::Tuned);
}

#[test]
fn both_ways_are_seen_at_tc() {
    both_ways_are_seen(Wiring::Plain);
}

#[test]
fn only_what_is_asked_for_is_told_with_its_reason() {
    let (stage, vip) = echo_stage(Wiring::Tuned);
    stage.rlvs(&["acl", "deny", &format!("{}/32", CLIENT.of(Family::V4))]).ok();
    let running = Running::begin(&stage, &["--json", "--reason", "denied", "-c", "1"]);
    let other = SocketAddr::new(VIPS[0].of(Family::V6), PORT);
    let other = stage.serve("-t", other, Method::Nat, PORT);
    visit(&stage, other);
    let refused = stage.as_client(|| TcpStream::connect_timeout(&vip, Duration::from_millis(100)));
    assert!(refused.is_err());
    let told = told(&running.end());
    let [line] = told.as_slice() else { panic!("{told:#?}") };
    assert!(line.contains("drop [\"denied\"]"), "{line}");
    assert!(line.ends_with(&format!("> {vip} SYN -> nothing")), "{line}");
}

#[test]
fn a_file_is_what_tshark_reads() {
    let Some(tshark) = tool("tshark") else { return };
    let (stage, vip) = echo_stage(Wiring::Tuned);
    (0..2).for_each(|_| visit(&stage, vip));
    let path = std::env::temp_dir().join(format!("rlvs-capture-{}.pcapng", std::process::id()));
    let host = CLIENT.of(Family::V4).to_string();
    let words = ["-w", path.to_str().unwrap(), "--host", &host, "--proto", "tcp"];
    let running = Running::begin(&stage, &words);
    visit(&stage, vip);
    running.end();
    let fields = "-Tfields -e frame.interface_name -e frame.packet_flags_direction -e tcp.flags.str \
                  -e ip.dst -e tcp.checksum.status -e frame.comment -otcp.check_checksum:TRUE";
    let output = Command::new(tshark)
        .args(["-r", path.to_str().unwrap()])
        .args(fields.split_ascii_whitespace())
        .output()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let syns: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|fields: &Vec<&str>| fields.get(2).is_some_and(|flags| flags.ends_with("···S·")))
        .collect();
    let [came, went, ..] = syns.as_slice() else { panic!("{said}") };
    assert_eq!(came[..2], ["eth0", "0x00000001"], "{said}");
    assert_eq!((went[1], came[3]), ("0x00000002", vip.ip().to_string().as_str()), "{said}");
    assert!(came[5].starts_with("xdp: "), "{said}");
    assert!(went[5].contains(&format!("> {vip} SYN")), "{said}");
    // What went is right to its checksum.
    assert_eq!((came[4], went[4]), ("1", "1"), "{said}");
}

#[test]
fn a_capture_that_is_killed_harms_nothing_and_is_tidied_up() {
    let (stage, vip) = echo_stage(Wiring::Tuned);
    let before = programs(&stage);
    for looks in ["status", "metrics"] {
        let mut running = Running::begin(&stage, &["--json"]);
        let said = stage.rlvs(&["capture"]);
        let refused = said.errors.contains("another `rlvs capture`");
        assert!(said.status != Some(0) && refused, "{said:?}");
        running.signal(Signal::SIGKILL);
        running.child.wait().unwrap();
        // The link still runs the capture's program, which calls the balancer's.
        assert_ne!(programs(&stage), before);
        (0..4).for_each(|_| visit(&stage, vip));
        stage.rlvs(&[looks]).ok();
        assert_eq!(programs(&stage), before);
        visit(&stage, vip);
    }
    // And while one runs, everything can be taken off.
    let running = Running::begin(&stage, &["--json"]);
    stage.rlvs(&["detach"]).ok();
    running.end();
    wait_until("the folder", &false, || {
        let said =
            stage.lab.director().run(|| rlvs_linux::dataplane::pins::open().unwrap().is_some());
        said.unwrap()
    });
}

#[test]
fn a_capture_that_cannot_begin_leaves_things_as_they_were() {
    let (stage, vip) = echo_stage(Wiring::Tuned);
    let before = programs(&stage);
    let pin = |from: &str, to: &str| {
        let rename = || {
            let folder = rlvs_linux::dataplane::pins::open().unwrap().unwrap();
            std::fs::rename(folder.path(from), folder.path(to)).unwrap();
        };
        stage.lab.director().run(rename).unwrap();
    };
    // XDP has its program on the links already when that of TC is missed.
    pin("program_tc", "elsewhere");
    let said = stage.rlvs(&["capture", "--seconds", "1"]);
    assert!(said.status != Some(0) && said.errors.contains("what the capture calls"), "{said:?}");
    assert_eq!(programs(&stage), before);
    pin("elsewhere", "program_tc");
    visit(&stage, vip);
    Running::begin(&stage, &["--json"]).end();
}
