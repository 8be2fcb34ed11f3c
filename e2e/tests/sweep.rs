//! The sweep: the kernel's timer removes what has expired, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a step that fails panics; what it shows is not always looked at"
)]

use std::time::{Duration, Instant};

use e2e::bpf::{Body, Bpf, Input};
use e2e::host::HostTables;
use e2e::network::{self, Network, client};
use e2e::packet::Kind;
use e2e::scene::{SCTP, TCP, UDP, description, destination, request, service};
use e2e::snapshot;
use e2e::table::SECOND;
use rlvs_datapath::abi::{SOURCE_BUCKETS, Settings, method, mode, service_flag, settings_flag};
use rlvs_wire::tcp::SYN;

const DEADLINE: Duration = Duration::from_secs(20);

/// Looks until the tables are as wanted.
fn wait(bpf: &Bpf, tables: &mut HostTables, wanted: impl Fn(&snapshot::Snapshot) -> bool) {
    let start = Instant::now();
    loop {
        bpf.pull(tables);
        let seen = snapshot::take(tables);
        if wanted(&seen) {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "after {DEADLINE:?} the tables hold {seen:#?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn count(seen: &snapshot::Snapshot, name: &str) -> u32 {
    seen.get(name).map_or(0, |value| value.parse().expect("a number"))
}

/// Opens as many connections by TCP as by UDP: `flows` of each.
fn open(bpf: &Bpf, network: &Network, family: u8, flows: u16) {
    for (flow, kind) in (0..flows).flat_map(|flow| [(flow, Kind::Tcp(SYN)), (flow, Kind::Udp)]) {
        let mut packet = request(network, family, kind);
        packet.source = (client(family, (flow % 200) as u8 + 1), 1000 + flow / 200).into();
        let ran = bpf.run(Body::Xdp, &Input::new(&packet.bytes(), network.inside.index));
        assert_eq!(ran.expect("a frame").code, 4);
    }
}

fn sweep(test: &str, buckets: u32, flows: u16) {
    network::run(test, |network| {
        let of = |family, protocol, method| {
            service(family, protocol, vec![destination(family, 11, method)])
        };
        let services = vec![
            of(4, TCP, method::MASQUERADE),
            of(4, UDP, method::DIRECT),
            of(6, TCP, method::DIRECT),
            of(6, UDP, method::MASQUERADE),
        ];
        let mut description = description(network, services);
        description.buckets = buckets;
        let mut settings = description.settings();
        let mut bpf = Bpf::load(&settings, Body::Xdp);
        let mut tables = description.build();
        bpf.push(&tables);
        bpf.arm();
        for family in [4, 6] {
            open(&bpf, network, family, flows);
        }
        let flows = u32::from(flows);
        wait(&bpf, &mut tables, |_| true);
        let seen = snapshot::take(&tables);
        let counts = |seen: &snapshot::Snapshot| {
            ["d1 active", "d2 inactive", "d3 active", "d4 inactive"].map(|name| count(seen, name))
        };
        assert_eq!(counts(&seen), [flows; 4]);
        assert_eq!(snapshot::connections(&tables).len() as u32, 6 * flows);

        // A minute later SYN_RECV is over, UDP is not.
        settings.clock_offset += 60 * SECOND + 1;
        bpf.set(&settings);
        tables.settings = settings;
        wait(&bpf, &mut tables, |seen| counts(seen) == [0, flows, 0, flows]);
        wait(&bpf, &mut tables, |seen| seen.keys().filter(|name| name.contains(":")).count() > 0);
        let left = snapshot::connections(&tables);
        assert_eq!(left.len() as u32, 3 * flows);
        assert!(left.values().all(|value| value.starts_with("UDP")));

        settings.clock_offset += 240 * SECOND;
        bpf.set(&settings);
        tables.settings = settings;
        let is_empty = |seen: &snapshot::Snapshot| {
            !seen.keys().any(|name| name.contains(" s") || name.contains(" r"))
                && counts(seen) == [0; 4]
                && !seen.keys().any(|name| name.starts_with("occupied"))
        };
        wait(&bpf, &mut tables, is_empty);
        assert!(snapshot::connections(&tables).is_empty());
        assert!(tables.locks.iter().all(|lock| lock.get() == 0));
        assert!(tables.reasons.iter().all(|counter| counter.get() == 0));
    });
}

#[test]
fn a_few_connections_leave_the_table_and_the_counts_in_time() {
    sweep("sweep-few", 64, 5);
}

#[test]
fn ten_thousand_connections_leave_the_table_and_the_counts_in_time() {
    sweep("sweep-many", 1 << 14, 2500);
}

/// An INIT that nobody answered goes after 4 seconds, what is established after 900.
#[test]
fn associations_leave_by_their_own_time_outs() {
    const INIT: u8 = 1;
    const COOKIE_ECHO: u8 = 10;
    network::run("sweep-sctp", |network| {
        let of = |family, method| service(family, SCTP, vec![destination(family, 11, method)]);
        let services = vec![of(4, method::MASQUERADE), of(6, method::DIRECT)];
        let description = description(network, services);
        let mut settings = description.settings();
        let mut bpf = Bpf::load(&settings, Body::Xdp);
        let mut tables = description.build();
        bpf.push(&tables);
        bpf.arm();
        // By direct routing the client's cookie makes the association.
        for (family, chunk) in [(4, INIT), (6, INIT), (6, COOKIE_ECHO)] {
            let packet = request(network, family, Kind::Sctp(chunk, None));
            let ran = bpf.run(Body::Xdp, &Input::new(&packet.bytes(), network.inside.index));
            assert_eq!(ran.expect("a frame").code, 4);
        }
        let counts =
            |seen: &snapshot::Snapshot| [count(seen, "d1 inactive"), count(seen, "d2 active")];
        wait(&bpf, &mut tables, |seen| counts(seen) == [1, 1]);
        for (seconds, left) in [(4, [0, 1]), (896, [0, 0])] {
            settings.clock_offset += seconds * SECOND + u32::from(seconds == 4);
            bpf.set(&settings);
            tables.settings = settings;
            wait(&bpf, &mut tables, |seen| counts(seen) == left);
        }
        wait(&bpf, &mut tables, |seen| !seen.keys().any(|name| name.starts_with("occupied")));
        assert!(snapshot::connections(&tables).is_empty());
    });
}

/// A template stays as long as its connections, a minute at a time, and goes with them.
#[test]
fn templates_and_connections_of_every_port_leave_in_time() {
    network::run("sweep-wide", |network| {
        let servers = vec![destination(4, 11, method::MASQUERADE)];
        let mut any = service(4, UDP, servers.clone());
        any.port = 0;
        any.address = network::vip(4, 101);
        any.servers[0].port = 0;
        let mut description = description(network, vec![service(4, UDP, servers), any]);
        description.flags |= settings_flag::WIDE;
        let mut settings = description.settings();
        let mut bpf = Bpf::load(&settings, Body::Xdp);
        let mut tables = description.build();
        for service in &mut tables.services[1..=2] {
            service.flags |= service_flag::SPECIAL;
            (service.persistence, service.mask) = (10 * SECOND, [0xff; 16]);
        }
        bpf.push(&tables);
        bpf.arm();
        for (number, vip) in (1..=20).flat_map(|number| [(number, 100), (number, 101)]) {
            let mut packet = request(network, 4, Kind::Udp);
            packet.source = (client(4, number), 1000).into();
            packet.target = (network::vip(4, vip), 80).into();
            let ran = bpf.run(Body::Xdp, &Input::new(&packet.bytes(), network.inside.index));
            assert_eq!(ran.expect("a frame").code, 4);
        }
        let counts = |seen: &snapshot::Snapshot| {
            let names = ["d1 inactive", "d2 inactive", "d1 persistent", "d2 persistent"];
            names.map(|name| count(seen, name))
        };
        let mut pass = |units: u32, wanted: &[u32]| {
            settings.clock_offset += units;
            bpf.set(&settings);
            tables.settings = settings;
            wait(&bpf, &mut tables, |seen| counts(seen).starts_with(wanted));
            // Twice round the table: nothing else changes.
            std::thread::park_timeout(Duration::from_millis(500));
            wait(&bpf, &mut tables, |seen| counts(seen).starts_with(wanted));
        };
        pass(0, &[20; 4]);
        // The templates' time is over, their connections' is not.
        pass(11 * SECOND, &[20; 4]);
        pass(100 * SECOND, &[20; 4]);
        // All that they control is gone; some have what is left of a minute.
        pass(190 * SECOND, &[0, 0]);
        pass(61 * SECOND, &[0; 4]);
        wait(&bpf, &mut tables, |seen| !seen.keys().any(|name| name.starts_with("occupied")));
        assert!(snapshot::wide_entries(&tables).is_empty());
        assert!(tables.locks.iter().all(|lock| lock.get() == 0));
    });
}

/// No process has a part in it: the programs' timer sees that there is little room, says so where new
/// connections are opened, and removes those that nobody completes.
#[test]
fn a_table_that_runs_full_is_defended() {
    network::run("sweep-defence", |network| {
        let mut any = service(4, TCP, vec![destination(4, 11, method::MASQUERADE)]);
        (any.port, any.address, any.servers[0].port) = (0, network::vip(4, 101), 0);
        let of = |protocol| service(4, protocol, vec![destination(4, 11, method::MASQUERADE)]);
        let mut description = description(network, vec![of(TCP), of(UDP), any]);
        (description.buckets, description.flags) = (64, settings_flag::WIDE);
        let mut settings = description.settings();
        let mut bpf = Bpf::load(&settings, Body::Xdp);
        let mut tables = description.build();
        tables.services[3].flags |= service_flag::SPECIAL;
        (tables.services[3].persistence, tables.services[3].mask) = (600 * SECOND, [0xff; 16]);
        // 512 slots, of which half are to be free.
        settings.amemthresh = u32::MAX;
        tables.settings = settings;
        bpf.push(&tables);
        bpf.arm();
        let ask = |entry, others| {
            let (drop_entry, drop_packet, secure_tcp) = (entry, others, others);
            bpf.set(&Settings { drop_entry, drop_packet, secure_tcp, ..bpf.settings() });
        };
        let levels = || {
            let settings = bpf.settings();
            (settings.drop_rate, settings.strict, settings.scarce)
        };
        let until = |wanted: (u32, u32, u32)| {
            let start = Instant::now();
            while levels() != wanted {
                assert!(start.elapsed() < DEADLINE, "levels stay {:?}, not {wanted:?}", levels());
                std::thread::park_timeout(Duration::from_millis(10));
            }
        };
        let open_wide = || {
            let mut packet = request(network, 4, Kind::Tcp(SYN));
            packet.target = (network::vip(4, 101), 443).into();
            let ran = bpf.run(Body::Xdp, &Input::new(&packet.bytes(), network.inside.index));
            assert_eq!(ran.expect("a frame").code, 4);
        };
        // Two slots each: 100 connections leave room, 150 do not.
        ask(mode::NEVER, mode::AUTOMATIC);
        open(&bpf, network, 4, 50);
        open_wide();
        let pass =
            |tables: &HostTables| tables.sources[SOURCE_BUCKETS as usize].slots[0].number.get();
        bpf.pull(&mut tables);
        let (start, before) = (Instant::now(), pass(&tables));
        while pass(&tables) < before + 3 {
            assert!(start.elapsed() < DEADLINE, "the sweep stands still");
            std::thread::park_timeout(Duration::from_millis(10));
            bpf.pull(&mut tables);
        }
        assert_eq!(levels(), (0, 0, 0));
        ask(mode::NEVER, mode::NEVER);
        open(&bpf, network, 4, 75);
        until((0, 0, 1));
        ask(mode::NEVER, mode::AUTOMATIC);
        // 256 / (256 - 212).
        until((5, 1, 1));
        let counts = |seen: &snapshot::Snapshot| {
            ["d1 active", "d2 inactive", "d3 active"].map(|name| count(seen, name))
        };
        wait(&bpf, &mut tables, |seen| counts(seen) == [75, 75, 1]);

        // Half-open ones leave, in both tables, long before their time; the others stay.
        ask(mode::AUTOMATIC, mode::AUTOMATIC);
        wait(&bpf, &mut tables, |seen| counts(seen) == [0, 75, 0]);
        until((0, 0, 0));
        ask(mode::ALWAYS, mode::NEVER);
        open(&bpf, network, 4, 10);
        open_wide();
        wait(&bpf, &mut tables, |seen| counts(seen) == [0, 75, 0]);
        wait(&bpf, &mut tables, |_| true);
        assert_eq!(snapshot::connections(&tables).len(), 150);
        assert!(tables.locks.iter().all(|lock| lock.get() == 0));
    });
}
