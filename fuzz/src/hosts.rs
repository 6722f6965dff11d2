//! The target `hosts` of `src/registry/fuzz.rs` under libFuzzer.
#![no_main]

#[path = "../../crates/estargz/fuzz/src/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::registry::fuzz::hosts(data));
