//! The reordering of an image: it is converted once more with the files at the front that its
//! containers read first, for lazy clients that prefetch up to a landmark and do not use profiles.
//!
//! ```text
//! image served ▶ profile settled? ▶ due? ▶ lease ▶ layers in the new order ▶ record replaced
//! ```
//! The tag then points to another digest. The images served before stay readable for as long as the
//! record is kept, so running containers are not affected. A reordered layer is in the classic
//! layout, because its stream is not the source's tar.

use std::sync::Arc;
use std::time::Duration;

use super::config::{self, Layout};
use super::converter::{self, Converter, Shared};
use super::error::Error;
use super::layer_converter::{self, Attempts, LayerConverter};
use super::origin::Place;
use super::priority::{Priorities, Priority};
use crate::clock::unix_now;
use crate::flight::Flight;
use crate::oci::{Digest, Manifest, Repository};
use crate::profile::{Profile, Workload};
use crate::rewrite::plan::Plan;
use crate::shares::Shares;
use crate::store::records::Order;
use crate::store::{ImageRecord, outline};
use crate::telemetry::log;
use crate::transport::Source;

/// How long an order is kept although the profile changed: with every change, nodes fetch the
/// layers again.
const STANDS_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The parts of a source manifest that a reordering needs.
struct SourceImage {
    config: Digest,
    layers: Vec<Digest>,
}

impl SourceImage {
    fn of(plan: Plan) -> Option<Self> {
        let Plan::Image(plan) = plan else { return None };
        let layers = plan
            .manifest
            .layers
            .into_iter()
            .map(|layer| layer.digest)
            .collect();
        Some(Self {
            config: plan.manifest.config.digest,
            layers,
        })
    }
}

impl Converter {
    /// Whether images are reordered by their profiles.
    pub fn reorders(&self) -> bool {
        self.shared.config.reorder
    }

    /// Reorders an image in the background, if that is enabled and due. `converted` is the digest of its
    /// converted image. `source_manifest` resolves to the source manifest of that image.
    pub fn reorder<F>(
        &self,
        converted: &Digest,
        source: Source,
        repository: Repository,
        source_manifest: F,
    ) where
        F: Future<Output = Option<Manifest>> + Send + 'static,
    {
        if !self.reorders() {
            return;
        }
        let (shared, converted) = (Arc::clone(&self.shared), converted.clone());
        tokio::spawn(async move {
            if !shared
                .ordered
                .entry(converted.clone())
                .or_insert(())
                .await
                .is_fresh()
            {
                return;
            }
            let Some(source_manifest) = source_manifest.await else {
                return;
            };
            if let Err(error) = shared.reorder(&source, &repository, &source_manifest).await {
                tracing::warn!(%converted, error = log::chain(&error), "image not reordered");
            }
        });
    }
}

impl Shared {
    async fn reorder(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        source_manifest: &Manifest,
    ) -> Result<(), Error> {
        let Some(source_image) = self.glance(source_manifest, SourceImage::of).await? else {
            return Ok(());
        };
        let Some(record) = self
            .store
            .image(&self.generation, &source_manifest.digest)
            .await?
        else {
            return Ok(());
        };
        let Some(image) = self.image_of(&record, &source_image).await? else {
            return Ok(());
        };
        let known = self.store.knowledge(&image).await?;
        if record.converted == record.source || !known.is_settled(&Workload::default()) {
            return Ok(());
        }
        let profile =
            tokio::task::spawn_blocking(move || known.profile(&Workload::default())).await;
        let profile = profile.map_err(|_ended| Error::BrokenOff)?;
        let inner = self.in_order(priorities(&profile, &source_image))?;
        let order = Order {
            generation: inner.generation.clone(),
            since: unix_now(),
        };
        if !is_due(record.order.as_ref(), &order) {
            return Ok(());
        }
        let name = format!("order/{}/{}", self.generation.0, source_manifest.digest);
        let Some(lease) = self.store.lease(&name).await? else {
            return Ok(());
        };
        let made = inner
            .made_in_order(source, repository, source_manifest)
            .await;
        let outcome = match made {
            Ok(made) => {
                self.replace(source, repository, (record, made), order)
                    .await
            }
            Err(error) => Err(error),
        };
        lease.release().await;
        outcome
    }

    /// Returns the key of a converted image's profile.
    async fn image_of(
        &self,
        record: &ImageRecord,
        source: &SourceImage,
    ) -> Result<Option<Digest>, Error> {
        if record.passed_through.is_empty() {
            return Ok(Some(source.config.clone()));
        }
        let Some(object) = self.store.find(&record.converted).await? else {
            return Ok(None);
        };
        let bytes = self.store.read_all(&object).await?;
        let converted = Manifest {
            media_type: record.media_type.clone(),
            digest: record.converted.clone(),
            bytes,
        };
        Ok(outline::stack_of(&converted).map(|stack| stack.0))
    }

    /// Returns the same converter for another order of files. It converts one layer at a time,
    /// beside the work that callers wait for.
    fn in_order(&self, priorities: Priorities) -> Result<Arc<Self>, Error> {
        let config = config::Config {
            layout: Layout::Classic,
            ..self.config.clone()
        };
        let options = config.options()?;
        let generation = config::generation(&options, &priorities);
        let layers = LayerConverter {
            store: self.store.clone(),
            generation: generation.clone(),
            options,
            priorities,
            pool: Arc::clone(&self.layers.pool),
            slots: Shares::of_slots("reordering slots", 1),
            image_slots: Shares::of_slots("reordering image slots", 1),
            pace: self.layers.pace,
            max_layer_size: self.layers.max_layer_size,
            lease_wait: self.layers.lease_wait,
            board: Arc::clone(&self.board),
            flight: Flight::default(),
            attempts: Attempts::default(),
            slow: layer_converter::slow_fetches(),
            showing: Flight::default(),
        };
        Ok(Arc::new(Self {
            config,
            generation,
            store: self.store.clone(),
            layers: Arc::new(layers),
            documents: self.documents.clone(),
            flight: Flight::default(),
            ahead: converter::Ahead::default(),
            failures: converter::failures(),
            fresh: self.fresh.clone(),
            ordered: self.ordered.clone(),
            board: Arc::clone(&self.board),
            signing_key: self.signing_key.clone(),
        }))
    }

    async fn made_in_order(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        source_manifest: &Manifest,
    ) -> Result<ImageRecord, Error> {
        let running = self
            .board
            .start(source.name(), repository, &source_manifest.digest);
        let place = Place {
            source,
            repository,
            depth: 0,
        };
        let made = self.image(place, source_manifest, &running).await;
        running.finish(made.as_ref());
        made
    }

    /// Serves `made` from now on instead of the converted image in `record`, which stays readable.
    async fn replace(
        &self,
        source: &Source,
        repository: &Repository,
        (record, mut made): (ImageRecord, ImageRecord),
        order: Order,
    ) -> Result<(), Error> {
        if made.converted == made.source {
            return Ok(());
        }
        made.objects.extend(record.objects);
        made.objects.sort_unstable();
        made.objects.dedup();
        made.order = Some(order);
        let was_child = record.origin.is_some_and(|origin| origin.is_child);
        if let Some(origin) = &mut made.origin {
            origin.is_child = was_child;
        }
        self.link(source, repository, &made).await?;
        self.put_image(&made).await?;
        // An index that contains this image includes it at its next refresh.
        self.fresh.invalidate_all();
        tracing::info!(source = %made.source, converted = %made.converted, before = %record.converted, "image reordered");
        Ok(())
    }
}

/// Returns the files of a profile, each with the layer that contains it.
fn priorities(profile: &Profile, image: &SourceImage) -> Priorities {
    let files = profile.files.iter().filter_map(|file| {
        let layer = image.layers.get(usize::try_from(file.layer).ok()?)?;
        Some(Priority {
            path: file.path.clone().into_bytes(),
            layer: Some(layer.clone()),
        })
    });
    Priorities::new(files.collect())
}

/// Whether an image is to be converted in the order `wanted`.
fn is_due(current: Option<&Order>, wanted: &Order) -> bool {
    current.is_none_or(|current| {
        current.generation != wanted.generation
            && wanted.since.saturating_sub(current.since) >= STANDS_FOR.as_secs()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Generation;

    fn order(name: &str, since: u64) -> Order {
        Order {
            generation: Generation(name.to_owned()),
            since,
        }
    }

    #[test]
    fn an_order_is_due_when_there_is_none_or_another_for_long() {
        let week = STANDS_FOR.as_secs();
        assert!(is_due(None, &order("a", 0)));
        assert!(!is_due(Some(&order("a", 0)), &order("a", week * 2)));
        assert!(!is_due(Some(&order("a", 0)), &order("b", week - 1)));
        assert!(is_due(Some(&order("a", 0)), &order("b", week)));
        assert!(
            !is_due(Some(&order("a", week)), &order("b", 0)),
            "the clock went back"
        );
    }
}
