//! Proof that an upstream holds an image whose conversion exists already, made for another upstream
//! or repository.
//!
//! A digest is no proof, and neither is a manifest: everybody may write a manifest that names the
//! layers of another one's image. So the repository has to show each part:
//!
//! ```text
//! manifest, configuration   their bytes, which are small
//! layer, new to the upstream     its bytes, which are hashed and dropped
//! layer that the upstream sent before, for any repository   a HEAD in this repository
//! ```
//! An upstream that has sent the bytes of a layer learns nothing from them, and answers for its
//! repositories. Links (`store::links`) record the results, so that each proof is needed once.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, TryStreamExt as _};

use super::converter::Shared;
use super::error::Error;
use super::layer_converter::{LayerConverter, Origin, SLOT_WITHIN, of_image};
use super::pace::Pacer;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::registry;
use crate::rewrite::plan::{ChildPlan, Plan};
use crate::store::{Holder, ImageRecord};
use crate::transport::Source;

/// Children of an index that are shown at once.
const CHILDREN_AT_ONCE: usize = 4;

/// The parts of an image that have to be shown.
enum Parts {
    Image {
        config: Box<Descriptor>,
        layers: Vec<Descriptor>,
    },
    /// The children of an index whose converted images are part of it.
    Index(Vec<Digest>),
    /// The manifest's own bytes are all there is.
    Document,
}

impl Parts {
    fn of(plan: Plan, record: &ImageRecord) -> Self {
        let passed: HashSet<&Digest> = record
            .passed_through
            .iter()
            .map(|passed| &passed.digest)
            .collect();
        let mut seen = HashSet::new();
        match plan {
            Plan::PassThrough(_) => Self::Document,
            Plan::Image(plan) => {
                let layers = plan.manifest.layers.into_iter();
                let layers = layers.filter(|layer| !passed.contains(&layer.digest));
                Self::Image {
                    config: Box::new(plan.manifest.config),
                    layers: layers
                        .filter(|layer| seen.insert(layer.digest.clone()))
                        .collect(),
                }
            }
            Plan::Index(plan) => {
                let children = plan.index.manifests.iter().zip(&plan.children);
                let children = children
                    .filter(|(_, plan)| !matches!(plan, ChildPlan::Leave(_)))
                    .map(|(child, _)| &child.digest)
                    .filter(|digest| !passed.contains(digest));
                Self::Index(
                    children
                        .filter(|digest| seen.insert((*digest).clone()))
                        .cloned()
                        .collect(),
                )
            }
        }
    }
}

impl Shared {
    /// Whether the repository was shown to hold everything that the record's converted image is
    /// made of.
    pub(super) async fn is_shown(
        &self,
        source: &Source,
        repository: &Repository,
        record: &ImageRecord,
    ) -> Result<bool, Error> {
        let holder = Holder::repository(source.name(), repository);
        Ok(self.store.is_shown(&holder, record).await?)
    }

    /// Links the repository to the objects of the record, and then to the record's images.
    pub(super) async fn link(
        &self,
        source: &Source,
        repository: &Repository,
        record: &ImageRecord,
    ) -> Result<(), Error> {
        let holder = Holder::repository(source.name(), repository);
        let last = [&record.converted, &record.source];
        let objects = record.objects.iter();
        let objects: Vec<_> = objects
            .filter(|digest| !last.contains(digest))
            .cloned()
            .collect();
        self.store
            .link_all(&holder, &objects, &record.source)
            .await?;
        if record.converted == record.source {
            let upstream = Holder::upstream(source.name());
            self.store.link(&upstream, &record.source, None).await?;
        }
        let image = Some(&record.source);
        self.store.link(&holder, &record.source, image).await?;
        self.store.link(&holder, &record.converted, image).await?;
        Ok(())
    }

    /// Has the repository show everything that the record's converted image is made of.
    ///
    /// # Errors
    /// If a part is missing there, or is not what its digest says. The upstream's own image is then
    /// the answer.
    pub(super) async fn show(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        depth: usize,
        record: &ImageRecord,
    ) -> Result<(), Error> {
        let known = record.clone();
        let parts = self
            .glance(manifest, move |plan| Parts::of(plan, &known))
            .await?;
        let is_unchanged = record.converted == record.source;
        match parts {
            // Nothing but the profile of such an image is served from the store. No proof of its
            // layers is needed for any other purpose, so only the upstream that came first counts.
            Parts::Document | Parts::Image { .. } if is_unchanged => {
                let upstream = Holder::upstream(source.name());
                if !self.store.is_linked(&upstream, &record.source).await? {
                    return Ok(());
                }
            }
            Parts::Document => {}
            Parts::Image { config, layers } => {
                drop(self.config_bytes(source, repository, &config).await?);
                let shown = stream::iter(layers).map(|layer| async move {
                    let shown = self.layers.show(source, repository, &layer).await;
                    shown.map_err(|error| of_image(&layer.digest, error))
                });
                let mut shown = shown.buffer_unordered(self.config.layers_at_once.get());
                while shown.try_next().await?.is_some() {}
            }
            Parts::Index(children) => {
                let shown = stream::iter(children).map(|digest| async move {
                    let child = self.child(source, repository, &digest, depth + 1).await;
                    child.map_err(Error::Children)
                });
                let mut shown = shown.buffer_unordered(CHILDREN_AT_ONCE);
                while shown.try_next().await?.is_some() {}
            }
        }
        self.link(source, repository, record).await?;
        tracing::info!(upstream = source.name(), %repository, source = %record.source, "converted image shown by another repository");
        Ok(())
    }
}

impl LayerConverter {
    /// Has the repository show that it holds the layer, unless it did.
    pub(super) async fn show(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<(), Arc<Error>> {
        let holder = Holder::repository(source.name(), repository);
        let linked = self.store.is_linked(&holder, &layer.digest).await;
        if linked.map_err(|error| Arc::new(error.into()))? {
            return Ok(());
        }
        let part = (layer.digest.clone(), Some(Origin::new(source, repository)));
        let shown = self.showing.join(part, || {
            let (this, source) = (Arc::clone(self), source.clone());
            let (repository, layer) = (repository.clone(), layer.clone());
            async move {
                let shown = this.show_once(&source, &repository, &layer).await;
                shown.map_err(Arc::new)
            }
        });
        shown
            .await
            .unwrap_or_else(|| Err(Arc::new(Error::BrokenOff)))
    }

    async fn show_once(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<(), Error> {
        let upstream = Holder::upstream(source.name());
        if self.store.is_linked(&upstream, &layer.digest).await? {
            source.blob_size(repository, &layer.digest).await?;
        } else {
            let read = self.read_through(source, repository, layer).await;
            if read.as_ref().is_err_and(Error::is_slow) {
                self.slow_down(source.name());
            }
            read?;
        }
        self.link(source, repository, &layer.digest).await
    }

    /// Reads the whole layer, which is hashed on the way.
    async fn read_through(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Descriptor,
    ) -> Result<(), Error> {
        let _slot = self.slots.take(source.turn(), 1, SLOT_WITHIN).await?;
        let is_contended = || self.slots.is_wanted_by_another(source.turn());
        let mut pacer = Pacer::new(self.pace, &is_contended);
        let mut body = pacer
            .wait(source.blob(repository, &layer.digest, None))
            .await??;
        if body.blob_size > self.max_layer_size {
            return Err(registry::Error::TooLarge {
                limit: self.max_layer_size,
            }
            .into());
        }
        while let Some(piece) = pacer.wait(body.stream.next()).await? {
            pacer.came(piece?.len());
        }
        Ok(())
    }

    /// Records that the upstream has sent the whole layer, for this repository.
    pub(super) async fn link(
        &self,
        source: &Source,
        repository: &Repository,
        layer: &Digest,
    ) -> Result<(), Error> {
        self.store
            .link(&Holder::upstream(source.name()), layer, None)
            .await?;
        let holder = Holder::repository(source.name(), repository);
        Ok(self.store.link(&holder, layer, None).await?)
    }
}
