//! Hostile input by the thousand: each target turns bytes into a call and checks what must hold for
//! any bytes.
//!
//! `FUZZ_SECONDS` sets how long each target runs (2 without it) and `FUZZ_SEED` where its random
//! numbers begin, which is printed when a target fails, with the file that holds the input. Such a
//! file, put into `corpus/TARGET/`, is run first by every later run, as are the few inputs there that
//! reach most of the code. The crate in `fuzz/` runs the same targets under libFuzzer, guided by
//! coverage.
#![expect(clippy::unwrap_used, reason = "a target fails by panicking")]
#![expect(clippy::panic, reason = "a target fails by panicking")]

mod harness;
mod mutate;
mod random;
mod seeds;
mod targets;

use harness::run;

#[test]
fn footer() {
    run("footer", seeds::footers(), mutate::bytes, targets::footer);
}

#[test]
fn toc() {
    run("toc", seeds::tocs(), mutate::json, targets::toc);
}

#[test]
fn section() {
    run(
        "section",
        seeds::sections(),
        mutate::bytes,
        targets::section,
    );
}

#[test]
fn member() {
    run("member", seeds::members(), mutate::bytes, targets::member);
}

#[test]
fn tar() {
    run("tar", seeds::tars(), mutate::tar, targets::tar);
}

#[test]
fn blob() {
    run("blob", seeds::blobs(), mutate::bytes, targets::blob);
}
