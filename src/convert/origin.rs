//! Where a manifest was found, and the origin that its record gets.

use std::time::Duration;

use crate::clock::unix_now;
use crate::oci::annotations::{OLDER_ZSTD_CHECKSUM, TOC_DIGEST, ZSTD_CHECKSUM};
use crate::oci::manifest::ImageManifest;
use crate::oci::{Descriptor, Repository};
use crate::store::{ImageRecord, Origin, SourceLayer};
use crate::transport::Source;

/// The place at which a manifest was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) source: &'a Source,
    pub(super) repository: &'a Repository,
    /// The number of indexes that it was found in.
    pub(super) depth: usize,
}

impl Place<'_> {
    /// The origin of something from here whose sizes are not known.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            upstream: self.source.name().to_owned(),
            repository: self.repository.to_string(),
            is_child: self.depth > 0,
            ended: unix_now(),
            ..Origin::default()
        }
    }

    /// The origin of the image `converted`, made of these layers within `took`.
    pub(super) fn origin_of(
        &self,
        sources: Vec<SourceLayer>,
        converted: &ImageManifest,
        took: Duration,
    ) -> Origin {
        let lazy = converted.layers.iter().filter(|layer| is_lazy(layer));
        Origin {
            took_ms: u64::try_from(took.as_millis()).ok(),
            source_size: sources.iter().map(|layer| layer.size).sum(),
            size: converted.layers.iter().map(|layer| layer.size).sum(),
            layers: u32::try_from(converted.layers.len()).unwrap_or(u32::MAX),
            lazy_layers: u32::try_from(lazy.count()).unwrap_or(u32::MAX),
            sources,
            ..self.origin()
        }
    }

    /// The origin of an index whose children have the sizes in `children`.
    pub(super) fn origin_of_index(&self, children: Option<&Origin>, took: Duration) -> Origin {
        let own = Origin {
            took_ms: u64::try_from(took.as_millis()).ok(),
            ..self.origin()
        };
        with_sizes(own, children)
    }
}

/// The layers of a source image, with their sizes.
pub(super) fn sources(image: &ImageManifest) -> Vec<SourceLayer> {
    let layers = image.layers.iter().map(|layer| SourceLayer {
        digest: layer.digest.clone(),
        size: layer.size,
    });
    layers.collect()
}

/// The origin of an index that was assembled again: the sizes are new.
pub(super) fn renewed(before: &ImageRecord, renewed: Option<&Origin>) -> Option<Origin> {
    let before = before.origin.clone()?;
    Some(with_sizes(before, renewed))
}

fn with_sizes(origin: Origin, sizes: Option<&Origin>) -> Origin {
    let mut origin = Origin {
        source_size: 0,
        size: 0,
        layers: 0,
        lazy_layers: 0,
        ..origin
    };
    sizes.into_iter().for_each(|sizes| origin.add(sizes));
    origin
}

fn is_lazy(layer: &Descriptor) -> bool {
    [TOC_DIGEST, ZSTD_CHECKSUM, OLDER_ZSTD_CHECKSUM]
        .iter()
        .any(|key| layer.annotations.contains_key(*key))
}
