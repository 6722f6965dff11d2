//! The conversion of an index: first the wanted platforms, later the platforms that somebody
//! pulled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::converter::{ImageOutcome, Outcome, Shared};
use super::documents::off_worker;
use super::error::Error;
use super::origin::{self, Place};
use crate::oci::{Digest, Manifest, Repository};
use crate::registry;
use crate::rewrite::index::{self, Child};
use crate::rewrite::plan::{ChildPlan, IndexPlan, Plan};
use crate::rewrite::reason::printable;
use crate::shares::Turn;
use crate::store::ImageRecord;
use crate::telemetry::log;
use crate::transport::Source;

/// Children of an index that are fetched and converted at once; the usual two platforms with room
/// to spare.
const CHILDREN_AT_ONCE: usize = 4;
/// The most objects that the record of an index may name: those of some sixty images of 127 layers.
const MAX_OBJECTS: usize = 8192;
/// Records of children that are looked up at once.
const LOOKUPS_AT_ONCE: usize = 16;
/// The upstream under which a refresh of an index takes room; no upstream has an empty name.
const REFRESHED: &str = "";

impl Shared {
    pub(super) async fn index(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        manifest: &Manifest,
        wanted: Vec<Digest>,
        depth: usize,
    ) -> Result<ImageOutcome, Error> {
        let started = Instant::now();
        let place = Place {
            source,
            repository,
            depth,
        };
        let made = stream::iter(wanted).map(|digest| async move {
            let made = self.child(source, repository, &digest, depth + 1).await;
            (digest, made)
        });
        let made: Vec<_> = made.buffer_unordered(CHILDREN_AT_ONCE).collect().await;
        // Parsed once more: the tree is not held while the children are converted.
        let planned = self.planned(source.turn(), manifest).await?;
        let plan = match planned.plan {
            Plan::Index(plan) => plan,
            Plan::PassThrough(reason) => {
                return self
                    .pass_through(place, manifest, reason)
                    .await
                    .map(ImageOutcome::Final);
            }
            Plan::Image(_) => {
                return self
                    .pass_through(place, manifest, "an image, not an index".to_owned())
                    .await
                    .map(ImageOutcome::Final);
            }
        };
        let mut failure = None;
        let mut children = self.recorded_children(&plan).await?;
        self.retain_shown(source, repository, &mut children).await?;
        // They are few, and somebody waited for them, so they come before the children that have a
        // record by chance.
        for (digest, made) in made {
            let child = match made {
                Ok(record) => Child::Recorded(Box::new(record)),
                // Sparse copies of an index lack most of its images.
                Err(error) if matches!(*error, Error::Upstream(registry::Error::NotFound)) => {
                    Child::Source("not in the upstream".to_owned())
                }
                Err(error) => {
                    let reason = format!(
                        "not converted for now: {}",
                        printable(&log::chain(error.as_ref()))
                    );
                    failure = Some(error);
                    Child::Source(reason)
                }
            };
            children.insert(digest, child);
        }
        let (plan, mut record, documents) = self.assembled_index(manifest, plan, children).await?;
        record.origin = Some(place.origin_of_index(record.origin.as_ref(), started.elapsed()));
        match failure {
            Some(error) if documents.is_empty() => Err(Error::Children(error)),
            Some(_) => {
                self.put_documents(documents).await?;
                self.sign(&record).await;
                Ok(ImageOutcome::ForNow(record))
            }
            None => {
                self.keep_index(manifest, &plan, &mut record, documents)
                    .await?;
                let (upstream, platforms) = (source.name(), record.platforms.len());
                tracing::info!(upstream, %repository, source = %record.source, converted = %record.converted, platforms, "index converted");
                Ok(ImageOutcome::Final(record))
            }
        }
    }

    /// Converts a child that was found in `depth` indexes.
    pub(super) async fn child(
        self: &Arc<Self>,
        source: &Source,
        repository: &Repository,
        digest: &Digest,
        depth: usize,
    ) -> Outcome {
        let (child, room) = self.documents.child(source, repository, digest).await?;
        self.joined(source, repository, &child, depth, (Some(room), None))
            .await
    }

    /// Returns the index with all of its children that are converted so far, and the plan again.
    async fn assembled_index(
        &self,
        manifest: &Manifest,
        plan: IndexPlan,
        children: HashMap<Digest, Child>,
    ) -> Result<(IndexPlan, ImageRecord, Vec<Manifest>), Error> {
        let (len, manifest, generation) = (
            manifest.bytes.len(),
            manifest.clone(),
            self.generation.clone(),
        );
        let assembled = off_worker(len, move || {
            index::assemble(&manifest, &plan, &children, &generation)
                .map(|(record, documents)| (plan, record, documents))
        });
        Ok(assembled.await??)
    }

    /// Returns the children that have a record already, whether wanted or pulled.
    async fn recorded_children(&self, plan: &IndexPlan) -> Result<HashMap<Digest, Child>, Error> {
        let children = plan.index.manifests.iter().zip(&plan.children);
        let children = children.filter(|(_, plan)| !matches!(plan, ChildPlan::Leave(_)));
        let mut seen = HashSet::new();
        let digests = children
            .map(|(child, _)| &child.digest)
            .filter(|digest| seen.insert(*digest));
        let digests: Vec<Digest> = digests.cloned().collect();
        let records = stream::iter(digests).map(|digest| async move {
            let record = self.store.image(&self.generation, &digest).await?;
            Ok::<_, Error>(record.map(|record| (digest, record)))
        });
        let mut records = records.buffered(LOOKUPS_AT_ONCE);
        let (mut children, mut objects) = (HashMap::new(), 0);
        while let Some(found) = records.try_next().await? {
            let Some((digest, mut record)) = found else {
                continue;
            };
            objects += record.objects.len();
            let child = if objects <= MAX_OBJECTS {
                // Only the first reason of an image that passes through is repeated.
                record.passed_through.truncate(1);
                Child::Recorded(Box::new(record))
            } else {
                Child::Source(format!(
                    "one of an index of more than {MAX_OBJECTS} objects"
                ))
            };
            children.insert(digest, child);
        }
        Ok(children)
    }

    /// Removes the children that this repository was not shown to hold: another one pulled them.
    async fn retain_shown(
        &self,
        source: &Source,
        repository: &Repository,
        children: &mut HashMap<Digest, Child>,
    ) -> Result<(), Error> {
        let mut foreign = Vec::new();
        for (digest, child) in &*children {
            if let Child::Recorded(record) = child
                && !self.is_shown(source, repository, record).await?
            {
                foreign.push(digest.clone());
            }
        }
        for digest in foreign {
            children.remove(&digest);
        }
        Ok(())
    }

    /// Stores an index's converted documents, and the source's bytes if another platform may join
    /// later or one may be converted again.
    async fn keep_index(
        &self,
        manifest: &Manifest,
        plan: &IndexPlan,
        record: &mut ImageRecord,
        documents: Vec<Manifest>,
    ) -> Result<(), Error> {
        if self.config.reorder || plan.may_change() || record.platforms.is_empty() {
            self.store
                .put(&manifest.media_type, manifest.bytes.clone())
                .await?;
            record.objects.push(manifest.digest.clone());
        }
        self.put_documents(documents).await?;
        record.objects.sort_unstable();
        record.objects.dedup();
        self.put_image(record).await?;
        Ok(())
    }

    /// Whether an index may have children that were pulled or converted again since its last
    /// refresh.
    pub(super) fn is_stale(&self, record: &ImageRecord) -> bool {
        let keeps_source = record.objects.contains(&record.source);
        keeps_source && !self.fresh.contains_key(&record.source)
    }

    /// Includes the children pulled meanwhile in a converted index. Converted indexes served before
    /// stay readable.
    pub(super) async fn refresh(
        self: &Arc<Self>,
        record: &ImageRecord,
    ) -> Result<ImageRecord, Error> {
        self.fresh.insert(record.source.clone(), ()).await;
        let Some(object) = self.store.find(&record.source).await? else {
            return Ok(record.clone());
        };
        let bytes = self.store.read_all(&object).await?;
        let media_type = object
            .media_type
            .unwrap_or_else(|| record.media_type.clone());
        let manifest = Manifest {
            media_type,
            digest: record.source.clone(),
            bytes,
        };
        let planned = self.planned(Turn::of(REFRESHED), &manifest).await?;
        let Plan::Index(plan) = planned.plan else {
            return Ok(record.clone());
        };
        let children = self.recorded_children(&plan).await?;
        let (plan, mut renewed, documents) =
            self.assembled_index(&manifest, plan, children).await?;
        if renewed.converted == record.converted || renewed.platforms.len() < record.platforms.len()
        {
            return Ok(record.clone());
        }
        renewed.origin = origin::renewed(record, renewed.origin.as_ref());
        renewed.objects.extend(record.objects.iter().cloned());
        self.keep_index(&manifest, &plan, &mut renewed, documents)
            .await?;
        let platforms = renewed.platforms.len();
        tracing::info!(source = %renewed.source, converted = %renewed.converted, platforms, "index refreshed");
        Ok(renewed)
    }
}
