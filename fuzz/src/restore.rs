//! Feeds the fuzzer's bytes to `e2e::restore`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| e2e::restore::run(data));
