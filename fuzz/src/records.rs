//! The target `records` of `src/store/fuzz.rs` under libFuzzer.
#![no_main]

#[path = "../../crates/estargz/fuzz/src/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::store::fuzz::records(data));
