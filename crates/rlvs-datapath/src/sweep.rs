//! The sweep: expired connections leave the table and the counts.
//!
//! It looks only where the occupancy map says that something was inserted, so that an empty table
//! costs next to nothing whatever its size. A group's bit is cleared before the group is searched
//! and set again if something is left; an insertion sets it after publishing its entry. So nothing
//! is ever in the table without its bit, but for the instant in which the inserting CPU is about to
//! set it.

use crate::abi::{GROUP, OCCUPANCY_WORDS, SweepCursor};
use crate::connection::{Context, Found, Key, Value};
use crate::ip::{Ip, Slot, V4, V6};
use crate::tables::{Tables, bump};

/// Bits of the occupancy map in one word.
pub const WORD: u32 = 64;

/// One word's worth of work: up to 64 groups of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Index of the word in the occupancy map.
    pub word: u32,
    /// The table: 4 or 6.
    pub family: u8,
}

/// What became of one place.
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
        let at = cursor.word.get() as u32;
        let next = at + 1;
        if next >= words4 + words6 {
            cursor.word.set(0);
            bump(&cursor.passes, 1);
        } else {
            cursor.word.set(u64::from(next));
        }
        if at < words4 {
            Job { word: at, family: 4 }
        } else {
            Job { word: OCCUPANCY_WORDS + (at - words4), family: 6 }
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
        let Some(word) = self.tables.occupancy(job.word) else { return };
        let bit = 1 << (bit & 63);
        for _ in 0..4 {
            let seen = self.tables.read(word);
            if seen & bit == 0 || self.tables.swap(word, seen, seen & !bit) {
                return;
            }
        }
    }

    /// Sets a group's bit again, if something is left in its places.
    #[inline(always)]
    pub fn end_group(&self, job: Job, bit: u32, left: bool) {
        if left && let Some(word) = self.tables.occupancy(job.word) {
            self.set_bit(word, 1 << (bit & 63));
        }
    }

    /// Removes what has expired at one place of a group.
    #[inline(always)]
    pub fn sweep(&self, job: Job, bit: u32, place: u32) -> Swept {
        let first = if job.family == 4 { job.word } else { job.word - OCCUPANCY_WORDS };
        let place = (first * WORD + bit) * GROUP + place;
        if job.family == 4 { self.sweep_place::<V4>(place) } else { self.sweep_place::<V6>(place) }
    }

    #[inline(always)]
    fn sweep_place<A: Ip>(&self, place: u32) -> Swept {
        let Some(slots) = A::connections(self.tables, place) else {
            return Swept { removed: 0, left: false };
        };
        let mut removed = 0;
        let mut left = false;
        for slot in slots {
            let value = Value(self.tables.read(slot.value()));
            if value.0 == 0 {
                continue;
            }
            if value.is_live() && !self.is_young(value) && self.sweep_slot::<A>(slot, value) {
                removed += 1;
            } else {
                left = true;
            }
        }
        Swept { removed, left }
    }

    #[inline(always)]
    fn sweep_slot<A: Ip>(&self, slot: &A::Slot, value: Value) -> bool {
        let word = self.tables.read(slot.key());
        if word == 0 {
            return false;
        }
        let (high, low) = slot.address(self.tables, word);
        let client = A::from_words(high, low);
        let key = Key::new(self.settings, client, Value::port(word), value.owner(word));
        self.retire(&key, &Found { slot, value })
    }
}
