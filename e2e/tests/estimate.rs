//! The estimator: the kernel's timer makes of counters the rates that the kernel's IPVS makes of them.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a step that fails panics; what it shows is not always looked at"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::bpf::{Body, Bpf};
use e2e::host::{HostTables, IDS};
use e2e::network::{self, Network};
use e2e::scene::{TCP, UDP, description, destination, service};
use rlvs_datapath::abi::{Estimate, Row, method, settings_flag};
use rlvs_datapath::estimate::{averaged, shown};

const DEADLINE: Duration = Duration::from_secs(30);
/// How much a counter is shifted to what its rate is kept in.
const SHIFTS: [u32; 5] = [9, 9, 9, 4, 4];

/// Three destinations of two services, each counted on every CPU.
fn tables(network: &Network, flags: u32) -> (e2e::table::Description, HostTables) {
    let of = |number| destination(4, number, method::DIRECT);
    let services = vec![service(4, TCP, vec![of(11), of(12)]), service(4, UDP, vec![of(13)])];
    let mut description = description(network, services);
    description.flags = flags;
    let tables = description.build();
    for id in 1..=3 {
        for cpu in 0..network.cpus {
            count(&tables.rows[(id * network.cpus + cpu) as usize], u64::from(1000 * id + cpu));
        }
    }
    (description, tables)
}

fn count(row: &Row, by: u64) {
    let words =
        [&row.connections, &row.in_packets, &row.out_packets, &row.in_bytes, &row.out_bytes];
    for (factor, word) in (1..).zip(words) {
        word.set(word.get() + by * factor);
    }
}

/// What the three destinations count in each of their five counters.
fn counted(network: &Network, id: u32) -> [u64; 5] {
    let sum: u64 = (0..network.cpus).map(|cpu| u64::from(1000 * id + cpu)).sum();
    [1, 2, 3, 4, 5].map(|factor| factor * sum)
}

fn rates(estimate: &Estimate) -> [u64; 5] {
    estimate.rates.each_ref().map(|rate| rate.get())
}

/// Everything that is estimated, by index in the tests' table, and the destinations that it sums.
fn wanted() -> [(u32, &'static [u32]); 6] {
    [(1, &[1]), (2, &[2]), (3, &[3]), (IDS + 1, &[1, 2]), (IDS + 2, &[3]), (IDS, &[1, 2, 3])]
}

#[test]
fn rates_are_the_kernels_in_every_round_for_destinations_services_and_all() {
    network::run("estimate", |network| {
        let (description, mut tables) = tables(network, 0);
        let mut bpf = Bpf::load(&description.settings(), Body::Xdp);
        bpf.push(&tables);
        bpf.arm();
        let models: Vec<(u32, Vec<[u64; 5]>)> = wanted()
            .into_iter()
            .map(|(index, of)| {
                let mut sum = [0; 5];
                for &id in of {
                    sum.iter_mut().zip(counted(network, id)).for_each(|(sum, more)| *sum += more);
                }
                let mut rate = [0; 5];
                let mut rounds = vec![rate];
                for round in 0..40 {
                    for ((rate, sum), shift) in rate.iter_mut().zip(sum).zip(SHIFTS) {
                        *rate = averaged(*rate, if round == 0 { sum } else { 0 }, shift);
                    }
                    rounds.push(rate);
                }
                (index, rounds)
            })
            .collect();
        let mut seen: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); models.len()];
        let start = Instant::now();
        // Four rounds of each, the first three of which differ from all others.
        while seen.iter().any(|rounds| rounds.len() < 4) {
            bpf.pull(&mut tables);
            for (seen, (index, rounds)) in seen.iter_mut().zip(&models) {
                let now = rates(&tables.estimates[*index as usize]);
                // The five words of a record change one after the other.
                if let Some(round) = rounds.iter().position(|round| *round == now) {
                    seen.insert(round);
                }
            }
            assert!(start.elapsed() < DEADLINE, "rounds seen: {seen:?}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        assert!(start.elapsed() >= Duration::from_secs(3), "rounds are 2 s apart");
        // A round's number is that of the rounds since the first: none is missing or comes twice.
        for rounds in &seen {
            let last = rounds.last().unwrap();
            assert_eq!(rounds.len() + usize::from(!rounds.contains(&0)), last + 1, "{seen:?}");
        }
    });
}

#[test]
fn what_is_to_be_zero_is_and_counting_goes_on() {
    network::run("estimate-zero", |network| {
        let (description, mut tables) = tables(network, 0);
        let mut bpf = Bpf::load(&description.settings(), Body::Xdp);
        tables.estimates[1].zeroed.set(1);
        for rate in &tables.estimates[1].rates {
            rate.set(1 << 40);
        }
        tables.estimates[1].counted[1].set(1000);
        assert_eq!(shown(&tables.estimates[1]), [0; 5], "at once");
        bpf.push(&tables);
        bpf.arm();
        let start = Instant::now();
        while tables.estimates[1].zeroed.get() != 0 || tables.estimates[1].rates[1].get() == 0 {
            bpf.pull(&mut tables);
            assert!(start.elapsed() < DEADLINE);
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let expected = averaged(0, counted(network, 1)[1] - 1000, SHIFTS[1]);
        let second = averaged(expected, 0, SHIFTS[1]);
        let rate = tables.estimates[1].rates[1].get();
        assert!([expected, second].contains(&rate), "{rate} instead of {expected}");
    });
}

#[test]
fn without_estimation_rates_stay() {
    network::run("estimate-off", |network| {
        let (description, mut tables) = tables(network, settings_flag::NO_ESTIMATION);
        let mut bpf = Bpf::load(&description.settings(), Body::Xdp);
        tables.estimates[1].rates[0].set(77 << 10);
        bpf.push(&tables);
        bpf.arm();
        // On again, the first round finds everything that was counted meanwhile.
        let mut settings = description.settings();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2500) {
            bpf.pull(&mut tables);
            assert_eq!(shown(&tables.estimates[1])[0], 77);
            std::thread::park_timeout(Duration::from_millis(100));
        }
        settings.flags = 0;
        bpf.set(&settings);
        let first = averaged(77 << 10, counted(network, 1)[0], SHIFTS[0]);
        while tables.estimates[1].rates[0].get() == 77 << 10 {
            bpf.pull(&mut tables);
            assert!(start.elapsed() < DEADLINE);
            std::thread::park_timeout(Duration::from_millis(10));
        }
        assert_eq!(tables.estimates[1].rates[0].get(), first);
    });
}
