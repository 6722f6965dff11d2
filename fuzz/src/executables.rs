//! The target `executables` of `src/predict/fuzz.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::predict::fuzz::executables(data));
