//! A frame without what need not be the same: numbers that kernels draw, and how much of a packet an
//! error of the director's own quotes. What is taken out is held against the rules first.

use e2e::packet::transport;
use e2e::unusual::sum_header;

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const GUE_PORT: u16 = e2e::scene::TUNNEL_PORT;

/// Returns what came out for a frame that was `sent`, in its canonical form.
pub(crate) fn canonical(sent: &[u8], frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let is_v4 = transport(&frame) == 34;
    if is_v4 {
        let header = 14..14 + usize::from(frame[14] & 15) * 4;
        assert!(sums_to_nothing(&frame[header]), "{frame:02x?}");
        // A datagram goes on under its number; others get one that the sender draws.
        if sent[12..14] != [0x08, 0x00] || sent[18..20] != frame[18..20] {
            frame[18..20].fill(0);
        }
        sum_header(&mut frame);
    }
    if is_v4 && u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff != 0 {
        // No transport header stands here.
        return frame;
    }
    let (at, protocol) = (transport(&frame), frame[if is_v4 { 23 } else { 20 }]);
    let came = frame.clone();
    let word = |at: usize| u16::from_be_bytes([came[at], came[at + 1]]);
    if protocol == UDP && word(at + 2) == GUE_PORT {
        assert!((32_768..61_000).contains(&word(at)), "{frame:02x?}");
        if word(at + 6) != 0 {
            let whole = !is_v4 || word(20) & 0x3fff == 0;
            let right = !whole || sums_to_nothing(&pseudo(&frame, at, UDP));
            frame[at + 6..at + 8].fill(if right { 0xff } else { 0xee });
        }
        frame[at..at + 2].fill(0);
    }
    // The same in a fragment, of whose datagram this may be a part.
    if !is_v4 && protocol == FRAGMENT && frame[at] == UDP && word(at + 10) == GUE_PORT {
        let summed = word(at + 14) != 0;
        frame[at + 8..at + 10].fill(0);
        frame[at + 14..at + 16].fill(if summed { 0xff } else { 0 });
    }
    forget_datagram(&mut frame);
    if is_error(&frame) {
        let quote = if !is_icmp(sent) {
            Quote::Headers
        } else if sent.len() == frame.len() {
            Quote::All
        } else {
            Quote::Ports
        };
        settle_error(&mut frame, at, quote);
    }
    frame
}

/// Takes the number of a datagram out of the fragment header of an IPv6 packet, be it in a tunnel.
fn forget_datagram(frame: &mut [u8]) {
    const IPV6: u8 = 41;
    let inside = match (transport(frame), frame[20], frame[23]) {
        (34, _, IPV6) => 34,
        (54, IPV6, _) => 54,
        (54, ..) => 14,
        _ => return,
    };
    if frame.get(inside + 6) == Some(&FRAGMENT) && frame.len() >= inside + 48 {
        frame[inside + 44..inside + 48].fill(0);
    }
}

fn is_icmp(frame: &[u8]) -> bool {
    if transport(frame) == 34 { frame[23] == 1 } else { frame[20] == 58 }
}

fn is_error(frame: &[u8]) -> bool {
    let kind = frame[transport(frame)];
    is_icmp(frame)
        && if transport(frame) == 34 { [3, 4, 11, 12].contains(&kind) } else { kind < 128 }
}

/// What an error quotes of a packet, as far as it is compared.
#[derive(Clone, Copy, PartialEq)]
enum Quote {
    /// All of it: the error was only sent on.
    All,
    /// The headers: the director has made it.
    Headers,
    /// Eight bytes behind the IP header: the director has made it of one about a tunnel.
    Ports,
}

/// Takes the checksums out of an ICMP error and of what it quotes, and what it quotes too much.
fn settle_error(frame: &mut Vec<u8>, at: usize, quote: Quote) {
    let is_v4 = at == 34;
    let sum = if is_v4 { frame[at..].to_vec() } else { pseudo(frame, at, 58) };
    assert!(sums_to_nothing(&sum), "{frame:02x?}");
    frame[at + 2..at + 4].fill(0);
    let quoted = at + 8;
    let (header, protocol) = if is_v4 {
        (usize::from(frame[quoted] & 15) * 4, frame[quoted + 9])
    } else {
        (40, frame[quoted + 6])
    };
    let (length, checksum) = if protocol == 6 { (20, 16) } else { (8, 6) };
    if let Some(checksum) =
        frame.get_mut(quoted + header + checksum..quoted + header + checksum + 2)
    {
        checksum.fill(0);
    }
    let length = match quote {
        Quote::All => return,
        Quote::Headers => length,
        Quote::Ports => 8,
    };
    frame.truncate(quoted + header + length);
    let length = (frame.len() - if is_v4 { 14 } else { 54 }) as u16;
    let length_at = if is_v4 { 16 } else { 18 };
    frame[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    if is_v4 {
        sum_header(frame);
    }
}

/// Returns what the checksum of a transport header is taken over.
fn pseudo(frame: &[u8], at: usize, protocol: u8) -> Vec<u8> {
    let ends = if at == 34 { &frame[26..34] } else { &frame[22..54] };
    let length = (frame.len() - at) as u16;
    [ends, &length.to_be_bytes(), &[0, protocol], &frame[at..]].concat()
}

fn sums_to_nothing(bytes: &[u8]) -> bool {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}
