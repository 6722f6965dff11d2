//! The stack of layers of an image, from its manifests only.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::StackRecord;
use crate::oci::media_type::{self, ManifestKind, manifest_kind};
use crate::oci::{Digest, Manifest};
use crate::profile::Stack;

/// The fields of an image's manifest that a stack needs. The other fields take no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outline {
    /// The configuration that the manifest names.
    pub(crate) config: Digest,
    /// From the bottom to the top.
    pub(crate) layers: Vec<Digest>,
    /// The source image that the annotations name.
    source: Option<Digest>,
    /// Whether every layer is lazily readable.
    is_lazy: bool,
}

#[derive(Deserialize)]
struct Document {
    config: Config,
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: Digest,
}

#[derive(Deserialize)]
struct Layer {
    digest: Digest,
    #[serde(default)]
    annotations: Option<LayerAnnotations>,
}

#[derive(Deserialize)]
struct LayerAnnotations {
    /// `annotations::TOC_DIGEST`.
    #[serde(default, rename = "containerd.io/snapshot/stargz/toc.digest")]
    toc: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Annotations {
    /// `annotations::SOURCE_DIGEST`.
    #[serde(default, rename = "dev.starlift.source.digest")]
    source: Option<String>,
}

impl Outline {
    /// Reads a manifest; `None` when it is not that of an image that can run.
    pub(crate) fn read(manifest: &Manifest) -> Option<Self> {
        let is_image = manifest_kind(&manifest.media_type) == Some(ManifestKind::Image);
        let document: Document =
            is_image.then(|| serde_json::from_slice(&manifest.bytes).ok())??;
        let config = document.config.media_type.as_str();
        if !matches!(config, media_type::DOCKER_CONFIG | media_type::OCI_CONFIG)
            || document.layers.is_empty()
        {
            return None;
        }
        let has_toc = |layer: &Layer| {
            layer
                .annotations
                .as_ref()
                .is_some_and(|annotations| annotations.toc.is_some())
        };
        let source = document
            .annotations
            .and_then(|annotations| annotations.source);
        Some(Self {
            config: document.config.digest,
            is_lazy: document.layers.iter().all(has_toc),
            layers: document
                .layers
                .into_iter()
                .map(|layer| layer.digest)
                .collect(),
            source: source.and_then(|source| source.parse().ok()),
        })
    }

    pub(crate) fn stack(&self) -> Stack {
        Stack::of(&self.layers)
    }

    /// Returns the source image: the one that the annotations name, or the image itself if it is
    /// lazily readable as it is.
    pub(crate) fn source(&self, manifest: &Manifest) -> Option<Digest> {
        self.source
            .clone()
            .or_else(|| self.is_lazy.then(|| manifest.digest.clone()))
    }

    /// The stack of the image with this manifest, if it is lazily readable as it is.
    pub(crate) fn of_itself(self, manifest: &Manifest) -> Option<StackRecord> {
        self.is_lazy
            .then(|| record(&manifest.digest, None, self.layers))
    }
}

/// Returns the record of the stack of `layers`, of an image made from `source`.
///
/// `config` is the configuration of an image whose layers were all converted, which proves that
/// they are the layers that it names. Otherwise a manifest may name any configuration beside any
/// layers. Knowledge is then kept under the stack itself, for readers that have all of its layers.
pub(crate) fn record(source: &Digest, config: Option<&Digest>, layers: Vec<Digest>) -> StackRecord {
    let config = config.cloned().unwrap_or_else(|| Stack::of(&layers).0);
    StackRecord {
        config,
        source: source.clone(),
        layers,
    }
}

/// The layers of an image, from the bottom to the top; `None` when the manifest is not an image's.
pub(crate) fn layers(manifest: &Manifest) -> Option<Vec<Digest>> {
    Outline::read(manifest).map(|outline| outline.layers)
}

/// The stack of an image; `None` when the manifest is not an image's.
pub(crate) fn stack_of(manifest: &Manifest) -> Option<Stack> {
    Outline::read(manifest).map(|outline| outline.stack())
}

/// The stack of an image that is lazily readable as it is; `None` for every other.
pub(crate) fn of_itself(manifest: &Manifest) -> Option<StackRecord> {
    Outline::read(manifest)?.of_itself(manifest)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::annotations::{SOURCE_DIGEST, TOC_DIGEST};

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    fn manifest(config: &str, layers: &[Value], annotations: &Value) -> Manifest {
        let config =
            json!({"mediaType": media_type::OCI_CONFIG, "digest": digest(config), "size": 2});
        let document = json!({"schemaVersion": 2, "config": config, "layers": layers, "annotations": annotations});
        Manifest::new(
            media_type::OCI_MANIFEST.to_owned(),
            document.to_string().into(),
        )
    }

    fn layer(name: &str, annotations: &Value) -> Value {
        json!({"mediaType": media_type::OCI_LAYER_GZIP, "digest": digest(name), "size": 9, "annotations": annotations})
    }

    fn source_of(manifest: &Manifest) -> Option<Digest> {
        Outline::read(manifest)?.source(manifest)
    }

    #[test]
    fn a_converted_image_names_its_source() {
        let converted = manifest(
            "converted's",
            &[layer("b", &json!({}))],
            &json!({ SOURCE_DIGEST: digest("source") }),
        );
        assert_eq!(source_of(&converted), Some(digest("source")));
        assert_eq!(layers(&converted), Some(vec![digest("b")]));
    }

    #[test]
    fn an_image_that_is_lazy_already_is_its_own_and_others_are_none() {
        let toc = json!({ TOC_DIGEST: digest("toc") });
        let lazy = manifest("c", &[layer("a", &toc), layer("b", &toc)], &json!({}));
        assert_eq!(source_of(&lazy), Some(lazy.digest.clone()));
        assert_eq!(
            of_itself(&lazy).map(|record| record.layers),
            Some(vec![digest("a"), digest("b")])
        );
        for layers in [vec![layer("a", &toc), layer("b", &json!({}))], vec![]] {
            let other = manifest("c", &layers, &json!({}));
            assert_eq!((of_itself(&other), source_of(&other)), (None, None));
        }
    }

    #[test]
    fn a_configuration_that_is_only_named_is_not_believed() {
        let toc = json!({ TOC_DIGEST: digest("toc") });
        let lazy = manifest("another's", &[layer("a", &toc)], &json!({}));
        let record = of_itself(&lazy).unwrap();
        assert_eq!(record.config, record.stack().0);
        assert_ne!(record.config, digest("another's"));
    }
}
