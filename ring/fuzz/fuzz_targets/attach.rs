//! libFuzzer on `targets::attach`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::attach(data));
