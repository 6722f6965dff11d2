//! The image of external TOCs that goes with an image: `TAG-esgztoc` (stargz-snapshotter,
//! `nativeconverter/estargz/externaltoc`).

use std::collections::HashSet;

use serde_json::Value;

use super::bundle::{ImageBundle, ImageReader};
use super::document::parse;
use super::endpoint::Endpoint;
use super::entries::toc_reference;
use crate::failure::Failure;
use crate::oci::annotations::{LAYER_DIGEST, TOC_DIGEST};
use crate::oci::manifest::ImageManifest;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};

/// Returns the TOCs of the bundle's layers as an image: those that were `made` with the layers, and
/// those of unchanged layers from the source.
pub(crate) async fn of_bundle(
    made: Option<&Manifest>,
    reader: ImageReader<'_>,
    bundle: &ImageBundle,
) -> Result<Option<ImageBundle>, Failure> {
    let made = made.map(parse::<ImageManifest>).transpose()?;
    let held = of_source(reader.endpoint, &layers(bundle)).await;
    let mut known = HashSet::new();
    let digests: HashSet<_> = bundle.blobs.iter().map(|blob| &blob.digest).collect();
    let mut image: Option<ImageManifest> = None;
    for mut other in made.into_iter().chain(held) {
        other.layers.retain(|toc| {
            layer_of(toc).is_some_and(|layer| digests.contains(&layer) && known.insert(layer))
        });
        match &mut image {
            Some(image) => image.layers.append(&mut other.layers),
            None => image = Some(other),
        }
    }
    let Some(image) = image.filter(|image| !image.layers.is_empty()) else {
        return Ok(None);
    };
    let bytes = serde_json::to_vec(&image).map_err(Failure::from_error)?;
    let media_type = crate::oci::media_type::OCI_MANIFEST.to_owned();
    ImageBundle::of_image(Manifest::new(media_type, bytes.into())).map(Some)
}

/// Returns the layers of a bundle's images.
pub(crate) fn layers(bundle: &ImageBundle) -> Vec<Descriptor> {
    let images = bundle
        .images()
        .into_iter()
        .filter_map(|manifest| parse::<ImageManifest>(manifest).ok());
    images.flat_map(|image| image.layers).collect()
}

/// Returns the image of TOCs that belongs to the image that `endpoint` names. It is requested only
/// if a layer may have its TOC there. Any failure counts as none.
pub(crate) async fn of_source(endpoint: &Endpoint, layers: &[Descriptor]) -> Option<ImageManifest> {
    let may_be = layers
        .iter()
        .any(|layer| layer.annotations.contains_key(TOC_DIGEST));
    let reference = toc_reference(endpoint.reference.as_ref())
        .ok()
        .filter(|_| may_be)?;
    let manifest = manifest(endpoint, &endpoint.repository, &reference).await?;
    parse(&manifest).ok()
}

async fn manifest(
    endpoint: &Endpoint,
    repository: &Repository,
    reference: &Reference,
) -> Option<Manifest> {
    endpoint.source.manifest(repository, reference).await.ok()
}

/// Returns the layer that a TOC belongs to.
pub(crate) fn layer_of(toc: &Descriptor) -> Option<Digest> {
    toc.annotations
        .get(LAYER_DIGEST)
        .and_then(Value::as_str)?
        .parse()
        .ok()
}
