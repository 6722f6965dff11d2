//! The list of images.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::{Catalog, Error};
use crate::clock::unix_now;
use crate::oci::Digest;
use crate::oci::media_type::{ManifestKind, manifest_kind};
use crate::store::{self, ImageRecord, ListedImage, Origin};

/// The most images of the list, those that were converted last.
const MAX_IMAGES: usize = 5_000;
/// The most records that are looked at for the newest ones: a list request for each thousand.
const MAX_LOOKED_AT: usize = 100_000;
/// Records that are read at once.
const READS_AT_ONCE: usize = 16;
/// The most platforms that an entry names.
const MAX_PLATFORMS: usize = 16;
/// The size of an entry without its texts: the structure, three digests, its places in caches.
const BYTES_OF_ENTRY: usize = 640;

/// The images of the store, those that were converted last first.
#[derive(Debug, Default)]
pub struct Listing {
    pub entries: Vec<Arc<Entry>>,
    /// Whether the store has more images.
    pub is_cut: bool,
    /// When the store was asked, in seconds since 1970.
    pub read_at: u64,
    by_converted: HashMap<Digest, Arc<Entry>>,
}

/// An image in the list. A size that is not known is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Digest of the source manifest or index.
    pub source: Digest,
    /// Digest of the converted image; that of the source if nothing was converted.
    pub converted: Digest,
    pub is_index: bool,
    /// Whether it was converted as a part of an index.
    pub is_child: bool,
    /// `docker.io/library/nginx`: the name under which it was first converted, if it is recorded.
    pub name: Option<String>,
    /// The converted platforms of an index.
    pub platforms: Vec<String>,
    /// When it was converted, in seconds since 1970.
    pub converted_at: u64,
    pub took: Option<Duration>,
    pub source_size: Option<u64>,
    pub size: Option<u64>,
    pub layers: u32,
    /// The layers that nodes can mount lazily.
    pub lazy_layers: u32,
    /// The number of layers or children that stayed as they were.
    pub unchanged: usize,
}

impl Entry {
    pub(super) fn of(record: &ImageRecord, written: u64) -> Self {
        let origin = record.origin.as_ref();
        let known = |size: fn(&Origin) -> u64| origin.map(size).filter(|size| *size > 0);
        let is_named = |origin: &&Origin| !origin.repository.is_empty();
        let platforms = record.platforms.iter().take(MAX_PLATFORMS);
        Self {
            source: record.source.clone(),
            converted: record.converted.clone(),
            is_index: manifest_kind(&record.media_type) == Some(ManifestKind::Index),
            is_child: origin.is_some_and(|origin| origin.is_child),
            name: origin
                .filter(is_named)
                .map(|origin| format!("{}/{}", origin.upstream, origin.repository)),
            platforms: platforms.map(ToString::to_string).collect(),
            converted_at: origin.map_or(written, |origin| origin.ended),
            took: origin
                .and_then(|origin| origin.took_ms)
                .map(Duration::from_millis),
            source_size: known(|origin| origin.source_size),
            size: known(|origin| origin.size),
            layers: origin.map_or(0, |origin| origin.layers),
            lazy_layers: origin.map_or(0, |origin| origin.lazy_layers),
            unchanged: record.passed_through.len(),
        }
    }

    /// Whether nothing of the image was converted.
    pub fn passes_through(&self) -> bool {
        self.source == self.converted
    }

    pub(super) fn weight(&self) -> usize {
        let texts = self.name.iter().chain(&self.platforms).map(String::len);
        BYTES_OF_ENTRY + texts.sum::<usize>()
    }

    /// Whether the name contains `text`, or a digest begins with it. Parts of an index are found
    /// only by their digests.
    fn matches(&self, text: &str) -> bool {
        let begins = |digest: &Digest| digest.hex().starts_with(text) || digest.to_string() == text;
        let name = self.name.as_deref().unwrap_or_default().to_lowercase();
        !self.is_child && name.contains(text)
            || !text.is_empty() && (begins(&self.source) || begins(&self.converted))
    }
}

impl Listing {
    /// The images that a search finds; without a text all but the parts of indexes.
    pub fn search(&self, text: &str) -> Vec<Arc<Entry>> {
        let text = text.trim().to_lowercase();
        let found = self.entries.iter().filter(|entry| entry.matches(&text));
        found.cloned().collect()
    }

    /// The image whose converted manifest has this digest.
    pub fn of_converted(&self, converted: &Digest) -> Option<&Arc<Entry>> {
        self.by_converted.get(converted)
    }
}

impl Catalog {
    /// Returns the list of images. Concurrent calls share one read of the store.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn listing(&self) -> Result<Arc<Listing>, Error> {
        let listing = self.shared.listing.try_get_with((), self.read_listing());
        listing.await.map_err(Error::Shared)
    }

    async fn read_listing(&self) -> Result<Arc<Listing>, store::Error> {
        let read_at = unix_now();
        let (store, generation) = (&self.shared.store, &self.shared.generation);
        let listed = store
            .list_images(generation, MAX_IMAGES, MAX_LOOKED_AT)
            .await?;
        let entries = stream::iter(listed.images).map(|image| self.entry(image));
        let entries = entries.buffer_unordered(READS_AT_ONCE);
        let found: Vec<_> = entries.try_collect().await?;
        let mut entries: Vec<_> = found.into_iter().flatten().collect();
        entries.sort_by(|one, other| {
            let newer = other.converted_at.cmp(&one.converted_at);
            newer.then_with(|| one.source.hex().cmp(other.source.hex()))
        });
        let by_converted = entries.iter();
        let by_converted = by_converted.map(|entry| (entry.converted.clone(), Arc::clone(entry)));
        Ok(Arc::new(Listing {
            by_converted: by_converted.collect(),
            entries,
            is_cut: listed.is_cut,
            read_at,
        }))
    }

    /// Returns the entry of a record, which is read only if it was written since.
    async fn entry(&self, listed: ListedImage) -> Result<Option<Arc<Entry>>, store::Error> {
        let ListedImage { written, source } = listed;
        let key = (source, written);
        if let Some(entry) = self.shared.entries.get(&key).await {
            return Ok(Some(entry));
        }
        let (store, generation) = (&self.shared.store, &self.shared.generation);
        let Some(record) = store.look_at_image(generation, &key.0).await? else {
            return Ok(None);
        };
        let entry = Arc::new(Entry::of(&record, written));
        // A record may be written twice within the second of its time.
        if unix_now() > written + 1 {
            self.shared.entries.insert(key, Arc::clone(&entry)).await;
        }
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, is_child: bool) -> Arc<Entry> {
        let origin = Origin {
            upstream: "docker.io".to_owned(),
            repository: name.to_owned(),
            is_child,
            ..Origin::default()
        };
        let digest = Digest::sha256_of(name.as_bytes());
        Arc::new(Entry::of(
            &ImageRecord {
                source: digest.clone(),
                converted: digest,
                media_type: String::new(),
                size: 0,
                translated: None,
                platforms: Vec::new(),
                objects: Vec::new(),
                passed_through: Vec::new(),
                limits: Vec::new(),
                order: None,
                origin: Some(origin),
            },
            0,
        ))
    }

    #[test]
    fn images_are_found_by_name_and_parts_of_an_index_only_by_digest() {
        let listing = Listing {
            entries: vec![entry("library/nginx", false), entry("library/part", true)],
            ..Listing::default()
        };
        let names = |text: &str| -> Vec<_> {
            let found = listing.search(text);
            found
                .iter()
                .filter_map(|entry| entry.name.clone())
                .collect()
        };
        assert_eq!(names(""), ["docker.io/library/nginx"]);
        assert_eq!(names(" NGINX "), ["docker.io/library/nginx"]);
        assert_eq!(names("library"), ["docker.io/library/nginx"]);
        assert_eq!(names("apache"), [""; 0]);
        let part = Digest::sha256_of(b"library/part");
        assert_eq!(names(&part.hex()[..12]), ["docker.io/library/part"]);
        assert_eq!(names(&part.to_string()), ["docker.io/library/part"]);
    }
}
