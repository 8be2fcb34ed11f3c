//! The sweep: expired connections leave the table and the counts.
//!
//! It looks only where the occupancy map says that something was inserted, so that an empty table
//! costs next to nothing whatever its size. A group's bit is cleared before the group is searched
//! and set again if something is left; an insertion sets it after publishing its entry. So nothing
//! is ever in the table without its bit, but for the instant in which the inserting CPU is about to
//! set it.

use crate::abi::{
    GROUP, OCCUPANCY_WORDS, SLOTS4, SweepCursor, WIDE_SLOTS, WideSlot, settings_flag,
};
use crate::connection::{Context, Value};
use crate::ip::{Ip, Slot, V4, V6};
use crate::tables::{Tables, bump};
use crate::wide;

/// [`Job::family`] of the wide table.
pub const WIDE: u8 = 1;
/// Bits of the occupancy map in one word.
pub const WORD: u32 = 64;

/// One word's worth of work: up to 64 groups of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Index of the word in the occupancy map.
    pub word: u32,
    /// The table: 4, 6 or [`WIDE`].
    pub family: u8,
    /// Half-open connections leave too, as with `drop_entry`.
    pub thins: bool,
}

impl Job {
    /// Reads what [`number`](Self::number) wrote.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self { word: number as u32, family: (number >> 32) as u8, thins: number >> 40 & 1 != 0 }
    }

    /// Returns the job in one number.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        (self.thins as u64) << 40 | (self.family as u64) << 32 | self.word as u64
    }
}

/// What became of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Entries removed.
    pub removed: u64,
    /// Whether something is left.
    pub left: bool,
}

impl<'a, T: Tables> Context<'a, T> {
    /// Returns the words of the occupancy map that are in use for a table.
    #[inline(always)]
    fn words<A: Ip>(&self) -> u32 {
        A::mask(self.settings) / (GROUP * WORD) + 1
    }

    /// Takes the next job and moves the cursor; after the last word a pass is complete.
    #[inline(always)]
    pub fn next_job(&self, cursor: &SweepCursor) -> Job {
        let (words4, words6) = (self.words::<V4>(), self.words::<V6>());
        let wide = self.settings.wide_mask / (GROUP * WORD) + 1;
        let at = cursor.word.get() as u32;
        let next = at + 1;
        if next >= words4 + words6 + wide {
            cursor.word.set(0);
            bump(&cursor.passes, 1);
            self.begin_pass(cursor.passes.get());
        } else {
            cursor.word.set(u64::from(next));
        }
        if at < words4 {
            Job { word: at, family: 4, thins: false }
        } else if at - words4 < words6 {
            Job { word: OCCUPANCY_WORDS + (at - words4), family: 6, thins: false }
        } else {
            let word = 2 * OCCUPANCY_WORDS + (at - words4 - words6);
            Job { word, family: WIDE, thins: false }
        }
    }

    /// Returns the bits of a job's word: the groups to search.
    #[inline(always)]
    pub fn groups(&self, job: Job) -> u64 {
        self.tables.occupancy(job.word).map_or(0, |word| self.tables.read(word))
    }

    /// Clears a group's bit, before its places are searched.
    #[inline(always)]
    pub fn begin_group(&self, job: Job, bit: u32) {
        if let Some(word) = self.tables.occupancy(job.word) {
            self.tables.clear_bits(word, 1 << (bit & 63));
        }
    }

    /// Sets a group's bit again, if something is left in its places.
    #[inline(always)]
    pub fn end_group(&self, job: Job, bit: u32, left: bool) {
        if left && let Some(word) = self.tables.occupancy(job.word) {
            self.tables.set_bits(word, 1 << (bit & 63));
        }
    }

    /// Looks at one of the [`SLOTS`] slots of a group.
    #[inline(always)]
    pub fn sweep(&self, job: Job, bit: u32, slot: u32) -> Swept {
        let group = job.word % OCCUPANCY_WORDS * WORD + bit;
        match job.family {
            4 => self.sweep_slot::<V4>(group, slot, job.thins),
            6 => self.sweep_slot::<V6>(group, slot, job.thins),
            _ => self.sweep_wide(group, slot, job.thins),
        }
    }

    #[inline(always)]
    fn sweep_wide(&self, group: u32, slot: u32, thins: bool) -> Swept {
        const GONE: Swept = Swept { removed: 0, left: false };
        let (place, index) = (slot / WIDE_SLOTS as u32, slot as usize & (WIDE_SLOTS - 1));
        let bucket = if place < GROUP { self.tables.wide(group * GROUP + place) } else { None };
        let Some(slot) = bucket.and_then(|bucket| bucket.slots.get(index)) else { return GONE };
        let value = Value(self.tables.read(&slot.value));
        let over = value.is_live()
            && (thins && value.is_half_open() && self.give_way_wide(slot, value)
                || self.retire_wide(slot, value));
        if value.is_live() && !over {
            self.note_wide_source(slot, value);
        }
        Swept { removed: u64::from(over), left: value.0 != 0 && !over }
    }

    /// Returns whether connections are counted for the networks of their clients.
    #[inline(always)]
    fn counts_sources(&self) -> bool {
        self.settings.flags & settings_flag::NUMBERED != 0
    }

    #[inline(always)]
    fn note_wide_source(&self, slot: &WideSlot, value: Value) {
        let word = self.tables.read(&slot.key);
        if self.counts_sources() && wide::kind_of(word) == wide::kind::REQUEST {
            let (high, low) = slot.address(self.tables, word);
            self.tables.note_source(high, low, value);
        }
    }

    #[inline(always)]
    fn sweep_slot<A: Ip>(&self, group: u32, slot: u32, thins: bool) -> Swept {
        let (place, index) = (slot / A::SLOTS as u32, slot as usize & (A::SLOTS - 1));
        let slots =
            if place < GROUP { A::connections(self.tables, group * GROUP + place) } else { None };
        let Some(slot) = slots.and_then(|slots| slots.get(index)) else {
            return Swept { removed: 0, left: false };
        };
        let value = Value(self.tables.read(slot.value()));
        let over = value.is_live()
            && if thins && value.is_half_open() {
                self.give_way::<A>(slot, value)
            } else {
                !self.is_young(value) && self.retire::<A, true>(slot, value)
            };
        if value.is_live() && !over && self.counts_sources() {
            let (high, low) = slot.address(self.tables, self.tables.read(slot.key()));
            self.tables.note_source(high, low, value);
        }
        Swept { removed: u64::from(over), left: value.0 != 0 && !over }
    }
}

/// Slots of a group of the table with the larger places.
pub const SLOTS: u32 = GROUP * SLOTS4 as u32;
