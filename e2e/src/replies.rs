//! One run of the fuzzer of replies to checks.
//!
//! The first byte says what is wanted, the second in what pieces the rest comes. Nothing may panic, and
//! the verdict does not depend on the pieces.

use regex::bytes::Regex;
use rlvs::keepalived::checks::reply::{Reply, Verdict, Wanted};

/// Feeds a reply whole and in pieces.
///
/// # Panics
/// A promise is broken.
pub fn run(data: &[u8]) {
    let &[what, size, ref answer @ ..] = data else { return };
    let regex = Regex::new("(?i)ok+|^up$").expect("an expression");
    let wanted = Wanted {
        status: vec![(200, 299), (418, 418)],
        digest: (what & 1 != 0).then_some(EMPTY),
        regex: (what & 2 != 0).then_some((regex, what & 4 != 0)),
    };
    let whole = verdict(&wanted, answer, answer.len());
    let pieces = verdict(&wanted, answer, usize::from(size));
    assert_eq!(whole, pieces, "the pieces matter");
}

/// MD5 of nothing.
const EMPTY: [u8; 16] = [
    0xd4, 0x1d, 0x8c, 0xd9, 0x8f, 0x00, 0xb2, 0x04, 0xe9, 0x80, 0x09, 0x98, 0xec, 0xf8, 0x42, 0x7e,
];

fn verdict(wanted: &Wanted, answer: &[u8], size: usize) -> Verdict {
    let mut reply = Reply::new(wanted);
    for piece in answer.chunks(size.max(1)) {
        // As between two turns of the loop that reads.
        reply = Reply::resume(wanted, reply.pause());
        if let Some(verdict) = reply.take(piece) {
            return verdict;
        }
    }
    reply.end()
}
