//! The places of the files' content in a layer's data file: a pure function of the verified TOC.
//!
//! ```text
//! blob   │ member of a │ member of b │ … │ TOC │
//! places │ a……………pad│ b…pad│ …             in the order of the blob, each on a block of 4 KiB
//! ```
//! A layer that is fetched from its beginning to its end is therefore written forward. Holes of a
//! file have a place too, which is never written. The padding after a file is zeros.

use std::fmt;
use std::ops::Range;

use estargz::Toc;
use estargz::toc::{Kind, Node, NodeId};

/// The alignment of a file's content: the block of EROFS, ext4 and XFS, and the page of the kernel.
pub const BLOCK: u64 = 4096;
/// The size of the largest data file: EROFS and ext4 number their blocks with 32 bits.
const MAX_SIZE: u64 = u32::MAX as u64 * BLOCK;

/// Bytes of a file in the table, and of an index.
const FILE: usize = 16;
const INDEX: usize = 4;

/// The places of the files of one layer.
pub struct Places {
    /// The files in the order of the data file. If their chunks are in another order, the indexes of
    /// the files in that order follow.
    table: Box<dyn AsRef<[u8]> + Send + Sync>,
    files: usize,
    has_order: bool,
    size: u64,
}

/// The files of a layer have no room in one data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("files take more than {MAX_SIZE} bytes")]
pub struct TooLarge;

/// Bytes of a data file that lie in one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub number: u32,
    /// The range of the chunk's content.
    pub part: Range<u64>,
    /// The offset of these bytes in the data file.
    pub place: u64,
}

/// A file with content.
#[derive(Debug, Clone, Copy)]
struct FilePlace {
    node: NodeId,
    first_chunk: u32,
    chunks: u32,
    /// Its first block in the data file.
    block: u32,
}

/// A file before it has a place.
struct Unplaced {
    node: NodeId,
    /// Where its content begins in the blob, and within its member.
    blob: (u64, u64),
    chunks: Range<u32>,
    size: u64,
}

impl Places {
    /// Gives every file of the TOC its place.
    ///
    /// # Errors
    /// If the files take more than a data file can have.
    pub fn new(toc: &Toc) -> Result<Self, TooLarge> {
        Self::lay_out(unplaced(toc))
    }

    fn lay_out(mut unplaced: Vec<Unplaced>) -> Result<Self, TooLarge> {
        unplaced.sort_unstable_by_key(|file| (file.blob, file.chunks.start));
        let mut size: u64 = 0;
        let mut files = Vec::with_capacity(unplaced.len());
        for file in unplaced {
            let block = u32::try_from(size / BLOCK).map_err(|_too_large| TooLarge)?;
            files.push(FilePlace {
                node: file.node,
                first_chunk: file.chunks.start,
                chunks: file.chunks.end - file.chunks.start,
                block,
            });
            let end = size.checked_add(file.size).ok_or(TooLarge)?;
            size = end.checked_next_multiple_of(BLOCK).ok_or(TooLarge)?;
        }
        if size > MAX_SIZE {
            return Err(TooLarge);
        }
        let order = by_chunk(&files);
        let mut table = Vec::with_capacity(files.len() * FILE + order.len() * INDEX);
        table.extend(files.iter().flat_map(|file| file.bytes()));
        table.extend(order.iter().flat_map(|index| index.to_le_bytes()));
        Ok(Self {
            table: Box::new(table),
            files: files.len(),
            has_order: !order.is_empty(),
            size,
        })
    }

    /// Returns the places with their table in the memory that `copy` returns, a copy of the bytes
    /// that it gets. If it returns `None`, the table stays where it is.
    #[must_use]
    pub(super) fn moved<T: AsRef<[u8]> + Send + Sync + 'static>(
        self,
        copy: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Self {
        match copy(self.bytes()) {
            Some(table) => Self {
                table: Box::new(table),
                ..self
            },
            None => self,
        }
    }

    fn bytes(&self) -> &[u8] {
        (*self.table).as_ref()
    }

    fn file(&self, index: usize) -> Option<FilePlace> {
        let bytes = self.bytes().get(index * FILE..(index + 1) * FILE)?;
        FilePlace::of_bytes(bytes.try_into().ok()?)
    }

    /// Returns the file with this index in the order of the chunks.
    fn file_by_chunk(&self, index: usize) -> Option<FilePlace> {
        if !self.has_order {
            return self.file(index);
        }
        let start = self.files * FILE + index * INDEX;
        let bytes = self.bytes().get(start..start + INDEX)?;
        let index = u32::from_le_bytes(bytes.try_into().ok()?);
        self.file(usize::try_from(index).ok()?)
    }

    /// Returns the index of the last file, in an order of the files, for which `is_before` holds. It
    /// holds for none after one for which it does not.
    fn last(
        &self,
        file: impl Fn(usize) -> Option<FilePlace>,
        is_before: impl Fn(FilePlace) -> bool,
    ) -> Option<usize> {
        let (mut low, mut high) = (0, self.files);
        while low < high {
            let middle = low + (high - low) / 2;
            if file(middle).is_some_and(&is_before) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }

    /// Returns the size of the data file: a multiple of [`BLOCK`].
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the place of a file's first byte. `None` if the file has no content.
    pub fn of_file(&self, file: Node<'_>) -> Option<u64> {
        let numbers = file.chunk_numbers();
        let place = self.with_chunk(numbers.start)?;
        (!numbers.is_empty()).then(|| place.start())
    }

    /// Returns the bytes of the data file that hold a chunk of `toc`, the TOC of these places.
    pub fn of_chunk(&self, toc: &Toc, number: u32) -> Option<Range<u64>> {
        let chunk = toc.chunk(number)?;
        let start = self.with_chunk(number)?.start() + chunk.file_offset;
        Some(start..start + chunk.size)
    }

    /// Returns the file that has a chunk.
    pub fn file_with(&self, chunk: u32) -> Option<NodeId> {
        let file = self.with_chunk(chunk)?;
        file.numbers().contains(&chunk).then_some(file.node)
    }

    /// Returns the pieces of chunks that lie in these bytes of the data file, in order. The bytes
    /// between them are padding.
    pub fn pieces<'a>(
        &'a self,
        toc: &'a Toc,
        bytes: Range<u64>,
    ) -> impl Iterator<Item = Piece> + use<'a> {
        let (start, end) = (bytes.start, bytes.end);
        let first = self.last(|index| self.file(index), |file| file.start() <= start);
        (first.unwrap_or(0)..self.files)
            .map_while(|index| self.file(index))
            .take_while(move |file| file.start() < end)
            .flat_map(move |file| file.pieces(toc, start..end))
    }

    /// Returns the file that has this chunk.
    fn with_chunk(&self, number: u32) -> Option<FilePlace> {
        let file = |index| self.file_by_chunk(index);
        file(self.last(file, |file| file.first_chunk <= number)?)
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Places")
            .field("files", &self.files)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl FilePlace {
    fn bytes(&self) -> [u8; FILE] {
        let words = [self.node.0, self.first_chunk, self.chunks, self.block];
        let mut bytes = [0; FILE];
        for (part, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *part = word.to_le_bytes();
        }
        bytes
    }

    fn of_bytes(bytes: [u8; FILE]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let [node, first_chunk, chunks, block] = *words else {
            return None;
        };
        Some(Self {
            node: NodeId(u32::from_le_bytes(node)),
            first_chunk: u32::from_le_bytes(first_chunk),
            chunks: u32::from_le_bytes(chunks),
            block: u32::from_le_bytes(block),
        })
    }

    fn start(self) -> u64 {
        u64::from(self.block) * BLOCK
    }

    fn numbers(self) -> Range<u32> {
        self.first_chunk..self.first_chunk.saturating_add(self.chunks)
    }

    /// Returns the pieces of this file's chunks that lie in these bytes of the data file.
    fn pieces(self, toc: &Toc, bytes: Range<u64>) -> impl Iterator<Item = Piece> + use<'_> {
        let offset = bytes.start.saturating_sub(self.start());
        let chunks = first_at(toc, self.numbers(), offset)..self.numbers().end;
        chunks.map_while(move |number| {
            let chunk = toc.chunk(number)?;
            let start = self.start() + chunk.file_offset;
            let from = bytes.start.max(start);
            let to = bytes.end.min(start + chunk.size);
            // Empty before a file that begins later, and in the padding after its last chunk.
            (from < to).then(|| Piece {
                number,
                part: from - start..to - start,
                place: from,
            })
        })
    }
}

/// Returns the number of the chunk that holds byte `offset` of the file with these chunks, or that
/// of its last chunk.
fn first_at(toc: &Toc, numbers: Range<u32>, offset: u64) -> u32 {
    let (mut low, mut high) = (numbers.start, numbers.end);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let is_after = toc
            .chunk(middle)
            .is_none_or(|chunk| chunk.file_offset > offset);
        if is_after {
            high = middle;
        } else {
            low = middle;
        }
    }
    low
}

/// Returns the files that have content, in the order of the TOC's nodes.
fn unplaced(toc: &Toc) -> Vec<Unplaced> {
    let nodes = (0..u32::try_from(toc.len()).unwrap_or(u32::MAX))
        .filter_map(|number| toc.node(NodeId(number)));
    let files = nodes.filter(|node| node.kind() == Kind::File && !node.chunk_numbers().is_empty());
    files
        .map(|file| {
            let stored = file.chunks().find(|chunk| chunk.digest.is_some());
            let begin = |chunk: estargz::Chunk| (chunk.range.start, chunk.inner_offset);
            Unplaced {
                node: file.id(),
                // A file of holes has nothing in the blob. It comes last.
                blob: stored.map_or((u64::MAX, 0), begin),
                chunks: file.chunk_numbers(),
                size: file.size(),
            }
        })
        .collect()
}

/// Returns the order of the chunks; nothing if the files are in that order.
fn by_chunk(files: &[FilePlace]) -> Vec<u32> {
    if files.is_sorted_by_key(|file| file.first_chunk) {
        return Vec::new();
    }
    let mut order: Vec<u32> = (0..u32::try_from(files.len()).unwrap_or(u32::MAX)).collect();
    order.sort_unstable_by_key(|index| files[*index as usize].first_chunk);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::layer::data::tests::tree;

    #[test]
    fn files_lie_on_blocks_in_the_order_of_the_blob() {
        let tree = tree(&[("a", 5000), ("empty", 0), ("b", 1), ("c", 4096)]);
        let places = Places::new(tree.toc()).unwrap();
        let of = |path| places.of_file(tree.toc().lookup(path).unwrap());
        assert_eq!(
            ["a", "b", "c", "empty"].map(of),
            [Some(0), Some(8192), Some(12288), None]
        );
        assert_eq!(places.size(), 20_480, "with the landmark");
    }

    #[test]
    fn files_that_take_more_than_a_data_file_can_have_are_refused() {
        let sizes = |sizes: &[u64]| {
            let file = |(number, size): (u32, &u64)| Unplaced {
                node: NodeId(number),
                blob: (u64::from(number), 0),
                chunks: number..number + 1,
                size: *size,
            };
            Places::lay_out((0..).zip(sizes).map(file).collect()).map(|places| places.size())
        };
        assert_eq!(sizes(&[MAX_SIZE - BLOCK, 1]), Ok(MAX_SIZE));
        for hostile in [
            &[MAX_SIZE, 1][..],
            &[MAX_SIZE + 1],
            &[u64::MAX],
            &[1, u64::MAX],
        ] {
            assert_eq!(sizes(hostile), Err(TooLarge), "{hostile:?}");
        }
    }

    #[test]
    fn every_byte_of_a_file_is_in_one_piece_and_padding_in_none() {
        let tree = tree(&[("a", 300_000), ("b", 1), ("c", 70_000)]);
        let (toc, places) = (tree.toc(), Places::new(tree.toc()).unwrap());
        for (start, end) in [
            (0, places.size()),
            (1, 2),
            (65_535, 131_073),
            (299_999, 310_000),
            (places.size() - 1, places.size() + 4096),
        ] {
            let mut covered = vec![0_u8; usize::try_from(places.size()).unwrap() + 4096];
            for piece in places.pieces(toc, start..end) {
                let chunk = places.of_chunk(toc, piece.number).unwrap();
                assert_eq!(chunk.start + piece.part.start, piece.place);
                assert!(piece.place + (piece.part.end - piece.part.start) <= chunk.end);
                let from = usize::try_from(piece.place).unwrap();
                let length = usize::try_from(piece.part.end - piece.part.start).unwrap();
                covered[from..from + length]
                    .iter_mut()
                    .for_each(|byte| *byte += 1);
            }
            for file in ["a", "b", "c"].map(|path| toc.lookup(path).unwrap()) {
                let place = places.of_file(file).unwrap();
                for at in place..(place + file.size()).next_multiple_of(BLOCK) {
                    let expected = (start..end).contains(&at) && at < place + file.size();
                    assert_eq!(
                        covered[usize::try_from(at).unwrap()],
                        u8::from(expected),
                        "{at}"
                    );
                }
            }
        }
    }
}
