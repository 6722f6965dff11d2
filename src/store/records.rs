//! The records: small JSON documents that make objects visible.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Platform};

/// What became of a source layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the source layer's bytes as the upstream holds them.
    pub source: Digest,
    pub outcome: LayerOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum LayerOutcome {
    Converted(ConvertedLayer),
    /// The layer is served as it is.
    PassedThrough {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertedLayer {
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
    pub uncompressed_size: u64,
    pub source_diff_id: Digest,
    pub source_size: u64,
    pub toc_digest: Digest,
    /// `gzip` or `zstd`.
    pub compression: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_toc: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd_manifest_position: Option<String>,
    /// Digest of the compressed TOC frame's content (`io.github.containers.zstd-chunked.manifest-checksum`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd_manifest_checksum: Option<Digest>,
}

/// The twin of an image manifest or index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the source manifest or index.
    pub source: Digest,
    /// Digest of the twin; equals `source` when nothing could be converted.
    pub twin: Digest,
    pub media_type: String,
    pub size: u64,
    /// For an index: the platforms whose children are converted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// Every stored object the twin needs, itself included: what the sweep must keep.
    pub objects: Vec<Digest>,
    /// Why layers or children pass through, by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_through: Vec<PassedThrough>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedThrough {
    pub digest: Digest,
    pub reason: String,
}
