//! CPU and memory of this process and of the machine, as `/proc` has them.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// This process.
#[derive(Debug, Default, Serialize)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_descriptors: u64,
    pub(super) max_descriptors: Option<u64>,
    pub(super) started_seconds: f64,
}

/// The machine.
#[derive(Debug, Default, Serialize)]
pub(super) struct Machine {
    /// Seconds of all its processors since it started, by what they did.
    pub(super) cpu_seconds: BTreeMap<&'static str, f64>,
    pub(super) processors: u64,
    pub(super) memory_bytes: u64,
    pub(super) available_bytes: u64,
    pub(super) load1: f64,
    /// When it started, in seconds since 1970.
    pub(super) started_seconds: f64,
}

/// What processors do, in the order of `/proc/stat`.
pub(super) const MODES: [&str; 8] =
    ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name, in brackets, may hold anything.
        let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        let field: Vec<u64> =
            rest.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        // proc(5) counts from 1, the process id; the field behind the name is the third.
        let at = |number: usize| field.get(number - 3).copied().unwrap_or(0);
        let started = at(22) as f64 / ticks() + started();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let max = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Self {
            cpu_seconds: (at(14) + at(15)) as f64 / ticks(),
            resident_bytes: at(24) * number(SysconfVar::PAGE_SIZE, 4096),
            virtual_bytes: at(23),
            threads: at(20),
            open_descriptors: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64),
            max_descriptors: max
                .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()),
            started_seconds: started,
        }
    }
}

/// Reads how the machine is.
pub(super) fn machine() -> Machine {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let seconds = all.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0.0) / ticks());
    let is_processor = |line: &&str| {
        let number = line.strip_prefix("cpu").and_then(|rest| rest.chars().next());
        number.is_some_and(|first| first.is_ascii_digit())
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
        kibibytes.unwrap_or(0_u64) * 1024
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Machine {
        cpu_seconds: MODES.into_iter().zip(seconds).collect(),
        processors: stat.lines().filter(is_processor).count() as u64,
        memory_bytes: bytes("MemTotal:"),
        available_bytes: bytes("MemAvailable:"),
        load1: load.split_ascii_whitespace().next().map_or(0.0, |word| word.parse().unwrap_or(0.0)),
        started_seconds: started(),
    }
}

/// Returns when the machine started, in seconds since 1970.
fn started() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|word| word.trim().parse().ok()).unwrap_or(0.0)
}

fn ticks() -> f64 {
    number(SysconfVar::CLK_TCK, 100) as f64
}

fn number(which: SysconfVar, default: u64) -> u64 {
    let found = sysconf(which).ok().flatten();
    found.and_then(|found| u64::try_from(found).ok()).filter(|found| *found > 0).unwrap_or(default)
}
