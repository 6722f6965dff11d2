//! Media types of Docker schema 2 and OCI, and the kinds of objects that they name.

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// containerd and BuildKit write this type. Docker itself never defined it.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
pub const DOCKER_LAYER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Manifests from before 2016, which some registries still hold.
pub const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SIGNED_SCHEMA_1: &str =
    "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Artifact manifests of a draft of OCI 1.1.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// OCI's type for a foreign layer, deprecated there.
pub const OCI_LAYER_FOREIGN_GZIP: &str =
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

pub const OCTET_STREAM: &str = "application/octet-stream";

/// The kind of document that a manifest media type names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestKind {
    Image,
    Index,
}

/// The kind of manifest that `media_type` names, or `None` for every unknown type.
pub fn manifest_kind(media_type: &str) -> Option<ManifestKind> {
    match media_type {
        DOCKER_MANIFEST | OCI_MANIFEST => Some(ManifestKind::Image),
        DOCKER_MANIFEST_LIST | OCI_INDEX => Some(ManifestKind::Index),
        _ => None,
    }
}

/// The type under which a foreign document is served: its own if it is a manifest of a known kind,
/// else `application/octet-stream`, which no browser shows as a page.
pub fn document_type(media_type: &str) -> &str {
    match media_type {
        DOCKER_MANIFEST | OCI_MANIFEST | DOCKER_MANIFEST_LIST | OCI_INDEX => media_type,
        DOCKER_SCHEMA_1 | DOCKER_SIGNED_SCHEMA_1 | OCI_ARTIFACT => media_type,
        _ => OCTET_STREAM,
    }
}

/// Whether a layer of this type is a plain file-system layer: a tar, with or without gzip or zstd,
/// neither foreign nor encrypted.
///
/// The compression is read from the first bytes, because types and bytes disagree in the wild.
pub fn is_convertible_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        DOCKER_LAYER
            | DOCKER_LAYER_GZIP
            | DOCKER_LAYER_ZSTD
            | OCI_LAYER
            | OCI_LAYER_GZIP
            | OCI_LAYER_ZSTD
    )
}

/// OCI's name for one of Docker's types, or `None` for every other type.
pub fn to_oci(media_type: &str) -> Option<&'static str> {
    Some(match media_type {
        DOCKER_MANIFEST => OCI_MANIFEST,
        DOCKER_MANIFEST_LIST => OCI_INDEX,
        DOCKER_CONFIG => OCI_CONFIG,
        DOCKER_LAYER => OCI_LAYER,
        DOCKER_LAYER_GZIP => OCI_LAYER_GZIP,
        DOCKER_LAYER_ZSTD => OCI_LAYER_ZSTD,
        DOCKER_LAYER_FOREIGN => OCI_LAYER_FOREIGN_GZIP,
        _ => return None,
    })
}

/// Whether the type is one of Docker's. The replacement of a Docker object must have a Docker type
/// too.
pub fn is_docker(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.")
}
