//! No new connections for a moment: what would open one is dropped, and its sender tries again. So what is told
//! of the tables is all that there is until another version's programs have taken over.
//!
//! Invariant: whoever has the hold has the folder's lock too. Who takes the lock and finds a hold knows that
//! its holder was killed, and ends it.

use std::fs::File;

use nix::fcntl::Flock;
use rlvs_datapath::abi::settings_flag;

use super::carry::{self, Told};
use super::error::Error;
use super::maps::Maps;
use super::stages::Group;
use super::{load, parameters, pins, sys};

/// A hold, which ends when this is dropped.
#[derive(Debug)]
pub struct Hold {
    maps: Maps,
    _lock: Flock<File>,
}

impl Hold {
    /// Begins one in the calling thread's network namespace. When this returns, no program is about to open a
    /// connection any more.
    ///
    /// # Errors
    /// Nothing is attached, or a missing capability.
    pub fn begin() -> Result<Self, Error> {
        let folder = pins::open()?.ok_or(Error::NotAttached)?;
        let lock = folder.lock()?;
        // The stage that drops them; without it they would be the stack's.
        load::ensure_group(Group::Guard)?;
        let maps = Maps::open(&folder)?;
        set(&maps, true)?;
        sys::wait_for_programs();
        Ok(Self { maps, _lock: lock })
    }

    /// Tells all connections.
    ///
    /// # Errors
    /// As [`carry::tell`].
    pub fn tell(&self) -> Result<Told, Error> {
        carry::tell_of(&self.maps)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(error) = set(&self.maps, false) {
            eprintln!("rlvs: new connections are dropped until the table is edited: {error}");
        }
    }
}

/// Ends the hold of somebody who was killed. The caller has the folder's lock.
pub(super) fn settle(maps: &Maps) -> Result<(), Error> {
    if maps.settings().flags & settings_flag::HELD == 0 { Ok(()) } else { set(maps, false) }
}

fn set(maps: &Maps, held: bool) -> Result<(), Error> {
    let mut settings = maps.settings();
    settings.flags &= !settings_flag::HELD;
    if held {
        settings.flags |= settings_flag::HELD;
    }
    parameters::settle(&mut settings);
    maps.settings.update(0, &settings)
}
