//! Feeds the fuzzer's bytes to the reader of keepalived.conf.
#![no_main]

#[path = "../../crates/rlvs-conf/tests/promise/mod.rs"]
mod promise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| promise::keep(data));
