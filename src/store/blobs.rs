//! Objects by digest: found through their record, read in ranges, and put if they are small.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};

use super::error::{Damage, Error};
use super::key::Key;
use super::open_files::OpenFile;
use super::range_cache::{PieceId, RangeCache};
use super::{Buffer, Object, Store};
use crate::oci::Digest;

/// Objects up to this size are cached in memory after `read_all`: manifests and configurations, not
/// TOCs.
const MAX_CACHED_BYTES: u64 = 1 << 20;
/// Pieces of a range that are fetched before the client has read the ones before.
const PIECES_AHEAD: usize = 2;
/// Objects up to this size are read and compared with their digest before the first byte is passed
/// on, so that damage still gives a status: configurations and manifests. A client's first piece
/// takes four times as much memory.
const CHECKED_FIRST: u64 = 64 << 10;

/// An object's bytes on this machine.
#[derive(Debug)]
pub struct Nearby(Place);

#[derive(Debug)]
enum Place {
    File(Arc<OpenFile>),
    Pieces(RangeCache, Digest),
}

impl Nearby {
    /// Fills `buffer` with the object's bytes at `offset`, and returns whether it is full. It is not
    /// unless all of them are in the page cache. Never waits for the disk.
    pub fn read_cached(&self, buffer: &mut [u8], offset: u64) -> bool {
        match &self.0 {
            Place::File(file) => file.read_cached(buffer, offset),
            Place::Pieces(cache, digest) => cache.read_cached(digest, buffer, offset),
        }
    }
}

impl Store {
    /// The object with this digest, if a record makes it visible. Counts as a use of it.
    pub async fn find(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        let found = self.locate(digest).await?;
        if found.is_some() {
            self.note_use(digest);
        }
        Ok(found)
    }

    /// As [`find`](Self::find), but does not count as a use.
    pub(super) async fn locate(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        if let Some(object) = self.inner.objects.get(digest).await {
            return Ok(Some(object));
        }
        let forgotten = self.inner.forgotten.load(Ordering::Acquire);
        let found = Box::pin(self.look_up(digest)).await?;
        if let Some(object) = &found {
            self.inner
                .objects
                .insert(digest.clone(), object.clone())
                .await;
            // The record may have been read before it was deleted, and cached after it was
            // forgotten.
            if self.inner.forgotten.load(Ordering::Acquire) != forgotten {
                self.inner.objects.invalidate(digest).await;
            }
        }
        Ok(found)
    }

    /// As [`locate`](Self::locate), but without the cache: the returned object was readable a
    /// moment ago.
    pub(super) async fn look_up(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        let Some(object) = self.digest_record(digest).await? else {
            return Ok(None);
        };
        let damage = match self.inner.backend.head(&object.key).await? {
            Some(meta) if meta.size == object.size => return Ok(Some(object)),
            Some(_) => Damage::Size,
            None => Damage::Missing,
        };
        self.forget_damaged(&object, damage).await;
        Ok(None)
    }

    /// The bytes of `range`, which lies within the object.
    ///
    /// The stream fails instead of ending early. A whole object is compared with its digest on the
    /// way: the last bytes are only returned if all are right. A part cannot be compared, so its
    /// layer is checked in the background. A damaged object is forgotten.
    ///
    /// # Errors
    /// [`Error::Gone`] if the object was deleted since it was found, [`Error::Damaged`] if its
    /// bytes differ from those that were put, or the backend's error.
    pub async fn read(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        if range.start > range.end || range.end > object.size {
            return Err(Error::OutOfBounds {
                digest: object.digest.clone(),
                range,
            });
        }
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        if let Some(cache) = &self.inner.ranges
            && range != (0..object.size)
        {
            self.check_later(object);
            return self.read_pieces(cache, object, range).await;
        }
        let bytes = self.read_backend(object, range.clone()).await?;
        if range != (0..object.size) {
            self.check_later(object);
            return Ok(exactly(
                object.digest.clone(),
                range.end - range.start,
                bytes,
            ));
        }
        let bytes = self.verified(object.clone(), bytes);
        if object.size > CHECKED_FIRST {
            return Ok(bytes);
        }
        let pieces: Vec<Bytes> = bytes.try_collect().await?;
        Ok(stream::iter(pieces.into_iter().map(Ok)).boxed())
    }

    /// Reads from the folder or bucket.
    async fn read_backend(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let body = match self.body(object, range).await? {
            Ok(body) => body,
            Err(damage) => {
                self.forget_damaged(object, damage).await;
                return Err(Error::Gone(object.digest.clone()));
            }
        };
        let what = format!("reading {}", object.key);
        let failed = move |source| Error::Backend {
            what: what.clone(),
            source,
        };
        Ok(body.stream.map_err(failed).boxed())
    }

    /// Reads the pieces of a range, from disk or from the bucket. The first one is read when this
    /// returns.
    async fn read_pieces(
        &self,
        cache: &RangeCache,
        object: &Object,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let mut numbers = PieceId::numbers(&range);
        let Some(first) = numbers.next() else {
            return Ok(stream::empty().boxed());
        };
        let first = self.part_of_piece(cache, object, &range, first).await?;
        let (store, cache, object) = (self.clone(), cache.clone(), object.clone());
        let others = stream::iter(numbers).map(move |number| {
            let (store, cache, object) = (store.clone(), cache.clone(), object.clone());
            let range = range.clone();
            async move { store.part_of_piece(&cache, &object, &range, number).await }
        });
        let others = others.buffered(PIECES_AHEAD);
        Ok(stream::iter([Ok(first)]).chain(others).boxed())
    }

    /// Returns the bytes of `range` that are in one piece.
    async fn part_of_piece(
        &self,
        cache: &RangeCache,
        object: &Object,
        range: &Range<u64>,
        number: u64,
    ) -> Result<Bytes, Error> {
        let id = PieceId {
            digest: object.digest.clone(),
            number,
        };
        let whole = id.range(object.size);
        let (store, wanted) = (self.clone(), object.clone());
        let within = whole.clone();
        let fetch = move || async move { store.read_part(&wanted, within).await.ok() };
        let at = |offset: u64| {
            let within = offset.clamp(whole.start, whole.end) - whole.start;
            usize::try_from(within).unwrap_or_default()
        };
        let within = at(range.start)..at(range.end);
        match cache.part(id, within, fetch).await {
            Some(bytes) => Ok(bytes),
            // Asked once more for the reason.
            None => {
                let start = range.start.max(whole.start);
                self.read_part(object, start..range.end.min(whole.end))
                    .await
            }
        }
    }

    /// Reads a part of an object that fits into memory.
    async fn read_part(&self, object: &Object, range: Range<u64>) -> Result<Bytes, Error> {
        let length = range.end - range.start;
        let bytes = self.read_backend(object, range).await?;
        let bytes = exactly(object.digest.clone(), length, bytes);
        let pieces: Vec<Bytes> = bytes.try_collect().await?;
        Ok(joined(pieces))
    }

    /// A buffer for bytes of an open file.
    pub fn buffer(&self, length: usize) -> Buffer {
        self.inner.backend.buffers().take(length)
    }

    /// The object's bytes on this machine, for parts of it that are in the page cache. `None` in a
    /// bucket without a cache here.
    ///
    /// As with [`read`](Self::read), the object is checked in the background.
    pub async fn nearby(&self, object: &Object) -> Option<Nearby> {
        if let Some(cache) = &self.inner.ranges {
            self.check_later(object);
            let place = Place::Pieces(cache.clone(), object.digest.clone());
            return Some(Nearby(place));
        }
        let file = self.open_file(object).await?;
        Some(Nearby(Place::File(file)))
    }

    async fn open_file(&self, object: &Object) -> Option<Arc<OpenFile>> {
        if let Some(file) = self.inner.files.get(&object.digest) {
            self.check_later(object);
            return Some(file);
        }
        let path = self.inner.backend.file(&object.key)?;
        self.check_later(object);
        let (store, object) = (self.clone(), object.clone());
        let open = move || {
            let files = &store.inner.files;
            files.open(object.digest.clone(), &path, object.size);
            files.get(&object.digest)
        };
        tokio::task::spawn_blocking(open).await.ok().flatten()
    }

    /// Passes on all of the object's bytes, the last of them only after they have the right digest.
    fn verified(
        &self,
        object: Object,
        bytes: BoxStream<'static, Result<Bytes, Error>>,
    ) -> BoxStream<'static, Result<Bytes, Error>> {
        let state = (bytes, object.digest.hasher(), object.size, self.clone());
        stream::try_unfold(state, move |(mut bytes, mut hasher, left, store)| {
            let object = object.clone();
            async move {
                if left == 0 {
                    return Ok(None);
                }
                let damaged = |reason: &str| Error::Damaged {
                    digest: object.digest.clone(),
                    reason: reason.to_owned(),
                };
                let piece = bytes
                    .try_next()
                    .await?
                    .ok_or_else(|| damaged("bytes ended too early"))?;
                hasher.update(&piece);
                let left = left.checked_sub(piece.len() as u64);
                let left = left.ok_or_else(|| damaged("more bytes than requested"))?;
                if left == 0 && hasher.clone().finish() != object.digest {
                    store.forget_damaged(&object, Damage::Bytes).await;
                    return Err(damaged("bytes have another digest"));
                }
                Ok(Some((piece, (bytes, hasher, left, store))))
            }
        })
        .boxed()
    }

    /// The object's file in a [`scratch`](Self::scratch) store. The caller may rename it. It is not
    /// synced.
    pub fn scratch_file(&self, object: &Object) -> Option<PathBuf> {
        self.inner.backend.scratch_file(&object.key)
    }

    /// All bytes of a small object, checked against its digest.
    pub async fn read_all(&self, object: &Object) -> Result<Bytes, Error> {
        if let Some(bytes) = self.inner.small.get(&object.digest).await {
            return Ok(bytes);
        }
        let pieces: Vec<Bytes> = self
            .read(object, 0..object.size)
            .await?
            .try_collect()
            .await?;
        let bytes = joined(pieces);
        if object.size <= MAX_CACHED_BYTES {
            self.inner
                .small
                .insert(object.digest.clone(), bytes.clone())
                .await;
            // By itself, the cache shrinks to its capacity only after some dozen objects.
            self.inner.small.run_pending_tasks().await;
        }
        Ok(bytes)
    }

    /// Stores a small object under its own digest and makes it visible. Bytes that are already
    /// there are compared first.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room for it, or the backend's error.
    pub async fn put(&self, media_type: &str, bytes: Bytes) -> Result<Object, Error> {
        let digest = Digest::sha256_of(&bytes);
        if self.digest_record(&digest).await?.is_some() {
            // Marked before the look-up, so that the sweep does not delete it in between.
            self.mark_used(&digest).await?;
            if let Some(object) = self.look_up(&digest).await?
                && self.is_whole(&object).await?
            {
                return Ok(object);
            }
        }
        let key = Key::Blob(digest.clone());
        let object = Object {
            digest,
            size: bytes.len() as u64,
            media_type: Some(media_type.to_owned()),
            key,
        };
        let room = self.reserve(object.size).await?;
        self.inner.backend.put(&object.key, bytes).await?;
        room.keep(object.size);
        self.record_object(&object).await?;
        Ok(object)
    }

    /// Whether the object's bytes are those that were put. A damaged object is forgotten.
    pub(super) async fn is_whole(&self, object: &Object) -> Result<bool, Error> {
        match self.check(object).await {
            Ok(()) => Ok(true),
            Err(Error::Damaged { .. } | Error::Gone(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A URL that lets anyone read the object for `lifetime`, if the backend can sign one.
    pub async fn signed_url(
        &self,
        object: &Object,
        lifetime: Duration,
    ) -> Result<Option<url::Url>, Error> {
        let Some(signer) = self.inner.backend.signer() else {
            return Ok(None);
        };
        // The bytes do not pass through this process, so they are checked in the background.
        self.check_later(object);
        let path = self.inner.backend.path(&object.key);
        match signer.signed_url(http::Method::GET, &path, lifetime).await {
            Ok(url) => Ok(Some(url)),
            Err(source) => Err(Error::Backend {
                what: format!("signing a URL of {}", object.key),
                source,
            }),
        }
    }

    /// Removes an object from the caches, after its record was deleted.
    pub(super) async fn forget(&self, digest: &Digest) {
        self.inner.forgotten.fetch_add(1, Ordering::AcqRel);
        self.inner.objects.invalidate(digest).await;
        self.inner.small.invalidate(digest).await;
        self.inner.files.close(digest);
        self.inner.images.invalidate_all();
    }
}

fn joined(pieces: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([whole]) => whole,
        Err(pieces) => pieces.concat().into(),
    }
}

/// Fails if `bytes` ends before `length` or continues after it.
fn exactly(
    digest: Digest,
    length: u64,
    bytes: BoxStream<'static, Result<Bytes, Error>>,
) -> BoxStream<'static, Result<Bytes, Error>> {
    stream::try_unfold((bytes, length), move |(mut bytes, left)| {
        let digest = digest.clone();
        async move {
            let damaged = |reason: &str| Error::Damaged {
                digest,
                reason: reason.to_owned(),
            };
            match bytes.try_next().await? {
                Some(piece) => match left.checked_sub(piece.len() as u64) {
                    Some(left) => Ok(Some((piece, (bytes, left)))),
                    None => Err(damaged("more bytes than requested")),
                },
                None if left == 0 => Ok(None),
                None => Err(damaged("bytes ended too early")),
            }
        }
    })
    .boxed()
}
