//! The metadata image of a layer: its tree as EROFS, over the places of its files in the data file.
//!
//! The image's bytes depend only on the TOC and on its [`Identity`]. A trailer after the last block
//! tells a whole image from one that a power cut has torn: the file is not synced, because it can be
//! written again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use erofs_metadata::{Attributes, Data, Image, ImageError, Kind, NodeId, Time};
use estargz::toc;
use sha2::{Digest as _, Sha256};

use crate::agent::layer::data::{BLOCK, LayerData, Places};
use crate::agent::layer::tree::{self, Content, FileId, Tree};
use crate::agent::numbers::LayerNumber;

/// Changes whenever the same TOC gives another image: overlayfs remembers inode numbers of the
/// image by its UUID.
const FORMAT: &str = "starlift erofs 1";
/// The mark of an opaque directory. EROFS cannot be mounted in a user namespace, so it is never
/// `user.overlay.opaque`.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// A UUID and a SHA-256.
const TRAILER_LEN: usize = 16 + 32;

/// The UUID of a mounted layer's file system. overlayfs tells lower layers apart by it, and an
/// image may have the same layer twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity([u8; 16]);

#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("layer cannot be expressed as EROFS")]
    Image(#[from] ImageError),
    #[error("metadata image not written")]
    Io(#[from] io::Error),
    #[error("layer not read from disk")]
    NoLayer,
}

impl Identity {
    /// `name` is that of the data file.
    pub(super) fn of(number: LayerNumber, name: &str) -> Self {
        let text = format!("{FORMAT}\n{number}\n{name}");
        let [hash @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _]: [u8; 32] =
            Sha256::digest(text).into();
        Self(hash)
    }
}

/// Writes the image of the layer with this number, in place of any that exists.
pub(super) fn write(path: &Path, data: &LayerData, number: LayerNumber) -> Result<(), WriteError> {
    let identity = Identity::of(number, data.name());
    let image = image(data.tree(), data.places(), identity)?;
    let new = path.with_extension("new");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    let mut writer = Hashed {
        file,
        hash: Sha256::new(),
    };
    image.write_to(&mut writer)?;
    let Hashed { mut file, hash } = writer;
    file.write_all(&[identity.0.as_slice(), &hash.finalize()].concat())?;
    Ok(fs::rename(&new, path)?)
}

/// Whether the file is the whole image of this layer.
pub(super) fn is_intact(path: &Path, identity: Identity) -> bool {
    let Ok(bytes) = fs::read(path) else {
        return false;
    };
    bytes
        .split_last_chunk::<TRAILER_LEN>()
        .is_some_and(|(image, trailer)| {
            let (uuid, hash) = trailer.split_at(16);
            uuid == identity.0 && hash == Sha256::digest(image).as_slice()
        })
}

/// Hashes what it writes.
struct Hashed {
    file: File,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn image(tree: &Tree, places: &Places, identity: Identity) -> Result<Image, ImageError> {
    let root = tree.attributes(FileId::ROOT);
    let image = Image::builder()
        .uuid(identity.0)
        .device(places.size() / BLOCK)
        .root(root.as_ref().map(attributes).unwrap_or_default())
        .build()?;
    let root = image.root();
    let mut writer = Writer {
        tree,
        places,
        image,
        nodes: HashMap::new(),
        directories: vec![(FileId::ROOT, root)],
    };
    writer.add_xattrs(FileId::ROOT, root)?;
    while let Some((directory, node)) = writer.directories.pop() {
        for entry in tree.entries(directory, 0) {
            writer.add(node, entry)?;
        }
    }
    Ok(writer.image)
}

struct Writer<'a> {
    tree: &'a Tree,
    places: &'a Places,
    image: Image,
    /// Files with several names that were added already.
    nodes: HashMap<FileId, NodeId>,
    /// Directories whose entries are not added yet.
    directories: Vec<(FileId, NodeId)>,
}

impl<'a> Writer<'a> {
    fn add(&mut self, parent: NodeId, entry: tree::Entry<'_>) -> Result<(), ImageError> {
        if let Some(known) = self.nodes.get(&entry.id) {
            return self.image.link(parent, entry.name, *known);
        }
        let Some(found) = self.tree.attributes(entry.id) else {
            return Ok(());
        };
        let kind = self.kind(entry.id, &found);
        let node = self
            .image
            .insert(parent, entry.name, kind, &attributes(&found))?;
        self.add_xattrs(entry.id, node)?;
        match kind {
            Kind::Directory => self.directories.push((entry.id, node)),
            _ if found.links > 1 => drop(self.nodes.insert(entry.id, node)),
            _ => {}
        }
        Ok(())
    }

    fn kind(&self, id: FileId, found: &tree::Attributes) -> Kind<'a> {
        let (major, minor) = found.device;
        match found.kind {
            toc::Kind::Directory => Kind::Directory,
            // A layer with a dangling link is never mounted.
            toc::Kind::File | toc::Kind::DanglingLink => Kind::File {
                size: found.size,
                data: self.data(id),
            },
            toc::Kind::Symlink => Kind::Symlink(self.tree.target(id).unwrap_or_default()),
            toc::Kind::CharDevice => Kind::CharDevice { major, minor },
            toc::Kind::BlockDevice => Kind::BlockDevice { major, minor },
            toc::Kind::Fifo => Kind::Fifo,
        }
    }

    fn data(&self, id: FileId) -> Data<'static> {
        match self.tree.content(id) {
            Some(Content::Chunks(node)) => self.places.of_file(node).map_or(Data::Hole, Data::At),
            Some(Content::Bytes(_)) | None => Data::Hole,
        }
    }

    fn add_xattrs(&mut self, id: FileId, node: NodeId) -> Result<(), ImageError> {
        for (name, value) in self.tree.xattrs(id) {
            self.image.add_xattr(node, name, value)?;
        }
        match self.tree.xattr(id, OPAQUE) {
            Some(mark) => self.image.add_xattr(node, OPAQUE, mark),
            None => Ok(()),
        }
    }
}

fn attributes(found: &tree::Attributes) -> Attributes {
    let toc::Time {
        seconds,
        nanoseconds,
    } = found.modified;
    Attributes::default()
        .with_permissions(found.mode)
        .with_owner(found.uid, found.gid)
        .with_modified(Time {
            seconds,
            nanoseconds,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::layer::data::tests::tree;
    use crate::agent::layer::data::{DataStore, Limits};

    fn written(path: &Path, number: u64) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(&[("dir/a", 5000), ("dir/b", 0), ("c", 1)]);
        let limits = Limits {
            bytes: 1 << 30,
            min_free: Some(0),
            memory: 0,
        };
        let store = DataStore::open(folder.path(), limits).unwrap();
        let data = store.layer("name", tree).unwrap();
        write(path, &data, LayerNumber(number)).unwrap();
        fs::read(path).unwrap()
    }

    #[test]
    fn an_image_depends_only_on_the_layer_and_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let first = written(&path, 1);
        assert_eq!(written(&path, 1), first);
        assert_ne!(written(&path, 2), first);
        // Another image needs another FORMAT.
        let hash = hex::encode(Sha256::digest(&first));
        assert_eq!(
            hash,
            "72a41b69af385cb86f2f65763a384d30bc4bfd73ad6d75d813267011af68c8a9"
        );
    }

    #[test]
    fn an_image_that_is_torn_or_of_another_layer_is_not_intact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let one = Identity::of(LayerNumber(1), "name");
        assert!(!is_intact(&path, one));
        let bytes = written(&path, 1);
        assert!(is_intact(&path, one));
        assert!(!is_intact(&path, Identity::of(LayerNumber(2), "name")));
        for length in [0, 100, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(!is_intact(&path, one), "{length}");
        }
        let mut torn = bytes.clone();
        torn[1024..2048].fill(0);
        fs::write(&path, torn).unwrap();
        assert!(!is_intact(&path, one));
    }
}
