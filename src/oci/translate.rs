//! Translates manifests and indexes into the other family of media types: Docker schema 2 to OCI
//! and back.
//!
//! Only the types change. The layers and the configuration are the same blobs.

use bytes::Bytes;

use super::annotations::REFERENCE_DIGEST;
use super::digest::Digest;
use super::manifest::{Descriptor, ImageManifest, Index, MAX_MANIFEST_BYTES, Manifest};
use super::media_type::{self as types, ManifestKind};

/// Equivalent type names, Docker's first.
const PAIRS: [(&str, &str); 6] = [
    (types::DOCKER_MANIFEST, types::OCI_MANIFEST),
    (types::DOCKER_MANIFEST_LIST, types::OCI_INDEX),
    (types::DOCKER_CONFIG, types::OCI_CONFIG),
    (types::DOCKER_LAYER, types::OCI_LAYER),
    (types::DOCKER_LAYER_GZIP, types::OCI_LAYER_GZIP),
    (types::DOCKER_LAYER_ZSTD, types::OCI_LAYER_ZSTD),
];

/// The other family's name for a type, or `None` for types that exist in only one family.
fn other_type(media_type: &str) -> Option<&'static str> {
    PAIRS.iter().find_map(|(docker, oci)| match media_type {
        known if known == *docker => Some(*oci),
        known if known == *oci => Some(*docker),
        _ => None,
    })
}

/// An image manifest in the other family's types, or `None` if one of its types has no equivalent.
pub fn image(manifest: &Manifest) -> Option<Manifest> {
    let media_type = other_type(&manifest.media_type)?;
    let mut image: ImageManifest = serde_json::from_slice(&manifest.bytes).ok()?;
    // Docker's type for zstd is refused by Docker's own clients, skopeo and buildah.
    if image
        .layers
        .iter()
        .any(|layer| layer.media_type == types::OCI_LAYER_ZSTD)
    {
        return None;
    }
    image.media_type = Some(media_type.to_owned());
    for descriptor in image.layers.iter_mut().chain([&mut image.config]) {
        descriptor.media_type = other_type(&descriptor.media_type)?.to_owned();
    }
    written(media_type, &image)
}

/// An index in the other family's types. Each child points to the descriptor that `replace` returns
/// for it.
pub fn index(
    manifest: &Manifest,
    replace: impl Fn(&Descriptor) -> Option<Descriptor>,
) -> Option<Manifest> {
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

/// The document in OCI's types. Its children point to the descriptors that `replace` returns for
/// their digests. No tool based on containers/image reads an OCI layout with Docker's types in it.
/// A type without an OCI equivalent stays.
///
/// `None` if the document is in OCI's types already.
pub fn to_oci(
    manifest: &Manifest,
    replace: impl Fn(&Digest) -> Option<Descriptor>,
) -> Option<Manifest> {
    let media_type = types::to_oci(&manifest.media_type);
    if types::manifest_kind(&manifest.media_type)? == ManifestKind::Image {
        let mut image: ImageManifest = serde_json::from_slice(&manifest.bytes).ok()?;
        let descriptors = image.layers.iter_mut().chain([&mut image.config]);
        descriptors.for_each(|descriptor| rename(&mut descriptor.media_type));
        image.media_type = Some(media_type?.to_owned());
        return written(media_type?, &image);
    }
    let mut index: Index = serde_json::from_slice(&manifest.bytes).ok()?;
    let is_replaced = repoint(&mut index, replace);
    if media_type.is_none() && !is_replaced {
        return None;
    }
    let media_type = media_type.unwrap_or(&manifest.media_type);
    index.media_type = Some(media_type.to_owned());
    written(media_type, &index)
}

/// Points the children of an index to the descriptors that `replace` returns for their digests.
/// Attestations follow the child that they describe. Returns whether any child changed.
pub fn repoint(index: &mut Index, replace: impl Fn(&Digest) -> Option<Descriptor>) -> bool {
    let mut is_replaced = false;
    for child in index.manifests.iter_mut() {
        let subject = child.annotations.get_mut(REFERENCE_DIGEST);
        let followed = subject
            .as_ref()
            .and_then(|text| replace(&text.as_str()?.parse().ok()?));
        if let (Some(subject), Some(followed)) = (subject, followed) {
            *subject = followed.digest.to_string().into();
        }
        if let Some(replacement) =
            replace(&child.digest).filter(|replacement| replacement.digest != child.digest)
        {
            is_replaced = true;
            child.rest.shift_remove("size");
            child.size = replacement.size;
            child.digest = replacement.digest;
            child.media_type = replacement.media_type;
        }
    }
    is_replaced
}

fn rename(media_type: &mut String) {
    if let Some(oci) = types::to_oci(media_type) {
        *media_type = oci.to_owned();
    }
}

fn written(media_type: &str, document: &impl serde::Serialize) -> Option<Manifest> {
    let bytes = Bytes::from(serde_json::to_vec(document).ok()?);
    Some(Manifest::new(media_type.to_owned(), bytes))
        .filter(|manifest| manifest.size() <= MAX_MANIFEST_BYTES)
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
    fn translating_twice_gives_the_same_manifest() {
        let docker = docker_image(types::DOCKER_LAYER_GZIP);
        let oci = image(&docker).unwrap();
        assert_eq!(oci.media_type, types::OCI_MANIFEST);
        assert!(!String::from_utf8_lossy(&oci.bytes).contains("vnd.docker"));
        assert_eq!(image(&oci), Some(docker));
    }

    #[test]
    fn zstd_layers_are_not_translated_to_docker() {
        let oci = image(&docker_image(types::DOCKER_LAYER_ZSTD)).unwrap();
        assert!(String::from_utf8_lossy(&oci.bytes).contains(types::OCI_LAYER_ZSTD));
        assert_eq!(image(&oci), None);
    }

    #[test]
    fn every_image_gets_ocis_types_for_an_oci_layout() {
        for layer in [
            types::DOCKER_LAYER_GZIP,
            types::DOCKER_LAYER_ZSTD,
            types::DOCKER_LAYER_FOREIGN,
        ] {
            let docker = docker_image(layer);
            let oci = to_oci(&docker, |_| None).unwrap();
            assert_eq!(oci.media_type, types::OCI_MANIFEST);
            assert!(
                !String::from_utf8_lossy(&oci.bytes).contains("vnd.docker"),
                "{layer}"
            );
            assert_eq!(to_oci(&oci, |_| None), None);
            let attested = r#"{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#;
            let mut index: Index =
                serde_json::from_str(&format!(r#"{{"manifests":[{attested}]}}"#)).unwrap();
            let subject = serde_json::Value::from(docker.digest.to_string());
            index.manifests[0]
                .annotations
                .insert(REFERENCE_DIGEST.to_owned(), subject);
            index.manifests.push(docker.descriptor());
            let index = Manifest::new(
                types::OCI_INDEX.to_owned(),
                serde_json::to_vec(&index).unwrap().into(),
            );
            let index = to_oci(&index, |digest| {
                (*digest == docker.digest).then(|| oci.descriptor())
            })
            .unwrap();
            let index: Index = serde_json::from_slice(&index.bytes).unwrap();
            assert_eq!(index.manifests[1], oci.descriptor());
            assert_eq!(
                index.manifests[0].annotations[REFERENCE_DIGEST],
                oci.digest.to_string()
            );
        }
    }

    #[test]
    fn a_type_without_an_equivalent_is_not_translated() {
        assert_eq!(image(&docker_image(types::DOCKER_LAYER_FOREIGN)), None);
    }
}
