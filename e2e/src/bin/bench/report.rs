//! The figures, for people and for programs.

use serde::Serialize;

use crate::measure::Capacity;
use crate::namespaces;
use crate::object::Size;
use crate::paths::Bound;

/// What several rounds gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Returns the spread of some values.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(last.div_ceil(2)));
        Self { median, least: at(0), most: at(last) }
    }
}

/// The figures of one path.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) path: String,
    pub(crate) floor_ns: Spread,
    /// What the floor takes with one line of a table, in floors.
    pub(crate) line: Spread,
    pub(crate) program_ns: Spread,
    pub(crate) ratio: Spread,
    pub(crate) bound: Option<Bound>,
    /// The same path over IPv4.
    pub(crate) v4: Option<String>,
}

/// A row with what it is held against.
#[derive(Debug, Serialize)]
struct Judged {
    path: String,
    floor_ns: Spread,
    line: Spread,
    program_ns: Spread,
    ratio: Spread,
    must: Option<f64>,
    aim: Option<f64>,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    kernel: String,
    load_average: String,
    rows: Vec<Judged>,
    programs: Vec<Size>,
    /// Time to make the maps, of default size, and to load all programs, in milliseconds.
    load_ms: Spread,
    capacity: Vec<Capacity>,
    pub(crate) namespaces: Vec<namespaces::Row>,
}

/// Longest time to load the object, in milliseconds.
const LOAD_MS_MUST: f64 = 300.0;

impl Report {
    /// Puts the figures together.
    pub(crate) fn new(
        rows: Vec<Row>,
        programs: Vec<Size>,
        load_ms: Spread,
        capacity: Vec<Capacity>,
    ) -> Self {
        let line = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
        let processor = line("/proc/cpuinfo");
        let model = processor.lines().find_map(|line| line.strip_prefix("model name\t: "));
        Self {
            machine: model.unwrap_or("unknown").to_owned(),
            kernel: line("/proc/sys/kernel/osrelease"),
            load_average: line("/proc/loadavg"),
            rows: judge(rows),
            programs,
            load_ms,
            capacity,
            namespaces: Vec::new(),
        }
    }

    /// Returns what missed its bound.
    pub(crate) fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for row in &self.rows {
            if let Some(must) = row.must
                && row.ratio.median > must
            {
                missed.push(format!("{}: {:.2}, must {must:.2}", row.path, row.ratio.median));
            }
        }
        if self.load_ms.median > LOAD_MS_MUST {
            missed.push(format!("loading: {:.0} ms, must {LOAD_MS_MUST:.0}", self.load_ms.median));
        }
        for capacity in &self.capacity {
            if capacity.bytes_each > capacity.must() {
                let Capacity { path, bytes_each, .. } = capacity;
                missed.push(format!("bytes of {path}: {bytes_each:.1}, must {}", capacity.must()));
            }
        }
        missed.extend(namespaces::missed(&self.namespaces));
        missed
    }

    /// Prints the tables.
    pub(crate) fn print(&self) {
        let Self { machine, kernel, load_average, .. } = self;
        println!("{machine}, Linux {kernel}, load {load_average}\n");
        if !self.rows.is_empty() {
            self.print_programs();
        }
        if !self.namespaces.is_empty() {
            namespaces::print(&self.namespaces);
        }
    }

    fn print_programs(&self) {
        println!(
            "{:<26} {:>8} {:>6} {:>9} {:>7} {:>15} {:>6} {:>6}",
            "path", "floor ns", "line", "packet ns", "ratio", "least..most", "must", "aim"
        );
        for row in &self.rows {
            let Spread { median, least, most } = row.ratio;
            let bound =
                |bound: Option<f64>| bound.map_or("-".to_owned(), |bound| format!("{bound:.2}"));
            println!(
                "{:<26} {:>8.1} {:>6.2} {:>9.1} {median:>7.2} {:>15} {:>6} {:>6}  {}",
                row.path,
                row.floor_ns.median,
                row.line.median,
                row.program_ns.median,
                format!("{least:.2}..{most:.2}"),
                bound(row.must),
                bound(row.aim),
                row.mark(),
            );
        }
        println!("\n{:<12} {:>12} {:>9} {:>8}", "program", "instructions", "verified", "load ms");
        for Size { program, instructions, verified, load_ms, .. } in &self.programs {
            println!("{program:<12} {instructions:>12} {verified:>9} {load_ms:>8.1}");
        }
        let Spread { median, least, most } = self.load_ms;
        let mark = if median <= LOAD_MS_MUST { "ok" } else { "MISSED" };
        println!(
            "loading for a native interface and a service (XDP and TC): {median:.0} ms ({least:.0}..{most:.0}), must \
             {LOAD_MS_MUST:.0}  {mark}\n"
        );
        for capacity in &self.capacity {
            let Capacity { path, connections, failed, bytes_each, full_at } = capacity;
            let mark = if *bytes_each <= capacity.must() { "ok" } else { "MISSED" };
            println!(
                "v4 {path}: {connections} connections at a third of the slots, {failed} found no \
                 room, {bytes_each:.1} bytes each, must {}  {mark}; first without room at {:.0} %",
                capacity.must(),
                full_at * 100.0
            );
        }
    }
}

impl Judged {
    fn mark(&self) -> &'static str {
        let median = self.ratio.median;
        match (self.must, self.aim) {
            (_, Some(aim)) if median <= aim => "aim",
            (Some(must), _) if median <= must => "ok",
            (Some(_), _) => "MISSED",
            _ => "",
        }
    }
}

impl Capacity {
    fn must(&self) -> f64 {
        // A little more than the bytes of the slots: some connections may find no room.
        if self.path == "dr" { 48.0 } else { 96.0 }
    }
}

/// Turns the bounds into ratios to the floor.
fn judge(rows: Vec<Row>) -> Vec<Judged> {
    let measured: Vec<(String, f64)> =
        rows.iter().map(|row| (row.path.clone(), row.ratio.median)).collect();
    let ratio_of = |path: &str| measured.iter().find(|(name, _)| name == path).map(|(_, of)| *of);
    let judge = |row: Row| {
        let Row { path, floor_ns, line, program_ns, ratio, bound, v4 } = row;
        let unit = match &bound {
            Some(Bound { times_v4: true, .. }) => v4.as_deref().and_then(ratio_of),
            Some(_) => Some(1.0),
            None => None,
        };
        let bound = bound.zip(unit);
        let must = bound.map(|(bound, unit)| bound.must * unit);
        let aim = bound.map(|(bound, unit)| bound.aim * unit);
        Judged { path, floor_ns, line, program_ns, ratio, must, aim }
    };
    rows.into_iter().map(judge).collect()
}
