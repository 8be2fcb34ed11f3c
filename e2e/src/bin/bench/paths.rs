//! What is measured, and what is asked of it.

/// A way of a packet through the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) kind: Kind,
    /// 4 or 6.
    pub(crate) family: u8,
    pub(crate) load: Load,
}

/// Forwarding method and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Direct routing.
    Direct,
    /// Address translation, from the client.
    Request,
    /// Address translation, to the client.
    Reply,
    /// Address translation of both ends, from the client.
    Full,
    /// IP in IP.
    Tunnel,
    /// Generic UDP encapsulation without checksum.
    Gue,
}

/// Which flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Any of so many flows, all of which have a connection; flows of one client.
    Established {
        /// Number of flows.
        flows: u32,
        /// Binary logarithm of the number of flows of one client.
        ports_log2: u32,
    },
    /// Each opens a connection, in a table that is empty but for them.
    Empty,
    /// Each opens a connection, in a table at its design load.
    Design,
    /// Each opens a connection in an empty table, and the scheduler of this number chooses among
    /// [`CROWD`] destinations.
    Choice(u32),
    /// Each opens a connection in an empty table, from one source or from anywhere, with so many
    /// networks in lists or without a guard.
    Guarded {
        /// Number of networks; 0 for a service that is not guarded.
        networks: u32,
        /// Whether sources are random.
        anywhere: bool,
    },
}

/// A bound for the ratio of the program's time to the floor's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bound {
    pub(crate) must: f64,
    pub(crate) aim: f64,
    /// Whether `must` and `aim` are to be multiplied by what was measured on the path's
    /// [reference](Path::reference).
    pub(crate) times_v4: bool,
}

/// Flows of one client, where nothing else is said: 16,384.
pub(crate) const PORTS_LOG2: u32 = 14;
/// Destinations among which schedulers choose.
pub(crate) const CROWD: u32 = 1000;
/// Networks in the lists of a guarded service.
pub(crate) const NETWORKS: u32 = 100_000;
/// The most flows.
pub(crate) const FLOWS_MAX: u32 = 1_000_000;

impl Path {
    /// Every path, in the order in which they are measured and shown.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for family in [4, 6] {
            for kind in [Kind::Direct, Kind::Request, Kind::Reply] {
                for flows in [1, 10_000, 100_000, FLOWS_MAX] {
                    let load = Load::Established { flows, ports_log2: PORTS_LOG2 };
                    all.push(Self { kind, family, load });
                }
                if kind == Kind::Reply {
                    let load = Load::Established { flows: FLOWS_MAX, ports_log2: 0 };
                    all.push(Self { kind, family, load });
                } else {
                    all.push(Self { kind, family, load: Load::Empty });
                    all.push(Self { kind, family, load: Load::Design });
                }
            }
            for flows in [1, FLOWS_MAX] {
                let load = Load::Established { flows, ports_log2: PORTS_LOG2 };
                all.push(Self { kind: Kind::Tunnel, family, load });
            }
            // More flows would need more places than one address has.
            for flows in [1, 10_000] {
                let load = Load::Established { flows, ports_log2: PORTS_LOG2 };
                all.push(Self { kind: Kind::Full, family, load });
            }
        }
        for family in [4, 6] {
            for (networks, anywhere) in [(NETWORKS, false), (0, true), (NETWORKS, true)] {
                let load = Load::Guarded { networks, anywhere };
                all.push(Self { kind: Kind::Direct, family, load });
            }
        }
        let load = Load::Established { flows: 1, ports_log2: PORTS_LOG2 };
        all.push(Self { kind: Kind::Gue, family: 4, load });
        // ovf refuses what its destinations' weights do not allow, which is not what is timed.
        for (_, number) in rlvs_control::scheduler::ALL {
            if number == rlvs_datapath::abi::scheduler::OVF {
                continue;
            }
            all.push(Self { kind: Kind::Direct, family: 4, load: Load::Choice(number) });
        }
        all
    }

    /// Returns whether it belongs to the short run: one flow, the most flows, new connections over
    /// IPv4.
    pub(crate) fn is_quick(&self) -> bool {
        match self.load {
            Load::Established { flows, ports_log2 } => {
                (flows == 1 || flows == FLOWS_MAX) && ports_log2 == PORTS_LOG2
            }
            Load::Empty | Load::Design => self.family == 4 && self.kind == Kind::Direct,
            Load::Choice(_) | Load::Guarded { .. } => false,
        }
    }

    /// Returns its name, by which it can be chosen.
    pub(crate) fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Direct => "dr",
            Kind::Request => "nat-request",
            Kind::Reply => "nat-reply",
            Kind::Full => "full",
            Kind::Tunnel => "tun",
            Kind::Gue => "gue",
        };
        let load = match self.load {
            Load::Established { flows, ports_log2: 0 } => format!("{}-clients", short(flows)),
            Load::Established { flows, .. } => short(flows),
            Load::Empty => "new-empty".to_owned(),
            Load::Design => "new-design".to_owned(),
            Load::Guarded { networks, anywhere } => {
                let from = if anywhere { "-anywhere" } else { "" };
                let acl =
                    if networks == 0 { String::new() } else { format!("-acl-{}", short(networks)) };
                format!("new{acl}{from}")
            }
            Load::Choice(number) => {
                let name = rlvs_control::scheduler::name(number).unwrap_or("none");
                format!("new-{name}-{}", short(CROWD))
            }
        };
        format!("v{}/{kind}/{load}", self.family)
    }

    /// Returns what is asked of it.
    pub(crate) fn bound(&self) -> Option<Bound> {
        let fixed = |must, aim| Some(Bound { must, aim, times_v4: false });
        let times_v4 = |must, aim| Some(Bound { must, aim, times_v4: true });
        match (self.family, self.kind, self.load) {
            (_, Kind::Full, _) => None,
            (4, Kind::Direct, Load::Empty) => fixed(10.0, 7.0),
            (4, Kind::Direct, Load::Design) => fixed(16.0, 12.0),
            (4, kind, Load::Established { flows, ports_log2: PORTS_LOG2 }) => match (kind, flows) {
                (Kind::Direct, 1) => fixed(3.2, 2.4),
                (Kind::Direct, FLOWS_MAX) => fixed(5.0, 3.3),
                (Kind::Tunnel, 1) => fixed(2.3, 1.9),
                (Kind::Tunnel, FLOWS_MAX) => fixed(3.6, 2.7),
                (Kind::Gue, 1) => times_v4(1.3, 1.2),
                (_, 1) => fixed(3.0, 2.2),
                (_, FLOWS_MAX) => fixed(7.0, 4.5),
                _ => None,
            },
            (6, _, Load::Established { flows: 1, .. }) => times_v4(1.4, 1.25),
            (6, _, Load::Established { flows: FLOWS_MAX, ports_log2: PORTS_LOG2 }) => {
                times_v4(1.6, 1.4)
            }
            _ => None,
        }
    }

    /// Returns how many slots of the table one connection takes.
    pub(crate) fn halves(&self) -> u32 {
        if self.translates() { 2 } else { 1 }
    }

    /// Returns whether addresses are translated.
    pub(crate) fn translates(&self) -> bool {
        matches!(self.kind, Kind::Request | Kind::Reply | Kind::Full)
    }

    /// Returns whether packets are wrapped.
    pub(crate) fn wraps(&self) -> bool {
        matches!(self.kind, Kind::Tunnel | Kind::Gue)
    }

    /// Returns the path that a bound of this one may refer to: that over IPv4, and for GUE that
    /// through IP in IP.
    pub(crate) fn reference(&self) -> Option<Self> {
        match (self.family, self.kind) {
            (_, Kind::Gue) => Some(Self { kind: Kind::Tunnel, family: 4, ..*self }),
            (6, _) => Some(Self { family: 4, ..*self }),
            _ => None,
        }
    }
}

/// Returns a number of flows as names have it.
pub(crate) fn short(flows: u32) -> String {
    match flows {
        0..1_000 => flows.to_string(),
        1_000..1_000_000 => format!("{}k", flows / 1_000),
        _ => format!("{}M", flows / 1_000_000),
    }
}
