//! Tests of the whole, and the benchmark of the packet path: what they have in common.

pub mod lab;
