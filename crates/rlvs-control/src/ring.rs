//! The rings of the schedulers rr and wrr: the kernel's order of picks, laid out as an array.
//!
//! The data plane picks `ring[position % length]` and counts `position` up; it knows no scheduler.
//! Each edit of a service goes through three steps: [`resume`] tells where the kernel's scheduler
//! would stand after the picks made so far, a method of [`State`] moves it as the kernel's callback
//! does, [`build`] lays out the ring that goes on from there, rotated so that `position` need not
//! change. Invariant: the picks are those of the kernel's `ip_vs_rr_schedule()` and
//! `ip_vs_wrr_schedule()`, but for weights too large for [`MAX_ELEMENTS`].
//!
//! Not here: overload thresholds, and who stores the ring. When `position` wraps, after 2^64 picks,
//! the order jumps once; [`resume`] still tells the destination that was picked last.

use rlvs_datapath::abi::IDS;

/// Most elements of one ring: a sixteenth of the ring map, and room for every destination once.
///
/// A wrr cycle has the sum of the weights over their greatest common divisor. Where that is more,
/// the weights are scaled down in proportion, each to 1 at least. This differs from the kernel,
/// which keeps no ring: the same destinations in the same pattern, but a shorter cycle, and shares
/// that are exact to about one element.
pub const MAX_ELEMENTS: u64 = 65_536;

// Ids are distinct and below IDS, so that each destination of a service has at least one element.
const _: () = assert!(MAX_ELEMENTS >= IDS as u64);

/// The schedulers that a ring can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Round robin: every destination of weight above 0 in turn.
    Rr,
    /// Weighted round robin, interleaved by descending level.
    Wrr,
}

/// A destination as the scheduler sees it. Lists of them are in the kernel's order, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Destination id, distinct within the list and never 0.
    pub id: u32,
    /// Weight; 0 takes no connections.
    pub weight: u32,
}

/// What outlives a ring: with the members, it tells where the ring in force began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Position at which the ring began.
    pub base: u64,
    /// Destination picked before the ring began; 0 for the head of the list.
    pub last: u32,
    /// Level at which the ring began; 0 for rr.
    pub level: u32,
}

/// Where the kernel's scheduler stands between two picks. The kernel's `di` and `mw` are not kept:
/// they follow from the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Whose state this is.
    pub kind: Kind,
    /// Destination picked last, the kernel's `sched_data` of rr and `cl` of wrr; 0 for the head of
    /// the list.
    pub last: u32,
    /// The kernel's `cw`: the weight that a destination needs to be picked; 0 for rr.
    pub level: u32,
}

/// A ring to put in force, and what to store beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Destination ids; the next pick is at the position given to [`build`], modulo the length.
    /// Empty when no destination is eligible.
    pub elements: Vec<u32>,
    /// What [`resume`] needs at the next edit.
    pub stored: Stored,
}

impl State {
    /// Returns the state when a service gets this scheduler, be it new or changed.
    // As ip_vs_rr_init_svc() and ip_vs_wrr_init_svc().
    pub fn new(kind: Kind, members: &[Member]) -> Self {
        let level = match kind {
            Kind::Rr => 0,
            Kind::Wrr => highest_level(members, step(members)),
        };
        Self { kind, last: 0, level }
    }

    /// Returns the state after a destination has come to the front of the list or has been edited,
    /// whatever was edited; `members` is the list after that.
    // As ip_vs_wrr_dest_changed(); rr has no such callback.
    #[must_use]
    pub fn changed(self, members: &[Member]) -> Self {
        match self.kind {
            Kind::Rr => self,
            Kind::Wrr => Self { last: 0, level: adapt_level(self.level, members), ..self },
        }
    }

    /// Returns the state after `added` destinations have come to the front of the list one by one, as
    /// [`Self::changed`] after each; `members` is the list after that.
    #[must_use]
    pub fn grown(self, members: &[Member], added: usize) -> Self {
        if self.kind == Kind::Rr || added == 0 {
            return self;
        }
        let (new, old) = members.split_at(added.min(members.len()));
        let mut divisor = old.iter().fold(0, |divisor, member| gcd(divisor, member.weight));
        let mut heaviest = old.iter().map(|member| member.weight).max().unwrap_or(0);
        let mut level = self.level;
        for member in new.iter().rev() {
            divisor = gcd(divisor, member.weight);
            heaviest = heaviest.max(member.weight);
            let step = divisor.max(1);
            level = adapted(level, step, heaviest.saturating_sub(step - 1));
        }
        Self { last: 0, level, ..self }
    }

    /// Returns the state after the destination `id` has gone; `members` is the list before that.
    // As ip_vs_rr_del_dest() and ip_vs_wrr_dest_changed().
    #[must_use]
    pub fn removed(self, members: &[Member], id: u32) -> Self {
        match self.kind {
            Kind::Rr if self.last == id => Self { last: predecessor(members, id), ..self },
            Kind::Rr => self,
            Kind::Wrr => {
                let rest: Vec<Member> = members.iter().copied().filter(|m| m.id != id).collect();
                self.changed(&rest)
            }
        }
    }
}

/// Returns where the kernel's scheduler would stand at `position`, given the members that the ring
/// in force was built from and what was stored with it.
pub fn resume(kind: Kind, members: &[Member], stored: Stored, position: u64) -> State {
    let began = State { kind, last: stored.last, level: stored.level };
    let cycle = Cycle::new(kind, members);
    if cycle.length == 0 || position == stored.base {
        return began;
    }
    // Counted within the ring, not since the base, this holds even after `position` has wrapped.
    let last = position.wrapping_sub(1) % cycle.length;
    let since = last + cycle.length - stored.base % cycle.length;
    match cycle.pick((cycle.next(began) + since) % cycle.length) {
        Some((last, level)) => State { kind, last, level },
        None => began,
    }
}

/// Lays out the ring that goes on from `state` at `position`.
pub fn build(members: &[Member], state: State, position: u64) -> Ring {
    let stored = Stored { base: position, last: state.last, level: state.level };
    let cycle = Cycle::new(state.kind, members);
    let mut elements = cycle.elements();
    // Both remainders are below the length, which is a usize.
    if let Some(place) = position.checked_rem(cycle.length) {
        elements.rotate_left(cycle.next(state) as usize);
        elements.rotate_right(place as usize);
    }
    Ring { elements, stored }
}

/// One round of picks, from the highest level down to level 1; on each level the members whose
/// share reaches it, in the list's order. This is the kernel's wrr with weights and `cw` in units
/// of `step`; rr is the case of one level.
struct Cycle<'a> {
    kind: Kind,
    members: &'a [Member],
    /// Picks in the cycle for each member, in the list's order.
    shares: Vec<u32>,
    /// Picks in the cycle.
    length: u64,
    /// Levels in the cycle: the largest share.
    levels: u64,
    /// Levels in the kernel's cycle, 1 if it is empty; above `levels` when shares are scaled down.
    kernel_levels: u64,
    /// The kernel's `di`: how much weight one of its levels is.
    step: u32,
}

impl<'a> Cycle<'a> {
    fn new(kind: Kind, members: &'a [Member]) -> Self {
        let step = match kind {
            Kind::Rr => 1,
            Kind::Wrr => step(members),
        };
        let mut shares: Vec<u32> = members
            .iter()
            .map(|member| match kind {
                Kind::Rr => member.weight.min(1),
                Kind::Wrr => member.weight / step,
            })
            .collect();
        let kernel_levels = largest(&shares).max(1);
        scale_down(&mut shares);
        let (length, levels) = (sum(&shares), largest(&shares));
        Self { kind, members, shares, length, levels, kernel_levels, step }
    }

    /// Returns the ids in the order of picks. Linear in the members and the result: a level costs
    /// what the level before it yielded.
    fn elements(&self) -> Vec<u32> {
        let mut elements = Vec::with_capacity(self.length as usize);
        // From level 1 up members only fall away, so it is laid out backwards.
        let mut left: Vec<(u32, u32)> = self.eligible().rev().collect();
        let mut level = 1;
        while !left.is_empty() {
            elements.extend(left.iter().map(|&(id, _)| id));
            level += 1;
            left.retain(|&(_, share)| share >= level);
        }
        elements.reverse();
        elements
    }

    /// Returns the index in the cycle of the pick that follows `state`; 0 in an empty cycle.
    fn next(&self, state: State) -> u64 {
        let level = self.scaled_level(state.level);
        let place = self.members.iter().position(|member| member.id == state.last);
        let passed = self.shares.iter().take(place.map_or(0, |place| place + 1));
        let passed = passed.filter(|&&share| u64::from(share) >= level).count() as u64;
        (self.picks_above(level) + passed).checked_rem(self.length).unwrap_or(0)
    }

    /// Returns id and kernel's level of the pick at `index`, which is below the length.
    fn pick(&self, index: u64) -> Option<(u32, u32)> {
        let level = self.level_of(index);
        let place = usize::try_from(index - self.picks_above(level)).ok()?;
        let mut standing = self.eligible().filter(|&(_, share)| u64::from(share) >= level);
        let (id, _) = standing.nth(place)?;
        Some((id, self.kernel_level(level)))
    }

    /// Returns the lowest level with no more than `index` picks above it.
    fn level_of(&self, index: u64) -> u64 {
        let (mut low, mut high) = (1, self.levels);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.picks_above(middle) <= index {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// Returns the number of picks on levels above this one.
    fn picks_above(&self, level: u64) -> u64 {
        self.shares.iter().map(|&share| u64::from(share).saturating_sub(level)).sum()
    }

    /// Returns the members that have a share, in the list's order, as id and share.
    fn eligible(&self) -> impl DoubleEndedIterator<Item = (u32, u32)> {
        let ids = self.members.iter().map(|member| member.id);
        ids.zip(self.shares.iter().copied()).filter(|&(_, share)| share > 0)
    }

    /// Returns the level of the cycle that stands for a `cw` of the kernel. One that is too high
    /// starts the cycle anew.
    fn scaled_level(&self, level: u32) -> u64 {
        let level = u64::from(level.div_ceil(self.step));
        (level * self.levels).div_ceil(self.kernel_levels).max(1)
    }

    /// Returns the highest `cw` of the kernel that [`Self::scaled_level`] takes to `level`; 0 for
    /// rr.
    fn kernel_level(&self, level: u64) -> u32 {
        match self.kind {
            Kind::Rr => 0,
            Kind::Wrr => {
                let level = (level * self.kernel_levels).checked_div(self.levels).unwrap_or(0);
                let weight = level.saturating_sub(1) * u64::from(self.step) + 1;
                u32::try_from(weight).unwrap_or(u32::MAX)
            }
        }
    }
}

/// Makes shares fit in [`MAX_ELEMENTS`] if their sum does not: in proportion, to the nearest
/// number, at least 1 of what is not 0.
fn scale_down(shares: &mut [u32]) {
    let total = sum(shares);
    if total <= MAX_ELEMENTS {
        return;
    }
    // One element for each that may be rounded up; what is rounded down only saves.
    let eligible = shares.iter().filter(|&&share| share > 0).count() as u64;
    let room = MAX_ELEMENTS.saturating_sub(eligible);
    for share in shares.iter_mut().filter(|share| **share > 0) {
        // Both terms are far below 2^64: a share has 32 bits, the room 16, the total 48.
        let scaled = (u64::from(*share) * room * 2 + total) / (total * 2);
        *share = u32::try_from(scaled.max(1)).unwrap_or(*share);
    }
}

fn sum(shares: &[u32]) -> u64 {
    shares.iter().map(|&share| u64::from(share)).sum()
}

fn largest(shares: &[u32]) -> u64 {
    shares.iter().copied().max().unwrap_or(0).into()
}

/// Returns the greatest common divisor of the weights above 0, or 1 if there are none.
// As ip_vs_wrr_gcd_weight().
fn step(members: &[Member]) -> u32 {
    members.iter().fold(0, |divisor, member| gcd(divisor, member.weight)).max(1)
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Returns the kernel's `mw`, where a cycle begins; 0 if no destination is eligible.
fn highest_level(members: &[Member], step: u32) -> u32 {
    let heaviest = members.iter().map(|member| member.weight).max().unwrap_or(0);
    heaviest.saturating_sub(step - 1)
}

/// Returns `cw` after the list has become `members`.
// As ip_vs_wrr_dest_changed().
fn adapt_level(level: u32, members: &[Member]) -> u32 {
    let step = step(members);
    adapted(level, step, highest_level(members, step))
}

fn adapted(level: u32, step: u32, highest: u32) -> u32 {
    match step {
        _ if level > highest || level == 0 => highest,
        1 => level,
        _ => level / step * step + 1,
    }
}

/// Returns the id before `id` in the list; 0 for the head.
fn predecessor(members: &[Member], id: u32) -> u32 {
    let before = members.iter().take_while(|member| member.id != id);
    before.last().map_or(0, |member| member.id)
}
