//! The target `member` of tests/fuzz/targets.rs under libFuzzer.
#![no_main]

mod limit;
#[path = "../../tests/fuzz/targets.rs"]
#[expect(dead_code, reason = "each program runs one target")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::member(data));
