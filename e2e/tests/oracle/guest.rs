//! The kernel's side: this program again, in the oracle.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// Tells the guest from the host; the script sets it.
const IN_GUEST: &str = "ORACLE";
/// What the guest reports begins its lines with this.
const REPORT: &str = "@@ ";

/// Tells whether this is the guest.
pub(crate) fn is_guest() -> bool {
    env::var_os(IN_GUEST).is_some()
}

/// Reports a text to the host.
pub(crate) fn report(text: &str) {
    // Behind the name of the test, which has no end of line.
    println!();
    text.lines().for_each(|line| println!("{REPORT}{line}"));
}

/// Runs a test of this program in the guest; returns what it reports.
pub(crate) fn run(test: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ipvs-oracle");
    let output = Command::new(script)
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("ORACLE_MODULES", "ip_vs ipv6 veth")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "{stdout}\n{stderr}");
    eprintln!("{stderr}");
    let reported = stdout.lines().filter_map(|line| line.strip_prefix(REPORT));
    reported.map(|line| format!("{line}\n")).collect()
}
