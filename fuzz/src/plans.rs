//! The target `plans` of `src/convert/fuzz.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::convert::fuzz::plans(data));
