//! What `rlvs proc` writes, held against the kernel's own files of the same table.

use std::fs;

use e2e::crossing::{self, Balancer, Side};
use e2e::network::{client, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene;
use rlvs::proc;
use rlvs_control::model::Traffic;
use rlvs_control::table::Table;
use rlvs_linux::dataplane::table::Total;
use rlvs_wire::tcp::{ACK, SYN};

use crate::guest;

/// Ticks of the oracle's kernel in a second.
const TICKS: u64 = 100;
const SERVICES: [&str; 15] = [
    "-A -t 192.0.2.100:80 -s wlc",
    "-a -t 192.0.2.100:80 -r 10.0.0.11:8080 -m -w 3",
    "-a -t 192.0.2.100:80 -r 10.0.0.12:80 -g",
    "-a -t 192.0.2.100:80 -r [2001:db8:2::b]:80 -i -w 100",
    "-A -t 192.0.2.100:81 -s rr -p 100 -M 255.255.255.0",
    "-A -u 192.0.2.100:53 -s rr -o",
    "-A --sctp-service 192.0.2.100:9 -s lc",
    "-A -t [2001:db8:1::64]:80 -s mh -p 7 -M 56",
    "-a -t [2001:db8:1::64]:80 -r [2001:db8:2::b]:80 -g -w 65535",
    "-A -u [2001:db8:1::64]:53 -s rr -o",
    "-a -u [2001:db8:1::64]:53 -r [2001:db8:2::c]:53 -m",
    "-A -f 77 -s rr -p",
    "-a -f 77 -r 10.0.0.13 -m",
    "-A -f 78 -6 -s sh -o",
    "-a -f 78 -6 -r [2001:db8:2::d]:0 -i",
];

#[test]
fn files_are_written_as_the_kernel_writes_them() {
    if !guest::is_guest() {
        guest::run("files::files_are_written_as_the_kernel_writes_them");
        return;
    }
    crossing::run("files", Balancer::Kernel, |mut crossing| {
        for line in SERVICES {
            assert_eq!(crossing.ipvsadm(line).0, 0, "{line}");
        }
        for family in [4, 6] {
            for (port, flags) in [(4000, SYN), (4001, SYN), (4001, ACK)] {
                let packet = Packet {
                    source: (client(family, 7), port).into(),
                    target: (vip(family, 100), 80).into(),
                    ..scene::request(crossing.network, family, Kind::Tcp(flags))
                };
                crossing.step(Side::Clients, &packet.bytes());
            }
        }
        let mut table = crossing.table();
        let size = table.connection_table_size().unwrap();
        let ours = proc::services(&table.services().unwrap(), size, TICKS);
        assert!(ours.lines().count() > SERVICES.len());
        assert_eq!(sorted(&ours), sorted(&file("ip_vs")));
        for (name, with_origin) in [("ip_vs_conn", false), ("ip_vs_conn_sync", true)] {
            // Times go on while it is read.
            let same = (0..20).any(|_| {
                let theirs = file(name);
                let connections: Vec<_> = table.connections().unwrap();
                assert!(connections.len() >= 4);
                sorted(&proc::connections(&connections, with_origin)) == sorted(&theirs)
            });
            let list = proc::connections(&table.connections().unwrap(), with_origin);
            assert!(same, "{list}{}", file(name));
        }
        let theirs = file("ip_vs_stats");
        let rows = numbers(&theirs);
        let [counted, rates] = [rows[0].1, rows[1].1];
        assert_eq!(proc::stats(&Total { counted, rates }), theirs);
        let theirs = file("ip_vs_stats_percpu");
        let rows = numbers(&theirs);
        let by_cpu: Vec<Traffic> = rows[..rows.len() - 2].iter().map(|(_, row)| *row).collect();
        let [(_, counted), (_, rates)] = rows[rows.len() - 2..] else { panic!("{theirs}") };
        assert!(by_cpu.iter().any(|cpu| cpu.connections > 0), "{theirs}");
        assert_eq!(proc::stats_by_cpu(&by_cpu, &Total { counted, rates }), theirs);
    });
}

fn file(name: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// Reads the rows of five hexadecimal numbers, each with the word before them.
fn numbers(text: &str) -> Vec<(String, Traffic)> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (first, numbers) = words.split_at_checked(words.len().checked_sub(5)?)?;
        let parse = |word: &&str| u64::from_str_radix(word, 16).ok();
        let numbers: Vec<u64> = numbers.iter().map(parse).collect::<Option<_>>()?;
        let [connections, in_packets, out_packets, in_bytes, out_bytes] = numbers[..] else {
            return None;
        };
        let row = Traffic { connections, in_packets, out_packets, in_bytes, out_bytes };
        Some((first.concat(), row))
    };
    text.lines().filter_map(row).collect()
}
