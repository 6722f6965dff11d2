//! Sparse files. The source has their content without its holes, so no chunk of it can be read in
//! place. The complete content is written after the source. Until then the stored bytes are kept
//! here, compressed.

use std::io::{Read, Write};

use super::Error;
use crate::tar::{Header, Unfold};

/// Most compressed bytes of sparse files that are kept for one layer.
pub(super) const MAX_SPOOLED_BYTES: usize = 64 * 1024 * 1024;

/// Most bytes of all sparse files of a layer with their holes. A hole of any size costs its sender
/// nothing, but takes about a second a gigabyte to write.
pub(super) const MAX_UNFOLDED_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// The quickest level, because kept bytes are read only once.
const SPOOL_LEVEL: i32 = 1;

/// The stored bytes of one file while they are collected.
pub(super) struct Spool {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    limit: usize,
}

/// A sparse file whose content has not been written out.
#[derive(Debug)]
pub(super) struct Spooled {
    pub(super) header: Header,
    compressed: Vec<u8>,
}

impl Spool {
    /// A spool of up to `limit` compressed bytes.
    pub(super) fn new(limit: usize) -> Result<Self, Error> {
        let encoder =
            zstd::stream::write::Encoder::new(Vec::new(), SPOOL_LEVEL).map_err(Error::Source)?;
        Ok(Self { encoder, limit })
    }

    pub(super) fn push(&mut self, stored: &[u8]) -> Result<(), Error> {
        self.encoder.write_all(stored).map_err(Error::Source)?;
        if self.encoder.get_ref().len() > self.limit {
            return Err(Error::Limit {
                what: "compressed bytes of sparse files",
                limit: MAX_SPOOLED_BYTES as u64,
            });
        }
        Ok(())
    }

    pub(super) fn finish(self, header: Header) -> Result<Spooled, Error> {
        Ok(Spooled {
            header,
            compressed: self.encoder.finish().map_err(Error::Source)?,
        })
    }
}

impl Spooled {
    pub(super) fn compressed_len(&self) -> usize {
        self.compressed.len()
    }

    /// The file's content.
    pub(super) fn unfold(&self) -> Result<Unfold<'_, impl Read + use<'_>>, Error> {
        let stored = zstd::stream::read::Decoder::with_buffer(&self.compressed[..])
            .map_err(Error::Source)?;
        Ok(Unfold::new(&self.header, stored))
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
