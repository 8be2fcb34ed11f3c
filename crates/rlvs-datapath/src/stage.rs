//! The stages: what goes on where [`process`](crate::process::process) stops. [`stages!`](crate::stages)
//! is their one table, from which all that is said of them follows, the BPF programs too.

use crate::frame::{Frame, Verdict};
use crate::ip::{Ip, V4, V6};
use crate::local::leaving;
use crate::process::settle;
use crate::tables::Tables;
use crate::{
    adopt, apart, association, cut, errors, fragment, full, guard, local, mss, opening, quoted,
    refuse, relay, rest, schedulers, sip, special, strange,
};

/// Calls a macro with the table of stages: of those that are `once`, and of those that are for `each`
/// IP version. A line has the stage, the end of the names of its programs, the function that carries
/// it out and the group that it belongs to; then `only Tc` if XDP leaves its packets to TC, which begins
/// anew, `only Out` if frames come there from the program for those that leave this host.
///
/// Numbers follow from the order: another order is another layout of the maps.
#[macro_export]
macro_rules! stages {
    ($define:ident) => {
        $define! {
            once {
                /// The destination of a new connection is to be searched for among many.
                Search search = schedulers::search, Search;
                /// Whether a client may open a connection is to be decided.
                Guard guard = guard::guard, Guard;
            }
            each {
                /// A request that may open a connection.
                open: Open4 open4, Open6 open6 = opening::first, Ordinary;
                /// Anything else that belongs to a service: states that change, connections that
                /// expire, ways to be asked for, replies that nothing is known of.
                rest: Rest4 rest4, Rest6 rest6 = rest::any, Ordinary;
                /// ICMP.
                icmp: Icmp4 icmp4, Icmp6 icmp6 = errors::related, Unusual;
                /// A packet with options, extension headers, or a fragment.
                odd: Odd4 odd4, Odd6 odd6 = fragment::odd, Unusual;
                /// Such a packet that may open a connection.
                odd_open: OddOpen4 begin4, OddOpen6 begin6 = fragment::odd_open, Unusual;
                /// SCTP, AH and ESP.
                sctp: Sctp4 sctp4, Sctp6 sctp6 = association::any, Associations;
                /// An SCTP packet that may open an association.
                associate: Associate4 associate4, Associate6 associate6
                    = association::first, Associations;
                /// The ways to directors that may have sent a request are to be asked for.
                peers: Peers4 peers4, Peers6 peers6 = opening::peers, Peers;
                /// The largest segment that a packet announces is to be lowered.
                clamp: Clamp4 clamp4, Clamp6 clamp6 = mss::clamp, Clamps;
                /// An ICMP error may be about a tunnel's packet.
                relay: Relay4 relay4, Relay6 relay6 = relay::relay, Tunnels;
                /// A new connection of a service that needs more than an entry.
                special: Special4 special4, Special6 special6 = special::choose, Special;
                /// Its destination is chosen, and the entries are to be made.
                join: Join4 join4, Join6 join6 = special::join, Special;
                /// A packet that no endpoint names.
                apart: Apart4 apart4, Apart6 apart6 = apart::any, Special;
                /// One that is no request of a connection.
                back: Back4 back4, Back6 back6 = apart::back, Special;
                /// An ICMP error may be about a connection in the wide table.
                quoted: Quoted4 quoted4, Quoted6 quoted6 = quoted::related, Special;
                /// A packet of a connection of full NAT.
                full: Full4 full4, Full6 full6 = full::carry, FullNat;
                /// The destination of a new one is chosen, and a place of the pool is to be found.
                lease: Lease4 lease4, Lease6 lease6 = full::lease, FullNat;
                /// The place is found, and the connection is to be entered.
                enter: Enter4 enter4, Enter6 enter6 = full::enter, FullNat;
                /// An ICMP error may be about a tunnel's packet that has one of the other version in it.
                across: Across4 across4, Across6 across6 = relay::across, Tunnels;
                /// A packet that may be cut is too long for its destination, which a tunnel need not be.
                cut: Cut4 cut4, Cut6 cut6 = cut::cut, Unusual, only Tc;
                /// No way leads to a packet's destination.
                lost: Lost4 lost4, Lost6 lost6 = refuse::lost, Unusual;
                /// The call that a datagram belongs to is to be found out.
                sip: Sip4 sip4, Sip6 sip6 = sip::identify, Sip;
                /// SCTP, AH or ESP with options, extension headers, or in fragments.
                odd_sctp: OddSctp4 osctp4, OddSctp6 osctp6
                    = fragment::odd_sctp, Associations;
                /// Such a packet that may open an association.
                odd_init: OddInit4 oinit4, OddInit6 oinit6
                    = fragment::odd_init, Associations;
                /// Any packet but TCP and UDP with the usual headers, which no endpoint names or whose
                /// connection is in the wide table.
                strange: Strange4 wodd4, Strange6 wodd6 = strange::any, Strange;
                /// One that is no request of a connection.
                strange_back: StrangeBack4 wback4, StrangeBack6 wback6
                    = strange::back, Strange;
                /// One of a connection of full NAT.
                strange_full: StrangeFull4 wfull4, StrangeFull6 wfull6
                    = strange::full, FullNat;
                /// An ICMP error quotes a packet of no connection, and may open one.
                adopt: Adopt4 adopt4, Adopt6 adopt6 = adopt::first, Adopt;
                /// It has, and goes to the server.
                adopted: Adopted4 adopted4, Adopted6 adopted6 = adopt::carry, Adopt;
                /// A packet stays on this host, and one end of it is to be replaced.
                here: Here4 here4, Here6 here6 = local::here, Here, only Tc;
                /// A packet leaves this host that a real server here may have sent: not TCP or UDP with
                /// the usual headers, or of no ordinary connection.
                said: Said4 said4, Said6 said6 = local::said, Said, only Out;
            }
        }
    };
}

macro_rules! define {
    (@is_on_xdp) => { true };
    (@is_on_xdp $only:ident) => { false };
    (@begin Out) => { leaving };
    (@begin $($only:ident)?) => { settle::<false, _, _> };
    (
        once {$(
            $(#[$about_one:meta])*
            $one:ident $one_name:ident = $one_module:ident::$one_work:ident, $one_group:ident;
        )*}
        each {$(
            $(#[$about:meta])*
            $stage:ident: $four:ident $name4:ident, $six:ident $name6:ident
                = $module:ident::$work:ident, $group:ident $(, only $only:ident)?;
        )*}
    ) => {
        /// What goes on where [`process`](crate::process::process) stops.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage {
            $($(#[$about_one])* $one,)*
            $(
                $(#[$about])*
                ///
                /// Over IPv4.
                $four,
                $(#[$about])*
                ///
                /// Over IPv6.
                $six,
            )*
        }

        impl Stage {
            /// Every stage, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$one,)* $(Self::$four, Self::$six,)*];

            /// Returns the end of the names of the programs that carry it out.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$one => stringify!($one_name),)*
                    $(
                        Self::$four => stringify!($name4),
                        Self::$six => stringify!($name6),
                    )*
                }
            }

            /// Returns the group that it belongs to.
            pub const fn group(self) -> Group {
                match self {
                    $(Self::$one => Group::$one_group,)*
                    $(Self::$four | Self::$six => Group::$group,)*
                }
            }

            /// Returns the IP version whose packets it is for, or `None` if it is for all.
            pub const fn family(self) -> Option<u8> {
                match self {
                    $(Self::$one => None,)*
                    $(
                        Self::$four => Some(4),
                        Self::$six => Some(6),
                    )*
                }
            }

            /// Returns whether XDP carries it out; else it leaves the packet to TC as it came, uncounted.
            pub const fn is_on_xdp(self) -> bool {
                match self {
                    $(Self::$one => true,)*
                    $(Self::$four | Self::$six => define!(@is_on_xdp $($only)?),)*
                }
            }

            /// Returns the stage of a number; of an unknown one the search, which finds nothing to do.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Self {
                match number {
                    $(
                        n if n == Self::$four as u32 => Self::$four,
                        n if n == Self::$six as u32 => Self::$six,
                    )*
                    _ => Self::Search,
                }
            }

            $(
                $(#[$about])*
                #[inline(always)]
                pub const fn $stage<A: Ip>() -> Self {
                    if A::FAMILY == 4 { Self::$four } else { Self::$six }
                }
            )*
        }

        /// Carries out a stage, for bodies that call it like any function.
        pub fn go_on<F: Frame, T: Tables>(stage: Stage, frame: &mut F, tables: &T) -> Verdict {
            match stage {
                $(Stage::$one => $one_module::$one_work(tables),)*
                $(
                    Stage::$four => define!(@begin $($only)?)(frame, tables, |context, frame, _| {
                        $module::$work::<V4, F, T>(context, frame)
                    }),
                    Stage::$six => define!(@begin $($only)?)(frame, tables, |context, frame, _| {
                        $module::$work::<V6, F, T>(context, frame)
                    }),
                )*
            }
        }
    };
}

stages!(define);

/// Stages that are needed together. Without its stage a packet is left to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// By every table.
    Ordinary,
    /// By ICMP errors and packets with options, extension headers or in fragments. Until the first
    /// service XDP does without them.
    Unusual,
    /// By services of SCTP, and of the key exchange of IPsec.
    Associations,
    /// By services with this host among their direct destinations.
    Peers,
    /// Where the largest segment that ends announce is limited.
    Clamps,
    /// By destinations at the end of a tunnel.
    Tunnels,
    /// By services whose scheduler looks at many destinations, or with thresholds.
    Search,
    /// By persistent services, those without a port or an address, and those of single packets.
    Special,
    /// By all of these but plain persistent ones, for what is not TCP or UDP with the usual headers.
    Strange,
    /// Where not everybody may open connections.
    Guard,
    /// By destinations whose clients' ends are replaced.
    FullNat,
    /// By services with the persistence engine `sip`.
    Sip,
    /// Where ICMP errors may open connections.
    Adopt,
    /// Where NAT may have clients or real servers on this host.
    Here,
    /// Where NAT has real servers on this host.
    Said,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 15] = [
        Self::Ordinary,
        Self::Unusual,
        Self::Associations,
        Self::Peers,
        Self::Clamps,
        Self::Tunnels,
        Self::Search,
        Self::Special,
        Self::Strange,
        Self::Guard,
        Self::FullNat,
        Self::Sip,
        Self::Adopt,
        Self::Here,
        Self::Said,
    ];

    /// Returns whether packets are balanced without it, but for those that it is for: what has unusual
    /// headers, ICMP errors, SCTP and IPsec.
    pub const fn is_optional(self) -> bool {
        matches!(self, Self::Unusual | Self::Associations | Self::Tunnels | Self::Strange)
    }

    /// Returns its stages.
    pub fn stages(self) -> impl Iterator<Item = Stage> {
        Stage::ALL.iter().copied().filter(move |stage| stage.group() == self)
    }
}
