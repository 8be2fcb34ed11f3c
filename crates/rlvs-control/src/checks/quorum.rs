//! The quorum of a service: whether enough weight is good.

/// What a quorum asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Sum of weights that must be good.
    pub weight: u32,
    /// Distance from it before the quorum is lost or gained; less than `weight`, or 0.
    pub hysteresis: u32,
}

impl Quorum {
    /// Returns the sum below which it is lost. Without any weight nothing serves, so it is never 0.
    pub fn lost_below(self) -> u64 {
        u64::from(self.weight.saturating_sub(self.hysteresis).max(1))
    }

    /// Returns the sum at which it is gained. More than all servers together have (`total`) is never
    /// asked for.
    pub fn gained_at(self, total: u64) -> u64 {
        let asked = u64::from(self.weight) + u64::from(self.hysteresis);
        asked.min(total).max(self.lost_below())
    }

    /// Returns whether it holds with this sum, if it did or did not before.
    pub fn holds(self, held: bool, sum: u64, total: u64) -> bool {
        if held { sum >= self.lost_below() } else { sum >= self.gained_at(total) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_lost_and_gained_as_the_real_one_was_seen_to() {
        let quorum = Quorum { weight: 20, hysteresis: 5 };
        let mut held = true;
        let sums = [30, 20, 15, 10, 20, 24, 25, 30];
        let seen = sums.map(|sum| {
            held = quorum.holds(held, sum, 30);
            held
        });
        assert_eq!(seen, [true, true, true, false, false, false, true, true]);
    }

    #[test]
    fn it_is_gained_when_every_server_is_good() {
        let quorum = Quorum { weight: 20, hysteresis: 19 };
        assert!(quorum.holds(false, 30, 30));
        assert!(!quorum.holds(false, 29, 30));
    }

    #[test]
    fn nothing_holds_without_any_weight() {
        for weight in [0, 1] {
            assert!(!Quorum { weight, hysteresis: 0 }.holds(true, 0, 0));
            assert!(Quorum { weight, hysteresis: 0 }.holds(false, 1, 1));
        }
    }
}
