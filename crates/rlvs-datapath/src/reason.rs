//! The one list of reasons why a packet was not simply forwarded.

/// Why a packet was passed on untouched, answered or dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Passed: neither IPv4 nor IPv6, neither TCP nor UDP.
    OtherProtocol = 0,
    /// Passed: shorter than its headers, or they contradict each other.
    Malformed = 1,
    /// Passed: a fragment whose datagram's first has not come by, or one not to be trusted.
    Fragment = 2,
    /// Passed: IPv4 options or IPv6 extension headers that are the stack's business.
    Options = 3,
    /// Passed: the frame is not addressed to the interface it came in by.
    OtherHost = 4,
    /// Passed: neither to a virtual service nor from a destination of one.
    NoService = 5,
    /// Passed: to a virtual service, no connection, and not the start of one.
    NoConnection = 6,
    /// Passed: the virtual address is not an address of this host.
    NotLocal = 7,
    /// Passed to TC or the stack: the neighbour is not resolved.
    Unresolved = 8,
    /// Answered with ICMP: no destination takes connections.
    NoDestination = 9,
    /// Answered with ICMP, a server's packet by the stack to which it is passed: the time to live is
    /// used up.
    Expired = 10,
    /// Answered with ICMP: the connection table has no room (NAT).
    TableFull = 11,
    /// Forwarded without an entry: the connection table has no room (direct routing).
    Stateless = 12,
    /// Answered with ICMP: this client's port is in use with every destination tried.
    ReplyTaken = 13,
    /// Dropped: the destination was removed.
    Removed = 14,
    /// Answered with ICMP, or dropped: no route to the destination. Dropped: none to the client.
    Unreachable = 15,
    /// Answered with ICMP, a server's packet by the stack to which it is passed, or dropped where its
    /// sender allows fragments: longer than the next hop takes.
    TooBig = 16,
    /// Dropped: another CPU held the lock of this flow for too long, or took its place of the pool in this moment.
    Busy = 17,
    /// Dropped: a map gave no element for an id that the tables name.
    Inconsistent = 18,
    /// Dropped: the frame could not be made longer or shorter.
    NoRoom = 19,
    /// Dropped: it deserves an ICMP error, and this CPU has sent enough of them for now.
    IcmpLimited = 20,
    /// Passed to the stack, the destination rewritten or not: the real server, or the client, is this
    /// host itself.
    Local = 21,
    /// Passed: a real server that is also a director sent it here, where it would only be sent on.
    FromPeer = 22,
    /// Dropped, or answered with ICMP where that is asked for: the client's address is denied.
    Denied = 23,
    /// Dropped or answered: there are addresses that are allowed, and the client's is none of them.
    NotAllowed = 24,
    /// Dropped or answered: the client's network opens connections too fast.
    TooFast = 25,
    /// Dropped or answered: the client's network has as many connections as it may have.
    TooMany = 26,
    /// Answered with ICMP: no address and port of full NAT is free towards the destination.
    NoPort = 27,
    /// Dropped: a datagram without a Call-ID, of a service that persists by it.
    NoCallId = 28,
    /// Dropped: one of so many new connections, as `drop_packet` says.
    Thinned = 29,
    /// Answered with ICMP: a server's packet of no connection, as `nat_icmp_send` says.
    UnknownReply = 30,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 31] = [
        Self::OtherProtocol,
        Self::Malformed,
        Self::Fragment,
        Self::Options,
        Self::OtherHost,
        Self::NoService,
        Self::NoConnection,
        Self::NotLocal,
        Self::Unresolved,
        Self::NoDestination,
        Self::Expired,
        Self::TableFull,
        Self::Stateless,
        Self::ReplyTaken,
        Self::Removed,
        Self::Unreachable,
        Self::TooBig,
        Self::Busy,
        Self::Inconsistent,
        Self::NoRoom,
        Self::IcmpLimited,
        Self::Local,
        Self::FromPeer,
        Self::Denied,
        Self::NotAllowed,
        Self::TooFast,
        Self::TooMany,
        Self::NoPort,
        Self::NoCallId,
        Self::Thinned,
        Self::UnknownReply,
    ];

    /// Returns the reason of a number; an unknown number is itself inconsistent.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::OtherProtocol,
            1 => Self::Malformed,
            2 => Self::Fragment,
            3 => Self::Options,
            4 => Self::OtherHost,
            5 => Self::NoService,
            6 => Self::NoConnection,
            7 => Self::NotLocal,
            8 => Self::Unresolved,
            9 => Self::NoDestination,
            10 => Self::Expired,
            11 => Self::TableFull,
            12 => Self::Stateless,
            13 => Self::ReplyTaken,
            14 => Self::Removed,
            15 => Self::Unreachable,
            16 => Self::TooBig,
            17 => Self::Busy,
            19 => Self::NoRoom,
            20 => Self::IcmpLimited,
            21 => Self::Local,
            22 => Self::FromPeer,
            23 => Self::Denied,
            24 => Self::NotAllowed,
            25 => Self::TooFast,
            26 => Self::TooMany,
            27 => Self::NoPort,
            28 => Self::NoCallId,
            29 => Self::Thinned,
            30 => Self::UnknownReply,
            _ => Self::Inconsistent,
        }
    }

    /// Returns the name under which status, metrics and trace speak of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OtherProtocol => "other_protocol",
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::OtherHost => "other_host",
            Self::NoService => "no_service",
            Self::NoConnection => "no_connection",
            Self::NotLocal => "not_local",
            Self::Unresolved => "unresolved",
            Self::NoDestination => "no_destination",
            Self::Expired => "ttl_expired",
            Self::TableFull => "table_full",
            Self::Stateless => "stateless",
            Self::ReplyTaken => "reply_taken",
            Self::Removed => "removed",
            Self::Unreachable => "unreachable",
            Self::TooBig => "too_big",
            Self::Busy => "busy",
            Self::Inconsistent => "inconsistent",
            Self::NoRoom => "no_room",
            Self::IcmpLimited => "icmp_limited",
            Self::Local => "local",
            Self::FromPeer => "from_peer",
            Self::Denied => "denied",
            Self::NotAllowed => "not_allowed",
            Self::TooFast => "rate_limited",
            Self::TooMany => "number_limited",
            Self::NoPort => "no_port",
            Self::NoCallId => "no_call_id",
            Self::Thinned => "thinned",
            Self::UnknownReply => "unknown_reply",
        }
    }
}
