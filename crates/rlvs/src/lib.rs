//! The parts of the rlvs binary that tests use too.
#![forbid(unsafe_code)]

pub mod lab;
