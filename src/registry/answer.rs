//! An answer: its head, the error that it stands for, and its unread body.

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{AsHeaderName, CONTENT_ENCODING, HeaderMap};
use reqwest::{Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::error::Error;
use super::headers;
use super::unanswered::transport;
use crate::budget::{Budget, Weight};

/// The time limit for a whole document. The largest, of 4 MiB, needs 70 kB/s.
const DOCUMENT_TIME: Duration = Duration::from_secs(60);
/// A body must deliver at least [`WINDOW_BYTES`] in each window of waiting time. The slowest links
/// that are used for pulls carry some kB/s.
const WINDOW: Duration = Duration::from_secs(30);
const WINDOW_BYTES: u64 = 30 << 10;
/// How long a list waits for memory.
const LIST_PATIENCE: Duration = Duration::from_secs(2);
/// The first bytes of gzip (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The settings for reading answers.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// How long a host may stay silent.
    pub(super) patience: Duration,
    /// The memory budget of documents that are read at once.
    pub(super) documents: Budget,
    /// The memory budget of lists that are collected from documents.
    pub(super) lists: Budget,
}

impl Reading {
    /// Reserves memory for a part of a list. The part is held already, so nothing is gained by
    /// waiting long.
    ///
    /// # Errors
    /// If the lists of other requests take all of it.
    pub(super) async fn list(&self, bytes: u64) -> Result<Weight, Error> {
        let taken = self.lists.take_within(bytes, LIST_PATIENCE).await;
        taken.map_err(|full| Error::Unavailable(full.to_string()))
    }
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    /// The URL that it came from, after redirects.
    pub(super) url: Url,
    /// Whether it came from the host that was asked, not from the target of a redirect.
    pub(super) is_own: bool,
    /// Whether the host that was asked is a Starlift server.
    pub(super) is_starlift: bool,
    reading: Reading,
}

/// A whole document. It counts against the budget until it is dropped.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) bytes: Bytes,
    _weight: Weight,
}

impl Answer {
    pub(super) fn new(response: Response, url: Url, is_own: bool, reading: Reading) -> Self {
        Self {
            response,
            url,
            is_own,
            is_starlift: false,
            reading,
        }
    }

    pub(super) fn of_starlift(self, is_starlift: bool) -> Self {
        Self {
            is_starlift,
            ..self
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Returns `Content-Type` without its parameters.
    pub(super) fn media_type(&self) -> Option<String> {
        headers::media_type(self.headers())
    }

    /// Returns the answer if it is a success, else its error.
    pub(super) fn accepted(self) -> Result<Self, Error> {
        if self.status().is_success() {
            Ok(self)
        } else {
            Err(self.refusal())
        }
    }

    /// Returns the error for an answer that is not a success.
    pub(super) fn refusal(&self) -> Error {
        match self.status() {
            StatusCode::UNAUTHORIZED => Error::Unauthorized,
            StatusCode::FORBIDDEN => Error::Denied,
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound,
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests {
                retry_after: headers::retry_after(self.headers(), SystemTime::now()),
            },
            StatusCode::RANGE_NOT_SATISFIABLE => Error::RangeNotSatisfiable {
                size: headers::unsatisfied_size(self.headers()),
            },
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Error::Unavailable(format!("status {status}"))
            }
            status => Error::Malformed(format!("status {status}")),
        }
    }

    /// Returns the body as a stream. Silence is an error, and so is a body slower than
    /// [`WINDOW_BYTES`] in each [`WINDOW`].
    pub(super) fn chunks(self) -> BoxStream<'static, Result<Bytes, Error>> {
        let state = (self.response, self.reading.patience, Pace::default());
        let chunks = stream::try_unfold(state, |(mut response, patience, mut pace)| async move {
            let begun = Instant::now();
            let chunk = heard(patience, response.chunk()).await?;
            let Some(chunk) = chunk else { return Ok(None) };
            pace.count(chunk.len(), begun.elapsed())?;
            Ok(Some((chunk, (response, patience, pace))))
        });
        chunks.boxed()
    }

    /// Reads the whole body, of at most `limit` bytes.
    pub(super) async fn limited_body(self, limit: u64) -> Result<Bytes, Error> {
        self.document(limit).await.map(|document| document.bytes)
    }

    /// Reads the same. The result counts against the budget until it is dropped.
    pub(super) async fn document(self, limit: u64) -> Result<Document, Error> {
        let late = |_| {
            Error::Unavailable(format!(
                "not read within {}",
                humantime::format_duration(DOCUMENT_TIME)
            ))
        };
        tokio::time::timeout(DOCUMENT_TIME, self.read_document(limit))
            .await
            .map_err(late)?
    }

    async fn read_document(self, limit: u64) -> Result<Document, Error> {
        let length = self.response.content_length();
        if length.is_some_and(|length| length > limit) {
            return Err(Error::TooLarge { limit });
        }
        let full = |full: crate::budget::Full| Error::Unavailable(full.to_string());
        let weight = self
            .reading
            .documents
            .take(length.unwrap_or(limit))
            .await
            .map_err(full)?;
        let is_encoded = self
            .header(CONTENT_ENCODING)
            .is_some_and(|encoding| encoding.contains("gzip"));
        // A buffer that doubles would keep up to twice the document.
        let mut body = BytesMut::with_capacity(length.map_or(0, to_usize));
        let mut chunks = self.chunks();
        while let Some(chunk) = chunks.next().await.transpose()? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(Error::TooLarge { limit });
            }
            body.extend_from_slice(&chunk);
        }
        let bytes = body.freeze();
        let is_gzip = is_encoded && bytes.starts_with(&GZIP_MAGIC);
        let bytes = if is_gzip {
            inflated(bytes, limit).await?
        } else {
            bytes
        };
        Ok(Document {
            bytes,
            _weight: weight,
        })
    }
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or_default()
}

/// Inflates a document that was compressed although the request did not ask for it. Blobs stay as
/// they are, because compressed layers are often labelled so.
async fn inflated(bytes: Bytes, limit: u64) -> Result<Bytes, Error> {
    let inflate = move || {
        let mut document = Vec::new();
        flate2::read::MultiGzDecoder::new(&*bytes)
            .take(limit + 1)
            .read_to_end(&mut document)
            .map(|_| document)
    };
    let inflated = tokio::task::spawn_blocking(inflate)
        .await
        .map_err(|error| Error::Unavailable(error.to_string()))?;
    let document = inflated
        .map_err(|_error| Error::Malformed("answer is labelled gzip but is not gzip".to_owned()))?;
    if document.len() as u64 > limit {
        Err(Error::TooLarge { limit })
    } else {
        Ok(document.into())
    }
}

/// The pace of a body: its bytes for the time spent waiting for the host. The reader's own time
/// does not count.
#[derive(Debug, Default)]
struct Pace {
    bytes: u64,
    waited: Duration,
}

impl Pace {
    fn count(&mut self, bytes: usize, waited: Duration) -> Result<(), Error> {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < WINDOW {
            return Ok(());
        }
        if self.bytes < WINDOW_BYTES {
            return Err(Error::Unavailable(format!(
                "{} bytes within {}",
                self.bytes,
                humantime::format_duration(WINDOW)
            )));
        }
        *self = Self::default();
        Ok(())
    }
}

/// Waits for `sign`, an event from the upstream, for at most `patience`.
pub(super) async fn heard<T>(
    patience: Duration,
    sign: impl Future<Output = Result<T, reqwest::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(patience, sign).await {
        Ok(heard) => heard.map_err(transport),
        Err(_) => Err(Error::Unavailable(format!(
            "silent for {}",
            humantime::format_duration(patience)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_an_error_and_a_slow_link_is_not() {
        let run = |bytes: usize, step: Duration| {
            let mut pace = Pace::default();
            (0..1000).try_for_each(|_| pace.count(bytes, step))
        };
        assert!(run(1, Duration::from_secs(1)).is_err());
        assert!(run(20_000, Duration::from_secs(15)).is_ok());
        assert!(run(2048, Duration::from_secs(1)).is_ok());
        assert!(
            run(1, Duration::ZERO).is_ok(),
            "the reader's own time does not count"
        );
    }

    #[tokio::test]
    async fn a_compressed_document_is_inflated_up_to_its_limit() {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&[b' '; 10_000]).unwrap();
        let bytes = Bytes::from(encoder.finish().unwrap());
        assert_eq!(inflated(bytes.clone(), 10_000).await.unwrap().len(), 10_000);
        assert!(matches!(
            inflated(bytes, 9_999).await,
            Err(Error::TooLarge { .. })
        ));
    }
}
