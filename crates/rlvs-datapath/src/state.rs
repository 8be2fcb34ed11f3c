//! Connection states and their transitions, as `tcp_states[]` of the kernel's IPVS.

use rlvs_wire::{sctp, tcp, udp};

use crate::abi::settings_flag;
use crate::association::states::{self, event};

/// State numbers: the kernel's of TCP, the one of UDP, and from [`ASSOCIATIONS`](Self::ASSOCIATIONS)
/// on the kernel's of SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u32);

impl State {
    /// No packet seen.
    pub const NONE: Self = Self(0);
    /// Handshake complete.
    pub const ESTABLISHED: Self = Self(1);
    /// SYN seen from the server.
    pub const SYN_SENT: Self = Self(2);
    /// SYN seen from the client.
    pub const SYN_RECV: Self = Self(3);
    /// FIN seen from the server, or any FIN where replies do not pass.
    pub const FIN_WAIT: Self = Self(4);
    /// FIN seen from both.
    pub const TIME_WAIT: Self = Self(5);
    /// Reset.
    pub const CLOSE: Self = Self(6);
    /// FIN seen from the client.
    pub const CLOSE_WAIT: Self = Self(7);
    /// Closing.
    pub const LAST_ACK: Self = Self(8);
    /// Waiting for a SYN.
    pub const LISTEN: Self = Self(9);
    /// Handshake seen, server yet to speak (secure_tcp).
    pub const SYNACK: Self = Self(10);
    /// The one state of UDP.
    pub const UDP: Self = Self(11);
    /// Number of the first state of SCTP.
    pub const ASSOCIATIONS: u32 = 16;
    /// SCTP: no packet seen.
    pub const UNASSOCIATED: Self = Self(Self::ASSOCIATIONS);
    /// SCTP: INIT seen from the client.
    pub const INIT1: Self = Self(Self::ASSOCIATIONS + 1);
    /// SCTP: handshake complete.
    pub const ASSOCIATED: Self = Self(Self::ASSOCIATIONS + 8);
    /// SCTP: ended.
    pub const ASSOCIATION_CLOSED: Self = Self(Self::ASSOCIATIONS + 13);

    /// Names as `ipvsadm -L -c` prints them, by number.
    pub const NAMES: [&'static str; 30] = [
        "NONE",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "SYNACK",
        "UDP",
        "ERR!",
        "ERR!",
        "ERR!",
        "ERR!",
        "NONE",
        "INIT1",
        "INIT",
        "C-SENT",
        "C-REPLIED",
        "C-WAIT",
        "COOKIE",
        "C-ECHOED",
        "ESTABLISHED",
        "S-SENT",
        "S-RECEIVED",
        "S-ACK-SENT",
        "REJECTED",
        "CLOSED",
    ];

    /// Default time-outs in seconds, by number. What has seen no packet has that of `ip_vs_conn_new()`, as
    /// no packet leads back there.
    pub const TIMEOUTS_S: [u32; 30] = [
        3, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120, 300, 0, 0, 0, 0, // TCP, UDP
        3, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61, // SCTP
    ];

    /// Returns whether a connection in this state is an active one.
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        self.activity() != 0
    }

    /// Returns whether a connection in this state has been established, as far as that tells.
    #[inline(always)]
    pub const fn was_established(self) -> bool {
        const WAS: u64 = 1 << State::ESTABLISHED.0
            | 1 << State::FIN_WAIT.0
            | 1 << State::TIME_WAIT.0
            | 1 << State::CLOSE_WAIT.0
            | 1 << State::LAST_ACK.0
            | 1 << State::ASSOCIATED.0
            | 1 << State::ASSOCIATION_CLOSED.0;
        WAS >> (self.0 & 31) & 1 != 0
    }

    /// Returns whether the handshake of a connection in this state is not over: what `drop_entry` removes.
    // As ip_vs_random_dropentry().
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        const HALF: u64 = 1 << State::SYN_RECV.0
            | 1 << State::SYNACK.0
            | 1 << State::INIT1.0
            | 1 << (State::ASSOCIATIONS + 2);
        HALF >> (self.0 & 31) & 1 != 0
    }

    /// Returns 1 for a connection that is active, else 0.
    #[inline(always)]
    pub const fn activity(self) -> u64 {
        const ACTIVE: u64 = 1 << State::ESTABLISHED.0
            | 1 << State::SYN_SENT.0
            | 1 << State::SYN_RECV.0
            | 1 << State::SYNACK.0
            | 1 << State::ASSOCIATED.0;
        ACTIVE >> (self.0 & 31) & 1
    }

    /// Returns one connection in this state as [`Counts`](crate::abi::Counts) have it.
    #[inline(always)]
    pub const fn one(self) -> u64 {
        let active = self.activity();
        active | (active ^ 1) << 32
    }
}

/// Which packets of a connection pass the director, and which of them this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// From the client; replies pass too (NAT).
    Request,
    /// From the server (NAT).
    Reply,
    /// From the client; replies do not pass.
    RequestOnly,
}

/// Four events by eleven states, a state in four bits.
struct Table {
    syn: u64,
    fin: u64,
    ack: u64,
    rst: u64,
}

const fn row(next: [u64; 11]) -> u64 {
    let mut packed = 0;
    let mut state = 0;
    while state < 11 {
        packed |= next[state] << (4 * state);
        state += 1;
    }
    packed
}

const NO: u64 = 0;
const ES: u64 = 1;
const SS: u64 = 2;
const SR: u64 = 3;
const FW: u64 = 4;
const TW: u64 = 5;
const CL: u64 = 6;
const CW: u64 = 7;
const LA: u64 = 8;
const LI: u64 = 9;
const SA: u64 = 10;

const REQUEST: Table = Table {
    //         NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    syn: row([SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR]),
    fin: row([CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW]),
    ack: row([ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES]),
    rst: row([CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR]),
};

const REPLY: Table = Table {
    syn: row([SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR]),
    fin: row([TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW]),
    ack: row([ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES]),
    rst: row([CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL]),
};

const REQUEST_ONLY: Table = Table {
    syn: row([SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR]),
    fin: row([CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW]),
    ack: row([ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES]),
    rst: row([CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL]),
};

/// What `tcp_states_dos[]` has instead: a connection is not taken for established until the server has
/// spoken.
const STRICT_REQUEST: Table = Table {
    //         NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    syn: row([SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA]),
    fin: row([CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA]),
    ack: row([ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA]),
    rst: row([CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL]),
};

const STRICT_REPLY: Table = Table {
    syn: row([SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA]),
    fin: REPLY.fin,
    ack: REPLY.ack,
    rst: REPLY.rst,
};

const STRICT_REQUEST_ONLY: Table = Table {
    syn: row([SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA]),
    fin: REQUEST_ONLY.fin,
    ack: REQUEST_ONLY.ack,
    rst: REQUEST_ONLY.rst,
};

const _: () = assert!(NO == State::NONE.0 as u64 && SA == State::SYNACK.0 as u64);

/// Returns the state after a packet, as `set_tcp_state()`: the first of RST, SYN, FIN, ACK that is
/// set decides, and none of them closes. `PORTS` says whether the protocol is TCP or UDP; else it is
/// SCTP, whose flags are an [`event`], or carried on the connection of a key exchange.
#[inline(always)]
pub fn next<const PORTS: bool>(state: State, seen: Seen, protocol: u8, flags: u8) -> State {
    next_by::<PORTS>(state, seen, protocol, flags, false)
}

/// The same with `strict` states of TCP, those of `secure_tcp`, or the usual ones.
#[inline(always)]
pub fn next_by<const PORTS: bool>(
    state: State,
    seen: Seen,
    protocol: u8,
    flags: u8,
    strict: bool,
) -> State {
    if !PORTS && protocol == sctp::PROTOCOL {
        return State(states::next(state.0, seen, flags));
    }
    if protocol != tcp::PROTOCOL {
        return State::UDP;
    }
    let either = |usual: u64, other: u64| if strict { other } else { usual };
    let of = |event: fn(&Table) -> u64| match seen {
        Seen::Request => either(event(&REQUEST), event(&STRICT_REQUEST)),
        Seen::Reply => either(event(&REPLY), event(&STRICT_REPLY)),
        Seen::RequestOnly => either(event(&REQUEST_ONLY), event(&STRICT_REQUEST_ONLY)),
    };
    let row = if flags & tcp::RST != 0 {
        of(|table| table.rst)
    } else if flags & tcp::SYN != 0 {
        of(|table| table.syn)
    } else if flags & tcp::FIN != 0 {
        of(|table| table.fin)
    } else if flags & tcp::ACK != 0 {
        of(|table| table.ack)
    } else {
        return State::CLOSE;
    };
    State((row >> (4 * (state.0 & 15))) as u32 & 15)
}

/// Returns whether a packet that finds a connection in this state begins another one, as
/// `is_new_conn_expected()`: the old one is over, or as good as over where only requests pass.
#[inline(always)]
pub fn begins_anew<const PORTS: bool>(
    state: State,
    seen: Seen,
    protocol: u8,
    flags: u8,
    settings: u32,
) -> bool {
    if protocol == udp::PROTOCOL || !starts::<PORTS>(protocol, flags) {
        return false;
    }
    match state {
        State::TIME_WAIT | State::CLOSE if PORTS => settings & settings_flag::FOLLOW_OVER == 0,
        State::ASSOCIATION_CLOSED if !PORTS => settings & settings_flag::FOLLOW_OVER == 0,
        State::FIN_WAIT if PORTS => {
            settings & settings_flag::REUSE_FIN_WAIT != 0 && seen == Seen::RequestOnly
        }
        _ => false,
    }
}

/// Returns the state of a connection that a packet starts, with `strict` states of TCP or the usual ones.
/// `PORTS` as for [`next`].
#[inline(always)]
pub fn first<const PORTS: bool>(seen: Seen, protocol: u8, flags: u8, strict: bool) -> State {
    if !PORTS {
        // An INIT is all that starts an association.
        return State::INIT1;
    }
    next_by::<true>(State::NONE, seen, protocol, flags, strict)
}

/// Returns whether a packet may start a connection, as `tcp_conn_schedule()` and its like. `PORTS`
/// as for [`next`].
#[inline(always)]
pub fn starts<const PORTS: bool>(protocol: u8, flags: u8) -> bool {
    if PORTS {
        protocol != tcp::PROTOCOL || flags & (tcp::SYN | tcp::RST) == tcp::SYN
    } else {
        protocol == sctp::PROTOCOL && flags == event::INIT
    }
}

/// Returns whether a packet may start a connection that began elsewhere, where that is allowed by the
/// bits [`SLOPPY_TCP`](settings_flag::SLOPPY_TCP) and [`SLOPPY_SCTP`](settings_flag::SLOPPY_SCTP) of
/// `settings`. `PORTS` as for [`next`].
#[inline(always)]
pub fn goes_on<const PORTS: bool>(settings: u32, protocol: u8, flags: u8) -> bool {
    if PORTS {
        settings & settings_flag::SLOPPY_TCP != 0
            && protocol == tcp::PROTOCOL
            && flags & tcp::RST == 0
    } else {
        settings & settings_flag::SLOPPY_SCTP != 0
            && protocol == sctp::PROTOCOL
            && flags != event::ABORT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(steps: &[(Seen, u8)]) -> State {
        steps.iter().fold(State::NONE, |state, &(seen, flags)| next::<true>(state, seen, 6, flags))
    }

    #[test]
    fn nat_connection_lives_as_observed_in_the_kernel() {
        use Seen::{Reply, Request};
        let open = [(Request, tcp::SYN), (Reply, tcp::SYN | tcp::ACK), (Request, tcp::ACK)];
        assert_eq!(walk(&open[..1]), State::SYN_RECV);
        assert_eq!(walk(&open[..2]), State::SYN_RECV);
        assert_eq!(walk(&open), State::ESTABLISHED);
        let client_closes = [&open[..], &[(Request, tcp::FIN | tcp::ACK)]].concat();
        assert_eq!(walk(&client_closes), State::CLOSE_WAIT);
        let both = [&client_closes[..], &[(Reply, tcp::FIN | tcp::ACK)]].concat();
        assert_eq!(walk(&both), State::TIME_WAIT);
        let server_closes = [&open[..], &[(Reply, tcp::FIN | tcp::ACK)]].concat();
        assert_eq!(walk(&server_closes), State::FIN_WAIT);
        let reset = [&open[..], &[(Reply, tcp::RST)]].concat();
        assert_eq!(walk(&reset), State::CLOSE);
    }

    #[test]
    fn direct_routing_sees_only_the_client() {
        let only = Seen::RequestOnly;
        let open = [(only, tcp::SYN), (only, tcp::ACK)];
        assert_eq!(walk(&open), State::ESTABLISHED);
        let closed = [&open[..], &[(only, tcp::FIN | tcp::ACK), (only, tcp::ACK)]].concat();
        assert_eq!(walk(&closed), State::FIN_WAIT);
        assert_eq!(walk(&[&open[..], &[(only, tcp::RST)]].concat()), State::CLOSE);
    }

    /// All of `tcp_states_dos[]`: a line for each of SYN, FIN, ACK and RST.
    #[test]
    fn strict_states_are_those_of_the_kernel() {
        const TABLES: [(Seen, [[u64; 11]; 4]); 3] = [
            (
                Seen::Request,
                [
                    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA],
                    [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA],
                    [ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA],
                    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
                ],
            ),
            (
                Seen::Reply,
                [
                    [SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA],
                    [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
                    [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
                    [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
                ],
            ),
            (
                Seen::RequestOnly,
                [
                    [SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA],
                    [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
                    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
                    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
                ],
            ),
        ];
        for (seen, table) in TABLES {
            for (flags, row) in [tcp::SYN, tcp::FIN, tcp::ACK, tcp::RST].into_iter().zip(table) {
                for (from, to) in (0..).zip(row) {
                    let state = State(from);
                    let strict = next_by::<true>(state, seen, tcp::PROTOCOL, flags, true);
                    assert_eq!(u64::from(strict.0), to, "{seen:?} flags {flags} from {from}");
                }
                let first = first::<true>(seen, tcp::PROTOCOL, flags, true);
                assert_eq!(u64::from(first.0), row[0], "{seen:?} flags {flags}");
            }
        }
    }

    #[test]
    fn active_states_are_the_handshake_and_established() {
        let active: [u32; 5] = [1, 2, 3, 10, State::ASSOCIATED.0];
        for state in 0..30 {
            assert_eq!(State(state).is_active(), active.contains(&state), "state {state}");
        }
    }

    #[test]
    fn no_flag_closes_and_only_a_syn_starts() {
        assert_eq!(next::<true>(State::ESTABLISHED, Seen::Request, 6, 0), State::CLOSE);
        assert!(starts::<true>(6, tcp::SYN));
        assert!(starts::<true>(6, tcp::SYN | tcp::ACK));
        assert!(!starts::<true>(6, tcp::SYN | tcp::RST));
        assert!(!starts::<true>(6, tcp::ACK));
        assert!(starts::<true>(17, 0));
        assert!((0..10).all(|event| starts::<false>(132, event) == (event == event::INIT)));
        assert!(!starts::<false>(50, 0));
    }
}
