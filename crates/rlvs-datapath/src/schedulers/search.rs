//! The stage that looks at many destinations to choose one.

use core::num::NonZeroU64;

use super::{LIMITED, NOBODY, Ring, active, hashing, is_eligible, overhead_of, weight_of};
use crate::abi::{Counts, scheduler, scheduler_flag};
use crate::connection::Context;
use crate::frame::Verdict;
use crate::hash;
use crate::reason::Reason;
use crate::stage::Stage;
use crate::tables::{Step, Tables, Time, of_destination};

/// What is searched for.
pub(super) struct Quest {
    pub(super) ring: Ring,
    pub(super) service: u32,
    /// Destination that is not to be chosen; 0 for none.
    pub(super) avoid: u32,
}

/// Carries out the stage [`Stage::Search`]: answers this CPU's errand.
#[inline(always)]
pub fn search<T: Tables>(tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(Reason::NoService) };
    let context = Context { tables, settings, now: Time::now(tables, settings) };
    match context.answer() {
        Some(stage) => Verdict::Next(stage),
        None => {
            context.count(Reason::Inconsistent);
            Verdict::Drop(Reason::Inconsistent)
        }
    }
}

impl<T: Tables> Context<'_, T> {
    /// Has the errand answered, if it must be, and the packet come back to this stage.
    #[inline(always)]
    pub(crate) fn search_for(&self, back: Stage) -> Verdict {
        let Some(errand) = self.tables.errand(self.tables.cpu()) else {
            return Verdict::Drop(Reason::Inconsistent);
        };
        self.tables.write(&errand.back, back as u64);
        let must = self.tables.read(&errand.search) != 0;
        Verdict::Next(if must { Stage::Search } else { back })
    }

    /// Answers the errand and returns who asked.
    #[inline(always)]
    fn answer(&self) -> Option<Stage> {
        let errand = self.tables.errand(self.tables.cpu())?;
        let service = self.tables.read(&errand.service) as u32;
        let schedule = self.tables.schedule(service)?;
        let ring = Ring(self.tables.read(&schedule.ring));
        let avoid = self.tables.read(&errand.tried) as u32;
        let source = self.tables.read(&errand.source) as u32;
        let quest = Quest { ring, service, avoid };
        let id = match ring.scheduler() {
            _ if ring.length() == 0 => NOBODY,
            scheduler::RR | scheduler::WRR => self.search_in_turn(&quest),
            scheduler::LC | scheduler::WLC => self.search_least(&quest),
            scheduler::SED => self.search_by::<EXPECTED>(&quest),
            scheduler::NQ => self.search_by::<IDLE>(&quest),
            scheduler::FO | scheduler::OVF => self.search_first(&quest),
            scheduler::TWOS => self.search_of_two(&quest),
            scheduler::SH if ring.flags() & scheduler_flag::FALLBACK != 0 => {
                self.search_bucket(&quest, source)
            }
            scheduler::MH if ring.flags() & scheduler_flag::FALLBACK != 0 => {
                self.search_place(&quest, source)
            }
            scheduler::P2C => self.search_from_anywhere(&quest),
            scheduler::LBLC | scheduler::LBLCR => {
                self.search_favourite(&quest, self.tables.read(&errand.target))
            }
            _ => NOBODY,
        };
        self.tables.write(&errand.answer, self.tables.forget(id.into()));
        Some(Stage::from_number(self.tables.read(&errand.back) as u32))
    }

    /// The least load for its weight, as `ip_vs_wlc_schedule()`; lc has rings in which every weight
    /// is 1.
    #[inline(always)]
    pub(super) fn search_least(&self, quest: &Quest) -> u32 {
        self.search_by::<LOAD>(quest)
    }

    #[inline(never)]
    fn search_by<const BY: u8>(&self, quest: &Quest) -> u32 {
        let mut least = Least::<BY> {
            line: quest.ring.line(),
            avoid: quest.avoid,
            id: self.tables.forget(NOBODY.into()),
            load: self.tables.forget(1),
            weight: self.tables.forget(0),
        };
        self.tables.repeat(quest.ring.lines(), &mut least);
        least.id as u32
    }

    /// The first that may be chosen of a ring in order of weight: as `ip_vs_fo_schedule()`, and as
    /// `ip_vs_ovf_schedule()` where it must not have more active connections than its weight.
    #[inline(never)]
    fn search_first(&self, quest: &Quest) -> u32 {
        let overflows = (quest.ring.scheduler() == scheduler::OVF).into();
        let line = quest.ring.line();
        let mut first = First { line, avoid: quest.avoid, overflows, id: NOBODY };
        self.tables.repeat(quest.ring.lines(), &mut first);
        first.id
    }

    /// The next that may be chosen; without one the position stays, as in `ip_vs_rr_schedule()`.
    #[inline(never)]
    fn search_in_turn(&self, quest: &Quest) -> u32 {
        let Some(schedule) = self.tables.schedule(quest.service) else { return NOBODY };
        let (position, length) = (self.tables.read(&schedule.position), quest.ring.length());
        let start = position.checked_rem(length.into()).unwrap_or(0) as u32;
        let mut turn = Turn::new(quest, start);
        self.tables.repeat(length, &mut turn);
        // The pick before it has moved on by one.
        let nobody = turn.id == NOBODY.into();
        let steps = if nobody { length.wrapping_sub(1).into() } else { turn.steps };
        self.tables.add(&schedule.position, steps);
        turn.id as u32
    }

    #[inline(never)]
    fn search_from_anywhere(&self, quest: &Quest) -> u32 {
        let Some(schedule) = self.tables.schedule(quest.service) else { return NOBODY };
        let (start, _) = self.draw(schedule, quest.ring, quest.service);
        let mut turn = Turn::new(quest, start);
        self.tables.repeat(quest.ring.length(), &mut turn);
        turn.id as u32
    }

    // As ip_vs_sh_get_fallback().
    #[inline(never)]
    fn search_bucket(&self, quest: &Quest, source: u32) -> u32 {
        let bucket = hashing::bucket(source);
        let mut probe = Buckets { ring: quest.ring.0, bucket, avoid: quest.avoid, id: NOBODY };
        self.tables.repeat(hashing::BUCKETS, &mut probe);
        probe.id
    }

    // As ip_vs_mh_get_fallback().
    #[inline(never)]
    fn search_place(&self, quest: &Quest, source: u32) -> u32 {
        let place = hashing::maglev(source, hashing::PLACE) % hashing::MAGLEV;
        let mut probe =
            Places { ring: quest.ring.0, source, place, avoid: quest.avoid, id: NOBODY };
        self.tables.repeat(hashing::MAGLEV, &mut probe);
        probe.id
    }

    /// Two destinations drawn by weight, of which the one with less load for its weight wins.
    // As ip_vs_twos_schedule(): the sum itself may be drawn too.
    #[inline(never)]
    fn search_of_two(&self, quest: &Quest) -> u32 {
        let Some(schedule) = self.tables.schedule(quest.service) else { return NOBODY };
        let weight = self.tables.forget(0);
        let mut sum = Sum { line: quest.ring.line(), avoid: quest.avoid, weight };
        self.tables.repeat(quest.ring.lines(), &mut sum);
        let Some(limit) = NonZeroU64::new(sum.weight + 1) else { return NOBODY };
        let random = self.random(schedule, quest.service);
        let again = hash::mix(&self.settings.keys, random, quest.service.into());
        let mut draw = Draw {
            line: quest.ring.line(),
            avoid: quest.avoid,
            left: [random % limit, again % limit],
            elements: [self.tables.forget(0), self.tables.forget(0)],
        };
        self.tables.repeat(quest.ring.lines(), &mut draw);
        let [one, two] = draw.elements;
        let product = |of: u64, by| self.load(of).wrapping_mul(weight_of(by));
        match (one as u32, two as u32) {
            (0, 0) => NOBODY,
            (_, two_id) if product(one, two) > product(two, one) => two_id,
            (one_id, _) => one_id,
        }
    }
}

/// By overhead: lc, wlc.
const LOAD: u8 = 0;
/// By active connections and the one to come: sed.
const EXPECTED: u8 = 1;
/// The first without active connections, else as sed: nq.
const IDLE: u8 = 2;

/// The least load for its weight so far; the first of those that have it.
struct Least<const BY: u8> {
    line: u32,
    avoid: u32,
    id: u64,
    load: u64,
    weight: u64,
}

/// Elements that are looked at without a loop between them.
const AT_ONCE: usize = 4;

impl<const BY: u8> Least<BY> {
    /// Looks at one element, and returns whether that cannot be.
    // Products are of 64 bits as the kernel's. The first that may be chosen beats load 1 for weight
    // 0; nobody of weight 0 beats anybody, and nobody beats load 0.
    #[inline(always)]
    fn look<T: Tables>(&mut self, tables: &T, counts: &[Counts], element: u64) -> bool {
        let Some(of) = of_destination(counts, element as u32) else { return true };
        let (active, inactive) = tables.halves(&of.connections);
        let cost = match BY {
            LOAD => overhead_of((active, inactive)),
            EXPECTED => active + 1,
            _ => active + tables.is_set(active),
        };
        let share = weight_of(element);
        if self.load.wrapping_mul(share) <= cost.wrapping_mul(self.weight) {
            return false;
        }
        let refused = element as u32 == self.avoid
            || element & LIMITED != 0 && tables.is_overloaded(element as u32);
        if !refused {
            (self.id, self.load, self.weight) = (element, cost, share);
        }
        false
    }
}

impl<const BY: u8> Step for Least<BY> {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(line) = tables.ring_line(self.line + index) else { return true };
        let Some(counts) = tables.all_counts() else { return true };
        let Self { line: at, avoid, id, load, weight } = *self;
        let mut least = Self { line: at, avoid, id, load, weight };
        let mut done = false;
        for [a, b, c, d] in line.elements.as_chunks::<AT_ONCE>().0 {
            done = least.look(tables, counts, *a)
                || least.look(tables, counts, *b)
                || least.look(tables, counts, *c)
                || least.look(tables, counts, *d);
            if done {
                break;
            }
        }
        self.id = tables.forget(least.id & 0xffff_ffff);
        self.load = tables.forget(least.load);
        self.weight = tables.forget(least.weight);
        // An idle one needs no line after its own.
        done || BY == IDLE && least.load == 0
    }
}

struct First {
    line: u32,
    avoid: u32,
    overflows: u32,
    id: u32,
}

impl Step for First {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(line) = tables.ring_line(self.line + index) else { return true };
        let Some(counts) = tables.all_counts() else { return true };
        for &element in &line.elements {
            let (id, weight) = (element as u32, weight_of(element));
            let Some(of) = of_destination(counts, id) else { return true };
            if weight == 0 || id == self.avoid {
                continue;
            }
            let has_room = self.overflows == 0 || active(tables.read(&of.connections)) <= weight;
            if has_room && !(element & LIMITED != 0 && tables.is_overloaded(id)) {
                self.id = id;
                return true;
            }
        }
        false
    }
}

/// Goes round the ring.
struct Turn {
    ring: u64,
    start: u32,
    avoid: u32,
    steps: u64,
    id: u64,
}

impl Turn {
    #[inline(always)]
    fn new(quest: &Quest, start: u32) -> Self {
        let (ring, avoid) = (quest.ring.0, quest.avoid);
        Self { ring, start, avoid, steps: 0, id: NOBODY.into() }
    }
}

impl Step for Turn {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let ring = Ring(self.ring);
        let at = self.start.wrapping_add(index);
        let at = if at >= ring.length() { at.wrapping_sub(ring.length()) } else { at };
        let Some(element) = tables.ring(ring.first() + at) else { return true };
        if is_eligible(tables, element as u32, self.avoid) {
            (self.id, self.steps) = (element & 0xffff_ffff, u64::from(index) + 1);
            return true;
        }
        false
    }
}

struct Buckets {
    ring: u64,
    bucket: u32,
    avoid: u32,
    id: u32,
}

impl Step for Buckets {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, offset: u32) -> bool {
        let at = offset.wrapping_add(self.bucket * 2) % hashing::BUCKETS;
        let Some(element) = tables.ring(Ring(self.ring).first() + at) else { return true };
        if is_eligible(tables, element as u32, self.avoid) {
            self.id = element as u32;
            return true;
        }
        false
    }
}

struct Places {
    ring: u64,
    source: u32,
    place: u32,
    avoid: u32,
    id: u32,
}

impl Step for Places {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, offset: u32) -> bool {
        let offset = offset.wrapping_add(self.place) % hashing::MAGLEV;
        let hash = hashing::maglev(self.source.wrapping_add(offset), hashing::PLACE);
        let at = Ring(self.ring).first() + hash % hashing::MAGLEV;
        let Some(element) = tables.ring(at) else { return true };
        if is_eligible(tables, element as u32, self.avoid) {
            self.id = element as u32;
            return true;
        }
        false
    }
}

/// Returns the weight by which an element may be drawn.
#[inline(always)]
fn drawn_weight<T: Tables>(tables: &T, element: u64, avoid: u32) -> u64 {
    let out =
        element as u32 == avoid || element & LIMITED != 0 && tables.is_overloaded(element as u32);
    if out { 0 } else { weight_of(element) }
}

struct Sum {
    line: u32,
    avoid: u32,
    weight: u64,
}

impl Step for Sum {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(line) = tables.ring_line(self.line + index) else { return true };
        let mut sum = self.weight;
        for &element in &line.elements {
            sum += drawn_weight(tables, element, self.avoid);
        }
        self.weight = tables.forget(sum);
        false
    }
}

/// Goes along the list until the weights have used up what was drawn, twice at once.
struct Draw {
    line: u32,
    avoid: u32,
    left: [u64; 2],
    elements: [u64; 2],
}

impl Step for Draw {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(line) = tables.ring_line(self.line + index) else { return true };
        for &element in &line.elements {
            let weight = drawn_weight(tables, element, self.avoid);
            if weight == 0 {
                continue;
            }
            for (left, chosen) in self.left.iter_mut().zip(&mut self.elements) {
                if *chosen == 0 && *left <= weight {
                    *chosen = tables.forget(element);
                }
                *left = tables.forget(left.saturating_sub(weight));
            }
        }
        false
    }
}
