//! End-to-end tests: what they have in common.

pub mod lab;
