//! What a director tells others of its connections, as one of them hears it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod backup;
mod many;
mod takeover;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use e2e::lab::{Greeted, Method, Stage, connect, tcp_server, wait_for};
use rlvs::lab::topology::{REAL_SERVERS, VIP, VIPS, Wiring};
use rlvs_wire::sync::{Addresses, Entry, GROUP, Message, PORT, flag};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const ECHO: u16 = 7000;
const ESTABLISHED: u16 = 1;
/// Messages that a listener hears at most before it has heard what it waits for.
const MESSAGES_MAX: usize = 32;

fn stage() -> Stage {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for (server, namespace) in REAL_SERVERS.iter().zip(stage.lab.real_servers()) {
        tcp_server(namespace, ECHO, Some(server.title));
    }
    stage
}

/// Ends the daemon with the test: a process in a namespace keeps it.
struct Daemon<'a>(&'a Stage);

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        drop(self.0.ipvsadm("--stop-daemon master"));
    }
}

/// Joins the group on the first real server.
fn listener(stage: &Stage) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        socket.join_multicast_v4(&GROUP.into(), &REAL_SERVERS[0].inside.v4).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    };
    stage.lab.real_servers().first().unwrap().run(open).unwrap()
}

/// Hears messages until one has an entry that is wanted.
fn hear(socket: &UdpSocket, sync_id: u8, is_wanted: impl Fn(&Entry) -> bool) -> Entry {
    let mut buffer = [0; 65_535];
    for _ in 0..MESSAGES_MAX {
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        let message = Message::parse(&buffer[..length]).unwrap();
        assert_eq!(message.sync_id, sync_id);
        let entries: Result<Vec<Entry>, _> = message.entries().collect();
        if let Some(entry) = entries.unwrap().into_iter().find(&is_wanted) {
            return entry;
        }
    }
    panic!("{MESSAGES_MAX} messages without what was waited for");
}

/// Hears messages until one has an entry that is wanted; returns all entries.
fn hear_all(socket: &UdpSocket, is_wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
    let (mut all, mut buffer) = (Vec::new(), [0; 65_535]);
    while !all.iter().any(&is_wanted) {
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        all.extend(Message::parse(&buffer[..length]).unwrap().entries().map(Result::unwrap));
    }
    all
}

fn is_of(held: &Greeted) -> impl Fn(&Entry) -> bool + use<> {
    let port = held.stream.local_addr().unwrap().port();
    move |entry| entry.client_port == port && entry.flags & flag::TEMPLATE == 0
}

/// Returns where each connection was made, as `ip_vs_conn_sync` says in its text and in its JSON.
fn origins(stage: &Stage) -> Vec<String> {
    let text = stage.rlvs(&["proc", "ip_vs_conn_sync"]).ok();
    let of_line = |line: &str| line.split_ascii_whitespace().nth(8).unwrap().to_owned();
    let origins: Vec<String> = text.lines().skip(1).map(of_line).collect();
    let json = stage.rlvs(&["proc", "ip_vs_conn_sync", "--json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let of_entry = |entry: &serde_json::Value| entry["origin"].as_str().unwrap().to_uppercase();
    let again: Vec<String> = json["connections"].as_array().unwrap().iter().map(of_entry).collect();
    assert_eq!(again, origins);
    origins
}

fn told_of(method: Method, flags: u32) {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), method, ECHO);
    let socket = listener(&stage);
    stage.ipvsadm("--start-daemon master --mcast-interface eth1 --syncid 9").ok();
    let _daemon = Daemon(&stage);
    let held = stage.as_client(|| connect(service).unwrap());
    let entry = hear(&socket, 9, is_of(&held));
    let server = REAL_SERVERS.iter().find(|server| server.title == held.name).unwrap();
    let local = held.stream.local_addr().unwrap();
    let (SocketAddr::V4(client), std::net::IpAddr::V4(real)) =
        (local, method.address(server, rlvs_control::model::Family::V4))
    else {
        panic!("the lab's addresses are of IPv4");
    };
    assert_eq!(origins(&stage), ["LOCAL"]);
    let expected = Entry {
        protocol: 6,
        flags,
        state: ESTABLISHED,
        client_port: client.port(),
        service_port: ECHO,
        destination_port: ECHO,
        mark: 0,
        timeout_s: 900,
        addresses: Addresses::V4 {
            client: client.ip().octets(),
            service: VIP.v4.octets(),
            destination: real.octets(),
        },
    };
    assert_eq!(entry, expected);
    // That it ends is told of too, under the same ends.
    let is_it = is_of(&held);
    drop(held);
    let end = hear(&socket, 9, |entry| is_it(entry) && entry.state != ESTABLISHED);
    assert_eq!(end.flags, flags | flag::INACTIVE);
    assert_eq!(end.addresses, expected.addresses);
}

#[test]
fn a_connection_over_nat_is_told_of_until_it_ends() {
    told_of(Method::Nat, 0);
}

#[test]
fn a_connection_over_direct_routing_is_told_of_until_it_ends() {
    told_of(Method::Direct, 3 | flag::NO_OUTPUT);
}

#[test]
fn a_template_is_told_of_as_one() {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    stage.ipvsadm(&format!("-E -t {service} -s rr -p 77")).ok();
    let socket = listener(&stage);
    stage.ipvsadm("--start-daemon master --mcast-interface eth1").ok();
    let _daemon = Daemon(&stage);
    let held = stage.as_client(|| connect(service).unwrap());
    let entry = hear(&socket, 0, |entry| entry.flags & flag::TEMPLATE != 0);
    assert_eq!(entry.flags, flag::TEMPLATE | flag::INACTIVE);
    assert_eq!((entry.client_port, entry.service_port, entry.timeout_s), (0, ECHO, 77));
    // The connection that it controls is told of as well.
    drop(held);
}

#[test]
fn by_a_setting_templates_are_told_of_and_not_what_they_control() {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    let plain = stage.serve("-t", (VIPS[1].v4, ECHO).into(), Method::Nat, ECHO);
    stage.ipvsadm(&format!("-E -t {service} -s rr -p 77")).ok();
    stage.rlvs(&["set", "sync_persist_mode", "1"]).ok();
    let socket = listener(&stage);
    let controlled = stage.as_client(|| connect(service).unwrap());
    let held = stage.as_client(|| connect(plain).unwrap());
    stage.ipvsadm("--start-daemon master --mcast-interface eth1").ok();
    let _daemon = Daemon(&stage);
    let (is_controlled, is_held) = (is_of(&controlled), is_of(&held));
    let all = hear_all(&socket, |entry| is_held(entry));
    assert!(!all.iter().any(is_controlled), "{all:?}");
    // Templates come last: in this message or in the next.
    let is_template = |entry: &Entry| entry.flags & flag::TEMPLATE != 0;
    if !all.iter().any(is_template) {
        hear(&socket, 0, is_template);
    }
}

#[test]
fn by_a_setting_a_connection_in_use_is_told_of_again_sooner() {
    let stage = stage();
    let service = stage.serve("-t", (VIP.v4, ECHO).into(), Method::Nat, ECHO);
    stage.rlvs(&["set", "sync_refresh_period", "1"]).ok();
    let socket = listener(&stage);
    stage.ipvsadm("--start-daemon master --mcast-interface eth1").ok();
    let _daemon = Daemon(&stage);
    let mut held = stage.as_client(|| connect(service).unwrap());
    let is_it = is_of(&held);
    hear(&socket, 0, &is_it);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 1500];
    // By default it would be 300 s.
    wait_for("word of it once more", || {
        held.stream.write_all(b"packet").map_err(|error| error.to_string())?;
        let (length, _) = socket.recv_from(&mut buffer).map_err(|error| error.to_string())?;
        let message = Message::parse(&buffer[..length]).unwrap();
        let again = message.entries().flatten().find(|entry| is_it(entry));
        again.map(|entry| assert_eq!(entry.state, ESTABLISHED)).ok_or_else(|| "others".to_owned())
    });
}

#[test]
fn the_daemon_is_started_once_listed_and_stopped() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), "");
    let start = "--start-daemon master --mcast-interface eth1 --syncid 42";
    let refused = |arguments: &str, part: &str| {
        let said = stage.ipvsadm(arguments);
        assert_ne!(said.status, Some(0), "{arguments}");
        assert!(said.errors.contains(part), "{arguments}: {}", said.errors);
    };
    refused("--start-daemon master --mcast-interface eth9", "eth9");
    refused("--stop-daemon master", "no master daemon runs");
    stage.ipvsadm(start).ok();
    let _daemon = Daemon(&stage);
    let line = "master sync daemon (mcast=eth1, syncid=42, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n";
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), line);
    refused(start, "a master daemon runs already");
    refused("--stop-daemon backup", "no backup daemon runs");
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), line);
    stage.ipvsadm("--stop-daemon master").ok();
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), "");
    stage.ipvsadm("--start-daemon master --mcast-interface eth0 --sync-maxlen 1000 --mcast-port 99 --mcast-ttl 3").ok();
    let line = "master sync daemon (mcast=eth0, syncid=0, maxlen=1000, group=224.0.0.81, port=99, ttl=3)\n";
    assert_eq!(stage.ipvsadm("-L --daemon").ok(), line);
}
