//! `starlift convert --layer`: converts one tar, plain or compressed, into one blob, without an
//! image.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use estargz::pool::Pool;
use estargz::write::{Options, Written};
use serde::Serialize;

use super::output;
use super::progress::Bar;
use super::table::printable;
use crate::convert::{self, Prioritized};
use crate::failure::Failure;
use crate::layers::inflate::Inflate;
use crate::tempfiles::{keep, new_file_for};

/// Bytes read from the input at once.
const READ_SIZE: usize = 1 << 20;

/// The name for standard input and output.
const STANDARD: &str = "-";

/// The result of a layer's conversion.
#[derive(Debug, Serialize)]
struct LayerConversion {
    digest: String,
    size: u64,
    diff_id: String,
    uncompressed_size: u64,
    source_diff_id: String,
    source_size: u64,
    toc_digest: String,
    entries: u64,
    chunks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_toc: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zstd_manifest_position: Option<String>,
}

/// Converts the layer in the file `source` into the file `destination`. `-` is standard input and
/// output.
///
/// An external TOC goes to `destination` with `.toc` appended.
pub(super) async fn convert(
    source: &str,
    destination: &str,
    config: &convert::Config,
    prioritized: Vec<Vec<u8>>,
    json: bool,
) -> Result<(), Failure> {
    let options = config.options().map_err(Failure::from_error)?;
    let threads = config
        .threads
        .or_else(|| std::thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN);
    let memory = usize::try_from(config.memory.as_u64()).map_err(Failure::from_error)?;
    let (source, target) = (source.to_owned(), destination.to_owned());
    let work = Work {
        source,
        destination: target,
        options,
        prioritized,
        threads,
        memory,
        json,
    };
    let made = tokio::task::spawn_blocking(move || work.run())
        .await
        .map_err(Failure::from_error)??;
    let is_stdout_taken = destination == STANDARD;
    match (json, is_stdout_taken) {
        (true, false) => output::print_json(&made),
        (true, true) => serde_json::to_string(&made)
            .map_err(Failure::from_error)
            .map(|text| output::say(&text)),
        (false, _) => {
            output::say(&format!(
                "{destination}: {} entries, {} chunks, {} bytes",
                made.entries, made.chunks, made.size
            ));
            if is_stdout_taken {
                Ok(())
            } else {
                output::print(&format!("{}\n", made.digest))
            }
        }
    }
}

struct Work {
    source: String,
    destination: String,
    options: Options,
    /// The files that come first; empty for the order of the source.
    prioritized: Vec<Vec<u8>>,
    threads: NonZeroUsize,
    memory: usize,
    json: bool,
}

impl Work {
    fn run(&self) -> Result<LayerConversion, Failure> {
        let (input, size) = open(&self.source)?;
        let bar = Bar::new("converting", size, self.json);
        let counted = BufReader::with_capacity(
            READ_SIZE,
            Counted {
                inner: input,
                bar: bar.clone(),
            },
        );
        let outcome = if self.destination == STANDARD {
            self.to_stdout(counted)
        } else {
            self.to_file(counted, Path::new(&self.destination))
        };
        bar.finish();
        outcome
    }

    fn to_stdout(&self, input: impl BufRead) -> Result<LayerConversion, Failure> {
        let mut out = BufWriter::new(io::stdout().lock());
        let written = self.write(input, &mut out)?;
        out.flush()
            .map_err(Failure::when("standard output cannot be written"))?;
        if written.external_toc.is_some() {
            return Err(Failure::new(
                "an external TOC is written next to the destination, which therefore has to be a file",
            ));
        }
        Ok(LayerConversion::of(&written, None))
    }

    fn to_file(&self, input: impl BufRead, path: &Path) -> Result<LayerConversion, Failure> {
        let cannot = || Failure::when(format!("{} cannot be written", path.display()));
        let mut out = BufWriter::new(new_file_for(path).map_err(cannot())?);
        let written = self.write(input, &mut out)?;
        let mut toc_path = None;
        if let Some(toc) = &written.external_toc {
            let beside = PathBuf::from(format!("{}.toc", path.display()));
            crate::tempfiles::write_atomically(&beside, toc).map_err(cannot())?;
            toc_path = Some(beside);
        }
        let file = out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .map_err(cannot())?;
        keep(file, path).map_err(cannot())?;
        Ok(LayerConversion::of(&written, toc_path))
    }

    fn write(&self, input: impl BufRead, out: impl Write) -> Result<Written, Failure> {
        let what = format!("{} cannot be converted", self.source);
        let unread = || Failure::when(what.clone());
        let cannot = || Failure::when(what.clone());
        let tar = Inflate::new(input).map_err(unread())?;
        let pool = Pool::new(self.threads, self.memory);
        if self.prioritized.is_empty() {
            return estargz::write::write(tar, out, &self.options, &pool).map_err(cannot());
        }
        let made = convert::write_prioritized(tar, out, &self.options, &pool, &self.prioritized);
        let Prioritized { written, missing } = made.map_err(cannot())?;
        for path in missing {
            output::say(&format!(
                "{} is not in the layer",
                printable(&String::from_utf8_lossy(&path))
            ));
        }
        Ok(written)
    }
}

impl LayerConversion {
    fn of(written: &Written, external_toc: Option<PathBuf>) -> Self {
        Self {
            digest: written.blob_digest.to_string(),
            size: written.blob_size,
            diff_id: written.diff_id.to_string(),
            uncompressed_size: written.uncompressed_size,
            source_diff_id: written.source_diff_id.to_string(),
            source_size: written.source_size,
            toc_digest: written.toc_digest.to_string(),
            entries: written.entries,
            chunks: written.chunks,
            external_toc,
            zstd_manifest_position: written.zstd_manifest_position.clone(),
        }
    }
}

fn open(source: &str) -> Result<(Box<dyn Read>, u64), Failure> {
    if source == STANDARD {
        return Ok((Box::new(io::stdin()), 0));
    }
    let cannot = || Failure::when(format!("{source} cannot be read"));
    let file = File::open(source).map_err(cannot())?;
    let size = file.metadata().map_err(cannot())?.len();
    Ok((Box::new(file), size))
}

/// A reader that reports the bytes read to the progress bar.
struct Counted<R> {
    inner: R,
    bar: Bar,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bar.advance(read);
        Ok(read)
    }
}
