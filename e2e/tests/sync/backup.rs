//! What a director learns of connections that others tell of.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};

use e2e::lab::{Method, Random, Stage, run, wait_for, wait_until};
use nix::net::if_::if_nametoindex;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use rlvs::lab::topology::{CLIENT, REAL_SERVERS, VIP, Wiring};
use rlvs_wire::sync::{Addresses, Entry, GROUP, PORT, Writer, flag};
use serde_json::Value;

use crate::{ECHO, PROGRAM, stage};

const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0, 81);
const SYNC_ID: u8 = 9;
const UDP: u8 = 17;
const FIN_WAIT: u16 = 4;

/// Ends the daemon with the test.
struct Backup<'a>(&'a Stage);

impl<'a> Backup<'a> {
    fn start(stage: &'a Stage, more: &str) -> Self {
        stage.ipvsadm(&format!("--start-daemon backup --mcast-interface eth1 {more}")).ok();
        Self(stage)
    }

    /// Returns how often something has happened to messages and entries.
    fn heard(&self, name: &str) -> u64 {
        synchronisation(self.0, "backup")["counts"][name].as_u64().unwrap_or(0)
    }

    fn wait_heard(&self, name: &str, times: u64) {
        wait_until(name, &times, || self.heard(name));
    }
}

/// Returns what `rlvs status --json` says of a daemon.
pub(crate) fn synchronisation(stage: &Stage, role: &str) -> Value {
    let status: Value = serde_json::from_str(&stage.rlvs(&["status", "--json"]).output).unwrap();
    let all = status["synchronisation"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|one| one["role"] == role).unwrap_or_default()
}

/// Returns where a daemon of a director is noted.
fn note(stage: &Stage, role: &str) -> PathBuf {
    let cookie = stage.lab.director().cookie().unwrap();
    format!("/run/rlvs/sync-{cookie}-{role}").into()
}

impl Drop for Backup<'_> {
    fn drop(&mut self) {
        drop(self.0.ipvsadm("--stop-daemon backup"));
    }
}

/// Another director, on the first real server.
struct Other(UdpSocket);

impl Other {
    fn new(stage: &Stage) -> Self {
        Self::at(stage, REAL_SERVERS[0].inside.v4.into(), || (GROUP, PORT).into())
    }

    /// Sends to a group that is asked for in its namespace.
    fn at(stage: &Stage, from: IpAddr, group: impl FnOnce() -> SocketAddr + Send) -> Self {
        let open = || {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            setsockopt(&socket, sockopt::BindToDevice, &"eth1".into()).unwrap();
            socket.connect(group()).unwrap();
            socket
        };
        Self(stage.lab.real_servers().first().unwrap().run(open).unwrap())
    }

    fn tell_as(&self, sync_id: u8, entries: &[Entry]) {
        let mut buffer = [0; 1472];
        let mut writer = Writer::new(&mut buffer, sync_id);
        for entry in entries {
            assert!(writer.push(entry));
        }
        self.0.send(writer.finish().unwrap()).unwrap();
    }

    fn tell(&self, entry: Entry) {
        self.tell_as(SYNC_ID, &[entry]);
    }
}

/// A connection of the client to the virtual address over NAT, established.
fn told(server: usize) -> Entry {
    Entry {
        protocol: 6,
        flags: 0,
        state: 1,
        client_port: 4242,
        service_port: ECHO,
        destination_port: ECHO,
        mark: 0,
        timeout_s: 900,
        addresses: Addresses::V4 {
            client: CLIENT.v4.octets(),
            service: VIP.v4.octets(),
            destination: REAL_SERVERS[server].inside.v4.octets(),
        },
    }
}

fn line(server: usize, state: &str) -> String {
    let (client, vip, real) = (CLIENT.v4, VIP.v4, REAL_SERVERS[server].inside.v4);
    format!("{client}:4242 {vip}:{ECHO} {real}:{ECHO} {state}")
}

/// Returns the connections: ends and state, by blanks.
fn connections(stage: &Stage) -> Vec<String> {
    let said = stage.ipvsadm("-L -n -c").ok();
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, state, client, vip, real, ..] = words[..] else { return None };
        (state != "state").then(|| format!("{client} {vip} {real} {state}"))
    };
    let mut rows: Vec<String> = said.lines().skip(2).filter_map(row).collect();
    rows.sort();
    rows
}

fn wait_connections(stage: &Stage, expected: &[String]) {
    wait_until("the connections", &expected.to_vec(), || connections(stage));
}

/// Active and inactive connections of the two servers.
fn counts(stage: &Stage) -> Vec<(u32, u32)> {
    let all = stage.counts("-t", (VIP.v4, ECHO).into());
    all.into_iter().map(|(_, active, inactive)| (active, inactive)).collect()
}

#[test]
fn a_connection_is_entered_updated_and_replaced() {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    other.tell(told(0));
    wait_connections(&stage, &[line(0, "ESTABLISHED")]);
    assert_eq!(crate::origins(&stage), ["SYNC"]);
    assert_eq!(counts(&stage), [(1, 0), (0, 0)]);
    // It is none that the service got here.
    let stats = stage.ipvsadm(&format!("-L -n -t {service} --stats --exact")).ok();
    let of_service = stats.lines().find(|line| line.starts_with("TCP")).unwrap();
    assert_eq!(of_service.split_ascii_whitespace().nth(2), Some("0"), "{stats}");

    other.tell(Entry { state: FIN_WAIT, flags: flag::INACTIVE, timeout_s: 120, ..told(0) });
    wait_connections(&stage, &[line(0, "FIN_WAIT")]);
    assert_eq!(counts(&stage), [(0, 1), (0, 0)]);
    // Whoever is over replaces nothing, whoever lives does.
    other.tell(Entry { state: FIN_WAIT, flags: flag::INACTIVE, ..told(1) });
    backup.wait_heard("kept", 1);
    assert_eq!(connections(&stage), [line(0, "FIN_WAIT")]);
    other.tell(told(1));
    wait_connections(&stage, &[line(1, "ESTABLISHED")]);
    assert_eq!(counts(&stage), [(0, 0), (1, 0)]);
    backup.wait_heard("entered", 2);
    assert_eq!((backup.heard("updated"), backup.heard("unknown")), (1, 0));
}

#[test]
fn the_time_out_is_the_one_that_is_told() {
    let stage = stage();
    stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let _backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    other.tell(Entry { timeout_s: 2, ..told(0) });
    wait_connections(&stage, &[line(0, "ESTABLISHED")]);
    // Without the message's word it would be 15 minutes.
    wait_connections(&stage, &[]);
    wait_until("the counts", &vec![(0, 0), (0, 0)], || counts(&stage));
}

#[test]
fn other_groups_and_what_is_not_here_are_passed_by() {
    let stage = stage();
    stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    other.tell_as(8, &[told(0)]);
    backup.wait_heard("foreign", 1);
    let nowhere = Addresses::V4 { client: [1; 4], service: [2; 4], destination: [3; 4] };
    let unknown = [
        Entry { addresses: nowhere, ..told(0) },
        Entry { service_port: 7001, ..told(0) },
        Entry { protocol: 17, state: 0, ..told(0) },
    ];
    other.tell_as(SYNC_ID, &unknown);
    backup.wait_heard("unknown", 3);
    assert_eq!(connections(&stage), Vec::<String>::new());
    // Whoever has no group hears all.
    drop(backup);
    let _backup = Backup::start(&stage, "");
    other.tell_as(200, &[told(0)]);
    wait_connections(&stage, &[line(0, "ESTABLISHED")]);
}

#[test]
fn what_is_not_understood_is_counted_by_kind() {
    let stage = stage();
    stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    let mut buffer = [0; 44];
    let mut writer = Writer::new(&mut buffer, SYNC_ID);
    assert!(writer.push(&told(0)));
    let good = writer.finish().unwrap().to_vec();
    for length in 1..good.len() {
        other.0.send(&good[..length]).unwrap();
    }
    backup.wait_heard("bad_length", good.len() as u64 - 1);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        other.0.send(&bytes).unwrap();
    };
    changed(5, 2);
    backup.wait_heard("bad_version", 1);
    changed(10, 0x10);
    backup.wait_heard("bad_version", 2);
    changed(9, 1);
    backup.wait_heard("bad_protocol", 1);
    changed(17, 11);
    backup.wait_heard("bad_state", 1);
    let mut random = Random(7);
    for _ in 0..500 {
        let length = random.next_number() as usize % 200;
        let mut bytes = random.bytes(length);
        if let Some(field) = bytes.get_mut(2..4) {
            field.copy_from_slice(&(length as u16).to_be_bytes());
        }
        other.0.send(&bytes).unwrap();
    }
    // It is still there, and hears.
    other.0.send(&good).unwrap();
    wait_for("the good one", || {
        let rows = connections(&stage);
        if rows.contains(&line(0, "ESTABLISHED")) { Ok(()) } else { Err(rows.join("\n")) }
    });
}

#[test]
fn ipv6_and_udp_are_learnt() {
    let stage = stage();
    stage.serve("-t", (VIP.v6, ECHO).into(), Method::Direct, ECHO);
    stage.serve("-u", (VIP.v4, 53).into(), Method::Direct, 53);
    let _backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    let six = Addresses::V6 {
        client: CLIENT.v6.octets(),
        service: VIP.v6.octets(),
        destination: REAL_SERVERS[1].outside.v6.octets(),
    };
    let four = Addresses::V4 {
        client: CLIENT.v4.octets(),
        service: VIP.v4.octets(),
        destination: REAL_SERVERS[0].outside.v4.octets(),
    };
    let direct = 3 | flag::NO_OUTPUT;
    let udp = Entry {
        protocol: UDP,
        state: 0,
        flags: direct | flag::INACTIVE,
        service_port: 53,
        destination_port: 53,
        timeout_s: 300,
        addresses: four,
        ..told(0)
    };
    other.tell_as(SYNC_ID, &[Entry { flags: direct, addresses: six, ..told(0) }, udp]);
    let (client, vip) = (CLIENT, VIP);
    let rows = [
        format!("{}:4242 {}:53 {}:53 UDP", client.v4, vip.v4, REAL_SERVERS[0].outside.v4),
        format!(
            "[{}]:4242 [{}]:{ECHO} [{}]:{ECHO} ESTABLISHED",
            client.v6, vip.v6, REAL_SERVERS[1].outside.v6
        ),
    ];
    wait_connections(&stage, &rows);
}

#[test]
fn services_of_any_port_and_of_marks_are_learnt() {
    let stage = stage();
    stage.ipvsadm(&format!("-A -t {}:0 -s rr -p 60", VIP.v4)).ok();
    stage.ipvsadm("-A -f 5 -s rr").ok();
    for server in &REAL_SERVERS {
        stage.ipvsadm(&format!("-a -t {}:0 -r {}:0 -m", VIP.v4, server.inside.v4)).ok();
        stage.ipvsadm(&format!("-a -f 5 -r {}:0 -m", server.inside.v4)).ok();
    }
    let backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    let marked =
        Entry { mark: 5, client_port: 99, service_port: 80, destination_port: 80, ..told(1) };
    other.tell_as(SYNC_ID, &[told(0), marked]);
    let (client, vip, second) = (CLIENT.v4, VIP.v4, REAL_SERVERS[1].inside.v4);
    let of_mark = format!("{client}:99 {vip}:80 {second}:80 ESTABLISHED");
    wait_connections(&stage, &[line(0, "ESTABLISHED"), of_mark.clone()]);
    assert_eq!(e2e::lab::counts(&stage.listing()).iter().map(|row| row.1).sum::<u32>(), 2);
    other.tell(Entry { state: FIN_WAIT, flags: flag::INACTIVE, ..told(0) });
    wait_connections(&stage, &[line(0, "FIN_WAIT"), of_mark.clone()]);
    other.tell(Entry { state: FIN_WAIT, flags: flag::INACTIVE, ..told(1) });
    backup.wait_heard("kept", 1);
    other.tell(told(1));
    wait_connections(&stage, &[line(1, "ESTABLISHED"), of_mark]);
    let sums = e2e::lab::counts(&stage.listing())
        .iter()
        .fold((0, 0), |sum, row| (sum.0 + row.1, sum.1 + row.2));
    assert_eq!(sums, (2, 0));
}

#[test]
fn a_template_leads_a_client_on() {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    stage.ipvsadm(&format!("-E -t {service} -s rr -p 77")).ok();
    let backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    let template =
        Entry { client_port: 0, flags: flag::TEMPLATE | flag::INACTIVE, timeout_s: 77, ..told(1) };
    other.tell(template);
    backup.wait_heard("entered", 1);
    let shown = stage.ipvsadm(&format!("-L -n -t {service} --persistent-conn")).ok();
    let second = REAL_SERVERS[1].inside.v4.to_string();
    let row = shown.lines().find(|line| line.contains(&second)).unwrap().to_owned();
    // Weight, templates, active and inactive connections.
    let words: Vec<&str> = row.split_ascii_whitespace().collect();
    assert!(words[2..].starts_with(&["1", "1", "0", "0"]), "{shown}");
    // A template stays where it leads, as the kernel's.
    other.tell(Entry { addresses: told(0).addresses, ..template });
    backup.wait_heard("kept", 1);
    for _ in 0..4 {
        let held = stage.as_client(|| e2e::lab::connect(service).unwrap());
        assert_eq!(held.name, REAL_SERVERS[1].title);
    }
}

#[test]
fn both_roles_run_and_stop_by_themselves() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.ipvsadm("--start-daemon master --mcast-interface eth1 --syncid 1").ok();
    let group = format!("--syncid 2 --mcast-group {GROUP6} --mcast-port 99");
    let backup = Backup::start(&stage, &group);
    let lines = [
        "master sync daemon (mcast=eth1, syncid=1, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n",
        "backup sync daemon (mcast=eth1, syncid=2, maxlen=1452, group=ff15::51, port=99, ttl=1)\n",
    ];
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), lines.concat());
    stage.ipvsadm("--stop-daemon master").ok();
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), lines[1]);
    let again = stage.ipvsadm("--start-daemon backup --mcast-interface eth1");
    assert!(again.errors.contains("a backup daemon runs already"), "{again:?}");
    // It ends with the tables.
    stage.rlvs(&["detach"]).ok();
    wait_until("the end", &0, || backup_files(&backup));
}

fn backup_files(backup: &Backup<'_>) -> usize {
    usize::from(note(backup.0, "backup").exists())
}

#[test]
fn a_group_of_ipv6_is_heard() {
    let stage = stage();
    stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let to = format!("--syncid 9 --mcast-group {GROUP6} --mcast-port 99");
    let _backup = Backup::start(&stage, &to);
    let group = || {
        let index = if_nametoindex("eth1").unwrap();
        SocketAddrV6::new(GROUP6, 99, 0, index).into()
    };
    let other = Other::at(&stage, REAL_SERVERS[0].inside.v6.into(), group);
    other.tell(told(0));
    wait_connections(&stage, &[line(0, "ESTABLISHED")]);
}

#[test]
fn sockets_have_room_for_as_much_as_is_set() {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}_max")).unwrap();
        text.trim().parse::<u32>().unwrap()
    };
    // More than others may have.
    let bytes = limit("rmem").max(limit("wmem")) + 1_000_000;
    let stage = stage();
    stage.rlvs(&["set", "sync_sock_size", &bytes.to_string()]).ok();
    let _backup = Backup::start(&stage, "--syncid 9");
    stage.ipvsadm("--start-daemon master --mcast-interface eth1 --syncid 9").ok();
    let _daemon = crate::Daemon(&stage);
    let said = run(stage.lab.director(), Path::new("/usr/bin/ss"), &["-nuamp"]).ok();
    // The kernel doubles what is asked for, for its own needs.
    let room = |role: &str, kind: &str| {
        let pid = format!("pid={},", synchronisation(&stage, role)["pid"]);
        let line = said.lines().position(|line| line.contains(&pid)).unwrap();
        let memory = said.lines().skip(line).find(|line| line.contains("skmem:")).unwrap();
        let word = memory.split(['(', ',']).find_map(|word| word.strip_prefix(kind)).unwrap();
        word.parse::<u32>().unwrap()
    };
    assert_eq!(room("backup", "rb"), 2 * bytes, "{said}");
    assert_eq!(room("master", "tb"), 2 * bytes, "{said}");
}

/// A master's first pass over a large table comes as fast as it can tell.
#[test]
fn messages_wait_while_the_daemon_has_no_time() {
    const MESSAGES: u64 = 3000;
    const ENTRIES: usize = 30;
    let stage = stage();
    let backup = Backup::start(&stage, "--syncid 9");
    let other = Other::new(&stage);
    let pid = synchronisation(&stage, "backup")["pid"].as_i64().unwrap();
    let daemon = Pid::from_raw(pid as i32);
    kill(daemon, Signal::SIGSTOP).unwrap();
    for _ in 0..MESSAGES {
        other.tell_as(8, &[told(0); ENTRIES]);
    }
    kill(daemon, Signal::SIGCONT).unwrap();
    backup.wait_heard("foreign", MESSAGES);
}

#[test]
fn whoever_is_killed_leaves_nothing_for_long_and_another_may_begin() {
    let stage = stage();
    stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let mut backup = Backup::start(&stage, "--syncid 9");
    for round in 0..3 {
        let pid = synchronisation(&stage, "backup")["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        // Any command collects what is left.
        wait_for("the note to go", || {
            let said = stage.rlvs(&["status"]).output;
            let is_there = note(&stage, "backup").exists() || said.contains("sync  ");
            if is_there { Err(said) } else { Ok(()) }
        });
        std::mem::forget(backup);
        backup = Backup::start(&stage, &format!("--syncid {round}"));
        assert_eq!(synchronisation(&stage, "backup")["sync_id"], round);
    }
    Other::new(&stage).tell_as(2, &[told(0)]);
    backup.wait_heard("entered", 1);
    let said = stage.rlvs(&["status"]).ok();
    let wanted = "sync          backup on eth1, syncid 2: 1 messages, 1 entered\n";
    assert!(said.contains(wanted), "{said}");
    let page = stage.rlvs(&["metrics"]).ok();
    for line in [
        "rlvs_sync_daemon_info{role=\"backup\",interface=\"eth1\",sync_id=\"2\"} 1\n",
        "rlvs_sync_events_total{role=\"backup\",event=\"entered\"} 1\n",
        "rlvs_sync_events_total{role=\"backup\",event=\"unknown\"} 0\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
}

/// Two directors that tell each other of everything must not keep alive what has no packets any more.
#[test]
fn what_was_learnt_is_not_told_until_a_packet_comes() {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let _backup = Backup::start(&stage, "--syncid 9");
    let listener = crate::listener(&stage);
    let other = Other::new(&stage);
    other.tell(told(0));
    wait_connections(&stage, &[line(0, "ESTABLISHED")]);
    stage.ipvsadm("--start-daemon master --mcast-interface eth1 --syncid 9").ok();
    let _daemon = crate::Daemon(&stage);
    // One of its own is told of in the same pass as the other would be.
    let held = stage.as_client(|| e2e::lab::connect(service).unwrap());
    let all = crate::hear_all(&listener, crate::is_of(&held));
    let others = all.iter().filter(|entry| entry.client_port == 4242).count();
    // The other one's own word is heard here too.
    assert_eq!(others, 1);
}
