//! Tests of the whole, and the benchmark of the packet path.
