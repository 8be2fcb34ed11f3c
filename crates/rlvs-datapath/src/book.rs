//! The book of access: lines of a map that the control plane makes anew for every change and puts in force
//! by one store.
//!
//! Line 0 holds the rules of all services, those behind it the rules of services, by
//! [`Service::access`](crate::abi::Service::access); then come tables and nodes of search trees, then what
//! only the control plane reads.
//!
//! A *table* finds in which of the ranges, into which prefixes cut the addresses, one lies. It cuts what lies
//! between the first bound and the last one into parts of equal width, about half as many as there are
//! ranges, wherever these lie. A part takes 32 bytes, which are all that nearly every look-up waits for:
//! [`BOUNDS_OF_PART`] bounds and what holds below, between and above them. Where there are more bounds, or
//! such as 32 bits do not tell, a tree goes on: [`BOUNDS`] bounds in a node, ways from each on.
//!
//! Words have 64 bits: IPv4 addresses, or the upper half of IPv6 ones, from where another table goes on if
//! longer prefixes begin with that half. Parts and nodes are searched by subtraction and not by branches.

use crate::abi::{LINE_WORDS, Line};
use crate::tables::Book;

/// Bounds in a node.
pub const BOUNDS: usize = 10;
/// Bounds in a part of a table.
pub const BOUNDS_OF_PART: usize = 6;
/// Nodes from a part to the end, at most: 11^7 ranges.
pub const DEPTH: usize = 7;
/// A bound that no word of a tree reaches but the last: words are below 2^63.
pub const NO_BOUND: u64 = u64::MAX >> 1;
/// Words of a part, and of a table's head.
pub const PART_WORDS: usize = 4;
/// Parts in a line; the head of a table takes the place of the first.
pub const PARTS_A_LINE: u32 = (LINE_WORDS / PART_WORDS) as u32;
/// Set in the last word of a part whose first one is a way.
const GOES_ON: u64 = 1 << 63;
/// Bits of an end in a part.
const END_BITS: u32 = 9;

/// What is said of a range, or where to go on, in 32 bits.
pub mod way {
    /// Nothing to go on to: the range belongs to a prefix, or to none.
    pub const END: u32 = 1 << 31;
    /// The table at this line goes on with the lower half of the address.
    pub const LOWER: u32 = 1 << 30;
    /// Number of a line.
    pub const NUMBER: u32 = LOWER - 1;
    /// At an end: the prefix is denied, else it is allowed.
    pub const DENIED: u32 = 1 << 8;
    /// At an end: length of the prefix plus 1, or 0 if there is none.
    pub const RANK: u32 = 0xff;
}

/// Rules of a service, or of all, as a line has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Line of the table for IPv4; 0 for none.
    pub table4: u32,
    /// The same for IPv6.
    pub table6: u32,
    /// [`rules_flag`] bits.
    pub flags: u32,
    /// In line 0: number of lines with rules.
    pub lines: u32,
    /// Connections that a source may open, in 2^-16 for each unit of coarse time; 0 for no limit.
    pub rate: u64,
    /// Those that it may open at once, in 2^-16.
    pub burst: u64,
    /// Those that it may have; 0 for no limit.
    pub number: u64,
    /// What makes a source of an IPv4 address.
    pub mask4: u64,
    /// What makes one of an IPv6 address, upper and lower half.
    pub mask6: [u64; 2],
}

/// Bits of [`Rules::flags`].
pub mod rules_flag {
    /// Some prefixes are allowed: all others are not.
    pub const ALLOWS: u32 = 1;
    /// Refusals are told by ICMP.
    pub const TELLS: u32 = 2;
    /// Sources are limited, and by these rules alone.
    pub const LIMITS: u32 = 4;
    /// There are rules here.
    pub const PRESENT: u32 = 8;
}

impl Rules {
    /// Reads the rules of a line.
    #[inline(always)]
    pub const fn of(line: &Line) -> Self {
        let [tables, flags, rate, burst, number, mask4, high, low, ..] = line.words;
        Self {
            table4: tables as u32,
            table6: (tables >> 32) as u32,
            flags: flags as u32,
            lines: (flags >> 32) as u32,
            rate,
            burst,
            number,
            mask4,
            mask6: [high, low],
        }
    }

    /// Returns the line that holds the rules.
    pub const fn line(&self) -> Line {
        let mut words = [0; LINE_WORDS];
        words[0] = self.table4 as u64 | (self.table6 as u64) << 32;
        words[1] = self.flags as u64 | (self.lines as u64) << 32;
        words[2] = self.rate;
        words[3] = self.burst;
        words[4] = self.number;
        words[5] = self.mask4;
        words[6] = self.mask6[0];
        words[7] = self.mask6[1];
        Line { words }
    }
}

/// What the parts of a table are, in the place of its first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// First word of the first part.
    pub first: u64,
    /// Number of parts.
    pub count: u32,
    /// A part has 2 to the power of this words, at most 2^62.
    pub shift: u32,
    /// The way for words below all parts.
    pub below: u32,
    /// The way for words above all parts.
    pub above: u32,
}

impl Head {
    /// Reads what a table begins with.
    #[inline(always)]
    const fn of(line: &Line) -> Self {
        let [first, parts, outside, ..] = line.words;
        Self {
            first,
            count: parts as u32,
            shift: (parts >> 32) as u32,
            below: outside as u32,
            above: (outside >> 32) as u32,
        }
    }

    /// Returns what a table begins with.
    pub const fn words(&self) -> [u64; PART_WORDS] {
        let parts = self.count as u64 | (self.shift as u64) << 32;
        [self.first, parts, self.below as u64 | (self.above as u64) << 32, 0]
    }

    /// Returns the upper 32 bits of where in a part a word lies.
    #[inline(always)]
    const fn cut(&self, within: u64) -> u64 {
        within >> (self.shift.saturating_sub(32) & 63)
    }

    /// Returns a part in which these ranges lie, the first from its first word on; `None` if it has not the
    /// room, or 32 bits do not tell them apart, or one goes on.
    pub fn part(&self, ranges: &[(u64, u32)]) -> Option<[u64; PART_WORDS]> {
        const NONE: u64 = 0xffff_ffff;
        let (first, rest) = ranges.split_first()?;
        let told = |bound: u64| bound.trailing_zeros() >= self.shift.saturating_sub(32);
        let fits = rest.len() <= BOUNDS_OF_PART && rest.iter().all(|range| told(range.0));
        if !fits || ranges.iter().any(|range| range.1 & way::END == 0) {
            return None;
        }
        let mut words = [0; PART_WORDS];
        let mut end = first.1;
        for at in 0..=BOUNDS_OF_PART {
            if let Some(at) = at.checked_sub(1) {
                let range = rest.get(at);
                end = range.map_or(end, |range| range.1);
                let bound = range.map_or(NONE, |range| self.cut(range.0));
                words[at / 2] |= bound << (at % 2 * 32);
            }
            words[PART_WORDS - 1] |= u64::from(end & !way::END) << (at as u32 * END_BITS);
        }
        Some(words)
    }
}

/// Returns a part of which all goes one way.
pub const fn part_to(way: u32) -> [u64; PART_WORDS] {
    [way as u64, 0, 0, GOES_ON]
}

/// Returns a node: bounds in ascending order, and the ways below the first, from each on.
pub fn node(bounds: &[u64], ways: &[u32]) -> Line {
    let mut line = Line::default();
    let last = ways.last().copied().unwrap_or(way::END);
    let (keys, rest) = line.words.split_at_mut(BOUNDS);
    for (at, key) in keys.iter_mut().enumerate() {
        *key = bounds.get(at).copied().unwrap_or(NO_BOUND);
    }
    for (at, word) in rest.iter_mut().enumerate() {
        let way = |at: usize| u64::from(ways.get(at).copied().unwrap_or(last));
        *word = way(at * 2) | way(at * 2 + 1) << 32;
    }
    line
}

/// Returns the way on from a node for a word below 2^63.
#[inline(always)]
fn follow(line: &Line, word: u64) -> u32 {
    let mut below = 0;
    for bound in line.words.iter().take(BOUNDS) {
        below += word.wrapping_sub(*bound) >> 63;
    }
    let at = BOUNDS - below as usize;
    let pair = line.words.get(BOUNDS + at / 2).copied().unwrap_or(0);
    (pair >> (at % 2 * 32)) as u32
}

/// Returns the way on from a part for a word, of which 32 bits are given.
#[inline(always)]
fn enter(part: &[u64; PART_WORDS], word: u64) -> u32 {
    let [bounds @ .., ends] = part;
    if ends & GOES_ON != 0 {
        return bounds[0] as u32;
    }
    let mut below = 0;
    for pair in bounds {
        below += word.wrapping_sub(pair & 0xffff_ffff) >> 63;
        below += word.wrapping_sub(pair >> 32) >> 63;
    }
    let at = BOUNDS_OF_PART as u64 - below;
    way::END | (ends >> (at * u64::from(END_BITS)) & 0x1ff) as u32
}

/// Searches a table, and the tree that a part of it goes on to. `forget` is
/// [`Tables::forget`](crate::tables::Tables::forget).
#[inline(always)]
fn search<B: Book + ?Sized>(book: &B, table: u32, word: u64, forget: impl Fn(u64) -> u64) -> u32 {
    let Some(head) = book.line(table) else { return way::END };
    let head = Head::of(head);
    if word < head.first {
        return head.below;
    }
    let distance = word - head.first;
    let index = distance >> (head.shift & 63);
    if index >= u64::from(head.count) {
        return head.above;
    }
    let within = distance & !(u64::MAX << (head.shift & 63));
    let at = forget(index) as u32 + 1;
    let Some(line) = book.line(table.wrapping_add(at / PARTS_A_LINE)) else { return way::END };
    let (parts, _) = line.words.as_chunks();
    let Some(part) = parts.get((at % PARTS_A_LINE) as usize) else { return way::END };
    let mut next = forget(enter(part, head.cut(within)).into()) as u32;
    for _ in 0..DEPTH {
        if next & (way::END | way::LOWER) != 0 {
            break;
        }
        let Some(line) = book.line(next & way::NUMBER) else { return way::END };
        next = forget(follow(line, within).into()) as u32;
    }
    next
}

/// Returns the end that an address, as family and two words, comes to by some rules: whether the longest
/// prefix with it is denied, and how long that is, as [`way`] has it.
#[inline(always)]
pub fn seek<B: Book + ?Sized>(
    book: &B,
    rules: &Rules,
    (family, high, low): (u8, u64, u64),
    forget: impl Fn(u64) -> u64,
) -> u32 {
    let (table, word) = if family == 4 { (rules.table4, low) } else { (rules.table6, high) };
    if table == 0 {
        return way::END;
    }
    let end = search(book, table, word, &forget);
    if end & (way::END | way::LOWER) != way::LOWER {
        return end;
    }
    search(book, end & way::NUMBER, low, &forget)
}
