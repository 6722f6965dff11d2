//! One answer with a part of a blob: how it is asked for, and what of the blob it turns out to be.

use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::answer::Answer;
use super::endpoint::{Endpoint, Read};
use super::error::Error;
use super::http::Fetch;
use super::peer::Purpose;
use super::registry::{PULL, Registry, Target};
use crate::oci::{Digest, Repository};

/// A suffix range is read as a signed number by registries written in Go.
const MAX_TAIL: u64 = i64::MAX as u64;

pub(super) type Chunks = BoxStream<'static, Result<Bytes, Error>>;

/// A part of a blob as one answer gives it.
pub(super) struct Part {
    pub(super) blob_size: u64,
    pub(super) range: Range<u64>,
    pub(super) chunks: Chunks,
    /// The number of the endpoint that gave it.
    pub(super) number: usize,
    /// Whether that is a Starlift server.
    pub(super) starlift: bool,
}

/// What of a blob is asked for.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    Whole,
    /// Not empty.
    Range(Range<u64>),
    /// The last bytes, at least one.
    Tail(u64),
}

/// What came of it.
enum Found {
    /// The blob's size, the bytes' place in it, the bytes.
    Part(u64, Range<u64>, Chunks),
    /// A whole blob of a length that is not said.
    WithoutSize(Chunks),
    /// The blob's size and not the bytes that were wanted: a suffix range was not understood.
    OnlySize(u64),
}

impl Registry {
    pub(super) async fn part(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: &Wanted,
        purpose: Option<Purpose>,
    ) -> Result<Part, Error> {
        self.try_each(PULL, Some(digest), |number, endpoint| async move {
            let target = (number, repository.clone(), digest.clone());
            let part = |blob_size, range, chunks| {
                let starlift = endpoint.is_starlift();
                Ok(Part { blob_size, range, chunks, number, starlift })
            };
            let size = match self.ask(endpoint, &target, wanted, purpose).await {
                Ok(Found::Part(size, range, chunks)) => return part(size, range, chunks),
                Ok(Found::WithoutSize(chunks)) => {
                    let size = size_at(endpoint, repository, digest).await?;
                    return part(size, 0..size, chunks);
                }
                Ok(Found::OnlySize(size)) => size,
                // Some refuse a suffix longer than the blob, and some stores every suffix.
                Err(Error::RangeNotSatisfiable { size: Some(size) }) if wanted.is_tail() => size,
                Err(Error::RangeNotSatisfiable { .. } | Error::Malformed(_)) if wanted.is_tail() => {
                    size_at(endpoint, repository, digest).await?
                }
                Err(error) => return Err(error),
            };
            let Some(range) = wanted.within(size) else {
                return part(size, size..size, stream::empty().boxed());
            };
            match self.ask(endpoint, &target, &range, purpose).await? {
                Found::Part(size, range, chunks) => part(size, range, chunks),
                Found::WithoutSize(_) | Found::OnlySize(_) => Err(Error::Malformed("a blob without a size".to_owned())),
            }
        })
        .await
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        target: &Target,
        wanted: &Wanted,
        purpose: Option<Purpose>,
    ) -> Result<Found, Error> {
        let (_, repository, digest) = target;
        let remembered = match wanted {
            Wanted::Whole => None,
            Wanted::Range(_) | Wanted::Tail(_) => self.remembered(endpoint, target, wanted).await,
        };
        let answer = match remembered {
            Some(answer) => answer,
            None => {
                let read = Read::get(repository, format!("blobs/{digest}"));
                endpoint.read(&Read { headers: wanted.headers()?, purpose, ..read }).await?
            }
        };
        if !answer.is_own {
            self.targets.insert(target.clone(), answer.url.clone()).await;
        }
        found_in(answer, wanted)
    }

    /// Reads straight from where the registry redirected to the last time, while that works.
    async fn remembered(&self, endpoint: &Endpoint, target: &Target, wanted: &Wanted) -> Option<Answer> {
        let url = self.targets.get(target).await?;
        let fetch = Fetch { method: Method::GET, url, headers: wanted.headers().ok()?, secrets: HeaderMap::new() };
        match endpoint.http().fetch(&fetch).await.and_then(Answer::accepted) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "a remembered redirect works no more");
                self.targets.invalidate(target).await;
                None
            }
        }
    }
}

impl Wanted {
    fn is_tail(&self) -> bool {
        matches!(self, Self::Tail(_))
    }

    /// The same by its positions in a blob of `size` bytes; `None` where nothing is left of it.
    fn within(&self, size: u64) -> Option<Self> {
        let range = match self {
            Self::Whole => 0..size,
            Self::Range(range) => range.start..range.end.min(size),
            Self::Tail(length) => size.saturating_sub(*length)..size,
        };
        (!range.is_empty()).then_some(Self::Range(range))
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        Ok(self.header()?.into_iter().collect())
    }

    fn header(&self) -> Result<Option<(HeaderName, HeaderValue)>, Error> {
        let text = match self {
            Self::Whole => return Ok(None),
            Self::Range(Range { start, end: u64::MAX }) => format!("bytes={start}-"),
            // The end of a range that is not empty is at least 1.
            Self::Range(Range { start, end }) => format!("bytes={start}-{}", end.saturating_sub(1)),
            Self::Tail(length) => format!("bytes=-{}", length.min(&MAX_TAIL)),
        };
        let value = HeaderValue::try_from(text).map_err(|error| Error::Malformed(error.to_string()))?;
        Ok(Some((RANGE, value)))
    }
}

/// The size of a blob at one endpoint.
pub(super) async fn size_at(endpoint: &Endpoint, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
    let path = format!("blobs/{digest}");
    match endpoint.read(&Read::head(repository, path.clone())).await {
        Ok(answer) => {
            if let Some(size) = content_length(&answer) {
                return Ok(size);
            }
        }
        // Some registries, and signed URLs made for GET, know no HEAD.
        Err(Error::Malformed(_) | Error::Denied) => {}
        Err(error) => return Err(error),
    }
    let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
    let answer = endpoint.read(&Read { headers, ..Read::get(repository, path) }).await;
    let answer = match answer {
        Err(Error::RangeNotSatisfiable { size: Some(0) }) => return Ok(0),
        other => other?,
    };
    let size = match answer.status() {
        StatusCode::PARTIAL_CONTENT => content_range(&answer).map(|(_, size)| size),
        _ => content_length(&answer),
    };
    size.ok_or_else(|| Error::Malformed("nothing says how long the blob is".to_owned()))
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.parse().ok()
}

/// `Content-Range: bytes FIRST-LAST/SIZE`.
fn content_range(answer: &Answer) -> Option<(Range<u64>, u64)> {
    parse_content_range(answer.header(CONTENT_RANGE)?)
}

fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then_some((first..last + 1, size))
}

fn found_in(answer: Answer, wanted: &Wanted) -> Result<Found, Error> {
    let is_partial = answer.status() == StatusCode::PARTIAL_CONTENT;
    let (given, length) = (content_range(&answer), content_length(&answer));
    let chunks = answer.chunks();
    if is_partial {
        return partial(given, chunks, wanted);
    }
    match (wanted, length) {
        (Wanted::Whole, Some(size)) => Ok(Found::Part(size, 0..size, chunks)),
        (Wanted::Whole, None) => Ok(Found::WithoutSize(chunks)),
        (_, None) => Err(Error::Malformed("a blob of unknown length".to_owned())),
        // The range was ignored: what lies before it is thrown away.
        (Wanted::Range(range), Some(size)) => {
            if range.start >= size {
                return Err(Error::RangeNotSatisfiable { size: Some(size) });
            }
            let chunks = without_first(chunks, range.start);
            Ok(Found::Part(size, range.start..range.end.min(size), chunks))
        }
        (Wanted::Tail(tail), Some(size)) if *tail >= size => Ok(Found::Part(size, 0..size, chunks)),
        // The answer is dropped unread: a blob is long, and ranges by position may well be understood.
        (Wanted::Tail(_), Some(size)) => Ok(Found::OnlySize(size)),
    }
}

/// A 206, which holds what it says rather than what was asked for.
fn partial(given: Option<(Range<u64>, u64)>, chunks: Chunks, wanted: &Wanted) -> Result<Found, Error> {
    let other = || Error::Malformed("the answer holds another range than was asked for".to_owned());
    let (range, size) = given.ok_or_else(other)?;
    let is_wanted = match wanted {
        Wanted::Whole => return Err(Error::Malformed("a part where the whole was asked for".to_owned())),
        Wanted::Range(wanted) => range.start == wanted.start && range.end <= wanted.end,
        Wanted::Tail(tail) if range.start == size.saturating_sub(*tail) && range.end == size => true,
        Wanted::Tail(_) => return Ok(Found::OnlySize(size)),
    };
    if is_wanted { Ok(Found::Part(size, range, chunks)) } else { Err(other()) }
}

fn without_first(chunks: Chunks, count: u64) -> Chunks {
    let state = (chunks, count);
    let skipped = stream::try_unfold(state, |(mut chunks, mut skip)| async move {
        while let Some(mut chunk) = chunks.next().await.transpose()? {
            let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= cut as u64;
            let rest = chunk.split_off(cut);
            if !rest.is_empty() {
                return Ok(Some((rest, (chunks, skip))));
            }
        }
        Ok(None)
    });
    skipped.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_make_sense_or_are_none() {
        assert_eq!(parse_content_range("bytes 0-0/1"), Some((0..1, 1)));
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5..10, 100)));
        for text in ["", "bytes */5", "bytes 5-4/100", "bytes 5-100/100", "bytes 0-18446744073709551615/*", "0-1/2"] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_wanted_is_said_in_a_header() {
        let text = |wanted: Wanted| {
            let header = wanted.header().unwrap();
            header.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(text(Wanted::Whole), None);
        assert_eq!(text(Wanted::Range(5..10)).as_deref(), Some("bytes=5-9"));
        assert_eq!(text(Wanted::Range(5..u64::MAX)).as_deref(), Some("bytes=5-"));
        assert_eq!(text(Wanted::Tail(51)).as_deref(), Some("bytes=-51"));
        assert_eq!(text(Wanted::Tail(u64::MAX)).as_deref(), Some("bytes=-9223372036854775807"));
    }
}
