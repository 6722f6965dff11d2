//! The tree of a layer as overlayfs needs it, from a TOC.
//!
//! A whiteout entry `.wh.NAME` is the character device 0:0 called `NAME`. An opaque directory has
//! an extended attribute that marks it (kernel, overlayfs.rst, "whiteouts and opaque directories").
//! The format's own entries are not shown. The root has a hidden directory `.stargz-snapshotter`
//! with one file that describes the layer, as in the reference implementation.

use std::collections::{HashMap, HashSet};

use estargz::Toc;
use estargz::toc::{Kind, Node, NodeId, Time};

use crate::budget::Weight;
use crate::layers::names::{
    OPAQUE, PREFETCH_LANDMARK, WHITEOUT, is_format_entry, is_marker, is_whiteout, whiteout_of,
};

const STATE_DIRECTORY: &[u8] = b".stargz-snapshotter";
/// The prefixes of overlayfs's own attributes, which no image may set.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// The attributes that mark an opaque directory, without and with the mount option `userxattr`.
const OPAQUE_XATTRS: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
/// The size that ext4 reports for a directory of one block.
const DIRECTORY_SIZE: u64 = 4096;

/// A file or directory of a layer. Its number is the TOC's node number; the state directory and its
/// file have the two numbers after those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId(pub u32);

impl FileId {
    pub(crate) const ROOT: Self = Self(0);
}

/// The tree of one layer.
#[derive(Debug)]
pub(crate) struct Tree {
    toc: Toc,
    whiteouts: HashSet<u32>,
    opaque: HashSet<u32>,
    state_name: Vec<u8>,
    state: Vec<u8>,
    _weight: Option<Weight>,
}

/// The reason why a layer cannot be mounted lazily.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("{0:?} is a hard link to a file of a lower layer")]
    LinkOutside(String),
    #[error("{0:?} is a whiteout with several names")]
    LinkedWhiteout(String),
}

/// The attributes that `stat` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub kind: Kind,
    /// Permission bits, set-uid, set-gid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub size: u64,
    pub modified: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub name: &'a [u8],
    pub id: FileId,
    /// The position after this entry, from which a listing continues.
    pub next: usize,
}

/// The place of a regular file's content.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// In the layer's chunks.
    Chunks(Node<'a>),
    /// In memory.
    Bytes(&'a [u8]),
}

impl Tree {
    /// Creates the tree. `state` is the content of the hidden file `state_name`, which describes
    /// the layer.
    ///
    /// # Errors
    /// If the layer alone does not define a file: a hard link to a lower layer, or a
    /// whiteout with several names.
    pub(crate) fn new(toc: Toc, state_name: &str, state: Vec<u8>) -> Result<Self, TreeError> {
        let (mut whiteouts, mut opaque) = (HashSet::new(), HashSet::new());
        for directory in nodes(&toc).filter(|node| node.kind() == Kind::Directory) {
            for (name, node) in directory.children() {
                let shown = || String::from_utf8_lossy(name).into_owned();
                if node.kind() == Kind::DanglingLink {
                    return Err(TreeError::LinkOutside(shown()));
                }
                if name == OPAQUE {
                    opaque.insert(directory.id().0);
                } else if is_whiteout(name) {
                    if node.links() > 1 {
                        return Err(TreeError::LinkedWhiteout(shown()));
                    }
                    whiteouts.insert(node.id().0);
                }
            }
        }
        Ok(Self {
            toc,
            whiteouts,
            opaque,
            state_name: state_name.as_bytes().to_vec(),
            state,
            _weight: None,
        })
    }

    /// Returns the tree with the memory that was reserved for it.
    #[must_use]
    pub(crate) fn with_weight(self, weight: Option<Weight>) -> Self {
        Self {
            _weight: weight,
            ..self
        }
    }

    pub(crate) fn toc(&self) -> &Toc {
        &self.toc
    }

    /// Returns the number of files and directories. Their IDs are lower than it.
    pub(crate) fn len(&self) -> u32 {
        // The TOC reader's limit on names keeps it far below `u32::MAX`.
        u32::try_from(self.toc.len()).unwrap_or(u32::MAX - 2) + 2
    }

    fn state_directory(&self) -> FileId {
        FileId(self.len() - 2)
    }

    fn state_file(&self) -> FileId {
        FileId(self.len() - 1)
    }

    pub(crate) fn attributes(&self, id: FileId) -> Option<Attributes> {
        let root = self.toc.root();
        let own = |kind, mode, links, size| Attributes {
            kind,
            mode,
            uid: 0,
            gid: 0,
            links,
            size,
            modified: root.modified(),
            device: (0, 0),
        };
        if id == self.state_directory() {
            return Some(own(Kind::Directory, 0o500, 2, DIRECTORY_SIZE));
        }
        if id == self.state_file() {
            return Some(own(Kind::File, 0o400, 1, self.state.len() as u64));
        }
        let node = self.toc.node(NodeId(id.0))?;
        let is_whiteout = self.whiteouts.contains(&id.0);
        Some(Attributes {
            kind: if is_whiteout {
                Kind::CharDevice
            } else {
                node.kind()
            },
            mode: match node.kind() {
                _ if is_whiteout => 0,
                // Whatever the tar file says, Linux has no other mode for symbolic links.
                Kind::Symlink => 0o777,
                _ => node.mode(),
            },
            uid: node.uid(),
            gid: node.gid(),
            links: node.links(),
            size: match node.kind() {
                Kind::Directory => DIRECTORY_SIZE,
                Kind::Symlink => node.target().len() as u64,
                _ if is_whiteout => 0,
                _ => node.size(),
            },
            modified: node.modified(),
            device: if is_whiteout { (0, 0) } else { node.device() },
        })
    }

    /// Returns the file called `name` in a directory.
    pub(crate) fn lookup(&self, parent: FileId, name: &[u8]) -> Option<FileId> {
        if parent == self.state_directory() {
            return (name == self.state_name).then_some(self.state_file());
        }
        if parent == FileId::ROOT && name == STATE_DIRECTORY {
            return Some(self.state_directory());
        }
        let directory = self.toc.node(NodeId(parent.0))?;
        if is_hidden(parent, name) || is_marker(name) {
            return None;
        }
        let node = directory
            .child(name)
            .or_else(|| directory.child(&whiteout_of(name)))?;
        Some(FileId(node.id().0))
    }

    /// Returns the entries of a directory from `start` on, which is 0 or an entry's `next`.
    pub(crate) fn entries(
        &self,
        directory: FileId,
        start: usize,
    ) -> impl Iterator<Item = Entry<'_>> {
        let node = self.toc.node(NodeId(directory.0));
        let children = node
            .into_iter()
            .flat_map(move |node| node.children_from(start));
        children
            .enumerate()
            .filter_map(move |(index, (name, child))| {
                let name = match name.strip_prefix(WHITEOUT) {
                    _ if is_hidden(directory, name) => return None,
                    None => name,
                    Some(_) if !is_whiteout(name) => return None,
                    // A layer that deletes a name and adds it again shows the new file.
                    Some(name) if node.is_some_and(|node| node.child(name).is_some()) => {
                        return None;
                    }
                    Some(name) => name,
                };
                Some(Entry {
                    name,
                    id: FileId(child.id().0),
                    next: start + index + 1,
                })
            })
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn target(&self, id: FileId) -> Option<&[u8]> {
        let node = self.toc.node(NodeId(id.0))?;
        (node.kind() == Kind::Symlink).then(|| node.target())
    }

    /// Returns the content of a regular file.
    pub(crate) fn content(&self, id: FileId) -> Option<Content<'_>> {
        if id == self.state_file() {
            return Some(Content::Bytes(&self.state));
        }
        let node = self.toc.node(NodeId(id.0))?;
        (node.kind() == Kind::File && !self.whiteouts.contains(&id.0))
            .then_some(Content::Chunks(node))
    }

    /// Returns the regular file at a path in the layer. Does not follow symbolic links.
    pub(crate) fn file(&self, path: &str) -> Option<FileId> {
        let id = path.split('/').try_fold(FileId::ROOT, |directory, name| {
            self.lookup(directory, name.as_bytes())
        })?;
        self.content(id).map(|_| id)
    }

    /// Returns the paths of `files`. A file with several names gets the first one: the entry that
    /// comes first in the layer carries the content.
    pub(crate) fn paths(&self, files: &HashSet<FileId>) -> HashMap<FileId, Vec<u8>> {
        let mut paths = HashMap::new();
        let entries = self
            .toc
            .entries()
            .map(|entry| (FileId(entry.node.id().0), entry.path));
        for (id, path) in entries.filter(|(id, _)| files.contains(id)) {
            paths.entry(id).or_insert(path);
        }
        paths
    }

    /// Returns the value of an extended attribute.
    pub(crate) fn xattr(&self, id: FileId, name: &[u8]) -> Option<&[u8]> {
        if OPAQUE_XATTRS.contains(&name) {
            return self.opaque.contains(&id.0).then_some(b"y");
        }
        self.xattrs(id)
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Returns the extended attributes that the image set. The attributes that this tree adds for
    /// overlayfs are not among them.
    pub(crate) fn xattrs(&self, id: FileId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let node = self
            .toc
            .node(NodeId(id.0))
            .filter(|_| !self.whiteouts.contains(&id.0));
        let is_overlays =
            |name: &[u8]| OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix));
        node.into_iter()
            .flat_map(|node| node.xattrs())
            .filter(move |(name, _)| !is_overlays(name))
    }

    /// Whether any file has an extended attribute. The mark of an opaque directory counts as one.
    pub(crate) fn has_xattrs(&self) -> bool {
        let is_image = |node: Node<'_>| self.xattrs(FileId(node.id().0)).next().is_some();
        !self.opaque.is_empty() || nodes(&self.toc).any(is_image)
    }

    /// Returns the number of the first chunk that the layer's author does not want prefetched. 0 if
    /// there is no landmark.
    pub(crate) fn prefetched(&self) -> u32 {
        let landmark = self.toc.root().child(PREFETCH_LANDMARK);
        landmark.map_or(0, |node| node.chunk_numbers().start)
    }
}

fn nodes(toc: &Toc) -> impl Iterator<Item = Node<'_>> {
    (0..u32::try_from(toc.len()).unwrap_or(u32::MAX)).filter_map(|number| toc.node(NodeId(number)))
}

fn is_hidden(directory: FileId, name: &[u8]) -> bool {
    directory == FileId::ROOT && is_format_entry(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use estargz::pool::Pool;
    use estargz::toc::Limits;
    use estargz::write::{Options, write};
    use estargz::{Footer, UnverifiedToc, footer};
    use tar::{Builder, EntryType, Header};

    use super::*;

    fn header(kind: EntryType, size: usize) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(0o644);
        header
    }

    /// Creates a layer of these entries. A name with a slash at its end is a directory, `name ->
    /// target` is a hard link.
    fn tree(names: &[&str]) -> Result<Tree, TreeError> {
        let mut tar = Builder::new(Vec::new());
        for name in names {
            match name.split_once(" -> ") {
                Some((name, target)) => tar
                    .append_link(&mut header(EntryType::Link, 0), name, target)
                    .unwrap(),
                None if name.ends_with('/') => {
                    tar.append_data(&mut header(EntryType::Directory, 0), name, &[][..])
                        .unwrap();
                }
                None => tar
                    .append_data(&mut header(EntryType::Regular, 1), name, &b"x"[..])
                    .unwrap(),
            }
        }
        of(tar)
    }

    fn of(tar: Builder<Vec<u8>>) -> Result<Tree, TreeError> {
        let mut blob = Vec::new();
        let pool = Pool::new(NonZeroUsize::MIN, 64 << 20);
        let written = write(
            tar.into_inner().unwrap().as_slice(),
            &mut blob,
            &Options::default(),
            &pool,
        )
        .unwrap();
        let size = blob.len() as u64;
        let slice = |range: std::ops::Range<u64>| {
            &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        };
        let footer = Footer::parse(slice(footer::tail_range(size)), size).unwrap();
        let section = slice(footer.toc_range().unwrap());
        let toc = UnverifiedToc::parse(section, &footer, &Limits::default()).unwrap();
        Tree::new(
            toc.verify(&written.toc_digest).unwrap(),
            "sha256:x.json",
            b"{}".to_vec(),
        )
    }

    fn at(tree: &Tree, path: &str) -> Option<FileId> {
        path.split('/').try_fold(FileId::ROOT, |parent, name| {
            tree.lookup(parent, name.as_bytes())
        })
    }

    fn listed(tree: &Tree, directory: FileId) -> BTreeMap<String, Kind> {
        let kind = |entry: Entry<'_>| {
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            assert_eq!(tree.lookup(directory, entry.name), Some(entry.id), "{name}");
            (name, tree.attributes(entry.id).unwrap().kind)
        };
        tree.entries(directory, 0).map(kind).collect()
    }

    #[test]
    fn whiteouts_are_devices_and_the_formats_own_entries_are_hidden() {
        let tree = tree(&[
            "dir/",
            "dir/.wh.gone",
            "dir/.wh.back",
            "dir/back",
            ".wh..wh.aufs",
            "kept",
        ])
        .unwrap();
        let names = |names: &[(&str, Kind)]| {
            names
                .iter()
                .map(|&(name, kind)| (name.to_owned(), kind))
                .collect()
        };
        let expected: BTreeMap<String, Kind> =
            names(&[("dir", Kind::Directory), ("kept", Kind::File)]);
        assert_eq!(listed(&tree, FileId::ROOT), expected);
        let directory = at(&tree, "dir").unwrap();
        let expected: BTreeMap<String, Kind> =
            names(&[("back", Kind::File), ("gone", Kind::CharDevice)]);
        assert_eq!(listed(&tree, directory), expected);
        let gone = tree.attributes(at(&tree, "dir/gone").unwrap()).unwrap();
        assert_eq!((gone.device, gone.mode, gone.size), ((0, 0), 0, 0));
        for hidden in [
            ".no.prefetch.landmark",
            "dir/.wh.gone",
            ".wh..wh.aufs",
            "stargz.index.json",
        ] {
            assert_eq!(at(&tree, hidden), None, "{hidden}");
        }
        assert!(tree.content(at(&tree, "dir/gone").unwrap()).is_none());
    }

    #[test]
    fn only_overlayfs_sees_the_mark_of_an_opaque_directory() {
        let tree = tree(&["opaque/", "opaque/.wh..wh..opq", "plain/"]).unwrap();
        let (opaque, plain) = (at(&tree, "opaque").unwrap(), at(&tree, "plain").unwrap());
        for name in OPAQUE_XATTRS {
            assert_eq!(tree.xattr(opaque, name), Some(&b"y"[..]));
            assert_eq!(tree.xattr(plain, name), None);
        }
        assert_eq!(tree.xattrs(opaque).count(), 0);
        assert!(listed(&tree, opaque).is_empty());
    }

    #[test]
    fn overlayfs_attributes_of_an_image_are_not_shown() {
        let mut tar = Builder::new(Vec::new());
        let redirect = [
            ("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..]),
            ("SCHILY.xattr.user.x", b"1"),
        ];
        tar.append_pax_extensions(redirect).unwrap();
        tar.append_data(&mut header(EntryType::Regular, 1), "file", &b"x"[..])
            .unwrap();
        let tree = of(tar).unwrap();
        let file = at(&tree, "file").unwrap();
        assert_eq!(tree.xattr(file, b"trusted.overlay.redirect"), None);
        assert_eq!(
            tree.xattrs(file).collect::<Vec<_>>(),
            [(&b"user.x"[..], &b"1"[..])]
        );
    }

    #[test]
    fn the_state_file_is_found_by_its_path_and_not_listed() {
        let tree = tree(&["file"]).unwrap();
        let state = at(&tree, ".stargz-snapshotter/sha256:x.json").unwrap();
        assert!(matches!(tree.content(state), Some(Content::Bytes(b"{}"))));
        assert_eq!(tree.attributes(state).unwrap().size, 2);
        assert_eq!(state.0, tree.len() - 1);
        assert_eq!(
            listed(&tree, FileId::ROOT).into_keys().collect::<Vec<_>>(),
            ["file"]
        );
        assert_eq!(at(&tree, ".stargz-snapshotter/other"), None);
        assert!(tree.attributes(FileId(tree.len())).is_none());
    }

    #[test]
    fn links_to_lower_layers_and_linked_whiteouts_are_refused() {
        assert_eq!(
            tree(&["a -> below"]).unwrap_err(),
            TreeError::LinkOutside("a".to_owned())
        );
        let linked = tree(&[".wh.a", "b -> .wh.a"]).unwrap_err();
        assert!(matches!(linked, TreeError::LinkedWhiteout(_)), "{linked}");
        let hard = tree(&["a", "b -> a"]).unwrap();
        assert_eq!(
            (
                at(&hard, "a"),
                hard.attributes(at(&hard, "a").unwrap()).unwrap().links
            ),
            (at(&hard, "b"), 2)
        );
    }

    #[test]
    fn a_listing_continues_where_it_stopped() {
        let names: Vec<String> = (0..100).map(|number| format!("file{number:03}")).collect();
        let tree = tree(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let (mut found, mut next) = (Vec::new(), 0);
        while let Some(entry) = tree.entries(FileId::ROOT, next).next() {
            found.push(String::from_utf8(entry.name.to_vec()).unwrap());
            next = entry.next;
        }
        assert_eq!(found, names);
    }
}
