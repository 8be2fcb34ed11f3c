//! The hashes of sh, dh and mh, as the kernel's: no secret in them, so that directors agree.

/// Buckets of sh and dh.
pub const BUCKETS: u32 = 256;
/// Places of mh.
pub const MAGLEV: u32 = 4093;
/// Key by which mh hashes clients, and where a destination's permutation begins.
pub const PLACE: u64 = 2_654_435_761;
/// Key by which mh hashes by how much it goes on.
pub const SKIP: u64 = 2_654_446_892;

/// Returns the bucket of an address.
// As hash_32().
#[inline(always)]
pub const fn bucket(value: u32) -> u32 {
    value.wrapping_mul(0x61c8_8647) >> 24
}

/// Hashes a number under a key, both of whose halves are `key`: SipHash-1-3 of its four bytes.
// As hsiphash_1u32() on 64-bit machines.
#[inline(always)]
pub const fn maglev(value: u32, key: u64) -> u32 {
    let word = 4 << 56 | value as u64;
    let mut state = [
        0x736f_6d65_7073_6575 ^ key,
        0x646f_7261_6e64_6f6d ^ key,
        0x6c79_6765_6e65_7261 ^ key,
        0x7465_6462_7974_6573 ^ key ^ word,
    ];
    state = round(state);
    state[0] ^= word;
    state[2] ^= 0xff;
    let [a, b, c, d] = round(round(round(state)));
    (a ^ b ^ c ^ d) as u32
}

/// One round of SipHash.
#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}
