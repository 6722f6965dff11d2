//! The tables of a TOC in one run of bytes, so that they can lie in any memory: in a file that is
//! mapped, for example.
//!
//! ```text
//! inodes │ names │ chunks │ times │ attributes │ xattrs │ owners │ arena
//! ```
//! An entry is a fixed number of little-endian words. The arena is text. Reading never panics,
//! whatever the bytes are: an entry that is not there is read as zeros, and such a text is empty.

use std::fmt;
use std::ops::Range;

/// Bytes of a word.
const WORD: usize = size_of::<u32>();

/// The bytes of the tables, and where each table begins.
pub(super) struct Tables {
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    pub(super) layout: Layout,
}

/// The places of the tables.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Layout {
    pub(super) inodes: Table,
    /// Sorted by parent and text. The last one is none: it says where the text before it ends.
    pub(super) names: Table,
    pub(super) chunks: Table,
    /// The times that an inode has no room for, by the number of the inode.
    pub(super) times: Table,
    /// Runs of `xattrs`, by the number of the inode.
    pub(super) attributes: Table,
    pub(super) xattrs: Table,
    pub(super) owners: Table,
    /// The first byte of the arena, which is the last table.
    pub(super) arena: usize,
}

/// A table of entries.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Table {
    start: usize,
    count: usize,
}

/// Tables while they are written.
#[derive(Debug, Default)]
pub(super) struct Draft(Vec<u8>);

impl Table {
    pub(super) fn len(self) -> usize {
        self.count
    }
}

impl Draft {
    /// Reserves room for `entries` entries of `words` words each.
    pub(super) fn reserve(&mut self, entries: usize, words: usize) {
        self.0.reserve_exact(entries * words * WORD);
    }

    pub(super) fn add<const N: usize>(
        &mut self,
        entries: impl IntoIterator<Item = [u32; N]>,
    ) -> Table {
        let start = self.0.len();
        for entry in entries {
            let words = entry.iter().flat_map(|word| word.to_le_bytes());
            self.0.extend(words);
        }
        let count = (self.0.len() - start) / (N * WORD);
        Table { start, count }
    }

    /// Returns the tables with the arena behind them. `layout` says where the others are.
    pub(super) fn finish(mut self, layout: Layout, arena: &[u8]) -> Tables {
        let layout = Layout {
            arena: self.0.len(),
            ..layout
        };
        self.0.reserve_exact(arena.len());
        self.0.extend_from_slice(arena);
        Tables {
            bytes: Box::new(self.0.into_boxed_slice()),
            layout,
        }
    }
}

impl Tables {
    pub(super) fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Returns the same tables in other memory. `None` if its bytes differ.
    pub(super) fn moved_to(&self, bytes: Box<dyn AsRef<[u8]> + Send + Sync>) -> Option<Self> {
        let layout = self.layout;
        ((*bytes).as_ref() == self.bytes()).then_some(Self { bytes, layout })
    }

    /// Returns an entry of a table; zeros if there is none.
    pub(super) fn entry<const N: usize>(&self, table: Table, index: usize) -> [u32; N] {
        let mut entry = [0; N];
        if index < table.count {
            let start = table.start + index * N * WORD;
            let bytes = self.bytes().get(start..start + N * WORD);
            let (words, _) = bytes.unwrap_or_default().as_chunks::<WORD>();
            for (word, bytes) in entry.iter_mut().zip(words) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        entry
    }

    /// Returns a range of the arena.
    pub(super) fn text(&self, range: Range<usize>) -> &[u8] {
        let arena = self.bytes().get(self.layout.arena..).unwrap_or_default();
        arena.get(range).unwrap_or_default()
    }

    /// Returns the entry of a table, sorted by its first word, whose first word is `key`.
    pub(super) fn find<const N: usize>(&self, table: Table, key: u32) -> Option<[u32; N]> {
        let first = |index| self.entry::<1>(table.of(N), index * N)[0];
        let found = first_not(0..table.count, |index| first(index) < key);
        (found < table.count && first(found) == key).then(|| self.entry(table, found))
    }
}

impl Table {
    /// Returns the table of `words` words an entry as one of single words.
    fn of(self, words: usize) -> Self {
        Self {
            count: self.count * words,
            ..self
        }
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tables")
            .field("bytes", &self.bytes().len())
            .field("layout", &self.layout)
            .finish()
    }
}

/// Returns the low and the high word of a number.
pub(super) fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]].map(u32::from_le_bytes)
}

/// Returns the number with this low and high word.
pub(super) fn joined(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Returns the first number for which `is_before` is false, or the end. The numbers for which it is
/// true come first.
pub(super) fn first_not(numbers: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    let Range { mut start, mut end } = numbers;
    while start < end {
        let middle = start + (end - start) / 2;
        if is_before(middle) {
            start = middle + 1;
        } else {
            end = middle;
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> (Tables, Table, Table) {
        let mut draft = Draft::default();
        let first = draft.add([[1, 10], [5, 50], [u32::MAX, 7]]);
        let second = draft.add([[9]]);
        (draft.finish(Layout::default(), b"text"), first, second)
    }

    #[test]
    fn entries_are_read_and_found_as_they_were_added() {
        let (tables, first, second) = tables();
        assert_eq!((first.len(), second.len()), (3, 1));
        assert_eq!(tables.entry(first, 1), [5, 50]);
        assert_eq!(tables.entry(second, 0), [9]);
        let find = |key| tables.find::<2>(first, key);
        assert_eq!(find(1), Some([1, 10]));
        assert_eq!(find(u32::MAX), Some([u32::MAX, 7]));
        assert_eq!([0, 2, 9].map(find), [None; 3]);
        assert_eq!(tables.text(0..4), b"text");
    }

    #[test]
    fn entries_and_texts_that_are_not_there_are_empty() {
        let (tables, first, _) = tables();
        assert_eq!(tables.entry(first, 3), [0, 0]);
        for range in [3..5, 5..6, usize::MAX - 1..usize::MAX] {
            assert_eq!(tables.text(range), b"");
        }
    }

    #[test]
    fn tables_move_only_to_the_same_bytes() {
        let (tables, first, _) = tables();
        let mut bytes = tables.bytes().to_vec();
        let moved = tables.moved_to(Box::new(bytes.clone())).unwrap();
        assert_eq!(moved.entry(first, 1), [5, 50]);
        bytes[0] ^= 1;
        assert!(tables.moved_to(Box::new(bytes)).is_none());
    }

    #[test]
    fn numbers_are_split_and_joined() {
        for wanted in [0, 1, u64::from(u32::MAX) + 1, u64::MAX] {
            let [low, high] = halves(wanted);
            assert_eq!(joined(low, high), wanted);
        }
    }
}
