//! When each master last spoke, kept where it outlives this process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{AccessFlags, access};
use rlvs_control::model::Family;
use rlvs_control::vrrp::config::InstanceConfig;
use rlvs_wire::vrrp::RESIGN;

use crate::netns;

/// Where the files are; like the addresses, they do not outlive a restart of the host.
const FOLDER: &str = "/run/rlvs/vrrp";

/// Removes what masters have noted in every network namespace.
pub(super) fn forget_all() -> io::Result<()> {
    match fs::remove_dir_all(FOLDER) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Files of eight bytes each: the monotonic time of the last advertisement.
///
/// Without them, as where /run may not be written, nothing is known of earlier processes.
#[derive(Debug, Default)]
pub(super) struct Memory {
    namespace: Option<u64>,
    files: BTreeMap<PathBuf, File>,
}

impl Memory {
    pub(super) fn open() -> Self {
        let namespace = netns::cookie().ok().filter(|_| fs::create_dir_all(FOLDER).is_ok());
        Self { namespace, files: BTreeMap::new() }
    }

    /// Returns why nothing can be noted for the next process.
    pub(super) fn hindrance() -> Option<String> {
        let error = access(FOLDER, AccessFlags::W_OK).err()?;
        Some(format!(
            "{FOLDER} cannot be written: who is killed and comes back begins as a backup: {error}"
        ))
    }

    /// Takes note of a packet that was sent.
    pub(super) fn note(&mut self, interface: &str, family: Family, packet: &[u8]) {
        let header = if family == Family::V4 { 20 } else { 40 };
        let Some(&[_, vrid, priority, ..]) = packet.get(header..) else { return };
        let Some(path) = self.path(interface, family, vrid).filter(|_| priority != RESIGN) else {
            return;
        };
        if !self.files.contains_key(&path)
            && let Ok(file) = File::create(&path)
        {
            self.files.insert(path.clone(), file);
        }
        if let Some(file) = self.files.get(&path) {
            // Not known is what it is then.
            file.write_all_at(&now().as_nanos().to_le_bytes()[..8], 0).ok();
        }
    }

    /// Returns how long ago the virtual router last spoke, if it did not end in order.
    pub(super) fn silence(&self, config: &InstanceConfig) -> Option<Duration> {
        let bytes = fs::read(self.path_of(config)?).ok()?;
        let spoke = u64::from_le_bytes(bytes.try_into().ok()?);
        now().checked_sub(Duration::from_nanos(spoke))
    }

    /// Forgets a virtual router that is not master.
    pub(super) fn forget(&mut self, config: &InstanceConfig) {
        if let Some(path) = self.path_of(config) {
            self.files.remove(&path);
            fs::remove_file(path).ok();
        }
    }

    fn path_of(&self, config: &InstanceConfig) -> Option<PathBuf> {
        self.path(config.outward(), config.family, config.vrid)
    }

    fn path(&self, interface: &str, family: Family, vrid: u8) -> Option<PathBuf> {
        let family = if family == Family::V4 { 4 } else { 6 };
        let namespace = self.namespace?;
        Some(PathBuf::from(format!("{FOLDER}/{namespace}-{interface}-{family}-{vrid}")))
    }
}

/// Returns the time since the host started.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
