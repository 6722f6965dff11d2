//! The chunks of all files of a TOC: 56 bytes for each.

use crate::chunk::Chunk;
use crate::codec::Codec;
use crate::digest::Digest;

/// A chunk while its TOC is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DraftChunk {
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) inner_offset: u64,
    pub(super) file_offset: u64,
    pub(super) size: u64,
    /// `None` for a hole.
    pub(super) digest: Option<Digest>,
}

/// The chunks, in the order of the TOC.
#[derive(Debug)]
pub(super) enum Chunks {
    Packed(Box<[PackedChunk]>),
    /// A chunk of this TOC is at an offset or of a size that no ordinary blob has.
    Wide(Box<[DraftChunk]>),
}

/// A chunk of a blob and a file below 256 TiB, with less than 4 GiB in its member.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedChunk {
    digest: Digest,
    offset: U48,
    file_offset: U48,
    /// Bytes of the blob; 0 for a hole.
    length: u32,
    inner_offset: u32,
    size: u32,
}

/// A number of 48 bits, which is aligned as one of 16.
#[derive(Debug, Clone, Copy)]
struct U48([u16; 3]);

impl Chunks {
    pub(super) fn pack(chunks: Vec<DraftChunk>) -> Self {
        let packed: Option<Box<[PackedChunk]>> = chunks.iter().map(PackedChunk::of).collect();
        packed.map_or_else(|| Self::Wide(chunks.into()), Self::Packed)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Packed(chunks) => chunks.len(),
            Self::Wide(chunks) => chunks.len(),
        }
    }

    pub(super) fn get(&self, number: usize) -> Option<DraftChunk> {
        match self {
            Self::Packed(chunks) => chunks.get(number).map(PackedChunk::unpack),
            Self::Wide(chunks) => chunks.get(number).copied(),
        }
    }

    /// Returns the offset of a chunk in its file.
    pub(super) fn file_offset(&self, number: usize) -> Option<u64> {
        match self {
            Self::Packed(chunks) => chunks.get(number).map(|chunk| chunk.file_offset.get()),
            Self::Wide(chunks) => chunks.get(number).map(|chunk| chunk.file_offset),
        }
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Packed(chunks) => size_of_val(&**chunks),
            Self::Wide(chunks) => size_of_val(&**chunks),
        }
    }
}

impl DraftChunk {
    /// A hole of no bytes.
    pub(super) const EMPTY: Self = Self {
        offset: 0,
        end: 0,
        inner_offset: 0,
        file_offset: 0,
        size: 0,
        digest: None,
    };

    pub(super) fn chunk(self, codec: Codec) -> Chunk {
        let Self {
            offset,
            end,
            inner_offset,
            file_offset,
            size,
            digest,
        } = self;
        Chunk {
            range: offset..end,
            inner_offset,
            file_offset,
            size,
            digest,
            codec,
        }
    }
}

impl PackedChunk {
    /// `None` if a number is too large. The range of a chunk that is not a hole is never empty.
    fn of(chunk: &DraftChunk) -> Option<Self> {
        let length = chunk.end.checked_sub(chunk.offset)?;
        if chunk.digest.is_some() != (length > 0) {
            return None;
        }
        Some(Self {
            digest: chunk.digest.unwrap_or(Digest::from_bytes([0; 32])),
            offset: U48::of(chunk.offset)?,
            file_offset: U48::of(chunk.file_offset)?,
            length: u32::try_from(length).ok()?,
            inner_offset: u32::try_from(chunk.inner_offset).ok()?,
            size: u32::try_from(chunk.size).ok()?,
        })
    }

    fn unpack(&self) -> DraftChunk {
        let offset = self.offset.get();
        DraftChunk {
            offset,
            end: offset + u64::from(self.length),
            inner_offset: u64::from(self.inner_offset),
            file_offset: self.file_offset.get(),
            size: u64::from(self.size),
            digest: (self.length > 0).then_some(self.digest),
        }
    }
}

impl U48 {
    fn of(number: u64) -> Option<Self> {
        let [a, b, c, d, e, f, 0, 0] = number.to_le_bytes() else {
            return None;
        };
        Some(Self([[a, b], [c, d], [e, f]].map(u16::from_le_bytes)))
    }

    fn get(self) -> u64 {
        let [low, middle, high] = self.0.map(u64::from);
        low | middle << 16 | high << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: DraftChunk = DraftChunk {
        offset: 7,
        end: 9,
        inner_offset: 3,
        file_offset: 1 << 40,
        size: 5,
        digest: Some(Digest::from_bytes([1; 32])),
    };
    const HOLE: DraftChunk = DraftChunk {
        offset: 0,
        end: 0,
        inner_offset: 0,
        digest: None,
        ..CHUNK
    };

    fn packed(chunks: &[DraftChunk]) -> bool {
        let packed = Chunks::pack(chunks.to_vec());
        let unpacked: Vec<_> = (0..packed.len())
            .map(|number| packed.get(number).unwrap())
            .collect();
        assert_eq!(unpacked, chunks);
        for (number, chunk) in chunks.iter().enumerate() {
            assert_eq!(packed.file_offset(number), Some(chunk.file_offset));
        }
        assert_eq!(packed.get(chunks.len()), None);
        matches!(packed, Chunks::Packed(_))
    }

    #[test]
    fn a_chunk_takes_56_bytes() {
        assert_eq!(size_of::<PackedChunk>(), 56);
    }

    #[test]
    fn chunks_are_read_as_they_were_packed() {
        assert!(packed(&[]));
        assert!(packed(&[CHUNK, HOLE]));
        let most = (1 << 48) - 1;
        let at_its_limits = DraftChunk {
            offset: most,
            end: most + u64::from(u32::MAX),
            inner_offset: u64::from(u32::MAX),
            file_offset: most,
            size: u64::from(u32::MAX),
            ..CHUNK
        };
        assert!(packed(&[at_its_limits]));
    }

    #[test]
    fn numbers_that_are_too_large_are_kept_all_the_same() {
        let large = 1 << 48;
        for chunk in [
            DraftChunk {
                offset: large,
                end: large + 1,
                ..CHUNK
            },
            DraftChunk {
                end: 1 << 33,
                ..CHUNK
            },
            DraftChunk {
                inner_offset: 1 << 32,
                ..CHUNK
            },
            DraftChunk {
                file_offset: large,
                ..CHUNK
            },
            DraftChunk {
                size: 1 << 32,
                ..CHUNK
            },
            DraftChunk {
                offset: u64::MAX,
                end: u64::MAX,
                ..CHUNK
            },
            DraftChunk { end: 0, ..CHUNK },
        ] {
            assert!(!packed(&[HOLE, chunk]), "{chunk:?}");
        }
    }
}
