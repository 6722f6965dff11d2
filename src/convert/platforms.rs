//! The conversion of an index: the platforms that are wanted, and later those that somebody pulled.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;

use super::converter::{Made, Outcome, Shared};
use super::error::Error;
use super::index::{self, Child};
use super::plan::{self, ChildPlan, IndexPlan, Plan};
use crate::oci::{Digest, Manifest, Reference, Repository};
use crate::store::ImageRecord;
use crate::telemetry::log;
use crate::upstream::Source;

impl Shared {
    pub(super) async fn index(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        plan: &IndexPlan,
    ) -> Result<Made, Error> {
        let children = plan.index.manifests.iter().zip(&plan.children);
        let wanted = children.filter(|(_, plan)| **plan == ChildPlan::Convert);
        let made = join_all(wanted.map(|(child, _)| async move {
            let made = self.child(source, repository, &child.digest).await;
            (child.digest.clone(), made)
        }));
        let made = made.await;
        let mut failure = None;
        let mut children = self.recorded_children(plan).await?;
        for (digest, made) in made {
            let child = match made {
                Ok(record) => Child::Recorded(Box::new(record)),
                Err(error) => {
                    let reason = format!("not converted for now: {}", log::chain(error.as_ref()));
                    failure = Some(error);
                    Child::Original(reason)
                }
            };
            children.insert(digest, child);
        }
        let (mut record, documents) = index::assemble(manifest, plan, &children, &self.generation)?;
        match failure {
            Some(error) if documents.is_empty() => Err(Error::Children(error)),
            Some(_) => {
                self.put_documents(documents).await?;
                Ok(Made::ForNow(record))
            }
            None => {
                self.keep_index(manifest, plan, &mut record, documents).await?;
                let (upstream, platforms) = (source.name(), record.platforms.len());
                tracing::info!(upstream, %repository, source = %record.source, twin = %record.twin, platforms, "index converted");
                Ok(Made::Final(record))
            }
        }
    }

    async fn child(self: &Arc<Self>, source: &Source, repository: &Repository, digest: &Digest) -> Outcome {
        let reference = Reference::Digest(digest.clone());
        let child = source.manifest(repository, &reference).await.map_err(|error| Arc::new(error.into()))?;
        self.joined(source, repository, &child).await
    }

    /// The children that have a record already, wanted or pulled.
    async fn recorded_children(&self, plan: &IndexPlan) -> Result<HashMap<Digest, Child>, Error> {
        let mut children = HashMap::new();
        for (child, plan) in plan.index.manifests.iter().zip(&plan.children) {
            if matches!(plan, ChildPlan::Leave(_)) || children.contains_key(&child.digest) {
                continue;
            }
            if let Some(record) = self.store.image(&self.generation, &child.digest).await? {
                children.insert(child.digest.clone(), Child::Recorded(Box::new(record)));
            }
        }
        Ok(children)
    }

    /// Keeps an index's twin, and the source's bytes where another platform may yet join or one may be made anew.
    async fn keep_index(
        &self,
        manifest: &Manifest,
        plan: &IndexPlan,
        record: &mut ImageRecord,
        documents: Vec<Manifest>,
    ) -> Result<(), Error> {
        if self.config.reorder || plan.children.iter().any(|child| matches!(child, ChildPlan::IfPulled(_))) {
            self.store.put(&manifest.media_type, manifest.bytes.clone()).await?;
            record.objects.push(manifest.digest.clone());
        }
        self.put_documents(documents).await?;
        record.objects.sort_unstable();
        record.objects.dedup();
        self.store.put_image(&self.generation, record).await?;
        Ok(())
    }

    /// Whether an index may have children that were pulled or made anew since it was last looked at.
    pub(super) fn is_stale(&self, record: &ImageRecord) -> bool {
        let keeps_source = record.objects.contains(&record.source);
        keeps_source && !self.fresh.contains_key(&record.source)
    }

    /// Takes the children pulled meanwhile into an index's twin. Twins handed out before stay readable.
    pub(super) async fn refresh(&self, record: &ImageRecord) -> Result<ImageRecord, Error> {
        self.fresh.insert(record.source.clone(), ()).await;
        let Some(object) = self.store.find(&record.source).await? else { return Ok(record.clone()) };
        let bytes = self.store.read_all(&object).await?;
        let media_type = object.media_type.unwrap_or_else(|| record.media_type.clone());
        let manifest = Manifest { media_type, digest: record.source.clone(), bytes };
        let Plan::Index(plan) = plan::plan(&manifest, &self.wanted()) else { return Ok(record.clone()) };
        let children = self.recorded_children(&plan).await?;
        let (mut renewed, documents) = index::assemble(&manifest, &plan, &children, &self.generation)?;
        if renewed.twin == record.twin || renewed.platforms.len() < record.platforms.len() {
            return Ok(record.clone());
        }
        renewed.objects.extend(record.objects.iter().cloned());
        self.keep_index(&manifest, &plan, &mut renewed, documents).await?;
        let platforms = renewed.platforms.len();
        tracing::info!(source = %renewed.source, twin = %renewed.twin, platforms, "index brought up to date");
        Ok(renewed)
    }
}
