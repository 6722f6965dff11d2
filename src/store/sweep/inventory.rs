//! The content of the store, as one sweep sees it.

use std::collections::HashMap;
use std::time::SystemTime;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;

use crate::oci::Digest;
use crate::oci::media_type::manifest_kind;
use crate::store::Store;
use crate::store::backend::{Listed, Meta};
use crate::store::error::Error;
use crate::store::key::Key;
use crate::store::lease::layer_lease;
use crate::store::profiles::StackRecord;
use crate::store::records::{DigestRecord, ImageRecord, LayerRecord};
use crate::store::statements::StatementRecord;

/// The number of concurrent reads of records.
const READS_AT_ONCE: usize = 16;

/// A sweep's view of the store.
///
/// Objects are listed before the records that may name them. An object without a record in this
/// view had none when it was listed, or is young.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// Layers and blobs.
    pub(super) objects: HashMap<Key, Meta>,
    /// The last use of each digest.
    pub(super) used: HashMap<Digest, SystemTime>,
    /// The visible digests, each with its key.
    pub(super) visible: HashMap<Digest, Visible>,
    pub(super) layers: Vec<Record<LayerRecord>>,
    pub(super) images: Vec<Record<ImageRecord>>,
    pub(super) stacks: Vec<Record<StackRecord>>,
    pub(super) statements: Vec<Record<StatementRecord>>,
    /// The profile data of images, not read.
    pub(super) knowledge: Vec<Listed>,
    /// Links, not read.
    pub(super) links: Vec<Listed>,
    pub(super) leases: Vec<Listed>,
    pub(super) probes: Vec<Listed>,
}

#[derive(Debug, Clone)]
pub(super) struct Visible {
    pub(super) key: Key,
    pub(super) recorded: SystemTime,
    pub(super) is_manifest: bool,
    /// The size of its record.
    pub(super) record_size: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Record<R> {
    pub(super) key: Key,
    pub(super) recorded: SystemTime,
    pub(super) size: u64,
    pub(super) content: R,
}

impl Inventory {
    pub(super) async fn take(store: &Store) -> Result<Self, Error> {
        let mut inventory = Self::default();
        for top in ["layers", "blobs"] {
            inventory.objects.extend(
                store
                    .list(top)
                    .await?
                    .into_iter()
                    .map(|listed| (listed.key, listed.meta)),
            );
        }
        for listed in store.list("used").await? {
            if let Key::Used(digest) = listed.key {
                inventory.used.insert(digest, listed.meta.modified);
            }
        }
        for record in read_all::<DigestRecord>(store, store.list("records/digest").await?).await? {
            if let (Key::DigestRecord(digest), Ok(key)) = (record.key, record.content.key.parse()) {
                let is_manifest = record
                    .content
                    .media_type
                    .as_deref()
                    .and_then(manifest_kind)
                    .is_some();
                let Record {
                    recorded,
                    size: record_size,
                    ..
                } = record;
                inventory.visible.insert(
                    digest,
                    Visible {
                        key,
                        recorded,
                        is_manifest,
                        record_size,
                    },
                );
            }
        }
        inventory.layers = read_all(store, store.list("records/layer").await?).await?;
        inventory.knowledge = store.list("profiles").await?;
        inventory.stacks = read_all(store, store.list("records/stack").await?).await?;
        inventory.statements = read_all(store, store.list("records/statement").await?).await?;
        inventory.images = images(store).await?;
        inventory.links = store.list("links").await?;
        inventory.leases = store.list("leases").await?;
        inventory.probes = store.list("probe").await?;
        Ok(inventory)
    }

    /// The size of everything that counts towards the store's size.
    pub(super) fn bytes(&self) -> u64 {
        let records = self.visible.values().map(|visible| visible.record_size);
        let records = records.chain(self.layers.iter().map(|record| record.size));
        let records = records.chain(self.images.iter().map(|record| record.size));
        let records = records.chain(self.stacks.iter().map(|record| record.size));
        let records = records.chain(self.statements.iter().map(|record| record.size));
        let listed = self
            .objects
            .values()
            .chain(self.knowledge.iter().map(|listed| &listed.meta))
            .chain(self.links.iter().map(|listed| &listed.meta));
        records.sum::<u64>() + listed.map(|meta| meta.size).sum::<u64>()
    }

    /// The statements on images that are there.
    pub(super) fn current_statements(&self) -> impl Iterator<Item = &Record<StatementRecord>> {
        self.statements.iter().filter(|record| match &record.key {
            Key::StatementRecord(converted) => self.visible.contains_key(converted),
            _ => false,
        })
    }

    /// Whether the layer may be in conversion, because its lease exists.
    pub(super) fn is_leased(&self, key: &Key) -> bool {
        let Key::Layer { generation, source } = key else {
            return false;
        };
        let lease = Key::Lease(layer_lease(generation, source));
        self.leases.iter().any(|held| held.key == lease)
    }

    /// Every document whose readers need the whole image: its converted image, those of an index's
    /// children, in either family's types, and converted images served before a new conversion.
    pub(super) fn manifests<'a>(
        &'a self,
        image: &'a ImageRecord,
    ) -> impl Iterator<Item = &'a Digest> {
        let is_manifest = |digest: &&Digest| {
            self.visible
                .get(*digest)
                .is_some_and(|visible| visible.is_manifest)
        };
        image
            .objects
            .iter()
            .filter(is_manifest)
            .chain([&image.converted])
    }

    /// The last use of the image, under any of its digests, or the time of its record.
    pub(super) fn last_image_use(&self, image: &Record<ImageRecord>) -> SystemTime {
        let used = self
            .manifests(&image.content)
            .filter_map(|digest| self.used.get(digest))
            .max();
        used.map_or(image.recorded, |used| image.recorded.max(*used))
    }

    /// The last use of the object, or the time when it became visible.
    pub(super) fn last_use(&self, digest: &Digest, recorded: SystemTime) -> SystemTime {
        self.used
            .get(digest)
            .map_or(recorded, |used| recorded.max(*used))
    }
}

/// All image records.
pub(super) async fn images(store: &Store) -> Result<Vec<Record<ImageRecord>>, Error> {
    read_all(store, store.list("records/image").await?).await
}

impl Store {
    async fn list(&self, top: &'static str) -> Result<Vec<Listed>, Error> {
        self.inner.backend.list(top).try_collect().await
    }
}

/// Reads the listed records. Deleted and damaged ones are left out.
async fn read_all<R: DeserializeOwned>(
    store: &Store,
    listed: Vec<Listed>,
) -> Result<Vec<Record<R>>, Error> {
    stream::iter(listed)
        .map(|listed| async move {
            let content = store.record::<R>(&listed.key).await?;
            let Listed {
                key,
                meta:
                    Meta {
                        size,
                        modified: recorded,
                    },
            } = listed;
            Ok(content.map(|content| Record {
                key,
                recorded,
                size,
                content,
            }))
        })
        .buffer_unordered(READS_AT_ONCE)
        .try_filter_map(|record| async move { Ok(record) })
        .try_collect()
        .await
}
