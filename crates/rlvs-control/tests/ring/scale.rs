//! Weights whose cycle does not fit in a ring.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rlvs_control::ring::{Kind, MAX_ELEMENTS, Member, Ring, State, build};

use crate::director::Director;
use crate::kernel::Kernel;
use crate::properties::config;

/// The largest weight that ipvsadm takes.
const HEAVIEST: u32 = 2_147_483_647;

fn members(weights: &[u32]) -> Vec<Member> {
    (1..).zip(weights).map(|(id, &weight)| Member { id, weight }).collect()
}

fn ring(weights: &[u32]) -> Ring {
    let members = members(weights);
    build(&members, State::new(Kind::Wrr, &members), 0)
}

fn shares(weights: &[u32]) -> Vec<u64> {
    let mut shares: BTreeMap<u32, u64> = (1..).zip(weights).map(|(id, _)| (id, 0)).collect();
    for id in ring(weights).elements {
        *shares.entry(id).or_default() += 1;
    }
    shares.into_values().collect()
}

#[test]
fn a_cycle_that_just_fits_is_the_kernels() {
    let mut rings = Director::new(Kind::Wrr, 5);
    let mut kernel = Kernel::new(Kind::Wrr);
    for (id, weight) in [(1, 1), (2, 65_500), (3, 35)] {
        rings.add(id, weight);
        kernel.add(id, weight);
    }
    assert_eq!(rings.ring.elements.len() as u64, MAX_ELEMENTS);
    for _ in 0..MAX_ELEMENTS + 100 {
        assert_eq!(rings.pick(), kernel.pick());
    }
}

#[test]
fn shares_stay_in_proportion() {
    assert_eq!(shares(&[65_535, 1]), [65_535, 1]);
    assert_eq!(shares(&[65_536, 1]), [65_533, 1]);
    assert_eq!(shares(&[65_535, 2]), [65_532, 2]);
    assert_eq!(shares(&[HEAVIEST, 1]), [65_534, 1]);
    assert_eq!(shares(&[HEAVIEST, 0, HEAVIEST]), [1, 0, 1]);
    assert_eq!(shares(&[HEAVIEST, HEAVIEST - 1, 1]), [32_767, 32_766, 1]);
    assert_eq!(shares(&[u32::MAX, 3, 3]), [65_533, 1, 1]);
}

#[test]
fn a_scaled_cycle_descends_as_the_kernels() {
    let ring = ring(&[1, HEAVIEST]);
    assert!(ring.elements[..65_533].iter().all(|&id| id == 2));
    assert_eq!(ring.elements[65_533..], [1, 2]);
}

/// A level for every element and a walk of all members on each would take minutes here.
#[test]
fn many_members_and_many_levels_are_quick() {
    let mut weights = vec![1; 32_768];
    weights[7] = HEAVIEST;
    assert_eq!(ring(&weights).elements.len(), 65_535);
    weights.fill(HEAVIEST);
    weights[9] = HEAVIEST - 1;
    assert_eq!(ring(&weights).elements.len(), 32_768);
}

#[test]
fn every_id_has_room() {
    let mut weights = vec![1; 65_535];
    weights[65_534] = HEAVIEST;
    let mut elements = ring(&weights).elements;
    elements.sort_unstable();
    elements.dedup();
    assert_eq!(elements.len(), 65_535);
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    let weight = prop_oneof![0u32..10, 0u32..=100_000, 0..=HEAVIEST, any::<u32>()];
    prop::collection::vec(weight, 1..30)
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn shares_are_off_by_one_for_each_member_at_most(weights in weights()) {
        let shares = shares(&weights);
        let length: u64 = shares.iter().sum();
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        prop_assert!(length <= MAX_ELEMENTS);
        for (&share, &weight) in shares.iter().zip(&weights) {
            prop_assert_eq!(share == 0, weight == 0);
            let due = u128::from(weight) * u128::from(length);
            let off = due.abs_diff(u128::from(share) * total);
            let most = total * (weights.len() as u128 + 1);
            prop_assert!(off <= most, "weight {weight} has {share} of {length}");
        }
    }

    #[test]
    fn a_ring_laid_out_again_goes_on(
        weights in weights(),
        picks in prop::collection::vec(0usize..40_000, 1..4),
    ) {
        let mut once = Director::new(Kind::Wrr, 77);
        (1..).zip(&weights).for_each(|(id, &weight)| once.add(id, weight));
        let mut again = Director::new(Kind::Wrr, 77);
        (1..).zip(&weights).for_each(|(id, &weight)| again.add(id, weight));
        for count in picks {
            prop_assert!(once.picks(count) == again.picks(count));
            again.rebuild();
        }
        prop_assert!(once.picks(70_000) == again.picks(70_000));
    }
}
