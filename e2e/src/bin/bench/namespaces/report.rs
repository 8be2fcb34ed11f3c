//! The rows of the paths through namespaces.

use anyhow::Result;
use serde::Serialize;

use super::Figures;
use super::paths::{Bound, Path};

/// A path with its figures, or with why there are none.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    path: String,
    #[serde(flatten)]
    figures: Option<Figures>,
    /// Why it has no figures.
    refused: Option<String>,
    #[serde(flatten)]
    bound: Option<Bound>,
}

impl Row {
    /// Makes the row of what came of measuring a path.
    pub(super) fn new(path: &Path, measured: Result<Figures>) -> Self {
        let (figures, refused) = match measured {
            Ok(figures) => (Some(figures), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Self { path: path.name(), figures, refused, bound: path.bound() }
    }

    /// Returns whether it could not be measured.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    fn mark(&self) -> &'static str {
        match (&self.figures, self.bound) {
            (Some(figures), Some(bound)) if figures.ratio.median >= bound.aim => "aim",
            (Some(figures), Some(bound)) if figures.ratio.median >= bound.must => "ok",
            (Some(_), Some(_)) => "MISSED",
            _ => "",
        }
    }
}

/// Returns what missed its bound or could not be measured.
pub(crate) fn missed(rows: &[Row]) -> Vec<String> {
    let mut missed = Vec::new();
    for row in rows {
        let path = &row.path;
        match (&row.figures, row.bound) {
            (None, _) => missed.push(format!("{path}: not measured")),
            (Some(Figures { ratio, .. }), Some(Bound { must, .. })) if ratio.median < must => {
                missed.push(format!("{path}: {:.2}, must {must:.2}", ratio.median));
            }
            _ => {}
        }
    }
    missed
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    println!("\nThrough namespaces: how many times dearer the kernel is");
    println!(
        "{:<29} {:>7} {:>7} {:>9} {:>6} {:>11} {:>5} {:>5} {:>7} {:>6}",
        "path", "drop ns", "ours ns", "kernel ns", "ratio", "least..most", "must", "aim", "", "net"
    );
    for row in rows {
        let Some(Figures { dropping_ns, ours_ns, kernel_ns, ratio, net }) = &row.figures else {
            println!("{:<29} not measured: {}", row.path, row.refused.as_deref().unwrap_or(""));
            continue;
        };
        let bound = |part: fn(Bound) -> f64| {
            row.bound.map_or("-".to_owned(), |bound| format!("{:.1}", part(bound)))
        };
        println!(
            "{:<29} {:>7.0} {:>7.0} {:>9.0} {:>6.2} {:>11} {:>5} {:>5} {:>7} {:>6.2}",
            row.path,
            dropping_ns.median,
            ours_ns.median,
            kernel_ns.median,
            ratio.median,
            format!("{:.2}..{:.2}", ratio.least, ratio.most),
            bound(|bound| bound.must),
            bound(|bound| bound.aim),
            row.mark(),
            net.median,
        );
    }
}
