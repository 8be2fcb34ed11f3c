//! Runs of the real `ipvsadm` 1.31 on a real kernel 6.1: odd spellings, order of options, ranges,
//! lines to restore, and random command lines.

use serde::Deserialize;

use crate::machine::Machine;

#[derive(Deserialize)]
struct Recording {
    /// What `-S -n` writes once the command lines are carried out, and those lines.
    setups: Vec<(Option<String>, Vec<String>)>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    setup: usize,
    args: Vec<String>,
    #[serde(default)]
    stdin: String,
    status: u8,
    /// Absent for help, which is our own.
    stdout: Option<String>,
    stderr_empty: bool,
    /// What `-S -n` wrote afterwards, if something else than before.
    saved: Option<String>,
    /// What `-L --timeout` wrote afterwards, if not the defaults.
    timeouts: Option<String>,
}

/// The command lines that come out otherwise on purpose: upstream drops the third flag of a
/// scheduler with named flags when it saves, and may leave a `-b` that it cannot read back.
const DIFFERENT: [&str; 3] = [
    "-A -t 1.2.3.4:80 -s sh -b flag-3",
    "-A -t 1.2.3.4:80 -s sh -b flag-3,flag-1,flag-1",
    "-A -t 1.2.3.4:80 -s mh -b flag-1,flag-2,flag-3",
];

#[test]
fn every_observed_run_comes_out_the_same() {
    check(Machine::new, 1);
}

/// Replays one case of so many, each on a machine of its own.
pub(crate) fn check(machine: impl Fn() -> Machine, of: usize) {
    let text = include_str!("../golden/ipvsadm-observed.json");
    let recording: Recording = serde_json::from_str(text).unwrap();
    assert!(recording.cases.len() > 800);
    let mut different = Vec::new();
    for case in recording.cases.iter().step_by(of) {
        let differences = differences(case, &recording.setups[case.setup], &machine());
        if !differences.is_empty() {
            different.push((case.args.join(" "), differences));
        }
    }
    let names: Vec<_> = different.iter().map(|(line, _)| line.as_str()).collect();
    let played: Vec<_> =
        recording.cases.iter().step_by(of).map(|case| case.args.join(" ")).collect();
    let expected: Vec<_> =
        DIFFERENT.into_iter().filter(|line| played.iter().any(|one| one == line)).collect();
    assert_eq!(names, expected, "{different:#?}");
}

fn differences(
    case: &Case,
    setup: &(Option<String>, Vec<String>),
    machine: &Machine,
) -> Vec<String> {
    for line in &setup.1 {
        machine.ok(line);
    }
    let outcome = machine.run_words(&case.args, &case.stdin);
    let mut differences = Vec::new();
    if outcome.status != case.status {
        differences.push(format!("status {} for {}", outcome.status, case.status));
    }
    if case.stdout.as_ref().is_some_and(|stdout| outcome.stdout != *stdout) {
        differences.push(format!("printed {:?} for {:?}", outcome.stdout, case.stdout));
    }
    if outcome.stderr.is_empty() != case.stderr_empty {
        differences.push(format!("messages {:?}", outcome.stderr));
    }
    let saved = machine.ok("-S -n");
    if case.saved.as_ref().or(setup.0.as_ref()).is_some_and(|expected| saved != *expected) {
        differences.push(format!("left {saved:?} for {:?} or {:?}", case.saved, setup.0));
    }
    let timeouts = machine.ok("-L --timeout");
    let defaults = "Timeout (tcp tcpfin udp): 900 120 300\n";
    if timeouts != case.timeouts.as_deref().unwrap_or(defaults) {
        differences.push(format!("left {timeouts:?} for {:?}", case.timeouts));
    }
    differences
}
