//! The table of mh: which destination each of its 4,093 places belongs to, as the kernel's.

use std::net::IpAddr;

use rlvs_datapath::schedulers::hashing::{MAGLEV, PLACE, SKIP, maglev};

use crate::scheduler::Candidate;

/// Bits of a weight, over the common divisor, that count.
const WEIGHT_BITS: u32 = 6;

/// Returns the destination of each place; empty if none ever had a weight.
// As ip_vs_mh_permutate() and ip_vs_mh_populate(): the last weight above 0 decides, so that a
// destination of weight 0 keeps its places.
pub(crate) fn table(list: &[Candidate]) -> Vec<&Candidate> {
    let weights = || list.iter().map(|one| one.last_weight);
    let divisor = weights().fold(0, gcd);
    if divisor == 0 {
        return Vec::new();
    }
    let largest = weights().max().unwrap_or(0) / divisor;
    let shift = (u32::BITS - largest.leading_zeros()).saturating_sub(WEIGHT_BITS);
    let turns = |one: &Candidate| match one.last_weight {
        0 => 0,
        weight => ((weight / divisor) >> shift).max(1),
    };
    let mut walks: Vec<Walk<'_>> = list
        .iter()
        .filter(|one| one.last_weight > 0)
        .map(|one| Walk::new(one, turns(one)))
        .collect();
    fill(&mut walks)
}

/// Lets each take its turns of free places, one after the other, until there is none.
fn fill<'a>(walks: &mut [Walk<'a>]) -> Vec<&'a Candidate> {
    let mut places: Vec<Option<&Candidate>> = vec![None; MAGLEV as usize];
    let mut free = places.len();
    while free > 0 {
        for walk in walks.iter_mut() {
            for _ in 0..(walk.turns as usize).min(free) {
                while places.get(walk.at as usize).is_some_and(Option::is_some) {
                    walk.at = (walk.at + walk.skip) % MAGLEV;
                }
                if let Some(place) = places.get_mut(walk.at as usize) {
                    *place = Some(walk.who);
                }
                free -= 1;
            }
        }
    }
    places.into_iter().flatten().collect()
}

/// The order in which a destination would take places.
struct Walk<'a> {
    who: &'a Candidate,
    at: u32,
    skip: u32,
    turns: u32,
}

impl<'a> Walk<'a> {
    fn new(who: &'a Candidate, turns: u32) -> Self {
        let key = folded(who.address).wrapping_add(who.port.into());
        let at = maglev(key, PLACE) % MAGLEV;
        let skip = maglev(key, SKIP) % (MAGLEV - 1) + 1;
        Self { who, at, skip, turns }
    }
}

/// Returns an address as mh hashes it: its words of 32 bits, xored.
fn folded(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (0..4).fold(0, |sum, word| sum ^ (bits >> (32 * word)) as u32)
        }
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
