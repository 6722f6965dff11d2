//! The target `certificates` of `src/serve/access/fuzz.rs` under libFuzzer.
#![no_main]

#[path = "../../crates/estargz/fuzz/src/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| starlift::serve::fuzz::certificates(data));
