//! The stored images as people look at them. Looking does not count as a use, and repairs nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt as _;

use super::error::Error;
use super::key::{Generation, Key};
use super::records::{ImageRecord, LayerRecord};
use super::{Object, Store};
use crate::oci::Digest;

/// The image records of a store.
#[derive(Debug, Default)]
pub struct ListedImages {
    /// The newest ones, in any order.
    pub images: Vec<ListedImage>,
    /// Whether the store has more.
    pub is_cut: bool,
}

/// The record of an image in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedImage {
    /// When the record was written, in seconds since 1970.
    pub written: u64,
    /// Digest of the source manifest or index.
    pub source: Digest,
}

impl Store {
    /// Lists the image records of a generation: the `most` that were written last, of the first
    /// `looked_at` in the order of their digests.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn list_images(
        &self,
        generation: &Generation,
        most: usize,
        looked_at: usize,
    ) -> Result<ListedImages, Error> {
        let place = Key::images_of(generation);
        let mut keys = self.inner.backend.list(&place);
        let mut newest = BinaryHeap::new();
        let (mut seen, mut is_cut) = (0, false);
        while let Some(listed) = keys.try_next().await? {
            let Key::ImageRecord { source, .. } = listed.key else {
                continue;
            };
            seen += 1;
            if seen > looked_at {
                is_cut = true;
                break;
            }
            let written = seconds(listed.meta.modified);
            newest.push(Reverse(ListedImage { written, source }));
            if newest.len() > most {
                newest.pop();
                is_cut = true;
            }
        }
        let images = newest.into_iter().map(|Reverse(image)| image).collect();
        Ok(ListedImages { images, is_cut })
    }

    /// The record of an image, whether or not all of its objects are still there. A damaged one is
    /// none.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn look_at_image(
        &self,
        generation: &Generation,
        source: &Digest,
    ) -> Result<Option<ImageRecord>, Error> {
        self.look_at(&Key::ImageRecord {
            generation: generation.clone(),
            source: source.clone(),
        })
        .await
    }

    /// The record of a layer, as [`look_at_image`](Self::look_at_image).
    ///
    /// # Errors
    /// The backend's error.
    pub async fn look_at_layer(
        &self,
        generation: &Generation,
        source: &Digest,
    ) -> Result<Option<LayerRecord>, Error> {
        self.look_at(&Key::LayerRecord {
            generation: generation.clone(),
            source: source.clone(),
        })
        .await
    }

    /// The object with this digest, if a record makes it visible.
    ///
    /// # Errors
    /// The backend's error.
    pub async fn look_at_object(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        self.locate(digest).await
    }

    async fn look_at<R: serde::de::DeserializeOwned>(&self, key: &Key) -> Result<Option<R>, Error> {
        Ok(self.inspect_record(key).await?.and_then(Result::ok))
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
