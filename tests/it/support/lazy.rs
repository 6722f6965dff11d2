//! A node for tests of lazy layers: a registry in this process, the real agent, and generated
//! layers, mounted as containerd has them mounted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use starlift::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use starlift::containerd::services::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::agent::{Agent, Settings, is_erofs};
pub(crate) use super::layer::{CHUNK, Layer};
use super::place::Place;
use super::registry::Registry;

/// The repository of the layers.
const REPOSITORY: &str = "library/app";
/// A registry and an agent that pulls from it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) registry: Registry,
    pub(crate) agent: Agent,
    pub(crate) place: Place,
}

/// Only data that is read is fetched.
pub(crate) const ON_DEMAND: (&str, &str) = ("BACKGROUND", "off");

impl Node {
    pub(crate) async fn start(settings: Settings<'_>) -> Self {
        let place = Place::with(&[]).unwrap();
        let registry = Registry::start().await;
        let agent = Agent::start_with(&place, settings);
        Self {
            registry,
            agent,
            place,
        }
    }

    /// Kills the agent and starts it again.
    pub(crate) fn restart(&mut self, settings: Settings<'_>) {
        self.agent.daemon.kill();
        let next = Agent::start_with(&self.place, settings);
        drop(std::mem::replace(&mut self.agent, next));
    }

    pub(crate) async fn client(&self) -> SnapshotsClient<Channel> {
        let address = format!("unix://{}", self.agent.socket.display());
        SnapshotsClient::new(
            Endpoint::from_shared(address)
                .unwrap()
                .connect()
                .await
                .unwrap(),
        )
    }

    /// Returns the labels of the stargz plugin for a layer.
    pub(crate) fn labels(&self, target: &str, layer: &Layer) -> HashMap<String, String> {
        let labels = [
            ("containerd.io/snapshot.ref", target.to_owned()),
            (
                "containerd.io/snapshot/remote/stargz.reference",
                format!("{}/{REPOSITORY}:1", self.registry.host()),
            ),
            (
                "containerd.io/snapshot/remote/stargz.digest",
                layer.digest.to_string(),
            ),
            (
                "containerd.io/snapshot/stargz/toc.digest",
                layer.toc_digest.to_string(),
            ),
        ];
        labels.map(|(key, value)| (key.to_owned(), value)).into()
    }

    /// Pushes the layers and has them mounted as the stargz plugin does for an image: the labels of
    /// each layer list those above it. Returns the topmost snapshot.
    pub(crate) async fn pull(&self, image: &str, layers: &[&Layer]) -> String {
        self.push(layers);
        for place in 0..layers.len() {
            let is_lazy = self.prepare_next(image, layers, place).await.unwrap();
            assert!(is_lazy, "{}", self.agent.status());
        }
        format!("{image}-{}", layers.len() - 1)
    }

    pub(crate) fn push(&self, layers: &[&Layer]) {
        layers
            .iter()
            .for_each(|layer| drop(self.registry.put_blob(layer.blob.clone())));
    }

    /// Requests the layer in this place of an image, on top of those below. Returns whether it is
    /// lazy.
    pub(crate) async fn prepare_next(
        &self,
        image: &str,
        layers: &[&Layer],
        place: usize,
    ) -> Result<bool, Status> {
        let target = format!("{image}-{place}");
        let mut labels = self.labels(&target, layers[place]);
        let listed = layers[place..].iter().map(|layer| layer.digest.to_string());
        labels.insert(
            "containerd.io/snapshot/remote/stargz.layers".to_owned(),
            listed.collect::<Vec<_>>().join(","),
        );
        let below = place.checked_sub(1);
        let parent = below.map_or(String::new(), |below| format!("{image}-{below}"));
        self.prepare_on(&target, &parent, labels).await
    }

    /// Prepares a container's snapshot as containerd does. Returns the directories of its lazy
    /// layers, topmost first.
    pub(crate) async fn begin_container(&self, key: &str, top: &str) -> Vec<PathBuf> {
        let (key, parent) = (key.to_owned(), top.to_owned());
        let request = PrepareSnapshotRequest {
            key,
            parent,
            ..Default::default()
        };
        let mounts = self
            .client()
            .await
            .prepare(request)
            .await
            .unwrap()
            .into_inner()
            .mounts;
        let lower = mounts[0]
            .options
            .iter()
            .find_map(|option| option.strip_prefix("lowerdir="))
            .unwrap();
        lower.split(':').map(PathBuf::from).collect()
    }

    /// Requests the layer as the stargz plugin does. Returns whether it is lazy.
    pub(crate) async fn prepare(&self, target: &str, layer: &Layer) -> Result<bool, Status> {
        self.prepare_on(target, "", self.labels(target, layer))
            .await
    }

    /// The same with other labels, on top of a snapshot.
    pub(crate) async fn prepare_on(
        &self,
        target: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<bool, Status> {
        let (key, parent) = (format!("extract-{target}"), parent.to_owned());
        let request = PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..Default::default()
        };
        match self.client().await.prepare(request).await {
            Ok(_) => Ok(false),
            Err(status) if status.code() == Code::AlreadyExists => Ok(true),
            Err(status) => Err(status),
        }
    }

    /// Pushes the layer and mounts it. Returns the directory of its files.
    pub(crate) async fn mount(&self, target: &str, layer: &Layer) -> PathBuf {
        self.registry.put_blob(layer.blob.clone());
        let is_lazy = self.prepare(target, layer).await.unwrap();
        assert!(is_lazy, "{}", self.agent.status());
        let directory = self.directory(target).await;
        let (path, digest) = (directory.clone(), layer.digest.clone());
        // The kernel learns that a close and a look at the birth time need no request (FLUSH, STATX).
        // Otherwise a test that has files open, or looks at one, while no agent runs would wait for
        // the agent that it is about to start.
        let first_look = move || {
            fs::metadata(&path).unwrap();
            // EROFS has no hidden directory, and asks nobody.
            let state = path.join(format!(".stargz-snapshotter/{digest}.json"));
            assert_eq!(File::open(state).is_ok(), !is_erofs());
        };
        tokio::task::spawn_blocking(first_look).await.unwrap();
        directory
    }

    /// Returns the directory with the content of a committed snapshot.
    pub(crate) async fn directory(&self, target: &str) -> PathBuf {
        let key = format!("view-{target}");
        let view = ViewSnapshotRequest {
            key: key.clone(),
            parent: target.to_owned(),
            ..Default::default()
        };
        let mut client = self.client().await;
        let mounts = client.view(view).await.unwrap().into_inner().mounts;
        client
            .remove(RemoveSnapshotRequest {
                key,
                ..Default::default()
            })
            .await
            .unwrap();
        PathBuf::from(&mounts[0].source)
    }

    pub(crate) async fn remove(&self, target: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            key: target.to_owned(),
            ..Default::default()
        };
        self.client().await.remove(request).await.map(drop)
    }

    /// Returns a snapshot's disk usage as reported to containerd: bytes and files.
    pub(crate) async fn usage(&self, target: &str) -> (i64, i64) {
        let request = UsageRequest {
            key: target.to_owned(),
            ..Default::default()
        };
        let usage = self
            .client()
            .await
            .usage(request)
            .await
            .unwrap()
            .into_inner();
        (usage.size, usage.inodes)
    }

    /// Returns the number of requests for blobs.
    pub(crate) fn blob_requests(&self) -> usize {
        self.registry.count("GET", "/blobs/")
    }
}

/// Reads a file that the kernel has not cached.
pub(crate) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = uncached(path)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Reads a part of a file that the kernel has not cached.
pub(crate) fn read_at(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut content = vec![0; length];
    uncached(path)?.read_exact_at(&mut content, offset)?;
    Ok(content)
}

fn uncached(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(file)
}

/// Returns the files with the content of layers: the data files and their maps.
pub(crate) fn data_files(agent: &Agent) -> Vec<PathBuf> {
    fs::read_dir(agent.root.join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Returns the only data file.
pub(crate) fn data_file(agent: &Agent) -> PathBuf {
    let mut files = data_files(agent);
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "data")
    });
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}
