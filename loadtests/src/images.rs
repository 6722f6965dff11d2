//! The measured images: those of the tests' `make-image`, in the tests' cache, and some of the load
//! tests' own.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::run;
use crate::support::cache;
use crate::support::image::Random;

const MAKE_IMAGE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/it/fixtures/make-image"
);
const CREATED: &str = "2023-11-14T22:13:20Z";
/// The same time as [`CREATED`].
const MODIFIED: u64 = 1_700_000_000;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The files of each of many layers.
const LAYER_FILES: usize = 50;
const LAYER_FILE_BYTES: usize = 40_000;

/// A layer under construction.
type Archive = tar::Builder<Hashing<GzEncoder<Hashing<BufWriter<File>>>>>;

/// An OCI layout with one image, tagged `1`.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl Image {
    /// Returns the image of this name, and makes it unless this machine has made it before.
    pub(crate) fn get(name: &str) -> anyhow::Result<Self> {
        Self::by(MAKE_IMAGE, name)
    }

    /// Returns the image that `script` makes under this name, and makes it unless this machine has
    /// made it before.
    pub(crate) fn by(script: &str, name: &str) -> anyhow::Result<Self> {
        Self::kept(script, name, |dir| {
            run(&format!("{script} {name} {}", dir.display())).map(drop)
        })
    }

    /// Returns a layout that `make` fills. It is kept beside the images of `script` and made anew
    /// if the script changes.
    pub(crate) fn kept(
        script: &str,
        name: &str,
        make: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let folder = cache::of_script(Path::new(script));
        Ok(Self {
            name: name.to_owned(),
            dir: cache::made(&folder, name, make)?,
        })
    }

    /// Makes one layer of at least `bytes` bytes: the files of `model` repeated, each time in a new
    /// directory.
    pub(crate) fn large(model: &Self, bytes: u64) -> anyhow::Result<Self> {
        Self::made(&format!("{}-{}m", model.name, bytes >> 20), |archive| {
            let tars = model.tars()?;
            for copy in 0.. {
                for tar in &tars {
                    append(archive, tar, &format!("copy-{copy}"))?;
                }
                if archive.get_ref().size >= bytes {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Makes one layer of incompressible files with the given paths and sizes.
    pub(crate) fn of_noise(name: &str, files: &[(String, usize)]) -> anyhow::Result<Self> {
        Self::made(name, |archive| {
            let mut random = Random::new(1);
            files
                .iter()
                .try_for_each(|(path, size)| put(archive, path, &random.bytes(*size)))
        })
    }

    /// Makes one layer of `count` small files, a hundred in each directory, like installed source
    /// code.
    pub(crate) fn of_many(count: usize) -> anyhow::Result<Self> {
        Self::made(&format!("many-{count}"), |archive| {
            (0..count).try_for_each(|number| {
                let path = format!(
                    "usr/lib/node_modules/package-{}/lib/module-{number}.js",
                    number / 100
                );
                put(
                    archive,
                    &path,
                    format!("module.exports = {{ number: {number} }};\n")
                        .repeat(5)
                        .as_bytes(),
                )
            })
        })
    }

    /// Makes `count` layers of some files each, as packages are installed one after the other.
    pub(crate) fn of_layers(count: usize) -> anyhow::Result<Self> {
        let fill = |layer: usize| {
            move |archive: &mut Archive| -> anyhow::Result<()> {
                let mut random = Random::new(layer as u64);
                (0..LAYER_FILES).try_for_each(|file| {
                    let path = format!("opt/package-{layer}/file-{file}");
                    put(archive, &path, &random.bytes(LAYER_FILE_BYTES))
                })
            }
        };
        Self::kept(MAKE_IMAGE, &format!("layers-{count}"), |dir| {
            fs::create_dir_all(dir.join("blobs/sha256"))?;
            write_layout(dir, (0..count).map(fill))
        })
    }

    /// Returns the same image with one more layer, whose only file has an extended attribute.
    pub(crate) fn with_xattr(&self, name: &str) -> anyhow::Result<Self> {
        Self::kept(MAKE_IMAGE, name, |dir| {
            let mut tar = tar::Builder::new(Vec::new());
            tar.append_pax_extensions([("SCHILY.xattr.user.origin", &b"loadtest"[..])])?;
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_mtime(MODIFIED);
            tar.append_data(&mut header, "srv/marked", std::io::empty())?;
            let layer = tempfile::NamedTempFile::new()?;
            fs::write(layer.path(), tar.into_inner()?)?;
            run(&format!(
                "skopeo copy --quiet {} oci:{}:1",
                self.oci(),
                dir.display()
            ))?;
            run(&format!(
                "umoci raw add-layer --image {}:1 {}",
                dir.display(),
                layer.path().display()
            ))
            .map(drop)
        })
    }

    /// Returns an image with one layer that `fill` writes, and makes it unless this machine has
    /// made it before.
    fn made(
        name: &str,
        fill: impl FnOnce(&mut Archive) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        Self::kept(MAKE_IMAGE, name, |dir| {
            fs::create_dir_all(dir.join("blobs/sha256"))?;
            write_layout(dir, [fill])
        })
    }

    /// Returns the image's name in the syntax of skopeo and starlift.
    pub(crate) fn oci(&self) -> String {
        format!("oci:{}:1", self.dir.display())
    }

    /// Returns the manifest's digest.
    pub(crate) fn digest(&self) -> anyhow::Result<String> {
        let index: Value = serde_json::from_slice(&fs::read(self.dir.join("index.json"))?)?;
        Ok(index["manifests"][0]["digest"]
            .as_str()
            .context("no manifest in the layout")?
            .to_owned())
    }

    pub(crate) fn manifest(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(
            self.blob_path(&self.digest()?),
        )?)?)
    }

    /// Returns the paths of the image's layers.
    pub(crate) fn layers(&self) -> anyhow::Result<Vec<PathBuf>> {
        let manifest = self.manifest()?;
        let layers = manifest["layers"].as_array().context("no image manifest")?;
        ensure!(!layers.is_empty(), "no layers");
        Ok(layers
            .iter()
            .map(|layer| self.blob_path(layer["digest"].as_str().unwrap_or_default()))
            .collect())
    }

    /// Returns the tars of all layers, in order.
    pub(crate) fn tars(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let inflate = |path: PathBuf| {
            let mut tar = Vec::new();
            GzDecoder::new(BufReader::new(File::open(path)?)).read_to_end(&mut tar)?;
            Ok(tar)
        };
        self.layers()?.into_iter().map(inflate).collect()
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    }
}

/// Returns the total size of an image manifest's layers.
pub(crate) fn layer_bytes(manifest: &Value) -> anyhow::Result<u64> {
    let layers = manifest["layers"].as_array().context("no image manifest")?;
    ensure!(!layers.is_empty(), "no layers");
    Ok(layers
        .iter()
        .filter_map(|layer| layer["size"].as_u64())
        .sum())
}

fn write_layout<F: FnOnce(&mut Archive) -> anyhow::Result<()>>(
    dir: &Path,
    fills: impl IntoIterator<Item = F>,
) -> anyhow::Result<()> {
    let blobs = dir.join("blobs/sha256");
    let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
    for fill in fills {
        let (diff_id, digest, size) = write_layer(&blobs, fill)?;
        diff_ids.push(format!("sha256:{diff_id}"));
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{digest}"), "size": size,
        }));
    }
    let put = |value: &Value| -> anyhow::Result<(String, usize)> {
        let text = value.to_string();
        let digest = hex::encode(Sha256::digest(&text));
        fs::write(blobs.join(&digest), &text)?;
        Ok((format!("sha256:{digest}"), text.len()))
    };
    let (config, config_size) = put(&json!({
        "created": CREATED, "architecture": "amd64", "os": "linux",
        "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))?;
    let (manifest, manifest_size) = put(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": layers,
    }))?;
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST_TYPE, "digest": manifest, "size": manifest_size,
        "annotations": { "org.opencontainers.image.ref.name": "1" } }] });
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Writes a layer, and returns the digests of its tar and of its blob, and the blob's size.
fn write_layer(
    blobs: &Path,
    fill: impl FnOnce(&mut Archive) -> anyhow::Result<()>,
) -> anyhow::Result<(String, String, u64)> {
    let layer = blobs.join("layer");
    let compressed = GzEncoder::new(
        Hashing::new(BufWriter::new(File::create(&layer)?)),
        Compression::fast(),
    );
    let mut archive = tar::Builder::new(Hashing::new(compressed));
    fill(&mut archive)?;
    let stream = archive.into_inner()?;
    let (diff_id, compressed) = (stream.hex(), stream.inner.finish()?);
    let (digest, size) = (compressed.hex(), compressed.size);
    compressed.inner.into_inner()?;
    fs::rename(layer, blobs.join(&digest))?;
    Ok((diff_id, digest, size))
}

fn put(archive: &mut Archive, path: &str, content: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(MODIFIED);
    Ok(archive.append_data(&mut header, path, content)?)
}

/// Appends the regular files, directories and symlinks of `tar` under `folder`.
fn append(archive: &mut Archive, tar: &[u8], folder: &str) -> anyhow::Result<()> {
    for entry in tar::Archive::new(tar).entries()? {
        let entry = entry?;
        let mut header = entry.header().clone();
        let path =
            Path::new(folder).join(entry.path()?.strip_prefix(".").unwrap_or(&entry.path()?));
        match entry.header().entry_type() {
            tar::EntryType::Symlink => {
                let target = entry
                    .link_name()?
                    .context("symlink without a target")?
                    .into_owned();
                archive.append_link(&mut header, path, target)?;
            }
            tar::EntryType::Regular | tar::EntryType::Directory => {
                archive.append_data(&mut header, path, entry)?
            }
            _ => {}
        }
    }
    Ok(())
}

/// A writer that counts and hashes the bytes that pass through it.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn hex(&self) -> String {
        hex::encode(self.hash.clone().finalize())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
