//! The rings held against the kernel: documented examples, a literal model.

mod director;
mod kernel;
mod properties;
mod scale;
mod vectors;
