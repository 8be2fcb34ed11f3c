//! Makes unusual packets of usual ones: options, extension headers, fragments, tags.

use crate::packet::transport;

/// Sums an IPv4 header of any length anew.
pub fn sum_header(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let words = frame[14..end].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Sets the lengths that the IP header of a frame tells.
fn set_length(frame: &mut [u8]) {
    if transport(frame) == 34 {
        let length = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        sum_header(frame);
    } else {
        let length = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
    }
}

/// Returns a frame whose IP header tells its length.
#[must_use]
pub fn resized(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    set_length(&mut frame);
    frame
}

/// Returns an IPv4 frame with options, a multiple of four bytes.
#[must_use]
pub fn optioned(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(34..34, options.iter().copied());
    frame[14] += (options.len() / 4) as u8;
    set_length(&mut frame);
    frame
}

/// Returns an IPv6 frame with extension headers: number and content, from its third byte on.
#[must_use]
pub fn extended(frame: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for &(number, content) in headers.iter().rev() {
        let next = std::mem::replace(&mut frame[20], number);
        let head = [next, ((content.len() + 2) / 8 - 1) as u8];
        frame.splice(54..54, head.into_iter().chain(content.iter().copied()));
    }
    set_length(&mut frame);
    frame
}

/// Returns an IPv6 frame with a fragment header that says that it is whole (RFC 6946).
#[must_use]
pub fn atomic(frame: &[u8], identification: u32) -> Vec<u8> {
    let at = transport(frame);
    Fragment { identification, offset: 0, more: false }.of(frame, at, frame.len() - at)
}

/// Returns a frame with an 802.1Q or 802.1ad tag.
#[must_use]
pub fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let [a, b] = tag.to_be_bytes();
    frame.splice(12..12, [a, b, 0, 5]);
    frame
}

/// Which part of a datagram a fragment says that it is.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Number of the datagram; IPv4 has 16 bits of it.
    pub identification: u32,
    /// Offset in units of eight bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

impl Fragment {
    /// Returns the fragment with `length` bytes from `at` on of a frame without options.
    #[must_use]
    pub fn of(self, frame: &[u8], at: usize, length: usize) -> Vec<u8> {
        let header = transport(frame);
        let mut piece = frame[..header].to_vec();
        if header == 34 {
            piece[18..20].copy_from_slice(&(self.identification as u16).to_be_bytes());
            let word = u16::from(self.more) << 13 | self.offset;
            piece[20..22].copy_from_slice(&word.to_be_bytes());
        } else {
            let next = std::mem::replace(&mut piece[20], 44);
            let [a, b] = (self.offset << 3 | u16::from(self.more)).to_be_bytes();
            piece.extend_from_slice(&[next, 0, a, b]);
            piece.extend_from_slice(&self.identification.to_be_bytes());
        }
        piece.extend_from_slice(&frame[at..at + length]);
        set_length(&mut piece);
        piece
    }
}

/// Cuts a frame into fragments with at most `size` bytes each, a multiple of eight.
#[must_use]
pub fn fragments(frame: &[u8], identification: u32, size: usize) -> Vec<Vec<u8>> {
    let start = transport(frame);
    (start..frame.len())
        .step_by(size)
        .map(|at| {
            let length = size.min(frame.len() - at);
            let (offset, more) = (((at - start) / 8) as u16, at + length < frame.len());
            Fragment { identification, offset, more }.of(frame, at, length)
        })
        .collect()
}
