//! A file of which only some pieces are known. A read of another part fails and records the missing
//! offset.

use std::cell::Cell;
use std::ops::Range;

use object::ReadRef;

/// Most bytes that are kept of one file: the string tables of the largest libraries, with the
/// chunks that contain them.
const MAX_HELD: u64 = 96 << 20;

/// The known pieces of a file's content.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    size: u64,
    /// In order of their offsets. No two are adjacent.
    pieces: Vec<(u64, Vec<u8>)>,
    /// The first byte that was read but is not known.
    missing: Cell<Option<u64>>,
}

impl Sparse {
    /// A file of `size` bytes, none of them known.
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// A file that is known completely.
    #[cfg(any(test, fuzzing))]
    pub(super) fn whole(bytes: &[u8]) -> Self {
        let mut sparse = Self::new(bytes.len() as u64);
        sparse.add(0, bytes.to_vec());
        sparse
    }

    /// Adds a piece that does not overlap any other.
    pub(super) fn add(&mut self, offset: u64, bytes: Vec<u8>) {
        let at = self.pieces.partition_point(|(start, _)| *start < offset);
        self.pieces.insert(at, (offset, bytes));
        self.pieces.dedup_by(|next, piece| {
            let touches = piece.0 + piece.1.len() as u64 == next.0;
            if touches {
                piece.1.append(&mut next.1);
            }
            touches
        });
        self.missing.set(None);
    }

    /// Whether this many further bytes may be kept.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        let held: u64 = self
            .pieces
            .iter()
            .map(|(_, piece)| piece.len() as u64)
            .sum();
        held.saturating_add(bytes) <= MAX_HELD
    }

    /// Returns the first missing byte of the reads since the last piece was added.
    pub(super) fn missing(&self) -> Option<u64> {
        self.missing.get()
    }

    fn known(&self, offset: u64) -> Option<&[u8]> {
        let (start, bytes) = self.pieces.iter().rfind(|(start, _)| *start <= offset)?;
        bytes
            .get(usize::try_from(offset - start).ok()?..)
            .filter(|bytes| !bytes.is_empty())
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.size {
            return None;
        }
        if range.is_empty() {
            return Some(&[]);
        }
        let known = self.known(range.start).unwrap_or_default();
        let wanted = usize::try_from(range.end - range.start).ok()?;
        let found = known.get(..wanted);
        if found.is_none() && self.missing.get().is_none() {
            self.missing.set(Some(range.start + known.len() as u64));
        }
        found
    }
}

impl<'a> ReadRef<'a> for &'a Sparse {
    fn len(self) -> Result<u64, ()> {
        Ok(self.size)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        let end = offset.checked_add(size).ok_or(())?;
        self.slice(offset..end).ok_or(())
    }

    /// Always fails: nothing in this crate reads up to a delimiter.
    fn read_bytes_at_until(self, _range: Range<u64>, _delimiter: u8) -> Result<&'a [u8], ()> {
        Err(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_offset_is_reported_and_adjacent_pieces_merge() {
        let mut sparse = Sparse::new(12);
        assert_eq!(
            ((&sparse).read_bytes_at(4, 4), sparse.missing()),
            (Err(()), Some(4))
        );
        sparse.add(4, b"4567".to_vec());
        assert_eq!((&sparse).read_bytes_at(4, 4), Ok(&b"4567"[..]));
        assert_eq!(
            ((&sparse).read_bytes_at(6, 4), sparse.missing()),
            (Err(()), Some(8))
        );
        sparse.add(8, b"89ab".to_vec());
        sparse.add(0, b"0123".to_vec());
        assert_eq!((&sparse).read_bytes_at(0, 12), Ok(&b"0123456789ab"[..]));
        assert_eq!(
            ((&sparse).read_bytes_at(11, 2), sparse.missing()),
            (Err(()), None),
            "beyond the end of the file"
        );
        assert_eq!((&sparse).read_bytes_at(u64::MAX, 2), Err(()));
    }
}
