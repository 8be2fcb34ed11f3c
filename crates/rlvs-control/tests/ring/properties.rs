//! Random edits and picks: the rings agree with the step-by-step model at every step.

use proptest::prelude::*;
use rlvs_control::ring::{Kind, Member, State, Stored, build, resume};

use crate::director::Director;
use crate::kernel::Kernel;

/// Picks that one run makes at most, so that `position` does not wrap in it.
const PICKS: u64 = 100_000;
/// Destinations of the service at most.
const DESTINATIONS: usize = 7;

#[derive(Clone, Debug)]
enum Step {
    Pick(usize),
    Add(u32),
    Edit(usize, u32),
    Remove(usize),
    Change(Kind),
    Rebuild,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Rr), Just(Kind::Wrr)]
}

fn weights() -> impl Strategy<Value = u32> {
    prop_oneof![2 => 0u32..=6, 2 => (0u32..=4).prop_map(|w| w * 12), 1 => 0u32..=300]
}

fn positions() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..100, 0..=u64::MAX - PICKS, u64::MAX - PICKS - 100..=u64::MAX - PICKS]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0usize..40).prop_map(Step::Pick),
        4 => weights().prop_map(Step::Add),
        3 => (any::<usize>(), weights()).prop_map(|(place, weight)| Step::Edit(place, weight)),
        3 => any::<usize>().prop_map(Step::Remove),
        1 => kinds().prop_map(Step::Change),
        1 => Just(Step::Rebuild),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn additions_at_once_are_additions_one_by_one(
        kind in kinds(),
        weights in prop::collection::vec(weights(), 1..30),
        added in 0usize..30,
        level in 0u32..400,
    ) {
        let members: Vec<Member> =
            (1..).zip(&weights).map(|(id, &weight)| Member { id, weight }).collect();
        let added = added.min(members.len());
        let begin = State { kind, last: 1, level };
        let one_by_one = (0..added).rev().fold(begin, |state, first| state.changed(&members[first..]));
        prop_assert_eq!(begin.grown(&members, added), one_by_one);
    }
}

struct Pair {
    rings: Director,
    kernel: Kernel,
}

impl Pair {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Pick(count) => (0..count).for_each(|_| self.check_pick()),
            Step::Add(weight) if self.kernel.list.len() < DESTINATIONS => {
                // The lowest free id, so that ids come back, as a destination added again.
                let taken = |id: &u32| self.kernel.list.iter().any(|member| member.id == *id);
                let id = (1..).find(|id| !taken(id)).expect("an id is free");
                self.rings.add(id, weight);
                self.kernel.add(id, weight);
            }
            Step::Add(_) => {}
            Step::Edit(place, weight) => {
                if let Some(id) = self.id(place) {
                    self.rings.edit(id, weight);
                    self.kernel.edit(id, weight);
                }
            }
            Step::Remove(place) => {
                if let Some(id) = self.id(place) {
                    self.rings.remove(id);
                    self.kernel.del(id);
                }
            }
            Step::Change(kind) => {
                self.rings.change_scheduler(kind);
                self.kernel.init(kind);
            }
            Step::Rebuild => self.rings.rebuild(),
        }
        assert_eq!(self.rings.members, self.kernel.list);
        self.check_state();
    }

    fn id(&self, place: usize) -> Option<u32> {
        Some(self.kernel.list[place.checked_rem(self.kernel.list.len())?].id)
    }

    fn check_pick(&mut self) {
        assert_eq!(self.rings.pick(), self.kernel.pick());
    }

    fn check_state(&self) {
        let state = self.rings.state();
        let (last, level) = match self.kernel.kind {
            Kind::Rr => (self.kernel.pos, 0),
            Kind::Wrr => (self.kernel.cl, self.kernel.cw),
        };
        assert_eq!((state.last, i64::from(state.level)), (last, level));
    }

    /// Checks that the picks agree for ever: after one round, the kernel's first picks being done,
    /// the model stands where it stood a round before, and a ring always does.
    fn check_for_ever(&mut self) {
        let length = self.rings.ring.elements.len();
        (0..length).for_each(|_| self.check_pick());
        let before = (self.kernel.pos, self.kernel.cl, self.kernel.cw);
        (0..length).for_each(|_| self.check_pick());
        assert_eq!((self.kernel.pos, self.kernel.cl, self.kernel.cw), before);
        self.check_state();
        (0..3).for_each(|_| self.check_pick());
    }
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config(1024))]

    #[test]
    fn rings_pick_as_the_kernel(kind in kinds(), position in positions(), steps in steps()) {
        let mut pair = Pair { rings: Director::new(kind, position), kernel: Kernel::new(kind) };
        steps.iter().for_each(|step| pair.step(step));
        pair.check_for_ever();
        prop_assert!(pair.rings.position.wrapping_sub(position) <= PICKS);
    }

    #[test]
    fn what_was_picked_last_is_known_even_when_position_wraps(
        kind in kinds(),
        weights in prop::collection::vec(weights(), 1..DESTINATIONS),
        before in 0u64..100,
        picks in 1usize..200,
    ) {
        let mut rings = Director::new(kind, u64::MAX - before);
        (1..).zip(&weights).for_each(|(id, &weight)| rings.add(id, weight));
        if let Some(&last) = rings.picks(picks).last() {
            prop_assert_eq!(rings.state().last, last);
        }
    }

    #[test]
    fn anything_stored_leads_to_a_whole_ring(
        kind in kinds(),
        weights in prop::collection::vec(weights(), 0..DESTINATIONS),
        (base, last, level) in (any::<u64>(), any::<u32>(), any::<u32>()),
        position in any::<u64>(),
    ) {
        let members: Vec<Member> =
            (1..).zip(&weights).map(|(id, &weight)| Member { id, weight }).collect();
        let fresh = build(&members, State::new(kind, &members), position).elements;
        let state = resume(kind, &members, Stored { base, last, level }, position);
        let mut elements = build(&members, state, position).elements;
        // The same cycle, wherever it begins.
        let same = (0..=elements.len()).any(|turn| {
            elements.rotate_left(turn.min(1));
            elements == fresh
        });
        prop_assert!(same);
    }
}
