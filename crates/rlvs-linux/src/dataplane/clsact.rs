//! The TC program where the kernel has no TCX (before Linux 6.6): a filter on the interface's ingress.
//!
//! A filter is held by its interface, not by a pin. So a folder has a record of each,
//! `filter_INDEX_PRIORITY`, and `qdisc_INDEX` where the qdisc that holds it is ours too: further pins
//! of the program. Whether a filter is there is asked of the kernel.
//! Invariant: a record is written before what it tells of and removed after it, so that whoever is
//! killed in between leaves no filter without a record.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use aya::programs::{ProgramInfo, SchedClassifier};

use super::error::Error;
use super::load::TC;
use super::maps::reason;
use super::pins::{self, Folder};
use crate::netns;
use crate::route::{self, Link, Rtnetlink};

const FILTER: &str = "filter_";
const QDISC: &str = "qdisc_";
/// Lowest priority that is tried: the first that no filters of another kind have is taken.
const PRIORITY_LAST: u16 = 32;

fn filter_name(index: u32, priority: u16) -> String {
    format!("{FILTER}{index}_{priority}")
}

fn qdisc_name(index: u32) -> String {
    format!("{QDISC}{index}")
}

/// Returns interface and priority of every filter of which there is a record.
fn records(folder: &Folder) -> Result<Vec<(u32, u16)>, Error> {
    let parse = |name: String| {
        let (index, priority) = name.strip_prefix(FILTER)?.split_once('_')?;
        Some((index.parse().ok()?, priority.parse().ok()?))
    };
    Ok(folder.names()?.into_iter().filter_map(parse).collect())
}

/// Returns the numbers of the interfaces on which our filters are.
pub(super) fn interfaces(folder: &Folder) -> Result<Vec<u32>, Error> {
    let records = records(folder)?;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let own = ProgramInfo::from_pin(folder.path(TC))
        .map_err(|error| Error::Load { what: "the TC program".into(), reason: reason(&error) })?
        .id();
    let mut rtnetlink = Rtnetlink::open()?;
    let mut found = Vec::new();
    for (index, priority) in records {
        if rtnetlink.ingress_filter(index, priority)? == Some(own) {
            found.push(index);
        }
    }
    Ok(found)
}

/// Hangs the program on an interface. What others have there stays.
pub(super) fn attach(
    folder: &Folder,
    link: &Link,
    program: &mut SchedClassifier,
) -> Result<(), Error> {
    let done = attach_recorded(folder, link, program);
    if done.is_err() {
        // What failed first is what is told.
        drop(detach(folder, link.index));
    }
    done
}

fn attach_recorded(
    folder: &Folder,
    link: &Link,
    program: &mut SchedClassifier,
) -> Result<(), Error> {
    let index = link.index;
    let mut rtnetlink = Rtnetlink::open()?;
    let is_new = record(folder, &qdisc_name(index), program)?;
    let made = rtnetlink.add_clsact(index).map_err(|error| {
        refused(link, &error, "the qdisc clsact (CONFIG_NET_SCH_INGRESS, module sch_ingress)")
    })?;
    if is_new && !made {
        forget(folder, &qdisc_name(index))?;
    }
    for priority in 1..=PRIORITY_LAST {
        let name = filter_name(index, priority);
        record(folder, &name, program)?;
        let fd = program.fd().map_err(|error| attach_error(link, &error))?;
        match rtnetlink.set_ingress_filter(index, priority, fd.as_fd()) {
            Ok(()) => return Ok(()),
            // Filters of another kind have this priority.
            Err(error) if error.refusal() == Some(libc::EINVAL) && priority < PRIORITY_LAST => {
                forget(folder, &name)?;
            }
            Err(error) => {
                let feature = "BPF filters (CONFIG_NET_CLS_BPF, module cls_bpf)";
                return Err(refused(link, &error, feature));
            }
        }
    }
    Ok(())
}

/// Makes every filter run another program, and pins that in `next`, a folder in the first, under the
/// names of the records.
pub(super) fn exchange(
    folder: &Folder,
    next: &str,
    program: &mut SchedClassifier,
) -> Result<(), Error> {
    let failed = |name: &str, error: &dyn std::error::Error| Error::Load {
        what: pins::shown(folder, name),
        reason: reason(error),
    };
    let mut rtnetlink = Rtnetlink::open()?;
    for (index, priority) in records(folder)? {
        let fd = program.fd().map_err(|error| failed(TC, &error))?;
        rtnetlink.set_ingress_filter(index, priority, fd.as_fd())?;
    }
    let is_record = |name: &String| name.starts_with(FILTER) || name.starts_with(QDISC);
    for name in folder.names()?.into_iter().filter(is_record) {
        program
            .pin(folder.path(&format!("{next}/{name}")))
            .map_err(|error| failed(&name, &error))?;
    }
    Ok(())
}

/// Takes what hangs on an interface by the folder's records off again.
pub(super) fn detach(folder: &Folder, index: u32) -> Result<(), Error> {
    let mut rtnetlink = Rtnetlink::open()?;
    for (recorded, priority) in records(folder)? {
        if recorded == index {
            rtnetlink.delete_ingress_filter(index, priority)?;
            forget(folder, &filter_name(index, priority))?;
        }
    }
    let name = qdisc_name(index);
    if folder.path(&name).exists() {
        rtnetlink.delete_empty_clsact(index)?;
        forget(folder, &name)?;
    }
    Ok(())
}

/// Takes off everything that a folder has records of, in the namespace of that cookie. If that is
/// gone, its interfaces are, and their filters with them.
pub(super) fn detach_all(folder: &Folder, cookie: u64) -> Result<(), Error> {
    let indices = recorded_interfaces(folder)?;
    let work = || indices.iter().try_for_each(|&index| detach(folder, index));
    if indices.is_empty() {
        return Ok(());
    }
    netns::run_in(cookie, work).map_err(route::Error::from)?.unwrap_or(Ok(()))
}

fn recorded_interfaces(folder: &Folder) -> Result<Vec<u32>, Error> {
    let parse = |name: &String| match name.strip_prefix(QDISC) {
        Some(index) => index.parse().ok(),
        None => name.strip_prefix(FILTER)?.split_once('_')?.0.parse().ok(),
    };
    let mut indices: Vec<u32> = folder.names()?.iter().filter_map(parse).collect();
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// Writes a record. Returns whether it is new.
fn record(folder: &Folder, name: &str, program: &mut SchedClassifier) -> Result<bool, Error> {
    let path = folder.path(name);
    if path.exists() {
        return Ok(false);
    }
    program
        .pin(path)
        .map(|()| true)
        .map_err(|error| Error::Load { what: pins::shown(folder, name), reason: reason(&error) })
}

fn forget(folder: &Folder, name: &str) -> Result<(), Error> {
    match fs::remove_file(folder.path(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", pins::shown(folder, name)))(error))
        }
        _ => Ok(()),
    }
}

fn refused(link: &Link, error: &route::Error, feature: &str) -> Error {
    if error.refusal() != Some(libc::ENOENT) {
        return attach_error(link, error);
    }
    Error::Attach {
        interface: link.name.clone(),
        reason: format!(
            "this kernel has neither TCX (since Linux 6.6) nor {feature}: {}",
            reason(error)
        ),
    }
}

fn attach_error(link: &Link, error: &dyn std::error::Error) -> Error {
    Error::Attach { interface: link.name.clone(), reason: reason(error) }
}
