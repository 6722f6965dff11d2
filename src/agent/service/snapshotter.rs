//! containerd's snapshots service over [`Snapshots`]: translates requests and answers.
//!
//! A Prepare that names its target layer is answered with a lazy mount if possible:
//! ```text
//! Prepare(key, parent, labels: snapshot.ref = N)
//!   ├ N is committed ▶ AlreadyExists
//!   └ layers.mount ─┬ lazy ▶ commit_lazy ▶ AlreadyExists
//!                   └ not lazy ▶ an ordinary active snapshot
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::vec;

use http::HeaderValue;
use prost_types::Timestamp;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::provenance::ProvenanceCheck;
use super::starts::Starts;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::layers::Layers;
use crate::agent::prefetch::profiles::ImageLayers;
use crate::agent::snapshots::filter::Filter;
use crate::agent::snapshots::{
    Error, Info, Kind, Labels, LazyLayer, Measured, Mount, Snapshots, TARGET_LABEL, Target,
};
use crate::containerd::services::snapshots::v1 as wire;
use crate::containerd::types;
use crate::telemetry::log::chain;
use crate::telemetry::metrics;
use crate::telemetry::traces::{self, TRACEPARENT};

/// Snapshots in one message of a list, as in containerd's own service.
const PAGE: usize = 100;
/// The prefix of the last part of a key that is unpacked into (containerd,
/// `snapshots.UnpackKeyPrefix`). No container has it.
const UNPACK_KEY: &str = "extract-";
/// The label that the reference snapshotter puts on lazy snapshots. buildkit and nerdctl look for
/// it.
const REMOTE_LABEL: (&str, &str) = ("containerd.io/snapshot/remote", "remote snapshot");

/// Serves snapshots. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Snapshotter {
    snapshots: Arc<Snapshots>,
    starts: Starts,
    layers: Arc<Layers>,
    provenance: Option<Arc<ProvenanceCheck>>,
}

impl Snapshotter {
    pub(crate) fn new(snapshots: Arc<Snapshots>, layers: Arc<Layers>) -> Self {
        Self {
            snapshots,
            starts: Starts::new(&layers),
            layers,
            provenance: None,
        }
    }

    /// The same, but refuses layers that do not pass the check.
    #[must_use]
    pub(crate) fn requiring(self, check: Option<ProvenanceCheck>) -> Self {
        Self {
            provenance: check.map(Arc::new),
            ..self
        }
    }

    /// Fails if the provenance of a layer is required, and is not proven.
    async fn proven(&self, labels: &Labels) -> Result<(), Status> {
        let Some(check) = &self.provenance else {
            return Ok(());
        };
        check.layer(labels).await.map_err(|reason| {
            tracing::warn!(reason = chain(&reason), "layer refused");
            let refused = [("outcome", "refused")];
            metrics().agent_layers.get_or_create(&refused).inc();
            Status::failed_precondition(reason.to_string())
        })
    }

    /// Runs blocking work on a thread that may block. The work runs to its end even if the client
    /// disconnects.
    async fn blocking<T, E, F>(&self, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Into<Status> + Send + 'static,
        F: FnOnce(&Snapshots) -> Result<T, E> + Send + 'static,
    {
        let snapshots = Arc::clone(&self.snapshots);
        match tokio::task::spawn_blocking(move || work(&snapshots)).await {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    /// Whether the target snapshot of this Prepare exists now: it was committed already, or it has
    /// been mounted lazily.
    async fn prepare_remote(
        &self,
        target: &str,
        snapshot: &SnapshotRequest,
    ) -> Result<bool, Status> {
        let (wanted, parent) = (target.to_owned(), snapshot.parent.clone());
        let look = move |snapshots: &Snapshots| {
            let found = snapshots.target(&wanted, parent.as_deref())?;
            Ok::<_, Error>((found, snapshots.parents(parent.as_deref())?))
        };
        let (found, parents) = self.blocking(look).await?;
        if found == Target::Committed {
            return Ok(true);
        }
        self.proven(&snapshot.labels).await?;
        let Target::Free(name) = found else {
            return Ok(false);
        };
        let spec = match LayerSpec::from_labels(&snapshot.labels) {
            Ok(spec) => spec,
            Err(reason) => {
                tracing::debug!(target, reason = chain(&reason), "not lazy");
                return Ok(false);
            }
        };
        match self
            .layers
            .mount(&spec, ImageLayers::for_layer(&parents, &spec))
            .await
        {
            Ok(number) => {
                let layer = LazyLayer {
                    number,
                    has_xattrs: self.layers.table().has_xattrs(number),
                    is_erofs: self.layers.drivers().erofs().is_known(number),
                };
                self.commit_lazy(name, snapshot, layer).await
            }
            Err(reason) => {
                tracing::info!(layer = %spec.digest, reference = spec.reference, reason = chain(&reason), "not lazy");
                Ok(false)
            }
        }
    }

    async fn commit_lazy(
        &self,
        name: String,
        snapshot: &SnapshotRequest,
        layer: LazyLayer,
    ) -> Result<bool, Status> {
        let SnapshotRequest {
            key,
            parent,
            mut labels,
        } = snapshot.clone();
        labels.insert(REMOTE_LABEL.0.to_owned(), REMOTE_LABEL.1.to_owned());
        let table = Arc::clone(self.layers.table());
        let commit = move |snapshots: &Snapshots| {
            let stored = table
                .copy(layer.number)
                .map_err(|error| Status::internal(format!("layer record not read: {error}")))?;
            let parent = parent.as_deref();
            match snapshots.commit_lazy(&key, &name, parent, labels, layer, &stored) {
                Ok(()) => Ok(true),
                // Another Prepare for the same target was faster.
                Err(Error::AlreadyExists(taken)) if taken == name => Ok(false),
                Err(error) => Err(Status::from(error)),
            }
        };
        let committed = self.blocking(commit).await;
        if !matches!(committed, Ok(true)) {
            self.layers.unmount(layer.number).await;
        }
        committed.map(|_is_new| true)
    }

    async fn prepare(&self, snapshot: SnapshotRequest) -> Result<Vec<Mount>, Status> {
        if let Some(target) = snapshot.labels.get(TARGET_LABEL)
            && self.prepare_remote(target, &snapshot).await?
        {
            return Err(Status::already_exists(format!(
                "target snapshot {target:?}: already exists"
            )));
        }
        let has_target = snapshot.labels.contains_key(TARGET_LABEL);
        let is_unpacked = has_target || is_for_unpacking(&snapshot.key);
        if is_unpacked && !has_target {
            self.proven(&snapshot.labels).await?;
        }
        let SnapshotRequest {
            key,
            parent,
            labels,
        } = snapshot;
        let make = move |snapshots: &Snapshots| {
            let mounts = snapshots.prepare(&key, parent.as_deref(), labels)?;
            let parents = if is_unpacked {
                Vec::new()
            } else {
                snapshots.parents(parent.as_deref())?
            };
            Ok::<_, Error>((mounts, parents))
        };
        let (mounts, parents) = self.blocking(make).await?;
        let lazy = parents.iter().filter_map(|parent| parent.lazy);
        let readiness = self.layers.readiness();
        readiness.expect_container(lazy.collect()).await;
        if let Some(image) = ImageLayers::for_container(&parents) {
            self.starts.begin(image);
        }
        Ok(mounts)
    }

    async fn remove(&self, name: String) -> Result<(), Status> {
        let lazy = self
            .blocking(move |snapshots| snapshots.remove(&name))
            .await?;
        if let Some(number) = lazy {
            self.layers.unmount(number).await;
        }
        Ok(())
    }
}

/// Whether a layer is unpacked into the snapshot with this key. containerd puts namespace and
/// number before a key.
fn is_for_unpacking(key: &str) -> bool {
    key.split('/').any(|part| part.starts_with(UNPACK_KEY))
}

/// A new snapshot, as requested.
#[derive(Debug, Clone)]
struct SnapshotRequest {
    key: String,
    parent: Option<String>,
    labels: Labels,
}

impl SnapshotRequest {
    fn new(key: String, parent: String, labels: HashMap<String, String>) -> Self {
        let parent = Some(parent).filter(|parent| !parent.is_empty());
        Self {
            key,
            parent,
            labels: labels.into_iter().collect(),
        }
    }
}

/// Runs `work` to its end even if the client disconnects, because it has two steps that belong
/// together.
async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Status::internal(error.to_string())))
}

#[tonic::async_trait]
impl wire::snapshots_server::Snapshots for Snapshotter {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Result<Response<wire::PrepareSnapshotResponse>, Status> {
        // containerd sends it if it is traced itself.
        let context = request.metadata().get(TRACEPARENT.as_str());
        let context = context.and_then(|context| HeaderValue::from_bytes(context.as_bytes()).ok());
        let wire::PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let (own, snapshot) = (self.clone(), SnapshotRequest::new(key, parent, labels));
        let span = tracing::info_span!("prepare", key = snapshot.key);
        traces::continue_from_root(&span, context.as_ref());
        // Boxed, because the compiler limits how deep futures may lie in each other.
        let work = Box::pin(async move { own.prepare(snapshot).await });
        let mounts = run_to_completion(work.instrument(span)).await?;
        Ok(Response::new(wire::PrepareSnapshotResponse {
            mounts: to_wire(mounts),
        }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Result<Response<wire::ViewSnapshotResponse>, Status> {
        let wire::ViewSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let SnapshotRequest {
            key,
            parent,
            labels,
        } = SnapshotRequest::new(key, parent, labels);
        let mounts = self
            .blocking(move |snapshots| snapshots.view(&key, parent.as_deref(), labels))
            .await?;
        Ok(Response::new(wire::ViewSnapshotResponse {
            mounts: to_wire(mounts),
        }))
    }

    async fn mounts(
        &self,
        request: Request<wire::MountsRequest>,
    ) -> Result<Response<wire::MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self
            .blocking(move |snapshots| snapshots.mounts(&key))
            .await?;
        Ok(Response::new(wire::MountsResponse {
            mounts: to_wire(mounts),
        }))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let wire::CommitSnapshotRequest {
            name,
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let SnapshotRequest {
            key,
            parent,
            labels,
        } = SnapshotRequest::new(key, parent, labels);
        self.blocking(move |snapshots| snapshots.commit(&name, &key, parent.as_deref(), labels))
            .await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let (own, key) = (self.clone(), request.into_inner().key);
        run_to_completion(async move { own.remove(key).await }).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Result<Response<wire::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let info = self.blocking(move |snapshots| snapshots.stat(&key)).await?;
        Ok(Response::new(wire::StatSnapshotResponse {
            info: Some(info.into()),
        }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Result<Response<wire::UpdateSnapshotResponse>, Status> {
        let wire::UpdateSnapshotRequest {
            info, update_mask, ..
        } = request.into_inner();
        // Only name and labels of the info are used: its times are often Go's zero time.
        let wire::Info { name, labels, .. } = info.unwrap_or_default();
        let labels = labels.into_iter().collect();
        let paths = update_mask.unwrap_or_default().paths;
        let info = self
            .blocking(move |snapshots| snapshots.update(&name, labels, &paths))
            .await?;
        Ok(Response::new(wire::UpdateSnapshotResponse {
            info: Some(info.into()),
        }))
    }

    type ListStream =
        tokio_stream::Iter<vec::IntoIter<Result<wire::ListSnapshotsResponse, Status>>>;

    async fn list(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filter = Filter::parse(&request.into_inner().filters)?;
        let found = self
            .blocking(move |snapshots| snapshots.list(&filter))
            .await?;
        let page = |page: &[Info]| wire::ListSnapshotsResponse {
            info: page.iter().cloned().map(Into::into).collect(),
        };
        let pages: Vec<_> = found.chunks(PAGE).map(|infos| Ok(page(infos))).collect();
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn usage(
        &self,
        request: Request<wire::UsageRequest>,
    ) -> Result<Response<wire::UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = match self
            .blocking(move |snapshots| snapshots.usage(&key))
            .await?
        {
            Measured::Usage(usage) => usage,
            Measured::Lazy(number) => self.layers.usage(number).await,
        };
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(wire::UsageResponse {
            size: count(usage.size),
            inodes: count(usage.inodes),
        }))
    }

    async fn cleanup(
        &self,
        _request: Request<wire::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        self.blocking(Snapshots::cleanup).await?;
        Ok(Response::new(()))
    }
}

fn to_wire(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let one = |Mount {
                   kind,
                   source,
                   options,
               }| types::Mount {
        r#type: kind.to_owned(),
        source,
        options,
        ..types::Mount::default()
    };
    mounts.into_iter().map(one).collect()
}

impl From<Info> for wire::Info {
    fn from(info: Info) -> Self {
        let kind = match info.kind {
            Kind::View => wire::Kind::View,
            Kind::Active => wire::Kind::Active,
            Kind::Committed => wire::Kind::Committed,
        };
        Self {
            name: info.name,
            parent: info.parent.unwrap_or_default(),
            kind: kind.into(),
            created_at: Some(Timestamp::from(info.created)),
            updated_at: Some(Timestamp::from(info.updated)),
            labels: info.labels.into_iter().collect(),
        }
    }
}
