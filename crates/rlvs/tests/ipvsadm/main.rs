//! What the `ipvsadm` face prints and answers, with the table in memory behind it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod golden;
mod grammar;
mod how_to;
mod kernel;
mod listing;
mod machine;
mod matrix;
mod observed;
mod ours;
mod own;
mod props;
mod restore;
