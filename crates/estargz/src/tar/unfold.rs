//! The content of a sparse file: its stored bytes with the holes between them.

use std::io::{self, Read};

use super::header::Header;
use super::sparse::Segment;

/// Turns stored bytes into the file's content.
#[derive(Debug)]
pub(crate) struct Unfold<'s, R> {
    stored: R,
    segments: &'s [Segment],
    at: u64,
}

impl<'s, R: Read> Unfold<'s, R> {
    pub(crate) fn new(header: &'s Header, stored: R) -> Self {
        let segments = header
            .sparse
            .as_ref()
            .map(|map| map.segments())
            .unwrap_or_default();
        Self {
            stored,
            segments,
            at: 0,
        }
    }

    /// The next `buffer.len()` bytes of content.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let end = self.at + buffer.len() as u64;
        buffer.fill(0);
        while let Some(segment) = self.segments.first().filter(|segment| segment.offset < end) {
            let segment_end = segment.offset + segment.length;
            let from = segment.offset.max(self.at) - self.at;
            let to = segment_end.min(end).max(self.at) - self.at;
            if let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to))
                && let Some(target) = buffer.get_mut(from..to)
            {
                self.stored.read_exact(target)?;
            }
            if segment_end > end {
                break;
            }
            self.segments = &self.segments[1..];
        }
        self.at = end;
        Ok(())
    }
}
