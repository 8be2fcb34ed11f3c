//! A few packets at a time: verdict, bytes, and everything that changed.
//!
//! Every packet goes through XDP, TC and the host; `World` holds them against each other, so what
//! is asserted here once holds for all three.
#![allow(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a step that fails panics; what it shows is not always looked at"
)]

mod adopt;
mod associations;
mod combined;
mod errors;
mod expiry;
mod full;
mod golden;
mod guard;
mod here;
mod learn;
mod length;
mod local;
mod malformed;
mod mss;
mod paths;
mod persistence;
mod reasons;
mod schedulers;
mod sip;
mod states;
mod strange;
mod tunnels;
mod unusual;
