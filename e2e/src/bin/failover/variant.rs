//! What is measured: ways to configure two directors, and what happens to the master.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use crate::director::Director;
use crate::network::{A, B, Network};

/// One way to configure both directors.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    version: u8,
    pub(crate) v6: bool,
    pub(crate) interval: Duration,
    unicast: bool,
    /// What of it is of the short run.
    pub(crate) quick: &'static [Event],
}

const SECOND: Variant = Variant {
    name: "v2-1s",
    version: 2,
    v6: false,
    interval: Duration::from_secs(1),
    unicast: false,
    quick: &[Event::Death],
};
const TENTH: Variant = Variant {
    name: "v3-0.1s",
    version: 3,
    interval: Duration::from_millis(100),
    quick: &Event::ALL,
    ..SECOND
};

/// All of them.
pub(crate) const ALL: [Variant; 6] = [
    SECOND,
    Variant { name: "v3-1s", version: 3, quick: &[], ..SECOND },
    TENTH,
    Variant { name: "v3-0.01s", interval: Duration::from_millis(10), ..TENTH },
    Variant { name: "unicast-0.1s", unicast: true, quick: &[], ..TENTH },
    Variant { name: "ipv6-0.1s", v6: true, quick: &[Event::Death], ..TENTH },
];

impl Variant {
    /// Returns the address that moves.
    pub(crate) fn vip(&self) -> IpAddr {
        if self.v6 { [0xfd09, 0, 0, 0, 0, 0, 0, 0x100].into() } else { [10, 9, 0, 100].into() }
    }

    /// Returns the file of a director.
    pub(crate) fn configuration(&self, host: u8, priority: u8) -> String {
        let peer = if host == A { B } else { A };
        let unicast = if self.unicast {
            format!("unicast_src_ip 10.9.0.{host}\n unicast_peer {{\n 10.9.0.{peer}\n }}")
        } else {
            String::new()
        };
        let password = if self.version == 2 {
            "authentication {\n auth_type PASS\n auth_pass 1234\n }"
        } else {
            ""
        };
        let addresses = if self.v6 { "fe80::9:100/64\n fd09::100/64" } else { "10.9.0.100/24" };
        let (version, interval) = (self.version, self.interval.as_secs_f64());
        format!(
            "global_defs {{\n router_id R{host}\n}}\nvrrp_instance VI_1 {{\n state BACKUP\n \
             interface eth0\n virtual_router_id 51\n version {version}\n priority {priority}\n \
             advert_int {interval}\n {password}\n {unicast}\n \
             virtual_ipaddress {{\n {addresses}\n }}\n}}\n"
        )
    }

    /// Returns how long a backup of priority 100 waits beyond the last advertisement that it misses.
    fn skew(&self) -> Duration {
        let unit = if self.version == 2 { Duration::from_secs(1) } else { self.interval };
        unit * (256 - 100) / 256
    }
}

/// What happens to the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It ends in order.
    Term,
    /// Its host dies.
    Death,
    /// Its processes are killed; the host lives and keeps the address.
    Kill,
    /// The process of its virtual router is killed and started again at once: by its parent, or as a
    /// service manager does it.
    Crash,
    /// Its interface is set down.
    Down,
}

impl Event {
    pub(crate) const ALL: [Self; 5] =
        [Self::Term, Self::Death, Self::Kill, Self::Crash, Self::Down];

    /// Lets it happen.
    pub(crate) fn happen(self, network: &Network, master: &mut Director) -> Result<()> {
        match self {
            Self::Term => master.terminate(),
            Self::Death => {
                network.cut_off(A)?;
                master.kill()
            }
            Self::Kill => master.kill(),
            Self::Crash => master.crash(network, A),
            Self::Down => network.set_down(A),
        }
    }

    /// Returns the longest time without an answer that the protocol allows for.
    pub(crate) fn bound(self, variant: &Variant) -> Duration {
        match self {
            Self::Term => variant.skew(),
            Self::Death | Self::Down => variant.interval * 3 + variant.skew(),
            Self::Kill | Self::Crash => Duration::ZERO,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Self::Term => "term",
            Self::Death => "death",
            Self::Kill => "kill9",
            Self::Crash => "crash",
            Self::Down => "down",
        })
    }
}
