//! What schedulers have laid out: vectors observed of the kernel, and properties for any list.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rlvs_control::scheduler::{ALL, Candidate, lay_out};
use rlvs_datapath::abi::scheduler;
use rlvs_datapath::schedulers::hashing::{BUCKETS, MAGLEV, PLACE, bucket, maglev};

/// Returns the list after destinations 10.1.0.11, 12 and so on were added with these weights.
fn list(weights: &[u32]) -> Vec<Candidate> {
    let candidate = |(id, &weight): (u32, &u32)| Candidate {
        id,
        weight,
        last_weight: weight,
        limited: false,
        address: [10, 1, (id >> 8) as u8, 10 + id as u8].into(),
        port: 80,
    };
    let mut list: Vec<_> = (1..).zip(weights).map(candidate).collect();
    list.reverse();
    list
}

fn ids(number: u32, list: &[Candidate]) -> Vec<u32> {
    lay_out(number, list, None, 0).elements.iter().map(|&element| element as u32).collect()
}

fn counted(ids: &[u32]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    ids.iter().for_each(|&id| *counts.entry(id).or_default() += 1);
    counts
}

/// Who gets clients 10.9.0.20 to 59, as ipvs.md tells.
fn clients(number: u32, list: &[Candidate]) -> String {
    let table = ids(number, list);
    let pick = |last: u8| {
        let client = u32::from_be_bytes([10, 9, 0, last]);
        let place = match number {
            scheduler::MH => maglev(client, PLACE) % MAGLEV,
            _ => bucket(client),
        };
        table.get(place as usize).expect("a table is full").to_string()
    };
    (20..60).map(pick).collect()
}

#[test]
fn clients_go_where_the_kernel_sent_them() {
    let vectors = [
        (scheduler::SH, [1, 1, 1], "2121213131323232121213122323112323312132"),
        (scheduler::SH, [3, 2, 1], "1121213232121211212111121313212121321212"),
    ];
    for (number, weights, expected) in vectors {
        assert_eq!(clients(number, &list(&weights)), expected, "{number} {weights:?}");
    }
}

#[test]
fn maglev_gives_as_many_places_as_the_kernel() {
    let places = |weights: &[u32]| counted(&ids(scheduler::MH, &list(weights)));
    let sorted = |weights: &[u32]| {
        let mut places: Vec<_> = places(weights).into_values().collect();
        places.sort_unstable();
        places
    };
    assert_eq!(sorted(&[1, 1, 1]), [1364, 1364, 1365]);
    assert_eq!(sorted(&[3, 2, 1]), [683, 1364, 2046]);
    assert_eq!(places(&[0, 0]), BTreeMap::new());
}

#[test]
fn a_weight_of_0_leaves_the_table_of_maglev_alone() {
    let before = list(&[3, 2, 1]);
    let mut after = before.clone();
    after[1].weight = 0;
    assert_eq!(ids(scheduler::MH, &after), ids(scheduler::MH, &before));
}

#[test]
fn failover_and_overflow_go_by_weight_and_then_by_age() {
    for number in [scheduler::FO, scheduler::OVF] {
        assert_eq!(ids(number, &list(&[2, 5, 0, 5, 1])), [4, 2, 1, 5]);
    }
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![0u32..5, 0u32..100], 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn only_the_listed_are_laid_out_and_all_that_may_be_chosen(weights in weights()) {
        let list = list(&weights);
        let eligible: BTreeSet<u32> =
            list.iter().filter(|one| one.weight > 0).map(|one| one.id).collect();
        for (name, number) in ALL {
            let layout: BTreeSet<u32> = ids(number, &list).into_iter().collect();
            match number {
                scheduler::SH | scheduler::DH => {
                    let all: BTreeSet<u32> = list.iter().map(|one| one.id).collect();
                    prop_assert!(layout.is_subset(&all), "{}", name);
                    let length = if list.is_empty() { 0 } else { BUCKETS as usize };
                    prop_assert_eq!(ids(number, &list).len(), length);
                }
                _ => prop_assert_eq!(&layout, &eligible, "{}", name),
            }
        }
    }

    #[test]
    fn p2c_draws_by_weight(weights in weights()) {
        let list = list(&weights);
        let drawn = counted(&ids(scheduler::P2C, &list));
        for one in &list {
            for other in &list {
                let of = |one: &Candidate| drawn.get(&one.id).copied().unwrap_or(0) as u64;
                prop_assert_eq!(
                    of(one) * u64::from(other.weight),
                    of(other) * u64::from(one.weight)
                );
            }
        }
    }

    /// Of the places that a destination did not have, few change hands when it goes.
    #[test]
    fn maglev_moves_little_when_a_destination_goes(count in 2u32..20, gone in 0usize..20) {
        let before = list(&vec![1; count as usize]);
        let gone = before[gone % before.len()].id;
        let after: Vec<_> = before.iter().copied().filter(|one| one.id != gone).collect();
        let pairs = ids(scheduler::MH, &before).into_iter().zip(ids(scheduler::MH, &after));
        let moved = pairs.filter(|(before, after)| *before != gone && before != after).count();
        prop_assert!(moved < MAGLEV as usize / 5, "{} of {}", moved, MAGLEV);
    }
}
