//! The layers of an image, from snapshots and labels.

use std::sync::Arc;

use crate::agent::layer::spec::{self, LayerSpec};
use crate::agent::numbers::LayerNumber;
use crate::agent::snapshots::Parent;
use crate::oci::Digest;
use crate::profile::Stack;

/// All layers of an image, and the numbers of those that are mounted.
#[derive(Debug, Clone)]
pub(crate) struct ImageLayers {
    pub stack: Stack,
    /// The number of layers.
    pub count: u32,
    /// The layers that are mounted lazily: place, counted from the bottom, and number.
    pub mounted: Arc<[(u32, LayerNumber)]>,
    /// The number of layers that are present, mounted or unpacked.
    present: u32,
}

impl ImageLayers {
    /// Returns the image under a container, from its snapshots `parents`, bottom first. `None` if a
    /// snapshot does not say which layer it is.
    pub(crate) fn for_container(parents: &[Parent]) -> Option<Self> {
        Self::of(parents, &[])
    }

    /// Returns the image with the layer `spec` on top of `parents` and with the layers above it
    /// that its labels list. `None` if the list is cut or belongs to another layer, or if a parent
    /// does not say which layer it is.
    ///
    /// The snapshots below may have come with other images, and the label of the lowest layer may
    /// describe one of those. Therefore only the list of this layer is used.
    pub(crate) fn for_layer(parents: &[Parent], spec: &LayerSpec) -> Option<Self> {
        (spec.image_layers.first() == Some(&spec.digest))
            .then(|| Self::of(parents, &spec.image_layers))
            .flatten()
    }

    fn of(parents: &[Parent], above: &[Digest]) -> Option<Self> {
        let digests: Option<Vec<Digest>> = parents
            .iter()
            .map(|parent| spec::layer_digest(&parent.labels))
            .collect();
        let mut digests = digests?;
        let mounted = (0..)
            .zip(parents)
            .filter_map(|(place, parent)| Some((place, parent.lazy?)))
            .collect();
        digests.extend_from_slice(above);
        let (count, present) = (
            u32::try_from(digests.len()).ok()?,
            u32::try_from(parents.len()).ok()?,
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
    pub(crate) fn with(self, number: LayerNumber) -> Self {
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

    fn parent(layer: &str, lazy: Option<u64>) -> Parent {
        let label = (
            "containerd.io/snapshot/remote/stargz.digest".to_owned(),
            digest(layer).to_string(),
        );
        Parent {
            labels: [label].into(),
            lazy: lazy.map(LayerNumber),
        }
    }

    fn spec(layers: &[&str]) -> LayerSpec {
        LayerSpec {
            reference: "registry.example/app:1".to_owned(),
            digest: digest("c"),
            toc_digest: None,
            manifest_digest: None,
            image_layers: layers.iter().map(|layer| digest(layer)).collect(),
            layers_above: Vec::new(),
            labels: Default::default(),
        }
    }

    #[test]
    fn an_image_is_the_snapshots_below_and_the_layers_in_the_label() {
        let parents = [parent("a", Some(4)), parent("b", None)];
        let image = ImageLayers::for_layer(&parents, &spec(&["c", "d"]))
            .unwrap()
            .with(LayerNumber(9));
        assert_eq!(image.stack, Stack::of(&["a", "b", "c", "d"].map(digest)));
        assert_eq!(
            (image.count, &*image.mounted),
            (4, &[(0, LayerNumber(4)), (2, LayerNumber(9))][..])
        );
        assert!(
            ImageLayers::for_layer(&parents, &spec(&["d"])).is_none(),
            "the list is of another layer"
        );
        assert!(
            ImageLayers::for_layer(&parents, &spec(&[])).is_none(),
            "the list was cut"
        );
        assert_eq!(
            ImageLayers::for_container(&parents).unwrap().stack,
            Stack::of(&["a", "b"].map(digest))
        );
        let nameless = Parent {
            labels: Default::default(),
            lazy: Some(LayerNumber(1)),
        };
        assert!(ImageLayers::for_container(&[nameless]).is_none());
    }
}
