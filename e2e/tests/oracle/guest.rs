//! The kernel's side: this program again, in the oracle.

use std::env;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Tells the guest from the host; the script sets it.
const IN_GUEST: &str = "ORACLE";
/// What the guest reports begins its lines with this.
const REPORT: &str = "@@ ";
/// The script's exit status if the guest does not end, and the first of those that a shell gives for signals.
const HUNG: i32 = 124;
const KILLED: i32 = 129;

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

/// How often the guest is booted before its end is believed to be the test's.
const BOOTS: u32 = 3;
/// How long one boot may take, in seconds: all of them end before the test is ended.
const BOOT_MAX_S: u32 = 90;

/// Runs a test of this program in the guest; returns what it reports. User Mode Linux hangs now and then,
/// or ends a program by a signal, on a machine that is busy: then it is booted again. A test that fails
/// ends otherwise, and is not repeated.
pub(crate) fn run(test: &str) -> String {
    let mut output = boot(test);
    for _ in 1..BOOTS {
        match output.status.code() {
            Some(HUNG | KILLED..) => eprintln!("the guest: {}", output.status),
            _ => break,
        }
        output = boot(test);
    }
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "{stdout}\n{stderr}");
    eprintln!("{stderr}");
    let reported = stdout.lines().filter_map(|line| line.strip_prefix(REPORT));
    reported.map(|line| format!("{line}\n")).collect()
}

fn boot(test: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ipvs-oracle");
    Command::new(script)
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("ORACLE_MODULES", "ip_vs ipv6 veth")
        .env("ORACLE_TIMEOUT_S", BOOT_MAX_S.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
