//! What the store holds, for people: its images, the parts of one image, what a start of it reads,
//! and the files of its layers.
//!
//! ```text
//! image records ▶ Listing (cached) ▶ Entry
//! record, converted manifest ▶ Image ▶ layers or platforms
//! knowledge, TOCs ▶ Start        TOC ▶ Folder
//! ```
//! Every answer is bounded. The list is of this generation only, and at most [`LISTED_FOR`] old.
//! Looking at images and starts does not count as a use of them, except that a layer whose TOC is
//! read is in use.

mod error;
mod folder;
mod image;
mod list;
mod start;

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

use crate::learn::Profiles;
use crate::oci::Digest;
use crate::store::{Generation, Store};
pub use error::Error;
pub use folder::{Folder, Item, MAX_FOLDER_ITEMS, MAX_FOLDER_PATH};
pub use image::{Content, Image, Layer, Part};
pub use list::{Entry, Listing};
pub use start::{Read, Start};

/// The oldest list of images that is shown.
pub const LISTED_FOR: Duration = Duration::from_secs(10);
/// The memory for images in the list, in bytes: some ten thousand of them.
const ENTRY_BYTES: u64 = 16 << 20;
/// How long the number of an image's starts is shown without another look.
const STARTS_FOR: Duration = Duration::from_secs(60);
const STARTS: u64 = 10_000;

/// A reader of what the store holds. Clones share its caches.
#[derive(Debug, Clone)]
pub struct Catalog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    generation: Generation,
    profiles: Profiles,
    listing: Cache<(), Arc<Listing>>,
    /// Images by the digest of the source and the time of the record.
    entries: Cache<(Digest, u64), Arc<Entry>>,
    /// The number of starts, by the digest of the converted image.
    starts: Cache<Digest, u64>,
}

impl Catalog {
    /// Creates a reader of the images of `generation`.
    pub fn new(store: Store, generation: Generation, profiles: Profiles) -> Self {
        let weight = |_: &(Digest, u64), entry: &Arc<Entry>| {
            u32::try_from(entry.weight()).unwrap_or(u32::MAX)
        };
        let shared = Shared {
            store,
            generation,
            profiles,
            listing: Cache::builder()
                .max_capacity(1)
                .time_to_live(LISTED_FOR)
                .build(),
            entries: Cache::builder()
                .max_capacity(ENTRY_BYTES)
                .weigher(weight)
                .build(),
            starts: Cache::builder()
                .max_capacity(STARTS)
                .time_to_live(STARTS_FOR)
                .build(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}
