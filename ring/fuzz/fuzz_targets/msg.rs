//! libFuzzer on `targets::msg`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::msg(data));
