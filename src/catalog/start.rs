//! What the starts of an image read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use estargz::Toc;
use futures::future::try_join_all;

use super::list::Entry;
use super::{Catalog, Error};
use crate::aside::aside;
use crate::oci::manifest::Index;
use crate::oci::media_type;
use crate::oci::{Digest, Manifest};
use crate::profile::{Knowledge, ProfiledFile, Sources, Stack, Summary, Workload};
use crate::store::outline::Outline;

/// The most children of an index whose starts are added up.
const MAX_CHILDREN: usize = 8;
/// The most layers of an image whose TOCs are read for the sizes of its files.
const MAX_TOCS: usize = 16;

/// What is known about the starts of an image.
#[derive(Debug, Clone)]
pub struct Start {
    pub summary: Summary,
    /// The workload whose reads these are: the one with the most starts.
    pub workload: Workload,
    /// In the order in which they are prefetched.
    pub reads: Vec<Read>,
}

/// A file that a start reads.
#[derive(Debug, Clone)]
pub struct Read {
    /// The layer that holds it, from the bottom.
    pub layer: u32,
    pub path: String,
    /// The time from the container's start to the first use. Zero for a prediction.
    pub after: Duration,
    /// The bytes that are read, or those of the whole file if the parts are not known. `None` if
    /// they are not known either.
    pub bytes: Option<u64>,
    pub sources: Sources,
}

impl Catalog {
    /// Returns the number of an image's starts that nodes and clients reported; of an index, those
    /// of its first children together.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn starts(&self, entry: &Entry) -> Result<u64, Error> {
        if let Some(starts) = self.shared.starts.get(&entry.converted).await {
            return Ok(starts);
        }
        let manifest = self.stored_manifest(&entry.converted, "").await?;
        let starts = match manifest {
            Some(manifest) if entry.is_index => {
                let children = children(manifest).await;
                let children = children.iter().take(MAX_CHILDREN);
                let each = children.map(|(digest, kind)| async move {
                    match self.stored_manifest(digest, kind).await? {
                        Some(manifest) => self.starts_of(manifest).await,
                        None => Ok(0),
                    }
                });
                try_join_all(each).await?.into_iter().sum()
            }
            Some(manifest) => self.starts_of(manifest).await?,
            None => 0,
        };
        let key = entry.converted.clone();
        self.shared.starts.insert(key, starts).await;
        Ok(starts)
    }

    async fn starts_of(&self, manifest: Manifest) -> Result<u64, Error> {
        let known = self.known(manifest).await?;
        Ok(known.map_or(0, |(known, _layers)| known.summary().starts()))
    }

    /// Returns what is known about the starts of an image; `None` if nothing is, or if it is an
    /// index.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn start(&self, entry: &Entry) -> Result<Option<Start>, Error> {
        let Some(manifest) = self.stored_manifest(&entry.converted, "").await? else {
            return Ok(None);
        };
        let Some((known, layers)) = self.known(manifest).await? else {
            return Ok(None);
        };
        let summary = known.summary();
        let most = summary.workloads.iter().max_by_key(|seen| seen.starts);
        let workload = most.map_or_else(Workload::default, |seen| seen.workload.clone());
        let profile = self
            .shared
            .profiles
            .profile(known, workload.clone())
            .await?;
        let mut sizes = Sizes {
            catalog: self,
            layers,
            tocs: HashMap::new(),
        };
        let mut reads = Vec::with_capacity(profile.files.len());
        for file in profile.files {
            reads.push(Read {
                bytes: sizes.read_of(&file).await,
                layer: file.layer,
                path: file.path,
                after: file.after,
                sources: file.sources,
            });
        }
        Ok(Some(Start {
            summary,
            workload,
            reads,
        }))
    }

    /// Returns what is known about the image with this manifest, and its layers.
    async fn known(
        &self,
        manifest: Manifest,
    ) -> Result<Option<(Arc<Knowledge>, Vec<Digest>)>, Error> {
        let (len, read) = (manifest.bytes.len(), move || Outline::read(&manifest));
        let Some(outline) = aside(len, read).await else {
            return Ok(None);
        };
        let stack = Stack::of(&outline.layers);
        let known = self.shared.profiles.known_so_far(&stack).await?;
        Ok(known.map(|known| (known, outline.layers)))
    }
}

/// The children of an index, with their media types.
async fn children(manifest: Manifest) -> Vec<(Digest, String)> {
    let len = manifest.bytes.len();
    let index = aside(len, move || {
        serde_json::from_slice::<Index>(&manifest.bytes).ok()
    })
    .await;
    let children = index.iter().flat_map(|index| index.manifests.iter());
    let images = children.filter(|child| {
        media_type::manifest_kind(&child.media_type) == Some(media_type::ManifestKind::Image)
    });
    images
        .map(|child| (child.digest.clone(), child.media_type.clone()))
        .take(MAX_CHILDREN)
        .collect()
}

/// The sizes of an image's files. A layer's TOC is read when the first of its files is looked up;
/// layers without one have no sizes.
struct Sizes<'a> {
    catalog: &'a Catalog,
    layers: Vec<Digest>,
    tocs: HashMap<u32, Option<Arc<Toc>>>,
}

impl Sizes<'_> {
    async fn read_of(&mut self, file: &ProfiledFile) -> Option<u64> {
        if !file.extents.is_empty() {
            let parts = file.extents.iter().map(|part| part.end - part.start);
            return Some(parts.fold(0, u64::saturating_add));
        }
        let toc = self.toc(file.layer).await?;
        Some(toc.lookup(&file.path)?.size())
    }

    async fn toc(&mut self, layer: u32) -> Option<Arc<Toc>> {
        if let Some(known) = self.tocs.get(&layer) {
            return known.clone();
        }
        let toc = if self.tocs.len() < MAX_TOCS {
            self.read_toc(layer).await
        } else {
            None
        };
        self.tocs.insert(layer, toc.clone());
        toc
    }

    async fn read_toc(&self, layer: u32) -> Option<Arc<Toc>> {
        let digest = self.layers.get(usize::try_from(layer).ok()?)?;
        let tocs = self.catalog.shared.profiles.tocs();
        let layer = tocs.layer(digest).await.ok()??;
        tocs.toc(&layer).await.ok()
    }
}
