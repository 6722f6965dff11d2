//! Lists a layer, or prints one of its files.
//!
//! ```text
//! cargo run --example read -- BLOB            # lists the entries
//! cargo run --example read -- BLOB PATH       # prints the file
//! ```
//!
//! The TOC of a local blob is trusted here. The example `verify` compares it with a digest.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use estargz::archive::{Archive, Source};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [blob] => list(blob),
        [blob, path] => print(blob, path),
        _ => Err("usage: read BLOB [PATH]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn open(blob: &str) -> Result<Archive> {
    Ok(Archive::open_unverified(Source::file(File::open(blob)?)?)?)
}

fn list(blob: &str) -> Result<()> {
    let archive = open(blob)?;
    let mut out = io::stdout().lock();
    for entry in archive.entries() {
        let node = entry.node();
        write!(
            out,
            "{:<12} {:04o} {:>6}:{:<6} {:>12} {}",
            format!("{:?}", entry.kind()),
            node.mode(),
            node.uid(),
            node.gid(),
            entry.size(),
            String::from_utf8_lossy(entry.path())
        )?;
        if !node.target().is_empty() {
            write!(out, " -> {}", String::from_utf8_lossy(node.target()))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn print(blob: &str, path: &str) -> Result<()> {
    let archive = open(blob)?;
    let mut reader = archive.entry(path)?.reader()?;
    io::copy(&mut reader, &mut io::stdout().lock())?;
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
