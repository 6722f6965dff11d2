//! Manifests and indexes as they are read.

use crate::failure::Failure;
use crate::oci::Manifest;
use crate::oci::media_type::{ManifestKind, manifest_kind};

/// Whether it is the manifest of several images.
pub(crate) fn is_index(manifest: &Manifest) -> bool {
    manifest_kind(&manifest.media_type) == Some(ManifestKind::Index)
}

/// Reads a manifest or an index.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(manifest: &Manifest) -> Result<T, Failure> {
    let what = format!(
        "the manifest {} ({}) cannot be understood",
        manifest.digest, manifest.media_type
    );
    serde_json::from_slice(&manifest.bytes).map_err(Failure::when(what))
}
