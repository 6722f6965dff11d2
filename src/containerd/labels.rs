//! Labels of a layer's snapshot. They describe the layer, so that a snapshotter can mount it lazily
//! (stargz-snapshotter, `fs/source/source.go`; containerd, `pkg/snapshotters/annotations.go`), and
//! let containerd find the snapshot again.

use std::collections::HashMap;

use serde_json::Value;

use crate::oci::annotations::{SNAPSHOT_REF, TOC_DIGEST, ZSTD_CHECKSUM, cri, stargz};
use crate::oci::{Descriptor, Digest};

pub(crate) type Labels = HashMap<String, String>;

/// Prefix of the layer annotations that containerd passes to the snapshotter.
const INHERITED: &str = "containerd.io/snapshot/";
/// Bytes of a layer to prefetch, as the reference's `rpull` requests from its snapshotter.
const PREFETCH_BYTES: &str = "10485760";
const URLS: &str = "containerd.io/snapshot/remote/urls";

/// Annotations with the digest of a TOC. A layer that has one of them can be read lazily.
const TOC_DIGESTS: [&str; 2] = [TOC_DIGEST, ZSTD_CHECKSUM];

/// Limit of a label, in bytes of key and value together (containerd, `labels/validate.go`).
pub(crate) const MAX_LABEL_BYTES: usize = 4096;

/// A set of label names that describe a layer to a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Stargz,
    Containerd,
}

/// The properties that all layers of a pull share.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) dialect: Dialect,
    /// The name of the image in its record.
    pub(crate) reference: String,
    pub(crate) manifest: Digest,
    pub(crate) skip_verify: bool,
}

impl Source {
    /// Returns the labels for the snapshot of the first of `layers`, which are ordered bottom
    /// first.
    pub(crate) fn labels(&self, layers: &[Descriptor], chain_id: &Digest) -> Labels {
        let Some(layer) = layers.first() else {
            return Labels::new();
        };
        let mut labels = inherited(layer);
        let digest = layer.digest.to_string();
        let mut set = |key: &str, value: String| labels.insert(key.to_owned(), value);
        let (reference, own, list) = match self.dialect {
            Dialect::Stargz => (stargz::REFERENCE, stargz::LAYER, stargz::LAYERS),
            Dialect::Containerd => (cri::REFERENCE, cri::LAYER, cri::LAYERS),
        };
        set(reference, self.reference.clone());
        set(own, digest);
        let neighbours = joined(list, layers.iter().map(|layer| layer.digest.to_string()));
        let count = neighbours.split(',').count();
        set(list, neighbours);
        if self.dialect == Dialect::Containerd {
            set(cri::MANIFEST, self.manifest.to_string());
        }
        set(stargz::PREFETCH_SIZE, PREFETCH_BYTES.to_owned());
        set(SNAPSHOT_REF, chain_id.to_string());
        if self.skip_verify {
            set(stargz::SKIP_VERIFY, "true".to_owned());
        }
        labels.extend(urls(layers.iter().take(count)));
        labels
    }
}

/// Returns labels of a layer that does not exist, and of no target: a snapshotter that gets them
/// makes an ordinary snapshot.
pub(crate) fn dry() -> Labels {
    let digest = format!("sha256:{}", "0".repeat(64));
    let labels = [
        (stargz::REFERENCE, "registry.invalid/dry:1"),
        (stargz::LAYER, &digest),
        (cri::REFERENCE, "registry.invalid/dry:1"),
        (cri::LAYER, &digest),
    ];
    labels
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into()
}

/// Whether a layer's annotations say that it can be read lazily.
pub(crate) fn may_be_lazy(layer: &Descriptor) -> bool {
    TOC_DIGESTS
        .iter()
        .any(|key| layer.annotations.contains_key(*key))
}

/// Returns the annotations of a layer whose values are strings.
pub(crate) fn annotations(layer: &Descriptor) -> Labels {
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    layer.annotations.iter().filter_map(text).collect()
}

fn inherited(layer: &Descriptor) -> Labels {
    let fits = |key: &str, value: &str| key.len() + value.len() <= MAX_LABEL_BYTES;
    let mut labels = annotations(layer);
    labels.retain(|key, value| key.starts_with(INHERITED) && fits(key, value));
    labels
}

/// Returns labels with the alternative URLs of the layers: those of the first layer, then those of
/// every layer by its number.
fn urls<'a>(layers: impl Iterator<Item = &'a Descriptor> + Clone) -> Labels {
    let own = layers.clone().take(1).map(|layer| (URLS.to_owned(), layer));
    let all = layers
        .enumerate()
        .map(|(place, layer)| (format!("{URLS}.{place}"), layer));
    let named = own.chain(all).filter(|(_, layer)| !layer.urls.is_empty());
    named
        .map(|(key, layer)| (key.clone(), joined(&key, layer.urls.iter().cloned())))
        .collect()
}

/// Joins as many of `values` as fit into a label. Missing values cost only speed.
fn joined(key: &str, values: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for value in values {
        let separator = if text.is_empty() { "" } else { "," };
        if key.len() + text.len() + separator.len() + value.len() > MAX_LABEL_BYTES {
            break;
        }
        text.push_str(separator);
        text.push_str(&value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(number: usize) -> Descriptor {
        let digest = Digest::sha256_of(&number.to_le_bytes());
        let text = serde_json::json!({"mediaType": "a", "digest": digest, "size": 1});
        serde_json::from_value(text).unwrap()
    }

    fn source(dialect: Dialect) -> Source {
        let manifest = Digest::sha256_of(b"manifest");
        Source {
            dialect,
            reference: "docker.io/library/app:1".to_owned(),
            manifest,
            skip_verify: false,
        }
    }

    #[test]
    fn labels_name_the_first_layer_and_the_layers_above_it() {
        let mut layers = [layer(0), layer(1), layer(2)];
        layers[1]
            .annotations
            .insert(TOC_DIGEST.to_owned(), "sha256:toc".into());
        layers[1]
            .annotations
            .insert("org.example".to_owned(), "not inherited".into());
        layers[1].annotations.insert(
            "containerd.io/snapshot/x".to_owned(),
            "x".repeat(MAX_LABEL_BYTES).into(),
        );
        layers[1].urls = vec![
            "https://a.example/1".to_owned(),
            "https://b.example/1".to_owned(),
        ];
        let chain_id = Digest::sha256_of(b"chain");
        let labels = source(Dialect::Stargz).labels(&layers[1..], &chain_id);
        let expected = [
            ("containerd.io/snapshot.ref", chain_id.to_string()),
            (
                "containerd.io/snapshot/remote/stargz.reference",
                "docker.io/library/app:1".to_owned(),
            ),
            (
                "containerd.io/snapshot/remote/stargz.digest",
                layers[1].digest.to_string(),
            ),
            (
                "containerd.io/snapshot/remote/stargz.layers",
                format!("{},{}", layers[1].digest, layers[2].digest),
            ),
            (
                "containerd.io/snapshot/remote/stargz.prefetch",
                "10485760".to_owned(),
            ),
            (
                "containerd.io/snapshot/remote/urls",
                "https://a.example/1,https://b.example/1".to_owned(),
            ),
            (
                "containerd.io/snapshot/remote/urls.0",
                "https://a.example/1,https://b.example/1".to_owned(),
            ),
            (TOC_DIGEST, "sha256:toc".to_owned()),
        ];
        assert_eq!(
            labels,
            expected.map(|(key, value)| (key.to_owned(), value)).into()
        );
    }

    #[test]
    fn containerd_labels_also_name_the_manifest() {
        let layers = [layer(0)];
        let source = Source {
            skip_verify: true,
            ..source(Dialect::Containerd)
        };
        let labels = source.labels(&layers, &Digest::sha256_of(b"chain"));
        assert_eq!(
            labels["containerd.io/snapshot/cri.manifest-digest"],
            source.manifest.to_string()
        );
        assert_eq!(
            labels["containerd.io/snapshot/cri.image-ref"],
            source.reference
        );
        assert_eq!(
            labels["containerd.io/snapshot/cri.layer-digest"],
            layers[0].digest.to_string()
        );
        assert_eq!(
            labels["containerd.io/snapshot/cri.image-layers"],
            layers[0].digest.to_string()
        );
        assert_eq!(labels[stargz::SKIP_VERIFY], "true");
        assert!(!labels.keys().any(|key| key.contains("stargz.reference")));
    }

    #[test]
    fn no_label_exceeds_the_limit_of_containerd() {
        let mut layers: Vec<_> = (0..200).map(layer).collect();
        layers
            .iter_mut()
            .for_each(|layer| layer.urls = vec!["https://a.example".to_owned(); 500]);
        let labels = source(Dialect::Stargz).labels(&layers, &Digest::sha256_of(b"chain"));
        let list = &labels["containerd.io/snapshot/remote/stargz.layers"];
        assert!(
            list.split(',').count() > 50
                && list
                    .split(',')
                    .all(|digest| digest.parse::<Digest>().is_ok())
        );
        assert!(
            labels
                .iter()
                .all(|(key, value)| key.len() + value.len() <= MAX_LABEL_BYTES)
        );
        assert_eq!(
            labels.keys().filter(|key| key.starts_with(URLS)).count(),
            1 + list.split(',').count()
        );
    }
}
