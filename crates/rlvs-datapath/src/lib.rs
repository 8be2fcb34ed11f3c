//! What the load balancer does with a packet: one function, [`process`](process::process), for
//! every body: XDP, TC and the host.
//!
//! A body supplies two things: a [`Frame`](frame::Frame), the packet with what can be asked of the
//! interface it came from, and [`Tables`](tables::Tables), the maps laid out in [`abi`]. Nothing
//! here allocates, loops without a constant bound, or keeps state of its own.
//!
//! Invariant: a packet that does not belong to a virtual service leaves as it came; whatever is not
//! simply forwarded is counted under one [`Reason`](reason::Reason).
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod adopt;
pub mod apart;
pub mod association;
pub mod book;
pub mod connection;
pub mod cut;
pub mod defence;
pub mod endpoint;
pub mod errors;
pub mod estimate;
pub mod forward;
pub mod fragment;
pub mod frame;
pub mod full;
pub mod guard;
pub mod hash;
pub mod hop;
pub mod ip;
pub mod layout;
pub mod learn;
pub mod local;
pub mod mark;
pub mod moved;
pub mod mss;
pub mod opening;
pub mod process;
pub mod quoted;
pub mod reason;
pub mod refuse;
pub mod relay;
pub mod rest;
pub mod schedule;
pub mod schedulers;
pub mod sip;
pub mod special;
pub mod stage;
pub mod state;
pub mod strange;
pub mod sweep;
pub mod tables;
pub mod template;
pub mod tunnel;
pub mod wide;
