//! Fuzz targets: planning of manifests.

use bytes::Bytes;

use super::plan::{Plan, Wanted, plan};
use crate::oci::{Platform, document};

/// Plans a manifest and checks that the plan has a decision for each layer and child.
pub fn plans(data: &[u8]) {
    let Ok(manifest) = document::read(None, None, Bytes::copy_from_slice(data)) else {
        return;
    };
    let platforms = [Platform::of_this_machine()];
    let wanted = Wanted {
        platforms: &platforms,
        all_platforms: false,
        renew: false,
    };
    match plan(&manifest, &wanted) {
        Plan::Image(image) => assert_eq!(image.manifest.layers.len(), image.layers.len()),
        Plan::Index(index) => assert_eq!(index.index.manifests.len(), index.children.len()),
        Plan::PassThrough(reason) => assert!(!reason.is_empty()),
    }
}
