//! What tests may leave behind on the machine, and must not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::run;

/// What is there at one moment: network namespaces, pins, processes of ours.
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the machine.
    pub(crate) fn take() -> Result<Self> {
        let mut found = BTreeSet::new();
        for name in names_in(Path::new("/run/netns")) {
            found.insert(format!("network namespace {name}"));
        }
        let pins = Path::new("/run/rlvs/bpf");
        // Files in the root of a BPF file system are the kernel's own (`bpf_preload`): we pin in folders.
        for name in names_in(pins).filter(|name| pins.join(name).is_dir()) {
            found.insert(format!("pins /run/rlvs/bpf/{name}"));
        }
        let target = run::target()?;
        for process in names_in(Path::new("/proc")) {
            let Ok(program) = fs::read_link(format!("/proc/{process}/exe")) else { continue };
            if program.starts_with(&target) {
                found.insert(format!("process {process} ({})", program.display()));
            }
        }
        Ok(Self(found))
    }

    /// Demands that nothing is there that was not there at this moment.
    ///
    /// # Errors
    /// Names everything that was left behind.
    pub(crate) fn compare_with_now(&self) -> Result<()> {
        let now = Self::take()?;
        let left: Vec<&str> = now.0.difference(&self.0).map(String::as_str).collect();
        if left.is_empty() {
            return Ok(());
        }
        bail!("the tests left behind: {}", left.join(", "));
    }
}

/// The names in a folder; none if it is not there.
fn names_in(folder: &Path) -> impl Iterator<Item = String> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
