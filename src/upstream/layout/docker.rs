//! The older form of `docker save`: `manifest.json` names a configuration and tars, and there is no manifest to serve.
//! One is made: Docker's schema 2 over the files as they lie.

use serde::Deserialize;
use serde_json::Map;

use super::files::{Extent, Files};
use super::images::{Entry, Images, Name};
use crate::oci::manifest::{ImageManifest, MAX_MANIFEST_BYTES};
use crate::oci::{Descriptor, Digest, Manifest, media_type};
use crate::upstream::error::Error;

/// More layers than any runtime mounts.
const MAX_LAYERS: usize = 1024;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of an archive. Every layer is read once, for its digest.
pub(super) fn load(files: Files) -> Result<Images, Error> {
    let list = files.open("manifest.json")?.read(MAX_MANIFEST_BYTES)?;
    let list: Vec<Saved> = serde_json::from_slice(&list).map_err(|error| Error::Malformed(error.to_string()))?;
    let mut images = Images::new(files);
    for saved in list {
        let manifest = make_manifest(&mut images, &saved)?;
        let descriptor = crate::upstream::registry::descriptor_of(&manifest);
        images.hold(manifest.digest.clone(), Extent::Memory(manifest.bytes));
        let names: Vec<Name> = saved.repo_tags.unwrap_or_default().iter().filter_map(|tag| Name::parse(tag)).collect();
        images.add(Entry { names, descriptor });
    }
    Ok(images)
}

fn make_manifest(images: &mut Images, saved: &Saved) -> Result<Manifest, Error> {
    if saved.layers.len() > MAX_LAYERS {
        return Err(Error::Malformed(format!("the archive: more than {MAX_LAYERS} layers")));
    }
    let config = images.files().open(&saved.config)?;
    let config = hold(images, config, |_| media_type::DOCKER_CONFIG)?;
    let mut layers = Vec::with_capacity(saved.layers.len());
    for name in &saved.layers {
        let layer = images.files().open(name)?;
        layers.push(hold(images, layer, layer_type)?);
    }
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::DOCKER_MANIFEST.to_owned()),
        artifact_type: None,
        config,
        layers,
        rest: Map::new(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::Malformed(error.to_string()))?;
    Ok(Manifest::new(media_type::DOCKER_MANIFEST.to_owned(), bytes.into()))
}

/// Makes a file readable by its digest.
fn hold(images: &mut Images, extent: Extent, kind: impl Fn(&[u8]) -> &'static str) -> Result<Descriptor, Error> {
    let (digest, magic): (Digest, _) = extent.digest()?;
    let descriptor = Descriptor {
        media_type: kind(&magic).to_owned(),
        digest: digest.clone(),
        size: extent.size(),
        urls: Vec::new(),
        annotations: Map::new(),
        platform: None,
        rest: Map::new(),
    };
    images.hold(digest, extent);
    Ok(descriptor)
}

fn layer_type(magic: &[u8]) -> &'static str {
    match magic {
        [0x1f, 0x8b, ..] => media_type::DOCKER_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => media_type::DOCKER_LAYER_ZSTD,
        _ => media_type::DOCKER_LAYER,
    }
}
