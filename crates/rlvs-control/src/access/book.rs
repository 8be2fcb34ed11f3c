//! The rules as the data plane reads them: lines of a book, with search trees.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rlvs_datapath::abi::{LINE_WORDS, Line};
use rlvs_datapath::book::{
    self as record, BOUNDS, Head, PART_WORDS, PARTS_A_LINE, part_to, rules_flag, way,
};

use super::{Access, Rules, Verdict};
use crate::model::ServiceId;

/// Word of line 0 that says in which line the rules begin as text.
pub const TEXT_WORD: usize = 8;
/// Word of line 0 that says how many bytes of text there are.
pub const BYTES_WORD: usize = 9;

/// A range of words from the first on, and the way on for it.
type Range = (u64, u32);

/// Makes the book. `numbers` has the line of each service that has rules, from 1 on; a unit of coarse
/// time has `unit_ns` nanoseconds. `text` is kept behind.
#[must_use]
pub fn book(
    access: &Access,
    numbers: &BTreeMap<ServiceId, u32>,
    unit_ns: u64,
    text: &str,
) -> Vec<Line> {
    let count = numbers.values().max().copied().unwrap_or(0) + 1;
    let mut lines = vec![Line::default(); count as usize];
    let all = rules(&access.all, unit_ns, &mut lines);
    lines[0] = record::Rules { lines: count, ..all }.line();
    for (id, number) in numbers {
        if let Some(own) = access.services.get(id) {
            let own = rules(own, unit_ns, &mut lines);
            lines[*number as usize] = own.line();
        }
    }
    lines[0].words[TEXT_WORD] = lines.len() as u64;
    lines[0].words[BYTES_WORD] = text.len() as u64;
    for chunk in text.as_bytes().chunks(LINE_WORDS * 8) {
        let mut line = Line::default();
        for (word, bytes) in line.words.iter_mut().zip(chunk.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        lines.push(line);
    }
    lines
}

fn rules(rules: &Rules, unit_ns: u64, lines: &mut Vec<Line>) -> record::Rules {
    const SECOND_NS: u128 = 1_000_000_000;
    let mut record = record::Rules::default();
    if rules.is_empty() {
        return record;
    }
    record.flags = rules_flag::PRESENT;
    if rules.allows() {
        record.flags |= rules_flag::ALLOWS;
    }
    if rules.reject {
        record.flags |= rules_flag::TELLS;
    }
    if let Some(limit) = rules.limit {
        record.flags |= rules_flag::LIMITS;
        let scaled = |number: u32| u64::from(number) << 16;
        let a_unit = |rate| (u128::from(scaled(rate)) * u128::from(unit_ns) / SECOND_NS) as u64;
        record.rate = limit.rate.map_or(0, |rate| a_unit(rate).max(1));
        record.burst = scaled(limit.burst);
        record.number = limit.number.unwrap_or(0).into();
        let mask = |width: u32, length: u8| {
            let all = u128::MAX >> (128 - width);
            all & !all.checked_shr(length.into()).unwrap_or(0)
        };
        record.mask4 = mask(32, limit.length4) as u64;
        let mask6 = mask(128, limit.length6);
        record.mask6 = [(mask6 >> 64) as u64, mask6 as u64];
    }
    let says = |ranges: &[(u128, u32)]| ranges.iter().any(|(_, end)| *end != way::END);
    let ranges4 = ranges(rules, true);
    if says(&ranges4) {
        let words: Vec<Range> = ranges4.iter().map(|(first, end)| (*first as u64, *end)).collect();
        record.table4 = table(&words, lines);
    }
    let ranges6 = ranges(rules, false);
    if says(&ranges6) {
        let upper = upper(&ranges6, lines);
        record.table6 = table(&upper, lines);
    }
    record
}

/// Cuts the addresses of a family into ranges in which the same prefix is the longest.
fn ranges(rules: &Rules, is_v4: bool) -> Vec<(u128, u32)> {
    let mut ranges = vec![(0, way::END)];
    // Prefixes whose ends are yet to come, the inner ones last.
    let mut open: Vec<(u128, u32)> = Vec::new();
    let begin = |ranges: &mut Vec<(u128, u32)>, first: u128, end: u32| {
        if ranges.last().is_some_and(|last| last.0 == first) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|last| last.1 != end) {
            ranges.push((first, end));
        }
    };
    let close = |open: &mut Vec<(u128, u32)>, ranges: &mut Vec<(u128, u32)>, largest: u128| {
        if let Some((last, _)) = open.pop()
            && last != largest
        {
            begin(ranges, last + 1, open.last().map_or(way::END, |outer| outer.1));
        }
    };
    let largest = if is_v4 { u128::from(u32::MAX) } else { u128::MAX };
    // Outer ones come before inner ones.
    for (prefix, verdict) in &rules.prefixes {
        let first = match prefix.address() {
            IpAddr::V4(address) if is_v4 => u128::from(address.to_bits()),
            IpAddr::V6(address) if !is_v4 => address.to_bits(),
            _ => continue,
        };
        let denied = if *verdict == Verdict::Deny { way::DENIED } else { 0 };
        let end = way::END | denied | (u32::from(prefix.length()) + 1);
        let last = first | largest.checked_shr(prefix.length().into()).unwrap_or(0);
        while open.last().is_some_and(|(last, _)| *last < first) {
            close(&mut open, &mut ranges, largest);
        }
        begin(&mut ranges, first, end);
        open.push((last, end));
    }
    while !open.is_empty() {
        close(&mut open, &mut ranges, largest);
    }
    ranges
}

/// Makes ranges of the upper halves of addresses; where longer prefixes divide one, a table of its own
/// goes on.
fn upper(ranges: &[(u128, u32)], lines: &mut Vec<Line>) -> Vec<Range> {
    let mut upper: Vec<Range> = Vec::new();
    let begin = |upper: &mut Vec<Range>, first: u64, end: u32| {
        if upper.last().is_some_and(|last| last.0 == first) {
            upper.pop();
        }
        upper.push((first, end));
    };
    let mut end = way::END;
    for group in ranges.chunk_by(|one, other| one.0 >> 64 == other.0 >> 64) {
        let half = group.first().map_or(0, |(first, _)| (first >> 64) as u64);
        let whole = group.first().is_some_and(|(first, _)| *first as u64 == 0);
        if whole && group.len() == 1 {
            end = group[0].1;
            begin(&mut upper, half, end);
            continue;
        }
        let mut lower: Vec<Range> = Vec::new();
        if !whole {
            lower.push((0, end));
        }
        lower.extend(group.iter().map(|(first, end)| (*first as u64, *end)));
        let lower_half = table(&lower, lines);
        begin(&mut upper, half, way::LOWER | lower_half);
        end = lower.last().map_or(end, |last| last.1);
        if let Some(next) = half.checked_add(1) {
            begin(&mut upper, next, end);
        }
    }
    upper
}

/// Ranges in a part of a table, if they lie evenly, at least, and twice as many at most: most parts have no
/// more than there is room for.
const RANGES_A_PART: u64 = 2;
/// Parts for which there is always room: those of short lists lie in the line of the table's head.
const PARTS_LEAST: u64 = PARTS_A_LINE as u64 - 1;
/// The width of a part, at most, as a power of two: words in a part are words of a tree.
const SHIFT_MOST: u32 = 62;

/// Makes a table of ranges, the first of which begins at 0. Returns the number of its first line.
fn table(ranges: &[Range], lines: &mut Vec<Line>) -> u32 {
    let end_of = |at: usize| ranges.get(at).map_or(way::END, |range| range.1);
    let bounds = ranges.get(1..).unwrap_or_default();
    let [first, last] =
        [bounds.first(), bounds.last()].map(|bound| bound.map_or(0, |range| range.0));
    let most = (bounds.len() as u64 / RANGES_A_PART).max(PARTS_LEAST);
    let span = last - first;
    let shift = (0..SHIFT_MOST).find(|shift| span >> shift < most).unwrap_or(SHIFT_MOST);
    let count = if bounds.is_empty() { 0 } else { (span >> shift) as u32 + 1 };
    let head =
        Head { first, count, shift, below: end_of(0), above: end_of(ranges.len().wrapping_sub(1)) };
    let mut parts = vec![head.words()];
    // The range that has been reached.
    let mut at = 0;
    for index in 0..u64::from(count) {
        let mut part = vec![(0, end_of(at))];
        while let Some(&(bound, end)) = ranges.get(at + 1)
            && (bound - first) >> shift == index
        {
            let within = (bound - first) & !(u64::MAX << shift);
            if within == 0 {
                part.pop();
            }
            part.push((within, end));
            at += 1;
        }
        parts.push(match (head.part(&part), &part[..]) {
            (Some(whole), _) => whole,
            (None, [(_, way)]) => part_to(*way),
            (None, many) => part_to(tree(many, lines)),
        });
    }
    let number = lines.len() as u32;
    lines.extend(parts.chunks(PARTS_A_LINE as usize).map(|parts| {
        let mut line = Line::default();
        for (words, part) in line.words.as_chunks_mut::<PART_WORDS>().0.iter_mut().zip(parts) {
            *words = *part;
        }
        line
    }));
    number
}

/// Makes a tree of ranges, the first of which begins at 0, and returns the number of its root.
fn tree(ranges: &[Range], lines: &mut Vec<Line>) -> u32 {
    let mut level = ranges.to_vec();
    while level.len() > BOUNDS + 1 {
        let nodes = level.chunks(BOUNDS + 1).map(|chunk| (chunk[0].0, node(chunk, lines)));
        level = nodes.collect();
    }
    node(&level, lines)
}

fn node(ranges: &[Range], lines: &mut Vec<Line>) -> u32 {
    let bounds: Vec<u64> = ranges.iter().skip(1).map(|range| range.0).collect();
    let ways: Vec<u32> = ranges.iter().map(|range| range.1).collect();
    lines.push(record::node(&bounds, &ways));
    lines.len() as u32 - 1
}
