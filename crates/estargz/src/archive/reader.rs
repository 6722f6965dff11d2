//! One file of a layer, read as a stream whose bytes have been verified.

use std::io::{self, BufRead, ErrorKind, Read, Seek, SeekFrom};

use super::{Archive, source};
use crate::chunk::ChunkError;
use crate::tar;
use crate::toc::{Kind, Node};

/// Why a file of a layer cannot be read.
///
/// A [`FileReader`] returns it inside an [`io::Error`]: [`ErrorKind::InvalidData`] for a damaged
/// chunk, and the source's own kind if the source failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The layer has no entry with this path.
    #[error("{path:?} is not in the layer")]
    NotFound {
        /// The path that was asked for.
        path: String,
    },
    /// The entry has no content of its own.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// The path of the entry.
        path: String,
        /// Its type.
        kind: Kind,
    },
    /// The source of the blob failed.
    #[error("{path:?}: blob cannot be read at byte {offset}")]
    Source {
        /// The file being read.
        path: String,
        /// The byte of the blob where the failed read began.
        offset: u64,
        /// The error of the source.
        #[source]
        error: io::Error,
    },
    /// The bytes of the blob are not the content that the TOC describes.
    #[error("{path:?}: chunk at {file_offset} is damaged")]
    Chunk {
        /// The file being read.
        path: String,
        /// The byte of the file where the chunk begins.
        file_offset: u64,
        /// The difference.
        #[source]
        error: ChunkError,
    },
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::NotFound { .. } => ErrorKind::NotFound,
            ReadError::NotAFile { .. } => ErrorKind::InvalidInput,
            ReadError::Source { error, .. } => error.kind(),
            ReadError::Chunk { .. } => ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// The content of one regular file.
///
/// The reader fetches and verifies one chunk at a time and holds it in memory, so it needs no
/// buffer around it. A byte of a chunk is returned only after the whole chunk has the digest that
/// the TOC gives. After an error the position is unchanged, so that a read can be repeated.
#[derive(Debug)]
pub struct FileReader<'a> {
    archive: &'a Archive,
    path: Vec<u8>,
    node: Node<'a>,
    position: u64,
    /// Where `content` begins in the file.
    start: u64,
    /// The verified content of one chunk; empty if there is none.
    content: Vec<u8>,
}

impl<'a> FileReader<'a> {
    pub(super) fn new(archive: &'a Archive, path: Vec<u8>, node: Node<'a>) -> Self {
        Self {
            archive,
            path,
            node,
            position: 0,
            start: 0,
            content: Vec::new(),
        }
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.node.size()
    }

    /// Where the bytes at the position are in `content`, if the chunk at the position is in memory.
    fn held(&self) -> Option<usize> {
        let at = usize::try_from(self.position.checked_sub(self.start)?).ok()?;
        (at < self.content.len()).then_some(at)
    }

    /// Fetches and verifies the chunk at the position. At the end of the file there is none.
    fn load(&mut self) -> Result<(), ReadError> {
        self.content.clear();
        let Some(chunk) = self.node.chunk_at(self.position) else {
            return Ok(());
        };
        let offset = chunk.range.start;
        let member = self
            .archive
            .source
            .read_range(chunk.range.clone())
            .map_err(|error| ReadError::Source {
                path: tar::lossy(&self.path),
                offset,
                error,
            })?;
        chunk
            .decode_into(&member, &mut self.content)
            .map_err(|error| ReadError::Chunk {
                path: tar::lossy(&self.path),
                file_offset: chunk.file_offset,
                error,
            })?;
        self.start = chunk.file_offset;
        Ok(())
    }
}

impl BufRead for FileReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.held().is_none() {
            self.load()?;
        }
        let at = self.held().unwrap_or(self.content.len());
        Ok(&self.content[at..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = self.position.saturating_add(amount as u64);
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for FileReader<'_> {
    /// Moves the position; the next read fetches the chunk there. Positions past the end are
    /// allowed.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = source::seek(self.position, self.size(), to)?;
        Ok(self.position)
    }
}
