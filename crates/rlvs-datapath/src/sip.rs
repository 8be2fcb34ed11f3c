//! The persistence engine `sip`: datagrams of one call, by its Call-ID (RFC 3261, section 8.1.1.4), go to
//! one destination, wherever in a client's network they come from.
//!
//! As `ip_vs_sip_fill_param()`: the header's line begins behind another line, its name is `Call-ID` or
//! `i` in any case, its value a word with or without a host behind `@`, and a line's end follows. What
//! has none opens no connection. Of the value a keyed hash of 64 bits becomes a part of the
//! [template](crate::template)'s key, in place of the text.

use rlvs_wire::udp;

use crate::abi::Scratch;
use crate::connection::Context;
use crate::frame::{Frame, Verdict};
use crate::hash;
use crate::ip::Ip;
use crate::reason::Reason;
use crate::schedule::OPENED;
use crate::stage::Stage;
use crate::tables::{Step, Tables};

/// Bytes of a datagram that are searched: all that Ethernet carries in a frame, and more.
pub const REACH: u32 = 2048;
/// Longest value, as `IP_VS_PEDATA_MAXLEN`.
pub const LENGTH_MAX: u64 = 255;
/// Set in [`Scratch::brief`] when the datagram has been searched.
pub(crate) const SOUGHT: u64 = 1 << 32;

/// Where in its lines a search is. From 1 to 6 it is behind as many letters of the name.
mod at {
    pub(super) const LINE: u64 = 0;
    pub(super) const COLON: u64 = 7;
    pub(super) const COMPACT: u64 = 8;
    pub(super) const OTHER: u64 = 9;
    pub(super) const VALUE: u64 = 10;
    pub(super) const WORD: u64 = 11;
    pub(super) const HOST: u64 = 12;
    pub(super) const HOST_WORD: u64 = 13;
    pub(super) const FOUND: u64 = 14;
    pub(super) const NOTHING: u64 = 15;
}

const NAME: u64 = u64::from_le_bytes(*b"call-id\0");

/// Looks for the Call-ID of a datagram that a stage has left, and hands back to the stage of special
/// services.
#[inline(always)]
pub fn identify<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> Verdict {
    let tables = context.tables;
    let Some(scratch) = tables.scratch(tables.cpu()) else {
        return Verdict::Drop(Reason::Inconsistent);
    };
    let call = if tables.read(&scratch.brief) as u8 == udp::PROTOCOL {
        call_of::<A, F, T>(context, frame)
    } else {
        0
    };
    note(tables, scratch, tables.forget(call));
    Verdict::Next(Stage::special::<A>())
}

fn note<T: Tables>(tables: &T, scratch: &Scratch, call: u64) {
    tables.write(&scratch.brief, tables.read(&scratch.brief) | SOUGHT);
    tables.write(&scratch.call, call);
    if call == 0 {
        tables.write(&scratch.refused, u64::from(OPENED | Reason::NoCallId as u32));
    }
}

/// Returns the hash of a datagram's Call-ID, or 0 if it has none.
#[inline(always)]
fn call_of<A: Ip, F: Frame, T: Tables>(context: &Context<'_, T>, frame: &mut F) -> u64 {
    let Ok(layout) = A::layout(frame, context.tables) else { return 0 };
    let start = layout.transport.wrapping_add(udp::LENGTH as u32);
    let end = layout.transport.wrapping_add(layout.payload);
    let forget = |number: u64| context.tables.forget(number);
    let mut search = Search {
        start: forget(start.into()),
        end: forget(end.into()),
        at: forget(at::OTHER),
        hash: 0,
        length: 0,
        frame,
    };
    context.tables.repeat(REACH, &mut search);
    let Search { at, hash, length, .. } = search;
    match (forget(at), hash) {
        (at::FOUND, _) if length > LENGTH_MAX => 0,
        (at::FOUND, 0) => 1,
        (at::FOUND, hash) => hash,
        _ => 0,
    }
}

/// A search through a datagram, a byte at each step.
#[repr(C)]
struct Search<'a, F> {
    frame: &'a mut F,
    /// Offset of its first byte in the frame.
    start: u64,
    /// Offset behind its last.
    end: u64,
    /// Where in its lines the search is.
    at: u64,
    /// Hash of the value so far.
    hash: u64,
    /// Length of the value so far.
    length: u64,
}

impl<F: Frame> Step for Search<'_, F> {
    #[inline(always)]
    fn step<T: Tables>(&mut self, tables: &T, index: u32) -> bool {
        let offset = self.start.wrapping_add(index.into());
        if offset >= self.end {
            return true;
        }
        let (Some(byte), Some(settings)) = (self.frame.byte(offset as usize), tables.settings())
        else {
            return true;
        };
        let next = tables.forget(follow(self.at, byte));
        self.at = next;
        if next.wrapping_sub(at::WORD) <= at::HOST_WORD - at::WORD {
            self.hash = hash::mix(&settings.keys, self.hash, byte.into());
            self.length = self.length.wrapping_add(1);
        }
        next >= at::FOUND
    }
}

/// Returns where a search is behind one more byte.
#[inline(always)]
const fn follow(now: u64, byte: u8) -> u64 {
    let ends = matches!(byte, b'\r' | b'\n');
    let blank = matches!(byte, b' ' | b'\t');
    match now {
        at::VALUE if blank => at::VALUE,
        at::VALUE | at::WORD if is_word(byte) => at::WORD,
        at::WORD if byte == b'@' => at::HOST,
        at::HOST | at::HOST_WORD if is_word(byte) => at::HOST_WORD,
        at::WORD | at::HOST_WORD if ends => at::FOUND,
        at::VALUE.. => at::NOTHING,
        _ if ends => at::LINE,
        at::COLON | at::COMPACT if byte == b':' => at::VALUE,
        at::COLON | at::COMPACT if blank => at::COLON,
        at::LINE if byte | 0x20 == b'i' => at::COMPACT,
        at::LINE..at::COLON if byte | 0x20 == (NAME >> (8 * now)) as u8 => now + 1,
        _ => at::OTHER,
    }
}

/// Returns whether a byte belongs to a word of RFC 3261, section 25.1.
#[inline(always)]
const fn is_word(byte: u8) -> bool {
    const fn set(from: u8) -> u64 {
        const OTHERS: &[u8] = b"!\"%'()*+,-./:<>?[\\]_`{}~";
        let (mut set, mut bit) = (0, 0);
        while bit < 64 {
            let byte = from + bit;
            let mut is_one = byte.is_ascii_alphanumeric();
            let mut index = 0;
            while index < OTHERS.len() {
                is_one |= OTHERS[index] == byte;
                index += 1;
            }
            set |= (is_one as u64) << bit;
            bit += 1;
        }
        set
    }
    const LOW: u64 = set(0);
    const HIGH: u64 = set(64);
    let set = if byte & 64 == 0 { LOW } else { HIGH };
    byte < 128 && set >> (byte & 63) & 1 != 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;

    use super::{at, follow, is_word};

    /// Returns the value that a search finds.
    fn value(datagram: &str) -> Option<String> {
        let (mut now, mut value) = (at::OTHER, String::new());
        for byte in datagram.bytes() {
            now = follow(now, byte);
            if (at::WORD..=at::HOST_WORD).contains(&now) {
                value.push(byte.into());
            }
            if now >= at::FOUND {
                break;
            }
        }
        (now == at::FOUND).then_some(value)
    }

    #[test]
    fn a_call_is_known_by_its_header() {
        for (datagram, found) in [
            ("INVITE sip:a SIP/2.0\r\nCall-ID: abc@host\r\n", Some("abc@host")),
            ("X\r\nVia: y\r\ncALL-iD  :\t abc\r\n\r\n", Some("abc")),
            ("X\ni:abc\n", Some("abc")),
            ("X\r\nI :abc\r", Some("abc")),
            ("X\r\n\r\n\r\nCall-ID: abc\r\n", Some("abc")),
            ("X\r\nCall-ID-Not: no\r\nIdentity: no\r\ni-x: no\r\ni: abc\r\n", Some("abc")),
            ("X\r\nCal\r\nCall\rCall-ID: abc\r\n", Some("abc")),
            ("X\r\nSubject: Call-ID: no\r\nCall-ID: a(b)<c>.d~e\r\n", Some("a(b)<c>.d~e")),
            // At the very begin there is the request.
            ("Call-ID: abc\r\n", None),
            ("X\r\n Call-ID: abc\r\n", None),
            ("X\r\nCall-ID abc\r\n", None),
            ("X\r\nCall-ID: \r\n", None),
            ("X\r\nCall-ID: abc", None),
            ("X\r\nCall-ID: abc def\r\n", None),
            ("X\r\nCall-ID: @host\r\n", None),
            ("X\r\nCall-ID: abc@\r\n", None),
            ("X\r\nCall-ID: abc@host@host\r\n", None),
            ("X\r\nCall-ID: a\u{e4}b\r\n", None),
            ("X\r\nCall\r\n-ID: abc\r\n", None),
            ("", None),
        ] {
            assert_eq!(value(datagram).as_deref(), found, "{datagram:?}");
        }
    }

    #[test]
    fn words_have_no_blanks_and_no_ends() {
        let words = (0..=255).filter(|&byte| is_word(byte)).count();
        assert_eq!(words, 62 + 24);
        assert!(!b"@;= \t\r\n#$&^|\x7f\0".iter().any(|&byte| is_word(byte)));
    }
}
