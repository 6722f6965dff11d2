//! The bytes of a blob that have arrived and are not decoded yet.

use std::ops::Range;

/// The least room that is allocated: as much as one piece of an HTTP body.
const ROOM: usize = 512 << 10;

/// Bytes of a blob before decoding: no more than those of the next chunk and one piece of the body.
#[derive(Debug)]
pub(super) struct Window {
    /// The offset in the blob of the first byte that is not forgotten.
    start: u64,
    bytes: Vec<u8>,
    /// Forgotten bytes at the beginning of `bytes`. They are moved out of the way only when more
    /// arrive: small chunks are many.
    forgotten: usize,
}

impl Window {
    pub(super) fn at(start: u64) -> Self {
        Self {
            start,
            bytes: Vec::new(),
            forgotten: 0,
        }
    }

    /// Returns the offset in the blob at which the next bytes belong.
    pub(super) fn end(&self) -> u64 {
        self.start + (self.bytes.len() - self.forgotten) as u64
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..self.forgotten);
        self.forgotten = 0;
        // Grows by half, where a vector would double: a chunk takes tens of megabytes at most.
        if self.bytes.capacity() - self.bytes.len() < piece.len() {
            self.bytes
                .reserve_exact(piece.len().max(self.bytes.len() / 2).max(ROOM));
        }
        self.bytes.extend_from_slice(piece);
    }

    /// Forgets the bytes before `start`.
    pub(super) fn forget_before(&mut self, start: u64) {
        let left = (self.bytes.len() - self.forgotten) as u64;
        let before = start.saturating_sub(self.start).min(left);
        self.forgotten += usize::try_from(before).unwrap_or(usize::MAX);
        self.start += before;
    }

    /// Returns the bytes at `range`, if they have arrived.
    pub(super) fn get(&self, range: &Range<u64>) -> Option<&[u8]> {
        let start = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        self.bytes.get(self.forgotten..)?.get(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_returns_members_as_they_arrive() {
        let mut window = Window::at(100);
        assert_eq!(window.get(&(102..105)), None);
        window.push(b"abcde");
        window.forget_before(102);
        assert_eq!(window.get(&(102..105)).unwrap(), b"cde");
        window.forget_before(103);
        assert_eq!(
            window.get(&(103..105)).unwrap(),
            b"de",
            "the same bytes again"
        );
        window.forget_before(110);
        assert_eq!((window.get(&(110..112)), window.end()), (None, 105));
        window.push(b"fghijklm");
        window.forget_before(110);
        assert_eq!(window.get(&(110..112)).unwrap(), b"kl");
        assert_eq!(
            window.get(&(109..112)),
            None,
            "bytes that were dropped are gone"
        );
    }

    #[test]
    fn a_window_grows_little_beyond_its_content() {
        let mut window = Window::at(0);
        for _ in 0..1000 {
            window.push(&[0; 16 << 10]);
        }
        assert!(window.bytes.capacity() <= window.bytes.len() / 2 * 3 + ROOM);
    }
}
