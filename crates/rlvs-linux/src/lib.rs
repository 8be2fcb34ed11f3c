//! The only crate that talks to the kernel.

pub mod names;
