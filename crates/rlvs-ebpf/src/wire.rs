//! What the benchmark agrees on with the programs at the ends of a wire; the benchmark includes
//! this file too.

/// The one element of the map `wire`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire {
    /// Index of the interface that `send` puts frames into.
    pub interface: u32,
    /// 1 if `address` and `port` are those that a frame at the far end comes from, 0 if they are
    /// those that it goes to.
    pub source: u32,
    /// IPv4 address in network order.
    pub address: u32,
    /// TCP port in network order.
    pub port: u32,
    /// MAC address that a frame at the far end goes to, and two bytes of 0.
    pub mac: u64,
    /// Frames at the far end that were so.
    pub right: u64,
    /// Frames at the far end that were not.
    pub wrong: u64,
}
