//! CRC32c, as SCTP uses it (RFC 9260, appendix A), moved along with the bytes that change.
//!
//! A CRC is linear: the CRCs of two packets of one length differ by what the difference of their
//! bytes, followed by zeros, leaves in an empty register. A zero bit multiplies the register by x
//! modulo the polynomial, so any number of them is one multiplication by a power of x, and a packet
//! need not be read to know its new CRC. One that was wrong stays wrong.
//!
//! Polynomials are bit-reversed: bit 31 is the coefficient of 1, bit 0 that of x^31.

const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
pub const ONE: u32 = 1 << 31;
/// Steps to any power: bits of 8 · 65,535.
pub const STEPS: u32 = 19;

/// Returns the CRC of a packet of `length` bytes, of which the first four differ from those of a
/// packet with the CRC `old` by `difference`, the exclusive or of both read as little-endian;
/// `power` is that of the length.
#[inline(always)]
pub const fn follow(old: u32, difference: u32, power: u32) -> u32 {
    old ^ product(difference, power)
}

/// Returns x^(8 · `bytes`).
#[inline(always)]
pub const fn power(bytes: u16) -> u32 {
    let (mut power, mut index) = (ONE, 0);
    while index < STEPS {
        power = step(product(power, power), bytes, index);
        index += 1;
    }
    power
}

/// Does one of the [`STEPS`] to a power, which begin with [`ONE`], given the square of what the last has
/// returned: multiplies that by x if the next bit of 8 · `bytes` is set, the most significant first.
#[inline(always)]
pub const fn step(square: u32, bytes: u16, index: u32) -> u32 {
    let bits = (bytes as u32) << 3;
    let is_set = (bits >> ((STEPS - 1).wrapping_sub(index) & 31) & 1).wrapping_neg();
    square ^ (square ^ times_x(square)) & is_set
}

/// Multiplies two polynomials, without a branch for a verifier to follow.
#[inline(always)]
pub const fn product(left: u32, right: u32) -> u32 {
    let (mut product, mut shifted) = (0, right);
    let mut degree = 0;
    while degree < 32 {
        product ^= shifted & (left >> (31 - degree) & 1).wrapping_neg();
        shifted = times_x(shifted);
        degree += 1;
    }
    product
}

#[inline(always)]
const fn times_x(polynomial: u32) -> u32 {
    polynomial >> 1 ^ POLYNOMIAL & (polynomial & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit over every byte, as the appendix has it.
    fn crc32c(bytes: impl IntoIterator<Item = u8>) -> u32 {
        let crc = bytes.into_iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 }
            })
        });
        !crc
    }

    #[test]
    fn the_check_value_is_that_of_the_catalogue() {
        assert_eq!(crc32c(*b"123456789"), 0xe306_9283);
    }

    #[test]
    fn following_equals_computing_anew_for_every_length() {
        let mut seed = 0x1234_5678_9abc_def0_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 32) as u32
        };
        for length in (12..=1500).chain([9000, 32_768, 65_515, 65_535]) {
            let (before, after) = (random(), random());
            let bytes: [u8; 64] = core::array::from_fn(|_| random() as u8);
            let rest = || (4..length).map(|at: u32| bytes[at as usize % 64] ^ (at / 64) as u8);
            let crc = |first: u32| crc32c(first.to_le_bytes().into_iter().chain(rest()));
            let power = power(length as u16);
            let followed = follow(crc(before), before ^ after, power);
            assert_eq!(followed, crc(after), "length {length}");
            assert_eq!(follow(crc(before) ^ 1, before ^ after, power), crc(after) ^ 1);
        }
    }
}
