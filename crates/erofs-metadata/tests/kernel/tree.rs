//! A tree of files in memory, which becomes an image with its data, and a tar.

use std::ops::Range;

use erofs_metadata::{Attributes, Data, Extent, Image, Kind, NodeId, Time};
use tar::{EntryType, Header};

const BLOCK: usize = 4096;

/// A path and the file at it. Parents come before their children.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: FileKind,
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    File(Vec<u8>),
    /// A file in pieces on the data device, with holes where it has only zeros.
    Scattered(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// Another name of the entry at this position.
    HardLink(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) root: Attributes,
    pub(crate) entries: Vec<Entry>,
}

impl Tree {
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        Self {
            root: Attributes::default().with_modified(Time {
                seconds: 1_700_000_000,
                nanoseconds: 5,
            }),
            entries,
        }
    }

    /// The image and the content of the data file.
    pub(crate) fn image(&self, block_size: u32, uuid: [u8; 16]) -> (Image, Vec<u8>) {
        let mut image = Image::builder()
            .block_size(block_size)
            .uuid(uuid)
            .root(self.root)
            .build()
            .unwrap();
        let mut data = Vec::new();
        let mut nodes: Vec<NodeId> = Vec::new();
        for entry in &self.entries {
            let node = match &entry.kind {
                FileKind::HardLink(target) => nodes[*target],
                kind => add(&mut image, kind, entry, &mut data),
            };
            let (parent, name) = split(&entry.path);
            let is_parent = |other: &Entry| other.path == parent;
            let parent = self
                .entries
                .iter()
                .position(is_parent)
                .map_or(image.root(), |position| nodes[position]);
            image.link(parent, name, node).unwrap();
            nodes.push(node);
        }
        (image, data)
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        self.append(&mut tar, &Entry::directory(b".", self.root));
        self.entries
            .iter()
            .for_each(|entry| self.append(&mut tar, entry));
        tar.into_inner().unwrap()
    }

    fn append(&self, tar: &mut tar::Builder<Vec<u8>>, entry: &Entry) {
        let time = entry.attributes.modified;
        let mtime = format!("{}.{:09}", time.seconds, time.nanoseconds);
        let xattrs = entry.xattrs.iter().map(|(name, value)| {
            let name = std::str::from_utf8(name).unwrap();
            (format!("SCHILY.xattr.{name}"), value.clone())
        });
        let records: Vec<_> = [("mtime".to_owned(), mtime.into_bytes())]
            .into_iter()
            .chain(xattrs)
            .collect();
        let records = records
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()));
        tar.append_pax_extensions(records).unwrap();
        append_long(tar, EntryType::GNULongName, &entry.path);

        let mut header = Header::new_gnu();
        header.set_mode(entry.attributes.permissions.into());
        header.set_uid(entry.attributes.uid.into());
        header.set_gid(entry.attributes.gid.into());
        header.set_mtime(0);
        let (mut kind, mut content) = (EntryType::Regular, &[][..]);
        match &entry.kind {
            FileKind::Directory => kind = EntryType::Directory,
            FileKind::Fifo => kind = EntryType::Fifo,
            FileKind::CharDevice(major, minor) | FileKind::BlockDevice(major, minor) => {
                let is_char = matches!(entry.kind, FileKind::CharDevice(..));
                kind = if is_char {
                    EntryType::Char
                } else {
                    EntryType::Block
                };
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
            }
            FileKind::File(bytes) | FileKind::Scattered(bytes) => content = bytes,
            FileKind::Symlink(target) => {
                kind = EntryType::Symlink;
                append_long(tar, EntryType::GNULongLink, target);
            }
            FileKind::HardLink(target) => {
                kind = EntryType::Link;
                append_long(tar, EntryType::GNULongLink, &self.entries[*target].path);
            }
        }
        append(tar, header, kind, content);
    }
}

/// Names of any bytes, without the checks of `Header::set_path`.
fn append_long(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &[u8]) {
    append(tar, Header::new_gnu(), kind, &[name, b"\0"].concat());
}

fn append(tar: &mut tar::Builder<Vec<u8>>, mut header: Header, kind: EntryType, content: &[u8]) {
    header.as_mut_bytes()[..4].copy_from_slice(b"name");
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

impl Entry {
    pub(crate) fn new(path: &[u8], kind: FileKind) -> Self {
        Self {
            path: path.to_vec(),
            kind,
            attributes: Attributes::default().with_modified(Time {
                seconds: 1_600_000_000,
                nanoseconds: 123_456_789,
            }),
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn directory(path: &[u8], attributes: Attributes) -> Self {
        Self {
            attributes,
            ..Self::new(path, FileKind::Directory)
        }
    }
}

/// Content that is different at each offset and in each file.
pub(crate) fn content(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..).map(|word: u64| {
        (word + 1).wrapping_mul(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
    });
    words.flat_map(u64::to_be_bytes).take(length).collect()
}

fn add(image: &mut Image, kind: &FileKind, entry: &Entry, data: &mut Vec<u8>) -> NodeId {
    let extents;
    let kind = match kind {
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink(target) => Kind::Symlink(target),
        FileKind::CharDevice(major, minor) => Kind::CharDevice {
            major: *major,
            minor: *minor,
        },
        FileKind::BlockDevice(major, minor) => Kind::BlockDevice {
            major: *major,
            minor: *minor,
        },
        FileKind::Fifo => Kind::Fifo,
        FileKind::Scattered(content) => {
            extents = scatter(content, data);
            Kind::File {
                size: content.len() as u64,
                data: Data::Extents(&extents),
            }
        }
        FileKind::File(content) => {
            let place = data.len() as u64;
            data.extend(content);
            data.resize(data.len().next_multiple_of(BLOCK), 0);
            Kind::File {
                size: content.len() as u64,
                data: Data::At(place),
            }
        }
        FileKind::HardLink(_) => unreachable!("has no inode"),
    };
    // Linux gives all symbolic links on disk these permissions.
    let permissions = if matches!(kind, Kind::Symlink(_)) {
        0o777
    } else {
        entry.attributes.permissions
    };
    let node = image
        .add(kind, &entry.attributes.with_permissions(permissions))
        .unwrap();
    for (name, value) in &entry.xattrs {
        image.add_xattr(node, name, value).unwrap();
    }
    node
}

/// Stores content in pieces of one to eight blocks, the last first.
fn scatter(content: &[u8], data: &mut Vec<u8>) -> Vec<Extent> {
    let mut pieces = Vec::new();
    let (mut start, mut blocks) = (0, 1);
    while start < content.len() {
        let end = content.len().min(start + blocks * BLOCK);
        pieces.push(start..end);
        (start, blocks) = (end, blocks * 2 % 15);
    }
    let is_hole = |piece: &Range<usize>| content[piece.clone()].iter().all(|byte| *byte == 0);
    pieces.retain(|piece| !is_hole(piece));
    let place = |piece: Range<usize>| {
        let device_offset = data.len() as u64;
        data.extend(&content[piece.clone()]);
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        Extent {
            offset: piece.start as u64,
            device_offset,
            length: piece.len() as u64,
        }
    };
    let mut extents: Vec<_> = pieces.into_iter().rev().map(place).collect();
    extents.reverse();
    extents
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
