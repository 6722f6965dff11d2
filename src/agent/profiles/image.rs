//! The layers of an image, from snapshots and labels.

use std::sync::Arc;

use crate::agent::snapshots::Below;
use crate::agent::spec::{self, LayerSpec};
use crate::oci::Digest;
use crate::profile::Stack;

/// All layers of an image, and the numbers of those that are mounted.
#[derive(Debug, Clone)]
pub struct ImageLayers {
    pub stack: Stack,
    /// The number of layers.
    pub count: u32,
    /// The layers that are mounted lazily: place, counted from the bottom, and number.
    pub mounted: Arc<[(u32, u64)]>,
    /// The number of layers that are present, mounted or unpacked.
    present: u32,
}

impl ImageLayers {
    /// Returns the image under a container, from its snapshots `below`, bottom first. `None` if a
    /// snapshot does not say which layer it is.
    pub fn under(below: &[Below]) -> Option<Self> {
        Self::of(below, &[])
    }

    /// Returns the image with the layer `spec` on top of `below` and with the layers above it that
    /// its labels list. `None` if they do not list all.
    ///
    /// The snapshots below may have come with other images, and the label of the lowest layer may
    /// describe one of those. Therefore only the list of this layer is used.
    pub fn around(below: &[Below], spec: &LayerSpec) -> Option<Self> {
        (spec.image_layers.first() == Some(&spec.digest))
            .then(|| Self::of(below, &spec.image_layers))
            .flatten()
    }

    fn of(below: &[Below], above: &[Digest]) -> Option<Self> {
        let digests: Option<Vec<Digest>> = below
            .iter()
            .map(|below| spec::layer_digest(&below.labels))
            .collect();
        let mut digests = digests?;
        let mounted = (0..)
            .zip(below)
            .filter_map(|(place, below)| Some((place, below.lazy?)))
            .collect();
        digests.extend_from_slice(above);
        let (count, present) = (
            u32::try_from(digests.len()).ok()?,
            u32::try_from(below.len()).ok()?,
        );
        Some(Self {
            stack: Stack::of(&digests),
            count,
            mounted,
            present,
        })
    }

    /// Returns the image with its next layer mounted.
    #[must_use]
    pub fn with(self, number: u64) -> Self {
        let mounted = self
            .mounted
            .iter()
            .copied()
            .chain([(self.present, number)])
            .collect();
        Self {
            mounted,
            present: self.present + 1,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> Digest {
        Digest::sha256_of(of.as_bytes())
    }

    fn below(layer: &str, lazy: Option<u64>) -> Below {
        let label = (
            "containerd.io/snapshot/remote/stargz.digest".to_owned(),
            digest(layer).to_string(),
        );
        Below {
            labels: [label].into(),
            lazy,
        }
    }

    fn spec(layers: &[&str]) -> LayerSpec {
        LayerSpec {
            reference: "registry.example/app:1".to_owned(),
            digest: digest("c"),
            toc_digest: None,
            manifest_digest: None,
            image_layers: layers.iter().map(|layer| digest(layer)).collect(),
            labels: Default::default(),
        }
    }

    #[test]
    fn an_image_is_the_snapshots_below_and_the_layers_in_the_label() {
        let below = [below("a", Some(4)), below("b", None)];
        let image = ImageLayers::around(&below, &spec(&["c", "d"]))
            .unwrap()
            .with(9);
        assert_eq!(image.stack, Stack::of(&["a", "b", "c", "d"].map(digest)));
        assert_eq!((image.count, &*image.mounted), (4, &[(0, 4), (2, 9)][..]));
        assert!(
            ImageLayers::around(&below, &spec(&["d"])).is_none(),
            "the list is of another layer"
        );
        assert!(
            ImageLayers::around(&below, &spec(&[])).is_none(),
            "the list was cut"
        );
        assert_eq!(
            ImageLayers::under(&below).unwrap().stack,
            Stack::of(&["a", "b"].map(digest))
        );
        let nameless = Below {
            labels: Default::default(),
            lazy: Some(1),
        };
        assert!(ImageLayers::under(&[nameless]).is_none());
    }
}
