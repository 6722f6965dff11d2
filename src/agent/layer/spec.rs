//! The layer that a snapshot stands for, as containerd's clients describe it in labels.

use crate::agent::snapshots::{Labels, MAX_LABEL_LEN};
use crate::oci::Digest;
use crate::oci::annotations::{TOC_DIGEST, cri, stargz};
use crate::oci::digest::ParseDigestError;

/// The labels with which one kind of client describes a layer.
struct Dialect {
    reference: &'static str,
    digest: &'static str,
    layers: &'static str,
    manifest: Option<&'static str>,
}

/// `ctr-remote`, nerdctl and buildkit; then the CRI plugin.
const DIALECTS: [Dialect; 2] = [
    Dialect {
        reference: stargz::REFERENCE,
        digest: stargz::LAYER,
        layers: stargz::LAYERS,
        manifest: None,
    },
    Dialect {
        reference: cri::REFERENCE,
        digest: cri::LAYER,
        layers: cri::LAYERS,
        manifest: Some(cri::MANIFEST),
    },
];

/// A layer of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerSpec {
    /// The image reference, as the client writes it: `registry.example/app:1`.
    pub reference: String,
    pub digest: Digest,
    pub toc_digest: Option<Digest>,
    pub manifest_digest: Option<Digest>,
    /// This layer and all above it. Empty if the label does not hold them all.
    pub image_layers: Vec<Digest>,
    /// The layers above this one, as far as the label holds them. Empty also if there is no label.
    pub layers_above: Vec<Digest>,
    /// All labels, because some of them are set by only some clients.
    pub labels: Labels,
}

/// The reason why labels do not describe a layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("no labels with image and layer")]
    Absent,
    #[error("label {label:?} is not a digest: {source}")]
    Digest {
        label: &'static str,
        source: ParseDigestError,
    },
}

impl LayerSpec {
    /// Reads the labels of a Prepare. The layer's own digests must be valid if they are present.
    pub(crate) fn from_labels(labels: &Labels) -> Result<Self, SpecError> {
        let is_complete = |dialect: &&Dialect| {
            labels.contains_key(dialect.reference) && labels.contains_key(dialect.digest)
        };
        let dialect = DIALECTS.iter().find(is_complete).ok_or(SpecError::Absent)?;
        let own = digest(labels, dialect.digest)?.ok_or(SpecError::Absent)?;
        let listed = dialect.listed(labels);
        Ok(Self {
            reference: labels
                .get(dialect.reference)
                .cloned()
                .ok_or(SpecError::Absent)?,
            layers_above: above(&own, &listed),
            image_layers: dialect.complete(labels, listed),
            digest: own,
            toc_digest: digest(labels, TOC_DIGEST)?,
            manifest_digest: dialect
                .manifest
                .map(|label| digest(labels, label))
                .transpose()?
                .flatten(),
            labels: labels.clone(),
        })
    }
}

/// Returns the digest of the layer that a snapshot was made from, if its labels have it.
pub(crate) fn layer_digest(labels: &Labels) -> Option<Digest> {
    DIALECTS
        .iter()
        .find_map(|dialect| labels.get(dialect.digest)?.parse().ok())
}

impl Dialect {
    /// Returns the layers in the label, or none if one of them is not a digest.
    fn listed(&self, labels: &Labels) -> Vec<Digest> {
        let list = labels.get(self.layers).map(String::as_str);
        let layers: Result<Vec<Digest>, _> = list
            .into_iter()
            .flat_map(|list| list.split(','))
            .map(str::parse)
            .collect();
        layers.unwrap_or_default()
    }

    /// Returns the listed layers, or none if the list may be cut: clients leave out the last layers
    /// if the label would be too long.
    fn complete(&self, labels: &Labels, layers: Vec<Digest>) -> Vec<Digest> {
        let list = labels.get(self.layers).map_or(0, String::len);
        let longest = layers
            .iter()
            .map(|layer| layer.to_string().len())
            .max()
            .unwrap_or_default();
        let held_one_more = self.layers.len() + list + ",".len() + longest <= MAX_LABEL_LEN;
        if held_one_more { layers } else { Vec::new() }
    }
}

/// Returns the layers after the first, which must be `own`.
fn above(own: &Digest, listed: &[Digest]) -> Vec<Digest> {
    match listed {
        [first, above @ ..] if first == own => above.to_vec(),
        _ => Vec::new(),
    }
}

fn digest(labels: &Labels, label: &'static str) -> Result<Option<Digest>, SpecError> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|source| SpecError::Digest { label, source })
    };
    labels.get(label).map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn a_digest(of: &str) -> Digest {
        Digest::sha256_of(of.as_bytes())
    }

    #[test]
    fn the_stargz_plugins_labels_are_read() {
        let (one, two, toc) = (
            a_digest("1").to_string(),
            a_digest("2").to_string(),
            a_digest("toc").to_string(),
        );
        let labels = labels(&[
            ("containerd.io/snapshot.ref", "sha256:chain"),
            (
                "containerd.io/snapshot/remote/stargz.reference",
                "registry.example/app:1",
            ),
            ("containerd.io/snapshot/remote/stargz.digest", &one),
            (
                "containerd.io/snapshot/remote/stargz.layers",
                &format!("{one},{two}"),
            ),
            ("containerd.io/snapshot/stargz/toc.digest", &toc),
        ]);
        let spec = LayerSpec::from_labels(&labels).unwrap();
        assert_eq!(spec.reference, "registry.example/app:1");
        assert_eq!(
            (spec.digest, spec.toc_digest),
            (a_digest("1"), Some(a_digest("toc")))
        );
        assert_eq!(spec.image_layers, [a_digest("1"), a_digest("2")]);
        assert_eq!((spec.manifest_digest, spec.labels), (None, labels));
    }

    #[test]
    fn the_cri_plugins_labels_are_read() {
        let (one, manifest) = (a_digest("1").to_string(), a_digest("manifest").to_string());
        let spec = LayerSpec::from_labels(&labels(&[
            (
                "containerd.io/snapshot/cri.image-ref",
                "registry.example/app@sha256:x",
            ),
            ("containerd.io/snapshot/cri.layer-digest", &one),
            ("containerd.io/snapshot/cri.manifest-digest", &manifest),
            (
                "containerd.io/snapshot/cri.image-layers",
                &format!("{one},{manifest}"),
            ),
        ]))
        .unwrap();
        assert_eq!(
            (spec.digest, spec.manifest_digest),
            (a_digest("1"), Some(a_digest("manifest")))
        );
        assert_eq!(
            (spec.reference.as_str(), spec.toc_digest),
            ("registry.example/app@sha256:x", None)
        );
        assert_eq!(spec.image_layers, [a_digest("1"), a_digest("manifest")]);
    }

    #[test]
    fn a_list_of_layers_that_may_have_been_cut_is_ignored() {
        let listed = |list: String| {
            let one = a_digest("1").to_string();
            let spec = LayerSpec::from_labels(&labels(&[
                (
                    "containerd.io/snapshot/remote/stargz.reference",
                    "registry.example/app:1",
                ),
                ("containerd.io/snapshot/remote/stargz.digest", &one),
                ("containerd.io/snapshot/remote/stargz.layers", &list),
            ]));
            let spec = spec.unwrap();
            (spec.image_layers.len(), spec.layers_above.len())
        };
        let list = |count| vec![a_digest("1").to_string(); count].join(",");
        // 43 bytes of the label's name, 71 of each digest, the commas.
        assert_eq!(
            [1, 55, 56].map(|count| listed(list(count))),
            [(1, 0), (55, 54), (0, 55)],
            "the layers above are known all the same"
        );
        assert_eq!(listed(format!("{},sha256:no", list(1))), (0, 0));
        let other = format!("{},{}", a_digest("2"), a_digest("1"));
        assert_eq!(listed(other), (2, 0), "the list of another layer");
    }

    #[test]
    fn incomplete_labels_and_bad_digests_are_refused() {
        let reference = (
            "containerd.io/snapshot/remote/stargz.reference",
            "registry.example/app:1",
        );
        let digest = "containerd.io/snapshot/remote/stargz.digest";
        assert_eq!(
            LayerSpec::from_labels(&labels(&[reference])),
            Err(SpecError::Absent)
        );
        let other = ("containerd.io/snapshot/cri.layer-digest", "sha256:1");
        assert_eq!(
            LayerSpec::from_labels(&labels(&[reference, other])),
            Err(SpecError::Absent)
        );
        let bad = LayerSpec::from_labels(&labels(&[reference, (digest, "sha256:1")]));
        assert!(matches!(bad, Err(SpecError::Digest { label, .. }) if label == digest));
        let good = a_digest("1").to_string();
        let bad = LayerSpec::from_labels(&labels(&[reference, (digest, &good), (TOC_DIGEST, "")]));
        assert!(matches!(bad, Err(SpecError::Digest { label, .. }) if label == TOC_DIGEST));
    }
}
