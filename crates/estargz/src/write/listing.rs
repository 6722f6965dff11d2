//! The entries of the TOC, collected in the order of the stream.

use std::collections::{BTreeMap, HashMap};

use super::{Error, Limits};
use crate::digest::Digest;
use crate::entry::{Entry, EntryKind};
use crate::tar::{self, Header};
use crate::toc::TocWriter;

/// Bytes of JSON that an entry takes beside its names and attributes: keys, numbers, time and two digests.
const ENTRY_JSON_BYTES: usize = 400;

/// An entry of the listing, to be completed when its member is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryId(usize);

#[derive(Debug)]
pub(super) struct Listing {
    /// `None` where a later entry of the same path took over.
    entries: Vec<Option<Listed>>,
    latest: HashMap<Vec<u8>, usize>,
    json_bytes: u64,
    limits: Limits,
}

/// An entry with the owner's names, which the TOC writes only where they change.
#[derive(Debug)]
struct Listed {
    entry: Entry,
    user_name: String,
    group_name: String,
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
        Self { entries: Vec::new(), latest: HashMap::new(), json_bytes: 0, limits: limits.clone() }
    }

    /// Lists an entry; one listed before with the same path, and its chunks, are listed no more.
    pub(super) fn push(&mut self, header: &Header) -> Result<EntryId, Error> {
        let names = header.path.len() + header.link.len() + header.user_name.len() + header.group_name.len();
        let xattrs: usize = header.xattrs.iter().map(|(key, value)| key.len() + 2 * value.len() + 16).sum();
        let id = self.add(Listed::from_header(header), names + xattrs)?;
        self.supersede(&header.path);
        self.latest.insert(tar::clean(&header.path), id.0);
        Ok(id)
    }

    /// Lists a chunk that continues the last entry pushed.
    pub(super) fn push_chunk(&mut self, header: &Header) -> Result<EntryId, Error> {
        let mut listed = Listed::named(header);
        listed.entry.kind = EntryKind::Chunk;
        self.add(listed, header.path.len())
    }

    /// Forgets what is listed for `path`; later entries with that path are listed.
    pub(super) fn supersede(&mut self, path: &[u8]) {
        let Some(index) = self.latest.remove(&tar::clean(path)) else { return };
        self.entries[index] = None;
        for listed in &mut self.entries[index + 1..] {
            if !listed.as_ref().is_some_and(|listed| listed.entry.kind == EntryKind::Chunk) {
                break;
            }
            *listed = None;
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn lists(&self, path: &[u8]) -> bool {
        self.latest.contains_key(&tar::clean(path))
    }

    pub(super) fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry> {
        self.entries.get_mut(id.0)?.as_mut().map(|listed| &mut listed.entry)
    }

    pub(super) fn set_digest(&mut self, id: EntryId, digest: Digest) {
        if let Some(entry) = self.get_mut(id) {
            entry.digest = digest.to_string();
        }
    }

    pub(super) fn finish(self) -> Result<Finished, Error> {
        let mut toc = TocWriter::new();
        let (mut entries, mut chunks) = (0, 0);
        let (mut users, mut groups) = (HashMap::new(), HashMap::new());
        for mut listed in self.entries.into_iter().flatten() {
            let entry = &mut listed.entry;
            entry.user_name = if_changed(&mut users, entry.uid, listed.user_name);
            entry.group_name = if_changed(&mut groups, entry.gid, listed.group_name);
            entries += u64::from(entry.kind != EntryKind::Chunk);
            chunks += u64::from(!entry.chunk_digest.is_empty());
            toc.push(entry);
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

impl Listed {
    fn from_header(header: &Header) -> Self {
        let mut listed = Self::named(header);
        listed.user_name = tar::lossy(&header.user_name);
        listed.group_name = tar::lossy(&header.group_name);
        let entry = &mut listed.entry;
        entry.kind = header.kind;
        entry.size = header.size;
        entry.mod_time = header.mod_time.rfc3339();
        entry.mode = header.mode;
        entry.uid = header.uid;
        entry.gid = header.gid;
        entry.xattrs = header.xattrs.iter().map(|(key, value)| (tar::lossy(key), value.clone())).collect();
        match header.kind {
            EntryKind::Hardlink | EntryKind::Symlink => {
                entry.link_name = tar::lossy(&header.link);
                entry.raw_link_name = raw(&header.link);
            }
            EntryKind::Char | EntryKind::Block => {
                entry.dev_major = header.dev_major;
                entry.dev_minor = header.dev_minor;
            }
            // The reference digests empty files too.
            EntryKind::Reg if header.size == 0 => entry.digest = Digest::of(b"").to_string(),
            EntryKind::Reg | EntryKind::Dir | EntryKind::Fifo | EntryKind::Chunk => {}
        }
        listed
    }

    fn named(header: &Header) -> Self {
        let entry = Entry {
            name: tar::lossy(&header.path),
            kind: EntryKind::Reg,
            size: 0,
            mod_time: String::new(),
            link_name: String::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            user_name: String::new(),
            group_name: String::new(),
            offset: 0,
            inner_offset: 0,
            dev_major: 0,
            dev_minor: 0,
            num_link: 0,
            xattrs: BTreeMap::new(),
            digest: String::new(),
            chunk_offset: 0,
            chunk_size: 0,
            chunk_digest: String::new(),
            raw_name: raw(&header.path),
            raw_link_name: None,
        };
        Self { entry, user_name: String::new(), group_name: String::new() }
    }
}

/// The bytes of a name that text cannot hold.
fn raw(name: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(name).is_err().then(|| name.to_vec())
}

/// The name, unless it is the one this id had last.
fn if_changed(names: &mut HashMap<i64, String>, id: i64, name: String) -> String {
    if name.is_empty() || names.get(&id) == Some(&name) {
        return String::new();
    }
    names.insert(id, name.clone());
    name
}
