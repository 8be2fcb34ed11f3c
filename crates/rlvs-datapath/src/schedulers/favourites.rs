//! What lblc and lblcr remember: which destinations serve a virtual address.
//!
//! An entry is known by a keyed hash of service and address. Four entries are a bucket; where all four
//! are taken the one that was used longest ago gives way. Reading takes no lock: whoever finds a
//! destination of another service in an entry that is being changed does not use it.

use crate::abi::{FAVOURITE_MEMBERS, FAVOURITES, Favourites, Settings, Word, scheduler};
use crate::connection::Context;
use crate::hash;
use crate::ip::Ip;
use crate::schedulers::search::Quest;
use crate::schedulers::{active, overhead, takes_connections};
use crate::tables::{Step, TIME_MASK, Tables, of_destination};

/// Entries in a bucket.
const WAYS: u32 = 4;
/// Seconds after which an entry that nobody used is forgotten, and after which lblcr takes one
/// destination out of a set that has not changed.
pub const EXPIRATION_S: u32 = 24 * 60 * 60;

/// Returns the key of an entry; never 0.
#[inline(always)]
pub(super) fn key<A: Ip>(settings: &Settings, address: A, service: u64) -> u64 {
    let (high, low) = address.words();
    hash::mix(&settings.keys, hash::mix(&settings.keys, high, low), service) | 1
}

/// Returns a member of a set. Linux 6.1 knows what an index may be only if all of its 64 bits are compared.
#[inline(always)]
fn member<'a, T: Tables>(tables: &T, entry: &'a Favourites, index: u32) -> Option<&'a Word> {
    entry.members.get(tables.forget(index.into()) as usize)
}

/// Searches a set for the destination with the least load for its weight, or the most.
// Two neighbours of a quest that are copied at once are aligned here.
#[repr(C)]
struct Members {
    service: u32,
    avoid: u32,
    entry: u32,
    /// 1 for the most.
    most: u64,
    id: u64,
    load: u64,
    weight: u64,
    count: u64,
}

impl Step for Members {
    // As ip_vs_dest_set_min() and ip_vs_dest_set_max().
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(entry) = tables.favourites(self.entry) else { return true };
        let Some(word) = member(tables, entry, index) else { return true };
        let id = tables.read(word) as u32;
        let Some(destination) = tables.destination(id) else { return true };
        let Some(counts) = tables.counts(id) else { return true };
        if id == 0 {
            return true;
        }
        self.count = tables.forget(self.count + 1);
        if destination.service != self.service || destination.weight == 0 {
            return false;
        }
        let (load, weight) =
            (overhead(tables.read(&counts.connections)), destination.weight.into());
        let (mine, other) = (self.load.wrapping_mul(weight), load.wrapping_mul(self.weight));
        let better = match self.most {
            0 => {
                mine > other
                    && id != self.avoid
                    && takes_connections(destination)
                    && !(destination.upper != 0 && tables.is_overloaded(id))
            }
            _ => self.id == 0 || mine < other,
        };
        if better {
            self.id = tables.forget(id.into());
            self.load = tables.forget(load);
            self.weight = tables.forget(weight);
        }
        false
    }
}

/// Looks for a destination with less than half as many active connections as its weight.
struct Cool {
    line: u32,
    found: u32,
}

impl Step for Cool {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(line) = tables.ring_line(self.line + index) else { return true };
        let Some(counts) = tables.all_counts() else { return true };
        for &element in &line.elements {
            let Some(of) = of_destination(counts, element as u32) else { return true };
            if active(tables.read(&of.connections)) * 2 < super::weight_of(element) {
                self.found = 1;
                return true;
            }
        }
        false
    }
}

/// Looks for a destination in a set.
struct Find {
    entry: u32,
    id: u32,
    found: u32,
}

impl Step for Find {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(entry) = tables.favourites(self.entry) else { return true };
        let Some(word) = member(tables, entry, index) else { return true };
        if tables.read(word) as u32 == self.id {
            self.found = 1;
        }
        self.found != 0
    }
}

/// Puts a destination before the members of a set; where there is no room the last falls out.
struct Insert {
    entry: u32,
    carry: u32,
}

impl Step for Insert {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(entry) = tables.favourites(self.entry) else { return true };
        let Some(word) = member(tables, entry, index) else { return true };
        let next = tables.read(word) as u32;
        tables.write(word, self.carry.into());
        self.carry = next;
        next == 0
    }
}

/// Takes a destination out of a set and closes the gap.
struct Erase {
    entry: u32,
    gone: u32,
    to: u32,
}

impl Step for Erase {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let Some(entry) = tables.favourites(self.entry) else { return true };
        let Some(from) = member(tables, entry, index) else { return true };
        let id = tables.read(from) as u32;
        tables.write(from, 0);
        if id != self.gone {
            let Some(to) = member(tables, entry, self.to) else { return true };
            tables.write(to, id.into());
            self.to = tables.forget(u64::from(self.to) + 1) as u32;
        }
        id == 0
    }
}

impl<T: Tables> Context<'_, T> {
    /// Chooses as lblc or lblcr: a favourite unless it has too much to do, else the destination with
    /// the least load for its weight, which becomes one.
    // As ip_vs_lblc_schedule() and ip_vs_lblcr_schedule().
    #[inline(always)]
    pub(super) fn search_favourite(&self, quest: &Quest, key: u64) -> u32 {
        let place = self.entry_of(quest, key);
        let mut known = 0;
        if let Some(place) = place {
            let used = u64::from(quest.service) << 32 | u64::from(self.now.0);
            if let Some(entry) = self.tables.favourites(place) {
                self.tables.write(&entry.used, used);
            }
            known = match quest.ring.scheduler() {
                scheduler::LBLC => self.only_member(quest, place),
                _ => self.least_member(quest, place),
            };
        }
        if known != 0 && !self.is_hot(quest, known) {
            return known;
        }
        let id = self.search_least(quest);
        if id != super::NOBODY {
            self.remember_favourite(quest, key, id);
        }
        id
    }

    /// Returns the entry of a key that is not too old.
    #[inline(always)]
    fn entry_of(&self, quest: &Quest, key: u64) -> Option<u32> {
        let mut found = WAYS;
        for way in 0..WAYS {
            let entry = self.tables.favourites(bucket_of(key) + way)?;
            let same = self.tables.read(&entry.key) == key;
            if same && !self.is_old(quest, self.tables.read(&entry.used)) {
                found = way;
            }
        }
        if found == WAYS { None } else { Some(bucket_of(key) + found) }
    }

    #[inline(always)]
    fn is_old(&self, quest: &Quest, time: u64) -> bool {
        let seconds = match quest.ring.scheduler() {
            scheduler::LBLC => self.settings.lblc_expiration,
            _ => self.settings.lblcr_expiration,
        };
        self.now.since(time as u32 & TIME_MASK) > self.settings.second.saturating_mul(seconds)
    }

    #[inline(always)]
    fn only_member(&self, quest: &Quest, place: u32) -> u32 {
        let Some(entry) = self.tables.favourites(place) else { return 0 };
        let id = self.tables.read(&entry.members[0]) as u32;
        let Some(destination) = self.tables.destination(id) else { return 0 };
        let own = destination.service == quest.service && id != quest.avoid;
        if own && takes_connections(destination) { id } else { 0 }
    }

    /// Returns the member with the least load; takes that with the most out of a set that has not
    /// changed for long.
    #[inline(never)]
    fn least_member(&self, quest: &Quest, place: u32) -> u32 {
        let members = FAVOURITE_MEMBERS as u32;
        let mut least = Members {
            entry: place,
            service: quest.service,
            avoid: quest.avoid,
            most: 0,
            id: 0,
            load: self.tables.forget(1),
            weight: self.tables.forget(0),
            count: self.tables.forget(0),
        };
        self.tables.repeat(members, &mut least);
        let chosen = least.id as u32;
        let Some(entry) = self.tables.favourites(place) else { return 0 };
        if least.count > 1 && self.is_old(quest, self.tables.read(&entry.changed)) {
            (least.most, least.id, least.load, least.weight) = (1, 0, 0, 0);
            self.tables.repeat(members, &mut least);
            self.erase_member(place, least.id as u32);
        }
        chosen
    }

    /// Returns whether a destination has more active connections than its weight while another has
    /// less than half as many.
    // As is_overloaded() of lblc.
    #[inline(never)]
    fn is_hot(&self, quest: &Quest, id: u32) -> bool {
        let Some(destination) = self.tables.destination(id) else { return true };
        let Some(counts) = self.tables.counts(id) else { return true };
        if active(self.tables.read(&counts.connections)) <= destination.weight.into() {
            return false;
        }
        let mut cool = Cool { line: quest.ring.line(), found: 0 };
        self.tables.repeat(quest.ring.lines(), &mut cool);
        cool.found != 0
    }

    /// Makes a destination the favourite of a key, or one of its favourites.
    #[inline(never)]
    fn remember_favourite(&self, quest: &Quest, key: u64, id: u32) -> bool {
        let Some(lock) = self.tables.favourites(bucket_of(key)) else { return false };
        let word = &lock.lock;
        if !self.tables.swap(word, 0, 1) && !self.tables.wait_to_swap(word, 0, 1) {
            return false;
        }
        let replicates = quest.ring.scheduler() == scheduler::LBLCR;
        let place = match self.entry_of(quest, key) {
            Some(place) => place,
            None => self.make_entry(quest, key),
        };
        match replicates {
            true => self.insert_member(place, id),
            false => self.set_only_member(place, id),
        };
        self.tables.swap(word, 1, 0)
    }

    /// Makes room for a key in its bucket. The caller holds the lock.
    #[inline(always)]
    fn make_entry(&self, quest: &Quest, key: u64) -> u32 {
        let (mut place, mut oldest) = (bucket_of(key), 0);
        for way in 0..WAYS {
            let Some(entry) = self.tables.favourites(bucket_of(key) + way) else { continue };
            let age = match self.tables.read(&entry.key) {
                0 => u32::MAX,
                _ => self.now.since(self.tables.read(&entry.used) as u32 & TIME_MASK),
            };
            if age > oldest {
                (place, oldest) = (bucket_of(key) + way, age);
            }
        }
        if let Some(entry) = self.tables.favourites(place) {
            self.tables.write(&entry.key, 0);
            let used = u64::from(quest.service) << 32 | u64::from(self.now.0);
            self.tables.write(&entry.used, used);
            for member in &entry.members {
                self.tables.write(member, 0);
            }
            self.tables.write(&entry.key, key);
        }
        place
    }

    #[inline(always)]
    fn set_only_member(&self, place: u32, id: u32) -> bool {
        let Some(entry) = self.tables.favourites(place) else { return false };
        self.tables.write(&entry.changed, self.now.0.into());
        self.tables.write(&entry.members[0], id.into());
        true
    }

    /// Puts a destination before the others, unless it is there. The caller holds the lock.
    #[inline(always)]
    fn insert_member(&self, place: u32, id: u32) -> bool {
        let Some(entry) = self.tables.favourites(place) else { return false };
        let mut find = Find { entry: place, id, found: 0 };
        self.tables.repeat(FAVOURITE_MEMBERS as u32, &mut find);
        if find.found == 0 {
            self.tables.write(&entry.changed, self.now.0.into());
            let mut insert = Insert { entry: place, carry: id };
            self.tables.repeat(FAVOURITE_MEMBERS as u32, &mut insert);
        }
        true
    }

    /// Takes a destination out of a set.
    #[inline(always)]
    fn erase_member(&self, place: u32, gone: u32) -> bool {
        let Some(lock) = self.tables.favourites(place & !(WAYS - 1)) else { return false };
        let Some(entry) = self.tables.favourites(place) else { return false };
        // Whoever has the lock changes the set: there is time.
        if !self.tables.swap(&lock.lock, 0, 1) {
            return false;
        }
        self.tables.write(&entry.changed, self.now.0.into());
        let mut erase = Erase { entry: place, gone, to: 0 };
        self.tables.repeat(FAVOURITE_MEMBERS as u32, &mut erase);
        self.tables.swap(&lock.lock, 1, 0)
    }
}

/// Returns the first entry of a key's bucket.
#[inline(always)]
pub const fn bucket_of(key: u64) -> u32 {
    (key >> 32) as u32 & (FAVOURITES - 1) & !(WAYS - 1)
}
