//! Writes an image as `docker save` of Docker 25 and later does: an OCI layout in a tar, with the
//! `manifest.json` that every `docker load` and every other reader of such archives understands.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;
use serde_json::json;
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::oci::annotations::{CONTAINERD_NAME, REF_NAME};
use crate::oci::manifest::ImageManifest;
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Manifest};
use crate::tempfiles::{keep, new_file_for};
use crate::transport::bundle::Bytes;
use crate::transport::document::parse;
use crate::transport::entries::toc_name;

/// Tar counts in blocks of this many bytes.
const BLOCK: usize = 512;

/// An archive that is being written, in a temporary file beside its destination.
pub(crate) struct Archive {
    path: PathBuf,
    tar: Builder<BufWriter<NamedTempFile>>,
    /// The name and tag the image is loaded under.
    name: Option<String>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("path", &self.path)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Archive {
    pub(super) fn create(path: &Path, name: Option<&str>) -> Result<Self, Failure> {
        let file = new_file_for(path).map_err(Failure::when(format!(
            "{} cannot be written",
            path.display()
        )))?;
        Ok(Self {
            path: path.to_owned(),
            tar: Builder::new(BufWriter::new(file)),
            name: name.map(str::to_owned),
        })
    }

    pub(super) async fn put_blob(
        &mut self,
        blob: &Descriptor,
        mut bytes: Bytes,
    ) -> Result<(), Failure> {
        begin(&mut self.tar, &blob_name(&blob.digest), blob.size).map_err(self.cannot())?;
        let mut written = 0;
        while let Some(piece) = bytes.try_next().await? {
            written += piece.len() as u64;
            let file = self.tar.get_mut();
            file.write_all(&piece).map_err(self.cannot())?;
        }
        if written != blob.size {
            return Err(Failure::new(format!(
                "{} has {written} bytes, not {}",
                blob.digest, blob.size
            )));
        }
        pad(self.tar.get_mut(), written).map_err(self.cannot())
    }

    pub(super) fn put_manifest(&mut self, manifest: &Manifest) -> Result<(), Failure> {
        self.put(&blob_name(&manifest.digest), &manifest.bytes)
    }

    /// Finishes the archive. The image of external TOCs is only in `index.json`, because
    /// `docker load` could not load it.
    pub(super) fn commit(
        mut self,
        root: &Manifest,
        tocs: Option<&Manifest>,
    ) -> Result<(), Failure> {
        let image: ImageManifest = parse(root)?;
        self.put_manifest(root)?;
        if let Some(tocs) = tocs {
            self.put_manifest(tocs)?;
        }
        let layers: Vec<_> = image
            .layers
            .iter()
            .map(|layer| blob_name(&layer.digest))
            .collect();
        let names: Vec<_> = self.name.iter().collect();
        let manifest = json!([{ "Config": blob_name(&image.config.digest), "RepoTags": names, "Layers": layers }]);
        self.put("manifest.json", manifest.to_string().as_bytes())?;
        let beside = toc_name(self.name.as_deref());
        let tocs = tocs.map(|tocs| entry(tocs, Some(&beside)));
        let entries: Vec<_> = std::iter::once(entry(root, self.name.as_deref()))
            .chain(tocs)
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        self.put("index.json", index.to_string().as_bytes())?;
        self.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let cannot = self.cannot();
        self.finish().map_err(cannot)
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut header = header(bytes.len() as u64);
        let put = self.tar.append_data(&mut header, name, bytes);
        put.map_err(self.cannot())
    }

    fn finish(self) -> io::Result<()> {
        let file = self.tar.into_inner()?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        keep(file, &self.path)
    }

    fn cannot(&self) -> impl FnOnce(io::Error) -> Failure + use<> {
        Failure::when(format!("{} cannot be written", self.path.display()))
    }
}

fn entry(manifest: &Manifest, name: Option<&str>) -> serde_json::Value {
    let mut entry = json!(manifest.descriptor());
    if let Some(name) = name {
        let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
        entry["annotations"] = json!({ CONTAINERD_NAME: name, REF_NAME: tag });
    }
    entry
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Returns the header of a regular file, the same for every copy of an image.
fn header(size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Writes the header of a file whose bytes follow in pieces.
fn begin(tar: &mut Builder<impl Write>, name: &str, size: u64) -> io::Result<()> {
    tar.append_data(&mut header(size), name, io::empty())
}

/// Writes the zeros between a file of `written` bytes and the next header.
fn pad(out: &mut impl Write, written: u64) -> io::Result<()> {
    let padding = written.next_multiple_of(BLOCK as u64) - written;
    io::copy(&mut io::Read::take(io::repeat(0), padding), out).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_and_long_names_are_read_back() {
        let sha512 = format!("blobs/sha512/{}", "0".repeat(128));
        for name in ["blobs/sha256/abc", &sha512] {
            for size in [0, 1, 8_589_934_591, 8_589_934_592, 1 << 40] {
                let mut tar = Builder::new(Vec::new());
                begin(&mut tar, name, size).unwrap();
                let bytes = tar.into_inner().unwrap();
                let mut archive = tar::Archive::new(bytes.as_slice());
                let read = archive.entries().unwrap().next().unwrap().unwrap();
                assert_eq!(read.size(), size);
                assert_eq!(read.path_bytes().as_ref(), name.as_bytes());
            }
        }
    }
}
