//! Reads of a layer from registries that fail on demand.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Layer;
use super::data::{DataStore, Limits};
use super::fetch::{FetchError, Fetcher, Reason};
use super::opening::remote::{self, NotLazy, Opened, TocDigest};
use super::opening::toc_memory::TocMemory;
use super::tree::Tree;
use crate::eventually::eventually;
use crate::registry::{self, UpstreamConfig};
use crate::support::layer::{CHUNK, Layer as Blob};
use crate::support::registry::{Gate, Registry};
use crate::transport::Upstreams;

/// Enough for two runs of small chunks at once: each takes half a megabyte and its largest chunk.
const LITTLE: u64 = 2 << 20;

/// A registry, a mirror of it, and a layer that both have.
struct World {
    own: Registry,
    mirror: Registry,
    blob: Blob,
    folder: tempfile::TempDir,
}

impl World {
    async fn with(sizes: &[usize]) -> Self {
        let blob = Blob::random(1, sizes);
        let [own, mirror] = [Registry::start().await, Registry::start().await];
        own.put_blob(blob.blob.clone());
        mirror.put_blob(blob.blob.clone());
        Self {
            own,
            mirror,
            blob,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn upstreams(&self) -> Upstreams {
        let (url, mirrors) = (self.own.url(), vec![self.mirror.url()]);
        let upstream = UpstreamConfig {
            url,
            mirrors,
            ..UpstreamConfig::default()
        };
        let config = registry::Config {
            docker_config: Some("/nonexistent".into()),
            retry_delay: Duration::from_millis(1),
            upstream: [("registry.example".to_owned(), upstream)].into(),
            ..registry::Config::default()
        };
        Upstreams::new(&config).unwrap()
    }

    async fn open(&self) -> Result<Opened, NotLazy> {
        let (upstreams, memory) = (self.upstreams(), TocMemory::default());
        let reference = "registry.example/library/app:v1";
        let fetched = remote::fetch(&upstreams, reference, &self.blob.digest, &memory).await?;
        let toc_digest = TocDigest::Json(self.blob.toc_digest.clone());
        fetched.verified(toc_digest, &memory).await
    }

    fn store(&self) -> DataStore {
        let limits = Limits {
            bytes: 1 << 30,
            min_free: Some(0),
            memory: 0,
        };
        DataStore::open(&self.data_folder(), limits).unwrap()
    }

    fn data_folder(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    async fn layer(&self, memory: u64) -> Arc<Layer> {
        self.layer_in(self.store(), memory).await
    }

    async fn layer_in(&self, store: DataStore, memory: u64) -> Arc<Layer> {
        let opened = self.open().await.unwrap();
        let tree = Tree::new(opened.toc, "state", Vec::new()).unwrap();
        let data = store.layer("layer", Arc::new(tree)).unwrap();
        let fetcher = Fetcher::new(Arc::new(store), 8 << 20, memory);
        Arc::new(Layer::new(data, opened.fetched.blob, fetcher))
    }

    /// Makes a registry return wrong bytes for the blob, except for the end with the TOC.
    fn lie(&self, registry: &Registry) {
        let mut bytes = self.blob.blob.to_vec();
        let end = bytes.len() - (512 << 10);
        bytes[..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        registry.put_wrong_blob(&self.blob.digest, bytes);
    }

    fn content(&self, number: usize) -> &[u8] {
        &self.blob.files[number].1
    }

    fn requests(&self) -> (usize, usize) {
        (
            self.mirror.count("GET", "/blobs/"),
            self.own.count("GET", "/blobs/"),
        )
    }
}

async fn read(layer: &Layer, number: usize) -> Result<Bytes, FetchError> {
    let id = layer.tree().file(&format!("file{number}")).unwrap();
    layer.read(id, 0, u64::MAX).await
}

#[tokio::test]
async fn bytes_that_a_mirror_has_wrong_are_requested_from_the_registry() {
    let world = World::with(&[CHUNK / 2, 1 << 20]).await;
    let layer = world.layer(64 << 20).await;
    let before = world.requests();
    world.lie(&world.mirror);
    assert_eq!(read(&layer, 0).await.unwrap(), world.content(0));
    assert!(
        world.requests().1 > before.1,
        "the registry itself was asked"
    );
    let mirror = world.requests().0;
    layer.hold(1..5, Reason::Background).await.unwrap();
    assert_eq!(
        world.requests().0,
        mirror,
        "the mirror is not asked for this blob any more"
    );
}

#[tokio::test]
async fn wrong_bytes_from_everywhere_are_an_error_that_is_not_remembered() {
    let world = World::with(&[CHUNK / 2, 1 << 20]).await;
    let layer = world.layer(64 << 20).await;
    world.lie(&world.mirror);
    world.lie(&world.own);
    assert!(matches!(
        layer.hold(0..1, Reason::Background).await,
        Err(FetchError::Wrong(_))
    ));
    assert!(matches!(read(&layer, 0).await, Err(FetchError::Wrong(_))));
    world.own.put_blob(world.blob.blob.clone());
    assert_eq!(read(&layer, 0).await.unwrap(), world.content(0));
}

#[tokio::test]
async fn answers_that_are_cut_repeatedly_are_resumed_until_complete() {
    let world = World::with(&[3 << 20]).await;
    let layer = world.layer(64 << 20).await;
    world.mirror.on("/blobs/").cut_after(50_000);
    world.own.on("/blobs/").cut_after(50_000);
    assert_eq!(read(&layer, 0).await.unwrap(), world.content(0));
}

#[tokio::test]
async fn reads_wait_in_order_for_memory_and_all_are_served() {
    let sizes = [CHUNK; 40];
    let world = World::with(&[&sizes[..], &[1 << 20]].concat()).await;
    let layer = world.layer(LITTLE).await;
    let gate = Gate::new();
    world.mirror.on("/blobs/").gate(&gate);
    // Backwards and far from each other: no chunk comes along with another.
    let numbers: Vec<usize> = (0..40).step_by(5).rev().collect();
    let reads: Vec<_> = numbers
        .iter()
        .map(|&number| {
            let layer = Arc::clone(&layer);
            tokio::spawn(async move { read(&layer, number).await })
        })
        .collect();
    gate.reached(2).await;
    for number in 3..=numbers.len() {
        gate.open_for_one();
        gate.reached(number).await;
    }
    gate.open();
    for (number, read) in numbers.into_iter().zip(reads) {
        assert_eq!(read.await.unwrap().unwrap(), world.content(number));
    }
    assert_eq!(
        gate.most_held(),
        2,
        "no more requests at once than fit into the memory"
    );
}

#[tokio::test]
async fn a_read_does_not_wait_for_prefetched_chunks() {
    let world = World::with(&[CHUNK, 1 << 20, CHUNK, 1 << 20]).await;
    let layer = world.layer(LITTLE).await;
    let gate = Gate::new();
    world.mirror.on("/blobs/").times(1).gate(&gate);
    let ahead = tokio::spawn({
        let layer = Arc::clone(&layer);
        async move { layer.hold(0..1, Reason::Background).await }
    });
    gate.reached(1).await;
    let waiting = tokio::spawn({
        let layer = Arc::clone(&layer);
        async move { layer.hold(10..12, Reason::Background).await }
    });
    assert_eq!(read(&layer, 2).await.unwrap(), world.content(2));
    gate.open();
    ahead.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_data_file_that_is_unreadable_at_the_moment_is_no_error_and_stays() {
    let world = World::with(&[CHUNK, 1 << 20]).await;
    let layer = world.layer(64 << 20).await;
    read(&layer, 0).await.unwrap();
    let file = layer.data().path().to_owned();
    let inode = || std::fs::metadata(&file).unwrap().ino();
    let before = inode();
    drop(layer);
    let store = world.store();
    // A file in the place of the directory: no file can be opened.
    let folder = world.data_folder();
    let aside = world.folder.path().join("aside");
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    let layer = world.layer_in(store, 64 << 20).await;
    assert_eq!(read(&layer, 0).await.unwrap(), world.content(0));
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    eventually("the file is opened again", || layer.data().holds(0));
    assert_eq!(inode(), before, "it does not count as damaged");
    let requests = world.requests();
    assert_eq!(read(&layer, 0).await.unwrap(), world.content(0));
    assert_eq!(world.requests(), requests);
}

#[tokio::test]
async fn a_layer_whose_registry_reports_a_wrong_length_is_not_lazy() {
    let world = World::with(&[1 << 20]).await;
    for registry in [&world.mirror, &world.own] {
        registry
            .on("/blobs/")
            .with_header("content-range", "bytes 0-99999999999/100000000000");
    }
    let outcome = world.open().await;
    assert!(
        matches!(outcome, Err(NotLazy::Upstream(_) | NotLazy::Open(_))),
        "{outcome:?}"
    );
}
