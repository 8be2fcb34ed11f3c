//! What was measured.

/// What several measurements gave.
pub(crate) struct Figure {
    median: f64,
    /// What the median must not exceed.
    bound: Option<f64>,
}

impl Figure {
    /// Puts measurements together, and prints them.
    pub(crate) fn new(title: &str, unit: &str, values: &[f64], bound: Option<f64>) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(last.div_ceil(2)));
        let figure = Self { median, bound };
        let shown =
            |value: f64| if value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") };
        let (least, middle, most) = (shown(at(0)), shown(median), shown(at(last)));
        let must = bound.map_or(String::new(), |bound| format!("  must {bound}"));
        let mark = if figure.is_missed() { "  MISSED" } else { "" };
        println!("{title:52} {least:>8} / {middle:>8} / {most:>8} {unit:5}{must}{mark}");
        figure
    }

    /// Returns whether its bound is missed.
    pub(crate) fn is_missed(&self) -> bool {
        self.bound.is_some_and(|bound| self.median > bound)
    }
}
