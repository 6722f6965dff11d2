//! Runs a target on its corpus, then on mutations until the time is over.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::random::Random;

/// Seconds for each target by default: enough to notice grave mistakes.
const DEFAULT_SECONDS: u64 = 2;
/// Mutations applied to one seed.
const MAX_MUTATIONS: usize = 12;
/// One input may take no longer, however busy the machine is.
const HANG: Duration = Duration::from_secs(30);

pub(crate) type Mutate = fn(&mut Vec<u8>, &[u8], &mut Random);

/// Panics with the seed and the input's file if the target does.
pub(crate) fn run(name: &str, mut seeds: Vec<Vec<u8>>, mutate: Mutate, target: fn(&[u8])) {
    let seed = number("FUZZ_SEED").unwrap_or(0x5eed);
    let until =
        Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(DEFAULT_SECONDS));
    seeds.extend(corpus(name));
    for input in &seeds {
        check(name, seed, input, target);
    }
    let mut random = Random::new(seed);
    let mut runs: u64 = seeds.len() as u64;
    while Instant::now() < until {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..1 + random.below(MAX_MUTATIONS) {
            let other = random.below(seeds.len());
            mutate(&mut input, &seeds[other], &mut random);
        }
        check(name, seed, &input, target);
        runs += 1;
    }
    // The number of inputs is the result of a run that finds nothing.
    let mut said = std::io::stdout();
    writeln!(said, "{name}: {runs} inputs from seed {seed:#x}").unwrap();
}

fn check(name: &str, seed: u64, input: &[u8], target: fn(&[u8])) {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    let took = start.elapsed();
    if result.is_err() || took > HANG {
        let file = std::env::temp_dir().join(format!("fuzz-{name}-{seed:x}"));
        std::fs::write(&file, input).unwrap();
        panic!(
            "target {name} failed after {took:?}, seed {seed:#x}, input in {}",
            file.display()
        );
    }
}

/// The inputs that once failed, and a few that reach most of the code.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap())
}
