//! What administrators do to the table at large: counters, big restores, slow readers, kills.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::lab::{Method, Random, Said, Stage, connect, tcp_server, wait_for, wait_until};
use rlvs::lab::topology::{VIPS, Wiring};
use rlvs_control::memory::MemoryTable;
use rlvs_control::model::{
    Destination, DestinationId, Family, ForwardingMethod, Protocol, Service, ServiceId,
};
use rlvs_control::table::{Removal, Table};
use rlvs_linux::dataplane::table::{BpfTable, Work};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rlvs-e2e");
const MANY: u32 = 10_000;

/// Runs `ipvsadm` on a text.
fn feed(stage: &Stage, arguments: &str, text: &str) -> Said {
    let mut command = stage.ipvsadm_command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// Returns the five counters of each service and destination, as a list with them shows.
fn figures(listing: &str) -> Vec<(String, [u64; 5])> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (name, numbers) = words.split_at_checked(2)?;
        let numbers: Vec<u64> = numbers.iter().filter_map(|word| word.parse().ok()).collect();
        Some((name.join(" "), numbers.try_into().ok()?))
    };
    listing.lines().filter_map(row).collect()
}

#[test]
fn zeroing_starts_counters_and_rates_again_and_loses_no_count() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for namespace in stage.lab.real_servers() {
        tcp_server(namespace, 9000, None);
    }
    let vip = |port| std::net::SocketAddr::new(VIPS[1].of(Family::V4), port);
    let (one, other) = (vip(1), vip(2));
    for service in [one, other] {
        stage.serve("-t", service, Method::Nat, 9000);
    }
    let open = |service, count| {
        stage.as_client(|| (0..count).for_each(|_| drop(connect(service).unwrap())));
    };
    let stats = || figures(&stage.ipvsadm("-L -n --stats --exact").ok());
    let connections = || stats().iter().map(|(_, numbers)| numbers[0]).collect::<Vec<_>>();
    open(one, 4);
    open(other, 2);
    wait_until("connections", &vec![4, 2, 2, 2, 1, 1], connections);
    wait_for("rates of what was opened", || {
        let rates = figures(&stage.ipvsadm("-L -n --rate").ok());
        if rates[3].1[1] > 0 { Ok(()) } else { Err(format!("{rates:?}")) }
    });
    let total = || stage.rlvs(&["proc", "ip_vs_stats"]).ok();
    assert!(total().contains("\n       6 "), "{}", total());
    // One service: neither the other's nor the sum of all.
    stage.ipvsadm(&format!("-Z -t {one}")).ok();
    wait_until("connections", &vec![0, 0, 0, 2, 1, 1], connections);
    let rates = figures(&stage.ipvsadm(&format!("-L -n --rate -t {one}")).ok());
    assert!(rates.iter().all(|(_, numbers)| *numbers == [0; 5]), "{rates:?}");
    assert!(total().contains("\n       6 "), "{}", total());
    open(one, 2);
    wait_until("connections", &vec![2, 1, 1, 2, 1, 1], connections);
    stage.ipvsadm("-Z").ok();
    assert_eq!(connections(), [0; 6]);
    assert!(total().contains("\n       0 "), "{}", total());
    open(other, 2);
    wait_until("connections", &vec![0, 0, 0, 2, 1, 1], connections);
    // A service that is made again begins at 0, with servers that are remembered too; what it had
    // counted stays in the sum.
    stage.ipvsadm(&format!("-D -t {other}")).ok();
    stage.serve("-t", other, Method::Nat, 9000);
    wait_until("connections", &vec![0, 0, 0, 0, 0, 0], connections);
    assert!(total().contains("\n       2 "), "{}", total());
    assert_eq!(stage.ipvsadm("-Z -t 192.0.2.9:9").status, Some(255));
}

fn service(number: u32) -> Service {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + number);
    Service {
        id: ServiceId::Address { protocol: Protocol::Tcp, address: address.into(), port: 80 },
        scheduler: if number.is_multiple_of(2) { "rr" } else { "wrr" }.to_owned(),
        scheduler_flags: 0,
        one_packet: false,
        persistence: None,
        persistence_engine: None,
    }
}

fn real_server(number: u32, method: ForwardingMethod) -> Destination {
    let base = Ipv4Addr::new(10, 0, 1, 0).to_bits();
    Destination {
        // The addresses of one small network, so that its neighbours are few.
        id: DestinationId {
            address: IpAddr::V4(Ipv4Addr::from_bits(base + 101 + number % 100)),
            port: 1000 + (number / 100) as u16,
        },
        method,
        weight: number % 7,
        upper_threshold: 0,
        lower_threshold: 0,
    }
}

/// Carries edits out on our table and on the one in memory, and returns what ours had to do.
fn both(stage: &Stage, edit: impl Fn(&mut dyn Table) + Send + Sync) -> Work {
    let ours = || {
        let mut table = BpfTable::open().unwrap().unwrap();
        edit(&mut table);
        let work = table.work();
        let listed = table.services().unwrap();
        table.flush().unwrap();
        (work, listed)
    };
    let (work, mut listed) = stage.lab.director().run(ours).unwrap();
    let mut memory = MemoryTable::default();
    edit(&mut memory);
    let mut expected = memory.services().unwrap();
    for entries in [&mut listed, &mut expected] {
        entries.sort_by_key(|entry| entry.service.id);
    }
    assert_eq!(listed, expected);
    work
}

#[test]
fn ten_thousand_services_cost_no_system_call_each() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let add = |table: &mut dyn Table| {
        table.batch();
        for number in 0..MANY {
            table.add_service(&service(number)).unwrap();
        }
        table.commit().unwrap();
    };
    let work = both(&stage, add);
    assert_eq!(work, Work { published: MANY.into(), updates: 0, routes: 0, ended: 0 });
    let again = both(&stage, add);
    assert_eq!(again, work, "those that are gone cost none either");
}

#[test]
fn connections_of_many_removed_servers_are_searched_for_once() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let service = service(1);
    let server = |number| real_server(number, ForwardingMethod::DirectRoute);
    let work = both(&stage, |table| {
        table.set_removal(Removal::Reset);
        table.add_service(&service).unwrap();
        (0..50).for_each(|number| table.add_destination(service.id, &server(number)).unwrap());
        table.batch();
        (0..50).for_each(|number| table.delete_destination(service.id, server(number).id).unwrap());
        table.commit().unwrap();
    });
    assert_eq!(work.ended, 1);
    let work = both(&stage, |table| {
        table.set_removal(Removal::Reset);
        table.add_service(&service).unwrap();
        table.add_destination(service.id, &server(1)).unwrap();
        table.batch();
        table.delete_destination(service.id, server(1).id).unwrap();
        table.add_destination(service.id, &server(1)).unwrap();
        table.delete_service(service.id).unwrap();
        table.commit().unwrap();
    });
    assert_eq!(work.ended, 2, "before what is added again has connections, and at the end");
}

#[test]
fn ten_thousand_servers_of_a_service_are_published_once() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for (index, method) in
        [ForwardingMethod::Masquerade, ForwardingMethod::DirectRoute].into_iter().enumerate()
    {
        let service = service(index as u32 + 1);
        let add = |table: &mut dyn Table| {
            table.batch();
            table.add_service(&service).unwrap();
            for number in 0..MANY {
                table.add_destination(service.id, &real_server(number, method)).unwrap();
            }
            table.commit().unwrap();
        };
        let first = both(&stage, add);
        assert_eq!(first.published, 2, "the empty ring and the full one");
        // The service's head, its marks, and the settings for NAT.
        assert!(first.updates <= 4, "{first:?}");
        assert_eq!(first.routes, u64::from(MANY));
        let again = both(&stage, add);
        assert_eq!(again.published, 2);
        assert!(again.updates <= 2 * u64::from(MANY) + 4, "{again:?}");
    }
}

#[test]
fn ten_thousand_weights_of_a_service_are_published_once() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for (index, method) in
        [ForwardingMethod::Masquerade, ForwardingMethod::DirectRoute].into_iter().enumerate()
    {
        let service = service(index as u32 + 1);
        let fill = |table: &mut dyn Table| {
            table.batch();
            table.add_service(&service).unwrap();
            for number in 0..MANY {
                table.add_destination(service.id, &real_server(number, method)).unwrap();
            }
            table.commit().unwrap();
        };
        let weigh = |table: &mut dyn Table| {
            fill(table);
            table.batch();
            for number in 0..MANY {
                let to = real_server(number, method);
                let to = Destination { weight: to.weight + 1, ..to };
                table.edit_destination(service.id, &to).unwrap();
            }
            table.commit().unwrap();
        };
        let (first, both) = (both(&stage, fill), both(&stage, weigh));
        assert_eq!(both.published - first.published, 1);
        assert_eq!(both.routes, first.routes, "weights alone ask for no way");
        // Those that are added again have one more.
        assert!(both.updates <= 2 * u64::from(MANY) + 8, "{both:?}");
    }
}

#[test]
fn a_batch_is_what_its_edits_are_one_by_one() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let edits = |batched: bool| {
        move |table: &mut dyn Table| {
            if batched {
                table.batch();
            }
            let mut random = Random(88_172_645_463_325_252);
            for _ in 0..3000 {
                let mut pick = |below: u64| (random.next_number() % below) as u32;
                let service = service(pick(4));
                let to = real_server(pick(12), ForwardingMethod::DirectRoute);
                // Refusals are of the table in memory too.
                drop(match pick(12) {
                    0 => table.add_service(&service),
                    1 => table.edit_service(&service),
                    2 if pick(4) == 0 => table.delete_service(service.id),
                    3 => table.delete_destination(service.id, to.id),
                    4 | 5 => {
                        let to = Destination { weight: pick(9), ..to };
                        table.edit_destination(service.id, &to)
                    }
                    6 => table.zero(Some(service.id)),
                    _ => table.add_destination(service.id, &to),
                });
            }
            table.commit().unwrap();
        }
    };
    let batched = both(&stage, edits(true));
    let single = both(&stage, edits(false));
    assert!(batched.published < single.published, "{batched:?} {single:?}");
}

#[test]
fn who_reads_a_list_slowly_keeps_nobody_from_the_table() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let lines: String =
        (0..MANY).map(|n| format!("-A -t 198.18.{}.{}:80 -s rr\n", n / 250, n % 250)).collect();
    feed(&stage, "-R", &lines).ok();
    for list in ["-L -n", "-S -n", "-L --json"] {
        let mut command = stage.ipvsadm_command(list);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        // It has begun to write more than a pipe holds.
        let mut output = child.stdout.take().unwrap();
        output.read_exact(&mut [0]).unwrap();
        let mut edit = stage.ipvsadm_command("-E -t 198.18.0.1:80 -s wrr");
        let mut edit = edit.stdin(Stdio::null()).spawn().unwrap();
        let ended = wait_for("an edit beside the reader", || {
            edit.try_wait().unwrap().ok_or_else(|| format!("{list} has the table"))
        });
        assert!(ended.success());
        assert!(child.try_wait().unwrap().is_none(), "{list} is not done");
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(rest.len() > 100_000, "{list} is whole");
    }
}

#[test]
fn a_restore_that_is_killed_leaves_a_whole_table() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let mut full = String::new();
    for service in 1..=3 {
        full += &format!("-A -t 192.168.1.200:{service} -s wrr\n");
        for number in 0..300 {
            let real = format!("10.0.1.{}:{}", 101 + number % 100, 2000 + number / 100);
            full += &format!("-a -t 192.168.1.200:{service} -r {real} -m -w {}\n", number % 7);
        }
    }
    let known: BTreeSet<&str> = full.lines().collect();
    let begin = Instant::now();
    feed(&stage, "-R", &full).ok();
    let run_time = begin.elapsed();
    let mut random = Random(2_463_534_242);
    let (mut killed, mut partial, mut tried) = (0, 0, 0);
    // How long a run takes depends on what else the machine does.
    while killed < 8 || partial < 2 {
        tried += 1;
        assert!(tried < 200, "{killed} of {tried} died, {partial} of them in the middle");
        stage.ipvsadm("-C").ok();
        let mut command = stage.ipvsadm_command("-R");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        // Killed, it reads no further.
        drop(child.stdin.take().unwrap().write_all(full.as_bytes()));
        let time = run_time.mul_f64((random.next_number() % 1000) as f64 / 1000.0);
        while begin.elapsed() < time {
            std::thread::park_timeout(Duration::from_micros(50));
        }
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().code().is_none());
        let saved = stage.ipvsadm("-S -n").ok();
        let lines: BTreeSet<&str> = saved.lines().collect();
        assert_eq!(lines.len(), saved.lines().count(), "something is there twice");
        assert!(lines.is_subset(&known), "{:?}", lines.difference(&known).next());
        partial += u32::from(!lines.is_empty() && lines.len() < known.len());
    }
    stage.ipvsadm("-C").ok();
    feed(&stage, "-R", &full).ok();
    let saved = stage.ipvsadm("-S -n").ok();
    assert_eq!(saved.lines().collect::<BTreeSet<_>>(), known);
}

#[test]
fn all_lines_of_an_atomic_restore_are_carried_out_or_none() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    for namespace in stage.lab.real_servers() {
        tcp_server(namespace, 9000, None);
    }
    let service = std::net::SocketAddr::new(VIPS[1].of(Family::V4), 1);
    stage.serve("-t", service, Method::Nat, 9000);
    stage.as_client(|| drop(connect(service).unwrap()));
    let saved = stage.ipvsadm("-S -n").ok();
    let refused = [
        // Nonsense, what IPVS refuses, what nobody has heard of.
        ("-C\n-A -t 192.0.2.1:1 -s rr\nnonsense\n", 255, "line 3"),
        ("-C\n-A -t 192.0.2.1:1 -s rr\n-A -t 192.0.2.1:1 -s rr\n", 255, "line 3"),
        ("-C\n-A -t 192.0.2.1:1 -s rr\n-a -t 192.0.2.1:1 -r 224.0.0.1 -g\n", 255, "line 3"),
        ("-C\n-A -t 192.0.2.1:1 -s rr\n-A -t 192.0.2.1:2 -s rr --pe rtp -p\n", 255, "line 3"),
        ("-C\n-A -t 192.0.2.1:1 -s least\n", 255, "line 2"),
        ("-A -t 192.0.2.1:1 -s rr\n-L\n", 2, "only edits"),
    ];
    for (lines, status, word) in refused {
        let said = feed(&stage, "-R --atomic", lines);
        assert_eq!(said.status, Some(status), "{lines}{said:?}");
        assert!(said.errors.contains(word), "{lines}{said:?}");
        assert_eq!(stage.ipvsadm("-S -n").ok(), saved, "{lines}");
    }
    // What stays is not touched, counters and connections included, though everything goes first.
    let before = stage.ipvsadm(&format!("-L -n -t {service}")).ok();
    let lines = format!("-C\n-A -t 192.0.2.1:1 -s wrr\n--set 800 0 0\n{saved}");
    feed(&stage, "-R --atomic", &lines).ok();
    assert_eq!(stage.ipvsadm(&format!("-L -n -t {service}")).ok(), before);
    let stats = figures(&stage.ipvsadm(&format!("-L -n --stats -t {service}")).ok());
    assert_eq!(stats[0].1[0], 1, "{stats:?}");
    assert!(stage.ipvsadm("-S -n").ok().contains("-A -t 192.0.2.1:1 -s wrr\n"));
    assert_eq!(stage.ipvsadm("-L --timeout").ok(), "Timeout (tcp tcpfin udp): 800 120 300\n");
}

#[test]
fn settings_are_known_by_the_kernels_names() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    let all = stage.rlvs(&["set"]).ok();
    for line in ["conn_reuse_mode = 1 ", "run_estimation = 1 ", "am_droprate = 10 "] {
        assert!(all.lines().any(|shown| shown.starts_with(line)), "{line} in {all}");
    }
    stage.rlvs(&["set", "run_estimation", "0"]).ok();
    assert_eq!(stage.rlvs(&["set", "run_estimation"]).ok(), "run_estimation = 0\n");
    // In this order: one begins with what the other says.
    for (name, value) in [("drop_packet", "3"), ("am_droprate", "7"), ("secure_tcp", "3")] {
        stage.rlvs(&["set", name, value]).ok();
        assert_eq!(stage.rlvs(&["set", name]).ok(), format!("{name} = {value}\n"));
    }
    // An empty table has room: automatic modes are shown as the kernel does.
    for name in ["drop_packet", "secure_tcp", "drop_entry"] {
        stage.rlvs(&["set", name, "2"]).ok();
        assert_eq!(stage.rlvs(&["set", name]).ok(), format!("{name} = 1\n"));
    }
    for name in ["amemthresh", "lblc_expiration", "lblcr_expiration"] {
        stage.rlvs(&["set", name, "77"]).ok();
        assert_eq!(stage.rlvs(&["set", name]).ok(), format!("{name} = 77\n"));
    }
    stage.rlvs(&["set", "schedule_icmp", "1"]).ok();
    assert_eq!(stage.rlvs(&["set", "schedule_icmp"]).ok(), "schedule_icmp = 1\n");
    stage.rlvs(&["set", "conn_lfactor", "-4"]).ok();
    for (name, why) in [
        ("backup_only", "stays 0: a director takes"),
        ("est_cpulist", "est_cpulist is without meaning here, and stays empty: a timer"),
        ("est_nice", "est_nice is without meaning here, and stays 0: a timer"),
        ("conn_lfactor", "conn_lfactor is without meaning here, and stays -4: tables"),
        ("sync_threshold", "stays 3 50: other directors are"),
        ("sloppy_tcp", "sloppy_tcp takes 0 to 1, not 0-1"),
    ] {
        let value = if matches!(name, "est_cpulist" | "sloppy_tcp") { "0-1" } else { "1" };
        let said = stage.rlvs(&["set", name, value]);
        assert_eq!(said.status, Some(1));
        assert!(said.errors.contains(why), "{said:?}");
    }
    let said = stage.rlvs(&["set", "nosuch", "1"]);
    assert_eq!(said.status, Some(1));
    assert!(said.errors.contains("there is no setting nosuch"), "{said:?}");
}

#[test]
fn json_says_what_the_lists_say() {
    let stage = Stage::attached(Wiring::Plain, PROGRAM);
    stage.ipvsadm("-A -t 192.0.2.1:80 -s wrr").ok();
    stage.ipvsadm("-a -t 192.0.2.1:80 -r 10.0.1.101:8080 -m -w 3").ok();
    stage.ipvsadm("-a -t 192.0.2.1:80 -r 10.0.1.102:80 -i --tun-type gue --tun-port 6080").ok();
    let json: Value = serde_json::from_str(&stage.ipvsadm("-L --json").ok()).unwrap();
    let service = &json["services"][0];
    assert_eq!(service["protocol"], "tcp");
    assert_eq!(service["scheduler"], "wrr");
    let servers = service["destinations"].as_array().unwrap();
    assert_eq!(servers[0]["address"], "10.0.1.101");
    assert_eq!(servers[0]["weight"], 3);
    assert_eq!(servers[1]["tunnel"]["type"], "gue");
    assert_eq!(servers[1]["tunnel"]["port"], 6080);
    assert_eq!(servers[1]["rates"]["in_bytes"], 0);
}
