//! The faces of the rlvs binary, each drivable from a test without the binary.
#![forbid(unsafe_code)]

pub mod face;
pub mod ipvsadm;
pub mod lab;
pub mod mark;
pub mod set;
