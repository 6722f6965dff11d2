//! Checks a node's observation against the image.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use estargz::Toc;
use estargz::toc::Kind;

use super::error::Error;
use crate::aside::aside;
use crate::oci::Digest;
use crate::profile::{Extents, FileUse, Observation};
use crate::store::StackRecord;
use crate::tocs::Tocs;

/// Returns the observation without the files that the image does not have, and without bytes beyond
/// the end of its files.
///
/// Layers that are not in the store, because they pass through, cannot be checked: their files are
/// kept as observed. A node that prefetches by the profile finds nothing under a wrong name.
pub(super) async fn in_image(
    tocs: &Tocs,
    image: &StackRecord,
    seen: Observation,
) -> Result<Observation, Error> {
    let bytes = seen
        .files()
        .iter()
        .map(|file| size_of::<FileUse>() + file.path.len())
        .sum();
    let mut known: HashMap<u32, Option<Arc<Toc>>> = HashMap::new();
    let named: BTreeSet<u32> = seen.files().iter().map(|file| file.layer).collect();
    for layer in named {
        let digest = usize::try_from(layer)
            .ok()
            .and_then(|layer| image.layers.get(layer));
        let toc = match digest {
            Some(digest) => toc(tocs, digest).await?,
            None => None,
        };
        known.insert(layer, toc);
    }
    let within = move || {
        let files = seen
            .files()
            .iter()
            .filter_map(|file| match known.get(&file.layer) {
                Some(Some(toc)) => within(toc, file),
                _ => Some(file.clone()),
            });
        Observation::new(files.collect())
    };
    Ok(aside(bytes, within).await)
}

/// Returns the TOC of a layer; `None` when the layer is not in the store.
pub(super) async fn toc(tocs: &Tocs, layer: &Digest) -> Result<Option<Arc<Toc>>, Error> {
    match tocs.layer(layer).await? {
        Some(layer) => Ok(Some(tocs.toc(&layer).await?)),
        None => Ok(None),
    }
}

fn within(toc: &Toc, file: &FileUse) -> Option<FileUse> {
    let node = toc
        .lookup(&file.path)
        .filter(|node| node.kind() == Kind::File)?;
    let extents = file
        .extents
        .iter()
        .map(|range| range.start..range.end.min(node.size()));
    Some(FileUse {
        extents: Extents::new(extents),
        ..file.clone()
    })
}
