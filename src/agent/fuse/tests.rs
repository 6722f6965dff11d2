//! Random trees: the file system without a kernel shows what the tar says.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use estargz::toc::Kind;
use tar::{Archive, Entry, EntryType};

use super::filesystem::{FileSystem, Listed};
use crate::agent::config::Config;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::layers::Layers;
use crate::agent::numbers::Inode;
use crate::registry;
use crate::support::image::Random;
use crate::support::layer::{CHUNK, Layer};
use crate::support::random_tar::RandomTar;
use crate::support::registry::Registry;
use crate::transport::Upstreams;

/// Number of trees that are compared. Each has some sixty files.
const TREES: u64 = 4;
const READS: usize = 200;

/// The attributes of a file that a tar has in its header.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    mode: u16,
    owner: (u32, u32),
    size: u64,
    modified: i64,
    device: (u32, u32),
    target: Vec<u8>,
}

/// The files of a layer by path, and their inodes.
type Tree = (BTreeMap<PathBuf, Seen>, BTreeMap<PathBuf, Inode>);

/// Mounts the layer in a file system of this process. Returns the inode of its root.
async fn mounted(root: &Path, layer: &Layer) -> (FileSystem, Inode, Registry) {
    let registry = Registry::start().await;
    registry.put_blob(layer.blob.clone());
    let config = Config {
        root: root.to_owned(),
        ..Config::default()
    };
    let plain = registry::Config {
        plain_http_loopback: true,
        ..registry::Config::default()
    };
    let upstreams = Upstreams::new(&plain).unwrap();
    let layers = Arc::new(Layers::open(&config, upstreams, &[]).unwrap());
    let spec = LayerSpec {
        reference: format!("{}/library/app:1", registry.host()),
        digest: layer.digest.clone(),
        toc_digest: Some(layer.toc_digest.clone()),
        manifest_digest: None,
        image_layers: Vec::new(),
        layers_above: Vec::new(),
        labels: BTreeMap::default(),
    };
    let number = layers.mount(&spec, None).await.unwrap();
    let filesystem = FileSystem::new(&layers);
    let name = number.to_string();
    let (inode, _) = filesystem.lookup(Inode::ROOT, name.as_bytes()).unwrap();
    (filesystem, inode, registry)
}

/// Collects everything in a directory of the file system.
fn collect(filesystem: &FileSystem, directory: Inode, path: &Path, tree: &mut Tree) {
    for listed in listed(filesystem, directory) {
        let path = path.join(std::ffi::OsStr::from_bytes(&listed.name));
        let (inode, attributes) = filesystem.lookup(directory, &listed.name).unwrap();
        assert_eq!((inode, attributes), (listed.inode, listed.attributes));
        assert_eq!(filesystem.attributes(inode).unwrap(), attributes);
        let is_file = attributes.kind == Kind::File;
        let seen = Seen {
            kind: attributes.kind,
            mode: attributes.mode,
            owner: (attributes.uid, attributes.gid),
            size: if is_file { attributes.size } else { 0 },
            modified: attributes.modified.seconds,
            device: attributes.device,
            target: filesystem.target(inode).unwrap_or_default(),
        };
        tree.0.insert(path.clone(), seen);
        tree.1.insert(path.clone(), inode);
        if attributes.kind == Kind::Directory {
            collect(filesystem, inode, &path, tree);
        }
    }
}

/// Lists a directory three names at a time, so that listings continue where they stopped.
fn listed(filesystem: &FileSystem, directory: Inode) -> Vec<Listed> {
    let (mut names, mut next) = (Vec::new(), 0);
    loop {
        let (before, start) = (names.len(), next);
        let take = |listed: Listed| {
            next = listed.next;
            names.push(listed);
            names.len() < before + 3
        };
        filesystem.list(directory, start, take).unwrap();
        if names.len() == before {
            return names;
        }
    }
}

/// Returns the files of a tar, and for each hard link the path that it stands for.
fn in_tar(tar: &[u8]) -> (BTreeMap<PathBuf, Seen>, BTreeMap<PathBuf, PathBuf>) {
    let (mut files, mut links) = (BTreeMap::new(), BTreeMap::new());
    for entry in Archive::new(Cursor::new(tar)).entries().unwrap() {
        let entry = entry.unwrap();
        let path: PathBuf = entry.path().unwrap().components().collect();
        let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
        if path.as_os_str().is_empty() {
            continue;
        }
        if entry.header().entry_type() == EntryType::Link {
            let target = entry.link_name().unwrap().unwrap().into_owned();
            links.insert(path, target);
        } else {
            files.insert(path, described(&entry));
        }
    }
    (files, links)
}

fn described(entry: &Entry<'_, Cursor<&[u8]>>) -> Seen {
    let header = entry.header();
    let (kind, mode) = match header.entry_type() {
        EntryType::Directory => (Kind::Directory, header.mode().unwrap()),
        EntryType::Symlink => (Kind::Symlink, 0o777),
        EntryType::Fifo => (Kind::Fifo, header.mode().unwrap()),
        EntryType::Char => (Kind::CharDevice, header.mode().unwrap()),
        _ => (Kind::File, header.mode().unwrap()),
    };
    let number = |number: u64| u32::try_from(number).unwrap();
    let device = || Some((header.device_major().ok()??, header.device_minor().ok()??));
    Seen {
        kind,
        mode: u16::try_from(mode).unwrap(),
        owner: (number(header.uid().unwrap()), number(header.gid().unwrap())),
        size: header.size().unwrap(),
        modified: i64::try_from(header.mtime().unwrap()).unwrap(),
        device: device()
            .filter(|_| kind == Kind::CharDevice)
            .unwrap_or_default(),
        target: entry.link_name_bytes().map_or_else(Vec::new, Into::into),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_trees_are_the_same_without_a_kernel_as_in_their_tar() {
    for seed in 0..TREES {
        let (tar, files) = RandomTar::new(seed).build();
        let folder = tempfile::tempdir().unwrap();
        let (filesystem, root, _registry) = mounted(folder.path(), &Layer::of_tar(&tar)).await;
        let mut tree = Tree::default();
        collect(&filesystem, root, Path::new(""), &mut tree);
        let (mut seen, inodes) = tree;
        let (expected, links) = in_tar(&tar);
        for (path, target) in &links {
            assert_eq!(inodes[path], inodes[target], "seed {seed}: {path:?}");
            assert!(seen.remove(path).is_some());
        }
        assert_eq!(seen, expected, "seed {seed}");
        let mut random = Random::new(seed);
        for _ in 0..READS {
            let mut below = |end: usize| usize::try_from(random.below(end as u64)).unwrap();
            let (name, content) = files.iter().nth(below(files.len())).unwrap();
            let (offset, length) = (below(content.len() + 10), below(2 * CHUNK));
            let end = (offset + length).min(content.len());
            let inode = inodes[Path::new(name)];
            let opened = filesystem
                .read(inode, offset as u64, length as u64)
                .unwrap();
            let read = opened.read(offset as u64, length as u64).await.unwrap();
            assert!(read == content[offset.min(end)..end], "{name} at {offset}");
        }
    }
}
