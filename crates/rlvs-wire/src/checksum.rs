//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over 16-bit words in network byte order. A *sum* is the one's complement sum, a
//! *checksum* its complement as it stands in a header, a *delta* the sum of what is new minus what
//! was old: adding a delta to a sum moves a checksum without reading the rest of the packet.

/// Folds a sum of 16-bit words into 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Returns the sum of the words of `N` bytes (`N` even).
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u64 {
    let mut total = 0;
    let mut at = 0;
    while at + 4 <= N {
        total += u64::from(crate::u32_at(bytes, at));
        at += 4;
    }
    if at + 2 <= N {
        total += u64::from(crate::u16_at(bytes, at));
    }
    total
}

/// Returns the delta of replacing words that sum to `old` by words that sum to `new`.
#[inline(always)]
pub const fn delta(old: u16, new: u16) -> u16 {
    fold(!old as u64 + new as u64)
}

/// Returns the delta that undoes `delta`.
#[inline(always)]
pub const fn inverse(delta: u16) -> u16 {
    !delta
}

/// Returns `checksum` after its words changed by `delta` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, delta: u64) -> u16 {
    !fold(!checksum as u64 + delta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(bytes: &[u8; 20]) -> u16 {
        !fold(sum(bytes))
    }

    #[test]
    fn rfc_1071_example() {
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&words)), 0xddf2);
    }

    #[test]
    fn update_equals_full_computation_for_every_word_pair_tried() {
        let mut seed = 0x1234_5678_9abc_def0_u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes = [0xa5; 20];
            bytes[..8].copy_from_slice(&seed.to_be_bytes());
            let before = full(&bytes);
            let old = u16::from_be_bytes([bytes[2], bytes[3]]);
            let new = (seed >> 13) as u16;
            bytes[2..4].copy_from_slice(&new.to_be_bytes());
            let change = delta(old, new);
            assert_eq!(update(before, change.into()), full(&bytes), "{old:04x} to {new:04x}");
            assert_eq!(update(full(&bytes), inverse(change).into()), before);
        }
    }
}
