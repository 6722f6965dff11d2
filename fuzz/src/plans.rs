//! The target `plans` of `src/rewrite/fuzz.rs` under libFuzzer.
#![no_main]

#[path = "../../crates/estargz/fuzz/src/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::rewrite::fuzz::plans(data));
