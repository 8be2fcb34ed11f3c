//! The least that a TCP check can cost: the system calls alone.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::time::{ClockId, clock_gettime};

use crate::network::{Network, server};

/// Opens and closes connections, each when the one before is done; returns the CPU time of one.
pub(crate) fn connections(network: &Network, number: u32) -> Result<Duration> {
    let work = || -> Result<Duration> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let begin = used()?;
        for index in 0..number {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            let to = SocketAddr::from((server(index), 80));
            // In progress, or there already.
            connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).ok();
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLOUT, 0))?;
            epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)?;
        }
        Ok((used()? - begin) / number)
    };
    network.director.run(work)?
}

/// Returns the CPU time of this thread.
fn used() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
