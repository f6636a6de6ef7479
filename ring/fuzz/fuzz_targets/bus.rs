//! libFuzzer on `targets::bus`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::bus(data));
