//! The conversion of an image manifest: its layers, and then the documents that name them.

use std::collections::HashMap;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::try_join_all;

use super::config::Layout;
use super::converter::Shared;
use super::error::Error;
use super::plan::{ImagePlan, LayerPlan};
use super::status::Running;
use super::{image, index, memo, profiles};
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::store::records::PassedThrough;
use crate::store::{ImageRecord, LayerOutcome, StackRecord};
use crate::telemetry::log;
use crate::upstream::{self, Source};

/// Most bytes of an image configuration; the largest in the wild hold some hundred KiB of history.
const MAX_CONFIG_BYTES: u64 = 8 << 20;

impl Shared {
    pub(super) async fn pass_through(&self, manifest: &Manifest, reason: String) -> Result<ImageRecord, Error> {
        tracing::info!(source = %manifest.digest, reason, "image passes through");
        let mut record = index::unchanged(manifest);
        record.passed_through.push(PassedThrough { digest: manifest.digest.clone(), reason });
        self.keep_stack(profiles::of_itself(manifest)).await;
        self.store.put_image(&self.generation, &record).await?;
        Ok(record)
    }

    pub(super) async fn image(
        &self,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        plan: &ImagePlan,
        running: &Running,
    ) -> Result<ImageRecord, Error> {
        let started = Instant::now();
        let _slot = self.image_slots.acquire().await.map_err(|_closed| Error::BrokenOff)?;
        let config = fetch_config(source, repository, &plan.manifest.config).await?;
        let config = match image::Config::parse(&config, plan.layers.len()) {
            Ok(config) => config,
            Err(reason) => return self.pass_through(manifest, reason).await,
        };
        let layers = to_convert(plan);
        running.layers(&layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect::<Vec<_>>());
        let outcomes = try_join_all(layers.iter().map(|layer| self.layer(source, repository, layer))).await?;
        let outcomes: HashMap<_, _> = outcomes.into_iter().collect();
        let keeps_source = self.config.layout == Layout::SourceFirst;
        let assembled = image::assemble(manifest, plan, config, &outcomes, &self.generation, keeps_source)?;
        for PassedThrough { digest, reason } in &assembled.passed_through {
            tracing::info!(source = %manifest.digest, %digest, reason, "layer stays as it is");
        }
        let mut record = index::unchanged(manifest);
        (record.passed_through, record.limits) = (assembled.passed_through, assembled.limits);
        if let Some(twin) = assembled.twin {
            let stack = profiles::record(&manifest.digest, &plan.manifest.config.digest, &twin.image);
            self.keep_stack(Some(stack)).await;
            record.objects = twin.objects;
            if let Some(config) = twin.config {
                let config = self.store.put(&plan.manifest.config.media_type, config).await?;
                record.objects.push(config.digest);
            }
            let Descriptor { media_type, digest, size, .. } = twin.manifest.descriptor();
            (record.media_type, record.twin, record.size) = (media_type, digest, size);
            record.translated = twin.translated.as_ref().map(Manifest::descriptor);
            let documents: Vec<_> = twin.translated.into_iter().chain([twin.manifest]).collect();
            record.objects.extend(documents.iter().map(|document| document.digest.clone()));
            self.put_documents(documents).await?;
            record.objects.sort_unstable();
            record.objects.dedup();
        }
        self.store.put_image(&self.generation, &record).await?;
        // An index that holds this image may take it in now.
        self.fresh.invalidate_all();
        let (upstream, took) = (source.name(), started.elapsed());
        tracing::info!(upstream, %repository, source = %record.source, twin = %record.twin, ?took, "image converted");
        Ok(record)
    }

    /// Keeps which image a stack of layers is. Without it an image is never learned of, and is as good as it was.
    async fn keep_stack(&self, stack: Option<StackRecord>) {
        let Some(stack) = stack else { return };
        if let Err(error) = self.store.put_stack(&stack).await {
            tracing::warn!(source = %stack.source, error = log::chain(&error), "the image's stack is not kept");
        }
    }

    /// Stores manifests of our own making; nothing names them yet.
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
        let outcome = outcome.map_err(|error| memo::of_image(&layer.digest, error))?;
        Ok((layer.digest.clone(), outcome))
    }
}

/// The layers to convert, each once.
fn to_convert(plan: &ImagePlan) -> Vec<&Descriptor> {
    let mut layers: Vec<&Descriptor> = Vec::new();
    for (layer, plan) in plan.manifest.layers.iter().zip(&plan.layers) {
        if *plan == LayerPlan::Convert && !layers.iter().any(|other| other.digest == layer.digest) {
            layers.push(layer);
        }
    }
    layers
}

async fn fetch_config(source: &Source, repository: &Repository, config: &Descriptor) -> Result<Bytes, Error> {
    let mut body = source.blob(repository, &config.digest, None).await?;
    let too_large = || upstream::Error::TooLarge { limit: MAX_CONFIG_BYTES };
    if body.blob_size > MAX_CONFIG_BYTES {
        return Err(too_large().into());
    }
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.stream.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(too_large().into());
        }
    }
    Ok(bytes.freeze())
}
