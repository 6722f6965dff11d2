//! Bounds the memory for an image's documents, and parses them off the runtime's threads.
//!
//! A conversion that waits holds its manifest's bytes, which are counted. They are parsed when
//! there is room for the tree, and parsed again when the conversion's turn has come.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::error::Error;
use super::pace::DOCUMENT_WITHIN;
use crate::budget::{Budget, Weight};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::media_type::manifest_kind;
use crate::oci::{Digest, Manifest, Reference, Repository};
use crate::rewrite::reason::printable;
use crate::rewrite::weigh::{self, MAX_WEIGHT};
use crate::shares::{Share, Shares, Turn};
use crate::transport::Source;

/// Manifests of conversions that run or wait: some thousands of ordinary size, or sixteen of one
/// upstream that have the maximum size.
const WAITING_BYTES: u64 = 128 << 20;
/// The same for children of indexes, which wait for images only.
const CHILDREN_BYTES: u64 = 64 << 20;
/// Plans of images and indexes that are being converted.
const PLANS_BYTES: u64 = 128 << 20;
/// Configurations of images that are being converted.
const CONFIGS_BYTES: u64 = 64 << 20;
/// Trees that are held for a moment.
const TREES_BYTES: u64 = 64 << 20;
/// The memory of a conversion beside its manifest, in bytes: tasks, places in queues, its line in
/// the status.
const CONVERSION_BYTES: u64 = 32 << 10;

/// How long a conversion waits for room in one of these before the source image is served.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Documents up to this size are processed on the current thread, which takes less than a
/// millisecond.
const SMALL: usize = 32 << 10;

/// The memory for documents from upstreams.
#[derive(Debug, Clone)]
pub(super) struct Documents {
    waiting: Shares,
    children: Shares,
    pub(super) plans: Shares,
    pub(super) configs: Shares,
    trees: Budget,
}

impl Default for Documents {
    fn default() -> Self {
        Self {
            waiting: Shares::of_bytes("waiting manifests", WAITING_BYTES),
            children: Shares::of_bytes("manifests of index children", CHILDREN_BYTES),
            plans: Shares::of_bytes("conversion plans", PLANS_BYTES),
            configs: Shares::of_bytes("image configurations", CONFIGS_BYTES),
            trees: Budget::new("parsed documents", TREES_BYTES),
        }
    }
}

impl Documents {
    /// Takes room for the whole conversion of this manifest.
    pub(super) async fn conversion(
        &self,
        turn: Turn<'_>,
        manifest: &Manifest,
    ) -> Result<Share, Error> {
        Ok(self
            .waiting
            .take(turn, manifest.size() + CONVERSION_BYTES, PATIENCE)
            .await?)
    }

    /// Fetches a child of an index, and takes room for its conversion.
    pub(super) async fn child(
        &self,
        source: &Source,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(Manifest, Share), Error> {
        let most = MAX_MANIFEST_BYTES + CONVERSION_BYTES;
        let mut share = self.children.take(source.turn(), most, PATIENCE).await?;
        let reference = Reference::Digest(digest.clone());
        let fetched = timeout(DOCUMENT_WITHIN, source.manifest(repository, &reference)).await;
        let child = fetched.map_err(|_elapsed| Error::Overdue {
            within: DOCUMENT_WITHIN,
        })??;
        share.shrink_to(child.size() + CONVERSION_BYTES);
        Ok((child, share))
    }

    /// Takes room for a document's tree of this weight, for a short time.
    pub(super) async fn tree(&self, weight: u64) -> Result<Weight, Error> {
        Ok(self.trees.take_within(weight, PATIENCE).await?)
    }
}

/// Returns the memory of a manifest's tree in bytes, or the reason why it cannot be parsed. A
/// document of unknown type is not parsed and weighs nothing.
pub(super) async fn weigh_manifest(manifest: &Manifest) -> Result<Result<u64, String>, Error> {
    match manifest_kind(&manifest.media_type) {
        Some(_) => weigh(&manifest.bytes).await,
        None => Ok(Ok(0)),
    }
}

/// Returns the memory of a document's tree in bytes, or the reason why it cannot be parsed.
pub(super) async fn weigh(text: &Bytes) -> Result<Result<u64, String>, Error> {
    let bytes = text.clone();
    off_worker(text.len(), move || match weigh::document(&bytes) {
        Ok(weight) if weight <= MAX_WEIGHT => Ok(weight),
        Ok(_) => Err("it has too many values for a manifest or a configuration".to_owned()),
        Err(error) => Err(format!(
            "it is not readable: {}",
            printable(&error.to_string())
        )),
    })
    .await
}

/// Runs `work` for a document of `len` bytes: here if it is small, else on a blocking thread.
pub(super) async fn off_worker<T: Send + 'static>(
    len: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    if len <= SMALL {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_ended| Error::BrokenOff)
}
