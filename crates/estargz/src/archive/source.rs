//! The bytes of a blob, read by position.

use std::fmt;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;

type ReadAt = dyn Fn(u64, &mut [u8]) -> io::Result<usize> + Send + Sync;

/// A blob that is read by position: a file, bytes in memory, or anything that a closure can read.
///
/// A source has no cursor, so threads share it without a lock.
///
/// ```
/// use estargz::archive::Source;
///
/// let blob: &'static [u8] = b"0123456789";
/// let source = Source::new(blob.len() as u64, move |offset, buffer| {
///     // For example a range request to a registry.
///     let bytes = &blob[offset as usize..];
///     let read = bytes.len().min(buffer.len());
///     buffer[..read].copy_from_slice(&bytes[..read]);
///     Ok(read)
/// });
/// assert_eq!(source.read_range(2..5)?, b"234");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Source {
    size: u64,
    read_at: Box<ReadAt>,
}

/// A cursor over a source, for code that reads from a position on.
#[derive(Debug)]
pub(crate) struct Cursor<'s> {
    source: &'s Source,
    position: u64,
}

impl Source {
    /// A blob of `size` bytes that `read_at` reads.
    ///
    /// `read_at` is called with an offset and a buffer and returns how many bytes it put there, as
    /// `std::os::unix::fs::FileExt::read_at` does. It may read less than the buffer holds. Zero
    /// means that the blob has ended.
    pub fn new(
        size: u64,
        read_at: impl Fn(u64, &mut [u8]) -> io::Result<usize> + Send + Sync + 'static,
    ) -> Self {
        Self {
            size,
            read_at: Box::new(read_at),
        }
    }

    /// The blob in `file`.
    ///
    /// # Errors
    /// If the size of the file cannot be determined.
    #[cfg(unix)]
    pub fn file(file: std::fs::File) -> io::Result<Self> {
        use std::os::unix::fs::FileExt;

        let size = file.metadata()?.len();
        Ok(Self::new(size, move |offset, buffer| {
            file.read_at(buffer, offset)
        }))
    }

    /// The blob in memory.
    pub fn bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let size = bytes.as_ref().len() as u64;
        Self::new(size, move |offset, buffer| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let mut rest = bytes.as_ref().get(start..).unwrap_or_default();
            rest.read(buffer)
        })
    }

    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads exactly the bytes of `range`.
    ///
    /// # Errors
    /// If the source fails, or ends before the range does.
    pub fn read_range(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        // A buffer is sized only by a range that the blob has.
        if range.start > range.end || range.end > self.size {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let length = usize::try_from(range.end - range.start)
            .map_err(|_too_long| io::Error::from(ErrorKind::OutOfMemory))?;
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.read_some(range.start + filled as u64, &mut bytes[filled..])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(bytes)
    }

    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            source: self,
            position: 0,
        }
    }

    /// Reads at least one byte, unless the blob has ended at `offset`.
    fn read_some(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (self.read_at)(offset, buffer) {
                Ok(read) if read > buffer.len() => {
                    return Err(io::Error::other(
                        "positioned read returned more bytes than requested",
                    ));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.size.saturating_sub(self.position);
        let wanted = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self
            .source
            .read_some(self.position, &mut buffer[..wanted])?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = seek(self.position, self.source.size, to)?;
        Ok(self.position)
    }
}

/// The position that `to` means in `size` bytes, seen from `position`.
pub(super) fn seek(position: u64, size: u64, to: SeekFrom) -> io::Result<u64> {
    let target = match to {
        SeekFrom::Start(offset) => Some(offset),
        SeekFrom::Current(offset) => position.checked_add_signed(offset),
        SeekFrom::End(offset) => size.checked_add_signed(offset),
    };
    target.ok_or_else(|| ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_in_pieces_and_past_interruptions() {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let source = Source::new(10, move |offset, buffer| {
            if calls
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
                .is_multiple_of(2)
            {
                return Err(ErrorKind::Interrupted.into());
            }
            buffer[0] = b'0' + u8::try_from(offset).unwrap();
            Ok(1)
        });
        assert_eq!(source.read_range(3..7).unwrap(), b"3456");
        assert_eq!(source.read_range(4..4).unwrap(), b"");
    }

    #[test]
    fn a_range_outside_the_blob_is_an_error() {
        let source = Source::bytes("0123");
        for range in [2..5, 5..6, 0..u64::MAX] {
            let error = source.read_range(range).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let source = Source::new(10, |_offset, _buffer| Ok(0));
        let error = source.read_range(0..1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_read_longer_than_its_buffer_is_an_error() {
        let source = Source::new(10, |_offset, buffer| Ok(buffer.len() + 1));
        assert!(source.read_range(0..4).is_err());
    }

    #[test]
    fn a_cursor_reads_and_seeks_as_a_file_does() {
        let source = Source::bytes("0123456789");
        let mut cursor = source.cursor();
        let mut text = String::new();
        cursor.seek(SeekFrom::End(-3)).unwrap();
        cursor.read_to_string(&mut text).unwrap();
        assert_eq!(text, "789");
        assert_eq!(cursor.seek(SeekFrom::Current(-4)).unwrap(), 6);
        assert!(cursor.seek(SeekFrom::Current(-7)).is_err());
        cursor.seek(SeekFrom::Start(100)).unwrap();
        assert_eq!(cursor.read(&mut [0]).unwrap(), 0);
    }
}
