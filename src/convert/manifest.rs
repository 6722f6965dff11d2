//! The conversion of an image manifest: first its layers, then the documents that name them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::config::Layout;
use super::converter::Shared;
use super::documents::{self, off_worker};
use super::error::Error;
use super::layer_converter;
use super::layer_converter::SLOT_WITHIN;
use super::origin::{self, Place};
use super::status::Running;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::rewrite::image::Assembled;
use crate::rewrite::plan::{ImagePlan, LayerPlan, Plan};
use crate::rewrite::{image, index};
use crate::store::records::PassedThrough;
use crate::store::{ImageRecord, LayerOutcome, StackRecord, outline};
use crate::telemetry::log;
use crate::transport::Source;

impl Shared {
    pub(super) async fn pass_through(
        &self,
        place: Place<'_>,
        manifest: &Manifest,
        reason: String,
    ) -> Result<ImageRecord, Error> {
        tracing::info!(source = %manifest.digest, reason, "image passes through");
        let record = ImageRecord {
            origin: Some(place.origin()),
            ..index::passed_through(manifest, reason)
        };
        let (len, read) = (manifest.bytes.len(), manifest.clone());
        self.keep_stack(off_worker(len, move || outline::of_itself(&read)).await?)
            .await;
        self.put_image(&record).await?;
        Ok(record)
    }

    pub(super) async fn image(
        self: &Arc<Self>,
        place: Place<'_>,
        manifest: &Manifest,
        running: &Running,
    ) -> Result<ImageRecord, Error> {
        let Place {
            source, repository, ..
        } = place;
        let started = Instant::now();
        let _slot = self
            .layers
            .image_slots
            .take(source.turn(), 1, SLOT_WITHIN)
            .await?;
        let planned = self.planned(source.turn(), manifest).await?;
        let plan = match planned.plan {
            Plan::Image(plan) => self.with_claims_checked(source, repository, plan).await?,
            Plan::PassThrough(reason) => return self.pass_through(place, manifest, reason).await,
            Plan::Index(_) => {
                return self
                    .pass_through(place, manifest, "an index, not an image".to_owned())
                    .await;
            }
        };
        if let Some(reason) = plan.unconverted() {
            return self.pass_through(place, manifest, reason).await;
        }
        let (text, _config_share) = self
            .config_bytes(source, repository, &plan.manifest.config)
            .await?;
        let (config, config_weight) = match self.read_config(text, plan.layers.len()).await? {
            Ok(config) => config,
            Err(reason) => return self.pass_through(place, manifest, reason).await,
        };
        let layers = to_convert(&plan);
        running.layers(
            &layers
                .iter()
                .map(|layer| (layer.digest.clone(), layer.size))
                .collect::<Vec<_>>(),
        );
        // No more layers at once than there are slots. After one layer fails its image, the others
        // have no waiting caller.
        let outcomes = stream::iter(layers)
            .map(|layer| async move { self.layer(source, repository, &layer).await });
        let outcomes = outcomes.buffer_unordered(self.config.layers_at_once.get());
        let outcomes: HashMap<_, _> = outcomes.try_collect().await?;
        let Descriptor {
            media_type: config_type,
            digest: config_digest,
            ..
        } = plan.manifest.config.clone();
        let sources = origin::sources(&plan.manifest);
        let assembled = self
            .assembled(manifest, plan, (config, config_weight), outcomes)
            .await?;
        for PassedThrough { digest, reason } in &assembled.passed_through {
            tracing::info!(source = %manifest.digest, %digest, reason, "layer stays as it is");
        }
        let mut record = index::unchanged(manifest);
        record.origin = Some(place.origin());
        (record.passed_through, record.limits) = (assembled.passed_through, assembled.limits);
        if let Some(converted) = assembled.converted {
            let is_verified = record.passed_through.is_empty();
            let layers = converted
                .image
                .layers
                .iter()
                .map(|layer| layer.digest.clone())
                .collect();
            let stack = outline::record(
                &manifest.digest,
                is_verified.then_some(&config_digest),
                layers,
            );
            self.keep_stack(Some(stack)).await;
            record.origin = Some(place.origin_of(sources, &converted.image, started.elapsed()));
            record.objects = converted.objects;
            if let Some(config) = converted.config {
                let config = self.store.put(&config_type, config).await?;
                record.objects.push(config.digest);
            }
            let Descriptor {
                media_type,
                digest,
                size,
                ..
            } = converted.manifest.descriptor();
            (record.media_type, record.converted, record.size) = (media_type, digest, size);
            record.translated = converted.translated.as_ref().map(Manifest::descriptor);
            let documents: Vec<_> = converted
                .translated
                .into_iter()
                .chain([converted.manifest])
                .collect();
            record
                .objects
                .extend(documents.iter().map(|document| document.digest.clone()));
            self.put_documents(documents).await?;
            record.objects.sort_unstable();
            record.objects.dedup();
        }
        self.put_image(&record).await?;
        // An index that contains this image may now include it.
        self.fresh.invalidate_all();
        let (upstream, took) = (source.name(), started.elapsed());
        tracing::info!(upstream, %repository, source = %record.source, converted = %record.converted, ?took, "image converted");
        Ok(record)
    }

    /// Returns the configuration of an image of `layers` layers with the weight of its tree, or the
    /// reason why it is invalid.
    async fn read_config(
        &self,
        text: Bytes,
        layers: usize,
    ) -> Result<Result<(image::Config, u64), String>, Error> {
        let weight = match documents::weigh(&text).await? {
            Ok(weight) => weight,
            Err(reason) => return Ok(Err(format!("its configuration: {reason}"))),
        };
        let _weight = self.documents.tree(weight).await?;
        let parsed = off_worker(text.len(), move || image::Config::parse(text, layers)).await?;
        Ok(parsed.map(|config| (config, weight)))
    }

    /// Returns the image's new documents.
    async fn assembled(
        &self,
        manifest: &Manifest,
        plan: Box<ImagePlan>,
        (config, weight): (image::Config, u64),
        outcomes: HashMap<Digest, LayerOutcome>,
    ) -> Result<Assembled, Error> {
        let _weight = self.documents.tree(weight).await?;
        let (manifest, generation) = (manifest.clone(), self.generation.clone());
        let keeps_source = self.config.layout == Layout::SourceFirst;
        let assemble = move || {
            image::assemble(
                &manifest,
                &plan,
                &config,
                &outcomes,
                &generation,
                keeps_source,
            )
        };
        // Documents of a few KiB are processed on the current thread.
        Ok(off_worker(usize::try_from(weight).unwrap_or(usize::MAX) / 16, assemble).await??)
    }

    /// Stores the record that finds an image by its stack of layers. Without the record no profile
    /// of the image is learned; the image itself is not affected.
    async fn keep_stack(&self, stack: Option<StackRecord>) {
        let Some(stack) = stack else { return };
        if let Err(error) = self.store.put_stack(&stack).await {
            tracing::warn!(source = %stack.source, error = log::chain(&error), "the image's stack is not kept");
        }
    }

    /// Stores manifests made by the conversion. Nothing names them yet.
    pub(super) async fn put_documents(&self, documents: Vec<Manifest>) -> Result<(), Error> {
        for document in documents {
            self.store.put(&document.media_type, document.bytes).await?;
        }
        Ok(())
    }

    async fn layer(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<(Digest, LayerOutcome), Error> {
        let outcome = self.layers.outcome(source, repository, layer).await;
        let outcome = outcome.map_err(|error| layer_converter::of_image(&layer.digest, error))?;
        Ok((layer.digest.clone(), outcome))
    }
}

/// Returns the layers to convert, each once.
fn to_convert(plan: &ImagePlan) -> Vec<Descriptor> {
    let layers = plan.manifest.layers.iter().zip(&plan.layers);
    let wanted = layers
        .filter(|(_, plan)| matches!(plan, LayerPlan::Convert | LayerPlan::Renew))
        .map(|(layer, _)| layer);
    let mut seen = HashSet::new();
    wanted
        .filter(|layer| seen.insert(&layer.digest))
        .cloned()
        .collect()
}
