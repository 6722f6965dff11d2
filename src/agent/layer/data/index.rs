//! Where the chunks of all layers are, by their digest.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use estargz::Digest;
use parking_lot::Mutex;

/// A chunk of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// The number of the data file.
    pub(super) layer: u32,
    pub(super) chunk: u32,
}

/// The last known location of each chunk. It may be gone from there: the caller must check. Digests
/// are told apart by their first eight bytes, so the chunk may also be another.
#[derive(Debug, Default)]
pub(super) struct Index(Mutex<HashMap<u64, Location, BuildHasherDefault<Prefix>>>);

/// The hash of a digest's beginning: itself.
#[derive(Debug, Default)]
struct Prefix(u64);

impl Index {
    pub(super) fn insert(&self, digest: &Digest, location: Location) {
        self.0.lock().insert(prefix(digest), location);
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Location> {
        self.0.lock().get(&prefix(digest)).copied()
    }

    /// Removes the location of a chunk, if it is still this one.
    pub(super) fn remove(&self, digest: &Digest, location: Location) {
        let mut table = self.0.lock();
        if table.get(&prefix(digest)) == Some(&location) {
            table.remove(&prefix(digest));
        }
    }

    pub(super) fn remove_layer(&self, layer: u32) {
        let mut table = self.0.lock();
        table.retain(|_, location| location.layer != layer);
        table.shrink_to_fit();
    }
}

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

fn prefix(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_removed_only_by_its_own_layer() {
        let index = Index::default();
        let [digest, other] = [b"a", b"b"].map(|bytes| Digest::of(bytes));
        let [first, second] = [1, 2].map(|layer| Location { layer, chunk: 7 });
        index.insert(&digest, first);
        index.insert(&other, second);
        index.insert(&digest, second);
        index.remove(&digest, first);
        assert_eq!(index.get(&digest), Some(second));
        index.remove_layer(2);
        assert_eq!([digest, other].map(|digest| index.get(&digest)), [None; 2]);
    }
}
