//! Runs of the real `ipvsadm` on a real kernel, replayed against the table in memory.

use rlvs::ipvsadm::{run_restore, run_save};
use serde::Deserialize;

use crate::machine::{Machine, Outcome};

#[derive(Deserialize)]
struct Case {
    name: String,
    setup: Vec<String>,
    cmd: String,
    rc: u8,
    stdout: Vec<String>,
    stderr_empty: bool,
    /// What `-S -n` wrote afterwards; in runs about time-outs and daemons, what lists of those did.
    saved_after: Option<Vec<String>>,
}

/// The cases that must come out otherwise with our tables, and why. Any other difference
/// fails, and so does a case of this list that has none.
pub(crate) const DIFFERENT: [(&str, &str); 3] = [
    ("daemon-both-list", "a table knows no synchronisation daemons yet"),
    ("daemon-dup", "a table knows no synchronisation daemons yet"),
    ("daemon-master-list", "a table knows no synchronisation daemons yet"),
];

#[test]
fn every_recorded_run_comes_out_the_same() {
    check(Machine::new, &DIFFERENT.map(|(name, _)| name));
}

/// Replays every case on a machine of its own, and demands that those named come out otherwise
/// and no others.
pub(crate) fn check(machine: impl Fn() -> Machine, expected: &[&str]) {
    let text = include_str!("../golden/ipvsadm.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert_eq!(cases.len(), 141);
    let different: Vec<_> = cases
        .iter()
        .filter_map(|case| Some((&case.name, differences(case, &machine())?)))
        .collect();
    let names: Vec<_> = different.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, expected, "{different:#?}");
}

/// Replays a case and returns what came out otherwise than recorded.
fn differences(case: &Case, machine: &Machine) -> Option<String> {
    for line in &case.setup {
        machine.run(line.strip_prefix("ipvsadm").unwrap());
    }
    let Some(outcome) = play(machine, &case.cmd) else {
        return Some("not a run of ipvsadm".to_owned());
    };
    let mut differences = String::new();
    if outcome.status != case.rc {
        differences.push_str(&format!("status {} for {}; ", outcome.status, case.rc));
    }
    if outcome.stdout != lines(&case.stdout) {
        differences.push_str(&format!("printed {:?} for {:?}; ", outcome.stdout, case.stdout));
    }
    if outcome.stderr.is_empty() != case.stderr_empty {
        differences.push_str(&format!("messages {:?}; ", outcome.stderr));
    }
    if let Some(saved_after) = &case.saved_after {
        let about_services = !saved_after.iter().any(|line| line.starts_with("Timeout"));
        let saved = match about_services {
            true => machine.ok("-S -n"),
            false => machine.ok("-L --timeout") + &machine.ok("-L --daemon"),
        };
        if saved != lines(saved_after) {
            differences.push_str(&format!("left {saved:?} for {saved_after:?}; "));
        }
    }
    (!differences.is_empty()).then_some(differences)
}

/// Runs a recorded command: plain, with printed lines piped into it, or with empty input; or those of
/// the scripts that save and restore.
fn play(machine: &Machine, command: &str) -> Option<Outcome> {
    if command == "ipvsadm-save -n" {
        return Some(machine.run_face(run_save, &["-n"], ""));
    }
    if command.starts_with("ipvsadm-save -n > /tmp/s; ipvsadm -C; ipvsadm-restore < /tmp/s;") {
        let saved = machine.run_face(run_save, &["-n"], "");
        machine.ok("-C");
        let restored = machine.run_face(run_restore, &[""; 0], &saved.stdout);
        let same = machine.run_face(run_save, &["-n"], "") == saved;
        let stdout = if same { "same\n".to_owned() } else { String::new() };
        return Some(Outcome { stdout, ..restored });
    }
    if let Some(piped) = command.strip_prefix("printf \"%s\\n\" ") {
        let (printed, reader) = piped.rsplit_once(" | ipvsadm ")?;
        let printed = printed.trim_matches('"').split("\" \"");
        let stdin: String = printed.map(|line| format!("{line}\n")).collect();
        return Some(machine.run_words(&[reader], &stdin));
    }
    let line = command.strip_prefix("ipvsadm")?.strip_suffix(" < /dev/null");
    let line = line.or_else(|| command.strip_prefix("ipvsadm"))?;
    let plain = line.is_empty() || line.starts_with(' ');
    (plain && !line.contains([';', '|', '>', '<', '"'])).then(|| machine.run(line))
}

fn lines(list: &[String]) -> String {
    list.iter().map(|line| format!("{line}\n")).collect()
}
