//! Sockets for the packets of one interface and family, and for frames.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recv, recvmsg, sendto, setsockopt,
    sockopt,
};
use rlvs_control::model::Family;
use rlvs_control::vrrp::Received;
use rlvs_wire::vrrp::{Datagram, LENGTH_MAX, PROTOCOL};

use super::sys;

/// As `TC_PRIO_CONTROL`, which queues put before everything else.
const PRIORITY: i32 = 7;
// linux/in6.h; libc does not have it.
const IPV6_HDRINCL: libc::c_int = 36;
/// Room for the longest packet with IP header and options.
const PACKET_MAX: usize = LENGTH_MAX + 60;

/// A socket that sends and receives VRRP by one interface in one family.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    interface: Arc<str>,
    /// Index of the interface, which is another one if it is removed and comes back.
    pub(super) index: u32,
    family: Family,
    /// The groups of the routers that hear here; none on a virtual router's own interface, which only
    /// sends.
    pub(super) groups: BTreeSet<IpAddr>,
}

impl Channel {
    /// Opens it, and joins groups.
    pub(super) fn open(
        interface: &Arc<str>,
        index: u32,
        family: Family,
        groups: BTreeSet<IpAddr>,
    ) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let socket = sys::raw_socket(domain, PROTOCOL.into())?;
        setsockopt(&socket, sockopt::BindToDevice, &interface.as_ref().into())?;
        setsockopt(&socket, sockopt::Priority, &PRIORITY)?;
        match family {
            Family::V4 => prepare_v4(&socket, index, &groups)?,
            Family::V6 => prepare_v6(&socket, index, &groups)?,
        }
        Ok(Self { socket, interface: interface.clone(), index, family, groups })
    }

    /// Returns whether what comes in here is meant for us.
    pub(super) fn hears(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Sends an IP packet, header included.
    pub(super) fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        let fd = self.socket.as_raw_fd();
        let sent = match to {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
                sendto(fd, packet, &to, MsgFlags::empty())
            }
            IpAddr::V6(to) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, self.index));
                sendto(fd, packet, &to, MsgFlags::empty())
            }
        };
        sent.map(drop).map_err(Into::into)
    }

    /// Takes the next packet that has come in; `None` when there is none.
    pub(super) fn receive(&self) -> Option<Received> {
        if !self.hears() {
            return None;
        }
        loop {
            let received = match self.family {
                Family::V4 => self.receive_v4(),
                Family::V6 => self.receive_v6(),
            };
            match received {
                Ok(Some(packet)) => return Some(packet),
                // What is no whole packet of this protocol is nobody's.
                Ok(None) | Err(nix::Error::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// The kernel hands over the IPv4 header too.
    fn receive_v4(&self) -> nix::Result<Option<Received>> {
        let mut bytes = [0; PACKET_MAX];
        let length = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        let packet = bytes.get(..length).and_then(Datagram::parse);
        Ok(packet.map(|packet| Received {
            interface: self.interface.clone(),
            source: packet.source.into(),
            destination: packet.destination.into(),
            hops: packet.hops,
            payload: packet.payload.to_vec(),
        }))
    }

    /// The kernel hands over what follows the IPv6 header, and what is asked for of that beside it.
    fn receive_v6(&self) -> nix::Result<Option<Received>> {
        let mut bytes = [0; PACKET_MAX];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let fd = self.socket.as_raw_fd();
        let message =
            recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let (mut destination, mut hops) = (None, None);
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(IpAddr::from(info.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => hops = u8::try_from(limit).ok(),
                _ => {}
            }
        }
        let source = message.address.map(|address| IpAddr::V6(address.ip()));
        let length = message.bytes;
        let payload = bytes.get(..length).unwrap_or_default().to_vec();
        let interface = self.interface.clone();
        Ok((|| {
            let (source, destination, hops) = (source?, destination?, hops?);
            Some(Received { interface, source, destination, hops, payload })
        })())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn prepare_v4(socket: &OwnedFd, index: u32, groups: &BTreeSet<IpAddr>) -> io::Result<()> {
    let sending = sys::membership_v4(Ipv4Addr::UNSPECIFIED, index)?;
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_HDRINCL, 1)?;
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0)?;
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, sending)?;
    for group in groups {
        let IpAddr::V4(group) = *group else { continue };
        sys::join_v4(socket, group, index)?;
    }
    Ok(())
}

fn prepare_v6(socket: &OwnedFd, index: u32, groups: &BTreeSet<IpAddr>) -> io::Result<()> {
    sys::set_option(socket, libc::IPPROTO_IPV6, IPV6_HDRINCL, 1)?;
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 0)?;
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, index)?;
    for group in groups {
        let IpAddr::V6(group) = *group else { continue };
        let membership = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
            ipv6mr_interface: index,
        };
        sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, membership)?;
    }
    Ok(())
}
