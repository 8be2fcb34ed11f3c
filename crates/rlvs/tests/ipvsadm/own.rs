//! What the real `ipvsadm` did, replayed against our own table: maps, programs and all.

use std::path::PathBuf;

use rlvs::lab::topology::{Lab, Options, WebServer, Wiring};
use rlvs_linux::dataplane::attach;

use crate::machine::Machine;
use crate::{golden, observed};

/// Does some work on a director in a namespace of its own, to which the first edit attaches the programs.
fn on_a_director(work: fn()) {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_rlvs"));
    let options =
        Options { wiring: Wiring::Plain, web_server: WebServer::Ours, program, keep: false };
    let lab = Lab::new(&options).unwrap();
    let work = || {
        work();
        attach::detach().unwrap();
    };
    lab.director().run(work).unwrap();
}

#[test]
fn every_recorded_run_comes_out_the_same_on_our_own_table() {
    on_a_director(|| golden::check(Machine::with_own, &golden::DIFFERENT.map(|(name, _)| name)));
}

/// All of them pass, but a ninth takes twenty seconds: each opens the table five times.
#[test]
fn observed_runs_come_out_the_same_on_our_own_table() {
    on_a_director(|| observed::check(Machine::with_own, 9));
}
