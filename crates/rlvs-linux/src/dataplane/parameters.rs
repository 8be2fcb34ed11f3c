//! Settings that the kernel's IPVS has below `net.ipv4.vs`, under the same names.

use rlvs_datapath::abi::{Settings, mode, settings_flag};
use rlvs_datapath::defence::Levels;
use rlvs_datapath::schedulers::favourites::EXPIRATION_S;

use super::error::Error;
use super::hold;
use super::load::{self, AMEMTHRESH, DROP_RATE};
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
    /// There is nothing here that it could change: it has its default, which the kernel shows so.
    Meaningless(&'static str),
}

const fn meaningless(name: &'static str, default: &'static str, about: &'static str) -> Parameter {
    Parameter { name, max: 0, default: 0, about, state: State::Meaningless(default) }
}

const fn carried(
    name: &'static str,
    max: u32,
    default: u32,
    about: &'static str,
    get: fn(&Settings) -> u32,
    set: fn(&mut Settings, u32),
) -> Parameter {
    Parameter { name, max, default, about, state: State::Carried { get, set } }
}

/// Why most settings of connection synchronisation are without meaning.
const NOT_BY_PACKETS: &str =
    "other directors are told of connections by time and by states, not by their packets";
const ONE_SENDER: &str = "one process sends all messages by one port, and none waits";
const NO_RESIZING: &str = "tables have the size that they were made with";
const NO_ESTIMATOR: &str = "a timer of the programs estimates rates; no thread does";

/// Every setting, by name.
pub const ALL: [Parameter; 35] = [
    carried(
        "am_droprate",
        u32::MAX,
        DROP_RATE,
        "how often drop_packet 3 drops: one of so many new connections on a CPU, 0 none",
        |settings| settings.drop_rate_wanted,
        |settings, value| settings.drop_rate_wanted = value,
    ),
    carried(
        "amemthresh",
        u32::MAX,
        AMEMTHRESH,
        "free room of a connection table, in pages of 4 KiB and at most half of it, below which \
         drop_entry, drop_packet and secure_tcp 1 act",
        |settings| settings.amemthresh,
        |settings, value| settings.amemthresh = value,
    ),
    meaningless(
        "backup_only",
        "0",
        "a director takes no request that another one has chosen it for, whether it learns or not",
    ),
    meaningless(
        "cache_bypass",
        "0",
        "only addresses of this host are balanced, so it is the original destination itself",
    ),
    meaningless("conn_lfactor", "-4", NO_RESIZING),
    carried(
        "conn_reuse_mode",
        3,
        1,
        "a SYN on a connection that is over: 0 follows it, 1 opens a new one; with 2 added, over \
         direct routing also where the old one waits in FIN_WAIT",
        reuse,
        set_reuse,
    ),
    meaningless("conntrack", "0", "the kernel's connection tracking does not see what is balanced"),
    meaningless(
        "debug_level",
        "0",
        "the kernel's log says nothing of packets; `rlvs capture` does",
    ),
    carried(
        "drop_entry",
        mode::ALWAYS,
        0,
        "removes half-open connections, a 32nd of the tables in each pass of the sweep: 1 while a table runs full \
         (shown as 2 then), 3 always",
        |settings| shown(settings, settings.drop_entry),
        |settings, value| settings.drop_entry = asked(value),
    ),
    carried(
        "drop_packet",
        mode::ALWAYS,
        0,
        "drops new connections: 1 while a table runs full, the more the fuller (shown as 2 then), 3 \
         always one of am_droprate",
        |settings| shown(settings, settings.drop_packet),
        |settings, value| settings.drop_packet = asked(value),
    ),
    meaningless("est_cpulist", "", NO_ESTIMATOR),
    meaningless("est_nice", "0", NO_ESTIMATOR),
    carried(
        "expire_nodest_conn",
        1,
        0,
        "connections of a removed real server: 0 stay silent until it returns or they run out, 1 are \
         opened anew to another",
        |settings| has(settings, settings_flag::EXPIRE_REMOVED),
        |settings, value| put(settings, settings_flag::EXPIRE_REMOVED, value != 0),
    ),
    carried(
        "expire_quiescent_template",
        1,
        0,
        "a client whose persistent real server has weight 0: 0 stays with it, 1 gets another",
        |settings| has(settings, settings_flag::EXPIRE_QUIESCENT),
        |settings, value| put(settings, settings_flag::EXPIRE_QUIESCENT, value != 0),
    ),
    meaningless(
        "ignore_tunneled",
        "0",
        "what is decapsulated here is balanced by the interface it comes out of",
    ),
    carried(
        "lblc_expiration",
        u32::MAX,
        EXPIRATION_S,
        "seconds that lblc remembers an address unused",
        |settings| settings.lblc_expiration,
        |settings, value| settings.lblc_expiration = value,
    ),
    carried(
        "lblcr_expiration",
        u32::MAX,
        EXPIRATION_S,
        "the same of lblcr, and seconds after which a set that has not changed loses its busiest server",
        |settings| settings.lblcr_expiration,
        |settings, value| settings.lblcr_expiration = value,
    ),
    carried(
        "nat_icmp_send",
        1,
        0,
        "1 tells NAT servers by ICMP that nothing is known of the connection of a packet of theirs",
        |settings| has(settings, settings_flag::TELL_SERVERS),
        |settings, value| put(settings, settings_flag::TELL_SERVERS, value != 0),
    ),
    meaningless(
        "pmtu_disc",
        "1",
        "packets are not cut into fragments here, so their sender must learn which are too long",
    ),
    carried(
        "run_estimation",
        1,
        1,
        "0 stops rates where they are; counters go on",
        |settings| has(settings, settings_flag::NO_ESTIMATION) ^ 1,
        |settings, value| put(settings, settings_flag::NO_ESTIMATION, value == 0),
    ),
    carried(
        "schedule_icmp",
        1,
        0,
        "1 lets an ICMP error that quotes a packet of no known connection open it, as one that goes to \
         the service would",
        |settings| has(settings, settings_flag::SCHEDULE_ERRORS),
        |settings, value| put(settings, settings_flag::SCHEDULE_ERRORS, value != 0),
    ),
    carried(
        "secure_tcp",
        mode::ALWAYS,
        0,
        "takes TCP connections for established when the server has spoken, not before: 1 while a table \
         runs full (shown as 2 then), 3 always",
        |settings| shown(settings, settings.secure_tcp),
        |settings, value| settings.secure_tcp = asked(value),
    ),
    carried(
        "sloppy_sctp",
        1,
        0,
        "1: any packet but ABORT opens an SCTP association, not INIT alone",
        |settings| has(settings, settings_flag::SLOPPY_SCTP),
        |settings, value| put(settings, settings_flag::SLOPPY_SCTP, value != 0),
    ),
    carried(
        "sloppy_tcp",
        1,
        0,
        "1: any segment but RST opens a TCP connection, not SYN alone, so that those of another \
         director go on here",
        |settings| has(settings, settings_flag::SLOPPY_TCP),
        |settings, value| put(settings, settings_flag::SLOPPY_TCP, value != 0),
    ),
    meaningless("snat_reroute", "1", "answers are routed by the client's address as they are sent"),
    meaningless("svc_lfactor", "-3", NO_RESIZING),
    carried(
        "sync_persist_mode",
        1,
        0,
        "1 tells other directors of persistence templates, and not of the connections that they control",
        |settings| has(settings, settings_flag::TELL_TEMPLATES),
        |settings, value| put(settings, settings_flag::TELL_TEMPLATES, value != 0),
    ),
    meaningless("sync_ports", "1", ONE_SENDER),
    meaningless("sync_qlen_max", "0", ONE_SENDER),
    carried(
        "sync_refresh_period",
        i32::MAX as u32,
        0,
        "seconds after which other directors are told again of a connection in use, half its time-out at most; \
         0 is a third of it",
        |settings| settings.sync_refresh,
        |settings, value| settings.sync_refresh = value,
    ),
    meaningless("sync_retries", "0", NOT_BY_PACKETS),
    carried(
        "sync_sock_size",
        i32::MAX as u32 / 2,
        0,
        "bytes of messages that the socket of a synchronisation daemon holds which is started then; 0 leaves \
         it to the daemon",
        |settings| settings.sync_buffer,
        |settings, value| settings.sync_buffer = value,
    ),
    meaningless("sync_threshold", "3 50", NOT_BY_PACKETS),
    meaningless("sync_version", "1", "messages of version 0 are understood, and not written"),
    carried(
        "tcp_mss",
        u16::MAX as u32,
        0,
        "the largest segment that ends of connections may announce to each other through here, in \
         bytes; 0 leaves what they announce (rlvs's own)",
        |settings| settings.mss,
        |settings, value| settings.mss = value,
    ),
];

fn reuse(settings: &Settings) -> u32 {
    match (has(settings, settings_flag::FOLLOW_OVER), has(settings, settings_flag::REUSE_FIN_WAIT))
    {
        (1, _) => 0,
        (_, 0) => 1,
        _ => 3,
    }
}

fn set_reuse(settings: &mut Settings, value: u32) {
    put(settings, settings_flag::FOLLOW_OVER, value == 0);
    put(settings, settings_flag::REUSE_FIN_WAIT, value & 2 != 0);
}

/// Returns the mode that a number asks for.
const fn asked(number: u32) -> u32 {
    if number == mode::NEVER || number == mode::ALWAYS { number } else { mode::AUTOMATIC }
}

/// Returns the number that the kernel shows for a mode: of those that ask how much room there is, which
/// says so.
const fn shown(settings: &Settings, mode: u32) -> u32 {
    if mode == mode::AUTOMATIC && settings.scarce != 0 { 2 } else { mode }
}

/// Puts in force at once what the modes ask for.
pub(super) fn settle(settings: &mut Settings) {
    // As full as the sweep has found the tables last; how full it says again with its next pass.
    let rate = settings.scarce * settings.drop_rate;
    settings.drop_rate = Levels::by_modes(settings, rate).drop_rate;
    // The rate is 0 also where no packets are to be dropped.
    settings.strict = Levels::by_modes(settings, settings.scarce).strict;
}

fn has(settings: &Settings, flag: u32) -> u32 {
    u32::from(settings.flags & flag != 0)
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

    /// Says that the setting keeps its default, if it does.
    #[must_use]
    pub fn unheeded(&self) -> Option<&'static str> {
        match self.state {
            State::Carried { .. } => None,
            State::Meaningless(_) => Some("without meaning here"),
        }
    }

    /// Says why it has none, if it is without meaning here.
    #[must_use]
    pub fn why_meaningless(&self) -> Option<&'static str> {
        matches!(self.state, State::Meaningless(_)).then_some(self.about)
    }

    fn value(&self, settings: &Settings) -> u32 {
        match self.state {
            State::Carried { get, .. } => get(settings),
            State::Meaningless(_) => self.default,
        }
    }

    /// Returns a value as it is shown.
    #[must_use]
    pub fn shown(&self, value: u32) -> String {
        match self.state {
            State::Meaningless(default) => default.to_owned(),
            State::Carried { .. } => value.to_string(),
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
        hold::settle(&maps)?;
        let mut settings = maps.settings();
        if let State::Carried { set, .. } = self.state {
            set(&mut settings, value);
            settle(&mut settings);
        }
        let wanted = [
            (settings.mss, Group::Clamps),
            (settings.drop_packet, Group::Guard),
            (settings.flags & settings_flag::TELL_SERVERS, Group::Special),
            (settings.flags & settings_flag::SCHEDULE_ERRORS, Group::Special),
            (settings.flags & settings_flag::SCHEDULE_ERRORS, Group::Adopt),
        ];
        for (_, group) in wanted.into_iter().filter(|(number, _)| *number != 0) {
            load::ensure_group(group)?;
        }
        maps.settings.update(0, &settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_back() {
        let mut settings = Settings {
            drop_rate_wanted: DROP_RATE,
            amemthresh: AMEMTHRESH,
            lblc_expiration: EXPIRATION_S,
            lblcr_expiration: EXPIRATION_S,
            ..Settings::default()
        };
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
            ("schedule_icmp", 1, 1),
            ("schedule_icmp", 0, 0),
            ("tcp_mss", 1400, 1400),
            ("nat_icmp_send", 1, 1),
            ("nat_icmp_send", 0, 0),
            ("secure_tcp", 3, 3),
            ("secure_tcp", 2, 1),
            ("drop_entry", 2, 1),
            ("amemthresh", 9, 9),
            ("lblc_expiration", 5, 5),
            ("lblcr_expiration", 6, 6),
            ("drop_packet", 3, 3),
            ("am_droprate", 7, 7),
            ("drop_packet", 1, 1),
            ("am_droprate", 5, 5),
            ("sync_persist_mode", 1, 1),
            ("sync_persist_mode", 0, 0),
            ("sync_refresh_period", 8, 8),
            ("sync_sock_size", 9, 9),
        ] {
            let parameter = Parameter::named(name).expect("a setting");
            let State::Carried { get, set } = parameter.state else { panic!("{name}") };
            set(&mut settings, value);
            assert_eq!(get(&settings), shown, "{name}");
        }
        assert_eq!(settings.flags, settings_flag::EXPIRE_REMOVED);
        settings.scarce = 1;
        for name in ["drop_entry", "drop_packet", "secure_tcp"] {
            let parameter = Parameter::named(name).expect("a setting");
            assert_eq!(parameter.value(&settings), 2, "{name}");
        }
    }

    #[test]
    fn what_is_asked_for_always_is_in_force_at_once() {
        let mut settings = Settings { drop_rate_wanted: 7, ..Settings::default() };
        (settings.drop_packet, settings.secure_tcp) = (mode::ALWAYS, mode::ALWAYS);
        settle(&mut settings);
        assert_eq!((settings.drop_rate, settings.strict), (7, 1));
        (settings.drop_packet, settings.secure_tcp) = (mode::AUTOMATIC, mode::NEVER);
        settle(&mut settings);
        assert_eq!((settings.drop_rate, settings.strict), (0, 0));
    }

    #[test]
    fn a_setting_changes_nothing_of_another_while_tables_run_full() {
        let mut settings = Settings { scarce: 1, strict: 1, ..Settings::default() };
        settings.secure_tcp = mode::AUTOMATIC;
        settle(&mut settings);
        assert_eq!((settings.drop_rate, settings.strict), (0, 1));
        (settings.drop_packet, settings.drop_rate) = (mode::AUTOMATIC, 5);
        settle(&mut settings);
        assert_eq!((settings.drop_rate, settings.strict), (5, 1));
        settings.scarce = 0;
        settle(&mut settings);
        assert_eq!((settings.drop_rate, settings.strict), (0, 0));
    }

    /// Every name below `net.ipv4.vs` of Linux 6.1 to 6.12 and of what follows, with the kernel's default.
    #[test]
    fn every_setting_of_the_kernel_has_its_name_and_default() {
        for (name, default) in [
            ("am_droprate", "10"),
            ("amemthresh", "1024"),
            ("backup_only", "0"),
            ("cache_bypass", "0"),
            ("conn_lfactor", "-4"),
            ("conn_reuse_mode", "1"),
            ("conntrack", "0"),
            ("debug_level", "0"),
            ("drop_entry", "0"),
            ("drop_packet", "0"),
            ("est_cpulist", ""),
            ("est_nice", "0"),
            ("expire_nodest_conn", "0"),
            ("expire_quiescent_template", "0"),
            ("ignore_tunneled", "0"),
            ("lblc_expiration", "86400"),
            ("lblcr_expiration", "86400"),
            ("nat_icmp_send", "0"),
            ("pmtu_disc", "1"),
            ("run_estimation", "1"),
            ("schedule_icmp", "0"),
            ("secure_tcp", "0"),
            ("sloppy_sctp", "0"),
            ("sloppy_tcp", "0"),
            ("snat_reroute", "1"),
            ("svc_lfactor", "-3"),
            ("sync_persist_mode", "0"),
            ("sync_ports", "1"),
            ("sync_refresh_period", "0"),
            ("sync_retries", "0"),
            ("sync_sock_size", "0"),
            ("sync_threshold", "3 50"),
            ("sync_version", "1"),
        ] {
            let parameter = Parameter::named(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(parameter.shown(parameter.default), default, "{name}");
        }
        // The kernel's default is a share of its memory.
        assert!(Parameter::named("sync_qlen_max").is_some());
    }

    #[test]
    fn names_are_in_order_and_once() {
        assert!(ALL.is_sorted_by(|one, other| one.name < other.name));
    }
}
