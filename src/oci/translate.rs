//! Manifests and indexes in the words of the other family: Docker schema 2 to OCI and back.
//!
//! Only types change; the layers and the configuration are the same blobs.

use bytes::Bytes;

use super::manifest::{Descriptor, ImageManifest, Index, MAX_MANIFEST_BYTES, Manifest};
use super::media_type as types;

/// Type names that mean the same, Docker's first.
const PAIRS: [(&str, &str); 6] = [
    (types::DOCKER_MANIFEST, types::OCI_MANIFEST),
    (types::DOCKER_MANIFEST_LIST, types::OCI_INDEX),
    (types::DOCKER_CONFIG, types::OCI_CONFIG),
    (types::DOCKER_LAYER, types::OCI_LAYER),
    (types::DOCKER_LAYER_GZIP, types::OCI_LAYER_GZIP),
    (types::DOCKER_LAYER_ZSTD, types::OCI_LAYER_ZSTD),
];

/// The other family's name for a type; `None` for types that exist in one family only.
fn other_type(media_type: &str) -> Option<&'static str> {
    PAIRS.iter().find_map(|(docker, oci)| match media_type {
        known if known == *docker => Some(*oci),
        known if known == *oci => Some(*docker),
        _ => None,
    })
}

/// An image manifest in the other family's types; `None` when something in it has no name there.
pub fn image(manifest: &Manifest) -> Option<Manifest> {
    let media_type = other_type(&manifest.media_type)?;
    let mut image: ImageManifest = serde_json::from_slice(&manifest.bytes).ok()?;
    // Docker's name for zstd is one that Docker's own clients, skopeo and buildah refuse.
    if image.layers.iter().any(|layer| layer.media_type == types::OCI_LAYER_ZSTD) {
        return None;
    }
    image.media_type = Some(media_type.to_owned());
    for descriptor in image.layers.iter_mut().chain([&mut image.config]) {
        descriptor.media_type = other_type(&descriptor.media_type)?.to_owned();
    }
    written(media_type, &image)
}

/// An index in the other family's types, each child pointed at what `replace` gives for it.
pub fn index(manifest: &Manifest, replace: impl Fn(&Descriptor) -> Option<Descriptor>) -> Option<Manifest> {
    let media_type = other_type(&manifest.media_type)?;
    let mut index: Index = serde_json::from_slice(&manifest.bytes).ok()?;
    index.media_type = Some(media_type.to_owned());
    for child in index.manifests.iter_mut() {
        if let Some(replacement) = replace(child) {
            child.size = replacement.size;
            child.digest = replacement.digest;
            child.media_type = replacement.media_type;
        }
    }
    written(media_type, &index)
}

fn written(media_type: &str, document: &impl serde::Serialize) -> Option<Manifest> {
    let bytes = Bytes::from(serde_json::to_vec(document).ok()?);
    Some(Manifest::new(media_type.to_owned(), bytes)).filter(|manifest| manifest.size() <= MAX_MANIFEST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docker_image(layer_type: &str) -> Manifest {
        let digest = crate::oci::Digest::sha256_of(b"");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{digest}","size":1}},"layers":[{{"mediaType":"{layer_type}","digest":"{digest}","size":2,"annotations":{{"a":"b"}}}}]}}"#,
            types::DOCKER_MANIFEST,
            types::DOCKER_CONFIG,
        );
        Manifest::new(types::DOCKER_MANIFEST.to_owned(), text.into())
    }

    #[test]
    fn there_and_back_is_where_we_were() {
        let docker = docker_image(types::DOCKER_LAYER_GZIP);
        let oci = image(&docker).unwrap();
        assert_eq!(oci.media_type, types::OCI_MANIFEST);
        assert!(!String::from_utf8_lossy(&oci.bytes).contains("vnd.docker"));
        assert_eq!(image(&oci), Some(docker));
    }

    #[test]
    fn zstd_is_not_translated_to_what_nobody_takes() {
        let oci = image(&docker_image(types::DOCKER_LAYER_ZSTD)).unwrap();
        assert!(String::from_utf8_lossy(&oci.bytes).contains(types::OCI_LAYER_ZSTD));
        assert_eq!(image(&oci), None);
    }

    #[test]
    fn what_has_no_name_there_is_left_alone() {
        assert_eq!(image(&docker_image(types::DOCKER_LAYER_FOREIGN)), None);
    }
}
