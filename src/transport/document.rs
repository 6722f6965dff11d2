//! Parses manifests and indexes.

use crate::failure::Failure;
use crate::oci::Manifest;
use crate::oci::media_type::{ManifestKind, manifest_kind};

/// Whether `manifest` is an index of several images.
pub(crate) fn is_index(manifest: &Manifest) -> bool {
    manifest_kind(&manifest.media_type) == Some(ManifestKind::Index)
}

/// Parses a manifest or an index.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(manifest: &Manifest) -> Result<T, Failure> {
    let context = format!(
        "manifest {} ({}) cannot be parsed",
        manifest.digest, manifest.media_type
    );
    serde_json::from_slice(&manifest.bytes).map_err(Failure::when(context))
}
