//! The faces of the rlvs binary, each drivable from a test without the binary.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, reason = "it panics if nobody reads")]

pub mod acl;
pub mod capture;
pub mod carry;
pub mod check;
pub mod configuration;
pub mod doctor;
pub mod drain;
pub mod face;
pub mod ipvsadm;
pub mod json;
pub mod keepalived;
pub mod lab;
pub mod man;
pub mod mark;
pub mod metrics;
pub mod proc;
pub mod reference;
pub mod set;
pub mod snat;
pub mod status;
pub mod top;
pub mod trace;
mod words;
