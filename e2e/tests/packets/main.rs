//! A few packets at a time: verdict, bytes, and everything that changed.
//!
//! Every packet goes through XDP, TC and the host; `World` holds them against each other, so what
//! is asserted here once holds for all three.

mod expiry;
mod malformed;
mod paths;
mod reasons;
mod schedulers;
mod states;
