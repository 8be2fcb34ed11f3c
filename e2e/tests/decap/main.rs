//! The real servers' decapsulator: what it takes out, what it refuses, what it leaves alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod frames;
mod sockets;
mod wrap;
