//! How images are used: nodes report observations and request profiles.
//!
//! ```text
//! a node's observation ▶ check (paths in the image?) ▶ merger (a few seconds) ▶ store::learn
//! a client's ranges ▶ ranges (which files?) ──────────┘
//! a node's request ▶ stack record ▶ store::knowledge ▶ Profile
//! a served manifest ▶ its stack's record ▶ predict, once ▶ store::learn
//! ```
//! No pull needs anything here, and none waits for it.

mod check;
mod error;
mod merger;
#[cfg(feature = "predict")]
mod predictions;
mod ranges;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use crate::aside::aside;
use crate::clock::unix_now;
use crate::oci::{Descriptor, Digest, Manifest};
#[cfg(feature = "predict")]
use crate::predict::Predictor;
use crate::profile::{
    FileUse, Knowledge, Observation, ObservationError, Profile, Source, Stack, Workload, artifact,
};
use crate::store::outline::{Outline, record};
use crate::store::{self, Generation, ImageRecord, Salt, StackRecord, Store};
use crate::telemetry::log;
use crate::tocs::Tocs;
pub use error::Error;
use merger::{Merger, Seen};
#[cfg(feature = "predict")]
use predictions::Predictions;
pub use ranges::Ranges;

/// The memory for knowledge of images, in bytes.
const REMEMBERED_BYTES: u64 = 32 << 20;
/// How long cached knowledge is used. Other replicas learn too.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// The memory for stacks, in layers: some 10 MiB.
const REMEMBERED_LAYERS: u64 = 100_000;
const STACK_FOR: Duration = Duration::from_secs(5 * 60);
/// The number of profiles made at once: each may take megabytes and tens of milliseconds.
const MADE_AT_ONCE: usize = 4;
/// The number of images remembered as noticed, and how long. Afterwards their stack records are
/// checked again.
const SEEN_IMAGES: u64 = 10_000;
const SEEN_FOR: Duration = Duration::from_secs(60 * 60);

/// The profiles of images. Clones share them.
#[derive(Debug, Clone)]
pub struct Profiles {
    shared: Arc<Shared>,
    /// `None` if first reads are not predicted.
    #[cfg(feature = "predict")]
    predictions: Option<Arc<Predictions>>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    tocs: Tocs,
    merger: Merger,
    known: Cache<Digest, Arc<Knowledge>>,
    stacks: Cache<Stack, Arc<StackRecord>>,
    seen: Cache<Digest, ()>,
    slots: Semaphore,
    salt: OnceCell<Salt>,
    /// The generation of the images that are converted here.
    generation: Generation,
}

/// A profile as it is served.
#[derive(Debug)]
pub struct ProfileDocument {
    pub json: Bytes,
    pub digest: Digest,
    /// Whether the profile has no files.
    pub is_empty: bool,
}

impl ProfileDocument {
    fn new(profile: &Profile) -> serde_json::Result<Self> {
        // A vector that doubles would keep up to twice the text.
        let json = Bytes::from(profile.to_json()?.into_boxed_slice());
        Ok(Self {
            digest: Digest::sha256_of(&json),
            json,
            is_empty: profile.is_empty(),
        })
    }
}

/// A profile as an artifact that refers to an image.
#[derive(Debug)]
pub struct StoredArtifact {
    /// The artifact in the list of referrers.
    pub listed: Descriptor,
    /// The digests of the artifact and its blobs, which are stored.
    pub objects: Vec<Digest>,
}

/// Why an observation is rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    #[error("no image here has these layers")]
    UnknownStack,
    #[error(transparent)]
    Observation(#[from] ObservationError),
    #[error("{unknown} of its {files} files are not in the image")]
    OfAnotherImage { unknown: usize, files: usize },
    #[error("too many observations are waiting")]
    Busy,
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<store::Error> for Refused {
    fn from(error: store::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The state of learning, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// How often observations of an image were merged here since the start.
    pub merges: u64,
    /// When observations were last merged, in seconds since 1970.
    pub last_learned: Option<u64>,
    /// Images whose observations wait to be merged.
    pub waiting_images: usize,
}

impl Profiles {
    /// Creates profiles for the images of `generation` in the store. Observations of one image are
    /// gathered for `merge_interval` before they are written.
    pub fn new(store: Store, generation: Generation, merge_interval: Duration) -> Self {
        let bytes =
            |_: &Digest, known: &Arc<Knowledge>| u32::try_from(known.weight()).unwrap_or(u32::MAX);
        let layers = |_: &Stack, record: &Arc<StackRecord>| {
            u32::try_from(record.layers.len()).unwrap_or(u32::MAX)
        };
        let known = Cache::builder()
            .max_capacity(REMEMBERED_BYTES)
            .weigher(bytes)
            .time_to_live(REMEMBERED_FOR)
            .build();
        let shared = Shared {
            tocs: Tocs::new(store.clone()),
            merger: Merger::new(store.clone(), known.clone(), merge_interval),
            known,
            store,
            stacks: Cache::builder()
                .max_capacity(REMEMBERED_LAYERS)
                .weigher(layers)
                .time_to_live(STACK_FOR)
                .build(),
            seen: Cache::builder()
                .max_capacity(SEEN_IMAGES)
                .time_to_live(SEEN_FOR)
                .build(),
            slots: Semaphore::new(MADE_AT_ONCE),
            salt: OnceCell::new(),
            generation,
        };
        Self {
            shared: Arc::new(shared),
            #[cfg(feature = "predict")]
            predictions: None,
        }
    }

    /// Returns these profiles with predictions for images that were never started.
    #[cfg(feature = "predict")]
    #[must_use]
    pub fn predicting(self, predictor: Predictor) -> Self {
        Self {
            predictions: Some(Arc::new(Predictions::new(predictor))),
            ..self
        }
    }

    /// Returns the knowledge of the starts of an image; `None` if no image here has these layers.
    pub async fn knowledge(&self, stack: &Stack) -> Result<Option<Arc<Knowledge>>, Error> {
        let Some(image) = self.stack(stack).await? else {
            return Ok(None);
        };
        let known = self.known(&image.config).await?;
        #[cfg(feature = "predict")]
        let known = if known.is_empty() && !known.has_prediction() {
            self.predict_soon(&image).await;
            self.known(&image.config).await?
        } else {
            known
        };
        Ok(Some(known))
    }

    /// As [`knowledge`](Self::knowledge), but predicts nothing.
    pub async fn known_so_far(&self, stack: &Stack) -> Result<Option<Arc<Knowledge>>, Error> {
        match self.stack(stack).await? {
            Some(image) => self.known(&image.config).await.map(Some),
            None => Ok(None),
        }
    }

    /// The reader of stored TOCs. Its clones share one cache.
    pub fn tocs(&self) -> &Tocs {
        &self.shared.tocs
    }

    /// Returns the digest of the source manifest of the image with these layers; `None` when no
    /// image here has them.
    pub async fn source_of(&self, stack: &Stack) -> Result<Option<Digest>, Error> {
        Ok(self.stack(stack).await?.map(|image| image.source.clone()))
    }

    /// Returns the profile with the files to prefetch for a start.
    pub async fn profile(
        &self,
        known: Arc<Knowledge>,
        workload: Workload,
    ) -> Result<Profile, Error> {
        let slot = self.shared.slots.acquire().await;
        let _slot = slot.map_err(|_closed| Error::BrokenOff)?;
        let made = tokio::task::spawn_blocking(move || known.profile(&workload)).await;
        made.map_err(|_ended| Error::BrokenOff)
    }

    /// Returns the profile with the files to prefetch for a start, as it is served. It has at most
    /// `MAX_PROFILE_BYTES`.
    pub async fn document(
        &self,
        known: Arc<Knowledge>,
        workload: Workload,
    ) -> Result<ProfileDocument, Error> {
        let _slot = self
            .shared
            .slots
            .acquire()
            .await
            .map_err(|_closed| Error::BrokenOff)?;
        let make = move || ProfileDocument::new(&known.profile(&workload));
        let made = tokio::task::spawn_blocking(make).await;
        made.map_err(|_ended| Error::BrokenOff)?
            .map_err(Error::Document)
    }

    /// Checks and queues the observation that the node at `address` made of a start. Returns how
    /// many of its files are not in the image.
    ///
    /// The observation is written a little later, together with others.
    pub async fn observe(
        &self,
        stack: &Stack,
        workload: &Workload,
        address: IpAddr,
        document: Vec<u8>,
    ) -> Result<usize, Refused> {
        let image = self.stack(stack).await?.ok_or(Refused::UnknownStack)?;
        let layers = image.layers.len();
        let parsed =
            tokio::task::spawn_blocking(move || Observation::parse(&document, layers)).await;
        let observation = parsed.map_err(|_ended| Error::BrokenOff)??;
        let files = observation.files().len();
        let observation = check::in_image(&self.shared.tocs, &image, observation).await?;
        let unknown = files - observation.files().len();
        if unknown * 2 > files {
            return Err(Refused::OfAnotherImage { unknown, files });
        }
        let observer = self.observer(&image.config, address).await?;
        let seen = Seen {
            observation,
            heard: unix_now(),
        };
        let is_taken =
            self.shared
                .merger
                .offer(&image.config, workload, observer, Source::Agents, seen);
        is_taken.then_some(unknown).ok_or(Refused::Busy)
    }

    /// Stores, in the background, the record that lets nodes look up the profile of the image whose
    /// manifest is served, also for images converted before these records existed. `source_manifest`
    /// resolves to the source manifest, `recorded` to a profile that was recorded by hand for that
    /// manifest.
    pub fn notice<F, G>(
        &self,
        manifest: &Manifest,
        source_manifest: impl FnOnce(Digest) -> F + Send + 'static,
        recorded: impl FnOnce(Digest) -> G + Send + 'static,
    ) where
        F: Future<Output = Option<Manifest>> + Send,
        G: Future<Output = Option<Profile>> + Send,
    {
        let (this, manifest) = (self.clone(), manifest.clone());
        tokio::spawn(async move {
            if !this
                .shared
                .seen
                .entry(manifest.digest.clone())
                .or_insert(())
                .await
                .is_fresh()
            {
                return;
            }
            let kept = match this.keep(&manifest, source_manifest).await {
                Ok(Some(kept)) => {
                    #[cfg(feature = "predict")]
                    this.predict(&kept).await;
                    this.take_record(kept, recorded).await
                }
                outcome => outcome.map(drop),
            };
            if let Err(error) = kept {
                this.shared.seen.invalidate(&manifest.digest).await;
                tracing::warn!(manifest = %manifest.digest, error = log::chain(&error), "the image is not learned of");
            }
        });
    }

    /// Writes the waiting observations.
    pub async fn flush(&self) {
        self.shared.merger.flush().await;
    }

    pub fn status(&self) -> Status {
        self.shared.merger.status()
    }

    /// Returns the record of the image's stack, after storing it if it was missing.
    ///
    /// The source that a manifest names counts only if the manifest was made here: anyone may write
    /// that an image was made from another one.
    async fn keep<F>(
        &self,
        manifest: &Manifest,
        source_manifest: impl FnOnce(Digest) -> F,
    ) -> Result<Option<StackRecord>, Error>
    where
        F: Future<Output = Option<Manifest>>,
    {
        let Some(outline) = outline(manifest).await else {
            return Ok(None);
        };
        let Some(source) = outline.source(manifest) else {
            return Ok(None);
        };
        if let Some(record) = self.shared.store.stack(&outline.stack()).await? {
            return Ok(Some(record));
        }
        let record = match self.made_here(&source, &manifest.digest).await? {
            Some(made) => {
                let Some(source_manifest) = source_manifest(source).await else {
                    return Ok(None);
                };
                let Some(source_manifest) = self::outline(&source_manifest).await else {
                    return Ok(None);
                };
                let config = made
                    .passed_through
                    .is_empty()
                    .then_some(&source_manifest.config);
                Some(record(&made.source, config, outline.layers))
            }
            // A converted image that was made elsewhere is treated as a source image.
            None => outline.of_itself(manifest),
        };
        let Some(record) = record else {
            return Ok(None);
        };
        self.shared.store.put_stack(&record).await?;
        Ok(Some(record))
    }

    /// Returns the record of the image `source`, if the manifest `converted` was made from it here.
    async fn made_here(
        &self,
        source: &Digest,
        converted: &Digest,
    ) -> Result<Option<ImageRecord>, Error> {
        let made = self
            .shared
            .store
            .image(&self.shared.generation, source)
            .await?;
        Ok(made.filter(|made| made.converted != made.source && made.objects.contains(converted)))
    }

    /// Returns the key of a converted image's knowledge, found by the digest of the source's
    /// manifest.
    async fn image_of_source(&self, source: &Digest) -> Result<Option<Digest>, Error> {
        let store = &self.shared.store;
        let Some(made) = store.image(&self.shared.generation, source).await? else {
            return Ok(None);
        };
        let Some(object) = store.find(&made.converted).await? else {
            return Ok(None);
        };
        let converted = Manifest {
            media_type: made.media_type,
            digest: made.converted,
            bytes: store.read_all(&object).await?,
        };
        let Some(outline) = outline(&converted).await else {
            return Ok(None);
        };
        Ok(self
            .stack(&outline.stack())
            .await?
            .map(|record| record.config.clone()))
    }

    /// Merges the profile that was recorded by hand, if there is one.
    async fn take_record<G>(
        &self,
        image: StackRecord,
        recorded: impl FnOnce(Digest) -> G,
    ) -> Result<(), Error>
    where
        G: Future<Output = Option<Profile>>,
    {
        let Some(profile) = recorded(image.source.clone()).await else {
            return Ok(());
        };
        let by_hand = profile
            .files
            .into_iter()
            .filter(|file| file.sources.contains(&Source::ByHand));
        let recorded = Observation::new(by_hand.map(FileUse::from).collect());
        let files = check::in_image(&self.shared.tocs, &image, recorded)
            .await?
            .files()
            .to_vec();
        if files.is_empty() {
            return Ok(());
        }
        tracing::info!(source = %image.source, files = files.len(), "profile recorded by hand merged");
        let merge: store::Merge =
            Arc::new(move |knowledge: &mut Knowledge| knowledge.record(files.clone()));
        self.shared.store.learn(&image.config, &merge).await?;
        self.shared.known.invalidate(&image.config).await;
        Ok(())
    }

    /// Returns the profile of the image with this manifest, of a source image or a converted one,
    /// as an artifact that refers to it. The artifact is stored, so that it can be fetched.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn artifact(&self, subject: &Manifest) -> Result<Option<StoredArtifact>, Error> {
        let Some(outline) = outline(subject).await else {
            return Ok(None);
        };
        let config = match self.stack(&outline.stack()).await? {
            Some(record) => Some(record.config.clone()),
            None => self.image_of_source(&subject.digest).await?,
        };
        let Some(config) = config else {
            return Ok(None);
        };
        let known = self.known(&config).await?;
        if known.is_empty() {
            return Ok(None);
        }
        let _slot = self
            .shared
            .slots
            .acquire()
            .await
            .map_err(|_closed| Error::BrokenOff)?;
        let created =
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(known.heard()))
                .to_string();
        let subject = subject.descriptor();
        let made = tokio::task::spawn_blocking(move || {
            artifact::of(&known.profile(&Workload::default()), &subject, &created)
        });
        let artifact = made
            .await
            .map_err(|_ended| Error::BrokenOff)?
            .map_err(Error::Document)?;
        let listed = artifact.listed();
        let mut objects = vec![listed.digest.clone()];
        for (blob, bytes) in artifact.blobs {
            let stored = self.shared.store.put(&blob.media_type, bytes).await?;
            objects.push(stored.digest);
        }
        self.shared
            .store
            .put(&artifact.manifest.media_type, artifact.manifest.bytes)
            .await?;
        Ok(Some(StoredArtifact { listed, objects }))
    }

    async fn stack(&self, stack: &Stack) -> Result<Option<Arc<StackRecord>>, Error> {
        if let Some(record) = self.shared.stacks.get(stack).await {
            return Ok(Some(record));
        }
        let Some(record) = self.shared.store.stack(stack).await?.map(Arc::new) else {
            return Ok(None);
        };
        self.shared
            .stacks
            .insert(stack.clone(), Arc::clone(&record))
            .await;
        Ok(Some(record))
    }

    async fn known(&self, image: &Digest) -> Result<Arc<Knowledge>, Error> {
        let read = async { self.shared.store.knowledge(image).await.map(Arc::new) };
        let entry = self.shared.known.entry(image.clone());
        let known = entry.or_try_insert_with(read).await;
        let known = known.map_err(Error::Shared)?;
        if known.is_fresh() {
            // By itself, the cache shrinks to its capacity only after some dozen images.
            self.shared.known.run_pending_tasks().await;
        }
        Ok(known.into_value())
    }

    /// Returns a name for the node at `address` from which the address cannot be derived. Of an
    /// IPv6 address only the network (/64) counts, because its owner has all the addresses in it.
    async fn observer(&self, image: &Digest, address: IpAddr) -> Result<String, Error> {
        let salt = self
            .shared
            .salt
            .get_or_try_init(|| self.shared.store.salt())
            .await?;
        let hasher = Sha256::new()
            .chain_update(salt.as_bytes())
            .chain_update(image.to_string());
        let sum = match address.to_canonical() {
            IpAddr::V4(address) => hasher.chain_update(address.octets()).finalize(),
            IpAddr::V6(address) => hasher.chain_update(&address.octets()[..8]).finalize(),
        };
        Ok(hex::encode(&sum[..8]))
    }
}

/// Returns the outline of a manifest of any size.
async fn outline(manifest: &Manifest) -> Option<Outline> {
    let (len, manifest) = (manifest.bytes.len(), manifest.clone());
    aside(len, move || Outline::read(&manifest)).await
}
