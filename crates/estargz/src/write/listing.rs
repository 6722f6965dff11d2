//! The entries of the TOC, collected in the order of the stream.

use std::collections::HashMap;

use super::listed::{Listed, Names, Place, Seen};
use super::{Error, Limits};
use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::tar::{self, Header};
use crate::toc::TocWriter;

/// Bytes of JSON that an entry takes beside its names and attributes: keys, numbers, time and two digests.
const ENTRY_JSON_BYTES: usize = 400;

/// An entry of the listing, to be completed when its member is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryId(usize);

/// A path by its digest, which is shorter than most paths and as good.
type PathKey = [u8; 16];

#[derive(Debug)]
pub(super) struct Listing {
    /// `None` where a later entry of the same path took over.
    entries: Vec<Option<Listed>>,
    latest: HashMap<PathKey, usize>,
    names: Names,
    json_bytes: u64,
    limits: Limits,
}

/// The TOC and how much it lists.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) json: Vec<u8>,
    pub(super) entries: u64,
    pub(super) chunks: u64,
}

impl Listing {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            entries: Vec::new(),
            latest: HashMap::new(),
            names: Names::default(),
            json_bytes: 0,
            limits: limits.clone(),
        }
    }

    /// Lists an entry; one listed before with the same path, and its chunks, are listed no more.
    pub(super) fn push(&mut self, header: &Header) -> Result<EntryId, Error> {
        let names = header.path.len() + header.link.len() + header.user_name.len() + header.group_name.len();
        let xattrs: usize = header.xattrs.iter().map(|(key, value)| key.len() + 2 * value.len() + 16).sum();
        let listed = Listed::new(header, &mut self.names);
        let id = self.add(listed, names + xattrs)?;
        self.supersede(&header.path);
        self.latest.insert(key(&header.path), id.0);
        Ok(id)
    }

    /// Lists a chunk that continues the last entry pushed.
    pub(super) fn push_chunk(&mut self, header: &Header) -> Result<EntryId, Error> {
        let listed = Listed::chunk(header, &mut self.names);
        self.add(listed, header.path.len())
    }

    /// Forgets what is listed for `path`; later entries with that path are listed.
    pub(super) fn supersede(&mut self, path: &[u8]) {
        let Some(index) = self.latest.remove(&key(path)) else { return };
        self.entries[index] = None;
        for listed in &mut self.entries[index + 1..] {
            if !listed.as_ref().is_some_and(|listed| listed.kind == EntryKind::Chunk) {
                break;
            }
            *listed = None;
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lists(&self, path: &[u8]) -> bool {
        self.latest.contains_key(&key(path))
    }

    /// The place of an entry, unless a later one took over.
    pub(super) fn place_mut(&mut self, id: EntryId) -> Option<&mut Place> {
        self.entries.get_mut(id.0)?.as_mut().map(|listed| &mut listed.place)
    }

    pub(super) fn finish(self) -> Result<Finished, Error> {
        let mut toc = TocWriter::new();
        let (mut entries, mut chunks) = (0, 0);
        let mut seen = Seen::default();
        for listed in self.entries.into_iter().flatten() {
            entries += u64::from(listed.kind != EntryKind::Chunk);
            chunks += u64::from(listed.place.chunk_digest.is_some());
            toc.push(&listed.into_entry(&self.names, &mut seen));
        }
        let json = toc.finish();
        if json.len() as u64 > self.limits.max_toc_bytes {
            return Err(Error::Limit { what: "bytes of TOC", limit: self.limits.max_toc_bytes });
        }
        Ok(Finished { json, entries, chunks })
    }

    fn add(&mut self, listed: Listed, name_bytes: usize) -> Result<EntryId, Error> {
        self.json_bytes += (name_bytes + ENTRY_JSON_BYTES) as u64;
        // The estimate may be over by half; the finished JSON is held to the limit itself.
        if self.json_bytes / 2 > self.limits.max_toc_bytes {
            return Err(Error::Limit { what: "bytes of TOC", limit: self.limits.max_toc_bytes });
        }
        if self.entries.len() as u64 >= self.limits.max_entries {
            return Err(Error::Limit { what: "entries", limit: self.limits.max_entries });
        }
        self.entries.push(Some(listed));
        Ok(EntryId(self.entries.len() - 1))
    }
}

fn key(path: &[u8]) -> PathKey {
    let digest = Digest::of(&tar::clean(path));
    let (key, _) = digest.as_bytes().split_at(size_of::<PathKey>());
    key.try_into().unwrap_or_default()
}
