//! Settings that the kernel's IPVS has below `net.ipv4.vs`, under the same names.

use rlvs_datapath::abi::{Settings, settings_flag};

use super::error::Error;
use super::load;
use super::maps::Maps;
use super::pins;
use super::stages::Group;

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// The largest value; the smallest is 0.
    pub max: u32,
    /// The kernel's default, and ours.
    pub default: u32,
    /// What it does.
    pub about: &'static str,
    state: State,
}

/// What becomes of a setting.
#[derive(Clone, Copy, Debug)]
enum State {
    /// The programs go by it.
    Carried { get: fn(&Settings) -> u32, set: fn(&mut Settings, u32) },
    /// They do not yet: it has its default.
    NotYet,
    /// There is nothing here that it could change: it has its default.
    Meaningless,
}

const fn not_yet(name: &'static str, max: u32, default: u32, about: &'static str) -> Parameter {
    Parameter { name, max, default, about, state: State::NotYet }
}

const fn meaningless(name: &'static str, max: u32, default: u32, about: &'static str) -> Parameter {
    Parameter { name, max, default, about, state: State::Meaningless }
}

/// Every setting, by name.
pub const ALL: [Parameter; 24] = [
    not_yet("am_droprate", u32::MAX, 10, "how often drop_packet 3 drops: one of so many"),
    meaningless(
        "amemthresh",
        u32::MAX,
        1024,
        "tables have the size that they were made with, and never run short of memory",
    ),
    not_yet("backup_only", 1, 0, "1: balance nothing while a backup daemon runs"),
    not_yet("cache_bypass", 1, 0, "1: without a real server, on to the original destination"),
    Parameter {
        name: "conn_reuse_mode",
        max: 3,
        default: 1,
        about: "a SYN on a connection that is over: 0 follows it, 1 opens a new one; with 2 added, \
                over direct routing also where the old one waits in FIN_WAIT",
        state: State::Carried { get: reuse, set: set_reuse },
    },
    meaningless(
        "conntrack",
        1,
        0,
        "the kernel's connection tracking does not see what is balanced",
    ),
    meaningless(
        "drop_entry",
        3,
        0,
        "memory never runs short; where the table is full, connections that are there go on",
    ),
    not_yet("drop_packet", 3, 0, "3: drop one new connection of am_droprate"),
    Parameter {
        name: "expire_nodest_conn",
        max: 1,
        default: 0,
        about: "connections of a removed real server: 0 stay silent until it returns or they run \
                out, 1 are opened anew to another",
        state: State::Carried {
            get: |settings| u32::from(settings.flags & settings_flag::EXPIRE_REMOVED != 0),
            set: |settings, value| put(settings, settings_flag::EXPIRE_REMOVED, value != 0),
        },
    },
    Parameter {
        name: "expire_quiescent_template",
        max: 1,
        default: 0,
        about: "a client whose persistent real server has weight 0: 0 stays with it, 1 gets another",
        state: State::Carried {
            get: |settings| u32::from(settings.flags & settings_flag::EXPIRE_QUIESCENT != 0),
            set: |settings, value| put(settings, settings_flag::EXPIRE_QUIESCENT, value != 0),
        },
    },
    meaningless(
        "ignore_tunneled",
        1,
        0,
        "what is decapsulated here is balanced by the interface it comes out of",
    ),
    not_yet("nat_icmp_send", 1, 0, "1: tell NAT servers that a connection is not known"),
    not_yet("pmtu_disc", 1, 1, "0: outer headers without the don't-fragment flag"),
    Parameter {
        name: "run_estimation",
        max: 1,
        default: 1,
        about: "0 stops rates where they are; counters go on",
        state: State::Carried {
            get: |settings| u32::from(settings.flags & settings_flag::NO_ESTIMATION == 0),
            set: |settings, value| put(settings, settings_flag::NO_ESTIMATION, value == 0),
        },
    },
    not_yet("schedule_icmp", 1, 0, "1: balance ICMP errors of no known connection"),
    not_yet("secure_tcp", 3, 0, "stricter states against floods of SYNs"),
    Parameter {
        name: "sloppy_sctp",
        max: 1,
        default: 0,
        about: "1: any packet but ABORT opens an SCTP association, not INIT alone",
        state: State::Carried {
            get: |settings| u32::from(settings.flags & settings_flag::SLOPPY_SCTP != 0),
            set: |settings, value| put(settings, settings_flag::SLOPPY_SCTP, value != 0),
        },
    },
    Parameter {
        name: "sloppy_tcp",
        max: 1,
        default: 0,
        about: "1: any segment but RST opens a TCP connection, not SYN alone, so that those of \
                another director go on here",
        state: State::Carried {
            get: |settings| u32::from(settings.flags & settings_flag::SLOPPY_TCP != 0),
            set: |settings, value| put(settings, settings_flag::SLOPPY_TCP, value != 0),
        },
    },
    meaningless(
        "snat_reroute",
        1,
        1,
        "answers are routed by the client's address as they are sent",
    ),
    not_yet("sync_persist_mode", 1, 0, "1: tell of templates only"),
    not_yet("sync_ports", 64, 1, "ports to tell of connections by"),
    not_yet(
        "sync_refresh_period",
        u32::MAX,
        0,
        "seconds from one telling of a connection to the next",
    ),
    not_yet("sync_retries", 3, 0, "how often a connection is told of again"),
    Parameter {
        name: "tcp_mss",
        max: u16::MAX as u32,
        default: 0,
        about: "the largest segment that ends of connections may announce to each other through \
                here, in bytes; 0 leaves what they announce (rlvs's own)",
        state: State::Carried {
            get: |settings| settings.mss,
            set: |settings, value| settings.mss = value,
        },
    },
];

fn reuse(settings: &Settings) -> u32 {
    let has = |flag| settings.flags & flag != 0;
    match (has(settings_flag::FOLLOW_OVER), has(settings_flag::REUSE_FIN_WAIT)) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 3,
    }
}

fn set_reuse(settings: &mut Settings, value: u32) {
    put(settings, settings_flag::FOLLOW_OVER, value == 0);
    put(settings, settings_flag::REUSE_FIN_WAIT, value & 2 != 0);
}

fn put(settings: &mut Settings, flag: u32, on: bool) {
    settings.flags = if on { settings.flags | flag } else { settings.flags & !flag };
}

impl Parameter {
    /// Returns the setting of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|parameter| parameter.name == name)
    }

    /// Says why the setting keeps its default, if it does.
    #[must_use]
    pub fn unheeded(&self) -> Option<&'static str> {
        match self.state {
            State::Carried { .. } => None,
            State::NotYet => Some("not carried out yet"),
            State::Meaningless => Some("without meaning here"),
        }
    }

    fn value(&self, settings: &Settings) -> u32 {
        match self.state {
            State::Carried { get, .. } => get(settings),
            State::NotYet | State::Meaningless => self.default,
        }
    }

    /// Returns the value in the calling thread's network namespace.
    ///
    /// # Errors
    /// Nothing is attached, or a missing capability.
    pub fn read(&self) -> Result<u32, Error> {
        let folder = pins::open()?.ok_or(Error::NotAttached)?;
        Ok(self.value(&Maps::open(&folder)?.settings()))
    }

    /// Changes the value there; the next packet goes by it. The caller keeps to [`max`](Self::max),
    /// and does not change one that is [`unheeded`](Self::unheeded).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, value: u32) -> Result<(), Error> {
        let folder = pins::open()?.ok_or(Error::NotAttached)?;
        let _lock = folder.lock()?;
        let maps = Maps::open(&folder)?;
        let mut settings = maps.settings();
        if let State::Carried { set, .. } = self.state {
            set(&mut settings, value);
        }
        if settings.mss != 0 {
            load::ensure_group(Group::Clamps)?;
        }
        maps.settings.update(0, &settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back() {
        let mut settings = Settings::default();
        for parameter in &ALL {
            assert_eq!(parameter.value(&settings), parameter.default, "{}", parameter.name);
        }
        for (name, value, shown) in [
            ("conn_reuse_mode", 0, 0),
            ("conn_reuse_mode", 3, 3),
            ("conn_reuse_mode", 2, 3),
            ("conn_reuse_mode", 1, 1),
            ("expire_nodest_conn", 1, 1),
            ("run_estimation", 0, 0),
            ("run_estimation", 1, 1),
            ("sloppy_sctp", 1, 1),
            ("sloppy_sctp", 0, 0),
            ("sloppy_tcp", 1, 1),
            ("sloppy_tcp", 0, 0),
            ("tcp_mss", 1400, 1400),
        ] {
            let parameter = Parameter::named(name).expect("a setting");
            let State::Carried { get, set } = parameter.state else { panic!("{name}") };
            set(&mut settings, value);
            assert_eq!(get(&settings), shown, "{name}");
        }
        assert_eq!(settings.flags, settings_flag::EXPIRE_REMOVED);
    }

    #[test]
    fn names_are_in_order_and_once() {
        assert!(ALL.is_sorted_by(|one, other| one.name < other.name));
    }
}
