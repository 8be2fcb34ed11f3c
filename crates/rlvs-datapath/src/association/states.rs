//! The states of SCTP associations and their transitions, as `sctp_states[]` of the kernel's IPVS.

use rlvs_wire::sctp;

use crate::state::{Seen, State};

/// What a packet means to an association: the type of its first chunk.
pub mod event {
    /// Data, acknowledgements, heartbeats, and whatever is not one of the others.
    pub const DATA: u8 = 0;
    /// An INIT.
    pub const INIT: u8 = 1;
    /// An INIT ACK.
    pub const INIT_ACK: u8 = 2;
    /// A COOKIE ECHO.
    pub const COOKIE_ECHO: u8 = 3;
    /// A COOKIE ACK.
    pub const COOKIE_ACK: u8 = 4;
    /// A SHUTDOWN.
    pub const SHUTDOWN: u8 = 5;
    /// A SHUTDOWN ACK.
    pub const SHUTDOWN_ACK: u8 = 6;
    /// A SHUTDOWN COMPLETE.
    pub const SHUTDOWN_COMPLETE: u8 = 7;
    /// An ERROR.
    pub const ERROR: u8 = 8;
    /// An ABORT, be it first or behind a COOKIE ECHO or COOKIE ACK.
    pub const ABORT: u8 = 9;
}

const fn of(chunk: u8, event: u8) -> u64 {
    (event as u64) << (4 * chunk)
}

/// The events of the chunk types below 16, four bits each.
const EVENTS: u64 = {
    of(sctp::INIT, event::INIT)
        | of(sctp::INIT_ACK, event::INIT_ACK)
        | of(sctp::COOKIE_ECHO, event::COOKIE_ECHO)
        | of(sctp::COOKIE_ACK, event::COOKIE_ACK)
        | of(sctp::SHUTDOWN, event::SHUTDOWN)
        | of(sctp::SHUTDOWN_ACK, event::SHUTDOWN_ACK)
        | of(sctp::SHUTDOWN_COMPLETE, event::SHUTDOWN_COMPLETE)
        | of(sctp::ERROR, event::ERROR)
        | of(sctp::ABORT, event::ABORT)
};

/// Returns the event of a chunk type.
#[inline(always)]
pub const fn event_of(chunk: u8) -> u8 {
    if chunk < 16 { (EVENTS >> (4 * chunk)) as u8 & 15 } else { event::DATA }
}

/// Ten events by fourteen states, a state in four bits.
type Table = [u64; 10];

const fn table(next: [[u64; 14]; 10]) -> Table {
    let mut table = [0; 10];
    let mut event = 0;
    while event < 10 {
        let mut state = 0;
        while state < 14 {
            table[event] |= next[event][state] << (4 * state);
            state += 1;
        }
        event += 1;
    }
    table
}

const NO: u64 = 0;
const I1: u64 = 1;
const IN: u64 = 2;
const CS: u64 = 3;
const CR: u64 = 4;
const CW: u64 = 5;
const CO: u64 = 6;
const CE: u64 = 7;
const ES: u64 = 8;
const SS: u64 = 9;
const SR: u64 = 10;
const SA: u64 = 11;
const RJ: u64 = 12;
const CL: u64 = 13;

// Lines in the order of the events: data, init, init ack, cookie echo, cookie ack, shutdown,
// shutdown ack, shutdown complete, error, abort.

const REQUEST: Table = table([
    //NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
    [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
    [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
    [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
    [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
    [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
]);

const REPLY: Table = table([
    //NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
    [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
    [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
    [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
    [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
    [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
]);

const REQUEST_ONLY: Table = table([
    //NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
    [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
    [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
    [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
    [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
    [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
]);

const _: () = {
    assert!(State::ASSOCIATIONS as u64 + NO == State::UNASSOCIATED.0 as u64);
    assert!(State::ASSOCIATIONS as u64 + CL == State::ASSOCIATION_CLOSED.0 as u64);
};

/// Returns the state of an association after an event, as `set_sctp_state()`.
#[inline(never)]
pub fn next(state: u32, seen: Seen, event: u8) -> u32 {
    // Constants and comparisons: an array would be a map of its own.
    let mut row = 0;
    let mut number = 0;
    while number < 10 {
        let of = match seen {
            Seen::Request => REQUEST[number],
            Seen::Reply => REPLY[number],
            Seen::RequestOnly => REQUEST_ONLY[number],
        };
        if usize::from(event) == number {
            row = of;
        }
        number += 1;
    }
    State::ASSOCIATIONS | (row >> (4 * (state & 15))) as u32 & 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nine_types_of_the_tables_are_events_of_their_own() {
        let events: [u8; 16] = core::array::from_fn(|chunk| event_of(chunk as u8));
        assert_eq!(events, [0, 1, 2, 0, 0, 0, 9, 5, 6, 8, 3, 4, 0, 0, 7, 0]);
        assert_eq!(event_of(0xc1), event::DATA);
    }
}
