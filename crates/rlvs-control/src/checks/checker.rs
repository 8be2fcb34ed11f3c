//! One checker: rounds of attempts, and what is concluded from them.

use std::time::Duration;

/// When a checker runs and what it concludes.
///
/// A *round* is one attempt, and after a failure of a checker that is up at most `retry` more with
/// `delay_before_retry` between them. The first attempt that succeeds makes it a good round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time from the end of a round to the next.
    pub delay_loop: Duration,
    /// The first round begins within this time, and within [`FIRST_ROUND_MAX`].
    pub warmup: Duration,
    /// Attempts more in a round.
    pub retry: u32,
    /// Time before another attempt.
    pub delay_before_retry: Duration,
    /// Longest time of a whole attempt, whatever comes meanwhile.
    pub deadline: Duration,
    /// Failed rounds in a row until the checker is down; at least 1.
    pub fall: u32,
    /// Good rounds in a row until it is up again; at least 1.
    pub rise: u32,
    /// No pauses between the rounds of a recovery.
    pub fast_recovery: bool,
}

/// The first round of every checker begins within this time: what nobody has looked at yet serves.
pub const FIRST_ROUND_MAX: Duration = Duration::from_secs(1);

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server serves.
    Good,
    /// It serves, and asks for this weight.
    Weight(u32),
    /// It does not; the text says what was seen.
    Bad(String),
    /// It was not asked: this host lacks something. Says nothing about the server.
    Unknown(String),
}

/// What follows from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Time until the next attempt.
    pub(super) pause: Duration,
    /// Whether the checker has changed.
    pub(super) changed: bool,
}

/// A checker's state.
///
/// ```text
///              fall bad rounds
///     up  ---------------------->  down
///         <----------------------
///      rise good rounds, or one if it has never failed
/// ```
#[derive(Clone, Debug)]
pub(super) struct Checker {
    /// Whether the server is good, as far as this checker can tell.
    pub(super) up: bool,
    /// Attempts of this round that have failed.
    failed: u32,
    bad_rounds: u32,
    good_rounds: u32,
    has_failed: bool,
    /// Pause after the first good round, which sets the checkers' rounds apart.
    spread: Option<Duration>,
}

impl Checker {
    /// Returns a checker of which nothing is known but what is assumed.
    pub(super) fn new(up: bool, spread: Duration) -> Self {
        let spread = Some(spread);
        Self { up, failed: 0, bad_rounds: 0, good_rounds: 0, has_failed: false, spread }
    }

    /// Concludes from an attempt that said whether the server is good.
    pub(super) fn finished(&mut self, timing: &Timing, good: bool) -> Step {
        if good { self.succeeded(timing) } else { self.failed(timing) }
    }

    /// Returns how many rounds in a row have spoken for a change.
    pub(super) fn rounds(&self) -> u32 {
        if self.up { self.bad_rounds } else { self.good_rounds }
    }

    fn succeeded(&mut self, timing: &Timing) -> Step {
        self.failed = 0;
        self.bad_rounds = 0;
        let pause = self.spread.take().unwrap_or(timing.delay_loop);
        if self.up {
            return Step { pause, changed: false };
        }
        self.good_rounds += 1;
        if !self.has_failed || self.good_rounds >= timing.rise {
            self.up = true;
            self.good_rounds = 0;
            return Step { pause, changed: true };
        }
        let pause = if timing.fast_recovery { Duration::ZERO } else { timing.delay_loop };
        Step { pause, changed: false }
    }

    fn failed(&mut self, timing: &Timing) -> Step {
        self.good_rounds = 0;
        self.has_failed = true;
        let pause = timing.delay_loop;
        if !self.up {
            return Step { pause, changed: false };
        }
        if self.failed < timing.retry {
            self.failed += 1;
            return Step { pause: timing.delay_before_retry, changed: false };
        }
        self.failed = 0;
        self.bad_rounds += 1;
        if self.bad_rounds < timing.fall {
            return Step { pause, changed: false };
        }
        self.up = false;
        self.bad_rounds = 0;
        Step { pause, changed: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LOOP: Duration = Duration::from_secs(10);
    const RETRY: Duration = Duration::from_secs(2);
    const SPREAD: Duration = Duration::from_secs(3);

    const TIMING: Timing = Timing {
        delay_loop: LOOP,
        warmup: LOOP,
        retry: 2,
        delay_before_retry: RETRY,
        deadline: SECOND,
        fall: 1,
        rise: 1,
        fast_recovery: false,
    };

    /// Plays attempts (`+` good, `-` bad) and holds pauses and states against what is expected.
    fn check(up: bool, timing: Timing, attempts: &str, expected: &[(Duration, bool)]) {
        let mut checker = Checker::new(up, SPREAD);
        let seen: Vec<_> = attempts
            .chars()
            .map(|attempt| (checker.finished(&timing, attempt == '+').pause, checker.up))
            .collect();
        assert_eq!(seen, expected, "{attempts}");
    }

    #[test]
    fn the_first_round_has_its_retries_too() {
        check(true, TIMING, "--+", &[(RETRY, true), (RETRY, true), (SPREAD, true)]);
        check(true, TIMING, "---", &[(RETRY, true), (RETRY, true), (LOOP, false)]);
    }

    #[test]
    fn a_success_forgets_the_failures_before_it() {
        let retried = (RETRY, true);
        check(
            true,
            TIMING,
            "--+---",
            &[retried, retried, (SPREAD, true), retried, retried, (LOOP, false)],
        );
    }

    #[test]
    fn what_is_down_is_asked_once_a_round() {
        let timing = Timing { retry: 0, ..TIMING };
        check(true, timing, "--+", &[(LOOP, false), (LOOP, false), (SPREAD, true)]);
    }

    #[test]
    fn rounds_are_counted_by_fall_and_rise() {
        let timing = Timing { retry: 0, fall: 2, rise: 2, ..TIMING };
        let expected = [true, true, true, false, false, false, false, true];
        let mut checker = Checker::new(true, SPREAD);
        let seen = "-+--+-++".chars().map(|attempt| {
            checker.finished(&timing, attempt == '+');
            checker.up
        });
        assert_eq!(seen.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_recovery_in_haste_does_not_pause() {
        let timing = Timing { retry: 0, rise: 2, fast_recovery: true, ..TIMING };
        let expected = [(LOOP, false), (Duration::ZERO, false), (LOOP, true)];
        check(true, timing, "-++", &expected);
    }

    #[test]
    fn who_was_never_up_needs_one_good_round() {
        let timing = Timing { rise: 3, ..TIMING };
        check(false, timing, "+", &[(SPREAD, true)]);
        check(false, timing, "-+", &[(LOOP, false), (LOOP, false)]);
    }
}
