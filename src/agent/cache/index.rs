//! The chunks on disk, in the order of their last use.

use std::collections::{BTreeMap, HashMap};

use estargz::Digest;

use super::CacheUsage;

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Digest, Entry>,
    /// Digests by the time of their last use.
    by_use: BTreeMap<u64, Digest>,
    moment: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    used: u64,
    is_verified: bool,
}

impl Index {
    /// Adds a file as the most recently used.
    pub(super) fn insert(&mut self, digest: Digest, size: u64, is_verified: bool) {
        self.remove(&digest);
        let used = self.next_moment();
        self.by_use.insert(used, digest);
        self.entries.insert(
            digest,
            Entry {
                size,
                used,
                is_verified,
            },
        );
        self.bytes += size;
    }

    pub(super) fn remove(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.size;
        }
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.entries.contains_key(digest)
    }

    /// Marks a file as just used, and returns whether it was compared with its digest. `None` if
    /// there is no such entry.
    pub(super) fn use_now(&mut self, digest: &Digest) -> Option<bool> {
        let used = self.next_moment();
        let entry = self.entries.get_mut(digest)?;
        self.by_use.remove(&entry.used);
        self.by_use.insert(used, *digest);
        entry.used = used;
        Some(entry.is_verified)
    }

    pub(super) fn set_verified(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.is_verified = true;
        }
    }

    /// Removes the least recently used entries until at most `limit` bytes are left, and returns
    /// their digests.
    pub(super) fn shrink(&mut self, limit: u64) -> Vec<Digest> {
        let mut gone = Vec::new();
        while self.bytes > limit
            && let Some((_, &digest)) = self.by_use.first_key_value()
        {
            self.remove(&digest);
            gone.push(digest);
        }
        gone
    }

    pub(super) fn held(&self) -> CacheUsage {
        CacheUsage {
            chunks: self.entries.len() as u64,
            bytes: self.bytes,
        }
    }

    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}
