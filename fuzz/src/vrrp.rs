//! Feeds the fuzzer's bytes to `e2e::fuzz_vrrp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| e2e::fuzz_vrrp::run(data));
