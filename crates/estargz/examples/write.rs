//! Writes a tar as an eStargz blob and prints the digests that a manifest needs.
//!
//! ```text
//! cargo run --example write -- TAR BLOB
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use estargz::write::{Options, Writer};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match &arguments[..] {
        [tar, blob] => write(tar, blob),
        _ => Err("usage: write TAR BLOB".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn write(tar: &str, blob: &str) -> Result<()> {
    let out = BufWriter::new(File::create(blob)?);
    let written = Writer::new(Options::default()).write(File::open(tar)?, out)?;
    let mut out = io::stdout().lock();
    writeln!(out, "layer digest  {}", written.blob_digest)?;
    writeln!(out, "layer size    {}", written.blob_size)?;
    writeln!(out, "diff-id       {}", written.diff_id)?;
    writeln!(out, "TOC digest    {}", written.toc_digest)?;
    writeln!(out, "entries       {}", written.entries)?;
    Ok(())
}

/// Prints an error and its causes, a line for each: no error repeats the text of its cause.
fn report(error: &dyn std::error::Error) {
    let mut next = Some(error);
    while let Some(error) = next {
        let _unprintable = writeln!(io::stderr(), "{error}");
        next = error.source();
    }
}
