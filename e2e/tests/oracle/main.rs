//! Ours and the kernel's own IPVS side by side: the same commands, the same packets.
//!
//! The kernel's is a Linux 6.1 that `scripts/ipvs-oracle` boots with this very program in it. What it
//! did is in `golden/packets.txt`, so that ours can be held against it without it;
//! `RLVS_RECORD=1 cargo test -p e2e --test oracle kernel` writes the file anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apart;
mod canonical;
mod checks;
mod daemon;
mod files;
mod guest;
mod packets;
mod picks;
mod play;
mod scenes;
mod streams;
mod synchronisation;
