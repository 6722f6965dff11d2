//! The conversion of one tar, plain or compressed, into one blob, without an image.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use estargz::pool::Pool;
use estargz::write::Options;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::convert::{self, Prioritized};
use crate::failure::Failure;
use crate::layers::inflate::Inflate;
use crate::tempfiles::{keep, new_file_for, write_atomically};

/// Bytes read from the input at once.
const READ_SIZE: usize = 1 << 20;

/// The name for standard input and output.
pub(crate) const STANDARD: &str = "-";

/// A conversion of the layer in a file. `-` is standard input and output.
#[derive(Debug)]
pub(crate) struct LayerConversion {
    source: String,
    target: String,
    options: Options,
    /// The files that come first; empty for the order of the source.
    prioritized: Vec<Vec<u8>>,
    threads: NonZeroUsize,
    memory: usize,
}

/// The result of a layer's conversion.
#[derive(Debug, Serialize)]
pub(crate) struct LayerReport {
    pub(crate) digest: String,
    pub(crate) size: u64,
    diff_id: String,
    uncompressed_size: u64,
    source_diff_id: String,
    source_size: u64,
    toc_digest: String,
    pub(crate) entries: u64,
    pub(crate) chunks: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_toc: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zstd_manifest_position: Option<String>,
    /// The prioritized paths that are not in the layer.
    #[serde(skip)]
    pub(crate) missing: Vec<Vec<u8>>,
}

impl LayerConversion {
    /// Creates a conversion of the file `source` into the file `target`, with the files of
    /// `prioritized` first.
    ///
    /// # Errors
    /// If the options of `config` exclude each other or are out of range.
    pub(crate) fn new(
        source: &str,
        target: &str,
        config: &convert::Config,
        prioritized: Vec<Vec<u8>>,
    ) -> Result<Self, Failure> {
        let options = config.options().map_err(Failure::from_error)?;
        let threads = config
            .threads
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        let memory = usize::try_from(config.memory.as_u64()).map_err(Failure::from_error)?;
        Ok(Self {
            source: source.to_owned(),
            target: target.to_owned(),
            options,
            prioritized,
            threads,
            memory,
        })
    }

    /// Converts the layer. An external TOC goes to the target's path with `.toc` appended.
    /// `counter` counts the bytes of the source. Blocking.
    pub(crate) fn run(&self, counter: &ProgressBar) -> Result<LayerReport, Failure> {
        let (input, size) = open(&self.source)?;
        counter.set_length(size);
        let counted = BufReader::with_capacity(READ_SIZE, counter.wrap_read(input));
        if self.target == STANDARD {
            self.to_stdout(counted)
        } else {
            self.to_file(counted, Path::new(&self.target))
        }
    }

    fn to_stdout(&self, input: impl BufRead) -> Result<LayerReport, Failure> {
        let mut out = BufWriter::new(io::stdout().lock());
        let outcome = self.write(input, &mut out)?;
        out.flush()
            .map_err(Failure::when("standard output cannot be written"))?;
        if outcome.written.external_toc.is_some() {
            return Err(Failure::new(
                "an external TOC is written next to the destination, which therefore has to be a file",
            ));
        }
        Ok(LayerReport::of(outcome, None))
    }

    fn to_file(&self, input: impl BufRead, path: &Path) -> Result<LayerReport, Failure> {
        let cannot = || Failure::when(format!("{} cannot be written", path.display()));
        let mut out = BufWriter::new(new_file_for(path).map_err(cannot())?);
        let outcome = self.write(input, &mut out)?;
        let mut toc_path = None;
        if let Some(toc) = &outcome.written.external_toc {
            let beside = PathBuf::from(format!("{}.toc", path.display()));
            write_atomically(&beside, toc).map_err(cannot())?;
            toc_path = Some(beside);
        }
        let file = out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .map_err(cannot())?;
        keep(file, path).map_err(cannot())?;
        Ok(LayerReport::of(outcome, toc_path))
    }

    fn write(&self, input: impl BufRead, out: impl Write) -> Result<Prioritized, Failure> {
        let what = format!("{} cannot be converted", self.source);
        let tar = Inflate::new(input).map_err(Failure::when(what.clone()))?;
        let pool = Pool::new(self.threads, self.memory);
        let outcome = if self.prioritized.is_empty() {
            let written = estargz::write::write(tar, out, &self.options, &pool);
            let missing = Vec::new();
            written.map(|written| Prioritized { written, missing })
        } else {
            convert::write_prioritized(tar, out, &self.options, &pool, &self.prioritized)
        };
        outcome.map_err(Failure::when(what))
    }
}

impl LayerReport {
    fn of(outcome: Prioritized, external_toc: Option<PathBuf>) -> Self {
        let Prioritized { written, missing } = outcome;
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
            zstd_manifest_position: written.zstd_manifest_position,
            missing,
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
