//! A registry, a store and a converter between them, with the queries that the tests share.

use std::io::Read as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use starlift::convert::{Config, Converter, Error};
use starlift::oci::{Digest, Manifest, Repository};
use starlift::registry::{self, UpstreamConfig};
use starlift::store::{ImageRecord, Store};
use starlift::transport::{Source, Upstreams};

use crate::support::image::Image;
use crate::support::registry::Registry;

pub(crate) const REPOSITORY: &str = "library/app";

pub(crate) struct Bench {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) converter: Converter,
    pub(super) source: Source,
}

/// A configuration with two threads, so that members are compressed out of order in tests too.
pub(crate) fn config() -> Config {
    Config {
        threads: NonZeroUsize::new(2),
        ..Config::default()
    }
}

/// Returns the record without its origin, which has the time that the conversion took.
pub(super) fn timeless(record: &ImageRecord) -> ImageRecord {
    ImageRecord {
        origin: None,
        ..record.clone()
    }
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with(&config(), Store::in_memory()).await
    }

    pub(crate) async fn with(config: &Config, store: Store) -> Self {
        let registry = Registry::start().await;
        let source = source(&registry);
        let converter = Converter::new(config, store.clone()).unwrap();
        Self {
            registry,
            store,
            converter,
            source,
        }
    }

    /// Replaces the converter, like a restarted process over the same store: no state but the
    /// store's remains.
    pub(crate) fn restarted(self) -> Self {
        let converter = Converter::new(&config(), self.store.clone()).unwrap();
        Self { converter, ..self }
    }

    /// The same over another store.
    pub(crate) fn over(self, store: Store) -> Self {
        Self { store, ..self }.restarted()
    }

    /// Pushes `image` to the registry and converts it.
    pub(crate) async fn convert(&self, image: &Image) -> Result<ImageRecord, Arc<Error>> {
        self.convert_with(&self.converter, image).await
    }

    pub(crate) async fn convert_with(
        &self,
        converter: &Converter,
        image: &Image,
    ) -> Result<ImageRecord, Arc<Error>> {
        self.registry.push_untagged(REPOSITORY, image);
        converter
            .convert(&self.source, &repository(), &manifest(image))
            .await
    }

    /// Returns the image of the external TOCs of a converted image.
    pub(crate) async fn toc_image(&self, record: &ImageRecord) -> Option<Manifest> {
        let repository = repository();
        let tocs = self.converter.toc_image(&self.source, &repository, record);
        tocs.await.unwrap()
    }

    /// Returns the bytes of an object, verified against its digest.
    pub(crate) async fn bytes(&self, digest: &Digest) -> Bytes {
        let object = self
            .store
            .find(digest)
            .await
            .unwrap()
            .expect("the object is visible");
        let bytes = self.store.read_all(&object).await.unwrap();
        assert_eq!(Digest::sha256_of(&bytes), *digest);
        assert_eq!(bytes.len() as u64, object.size);
        bytes
    }

    pub(crate) async fn document(&self, digest: &Digest) -> Value {
        serde_json::from_slice(&self.bytes(digest).await).unwrap()
    }

    /// Returns the converted manifest or index.
    pub(crate) async fn converted(&self, record: &ImageRecord) -> Value {
        assert_ne!(
            record.converted, record.source,
            "{:?}",
            record.passed_through
        );
        self.document(&record.converted).await
    }

    /// Returns how often the registry was asked for a blob's content.
    pub(crate) fn fetched(&self, blob: &[u8]) -> usize {
        self.registry
            .count("GET", &format!("/blobs/{}", Digest::sha256_of(blob)))
    }

    /// Whether the store shows any record of `image` or of one of its layers.
    pub(crate) async fn is_visible(&self, image: &Image) -> bool {
        let generation = self.converter.generation();
        for layer in image.layers() {
            if self
                .store
                .layer(generation, &Digest::sha256_of(layer))
                .await
                .unwrap()
                .is_some()
            {
                return true;
            }
        }
        self.converter
            .lookup(&image.digest())
            .await
            .unwrap()
            .is_some()
    }

    /// Checks that the converted image is complete: every layer begins with its source tar, and all
    /// digests agree.
    pub(crate) async fn check_converted(&self, image: &Image, record: &ImageRecord) {
        let converted = self.converted(record).await;
        let config = self.document(&digest(&converted["config"]["digest"])).await;
        let layers = converted["layers"].as_array().unwrap();
        assert_eq!(layers.len(), image.layers().len());
        for ((layer, source), diff_id) in layers
            .iter()
            .zip(image.layers())
            .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
        {
            let blob = self.bytes(&digest(&layer["digest"])).await;
            assert_eq!(layer["size"], blob.len());
            let stream = inflate(&blob);
            assert_eq!(Digest::sha256_of(&stream), digest(diff_id));
            assert!(
                stream.starts_with(&inflate(source)),
                "the source tar comes first"
            );
            assert_eq!(
                layer["annotations"]["dev.starlift.source.digest"],
                Digest::sha256_of(source).to_string()
            );
        }
    }
}

pub(crate) fn source(registry: &Registry) -> Source {
    // Each registry has its own name, because failures are remembered by name.
    let name = registry.host().replace(':', "-");
    let local = UpstreamConfig {
        url: registry.url(),
        ..UpstreamConfig::default()
    };
    let config = registry::Config {
        upstream: [(name.clone(), local)].into(),
        retries: 1,
        retry_delay: Duration::from_millis(1),
        ..registry::Config::default()
    };
    Upstreams::new(&config).unwrap().get(&name).unwrap()
}

pub(crate) fn repository() -> Repository {
    REPOSITORY.parse().unwrap()
}

pub(crate) fn manifest(image: &Image) -> Manifest {
    Manifest::new(image.media_type.clone(), image.bytes.clone())
}

pub(crate) fn digest(text: &Value) -> Digest {
    text.as_str().unwrap().parse().unwrap()
}

/// Returns the tar in a layer of any compression.
pub(crate) fn inflate(layer: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    match layer {
        [0x1f, 0x8b, ..] => drop(MultiGzDecoder::new(layer).read_to_end(&mut tar).unwrap()),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => tar = zstd::decode_all(layer).unwrap(),
        _ => tar.extend_from_slice(layer),
    }
    tar
}
