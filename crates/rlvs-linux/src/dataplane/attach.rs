//! Hangs the programs on interfaces, and takes them off again.
//!
//! XDP goes on an interface whose driver has it, TC on every interface besides: alone where XDP
//! cannot serve, behind XDP for the packets that XDP leaves to it because a neighbour has yet to be
//! resolved. On veth XDP serves only if the peer cooperates, so there TC is the rule.

use std::collections::BTreeMap;
use std::fs;

use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{ProgramError, SchedClassifier, Xdp, XdpMode};
use aya_obj::programs::XdpAttachType;
use rlvs_datapath::abi::{INTERFACE_BUCKETS, Interface, interface_flag, settings_flag};

use super::error::{EDITING, Error};
use super::load::{self, Sizes, TC, XDP};
use super::local;
use super::maps::{Maps, reason};
use super::pins::{self, Folder, LINK, Unfinished};
use super::stages::Body;
use super::sys;
use super::{capture, clsact, note, sysctls, upgrade};
use crate::route::{Link, Rtnetlink, XdpPrograms};

/// How packets of an interface reach the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// XDP in the driver, TC behind it.
    Native,
    /// TC alone.
    Tc,
    /// XDP in the stack, TC behind it: for tests of drivers, slower than TC.
    Generic,
}

impl Mode {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native XDP",
            Self::Tc => "TC",
            Self::Generic => "generic XDP",
        }
    }
}

/// What holds the TC program on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcHook {
    /// A pinned TCX link where the kernel has that, else a filter.
    #[default]
    Probed,
    /// A filter of the qdisc `clsact`, as on kernels before 6.6: for tests.
    Filter,
}

/// What to attach to, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The mode; chosen for each interface if `None`.
    pub mode: Option<Mode>,
    /// Names of interfaces; all that are up and have an address, but loopback, if empty.
    pub interfaces: Vec<String>,
    /// Serve virtual addresses that are not addresses of this host.
    pub any: bool,
    /// Sizes of the connection tables, if they are made now; those of most hosts if `None`.
    pub sizes: Option<Sizes>,
    /// What holds the TC program.
    pub tc_hook: TcHook,
}

/// An interface that programs hang on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name, or its number if it is gone.
    pub name: String,
    /// How.
    pub mode: Mode,
    /// Whether this call did it.
    pub new: bool,
}

/// Attaches the programs in the calling thread's network namespace, making its maps first if it
/// has none.
///
/// # Errors
/// A missing capability, a kernel without a feature, an interface that does not take the program.
pub fn attach(options: &Options) -> Result<Vec<Attached>, Error> {
    pins::collect(has_live_links)?;
    if let Some(folder) = pins::open()? {
        match attach_more(&folder, options) {
            // It has been detached meanwhile.
            Err(Error::NotAttached) => {}
            done => return done,
        }
    }
    let unfinished = Unfinished::begin()?;
    // Another command may have been faster to the lock.
    if let Some(folder) = pins::open()? {
        drop(unfinished);
        return attach_more(&folder, options);
    }
    load::load(&unfinished, options.sizes.unwrap_or_default(), bodies(options)?)?;
    let maps = Maps::open(unfinished.folder())?;
    // The folder is finished with its links: whoever finds it may rely on them. If this fails or
    // is killed, everything goes with the folder.
    let attached = attach_all(unfinished.folder(), &maps, options)?;
    unfinished.finish().map(|_| attached)
}

/// Returns how large the connection tables of the calling thread's network namespace are; `None` if nothing is
/// attached.
///
/// # Errors
/// A missing capability.
pub fn sizes() -> Result<Option<Sizes>, Error> {
    let Some(folder) = pins::open()? else { return Ok(None) };
    let settings = Maps::open(&folder)?.settings();
    let [connections4, connections6, wide] =
        [settings.connections4_mask, settings.connections6_mask, settings.wide_mask]
            .map(|mask| mask.saturating_add(1));
    Ok(Some(Sizes { connections4, connections6, wide }))
}

/// Returns the bodies that will be needed: XDP only where an interface may get it.
fn bodies(options: &Options) -> Result<&'static [Body], Error> {
    let links = Rtnetlink::open()?.links()?;
    let chosen = choose(&links, &options.interfaces)?;
    let xdp = chosen.iter().any(|link| xdp_mode(link, options.mode).is_some());
    Ok(if xdp { &Body::ALL } else { &[Body::Tc] })
}

fn attach_more(folder: &Folder, options: &Options) -> Result<Vec<Attached>, Error> {
    let _lock = folder.lock()?;
    upgrade::ensure(folder)?;
    attach_all(folder, &Maps::open(folder)?, options)
}

fn attach_all(folder: &Folder, maps: &Maps, options: &Options) -> Result<Vec<Attached>, Error> {
    sysctls::route_as_local(maps)?;
    if options.any {
        let mut settings = maps.settings();
        settings.flags |= settings_flag::ANY;
        maps.settings.update(0, &settings)?;
    }
    let links = Rtnetlink::open()?.links()?;
    forget_gone(folder, maps, &links)?;
    let chosen = choose(&links, &options.interfaces)?;
    let mut attached = Vec::new();
    for link in chosen {
        attached.push(attach_one(folder, maps, link, options)?);
    }
    local::hang(folder, maps, &links)?;
    Ok(attached)
}

fn choose<'a>(links: &'a [Link], names: &[String]) -> Result<Vec<&'a Link>, Error> {
    if names.is_empty() {
        return Ok(links.iter().filter(|link| serves(link)).collect());
    }
    let find = |name: &String| {
        let no =
            |reason: &str| Error::Attach { interface: name.clone(), reason: reason.to_owned() };
        let link = links.iter().find(|link| &link.name == name);
        let link =
            link.ok_or_else(|| no("there is no such interface in this network namespace"))?;
        if link.mac.is_none() || link.loopback {
            return Err(no("it has no Ethernet address, which the programs need"));
        }
        Ok(link)
    };
    names.iter().map(find).collect()
}

/// Returns whether an interface is one of those to attach to if none is named.
fn serves(link: &Link) -> bool {
    link.up && !link.loopback && link.mac.is_some() && !link.addresses.is_empty()
}

/// Forgets what is left of interfaces that are gone, for one that has such a number now is another.
fn forget_gone(folder: &Folder, maps: &Maps, links: &[Link]) -> Result<(), Error> {
    for name in folder.names()? {
        if pinned_link(&name).is_some_and(|(_, index)| !is_live(folder, &name, index)) {
            unpin(folder, &name)?;
        }
    }
    for bucket in 0..INTERFACE_BUCKETS {
        let Some(before) = maps.interfaces.read(bucket) else { continue };
        let mut after = before;
        for slot in &mut after.slots {
            if !links.iter().any(|link| link.index == slot.index) {
                *slot = Interface::default();
            }
        }
        if after != before {
            maps.interfaces.update(bucket, &after)?;
        }
    }
    Ok(())
}

fn attach_one(
    folder: &Folder,
    maps: &Maps,
    link: &Link,
    options: &Options,
) -> Result<Attached, Error> {
    let mode = options.mode;
    let is_there = |kind| folder.path(&link_name(kind, link.index)).exists();
    let has_tc = is_there(KIND_TC) || clsact::interfaces(folder)?.contains(&link.index);
    let before = match (is_there(KIND_XDP), has_tc) {
        (true, _) => Some(xdp_of(link)),
        (false, true) => Some(Mode::Tc),
        (false, false) => None,
    };
    if let Some(before) = before
        && mode.is_none_or(|mode| mode == before)
    {
        register(maps, link, before != Mode::Tc)?;
        return Ok(Attached { name: link.name.clone(), mode: before, new: false });
    }
    // TC first: XDP leaves packets to it, and it serves alone until XDP is there.
    register(maps, link, false)?;
    if !has_tc {
        attach_tc(folder, link, options.tc_hook)?;
    }
    let mode = match attach_xdp(folder, link, mode) {
        Ok(mode) => mode,
        Err(error) => {
            // As it was before. What failed first is what is told.
            if !has_tc {
                drop(detach_tc(folder, link.index));
            } else {
                drop(register(maps, link, before.is_some_and(|mode| mode != Mode::Tc)));
            }
            return Err(error);
        }
    };
    if mode == Mode::Tc && is_there(KIND_XDP) {
        unpin(folder, &link_name(KIND_XDP, link.index))?;
    }
    register(maps, link, mode != Mode::Tc)?;
    Ok(Attached { name: link.name.clone(), mode, new: true })
}

/// Returns how XDP is tried on an interface; `None` if not at all.
fn xdp_mode(link: &Link, mode: Option<Mode>) -> Option<XdpMode> {
    let is_veth = link.kind.as_deref() == Some("veth");
    match mode {
        Some(Mode::Tc) => None,
        None if is_veth => None,
        Some(Mode::Native) | None => Some(XdpMode::Driver),
        Some(Mode::Generic) => Some(XdpMode::Skb),
    }
}

/// Returns in which of its modes XDP hangs on an interface on which it does.
fn xdp_of(link: &Link) -> Mode {
    match link.xdp {
        XdpPrograms { native: None, generic: Some(_) } => Mode::Generic,
        _ => Mode::Native,
    }
}

/// Says why an interface has the mode that it has.
pub fn why(link: &Link, mode: Mode) -> &'static str {
    match (mode, link.kind.as_deref()) {
        _ if link.loopback => "for clients on this host",
        (Mode::Native, _) => "its driver has XDP",
        (Mode::Generic, _) => "as asked for; slower than TC, for tests",
        (Mode::Tc, Some("veth")) => {
            "on veth native XDP is right only if the other end is prepared for it"
        }
        (Mode::Tc, Some(_)) => "an interface of this kind has no native XDP, or TC was asked for",
        (Mode::Tc, None) => "its driver has no native XDP, or TC was asked for",
    }
}

/// Returns the XDP program of somebody else that an interface runs.
fn foreign_xdp(folder: &Folder, link: &Link) -> Option<u32> {
    let path = folder.path(&link_name(KIND_XDP, link.index));
    let own = sys::link(&path).ok().filter(|own| own.interface == link.index);
    let programs = [link.xdp.native, link.xdp.generic].into_iter().flatten();
    programs.into_iter().find(|id| own.is_none_or(|own| own.program != *id))
}

/// Attaches XDP as asked, or as the interface has it. Returns what came of it.
fn attach_xdp(folder: &Folder, link: &Link, mode: Option<Mode>) -> Result<Mode, Error> {
    let Some(xdp_mode) = xdp_mode(link, mode) else { return Ok(Mode::Tc) };
    load::ensure_body(folder, Body::Xdp)?;
    let failed = |error: &dyn std::error::Error| Error::Attach {
        interface: link.name.clone(),
        reason: explain(error, &link.name),
    };
    let mut program = Xdp::from_pin(folder.path(XDP), XdpAttachType::Interface)
        .map_err(|error| failed(&error))?;
    let id = match program.attach_to_if_index(link.index, xdp_mode) {
        Ok(id) => id,
        Err(error) if mode.is_none() && lacks_native(&error) => return Ok(Mode::Tc),
        Err(error) => return Err(failed(&error)),
    };
    let link_fd: FdLink = program
        .take_link(id)
        .map_err(|error| failed(&error))?
        .try_into()
        .map_err(|error: aya::programs::links::LinkError| failed(&error))?;
    pin(folder, link_fd, KIND_XDP, link)?;
    Ok(if xdp_mode == XdpMode::Skb { Mode::Generic } else { Mode::Native })
}

pub(super) fn attach_tc(folder: &Folder, link: &Link, hook: TcHook) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| Error::Attach {
        interface: link.name.clone(),
        reason: explain(error, &link.name),
    };
    let mut program = SchedClassifier::from_pin(folder.path(TC)).map_err(|error| failed(&error))?;
    if hook == TcHook::Filter {
        return clsact::attach(folder, link, &mut program);
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = match program.attach_with_options(&link.name, TcAttachType::Ingress, order) {
        Ok(id) => id,
        Err(error) if lacks_tcx(&error) => return clsact::attach(folder, link, &mut program),
        Err(error) => return Err(failed(&error)),
    };
    let link_fd: FdLink = program
        .take_link(id)
        .map_err(|error| failed(&error))?
        .try_into()
        .map_err(|error: aya::programs::links::LinkError| failed(&error))?;
    pin(folder, link_fd, KIND_TC, link)
}

fn detach_tc(folder: &Folder, index: u32) -> Result<(), Error> {
    let name = link_name(KIND_TC, index);
    if folder.path(&name).exists() {
        return unpin(folder, &name);
    }
    clsact::detach(folder, index)
}

pub(super) const KIND_XDP: &str = "xdp";
pub(super) const KIND_TC: &str = "tc";

pub(super) fn link_name(kind: &str, index: u32) -> String {
    format!("{LINK}{kind}_{index}")
}

/// Returns the kind and the interface that the name of a pinned link tells.
pub(super) fn pinned_link(name: &str) -> Option<(&str, u32)> {
    let (kind, index) = name.strip_prefix(LINK)?.split_once('_')?;
    Some((kind, index.parse().ok()?))
}

/// Returns whether a pinned link still hangs on the interface that its name tells.
pub(super) fn is_live(folder: &Folder, name: &str, index: u32) -> bool {
    sys::link_interface(&folder.path(name)).is_ok_and(|found| found == index)
}

pub(super) fn pin(folder: &Folder, fd: FdLink, kind: &str, link: &Link) -> Result<(), Error> {
    let name = link_name(kind, link.index);
    // What is left of an interface that had this number before.
    match fs::remove_file(folder.path(&name)) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Error::io(format!("removing {}", pins::shown(folder, &name)))(error));
        }
    }
    fd.pin(folder.path(&name)).map_err(|error| Error::Attach {
        interface: link.name.clone(),
        reason: format!("pinning its link: {}", reason(&error)),
    })?;
    Ok(())
}

fn unpin(folder: &Folder, name: &str) -> Result<(), Error> {
    fs::remove_file(folder.path(name))
        .map_err(Error::io(format!("removing {}", pins::shown(folder, name))))
}

fn lacks_native(error: &ProgramError) -> bool {
    number(error) == Some(libc::EOPNOTSUPP)
}

/// A kind of link that the kernel does not know is an invalid argument to it.
fn lacks_tcx(error: &ProgramError) -> bool {
    number(error) == Some(libc::EINVAL)
}

fn number(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

/// Says what is in the way and what to do about it.
fn explain(error: &dyn std::error::Error, name: &str) -> String {
    let text = reason(error);
    if text.contains("os error 16") || text.contains("os error 17") {
        format!(
            "another XDP program is attached to it already: `ip link show {name}` names it, \
             `ip link set {name} xdp off` removes it, `--mode tc` leaves it alone"
        )
    } else if text.contains("os error 95") {
        "its driver has no native XDP; use --mode tc".to_owned()
    } else if text.contains("os error 22") {
        format!("the driver does not take XDP as the interface is set up; use --mode tc: {text}")
    } else if text.contains("os error 1)") || text.contains("os error 13") {
        Error::refused("attaching", EDITING).map_or(text, |refused| refused.to_string())
    } else {
        text
    }
}

/// Tells the programs the interface's address.
pub(super) fn register(maps: &Maps, link: &Link, behind_xdp: bool) -> Result<(), Error> {
    let mac = match link.mac {
        Some(mac) => mac.0,
        None if link.loopback => [0; 6],
        None => return Ok(()),
    };
    let [a, b, c, d, e, f] = mac;
    let entry = Interface {
        index: link.index,
        flags: if behind_xdp { interface_flag::XDP } else { 0 },
        mac: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
    };
    let bucket = link.index & (INTERFACE_BUCKETS - 1);
    let mut interfaces = maps.interfaces.read(bucket).unwrap_or_default();
    let slots = &mut interfaces.slots;
    let place = slots
        .iter()
        .position(|slot| slot.index == link.index)
        .or_else(|| slots.iter().position(|slot| slot.index == 0))
        .ok_or_else(|| Error::Interfaces(link.name.clone()))?;
    if let Some(slot) = slots.get_mut(place) {
        *slot = entry;
    }
    maps.interfaces.update(bucket, &interfaces)
}

/// Takes the programs off every interface of the calling thread's network namespace and forgets
/// its table.
///
/// # Errors
/// Nothing is attached, or a missing capability.
pub fn detach() -> Result<(), Error> {
    // What a killed one has left.
    pins::collect(has_live_links)?;
    let folder = pins::open()?.ok_or(Error::NotAttached)?;
    let _lock = folder.lock()?;
    pins::remove_own()
}

/// Lists the interfaces that programs hang on.
///
/// # Errors
/// A missing capability.
pub fn attached(folder: &Folder) -> Result<Vec<Attached>, Error> {
    let links = Rtnetlink::open()?.links()?;
    let mut modes = BTreeMap::new();
    for name in folder.names()? {
        let Some((kind, index)) = pinned_link(&name) else { continue };
        let link = links.iter().find(|link| link.index == index);
        let mode = if kind == KIND_XDP { link.map_or(Mode::Native, xdp_of) } else { Mode::Tc };
        let entry = modes.entry((index, is_live(folder, &name, index))).or_insert(mode);
        if mode != Mode::Tc {
            *entry = mode;
        }
    }
    for index in clsact::interfaces(folder)? {
        modes.entry((index, true)).or_insert(Mode::Tc);
    }
    let name_of = |(index, is_live): (u32, bool)| {
        let link = links.iter().find(|link| is_live && link.index == index);
        link.map_or_else(|| format!("interface {index} (gone)"), |link| link.name.clone())
    };
    Ok(modes
        .into_iter()
        .map(|(which, mode)| Attached { name: name_of(which), mode, new: false })
        .collect())
}

/// An attached interface, as it is.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The interface.
    pub link: Link,
    /// How programs hang on it; `None` if none does.
    pub mode: Option<Mode>,
    /// Whether [`attach`] would choose it.
    pub serves: bool,
    /// The XDP program of somebody else on it.
    pub foreign_xdp: Option<u32>,
}

/// Lists all interfaces but loopback.
///
/// # Errors
/// A missing capability.
pub fn placed(folder: &Folder) -> Result<Vec<Placed>, Error> {
    let attached = attached(folder)?;
    let links = Rtnetlink::open()?.links()?;
    let place = |link: Link| {
        let here = attached.iter().find(|one| one.name == link.name);
        let foreign_xdp = foreign_xdp(folder, &link);
        Placed { mode: here.map(|one| one.mode), serves: serves(&link), foreign_xdp, link }
    };
    Ok(links.into_iter().filter(|link| !link.loopback).map(place).collect())
}

/// Returns the ids of the programs that pinned links run, by the links' names.
///
/// # Errors
/// A missing capability.
pub fn programs(folder: &Folder) -> Result<Vec<u32>, Error> {
    let names = folder.names()?.into_iter().filter(|name| name.starts_with(LINK));
    names
        .map(|name| {
            let asked = Error::io(format!("asking about {}", pins::shown(folder, &name)));
            sys::link(&folder.path(&name)).map(|link| link.program).map_err(asked)
        })
        .collect()
}

/// Lists the interfaces on which no program hangs, although [`attach`] would choose them.
///
/// # Errors
/// A missing capability.
pub fn unattached(folder: &Folder) -> Result<Vec<String>, Error> {
    let attached = attached(folder)?;
    let links = Rtnetlink::open()?.links()?;
    let names = links.into_iter().filter(serves).map(|link| link.name);
    Ok(names.filter(|name| attached.iter().all(|one| one.name != *name)).collect())
}

/// Returns whether any pinned link of a folder still hangs on an interface.
pub fn has_live_links(folder: &Folder) -> bool {
    let Ok(names) = folder.names() else { return true };
    names
        .iter()
        .filter(|name| name.starts_with(LINK))
        .any(|name| sys::link_interface(&folder.path(name)).is_ok_and(|index| index != 0))
}

/// Removes the folders of network namespaces that are gone, what is noted of synchronisation daemons that
/// were killed, and what is left of a capture in the calling thread's namespace.
///
/// # Errors
/// A missing capability.
pub fn collect() -> Result<usize, Error> {
    note::collect();
    if let Some(folder) = pins::open()? {
        capture::collect(&folder)?;
    }
    pins::collect(has_live_links)
}
