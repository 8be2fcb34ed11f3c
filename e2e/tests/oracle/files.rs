//! What `rlvs proc` writes, held against the kernel's own files of the same table.

use std::fs;
use std::time::Duration;

use e2e::crossing::{self, Balancer, Side};
use e2e::lab::wait_for;
use e2e::network::{client, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene;
use rlvs::proc;
use rlvs_control::model::Traffic;
use rlvs_control::table::Table;
use rlvs_datapath::abi::Estimate;
use rlvs_datapath::estimate::{averaged, shown};
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

/// A line of numbers twice: counted, and a second.
fn stats() -> [Traffic; 2] {
    let theirs = file("ip_vs_stats");
    let rows = numbers(&theirs);
    [rows[0].1, rows[1].1]
}

fn counters(traffic: Traffic) -> [u64; 5] {
    let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = traffic;
    [connections, in_packets, out_packets, in_bytes, out_bytes]
}

/// Our arithmetic beside the kernel's.
struct Rates {
    estimate: Estimate,
    before: [Traffic; 2],
    rounds: usize,
}

impl Rates {
    /// Looks whether a round of the kernel's is over: what it shows it copies then, counts and rates at once.
    fn look(&mut self) {
        let now = stats();
        if now == self.before {
            return;
        }
        let counted = counters(now[0]).into_iter().zip(counters(self.before[0]));
        let rates = self.estimate.rates.iter().zip([9, 9, 9, 4, 4]);
        for ((rate, shift), (now, before)) in rates.zip(counted) {
            rate.set(averaged(rate.get(), now - before, shift));
        }
        let (rounds, before) = (self.rounds, self.before);
        assert_eq!(shown(&self.estimate), counters(now[1]), "{rounds}: {before:?} {now:?}");
        self.before = now;
        self.rounds += 1;
    }
}

/// Looks so often that no round is missed.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Rounds with packets, and rounds in all.
const BUSY_ROUNDS: usize = 4;
const ROUNDS: usize = 12;

#[test]
fn rates_are_made_of_counts_as_the_kernel_makes_them() {
    if !guest::is_guest() {
        guest::run("files::rates_are_made_of_counts_as_the_kernel_makes_them");
        return;
    }
    crossing::run("estimates", Balancer::Kernel, |mut crossing| {
        for line in ["-A -t 192.0.2.100:80 -s rr", "-a -t 192.0.2.100:80 -r 10.0.0.11:8080 -m"] {
            assert_eq!(crossing.ipvsadm(line).0, 0, "{line}");
        }
        let mut rates = Rates { estimate: Estimate::default(), before: stats(), rounds: 0 };
        assert_eq!(rates.before, [Traffic::default(); 2], "nothing has been counted");
        let mut port = 4000;
        while rates.rounds < ROUNDS {
            let round = rates.rounds;
            let packets = if round < BUSY_ROUNDS { 20 * (round + 1) } else { 0 };
            for _ in 0..packets {
                port += 1;
                let source = (client(4, 7), port).into();
                let packet = scene::request(crossing.network, 4, Kind::Tcp(SYN));
                crossing.step(Side::Clients, &Packet { source, ..packet }.bytes());
                rates.look();
            }
            wait_for("a round of the kernel's", || {
                #[expect(clippy::disallowed_methods, reason = "nothing tells of a round's end")]
                std::thread::sleep(LOOK_INTERVAL);
                rates.look();
                if rates.rounds > round { Ok(()) } else { Err(format!("{:?}", rates.before)) }
            });
        }
        assert!(port >= 4020 && rates.before[0].connections == u64::from(port - 4000));
    });
}
