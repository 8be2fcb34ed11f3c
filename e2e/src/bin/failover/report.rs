//! The figures, for people and for programs.

use std::time::Duration;

use serde::Serialize;

use crate::director::Product;
use crate::variant::{Event, Variant};

/// Ours is worse if its median is this much longer: a tenth and two pings.
const WORSE_SHARE: f64 = 1.1;
const WORSE_MS: f64 = 10.0;

/// What is measured of one configuration and one event.
pub(crate) struct Row {
    name: String,
    bound: Duration,
    pub(crate) ours: Vec<Duration>,
    pub(crate) theirs: Vec<Duration>,
}

impl Row {
    pub(crate) fn new(variant: &Variant, event: Event) -> Self {
        let name = format!("{}/{event}", variant.name);
        Self { name, bound: event.bound(variant), ours: Vec::new(), theirs: Vec::new() }
    }
}

/// Times without an answer, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(times: &[Duration]) -> Option<Self> {
        let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let (least, most) = (*times.first()?, *times.last()?);
        let last = times.len() - 1;
        let median = f64::midpoint(*times.get(last / 2)?, *times.get(last.div_ceil(2))?);
        Some(Self { least, median, most })
    }

    fn shown(this: Option<Self>) -> String {
        let Some(Self { least, median, most }) = this else { return "–".to_owned() };
        format!("{least:.0} / {median:.0} / {most:.0}")
    }
}

/// A row as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    row: String,
    /// Longest time that the protocol allows for.
    bound_ms: f64,
    ours: Option<Spread>,
    keepalived: Option<Spread>,
}

impl Figures {
    fn is_worse(&self) -> bool {
        let (Some(ours), Some(theirs)) = (self.ours, self.keepalived) else { return false };
        ours.median > theirs.median * WORSE_SHARE + WORSE_MS
    }
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    beside: Option<String>,
    pub(crate) rows: Vec<Figures>,
}

impl Report {
    /// Begins a table.
    pub(crate) fn new(theirs: Option<&Product>) -> Self {
        let beside = theirs.and_then(|theirs| theirs.version().ok());
        println!("Time in which a ping every 5 ms has no answer: least / median / most, in ms");
        println!("{:18} {:>6}  {:>20}  {:>20}", "", "bound", "ours", "keepalived");
        Self { beside, rows: Vec::new() }
    }

    /// Takes a row, and shows it.
    pub(crate) fn add(&mut self, row: Row) {
        let (ours, theirs) = (Spread::of(&row.ours), Spread::of(&row.theirs));
        let bound_ms = row.bound.as_secs_f64() * 1e3;
        let figures = Figures { row: row.name, bound_ms, ours, keepalived: theirs };
        let (name, mark) = (&figures.row, if figures.is_worse() { "  WORSE" } else { "" });
        let (ours, theirs) = (Spread::shown(ours), Spread::shown(theirs));
        println!("{name:18} {bound_ms:6.0}  {ours:>20}  {theirs:>20}{mark}");
        self.rows.push(figures);
    }

    /// Ends the table.
    pub(crate) fn end(&self) {
        if let Some(beside) = &self.beside {
            println!("beside {beside}");
        }
    }

    /// Returns a line for each row in which ours is worse.
    pub(crate) fn worse(&self) -> Vec<String> {
        let worse = self.rows.iter().filter(|row| row.is_worse());
        worse.map(|row| format!("{}: ours takes longer than keepalived", row.row)).collect()
    }
}
