//! Creates a snapshot of each layer, bottom first, as containerd's own client does (`unpacker.go`).
//!
//! Each snapshot is requested with labels that describe the layer. If the snapshotter has the
//! snapshot already, or mounts the layer lazily, it answers that the snapshot exists. All other
//! layers are fetched, applied and committed. Blobs are fetched while the layers below them are
//! applied.

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use super::image::{Image, note_source};
use super::labels::{self, Labels, Source};
use super::session::{Session, refused};
use super::{content, lease};
use crate::containerd::services::diff::v1::ApplyRequest;
use crate::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use crate::containerd::types::{Descriptor as Blob, Mount};
use crate::failure::Failure;
use crate::oci::annotations::UNCOMPRESSED;
use crate::oci::{Descriptor, Digest, ImageName};
use crate::transport::Endpoint;

/// Blobs fetched at once: containerd's default for pods (`max_concurrent_downloads`).
const MAX_FETCHES: usize = 3;
/// Attempts to prepare a snapshot. Each fails if the snapshot exists at first, but is removed by
/// another client before the lease holds it.
const PREPARE_ATTEMPTS: usize = 3;

/// A layer and the snapshot it becomes.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: Digest,
    /// The ChainID of the layers below; empty for the bottom layer.
    parent: String,
    labels: Labels,
    /// Notified once the blob is in the content store.
    fetched: Notify,
}

/// The way in which a layer got its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The snapshot existed before the pull.
    Present,
    /// The snapshotter has the snapshot without unpacking, and reads the layer from the registry
    /// when its files are read.
    Lazy,
    /// The layer was fetched and unpacked.
    Unpacked,
}

/// Creates the snapshots of an image.
#[derive(Debug)]
pub(crate) struct Unpacker<'a> {
    pub(crate) session: &'a Session,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) name: &'a ImageName,
    pub(crate) snapshotter: &'a str,
    pub(crate) counter: &'a ProgressBar,
}

/// A snapshotter's response to a request for a snapshot.
enum Prepared {
    Held,
    Active { key: String, mounts: Vec<Mount> },
}

/// The queue of blobs to fetch, and for each layer whether its blob was queued.
struct FetchQueue<'l> {
    sender: mpsc::UnboundedSender<&'l Layer>,
    is_queued: Vec<bool>,
}

/// Returns the layers of `image` with the labels for their snapshots.
pub(crate) fn layers_of(image: &Image, source: &Source) -> Vec<Layer> {
    let descriptors: Vec<_> = image.layers().cloned().collect();
    let mut layers: Vec<Layer> = Vec::new();
    for (number, (descriptor, diff_id)) in descriptors.iter().zip(&image.diff_ids).enumerate() {
        let below = layers.last().map(|layer| &layer.chain_id);
        let chain_id = chain_id(below, diff_id);
        layers.push(Layer {
            descriptor: descriptor.clone(),
            diff_id: diff_id.clone(),
            parent: below.map(Digest::to_string).unwrap_or_default(),
            labels: source.labels(descriptors.get(number..).unwrap_or_default(), &chain_id),
            chain_id,
            fetched: Notify::new(),
        });
    }
    layers
}

/// Returns the ChainID of a layer (OCI image-spec, config.md, "Layer ChainID").
fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        Some(below) => Digest::sha256_of(format!("{below} {diff_id}").as_bytes()),
        None => diff_id.clone(),
    }
}

impl Unpacker<'_> {
    /// Creates all snapshots. If it fails or is dropped, only the session's lease keeps the objects
    /// created so far.
    pub(crate) async fn unpack(&self, layers: &[Layer]) -> Result<Vec<Outcome>, Failure> {
        let (sender, queue) = mpsc::unbounded_channel();
        let fetching = UnboundedReceiverStream::new(queue)
            .map(Ok)
            .try_for_each_concurrent(MAX_FETCHES, async |layer: &Layer| {
                self.fetch(&layer.descriptor).await?;
                layer.fetched.notify_one();
                Ok(())
            });
        let fetches = FetchQueue {
            sender,
            is_queued: vec![false; layers.len()],
        };
        let (outcomes, ()) = tokio::try_join!(self.each(layers, fetches), fetching)?;
        Ok(outcomes)
    }

    async fn each<'l>(
        &self,
        layers: &'l [Layer],
        mut fetches: FetchQueue<'l>,
    ) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            if self.is_held(&layer.chain_id).await? {
                outcomes.push(Outcome::Present);
                continue;
            }
            let outcome = match self.prepare(layer).await? {
                Prepared::Held => Outcome::Lazy,
                Prepared::Active { key, mounts } => {
                    fetches.queue_from(number, layers);
                    layer.fetched.notified().await;
                    self.apply(layer, mounts).await?;
                    self.commit(layer, &key).await?;
                    Outcome::Unpacked
                }
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Copies a blob from the registry into containerd's content store.
    pub(crate) async fn fetch(&self, blob: &Descriptor) -> Result<(), Failure> {
        self.counter.inc_length(blob.size);
        content::put(self.session, blob, async |offset| {
            let what = format!("fetching {}", blob.digest);
            let Endpoint {
                source, repository, ..
            } = self.endpoint;
            let range = (offset > 0).then_some(offset..blob.size);
            let body = source
                .blob(repository, &blob.digest, range)
                .await
                .map_err(Failure::when(what.clone()))?;
            self.counter.inc(offset);
            let counter = self.counter.clone();
            let counted = body
                .stream
                .inspect_ok(move |piece| counter.inc(piece.len() as u64));
            Ok(counted
                .map(move |piece| piece.map_err(Failure::when(what.clone())))
                .boxed())
        })
        .await?;
        note_source(self.session, self.name, &blob.digest).await
    }

    /// Whether the snapshot exists, and is now kept as long as the lease.
    async fn is_held(&self, chain_id: &Digest) -> Result<bool, Failure> {
        if !self.exists(chain_id).await? {
            return Ok(false);
        }
        lease::hold_snapshot(self.session, self.snapshotter, &chain_id.to_string()).await?;
        // It may have been collected before the lease held it.
        self.exists(chain_id).await
    }

    async fn exists(&self, chain_id: &Digest) -> Result<bool, Failure> {
        let request = StatSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: chain_id.to_string(),
        };
        match self.session.snapshots().stat(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(refused(format!(
                "asking {} for the snapshot {chain_id}",
                self.snapshotter
            ))(status)),
        }
    }

    async fn prepare(&self, layer: &Layer) -> Result<Prepared, Failure> {
        for _ in 0..PREPARE_ATTEMPTS {
            // The key that containerd's clients give to an unpack in progress
            // (`snapshots.UnpackKeyFormat`).
            let key = format!("extract-{:016x} {}", rand::random::<u64>(), layer.chain_id);
            let request = PrepareSnapshotRequest {
                snapshotter: self.snapshotter.to_owned(),
                key: key.clone(),
                parent: layer.parent.clone(),
                labels: layer.labels.clone(),
            };
            match self.session.snapshots().prepare(request).await {
                Ok(response) => {
                    return Ok(Prepared::Active {
                        key,
                        mounts: response.into_inner().mounts,
                    });
                }
                Err(status) if status.code() == Code::AlreadyExists => {
                    if self.is_held(&layer.chain_id).await? {
                        return Ok(Prepared::Held);
                    }
                }
                Err(status) => {
                    return Err(refused(format!("preparing {}", layer.descriptor.digest))(
                        status,
                    ));
                }
            }
        }
        let why = "the snapshotter reports an existing snapshot, but does not have it";
        Err(Failure::new(format!(
            "preparing {}: {why}",
            layer.descriptor.digest
        )))
    }

    async fn apply(&self, layer: &Layer, mounts: Vec<Mount>) -> Result<(), Failure> {
        let Layer {
            descriptor,
            diff_id,
            ..
        } = layer;
        let diff = Blob {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).map_err(Failure::from_error)?,
            annotations: labels::annotations(descriptor),
        };
        let request = ApplyRequest {
            diff: Some(diff),
            mounts,
            payloads: HashMap::new(),
        };
        let response = self.session.diff().apply(request).await;
        let response = response.map_err(refused(format!("unpacking {}", descriptor.digest)))?;
        let unpacked = response
            .into_inner()
            .applied
            .map(|applied| applied.digest)
            .unwrap_or_default();
        if unpacked != diff_id.to_string() {
            let claim =
                format!("its diff-id is {unpacked}, but the image configuration says {diff_id}");
            return Err(Failure::new(format!(
                "unpacking {}: {claim}",
                descriptor.digest
            )));
        }
        Ok(())
    }

    async fn commit(&self, layer: &Layer, active: &str) -> Result<(), Failure> {
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: layer.chain_id.to_string(),
            key: active.to_owned(),
            labels: layer.labels.clone(),
            // Not needed, because the snapshot was prepared on its parent.
            parent: String::new(),
        };
        match self.session.snapshots().commit(request).await {
            // Another client was faster.
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove(active).await?;
                if !self.is_held(&layer.chain_id).await? {
                    let why = "another client removed the snapshot";
                    return Err(Failure::new(format!(
                        "committing {}: {why}",
                        layer.descriptor.digest
                    )));
                }
            }
            committed => {
                committed.map_err(refused(format!("committing {}", layer.descriptor.digest)))?;
            }
        }
        let label = (UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
        content::label(self.session, &layer.descriptor.digest, [label].into()).await
    }

    /// Removes an active snapshot that is not committed. Without this it would stay until
    /// containerd next collects garbage: the end of a lease alone does not start a collection.
    async fn remove(&self, active: &str) -> Result<(), Failure> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: active.to_owned(),
        };
        match self.session.snapshots().remove(request).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(refused(format!("removing the snapshot {active}"))(status))
            }
            _ => Ok(()),
        }
    }
}

impl<'l> FetchQueue<'l> {
    /// Queues the blob of layer `number`, which is not lazy, and the blobs of the layers above that
    /// will not be lazy either. These are the layers without a TOC digest. If this layer has a TOC
    /// digest, they are all layers above, because the snapshotter refuses lazy layers.
    fn queue_from(&mut self, number: usize, layers: &'l [Layer]) {
        let refuses_lazy_ones = layers
            .get(number)
            .is_some_and(|layer| labels::may_be_lazy(&layer.descriptor));
        let all = layers
            .iter()
            .zip(&mut self.is_queued)
            .enumerate()
            .skip(number);
        for (other, (layer, is_queued)) in all {
            let is_wanted =
                other == number || refuses_lazy_ones || !labels::may_be_lazy(&layer.descriptor);
            if is_wanted && !std::mem::replace(is_queued, true) {
                // The receiver lives as long as this sender.
                let _ = self.sender.send(layer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let diff_ids = ["a", "b", "c"].map(|text| Digest::sha256_of(text.as_bytes()));
        let first = chain_id(None, &diff_ids[0]);
        assert_eq!(first, diff_ids[0]);
        let second = chain_id(Some(&first), &diff_ids[1]);
        assert_eq!(
            second,
            Digest::sha256_of(format!("{} {}", diff_ids[0], diff_ids[1]).as_bytes())
        );
    }

    fn layer(number: usize, toc: bool) -> Layer {
        let digest = Digest::sha256_of(&number.to_le_bytes());
        let mut descriptor =
            serde_json::json!({"mediaType": "a", "digest": digest, "size": number});
        if toc {
            descriptor["annotations"] =
                serde_json::json!({"containerd.io/snapshot/stargz/toc.digest": digest});
        }
        let descriptor = serde_json::from_value(descriptor).unwrap();
        let (parent, labels) = (String::new(), Labels::new());
        Layer {
            descriptor,
            diff_id: digest.clone(),
            chain_id: digest,
            parent,
            labels,
            fetched: Notify::new(),
        }
    }

    #[test]
    fn only_layers_that_will_not_be_lazy_are_fetched_early() {
        let layers = [
            layer(0, false),
            layer(1, true),
            layer(2, false),
            layer(3, true),
            layer(4, true),
        ];
        let (sender, mut queue) = mpsc::unbounded_channel();
        let mut fetches = FetchQueue {
            sender,
            is_queued: vec![false; layers.len()],
        };
        let mut queued_from = |number| {
            fetches.queue_from(number, &layers);
            let numbers = std::iter::from_fn(|| queue.try_recv().ok())
                .map(|layer: &Layer| layer.descriptor.size);
            numbers.collect::<Vec<_>>()
        };
        assert_eq!(queued_from(0), [0, 2]);
        assert!(queued_from(2).is_empty());
        assert_eq!(queued_from(3), [3, 4]);
    }
}
