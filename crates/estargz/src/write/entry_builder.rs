//! One entry of the TOC in little memory, because layers of a hundred thousand files are common.

use std::collections::{BTreeMap, HashMap};

use crate::digest::Digest;
use crate::entry::{Entry, EntryKind};
use crate::tar::{self, Header};
use crate::time::Time;

/// Everything about an [`Entry`] whose content is not written.
#[derive(Debug)]
pub(super) struct EntryBuilder {
    pub(super) kind: EntryKind,
    path: Box<[u8]>,
    link: Box<[u8]>,
    mode: i64,
    uid: i64,
    gid: i64,
    user: NameId,
    group: NameId,
    mod_time: Time,
    size: u64,
    rare: Option<Box<Rare>>,
    pub(super) place: Place,
}

/// The place of a chunk and its digests.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) inner_offset: u64,
    pub(super) chunk_offset: u64,
    /// 0 if the chunk ends with the file.
    pub(super) chunk_size: u64,
    pub(super) file_digest: Option<Digest>,
    pub(super) chunk_digest: Option<Digest>,
}

/// Fields that few entries have.
#[derive(Debug)]
struct Rare {
    xattrs: BTreeMap<String, Vec<u8>>,
    dev_major: i64,
    dev_minor: i64,
}

/// The names of owners, each stored once.
#[derive(Debug, Default)]
pub(super) struct Names {
    ids: HashMap<Vec<u8>, NameId>,
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NameId(usize);

/// The last name of each id. The TOC has a name only if it changes.
#[derive(Debug, Default)]
pub(super) struct LastNames {
    users: HashMap<i64, NameId>,
    groups: HashMap<i64, NameId>,
}

impl Names {
    fn id(&mut self, name: &[u8]) -> NameId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = NameId(self.names.len());
        self.names.push(tar::lossy(name));
        self.ids.insert(name.to_vec(), id);
        id
    }

    fn get(&self, id: NameId) -> &str {
        self.names.get(id.0).map(String::as_str).unwrap_or_default()
    }
}

impl EntryBuilder {
    pub(super) fn new(header: &Header, names: &mut Names) -> Self {
        let is_link = matches!(header.kind, EntryKind::Hardlink | EntryKind::Symlink);
        // The reference digests empty files too.
        let is_empty = header.kind == EntryKind::Reg && header.size == 0;
        Self {
            kind: header.kind,
            path: header.path.as_slice().into(),
            link: if is_link {
                header.link.as_slice().into()
            } else {
                Box::default()
            },
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            user: names.id(&header.user_name),
            group: names.id(&header.group_name),
            mod_time: header.mod_time,
            size: header.size,
            rare: Rare::of(header),
            place: Place {
                file_digest: is_empty.then(|| Digest::of(b"")),
                ..Place::default()
            },
        }
    }

    /// A chunk that continues the file of `header`.
    pub(super) fn chunk(header: &Header, names: &mut Names) -> Self {
        Self {
            kind: EntryKind::Chunk,
            path: header.path.as_slice().into(),
            link: Box::default(),
            mode: 0,
            uid: 0,
            gid: 0,
            user: names.id(b""),
            group: names.id(b""),
            mod_time: Time::default(),
            size: 0,
            rare: None,
            place: Place::default(),
        }
    }

    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    pub(super) fn into_path(self) -> Box<[u8]> {
        self.path
    }

    pub(super) fn rename(&mut self, path: &[u8]) {
        self.path = path.into();
    }

    pub(super) fn link(&self) -> &[u8] {
        &self.link
    }

    pub(super) fn link_to(&mut self, path: Box<[u8]>) {
        self.link = path;
    }

    pub(super) fn into_entry(self, names: &Names, seen: &mut LastNames) -> Entry {
        let (xattrs, dev_major, dev_minor) = match self.rare {
            Some(rare) => (rare.xattrs, rare.dev_major, rare.dev_minor),
            None => (BTreeMap::new(), 0, 0),
        };
        let digest =
            |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
        Entry {
            name: tar::lossy(&self.path),
            kind: self.kind,
            size: self.size,
            mod_time: self.mod_time.rfc3339(),
            link_name: tar::lossy(&self.link),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            user_name: if_changed(&mut seen.users, self.uid, self.user, names),
            group_name: if_changed(&mut seen.groups, self.gid, self.group, names),
            offset: self.place.offset,
            inner_offset: self.place.inner_offset,
            dev_major,
            dev_minor,
            num_link: 0,
            xattrs,
            digest: digest(self.place.file_digest),
            chunk_offset: self.place.chunk_offset,
            chunk_size: self.place.chunk_size,
            chunk_digest: digest(self.place.chunk_digest),
            raw_name: raw(&self.path),
            raw_link_name: raw(&self.link),
        }
    }
}

impl Rare {
    fn of(header: &Header) -> Option<Box<Self>> {
        let is_device = matches!(header.kind, EntryKind::Char | EntryKind::Block);
        if header.xattrs.is_empty() && !is_device {
            return None;
        }
        let xattrs = header
            .xattrs
            .iter()
            .map(|(key, value)| (tar::lossy(key), value.clone()))
            .collect();
        let (dev_major, dev_minor) = if is_device {
            (header.dev_major, header.dev_minor)
        } else {
            (0, 0)
        };
        Some(Box::new(Self {
            xattrs,
            dev_major,
            dev_minor,
        }))
    }
}

/// Returns the bytes of a name that is not UTF-8.
fn raw(name: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(name).is_err().then(|| name.to_vec())
}

/// Returns the name, unless it is the last name of this id.
fn if_changed(seen: &mut HashMap<i64, NameId>, id: i64, name: NameId, names: &Names) -> String {
    let text = names.get(name);
    if text.is_empty() || seen.get(&id) == Some(&name) {
        return String::new();
    }
    seen.insert(id, name);
    text.to_owned()
}
