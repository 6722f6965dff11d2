//! Objects by digest: found through their record, read in ranges, put when small.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};

use super::error::Error;
use super::key::Key;
use super::{Object, Store};
use crate::oci::Digest;

/// Objects up to this size are kept in memory after `read_all`: manifests and configurations, not TOCs.
const MAX_CACHED_BYTES: u64 = 1 << 20;

impl Store {
    /// The object with this digest, if a record makes it visible. Counts as a use of it.
    pub async fn find(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        let found = self.locate(digest).await?;
        if found.is_some() {
            self.note_use(digest);
        }
        Ok(found)
    }

    /// As [`find`](Self::find), but no use.
    pub(super) async fn locate(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        if let Some(object) = self.inner.objects.get(digest).await {
            return Ok(Some(object));
        }
        let found = self.look_up(digest).await?;
        if let Some(object) = &found {
            self.inner.objects.insert(digest.clone(), object.clone()).await;
        }
        Ok(found)
    }

    /// As [`locate`](Self::locate), past the cache: what it gives could be read a moment ago.
    pub(super) async fn look_up(&self, digest: &Digest) -> Result<Option<Object>, Error> {
        let Some(object) = self.digest_record(digest).await? else { return Ok(None) };
        let stored = self.inner.backend.head(&object.key).await?;
        if stored.as_ref().is_some_and(|meta| meta.size == object.size) {
            return Ok(Some(object));
        }
        let size = stored.map(|meta| meta.size);
        tracing::warn!(%digest, key = %object.key, expected = object.size, ?size, "a visible object is missing or torn");
        Ok(None)
    }

    /// The bytes of `range`, which lies within the object.
    ///
    /// The stream fails rather than end early. [`Error::Gone`] means that the object went since it was found.
    pub async fn read(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        if range.start > range.end || range.end > object.size {
            return Err(Error::OutOfBounds { digest: object.digest.clone(), range });
        }
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let body = match self.inner.backend.open(&object.key, range.clone()).await? {
            Some(body) if body.object_size == object.size => body,
            _ => {
                self.forget(&object.digest).await;
                return Err(Error::Gone(object.digest.clone()));
            }
        };
        let what = format!("reading {}", object.key);
        let bytes = body.stream.map_err(move |source| Error::Backend { what: what.clone(), source });
        Ok(exactly(object.digest.clone(), range.end - range.start, bytes.boxed()))
    }

    /// The object's file in a [`scratch`](Self::scratch) store: it may be given another name. It is not synced.
    pub fn scratch_file(&self, object: &Object) -> Option<PathBuf> {
        self.inner.backend.scratch_file(&object.key)
    }

    /// All bytes of a small object, checked against its digest.
    pub async fn read_all(&self, object: &Object) -> Result<Bytes, Error> {
        if let Some(bytes) = self.inner.small.get(&object.digest).await {
            return Ok(bytes);
        }
        let pieces: Vec<Bytes> = self.read(object, 0..object.size).await?.try_collect().await?;
        let bytes = match <[Bytes; 1]>::try_from(pieces) {
            Ok([whole]) => whole,
            Err(pieces) => pieces.concat().into(),
        };
        let mut hasher = object.digest.hasher();
        hasher.update(&bytes);
        if hasher.finish() != object.digest {
            let reason = "its bytes have another digest".to_owned();
            return Err(Error::Damaged { digest: object.digest.clone(), reason });
        }
        if object.size <= MAX_CACHED_BYTES {
            self.inner.small.insert(object.digest.clone(), bytes.clone()).await;
        }
        Ok(bytes)
    }

    /// Keeps a small object under its own digest and makes it visible.
    pub async fn put(&self, media_type: &str, bytes: Bytes) -> Result<Object, Error> {
        let digest = Digest::sha256_of(&bytes);
        if self.digest_record(&digest).await?.is_some() {
            // Marked before the look, for the sweep's sake.
            self.mark_used(&digest).await?;
            if let Some(object) = self.look_up(&digest).await? {
                return Ok(object);
            }
        }
        let key = Key::Blob(digest.clone());
        let object = Object { digest, size: bytes.len() as u64, media_type: Some(media_type.to_owned()), key };
        self.inner.backend.put(&object.key, bytes).await?;
        self.record_object(&object).await?;
        Ok(object)
    }

    /// A URL that lets anyone read the object for `lifetime`, where the backend can sign one.
    pub async fn signed_url(&self, object: &Object, lifetime: Duration) -> Result<Option<url::Url>, Error> {
        let Some(signer) = self.inner.backend.signer() else { return Ok(None) };
        let path = self.inner.backend.path(&object.key);
        match signer.signed_url(http::Method::GET, &path, lifetime).await {
            Ok(url) => Ok(Some(url)),
            Err(source) => Err(Error::Backend { what: format!("signing a URL of {}", object.key), source }),
        }
    }

    pub(super) async fn forget(&self, digest: &Digest) {
        self.inner.objects.invalidate(digest).await;
        self.inner.small.invalidate(digest).await;
        self.inner.images.invalidate_all();
    }
}

/// Fails when `bytes` ends before or goes on after `length`.
fn exactly(
    digest: Digest,
    length: u64,
    bytes: BoxStream<'static, Result<Bytes, Error>>,
) -> BoxStream<'static, Result<Bytes, Error>> {
    stream::try_unfold((bytes, length), move |(mut bytes, left)| {
        let digest = digest.clone();
        async move {
            let damaged = |reason: &str| Error::Damaged { digest, reason: reason.to_owned() };
            match bytes.try_next().await? {
                Some(piece) => match left.checked_sub(piece.len() as u64) {
                    Some(left) => Ok(Some((piece, (bytes, left)))),
                    None => Err(damaged("more bytes came than were asked for")),
                },
                None if left == 0 => Ok(None),
                None => Err(damaged("the bytes ended too early")),
            }
        }
    })
    .boxed()
}
