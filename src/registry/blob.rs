//! Blobs of a registry, whole or in part. A broken connection is resumed where it broke off.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use futures::{StreamExt as _, TryStreamExt as _};

use super::body::Body;
use super::client::{PULL, Registry};
use super::error::Error;
use super::origin::Origin;
use super::part::{Blob, Chunks, Part, Wanted};
use super::peer::Peer;
use super::starlift::Purpose;
use super::verify::verified;
use crate::oci::{Digest, Repository};

/// An attempt that delivered this many bytes does not count as failed: more than a response head,
/// less than any window of a connection. A blob that breaks off every few bytes must end in an
/// error.
const PROGRESS: u64 = 4 << 10;

impl Registry {
    pub(crate) async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, Error> {
        let size = async |endpoint| {
            Blob {
                endpoint,
                repository,
                digest,
                purpose: None,
            }
            .size()
            .await
        };
        self.try_each(PULL, Some(digest), |_, endpoint| size(endpoint))
            .await
    }

    /// Returns the size of a blob, and the Starlift server that has it, if it is one.
    pub(crate) async fn locate(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(u64, Option<Peer>), Error> {
        let locate = |number, endpoint| async move {
            let size = Blob {
                endpoint,
                repository,
                digest,
                purpose: None,
            }
            .size()
            .await?;
            Ok((
                size,
                endpoint
                    .is_starlift()
                    .then(|| Peer::new(self, number, repository)),
            ))
        };
        self.try_each(PULL, Some(digest), locate).await
    }

    /// Returns a blob's bytes. A range is cut at the blob's end; a range that starts at the end or
    /// after it is an error.
    pub(crate) async fn blob(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        range: Option<Range<u64>>,
        purpose: Option<Purpose>,
    ) -> Result<Body, Error> {
        if let Some(range) = range.as_ref().filter(|range| range.is_empty()) {
            let blob_size = self.blob_size(repository, digest).await?;
            let (range, stream) = (range.start..range.start, stream::empty().boxed());
            return Ok(Body {
                blob_size,
                range,
                stream,
                peer: None,
                origin: None,
            });
        }
        let wanted = range.map_or(Wanted::Whole, Wanted::Range);
        let part = self.part(repository, digest, &wanted, purpose).await?;
        Ok(self.body(repository, digest, part, purpose))
    }

    /// Returns the last `length` bytes of a blob, or all of it if it is shorter.
    pub(crate) async fn blob_tail(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        length: u64,
    ) -> Result<Body, Error> {
        if length == 0 {
            let blob_size = self.blob_size(repository, digest).await?;
            let (range, stream) = (blob_size..blob_size, stream::empty().boxed());
            return Ok(Body {
                blob_size,
                range,
                stream,
                peer: None,
                origin: None,
            });
        }
        let part = self
            .part(repository, digest, &Wanted::Tail(length), None)
            .await?;
        Ok(self.body(repository, digest, part, None))
    }

    fn body(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        part: Part,
        purpose: Option<Purpose>,
    ) -> Body {
        let Part {
            blob_size,
            range,
            chunks,
            number,
            starlift,
        } = part;
        let host = Arc::clone(self.endpoint(number).key());
        let origin = Origin::new(self.own.http().health().clone(), digest.clone(), host);
        let peer = starlift.then(|| Peer::new(self, number, repository));
        let reading = Reading {
            registry: Arc::clone(self),
            repository: repository.clone(),
            digest: digest.clone(),
            purpose,
            origin: origin.clone(),
            blob_size,
            left: range.clone(),
            chunks: Some(chunks),
            failures: 0,
            progress: 0,
        };
        let chunks = reading.stream();
        let is_whole = range == (0..blob_size);
        let stream = if is_whole {
            reported(verified(chunks, digest.clone(), blob_size), &origin)
        } else {
            chunks
        };
        Body {
            blob_size,
            range,
            stream,
            peer,
            origin: Some(origin),
        }
    }
}

/// Reports the host if it sends bytes that are not the blob's.
fn reported(chunks: Chunks, origin: &Origin) -> Chunks {
    let origin = origin.clone();
    let report = move |error: &Error| {
        if matches!(error, Error::WrongDigest { .. }) {
            origin.report_bad();
        }
    };
    chunks.inspect_err(report).boxed()
}

/// A blob that is being read, with everything that is needed to request the rest of it again.
struct Reading {
    registry: Arc<Registry>,
    repository: Repository,
    digest: Digest,
    purpose: Option<Purpose>,
    origin: Origin,
    blob_size: u64,
    left: Range<u64>,
    chunks: Option<Chunks>,
    /// Consecutive failures without progress.
    failures: u32,
    /// Bytes received since the last failure.
    progress: u64,
}

impl Reading {
    fn stream(self) -> Chunks {
        stream::try_unfold(self, |mut reading| async move {
            Ok(reading.next().await?.map(|chunk| (chunk, reading)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.left.is_empty() {
            let chunks = match &mut self.chunks {
                Some(chunks) => chunks,
                None => {
                    let chunks = self.reopen().await?;
                    self.chunks.insert(chunks)
                }
            };
            match chunks.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => return Ok(Some(self.take(chunk))),
                Some(Err(error)) => self.broke_off(error).await?,
                None => {
                    self.broke_off(Error::Unavailable("body ends too early".to_owned()))
                        .await?
                }
            }
        }
        Ok(None)
    }

    fn take(&mut self, mut chunk: Bytes) -> Bytes {
        let wanted = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
        chunk.truncate(wanted);
        self.left.start += chunk.len() as u64;
        self.progress += chunk.len() as u64;
        chunk
    }

    /// Waits until it is time to retry; returns the error if a retry is pointless. Attempts that
    /// made progress do not count.
    async fn broke_off(&mut self, error: Error) -> Result<(), Error> {
        if std::mem::take(&mut self.progress) >= PROGRESS {
            self.failures = 0;
        }
        self.origin.report_bad();
        let Some(pause) = self.registry.retry.pause_after(self.failures, &error) else {
            return Err(error);
        };
        tracing::debug!(digest = %self.digest, at = self.left.start, %error, "blob read resumed");
        self.chunks = None;
        self.failures += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn reopen(&mut self) -> Result<Chunks, Error> {
        let wanted = Wanted::Range(self.left.clone());
        let part = self
            .registry
            .part(&self.repository, &self.digest, &wanted, self.purpose)
            .await?;
        if part.blob_size != self.blob_size {
            return Err(Error::WrongDigest {
                expected: self.digest.clone(),
            });
        }
        self.origin
            .moved_to(Arc::clone(self.registry.endpoint(part.number).key()));
        Ok(part.chunks)
    }
}
