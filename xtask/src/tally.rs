//! Counting tests from what the runners print.

use std::ops::AddAssign;

/// How many tests passed, failed and did not run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Tally {
    /// Reads the closing line of nextest or of one test program of `cargo test`.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let counts = match line.strip_prefix("test result: ") {
            Some(rest) => rest.split_once(". ")?.1,
            None => line.strip_prefix("Summary [")?.split_once(" run: ")?.1,
        };
        let mut tally = Self::default();
        for count in counts.split([',', ';']) {
            // nextest adds to a count what it wants to say of it: `3 passed (1 slow)`.
            let count = count.split('(').next().unwrap_or(count);
            let Some((number, word)) = count.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word.trim() {
                "passed" => tally.passed += number,
                "failed" | "exec failed" | "timed out" => tally.failed += number,
                "skipped" | "ignored" | "filtered out" => tally.skipped += number,
                _ => {}
            }
        }
        Some(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(u64, u64, u64)>) {
        let expected = expected.map(|(passed, failed, skipped)| Tally { passed, failed, skipped });
        assert_eq!(Tally::from_line(line), expected, "{line}");
    }

    #[test]
    fn closing_lines_of_nextest_are_counted() {
        check("     Summary [   0.005s] 3 tests run: 3 passed, 0 skipped", Some((3, 0, 0)));
        check("Summary [ 1.2s] 9/12 tests run: 5 passed (2 slow), 4 failed", Some((5, 4, 0)));
        check("Summary [ 1s] 4 tests run: 1 passed, 1 timed out, 2 exec failed", Some((1, 3, 0)));
    }

    #[test]
    fn closing_lines_of_cargo_test_are_counted() {
        check(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; \
             finished in 0.00s",
            Some((3, 0, 3)),
        );
        check("test result: FAILED. 1 passed; 2 failed; 0 ignored", Some((1, 2, 0)));
    }

    #[test]
    fn other_lines_are_not_counted() {
        check("running 3 tests", None);
        check("        PASS [   0.003s] xtask tests::passed", None);
    }
}
