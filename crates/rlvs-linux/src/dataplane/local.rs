//! Hooks and settings for connections that begin or end on this host.
//!
//! They are put there when a destination first needs them and stay until everything is detached: the
//! program for egress on every interface that balances, for what a NAT destination on this host
//! answers; the TC program on the loopback device, for clients on this host, which only NAT can serve.

use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use rlvs_control::model::{Destination, ForwardingMethod};
use rlvs_datapath::abi::{Settings, destination_flag, settings_flag};
use rlvs_datapath::stage::Group;

use super::attach::{self, KIND_TC, TcHook};
use super::error::Error;
use super::load::{self, OUT};
use super::maps::{Maps, reason};
use super::pins::{self, Folder};
use crate::route::{Link, Rtnetlink};
use crate::sysctl;

pub(super) const KIND_OUT: &str = "out";
/// Answers come in by the loopback device from an address of this host, which the kernel takes for
/// forged unless told otherwise.
const ACCEPT_LOCAL: &str = "net/ipv4/conf/lo/accept_local";

/// Puts the hooks there that a destination needs.
pub(super) fn prepare(maps: &Maps, to: &Destination, place: u8) -> Result<(), Error> {
    match to.method {
        ForwardingMethod::Masquerade => {}
        // What is too long for it goes through the stack.
        ForwardingMethod::Tunnel(_) if to.id.address.is_ipv4() => {
            return accept_own_addresses(maps);
        }
        _ => return Ok(()),
    }
    let mut settings = maps.settings();
    let before = settings.flags;
    settings.flags |= settings_flag::LOCAL_CLIENTS;
    if place & destination_flag::LOCAL != 0 {
        settings.flags |= settings_flag::LOCAL_SERVERS;
    }
    if settings.flags == before {
        return Ok(());
    }
    let Some(folder) = pins::open()? else { return Ok(()) };
    maps.settings.update(0, &settings)?;
    hang(&folder, maps, &Rtnetlink::open()?.links()?)
}

/// Returns the groups of stages without which what the settings ask for is left to the stack.
pub(super) fn groups(settings: &Settings) -> impl Iterator<Item = Group> {
    let flags = settings.flags;
    let here = (flags & settings_flag::LOCAL_CLIENTS != 0).then_some(Group::Here);
    let said = (flags & settings_flag::LOCAL_SERVERS != 0).then_some(Group::Said);
    here.into_iter().chain(said)
}

/// Puts the hooks there that the settings ask for.
pub(super) fn hang(folder: &Folder, maps: &Maps, links: &[Link]) -> Result<(), Error> {
    let flags = maps.settings().flags;
    let has_live =
        |kind: &str, index: u32| attach::is_live(folder, &attach::link_name(kind, index), index);
    if flags & settings_flag::LOCAL_SERVERS != 0 {
        let attached = attach::attached(folder)?;
        for link in links.iter().filter(|link| !link.loopback) {
            let serves = attached.iter().any(|one| one.name == link.name);
            if serves && !has_live(KIND_OUT, link.index) {
                attach_out(folder, link)?;
            }
        }
    }
    if flags & settings_flag::LOCAL_CLIENTS == 0 {
        return Ok(());
    }
    let Some(loopback) = links.iter().find(|link| link.loopback) else { return Ok(()) };
    if !has_live(KIND_TC, loopback.index)
        && !super::clsact::interfaces(folder)?.contains(&loopback.index)
    {
        attach::register(maps, loopback, false)?;
        attach::attach_tc(folder, loopback, TcHook::Probed)?;
    }
    accept_own_addresses(maps)
}

fn attach_out(folder: &Folder, link: &Link) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| Error::Attach {
        interface: link.name.clone(),
        reason: format!(
            "the answers of a real server on this host leave by TCX (since Linux 6.6): {}",
            reason(error)
        ),
    };
    load::ensure_out(folder)?;
    let mut program =
        SchedClassifier::from_pin(folder.path(OUT)).map_err(|error| failed(&error))?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(&link.name, TcAttachType::Egress, order)
        .map_err(|error| failed(&error))?;
    let fd: FdLink = program
        .take_link(id)
        .map_err(|error| failed(&error))?
        .try_into()
        .map_err(|error: aya::programs::links::LinkError| failed(&error))?;
    attach::pin(folder, fd, KIND_OUT, link)
}

fn accept_own_addresses(maps: &Maps) -> Result<(), Error> {
    if sysctl::read(ACCEPT_LOCAL)?.trim() != "0" {
        return Ok(());
    }
    sysctl::write(ACCEPT_LOCAL, "1")?;
    let mut settings = maps.settings();
    settings.flags |= settings_flag::CHANGED_ACCEPT_LOCAL;
    maps.settings.update(0, &settings)
}

/// Takes back what was set.
pub(super) fn restore(settings: &Settings) -> Result<(), Error> {
    if settings.flags & settings_flag::CHANGED_ACCEPT_LOCAL != 0 {
        sysctl::write(ACCEPT_LOCAL, "0")?;
    }
    Ok(())
}
