//! The older form of `docker save`: `manifest.json` names a configuration and tars, without a
//! manifest to serve. A manifest of Docker's schema 2 is generated over the files as they are.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Map;

use super::files::Extent;
use super::images::{Entry, Images, Name};
use crate::oci::manifest::{ImageManifest, MAX_MANIFEST_BYTES};
use crate::oci::{Descriptor, Digest, Manifest, media_type};
use crate::registry::Error;

/// More layers than any runtime mounts.
const MAX_LAYERS: usize = 1024;
/// More images than anyone saves into one archive.
const MAX_IMAGES: usize = 1024;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The list of images in an archive.
pub(super) const LIST: &str = "manifest.json";

/// Adds the images of an archive that are not among `images` yet. Every file is read once, for its
/// digest, even if many images name it.
pub(super) fn load(images: Images) -> Result<Images, Error> {
    let list = match images.files().open(LIST) {
        Ok(list) => list.read(MAX_MANIFEST_BYTES)?,
        Err(Error::NotFound) => {
            return Err(malformed("neither index.json nor manifest.json is in it"));
        }
        Err(error) => return Err(error),
    };
    let list: Vec<Saved> =
        serde_json::from_slice(&list).map_err(|error| malformed(&error.to_string()))?;
    if list.len() > MAX_IMAGES {
        return Err(malformed(&format!("more than {MAX_IMAGES} images")));
    }
    let mut loading = Loading {
        images,
        described: HashMap::new(),
    };
    for saved in list {
        let names: Vec<_> = saved
            .repo_tags
            .iter()
            .flatten()
            .filter_map(|name| Name::parse(name))
            .collect();
        if !loading.images.holds(&names) {
            loading.add(&saved, names)?;
        }
    }
    Ok(loading.images)
}

fn malformed(problem: &str) -> Error {
    Error::Malformed(format!("the archive: {problem}"))
}

struct Loading {
    images: Images,
    /// By the offset of a file, because several names may be links to one file.
    described: HashMap<u64, Described>,
}

#[derive(Clone)]
struct Described {
    digest: Digest,
    size: u64,
    layer_type: &'static str,
}

impl Loading {
    fn add(&mut self, saved: &Saved, names: Vec<Name>) -> Result<(), Error> {
        let layers = saved.layers.as_deref().unwrap_or_default();
        if layers.len() > MAX_LAYERS {
            return Err(malformed(&format!("more than {MAX_LAYERS} layers")));
        }
        let config = self.describe(&saved.config)?;
        let layers = layers
            .iter()
            .map(|name| self.describe(name))
            .collect::<Result<Vec<_>, _>>()?;
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::DOCKER_MANIFEST.to_owned()),
            artifact_type: None,
            config: config.descriptor(media_type::DOCKER_CONFIG),
            layers: layers
                .iter()
                .map(|layer| layer.descriptor(layer.layer_type))
                .collect(),
            rest: Map::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|error| malformed(&error.to_string()))?;
        let manifest = Manifest::new(media_type::DOCKER_MANIFEST.to_owned(), bytes.into());
        let descriptor = manifest.descriptor();
        self.images
            .hold(manifest.digest, Extent::Memory(manifest.bytes));
        self.images.add(Entry { names, descriptor });
        Ok(())
    }

    /// Hashes a file and makes it readable by its digest. If a named file is absent, the archive is
    /// malformed.
    fn describe(&mut self, name: &str) -> Result<Described, Error> {
        let extent = self
            .images
            .files()
            .open(name)
            .map_err(|error| match error {
                Error::NotFound => malformed(&format!("{name:?} is not in it")),
                other => other,
            })?;
        if let Some(described) = self.described.get(&extent.offset()) {
            return Ok(described.clone());
        }
        let (digest, magic) = extent.digest()?;
        let described = Described {
            digest: digest.clone(),
            size: extent.size(),
            layer_type: layer_type(&magic),
        };
        self.described.insert(extent.offset(), described.clone());
        self.images.hold(digest, extent);
        Ok(described)
    }
}

impl Described {
    fn descriptor(&self, media_type: &str) -> Descriptor {
        Descriptor::plain(media_type.to_owned(), self.digest.clone(), self.size)
    }
}

fn layer_type(magic: &[u8]) -> &'static str {
    match magic {
        [0x1f, 0x8b, ..] => media_type::DOCKER_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => media_type::DOCKER_LAYER_ZSTD,
        _ => media_type::DOCKER_LAYER,
    }
}
