//! Buffers for bytes on their way from a file to a client.
//!
//! They are used again: to zero a new one, and to have the kernel map its pages, costs as much as
//! to fill it. Freed by the allocator's own rules, they would also pile up in the threads that read
//! them.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Most buffers that are kept while nobody uses them: 4 MiB of pieces.
const KEPT: usize = 16;

/// The unused buffers.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer. Its content is that of an earlier use until it is written.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    length: usize,
    unused: Buffers,
}

impl Buffers {
    /// Returns a buffer of `length` bytes.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let found = self.0.lock().pop().filter(|bytes| bytes.len() >= length);
        Buffer {
            bytes: found.unwrap_or_else(|| vec![0; length].into()),
            length,
            unused: self.clone(),
        }
    }
}

impl Buffer {
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let (bytes, _unused) = self.bytes.split_at_mut(self.length);
        bytes
    }

    /// Returns the bytes. The buffer is unused again when the last part of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        let (bytes, _unused) = self.bytes.split_at(self.length);
        bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut unused = self.unused.0.lock();
        if unused.len() < KEPT {
            unused.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_part_is_dropped() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(100);
        buffer.as_mut_slice().fill(7);
        let whole = buffer.freeze();
        let part = whole.slice(10..20);
        drop(whole);
        assert!(buffers.0.lock().is_empty());
        assert_eq!(part, vec![7; 10]);
        drop(part);
        assert_eq!(buffers.0.lock().len(), 1);
        let shorter = buffers.take(30);
        assert_eq!(shorter.as_ref().len(), 30);
        assert!(buffers.0.lock().is_empty());
        drop(shorter);
        assert_eq!(buffers.take(200).as_ref().len(), 200);
    }

    #[test]
    fn few_unused_buffers_are_kept() {
        let buffers = Buffers::default();
        drop((0..3 * KEPT).map(|_| buffers.take(1)).collect::<Vec<_>>());
        assert_eq!(buffers.0.lock().len(), KEPT);
    }
}
