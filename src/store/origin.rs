//! The origin of a converted image: from where it was converted, how long that took and what it
//! saved. People read it; nothing depends on it.

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// The memory of a source layer: its digest's text, its size and its place in a list.
const BYTES_OF_LAYER: usize = 112;

/// The origin of a converted image or index. A size or number of zero is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The upstream's name and the repository in it, as the image was first converted. Other names
    /// may stand for the same image.
    pub upstream: String,
    pub repository: String,
    /// Whether the image was converted as a part of an index.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_child: bool,
    /// When the conversion ended, in seconds since 1970.
    pub ended: u64,
    /// How long the conversion took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// The bytes of the source image's layers, compressed.
    #[serde(default)]
    pub source_size: u64,
    /// The bytes of the converted image's layers, compressed.
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub layers: u32,
    /// The layers that nodes can mount lazily.
    #[serde(default)]
    pub lazy_layers: u32,
    /// The layers of the source image, from the bottom to the top. Empty for an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceLayer>,
}

/// A layer of a source image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLayer {
    pub digest: Digest,
    /// Its bytes as the upstream holds them.
    pub size: u64,
}

impl Origin {
    /// Adds the sizes and layers of an index's child.
    pub fn add(&mut self, child: &Self) {
        self.source_size = self.source_size.saturating_add(child.source_size);
        self.size = self.size.saturating_add(child.size);
        self.layers = self.layers.saturating_add(child.layers);
        self.lazy_layers = self.lazy_layers.saturating_add(child.lazy_layers);
    }

    /// The bytes of memory that it takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>()
            + self.upstream.len()
            + self.repository.len()
            + self.sources.len() * BYTES_OF_LAYER
    }
}
