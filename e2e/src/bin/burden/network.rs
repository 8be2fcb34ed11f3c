//! A director, and a host that has the addresses of all real servers.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::lab::{run, tool};
use rlvs::lab::claim::{Claim, Sweep, sweep};
use rlvs_linux::netns::Namespace;
use rlvs_linux::route::Rtnetlink;

use crate::{TIME_MAX, interrupt};

/// Returns the address of a real server.
pub(crate) fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + number)
}

/// A standing network; it goes when it is dropped.
pub(crate) struct Network {
    pub(crate) director: Namespace,
    /// Hears the virtual router, on a wire of its own.
    pub(crate) listener: Namespace,
    /// Has the addresses of all real servers.
    _servers: Namespace,
    accepted: Arc<AtomicU64>,
    claim: Claim,
}

impl Network {
    pub(crate) fn new() -> Result<Self> {
        sweep(Sweep::Crashed)?;
        let claim = Claim::new()?;
        let director = Namespace::create(&claim.namespace_name("director"))?;
        let servers = Namespace::create(&claim.namespace_name("servers"))?;
        let listener = Namespace::create(&claim.namespace_name("listener"))?;
        let mut wires = Rtnetlink::open_in(&director)?;
        wires.add_veth("eth0", "eth0", &servers)?;
        wires.add_veth("eth1", "eth1", &listener)?;
        let ip = tool("ip").context("no ip")?;
        for (namespace, words) in [
            (&director, "addr add 10.9.0.1/24 dev eth0"),
            (&director, "link set eth0 up"),
            (&director, "addr add 10.9.1.1/24 dev eth1"),
            (&director, "link set eth1 up"),
            (&listener, "link set eth1 up"),
            (&director, "link set lo up"),
            (&servers, "addr add 10.9.0.2/24 dev eth0"),
            (&servers, "link set eth0 up"),
            (&servers, "link set lo up"),
            (&servers, "route add local 10.64.0.0/10 dev lo"),
            (&director, "route add 10.64.0.0/10 via 10.9.0.2"),
        ] {
            let words: Vec<&str> = words.split_ascii_whitespace().collect();
            run(namespace, &ip, &words).ok();
        }
        let accepted = Arc::new(AtomicU64::new(0));
        let socket = servers.run(|| TcpListener::bind("0.0.0.0:80"))??;
        let count = accepted.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for _connection in socket.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { director, listener, _servers: servers, accepted, claim })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.claim.directory()
    }

    /// Returns how many connections the real servers have taken.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until they have taken so many.
    pub(crate) fn wait_accepted(&self, number: u64) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        while self.accepted() < number {
            interrupt::check()?;
            let accepted = self.accepted();
            ensure!(Instant::now() < deadline, "{accepted} of {number} checks were made");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }
}
