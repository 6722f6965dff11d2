//! The meaning of media types in containerd (`images/mediatypes.go`, `remotes/handlers.go`).

use crate::oci::Descriptor;
use crate::oci::media_type::{
    DOCKER_CONFIG, DOCKER_LAYER, ManifestKind, OCI_CONFIG, manifest_kind,
};

const OCI_LAYERS: &str = "application/vnd.oci.image.layer.";
const DOCKER_FOREIGN_LAYERS: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

/// The role of a blob in its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Index,
    Manifest,
    Config,
    Layer,
    Other,
}

impl Role {
    pub(crate) fn of(media_type: &str) -> Self {
        match manifest_kind(media_type) {
            Some(ManifestKind::Index) => Self::Index,
            Some(ManifestKind::Image) => Self::Manifest,
            None if matches!(media_type, DOCKER_CONFIG | OCI_CONFIG) => Self::Config,
            None if is_layer(media_type) => Self::Layer,
            None => Self::Other,
        }
    }

    /// Returns the label by which a parent keeps a child of this role. If the label ends with a
    /// dot, a number has to follow.
    pub(crate) fn reference_label(self) -> &'static str {
        match self {
            Self::Config => "containerd.io/gc.ref.content.config",
            Self::Manifest => "containerd.io/gc.ref.content.m.",
            Self::Layer => "containerd.io/gc.ref.content.l.",
            Self::Index | Self::Other => "containerd.io/gc.ref.content.",
        }
    }
}

fn is_layer(media_type: &str) -> bool {
    [OCI_LAYERS, DOCKER_LAYER, DOCKER_FOREIGN_LAYERS]
        .iter()
        .any(|prefix| media_type.starts_with(prefix))
}

/// Returns the name under which containerd's clients write a blob. The name is shared, so that two
/// clients do not both fetch the same blob.
pub(crate) fn ingest_name(blob: &Descriptor) -> String {
    let role = match Role::of(&blob.media_type) {
        Role::Index => "index",
        Role::Manifest => "manifest",
        Role::Config => "config",
        Role::Layer => "layer",
        Role::Other => "unknown",
    };
    format!("{role}-{}", blob.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type::{DOCKER_LAYER_ZSTD, OCI_INDEX, OCI_LAYER_ZSTD, OCI_MANIFEST};

    #[test]
    fn roles_match_containerd() {
        for (media_type, role) in [
            (OCI_INDEX, Role::Index),
            (OCI_MANIFEST, Role::Manifest),
            (OCI_CONFIG, Role::Config),
            (OCI_LAYER_ZSTD, Role::Layer),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                Role::Layer,
            ),
            (DOCKER_LAYER_ZSTD, Role::Layer),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                Role::Layer,
            ),
            ("application/vnd.in-toto+json", Role::Other),
        ] {
            assert_eq!(Role::of(media_type), role, "{media_type}");
        }
    }
}
