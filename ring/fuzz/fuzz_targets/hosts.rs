//! libFuzzer on `targets::hosts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::hosts(data));
