//! libFuzzer on `targets::window`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::window(data));
