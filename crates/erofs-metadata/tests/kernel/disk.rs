//! A tree as a program sees it, for comparing two of them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything about a path but its inode number and the size of a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) links: u64,
    pub(crate) size: Option<u64>,
    pub(crate) modified: (i64, i64),
    pub(crate) device: Option<u64>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's content or a symbolic link's target.
    pub(crate) content: Vec<u8>,
    /// The first path of the same inode.
    pub(crate) first_path: PathBuf,
}

/// Every path below a root, which is the empty path. None was listed but not there: overlayfs lists
/// whiteouts of directories that only one layer has.
type Paths = BTreeMap<PathBuf, Option<Seen>>;

pub(crate) fn walk(root: &Path) -> Paths {
    let mut walk = Walk {
        root,
        seen: BTreeMap::new(),
        inodes: HashMap::new(),
    };
    walk.add(Path::new(""));
    walk.seen
}

/// Compares two trees path by path, so that a difference is readable.
pub(crate) fn assert_same(actual: &Path, expected: &Path) {
    let (mut actual, expected) = (walk(actual), walk(expected));
    for (path, expected) in &expected {
        let actual = actual.remove(path);
        assert_eq!(actual.as_ref(), Some(expected), "{}", path.display());
    }
    assert!(actual.is_empty(), "too many: {:?}", actual.keys());
}

struct Walk<'a> {
    root: &'a Path,
    seen: Paths,
    inodes: HashMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    fn add(&mut self, path: &Path) {
        let full = self.root.join(path);
        let metadata = match fs::symlink_metadata(&full) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            metadata => Some(metadata.unwrap()),
        };
        let is_directory = metadata.as_ref().is_some_and(fs::Metadata::is_dir);
        let seen = metadata.map(|metadata| self.look(path, &full, &metadata));
        self.seen.insert(path.to_owned(), seen);
        if is_directory {
            let names = fs::read_dir(&full).unwrap();
            let mut names: Vec<OsString> = names.map(|name| name.unwrap().file_name()).collect();
            names.sort();
            names.iter().for_each(|name| self.add(&path.join(name)));
        }
    }

    fn look(&mut self, path: &Path, full: &Path, metadata: &fs::Metadata) -> Seen {
        let kind = metadata.file_type();
        let is_device = !kind.is_dir() && !kind.is_file() && !kind.is_symlink();
        let content = match kind {
            _ if kind.is_file() => fs::read(full).unwrap(),
            _ if kind.is_symlink() => fs::read_link(full).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let inode = self.inodes.entry((metadata.dev(), metadata.ino()));
        Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: metadata.nlink(),
            size: (!kind.is_dir()).then_some(metadata.len()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            device: is_device.then(|| metadata.rdev()),
            xattrs: xattrs(full),
            content,
            first_path: inode.or_insert_with(|| path.to_owned()).clone(),
        }
    }
}

/// All extended attributes of a path; a symbolic link is not followed.
pub(crate) fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| (name.to_vec(), xattr(path, name).unwrap()))
        .collect()
}

pub(crate) fn xattr(path: &Path, name: &[u8]) -> Result<Vec<u8>, rustix::io::Errno> {
    let mut value = vec![0; 65536];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
    value.truncate(length);
    Ok(value)
}
