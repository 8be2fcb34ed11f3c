//! Puts this program's object in the place of the one that is attached, while packets flow.
//!
//! The new programs are made over the same maps; only the arrays of their stages are their own. Then
//! each link goes over in one step. Until it does it runs the old programs whole, and as both keep
//! connections in the same maps, it does not matter which of two interfaces goes over first. The
//! sweep's timer gets the new programs' callback.
//!
//! A record in the folder says which object its programs are from. Whoever is to add programs to a
//! folder of another object exchanges all first, since objects number their stages as they please.
//! Invariant: there is no record while links go over, and what a link runs stays pinned, so that
//! whoever is killed leaves packets balanced, and the next one does it again.

use std::fs;
use std::io;
use std::sync::OnceLock;

use aya::programs::SchedClassifier;

use super::error::Error;
use super::load::{self, TC};
use super::maps::reason;
use super::pins::{self, Folder};
use super::{attach, capture, clsact, sys};
use crate::netns;

/// A symbolic link that leads nowhere: its target is the object's digest.
const RECORD: &str = "object";
/// Beginning of the names of folders in which programs wait to take over.
const NEXT: &str = "next-";

/// What came of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgraded {
    /// Its programs were this program's already.
    Unchanged,
    /// They are now.
    Exchanged,
}

/// A network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The calling thread's.
    Own,
    /// That of a cookie.
    Other(u64),
}

/// What came of it in one of several network namespaces.
#[derive(Debug)]
pub struct Done {
    /// Which.
    pub whose: Whose,
    /// What came of it.
    pub outcome: Result<Upgraded, Error>,
}

/// Exchanges the programs of the calling thread's network namespace; `None` if nothing is attached.
///
/// # Errors
/// A missing capability, pins of another layout, a capture that runs, or what the kernel did not take;
/// then all is as it was.
pub fn upgrade() -> Result<Option<Upgraded>, Error> {
    let Some(folder) = pins::open()? else { return Ok(None) };
    let _lock = match folder.lock() {
        // It has been detached meanwhile.
        Err(Error::NotAttached) => return Ok(None),
        lock => lock?,
    };
    let exchanged = ensure(&folder)?;
    Ok(Some(if exchanged { Upgraded::Exchanged } else { Upgraded::Unchanged }))
}

/// As `upgrade` does, in every network namespace in which something is attached.
///
/// # Errors
/// The pins cannot be listed.
pub fn in_all(
    upgrade: impl Fn() -> Result<Option<Upgraded>, Error> + Send + Sync,
) -> Result<Vec<Done>, Error> {
    pins::collect(attach::has_live_links)?;
    let own = pins::own_cookie()?;
    let mut all = Vec::new();
    for cookie in pins::cookies()? {
        let outcome = if cookie == own {
            upgrade()
        } else {
            let gone =
                || Error::io("looking for its process or name")(io::ErrorKind::NotFound.into());
            let run = |namespace: netns::Namespace| {
                namespace.run(&upgrade).map_err(crate::route::Error::from)?
            };
            netns::of_cookie(cookie).ok_or_else(gone).and_then(run)
        };
        // It has been detached meanwhile if there is none.
        let whose = if cookie == own { Whose::Own } else { Whose::Other(cookie) };
        all.extend(outcome.transpose().map(|outcome| Done { whose, outcome }));
    }
    Ok(all)
}

/// Exchanges a folder's programs if they are another object's. Returns whether they were. The caller
/// holds its lock.
pub(super) fn ensure(folder: &Folder) -> Result<bool, Error> {
    if is_current(folder)? {
        return Ok(false);
    }
    if !capture::settle(folder)? {
        return Err(Error::Looking);
    }
    exchange(folder).map(|()| true)
}

fn exchange(folder: &Folder) -> Result<(), Error> {
    let next = begin(folder)?;
    if let Err(error) = load::load_beside(folder, &next) {
        // What failed first is what is told.
        drop(remove(folder, &next));
        return Err(error);
    }
    forget(folder)?;
    go_over(folder, &next)?;
    // A packet may still be on its way through the old programs.
    sys::wait_for_programs();
    for name in listed(folder, &next)? {
        let from = folder.path(&format!("{next}/{name}"));
        fs::rename(from, folder.path(&name))
            .map_err(Error::io(format!("renaming {}", pins::shown(folder, &next))))?;
    }
    record(folder)?;
    for name in folder.names()?.iter().filter(|name| name.starts_with(NEXT)) {
        remove(folder, name)?;
    }
    Ok(())
}

/// Makes the folder in which programs wait. What is left of one who was killed may hang on links, and
/// stays until these have gone over.
fn begin(folder: &Folder) -> Result<String, Error> {
    let mut number = 0_u32;
    loop {
        let name = format!("{NEXT}{number}");
        match fs::create_dir(folder.path(&name)) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => {
                return Err(Error::io(format!("creating {}", pins::shown(folder, &name)))(error));
            }
        }
    }
}

/// Makes everything that hangs on interfaces run the programs that wait.
fn go_over(folder: &Folder, next: &str) -> Result<(), Error> {
    for (place, name, index) in capture::placed(folder)? {
        if attach::is_live(folder, &name, index) {
            let program = folder.path(&format!("{next}/{}", place.pinned()));
            capture::hang_pinned(folder, place, &name, program)?;
        }
    }
    let tc = format!("{next}/{TC}");
    let mut program = SchedClassifier::from_pin(folder.path(&tc))
        .map_err(|error| Error::Load { what: pins::shown(folder, &tc), reason: reason(&error) })?;
    clsact::exchange(folder, next, &mut program)
}

fn listed(folder: &Folder, next: &str) -> Result<Vec<String>, Error> {
    let failed = |error| Error::io(format!("listing {}", pins::shown(folder, next)))(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path(next)).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn remove(folder: &Folder, next: &str) -> Result<(), Error> {
    let failed = |error| Error::io(format!("removing {}", pins::shown(folder, next)))(error);
    for name in listed(folder, next)? {
        fs::remove_file(folder.path(&format!("{next}/{name}"))).map_err(failed)?;
    }
    fs::remove_dir(folder.path(next)).map_err(failed)
}

/// Writes down that a folder's programs are this program's.
pub(super) fn record(folder: &Folder) -> Result<(), Error> {
    forget(folder)?;
    std::os::unix::fs::symlink(digest()?, folder.path(RECORD))
        .map_err(Error::io(format!("writing {}", pins::shown(folder, RECORD))))
}

fn forget(folder: &Folder) -> Result<(), Error> {
    match fs::remove_file(folder.path(RECORD)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", pins::shown(folder, RECORD)))(error))
        }
        _ => Ok(()),
    }
}

/// Returns whether a folder's programs are this program's.
///
/// # Errors
/// A missing capability.
pub fn is_current(folder: &Folder) -> Result<bool, Error> {
    match fs::read_link(folder.path(RECORD)) {
        Ok(found) => Ok(found.as_os_str() == digest()?.as_str()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("reading {}", pins::shown(folder, RECORD)))(error)),
    }
}

/// Returns what tells this program's object from others: a hash (FNV-1a).
fn digest() -> Result<&'static String, Error> {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    static DIGEST: OnceLock<String> = OnceLock::new();
    if let Some(digest) = DIGEST.get() {
        return Ok(digest);
    }
    let object = load::object()?;
    let hash =
        object.iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    Ok(DIGEST.get_or_init(|| format!("{hash:016x}")))
}
