//! Parses an image's documents within the memory for their trees.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;

use super::converter::Shared;
use super::documents::{PATIENCE, off_worker, weigh_manifest};
use super::error::Error;
use super::pace::Pacer;
use crate::oci::manifest::MAX_CONFIG_BYTES;
use crate::oci::{Descriptor, Manifest, Repository};
use crate::registry;
use crate::rewrite::plan::{self, Plan};
use crate::shares::{Share, Turn};
use crate::transport::Source;

/// A plan, and the memory that it occupies.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) plan: Plan,
    _share: Share,
}

impl Shared {
    /// Plans the manifest, and returns `look`'s view of the plan. The tree is held only while
    /// `look` runs.
    pub(super) async fn glance<T>(
        self: &Arc<Self>,
        manifest: &Manifest,
        look: impl FnOnce(Plan) -> T + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
    {
        let weight = match weigh_manifest(manifest).await? {
            Ok(weight) => weight,
            Err(reason) => return Ok(look(Plan::PassThrough(reason))),
        };
        let _weight = self.documents.tree(weight).await?;
        let (this, manifest) = (Arc::clone(self), manifest.clone());
        off_worker(manifest.bytes.len(), move || {
            look(plan::plan(&manifest, &this.wanted()))
        })
        .await
    }

    /// Returns the plan for a manifest. Its memory is held for as long as the conversion runs.
    pub(super) async fn planned(
        self: &Arc<Self>,
        turn: Turn<'_>,
        manifest: &Manifest,
    ) -> Result<Planned, Error> {
        let (weight, refused) = match weigh_manifest(manifest).await? {
            Ok(weight) => (weight, None),
            Err(reason) => (0, Some(reason)),
        };
        let share = self.documents.plans.take(turn, weight, PATIENCE).await?;
        if let Some(reason) = refused {
            return Ok(Planned {
                plan: Plan::PassThrough(reason),
                _share: share,
            });
        }
        let (this, manifest) = (Arc::clone(self), manifest.clone());
        let plan = off_worker(manifest.bytes.len(), move || {
            plan::plan(&manifest, &this.wanted())
        })
        .await?;
        Ok(Planned {
            plan,
            _share: share,
        })
    }

    /// Returns the bytes of an image's configuration, and the memory that they occupy. They have
    /// the digest that the manifest names.
    pub(super) async fn config_bytes(
        &self,
        source: &Source,
        repository: &Repository,
        config: &Descriptor,
    ) -> Result<(Bytes, Share), Error> {
        let fetched = self.fetch_config(source, repository, config).await;
        if fetched.as_ref().is_err_and(Error::is_slow) {
            self.layers.slow_down(source.name());
        }
        fetched
    }

    async fn fetch_config(
        &self,
        source: &Source,
        repository: &Repository,
        config: &Descriptor,
    ) -> Result<(Bytes, Share), Error> {
        let is_contended = || self.layers.image_slots.is_wanted_by_another(source.turn());
        let mut pacer = Pacer::new(self.layers.pace.of_document(), &is_contended);
        let mut body = pacer
            .wait(source.blob(repository, &config.digest, None))
            .await??;
        if body.blob_size > MAX_CONFIG_BYTES {
            return Err(registry::Error::TooLarge {
                limit: MAX_CONFIG_BYTES,
            }
            .into());
        }
        // The body is no longer than the response header announced.
        let share = self
            .documents
            .configs
            .take(source.turn(), body.blob_size, PATIENCE)
            .await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = pacer.wait(body.stream.next()).await? {
            let piece = piece?;
            pacer.came(piece.len());
            bytes.extend_from_slice(&piece);
        }
        Ok((bytes.freeze(), share))
    }
}
