//! A new master's neighbours hear of each address within a millisecond.
//!
//! An address is held against the time of two others: of netlink's notice of it, which comes a
//! little later than the address, and of the frame before its first announcement, which goes a
//! little earlier. Frames have the kernel's times.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::wire::{Advert, Frame, OURS, TENTH, Variant, Wire, end, now};

/// The longest time from an address to its first announcement.
const FIRST_MAX: Duration = Duration::from_millis(1);
/// Announcements of a hundred that may be later: the machine takes the processor away at times.
/// Were none announced before all are there, those of the first half would be.
const LATE_PERCENT: usize = 2;
/// How often the node becomes master.
const ROUNDS: usize = 5;
/// Addresses of the node, so many that they take longer together than one may take alone.
const ADDRESSES: u8 = 150;
/// RTM_NEWADDR.
const NEW_ADDRESS: [u8; 2] = 20_u16.to_ne_bytes();
/// RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// Returns the addresses of a family.
fn addresses(family: u8) -> Vec<IpAddr> {
    let address = |last: u8| match family {
        4 => IpAddr::from([10, 9, 0, 100 + last]),
        _ => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(last)]),
    };
    (0..ADDRESSES).map(address).collect()
}

/// Notes when netlink tells of each address, until nothing has come for a while.
fn listen(wire: &Wire, addresses: Vec<IpAddr>) -> Receiver<BTreeMap<IpAddr, Duration>> {
    let open = || -> nix::Result<OwnedFd> {
        let protocol = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
        Ok(fd)
    };
    let fd = wire.ours.run(open).unwrap().unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut seen = BTreeMap::new();
        let mut message = [0; 4096];
        let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        while seen.len() < addresses.len()
            && poll(&mut ready, PollTimeout::from(10_000_u16)).unwrap() > 0
        {
            let length = recv(fd.as_raw_fd(), &mut message, MsgFlags::empty()).unwrap();
            let time = now();
            let message = &message[..length];
            let tells_of = |address: &&IpAddr| match address {
                IpAddr::V4(address) => message.windows(4).any(|bytes| bytes == address.octets()),
                IpAddr::V6(address) => message.windows(16).any(|bytes| bytes == address.octets()),
            };
            if message.get(4..6) == Some(&NEW_ADDRESS)
                && let Some(address) = addresses.iter().find(tells_of)
            {
                // An IPv6 address is told of again when it is no longer tentative.
                seen.entry(*address).or_insert(time);
            }
        }
        drop(tell.send(seen));
    });
    told
}

/// When an address was first announced, and when the frame before that went.
struct First {
    before: Duration,
    time: Duration,
}

fn firsts(frames: &[Frame], addresses: &[IpAddr]) -> BTreeMap<IpAddr, First> {
    let mut firsts = BTreeMap::new();
    let mut before = None;
    for frame in frames.iter().filter(|frame| frame.bytes.get(11) == Some(&OURS)) {
        if let Some(before) = before
            && let Some(address) = addresses.iter().find(|&&address| frame.announces(address))
        {
            firsts.entry(*address).or_insert(First { before, time: frame.time });
        }
        before = (before.is_some() || Advert::of(frame).is_some()).then_some(frame.time);
    }
    firsts
}

fn announces_at_once(family: u8) {
    let variant = &Variant { family, ..TENTH };
    let addresses = addresses(family);
    let mut words = variant.node(255);
    let bits = if family == 4 { 24 } else { 64 };
    words.retain(|word| !word.ends_with("10.9.0.100/24") && !word.ends_with("fd09::100/64"));
    words.push(format!("vip={}/{bits}", addresses[0]));
    words.extend(addresses[1..].iter().map(|address| format!("excluded={address}/{bits}")));
    let (mut from_notice, mut from_frame) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut wire = Wire::new(variant);
        let notices = listen(&wire, addresses.clone());
        let (node, log) = wire.node(&words);
        let taken = wire.wait_advert(OURS, 255, Duration::ZERO);
        // The second one comes behind all announcements.
        wire.wait_advert(OURS, 255, taken);
        let notices = notices.recv().unwrap();
        end(node, Signal::SIGTERM);
        wire.wait_log(&log, "state STOP");
        let firsts = firsts(&wire.frames(), &addresses);
        assert_eq!((firsts.len(), notices.len()), (addresses.len(), addresses.len()));
        from_frame.extend(firsts.values().map(|first| first.time - first.before));
        let gap = |(address, first): (_, &First)| first.time.saturating_sub(notices[address]);
        from_notice.extend(firsts.iter().map(gap));
    }
    for (what, mut gaps) in [("a notice", from_notice), ("a frame", from_frame)] {
        gaps.sort();
        let (middle, most) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        eprintln!(
            "IPv{family}: {} announced {middle:?} behind {what}, at most {most:?}",
            gaps.len()
        );
        let late = gaps.iter().filter(|&&gap| gap >= FIRST_MAX).count();
        assert!(late * 100 <= gaps.len() * LATE_PERCENT, "{late}: {:?}", &gaps[gaps.len() - 20..]);
    }
}

#[test]
fn the_first_gratuitous_arp_follows_its_address_within_a_millisecond() {
    announces_at_once(4);
}

#[test]
fn the_first_neighbour_advertisement_follows_its_address_within_a_millisecond() {
    announces_at_once(6);
}
