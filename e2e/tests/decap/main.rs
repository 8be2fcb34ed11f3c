//! The real servers' decapsulator: what it takes out, what it refuses, what it leaves alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod frames;
mod sockets;
#[expect(unsafe_code, reason = "a packet socket is bound to an interface by a system call")]
mod wire;
mod wrap;
