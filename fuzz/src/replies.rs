//! Feeds the fuzzer's bytes to `e2e::replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| e2e::replies::run(data));
