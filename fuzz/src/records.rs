//! The target `records` of `src/store/fuzz.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::store::fuzz::records(data));
