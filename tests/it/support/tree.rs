//! A listing of a file system that can be compared with another down to the last attribute.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Everything that a container can see of a file system, by path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree(pub(crate) BTreeMap<PathBuf, Node>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds; `None` if the client set the time while unpacking.
    modified: Option<(i64, i64)>,
    device: u64,
    size: u64,
    /// The link's target, or the digest of the content.
    content: String,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path with the same inode.
    same_as: Option<PathBuf>,
}

impl Tree {
    /// Reads everything under `root`. Times after `start` count as "while unpacking".
    pub(crate) fn read(root: &Path, start: i64) -> Self {
        let mut nodes = BTreeMap::new();
        let mut inodes = HashMap::new();
        walk(root, root, start, &mut inodes, &mut nodes);
        assert!(nodes.len() > 1, "nothing in {}", root.display());
        Self(nodes)
    }

    /// Rounds the times to the nearest second, as a TOC records them, and removes that of the root,
    /// which the snapshotter decides.
    pub(crate) fn rounded_to_seconds(mut self) -> Self {
        for (path, node) in &mut self.0 {
            let rounded = node
                .modified
                .map(|(seconds, nanos)| (seconds + i64::from(nanos >= 500_000_000), 0));
            node.modified = rounded.filter(|_| !path.as_os_str().is_empty());
        }
        self
    }

    /// Fails with a readable list of the first differences unless `self` equals `other`.
    pub(crate) fn assert_same(&self, other: &Self, name: &str) {
        let paths = self
            .0
            .keys()
            .chain(other.0.keys())
            .collect::<std::collections::BTreeSet<_>>();
        let differ = paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path));
        let lines: Vec<_> = differ
            .map(|path| {
                format!(
                    "{}\n   {:?}\n   {:?}",
                    path.display(),
                    self.0.get(path),
                    other.0.get(path)
                )
            })
            .collect();
        let some = lines
            .iter()
            .take(10)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            lines.is_empty(),
            "{name}: {} of {} paths differ\n{some}",
            lines.len(),
            self.0.len()
        );
    }
}

fn walk(
    root: &Path,
    at: &Path,
    start: i64,
    inodes: &mut HashMap<(u64, u64), PathBuf>,
    nodes: &mut BTreeMap<PathBuf, Node>,
) {
    let metadata = fs::symlink_metadata(at).unwrap();
    let relative = at.strip_prefix(root).unwrap().to_owned();
    let mut node = node(at, &metadata, start);
    if !metadata.is_dir() && metadata.nlink() > 1 {
        let first = inodes
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| relative.clone());
        node.same_as = Some(first.clone());
    }
    nodes.insert(relative, node);
    if metadata.is_dir() {
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
            .iter()
            .for_each(|name| walk(root, &at.join(name), start, inodes, nodes));
    }
}

fn node(at: &Path, metadata: &Metadata, start: i64) -> Node {
    let kind = metadata.file_type();
    let (kind, content) = match () {
        () if kind.is_dir() => ("directory", String::new()),
        () if kind.is_symlink() => ("symlink", format!("{:?}", fs::read_link(at).unwrap())),
        () if kind.is_file() => ("file", digest(at)),
        () if kind.is_fifo() => ("fifo", String::new()),
        () if kind.is_char_device() => ("character device", String::new()),
        () if kind.is_block_device() => ("block device", String::new()),
        () => ("socket", String::new()),
    };
    Node {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        modified: (metadata.mtime() < start).then_some((metadata.mtime(), metadata.mtime_nsec())),
        device: metadata.rdev(),
        size: if metadata.is_dir() {
            0
        } else {
            metadata.size()
        },
        content,
        xattrs: xattrs(at),
        same_as: None,
    }
}

fn digest(path: &Path) -> String {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path).unwrap(), &mut HashWriter(&mut hash)).unwrap();
    hex::encode(hash.finalize())
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = OsStr::from_bytes(name);
        // Overlayfs's own attributes are not part of the file system that containers see.
        if name.as_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(length);
        found.insert(name.to_owned(), value);
    }
    found
}
