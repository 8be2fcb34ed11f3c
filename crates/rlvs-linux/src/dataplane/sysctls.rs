//! Settings of the loopback device that the programs need, with a record of those that were changed in the
//! namespace's own settings, so that they are put back.
//!
//! Invariant: a record is written before what it tells of and cleared after it is put back, so that whoever is
//! killed in between leaves no change without a record.

use rlvs_datapath::abi::{Settings, settings_flag};

use super::error::Error;
use super::maps::{Mapped, Maps};
use super::pins::{self, Folder};
use crate::{netns, route, sysctl};

/// The loopback device forwards. The programs ask the routing table as if packets came from there, so that
/// the answer is that for the host's own packets, as with the kernel's IPVS, and whether forwarding is
/// enabled elsewhere does not matter.
const FORWARDING: [(&str, u32); 2] = [
    ("net/ipv4/conf/lo/forwarding", settings_flag::CHANGED_FORWARDING4),
    ("net/ipv6/conf/lo/forwarding", settings_flag::CHANGED_FORWARDING6),
];
/// Answers come in by the loopback device from an address of this host, which the kernel takes for
/// forged unless told otherwise.
const ACCEPT_LOCAL: (&str, u32) =
    ("net/ipv4/conf/lo/accept_local", settings_flag::CHANGED_ACCEPT_LOCAL);

/// Has the routing table answer as for the host's own packets.
pub(super) fn route_as_local(maps: &Maps) -> Result<(), Error> {
    for (path, flag) in FORWARDING {
        // Without IPv6 in the kernel there is no such file, and nothing to forward.
        let Ok(value) = sysctl::read(path) else { continue };
        switch_on(maps, path, flag, &value)?;
    }
    Ok(())
}

/// Has the kernel take packets from its own addresses that come in by the loopback device.
pub(super) fn accept_own_addresses(maps: &Maps) -> Result<(), Error> {
    let (path, flag) = ACCEPT_LOCAL;
    switch_on(maps, path, flag, &sysctl::read(path)?)
}

fn switch_on(maps: &Maps, path: &str, flag: u32, value: &str) -> Result<(), Error> {
    if value.trim() != "0" {
        return Ok(());
    }
    let mut settings = maps.settings();
    settings.flags |= flag;
    maps.settings.update(0, &settings)?;
    Ok(sysctl::write(path, "1")?)
}

/// Puts back what a folder has a record of, in the namespace of that cookie. One that is gone has nothing to
/// be put back, and records of another layout are not read.
pub(super) fn restore(folder: &Folder, cookie: u64) -> Result<(), Error> {
    let work = || {
        // It may be killed before it had any.
        let Ok(map) = Mapped::<Settings>::open(folder, "settings") else { return Ok(()) };
        let mut settings = map.read(0).unwrap_or_default();
        if settings.layout != pins::layout() {
            return Ok(());
        }
        for (path, flag) in FORWARDING.into_iter().chain([ACCEPT_LOCAL]) {
            if settings.flags & flag != 0 {
                sysctl::write(path, "0")?;
                settings.flags &= !flag;
                map.update(0, &settings)?;
            }
        }
        Ok(())
    };
    netns::run_in(cookie, work).map_err(route::Error::from)?.unwrap_or(Ok(()))
}
