//! Writes an image into an OCI image layout (OCI image-spec, image-layout.md).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::oci::annotations::REF_NAME;
use crate::oci::manifest::Index;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Manifest, Tag};
use crate::tempfiles::{keep, new_file_for, sync, write_atomically};
use crate::transport::bundle::Bytes;
use crate::transport::entries::{is_artifact, ref_name, toc_name};

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT_VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_FILE: &str = "index.json";

/// A layout that an image is being added to. Blobs come one by one, `index.json` is replaced at the
/// end.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    tag: Option<String>,
}

impl Layout {
    /// Opens the layout in `dir`, and creates it if there is none.
    pub(super) fn open(dir: &Path, tag: Option<&Tag>) -> Result<Self, Failure> {
        let context = format!("{} cannot be made an image layout", dir.display());
        fs::create_dir_all(dir.join("blobs/sha256")).map_err(Failure::when(context.clone()))?;
        if !dir.join(LAYOUT_FILE).exists() {
            write_atomically(&dir.join(LAYOUT_FILE), LAYOUT_VERSION.as_bytes())
                .map_err(Failure::when(context))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            tag: tag.map(Tag::to_string),
        })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }

    pub(super) fn has(&self, blob: &Descriptor) -> bool {
        fs::metadata(self.blob_path(&blob.digest)).is_ok_and(|metadata| metadata.len() == blob.size)
    }

    pub(super) async fn put_blob(
        &mut self,
        blob: &Descriptor,
        mut bytes: Bytes,
    ) -> Result<(), Failure> {
        let path = self.blob_path(&blob.digest);
        let cannot = || Failure::when(format!("{} cannot be written", path.display()));
        let mut file = new_file_for(&path).map_err(cannot())?;
        let mut hasher = blob.digest.hasher();
        while let Some(piece) = bytes.try_next().await? {
            hasher.update(&piece);
            file.write_all(&piece).map_err(cannot())?;
        }
        if hasher.finish() != blob.digest {
            return Err(Failure::new(format!(
                "bytes of {} have another digest",
                blob.digest
            )));
        }
        keep(file, &path).map_err(cannot())
    }

    /// Links `file`, which holds the blob's bytes, into the layout. The bytes are on disk before
    /// the name is visible.
    ///
    /// Fails if the blob exists already or the file is on another file system. It can then be
    /// copied instead.
    pub(super) fn link(&self, blob: &Descriptor, file: &Path) -> io::Result<()> {
        let path = self.blob_path(&blob.digest);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        sync(&File::open(file)?)?;
        fs::hard_link(file, path)
    }

    pub(super) fn put_manifest(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        let path = self.blob_path(&manifest.digest);
        write_atomically(&path, &manifest.bytes).map_err(Failure::when(format!(
            "{} cannot be written",
            path.display()
        )))
    }

    /// Puts `root` under the tag, and the image of its external TOCs under the tag that belongs to
    /// it. Other tags stay.
    pub(super) fn commit(
        mut self,
        root: &Manifest,
        tocs: Option<&Manifest>,
    ) -> Result<(), Failure> {
        let beside = toc_name(self.tag.as_deref());
        let mut entries = Vec::new();
        for (manifest, tag) in [(Some(root), self.tag.clone()), (tocs, Some(beside.clone()))] {
            let Some(manifest) = manifest else { continue };
            self.put_manifest(manifest)?;
            entries.push(entry(manifest, tag.as_deref()));
        }
        self.list(entries, |other| match ref_name(other) {
            Some(name) => Some(name) == self.tag.as_deref() || name == beside,
            // Artifacts have no tag either.
            None => self.tag.is_none() && !is_artifact(other),
        })
    }

    /// Lists a manifest that exists and refers to another. It has no tag.
    pub(super) fn commit_referrer(&self, listed: Descriptor) -> Result<(), Failure> {
        let digest = listed.digest.clone();
        self.list(vec![listed], |other| other.digest == digest)
    }

    /// Puts entries into the index in the place of the entries that they replace.
    fn list(
        &self,
        entries: Vec<Descriptor>,
        is_replaced: impl Fn(&Descriptor) -> bool,
    ) -> Result<(), Failure> {
        let path = self.dir.join(INDEX_FILE);
        let cannot = || Failure::when(format!("{} cannot be written", path.display()));
        // Two commands that add to one layout at once must not lose each other's tag.
        let lock = File::open(&self.dir).map_err(cannot())?;
        lock.lock().map_err(cannot())?;
        let mut index = read_index(&path)?;
        index.manifests.retain(|other| !is_replaced(other));
        entries
            .into_iter()
            .for_each(|entry| index.manifests.push(entry));
        let text = serde_json::to_vec(&index).map_err(Failure::from_error)?;
        write_atomically(&path, &text).map_err(cannot())
    }
}

fn entry(manifest: &Manifest, tag: Option<&str>) -> Descriptor {
    let name = tag.map(|tag| (REF_NAME.to_owned(), Value::from(tag)));
    Descriptor {
        annotations: name.into_iter().collect(),
        ..manifest.descriptor()
    }
}

fn read_index(path: &Path) -> Result<Index, Failure> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] })
                .to_string()
                .into_bytes()
        }
        Err(error) => {
            return Err(Failure::when(format!("{} cannot be read", path.display()))(
                error,
            ));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(Failure::when(format!("{} is not an index", path.display())))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes as Piece;
    use futures::{StreamExt as _, stream};

    use super::*;
    use crate::oci::media_type::OCI_MANIFEST;

    fn manifest(text: &'static str) -> Manifest {
        Manifest::new(OCI_MANIFEST.to_owned(), Piece::from_static(text.as_bytes()))
    }

    fn tags(dir: &Path) -> Vec<(Option<String>, Digest)> {
        let index = read_index(&dir.join(INDEX_FILE)).unwrap();
        index
            .manifests
            .iter()
            .map(|entry| (ref_name(entry).map(str::to_owned), entry.digest.clone()))
            .collect()
    }

    #[test]
    fn a_tag_is_replaced_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b): (Tag, Tag) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (first, second) = (manifest("{\"1\":0}"), manifest("{\"2\":0}"));
        Layout::open(dir.path(), Some(&a))
            .unwrap()
            .commit(&first, None)
            .unwrap();
        Layout::open(dir.path(), Some(&b))
            .unwrap()
            .commit(&first, None)
            .unwrap();
        Layout::open(dir.path(), Some(&a))
            .unwrap()
            .commit(&second, None)
            .unwrap();
        let expected = [
            (Some("b".to_owned()), first.digest),
            (Some("a".to_owned()), second.digest),
        ];
        assert_eq!(tags(dir.path()), expected);
    }

    #[test]
    fn the_tocs_of_an_image_come_and_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let tag: Tag = "a".parse().unwrap();
        let (image, tocs) = (manifest("{\"1\":0}"), manifest("{\"2\":0}"));
        Layout::open(dir.path(), Some(&tag))
            .unwrap()
            .commit(&image, Some(&tocs))
            .unwrap();
        let named =
            |name: &str, manifest: &Manifest| (Some(name.to_owned()), manifest.digest.clone());
        assert_eq!(
            tags(dir.path()),
            [named("a", &image), named("a-esgztoc", &tocs)]
        );
        Layout::open(dir.path(), Some(&tag))
            .unwrap()
            .commit(&image, None)
            .unwrap();
        assert_eq!(tags(dir.path()), [named("a", &image)]);
    }

    #[test]
    fn a_linked_blob_exists_once_its_link_does() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(&dir.path().join("layout"), None).unwrap();
        let blob = Descriptor {
            size: 1,
            ..manifest("x").descriptor()
        };
        let file = dir.path().join("file");
        assert!(layout.link(&blob, &file).is_err());
        assert!(!layout.has(&blob));
        fs::write(&file, "x").unwrap();
        layout.link(&blob, &file).unwrap();
        assert!(layout.has(&blob));
        assert!(layout.link(&blob, &file).is_err(), "the name is taken");
    }

    #[tokio::test]
    async fn a_blob_with_another_digest_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::open(dir.path(), None).unwrap();
        let blob = Descriptor {
            size: 1,
            ..manifest("x").descriptor()
        };
        let bytes = stream::iter([Ok(Piece::from_static(b"y"))]).boxed();
        assert!(layout.put_blob(&blob, bytes).await.is_err());
        assert_eq!(
            fs::read_dir(dir.path().join("blobs/sha256"))
                .unwrap()
                .count(),
            0
        );
        let bytes = stream::iter([Ok(Piece::from_static(b"x"))]).boxed();
        layout.put_blob(&blob, bytes).await.unwrap();
        assert!(layout.has(&blob));
    }
}
