//! The schedulers by name, and what each has laid out for the data plane.
//!
//! rr, wrr and p2c have a [`ring`]; sh, dh and mh a table by hash; the others the list of
//! destinations that may be chosen, fo and ovf in order of weight. Whoever publishes an edit takes the
//! state of rr or wrr from [`ring::resume`] and hands it to [`lay_out`]; the
//! others keep none. Invariant: equal lists have equal layouts, so that directors agree.

use std::cmp::Reverse;
use std::net::IpAddr;

use rlvs_datapath::abi::scheduler;
use rlvs_datapath::schedulers::element;
use rlvs_datapath::schedulers::hashing::BUCKETS;

use crate::maglev;
use crate::ring::{self, Kind, Member, State, Stored};

/// Every scheduler of the data plane, by the name that `-s` takes.
pub const ALL: [(&str, u32); 15] = [
    ("rr", scheduler::RR),
    ("wrr", scheduler::WRR),
    ("lc", scheduler::LC),
    ("wlc", scheduler::WLC),
    ("sed", scheduler::SED),
    ("nq", scheduler::NQ),
    ("lblc", scheduler::LBLC),
    ("lblcr", scheduler::LBLCR),
    ("dh", scheduler::DH),
    ("sh", scheduler::SH),
    ("mh", scheduler::MH),
    ("fo", scheduler::FO),
    ("ovf", scheduler::OVF),
    ("twos", scheduler::TWOS),
    ("p2c", scheduler::P2C),
];

/// Returns the number of a scheduler.
pub fn number(name: &str) -> Option<u32> {
    ALL.iter().find(|(known, _)| *known == name).map(|&(_, number)| number)
}

/// Returns the name of a scheduler.
pub fn name(number: u32) -> Option<&'static str> {
    ALL.iter().find(|(_, known)| *known == number).map(|&(name, _)| name)
}

/// A destination as schedulers see it. Lists of them are in the kernel's order, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Destination id, distinct within the list and never 0.
    pub id: u32,
    /// Weight; 0 takes no connections.
    pub weight: u32,
    /// The last weight above 0; 0 if it never had one.
    pub last_weight: u32,
    /// Whether it has thresholds.
    pub limited: bool,
    /// Address of the real server.
    pub address: IpAddr,
    /// Port of the real server.
    pub port: u16,
}

impl Candidate {
    fn element(&self, weight: u32) -> u64 {
        element(self.id, weight, self.limited)
    }
}

/// Elements to put in force, and what to store beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Elements as [`element`] makes them; none if nobody can be chosen.
    pub elements: Vec<u64>,
    /// What [`ring::resume`] needs at the next edit.
    pub stored: Stored,
}

/// Returns the kind of ring that has a state.
pub fn kind(scheduler: u32) -> Option<Kind> {
    match scheduler {
        scheduler::RR => Some(Kind::Rr),
        scheduler::WRR => Some(Kind::Wrr),
        _ => None,
    }
}

/// Returns the list as rings see it.
pub fn members(list: &[Candidate]) -> Vec<Member> {
    list.iter().map(|one| Member { id: one.id, weight: one.weight }).collect()
}

/// Lays out what a scheduler goes by. `state` and `position` are of rr and wrr, as for
/// [`ring::build`]; without a state they begin anew.
pub fn lay_out(scheduler: u32, list: &[Candidate], state: Option<State>, position: u64) -> Layout {
    let members = members(list);
    if let Some(kind) = kind(scheduler) {
        let state = state.unwrap_or_else(|| State::new(kind, &members));
        let ring = ring::build(&members, state, position);
        return Layout { elements: rich(&ring.elements, list), stored: ring.stored };
    }
    let elements = match scheduler {
        scheduler::P2C => {
            let state = State::new(Kind::Wrr, &members);
            rich(&ring::build(&members, state, 0).elements, list)
        }
        // Its weights do not count.
        scheduler::LC => chosen_from(list).map(|one| one.element(1)).collect(),
        scheduler::FO | scheduler::OVF => {
            let mut order: Vec<&Candidate> = chosen_from(list).collect();
            // Stable: of equals the first in the list.
            order.sort_by_key(|one| Reverse(one.weight));
            order.into_iter().map(|one| one.element(one.weight)).collect()
        }
        scheduler::SH => by_source(list),
        scheduler::DH => by_destination(list),
        scheduler::MH => maglev::table(list).into_iter().map(|one| one.element(0)).collect(),
        0 => Vec::new(),
        _ => chosen_from(list).map(|one| one.element(one.weight)).collect(),
    };
    Layout { elements, stored: Stored { base: position, ..Stored::default() } }
}

/// Returns those that may be chosen.
fn chosen_from(list: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    list.iter().filter(|one| one.weight > 0)
}

/// Gives the ids of a ring what else an element has.
fn rich(ids: &[u32], list: &[Candidate]) -> Vec<u64> {
    let by_id: std::collections::BTreeMap<u32, u64> =
        list.iter().map(|one| (one.id, one.element(one.weight))).collect();
    ids.iter().filter_map(|id| by_id.get(id).copied()).collect()
}

/// Walks round the list, as many buckets for each destination as its weight, one if that is 0.
// As ip_vs_sh_reassign().
fn by_source(list: &[Candidate]) -> Vec<u64> {
    let turns = list.iter().cycle();
    let each = turns.flat_map(|one| {
        let buckets = one.weight.clamp(1, BUCKETS);
        (0..buckets).map(|_| one.element(one.weight))
    });
    each.take(BUCKETS as usize).collect()
}

/// Walks round the list, a bucket for each destination.
// As ip_vs_dh_reassign().
fn by_destination(list: &[Candidate]) -> Vec<u64> {
    list.iter().cycle().map(|one| one.element(one.weight)).take(BUCKETS as usize).collect()
}
