//! Verifies a whole blob against the digest of its TOC.
//!
//! ```text
//! cargo run --example verify -- BLOB sha256:…
//! ```
//!
//! The digest is the annotation `containerd.io/snapshot/stargz/toc.digest` of the layer in the
//! manifest of its image. The exit code is 1 if anything differs.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use estargz::archive::{Archive, Source};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match &arguments[..] {
        [blob, toc_digest] => verify(blob, toc_digest),
        _ => Err("usage: verify BLOB TOC_DIGEST".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

/// Prints a report. Returns whether the blob is good.
fn verify(blob: &str, toc_digest: &str) -> Result<bool> {
    let source = Source::file(File::open(blob)?)?;
    let archive = Archive::open(source, &toc_digest.parse()?)?;
    let report = archive.verify()?;
    let mut out = io::stdout().lock();
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    writeln!(
        out,
        "{} entries, {} chunks, diff-id {}: {} findings",
        report.entries,
        report.chunks,
        report.diff_id,
        report.findings.len()
    )?;
    Ok(report.is_clean())
}

/// Prints an error and its causes, a line for each: no error repeats the text of its cause.
fn report(error: &dyn std::error::Error) {
    let mut next = Some(error);
    while let Some(error) = next {
        let _unprintable = writeln!(io::stderr(), "{error}");
        next = error.source();
    }
}
