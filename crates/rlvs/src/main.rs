//! The rlvs binary.
fn main() {}
