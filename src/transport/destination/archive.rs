//! Writes an image as `docker save` of Docker 25 and later does: an OCI layout in a tar, with the
//! `manifest.json` that every `docker load` and every other reader of such archives understands.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;
use serde_json::json;
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
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// The name and tag the image is loaded under.
    name: Option<String>,
}

impl Archive {
    pub(super) fn create(path: &Path, name: Option<&str>) -> Result<Self, Failure> {
        let file = new_file_for(path).map_err(Failure::when(format!(
            "{} cannot be written",
            path.display()
        )))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            name: name.map(str::to_owned),
        })
    }

    pub(super) async fn put_blob(
        &mut self,
        blob: &Descriptor,
        mut bytes: Bytes,
    ) -> Result<(), Failure> {
        self.begin(&blob_name(&blob.digest), blob.size)
            .map_err(self.cannot())?;
        let mut written = 0;
        while let Some(piece) = bytes.try_next().await? {
            written += piece.len() as u64;
            self.file.write_all(&piece).map_err(self.cannot())?;
        }
        if written != blob.size {
            return Err(Failure::new(format!(
                "{} has {written} bytes, not {}",
                blob.digest, blob.size
            )));
        }
        pad(&mut self.file, written).map_err(self.cannot())
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
        let size = bytes.len() as u64;
        self.begin(name, size)
            .and_then(|()| self.file.write_all(bytes))
            .and_then(|()| pad(&mut self.file, size))
            .map_err(self.cannot())
    }

    fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.file.write_all(&header(name, size))
    }

    fn finish(mut self) -> io::Result<()> {
        self.file.write_all(&[0; 2 * BLOCK])?;
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
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

/// Returns the ustar header of a regular file. Names here are short. Sizes from 8 GiB on are
/// written in base 256, as GNU does.
fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut set = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, name.as_bytes());
    set(100, b"0000644\0");
    set(108, b"0000000\0");
    set(116, b"0000000\0");
    if size < 1 << 33 {
        set(124, format!("{size:011o}\0").as_bytes());
    } else {
        set(124, &[0x80, 0, 0, 0]);
        set(128, &size.to_be_bytes());
    }
    set(136, b"00000000000\0");
    set(148, b"        ");
    set(156, b"0");
    set(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn pad(out: &mut impl Write, written: u64) -> io::Result<()> {
    let padding = written.next_multiple_of(BLOCK as u64) - written;
    io::copy(&mut io::Read::take(io::repeat(0), padding), out).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_by_the_tar_crate() {
        for size in [0, 1, 8_589_934_591, 8_589_934_592, 1 << 40] {
            let bytes = header("blobs/sha256/abc", size);
            let read = tar::Header::from_byte_slice(&bytes);
            assert_eq!(read.size().unwrap(), size);
            assert_eq!(read.path_bytes().as_ref(), b"blobs/sha256/abc");
            let sum: u32 = bytes
                .iter()
                .enumerate()
                .map(|(i, &b)| {
                    if (148..156).contains(&i) {
                        32
                    } else {
                        b.into()
                    }
                })
                .sum();
            assert_eq!(read.cksum().unwrap(), sum);
        }
    }
}
