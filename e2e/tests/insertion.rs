//! Two CPUs at one flow at once: one connection, counted once.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a step that fails panics; what it shows is not always looked at"
)]

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use e2e::bpf::{Body, Bpf, Input};
use e2e::network::{self, Network, vip};
use e2e::packet::{Kind, Packet};
use e2e::scene::{TCP, description, destination, request, service};
use e2e::snapshot;
use e2e::table::Description;
use rlvs_datapath::abi::method;
use rlvs_wire::tcp::SYN;

const ROUNDS: u16 = 4000;

/// Runs each round's frames, one on each of two CPUs, as nearly at once as can be. Returns what the
/// tables hold afterwards, and the names and values of their connections.
fn race(
    network: &Network,
    description: &Description,
    frames: impl Fn(u16) -> [Vec<u8>; 2],
) -> (snapshot::Snapshot, snapshot::Snapshot) {
    let settings = description.settings();
    let bpf = Bpf::load(&settings, Body::Xdp);
    let mut tables = description.build();
    bpf.push(&tables);
    let rounds: Vec<[Vec<u8>; 2]> = (0..ROUNDS).map(frames).collect();
    let (ready, barrier) = (AtomicU32::new(0), Barrier::new(2));
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (bpf, rounds, ready, barrier) = (&bpf, &rounds, &ready, &barrier);
            scope.spawn(move || {
                network::stay_on(cpu);
                barrier.wait();
                for (frames, round) in rounds.iter().zip(1..) {
                    // Both spin until both are here; a barrier that sleeps would wake one late.
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < 2 * round {
                        std::hint::spin_loop();
                    }
                    let input = Input::new(&frames[cpu as usize], network.inside.index);
                    bpf.run(Body::Xdp, &input).expect("a frame that programs run on");
                }
            });
        }
    });
    bpf.pull(&mut tables);
    // Finding an entry twice fails here.
    let entries = snapshot::connections(&tables);
    let mut all = snapshot::take(&tables);
    all.retain(|name, _| !name.starts_with("occupied") && !entries.contains_key(name));
    (all, entries)
}

fn number(all: &snapshot::Snapshot, name: &str) -> u32 {
    all.get(name).map_or(0, |value| value.parse().expect("a number"))
}

fn scene(network: &Network, family: u8, method: u8) -> Description {
    let one = service(family, TCP, vec![destination(family, 11, method)]);
    let mut other = one.clone();
    other.address = vip(family, 101);
    let mut description = description(network, vec![one, other]);
    description.buckets = 1 << 14;
    description
}

fn can_race(network: &Network) -> bool {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if network.cpus < 2 || cpus < 1 {
        let forced = std::env::var_os("RLVS_NO_SKIP").is_some_and(|value| value == "1");
        assert!(!forced, "a race needs two CPUs");
        println!("skipped: a race needs two CPUs");
        return false;
    }
    true
}

#[test]
fn one_flow_on_two_cpus_is_one_connection() {
    network::run("race-one", |network| {
        if !can_race(network) {
            return;
        }
        for (family, method) in
            [4, 6].into_iter().flat_map(|f| [(f, method::DIRECT), (f, method::MASQUERADE)])
        {
            let (all, entries) = race(network, &scene(network, family, method), |round| {
                let mut packet = request(network, family, Kind::Tcp(SYN));
                packet.source.set_port(round + 1);
                [packet.bytes(), packet.bytes()]
            });
            let rounds = u32::from(ROUNDS);
            let halves = if method == method::MASQUERADE { 2 } else { 1 };
            assert_eq!(entries.len() as u32, halves * rounds, "{all:#?}");
            let busy = number(&all, "reason busy");
            println!("IPv{family}, method {method}: {busy} packets met a lock too long");
            let names = ["d1 active", "d1 connections", "s1 position"];
            assert_eq!(names.map(|name| number(&all, name)), [rounds; 3], "{all:#?}");
            assert_eq!(number(&all, "d1 packets in") + busy, 2 * rounds, "{all:#?}");
            let rest = [
                "d1 active",
                "d1 bytes in",
                "d1 connections",
                "d1 packets in",
                "d1 way",
                "s0 position",
            ];
            let known = |name: &str| {
                rest.contains(&name) || name.starts_with("s1 ") || name == "reason busy"
            };
            assert!(all.keys().all(|name| known(name)), "{all:#?}");
        }
    });
}

/// The same client port by two services to one server: one gets the server's tuple.
#[test]
fn one_reply_tuple_on_two_cpus_is_one_connection() {
    network::run("race-reply", |network| {
        if !can_race(network) {
            return;
        }
        for family in [4, 6] {
            let description = scene(network, family, method::MASQUERADE);
            let (all, entries) = race(network, &description, |round| {
                let mut one = request(network, family, Kind::Tcp(SYN));
                one.source.set_port(round + 1);
                let target = (vip(family, 101), one.target.port()).into();
                [one.bytes(), Packet { target, ..one }.bytes()]
            });
            let rounds = u32::from(ROUNDS);
            assert_eq!(entries.len() as u32, 2 * rounds, "{all:#?}");
            let counted = number(&all, "d1 active") + number(&all, "d2 active");
            assert_eq!(counted, rounds);
            // More are refused at a time than are told so.
            let names = ["reason reply_taken", "reason icmp_limited", "reason busy"];
            let refused: u32 = names.iter().map(|name| number(&all, name)).sum();
            assert_eq!(refused, rounds, "{all:#?}");
            let locks: Vec<&String> = all.keys().filter(|name| name.starts_with("lock")).collect();
            assert!(locks.is_empty(), "{locks:?}");
        }
    });
}
