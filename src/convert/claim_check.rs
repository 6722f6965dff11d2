//! Checks whether layers are lazily readable as their annotations claim.

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::converter::Shared;
use super::documents::off_worker;
use super::error::Error;
use crate::layers::open::{Tail, tail_range};
use crate::oci::{Descriptor, Repository};
use crate::rewrite::claims::Claims;
use crate::rewrite::plan::{ImagePlan, LayerPlan};
use crate::transport::Source;

/// Layers of an image whose claims are checked at once.
const CHECKED_AT_ONCE: usize = 2;
/// The claim of a larger compressed TOC is accepted unchecked. This is about the TOC of a million
/// files.
const MAX_SECTION: u64 = 16 << 20;

impl Shared {
    /// Returns the plan with a decision for every layer that is claimed to be lazily readable.
    pub(super) async fn with_claims_checked(
        &self,
        source: &Source,
        repository: &Repository,
        mut plan: Box<ImagePlan>,
    ) -> Result<Box<ImagePlan>, Error> {
        let layers = plan.manifest.layers.iter().zip(&plan.layers).enumerate();
        let claimed = layers.filter(|(_, (_, plan))| matches!(plan, LayerPlan::Claimed(_)));
        let claimed: Vec<_> = claimed
            .map(|(place, (layer, _))| (place, layer.clone()))
            .collect();
        let checks = stream::iter(claimed).map(|(place, layer)| async move {
            Ok::<_, Error>((place, self.is_as_claimed(source, repository, layer).await?))
        });
        let checked: Vec<_> = checks
            .buffer_unordered(CHECKED_AT_ONCE)
            .try_collect()
            .await?;
        for (place, is_true) in checked {
            let Some(layer) = plan.layers.get_mut(place) else {
                continue;
            };
            *layer = match std::mem::replace(layer, LayerPlan::Renew) {
                LayerPlan::Claimed(reason) if is_true => LayerPlan::PassThrough(reason),
                _ => LayerPlan::Renew,
            };
        }
        Ok(plan)
    }

    async fn is_as_claimed(
        &self,
        source: &Source,
        repository: &Repository,
        layer: Descriptor,
    ) -> Result<bool, Error> {
        let wanted = tail_range(u64::MAX);
        let wanted = wanted.end - wanted.start;
        let body = source.blob_tail(repository, &layer.digest, wanted).await?;
        let size = body.blob_size;
        let tail = Tail::new(size, body.read(wanted).await?);
        let Ok(footer) = tail.footer() else {
            return Ok(false);
        };
        // The TOC is a separate blob, and nothing here names it.
        let Some(range) = footer.toc_range() else {
            return Ok(Claims::of(&layer.annotations).zstd.is_none());
        };
        let length = range.end - range.start;
        if length > MAX_SECTION {
            return Ok(true);
        }
        let _weight = self.documents.tree(length).await?;
        let body = source.blob(repository, &layer.digest, Some(range));
        let section = body.await?.read(length).await?;
        let compare = move || Claims::of(&layer.annotations).name(&footer, &section);
        off_worker(usize::try_from(MAX_SECTION).unwrap_or(usize::MAX), compare).await
    }
}
