//! The faces of the rlvs binary, each drivable from a test without the binary.
#![forbid(unsafe_code)]

pub mod check;
pub mod face;
pub mod ipvsadm;
pub mod keepalived;
pub mod lab;
pub mod man;
pub mod mark;
pub mod proc;
pub mod set;
pub mod snat;
