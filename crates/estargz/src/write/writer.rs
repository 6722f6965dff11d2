//! The front door of writing: options and worker threads in one builder.

use std::io::{Read, Write};
use std::num::NonZeroUsize;

use super::{Error, Options, Written, write};
use crate::pool::Pool;

/// Bytes of members that the threads of a writer hold in memory, unless it is set: a few batches
/// for each of eight threads.
const DEFAULT_MEMORY: usize = 64 << 20;

/// Writes tars as blobs.
///
/// ```
/// use estargz::write::{Compression, Options, Writer};
///
/// # let mut tar = tar::Builder::new(Vec::new());
/// # let mut header = tar::Header::new_ustar();
/// # header.set_size(6);
/// # tar.append_data(&mut header, "hello.txt", &b"hello\n"[..])?;
/// # let tar = tar.into_inner()?;
/// let mut blob = Vec::new();
/// let options = Options::default().with_compression(Compression::Gzip(9));
/// let written = Writer::new(options).write(tar.as_slice(), &mut blob)?;
/// println!("{} with the TOC {}", written.blob_digest, written.toc_digest);
/// # assert_eq!(written.blob_size, blob.len() as u64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The bytes of a blob do not depend on threads or memory.
#[derive(Debug, Clone)]
pub struct Writer<'p> {
    options: Options,
    workers: Workers<'p>,
}

#[derive(Debug, Clone, Copy)]
enum Workers<'p> {
    /// Threads for one call.
    Own {
        threads: Option<NonZeroUsize>,
        memory: usize,
    },
    Shared(&'p Pool),
}

impl Default for Writer<'_> {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl<'p> Writer<'p> {
    /// A writer with these options, with a thread for each processor and 64 MiB of memory.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            workers: Workers::Own {
                threads: None,
                memory: DEFAULT_MEMORY,
            },
        }
    }

    /// Sets how many threads compress.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.workers = Workers::Own {
            threads: Some(threads),
            memory: self.memory_or_default(),
        };
        self
    }

    /// Sets about how many bytes of members are held in memory.
    #[must_use]
    pub fn memory(mut self, bytes: usize) -> Self {
        let threads = match self.workers {
            Workers::Own { threads, .. } => threads,
            Workers::Shared(_) => None,
        };
        self.workers = Workers::Own {
            threads,
            memory: bytes,
        };
        self
    }

    /// Compresses on the threads of `pool`, which several writers can share, instead of on threads
    /// of its own.
    #[must_use]
    pub fn pool(mut self, pool: &'p Pool) -> Self {
        self.workers = Workers::Shared(pool);
        self
    }

    /// Writes the blob of `tar`, a plain tar archive, to `out`. Blocks until it is complete.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn write<R: Read, W: Write>(&self, tar: R, out: W) -> Result<Written, Error> {
        match self.workers {
            Workers::Shared(pool) => write(tar, out, &self.options, pool),
            Workers::Own { threads, memory } => {
                self.options.check()?;
                let threads = threads
                    .or_else(|| std::thread::available_parallelism().ok())
                    .unwrap_or(NonZeroUsize::MIN);
                write(tar, out, &self.options, &Pool::new(threads, memory))
            }
        }
    }

    fn memory_or_default(&self) -> usize {
        match self.workers {
            Workers::Own { memory, .. } => memory,
            Workers::Shared(_) => DEFAULT_MEMORY,
        }
    }
}
