//! A node and a server see the same files of an image: overlayfs over the agent's lazy layers, and
//! the merged layers that predictions read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use estargz::toc::{Kind, Limits, Node as TocNode};
use starlift::layers::merged::{Child, Directory, Merged};
use starlift::layers::open::{Opening, Tail, TocDigest};
use tar::{Builder, EntryType, Header};

use crate::support::image::Random;
use crate::support::lazy::{Layer, Node, ON_DEMAND};

/// Images that are compared.
const IMAGES: u64 = 25;
/// Entries of a layer, at most.
const ENTRIES: u64 = 12;
/// Few names, so that layers meet each other's files.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// The marker of an opaque directory.
const OPAQUE: &str = ".wh..wh..opq";

/// Everything that both sides know of a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    size: u64,
    device: u64,
    /// A file's content, or a symbolic link's target.
    content: Vec<u8>,
    /// The first path of the same file.
    same_as: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Directory,
    Opaque,
    File(String),
    Symlink(String),
    Hardlink(String),
    Whiteout,
    Device(u32, u32),
}

/// Returns an image that has each case in which a directory could be merged or not.
fn odd_cases() -> Vec<BTreeMap<String, Entry>> {
    let layer = |entries: &[(&str, Entry)]| {
        let entries = entries.iter().cloned();
        entries
            .map(|(path, entry)| (path.to_owned(), entry))
            .collect()
    };
    let file = || Entry::File("below".to_owned());
    let names = ["opaque", "beside", "device", "file", "merged", "replaced"];
    let below = names.map(|name| (format!("{name}/below"), file()));
    vec![
        below.into(),
        layer(&[
            (OPAQUE, Entry::Opaque),
            ("beside/.wh.below", Entry::Whiteout),
            ("beside/below/within", file()),
            ("file", file()),
            ("merged/.wh.absent", Entry::Whiteout),
            ("opaque/.wh..wh..opq", Entry::Opaque),
            ("replaced/below/within", file()),
        ]),
        layer(&[
            (".wh.beside", Entry::Whiteout),
            ("beside/upper", file()),
            ("device", Entry::Device(0, 0)),
            ("file/upper", file()),
            ("merged/upper", file()),
            ("replaced/below/.wh.within", Entry::Whiteout),
        ]),
    ]
}

/// Returns the entries of a random layer, by path. Only directories have entries below them.
fn entries(random: &mut Random) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for _ in 0..random.below(ENTRIES) {
        let path = path(random);
        let entry = match random.below(12) {
            0..3 => Entry::Directory,
            3 => Entry::Opaque,
            4 => Entry::Symlink(self::path(random)),
            5 | 6 => Entry::Whiteout,
            7 => Entry::Device(0, 0),
            8 => Entry::Device(5, 1),
            9 => Entry::Hardlink(String::new()),
            _ => Entry::File(random.next().to_string()),
        };
        let (at, entry) = match entry {
            Entry::Opaque if random.below(4) == 0 => (OPAQUE.to_owned(), Entry::Opaque),
            Entry::Opaque => (format!("{path}/{OPAQUE}"), Entry::Opaque),
            Entry::Whiteout => (whiteout(&path), Entry::Whiteout),
            entry => (path, entry),
        };
        entries.insert(at, entry);
    }
    let others: Vec<String> = entries
        .iter()
        .filter(|(_, entry)| **entry != Entry::Directory)
        .map(|(path, _)| format!("{path}/"))
        .collect();
    entries.retain(|path, _| !others.iter().any(|other| path.starts_with(other)));
    let files: Vec<String> = entries
        .iter()
        .filter(|(_, entry)| matches!(entry, Entry::File(_)))
        .map(|(path, _)| path.clone())
        .collect();
    for entry in entries.values_mut() {
        if *entry == Entry::Hardlink(String::new()) {
            *entry = match files.first() {
                Some(file) => Entry::Hardlink(file.clone()),
                None => Entry::File(String::new()),
            };
        }
    }
    entries
}

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let names = (0..depth).map(|_| NAMES[usize::try_from(random.below(3)).unwrap()]);
    names.collect::<Vec<_>>().join("/")
}

fn whiteout(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    }
}

/// Packs the entries. Hard links come last, behind the files that they share.
fn layer(entries: &BTreeMap<String, Entry>) -> Layer {
    let mut tar = Builder::new(Vec::new());
    let (links, others): (Vec<_>, Vec<_>) = entries
        .iter()
        .partition(|(_, entry)| matches!(entry, Entry::Hardlink(_)));
    for (path, entry) in others.into_iter().chain(links) {
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        match entry {
            Entry::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Entry::Hardlink(target) => {
                header.set_entry_type(EntryType::Link);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Entry::Directory => {
                header.set_entry_type(EntryType::Directory);
                tar.append_data(&mut header, path, std::io::empty())
                    .unwrap();
            }
            Entry::Device(major, minor) => {
                header.set_entry_type(EntryType::Char);
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                tar.append_data(&mut header, path, std::io::empty())
                    .unwrap();
            }
            Entry::Opaque | Entry::Whiteout => tar
                .append_data(&mut header, path, std::io::empty())
                .unwrap(),
            Entry::File(content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_bytes())
                    .unwrap();
            }
        }
    }
    Layer::of_tar(&tar.into_inner().unwrap())
}

/// The files of an image as predictions see them.
struct View<'a> {
    layers: &'a [Layer],
    merged: Merged,
    seen: BTreeMap<PathBuf, Seen>,
}

impl<'a> View<'a> {
    fn of(layers: &'a [Layer]) -> BTreeMap<PathBuf, Seen> {
        let toc = |layer: &Layer| {
            let tail = Tail::new(layer.blob.len() as u64, layer.blob.clone());
            let opening = Opening::new(&tail, Limits::default()).unwrap();
            let section = opening.section_in(&tail).unwrap();
            let digest = TocDigest::Json(layer.toc_digest.clone());
            Some(Arc::new(opening.verified(&section, &digest).unwrap()))
        };
        let merged = Merged::new(layers.iter().map(toc).collect());
        let root = merged.root();
        let mut view = Self {
            layers,
            merged,
            seen: BTreeMap::new(),
        };
        let mut paths = BTreeMap::new();
        view.walk(&root, Path::new(""), &mut paths);
        view.seen
    }

    fn walk(
        &mut self,
        directory: &Directory,
        path: &Path,
        firsts: &mut BTreeMap<(usize, u32), PathBuf>,
    ) {
        let names = self.merged.names(directory).map(<[u8]>::to_vec);
        let names: BTreeSet<_> = names.collect();
        for name in names {
            let path = path.join(std::ffi::OsStr::from_bytes(&name));
            match self.merged.child(directory, &name) {
                None => {}
                Some(Child::Directory(directory)) => {
                    self.seen.insert(path.clone(), Seen::directory());
                    self.walk(&directory, &path, firsts);
                }
                Some(Child::File(at)) => {
                    let node = self.merged.node(at).unwrap();
                    let first = firsts.entry((at.layer, at.node.0));
                    let first = first.or_insert_with(|| path.clone()).clone();
                    let seen = Seen {
                        kind: node.kind(),
                        size: node.size(),
                        device: rustix::fs::makedev(node.device().0, node.device().1),
                        content: self.content(at.layer, node),
                        same_as: (node.links() > 1).then_some(first),
                    };
                    self.seen.insert(path, seen);
                }
            }
        }
    }

    fn content(&self, layer: usize, node: TocNode<'_>) -> Vec<u8> {
        let blob = &self.layers[layer].blob;
        let chunk = |chunk: estargz::Chunk| {
            let range = usize::try_from(chunk.range.start).unwrap()
                ..usize::try_from(chunk.range.end).unwrap();
            chunk.decode(&blob[range]).unwrap()
        };
        match node.kind() {
            Kind::Symlink => node.target().to_vec(),
            _ => node.chunks().flat_map(chunk).collect(),
        }
    }
}

impl Seen {
    fn directory() -> Self {
        Self {
            kind: Kind::Directory,
            size: 0,
            device: 0,
            content: Vec::new(),
            same_as: None,
        }
    }
}

/// Collects everything below a mounted directory.
fn mounted(
    directory: &Path,
    path: &Path,
    firsts: &mut BTreeMap<u64, PathBuf>,
    seen: &mut BTreeMap<PathBuf, Seen>,
) {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        let (at, path) = (directory.join(&name), path.join(&name));
        // A directory of one layer lists its whiteouts, but they cannot be looked up.
        let metadata = match fs::symlink_metadata(&at) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.unwrap(),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            seen.insert(path.clone(), Seen::directory());
            mounted(&at, &path, firsts, seen);
            continue;
        }
        let (kind, content) = match () {
            () if kind.is_symlink() => {
                let target = fs::read_link(&at).unwrap();
                (Kind::Symlink, target.as_os_str().as_bytes().to_vec())
            }
            () if kind.is_char_device() => (Kind::CharDevice, Vec::new()),
            () => (Kind::File, fs::read(&at).unwrap()),
        };
        let first = firsts.entry(metadata.ino());
        let first = first.or_insert_with(|| path.clone()).clone();
        let described = Seen {
            kind,
            size: if kind == Kind::Symlink {
                0
            } else {
                metadata.size()
            },
            device: metadata.rdev(),
            content,
            same_as: (metadata.nlink() > 1).then_some(first),
        };
        seen.insert(path, described);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlayfs_over_lazy_layers_and_the_merged_layers_have_the_same_files() {
    let node = Node::start(&[ON_DEMAND]).await;
    let random = (1..IMAGES).map(|seed| {
        let mut random = Random::new(seed);
        // overlayfs needs two layers at least.
        let count = 2 + random.below(3);
        (0..count).map(|_| entries(&mut random)).collect()
    });
    for (seed, stack) in std::iter::once(odd_cases()).chain(random).enumerate() {
        let layers: Vec<Layer> = stack.iter().map(layer).collect();
        let top = node
            .pull(&format!("image{seed}"), &layers.iter().collect::<Vec<_>>())
            .await;
        let lower = node.begin_container(&format!("key{seed}"), &top).await;
        let lower: Vec<_> = lower.iter().map(|path| path.to_str().unwrap()).collect();
        let root = node.place.dir(&format!("root{seed}"));
        node.place.run(&format!(
            "mount -t overlay overlay -o ro,lowerdir={} {}",
            lower.join(":"),
            root.display()
        ));
        let (at, mut seen) = (root.clone(), BTreeMap::new());
        let seen = tokio::task::spawn_blocking(move || {
            mounted(&at, Path::new(""), &mut BTreeMap::new(), &mut seen);
            seen
        });
        let seen = seen.await;
        node.place.run(&format!("umount {}", root.display()));
        assert_eq!(seen.unwrap(), View::of(&layers), "seed {seed}: {stack:#?}");
    }
}
