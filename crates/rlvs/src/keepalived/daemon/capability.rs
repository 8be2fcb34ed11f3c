//! What the kernel lets this process do.

use std::fs;

/// Capabilities that the daemon needs, with what for.
const NEEDED: &[(u32, &str, &str)] = &[
    (12, "CAP_NET_ADMIN", "addresses and the virtual-server table"),
    (13, "CAP_NET_RAW", "advertisements"),
];

/// Returns those that are missing.
pub(super) fn missing() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Vec::new();
    };
    let lacks = |bit: &u32| set & (1 << bit) == 0;
    let missing = NEEDED.iter().filter(|(bit, ..)| lacks(bit));
    missing.map(|(_, name, purpose)| format!("{name} is missing, needed for {purpose}")).collect()
}
