//! Random trees: the file-system type, the mount and the files that `tar` unpacks must be
//! identical.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use estargz::toc::Kind;
use starlift::agent::Config;
use starlift::agent::fuse::filesystem::FileSystem;
use starlift::agent::layer::spec::LayerSpec;
use starlift::agent::layer::tree::Attributes;
use starlift::agent::layer_mount::LayerMount;
use starlift::agent::layers::Layers;
use starlift::agent::layers::mount::ROOT_INODE;
use starlift::agent::layers::notify::Notifier;
use starlift::registry;
use starlift::transport::Upstreams;
use tar::{Builder, EntryType, Header};

use crate::support::agent::is_erofs;
use crate::support::image::Random;
use crate::support::lazy::{CHUNK, Layer, Node, ON_DEMAND};
use crate::support::place::Place;
use crate::support::tree::Tree;

/// Number of trees that are compared. Each has some sixty files.
const TREES: u64 = 4;
const ENTRIES: u64 = 60;
const READS: usize = 200;
const DIRECTORY_SIZE: u64 = 4096;

/// The compared attributes of a file: everything that `stat`, `listxattr` and `read` return.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    mode: u16,
    owner: (u32, u32),
    links: u32,
    size: u64,
    modified: (i64, u32),
    device: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Vec<u8>,
    /// The same for two names of one file.
    inode: u64,
}

/// A tar with every kind of entry, and the content of its regular files.
struct RandomTar {
    random: Random,
    tar: Builder<Vec<u8>>,
    directories: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
}

impl RandomTar {
    fn new(seed: u64) -> Self {
        let (random, tar) = (Random::new(seed), Builder::new(Vec::new()));
        Self {
            random,
            tar,
            directories: vec![String::new()],
            files: BTreeMap::new(),
        }
    }

    fn build(mut self) -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
        let mut root = self.header(EntryType::Directory, 0);
        self.tar.append_data(&mut root, "./", io::empty()).unwrap();
        (0..ENTRIES).for_each(|number| self.entry(number));
        (self.tar.into_inner().unwrap(), self.files)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap()
    }

    fn entry(&mut self, number: u64) {
        let parent = self.below(self.directories.len());
        let parent = self.directories[parent].clone();
        let odd = ["", " with blanks", "-ünï", "\\back", "'quote\""][self.below(5)];
        let name = format!("{parent}n{number}{odd}");
        match self.random.below(10) {
            0 | 1 => {
                let mut header = self.header(EntryType::Directory, 0);
                self.tar
                    .append_data(&mut header, format!("{name}/"), io::empty())
                    .unwrap();
                self.directories.push(format!("{name}/"));
            }
            2 => {
                let mut header = self.header(EntryType::Symlink, 0);
                self.tar
                    .append_link(&mut header, &name, "../some where/ünknown")
                    .unwrap();
            }
            3 => {
                let mut header = self.header(EntryType::Fifo, 0);
                self.tar
                    .append_data(&mut header, &name, io::empty())
                    .unwrap();
            }
            4 => {
                let mut header = self.header(EntryType::Char, 0);
                header.set_device_major(5).unwrap();
                header
                    .set_device_minor(u32::try_from(self.below(200)).unwrap())
                    .unwrap();
                self.tar
                    .append_data(&mut header, &name, io::empty())
                    .unwrap();
            }
            5 if !self.files.is_empty() => {
                let index = self.below(self.files.len());
                let (target, content) = self.files.iter().nth(index).unwrap();
                let (target, content) = (target.clone(), content.clone());
                let mut header = self.header(EntryType::Link, 0);
                self.tar.append_link(&mut header, &name, &target).unwrap();
                self.files.insert(name, content);
            }
            _ => self.file(name),
        }
    }

    fn file(&mut self, name: String) {
        let length = [0, 1, 5_000, CHUNK, CHUNK + 1, 3 * CHUNK + 77][self.below(6)];
        let mut content = self.random.bytes(length);
        if self.random.below(3) == 0 {
            content[length / 2..].fill(b'x');
        }
        if self.random.below(3) == 0 {
            let value = self.random.bytes(20);
            self.tar
                .append_pax_extensions([("SCHILY.xattr.user.random", value.as_slice())])
                .unwrap();
        }
        let mut header = self.header(EntryType::Regular, length);
        self.tar
            .append_data(&mut header, &name, content.as_slice())
            .unwrap();
        self.files.insert(name, content);
    }

    fn header(&mut self, kind: EntryType, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode([0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o600][self.below(6)]);
        header.set_uid(self.random.below(70_000));
        header.set_gid(self.random.below(70_000));
        header.set_mtime(1_000_000_000 + self.random.below(600_000_000));
        header
    }
}

/// Collects everything in a directory of the file system, without a kernel.
fn seen_directly(
    filesystem: &FileSystem,
    directory: u64,
    path: &Path,
    seen: &mut BTreeMap<PathBuf, Seen>,
) {
    let (mut names, mut next) = (Vec::new(), 0);
    // Three at a time, so that listings continue where they stopped.
    loop {
        let before = names.len();
        filesystem
            .list(directory, next, |listed| {
                next = listed.next;
                names.push(listed);
                names.len() < before + 3
            })
            .unwrap();
        if names.len() == before {
            break;
        }
    }
    for listed in names {
        let path = path.join(std::ffi::OsStr::from_bytes(&listed.name));
        let (inode, attributes) = filesystem.lookup(directory, &listed.name).unwrap();
        assert_eq!((inode, attributes), (listed.inode, listed.attributes));
        assert_eq!(filesystem.attributes(inode).unwrap(), attributes);
        seen.insert(path.clone(), described(filesystem, inode, attributes));
        if attributes.kind == Kind::Directory {
            seen_directly(filesystem, inode, &path, seen);
        }
    }
}

fn described(filesystem: &FileSystem, inode: u64, attributes: Attributes) -> Seen {
    let Attributes {
        kind,
        mode,
        uid,
        gid,
        links,
        size,
        modified,
        device,
    } = attributes;
    let names = filesystem.xattrs(inode).unwrap();
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    Seen {
        kind,
        mode,
        owner: (uid, gid),
        links,
        size,
        modified: (modified.seconds, modified.nanoseconds),
        device: rustix::fs::makedev(device.0, device.1),
        xattrs: names
            .map(|name| (name.to_vec(), filesystem.xattr(inode, name).unwrap()))
            .collect(),
        target: filesystem.target(inode).unwrap_or_default(),
        inode,
    }
}

/// Collects everything in a mounted directory, through the kernel.
fn seen_mounted(directory: &Path, path: &Path, seen: &mut BTreeMap<PathBuf, Seen>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (at, path) = (entry.path(), path.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&at).unwrap();
        let kind = match metadata.mode() & 0o170_000 {
            0o040_000 => Kind::Directory,
            0o100_000 => Kind::File,
            0o120_000 => Kind::Symlink,
            0o010_000 => Kind::Fifo,
            0o020_000 => Kind::CharDevice,
            other => panic!("{other:o}"),
        };
        let described = Seen {
            kind,
            mode: u16::try_from(metadata.mode() & 0o7777).unwrap(),
            owner: (metadata.uid(), metadata.gid()),
            links: u32::try_from(metadata.nlink()).unwrap(),
            size: match kind {
                // Each file system has sizes of its own for directories.
                Kind::Directory if is_erofs() => DIRECTORY_SIZE,
                _ => metadata.size(),
            },
            modified: (
                metadata.mtime(),
                u32::try_from(metadata.mtime_nsec()).unwrap(),
            ),
            device: metadata.rdev(),
            xattrs: xattrs(&at),
            target: fs::read_link(&at)
                .map(|target| target.as_os_str().as_bytes().to_vec())
                .unwrap_or_default(),
            inode: metadata.ino(),
        };
        assert_eq!(entry.metadata().unwrap().ino(), metadata.ino());
        seen.insert(path.clone(), described);
        if kind == Kind::Directory {
            seen_mounted(&at, &path, seen);
        }
    }
}

fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 1 << 16];
    let length = rustix::fs::llistxattr(at, &mut names).unwrap();
    let value = |name: &[u8]| {
        let mut value = vec![0_u8; 1 << 16];
        let length = rustix::fs::lgetxattr(at, name, &mut value).unwrap();
        value[..length].to_vec()
    };
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Mounts the layer in a file system of this process, without a kernel.
async fn in_process(place: &Place, node: &Node, layer: &Layer) -> (FileSystem, u64) {
    let config = Config {
        root: place.dir("direct"),
        ..Config::default()
    };
    let plain = registry::Config {
        plain_http_loopback: true,
        ..registry::Config::default()
    };
    let upstreams = Upstreams::new(&plain).unwrap();
    let layers = Arc::new(Layers::open(&config, upstreams, &[LayerMount::Full]).unwrap());
    let notifier = Notifier::new(
        File::options()
            .write(true)
            .open("/dev/null")
            .unwrap()
            .into(),
    );
    layers.announce_to(LayerMount::Full, Some(notifier));
    let labels = node.labels("direct", layer).into_iter().collect();
    let number = layers
        .mount(&LayerSpec::from_labels(&labels).unwrap(), None)
        .await
        .unwrap();
    let filesystem = FileSystem::new(layers);
    let (inode, _) = filesystem
        .lookup(ROOT_INODE, number.to_string().as_bytes())
        .unwrap();
    (filesystem, inode)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_trees_are_the_same_directly_mounted_and_unpacked() {
    let node = Node::start(&[ON_DEMAND]).await;
    for seed in 0..TREES {
        let (tar, files) = RandomTar::new(seed).build();
        let layer = Layer::of_tar(&tar);
        let mounted = node.mount(&format!("tree{seed}"), &layer).await;
        let place = Place::with(&[]).unwrap();
        let (filesystem, root) = in_process(&place, &node, &layer).await;

        let (mut directly, mut through_the_kernel) = (BTreeMap::new(), BTreeMap::new());
        seen_directly(&filesystem, root, Path::new(""), &mut directly);
        seen_mounted(&mounted, Path::new(""), &mut through_the_kernel);
        // Inodes are numbered by mount. Only the names that share an inode are compared.
        let (directly, through_the_kernel) = (numbered(directly), numbered(through_the_kernel));
        assert_eq!(directly, through_the_kernel, "seed {seed}");

        let unpacked = place.dir("unpacked");
        let archive = place.write("layer.tar", &tar);
        place.run(&format!(
            "tar --delay-directory-restore --xattrs --xattrs-include=* --same-owner --numeric-owner -xpf {} -C {}",
            archive.display(),
            unpacked.display()
        ));
        let (unpacked, lazy) = (
            Tree::read(&unpacked, i64::MAX),
            Tree::read(&mounted, i64::MAX),
        );
        unpacked.assert_same(&lazy, &format!("seed {seed}: tar, then the mount"));

        let mut random = Random::new(seed);
        for _ in 0..READS {
            let below = |random: &mut Random, end: usize| {
                usize::try_from(random.below(end as u64)).unwrap()
            };
            let (name, content) = files.iter().nth(below(&mut random, files.len())).unwrap();
            let offset = below(&mut random, content.len() + 10);
            let length = below(&mut random, 2 * CHUNK);
            let expected =
                &content[offset.min(content.len())..(offset + length).min(content.len())];
            let inode = name.split('/').fold(root, |inode, name| {
                filesystem.lookup(inode, name.as_bytes()).unwrap().0
            });
            let read = filesystem
                .read(inode, offset as u64, length as u64)
                .unwrap()
                .read(offset as u64, length as u64)
                .await
                .unwrap();
            assert!(read == expected, "{name} at {offset}, directly");
            let mut read = vec![0; length];
            let file = File::open(mounted.join(name)).unwrap();
            let got = read_fully(&file, &mut read, offset as u64);
            assert!(read[..got] == *expected, "{name} at {offset}, mounted");
        }
    }
}

fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match file
            .read_at(&mut buffer[got..], offset + got as u64)
            .unwrap()
        {
            0 => break,
            more => got += more,
        }
    }
    got
}

/// Renumbers the inodes in the order of paths.
fn numbered(mut seen: BTreeMap<PathBuf, Seen>) -> BTreeMap<PathBuf, Seen> {
    let mut numbers = BTreeMap::new();
    for seen in seen.values_mut() {
        let next = numbers.len() as u64;
        seen.inode = *numbers.entry(seen.inode).or_insert(next);
    }
    seen
}
