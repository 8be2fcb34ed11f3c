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

/// Who runs the tests, and so writes the closing lines.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Runner {
    /// One closing line for all tests. What a failed test printed comes before it, and may hold
    /// closing lines of the other kind.
    Nextest,
    /// `cargo test`: a closing line for each test program.
    Cargo,
}

impl Tally {
    /// Counts the tests in a line that the runner printed, if it is a closing line.
    pub(crate) fn count(&mut self, runner: Runner, line: &str) {
        let line = line.trim();
        match runner {
            Runner::Nextest => {
                let rest =
                    line.strip_prefix("Summary [").and_then(|rest| rest.split_once(" run: "));
                if let Some((_, counts)) = rest {
                    *self = Self::from_counts(counts);
                }
            }
            Runner::Cargo => {
                let rest =
                    line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "));
                if let Some((_, counts)) = rest {
                    *self += Self::from_counts(counts);
                }
            }
        }
    }

    fn from_counts(counts: &str) -> Self {
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
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(runner: Runner, lines: &[&str], (passed, failed, skipped): (u64, u64, u64)) {
        let mut tally = Tally::default();
        for line in lines {
            tally.count(runner, line);
        }
        assert_eq!(tally, Tally { passed, failed, skipped }, "{lines:?}");
    }

    #[test]
    fn the_closing_line_of_nextest_is_counted() {
        let check = |line, expected| check(Runner::Nextest, &[line], expected);
        check("     Summary [   0.005s] 3 tests run: 3 passed, 0 skipped", (3, 0, 0));
        check("Summary [ 1.2s] 9/12 tests run: 5 passed (2 slow), 4 failed", (5, 4, 0));
        check("Summary [ 1s] 4 tests run: 1 passed, 1 timed out, 2 exec failed", (1, 3, 0));
        check("        PASS [   0.003s] xtask tests::passed", (0, 0, 0));
    }

    #[test]
    fn what_a_failed_test_printed_is_not_counted() {
        let lines = [
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 1 filtered out",
            "    Summary [ 1s] 9 tests run: 9 passed",
            "     Summary [   0.005s] 2 tests run: 1 passed, 1 failed, 0 skipped",
        ];
        check(Runner::Nextest, &lines, (1, 1, 0));
    }

    #[test]
    fn the_closing_lines_of_cargo_test_are_added_up() {
        let lines = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; in 0.1s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored",
        ];
        check(Runner::Cargo, &lines, (4, 2, 3));
    }
}
