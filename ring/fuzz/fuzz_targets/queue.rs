//! libFuzzer on `targets::queue`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::queue(data));
