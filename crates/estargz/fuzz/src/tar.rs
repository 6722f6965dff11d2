//! The target `tar` of tests/fuzz/targets.rs under libFuzzer.
//!
//! A mutated header has a wrong checksum, and the rest of the tar would not be read. So each
//! mutation repairs the checksums.
#![no_main]

mod limit;
#[path = "../../tests/fuzz/mutate.rs"]
#[expect(dead_code, reason = "only tars are mutated here")]
mod mutate;
#[path = "../../tests/fuzz/random.rs"]
mod random;
#[path = "../../tests/fuzz/targets.rs"]
#[expect(dead_code, reason = "each program runs one target")]
mod targets;

use random::Random;

/// Mutations of the tar in place of one of libFuzzer's.
const MAX_MUTATIONS: usize = 4;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::tar(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(seed.into());
    if random.below(2) == 0 {
        let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
        mutate::mend_checksums(&mut data[..size]);
        return size;
    }
    let mut input = data[..size].to_vec();
    for _ in 0..1 + random.below(MAX_MUTATIONS) {
        mutate::tar(&mut input, &data[..size], &mut random);
    }
    input.truncate(max_size);
    data[..input.len()].copy_from_slice(&input);
    input.len()
});
