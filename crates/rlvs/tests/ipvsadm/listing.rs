//! What recorded runs do not show: names, counters, connections, and when no table is opened.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};

use rlvs::ipvsadm::{Environment, Names, run};
use rlvs_control::model::{Connection, DestinationId, Protocol, ServiceId, Traffic};
use rlvs_control::table::Error;

use crate::machine::Machine;

const VIP: &str = "1.2.3.4:80";

#[test]
fn names_stand_for_addresses_and_ports_and_are_cut_in_lists_only() {
    let machine = Machine::with_hosts(&[
        ("a-very-long-host-name-for-testing.example.com", [1, 2, 3, 4].into()),
        ("a-v6-server-name-that-is-very-long.example.com", "2001:db8::2".parse().unwrap()),
        ("short", [10, 0, 0, 3].into()),
    ]);
    for line in [
        "-A -t 1.2.3.4:80 -s rr",
        "-A --sctp-service 1.2.3.4:80 -s rr",
        "-A -t [2001:db8::2]:443 -s rr",
        "-A -f 7",
        "-a -t 1.2.3.4:80 -r 10.0.0.3:8080 -m",
        "-a -t 1.2.3.4:80 -r 2001:db8::2 -i",
        "-a -f 7 -r 10.0.0.3:80 -m",
    ] {
        machine.ok(line);
    }
    let expected = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  a-very-long-host-name-for-te rr
  -> short:http-alt               Masq    1      0          0         \n\
\x20 -> [a-v6-server-name-that-is-very-long.example.com]:http Tunnel  1      0          0         \n\
SCTP a-very-long-host-name-for-te rr
TCP  [a-v6-server-name-that-is-very-long.example.com]:https rr
FWM  7 wlc
  -> short:80                     Masq    1      0          0         \n";
    assert_eq!(machine.ok("-L"), expected);
    let saved = machine.ok("-S");
    let first = "-A -t a-very-long-host-name-for-testing.example.com:http -s rr\n";
    assert!(saved.starts_with(first), "{saved}");
    assert!(saved.ends_with("-A -f 7 -s wlc\n-a -f 7 -r short:80 -m -w 1\n"), "{saved}");
}

#[test]
fn counters_have_their_columns() {
    let machine = Machine::new();
    machine.ok("-A -t 1.2.3.4:80 -s rr");
    machine.ok("-a -t 1.2.3.4:80 -r 10.0.0.1 -w 2 -x 20 -y 10");
    let id = ServiceId::Address { protocol: Protocol::Tcp, address: [1, 2, 3, 4].into(), port: 80 };
    {
        let mut table = machine.table.memory.borrow_mut();
        let entry = table.entry(id).unwrap();
        entry.traffic = Traffic {
            connections: 4,
            in_packets: 24,
            out_packets: 16,
            in_bytes: 123_456_789,
            out_bytes: 876,
        };
        let to = &mut entry.destinations[0];
        (to.active, to.inactive, to.persistent) = (3, 5, 1);
        to.traffic = Traffic { in_bytes: 2_000_000_000, ..entry.traffic };
        assert_eq!(to.destination.id, DestinationId { address: [10, 0, 0, 1].into(), port: 80 });
    }
    for (option, service, destination) in [
        (
            "--stats",
            "TCP  1.2.3.4:80                          4       24       16  123456K      876",
            "  -> 10.0.0.1:80                         4       24       16    2000M      876",
        ),
        (
            "--stats --exact",
            "TCP  1.2.3.4:80                          4       24       16 123456789      876",
            "  -> 10.0.0.1:80                         4       24       16 2000000000      876",
        ),
        (
            "--rate",
            "TCP  1.2.3.4:80                          0        0        0        0        0",
            "  -> 10.0.0.1:80                         0        0        0        0        0",
        ),
        (
            "--thresholds",
            "TCP  1.2.3.4:80 rr",
            "  -> 10.0.0.1:80                  20         10         3          5         ",
        ),
        (
            "--persistent-conn",
            "TCP  1.2.3.4:80 rr",
            "  -> 10.0.0.1:80                  2         1           3          5         ",
        ),
        (
            "--tun-info",
            "TCP  1.2.3.4:80 rr",
            "  -> 10.0.0.1:80                  Route   n/a           2      3          5         ",
        ),
    ] {
        let text = machine.ok(&format!("-L -n {option} -t {VIP}"));
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(lines, [service, destination], "{option}");
    }
    machine.ok("-Z");
    let text = machine.ok("-L -n --stats");
    let zeros = "TCP  1.2.3.4:80                          0        0        0        0        0";
    assert_eq!(text.lines().nth(3), Some(zeros));
}

#[test]
fn connections_have_their_columns() {
    let machine = Machine::new();
    let connection = |protocol, state, expires_s, ends: [&str; 3]| {
        let [client, virtual_address, destination] = ends.map(|end| end.parse().unwrap());
        let (engine, is_learnt) = (None, false);
        Connection {
            protocol,
            state,
            expires_s,
            client,
            virtual_address,
            destination,
            engine,
            is_learnt,
        }
    };
    machine.table.memory.borrow_mut().tracked = vec![
        connection(
            Protocol::Tcp,
            "ESTABLISHED",
            899,
            ["10.9.0.2:6001", "10.9.0.100:1001", "10.1.0.11:80"],
        ),
        connection(Protocol::Udp, "UDP", 298, ["10.9.0.2:41713", "10.9.0.100:53", "10.1.0.11:53"]),
        connection(
            Protocol::Tcp,
            "TIME_WAIT",
            119,
            ["[fd09::2]:47936", "[fd09::100]:1006", "[fd01::11]:80"],
        ),
        connection(
            Protocol::Tcp,
            "NONE",
            2_678_400,
            ["10.9.0.2:0", "10.9.0.100:1007", "10.1.0.13:80"],
        ),
    ];
    let rows = "\
TCP 14:59  ESTABLISHED 10.9.0.2:6001      10.9.0.100:1001    10.1.0.11:80
UDP 04:58  UDP         10.9.0.2:41713     10.9.0.100:53      10.1.0.11:53
TCP 01:59  TIME_WAIT   [fd09::2]:47936    [fd09::100]:1006   [fd01::11]:80
TCP 44640:00 NONE        10.9.0.2:0         10.9.0.100:1007    10.1.0.13:80
";
    let title = "\
IPVS connection entries
pro expire state       source             virtual            destination";
    assert_eq!(machine.ok("-L -n -c"), format!("{title}\n{rows}"));
    let engines = "        pe name          pe_data";
    let expected = format!("{title}{engines}\n{rows}");
    assert_eq!(machine.ok("-L -n -c --persistent-conn"), expected);
    let named = machine.ok("-Lc");
    assert!(named.contains(" 10.9.0.100:domain  10.1.0.11:domain\n"), "{named}");
}

#[test]
fn the_table_is_opened_only_when_it_is_needed() {
    for (line, status, opened) in [
        ("-h", 0, false),
        ("--version", 0, false),
        ("-L --daemon", 0, true),
        ("--start-daemon master", 255, true),
        ("foo", 255, false),
        ("-A -z", 255, false),
        ("-A", 2, false),
        ("", 0, true),
        ("-L -c", 0, true),
        ("-R", 0, true),
        ("-C", 0, true),
    ] {
        let outcome = Machine::new().run(line);
        assert_eq!((outcome.status, outcome.opened), (status, opened), "{line}");
    }
}

#[test]
fn a_table_that_cannot_be_opened_is_status_2() {
    for line in ["", "-L -n", "-C", "-R", "-S", "-A -f 1"] {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let environment = Environment {
            open: &mut |_| Err(Error::System("opening /x: no such file".to_owned())),
            backend: None,
            names: &Names::fixed("", &[]),
            stdin: &mut &b"-C\n"[..],
            stdout: &mut stdout,
            stderr: &mut stderr,
        };
        assert_eq!(run(&args, "rlvs ipvsadm", environment), 2, "{line}");
        assert!(stdout.is_empty());
        assert_eq!(stderr, b"rlvs ipvsadm: opening /x: no such file\n");
    }
}

#[test]
fn what_a_table_does_not_do_yet_is_status_255_and_what_it_cannot_tell_1() {
    let machine = Machine::new();
    machine.table.cannot.set(true);
    for (line, status) in [("-A -t 1.2.3.4:80 -p", 255), ("-L", 1), ("-S", 1)] {
        let outcome = machine.run(line);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (status, ""), "{line}");
        let message = "ipvsadm: this is not carried out yet by this data plane\n";
        assert_eq!(outcome.stderr, message, "{line}");
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_status_1() {
    for (kind, message) in [
        (ErrorKind::BrokenPipe, ""),
        (ErrorKind::StorageFull, "ipvsadm: writing to standard output: no storage space\n"),
    ] {
        let mut stderr = Vec::new();
        let environment = Environment {
            open: &mut |_| Ok(Box::new(Machine::new().table)),
            backend: None,
            names: &Names::fixed("", &[]),
            stdin: &mut &b""[..],
            stdout: &mut Closed(kind),
            stderr: &mut stderr,
        };
        assert_eq!(run(&["-L".into()], "ipvsadm", environment), 1);
        assert_eq!(String::from_utf8(stderr).unwrap(), message);
    }
}

/// A standard output on which every write fails.
struct Closed(ErrorKind);

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(self.0.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn help_names_every_word_and_the_version_is_upstreams() {
    let machine = Machine::new();
    let version = machine.ok("-v");
    assert_eq!(version, "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n");
    let help = machine.ok("--help");
    assert!(help.starts_with(&version));
    for word in ["-A, --add-service", "-X, --exact", "--tun-remcsum", "-p, --persistent [SECONDS]"]
    {
        assert!(help.contains(word), "{word}");
    }
    assert!(help.lines().all(|line| line.len() < 80), "{help}");
}

#[test]
fn a_message_says_which_word_is_wrong_and_what_would_be_right() {
    let machine = Machine::new();
    for (line, message) in [
        ("-a -f 1 -r 10.0.0.1 -w x", "-w/--weight: \"x\" is no whole number from 0 to 2147483647"),
        ("-C -n", "-n does not go with -C/--clear"),
        ("-A -s rr", "-A/--add-service needs -t|-u|--sctp-service|-f"),
        ("-L -t 1.2.3.4:80 -c", "-t|-u|--sctp-service|-f and -c exclude each other in -L/--list"),
        ("-A -f 1 -z", "there is no option \"-z\""),
        ("-D -f 9", "no such virtual service"),
        (
            "--stop-daemon master",
            "connection synchronisation (master) is not carried out yet by this data plane",
        ),
    ] {
        assert_eq!(machine.run(line).stderr, format!("ipvsadm: {message}\n"), "{line}");
    }
}
