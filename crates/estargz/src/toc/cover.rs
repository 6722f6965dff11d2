//! Checks that the chunks of a file follow each other from its first byte to its last, inside the
//! blob.

use super::chunks::DraftChunk;
use super::error::TocError;
use super::json::RawEntry;
use super::path::lossy;
use super::tree::Run;
use crate::chunk::member_bound;
use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::limits::Limits;

/// The type in containers/storage of a chunk that is not in the blob because it is all zeros.
const HOLE: &str = "zeros";

/// The chunks of all files, and the file whose chunks are not complete.
#[derive(Debug)]
pub(super) struct Cover {
    pub(super) chunks: Vec<DraftChunk>,
    payload_end: u64,
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    name: Vec<u8>,
    inode: u32,
    size: u64,
    covered: u64,
    first: u32,
}

/// A file whose chunks are all known.
pub(super) struct Covered {
    pub(super) inode: u32,
    pub(super) run: Run,
}

impl Cover {
    pub(super) fn new(payload_end: u64) -> Self {
        Self {
            chunks: Vec::new(),
            payload_end,
            open: None,
        }
    }

    /// Begins a file with its first chunk. Empty files have none.
    pub(super) fn begin(
        &mut self,
        entry: &RawEntry<'_>,
        inode: u32,
        limits: &Limits,
    ) -> Result<(), TocError> {
        if entry.size > 0 {
            let first = self.count(limits)?;
            let name = entry.name.as_bytes().to_vec();
            self.open = Some(OpenFile {
                name,
                inode,
                size: entry.size,
                covered: 0,
                first,
            });
            self.push(entry, limits)?;
        }
        Ok(())
    }

    /// Adds the chunk of `entry` to the open file.
    pub(super) fn push(&mut self, entry: &RawEntry<'_>, limits: &Limits) -> Result<(), TocError> {
        let path = || entry.name.clone().into_owned();
        self.count(limits)?;
        let open = self
            .open
            .as_mut()
            .ok_or_else(|| TocError::StrayChunk { path: path() })?;
        if entry.chunk_offset != open.covered {
            return Err(TocError::NotContiguous {
                path: path(),
                got: entry.chunk_offset,
                expected: open.covered,
            });
        }
        let left = open.size - open.covered;
        let size = if entry.chunk_size == 0 {
            left
        } else {
            entry.chunk_size
        };
        if left == 0 {
            return Err(TocError::StrayChunk { path: path() });
        }
        if size > left {
            return Err(TocError::BeyondFile { path: path() });
        }
        if size.max(entry.inner_offset) > limits.max_chunk_bytes {
            return Err(TocError::Limit {
                what: "bytes in a chunk",
                limit: limits.max_chunk_bytes,
            });
        }
        let whole = size == open.size;
        open.covered += size;
        let place = DraftChunk {
            offset: entry.offset,
            end: entry.end_offset,
            inner_offset: entry.inner_offset,
            file_offset: entry.chunk_offset,
            size,
            digest: None,
        };
        self.chunks.push(self.locate(entry, place, whole)?);
        Ok(())
    }

    /// Ends the file that is open, if there is one.
    pub(super) fn end(&mut self) -> Result<Option<Covered>, TocError> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        if open.covered != open.size {
            return Err(TocError::Incomplete {
                path: lossy(&open.name),
            });
        }
        let count = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX) - open.first;
        Ok(Some(Covered {
            inode: open.inode,
            run: Run {
                first: open.first,
                count,
            },
        }))
    }

    /// Sets the end of each chunk: where the next content in the blob begins, but no further than
    /// its size can need.
    pub(super) fn finish(mut self) -> Vec<DraftChunk> {
        let held = self.chunks.iter().filter(|chunk| chunk.digest.is_some());
        let mut starts: Vec<u64> = held.map(|chunk| chunk.offset).collect();
        starts.sort_unstable();
        starts.dedup();
        for chunk in self
            .chunks
            .iter_mut()
            .filter(|chunk| chunk.digest.is_some())
        {
            if chunk.end == 0 {
                let next = starts.partition_point(|start| *start <= chunk.offset);
                chunk.end = starts.get(next).copied().unwrap_or(self.payload_end);
            }
            let bound = member_bound(chunk.inner_offset.saturating_add(chunk.size));
            chunk.end = chunk.end.min(chunk.offset.saturating_add(bound));
        }
        self.chunks
    }

    fn count(&self, limits: &Limits) -> Result<u32, TocError> {
        let over = TocError::Limit {
            what: "chunks",
            limit: u64::from(limits.max_chunks),
        };
        u32::try_from(self.chunks.len())
            .ok()
            .filter(|count| *count < limits.max_chunks)
            .ok_or(over)
    }

    fn locate(
        &self,
        entry: &RawEntry<'_>,
        place: DraftChunk,
        whole: bool,
    ) -> Result<DraftChunk, TocError> {
        let path = || entry.name.clone().into_owned();
        match entry.chunk_type.as_ref() {
            HOLE => {
                return Ok(DraftChunk {
                    offset: 0,
                    end: 0,
                    inner_offset: 0,
                    ..place
                });
            }
            "" => {}
            other => {
                return Err(TocError::ChunkType {
                    path: path(),
                    kind: other.to_owned(),
                });
            }
        }
        let ends_inside =
            place.end == 0 || (place.offset < place.end && place.end <= self.payload_end);
        if place.offset >= self.payload_end || !ends_inside {
            let offset = place.offset.max(place.end);
            return Err(TocError::OutsideBlob {
                path: path(),
                offset,
                payload_end: self.payload_end,
            });
        }
        let text = match entry.chunk_digest.as_ref() {
            "" if whole && entry.kind == EntryKind::Reg => entry.digest.as_ref(),
            chunk_digest => chunk_digest,
        };
        let digest: Digest = text
            .parse()
            .map_err(|_unusable| TocError::NoDigest { path: path() })?;
        Ok(DraftChunk {
            digest: Some(digest),
            ..place
        })
    }
}
