//! The rings held against the kernel: recorded picks, documented examples, a literal model.

mod director;
mod golden;
mod kernel;
mod properties;
mod scale;
mod vectors;
