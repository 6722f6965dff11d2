//! The chunks of all files of a TOC: 56 bytes for each.

use super::tables::{Draft, Table, Tables, halves, joined};
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

/// The form of all chunks of a TOC in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Packed,
    /// A chunk of this TOC is at an offset or of a size that no ordinary blob has.
    Wide,
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

/// A number of 48 bits: its low word and the rest.
#[derive(Debug, Clone, Copy)]
struct U48(u32, u16);

/// Words of a chunk's entry, by its form.
const PACKED: usize = 14;
const WIDE: usize = 19;

/// Adds the table of the chunks.
pub(super) fn pack(chunks: Vec<DraftChunk>, draft: &mut Draft) -> (Table, Form) {
    if chunks.iter().all(|chunk| PackedChunk::of(chunk).is_some()) {
        draft.reserve(chunks.len(), PACKED);
        let packed = chunks.iter().filter_map(PackedChunk::of);
        (draft.add(packed.map(PackedChunk::words)), Form::Packed)
    } else {
        draft.reserve(chunks.len(), WIDE);
        (
            draft.add(chunks.into_iter().map(DraftChunk::words)),
            Form::Wide,
        )
    }
}

/// Returns the chunk with this number.
pub(super) fn get(tables: &Tables, form: Form, number: usize) -> Option<DraftChunk> {
    let table = tables.layout.chunks;
    (number < table.len()).then(|| match form {
        Form::Packed => PackedChunk::from_words(tables.entry(table, number)).unpack(),
        Form::Wide => DraftChunk::from_words(tables.entry(table, number)),
    })
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

    fn words(self) -> [u32; WIDE] {
        let mut words = [0; WIDE];
        let numbers = [
            self.offset,
            self.end,
            self.inner_offset,
            self.file_offset,
            self.size,
        ];
        let halves = numbers.into_iter().flat_map(halves);
        let digest = self.digest.iter().flat_map(digest_words);
        let all = halves
            .chain([u32::from(self.digest.is_some())])
            .chain(digest);
        words
            .iter_mut()
            .zip(all)
            .for_each(|(word, value)| *word = value);
        words
    }

    fn from_words(words: [u32; WIDE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, has_digest, digest @ ..] = words;
        Self {
            offset: joined(a, b),
            end: joined(c, d),
            inner_offset: joined(e, f),
            file_offset: joined(g, h),
            size: joined(i, j),
            digest: (has_digest > 0).then(|| digest_of(digest)),
        }
    }

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

    fn words(self) -> [u32; PACKED] {
        let mut words = [0; PACKED];
        let (offset, file_offset) = (self.offset, self.file_offset);
        let rest = u32::from(offset.1) | u32::from(file_offset.1) << 16;
        let numbers = [
            offset.0,
            file_offset.0,
            rest,
            self.length,
            self.inner_offset,
            self.size,
        ];
        let all = numbers.into_iter().chain(digest_words(&self.digest));
        words
            .iter_mut()
            .zip(all)
            .for_each(|(word, value)| *word = value);
        words
    }

    fn from_words(words: [u32; PACKED]) -> Self {
        let [
            offset,
            file_offset,
            rest,
            length,
            inner_offset,
            size,
            digest @ ..,
        ] = words;
        let [a, b, c, d] = rest.to_le_bytes();
        Self {
            digest: digest_of(digest),
            offset: U48(offset, u16::from_le_bytes([a, b])),
            file_offset: U48(file_offset, u16::from_le_bytes([c, d])),
            length,
            inner_offset,
            size,
        }
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
        let [low, high] = halves(number);
        Some(Self(low, u16::try_from(high).ok()?))
    }

    fn get(self) -> u64 {
        joined(self.0, u32::from(self.1))
    }
}

fn digest_words(digest: &Digest) -> [u32; 8] {
    let (words, _) = digest.as_bytes().as_chunks::<4>();
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

fn digest_of(words: [u32; 8]) -> Digest {
    let mut bytes = [0; 32];
    let (parts, _) = bytes.as_chunks_mut::<4>();
    for (part, word) in parts.iter_mut().zip(words) {
        *part = word.to_le_bytes();
    }
    Digest::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toc::tables::Layout;

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
        let mut draft = Draft::default();
        let (table, form) = pack(chunks.to_vec(), &mut draft);
        let layout = Layout {
            chunks: table,
            ..Layout::default()
        };
        let tables = draft.finish(layout, &[]);
        let unpacked: Vec<_> = (0..table.len())
            .map(|number| get(&tables, form, number).unwrap())
            .collect();
        assert_eq!(unpacked, chunks);
        assert_eq!(get(&tables, form, chunks.len()), None);
        form == Form::Packed
    }

    #[test]
    fn a_chunk_takes_56_bytes() {
        assert_eq!(PACKED * size_of::<u32>(), 56);
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
