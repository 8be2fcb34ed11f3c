//! The keyed hash that places connections and endpoints in their buckets.
//!
//! Two rounds of multiply and xor-shift with secret words, so that nobody who does not know them
//! can fill a bucket on purpose. The control plane computes the same.

use crate::abi::PRESENCE_WORDS;

/// The two places of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Places {
    /// The bucket that is tried first.
    pub first: u32,
    /// The other one.
    pub second: u32,
}

/// Returns the word and the bit that stand for `hash` in the map `presence`.
#[inline(always)]
pub const fn presence(hash: u64) -> (u32, u64) {
    let bit = (hash >> 16) as u32 & (PRESENCE_WORDS * 64 - 1);
    (bit / 64, 1 << (bit % 64))
}

/// Hashes a word with what else belongs to the key.
#[inline(always)]
pub const fn mix(keys: &[u64; 3], word: u64, more: u64) -> u64 {
    let mut hash = (word ^ keys[0]).wrapping_mul(keys[1] | 1);
    hash ^= hash >> 32;
    hash = (hash ^ more).wrapping_mul(keys[2] | 1);
    hash ^ (hash >> 29)
}

/// Returns the places of `hash` in a table of `mask + 1` buckets.
#[inline(always)]
pub const fn places(hash: u64, mask: u32) -> Places {
    let first = (hash >> 32) as u32 & mask;
    let second = hash as u32 & mask;
    let second = if second == first { first ^ 1 } else { second };
    Places { first, second }
}
