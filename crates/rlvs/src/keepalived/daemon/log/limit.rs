//! Holds back lines that come again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Fields, Line};

/// So often the same line is written within [`WINDOW`].
const BURST: u64 = 5;
/// Time from the first of equal lines until their number is told.
const WINDOW: Duration = Duration::from_secs(30);
/// Different lines that are remembered; more are written as they come.
const LINES_MAX: usize = 4096;

/// Equal lines of the last while.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    seen: BTreeMap<String, Seen>,
    /// When the first of them is to be forgotten, or a little before.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    until: Instant,
    count: u64,
    /// The last of them.
    line: Line,
}

impl Limiter {
    /// Tells whether a line is to be written.
    pub(super) fn admits(&mut self, line: &Line, now: Instant) -> bool {
        if let Some(seen) = self.seen.get_mut(&line.text)
            && now < seen.until
        {
            seen.count += 1;
            return seen.count <= BURST;
        }
        if self.seen.len() < LINES_MAX {
            let until = now + WINDOW;
            let before =
                self.seen.insert(line.text.clone(), Seen { until, count: 1, line: line.clone() });
            debug_assert!(before.is_none_or(|before| before.count <= BURST), "it was due before");
            self.next = self.next.or(Some(until));
        }
        true
    }

    /// Returns when to call [`Self::due`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Forgets lines whose time is over, and returns what is to be told of them.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Line> {
        if self.next.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let mut told = Vec::new();
        self.seen.retain(|_, seen| {
            if now < seen.until {
                return true;
            }
            told.extend(seen.told());
            false
        });
        self.next = self.seen.values().map(|seen| seen.until).min();
        told
    }

    /// Returns what is to be told at the end.
    pub(super) fn finish(&mut self) -> Vec<Line> {
        self.next = None;
        std::mem::take(&mut self.seen).into_values().filter_map(|seen| seen.told()).collect()
    }
}

impl Seen {
    fn told(&self) -> Option<Line> {
        let more = self.count.checked_sub(BURST).filter(|more| *more > 0)?;
        let text = format!("{more} more times: {}", self.line.text);
        let mut fields: Fields = self.line.fields.clone();
        fields.push(("repeated", more.to_string()));
        Some(Line { level: self.line.level, text, fields })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn line(text: &str) -> Line {
        Line { level: Level::Info, text: text.to_owned(), fields: Fields::new() }
    }

    #[test]
    fn what_comes_again_and_again_is_told_by_its_number() {
        let mut limiter = Limiter::default();
        let begin = Instant::now();
        let admitted = (0..100).filter(|_| limiter.admits(&line("a"), begin)).count();
        assert_eq!(admitted as u64, BURST);
        assert!(limiter.admits(&line("b"), begin + WINDOW / 2));
        assert!(limiter.due(begin + WINDOW / 2).is_empty());
        assert_eq!(limiter.poll_timeout(), Some(begin + WINDOW));
        let told: Vec<String> =
            limiter.due(begin + WINDOW).into_iter().map(|line| line.text).collect();
        assert_eq!(told, ["95 more times: a"]);
        assert!(limiter.admits(&line("a"), begin + WINDOW), "its time was over");
        assert!(limiter.due(begin + 2 * WINDOW).is_empty());
        assert_eq!(limiter.poll_timeout(), None);
    }

    #[test]
    fn the_end_tells_what_was_held_back() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let admitted = (0..=BURST).filter(|_| limiter.admits(&line("a"), now)).count();
        assert_eq!(admitted as u64, BURST);
        let told: Vec<String> = limiter.finish().into_iter().map(|line| line.text).collect();
        assert_eq!(told, ["1 more times: a"]);
    }

    #[test]
    fn many_different_lines_are_all_written() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        assert!((0..2 * LINES_MAX).all(|number| limiter.admits(&line(&number.to_string()), now)));
        assert_eq!(limiter.seen.len(), LINES_MAX);
    }
}
