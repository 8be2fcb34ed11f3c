//! The words of the command line as data: commands, options, and which go together.
//!
//! One table, [`FLAGS`], is what the parser knows and what `--help` prints. The rules say which
//! options a command or a kind of tunnel needs, may have and may not have.

use rlvs_control::model::Protocol;

use super::failure::Failure;

/// What a command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

/// What an option sets. Options of one kind exclude each other: `-t` and `-u`, `-g` and `-m`.
///
/// The order is that in which violations of the rules are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opt {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    Server,
    Forwarding,
    Weight,
    UpperThreshold,
    LowerThreshold,
    McastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    PersistenceEngine,
    SchedulerFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxlen,
    TunInfo,
    TunType,
    TunPort,
    TunNocsum,
    TunCsum,
    TunRemcsum,
    Atomic,
    Json,
    Full,
    Snat,
}

use Opt::*;

/// Every option, in the order of [`Opt`].
pub(crate) const OPTIONS: [Opt; 38] = [
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    Server,
    Forwarding,
    Weight,
    UpperThreshold,
    LowerThreshold,
    McastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    PersistenceEngine,
    SchedulerFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxlen,
    TunInfo,
    TunType,
    TunPort,
    TunNocsum,
    TunCsum,
    TunRemcsum,
    Atomic,
    Json,
    Full,
    Snat,
];

/// The options that say more about a tunnel, on which [`TunnelKind::rule`] decides.
pub(crate) const TUNNEL_OPTIONS: [Opt; 5] = [TunType, TunPort, TunNocsum, TunCsum, TunRemcsum];

/// The options that were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given(u64);

impl Given {
    /// Notes an option and returns whether it is new.
    pub(crate) fn insert(&mut self, option: Opt) -> bool {
        let new = !self.has(option);
        self.0 |= 1 << option as u32;
        new
    }

    /// Returns whether the option was given.
    pub(crate) fn has(self, option: Opt) -> bool {
        self.0 & 1 << option as u32 != 0
    }

    /// Returns the first of `options` that was given.
    pub(crate) fn first_of(self, options: &[Opt]) -> Option<Opt> {
        options.iter().copied().find(|&option| self.has(option))
    }
}

/// The forwarding methods as the command line has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    DirectRoute,
    Tunnel,
    Masquerade,
}

/// The kinds of tunnel as `--tun-type` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelKind {
    Ipip,
    Gue,
    Gre,
}

impl TunnelKind {
    /// Returns the kind of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Ipip, Self::Gue, Self::Gre].into_iter().find(|kind| kind.name() == name)
    }

    /// Returns its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }

    fn rule(self) -> Rule {
        match self {
            Self::Ipip => Rule { optional: &[TunType], ..NOTHING },
            Self::Gue => Rule {
                compulsory: &[TunPort],
                optional: &[TunType],
                exclusive: &[TunNocsum, TunCsum, TunRemcsum],
            },
            Self::Gre => Rule { optional: &[TunType], exclusive: &[TunNocsum, TunCsum], ..NOTHING },
        }
    }

    /// Refuses tunnel options that do not go with this kind.
    pub(crate) fn check(self, given: Given) -> Result<(), Failure> {
        let whom = format!("a tunnel of type {}", self.name());
        self.rule().check(given, &TUNNEL_OPTIONS, &whom)
    }
}

/// Which options go with something. Those in no list are refused.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    /// Each must be there.
    pub(crate) compulsory: &'static [Opt],
    /// Each may be there.
    pub(crate) optional: &'static [Opt],
    /// At most one may be there.
    pub(crate) exclusive: &'static [Opt],
}

const NOTHING: Rule = Rule { compulsory: &[], optional: &[], exclusive: &[] };

impl Rule {
    fn check(self, given: Given, among: &[Opt], whom: &str) -> Result<(), Failure> {
        let mut taken: Option<Opt> = None;
        for &option in among {
            let there = given.has(option);
            if !there && self.compulsory.contains(&option) {
                return Err(Failure::Usage(format!("{whom} needs {}", spellings(option))));
            }
            if !there || self.compulsory.contains(&option) || self.optional.contains(&option) {
                continue;
            }
            if !self.exclusive.contains(&option) {
                let text = format!("{} does not go with {whom}", spellings(option));
                return Err(Failure::Usage(text));
            }
            if let Some(before) = taken.replace(option) {
                return Err(Failure::Usage(format!(
                    "{} and {} exclude each other in {whom}",
                    spellings(option),
                    spellings(before)
                )));
            }
        }
        Ok(())
    }
}

impl Command {
    /// Returns which options go with the command.
    pub(crate) fn rule(self) -> Rule {
        match self {
            Self::AddService | Self::EditService => Rule {
                compulsory: &[Service],
                optional: &[
                    Scheduler,
                    Persistent,
                    Netmask,
                    OnePacket,
                    PersistenceEngine,
                    SchedulerFlags,
                ],
                ..NOTHING
            },
            Self::DeleteService => Rule { compulsory: &[Service], ..NOTHING },
            Self::AddServer | Self::EditServer => Rule {
                compulsory: &[Service, Server],
                optional: &[
                    Forwarding,
                    Weight,
                    UpperThreshold,
                    LowerThreshold,
                    TunType,
                    TunPort,
                    TunNocsum,
                    TunCsum,
                    TunRemcsum,
                    Snat,
                ],
                ..NOTHING
            },
            Self::DeleteServer => Rule { compulsory: &[Service, Server], ..NOTHING },
            Self::List => Rule {
                optional: &[
                    Numeric,
                    Stats,
                    Rate,
                    Thresholds,
                    PersistentConn,
                    NoSort,
                    SyncId,
                    Exact,
                    TunInfo,
                    Json,
                ],
                exclusive: &[Connection, Service, Timeout, Daemon],
                ..NOTHING
            },
            Self::StartDaemon => Rule {
                optional: &[McastInterface, SyncId, McastGroup, McastPort, McastTtl, SyncMaxlen],
                ..NOTHING
            },
            Self::StopDaemon => Rule { optional: &[SyncId], ..NOTHING },
            Self::Save => Rule { optional: &[Numeric, Full], ..NOTHING },
            Self::Restore => Rule { optional: &[Atomic], ..NOTHING },
            Self::Zero => Rule { optional: &[Service], ..NOTHING },
            Self::Flush | Self::Set => NOTHING,
        }
    }

    /// Refuses options that do not go with the command or, for a list, with each other.
    pub(crate) fn check(self, given: Given) -> Result<(), Failure> {
        let flag = FLAGS.iter().find(|flag| flag.meaning == Meaning::Command(self));
        let whom = flag.map_or(String::new(), |flag| flag.spelling());
        self.rule().check(given, &OPTIONS, &whom)?;
        for (ones, others) in LIST_CONFLICTS {
            if let (Some(one), Some(other)) = (given.first_of(ones), given.first_of(others)) {
                return Err(Failure::Usage(format!(
                    "{} and {} exclude each other in {whom}",
                    spellings(one),
                    spellings(other)
                )));
            }
        }
        Ok(())
    }
}

/// Options of the list that exclude each other beyond what its rule says.
const LIST_CONFLICTS: [(&[Opt], &[Opt]); 2] = [
    (&[Connection, Timeout, Daemon], &[Stats, Rate, Thresholds]),
    (&[Timeout, Daemon], &[PersistentConn]),
];

/// Whether a flag takes a value, and what the help calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    None,
    Required(&'static str),
    Optional(&'static str),
}

/// What a flag stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Help,
    Version,
    Command(Command),
    /// A service by protocol and address.
    Address(Protocol),
    /// A service by firewall mark.
    Mark,
    /// The mark is for IPv6.
    MarkIsV6,
    /// A forwarding method.
    Method(Method),
    /// Sorting, which is on in any case.
    Sort,
    /// Whose table; stands before the command.
    Backend,
    /// All others are known by the option that they set.
    Plain(Opt),
}

impl Meaning {
    /// Returns the option that a flag of this meaning sets.
    pub(crate) fn option(self) -> Option<Opt> {
        match self {
            Self::Address(_) | Self::Mark => Some(Service),
            Self::Method(_) => Some(Forwarding),
            Self::Plain(option) => Some(option),
            Self::Help | Self::Version | Self::Command(_) => None,
            Self::MarkIsV6 | Self::Sort | Self::Backend => None,
        }
    }
}

/// One word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    /// One-letter form.
    pub(crate) short: Option<char>,
    /// Long form without the dashes.
    pub(crate) long: &'static str,
    /// Its value.
    pub(crate) value: Value,
    /// What it stands for.
    pub(crate) meaning: Meaning,
    /// What the help says.
    pub(crate) help: &'static str,
}

impl Flag {
    /// Returns how a message names the flag, such as `-w/--weight`.
    pub(crate) fn spelling(&self) -> String {
        match self.short {
            Some(letter) => format!("-{letter}/--{}", self.long),
            None => format!("--{}", self.long),
        }
    }

    /// Returns the shortest form of the flag.
    fn brief(&self) -> String {
        self.short.map_or(format!("--{}", self.long), |letter| format!("-{letter}"))
    }
}

/// Returns how a message names an option: by all the flags that set it.
pub(crate) fn spellings(option: Opt) -> String {
    let names: Vec<_> = of(option).map(Flag::brief).collect();
    names.join("|")
}

/// Returns the flags that set an option.
pub(crate) fn of(option: Opt) -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().filter(move |flag| flag.meaning.option() == Some(option))
}

pub(super) use super::flags::FLAGS;
