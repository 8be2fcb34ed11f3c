//! Puts maps and programs of this layout in the place of those of another one.
//!
//! A folder is made beside the one in use, and filled by whoever can: the words of [`carry`](super::carry)
//! do not depend on a layout. It pins the same links, and once it is whole each link goes over in one step.
//! Names of folders, links and programs are the same in every layout.
//! Invariant: until the new folder is finished the old one is all that counts; from then on links may run
//! either's programs, and neither folder goes while one does.

use aya::programs::ProgramInfo;

use super::carry::Made;
use super::error::Error;
use super::load;
use super::maps::Maps;
use super::pins::{self, Folder, Unfinished};
use super::stages::Body;
use super::{attach, capture, sys};
use crate::route::Rtnetlink;

/// Returns the layout of the maps in the calling thread's network namespace if it is not this program's.
///
/// # Errors
/// A missing capability.
pub fn other_layout() -> Result<Option<u32>, Error> {
    Ok(pins::other()?.map(|(_, found)| found))
}

/// Makes maps as those of another layout were made, has them filled, and lets all interfaces go over to
/// them. `fill` works on the new maps as if nothing else was there; what it runs as other processes sees
/// the old ones. Whoever is killed leaves packets balanced, and the next one goes on.
///
/// # Errors
/// A missing capability, a capture that runs, what `fill` said, or what the kernel did not take; as long
/// as no interface has gone over all is as it was. What `fill` returns is kept until all have.
pub fn succeed<T>(made: &Made, fill: impl FnOnce() -> Result<T, String>) -> Result<(), Error> {
    let Some((old, found)) = pins::other()? else { return Err(Error::NotAttached) };
    let refused = |reason: String| Error::Succession { found, reason };
    if old.names()?.iter().any(|name| name.starts_with("filter_")) {
        let reason = "programs hang on filters, as before Linux 6.6; save, detach, attach, restore";
        return Err(refused(reason.to_owned()));
    }
    if !capture::settle(&old)? {
        return Err(Error::Looking);
    }
    let unfinished = Unfinished::begin()?;
    let bodies: Vec<Body> =
        Body::ALL.into_iter().filter(|body| old.path(body.pin()).exists()).collect();
    load::load(&unfinished, made.sizes(), &bodies)?;
    let folder = unfinished.folder();
    let maps = Maps::open(folder)?;
    made.put(&maps)?;
    share_links(&old, folder, &maps)?;
    let _kept = pins::filling(fill).map_err(refused)?;
    let folder = unfinished.finish()?;
    let Some(root) = pins::root()? else { return Err(Error::NotAttached) };
    let _lock = root.lock()?;
    go_over(&old, &folder)
}

/// Goes on where somebody was killed whose folder was finished. Returns whether there was such a one.
/// A finished folder to which nothing has gone over is removed: what is in it may be old.
///
/// # Errors
/// A missing capability, or what the kernel did not take.
pub fn resume() -> Result<bool, Error> {
    let (Some((old, _)), Some(new)) = (pins::other()?, pins::open_own()?) else { return Ok(false) };
    let Some(root) = pins::root()? else { return Ok(false) };
    let _lock = root.lock()?;
    let mut begun = false;
    for (place, name, _) in capture::placed(&new)? {
        let own = ProgramInfo::from_pin(new.path(place.pinned())).map(|program| program.id());
        let runs = sys::link(&new.path(&name)).map(|link| link.program);
        begun |= matches!((own, runs), (Ok(own), Ok(runs)) if own == runs);
    }
    if !begun {
        pins::remove_folder(&new)?;
        return Ok(false);
    }
    go_over(&old, &new).map(|()| true)
}

/// Pins the links of a folder in another one too, and tells that one's programs of the interfaces.
fn share_links(old: &Folder, new: &Folder, maps: &Maps) -> Result<(), Error> {
    let links = Rtnetlink::open()?.links()?;
    for (_, name, index) in capture::placed(old)? {
        if !attach::is_live(old, &name, index) {
            continue;
        }
        let shown = pins::shown(new, &name);
        sys::pin_again(&old.path(&name), &new.path(&name))
            .map_err(Error::io(format!("pinning {shown}")))?;
        if let Some(link) = links.iter().find(|link| link.index == index) {
            let has_xdp = old.path(&attach::link_name(attach::KIND_XDP, index)).exists();
            attach::register(maps, link, has_xdp)?;
        }
    }
    Ok(())
}

fn go_over(old: &Folder, new: &Folder) -> Result<(), Error> {
    for (place, name, index) in capture::placed(new)? {
        if attach::is_live(new, &name, index) {
            capture::hang_pinned(new, place, &name, new.path(place.pinned()))?;
        }
    }
    // A packet may still be on its way through the old programs.
    sys::wait_for_programs();
    pins::remove_folder(old)
}
