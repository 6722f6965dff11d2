//! Makes layers readable: from the registry, from the files of an earlier start, or as another mount
//! of a layer that is here.

use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::records::{Record, data_name};
use crate::agent::layer::Layer;
use crate::agent::layer::data::{DataStore, LayerData};
use crate::agent::layer::fetch::{Blob, Fetcher, Reason};
use crate::agent::layer::opening::remote::{self, FetchedTail, NotLazy, Opened, Tail, TocDigest};
use crate::agent::layer::opening::toc_memory::TocMemory;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::layer::tree::Tree;
use crate::budget::Weight;
use crate::oci::Digest;
use crate::transport::Upstreams;

/// Makes layers readable. Clones share registries, data files and memory.
#[derive(Debug, Clone)]
pub(super) struct Loader {
    pub(super) upstreams: Upstreams,
    pub(super) fetcher: Fetcher,
    pub(super) memory: TocMemory,
}

/// A layer that is about to be mounted.
#[derive(Debug)]
pub(super) struct NewLayer {
    pub(super) layer: Arc<Layer>,
    pub(super) toc_digest: TocDigest,
    /// The end of the blob, if the layer comes from the registry.
    pub(super) fetched: Option<FetchedTail>,
}

impl Loader {
    /// Returns the layer that was opened in a registry.
    ///
    /// # Errors
    /// If its tree cannot be shown, or takes too much memory.
    pub(super) async fn opened(&self, opened: Opened) -> Result<NewLayer, NotLazy> {
        let Opened {
            fetched,
            toc,
            toc_digest,
        } = opened;
        let weight = self.memory.tree(&toc)?;
        let blob = fetched.blob.clone();
        let own = (blob.digest.clone(), toc_digest.clone(), blob.size);
        let store = Arc::clone(self.fetcher.store());
        let share = move || share(&store, own, toc, Some(weight));
        let data = spawn_blocking(share).await;
        let data = data.map_err(|error| NotLazy::Internal(error.to_string()))??;
        let layer = Layer::new(data, blob, self.fetcher.clone()).given_by(fetched.peer.clone());
        let bytes = fetched.tail.bytes.len() as u64;
        layer.traffic().add(fetched.requests, bytes, Reason::Read);
        Ok(NewLayer {
            layer: Arc::new(layer),
            toc_digest,
            fetched: Some(fetched),
        })
    }

    /// Returns the layer of another mount for a new one.
    ///
    /// # Errors
    /// If the registry does not serve it. It is asked all the same: a client without access to this
    /// repository must not get the layer.
    pub(super) async fn again(
        &self,
        spec: &LayerSpec,
        toc_digest: TocDigest,
        other: &Layer,
    ) -> Result<NewLayer, NotLazy> {
        let (name, source) = remote::find(&self.upstreams, &spec.reference)?;
        let (size, peer) = source.locate(&name.repository, &spec.digest).await?;
        let blob = Blob {
            source,
            repository: name.repository,
            digest: spec.digest.clone(),
            size,
        };
        let data = Arc::clone(other.data());
        let layer = Layer::new(data, blob, self.fetcher.clone()).given_by(peer);
        layer.traffic().add(1, 0, Reason::Read);
        Ok(NewLayer {
            layer: Arc::new(layer),
            toc_digest,
            fetched: None,
        })
    }

    /// Returns the layer of a record whose blob ends with `tail`. Blocking.
    ///
    /// # Errors
    /// If the files that were stored for it are damaged.
    pub(super) fn stored(
        &self,
        record: &Record,
        tail: io::Result<Tail>,
    ) -> Result<Arc<Layer>, NotLazy> {
        let failed =
            |error: io::Error| NotLazy::Internal(format!("stored TOC not readable: {error}"));
        let (name, source) = remote::find(&self.upstreams, &record.reference)?;
        let blob = Blob {
            source,
            repository: name.repository,
            digest: record.digest.clone(),
            size: record.blob_size,
        };
        let toc = remote::read(&tail.map_err(failed)?, &record.toc_digest)?;
        // Containers use the layer: its TOC is loaded however much memory others take.
        let weight = self.memory.tree(&toc).ok();
        let own = (
            record.digest.clone(),
            record.toc_digest.clone(),
            record.blob_size,
        );
        let data = share(self.fetcher.store(), own, toc, weight)?;
        if data.tree().len() != record.inodes {
            return Err(NotLazy::Internal(
                "number of files differs from the record".to_owned(),
            ));
        }
        Ok(Arc::new(Layer::new(data, blob, self.fetcher.clone())))
    }
}

/// Returns the data file of the layer with this digest, TOC digest and size, one for all its mounts.
/// Blocking.
fn share(
    store: &DataStore,
    (digest, toc_digest, size): (Digest, TocDigest, u64),
    toc: estargz::Toc,
    weight: Option<Weight>,
) -> Result<Arc<LayerData>, NotLazy> {
    let name = data_name(&digest, &toc_digest);
    if let Some(data) = store.in_use(&name) {
        return Ok(data);
    }
    let (TocDigest::Json(toc_text) | TocDigest::Section(toc_text)) = &toc_digest;
    let state = serde_json::json!({"digest": digest, "size": size, "tocDigest": toc_text});
    let state = state.to_string().into_bytes();
    let tree = Tree::new(store.map(toc), &format!("{digest}.json"), state)?;
    Ok(store.layer(&name, Arc::new(tree.with_weight(weight)))?)
}
