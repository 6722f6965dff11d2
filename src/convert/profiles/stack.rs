//! Which stack of layers an image is, from its manifests alone.

use serde_json::Value;

use crate::convert::image::SOURCE_DIGEST;
use crate::convert::plan::TOC_DIGEST;
use crate::oci::manifest::ImageManifest;
use crate::oci::media_type::{self, ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest};
use crate::store::StackRecord;

/// The stack of an image with this manifest, made from `source`.
pub(in crate::convert) fn record(source: &Digest, config: &Digest, twin: &ImageManifest) -> StackRecord {
    let layers = twin.layers.iter().map(|layer| layer.digest.clone()).collect();
    StackRecord { config: config.clone(), source: source.clone(), layers }
}

/// The stack of an image that is lazily readable as it is; `None` for every other.
pub(in crate::convert) fn of_itself(manifest: &Manifest) -> Option<StackRecord> {
    let image = read(manifest)?;
    is_lazy(&image).then(|| record(&manifest.digest, &image.config.digest, &image))
}

/// The layers of an image, from the bottom to the top; `None` when the manifest is not an image's.
pub(super) fn layers(manifest: &Manifest) -> Option<Vec<Digest>> {
    Some(read(manifest)?.layers.into_iter().map(|layer| layer.digest).collect())
}

/// What an image was made from: itself, where it is lazily readable as it is.
pub(super) fn source_of(manifest: &Manifest) -> Option<Digest> {
    let image = read(manifest)?;
    let annotations = image.rest.get("annotations").and_then(Value::as_object);
    let source = annotations.and_then(|annotations| annotations.get(SOURCE_DIGEST)).and_then(Value::as_str);
    match source.and_then(|source| source.parse().ok()) {
        Some(source) => Some(source),
        None => is_lazy(&image).then(|| manifest.digest.clone()),
    }
}

/// The configuration of an image.
pub(super) fn config_of(manifest: &Manifest) -> Option<Digest> {
    read(manifest).map(|image| image.config.digest)
}

/// The stack of `twin`, which was made from `source`.
pub(super) fn of_pair(source: &Manifest, twin: &Manifest) -> Option<StackRecord> {
    Some(record(&source.digest, &read(source)?.config.digest, &read(twin)?))
}

fn read(manifest: &Manifest) -> Option<ImageManifest> {
    let is_image = manifest_kind(&manifest.media_type) == Some(ManifestKind::Image);
    let image: ImageManifest = is_image.then(|| serde_json::from_slice(&manifest.bytes).ok())??;
    let config = image.config.media_type.as_str();
    let is_runnable = matches!(config, media_type::DOCKER_CONFIG | media_type::OCI_CONFIG);
    (is_runnable && !image.layers.is_empty()).then_some(image)
}

fn is_lazy(image: &ImageManifest) -> bool {
    image.layers.iter().all(|layer| layer.annotations.contains_key(TOC_DIGEST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    fn manifest(config: &str, layers: &[Value], annotations: &Value) -> Manifest {
        let config = json!({"mediaType": media_type::OCI_CONFIG, "digest": digest(config), "size": 2});
        let document = json!({"schemaVersion": 2, "config": config, "layers": layers, "annotations": annotations});
        Manifest::new(media_type::OCI_MANIFEST.to_owned(), document.to_string().into())
    }

    fn layer(name: &str, annotations: &Value) -> Value {
        json!({"mediaType": media_type::OCI_LAYER_GZIP, "digest": digest(name), "size": 9, "annotations": annotations})
    }

    #[test]
    fn a_twin_is_the_image_that_it_was_made_from() {
        let source = manifest("source's", &[layer("a", &json!({}))], &json!({}));
        let twin = manifest("twin's", &[layer("b", &json!({}))], &json!({ SOURCE_DIGEST: source.digest }));
        assert_eq!(source_of(&twin), Some(source.digest.clone()));
        let record = of_pair(&source, &twin).unwrap();
        assert_eq!((&record.config, &record.source), (&digest("source's"), &source.digest));
        assert_eq!(Some(record.layers), layers(&twin));
    }

    #[test]
    fn an_image_that_is_lazy_already_is_its_own_and_others_are_none() {
        let toc = json!({ TOC_DIGEST: digest("toc") });
        let lazy = manifest("c", &[layer("a", &toc), layer("b", &toc)], &json!({}));
        assert_eq!(source_of(&lazy), Some(lazy.digest.clone()));
        assert_eq!(of_itself(&lazy).map(|record| record.layers), Some(vec![digest("a"), digest("b")]));
        for layers in [vec![layer("a", &toc), layer("b", &json!({}))], vec![]] {
            let other = manifest("c", &layers, &json!({}));
            assert_eq!((of_itself(&other), source_of(&other)), (None, None));
        }
    }
}
