//! The compressors of one worker, reused for all members, because making one takes longer than a
//! small file.

use libdeflater::{CompressionLvl, Compressor};

use super::batch::lengthen;
use crate::write::Compression;

/// A TOC shrinks to about a sixth of its length; the length of a very short one does not matter.
const TEXT_SHRINKS: usize = 3;
const TEXT_LEAST: usize = 4096;

/// A worker failed: it panicked, or a compressor refused its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("worker thread failed to compress a member")]
pub(crate) struct Failed;

#[derive(Default)]
pub(super) struct Encoders {
    known: Vec<(Compression, Encoder)>,
}

pub(crate) enum Encoder {
    Gzip(Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoders {
    /// Returns the encoder for `compression`, which is made at its first use.
    pub(super) fn get(&mut self, compression: Compression) -> Result<&mut Encoder, Failed> {
        let position = match self
            .known
            .iter()
            .position(|(known, _)| *known == compression)
        {
            Some(position) => position,
            None => {
                self.known.push((compression, Encoder::new(compression)?));
                self.known.len() - 1
            }
        };
        Ok(&mut self.known[position].1)
    }
}

impl Encoder {
    pub(crate) fn new(compression: Compression) -> Result<Self, Failed> {
        match compression {
            Compression::Gzip(level) => {
                let level =
                    CompressionLvl::new(i32::from(level)).map_err(|_out_of_range| Failed)?;
                Ok(Self::Gzip(Compressor::new(level)))
            }
            Compression::Zstd(level) => zstd::bulk::Compressor::new(i32::from(level))
                .map(Self::Zstd)
                .map_err(|_no_memory| Failed),
        }
    }

    /// Writes `data` as one member to `out` from `at` on, which grows as needed. Returns the length
    /// of the member.
    ///
    /// The bytes after the member in `out` are arbitrary.
    pub(crate) fn encode(
        &mut self,
        data: &[u8],
        out: &mut Vec<u8>,
        at: usize,
    ) -> Result<usize, Failed> {
        let bound = match self {
            Self::Gzip(compressor) => compressor.gzip_compress_bound(data.len()),
            Self::Zstd(_) => zstd::zstd_safe::compress_bound(data.len()),
        };
        lengthen(out, at, at + bound);
        self.fill(data, &mut out[at..])
    }

    /// Compresses `data`, which is as repetitive as a TOC, as one member.
    pub(crate) fn encode_text(&mut self, data: &[u8]) -> Result<Vec<u8>, Failed> {
        // Room for the worst case would take as much memory as the text itself. The bytes of zstd
        // could depend on the room, so it gets the worst case.
        let mut out = vec![0; data.len() / TEXT_SHRINKS + TEXT_LEAST];
        let fitted = if matches!(self, Self::Gzip(_)) {
            self.fill(data, &mut out)
        } else {
            Err(Failed)
        };
        let length = fitted.or_else(|_no_room| self.encode(data, &mut out, 0))?;
        out.truncate(length);
        Ok(out)
    }

    fn fill(&mut self, data: &[u8], out: &mut [u8]) -> Result<usize, Failed> {
        match self {
            Self::Gzip(compressor) => compressor
                .gzip_compress(data, out)
                .map_err(|_no_room| Failed),
            Self::Zstd(compressor) => compressor
                .compress_to_buffer(data, out)
                .map_err(|_refused| Failed),
        }
    }
}
